"""Events: values that a workflow shows, and that others wait for."""

from __future__ import annotations

from typing import Any

from durable.checks import check_text
from durable.clock import optional_seconds
from durable.codec import decode_error, decode_or_opaque
from durable.errors import EventNotSet, WorkflowNotFound
from durable.runtime.checkpoint import Subject, awaited, effect, error_outcome, settle, wait_for
from durable.runtime.context import Scope, StepCall
from durable.runtime.file import File
from durable.runtime.flows import Flow, Read, Write
from durable.runtime.messages import MISSING, encode_for, timed_out
from durable.store import events, workflows
from durable.store.steps import ERROR, NOWHERE, TIMEOUT, VALUE, Outcome, Place
from durable.store.tx import Tx


def set_event(scope: Scope, key: str, value: object) -> Flow[None]:
    """Show `value` under `key`; in a step at each of its tries, in a workflow's body once."""
    check_text(key, "the key of an event", empty=True)
    file, run = scope.host, scope.run
    text = encode_for(file, value, f"the event {key!r} of workflow {run.id!r}")

    def put(tx: Tx, place: Place) -> None:
        events.put(tx, run.seq, key, text, by=place, now=file.clock.now())

    name = f"durable.set_event:{key}"
    if not isinstance(scope, StepCall):
        settle((yield from effect(scope, name, put)), file.codec)
        return

    place = scope.place

    def put_from_step(tx: Tx) -> None:
        workflows.guard(tx, *run.key)
        put(tx, place)

    yield Write(name, put_from_step)


def get_event(
    file: File, scope: Scope | None, workflow_id: str, key: str, timeout: Any, default: Any
) -> Flow[Any]:
    """The event's value, once it is set; WaitTimeout, or `default`, when it is not set in time.

    WorkflowNotFound if there is no such workflow, EventNotSet (or `default`) if it ended without.
    In the body of a workflow the outcome is recorded.
    """
    check_text(key, "the key of an event", empty=True)
    seconds = optional_seconds(timeout, "the timeout of an event")

    def subject(tx: Tx) -> Subject:
        return _subject(tx, workflow_id, key)

    if scope is not None and not isinstance(scope, StepCall):
        outcome = yield from awaited(scope, f"durable.get_event:{key}", subject, seconds)
    else:
        keys, find = yield Read(subject)
        found = yield from wait_for(file, keys, lambda tx: find(tx, NOWHERE), seconds, workflow_id)
        outcome = found or Outcome(TIMEOUT)
    if outcome.kind == TIMEOUT:
        return timed_out(f"the event {key!r} of workflow {workflow_id!r}", seconds, default)
    if outcome.kind == ERROR and default is not MISSING:
        return default
    return settle(outcome, file.codec)


def _subject(tx: Tx, workflow_id: str, key: str) -> Subject:
    try:
        seq = workflows.find(tx, workflow_id).seq
    except WorkflowNotFound as error:
        missing = error_outcome(error)
        return Subject((), lambda tx, place: missing)

    def find(tx: Tx, place: Place) -> Outcome | None:
        text = events.get(tx, seq, key)
        if text is not None:
            return Outcome(VALUE, text)
        ending = workflows.ending(tx, seq)
        if ending is None:
            return None
        error = EventNotSet(workflow_id, key, ending.status)
        if ending.error is not None:
            error.__cause__ = decode_error(ending.error)
        return error_outcome(error)

    return Subject((events.key(seq, key), workflows.key(seq)), find)


def all_events(file: File, workflow_id: str) -> dict[str, Any]:
    """The last value of every event that the workflow has set; Opaque what cannot be rebuilt."""

    def read(tx: Tx) -> dict[str, str]:
        return events.get_all(tx, workflows.find(tx, workflow_id).seq)

    found = file.database.read(read)
    return {key: decode_or_opaque(file.codec, text) for key, text in found.items()}
