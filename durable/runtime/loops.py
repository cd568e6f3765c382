"""Event loops: what other threads want done there, and the loop that an engine has for itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

from durable.clock import Clock, Thread

T = TypeVar("T")

# So many things are done at once before the loop looks after its other tasks: steps, of which each
# takes some 30 µs of the loop, keep it for 2 ms.
ACTIONS_AT_ONCE = 64


class OnLoop:
    """What other threads want done on one event loop; one wake-up serves many of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._actions: deque[Callable[[], None]] = deque()
        self._called = False
        self._begun = 0
        self._turns: deque[asyncio.Future[None]] = deque()

    def take_turn(self) -> asyncio.Future[None] | None:
        """What to await first, if many have had their turn by now; None to go on at once.

        For what takes its time on the loop: a thousand coroutines may want it at once, and the loop
        is to look after its other tasks meanwhile.
        """
        if self._begun == ACTIONS_AT_ONCE:
            turn = self.loop.create_future()
            self._turns.append(turn)
            return turn
        self._count_turn()
        return None

    def _count_turn(self) -> None:
        if self._begun == 0:  # the first of this round of the loop
            self.loop.call_soon(self._begin_turns)
        self._begun += 1

    def _begin_turns(self) -> None:
        """The loop has looked after its other tasks: now some of those that wait."""
        self._begun = 0
        while self._turns and self._begun < ACTIONS_AT_ONCE:
            turn = self._turns.popleft()
            if not turn.done():  # cancelled
                turn.set_result(None)
                self._count_turn()

    def post(self, action: Callable[[], None]) -> None:
        """Have `action`, which must be quick and not raise, called on the loop soon."""
        self._actions.append(action)
        if not self._called:
            self._called = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                self.loop.call_soon_threadsafe(self._act)

    def look_again(self) -> None:
        """On the loop: do what was posted, though a Ctrl-C may have lost the loop's call for it."""
        self.loop.call_soon(self._act)

    def _act(self) -> None:
        self._called = False
        for _ in range(ACTIONS_AT_ONCE):
            if not self._actions:
                return
            self._actions.popleft()()
        self._called = True
        self.loop.call_soon(self._act)

    async def run_beside(
        self, spawn: Callable[[Callable[[], None]], None], fn: Callable[[], T]
    ) -> T:
        """What `fn` returns, run on a thread that `spawn` starts, while the loop goes on."""
        signal = Signal(self)
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome[:] = [fn(), None]
            except BaseException as error:
                outcome[:] = [None, error]
            signal.give()

        spawn(run)
        await signal
        value, error = outcome
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]


class Signal:
    """Given once, by any thread; one coroutine awaits it, again after a cancellation."""

    __slots__ = ("_future", "_on_loop", "given")

    def __init__(self, on_loop: OnLoop) -> None:
        self._on_loop = on_loop
        self.given = False
        self._future: asyncio.Future[None] | None = None

    def give(self) -> None:
        """Let the one who waits go on; may be called twice."""
        self._on_loop.post(self)

    def __call__(self) -> None:
        """On the loop: now it is given."""
        self.given = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    # No coroutine: each would be one more for a task to go through when it goes on.
    def __await__(self) -> Generator[Any, None, None]:
        self._future = self._on_loop.loop.create_future()
        if self.given:
            self._future.set_result(None)
        return self._future.__await__()


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self, clock: Clock) -> None:
        self.loop = clock.event_loop()
        self._ends = False
        self._thread: Thread = clock.spawn("durable loop", self._run)

    def close(self, patience: float) -> None:
        """End the loop and its tasks; a coroutine that does not end is left to itself."""
        self._ends = True
        with suppress(RuntimeError):  # it is closed already
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(patience)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while not self._ends:
                # What a task raises to end the program is for whoever waits for the task.
                with suppress(KeyboardInterrupt, SystemExit):
                    self.loop.run_forever()
            self._cancel_all()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks))


class Inside(Coroutine[Any, Any, Any]):
    """A coroutine that is inside `guard()` whenever it runs."""

    def __init__(
        self,
        guard: Callable[[], AbstractContextManager[None]],
        coroutine: Coroutine[Any, Any, Any],
    ) -> None:
        self._guard = guard
        self._coroutine = coroutine

    def send(self, value: Any) -> Any:
        """Let it go on."""
        with self._guard():
            return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Let it go on with an exception."""
        with self._guard():
            return self._coroutine.throw(*error)

    def close(self) -> None:
        """End it."""
        self._coroutine.close()

    def __await__(self) -> Inside:
        return self

    def __iter__(self) -> Inside:
        return self

    def __next__(self) -> Any:
        return self.send(None)
