"""What drives flows: a Ctrl-C between two commands leaves none of them half done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest

from durable.runtime import flows
from tests.store.interrupts import Interruption

FLOWS = frozenset([str(flows.__file__)])


class Double:
    """A command that needs no engine."""

    def __init__(self, value: int) -> None:
        self.value = value

    def perform(self, actor: Any) -> int:
        return 2 * self.value

    async def perform_async(self, actor: Any) -> int:
        return 2 * self.value


class Nobody:
    """For whom the flows are driven."""

    replaying = False

    def begin(self) -> None:
        """Nothing to do."""


def awaited(flow: Any, actor: Any) -> Any:
    """`drive_async`, where nothing has to be waited for."""
    coroutine: Coroutine[Any, Any, Any] = flows.drive_async(flow, actor)
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


@pytest.mark.parametrize("drive", [flows.drive, awaited])
def test_ctrl_c_at_every_point_closes_the_flow(drive: Callable[[Any, Any], Any]) -> None:
    """At once, not when the error is garbage: what is held with a lock is given back by then."""
    at, errors = 1, []
    while True:
        cleaned_up: list[bool] = []

        def flow(done: list[bool] = cleaned_up) -> Generator[Any, int, int]:
            try:
                total = yield Double(1)
                total += yield Double(2)
                return total
            finally:
                done.append(True)

        started, interruption = flow(), Interruption(at, FLOWS)
        try:
            with interruption.armed():
                assert drive(started, Nobody()) == 6
        except KeyboardInterrupt as error:
            errors.append(error)  # which holds the frames, and so the flow
        if not interruption.happened:
            break
        assert cleaned_up or inspect.getgeneratorstate(started) == inspect.GEN_CREATED
        at += 1
    assert len(errors) >= 3, "points there were"
