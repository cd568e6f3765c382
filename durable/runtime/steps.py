"""Steps: called, recorded, and tried again where their policy says so."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any

from durable.codec import encode_error, error_is_exact
from durable.errors import SerializationError, WaitTimeout
from durable.runtime.checkpoint import error_outcome, settle
from durable.runtime.context import (
    Scope,
    StepCall,
    current_host,
    engine_loops,
    enter,
    find_scope,
    here,
    run_in_step,
)
from durable.runtime.flows import (
    CUT_SHORT,
    NO_MORE_WRITES,
    Call,
    Flow,
    Pause,
    Write,
    await_step,
    carried,
    drive,
    drive_async,
    end_cut_short,
)
from durable.runtime.lanes import placed
from durable.runtime.registry import StepSpec
from durable.store import steps, streams, workflows
from durable.store.faults import is_of_the_file
from durable.store.steps import VALUE
from durable.store.streams import Try
from durable.store.tx import Tx

Body = Callable[..., Any]
"""A function that has its arguments; that of a transaction takes the cursor."""


class _BodyFailed(Exception):
    """Carries what the body of a transaction raised out of the write that it undoes."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def call(scope: Scope, spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[Any]:
    """What the step returns, recorded at the next place of the scope."""
    place, record = scope.next(spec.name)
    host = scope.host
    attempt = 1
    if record is not None:
        if record.outcome is not None:
            return settle(record.outcome, host.codec)
        attempt = record.attempt + 1
        yield Pause(record.until_at or 0.0)
    body = _body(spec, scope, args, kwargs)
    step = StepCall(scope, place.number, spec.name, attempt, host.clock.now())
    text, error = yield from _try_once(spec, step, body)
    if error is None:
        return host.codec.decode(text)
    return (yield from _after_failure(scope, spec, step, body, error))


