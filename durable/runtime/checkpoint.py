"""The checkpoint: was it recorded? Then that; otherwise do it, and record it in one write.

Every durable call is a generator (a *flow*) that yields what it wants done: `Write`, `Read`, `Wait`
or `Call`. `drive` does it on the thread that calls; a driver for coroutines would await the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from durable.codec import Codec, decode_error, encode_error
from durable.errors import DurableError, EngineClosed, StorageError
from durable.runtime.context import Scope, StepCall, run_in_step
from durable.runtime.file import File
from durable.runtime.waiting import Listener
from durable.store import steps, workflows
from durable.store.database import Tx
from durable.store.steps import ERROR, TIMEOUT, VALUE, Outcome, Place
from durable.store.workflows import RunIsOver

T = TypeVar("T")

# A wait that lasts longer than this is noted in the file, so that the next engine may leave the
# workflow without a thread until what it waits for has come.
NOTE_WAIT_AFTER = 1.0


class Actor(Protocol):
    """For whom a flow is driven: a `Scope` in a workflow, or `Outside`."""

    @property
    def file(self) -> File:
        """Where it reads, writes and waits."""

    @property
    def stop_keys(self) -> tuple[str, ...]:
        """What ends its waits, besides what it waits for."""

    def check(self) -> None:
        """Raise Stopped if it is to stop."""

    def begin(self) -> None:
        """A command is about to be done; Stopped where nothing may be done any more."""

    def explain(self, error: Exception) -> BaseException:
        """What to raise where the run is over, or the file failed."""


class Outside(NamedTuple):
    """Code that runs in no workflow, or for no step of one: nothing stops it."""

    file: File
    stop_keys: tuple[str, ...] = ()

    def check(self) -> None:
        """It has no run that might stop."""

    def begin(self) -> None:
        """It may do anything at any time."""

    def explain(self, error: Exception) -> BaseException:
        """The error itself."""
        return error


def actor(file: File, scope: Scope | None) -> Actor:
    """The scope where there is one, else `Outside`."""
    return Outside(file) if scope is None else scope


class Command(Protocol):
    """What a flow may ask its driver to do."""

    def perform(self, actor: Actor) -> Any:
        """Do it on the calling thread."""


Flow = Generator[Command, Any, T]


class Write(Generic[T]):
    """Run `fn` in a transaction."""

    __slots__ = ("fn", "label")

    def __init__(self, label: str, fn: Callable[[Tx], T]) -> None:
        self.label = label
        self.fn = fn

    def perform(self, actor: Actor) -> T:
        """What `fn` returned; Stopped where the run, or anybody, cannot write any more."""
        try:
            return actor.file.database.write(self.label, self.fn)
        except (RunIsOver, StorageError, EngineClosed) as error:
            raise actor.explain(error) from None


class Read(Generic[T]):
    """Look at the file."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable[[Tx], T]) -> None:
        self.fn = fn

    def perform(self, actor: Actor) -> T:
        """What `fn` returned; Stopped where the file cannot be read."""
        try:
            return actor.file.database.read(self.fn)
        except (StorageError, EngineClosed) as error:
            raise actor.explain(error) from None


class Listen:
    """Register under keys, to look and wait afterwards; gives the listener, a context manager."""

    __slots__ = ("keys",)

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def perform(self, actor: Actor) -> Listener:
        """A listener for the calling thread."""
        return actor.file.waiting.listen(*self.keys, *actor.stop_keys)


class Wait:
    """Wait until the listener is notified or the moment has come."""

    __slots__ = ("deadline", "listener")

    def __init__(self, listener: Listener, deadline: float | None) -> None:
        self.listener = listener
        self.deadline = deadline

    def perform(self, actor: Actor) -> None:
        """Wait; Stopped if that is why it ended."""
        actor.check()
        self.listener.wait(self.deadline)
        actor.check()


class Call(Generic[T]):
    """Run the body of a step."""

    __slots__ = ("fn", "scope", "step")

    def __init__(self, scope: Scope, step: StepCall, fn: Callable[[], T]) -> None:
        self.scope = scope
        self.step = step
        self.fn = fn

    def perform(self, actor: Actor) -> T:
        """What the body returned."""
        return run_in_step(self.scope, self.step, self.fn)


class Spawn:
    """Have a flow driven beside this one."""

    __slots__ = ("begin", "name", "scope")

    def __init__(self, name: str, begin: Callable[[], Flow[None]], scope: Scope) -> None:
        self.name = name
        self.begin = begin
        self.scope = scope

    def perform(self, actor: Actor) -> None:
        """Drive it on a thread of its own."""
        self.scope.host.spawn(self.name, lambda: drive(self.begin(), self.scope))


def drive(flow: Flow[T], actor: Actor) -> T:
    """What the flow returns, when all that it asks for is done on the calling thread."""
    try:
        command = next(flow)
        while True:
            try:
                actor.begin()
                answer = command.perform(actor)
            except BaseException as error:
                command = flow.throw(error)
            else:
                command = flow.send(answer)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    except Carried as carried:
        raise carried.error from None


