"""Declaring: functions become workflows, steps and transactions, known by name."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sqlite3
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    overload,
)

from durable.checks import check_count, check_optional_text, check_texts
from durable.clock import optional_seconds
from durable.errors import InvalidArgument
from durable.handle import Handle
from durable.names import callable_name, qualified_name
from durable.queues import Queue, name_of
from durable.retry import Retry
from durable.runtime import parallel, starting, steps
from durable.runtime.context import (
    Scope,
    body_scope,
    current_host,
    find_scope,
    parent_scope,
    refuse_plain_body,
    refuse_without_loop,
)
from durable.runtime.flows import Flow, actor, drive, perform, perform_in
from durable.runtime.host import Host
from durable.runtime.parallel import Future
from durable.runtime.registry import StepSpec, WorkflowSpec, registry
from durable.runtime.runs import Stopped
from durable.runtime.starting import Invocation, Options, make_options

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S")


BOUND = "bound"
"""The kind of a step that is a method, bound."""


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


class DeclaredStep(Generic[P, R]):
    """A function under ``@step``, plain or async."""

    def __init__(self, spec: StepSpec, kind: str) -> None:
        functools.update_wrapper(cast("Callable[..., Any]", self), spec.fn)
        self.spec = spec
        self._kind = kind
        self._what = f"step {spec.name!r}"

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
        return _call_step(self.spec, self._what, args, kwargs)  # type: ignore[no-any-return]

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


# ---------------------------------------------------------------------- the decorators


class _WorkflowDecorator(Protocol):
    """What ``@workflow(…)`` is."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncWorkflowFunction[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> WorkflowFunction[P, R]: ...


@overload
def workflow(  # type: ignore[overload-overlap]
    fn: classmethod[Any, P, Coroutine[Any, Any, R]], /
) -> AsyncWorkflowFunction[P, R]: ...
@overload
def workflow(fn: classmethod[Any, P, R], /) -> WorkflowFunction[P, R]: ...
@overload
def workflow(  # type: ignore[overload-overlap]
    fn: Callable[P, Coroutine[Any, Any, R]], /
) -> AsyncWorkflowFunction[P, R]: ...
@overload
def workflow(fn: Callable[P, R], /) -> WorkflowFunction[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    timeout: float | timedelta | None = None,
    max_recoveries: int = 100,
    aliases: Iterable[str] = (),
) -> _WorkflowDecorator: ...
def workflow(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    timeout: float | timedelta | None = None,
    max_recoveries: int = 100,
    aliases: Iterable[str] = (),
) -> Any:
    """Make a function a workflow: each step that it calls is a checkpoint of its run.

    `name` (else ``module:qualname``) and `aliases` (names that it had before) are how the file
    knows it. `timeout`: seconds from the start of a run until it is stopped as CANCELLED. After
    `max_recoveries` process deaths in a row with no checkpoint in between, a run is DEAD.
    DuplicateName if another function has one of the names.

        @workflow
        def checkout(order: str) -> str: ...
    """

    def declare(fn: Any) -> DeclaredWorkflow[Any, Any]:
        plain, kind = _unwrap(fn, "workflow")
        spec = WorkflowSpec(
            name=check_optional_text(name, "a name") or qualified_name(plain),
            fn=plain,
            kind=kind,
            timeout=optional_seconds(timeout, "the timeout of a workflow"),
            max_recoveries=check_count(max_recoveries, "max_recoveries", least=0),
            aliases=check_texts(aliases, "aliases"),
        )
        registry.add_workflow(spec)
        return (AsyncWorkflowFunction if spec.is_async else WorkflowFunction)(spec)

    return declare if fn is None else declare(fn)


