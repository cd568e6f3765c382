"""Debouncing: one run for each quiet period, with the last arguments."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

import durable
from durable import Client, Debouncer, Engine, InvalidArgument, Queue, testing, workflow
from durable.testing.engines import TestEngine
from tests.support import PATIENCE, dying, until


@pytest.fixture
def virtual() -> Iterator[TestEngine]:
    """An engine whose time jumps."""
    with testing.engine() as engine:
        yield engine


@workflow
def saves(text: str = "", *, by: str = "") -> list[str]:
    return [text, by]


@workflow
def held() -> None:
    durable.recv("end")


def test_the_last_arguments_win(virtual: TestEngine) -> None:
    """Many calls for a key are one run, `delay` seconds after the last one."""
    debouncer = Debouncer(saves, delay=10)
    begin = virtual.clock.moment
    handles = []
    for n in range(4):
        handles.append(debouncer.call("page", f"text {n}", by="Ann"))
        virtual.clock.advance(seconds=5)
    assert len({handle.id for handle in handles}) == 1
    assert handles[0].info().status == "DELAYED"
    assert handles[0].result() == ["text 3", "Ann"]
    assert handles[0].info().started_at == begin + timedelta(seconds=25)
    assert len(virtual.workflows()) == 1


def test_each_quiet_period_has_its_run(virtual: TestEngine) -> None:
    """A call after the quiet is the first of another."""
    debouncer = Debouncer(saves, delay=timedelta(seconds=10))
    first = debouncer.call("page", "a")
    virtual.clock.advance(seconds=10)
    second = debouncer.call("page", "b")
    assert [first.result(), second.result()] == [["a", ""], ["b", ""]]


def test_keys_and_workflows_are_apart(virtual: TestEngine) -> None:
    """A call for one key does not put off another; nor does one of another workflow."""
    debouncer, other = Debouncer(saves, delay=10), Debouncer(held, delay=10)
    ids = {debouncer.call("a").id, debouncer.call("b").id, other.call("a").id}
    assert len(ids) == 3


def test_it_starts_after_max_wait_at_the_latest(virtual: TestEngine) -> None:
    """Also where the calls never stop."""
    debouncer = Debouncer(saves, delay=10, max_wait=25)
    begin = virtual.clock.moment
    handles = []
    for n in range(8):
        handles.append(debouncer.call("page", str(n)))
        virtual.clock.advance(seconds=5)
    assert handles[0].info().started_at == begin + timedelta(seconds=25)
    assert handles[0].result() == ["4", ""]
    assert handles[5].id != handles[4].id
    assert handles[7].result() == ["7", ""]


def test_while_a_run_runs_another_is_to_come(virtual: TestEngine) -> None:
    """What has started is not changed any more."""
    debouncer = Debouncer(held, delay=10)
    first = debouncer.call("page")
    virtual.clock.advance(seconds=10)
    second = debouncer.call("page")
    virtual.clock.advance(seconds=10)
    assert [first.info().status, second.info().status] == ["PENDING", "PENDING"]


def test_over_a_restart(path: str) -> None:
    """Calls before and after it are of one kind."""
    debouncer = Debouncer(saves, delay=10)
    clock = testing.VirtualClock()
    with dying(path, clock=clock):
        first = debouncer.call("page", "a")
        clock.advance(seconds=5)
    with Engine(path, clock=clock) as engine:
        second = debouncer.call("page", "b")
        assert first.id == second.id
        clock.advance(seconds=9)
        assert engine.handle(first.id).info().status == "DELAYED"
        assert second.result() == ["b", ""]


def test_the_quiet_is_over_while_no_engine_runs(path: str) -> None:
    """What is due is left alone: a later call is of the next quiet period."""
    clock = testing.VirtualClock()
    with Engine(path, clock=clock):
        first = Debouncer(saves, delay=10).call("page", "a")
    clock.advance(seconds=30)
    with Client(path, clock=clock) as client:
        second = client.debounce(saves.name, "page", "b", delay=10)
        assert second.id != first.id
    with Engine(path, clock=clock) as engine:
        assert engine.handle(first.id).result() == ["a", ""]
        assert engine.handle(second.id).result() == ["b", ""]


def test_from_another_process(path: str) -> None:
    """By name; the engine's own calls are for the same run."""
    debouncer = Debouncer(saves, delay=0.2)
    with Engine(path), Client(path) as client:
        first = client.debounce(saves.name, "page", "a", delay=60, kwargs={"by": "Ann"})
        second = debouncer.call("page", "b")
        assert first.id == second.id
        assert first.result(PATIENCE) == ["b", ""]
        third = client.debounce(saves.name, "page", "c", delay=0.01, max_wait=5)
        assert third.result(PATIENCE) == ["c", ""]


