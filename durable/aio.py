"""What coroutines call: the names of `durable` that wait or write, to be awaited.

In the body of an async workflow each is a step, which has its number from the moment that it is
called. Those that make sense elsewhere (`send`, `get_event`, `read_stream`, `start`, …) work in any
coroutine. What does not wait, such as `durable.random` and `durable.current`, is the same for both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from typing import Any, Literal, ParamSpec, TypeVar, overload

from durable.clock import moment, seconds
from durable.debounce import Debouncer
from durable.declare import map_call, step_spec
from durable.errors import InvalidArgument, NotInWorkflow
from durable.functions import DeclaredStep, DeclaredWorkflow, call_async_step, run_async
from durable.handle import Handle
from durable.ops import current, logger, random, step_key, uuid4
from durable.queues import Enqueueable, Queue, check_queue_name, name_of
from durable.records import Cancellation, Waited
from durable.runtime import children as acting
from durable.runtime import events, messages, starting, streams, values
from durable.runtime import sleep as sleeping
from durable.runtime.context import (
    Scope,
    StepCall,
    async_scope,
    body_scope,
    current_host,
    refuse_plain_body,
)
from durable.runtime.file import File
from durable.runtime.flows import Flow, drive_async, perform, perform_in
from durable.runtime.messages import MISSING
from durable.runtime.starting import Invocation
from durable.runtime.tasks import Watched

__all__ = [
    "as_completed",
    "cancel",
    "close_stream",
    "current",
    "debounce",
    "enqueue",
    "fork",
    "gather",
    "get_event",
    "logger",
    "map",
    "now",
    "patched",
    "random",
    "read_stream",
    "recv",
    "resume",
    "run",
    "run_step",
    "send",
    "set_event",
    "sleep",
    "sleep_until",
    "start",
    "step_key",
    "uuid4",
    "wait",
    "write_stream",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Call = Coroutine[Any, Any, T]
Workflow = str | Handle[Any]
"""A workflow of the current engine by its id, or any by its handle."""


# ---------------------------------------------------------------------- workflows and steps


def start(wf: DeclaredWorkflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Call[Handle[R]]:
    """Run a workflow, plain or async, in the background; in a workflow as a child.

    handle = await aio.start(checkout.options(id="order-17"), "17")
    """
    return _start(f"workflow {_declared(wf).name!r}", wf.invocation(*args, **kwargs))


def _start(name: str, invocation: Invocation) -> Call[Handle[Any]]:
    host = current_host(name, blocks=False)
    scope = None if async_scope(name) is None else body_scope(name, blocks=False)

    def call(scope: Scope | None) -> Flow[Handle[Any]]:
        fate = yield from starting.start(host, scope, invocation)
        return Handle(host, fate.workflow_id, fate)

    return perform(host, scope, call)


def run(wf: DeclaredWorkflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
    """Run a workflow, plain or async, and give its result; a plain one runs on a thread."""
    invocation = _declared(wf).invocation(*args, **kwargs)
    name = f"workflow {wf.name!r}"
    async_scope(name)
    return run_async(current_host(name, blocks=False), name, invocation)


@overload
def run_step(
    fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
) -> Call[R]: ...
@overload
def run_step(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...
def run_step(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call[Any]:
    """Call a step, or any function as one; a plain function runs on a thread meanwhile.

    size = await aio.run_step(os.path.getsize, path)
    """
    return call_async_step(step_spec(fn, "run_step"), args, kwargs)


def map(  # noqa: A001 - the name is that of `durable.map`
    function: Callable[[T], Any],
    items: Iterable[T],
    *,
    workers: int = 8,
    errors: Literal["raise", "collect"] = "raise",
) -> Call[list[Any]]:
    """Call a step for each item, `workers` at a time; see `durable.map`."""
    return _in_body("map", map_call(function, items, workers, errors))


def enqueue(
    queue: Queue | str, function: Enqueueable[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> Call[Handle[R]]:
    """Have a workflow or a step start when it is its turn in a queue; see `Queue.enqueue`."""
    if not isinstance(function, (DeclaredWorkflow, DeclaredStep)):
        raise InvalidArgument(
            f"{function!r} is neither a workflow nor a step: decorate the function"
        )
    name = check_queue_name(name_of(queue))
    return _start(f"queue {name!r}", function.in_queue(name, *args, **kwargs))


def debounce(
    debouncer: Debouncer[P, R], key: str, /, *args: P.args, **kwargs: P.kwargs
) -> Call[Handle[R]]:
    """The run to come for this key; see `Debouncer.call`."""
    scope = async_scope("debounce")
    host = current_host("debounce", blocks=False)

    def call(scope: Scope | None) -> Flow[Handle[R]]:
        return debouncer.flow(host, scope, key, *args, **kwargs)

    return perform(host, scope, call)


# ---------------------------------------------------------------------- messages, events, streams


def send(
    workflow: Workflow,
    message: object,
    topic: str | None = None,
    *,
    idempotency_key: str | None = None,
) -> Call[None]:
    """Send a message to a workflow; see `durable.send`."""
    file, workflow_id = _find(workflow, "send")

    def call(scope: Scope | None) -> Flow[None]:
        return messages.send(file, scope, workflow_id, message, topic, idempotency_key)

    return perform(file, _scope_of(file, "send"), call)


def recv(
    topic: str | None = None, *, timeout: float | timedelta | None = None, default: Any = MISSING
) -> Call[Any]:
    """The next message of the topic; see `durable.recv`."""
    return _in_body("recv", lambda scope: messages.recv(scope, topic, timeout, default))


def set_event(key: str, value: object) -> Call[None]:
    """Show a value to whoever asks for it; see `durable.set_event`."""
    return _in_workflow("set_event", lambda scope: events.set_event(scope, key, value))


def get_event(
    workflow: Workflow,
    key: str,
    *,
    timeout: float | timedelta | None = None,
    default: Any = MISSING,
) -> Call[Any]:
    """The value of another workflow's event, as soon as it is set; see `durable.get_event`."""
    file, workflow_id = _find(workflow, "get_event")

    def call(scope: Scope | None) -> Flow[Any]:
        return events.get_event(file, scope, workflow_id, key, timeout, default)

    return perform(file, _scope_of(file, "get_event"), call)


