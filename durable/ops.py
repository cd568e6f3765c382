"""What a workflow calls: each records what it did, and does not do it again on a replay."""

from __future__ import annotations

import logging
import random as _random
import uuid as _uuid
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from durable.clock import moment, seconds
from durable.errors import InvalidArgument, NotInWorkflow
from durable.handle import Handle, iterate
from durable.records import Current, Waited
from durable.runtime import children, events, messages, streams, values
from durable.runtime import sleep as sleeping
from durable.runtime.context import StepCall, body_scope, current_host, find_scope
from durable.runtime.flows import actor, drive
from durable.runtime.messages import MISSING
from durable.runtime.parallel import Future

R = TypeVar("R")


def send(
    workflow_id: str,
    message: object,
    topic: str | None = None,
    *,
    idempotency_key: str | None = None,
) -> None:
    """Send a message to a workflow; it is on the disk when this returns.

    From the body of a workflow it is sent exactly once. From a step or from outside, it is sent at
    each call, unless `idempotency_key` was used for that workflow before. WorkflowNotFound if there
    is no such workflow; SerializationError, naming the place, for what cannot be recorded.
    """
    scope = find_scope("send")
    host = current_host("send()")
    flow = messages.send(host, scope, workflow_id, message, topic, idempotency_key)
    drive(flow, actor(host, scope))


def recv(
    topic: str | None = None,
    *,
    timeout: float | timedelta | None = None,
    default: Any = MISSING,
) -> Any:
    """The next message of the topic, first in first out; no topic is a topic of its own.

    Waits until there is one. After `timeout` seconds it raises WaitTimeout, or returns `default` if
    one is given; that is recorded, and the message that comes later is for the next `recv`.
    """
    scope = body_scope("recv")
    return drive(messages.recv(scope, topic, timeout, default), scope)


def set_event(key: str, value: object) -> None:
    """Show a value to whoever asks for it; setting it again replaces it."""
    scope = find_scope("set_event")
    if scope is None:
        raise NotInWorkflow("set_event")
    drive(events.set_event(scope, key, value), scope)


def get_event(
    workflow_id: str,
    key: str,
    *,
    timeout: float | timedelta | None = None,
    default: Any = MISSING,
) -> Any:
    """The value of another workflow's event, as soon as it is set.

    After `timeout` seconds WaitTimeout; EventNotSet if that workflow has ended without setting it;
    in both cases `default` instead, if one is given. WorkflowNotFound if there is no such workflow.
    """
    scope = find_scope("get_event")
    host = current_host("get_event()")
    flow = events.get_event(host, scope, workflow_id, key, timeout, default)
    return drive(flow, actor(host, scope))


def write_stream(key: str, value: object) -> None:
    """Add a value to a stream of this workflow, for everybody to read.

    From the body, exactly once. From a step, readers see what a try wrote when it has succeeded, so
    that a step that is tried three times is read once. WorkflowConflict if the stream is closed.
    """
    scope = find_scope("write_stream")
    if scope is None:
        raise NotInWorkflow("write_stream")
    drive(streams.write(scope, key, value), scope)


def close_stream(key: str) -> None:
    """Nothing more comes in this stream: its readers end. A workflow's end closes all its own."""
    scope = find_scope("close_stream")
    if scope is None:
        raise NotInWorkflow("close_stream")
    drive(streams.close(scope, key), scope)


def read_stream(
    workflow_id: str,
    key: str,
    *,
    start: int = 0,
    timeout: float | timedelta | None = None,
) -> Iterator[Any]:
    """The values of a workflow's stream from number `start` on, waiting for those to come.

    Ends where the stream is closed, or when the workflow has ended and all is read. WaitTimeout
    when a value does not come within `timeout` seconds. In a workflow's body each value is a step.

        for token in durable.read_stream("chat-7", "tokens"):
            print(token, end="")
    """
    scope = find_scope("read_stream")
    host = current_host("read_stream()")
    return iterate(streams.Reader(host, scope, workflow_id, key, start, timeout), scope)


def sleep(span: float | timedelta) -> None:
    """Sleep for a span; the moment of waking is recorded, and holds over restarts."""
    scope = body_scope("sleep")
    length = seconds(span, "the span of sleep")
    drive(sleeping.sleep(scope, lambda now: now + length), scope)


