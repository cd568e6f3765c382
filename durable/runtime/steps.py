"""Steps: called, recorded, and tried again where their policy says so."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from typing import Any

from durable.codec import encode_error, error_is_exact
from durable.errors import SerializationError, WaitTimeout
from durable.runtime.checkpoint import error_outcome, settle
from durable.runtime.context import Scope, StepCall, current_host, run_in_step
from durable.runtime.flows import Call, Flow, Pause, Write, carried
from durable.runtime.registry import StepSpec
from durable.store import steps, streams, workflows
from durable.store.faults import is_of_the_file
from durable.store.steps import VALUE, Outcome, Place, Record
from durable.store.streams import Try
from durable.store.tx import Tx

Body = Callable[..., Any]


class _BodyFailed(Exception):
    """Carries what the body of a transaction raised out of the write that it undoes."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def call(scope: Scope, spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[Any]:
    """What the step returns, recorded at the next place of the scope."""
    place, record = scope.next(spec.name)
    if record is not None and record.outcome is not None:
        return settle(record.outcome, scope.host.codec)
    body = _body(spec, scope, args, kwargs)
    outcome, live = yield from _step(scope, spec, place, record, body)
    if live is not None and error_is_exact(outcome.text or ""):
        raise carried(live)
    return settle(outcome, scope.host.codec)


def call_plainly(
    scope: Scope | None, spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What the step returns, called outside the body of a workflow: nothing is recorded."""
    body = _body(spec, scope, args, kwargs)
    if not spec.transaction:
        return body()
    host = current_host(f"transaction {spec.name!r}") if scope is None else scope.host

    def write(tx: Tx) -> Any:
        return _run_transaction(tx, spec, body)

    try:
        return host.database.write(f"transaction {spec.name}", write)
    except _BodyFailed as failed:
        raise failed.error from None


def _body(
    spec: StepSpec, scope: Scope | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Body:
    """The function with its arguments; a transaction's cursor is still to come, before them."""
    replacement = None if scope is None else scope.host.hooks.replacements.get(spec.name)
    if replacement is not None:
        return lambda *cursor: replacement(*args, **kwargs)
    return lambda *cursor: spec.fn(*cursor, *args, **kwargs)


# ---------------------------------------------------------------------- the flow


def _step(
    scope: Scope, spec: StepSpec, place: Place, record: Record | None, body: Body
) -> Flow[tuple[Outcome, Exception | None]]:
    """How the step ended, which was undecided, and the very exception if it raised one."""
    attempt = 1
    if record is not None:
        attempt = record.attempt + 1
        yield Pause(record.until_at or 0.0)
    try_once = _try_transaction if spec.transaction else _try_body
    while True:
        started_at = scope.host.clock.now()
        step = StepCall(place, spec.name, attempt)
        outcome, error = yield from try_once(scope, spec, step, body, started_at)
        if outcome is not None:
            return outcome, None
        assert error is not None
        wait = None
        if spec.retry is not None and not isinstance(error, SerializationError):
            luck = random.Random(f"{scope.run.seed} {place} {attempt}")
            wait = spec.retry.pause_after(attempt, error, luck)
        if wait is None:
            failed = error_outcome(error)
            yield _record(scope, step, failed, started_at, scope.host.clock.now())
            return failed, error
        until = scope.host.clock.now() + wait
        yield from _postpone(scope, step, started_at, until, error)
        yield Pause(until)
        attempt += 1


def _try_body(
    scope: Scope, spec: StepSpec, step: StepCall, body: Body, started_at: float
) -> Flow[tuple[Outcome | None, Exception | None]]:
    """The recorded outcome of one try, or the error that it ended in."""
    try:
        value = yield Call(scope, spec, step, body)
        now = scope.host.clock.now()
        _check_time(spec, now - started_at)
        outcome = _encode(scope, step, value)
    except Exception as error:
        return None, error
    yield _record(scope, step, outcome, started_at, now)
    return outcome, None


def _try_transaction(
    scope: Scope, spec: StepSpec, step: StepCall, body: Body, started_at: float
) -> Flow[tuple[Outcome | None, Exception | None]]:
    """As `_try_body`; the body and its checkpoint share one commit."""

    def write(tx: Tx) -> Outcome:
        workflows.guard(tx, *scope.run.key)
        value = run_in_step(scope, step, lambda: _run_transaction(tx, spec, body))
        try:
            outcome = _encode(scope, step, value)
        except SerializationError as error:
            raise _BodyFailed(error) from error
        _decide(tx, scope, step, outcome, started_at, scope.host.clock.now())
        return outcome

    try:
        outcome: Outcome = yield Write(f"transaction {spec.name}", write)
    except _BodyFailed as failed:
        return None, failed.error
    return outcome, None


def _record(
    scope: Scope, step: StepCall, outcome: Outcome, started_at: float, now: float
) -> Write[None]:
    """The command that records how the step ended."""

    def write(tx: Tx) -> None:
        _decide(tx, scope, step, outcome, started_at, now)

    return Write(f"step {step.name}", write)


def _decide(
    tx: Tx, scope: Scope, step: StepCall, outcome: Outcome, started_at: float, now: float
) -> None:
    """Record the outcome, and with a success show what this try wrote to streams."""
    steps.decide(
        tx,
        scope.run.key,
        step.place,
        step.name,
        outcome,
        started_at=started_at,
        now=now,
        attempt=step.attempt,
    )
    if step.wrote_streams and outcome.kind == VALUE:
        streams.publish(tx, scope.run.seq, Try(step.place, scope.run.epoch, step.attempt))


def _postpone(
    scope: Scope, step: StepCall, started_at: float, until: float, error: Exception
) -> Flow[None]:
    text = encode_error(error)

    def write(tx: Tx) -> None:
        steps.postpone(
            tx,
            scope.run.key,
            step.place,
            step.name,
            until_at=until,
            started_at=started_at,
            attempt=step.attempt,
            error=text,
        )
        if not scope.run.beside:  # else, others of the run may have something to do
            workflows.set_waiting(tx, *scope.run.key, waits_for=None, wake_at=until)

    yield Write(f"retry {step.name}", write)


# ---------------------------------------------------------------------- the body


def _encode(scope: Scope, step: StepCall, value: object) -> Outcome:
    try:
        return Outcome(VALUE, scope.host.codec.encode(value))
    except SerializationError as error:
        what = f"the result of step {step.name!r} (number {step.place}) of {scope.run.id!r}"
        raise SerializationError(error.path, error.reason, what) from error


def _check_time(spec: StepSpec, elapsed: float) -> None:
    """A plain function cannot be stopped from outside: what comes too late counts as not come."""
    if spec.timeout is not None and elapsed > spec.timeout and not spec.is_async:
        raise WaitTimeout(f"the result of step {spec.name!r}", spec.timeout)


def _run_transaction(tx: Tx, spec: StepSpec, body: Body) -> Any:
    """What the body returned; _BodyFailed with what it raised, unless the file itself failed."""
    try:
        with tx.user_cursor(spec.name) as cursor:
            return body(cursor)
    except Exception as error:
        if isinstance(error, sqlite3.Error) and is_of_the_file(error):
            raise
        raise _BodyFailed(error) from error
