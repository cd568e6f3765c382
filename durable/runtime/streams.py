"""Streams: written by a workflow, read by many, from any place, until closed or at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from durable.checks import check_count, check_text
from durable.clock import optional_seconds
from durable.errors import NotAllowedHere, WaitTimeout
from durable.records import StreamValue
from durable.runtime.checkpoint import Subject, awaited, drive, effect, once, settle
from durable.runtime.context import Scope
from durable.runtime.file import File
from durable.runtime.messages import encode_for
from durable.store import streams, workflows
from durable.store.database import Tx
from durable.store.steps import TIMEOUT, VALUE, Outcome, Place
from durable.store.streams import Item, Try

# The recorded end of a stream; a value is recorded as a list of one.
END = "[]"


def write(scope: Scope, key: str, value: object) -> None:
    """Add a value: once from the body; from a step, to be seen when the try has succeeded."""
    check_text(key, "the key of a stream", empty=True)
    text = encode_for(scope.host, value, f"a value of stream {key!r} of {scope.run.id!r}")
    _append(scope, f"durable.write_stream:{key}", key, text)


def close(scope: Scope, key: str) -> None:
    """Nothing comes behind this: readers end here."""
    check_text(key, "the key of a stream", empty=True)
    _append(scope, f"durable.close_stream:{key}", key, None)


def _append(scope: Scope, name: str, key: str, text: str | None) -> None:
    run, step, clock = scope.run, scope.step, scope.host.clock
    if step is None:

        def work(tx: Tx, place: Place) -> None:
            by = Try(place, run.epoch, 1)
            streams.append(tx, run.seq, key, text, by=by, visible=True, now=clock.now())

        settle(drive(effect(scope, name, work), scope), scope.host.codec)
        return
    by = Try(step.place, run.epoch, step.attempt)

    def write(tx: Tx) -> None:
        workflows.guard(tx, *run.key)
        streams.append(tx, run.seq, key, text, by=by, visible=False, now=clock.now())

    drive(once(name, write), scope)
    step.wrote_streams = True


# ---------------------------------------------------------------------- reading


def read(
    file: File, scope: Scope | None, workflow_id: str, key: str, start: int, timeout: Any
) -> Iterator[Any]:
    """The values from number `start` on, as they come; in the body of a workflow each is a step."""
    check_text(key, "the key of a stream", empty=True)
    check_count(start, "the start of a stream", least=0)
    seconds = optional_seconds(timeout, "the timeout of a stream")
    if scope is not None and scope.step is None:
        return _read_in_body(scope, workflow_id, key, start, seconds)
    return _read_outside(file, workflow_id, key, start, seconds)


def _read_outside(
    file: File, workflow_id: str, key: str, start: int, seconds: float | None
) -> Iterator[Any]:
    seq = file.database.read(lambda tx: workflows.find(tx, workflow_id)).seq
    keys = (streams.key(seq, key), workflows.key(seq))
    position = start

    def look(tx: Tx) -> list[Item] | None:
        return _or_end(tx, seq, streams.read(tx, seq, key, position))

    while True:
        items = file.wait_for(keys, look, seconds, workflow_id)
        if items is None:
            raise _timed_out(workflow_id, key, seconds)
        for item in items:
            if item.text is None:
                return
            yield file.codec.decode(item.text)
        if not items:
            return
        position += len(items)


def _read_in_body(
    scope: Scope, workflow_id: str, key: str, start: int, seconds: float | None
) -> Iterator[Any]:
    position = start
    while True:

        def subject(tx: Tx, position: int = position) -> Subject:
            seq = workflows.find(tx, workflow_id).seq

            def find(tx: Tx, place: Place) -> Outcome | None:
                items = _or_end(tx, seq, streams.read(tx, seq, key, position)[:1])
                if items is None:
                    return None
                text = items[0].text if items else None
                return Outcome(VALUE, END if text is None else f"[{text}]")

            return Subject((streams.key(seq, key), workflows.key(seq)), find)

        outcome = drive(awaited(scope, f"durable.read_stream:{key}", subject, seconds), scope)
        if outcome.kind == TIMEOUT:
            raise _timed_out(workflow_id, key, seconds)
        values = settle(outcome, scope.host.codec)
        if not values:
            return
        yield values[0]
        position += 1


def read_live(
    file: File, scope: Scope | None, workflow_id: str, key: str, start: int, timeout: Any
) -> Iterator[StreamValue]:
    """Everything that is written, as it is written, also by tries that fail later."""
    check_text(key, "the key of a stream", empty=True)
    if scope is not None and scope.step is None:
        raise NotAllowedHere(
            "a workflow cannot read a stream live: what it saw of a try that failed later could "
            "not be seen again on a replay"
        )
    check_count(start, "the start of a stream", least=0)
    seconds = optional_seconds(timeout, "the timeout of a stream")
    return _read_live(file, workflow_id, key, start, seconds)


def _read_live(
    file: File, workflow_id: str, key: str, start: int, seconds: float | None
) -> Iterator[StreamValue]:
    seq = file.database.read(lambda tx: workflows.find(tx, workflow_id)).seq
    keys = (streams.key(seq, key), workflows.key(seq))
    after, skip = 0, start

    def look(tx: Tx) -> list[Item] | None:
        return _or_end(tx, seq, streams.read_live(tx, seq, key, after))

    while True:
        items = file.wait_for(keys, look, seconds, workflow_id)
        if items is None:
            raise _timed_out(workflow_id, key, seconds)
        for item in items:
            if item.text is None:
                return
            if skip:
                skip -= 1
                continue
            yield StreamValue(file.codec.decode(item.text), str(item.place), item.attempt)
        if not items:
            return
        after = items[-1].seq


def _or_end(tx: Tx, seq: int, items: list[Item]) -> list[Item] | None:
    """The items; an empty list where the workflow has ended, None where there may be more."""
    if items or workflows.ending(tx, seq) is not None:
        return items
    return None


def _timed_out(workflow_id: str, key: str, seconds: float | None) -> WaitTimeout:
    return WaitTimeout(f"a value of stream {key!r} of workflow {workflow_id!r}", seconds or 0.0)
