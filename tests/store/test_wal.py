"""The write-ahead log is laid out ahead of commits that are flushed, and nothing else changes."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from durable.clock import SystemClock
from durable.store import wal
from durable.store.database import Database
from tests.store import interrupts
from tests.store.interrupts import Interruption
from tests.store.recording import Recorder

OF_WRITING_AND_LAYING_OUT = interrupts.OF_WRITING | {wal.__file__}


class Bench:
    """A database with one table, and the lengths that its log had after each commit, in frames."""

    def __init__(self, path: str, synchronous: str = "full") -> None:
        self.path = path
        self.database = Database(
            path,
            clock=SystemClock(),
            synchronous=synchronous,
            create=True,
            on_commit=lambda keys: None,
        ).open()
        self.database.write("table", lambda tx: tx.execute("CREATE TABLE t (x)"))
        self.lengths = [self.length()]

    def length(self) -> int:
        """Of the log, in frames."""
        return Path(self.path + "-wal").stat().st_size // wal.FRAME

    def commit(self, count: int) -> None:
        """As many commits of one page each."""
        for number in range(count):
            self.add(number)
            self.lengths.append(self.length())

    def add(self, number: int) -> None:
        """One commit of one page."""
        self.database.write("add", lambda tx: tx.execute("INSERT INTO t VALUES (?)", (number,)))

    def rows(self) -> list[int]:
        """What was committed."""
        return self.database.read(lambda tx: [row[0] for row in tx.rows("SELECT x FROM t", {})])

    def pragma(self, text: str) -> int:
        """What the writing connection answers."""
        return int(self.database._writer.execute(f"PRAGMA {text}").fetchone()[0])


@pytest.fixture
def bench(path: str) -> Iterator[Bench]:
    bench = Bench(path)
    yield bench
    bench.database.close()


def test_few_commits_make_the_log_longer(bench: Bench) -> None:
    """Of 1,500, fewer than one in twenty does, and it is copied into the file as ever."""
    bench.commit(1_500)

    appending = sum(now > before for before, now in pairwise(bench.lengths))
    assert appending < 75
    assert bench.lengths[-1] < 1_200
    assert bench.rows() == list(range(1_500))


def test_programs_of_few_commits_have_short_logs(bench: Bench) -> None:
    """What is laid out costs time: who commits seldom pays nothing."""
    bench.commit(20)

    assert bench.lengths[-1] - bench.lengths[0] == 20


def test_commits_that_are_not_flushed_need_no_such_log(path: str) -> None:
    """With `normal` nobody waits for the file system: nothing is laid out."""
    bench = Bench(path, "normal")
    bench.commit(100)
    bench.database.close()

    assert bench.lengths[-1] - bench.lengths[0] == 100


def test_a_log_that_is_long_enough_is_looked_at_no_more(bench: Bench) -> None:
    """Once it is so long that SQLite begins anew, a commit is as cheap as before."""
    bench.commit(1_100)
    length = bench.lengths[-1]

    assert bench.database._log is None
    bench.commit(200)
    assert bench.lengths[-1] == length


def test_death_while_it_is_laid_out_leaves_a_sound_file(bench: Bench, tmp_path: Path) -> None:
    """The file and its log, copied in the middle, hold what was committed and not a byte more."""
    copy = str(tmp_path / "copy.db")
    writer = bench.database._writer

    def look(statement: str) -> None:
        if statement == "ROLLBACK":
            shutil.copy(bench.path, copy)
            shutil.copy(bench.path + "-wal", copy + "-wal")

    writer.set_trace_callback(look)
    bench.commit(40)

    assert Path(copy + "-wal").stat().st_size > wal.PIECE
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        committed = [row[0] for row in connection.execute("SELECT x FROM t")]
        assert 0 < len(committed) < 40
        assert committed == list(range(len(committed)))
        assert connection.execute("SELECT count(*) FROM durable_event").fetchone() == (0,)


def test_a_disk_without_room_for_it_loses_no_commit(bench: Bench) -> None:
    """It is given up, and every commit that finds room succeeds."""
    bench.pragma(f"max_page_count = {bench.pragma('page_count') + 5}")
    bench.commit(100)

    assert bench.rows() == list(range(100))
    assert bench.lengths[-1] < 200
    assert bench.database._log is None


def test_a_disk_that_fails_even_to_undo_it_is_no_error_of_its_own(path: str) -> None:
    """It is given up in silence: the commit that follows meets the same, and explains it."""

    class Failing(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "ROLLBACK":
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *values)

    Bench(path).database.close()
    with (
        closing(sqlite3.connect(path, isolation_level=None, factory=Failing)) as writer,
        closing(wal.Log(path, writer)) as log,
    ):
        log.lay_out()
        assert log.is_whole


def test_another_process_with_the_lock_has_it_given_up(bench: Bench) -> None:
    """It waits for the lock as long as SQLite does, once; the commit after it waits on."""
    bench.commit(20)
    with closing(sqlite3.connect(bench.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        bench.database._log.lay_out()
        other.execute("ROLLBACK")
    bench.commit(100)

    assert len(bench.rows()) == 120
    assert bench.lengths[-1] - bench.lengths[0] == 120


def test_what_is_left_in_the_log_of_a_dead_process_is_not_laid_out_again(path: str) -> None:
    """A log that is there already, however long, is written over."""
    dead = Bench(path)
    dead.commit(400)
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("SELECT count(*) FROM t").fetchone()  # keeps the log from being removed
        length = dead.length()
        dead.database.close()
        with closing(wal.Log(path, reader)) as log:
            assert dead.length() == length
            assert not log.is_full


def test_ctrl_c_at_any_point_of_it_leaves_the_door_open(bench: Bench) -> None:
    """The write that was to follow is done or not, the next one is, and no transaction is left."""
    cache = bench.pragma("cache_size")
    at, interruption = 0, None
    while interruption is None or interruption.happened:
        at += 1
        interruption = Interruption(at, OF_WRITING_AND_LAYING_OUT)
        bench.database._close_log()
        log = bench.database._log = wal.Log(bench.path, bench.database._writer)
        log._cache, log._laid_out = cache, 0
        returned = False
        with suppress(KeyboardInterrupt), interruption.armed():
            bench.add(at)
            returned = True
        bench.add(-at)
        rows = bench.rows()
        assert rows.count(at) in ((1,) if returned else (0, 1)), interruption.where
        assert rows.count(-at) == 1, interruption.where
        assert not bench.database._writer.in_transaction, interruption.where
    assert at > 20  # points there were


def test_its_statements_are_not_prepared_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laying out runs five statements, and changes no schema: what is prepared stays so."""
    recorder = Recorder()
    with recorder.listening(monkeypatch):
        bench = Bench(path)
        before = bench.pragma("schema_version")
        recorder.statements.clear()
        bench.database._log.lay_out()
        verbs = [statement.verb for statement in recorder.statements]
        assert bench.pragma("schema_version") == before
        bench.database.close()

    assert verbs == ["PRAGMA", "BEGIN", "INSERT", "ROLLBACK", "PRAGMA"]
