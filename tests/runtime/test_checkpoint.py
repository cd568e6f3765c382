"""The checkpoint: one write, no read; another step than the recorded one is an error."""

from __future__ import annotations

import threading
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


def traced(engine: Engine) -> list[str]:
    """The statements that the writing connection runs from now on."""
    statements: list[str] = []
    engine._open_engine().database._writer.set_trace_callback(
        lambda sql: statements.append(sql.split()[0])
    )
    return statements


def test_a_fresh_step_is_one_write_transaction(engine: Engine) -> None:
    """Each fresh step costs BEGIN, one INSERT and COMMIT, and no read on any connection."""
    seen: list[list[str]] = []
    borrowed: list[Any] = []

    @workflow
    def wf() -> None:
        database = engine._open_engine().database
        borrow, me = database._borrow, threading.get_ident()

        def counted() -> Any:
            if threading.get_ident() == me:  # the watcher looks at the file, too
                borrowed.append(1)
            return borrow()

        database._borrow = counted  # type: ignore[method-assign]
        statements = traced(engine)
        first()
        seen.append(list(statements))
        first()
        seen.append(list(statements))
        del database._borrow

    wf()
    assert seen[0] == ["BEGIN", "INSERT", "COMMIT"]
    assert len(seen[1]) == 6
    assert borrowed == []


def test_an_empty_workflow_is_two_commits(engine: Engine) -> None:
    """Run to its result, a workflow without steps costs two commits."""

    @workflow
    def empty() -> None: ...

    statements = traced(engine)
    empty()
    assert statements.count("COMMIT") == 2


def test_a_replayed_step_writes_nothing(path: str) -> None:
    """A replay of n steps costs one write, that takes the run up, whatever n is."""

    @workflow
    def wf() -> None:
        for _ in range(50):
            first()
        durable.recv()

    with dying(path):
        handle = wf.options(id="one").start()
        until(lambda: len(handle.steps()) == 50)
    with Engine(path, recover="manual") as engine:
        engine.send("one", None)
        statements = traced(engine)
        engine.recover()[0].result(PATIENCE)
        assert statements.count("COMMIT") == 3  # taken up, message received, finished


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
