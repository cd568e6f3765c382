"""Puts something else in the place of a step or a workflow, for one engine and a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from durable.engine import Engine
from durable.errors import InvalidArgument
from durable.functions import DeclaredStep, DeclaredWorkflow
from durable.names import callable_name
from durable.runtime.context import current_host
from durable.runtime.hooks import Hooks

_NOTHING: Any = object()


class Call(NamedTuple):
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Replacement:
    """What is called instead; `calls` has the real arguments of each try, the first one first."""

    def __init__(self, name: str, answer: Callable[..., Any]) -> None:
        self.name = name
        self.calls: list[Call] = []
        self._answer = answer
        self._mutex = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take the call down and answer it."""
        with self._mutex:
            self.calls.append(Call(args, kwargs))
        return self._answer(*args, **kwargs)


@contextmanager
def replace(
    function: Callable[..., Any],
    *,
    returns: Any = _NOTHING,
    raises: BaseException | type[BaseException] | None = None,
    calls: Callable[..., Any] | None = None,
    engine: Engine | None = None,
) -> Iterator[Replacement]:
    """While inside, the body of a step or of a workflow is not run on `engine`, or the current one.

    `function` is the step or the workflow, or what is given to `durable.run_step`.
    Exactly one of: `returns`, a value, or a list of values of which each try takes the next (an
    exception among them is raised); `raises`, an exception or its class; `calls`, a function that
    is called with the real arguments. What comes of it is recorded as ever.

        with testing.replace(charge, returns=[TimeoutError(), "paid"]) as charged:
            assert checkout("17") == "fulfilled"
        assert charged.calls[1].args == ("17",)
    """
    name = _name(function)
    answer = _answer(name, returns, raises, calls)
    hooks = _hooks(engine)
    before = hooks.replacements.get(name)
    replacement = Replacement(name, answer)
    hooks.replace(name, replacement)
    try:
        yield replacement
    finally:
        hooks.replace(name, before)


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, (DeclaredStep, DeclaredWorkflow)):
        return function.name
    if not callable(function):
        raise InvalidArgument(f"replace takes a step or a workflow, not {function!r}")
    return callable_name(function)


def _hooks(engine: Engine | None) -> Hooks:
    return current_host("replace()").hooks if engine is None else engine._hooks


def _answer(
    name: str,
    returns: Any,
    raises: BaseException | type[BaseException] | None,
    calls: Callable[..., Any] | None,
) -> Callable[..., Any]:
    given = [returns is not _NOTHING, raises is not None, calls is not None]
    if sum(given) != 1:
        raise InvalidArgument("replace takes exactly one of returns=, raises= and calls=")
    if calls is not None:
        return calls
    if raises is not None:
        return lambda *args, **kwargs: _give(raises)
    if not isinstance(returns, list):
        return lambda *args, **kwargs: returns
    left = iter(returns)

    def next_one(*args: Any, **kwargs: Any) -> Any:
        for value in left:
            return _give(value)
        raise AssertionError(f"{name!r} was called more often than the {len(returns)} answers")

    return next_one


def _give(value: Any) -> Any:
    """Return the value, or raise it if it is an exception."""
    if isinstance(value, BaseException) or (
        isinstance(value, type) and issubclass(value, BaseException)
    ):
        raise value
    return value
