"""The checkpoint: was it recorded? Then that; otherwise do it, and record it in one write.

Written once, as flows, for plain and for async workflows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from durable.codec import Codec, decode_error, encode_error
from durable.errors import DurableError, StorageError
from durable.runtime.context import Scope
from durable.runtime.file import File
from durable.runtime.flows import Flow, Listen, Read, Wait, Write, carried
from durable.store import steps, workflows
from durable.store.steps import ERROR, TIMEOUT, VALUE, Outcome, Place
from durable.store.tx import Tx

T = TypeVar("T")

# A wait that lasts longer than this is noted in the file, so that the next engine may leave the
# workflow without a thread until what it waits for has come.
NOTE_WAIT_AFTER = 1.0


# ---------------------------------------------------------------------- outcomes


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
            if run.beside:  # others of the run may have something to do
                workflows.set_waiting(tx, *run.key, waits_for=workflows.ANY_KEY, wake_at=None)
            else:
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
