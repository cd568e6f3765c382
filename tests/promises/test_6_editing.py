"""Promise 6: editing code strands nothing, and one bad run never stops another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import Engine, Status, testing, workflow
from durable.runtime.registry import registry
from tests.support import PATIENCE


def declare(name: str, fn: Callable[[], Any]) -> Any:
    """The function as it is after an edit, in a program that was started again."""
    registry._workflows.pop(name, None)
    return workflow(name=name)(fn)


def first(engine: Engine) -> str:
    return durable.run_step(str, "first")


def test_a_run_goes_on_under_the_new_code(tmp_path: Path) -> None:
    """What was recorded is kept; what comes after it is the new code's."""
    path = tmp_path / "test.db"
    old = declare("edited", lambda: [durable.run_step(str, 1), durable.recv(), "old"])
    with testing.engine(path=path) as engine:
        old.options(id="one").start()
        engine._clock.settle()  # type: ignore[attr-defined]
    declare("edited", lambda: [durable.run_step(str, 1), durable.recv(), "new"])
    with testing.engine(path=path) as engine:
        engine.send("one", "m")
        assert engine.handle("one").result() == ["1", "m", "new"]


def test_a_run_that_does_not_fit_ends_alone(tmp_path: Path) -> None:
    """It ends in NonDeterminism that names both steps; every other goes on."""
    path = tmp_path / "test.db"
    old = declare("edited", lambda: [durable.run_step(str, 1), durable.recv()])
    other = declare("other", lambda: durable.recv())
    with testing.engine(path=path) as engine:
        old.options(id="one").start()
        other.options(id="two").start()
        engine._clock.settle()  # type: ignore[attr-defined]
    declare("edited", lambda: [durable.run_step(int, 1), durable.recv()])
    with testing.engine(path=path) as engine:
        for each in ("one", "two"):
            engine.send(each, "m")
        with pytest.raises(durable.NonDeterminism, match=r"one.*step 1 .*builtins:str.*:int"):
            engine.handle("one").result()
        assert engine.handle("one").info().status is Status.ERROR
        assert engine.handle("two").result() == "m"


def test_code_that_is_gone_strands_nothing(path: str) -> None:
    """A workflow that nobody declares any more waits, visibly, until somebody does."""
    declare("gone", lambda: durable.recv()).options(id="x")
    with Engine(path) as engine:
        declare("gone", lambda: durable.recv()).options(id="one").start()
        engine.close(timeout=0)
    registry._workflows.pop("gone")
    with Engine(path) as engine:
        engine.send("one", "m")
        declare("gone", lambda: [durable.recv(), "back"])
        assert engine.handle("one").result(PATIENCE) == ["m", "back"]