def call_here(spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the step returns: recorded in the body of a workflow, a plain call elsewhere.

    What is not recorded yet, and succeeds at its first try, waits for nothing: without a flow it
    costs half as much.
    """
    scope = here()  # which is what `find_scope` would find, unless there is something to be refused
    if scope is None or scope.thread != get_ident() or isinstance(scope, StepCall) or engine_loops:
        scope = find_scope(spec.title)
        if scope is None or isinstance(scope, StepCall):
            return call_plainly(scope, spec, args, kwargs)
    host = scope.host
    if scope.run.records or spec.transaction or spec.is_async or host.hooks.around_steps:
        return drive(call(scope, spec, args, kwargs), scope)
    step = StepCall(scope, scope.begin_call(spec.name), spec.name, 1, host.clock.now())
    failed = None
    try:
        enter(step)
        try:
            value = spec.fn(*args, **kwargs)
        finally:
            enter(scope)
        now = host.clock.now()
        text = _text_of(spec, step, value, now)
    except Exception as error:
        failed = error
    if failed is not None:
        body = _body(spec, scope, args, kwargs)
        return drive(_after_failure(scope, spec, step, body, failed), scope)
    record, alone = _recorder(step, VALUE, text, now)
    try:
        host.database.write(spec.label, record, None, alone)
    except NO_MORE_WRITES as error:
        raise scope.explain(error) from None
    return host.codec.decode(text)


async def call_in_task(
    spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any], scope: Scope, number: int
) -> Any:
    """What the step returns, recorded at that number of the scope, in the calling task.

    As `await_in` of `call`; without a flow where `call_here` needs none.
    """
    host, run = scope.host, scope.run
    try:
        if run.records or not spec.is_async or host.hooks.around_steps:
            inner = scope.at(number)
            return await drive_async(call(inner, spec, args, kwargs), inner)
        run.check()
        step = StepCall(scope, number, spec.name, 1, host.clock.now())
        body = partial(spec.fn, *args, **kwargs)
        failed = None
        try:
            value = await await_step(spec, step, body)
            now = host.clock.now()
            text = _text_of(spec, step, value, now)
        except Exception as error:
            failed = error
        if failed is not None:
            inner = scope.at(number)
            return await drive_async(_after_failure(inner, spec, step, body, failed), inner)
        record = _record(step, VALUE, text, now)
        await record.perform_async(scope)
        if record.interrupted is not None:
            raise record.interrupted
        return host.codec.decode(text)
    except CUT_SHORT as error:
        return await end_cut_short(scope, number, spec.name, error)


placed.add(call_in_task.__code__)


def _after_failure(
    scope: Scope, spec: StepSpec, step: StepCall, body: Body, error: Exception
) -> Flow[Any]:
    """What comes of a step whose try has failed: its next tries, or its error."""
    host = scope.host
    while (wait := _pause_after(spec, step, error)) is not None:
        until = host.clock.now() + wait
        yield from _postpone(step, until, error)
        yield Pause(until)
        step = StepCall(scope, step.number, spec.name, step.attempt + 1, host.clock.now())
        text, next_error = yield from _try_once(spec, step, body)
        if next_error is None:
            return host.codec.decode(text)
        error = next_error
    failed = error_outcome(error)
    yield _record(step, *failed, host.clock.now())
    if error_is_exact(failed.text or ""):
        raise carried(error)
    return settle(failed, host.codec)


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
    """The function, or what a test has put in its place, with its arguments."""
    fn = spec.fn
    if scope is not None and spec.name in scope.host.hooks.replacements:
        fn = scope.host.hooks.replacements[spec.name]
        if spec.transaction:
            return lambda cursor: fn(*args, **kwargs)
    if spec.transaction:
        return lambda cursor: fn(cursor, *args, **kwargs)
    return partial(fn, *args, **kwargs)


# ---------------------------------------------------------------------- one try
#
# Each gives the recorded text of what the step returned, or else the error that the try ended in.


def _try_once(spec: StepSpec, step: StepCall, body: Body) -> Flow[tuple[str, Exception | None]]:
    if spec.transaction:
        return (yield from _try_transaction(spec, step, body))
    try:
        value = yield Call(spec, step, body)
        now = step.host.clock.now()
        text = _text_of(spec, step, value, now)
    except Exception as error:
        return "", error
    yield _record(step, VALUE, text, now)
    return text, None


def _try_transaction(
    spec: StepSpec, step: StepCall, body: Body
) -> Flow[tuple[str, Exception | None]]:
    """The body and its checkpoint share one commit."""

    def write(tx: Tx) -> str:
        workflows.guard(tx, *step.run.key)
        value = run_in_step(step, partial(_run_transaction, tx, spec, body))
        now = step.host.clock.now()
        try:
            text = _text_of(spec, step, value, now)
        except SerializationError as error:
            raise _BodyFailed(error) from error
        record, _ = _recorder(step, VALUE, text, now)
        record(tx)
        return text

    try:
        text: str = yield Write(f"transaction {spec.name}", write)
    except _BodyFailed as failed:
        return "", failed.error
    return text, None


def _record(step: StepCall, kind: str, text: str | None, now: float) -> Write[None]:
    """The command that records how the step ended."""
    record, alone = _recorder(step, kind, text, now)
    return Write(f"step {step.name}", record, None, alone)


def _recorder(
    step: StepCall, kind: str, text: str | None, now: float
) -> tuple[Callable[[Tx], None], bool]:
    """What records how the step ended, and whether that is a single statement.

    A success also shows what this try wrote to streams.
    """
    run = step.run
    decided = (
        step.lane,
        step.number,
        step.name,
        kind,
        text,
        step.attempt,
        step.started_at,
        now,
        run.seq,
        run.epoch,
    )
    if step.wrote_streams and kind == VALUE:
        by = Try(step.place, run.epoch, step.attempt)
        return partial(_record_and_publish, decided, run.seq, by), False
    # Not a closure: that would be one object for the garbage collector for each of these values.
    return partial(steps.record, decided), True


def _record_and_publish(decided: steps.Decided, seq: int, by: Try, tx: Tx) -> None:
    steps.record(decided, tx)
    streams.publish(tx, seq, by)


def _pause_after(spec: StepSpec, step: StepCall, error: Exception) -> float | None:
    """How long to wait before the next try; None if that was the last one."""
    if spec.retry is None or isinstance(error, SerializationError):
        return None
    luck = random.Random(f"{step.run.seed} {step.place} {step.attempt}")
    return spec.retry.pause_after(step.attempt, error, luck)


def _postpone(step: StepCall, until: float, error: Exception) -> Flow[None]:
    text = encode_error(error)

    def write(tx: Tx) -> None:
        steps.postpone(
            tx,
            step.run.key,
            step.place,
            step.name,
            until_at=until,
            started_at=step.started_at,
            attempt=step.attempt,
            error=text,
        )
        if not step.run.beside:  # else, others of the run may have something to do
            workflows.set_waiting(tx, *step.run.key, waits_for=None, wake_at=until)

    yield Write(f"retry {step.name}", write)


# ---------------------------------------------------------------------- the body


def _text_of(spec: StepSpec, step: StepCall, value: object, now: float) -> str:
    """What is recorded of the value that the body returned in time."""
    if spec.timeout is not None:
        _check_time(spec, now - step.started_at)
    try:
        return step.host.codec.encode(value)
    except SerializationError as error:
        what = f"the result of step {step.name!r} (number {step.place}) of {step.run.id!r}"
        raise SerializationError(error.path, error.reason, what) from error


def _check_time(spec: StepSpec, elapsed: float) -> None:
    """A plain function cannot be stopped from outside: what comes too late counts as not come."""
    assert spec.timeout is not None
    if elapsed > spec.timeout and not spec.is_async:
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
