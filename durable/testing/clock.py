"""A clock that one drives: it runs one thread at a time, in an order drawn from a seed, and jumps.

Every thread of the engine, and the thread that made the clock (the *owner*: the test), hold a
baton in turn. A thread gives it up when it waits on the clock, when it ends, and where the engine
offers a switch (around each write). When all of them wait, the time jumps to the next deadline.
While the owner does anything but wait on the clock, it holds the baton: nothing moves behind it.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import FrameType

from durable.clock import as_datetime, moment
from durable.errors import InvalidArgument
from durable.testing.loops import VirtualLoop
from durable.testing.places import program_line

START = datetime(2026, 1, 1, tzinfo=UTC)

# How often, of all the times that threads may change places, the seed thinks again about who goes
# first. Each seed has one of these: bugs between neighbouring writes want many changes, and those
# where one thread overtakes another by far want few.
FICKLENESS = (1.0, 0.3, 0.1)

# How often the waiting owner looks whether a thread unknown to the clock changed anything.
LOOK_FOR_GUESTS = 0.01


class Deadlock(AssertionError):
    """Every thread waits, and none for a moment: nothing can happen any more. The text says who."""


class Stuck(Deadlock):
    """Nothing has happened for long: a thread waits for something that the clock does not know."""


@dataclass
class _Wait:
    """What a member waits for; a `patient` one goes on only when nobody else can."""

    condition: threading.Condition
    ready: Callable[[], bool]
    deadline: float | None
    patient: bool = False

    def is_over(self, now: float) -> bool:
        if self.patient:
            return False
        if self.deadline is not None and now >= self.deadline:
            return True
        with self.condition:
            return self.ready()


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False)
class _Member:
    """A thread that takes the baton in turn; without a wait it is ready to go on."""

    name: str
    waits: _Wait | None = None
    background: bool = False
    away: bool = False
    ended: bool = False
    deadlock: str | None = None
    thread: int | None = None
    turn: threading.Lock = field(default_factory=_locked)
    """Locked until it is given the baton."""


class VirtualThread:
    """A thread that the clock has spawned."""

    def __init__(self, clock: VirtualClock, member: _Member, thread: threading.Thread) -> None:
        self._clock = clock
        self._member = member
        self._thread = thread

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self._member.ended

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, `timeout` seconds of the clock at most."""
        deadline = None if timeout is None else self._clock.now() + timeout
        condition = threading.Condition(threading.Lock())
        with condition:
            if self._clock.wait(condition, lambda: self._member.ended, deadline):
                self._thread.join()


