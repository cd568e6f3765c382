"""Declaring: functions become workflows, steps and transactions, known by name."""

from __future__ import annotations

import functools
import inspect
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from durable.checks import check_count, check_optional_text, check_texts
from durable.clock import optional_seconds
from durable.errors import InvalidArgument
from durable.handle import Handle
from durable.names import callable_name, qualified_name
from durable.queues import Queue, name_of
from durable.retry import Retry
from durable.runtime import parallel, starting, steps
from durable.runtime.context import Scope, body_scope, current_host, find_scope
from durable.runtime.host import Host
from durable.runtime.parallel import Future
from durable.runtime.registry import StepSpec, WorkflowSpec, registry
from durable.runtime.starting import Invocation, Options, make_options

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S")


class WorkflowFunction(Generic[P, R]):
    """A function under ``@workflow``: call it, `start` it, or give it `options` first."""

    def __init__(
        self,
        spec: WorkflowSpec,
        bound_to: Any = None,
        options: Options = Options(),  # noqa: B008
    ) -> None:
        functools.update_wrapper(self, spec.fn)
        self._spec = spec
        self._bound_to = bound_to
        self._options = options

    @property
    def fn(self) -> Callable[P, R]:
        """The plain function."""
        if self._bound_to is None:
            return self._spec.fn
        return functools.partial(self._spec.fn, self._bound_to)

    @property
    def name(self) -> str:
        """The name under which the file knows it."""
        return self._spec.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it durably on this thread and return its result; in a workflow, as a child."""
        host = current_host(f"workflow {self.name!r}")
        return self._run_on(host, *args, **kwargs)

    def start(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Run it in the background, in a workflow as a child; it is on the disk on return."""
        return self._start_on(current_host(f"workflow {self.name!r}"), *args, **kwargs)

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
    ) -> WorkflowFunction[P, R]:
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
        return WorkflowFunction(self._spec, self._bound_to, options)

    def _start_in(self, queue: str, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start it in a queue, with the options that it has."""
        host = current_host(f"workflow {self.name!r}")
        return Handle(
            host, starting.start(host, self._scope(), self._invocation_in(queue, args, kwargs))
        )

    def _invocation_in(
        self, queue: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Invocation:
        if self._options.queue not in (None, queue):
            raise InvalidArgument(
                f"queue {queue!r} was given a workflow with options(queue={self._options.queue!r})"
            )
        options = replace(self._options, queue=queue)
        return Invocation(self._spec, self._bound_to, args, kwargs, options)

    def _with_delay(self, delay: float) -> WorkflowFunction[P, R]:
        """The same function for a Debouncer, which says itself what the run's id and delay are."""
        for name in ("id", "dedup", "delay"):
            if getattr(self._options, name) is not None:
                raise InvalidArgument(f"a Debouncer takes a workflow without options({name}=…)")
        return WorkflowFunction(self._spec, self._bound_to, replace(self._options, delay=delay))

    def _run_on(self, host: Host, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = starting.run_here(host, self._scope(), self._invocation(args, kwargs))
        return result

    def _start_on(self, host: Host, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        return Handle(host, starting.start(host, self._scope(), self._invocation(args, kwargs)))

    def _invocation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Invocation:
        return Invocation(self._spec, self._bound_to, args, kwargs, self._options)

    def _scope(self) -> Scope | None:
        name = f"workflow {self.name!r}"
        return None if find_scope(name) is None else body_scope(name)

    def __set_name__(self, owner: type, name: str) -> None:
        """A function defined in a class is a method of its instances."""
        defined_here = self._spec.fn.__qualname__ == f"{owner.__qualname__}.{name}"
        if self._spec.kind == "function" and defined_here:
            self._spec = replace(self._spec, kind="instance")
            registry.add_workflow(self._spec)

    @overload
    def __get__(self, instance: None, owner: type) -> WorkflowFunction[P, R]: ...
    @overload
    def __get__(
        self: WorkflowFunction[Concatenate[S, Q], R], instance: S, owner: type | None = None
    ) -> WorkflowFunction[Q, R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method: to its instance, or to the class for a class method."""
        if self._spec.kind == "class":
            return WorkflowFunction(self._spec, owner or type(instance), self._options)
        if self._spec.kind == "instance" and instance is not None:
            return WorkflowFunction(self._spec, instance, self._options)
        return self

    def __repr__(self) -> str:
        return f"<workflow {self.name!r}>"


class StepFunction(Generic[P, R]):
    """A function under ``@step``: a checkpoint when a workflow calls it, itself anywhere else."""

    def __init__(self, spec: StepSpec, kind: str) -> None:
        functools.update_wrapper(self, spec.fn)
        self._spec = spec
        self._kind = kind

    @property
    def fn(self) -> Callable[..., R]:
        """The plain function."""
        return self._spec.fn

    @property
    def name(self) -> str:
        """The name under which the file knows it."""
        return self._spec.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the step returns: recorded in the body of a workflow, a plain call elsewhere."""
        return steps.call(self._spec, args, kwargs)  # type: ignore[no-any-return]

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run the step beside the workflow; it has its number now, whenever it finishes.

        NotInWorkflow outside the body of a workflow, NotAllowedHere in a step. The workflow's own
        outcome waits for every step that it has submitted.

            parts = [fetch.submit(url) for url in urls]
            pages = durable.gather(*parts)
        """
        return parallel.submit(body_scope(f"{self.name}.submit"), self._spec, args, kwargs)

    def _start_in(self, queue: str, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start it in a queue, as a workflow that is nothing but this step."""
        name = f"queue {queue!r}"
        host = current_host(name)
        scope = None if find_scope(name) is None else body_scope(name)
        return Handle(host, starting.start(host, scope, self._invocation_in(queue, args, kwargs)))

    def _invocation_in(
        self, queue: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Invocation:
        around = registry.around_step(self._spec)
        return Invocation(around, None, args, kwargs, make_options(queue=queue))

    @overload
    def __get__(self, instance: None, owner: type) -> StepFunction[P, R]: ...
    @overload
    def __get__(
        self: StepFunction[Concatenate[S, Q], R], instance: S, owner: type | None = None
    ) -> StepFunction[Q, R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method: to its instance, or to the class for a class method."""
        bound_to = (owner or type(instance)) if self._kind == "class" else instance
        if bound_to is None or self._kind == "static":
            return self
        bound = functools.partial(self._spec.fn, bound_to)
        if self._spec.transaction:
            bound = functools.partial(_call_method_with_cursor, self._spec.fn, bound_to)
        return _BoundStep(replace(self._spec, fn=bound), self)

    def __repr__(self) -> str:
        return f"<step {self.name!r}>"


class _BoundStep(StepFunction[P, R]):
    """A step that is a method, bound."""

    def __init__(self, spec: StepSpec, unbound: StepFunction[Any, R]) -> None:
        functools.update_wrapper(self, unbound)
        self._spec = spec
        self._kind = "static"

    def _invocation_in(
        self, queue: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Invocation:
        raise InvalidArgument(
            f"step {self.name!r} is a method, and another process would not find what it is bound "
            f"to: enqueue a workflow that calls it in queue {queue!r}"
        )


def _call_method_with_cursor(
    fn: Callable[..., R], bound_to: Any, cursor: sqlite3.Cursor, *args: Any, **kwargs: Any
) -> R:
    return fn(bound_to, cursor, *args, **kwargs)


# ---------------------------------------------------------------------- the decorators


@overload
def workflow(fn: classmethod[Any, P, R], /) -> WorkflowFunction[P, R]: ...
@overload
def workflow(fn: Callable[P, R], /) -> WorkflowFunction[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    timeout: float | timedelta | None = None,
    max_recoveries: int = 100,
    aliases: Iterable[str] = (),
) -> Callable[[Callable[P, R]], WorkflowFunction[P, R]]: ...
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

    def declare(fn: Any) -> WorkflowFunction[Any, Any]:
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
        return WorkflowFunction(spec)

    return declare if fn is None else declare(fn)


@overload
def step(fn: classmethod[Any, P, R], /) -> StepFunction[P, R]: ...
@overload
def step(fn: Callable[P, R], /) -> StepFunction[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    retry: Retry | None = None,
    timeout: float | timedelta | None = None,
) -> Callable[[Callable[P, R]], StepFunction[P, R]]: ...
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
    says when a failure is tried again. A result that comes more than `timeout` seconds after the
    try began counts as WaitTimeout; a plain function cannot be stopped earlier.

        @step(retry=Retry(attempts=5, delay=1))
        def charge(order: str) -> str: ...
    """

    def declare(fn: Any) -> StepFunction[Any, Any]:
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

    def declare(fn: Any) -> StepFunction[Any, Any]:
        return _declare_step(fn, name, retry, None, transaction=True)

    return declare if fn is None else declare(fn)


def run_step(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call any function as a step, with no declaration; its name is ``module:qualname``.

    size = durable.run_step(os.path.getsize, path)
    """
    if isinstance(fn, StepFunction):
        return fn(*args, **kwargs)  # type: ignore[no-any-return]
    _refuse_async(fn, "run_step")
    return steps.call(StepSpec(callable_name(fn), fn), args, kwargs)  # type: ignore[no-any-return]


def map(  # noqa: A001 - the name is part of the contract
    function: Callable[[T], R],
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
    if errors not in ("raise", "collect"):
        raise InvalidArgument(f"errors is 'raise' or 'collect', not {errors!r}")
    if not isinstance(items, Iterable):
        raise InvalidArgument(f"map goes over a list or another iterable, not {items!r}")
    if isinstance(function, StepFunction):
        spec = function._spec
    else:
        _refuse_async(function, "map")
        spec = StepSpec(callable_name(function), function)
    scope = body_scope("map")
    return parallel.map_step(scope, spec, list(items), workers=workers, collect=errors == "collect")


def register(instance: object) -> None:
    """Make an instance known, so that recovery can go on with workflows that are its methods.

    Its class gives it a `durable_key`, a text that is the same in every process; InvalidArgument if
    there is none. The instance of the same class and key that was known before is replaced.
    """
    registry.add_instance(instance)


# ---------------------------------------------------------------------- checks


def _declare_step(
    fn: Any,
    name: str | None,
    retry: Retry | None,
    timeout: float | timedelta | None,
    *,
    transaction: bool,
) -> StepFunction[Any, Any]:
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
    registry.add_step(spec)
    return StepFunction(spec, kind)


def _unwrap(fn: Any, decorator: str) -> tuple[Callable[..., Any], str]:
    """The plain function, and whether it is a "class" method, "static", or a plain "function"."""
    kind = "function"
    if isinstance(fn, classmethod):
        fn, kind = fn.__func__, "class"
    elif isinstance(fn, staticmethod):
        fn, kind = fn.__func__, "static"
    if not inspect.isroutine(fn):
        raise InvalidArgument(f"@{decorator} goes on a function, not on {fn!r}")
    _refuse_async(fn, f"@{decorator}")
    return fn, kind


def _refuse_async(fn: Any, what: str) -> None:
    if not callable(fn):
        raise InvalidArgument(f"{what} takes a function, not {fn!r}")
    if inspect.iscoroutinefunction(fn):
        raise InvalidArgument(
            f"{what} takes plain functions, and {callable_name(fn)} is an async one: make it a "
            "plain function, and call asyncio.run() in a step for what is async"
        )
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidArgument(
            f"{what} takes functions that return a value, and {callable_name(fn)} is a generator"
        )