class _StepDecorator(Protocol):
    """What ``@step(…)`` is."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncStepFunction[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> StepFunction[P, R]: ...


@overload
def step(  # type: ignore[overload-overlap]
    fn: classmethod[Any, P, Coroutine[Any, Any, R]], /
) -> AsyncStepFunction[P, R]: ...
@overload
def step(fn: classmethod[Any, P, R], /) -> StepFunction[P, R]: ...
@overload
def step(  # type: ignore[overload-overlap]
    fn: Callable[P, Coroutine[Any, Any, R]], /
) -> AsyncStepFunction[P, R]: ...
@overload
def step(fn: Callable[P, R], /) -> StepFunction[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    retry: Retry | None = None,
    timeout: float | timedelta | None = None,
) -> _StepDecorator: ...
def step(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    retry: Retry | None = None,
    timeout: float | timedelta | None = None,
) -> Any:
    """Make a function a step: once it has returned in a workflow, it never runs again there.

    Its body runs at least once: a process that dies before the checkpoint runs it again. `retry`
    says when a failure is tried again. A try that takes more than `timeout` seconds ends in
    WaitTimeout: an async function at that moment, a plain one, which cannot be stopped, when it
    returns.

        @step(retry=Retry(attempts=5, delay=1))
        def charge(order: str) -> str: ...
    """

    def declare(fn: Any) -> DeclaredStep[Any, Any]:
        return _declare_step(fn, name, retry, timeout, transaction=False)

    return declare if fn is None else declare(fn)


@overload
def transaction(fn: Callable[Concatenate[sqlite3.Cursor, P], R], /) -> StepFunction[P, R]: ...
@overload
def transaction(
    *, name: str | None = None, retry: Retry | None = None
) -> Callable[[Callable[Concatenate[sqlite3.Cursor, P], R]], StepFunction[P, R]]: ...
def transaction(fn: Any = None, /, *, name: str | None = None, retry: Retry | None = None) -> Any:
    """Make a function a step that works on the engine's own file: its effects happen exactly once.

    Its first argument is an ``sqlite3.Cursor``; what it does there and its checkpoint commit
    together. It must be quick: nothing else is written while it runs. It leaves tables named
    ``durable_…`` alone, and never begins or commits. Outside a workflow, it just commits.

        @transaction
        def book(cursor: sqlite3.Cursor, account: str, cents: int) -> None:
            cursor.execute("UPDATE account SET cents = cents + ? WHERE name = ?", (cents, account))
    """

    def declare(fn: Any) -> DeclaredStep[Any, Any]:
        return _declare_step(fn, name, retry, None, transaction=True)

    return declare if fn is None else declare(fn)


@overload
def run_step(
    fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
) -> R: ...
@overload
def run_step(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
def run_step(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call any function as a step, with no declaration; its name is ``module:qualname``.

    An async function is awaited on the engine's event loop meanwhile.

        size = durable.run_step(os.path.getsize, path)
    """
    spec = step_spec(fn, "run_step")
    return _call_step(spec, f"step {spec.name!r}", args, kwargs)


def map(  # noqa: A001 - the name is part of the contract
    function: Callable[[T], Any],
    items: Iterable[T],
    *,
    workers: int = 8,
    errors: Literal["raise", "collect"] = "raise",
) -> list[Any]:
    """Call a step for each item, `workers` at a time; the results, in the order of the items.

    Each item is recorded by itself: after a crash only what was not recorded runs again. The first
    error is raised, with a note that has its item's index, once those that had begun have ended;
    the others do not begin. With ``errors="collect"`` all run, and errors stand among the results.

        sizes = durable.map(download, urls, workers=4)
    """
    call = map_call(function, items, workers, errors)
    scope = body_scope("map")
    return drive(call(scope), scope)


def map_call(
    function: Callable[[T], Any], items: Iterable[T], workers: int, errors: str
) -> Callable[[Scope], Flow[list[Any]]]:
    """What `map` does in a scope; InvalidArgument for what cannot be mapped."""
    if errors not in ("raise", "collect"):
        raise InvalidArgument(f"errors is 'raise' or 'collect', not {errors!r}")
    if not isinstance(items, Iterable):
        raise InvalidArgument(f"map goes over a list or another iterable, not {items!r}")
    spec, given = step_spec(function, "map"), list(items)
    collect = errors == "collect"
    return lambda scope: parallel.map_step(scope, spec, given, workers=workers, collect=collect)


