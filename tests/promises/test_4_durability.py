"""Promise 4: what has returned is on the disk."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

import durable
from durable import Engine, step, workflow
from tests.support import PATIENCE, dying, until


@step
def one() -> int:
    return 1


@workflow
def add() -> int:
    return one() + int(durable.recv())


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1)])
def test_the_pragmas(path: str, synchronous: Any, level: int) -> None:
    """The writing connection uses a write-ahead log and flushes as it was told."""
    with Engine(path, synchronous=synchronous) as engine:
        writer = engine._open_engine().database._writer
        assert writer.execute("PRAGMA synchronous").fetchone()[0] == level
        assert writer.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert writer.execute("PRAGMA fullfsync").fetchone()[0] == 1


def test_another_reader_sees_what_has_returned(path: str) -> None:
    """When `start`, `send` and a step have returned, any other process sees what they did."""
    with Engine(path) as engine:
        handle = add.options(id="one").start()
        other = sqlite3.connect(path)
        assert other.execute("SELECT id FROM durable_workflow").fetchall() == [("one",)]
        until(lambda: handle.steps())
        assert other.execute("SELECT value FROM durable_step").fetchall() == [("1",)]
        engine.send("one", 41)
        assert other.execute("SELECT value FROM durable_message").fetchall() == [("41",)]
        other.close()


def test_death_right_after_returning(path: str) -> None:
    """A process that dies as soon as `start` and `send` return has lost nothing."""
    with dying(path) as engine:
        add.options(id="one").start()
        engine.send("one", 41)
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == 42
