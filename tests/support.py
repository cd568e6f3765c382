"""What tests have in common: gates that order events, and engines that die."""

from __future__ import annotations

import asyncio
import threading
import time
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from durable import Engine

PATIENCE = 20.0
"""Seconds after which a wait of a test has failed; never how long something is expected to take."""


needs_zones = pytest.mark.skipif(
    not zoneinfo.available_timezones(), reason="the system has no time zones: pip install tzdata"
)


class Gate:
    """A point in a step or workflow: the test waits until it is reached, then lets it pass."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()

    def pass_through(self) -> None:
        """Called by the code under test: say that it is here, and wait until the gate opens."""
        self._reached.set()
        assert self._open.wait(PATIENCE), "the gate was never opened"

    def wait_reached(self) -> None:
        """Wait until the code under test is at the gate."""
        assert self._reached.wait(PATIENCE), "the gate was never reached"

    def open(self) -> None:
        """Let it pass, now and later."""
        self._open.set()


class AsyncGate(Gate):
    """A `Gate` for coroutines: the event loop goes on meanwhile."""

    async def pause(self) -> None:
        """Called by the code under test: say that it is here, and wait until the gate opens."""
        self._reached.set()
        limit = time.monotonic() + PATIENCE
        while not self._open.is_set():
            assert time.monotonic() < limit, "the gate was never opened"
            await asyncio.sleep(0.001)


@contextmanager
def dying(path: str, **options: Any) -> Iterator[Engine]:
    """An engine whose process dies at the end of the block: nothing more is written by it."""
    engine = Engine(path, **options).open()
    try:
        yield engine
    finally:
        engine._abandon()


def until(condition: Callable[[], object]) -> None:
    """Look again and again until the condition holds; fail if it never does."""
    limit = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < limit, "what the test waits for never happened"
        pause.wait(0.001)


def durable_threads() -> list[threading.Thread]:
    """The threads of engines that run now.

    Not one whose start was interrupted: it never began, but Python lists it all the same.
    """
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("durable") and thread.ident is not None
    ]