class _Bell:
    """One thread waits until another rings, as `Clock.bell` says."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._condition = threading.Condition(self._mutex)
        self._rung = False

    def ring(self) -> None:
        with self._mutex:
            self._rung = True
            self._condition.notify()

    def wait(self, deadline: float | None) -> bool:
        with self._mutex:
            rung = self._clock.wait(self._condition, lambda: self._rung, deadline)
            self._rung = False
            return rung


class VirtualClock:
    """Time for tests: the same seed gives the same order of everything, every time.

    Give it to an engine: ``Engine(path, clock=VirtualClock(seed=7))``. A sleep of thirty days takes
    no time. `start`, an aware ``datetime``, is the first moment. Deadlock, saying who waits where,
    is raised in the test when nothing can happen any more, and when a thread was stuck for
    `patience` seconds of real time. `errors` has what was raised on the threads that it spawned.
    """

    real = False

    def __init__(self, seed: int = 0, *, start: datetime = START, patience: float = 30.0) -> None:
        self.seed = seed
        self.patience = patience
        self.errors: list[BaseException] = []
        self._now = moment(start, "the start of a clock")
        self._random = random.Random(seed)
        self._fickleness = self._random.choice(FICKLENESS)
        self._ranks: dict[_Member, float] = {}
        self._mutex = threading.Lock()
        self._local = threading.local()
        self._owner = _Member("the test", thread=threading.get_ident())
        self._local.member = self._owner
        self._members = [self._owner]
        self._holder: _Member | None = self._owner
        self._owner_thread = threading.current_thread()
        self._threads: set[threading.Thread] = set()
        self._guests: set[threading.Thread] = set()
        self._signs_of_life = 0

    # ------------------------------------------------------------------ what an engine uses

    def now(self) -> float:
        """The moment, in seconds since 1970 UTC."""
        return self._now

    def wait(
        self, condition: threading.Condition, ready: Callable[[], bool], deadline: float | None
    ) -> bool:
        """Give up the baton until `ready()` or the deadline, as `Clock.wait` says."""
        me = self._me()
        if me is None:
            return self._wait_as_guest(condition, ready, deadline)
        while not ready():
            if deadline is not None and self._now >= deadline:
                return False
            self._wait_once(me, _Wait(condition, ready, deadline))
        return True

    def spawn(
        self, name: str, target: Callable[[], None], *, background: bool = False
    ) -> VirtualThread:
        """A thread that begins when it is its turn."""
        member = _Member(name, background=background)

        def run() -> None:
            self._local.member = member
            member.thread = threading.get_ident()
            member.turn.acquire()
            try:
                target()
            except BaseException as error:
                self.errors.append(error)
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), thread)))
            finally:
                self._end(member)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.add(thread)
        self._members.append(member)
        thread.start()
        return VirtualThread(self, member, thread)

    def bell(self) -> _Bell:
        """A bell that knows whose turn it is."""
        return _Bell(self)

    def event_loop(self) -> VirtualLoop:
        """A loop for coroutines, whose time is the clock's."""
        return VirtualLoop(self)

    def switch(self) -> None:
        """A place where another thread may go on first; the seed decides."""
        me = self._me()
        if me is None:
            return
        with self._mutex:
            self._signs_of_life += 1
            chosen = self._favourite(self._able())
            if chosen is me:
                return
            self._give_to(chosen)
        self._await_turn(me)

    # ------------------------------------------------------------------ what a test uses

    def advance(
        self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """Let so much time pass, with all that falls due in it, in order."""
        span = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
        if span < 0:
            raise InvalidArgument(f"time cannot be turned back, and {span} s are negative")
        until = self._now + span
        self._let_go_on(_Wait(threading.Condition(), lambda: False, until))
        self.settle()

    def set(self, to: datetime) -> None:
        """Set the clock forward or back, as a person does, and as a laptop's sleep does.

        Nothing runs in between, as it does in `advance`; then what is late by now goes on.

            clock.set(clock.moment + timedelta(hours=8))
        """
        now = moment(to, "what a clock is set to")
        if self._me() is not self._owner:
            raise _not_the_owner()
        self._now = now
        self.settle()

    def settle(self) -> None:
        """Let everything go on that can without any time passing."""
        self._let_go_on(_Wait(threading.Condition(), lambda: False, None, patient=True))

    @property
    def moment(self) -> datetime:
        """The present moment."""
        return as_datetime(self._now)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """While inside, the caller may wait for something that the clock does not know.

        For the test, and for steps that wait for the test. The other threads go on meanwhile, and
        the time stands still.
        """
        me = self._me()
        if me is None:
            raise InvalidArgument("only threads that the clock runs one at a time leave it")
        with self._mutex:
            me.away = True
            self._dispatch()
        try:
            yield
        finally:
            with self._mutex:
                me.away = False
                if self._holder is None:
                    self._dispatch()
            self._await_turn(me)

    def table(self) -> str:
        """Who waits, and where, for people."""
        frames = sys._current_frames()
        lines = [
            f"  {each.name}: {self._describe(each, frames.get(each.thread or 0))}"
            for each in list(self._members)
        ]
        lines += [
            f"  {each.name}: not known to the clock{_at(frames.get(each.ident or 0))}"
            for each in self._present_guests()
        ]
        return "\n".join(lines)

    # ------------------------------------------------------------------ the baton

    def _me(self) -> _Member | None:
        """The calling thread, if it holds the baton."""
        me: _Member | None = getattr(self._local, "member", None)
        if me is not None and self._holder is me:
            return me
        self._guests.add(threading.current_thread())
        self._signs_of_life += 1
        return None

    def _let_go_on(self, wait: _Wait) -> None:
        if self._me() is not self._owner:
            raise _not_the_owner()
        with wait.condition:
            self._wait_once(self._owner, wait)

    def _wait_once(self, me: _Member, wait: _Wait) -> None:
        """Give the baton up until the wait may be over; its condition is held by the caller."""
        me.waits = wait
        wait.condition.release()
        try:
            with self._mutex:
                self._dispatch()
            self._await_turn(me)
        finally:
            me.waits = None
            wait.condition.acquire()
        if me.deadlock is not None:
            deadlock, me.deadlock = me.deadlock, None
            raise Deadlock(deadlock)

    def _await_turn(self, me: _Member) -> None:
        if me is not self._owner:
            me.turn.acquire()
            return
        try:
            self._await_owners_turn()
        except BaseException:  # Ctrl-C, too
            self._seize()
            raise

    def _await_owners_turn(self) -> None:
        """Wait for the baton, and look now and then whether a guest or nobody moves things."""
        signs, since = self._signs_of_life, time.monotonic()
        while not self._owner.turn.acquire(timeout=LOOK_FOR_GUESTS):
            quiet = signs == self._signs_of_life
            with self._mutex:
                if self._holder is None:
                    self._dispatch(quiet=quiet)
            if not quiet:
                signs, since = self._signs_of_life, time.monotonic()
            elif time.monotonic() - since > self.patience:
                raise Stuck(
                    f"nothing has happened for {self.patience:g} s of real time:\n{self.table()}\n"
                    "a step that waits for the test does so inside clock.outside(), and so does a "
                    "test that waits for threads of its own; VirtualClock(patience=…) waits longer"
                )

    def _seize(self) -> None:
        """Give the baton to the owner; whoever has it and does not give it back is a guest now."""
        with self._mutex:
            if self._holder is self._owner:
                self._owner.turn.acquire(blocking=False)
            elif self._holder is not None:
                self._members.remove(self._holder)
            self._holder = self._owner

    def _wait_as_guest(
        self, condition: threading.Condition, ready: Callable[[], bool], deadline: float | None
    ) -> bool:
        """The wait of a thread that the clock does not know: for real, looking again and again."""
        while not ready():
            if deadline is not None and self._now >= deadline:
                return False
            condition.wait(LOOK_FOR_GUESTS)
        return True

    def _dispatch(self, *, quiet: bool = False) -> None:
        """Give the baton to somebody, if anybody can go on; with the mutex held.

        While guests use the engine, time does not jump until it has been `quiet` for a moment.
        """
        self._holder = None
        chosen = self._choose(may_jump=quiet or not self._has_active_guests())
        if chosen is not None:
            self._give_to(chosen)

    def _give_to(self, chosen: _Member) -> None:
        self._holder = chosen
        self._signs_of_life += 1
        chosen.turn.release()

    def _choose(self, *, may_jump: bool) -> _Member | None:
        """Who goes on next, after a jump if need be; None where only a guest can help."""
        while True:
            able = self._able()
            if able:
                return self._favourite(able)
            if self._owner.waits is None:
                return None
            if self._owner.waits.patient:
                return self._owner
            if not may_jump or any(each.away for each in self._members):
                return None
            if not self._jump():
                if self._present_guests():
                    return None
                self._owner.deadlock = f"nothing can happen any more:\n{self.table()}"
                return self._owner

    def _favourite(self, able: list[_Member]) -> _Member:
        """The first in the order that the seed has in mind; now and then it is another one."""
        if self._random.random() < self._fickleness:
            self._ranks.clear()
        for each in able:
            self._ranks.setdefault(each, self._random.random())
        return max(able, key=self._ranks.__getitem__)

    def _able(self) -> list[_Member]:
        """Those who can go on now, in the order in which they joined."""
        return [
            each
            for each in self._members
            if not each.away and (each.waits is None or each.waits.is_over(self._now))
        ]

    def _jump(self) -> bool:
        """Go to the next deadline; False if there is none but of threads in the background."""
        deadlines = [
            (each.waits.deadline, each.background)
            for each in self._members
            if each.waits is not None and each.waits.deadline is not None
        ]
        if all(background for _, background in deadlines):
            return False
        self._now = max(self._now, min(deadlines)[0])
        return True

    def _end(self, member: _Member) -> None:
        with self._mutex:
            member.ended = True
            self._threads.discard(threading.current_thread())
            if self._holder is member:
                self._members.remove(member)
                self._dispatch()

    def _present_guests(self) -> list[threading.Thread]:
        """Threads that may act although the clock does not know them.

        A daemon counts once it has used the engine; before, it may be anybody's.
        """
        known = {self._owner_thread, *self._threads}
        return [
            each
            for each in threading.enumerate()
            if each not in known and (not each.daemon or each in self._guests)
        ]

    def _has_active_guests(self) -> bool:
        """Whether a thread that has used the engine as a guest is still alive."""
        for each in list(self._guests):
            if each.is_alive():
                return True
            self._guests.discard(each)
        return False

    def _describe(self, member: _Member, frame: FrameType | None) -> str:
        at = _at(frame)
        if member.away:
            return f"outside{at}"
        if member.waits is None:
            return f"{'running' if member is self._holder else 'ready'}{at}"
        if member.waits.deadline is None:
            return f"waits{at}"
        until = f"waits until {show_moment(member.waits.deadline)}"
        if member.background:
            return f"{until}, which clock.advance() and sleeps pass, but nobody waits for"
        return f"{until}{at}"


def _not_the_owner() -> InvalidArgument:
    return InvalidArgument(
        "only the thread that made the clock drives it, and never from inside a workflow"
    )


def _at(frame: FrameType | None) -> str:
    where = program_line(frame)
    return "" if where is None else f" in {where}"


def show_moment(at: float) -> str:
    """A moment, for people."""
    return f"{as_datetime(at):%Y-%m-%d %H:%M:%S.%f}"
