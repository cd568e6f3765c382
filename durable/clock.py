"""Time: spans, moments, and the one interface that tells time, waits and starts threads.

Inside durable a span is a ``float`` of seconds and a moment a ``float`` of seconds since 1970 UTC.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from durable.errors import InvalidArgument
from durable.interrupts import on_main_thread

# A wait on the system's monotonic clock does not see the laptop sleep, nor somebody setting the
# wall clock. So a wait with a deadline looks at the wall clock at least this often.
LOOK_AGAIN = 60.0

# A signal that comes between Python's last look for one and the system's wait does not end the
# wait. So the main thread, where signals are handled, looks again this often.
LOOK_FOR_SIGNALS = 1.0


class Thread(Protocol):
    """What `Clock.spawn` returns."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended, `timeout` seconds at most."""

    def is_alive(self) -> bool:
        """Whether it still runs."""


class Bell(Protocol):
    """Wakes one thread: half the price of a condition, where nothing is to be looked at."""

    def ring(self) -> None:
        """Let `wait` return, now or when it is called; rung twice before that, it is rung once."""

    def wait(self, deadline: float | None) -> bool:
        """Wait until it is rung; False if `deadline` came first."""


class Clock(Protocol):
    """Tells time, waits and starts threads; nothing else in durable does.

    An implementation may run one thread at a time and jump to the next deadline when all wait, as
    long as `ready` is only ever called with `condition` held.
    """

    @property
    def real(self) -> bool:
        """Whether it goes by itself, for other processes too; else nobody watches for them."""

    def now(self) -> float:
        """The moment, in seconds since 1970 UTC."""

    def wait(
        self, condition: threading.Condition, ready: Callable[[], bool], deadline: float | None
    ) -> bool:
        """Wait on `condition`, held by the caller, until `ready()`; False if `deadline` came first.

        Whoever makes `ready` true holds `condition` while doing so and notifies it.
        """

    def bell(self) -> Bell:
        """A bell for one thread that waits, and others that wake it."""

    def spawn(self, name: str, target: Callable[[], None], *, background: bool = False) -> Thread:
        """Run `target` in a new thread called `name` that does not keep the process alive.

        What a `background` thread waits for is nothing that the program waits for: a clock that
        jumps does not jump on its account alone. Only schedules ask for one.
        """

    def event_loop(self) -> asyncio.AbstractEventLoop:
        """A new event loop whose time is this clock's, to be run in a thread that it spawned."""


def _timeout(deadline: float | None) -> float:
    """How long to wait before the next look; 0 if it is too late, -1 for as long as it takes."""
    left = math.inf if deadline is None else deadline - time.time()
    if left <= LOOK_FOR_SIGNALS:
        return max(0.0, left)
    if on_main_thread():
        return LOOK_FOR_SIGNALS
    return -1 if deadline is None else min(left, LOOK_AGAIN)


class _LockBell:
    __slots__ = ("_lock",)

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def ring(self) -> None:
        try:  # noqa: SIM105 - which takes four times as long
            self._lock.release()
        except RuntimeError:  # it has been rung
            pass

    def wait(self, deadline: float | None) -> bool:
        while True:
            timeout = _timeout(deadline)
            if timeout == 0:
                return self._lock.acquire(blocking=False)
            if self._lock.acquire(timeout=timeout):
                return True


class _Thread(threading.Thread):
    """A thread whose function is called from `run`, as one function of Python's calls another.

    Through ``target=``, the interpreter would call itself: that takes up to a kilobyte of stack,
    and ten thousand workflows that wait have a stack each.
    """

    def __init__(self, name: str, function: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._function: Callable[[], None] | None = function

    def run(self) -> None:
        """Call the function, and forget it."""
        function, self._function = self._function, None
        assert function is not None
        function()


class SystemClock:
    """The clock of the machine."""

    real = True

    def now(self) -> float:
        """The wall clock's moment, in whole microseconds as a ``datetime`` has them."""
        return time.time_ns() // 1_000 / 1_000_000  # round() takes twenty times as long

    def wait(
        self, condition: threading.Condition, ready: Callable[[], bool], deadline: float | None
    ) -> bool:
        """Wait as `Clock.wait` says; a deadline is a moment of the wall clock."""
        while not ready():
            timeout = _timeout(deadline)
            if timeout == 0:
                return False
            condition.wait(None if timeout < 0 else timeout)
        return True

    def bell(self) -> Bell:
        """A lock that whoever rings releases, and the waiter acquires."""
        lock = threading.Lock()
        lock.acquire()
        return _LockBell(lock)

    def spawn(self, name: str, target: Callable[[], None], *, background: bool = False) -> Thread:
        """Start a daemon thread: a program that forgets to close its engine can still end."""
        thread = _Thread(name, target)
        thread.start()
        return thread

    def event_loop(self) -> asyncio.AbstractEventLoop:
        """The ordinary one."""
        return asyncio.new_event_loop()


def seconds(span: float | timedelta, what: str) -> float:
    """`span` in seconds; InvalidArgument, naming `what`, unless it is finite and not negative."""
    if isinstance(span, timedelta):
        value = span.total_seconds()
    elif isinstance(span, (int, float)) and not isinstance(span, bool):
        try:
            value = float(span)
        except OverflowError:
            value = math.inf
    else:
        raise InvalidArgument(
            f"{what} must be seconds or a timedelta, not {type(span).__name__} ({span!r})"
        )
    if not math.isfinite(value) or value < 0:
        shown = "a number beyond all measure" if isinstance(span, int) and span > 0 else repr(span)
        raise InvalidArgument(f"{what} must be a finite span of 0 s or more, not {shown}")
    return value


def optional_seconds(span: float | timedelta | None, what: str) -> float | None:
    """`seconds`, or None for None, which stands for no limit."""
    return None if span is None else seconds(span, what)


def moment(at: datetime, what: str) -> float:
    """`at` in seconds since 1970 UTC; InvalidArgument, naming `what`, unless it has a time zone."""
    if not isinstance(at, datetime):
        raise InvalidArgument(f"{what} must be a datetime, not {type(at).__name__} ({at!r})")
    if at.utcoffset() is None:
        raise InvalidArgument(
            f"{what} must be a datetime with a time zone, not the naive {at!r}: "
            "add tzinfo=datetime.UTC, or call .astimezone() if it is local time"
        )
    return at.timestamp()


def as_datetime(at: float) -> datetime:
    """The moment as an aware ``datetime`` in UTC; the last one that there is for any later."""
    try:
        return datetime.fromtimestamp(at, UTC)
    except (OverflowError, ValueError):
        return (datetime.max if at > 0 else datetime.min).replace(tzinfo=UTC)


def optional_datetime(at: float | None) -> datetime | None:
    """`as_datetime`, or None for None."""
    return None if at is None else as_datetime(at)