# ---------------------------------------------------------------------- outcomes


class Carried(Exception):
    """Takes a StopIteration out of a flow: as it is, a generator would make it a RuntimeError."""

    def __init__(self, error: StopIteration) -> None:
        self.error = error


def carried(error: BaseException) -> BaseException:
    """The error, as a flow may raise it."""
    return Carried(error) if isinstance(error, StopIteration) else error


def settle(outcome: Outcome, codec: Codec) -> Any:
    """The recorded value, or raise the recorded error."""
    if outcome.kind == ERROR:
        raise carried(decode_error(outcome.text or ""))
    return codec.decode(outcome.text or "null")


def value_outcome(codec: Codec, value: object) -> Outcome:
    """The outcome of a step that returned `value`."""
    return Outcome(VALUE, codec.encode(value))


def error_outcome(error: BaseException) -> Outcome:
    """The outcome of a step that raised `error`."""
    return Outcome(ERROR, encode_error(error))


# ---------------------------------------------------------------------- the algorithm


def effect(scope: Scope, name: str, work: Callable[[Tx, Place], object]) -> Flow[Outcome]:
    """A step whose work is itself a write: the work and its checkpoint share one commit.

    A `DurableError` of the work (no such workflow) is recorded as the outcome.
    """
    place, record = scope.next(name)
    if record is not None and record.outcome is not None:
        return record.outcome
    now = scope.host.clock.now()

    def write(tx: Tx) -> Outcome:
        workflows.guard(tx, *scope.run.key)
        try:
            outcome = value_outcome(scope.host.codec, work(tx, place))
        except StorageError:
            raise
        except DurableError as error:
            outcome = error_outcome(error)
        steps.decide(tx, scope.run.key, place, name, outcome, started_at=now, now=now)
        return outcome

    outcome: Outcome = yield Write(name, write)
    return outcome


class Subject(NamedTuple):
    """What is waited for: `find` looks for it, and the keys are notified when it may be there."""

    keys: tuple[str, ...]
    find: Callable[[Tx, Place], Outcome | None]


def awaited(
    scope: Scope, name: str, subject: Subject | Callable[[Tx], Subject], timeout: float | None
) -> Flow[Outcome]:
    """Wait for the subject, and record it in the commit that takes it.

    The deadline is recorded when the wait begins; TIMEOUT is an outcome like any other, so a replay
    times out again. A function tells the subject where that needs a look at the file.
    """
    place, record = scope.next(name)
    if record is not None and record.outcome is not None:
        return record.outcome
    host, run = scope.host, scope.run
    keys, find = subject if isinstance(subject, Subject) else (yield Read(subject))
    started_at = host.clock.now() if record is None else record.started_at
    found: Outcome | None
    deadline = None if timeout is None else started_at + timeout
    if record is not None:
        deadline = record.until_at
    note_at: float | None = started_at if deadline is not None else started_at + NOTE_WAIT_AFTER
    noted = record is not None

    def look(tx: Tx, now: float, note: bool) -> Outcome | None:
        workflows.guard(tx, *run.key)
        outcome = find(tx, place)
        if outcome is None and deadline is not None and now >= deadline:
            outcome = Outcome(TIMEOUT)
        if outcome is not None:
            steps.decide(tx, run.key, place, name, outcome, started_at=started_at, now=now)
            if noted:
                workflows.set_waiting(tx, *run.key, waits_for=None, wake_at=None)
        elif note:
            if deadline is not None:
                steps.postpone(tx, run.key, place, name, until_at=deadline, started_at=started_at)
            waits_for = workflows.key_to_wait_for(keys)
            workflows.set_waiting(tx, *run.key, waits_for=waits_for, wake_at=deadline)
        return outcome

    with (yield Listen(*keys)) as listener:
        while True:
            now = host.clock.now()
            note = note_at is not None and now >= note_at
            found = yield Write(name, partial(look, now=now, note=note))
            if found is not None:
                return found
            if note:
                note_at, noted = None, True
            yield Wait(listener, deadline if note_at is None else note_at)


def pause(scope: Scope, until: float) -> Flow[None]:
    """Wait until a moment, unless the run is stopped."""
    clock = scope.host.clock
    with (yield Listen()) as listener:
        while clock.now() < until:
            yield Wait(listener, until)


def wait_for(
    file: File,
    keys: tuple[str, ...],
    look: Callable[[Tx], T | None],
    timeout: float | None,
    workflow_id: str | None = None,
) -> Flow[T | None]:
    """What `look` finds, once it finds something; None when `timeout` seconds are over.

    Where it waits for what that workflow does: raise why it stopped, if it did unfinished. It
    records nothing: for those who wait outside the body of a workflow.
    """
    deadline = None if timeout is None else file.clock.now() + timeout
    with (yield Listen(*keys)) as listener:
        while True:
            failure = None if workflow_id is None else file.failure_of(workflow_id)
            found: T | None = yield Read(look)
            if found is not None:
                return found
            if failure is not None:
                raise failure
            if deadline is not None and file.clock.now() >= deadline:
                return None
            yield Wait(listener, deadline)
