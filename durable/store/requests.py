"""The calls of `Database.write` on their way to the thread that commits them, and back."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from durable.clock import Bell, Clock, Thread
from durable.store.tx import Tx

T = TypeVar("T")

LOOK_FOR_LEADER_SECONDS = 0.1

# Threads wake one after the other, unless one of them took longer than this to do so.
SLOW_TO_WAKE_SECONDS = 0.001


class NotTogether(Exception):
    """A request of a batch raised what no other thread may raise: the batch is run again."""


class Request(Generic[T]):
    """One call of `write`, from its thread to the one that leads and back."""

    __slots__ = (
        "awake",
        "bell",
        "done",
        "error",
        "fn",
        "gone",
        "label",
        "on_commit",
        "result",
        "single",
        "turns",
    )

    attended: ClassVar[bool] = True
    """Whether a thread waits for it."""

    def __init__(
        self,
        label: str,
        fn: Callable[[Tx], T],
        on_commit: Callable[[T], None] | None = None,
        single: bool = False,
    ) -> None:
        self.label = label
        self.fn = fn
        self.on_commit = on_commit
        self.single = single
        self.done = self.gone = self.awake = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.bell: Bell | None = None  # where another leads
        self.turns: Turns | None = None

    def begin(self, leads: bool, clock: Clock) -> None:
        """It is about to be queued; its thread waits unless it leads."""
        if not leads:
            self.bell = clock.bell()

    def run(self, tx: Tx) -> None:
        """Call the function; what it raises is not caught here."""
        self.error = None
        self.result = self.fn(tx)

    def committed(self) -> None:
        """Call `on_commit`, on the thread that leads, before anybody hears of the commit."""
        if self.on_commit is not None and self.error is None:
            self.on_commit(self.result)

    def awaken(self) -> None:
        """Its thread is awake, or will not wake any more: those behind it go on."""
        self.awake = True
        if self.turns is not None:
            self.turns.go_on()

    def wake(self) -> None:
        """Let its thread look whether it is done, or whether it leads."""
        if self.bell is not None:
            self.bell.ring()

    def outcome(self) -> T:
        """What the function returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[no-any-return]


class Alone:
    """Leads in the place of a request, for a caller that finds nobody writing and runs itself."""

    gone = False


class Unattended(Request[T], ABC):
    """A call that no thread waits for: the writer leads in its place."""

    __slots__ = ("led", "writer")

    attended = False

    writer: Writer
    led: bool
    """Whether the thread that brought it leads for it, and not the writer."""

    def begin(self, leads: bool, clock: Clock) -> None:
        """The writer looks after it from now on."""
        self.led = False
        writer = self.writer
        writer.outstanding.add(self)
        if len(writer.outstanding) == 1 and not leads:
            writer.call()  # it may wait for nothing: now it looks again and again

    @property
    def told(self) -> bool:
        """Whether it is over, and `tell` has been called."""
        return self.done and self not in self.writer.outstanding

    def wake(self) -> None:
        """Say that it is done, or have the writer lead."""
        if self.done:
            self.tell()  # first: the writer looks again for those that a Ctrl-C kept from it
            self.writer.outstanding.discard(self)
        else:
            self.writer.call()

    @abstractmethod
    def tell(self) -> None:
        """Say that it is done; may be called twice."""


class Later(Unattended[T]):
    """A call of `write_later`."""

    __slots__ = ("on_done",)

    on_done: Callable[[], None]

    def tell(self) -> None:
        """Let the caller ask how it ended."""
        self.on_done()


class Left(Unattended[T]):
    """A call of `write_or_leave`."""

    __slots__ = ("on_done",)

    on_done: Callable[[Callable[[], T]], None]

    def begin(self, leads: bool, clock: Clock) -> None:
        """Its thread leads for it, if nobody else does."""
        super().begin(leads, clock)
        self.led = leads

    def tell(self) -> None:
        """Say how it ended."""
        self.on_done(self.outcome)


class Turns:
    """Threads that wake one after the other, as each calls the next one.

    Called at once, they would wake only to wait for the interpreter, and each other.
    """

    def __init__(self, waiting: Sequence[Request[Any]], clock: Clock) -> None:
        self._waiting = deque(waiting)
        self._clock = clock
        self._called_at = clock.now()
        for request in waiting:
            request.turns = self

    def go_on(self) -> None:
        """Call the next one; all that are left if that took long, as somebody computes."""
        now = self._clock.now()
        slow, self._called_at = now - self._called_at > SLOW_TO_WAKE_SECONDS, now
        while self._waiting:
            try:
                request = self._waiting.popleft()
            except IndexError:
                return
            if not request.awake:
                request.wake()
                if not slow:
                    return


def wake_in_turn(requests: Sequence[Request[Any]], clock: Clock) -> None:
    """Wake the threads of the requests one after the other; those without a thread at once.

    A clock that is not real draws itself who goes on first: it is told of all.
    """
    attended = [request for request in requests if request.attended]
    for request in requests:
        if not (request.attended and clock.real):
            request.wake()
    if attended and clock.real:
        Turns(attended, clock).go_on()


class Writer:
    """A thread that leads for requests that have none; it is started by the first of them.

    `turn` is what it does when it is called; it is told whether nobody has called, and there is
    something outstanding: a leader that was interrupted on the main thread may have told nobody.
    """

    def __init__(self, clock: Clock, turn: Callable[[bool], None]) -> None:
        self.outstanding: set[Unattended[Any]] = set()
        self._clock = clock
        self._turn = turn
        self._mutex = threading.Lock()
        self._bell = clock.bell()
        self._runs = self._ends = False
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun, or has ended for good."""
        if self._thread is None:
            with self._mutex:
                if self._thread is None and not self._ends:
                    self._thread = self._clock.spawn("durable writer", self._run)

    def call(self) -> None:
        """Have it take a turn."""
        self._bell.ring()

    def end(self) -> None:
        """End the thread, once nothing is outstanding."""
        with self._mutex:
            self._ends = True
            thread = self._thread
        self._bell.ring()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        with self._mutex:
            if self._runs:  # a Ctrl-C came between its start and the note that it has begun
                return
            self._runs = True
        while True:
            look_again = self._clock.now() + LOOK_FOR_LEADER_SECONDS if self.outstanding else None
            called = self._bell.wait(look_again)
            if self._ends:
                return
            self._turn(not called)
