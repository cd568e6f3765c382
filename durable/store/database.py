"""One SQLite file behind two doors: `write` and `read`.

One connection writes. Calls of `write` that arrive while a commit is being flushed share the next
one (group commit): the thread that finds the connection free leads, has every waiting function run
in one transaction (`transactions`), and wakes the others. A lone caller leads itself, and pays no
thread switch. Callers that must not wait, as those on an event loop, use `write_later`: a thread of
its own leads for them. Those that may go before the end use `write_or_leave`: they lead, or leave
it to who does. Nothing else in durable commits a transaction.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeVar, cast

from durable.clock import Clock
from durable.errors import EngineClosed, NotAllowedHere, StorageError
from durable.interrupts import on_main_thread
from durable.store import migrations
from durable.store.connections import MEMORY, Connections, Patience, Watch, check_file
from durable.store.faults import explain, translate
from durable.store.requests import (
    LOOK_FOR_LEADER_SECONDS,
    Alone,
    Later,
    Left,
    Request,
    Unattended,
    Writer,
    wake_in_turn,
)
from durable.store.transactions import NOT_COMMITTED, Batch, Transactions
from durable.store.tx import Bulk, Tx
from durable.store.wal import Log

A = TypeVar("A")
T = TypeVar("T")

# A commit that has so many takes in no more of those that come while its transaction is at work.
MOST_TOGETHER = 1000


class Observer(Protocol):
    """Told of each write, on the thread that asked for it; it may raise to stop that thread."""

    def before(self, label: str) -> None:
        """The write called `label` is about to begin."""

    def after(self, label: str) -> None:
        """It is over: committed, or undone as it failed; its caller does not know yet."""


class Database:
    """The file at `path` (or ``:memory:``), from `open` to `close`.

    `on_commit` is called after each commit with the keys that it touched. With `signals`, they are
    also left in the file for the engine in another process. What is `in_bulk` is written together
    where many wait for a commit. Every error is a `DurableError`.
    """

    def __init__(
        self,
        path: str,
        *,
        clock: Clock,
        synchronous: str,
        create: bool,
        on_commit: Callable[[Sequence[str]], None],
        signals: bool = False,
        in_bulk: Bulk | None = None,
    ) -> None:
        self.path = path
        self._clock = clock
        self._synchronous = synchronous
        self._on_commit = on_commit
        self._signals = signals
        self._in_bulk = in_bulk
        self._patience = Patience(path)
        self._pid = os.getpid()
        self._inherited = False
        self._mutex = threading.Lock()
        self._queue: list[Request[Any]] = []
        self._leader: Request[Any] | Alone | None = None
        self._leading: int | None = None
        self._untold: list[list[str]] = []
        self._locked_at_rest = 0
        self._closing = False
        self.observer: Observer | None = None
        self._idle_lock = threading.Lock()
        self._idle = threading.Condition(self._idle_lock)
        self._writer_thread = Writer(clock, self._lead_for_others)
        self.connections = Connections(path, create=create)
        self._create = create
        self._writer = cast(sqlite3.Connection, None)  # until it is open
        self._transactions = cast(Transactions, None)
        self._log: Log | None = None

    def open(self) -> Self:
        """Open the file, and make or migrate it if this may; to be called once."""
        check_file(self.path, create=self._create)
        try:
            self._writer = self.connections.make()
            self._transactions = Transactions(
                self._writer,
                self._patience,
                signals=self._signals,
                in_bulk=self._in_bulk,
                latecomers=self._latecomers,
                committed=self._remember_touched,
            )
            self._prepare(self._create)
            _watch_forks()
            _opened.append(self)
        except BaseException:
            self.close()
            raise
        return self

    # ------------------------------------------------------------------ the two doors

    def write(
        self,
        label: str,
        fn: Callable[[Tx], T],
        on_commit: Callable[[T], None] | None = None,
        single: bool = False,
    ) -> T:
        """What `fn` returns, once its writes are committed; nothing of them if it raises.

        `fn` may run on another thread, and again if a commit fails: it has no effect but on `tx`.
        `label` names the write for people and for tests that crash around it. `on_commit` is told
        what `fn` returned before anybody hears of the keys that it touched, unless a Ctrl-C comes
        between; it is quick and does not raise.

        A `single` one changes the file in one statement, before which it touches its keys, and
        raises only if nothing is changed. Where it is alone, it needs no BEGIN and no COMMIT.
        """
        if self._inherited:
            self.check_process()
        observer = self.observer
        if observer is not None:
            observer.before(label)
        result: Any = NOT_COMMITTED
        if single and self._leader is None:
            result = self._lead_alone(self._transactions.commit_single, fn, on_commit)
        request = None
        if result is NOT_COMMITTED:
            request = Request(label, fn, on_commit, single)
            self._write_in_turn(request)
        if observer is not None:
            observer.after(label)
        return result if request is None else request.outcome()

    def write_later(
        self,
        label: str,
        fn: Callable[[Tx], T],
        on_done: Callable[[], None],
        on_commit: Callable[[T], None] | None = None,
        single: bool = False,
    ) -> Later[T]:
        """`write`, for callers that must not wait: `on_done` is called, on some thread, at its end.

        The `outcome` of what this returns is then what `write` would return, or raise. `on_done` is
        quick, does not raise, and may be called twice.
        """
        if self._inherited:
            self.check_process()
        if self.observer is not None:
            self.observer.before(label)
        writer = self._writer_thread
        request = Later(label, fn, on_commit, single)
        request.writer = writer
        request.on_done = on_done
        try:
            writer.start()  # first: where no thread can be started, nothing waits for it
            if self._enter(request):
                writer.call()
        except BaseException:
            self._leave_to_writer(request)
            raise
        return request

    def write_by_writer(
        self,
        label: str,
        fn: Callable[[Tx], T],
        on_commit: Callable[[T], None] | None = None,
        single: bool = False,
    ) -> T:
        """`write`, but another thread leads: for a thread that then waits for a long time.

        What a thread frees, the C library keeps for it. After a commit of its own that is a fifth
        of the memory that a thread has which only sleeps, and there may be thousands; not of the
        main thread, which leads itself.
        """
        if on_main_thread():
            return self.write(label, fn, on_commit, single)
        bell = self._clock.bell()
        request = self.write_later(label, fn, bell.ring, on_commit, single)
        bell.wait(None)
        if self.observer is not None:
            self.observer.after(label)
        return request.outcome()

    def write_or_leave(
        self,
        label: str,
        fn: Callable[[Tx], T],
        on_done: Callable[[Callable[[], T]], None],
        on_commit: Callable[[T], None] | None = None,
        single: bool = False,
    ) -> None:
        """`write`, for a thread that may go: if others commit now, it leaves the write to them.

        `on_done` gets what returns the result of `fn`, or raises its error. It is called on the
        thread that commits; it is quick, does not raise, and may be called twice. An observer is
        not told of it.
        """
        if self._inherited:
            self.check_process()
        writer = self._writer_thread
        request = Left(label, fn, on_commit, single)
        request.writer = writer
        request.on_done = on_done
        if self._enter(request):
            self._lead_for(request)
        else:
            writer.start()

    def settle(self) -> None:
        """Wait until all that was queued is written or dropped, also what a Ctrl-C left behind.

        The write of a caller that was interrupted while it waited may be in a commit under way.
        """
        if self._leader is not None:
            self.write("settle", lambda tx: None)

    def rest(self) -> None:
        """Keep no lock on the file, if nothing was written since the last call: to be called often.

        Otherwise no other process could empty the log for as long as this one does nothing.
        """
        left, before = self._transactions.locked_for, self._locked_at_rest
        self._locked_at_rest = left
        if left == before and left > 0 and self._leader is None:
            self._lead_alone(lambda _: self._transactions.let_go(), None, None)

    def read(self, fn: Callable[[Tx], T]) -> T:
        """What `fn` returns, run on a snapshot by a connection that cannot write."""
        self.check_process()
        if self.path == MEMORY:
            return self.write("read", fn)
        reader = self.connections.borrow()
        try:
            connection = reader.connection
            return self._patience.retry(connection, lambda: self._snapshot(connection, fn))
        except Exception as error:
            raise explain(error, self.path)  # noqa: B904 - it names its cause
        finally:
            self.connections.give_back(reader)

    @property
    def rows_changed(self) -> int:
        """How many rows its writes have changed so far, also those that were undone."""
        return self._writer.total_changes

    def check_process(self) -> None:
        """Raise EngineClosed in a process that inherited this database by a fork."""
        if self._inherited:
            raise EngineClosed(
                f"{self.path} was opened by process {self._pid}, and this is its child "
                f"{os.getpid()}: an SQLite file does not survive a fork; "
                "open durable.Client(path) here, or start the process with 'spawn'"
            )

    # ------------------------------------------------------------------ group commit
    #
    # A Ctrl-C may come between any two of these lines, on the main thread. So a request leaves the
    # queue when it is done, never before; what is done is marked where the commit is known to have
    # happened; and a caller that is interrupted says so (`gone`), so that those who wait for it to
    # lead, and look now and then, put another in its place.

    def _lead_alone(
        self, work: Callable[[A], Any], argument: A, on_commit: Callable[[Any], None] | None
    ) -> Any:
        """What `work` returns, done without a request, which takes longer; else NOT_COMMITTED."""
        alone = Alone()
        try:
            with self._mutex:
                if self._leader is not None or self._closing:
                    return NOT_COMMITTED
                self._leader = alone
            if self._log is not None:
                self._look_after(self._log)
            result = work(argument)
            with self._mutex:
                next_leader = self._choose_leader() if self._queue or self._closing else None
                self._leader = next_leader
            if on_commit is not None and result is not NOT_COMMITTED:
                on_commit(result)
            if next_leader is not None:
                next_leader.wake()
            if self._untold:
                self.notify()
        except BaseException:
            self._abandon(alone)
            raise
        return result

    def _write_in_turn(self, request: Request[Any]) -> None:
        """Wait until the request is done by whoever leads, or lead."""
        try:
            if not self._enter(request):
                self._follow(request)
            if not request.done:
                self._lead(request)
        except BaseException:
            self._abandon(request)
            raise

    def _enter(self, request: Request[Any]) -> bool:
        """Queue the request; whether it leads, as no other does."""
        with self._mutex:
            if self._closing:
                raise EngineClosed(f"{self.path} is closed")
            leads = self._leader is None
            if not leads and self._leading == threading.get_ident():
                raise NotAllowedHere(
                    f"{request.label!r} was called in the body of a transaction: what it writes "
                    "would need a commit of its own; call it in the workflow, or in another step"
                )
            request.begin(leads, self._clock)
            self._queue.append(request)
            if leads:
                self._leader = request
            return leads

    def _follow(self, request: Request[Any]) -> None:
        """Wait until the request is done, or it is its thread's turn to lead."""
        assert request.bell is not None
        while not (request.done or self._leader is request):
            if not request.bell.wait(self._clock.now() + LOOK_FOR_LEADER_SECONDS):
                self._replace_leader()
        request.awaken()

    def _lead_for_others(self, late: bool) -> None:
        """A turn of the writer: lead, if it is the turn of a request without a thread."""
        if late:
            self._replace_leader()
        leader = self._leader
        if isinstance(leader, Unattended) and not leader.led:
            self._lead_for(leader)
        if late:
            for request in list(self._writer_thread.outstanding):  # a copy: others add to it
                if request.done:
                    request.wake()

    def _lead_for(self, request: Unattended[Any]) -> None:
        """Lead in the place of the request, which no thread waits for."""
        try:
            self._lead(request)
        except BaseException as error:  # what the body of a transaction raised
            request.error = error
            request.done = True
            self._hand_over(request, [request])

    def _leave_to_writer(self, request: Unattended[Any]) -> None:
        """Its thread was interrupted (Ctrl-C) while it queued the request: nobody may know yet."""
        with self._mutex:
            queued = any(each is request for each in self._queue)
        if not queued:
            self._writer_thread.outstanding.discard(request)
        self._replace_leader()
        self._writer_thread.call()

    def _lead(self, leader: Request[Any]) -> None:
        """Commit all that is queued, notify, and hand over to the first that came meanwhile."""
        batch = [leader]
        try:
            if self._log is not None:
                self._look_after(self._log)
            if not (leader.single and len(self._queue) == 1 and self._commit_single(leader)):
                with self._mutex:
                    batch = [request for request in self._queue if not request.done]
                self._leading = threading.get_ident()
                self._transactions.commit(batch)
        finally:
            self._leading = None
            self._hand_over(leader, batch)
            if self._untold:
                self.notify()

    def _commit_single(self, request: Request[Any]) -> bool:
        """Commit the request the short way; False where it takes the long one."""
        result = self._transactions.commit_single(request.fn)
        if result is NOT_COMMITTED:
            return False
        request.result = result
        request.done = True
        return True

    def _look_after(self, log: Log) -> None:
        """Lay out a piece of the log where the next commit would append to it."""
        if log.is_full:
            self._transactions.reset()
            log.lay_out()
            if log.is_whole:
                self._close_log()

    def _close_log(self) -> None:
        """It need not grow any more, or the file is closed."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _hand_over(self, leader: Request[Any], batch: Batch) -> None:
        """Let the next one lead, and wake those that are done."""
        with self._mutex:
            next_leader = self._choose_leader()
        for request in batch:
            if request.on_commit is not None and request.done:
                request.committed()
        if next_leader is not None or len(batch) > 1:
            others = [each for each in batch if each.done and each is not leader]
            if next_leader is not None and next_leader is not leader:
                # While it commits, the last of those that are done now have something to do.
                others.insert(len(others) - len(others) // 8, next_leader)
            wake_in_turn(others, self._clock)
        if not leader.attended and leader.done:
            leader.wake()

    def _choose_leader(self) -> Request[Any] | None:
        """With the mutex held: the first that waits leads; if there is none, `close` is told."""
        queue = self._queue
        if len(queue) == 1 and queue[0].done:
            queue.clear()
            leader = None
        else:
            queue = self._queue = [each for each in queue if not (each.done or each.gone)]
            leader = queue[0] if queue else None
        self._leader = leader
        if self._closing and leader is None:
            with self._idle_lock:
                self._idle.notify_all()
        return leader

    def _replace_leader(self) -> None:
        """Let another lead, if the one whose turn it is was interrupted."""
        with self._mutex:
            if self._leader is None or self._leader.gone:
                leader = self._choose_leader()
                if leader is not None:
                    leader.wake()

    def notify(self) -> None:
        """Tell of the keys that commits have touched; some may be told twice, none is missed."""
        untold = self._untold
        if not untold:
            return
        self._on_commit([key for keys in untold for key in keys])
        told = set(map(id, untold))
        with self._mutex:
            self._untold = [keys for keys in self._untold if id(keys) not in told]

    def _abandon(self, leader: Request[Any] | Alone) -> None:
        """Its thread, which leads or may come to, was interrupted (Ctrl-C): nobody waits for it."""
        leader.gone = True
        if isinstance(leader, Request):
            leader.awaken()
        self._replace_leader()
        self.notify()

    def _latecomers(self, batch: Batch) -> Batch:
        """Those that came meanwhile, if they are as many as the batch: they share its commit.

        For a few, a leader among many threads would fight for the interpreter longer than it saves.
        """
        if 2 * len(batch) > len(self._queue) or len(batch) >= MOST_TOGETHER:
            return []
        known = set(map(id, batch))
        with self._mutex:
            return [each for each in self._queue if not each.done and id(each) not in known]

    def _remember_touched(self, keys: list[str]) -> None:
        """Have `notify` tell of the keys that this commit has touched."""
        with self._mutex:
            self._untold = [*self._untold, keys]

    # ------------------------------------------------------------------ connections

    def _prepare(self, create: bool) -> None:
        """Make the connection durable's, and the file too if it is new."""
        try:
            self._patience.retry(
                self._writer, lambda: migrations.prepare(self._writer, self.path, create=create)
            )
            self._patience.retry(self._writer, self._set_pragmas)
            if create:
                self._transactions.begin()  # fails at once where the file may not be written
                self._writer.execute("COMMIT")
            if self._synchronous == "full" and self.path != MEMORY:
                self._log = Log(self.path, self._writer)
                if self._log.is_whole:
                    self._close_log()
        except (sqlite3.Error, UnicodeDecodeError, MemoryError) as error:
            raise translate(error, self.path) from error

    def _set_pragmas(self) -> None:
        self._writer.execute(f"PRAGMA synchronous = {self._synchronous.upper()}")
        self._writer.execute("PRAGMA fullfsync = 1")  # macOS: to the platter; elsewhere ignored
        self._writer.execute("PRAGMA checkpoint_fullfsync = 1")
        if self.path != MEMORY:
            mode = self._writer.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise StorageError(
                    self.path, f"cannot use write-ahead logging here (the file stays in {mode!r})"
                )

    @staticmethod
    def _snapshot(connection: sqlite3.Connection, fn: Callable[[Tx], T]) -> T:
        try:
            connection.execute("BEGIN")
            return fn(Tx(connection))
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def watch(self) -> Watch:
        """A look at whether any other connection has changed the file since the last look."""
        return Watch(self.connections.make(), self.path)

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls."""
        return self._closing

    def hurry(self) -> None:
        """Wait no longer while another process has the file locked."""
        self._patience.ended = True

    def die(self) -> None:
        """Close the file as the death of the process would: nothing more is committed."""
        self._transactions.dead = True
        self.close()

    def close(self) -> None:
        """Finish what was accepted, refuse all else, close the file.

        May be called twice, and again where it was interrupted.
        """
        if self._inherited:
            return
        with self._mutex:
            self._closing = True
        self.hurry()
        self.connections.refuse()
        while self._leader is not None:
            look_again = self._clock.now() + LOOK_FOR_LEADER_SECONDS
            with self._idle_lock:
                self._clock.wait(self._idle, lambda: self._leader is None, look_again)
            self._replace_leader()
        self._writer_thread.end()
        if self in _opened:
            _opened.remove(self)
        self._close_log()
        self.connections.close()
        if self._writer is not None:
            if self._transactions is not None:
                self._transactions.let_go()
            self._writer.close()


# ---------------------------------------------------------------------- forks

_opened: list[Database] = []
_watching_forks = False


def _watch_forks() -> None:
    """From the first open file on: a forked child knows what it inherited."""
    global _watching_forks  # noqa: PLW0603
    if not _watching_forks and hasattr(os, "register_at_fork"):
        _watching_forks = True
        os.register_at_fork(after_in_child=_inherit)


def _inherit() -> None:
    """In the child: refuse the parent's files, and never close the connections and queries there.

    Closing an inherited connection may take the parent's write-ahead log away
    (https://www.sqlite.org/howtocorrupt.html, 2.6), also when the interpreter ends.
    """
    import ctypes  # noqa: PLC0415 - only a child that inherited an open file needs it

    for database in _opened:
        database._inherited = True
        readers = [each.connection for each in database.connections.readers]
        for kept in [database._writer, database._transactions, *readers]:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    _opened.clear()
