"""An event loop on a virtual clock: it waits on the clock, and its time is the clock's."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any, Protocol

from durable.clock import Clock

# How long, in real time, it looks for what comes from outside while sockets are open.
LOOK_FOR_SOCKETS = 0.005


class Outside(Clock, Protocol):
    """A clock whose threads run one at a time, and may leave it for a while."""

    def outside(self) -> AbstractContextManager[None]:
        """While inside, the others go on, and the time stands still."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Run it in a thread that the clock has spawned.

    While a coroutine waits for a socket or a pipe, the time stands still until something comes.
    """

    def __init__(self, clock: Outside) -> None:
        self._waiter = _Waiter(clock)
        super().__init__(_Selector(self._waiter))
        self._clock_resolution = 1e-6  # moments are seconds since 1970: floats have no more digits
        self.set_default_executor(_Executor(clock))

    def time(self) -> float:
        """The moment of the clock."""
        return self._waiter.clock.now()

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As ever; and the loop does not wait for the clock any more."""
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        self._waiter.call()
        return handle


class _Waiter:
    """Where the loop waits on its clock."""

    def __init__(self, clock: Outside) -> None:
        self.clock = clock
        self._condition = threading.Condition(threading.Lock())
        self._called = False

    def call(self) -> None:
        """End the wait, or the next one."""
        with self._condition:
            self._called = True
            self._condition.notify()

    def wait(self, span: float | None) -> None:
        """Until it is called, or that long."""
        deadline = None if span is None else self.clock.now() + span
        with self._condition:
            self.clock.wait(self._condition, lambda: self._called, deadline)
            self._called = False


class _Selector(selectors.DefaultSelector):
    def __init__(self, waiter: _Waiter) -> None:
        super().__init__()
        self._waiter = waiter

    def select(self, timeout: float | None = None) -> list[Any]:
        """What is ready; the loop's own pipe is one of those registered."""
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if len(self.get_map()) > 1:
            with self._waiter.clock.outside():
                return super().select(LOOK_FOR_SOCKETS)
        self._waiter.wait(timeout)
        return super().select(0)


class _Executor(ThreadPoolExecutor):
    """Runs each function on a thread that the clock knows."""

    def __init__(self, clock: Outside) -> None:
        super().__init__(max_workers=1)
        self._clock = clock

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As ever."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                value = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(value)

        self._clock.spawn("executor", run)
        return future
