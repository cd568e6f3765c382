"""Declaring: functions become workflows, steps and transactions, known by name."""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from durable.checks import check_count, check_optional_text, check_texts
from durable.clock import optional_seconds
from durable.errors import InvalidArgument
from durable.functions import (
    AsyncStepFunction,
    AsyncWorkflowFunction,
    DeclaredStep,
    DeclaredWorkflow,
    StepFunction,
    WorkflowFunction,
)
from durable.names import callable_name, qualified_name
from durable.retry import Retry
from durable.runtime import parallel, steps
from durable.runtime.context import Scope, body_scope
from durable.runtime.flows import Flow, drive
from durable.runtime.registry import StepSpec, WorkflowSpec, registry

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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
    return steps.call_here(spec, args, kwargs)


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
