"""The read lock that small commits keep between them: who has to wait for it, and how long."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from durable import Engine, step, transaction, workflow
from durable.clock import SystemClock
from durable.store import wal
from durable.store.database import Database
from durable.store.snapshot import KEPT_AFTER, KEPT_FOR
from durable.store.tx import Tx
from tests.store.interrupts import Interruption
from tests.support import until


class Bench:
    """A database with one table, whose rows are written one by one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.database = Database(
            path,
            clock=SystemClock(),
            synchronous="normal",
            create=True,
            on_commit=lambda keys: None,
        ).open()
        self.database.write("table", lambda tx: tx.execute("CREATE TABLE t (x)"))
        self.written = 0

    def write(self, count: int = 1) -> None:
        """As many commits of one statement."""
        for _ in range(count):
            self.written += 1
            self.database.write("single", self._insert, None, True)

    def _insert(self, tx: Tx) -> None:
        tx.execute("INSERT INTO t VALUES (?)", (self.written,))

    @property
    def kept(self) -> bool:
        """Whether the lock is."""
        return self.database._transactions.locked_for > 0

    def rows(self) -> list[int]:
        """What is committed."""
        return self.database.read(lambda tx: [row[0] for row in tx.rows("SELECT x FROM t", {})])


@pytest.fixture
def bench(path: str) -> Iterator[Bench]:
    bench = Bench(path)
    yield bench
    bench.database.close()


def can_empty_the_log(path: str) -> bool:
    """Whether another process could, which would need that nobody has a read lock."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        busy, *_ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy


def test_it_is_kept_after_a_few_commits(bench: Bench) -> None:
    """Those of who commits now and then find it dropped, as do those of others."""
    bench.write(KEPT_AFTER - 1)
    assert can_empty_the_log(bench.path)
    bench.write()
    assert not can_empty_the_log(bench.path)


def test_it_is_dropped_for_one_commit_of_many(bench: Bench) -> None:
    """That one may copy the log."""
    bench.write(KEPT_AFTER)
    kept = []
    for _ in range(2 * (KEPT_FOR + 1)):
        bench.write()
        kept.append(bench.kept)
    assert kept == 2 * ([True] * (KEPT_FOR - 1) + [False, True])


def test_the_log_does_not_grow_on_its_account(bench: Bench) -> None:
    """It's copied, and written over from the front, a few commits later than without."""
    bench.write(3 * (1_000 + KEPT_FOR))
    frames = Path(bench.path + "-wal").stat().st_size / wal.FRAME
    assert frames < 1_000 + 2 * KEPT_FOR


def test_who_rests_keeps_nobody_waiting(bench: Bench) -> None:
    """The second of two calls of `rest` lets go, if nothing was written in between."""
    bench.write(KEPT_AFTER)
    bench.database.rest()
    bench.write()
    bench.database.rest()
    assert bench.kept
    bench.database.rest()
    assert can_empty_the_log(bench.path)


def test_who_rests_waits_for_nobody(bench: Bench) -> None:
    """It lets go at once, also while another process writes."""
    bench.write(KEPT_AFTER)
    with closing(sqlite3.connect(bench.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        bench.database.rest()
        bench.database.rest()
        assert not bench.kept


def test_a_transaction_of_several_statements_drops_it(bench: Bench) -> None:
    """It may do what no other query may look on at, as to drop a table."""
    bench.write(KEPT_AFTER)
    bench.database.write("drop", lambda tx: tx.execute("DROP TABLE t"))
    assert not bench.kept


def test_a_commit_of_another_process_is_seen_by_the_next(bench: Bench) -> None:
    """What is kept is older than it: the next write drops it, and is done once."""
    bench.write(KEPT_AFTER)
    with closing(sqlite3.connect(bench.path)) as other, other:
        other.execute("INSERT INTO t VALUES (-1)")
    bench.write(2)
    assert bench.rows() == [1, 2, 3, 4, -1, 5, 6]


def test_a_write_never_looks_at_an_old_state(bench: Bench) -> None:
    """One that depends on what another process has written decides by that."""
    bench.write(KEPT_AFTER)
    with closing(sqlite3.connect(bench.path)) as other, other:
        other.execute("DELETE FROM t")
    changed = bench.database.write(
        "single", lambda tx: tx.execute("UPDATE t SET x = -x").rowcount, None, True
    )
    assert changed == 0


def test_a_lock_of_another_process_is_waited_for(bench: Bench) -> None:
    """Kept or not, the write is done once that other one has ended."""
    bench.write(KEPT_AFTER)
    with closing(sqlite3.connect(bench.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        tries: list[int] = []

        def insert(tx: Tx) -> None:
            tries.append(1)
            if len(tries) == 2:
                other.execute("ROLLBACK")
            tx.execute("INSERT INTO t VALUES (5)")

        bench.database.write("single", insert, None, True)
    assert bench.rows() == [1, 2, 3, 4, 5]


def test_closing_drops_it(path: str) -> None:
    """The last to close the file leaves no log."""
    bench = Bench(path)
    bench.write(KEPT_AFTER)
    bench.database.close()
    assert not Path(path + "-wal").exists()


@pytest.mark.parametrize("kept", [False, True])
def test_ctrl_c_at_any_point_of_it_leaves_the_door_open(bench: Bench, kept: bool) -> None:
    """The write after which it is kept, or dropped, is done or not, and the next one is."""
    snapshot = bench.database._transactions._snapshot
    at, interruption = 0, None
    while interruption is None or interruption.happened:
        at += 1
        interruption, returned = Interruption(at), False
        snapshot.drop()
        if kept:
            snapshot.renew()
        snapshot.left = 1
        with suppress(KeyboardInterrupt), interruption.armed():
            bench.write()
            returned = True
        rows = bench.rows()
        assert rows.count(bench.written) in ((1,) if returned else (0, 1)), interruption.where
        bench.write()
        assert bench.rows()[-1] == bench.written, interruption.where
    assert at > 8  # points there were


@step
def one() -> int:
    return 1


@transaction
def replace_table(cursor: sqlite3.Cursor) -> None:
    cursor.execute("DROP TABLE IF EXISTS mine")
    cursor.execute("CREATE TABLE mine (x)")


@workflow
def many_steps(count: int) -> int:
    done = sum(one() for _ in range(count))
    replace_table()
    return done + sum(one() for _ in range(count))


def test_an_engine_at_rest_lets_others_empty_the_log(path: str) -> None:
    """A moment after its last step; and its own transactions may drop tables at once."""
    with Engine(path):
        assert many_steps(20) == 40
        assert many_steps(20) == 40
        until(lambda: can_empty_the_log(path))