def write_stream(key: str, value: object) -> Call[None]:
    """Add a value to a stream of this workflow; see `durable.write_stream`."""
    return _in_workflow("write_stream", lambda scope: streams.write(scope, key, value))


def close_stream(key: str) -> Call[None]:
    """Nothing more comes in this stream; see `durable.close_stream`."""
    return _in_workflow("close_stream", lambda scope: streams.close(scope, key))


def read_stream(
    workflow: Workflow,
    key: str,
    *,
    start: int = 0,
    timeout: float | timedelta | None = None,
    live: bool = False,
) -> AsyncIterator[Any]:
    """The values of a workflow's stream, as they come; see `durable.read_stream`.

    With `live`, those of tries that fail later too; see `Handle.stream`.

        async for token in aio.read_stream("chat-7", "tokens"):
            print(token, end="")
    """
    file, workflow_id = _find(workflow, "read_stream")
    reader = streams.LiveReader if live else streams.Reader
    scope = _scope_of(file, "read_stream")
    return _iterate(reader(file, scope, workflow_id, key, start, timeout))


async def _iterate(reader: streams.Reader) -> AsyncIterator[Any]:
    while True:
        scope = _scope_of(reader.file, "read_stream")
        values = await perform(reader.file, scope, reader.turn)
        if values is None:
            return
        for value in values:
            yield value


# ---------------------------------------------------------------------- time, patches


def sleep(span: float | timedelta) -> Call[None]:
    """Sleep for a span, over restarts; see `durable.sleep`."""
    length = seconds(span, "the span of sleep")
    return _in_body("sleep", lambda scope: sleeping.sleep(scope, lambda now: now + length))


def sleep_until(at: datetime) -> Call[None]:
    """Sleep until a moment; see `durable.sleep_until`."""
    wake_at = moment(at, "the moment of sleep_until")
    return _in_body("sleep_until", lambda scope: sleeping.sleep(scope, lambda now: wake_at))


def now() -> Call[datetime]:
    """The present moment in UTC, recorded: the same on every replay."""
    return _in_body("now", values.now)


def patched(name: str) -> Call[bool]:
    """Whether this run takes the changed path; see `durable.patched`."""
    scope = _body_scope("patched")
    return perform_in(scope, lambda scope: values.patched(scope, name))


# ---------------------------------------------------------------------- several at once


def gather(*awaited: Awaitable[R]) -> Call[list[R]]:
    """The results of coroutines, tasks and handles, which go on at the same time, in their order.

    If any failed, raises the error of the first of them in that order; the others go on.

        left, right = await aio.gather(sort(first_half), sort(second_half))
    """
    async_scope("gather")
    begun = [_begin(each) for each in awaited]
    ours = [each for each, given in zip(begun, awaited, strict=True) if each is not given]
    for task in ours:
        task.add_done_callback(_see_error)
    return _gather(begun, ours)


async def _gather(begun: list[Any], ours: list[asyncio.Future[Any]]) -> list[Any]:
    try:
        return [await each for each in begun]
    except asyncio.CancelledError:
        for task in ours:
            task.cancel()
        if ours:
            await asyncio.wait(ours)
        raise


def _see_error(task: asyncio.Future[Any]) -> None:
    """Of several that failed, one error is raised; nobody has forgotten the others."""
    if not task.cancelled():
        task.exception()


