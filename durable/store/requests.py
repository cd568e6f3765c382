"""The calls of `Database.write` on their way to the thread that commits them, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from durable.clock import Clock, SoloCondition, Thread
from durable.store.tx import Tx

T = TypeVar("T")

LOOK_FOR_LEADER_SECONDS = 0.1


class NotTogether(Exception):
    """A request of a batch raised what no other thread may raise: the batch is run again."""


class Request(Generic[T]):
    """One call of `write`, from its thread to the one that leads and back."""

    __slots__ = ("condition", "done", "error", "fn", "gone", "label", "lock", "result", "tx")

    def __init__(self, label: str, fn: Callable[[Tx], T], tx: Tx) -> None:
        self.label = label
        self.fn = fn
        self.tx = tx
        self.done = False
        self.gone = False
        self.result: T | None = None
        self.error: BaseException | None = None
        # Both are made where another leads. It is the lock that is entered: a Ctrl-C inside of
        # `__enter__` of a condition would leave it locked.
        self.lock: threading.Lock | None = None
        self.condition: SoloCondition | None = None

    def follow(self) -> None:
        """Another leads: there will be something to wait for."""
        self.lock = threading.Lock()
        self.condition = SoloCondition(self.lock)

    def wake(self) -> None:
        """Let its thread look whether it is done, or whether it leads."""
        if self.lock is not None and self.condition is not None:
            with self.lock:
                self.condition.notify()

    def outcome(self) -> T:
        """What the function returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return cast(T, self.result)


class Later(Request[T]):
    """A call of `write_later`: no thread waits for it, so the writer leads in its place."""

    __slots__ = ("on_done", "writer")

    def __init__(
        self,
        label: str,
        fn: Callable[[Tx], T],
        tx: Tx,
        on_done: Callable[[], None],
        writer: Writer,
    ) -> None:
        super().__init__(label, fn, tx)
        self.on_done = on_done
        self.writer = writer

    def wake(self) -> None:
        """Say that it is done, or have the writer lead."""
        if self.done:
            self.writer.outstanding.discard(self)
            self.on_done()
        else:
            self.writer.call()


class Writer:
    """A thread that leads for requests that have none; it is started by the first of them."""

    def __init__(self, clock: Clock, turn: Callable[[], None]) -> None:
        self.outstanding: set[Later[Any]] = set()
        self._clock = clock
        self._turn = turn
        self._mutex = threading.Lock()
        self._condition = threading.Condition(self._mutex)
        self._called = False
        self._ends = False
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun."""
        with self._mutex:
            if self._thread is None:
                self._thread = self._clock.spawn("durable writer", self._run)

    def call(self) -> None:
        """Have it take a turn."""
        with self._mutex:
            self._called = True
            self._condition.notify()

    def end(self) -> None:
        """End the thread, once nothing is outstanding."""
        with self._mutex:
            self._ends = True
            self._condition.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            # A leader that was interrupted on the main thread may have told nobody.
            look_again = self._clock.now() + LOOK_FOR_LEADER_SECONDS if self.outstanding else None
            with self._mutex:
                self._clock.wait(self._condition, lambda: self._called or self._ends, look_again)
                if self._ends:
                    return
                self._called = False
            self._turn()
