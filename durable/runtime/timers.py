"""Calls functions at moments: deadlines of workflows, wake-ups of those without a thread."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from functools import partial

from durable.clock import Clock, Thread


class Timer:
    """A function to be called once, at a moment; of one moment, in the order of their making."""

    __slots__ = ("action", "at", "cancelled", "order")

    def __init__(self, at: float, order: int, action: Callable[[], None]) -> None:
        self.at = at
        self.order = order
        self.action = action
        self.cancelled = False

    def __lt__(self, other: Timer) -> bool:
        return (self.at, self.order) < (other.at, other.order)


class Timers:
    """One thread, started with the first timer, that sleeps until the next one is due."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._heap: list[Timer] = []
        self._count = 0
        self._thread: Thread | None = None
        self._closed = False

    def at(self, moment: float, action: Callable[[], None]) -> Timer:
        """Call `action`, which must be quick and not raise, at that moment or soon after."""
        with self._mutex:
            self._count += 1
            timer = Timer(moment, self._count, action)
            heapq.heappush(self._heap, timer)
            if self._thread is None and not self._closed:
                self._thread = self._clock.spawn("durable timers", self._run)
            self._changed.notify()
        return timer

    def cancel(self, timer: Timer) -> None:
        """Do not call it, unless it is being called already."""
        with self._mutex:
            timer.cancelled = True
            while self._heap and self._heap[0].cancelled:
                heapq.heappop(self._heap)
            self._changed.notify()

    def close(self) -> None:
        """Drop all timers and end the thread. May be called again where it was interrupted."""
        with self._mutex:
            self._closed = True
            self._heap.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def turn(self, now: float) -> None:
        """Call what is due by `now`."""
        for timer in self._take_due(now):
            timer.action()

    def _take_due(self, now: float) -> list[Timer]:
        due = []
        with self._mutex:
            while self._heap and self._heap[0].at <= now:
                timer = heapq.heappop(self._heap)
                if not timer.cancelled:
                    due.append(timer)
        return due

    def _run(self) -> None:
        while True:
            with self._mutex:
                first = self._first()
                self._clock.wait(self._changed, partial(self._has_moved, first), first)
                if self._closed:
                    return
            self.turn(self._clock.now())

    def _has_moved(self, first: float | None) -> bool:
        """Whether the first timer is another than at `first`; with the lock held."""
        return self._closed or self._first() != first

    def _first(self) -> float | None:
        return self._heap[0].at if self._heap else None
