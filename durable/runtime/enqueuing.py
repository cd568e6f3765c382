"""What any process may do to queues: enqueue by name, debounce, change limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from durable.clock import optional_seconds, seconds
from durable.errors import InvalidArgument, NotAllowedHere, SerializationError
from durable.runtime.checkpoint import effect, settle
from durable.runtime.context import Scope, StepCall
from durable.runtime.file import File
from durable.runtime.flows import Flow, Write
from durable.runtime.starting import Options, refuse_other
from durable.store import queues
from durable.store.queues import Limits
from durable.store.tx import Tx
from durable.store.workflows import NewWorkflow, queue_key

Make = Callable[[str], NewWorkflow]
"""The run to be written, when its id is known."""


def by_name(
    file: File, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Options
) -> Make:
    """A run of the workflow of that name, which this program need not have."""
    try:
        text = file.codec.encode([list(args), dict(kwargs)])
    except SerializationError as error:
        path = error.path.replace("$[0]", "args", 1).replace("$[1]", "kwargs", 1)
        raise SerializationError(path, error.reason, f"the input of {name!r}") from error
    queued = options.queued
    return lambda new_id: NewWorkflow(
        id=options.id or new_id,
        name=name,
        input=text,
        timeout=options.timeout,
        tags=options.tags,
        queued=queued,
    )


def enqueue(file: File, scope: Scope | None, make: Make) -> Flow[str]:
    """The id of the run, which is in its queue now, or existed before."""
    name = make("any").name

    def add(tx: Tx, new: NewWorkflow) -> str:
        assert new.queued is not None
        if queues.add(tx, new, now=file.clock.now()) is None:
            refuse_other(tx, new)
        tx.touch(queue_key(new.queued.queue))
        return new.id

    parent_id = None if scope is None else scope.run.id
    return (
        yield from _write(
            file,
            scope,
            f"durable.enqueue:{name}",
            lambda tx, new_id: add(tx, make(new_id)._replace(parent_id=parent_id)),
        )
    )


def debounce(
    file: File, scope: Scope | None, make: Make, key: str, max_wait: float | None
) -> Flow[str]:
    """The id of the run to come under that key, which now has the input and delay of this one."""

    def write(tx: Tx, new_id: str) -> str:
        now = file.clock.now()
        return queues.debounce(tx, make(new_id), key, max_wait=max_wait, now=now)

    return (yield from _write(file, scope, f"durable.debounce:{make('any').name}", write))


def check_spans(
    delay: float | timedelta, max_wait: float | timedelta | None
) -> tuple[float, float | None]:
    """The spans of a Debouncer in seconds; InvalidArgument if they are of no use."""
    span = seconds(delay, "the delay of a Debouncer")
    longest = optional_seconds(max_wait, "max_wait of a Debouncer")
    if longest is not None and longest < span:
        raise InvalidArgument(f"max_wait ({longest:g} s) is less than the delay ({span:g} s)")
    return span, longest


def change(file: File, scope: Scope | None, queue: str, changes: Mapping[str, Any]) -> Flow[None]:
    """Give the queue other limits: those that are named in `changes`."""

    def write(tx: Tx, _: str) -> str:
        limits: Limits = queues.find(tx, queue).limits._replace(**changes)
        queues.change(tx, queue, limits)
        return queue

    yield from _write(file, scope, f"durable.change:{queue}", write)


def _write(
    file: File, scope: Scope | None, name: str, write: Callable[[Tx, str], str]
) -> Flow[str]:
    """What `write` returns, given an id for what it makes; in the body of a workflow, a step."""
    if scope is None:
        new_id = file.new_id()
        written: str = yield Write(name, lambda tx: write(tx, new_id))
        return written
    if isinstance(scope, StepCall):
        raise NotAllowedHere(
            f"{name} in step {scope.name!r} of workflow {scope.run.id!r}: a step may run more "
            "than once, so what starts workflows belongs in the workflow's body"
        )
    run_id = scope.run.id
    outcome = yield from effect(scope, name, lambda tx, place: write(tx, f"{run_id}.{place}"))
    return str(settle(outcome, file.codec))