def sleep_until(at: datetime) -> None:
    """Sleep until a moment, given with its time zone; not at all if it has passed."""
    scope = body_scope("sleep_until")
    wake_at = moment(at, "the moment of sleep_until")
    drive(sleeping.sleep(scope, lambda now: wake_at), scope)


def now() -> datetime:
    """The present moment in UTC, recorded: the same on every replay."""
    scope = body_scope("now")
    return drive(values.now(scope), scope)


def random() -> _random.Random:
    """The workflow's own random numbers: seeded from its id, so the same on every replay."""
    return body_scope("random", blocks=False).run.random


def uuid4() -> _uuid.UUID:
    """A random id, seeded from the workflow's: the same on every replay."""
    return values.uuid4(body_scope("uuid4", blocks=False))


def gather(*awaited: Future[R] | Handle[R]) -> list[R]:
    """The results of submitted steps and of workflows, in the order given.

    If any failed, raises the error of the first of them in that order; the others go on.

        left, right = durable.gather(sort.submit(first_half), sort.submit(second_half))
    """
    _check_awaited(awaited, "gather")
    return [each.result() for each in awaited]


def wait(
    awaited: Sequence[Future[R] | Handle[R]], *, first: bool = False
) -> Waited[Future[R] | Handle[R]]:
    """Wait until all of the steps and workflows have ended, or with `first` until one has.

    `done` holds them in the order in which they ended, with `first` only the winner; it is
    recorded. How they ended, `result` tells.

        winner = durable.wait([by_train, by_plane], first=True).done[0]
    """
    given = list(awaited) if isinstance(awaited, Iterable) else [awaited]
    if not given:
        raise InvalidArgument("wait needs something to wait for: futures or handles")
    _check_awaited(given, "wait")
    scope = find_scope("wait")
    host = current_host("wait()")
    subjects = [_subject_of(each) for each in given]
    done = drive(children.wait(host, scope, subjects, first=first), actor(host, scope))
    rest = [each for index, each in enumerate(given) if index not in done]
    return Waited([given[index] for index in done], rest)


def _check_awaited(awaited: Sequence[object], what: str) -> None:
    for each in awaited:
        if not isinstance(each, (Future, Handle)):
            raise InvalidArgument(
                f"{what} takes what step.submit(…) and workflow.start(…) return, not {each!r}"
            )


def _subject_of(awaited: Future[R] | Handle[R]) -> str | Future[R]:
    return awaited.id if isinstance(awaited, Handle) else awaited


def patched(name: str) -> bool:
    """Whether this run takes the changed path: true unless it had passed this point before.

    Ask where the code changes; a run that was recorded further under the old code keeps to it.

        if durable.patched("send-receipt"):
            send_receipt(order)
    """
    scope = body_scope("patched")
    return drive(values.patched(scope, name), scope)


def current() -> Current:
    """The workflow and the step that are being run; NotInWorkflow outside."""
    scope = find_scope("current", blocks=False)
    if scope is None:
        raise NotInWorkflow("current")
    return scope.current()


def step_key() -> str:
    """A text that is the same for all tries and recoveries of this step, and for no other step.

    To be handed to outside services as their idempotency key. NotInWorkflow outside a step.
    """
    scope = find_scope("step_key", blocks=False)
    if not isinstance(scope, StepCall):
        raise NotInWorkflow("step_key")
    return f"{scope.run.id}/{scope.place}"


class _ReplayLogger(logging.LoggerAdapter[logging.Logger]):
    """Silent while a workflow replays; `extra` has its id as ``workflow_id``."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name is logging's
        scope = find_scope("logger", blocks=False)
        replaying = scope is not None and not isinstance(scope, StepCall) and scope.run.replaying
        return not replaying and super().isEnabledFor(level)

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        scope = find_scope("logger", blocks=False)
        extra = dict(kwargs.get("extra") or {})
        extra["workflow_id"] = None if scope is None else scope.run.id
        return msg, {**kwargs, "extra": extra}


logger = _ReplayLogger(logging.getLogger("durable.workflow"), {})
"""A logger for workflows, silent while a run replays what it has said before."""
