"""now, random, uuid4, patched, logger: the same on every replay."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import durable
from durable import Engine, workflow
from tests.support import PATIENCE, dying, until


def test_now_random_and_uuid4_replay(path: str) -> None:
    """A replay sees the same moment, the same numbers and the same ids."""
    seen: list[list[Any]] = []

    @workflow
    def wf() -> None:
        moment = durable.now()
        ids = [durable.uuid4(), durable.uuid4()]
        seen.append([moment, durable.random().random(), *ids, durable.random().random()])
        durable.recv()

    with dying(path):
        wf.options(id="one").start()
        until(lambda: seen)
    with Engine(path) as engine:
        engine.send("one", None)
        engine.handle("one").result(PATIENCE)
    assert seen[0] == seen[1]
    assert len({str(each) for each in seen[0]}) == 5


def test_each_workflow_has_its_own_numbers(engine: Engine) -> None:
    """Two workflows draw different numbers; a fork draws those of its original."""

    @workflow
    def wf() -> list[Any]:
        return [durable.random().random(), durable.uuid4()]

    one, two = wf.options(id="one").start(), wf.options(id="two").start()
    assert one.result(PATIENCE) != two.result(PATIENCE)
    assert one.fork().result(PATIENCE) == one.result()


def test_patched_is_true_for_new_runs(engine: Engine) -> None:
    """A run that begins after the change takes the changed path, and keeps to it."""

    @workflow
    def wf() -> list[bool]:
        return [durable.patched("p"), durable.patched("p"), durable.patched("q")]

    handle = wf.start()
    assert handle.result(PATIENCE) == [True, True, True]
    assert len(handle.steps()) == 2


def test_patched_is_false_for_runs_that_had_passed(path: str) -> None:
    """A run that was recorded further under the old code keeps to the old path."""

    def before() -> list[str]:
        done = [durable.run_step(str, "old")]
        durable.recv()
        return done

    def after() -> list[str]:
        done = []
        if durable.patched("new-step"):
            done.append(durable.run_step(str, "new"))
        done.append(durable.run_step(str, "old"))
        durable.recv()
        return done

    names = {"name": "patched-wf"}
    old = workflow(**names)(before)
    with dying(path):
        handle = old.options(id="passed").start()
        until(lambda: handle.steps())
    durable.declare.registry._workflows.pop("patched-wf")
    new = workflow(**names)(after)
    with Engine(path) as engine:
        fresh = new.options(id="fresh").start()
        for each in ("passed", "fresh"):
            engine.send(each, None)
        assert engine.handle("passed").result(PATIENCE) == ["old"]
        assert fresh.result(PATIENCE) == ["new", "old"]


def test_a_patch_may_be_removed(path: str) -> None:
    """Once no run needs the old path, the call of `patched` goes, and its marker is no step."""

    def with_patch() -> int:
        value = 1 if durable.patched("p") else 0
        durable.recv()
        return value

    def without() -> int:
        durable.recv()
        return 1

    first = workflow(name="unpatched")(with_patch)
    with dying(path):
        handle = first.options(id="one").start()
        until(lambda: handle.steps())
    durable.declare.registry._workflows.pop("unpatched")
    workflow(name="unpatched")(without)
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == 1


def test_the_logger_is_silent_while_replaying(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """What lies before a recorded step is logged once, with the workflow's id."""
    caplog.set_level(logging.INFO, "durable.workflow")

    @workflow
    def wf() -> None:
        durable.logger.info("begin")
        durable.run_step(str, "x")
        durable.logger.info("middle")
        durable.run_step(str, "y")
        durable.recv()
        durable.logger.info("end")

    with dying(path):
        handle = wf.options(id="one").start()
        until(lambda: len(handle.steps()) == 2)
    with Engine(path) as engine:
        engine.send("one", None)
        engine.handle("one").result(PATIENCE)
    records = [each for each in caplog.records if each.name == "durable.workflow"]
    assert [each.message for each in records] == ["begin", "middle", "end"]
    assert records[0].workflow_id == "one"


@pytest.mark.parametrize("name", ["recv", "sleep", "sleep_until", "now", "random", "uuid4"])
def test_not_in_a_workflow(name: str) -> None:
    """What a run must record is refused outside one, by name."""
    arguments = {"sleep": [1], "sleep_until": [None]}.get(name, [])
    with pytest.raises(durable.NotInWorkflow, match=name):
        getattr(durable, name)(*arguments)


@pytest.mark.parametrize("name", ["recv", "sleep", "now", "random", "uuid4"])
def test_not_in_a_step(engine: Engine, name: str) -> None:
    """What belongs in the workflow's body is refused in a step, naming step and workflow."""

    @workflow
    def wf() -> None:
        durable.run_step(getattr(durable, name), *([1] if name == "sleep" else []))

    with pytest.raises(durable.NotAllowedHere, match=rf"{name}.*step.*one"):
        wf.options(id="one")()
