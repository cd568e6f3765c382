"""Events: values that a workflow shows, and waits for them."""

from __future__ import annotations

from typing import Any

import pytest

import durable
from durable import Engine, workflow
from tests.support import PATIENCE, Gate, dying, until


@workflow
def show(values: list[Any]) -> None:
    for value in values:
        durable.set_event("shown", value)
        durable.recv()


def test_an_event_is_waited_for(engine: Engine) -> None:
    """`event` waits until the workflow sets it, and the last value counts."""
    handle = show.start([1, 2])
    assert handle.event("shown", timeout=PATIENCE) == 1
    handle.send(None)
    until(lambda: handle.event("shown") != 1)
    assert handle.events() == {"shown": 2}
    handle.send(None)
    handle.result(PATIENCE)


def test_waiting_for_an_event_times_out(engine: Engine) -> None:
    """WaitTimeout, or the default that was given."""
    handle = show.start([1])
    with pytest.raises(durable.WaitTimeout, match="other"):
        handle.event("other", timeout=0.01)
    assert handle.event("other", timeout=0, default="d") == "d"
    handle.send(None)


def test_a_workflow_that_ends_without_its_event(engine: Engine) -> None:
    """Whoever waits for an event of a workflow that ends without it is told so."""
    gate = Gate()

    @workflow
    def silent() -> None:
        gate.pass_through()

    handle = silent.start()
    gate.wait_reached()
    gate.open()
    with pytest.raises(durable.EventNotSet, match=r"SUCCESS.*url"):
        handle.event("url", timeout=PATIENCE)
    assert handle.event("url", default=None) is None


def test_why_there_is_no_event(engine: Engine) -> None:
    """Where the workflow ended in an error, that is the cause."""

    @workflow
    def broken() -> None:
        raise ValueError("why")

    handle = broken.start()
    with pytest.raises(durable.EventNotSet) as caught:
        handle.event("url", timeout=PATIENCE)
    assert repr(caught.value.__cause__) == "ValueError('why')"


def test_an_event_of_an_unknown_workflow(engine: Engine) -> None:
    """WorkflowNotFound, in and out of a workflow, also where a default is given for the event."""

    @workflow
    def wf() -> None:
        durable.get_event("nobody", "key")

    with pytest.raises(durable.WorkflowNotFound):
        engine.event("nobody", "key")
    with pytest.raises(durable.WorkflowNotFound):
        wf()


def test_an_event_seen_in_a_workflow_is_recorded(path: str) -> None:
    """`get_event` in a workflow returns on a replay what it returned at first."""

    @workflow
    def reader() -> list[Any]:
        first = durable.get_event("source", "shown")
        durable.recv("go")
        return [first, durable.get_event("source", "shown")]

    with dying(path) as engine:
        source = show.options(id="source").start(["old", "new"])
        handle = reader.options(id="reader").start()
        until(lambda: handle.steps())
        source.send(None)
        until(lambda: source.event("shown") != "old")
    with Engine(path) as engine:
        engine.send("reader", None, "go")
        assert engine.handle("reader").result(PATIENCE) == ["old", "new"]
        engine.send("source", None)


def test_an_event_is_set_once_over_a_crash(path: str) -> None:
    """A replay does not set an event back to what it was."""

    @workflow
    def wf() -> None:
        durable.set_event("stage", 1)
        durable.set_event("stage", 2)
        durable.recv()

    with dying(path) as engine:
        wf.options(id="one").start()
        until(lambda: engine.events("one") == {"stage": 2})
    with Engine(path) as engine:
        engine.send("one", None)
        engine.handle("one").result(PATIENCE)
        rows = engine._file.database.read(  # type: ignore[union-attr]
            lambda tx: tx.execute("SELECT count(*) FROM durable_event").fetchone()[0]
        )
    assert rows == 2


def test_set_event_in_a_step(engine: Engine) -> None:
    """A step may set an event, at each of its tries."""

    @workflow
    def wf() -> None:
        durable.run_step(durable.set_event, "progress", 50)

    handle = wf.start()
    assert handle.event("progress", timeout=PATIENCE) == 50


def test_set_event_outside() -> None:
    """Outside a workflow there is nothing to show it on."""
    with pytest.raises(durable.NotInWorkflow, match="set_event"):
        durable.set_event("key", 1)
