"""The handle of one workflow: its result, its events, and what can be done to it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, Generic, Literal, TypeVar, overload

from durable.clock import optional_seconds
from durable.records import Cancellation, Step, StreamValue, Workflow
from durable.runtime import children as acting
from durable.runtime import events, messages, streams
from durable.runtime.context import Scope, async_scope, find_scope
from durable.runtime.fates import Fate
from durable.runtime.file import File
from durable.runtime.flows import Flow, actor, drive, perform
from durable.runtime.messages import MISSING
from durable.store import queries

R = TypeVar("R")
T = TypeVar("T")


class Handle(Generic[R]):
    """One workflow in an open file; `id` is all that another process needs to make its own.

    In the body of a workflow, what the methods do and return is recorded as a step.
    """

    def __init__(self, file: File, workflow_id: str, fate: Fate | None = None) -> None:
        self.file = file
        self.id = workflow_id
        self._fate = fate or file.fates.expect(workflow_id)  # kept for `result`

    def __repr__(self) -> str:
        return f"<Handle of workflow {self.id!r}>"

    def result(self, timeout: float | timedelta | None = None) -> R:
        """What the workflow returned, once it has; or raise what it raised.

        WorkflowCancelled or WorkflowDead if it was stopped, WaitTimeout when `timeout` seconds are
        over: the workflow goes on all the same. WorkflowNotFound if the file has none of this id.
        """
        seconds = optional_seconds(timeout, "the timeout of result")
        scope = self._scope("result")
        flow: Flow[R] = acting.result(self.file, scope, self.id, seconds)
        return self._drive(flow, scope)

    def __await__(self) -> Generator[Any, None, R]:
        """`result`, for coroutines; to stop waiting leaves the workflow alone."""
        scope = async_scope("await handle")
        scope = scope if scope is not None and scope.host is self.file else None

        def call(scope: Scope | None) -> Flow[R]:
            return acting.result(self.file, scope, self.id, None)

        return perform(self.file, scope, call).__await__()

    def info(self) -> Workflow:
        """The workflow as the file has it now."""
        return self.file.database.read(
            partial(queries.workflow, workflow_id=self.id, codec=self.file.codec)
        )

    def steps(self) -> list[Step]:
        """What it has recorded so far, in the order of the numbers."""
        return self.file.database.read(
            partial(queries.steps, workflow_id=self.id, codec=self.file.codec)
        )

    def send(
        self, message: object, topic: str | None = None, *, idempotency_key: str | None = None
    ) -> None:
        """Send it a message; see `durable.send`."""
        scope = self._scope("send")
        flow = messages.send(self.file, scope, self.id, message, topic, idempotency_key)
        self._drive(flow, scope)

    def event(
        self, key: str, *, timeout: float | timedelta | None = None, default: Any = MISSING
    ) -> Any:
        """The value of its event, once it is set; see `durable.get_event`."""
        scope = self._scope("event")
        flow = events.get_event(self.file, scope, self.id, key, timeout, default)
        return self._drive(flow, scope)

    def events(self) -> dict[str, Any]:
        """All events that it has set, with their last values."""
        return events.all_events(self.file, self.id)

    @overload
    def stream(
        self,
        key: str,
        *,
        start: int = 0,
        timeout: float | timedelta | None = None,
        live: Literal[False] = False,
    ) -> Iterator[Any]: ...
    @overload
    def stream(
        self,
        key: str,
        *,
        start: int = 0,
        timeout: float | timedelta | None = None,
        live: Literal[True],
    ) -> Iterator[StreamValue]: ...
    def stream(
        self,
        key: str,
        *,
        start: int = 0,
        timeout: float | timedelta | None = None,
        live: bool = False,
    ) -> Iterator[Any]:
        """The values of its stream; see `durable.read_stream`.

        With `live`, what steps write is there at once, also of tries that fail later: each value
        comes as a `StreamValue`, with its step and attempt. Not in the body of a workflow.
        """
        scope = self._scope("stream")
        reader = streams.LiveReader if live else streams.Reader
        return iterate(reader(self.file, scope, self.id, key, start, timeout), scope)

    def cancel(self, *, children: bool = True) -> Cancellation:
        """Stop it for good, with the workflows that it started unless `children` is false.

        True if this call cancelled it; false if it had ended before, and `status` says how. What it
        has recorded stays, and `resume` makes it go on.
        """
        scope = self._scope("cancel")
        return self._drive(acting.cancel(self.file, scope, self.id, children=children), scope)

    def resume(self) -> None:
        """Have it go on from its last checkpoint, after a cancel, a passed deadline or DEAD.

        WorkflowConflict if it is not stopped. Children that its cancel stopped go on too.
        """
        scope = self._scope("resume")
        self._drive(acting.resume(self.file, scope, self.id), scope)

    def fork(self, *, step: int | None = None, id: str | None = None) -> Handle[R]:  # noqa: A002
        """Start a copy that has the steps before number `step`, or none, and goes on from there.

        It has the events as of that step, and every message that was not yet received then.
        """
        scope = self._scope("fork")
        flow = acting.fork(self.file, scope, self.id, step, id)
        return Handle(self.file, self._drive(flow, scope))

    def _scope(self, name: str) -> Scope | None:
        """The calling workflow, where it belongs to the same file."""
        scope = find_scope(f"Handle.{name}")
        return scope if scope is not None and scope.host is self.file else None

    def _drive(self, flow: Flow[T], scope: Scope | None) -> T:
        return drive(flow, actor(self.file, scope))


def iterate(reader: streams.Reader, scope: Scope | None) -> Iterator[Any]:
    """The values of a stream, on the calling thread."""
    by = actor(reader.file, scope)
    while (values := drive(reader.turn(scope), by)) is not None:
        yield from values
