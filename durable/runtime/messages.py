"""Messages: sent once, received first in first out, each exactly once."""

from __future__ import annotations

from typing import Any

from durable.checks import check_optional_text
from durable.clock import optional_seconds
from durable.errors import SerializationError, WaitTimeout
from durable.runtime.checkpoint import Subject, awaited, effect, settle
from durable.runtime.context import Scope, StepCall
from durable.runtime.file import File
from durable.runtime.flows import Flow, Write
from durable.store import messages, workflows
from durable.store.steps import TIMEOUT, VALUE, Outcome, Place
from durable.store.tx import Tx

MISSING: Any = object()
"""Stands for an argument that was not given, where None is a value like any other."""


def send(
    file: File,
    scope: Scope | None,
    workflow_id: str,
    message: object,
    topic: str | None,
    idempotency_key: str | None,
) -> Flow[None]:
    """Have the message accepted for a workflow; WorkflowNotFound if there is none of that id.

    In the body of a workflow it is a step of its own: sent exactly once. In a step or outside it is
    sent each time, unless `idempotency_key` says that it is the same message.
    """
    check_optional_text(topic, "a topic", empty=True)
    check_optional_text(idempotency_key, "an idempotency key")
    text = encode_for(file, message, f"the message to {workflow_id!r}")
    sender = None if scope is None else scope.run.id
    if scope is None and idempotency_key is None:
        idempotency_key = file.new_message_key()

    def add(tx: Tx) -> None:
        target = workflows.find(tx, workflow_id)
        messages.add(
            tx,
            target.seq,
            topic,
            text,
            sender=sender,
            idempotency_key=idempotency_key,
            now=file.clock.now(),
        )

    name = _name("send", topic)
    if scope is None or isinstance(scope, StepCall):
        yield Write(name, add)
    else:
        outcome = yield from effect(scope, name, lambda tx, place: add(tx))
        settle(outcome, file.codec)


def recv(scope: Scope, topic: str | None, timeout: Any, default: Any) -> Flow[Any]:
    """The first message of the topic; WaitTimeout, or `default`, when none comes in time."""
    check_optional_text(topic, "a topic", empty=True)
    seconds = optional_seconds(timeout, "the timeout of recv")
    run = scope.run

    def take(tx: Tx, place: Place) -> Outcome | None:
        text = messages.take(tx, run.seq, topic, place)
        return None if text is None else Outcome(VALUE, text)

    subject = Subject((messages.key(run.seq, topic),), take)
    outcome = yield from awaited(scope, _name("recv", topic), subject, seconds)
    if outcome.kind == TIMEOUT:
        return timed_out(
            f"a message{'' if topic is None else f' on topic {topic!r}'} to workflow {run.id!r}",
            seconds,
            default,
        )
    return settle(outcome, scope.host.codec)


def timed_out(what: str, seconds: float | None, default: Any) -> Any:
    """`default` where one was given; else raise WaitTimeout."""
    if default is MISSING:
        raise WaitTimeout(what, seconds or 0.0)
    return default


def encode_for(file: File, value: object, what: str) -> str:
    """The recorded text of a value; SerializationError that says whose value it is."""
    try:
        return file.codec.encode(value)
    except SerializationError as error:
        raise SerializationError(error.path, error.reason, what) from error


def _name(what: str, topic: str | None) -> str:
    return f"durable.{what}" if topic is None else f"durable.{what}:{topic}"
