"""Child workflows: started and awaited as checkpoints, cancelled with their parent."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import durable
from durable import Engine, Status, workflow
from tests.support import PATIENCE, Gate, dying, until


@workflow
def child(value: int) -> int:
    return durable.run_step(int, value) + durable.recv("add", timeout=PATIENCE)


@workflow
def doubled(value: int) -> int:
    return durable.run_step(lambda: 2 * value)


@workflow
def failing() -> None:
    raise ValueError("child failed")


def test_a_child_that_is_called(engine: Engine) -> None:
    """A workflow called in a workflow is its child, with an id made from the parent's."""

    @workflow
    def parent() -> int:
        return doubled(1) + doubled(2)

    assert parent.options(id="p")() == 6
    children = engine.workflows(parent="p")
    assert [each.id for each in children] == ["p.1", "p.3"]
    assert {each.status for each in children} == {Status.SUCCESS}


def test_a_child_in_the_background(engine: Engine) -> None:
    """A child that is started runs beside its parent, which may send to it and wait for it."""

    @workflow
    def parent() -> int:
        handles = [child.start(n) for n in range(3)]
        for handle in handles:
            handle.send(10, "add")
        return sum(handle.result() for handle in handles)

    assert parent() == 33


def test_children_over_a_crash(path: str) -> None:
    """After a crash parent and children go on, each where it was; no child is started twice."""

    @workflow
    def parent() -> list[int]:
        handles = [child.start(n) for n in (1, 2)]
        durable.recv("go")
        return [handle.result() for handle in handles]

    with dying(path) as engine:
        parent.options(id="p").start()
        until(lambda: len(engine.handle("p").steps()) == 2)
    with Engine(path) as engine:
        for each in ("p.1", "p.2"):
            engine.send(each, 10, "add")
        engine.send("p", None, "go")
        assert engine.handle("p").result(PATIENCE) == [11, 12]
        assert len(engine.workflows()) == 3


def test_a_childs_result_is_recorded(path: str) -> None:
    """What a parent saw of a child is in the parent's own record."""

    @workflow
    def parent() -> Any:
        try:
            failing()
        except ValueError as error:
            seen = str(error)
        durable.recv("go")
        return seen

    with dying(path) as engine:
        parent.options(id="p").start()
        until(lambda: len(engine.handle("p").steps()) == 2)
    with Engine(path) as engine:
        engine.send("p", None, "go")
        assert engine.handle("p").result(PATIENCE) == "child failed"


def test_a_child_with_an_id_of_its_own(engine: Engine) -> None:
    """Two parents that start one id share the child."""

    @workflow
    def parent() -> int:
        return doubled.options(id="shared")(21)

    handles = [parent.start() for _ in range(5)]
    assert [handle.result(PATIENCE) for handle in handles] == [42] * 5
    assert len(engine.workflows(name=doubled.name)) == 1


def test_a_conflicting_child_id_is_recorded(engine: Engine) -> None:
    """WorkflowConflict in a parent is an outcome like any other."""

    @workflow
    def parent() -> str:
        doubled.options(id="taken")(1)
        with pytest.raises(durable.WorkflowConflict):
            child.options(id="taken").start(1)
        return "went on"

    assert parent() == "went on"


# ---------------------------------------------------------------------- wait


def test_wait_for_the_first(path: str) -> None:
    """The winner is recorded: a replay sees the same one, though the others have ended since."""

    @workflow
    def race() -> list[str]:
        handles = [child.options(id=f"c{n}").start(n) for n in range(3)]
        waited = durable.wait(handles, first=True)
        durable.recv("go")
        return [handle.id for handle in waited.done + waited.pending]

    with dying(path) as engine:
        race.options(id="race").start()
        until(lambda: len(engine.handle("race").steps()) == 3)
        engine.send("c2", 0, "add")
        until(lambda: len(engine.handle("race").steps()) == 4)
        engine.send("c0", 0, "add")
        assert engine.handle("c0").result(PATIENCE) == 0
    with Engine(path) as engine:
        engine.send("c1", 0, "add")
        engine.send("race", None, "go")
        assert engine.handle("race").result(PATIENCE) == ["c2", "c0", "c1"]


def test_wait_for_all(engine: Engine) -> None:
    """Without `first`, all are done, in the order in which they ended; outside a workflow too."""
    handles = [child.start(n) for n in range(3)]
    for index in (1, 2, 0):
        handles[index].send(0, "add")
        handles[index].result(PATIENCE)
    waited = durable.wait(handles)
    assert [handles.index(each) for each in waited.done] == [1, 2, 0]
    assert waited.pending == []