def wait(awaited: Iterable[Awaitable[R]], *, first: bool = False) -> Call[Waited[Awaitable[R]]]:
    """Wait until all of the coroutines, tasks and handles have ended, or with `first` until one.

    `done` holds them in the order in which they ended, with `first` only the winner; it is
    recorded. A coroutine comes back as its task. How they ended, awaiting them tells; those that
    are `pending` go on.

        winner = (await aio.wait([by_train(), by_plane()], first=True)).done[0]
        ticket = await winner
    """
    if not isinstance(awaited, Iterable):
        raise InvalidArgument(f"wait takes several to wait for, not {awaited!r}")
    scope, host = async_scope("wait"), current_host("wait", blocks=False)
    begun = [_begin(each) for each in awaited]
    if not begun:
        raise InvalidArgument("wait needs something to wait for: coroutines, tasks or handles")
    subjects = [
        each.id if isinstance(each, Handle) else Watched(host, scope, each) for each in begun
    ]

    def call(scope: Scope | None) -> Flow[list[int]]:
        return acting.wait(host, scope, subjects, first=first)

    return _waited(begun, perform(host, scope, call))


async def _waited(begun: list[Any], call: Call[list[int]]) -> Waited[Any]:
    done = await call
    for index in done:  # on a replay they still have to come to their recorded ends
        if not isinstance(begun[index], Handle):
            await asyncio.wait([begun[index]])
    return Waited(
        [begun[index] for index in done],
        [each for index, each in enumerate(begun) if index not in done],
    )


def as_completed(awaited: Iterable[Awaitable[R]]) -> AsyncIterator[Awaitable[R]]:
    """The coroutines (as tasks), tasks and handles, in the order in which they end; recorded.

    async for page in aio.as_completed([fetch(url) for url in urls]):
        print(len(await page))
    """
    async_scope("as_completed")
    return _as_completed([_begin(each) for each in awaited])


async def _as_completed(left: list[Any]) -> AsyncIterator[Any]:
    while left:
        done = (await wait(left, first=True)).done[0]
        left.remove(done)
        yield done


def _begin(awaited: Any) -> Any:
    """A task of a coroutine; others as they are."""
    if isinstance(awaited, Handle):
        return awaited
    if not isinstance(awaited, Awaitable):
        raise InvalidArgument(f"coroutines, tasks and handles can be awaited, not {awaited!r}")
    return asyncio.ensure_future(awaited)


# ---------------------------------------------------------------------- acting on workflows


def cancel(workflow: Workflow, *, children: bool = True) -> Call[Cancellation]:
    """Stop a workflow for good; see `Handle.cancel`."""
    file, workflow_id = _find(workflow, "cancel")

    def call(scope: Scope | None) -> Flow[Cancellation]:
        return acting.cancel(file, scope, workflow_id, children=children)

    return perform(file, _scope_of(file, "cancel"), call)


def resume(workflow: Workflow) -> Call[None]:
    """Have a stopped workflow go on; see `Handle.resume`."""
    file, workflow_id = _find(workflow, "resume")

    def call(scope: Scope | None) -> Flow[None]:
        return acting.resume(file, scope, workflow_id)

    return perform(file, _scope_of(file, "resume"), call)


def fork(
    workflow: Workflow,
    *,
    step: int | None = None,
    id: str | None = None,  # noqa: A002
) -> Call[Handle[Any]]:
    """Start a copy of a workflow from one of its steps; see `Handle.fork`."""
    file, workflow_id = _find(workflow, "fork")

    def call(scope: Scope | None) -> Flow[Handle[Any]]:
        return Handle(file, (yield from acting.fork(file, scope, workflow_id, step, id)))

    return perform(file, _scope_of(file, "fork"), call)


# ---------------------------------------------------------------------- where the caller is


def _in_body(name: str, call: Callable[[Scope], Flow[T]]) -> Call[T]:
    return perform_in(_body_scope(name).take(), call)


def _body_scope(name: str) -> Scope:
    scope = body_scope(name, blocks=False)
    refuse_plain_body(scope, name, f"durable.{name}")
    return scope


def _in_workflow(name: str, call: Callable[[Scope], Flow[T]]) -> Call[T]:
    """In the body of a workflow, or in one of its steps."""
    scope = async_scope(name)
    if scope is None:
        raise NotInWorkflow(name)
    if isinstance(scope, StepCall):
        return drive_async(call(scope), scope)
    return perform_in(scope.take(), call)


def _find(workflow: Workflow, name: str) -> tuple[File, str]:
    if isinstance(workflow, Handle):
        return workflow.file, workflow.id
    return current_host(name, blocks=False), workflow


def _scope_of(file: File, name: str) -> Scope | None:
    """The calling workflow, where it belongs to the same file."""
    scope = async_scope(name)
    return scope if scope is not None and scope.host is file else None


def _declared(wf: Any) -> Any:
    if not isinstance(wf, DeclaredWorkflow):
        raise InvalidArgument(f"{wf!r} is not a workflow: decorate the function with @workflow")
    return wf
