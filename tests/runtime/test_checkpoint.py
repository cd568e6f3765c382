"""The checkpoint: another step than the recorded one is an error. What it costs: test_costs.py."""

from __future__ import annotations

from typing import Any

import durable
from durable import Engine, Status, step, workflow
from durable.runtime.registry import registry
from tests.support import PATIENCE, dying, until


@step
def first() -> str:
    return "1"


@step
def second() -> str:
    return "2"


def run_old_then_new(path: str, old: Any, new: Any, count: int) -> Any:
    """Record `count` steps under the old code, die, and give the outcome under the new."""
    registry._workflows.pop("edited", None)
    with dying(path):
        handle = workflow(name="edited")(old).options(id="one").start()
        workflow(name="bystander")(lambda: durable.recv()).options(id="two").start()
        until(lambda: len(handle.steps()) == count)
    registry._workflows.pop("edited")
    workflow(name="edited")(new)
    with Engine(path) as engine:
        engine.send("one", None)
        engine.send("two", "fine")
        assert engine.handle("two").result(PATIENCE) == "fine"
        try:
            return engine.handle("one").result(PATIENCE)
        except durable.DurableError as error:
            assert engine.handle("one").info().status is Status.ERROR
            return error


def test_another_step_is_nondeterminism(path: str) -> None:
    """N12: it names workflow, number, recorded and asked name; other workflows go on."""

    def old() -> None:
        first()
        durable.recv()

    def new() -> None:
        second()

    error = run_old_then_new(path, old, new, 1)
    assert isinstance(error, durable.NonDeterminism)
    assert (error.workflow_id, error.workflow_name, error.step) == ("one", "edited", "1")
    assert error.recorded.endswith(":first")
    assert error.asked.endswith(":second")


def test_swallowing_nondeterminism_does_not_help(path: str) -> None:
    """A workflow that catches everything ends in NonDeterminism all the same."""

    def old() -> None:
        first()
        durable.recv()

    def new() -> str:
        for each in (second, first, second):
            try:
                each()
            except BaseException:
                continue
        return "swallowed"

    assert isinstance(run_old_then_new(path, old, new, 1), durable.NonDeterminism)


def test_another_topic_is_nondeterminism(path: str) -> None:
    """To wait for something else than what was recorded is another step."""

    def old() -> None:
        durable.recv("a", timeout=0, default=None)
        durable.recv()

    def new() -> None:
        durable.recv("b", timeout=0, default=None)

    error = run_old_then_new(path, old, new, 1)
    assert isinstance(error, durable.NonDeterminism)
    assert "recv:a" in str(error)
    assert "recv:b" in str(error)


def test_fewer_steps_are_no_error(path: str) -> None:
    """Code that ends earlier than what was recorded ends the run with its result."""

    def old() -> None:
        first()
        second()
        durable.recv()

    def new() -> str:
        return first()

    assert run_old_then_new(path, old, new, 2) == "1"


def test_a_mended_run_can_be_resumed(path: str) -> None:
    """What ended in NonDeterminism goes on, once the code asks for the recorded step again."""

    def old() -> str:
        first()
        return str(durable.recv("go"))

    def new() -> None:
        second()

    assert isinstance(run_old_then_new(path, old, new, 1), durable.NonDeterminism)
    registry._workflows.pop("edited")
    workflow(name="edited")(old)
    with Engine(path) as engine:
        engine.resume("one")
        engine.send("one", "mended", "go")
        assert engine.handle("one").result(PATIENCE) == "mended"
