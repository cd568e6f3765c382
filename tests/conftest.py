"""Fixtures of the whole suite, and what every test must leave behind: nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable import Engine
from durable.runtime import context
from durable.runtime.registry import registry

# Nothing here asks what a power cut leaves, and to flush to a disk takes most of the time of many
# tests. Where there is a folder in memory, they have their files there.
if os.access("/dev/shm", os.W_OK):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The path of a file that does not exist yet."""
    return str(tmp_path / "test.db")


@pytest.fixture
def engine(path: str) -> Iterator[Engine]:
    """An open engine on a file of its own, stopped at once at the end of the test."""
    engine = Engine(path).open()
    yield engine
    engine.close(timeout=0)


@pytest.fixture(autouse=True)
def _only_the_schedules_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another module has declared does not fire in a test when its moment comes."""
    monkeypatch.setattr(registry, "_schedules", {})


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """No thread and no open engine outlives a test."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("durable"):
            thread.join(5)
    left = [each.name for each in threading.enumerate() if each.name.startswith("durable")]
    assert not left, f"threads left behind: {left}"
    assert not context._open_hosts, "an engine was left open"
