"""Who waits for what: a waiter registers under keys, then looks, then waits; commits notify keys.

As it registers before it looks, a change between look and wait is never missed.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from durable.clock import LOOK_AGAIN, Bell, Clock
from durable.runtime.loops import OnLoop
from durable.store.connections import Watch

POLL_SECONDS = 0.02


class Waiter(Protocol):
    """What is registered under keys."""

    keys: tuple[str, ...]

    def wake(self) -> Callable[[], None] | None:
        """A key was notified; called with the registry's lock held. What it returns runs after."""


class Waiting:
    """The waiters of one open file."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.mutex = threading.Lock()
        self._waiters: dict[str, list[Waiter]] = {}

    def listen(self, *keys: str) -> Listener:
        """A listener for those keys, to be used in a ``with`` block."""
        return Listener(self, keys, self.clock.bell())

    def listen_on(self, loop: OnLoop, *keys: str) -> AsyncListener:
        """A listener for a coroutine on that loop, to be used in a ``with`` block."""
        return AsyncListener(self, keys, loop)

    def add(self, waiter: Waiter) -> None:
        """Register: from now on no notification is missed."""
        with self.mutex:
            for key in waiter.keys:
                self._waiters.setdefault(key, []).append(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Undo `add`; harmless if it is done already."""
        with self.mutex:
            for key in waiter.keys:
                waiters = self._waiters.get(key, [])
                if waiter in waiters:
                    waiters.remove(waiter)
                if not waiters:
                    self._waiters.pop(key, None)

    def notify(self, keys: Iterable[str]) -> None:
        """Wake whoever waits for one of the keys."""
        if not self._waiters:
            return  # who is about to register looks afterwards
        with self.mutex:
            after = [waiter.wake() for key in keys for waiter in self._waiters.get(key, ())]
        for action in after:
            if action is not None:
                action()

    def notify_all(self) -> None:
        """Wake everybody: the file is being closed."""
        with self.mutex:
            keys = list(self._waiters)
        self.notify(keys)


class _Registered(ABC):
    """A waiter that is registered as long as its ``with`` block lasts.

    One that polls has a `watch` of the file, which it closes at the end.
    """

    __slots__ = ("_waiting", "_watch", "keys")

    def __init__(self, waiting: Waiting, keys: tuple[str, ...], watch: Watch | None) -> None:
        self.keys = keys
        self._waiting = waiting
        self._watch = watch

    def __enter__(self) -> Self:
        self._waiting.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waiting.remove(self)
        if self._watch is not None:
            self._watch.close()

    @abstractmethod
    def wake(self) -> Callable[[], None] | None:
        """A key was notified; see `Waiter`."""

    def _tick(self, deadline: float | None) -> float:
        """Until when to wait before the next look at the file."""
        tick = self._waiting.clock.now() + POLL_SECONDS
        return tick if deadline is None else min(tick, deadline)

    def _has_changed(self) -> bool:
        """Whether another process has changed the file since the last look."""
        return self._watch is not None and self._watch.changed()

    def _is_late(self, deadline: float | None) -> bool:
        return deadline is not None and self._waiting.clock.now() >= deadline


class Listener(_Registered):
    """One thread that waits for keys."""

    __slots__ = ("_bell",)

    def __init__(
        self, waiting: Waiting, keys: tuple[str, ...], bell: Bell, watch: Watch | None = None
    ) -> None:
        super().__init__(waiting, keys, watch)
        self._bell = bell  # made by the caller: in here, it would need the most stack of all

    def wake(self) -> None:
        """Let `wait` return."""
        self._bell.ring()

    def wait(self, deadline: float | None) -> bool:
        """Wait for a notification since the last call; False if the deadline came first."""
        return self._bell.wait(deadline)


class AsyncListener(_Registered):
    """One coroutine that waits for keys, on an event loop."""

    def __init__(
        self,
        waiting: Waiting,
        keys: tuple[str, ...],
        loop: OnLoop,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(waiting, keys, watch)
        self._notified = False
        self._loop = loop
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> Callable[[], None]:
        """Let `wait` return, once the loop gets to it."""
        return partial(self._loop.post, self._notify)

    async def wait(self, deadline: float | None) -> bool:
        """Wait for a notification since the last call; False if the deadline came first."""
        while not self._notified:
            if self._is_late(deadline):
                return False
            await self._wait_until(deadline)
        self._notified = False
        return True

    async def _wait_until(self, deadline: float | None) -> None:
        """Wait for a notification, or for the deadline, or for a while."""
        self._future = self._loop.loop.create_future()
        timer = None
        if deadline is not None:
            clock = self._waiting.clock
            remaining = deadline - clock.now()
            if clock.real:  # else the time of the loop is that of the clock
                remaining = min(remaining, LOOK_AGAIN)
            timer = self._loop.loop.call_later(remaining, self._release)
        try:
            await self._future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()

    def _notify(self) -> None:
        self._notified = True
        self._release()

    def _release(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Callback:
    """A function that is called, on the notifying thread, each time that a key is notified."""

    def __init__(self, keys: tuple[str, ...], action: Callable[[], None]) -> None:
        self.keys = keys
        self._action = action

    def wake(self) -> Callable[[], None]:
        """Have the action run once the registry's lock is free."""
        return self._action


class PolledWaiting(Waiting):
    """Waiting in a process that does not own the file: it looks whether the file has changed."""

    def __init__(self, clock: Clock, watch: Callable[[], Watch]) -> None:
        super().__init__(clock)
        self._watch = watch

    def listen(self, *keys: str) -> Listener:
        """A listener that any change of the file wakes."""
        return _PolledListener(self, keys, self.clock.bell(), self._watch())

    def listen_on(self, loop: OnLoop, *keys: str) -> AsyncListener:
        """A listener for a coroutine that any change of the file wakes."""
        return _PolledAsyncListener(self, keys, loop, self._watch())


class _PolledListener(Listener):
    def wait(self, deadline: float | None) -> bool:
        while not super().wait(self._tick(deadline)):
            if self._has_changed():
                return True
            if self._is_late(deadline):
                return False
        return True


class _PolledAsyncListener(AsyncListener):
    async def wait(self, deadline: float | None) -> bool:
        while not await super().wait(self._tick(deadline)):
            if self._has_changed():
                return True
            if self._is_late(deadline):
                return False
        return True
