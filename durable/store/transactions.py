"""What the thread that leads does: it runs the requests of a batch in one transaction.

One connection writes, and one thread at a time is here: who that is, `database` decides. A Ctrl-C
may come between any two of these lines, on the main thread. So what is done is marked where the
commit is known to have happened, and whoever comes next undoes what was left open.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from durable.errors import EngineClosed
from durable.interrupts import is_ctrl_c
from durable.store.connections import Patience
from durable.store.faults import explain, is_busy
from durable.store.requests import NotTogether, Request
from durable.store.snapshot import Snapshot
from durable.store.tx import Bulk, Tx

Batch = list[Request[Any]]

NOT_COMMITTED: Final = object()


class Transactions:
    """Commits requests by the connection `writer`; with `signals`, also which keys they touched.

    `latecomers` tells which requests share the commit of a batch that is at work, `committed` is
    told of the keys that a commit has touched, before its requests are done.
    """

    def __init__(
        self,
        writer: sqlite3.Connection,
        patience: Patience,
        *,
        signals: bool,
        in_bulk: Bulk | None,
        latecomers: Callable[[Batch], Batch],
        committed: Callable[[list[str]], None],
    ) -> None:
        self._writer = writer
        self._patience = patience
        self._tx = Tx(writer)
        self._snapshot = Snapshot(writer)
        self._signals = signals
        self._in_bulk = in_bulk
        self._latecomers = latecomers
        self._committed = committed
        self.dead = False
        """Whether nothing is committed any more, as after the death of the process."""

    def commit(self, batch: Batch, *, careful: bool = False) -> None:
        """Run the batch in one transaction; those that share it are added to the batch.

        If one of them fails, all are undone and run again, each under a savepoint (`careful`); and
        one by one where the file itself refused them together.
        """
        committing = False
        tx = self._tx
        tx.touched = []
        try:
            self.begin()
            self._run_all(batch, careful=careful)
            if self.dead:
                raise EngineClosed(f"{self._patience.path} was abandoned")
            if self._signals and tx.touched:
                self._leave_signals(tx.touched)
            committing = True
            tx.execute("COMMIT")
            self._mark_done(batch)
        except Exception as error:
            self.rollback()
            if len(batch) == 1 or isinstance(error, EngineClosed):
                self._fail(batch, error)
            elif not careful:
                self.commit(batch, careful=True)
            else:
                for request in batch:
                    self.commit([request], careful=True)
        except BaseException:
            # Ctrl-C on the leading thread. SQLite finishes a COMMIT that it began.
            if committing and not self._writer.in_transaction:
                self._mark_done(batch)
            else:
                self.rollback()
            raise

    def commit_single(self, fn: Callable[[Tx], Any]) -> Any:
        """What `fn` returns, whose one statement is a transaction of SQLite's own.

        NOT_COMMITTED where it fails, and where it needs more than that: `commit` waits for a lock,
        or says what is wrong.
        """
        tx = self._tx
        if self._signals or self.dead or self._writer.in_transaction:
            return NOT_COMMITTED
        tx.touched = []
        try:
            result = fn(tx)
            if tx.touched:
                self._committed(tx.touched)
        except Exception:
            self._snapshot.drop()  # it may be older than the last commit of another process
            return NOT_COMMITTED
        except BaseException:  # a Ctrl-C: it may be committed
            if tx.touched:
                self._committed(tx.touched)
            raise
        snapshot = self._snapshot
        snapshot.left -= 1
        if snapshot.left <= 0:
            snapshot.renew()
        return result

    def begin(self) -> None:
        """Begin a transaction, which may write, as soon as no other process does."""
        self.reset()
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            self._patience.retry(self._writer, lambda: self._writer.execute("BEGIN IMMEDIATE"))

    @property
    def locked_for(self) -> int:
        """For how many commits more the file is locked in between, if only for reading."""
        return self._snapshot.left if self._snapshot.kept else 0

    def let_go(self) -> None:
        """Keep no lock."""
        self._snapshot.drop()

    def reset(self) -> None:
        """Undo what an interrupted leader may have left open, and keep no lock."""
        self.rollback()
        self.let_go()

    def rollback(self) -> None:
        """Undo what is not committed, if there is anything."""
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    # ------------------------------------------------------------------ a batch

    def _run_all(self, batch: Batch, *, careful: bool) -> None:
        """Run the batch, and those that come late."""
        if careful:
            for request in batch:
                self._run_under_savepoint(request)
            return
        if len(batch) == 1:
            batch[0].run(self._tx)
        else:
            self._run_together(batch)
        while late := self._latecomers(batch):
            batch += late
            self._run_together(late)

    def _run_together(self, batch: Batch) -> None:
        for request in self._run_in_bulk(batch):
            try:
                request.run(self._tx)
            except Exception:
                raise
            except BaseException as error:
                if is_ctrl_c(error):
                    raise  # of this thread, whose request it may be
                raise NotTogether from error

    def _run_in_bulk(self, batch: Batch) -> Batch:
        """Run those that write a row each, all at once; the others, which are left.

        Statement by statement, a thread of an event loop that computes would get in between each.
        """
        if self._in_bulk is None:
            return batch
        rows, others = [], []
        for request in batch:
            fn = request.fn
            if isinstance(fn, partial) and fn.func is self._in_bulk.one:
                request.error = None
                rows.append(fn.args[0])
            else:
                others.append(request)
        self._in_bulk.many(rows, self._tx)
        return others

    def _run_under_savepoint(self, request: Request[Any]) -> None:
        tx = self._tx
        touched = len(tx.touched)
        tx.execute("SAVEPOINT request")
        try:
            request.run(tx)
        except sqlite3.Error:
            raise  # the whole transaction may be gone: each is tried alone
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            request.error = explain(error, self._patience.path)
            del tx.touched[touched:]
            tx.execute("ROLLBACK TO request")
        tx.execute("RELEASE request")

    def _leave_signals(self, keys: Sequence[str]) -> None:
        """Let the engine in another process know, as part of the commit."""
        for key in dict.fromkeys(keys):
            self._tx.execute(
                "INSERT OR REPLACE INTO durable_signal (key) VALUES (:key)", {"key": key}
            )

    def _mark_done(self, batch: Batch) -> None:
        """The batch is committed; may be called again for the same batch."""
        if self._tx.touched:
            self._committed(self._tx.touched)
        for request in batch:
            request.done = True

    def _fail(self, batch: Batch, error: Exception) -> None:
        for request in batch:
            request.error = explain(error, self._patience.path)
            request.done = True
