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
from types import TracebackType
from typing import Protocol

from durable.errors import InvalidArgument

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


class Condition(Protocol):
    """What `Clock.wait` waits on: a ``threading.Condition``, or a `SoloCondition`."""

    def acquire(self) -> bool:
        """Lock it."""

    def release(self) -> None:
        """Unlock it."""

    def wait(self, timeout: float | None = None) -> bool:
        """Unlock it until it is notified, `timeout` seconds at most; False if that was first."""

    def __enter__(self) -> bool:
        """Lock it."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Unlock it."""


class SoloCondition:
    """A condition that one thread waits on at most.

    Ten thousand workflows that wait have one each. It is a tenth of a ``threading.Condition``,
    which has a queue for many waiters; and to make one takes less of the thread's stack.
    """

    __slots__ = ("_mutex", "_waiter")

    def __init__(self, mutex: threading.Lock) -> None:
        self._mutex = mutex
        self._waiter: threading.Lock | None = None  # locked until it is notified

    def acquire(self) -> bool:
        """Lock it."""
        return self._mutex.acquire()

    def release(self) -> None:
        """Unlock it."""
        self._mutex.release()

    def __enter__(self) -> bool:
        return self._mutex.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._mutex.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until `notify`; False if `timeout` seconds were over first."""
        self._waiter = waiter = threading.Lock()
        waiter.acquire()
        self._mutex.release()
        try:
            return waiter.acquire(timeout=-1 if timeout is None else timeout)
        finally:
            self._mutex.acquire()
            self._waiter = None

    def notify(self) -> None:
        """Let the thread go on that waits, if one does; it is locked."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.release()


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

    def wait(self, condition: Condition, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Wait on `condition`, held by the caller, until `ready()`; False if `deadline` came first.

        Whoever makes `ready` true holds `condition` while doing so and notifies it.
        """

    def spawn(self, name: str, target: Callable[[], None], *, background: bool = False) -> Thread:
        """Run `target` in a new thread called `name` that does not keep the process alive.

        What a `background` thread waits for is nothing that the program waits for: a clock that
        jumps does not jump on its account alone. Only schedules ask for one.
        """

    def event_loop(self) -> asyncio.AbstractEventLoop:
        """A new event loop whose time is this clock's, to be run in a thread that it spawned."""


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

    def wait(self, condition: Condition, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Wait as `Clock.wait` says; a deadline is a moment of the wall clock."""
        on_main = threading.current_thread() is threading.main_thread()
        look_again = LOOK_FOR_SIGNALS if on_main else LOOK_AGAIN
        while not ready():
            if deadline is None:
                condition.wait(look_again if on_main else None)
                continue
            remaining = deadline - time.time()
            if remaining <= 0:
                return False
            condition.wait(min(remaining, look_again))
        return True

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