def register(instance: object) -> None:
    """Make an instance known, so that recovery can go on with workflows that are its methods.

    Its class gives it a `durable_key`, a text that is the same in every process; InvalidArgument if
    there is none. The instance of the same class and key that was known before is replaced.
    """
    registry.add_instance(instance)


def _let_go(host: Host, error: BaseException) -> None:
    """A Ctrl-C leaves durable here: nobody may wait for what this thread ran."""
    if not isinstance(error, (Exception, Stopped)):
        host.let_go(error)


def _call_step(spec: StepSpec, what: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    scope = find_scope(what)
    if scope is None or scope.step is not None:
        return steps.call_plainly(scope, spec, args, kwargs)
    return drive(steps.call(scope, spec, args, kwargs), scope)


def call_async_step(
    spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Coroutine[Any, Any, Any]:
    """What the step returns, awaited; recorded in the body of an async workflow."""
    name = f"step {spec.name!r}"
    scope = find_scope(name, blocks=False)
    if scope is None or scope.step is not None:
        return _await_plainly(scope, spec, args, kwargs)
    if not scope.run.spec.is_async:
        refuse_plain_body(scope, name, "durable.run_step(…), or its submit(…)")
    return perform_in(scope.take(), lambda inner: steps.call(inner, spec, args, kwargs))


async def _await_plainly(
    scope: Scope | None, spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if spec.is_async:
        value = steps.call_plainly(scope, spec, args, kwargs)
        return await value if inspect.iscoroutine(value) else value
    call = functools.partial(steps.call_plainly, scope, spec, args, kwargs)
    return await asyncio.to_thread(call)


def step_spec(fn: Callable[..., Any], what: str) -> StepSpec:
    """The declared step, or one made of any function on the spot."""
    if isinstance(fn, DeclaredStep):
        return fn.spec
    _refuse_generators(fn, what)
    return StepSpec(callable_name(fn), fn)


# ---------------------------------------------------------------------- checks


def _declare_step(
    fn: Any,
    name: str | None,
    retry: Retry | None,
    timeout: float | timedelta | None,
    *,
    transaction: bool,
) -> DeclaredStep[Any, Any]:
    plain, kind = _unwrap(fn, "transaction" if transaction else "step")
    if retry is not None and not isinstance(retry, Retry):
        raise InvalidArgument(f"retry is a durable.Retry, not {retry!r}")
    spec = StepSpec(
        name=check_optional_text(name, "a name") or qualified_name(plain),
        fn=plain,
        retry=retry,
        timeout=optional_seconds(timeout, "the timeout of a step"),
        transaction=transaction,
    )
    if transaction and spec.is_async:
        raise InvalidArgument(
            f"@transaction goes on a plain function, and {spec.name} is an async one: nothing else "
            "is written while it runs, so it must not wait"
        )
    registry.add_step(spec)
    return (AsyncStepFunction if spec.is_async else StepFunction)(spec, kind)


def _unwrap(fn: Any, decorator: str) -> tuple[Callable[..., Any], str]:
    """The plain function, and whether it is a "class" method, "static", or a plain "function"."""
    kind = "function"
    if isinstance(fn, classmethod):
        fn, kind = fn.__func__, "class"
    elif isinstance(fn, staticmethod):
        fn, kind = fn.__func__, "static"
    if not inspect.isroutine(fn):
        raise InvalidArgument(f"@{decorator} goes on a function, not on {fn!r}")
    _refuse_generators(fn, f"@{decorator}")
    return fn, kind


def _refuse_generators(fn: Any, what: str) -> None:
    if not callable(fn):
        raise InvalidArgument(f"{what} takes a function, not {fn!r}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidArgument(
            f"{what} takes functions that return a value, and {callable_name(fn)} is a generator"
        )
