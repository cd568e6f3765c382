"""What functions become under ``@workflow`` and ``@step``: how they are called and started."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sqlite3
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

from durable.errors import InvalidArgument
from durable.handle import Handle
from durable.queues import Queue, name_of
from durable.runtime import parallel, starting, steps
from durable.runtime.context import (
    Scope,
    StepCall,
    body_scope,
    current_host,
    find_scope,
    parent_scope,
    refuse_plain_body,
    refuse_without_loop,
)
from durable.runtime.flows import Flow, actor, drive, perform
from durable.runtime.host import Host
from durable.runtime.parallel import Future
from durable.runtime.registry import StepSpec, WorkflowSpec, registry
from durable.runtime.runs import Stopped
from durable.runtime.starting import Invocation, Options, make_options

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")


# ---------------------------------------------------------------------- workflows


class DeclaredWorkflow(Generic[P, R]):
    """A function under ``@workflow``, plain or async: `start` it, or give it `options` first."""

    def __init__(
        self,
        spec: WorkflowSpec,
        bound_to: Any = None,
        options: Options = Options(),  # noqa: B008
    ) -> None:
        functools.update_wrapper(cast("Callable[..., Any]", self), spec.fn)
        self._spec = spec
        self._what = f"workflow {spec.name!r}"
        self._bound_to = bound_to
        self._options = options

    @property
    def name(self) -> str:
        """The name under which the file knows it."""
        return self._spec.name

    def start(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Run it in the background, in a workflow as a child; it is on the disk on return.

        On an event loop, `durable.aio.start` does that.
        """
        return self._start_on(current_host(self._what), *args, **kwargs)

    def options(
        self,
        *,
        id: str | None = None,  # noqa: A002
        timeout: float | timedelta | None = None,
        queue: Queue | str | None = None,
        priority: int | None = None,
        dedup: str | None = None,
        partition: str | None = None,
        delay: float | timedelta | None = None,
        tags: Iterable[str] | None = None,
    ) -> Self:
        """The same function with options for the runs that it starts.

        `id`: the run's own, of printable characters; if there is one already, starting attaches to
        it, and takes it up if it is unfinished and in nobody's hands. `timeout`: seconds from the
        start of the run until it is stopped as CANCELLED. `tags`: texts to find it by.

        `queue`, or its name: the run starts when it is its turn there. `priority`: the lower comes
        first, and none before any. `dedup`: Deduplicated if a run waits or runs in the queue under
        the same text. `partition`: of a queue that is partitioned. `delay`: seconds during which it
        does not start, with a queue or without.
        """
        options = make_options(id, timeout, tags, name_of(queue), priority, dedup, partition, delay)
        return type(self)(self._spec, self._bound_to, options)

    def in_queue(self, queue: str, /, *args: P.args, **kwargs: P.kwargs) -> Invocation:
        """What is to be started in a queue, with the options that it has."""
        if self._options.queue not in (None, queue):
            raise InvalidArgument(
                f"queue {queue!r} was given a workflow with options(queue={self._options.queue!r})"
            )
        options = self._options._replace(queue=queue)
        return Invocation(self._spec, self._bound_to, args, kwargs, options)

    def _start_in(self, queue: str, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start it in a queue."""
        return _start_in(queue, self.in_queue(queue, *args, **kwargs))

    def with_delay(self, delay: float) -> Self:
        """The same function for a Debouncer, which says itself what the run's id and delay are."""
        for name in ("id", "dedup", "delay"):
            if getattr(self._options, name) is not None:
                raise InvalidArgument(f"a Debouncer takes a workflow without options({name}=…)")
        return type(self)(self._spec, self._bound_to, self._options._replace(delay=delay))

    def _run_on(self, host: Host, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            scope = parent_scope(self._what)
            result: R = starting.run_here(host, scope, self.invocation(*args, **kwargs))
        except BaseException as error:
            _let_go(host, error)
            raise
        return result

    def _start_on(self, host: Host, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        scope = parent_scope(self._what)
        try:
            flow = starting.start(host, scope, self.invocation(*args, **kwargs))
            fate = drive(flow, actor(host, scope))
            return Handle(host, fate.workflow_id, fate)
        except BaseException as error:
            _let_go(host, error)
            raise

    def invocation(self, *args: P.args, **kwargs: P.kwargs) -> Invocation:
        """What is to be started."""
        return Invocation(self._spec, self._bound_to, args, kwargs, self._options)

    def __set_name__(self, owner: type, name: str) -> None:
        """A function defined in a class is a method of its instances."""
        defined_here = self._spec.fn.__qualname__ == f"{owner.__qualname__}.{name}"
        if self._spec.kind == "function" and defined_here:
            self._spec = replace(self._spec, kind="instance")
            registry.add_workflow(self._spec)

    def _bind(self, instance: Any, owner: type | None) -> Any:
        """Bind a method: to its instance, or to the class for a class method."""
        if self._spec.kind == "class":
            return type(self)(self._spec, owner or type(instance), self._options)
        if self._spec.kind == "instance" and instance is not None:
            return type(self)(self._spec, instance, self._options)
        return self

    def __repr__(self) -> str:
        return f"<workflow {self.name!r}>"


class WorkflowFunction(DeclaredWorkflow[P, R]):
    """A plain function under ``@workflow``: call it, `start` it, or give it `options` first."""

    @property
    def fn(self) -> Callable[P, R]:
        """The plain function."""
        if self._bound_to is None:
            return self._spec.fn
        return functools.partial(self._spec.fn, self._bound_to)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it durably on this thread and return its result; in a workflow, as a child."""
        host = current_host(self._what)
        return self._run_on(host, *args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> WorkflowFunction[P, R]: ...
    @overload
    def __get__(
        self: WorkflowFunction[Concatenate[S, Q], R], instance: S, owner: type | None = None
    ) -> WorkflowFunction[Q, R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method: to its instance, or to the class for a class method."""
        return self._bind(instance, owner)


class AsyncWorkflowFunction(DeclaredWorkflow[P, R]):
    """An async function under ``@workflow``: await it, `start` it, or give it `options` first."""

    @property
    def fn(self) -> Callable[P, Coroutine[Any, Any, R]]:
        """The plain async function."""
        if self._bound_to is None:
            return self._spec.fn
        return functools.partial(self._spec.fn, self._bound_to)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Run it durably, and give its result when awaited; in a workflow, as a child.

        NotAllowedHere where no event loop runs: there, `start` it, or use `Engine.run`.
        """
        refuse_without_loop(self._what, "call its start(…), and result() of that, or engine.run(…)")
        host = current_host(self._what, blocks=False)
        return run_async(host, self._what, self.invocation(*args, **kwargs))

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncWorkflowFunction[P, R]: ...
    @overload
    def __get__(
        self: AsyncWorkflowFunction[Concatenate[S, Q], R], instance: S, owner: type | None = None
    ) -> AsyncWorkflowFunction[Q, R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method: to its instance, or to the class for a class method."""
        return self._bind(instance, owner)


def run_async(host: Host, name: str, invocation: Invocation) -> Coroutine[Any, Any, Any]:
    """What the workflow returns, awaited."""
    scope = parent_scope(name, blocks=False)

    def call(scope: Scope | None) -> Flow[Any]:
        return starting.run_in_background(host, scope, invocation)

    return perform(host, scope, call, places=2)  # its start and its result


# ---------------------------------------------------------------------- steps


BOUND = "bound"
"""The kind of a step that is a method, bound."""


class DeclaredStep(Generic[P, R]):
    """A function under ``@step``, plain or async."""

    def __init__(self, spec: StepSpec, kind: str) -> None:
        functools.update_wrapper(cast("Callable[..., Any]", self), spec.fn)
        self.spec = spec
        self._kind = kind

    @property
    def name(self) -> str:
        """The name under which the file knows it."""
        return self.spec.name

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run the step beside the workflow; it has its number now, whenever it finishes.

        For plain workflows; async ones make tasks. NotInWorkflow outside the body of a workflow,
        NotAllowedHere in a step. The workflow's own outcome waits for every step that it has
        submitted.

            parts = [fetch.submit(url) for url in urls]
            pages = durable.gather(*parts)
        """
        return parallel.submit(body_scope(f"{self.name}.submit"), self.spec, args, kwargs)

    def in_queue(self, queue: str, /, *args: P.args, **kwargs: P.kwargs) -> Invocation:
        """What is to be started in a queue: a workflow that is nothing but this step."""
        if self._kind == BOUND:
            raise InvalidArgument(
                f"step {self.name!r} is a method, and another process would not find what it is "
                f"bound to: enqueue a workflow that calls it in queue {queue!r}"
            )
        around = registry.around_step(self.spec)
        return Invocation(around, None, args, kwargs, make_options(queue=queue))

    def _start_in(self, queue: str, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start it in a queue."""
        return _start_in(queue, self.in_queue(queue, *args, **kwargs))

    def _bind(self, instance: Any, owner: type | None) -> Any:
        """Bind a method: to its instance, or to the class for a class method."""
        bound_to = (owner or type(instance)) if self._kind == "class" else instance
        if bound_to is None or self._kind in ("static", BOUND):
            return self
        bound: Callable[..., Any] = functools.partial(self.spec.fn, bound_to)
        if self.spec.transaction:
            bound = functools.partial(_call_method_with_cursor, self.spec.fn, bound_to)
        return type(self)(replace(self.spec, fn=bound), BOUND)

    def __repr__(self) -> str:
        return f"<step {self.name!r}>"


class StepFunction(DeclaredStep[P, R]):
    """A function under ``@step``: a checkpoint when a workflow calls it, itself anywhere else."""

    @property
    def fn(self) -> Callable[..., R]:
        """The plain function."""
        return self.spec.fn

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the step returns: recorded in the body of a workflow, a plain call elsewhere."""
        return steps.call_here(self.spec, args, kwargs)  # type: ignore[no-any-return]

    @overload
    def __get__(self, instance: None, owner: type) -> StepFunction[P, R]: ...
    @overload
    def __get__(
        self: StepFunction[Concatenate[S, Q], R], instance: S, owner: type | None = None
    ) -> StepFunction[Q, R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method: to its instance, or to the class for a class method."""
        return self._bind(instance, owner)


class AsyncStepFunction(DeclaredStep[P, R]):
    """An async function under ``@step``: a checkpoint when an async workflow awaits it."""

    @property
    def fn(self) -> Callable[..., Coroutine[Any, Any, R]]:
        """The plain async function."""
        return self.spec.fn

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """What the step returns, awaited: recorded in the body of an async workflow.

        It has its number from the moment that it is called. A plain workflow calls it as
        ``durable.run_step(step, …)``, or submits it.
        """
        return call_async_step(self.spec, args, kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncStepFunction[P, R]: ...
    @overload
    def __get__(
        self: AsyncStepFunction[Concatenate[S, Q], R], instance: S, owner: type | None = None
    ) -> AsyncStepFunction[Q, R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method: to its instance, or to the class for a class method."""
        return self._bind(instance, owner)


def _start_in(queue: str, invocation: Invocation) -> Handle[Any]:
    name = f"queue {queue!r}"
    host = current_host(name)
    scope = parent_scope(name)
    fate = drive(starting.start(host, scope, invocation), actor(host, scope))
    return Handle(host, fate.workflow_id, fate)


def _call_method_with_cursor(
    fn: Callable[..., R], bound_to: Any, cursor: sqlite3.Cursor, *args: Any, **kwargs: Any
) -> R:
    return fn(bound_to, cursor, *args, **kwargs)


# ---------------------------------------------------------------------- calls


def _let_go(host: Host, error: BaseException) -> None:
    """A Ctrl-C leaves durable here: nobody may wait for what this thread ran."""
    if not isinstance(error, (Exception, Stopped)):
        host.let_go(error)


def call_async_step(
    spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Coroutine[Any, Any, Any]:
    """What the step returns, awaited; recorded in the body of an async workflow."""
    scope = find_scope(spec.title, blocks=False)
    if scope is None or isinstance(scope, StepCall):
        return _await_plainly(scope, spec, args, kwargs)
    if not scope.run.spec.is_async:
        refuse_plain_body(scope, spec.title, "durable.run_step(…), or its submit(…)")
    return steps.call_in_task(spec, args, kwargs, scope, scope.take_number(spec.name))


async def _await_plainly(
    scope: Scope | None, spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if spec.is_async:
        value = steps.call_plainly(scope, spec, args, kwargs)
        return await value if inspect.iscoroutine(value) else value
    call = functools.partial(steps.call_plainly, scope, spec, args, kwargs)
    return await asyncio.to_thread(call)