def test_wait_takes_handles(engine: Engine) -> None:
    """Nothing to wait for, or something else than handles, is refused."""
    for wrong in ([], ["id"]):
        with pytest.raises(durable.InvalidArgument, match="wait"):
            durable.wait(wrong)  # type: ignore[type-var]


# ---------------------------------------------------------------------- cancel


def test_cancel_takes_the_children_along(engine: Engine) -> None:
    """Cancelling a parent cancels what descends from it, unless told otherwise."""

    @workflow
    def middle() -> int:
        return child.start(1).result()

    @workflow
    def parent() -> int:
        return middle.start().result()

    for each, expected in (("a", Status.CANCELLED), ("b", Status.PENDING)):
        handle = parent.options(id=each).start()
        until(lambda: len(engine.workflows(parent=f"{each}.1")) == 1)  # noqa: B023
        assert handle.cancel(children=expected is Status.CANCELLED)
        assert engine.handle(f"{each}.1").info().status is expected
        assert engine.handle(f"{each}.1.1").info().status is expected
    engine.cancel("b.1")


def test_resume_takes_the_children_along(engine: Engine) -> None:
    """Resuming a parent resumes the children that its cancel stopped."""

    @workflow
    def parent() -> int:
        return child.start(1).result()

    handle = parent.options(id="p").start()
    until(lambda: engine.workflows(parent="p"))
    assert handle.cancel()
    assert engine.handle("p.1").info().status is Status.CANCELLED
    handle.resume()
    engine.send("p.1", 10, "add")
    assert handle.result(PATIENCE) == 11


def test_no_child_survives_a_parent_that_was_starting_it(engine: Engine) -> None:
    """N24: cancel races a parent that starts children: none of them is left running."""

    @workflow
    def parent() -> None:
        while True:
            child.start(1)

    for n in range(10):
        handle = parent.options(id=f"p{n}").start()
        until(lambda: len(engine.workflows(parent=f"p{n}")) > n % 3)  # noqa: B023
        assert handle.cancel()
        with pytest.raises(durable.WorkflowCancelled):
            handle.result(PATIENCE)
    assert engine.workflows(status="PENDING") == []


def test_a_waiting_parent_wakes_at_its_childs_deadline(engine: Engine) -> None:
    """N25: a child that is stopped at its deadline raises WorkflowCancelled in its parent."""

    @workflow
    def parent() -> str:
        try:
            child.options(timeout=0.05)(1)
        except durable.WorkflowCancelled as error:
            return error.reason
        return "?"

    assert "deadline" in parent()


def test_cancel_in_a_workflow_is_recorded(engine: Engine) -> None:
    """A parent may cancel a child, and knows what came of it."""

    @workflow
    def parent() -> list[bool]:
        handle = child.start(1)
        return [bool(handle.cancel()), bool(handle.cancel())]

    assert parent() == [True, False]


def test_exit_in_a_child_stops_those_who_wait_for_it(engine: Engine) -> None:
    """SystemExit in a child is no outcome: both stay unfinished, and `result` raises it."""

    @workflow
    def exits() -> None:
        raise SystemExit(3)

    @workflow
    def parent() -> None:
        exits.start().result()

    handle = parent.options(id="p").start()
    with pytest.raises(SystemExit):
        handle.result(PATIENCE)
    assert {each.status for each in engine.workflows()} == {Status.PENDING}


def test_two_hundred_children(engine: Engine) -> None:
    """A parent of two hundred children gets all their results."""

    @workflow
    def parent() -> int:
        return sum(handle.result() for handle in [doubled.start(n) for n in range(200)])

    assert parent() == 2 * sum(range(200))
    assert threading.active_count() < 250


def test_result_times_out_in_a_workflow(engine: Engine) -> None:
    """A timeout of a wait for a child is recorded; the child goes on."""
    gate = Gate()

    @workflow
    def slow() -> str:
        durable.run_step(gate.pass_through)
        return "done"

    @workflow
    def parent() -> str:
        handle = slow.options(id="slow").start()
        with pytest.raises(durable.WaitTimeout, match="slow"):
            handle.result(timeout=0.01)
        durable.run_step(gate.open)
        return handle.result()

    handle = parent.start()
    assert handle.result(PATIENCE) == "done"
    assert [each.outcome for each in handle.steps()] == ["value", "timeout", "value", "value"]