def test_in_a_workflow_it_is_recorded(virtual: TestEngine) -> None:
    """A replay does not call again, and the run is no child."""
    debouncer = Debouncer(saves, delay=10)

    @workflow
    def edits() -> Any:
        handle = debouncer.call("page", "from a workflow")
        durable.recv("go on")
        return handle.result()

    editing = edits.options(id="edits").start()
    virtual.clock.advance(seconds=1)
    (coming,) = virtual.workflows(status="DELAYED")
    assert coming.id == "edits.1"
    assert coming.parent_id is None
    virtual.clock.advance(seconds=20)
    virtual._host.stop(virtual._host.runs.of("edits")[0])  # type: ignore[union-attr]
    virtual.clock.settle()
    virtual.recover(["edits"])
    editing.send(None, "go on")
    assert editing.result() == ["from a workflow", ""]
    assert len(virtual.workflows()) == 2


def test_in_a_queue(virtual: TestEngine) -> None:
    """When its quiet has come, the run waits for its turn there."""
    one = Queue("debounced", concurrency=1)
    blocker = one.enqueue(held)
    handle = Debouncer(saves.options(queue=one, tags=["t"]), delay=10).call("page", "a")
    virtual.clock.advance(seconds=15)
    assert handle.info().status == "ENQUEUED"
    blocker.send(None, "end")
    assert handle.result() == ["a", ""]
    assert handle.info().tags == ("t",)


def test_a_cancelled_run_to_come(virtual: TestEngine) -> None:
    """The next call makes another; resuming the first does not change that."""
    debouncer = Debouncer(saves, delay=10)
    first = debouncer.call("page", "a")
    first.cancel()
    second = debouncer.call("page", "b")
    first.resume()
    assert [first.result(), second.result()] == [["a", ""], ["b", ""]]


@pytest.mark.slow
def test_calls_from_many_threads_are_one_run(path: str) -> None:
    """Whoever comes last, wins."""
    import threading

    debouncer = Debouncer(saves, delay=0.5)
    ids: list[str] = []
    with Engine(path) as engine:
        threads = [
            threading.Thread(
                target=lambda: ids.extend(debouncer.call("page", "x").id for _ in range(10))
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: engine.workflows(status="SUCCESS"))
        assert len(set(ids)) == len(engine.workflows())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"delay": -1}, "delay"),
        ({"delay": "5"}, "delay"),
        ({"delay": 5, "max_wait": -1}, "max_wait"),
        ({"delay": 5, "max_wait": 3}, "less than the delay"),
    ],
)
def test_spans_of_no_use_are_refused(options: Any, match: str) -> None:
    """When it is declared."""
    with pytest.raises(InvalidArgument, match=match):
        Debouncer(saves, **options)


@pytest.mark.parametrize("options", [{"id": "a"}, {"delay": 5}, {"dedup": "a", "queue": "q"}])
def test_options_of_no_use_are_refused(options: Any) -> None:
    """The run to come has an id and a moment of its own."""
    with pytest.raises(InvalidArgument, match="Debouncer"):
        Debouncer(saves.options(**options), delay=5)
    with pytest.raises(InvalidArgument, match="calls a workflow"):
        Debouncer(len, delay=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["", None, 5])
def test_a_key_of_no_use_is_refused(virtual: TestEngine, key: Any) -> None:
    """It is a text that is not empty."""
    with pytest.raises(InvalidArgument, match="key"):
        Debouncer(saves, delay=5).call(key, "a")
    with pytest.raises(InvalidArgument, match="key"):
        virtual.debounce(saves.name, key, "a", delay=5)
    with pytest.raises(TypeError):
        Debouncer(saves, delay=5).call("k", 1, 2)  # type: ignore[call-arg]
