"""Threads that run workflows of queues, one after the other: a thread costs more than a commit."""

from __future__ import annotations

import threading
from collections import deque

from durable.runtime import execution
from durable.runtime.host import Host
from durable.runtime.runs import Run

MOST_IDLE = 16


class _Here(threading.local):
    """What the pool knows of the calling thread."""

    works = False
    """Whether it is of the pool."""
    ending = False
    """Whether what it runs has ended, so that it can take the next one."""
    expected = False
    """Whether it is counted among those that come for a run."""


class Workers:
    """As many threads as there are runs; up to 16 of those that have nothing to do stay."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._changed = threading.Condition(threading.Lock())
        self._ready: deque[Run] = deque()
        self._idle = 0
        self._coming = 0
        self._closed = False
        self._here = _Here()

    def give(self, run: Run) -> None:
        """Have a thread run it: the calling one if what it runs has ended, or an idle or new one.

        RuntimeError where the system gives no more threads; then `withdraw` it.
        """
        here, promised = self._here, False
        try:
            with self._changed:
                self._ready.append(run)
                if here.ending and not here.expected:
                    here.expected = True
                    self._coming += 1
                    return
                if len(self._ready) <= self._idle + self._coming:
                    self._changed.notify()
                    return
                promised = True
                self._coming += 1
            self._host.spawn("durable worker", self._work)
        except BaseException:
            with self._changed:  # should one come all the same, there is one too many: no harm
                self._coming -= promised
            raise

    def withdraw(self, run: Run) -> bool:
        """After `give` was interrupted or has failed: whether no thread runs it, and none will."""
        with self._changed:
            if run in self._ready:
                self._ready.remove(run)
            return run.thread is not None

    def ending(self) -> None:
        """What the calling thread runs has just ended: if it is of the pool, it is free soon."""
        self._here.ending = self._here.works

    def close(self) -> None:
        """Let the threads end, once nothing is left to run."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        here = self._here
        here.works = here.expected = True
        try:
            while (run := self._next()) is not None:
                here.ending = False
                execution.in_background(self._host, run)
        finally:  # the thread may be used for something else
            here.works = here.ending = here.expected = False

    def _next(self) -> Run | None:
        """The run whose turn it is, waiting for one; None where the thread is to end."""
        with self._changed:
            if self._here.expected:
                self._here.expected = False
                self._coming -= 1
            if not self._ready and (self._closed or self._idle >= MOST_IDLE):
                return None
            self._idle += 1
            self._host.clock.wait(self._changed, self._has_something, None)
            self._idle -= 1
            if not self._ready:
                return None
            run = self._ready.popleft()
            run.thread = None
            return run

    def _has_something(self) -> bool:
        return bool(self._ready) or self._closed
