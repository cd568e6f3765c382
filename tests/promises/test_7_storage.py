"""Promise 7: a lock delays and never fails a workflow; a full disk is a clear error."""

from __future__ import annotations

import sqlite3
import threading

import pytest

import durable
from durable import Engine, Status, step, workflow
from tests.support import PATIENCE, until


@step
def big(size: int) -> str:
    return "x" * size


@workflow
def grow(sizes: list[int]) -> int:
    return sum(len(big(size)) for size in sizes)


@pytest.mark.slow
def test_a_lock_held_by_somebody_else_delays(path: str) -> None:
    """Another connection holds the write lock: the workflow waits, and goes on when it is free."""
    with Engine(path):
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        handles: list[durable.Handle[int]] = []
        thread = threading.Thread(target=lambda: handles.append(grow.start([1, 2])))
        thread.start()
        thread.join(0.6)
        assert thread.is_alive()
        other.execute("COMMIT")
        thread.join(PATIENCE)
        assert handles[0].result(PATIENCE) == 3
        other.close()


def test_a_full_disk(path: str) -> None:
    """StorageFull for who waits; what was recorded stays; with space again, the run goes on."""
    with Engine(path) as engine:
        writer = engine._open_engine().database._writer
        pages = writer.execute("PRAGMA page_count").fetchone()[0]
        writer.execute(f"PRAGMA max_page_count = {pages + 20}")
        handle = grow.options(id="one").start([10, 1_000_000])
        with pytest.raises(durable.StorageFull, match="no space"):
            handle.result(PATIENCE)
        until(lambda: not engine._open_engine().runs.all())
        assert [each.value for each in handle.steps()] == ["x" * 10]
        assert handle.info().status is Status.PENDING
        writer.execute("PRAGMA max_page_count = 1000000")
        engine.recover(["one"])
        assert handle.result(PATIENCE) == 1_000_010


def test_a_full_disk_is_no_error_to_be_caught(path: str) -> None:
    """A workflow cannot swallow StorageFull and leave a hole in its records."""

    @workflow
    def stubborn() -> str:
        try:
            big(1_000_000)
        except Exception:
            big(1)
        return "went on"

    with Engine(path) as engine:
        writer = engine._open_engine().database._writer
        pages = writer.execute("PRAGMA page_count").fetchone()[0]
        writer.execute(f"PRAGMA max_page_count = {pages + 20}")
        with pytest.raises(durable.StorageFull):
            stubborn.options(id="one")()
        assert engine.handle("one").steps() == []
