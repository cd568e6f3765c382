"""Fixtures of the whole suite, and what every test must leave behind: nothing."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable import Engine
from durable.runtime import context
from durable.runtime.registry import registry
from tests.support import durable_threads

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


_left: set[object] = set()
"""The threads and engines that some test left behind: those after it are not to blame."""


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """No thread and no open engine outlives a test."""
    yield
    mine = [thread for thread in durable_threads() if thread not in _left]
    for thread in mine:
        thread.join(5)
    left = [thread for thread in mine if thread.is_alive()]
    _left.update(left)
    assert not left, "threads left behind:\n" + "\n".join(map(_where, left))
    hosts = [host for host in context._open_hosts if host not in _left]
    _left.update(hosts)
    assert not hosts, "an engine was left open"


def _where(thread: threading.Thread) -> str:
    """What a thread does, for people."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = "" if frame is None else "".join(traceback.format_stack(frame)[-6:])
    return f"{thread.name}:\n{stack}"
