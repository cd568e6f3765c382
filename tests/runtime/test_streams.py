"""Streams: append only, read by many, from any place, until closed or at the workflow's end."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import durable
from durable import Client, Engine, Retry, step, testing, workflow
from tests.support import PATIENCE, Gate, dying, until


@workflow
def produce(count: int) -> None:
    for number in range(count):
        durable.write_stream("s", number)
    durable.close_stream("s")
    durable.recv()


@workflow
def produce_and_end(count: int) -> None:
    for number in range(count):
        durable.write_stream("s", number)


def test_values_come_in_order_until_the_stream_is_closed(engine: Engine) -> None:
    """A reader gets every value, and ends where the stream is closed."""
    handle = produce.start(250)
    assert list(handle.stream("s", timeout=PATIENCE)) == list(range(250))
    assert handle.info().status is durable.Status.PENDING
    handle.send(None)


def test_a_reader_ends_with_the_workflow(engine: Engine) -> None:
    """N19: the end of a workflow ends its streams; with `start` a reader goes on without a gap."""
    handle = produce_and_end.start(5)
    assert list(handle.stream("s")) == [0, 1, 2, 3, 4]
    assert list(durable.read_stream(handle.id, "s", start=3)) == [3, 4]
    assert list(durable.read_stream(handle.id, "s", start=9)) == []
    assert list(durable.read_stream(handle.id, "never written")) == []


def test_a_value_reaches_a_waiting_reader(engine: Engine) -> None:
    """A reader that waits is woken by the write."""
    gate = Gate()

    @workflow
    def wf() -> None:
        durable.run_step(gate.pass_through)
        durable.write_stream("s", "late")

    handle = wf.start()
    seen: list[Any] = []
    reader = threading.Thread(target=lambda: seen.extend(handle.stream("s")))
    reader.start()
    gate.wait_reached()
    assert seen == []
    gate.open()
    reader.join(PATIENCE)
    assert seen == ["late"]


@pytest.mark.slow
def test_many_readers(engine: Engine) -> None:
    """Each of twenty readers gets everything, one of them through a client."""
    handle = produce.start(50)
    with Client(engine._path) as client:
        seen: list[list[int]] = []
        streams = [handle.stream("s") for _ in range(19)] + [client.read_stream(handle.id, "s")]
        readers = [
            threading.Thread(target=lambda each=each: seen.append(list(each)))  # type: ignore[misc]
            for each in streams
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(PATIENCE)
    assert seen == [list(range(50))] * 20
    handle.send(None)


def test_a_reader_may_time_out(engine: Engine) -> None:
    """WaitTimeout when no value comes in time; what came before is not lost."""
    gate = Gate()

    @workflow
    def wf() -> None:
        durable.write_stream("s", 1)
        durable.run_step(gate.pass_through)

    handle = wf.start()
    stream = handle.stream("s", timeout=0.05)
    gate.wait_reached()
    assert next(stream) == 1
    with pytest.raises(durable.WaitTimeout, match="'s'"):
        next(stream)
    gate.open()


def test_written_once_over_a_crash(path: str) -> None:
    """A replay does not write again."""

    @workflow
    def wf() -> None:
        durable.write_stream("s", 1)
        durable.recv()
        durable.write_stream("s", 2)

    with dying(path) as engine:
        handle = wf.options(id="one").start()
        until(lambda: handle.steps())
    with Engine(path) as engine:
        engine.send("one", None)
        assert list(engine.read_stream("one", "s")) == [1, 2]


def test_a_closed_stream_takes_nothing(engine: Engine) -> None:
    """WorkflowConflict, recorded like any outcome."""

    @workflow
    def wf() -> str:
        durable.close_stream("s")
        with pytest.raises(durable.WorkflowConflict, match="closed its stream 's'"):
            durable.write_stream("s", 1)
        return "went on"

    assert wf() == "went on"


# ---------------------------------------------------------------------- from steps


@step(retry=Retry(attempts=3, delay=0))
def tell() -> str:
    attempt = durable.current().attempt
    for part in "ab":
        durable.write_stream("s", f"{part}{attempt}")
    if attempt != 3:
        raise ConnectionError("again")
    return "told"


@workflow
def telling() -> str:
    durable.write_stream("s", "before")
    told = tell()
    durable.write_stream("s", "after")
    return told


def test_a_step_that_is_tried_three_times_is_read_once(engine: Engine) -> None:
    """N18: readers see what the try wrote that succeeded."""
    handle = telling.start()
    assert list(handle.stream("s")) == ["before", "a3", "b3", "after"]


def test_live_shows_every_try_at_once(engine: Engine) -> None:
    """Read live, a step's values are there before it ends, marked with step and attempt."""
    gate = Gate()

    @step(retry=Retry(attempts=2, delay=0))
    def streaming() -> None:
        durable.write_stream("s", "x")
        if durable.current().attempt == 1:
            gate.pass_through()
            raise ConnectionError("again")

    @workflow
    def wf() -> None:
        streaming()

    handle = wf.start()
    live = handle.stream("s", live=True, timeout=PATIENCE)
    first = next(live)
    gate.wait_reached()
    assert (first.value, first.step, first.attempt) == ("x", "1", 1)
    gate.open()
    assert [each.attempt for each in live] == [2]
    assert list(handle.stream("s")) == ["x"]


def test_a_step_that_fails_for_good_shows_nothing(engine: Engine) -> None:
    """What tries wrote that all failed is not read."""

    @step
    def fails() -> None:
        durable.write_stream("s", "lost")
        raise ValueError("no")

    @workflow
    def wf() -> None:
        with pytest.raises(ValueError, match="no"):
            fails()

    handle = wf.start()
    assert list(handle.stream("s")) == []


def test_a_step_that_died_is_read_once(path: str) -> None:
    """What a process wrote that died in the step is not read."""
    gate = Gate()
    tries: list[int] = []

    @step
    def streaming() -> None:
        tries.append(1)
        durable.write_stream("s", len(tries))
        if len(tries) == 1:
            gate.pass_through()

    @workflow
    def wf() -> None:
        streaming()

    with dying(path):
        wf.options(id="one").start()
        gate.wait_reached()
    gate.open()
    with Engine(path) as engine:
        assert list(engine.read_stream("one", "s")) == [2]


# ---------------------------------------------------------------------- in workflows


def test_a_workflow_that_reads_is_replayed(path: str) -> None:
    """Each value that a workflow reads is a step: a replay reads the same, and no more."""

    @workflow
    def reader() -> list[Any]:
        seen = []
        for value in durable.read_stream("source", "s"):
            seen.append(value)
            if len(seen) == 2:
                durable.recv("go")
        return seen

    with dying(path) as engine:
        produce.options(id="source").start(4)
        reader.options(id="reader").start()
        until(lambda: len(engine.handle("reader").steps()) == 2)
    with Engine(path) as engine:
        engine.send("reader", None, "go")
        assert engine.handle("reader").result(PATIENCE) == [0, 1, 2, 3]
        engine.send("source", None)


def test_a_workflow_cannot_read_live(engine: Engine) -> None:
    """What it saw of a failing try could not be seen again."""

    @workflow
    def wf(of: str) -> None:
        list(engine.handle(of).stream("s", live=True))

    with pytest.raises(durable.NotAllowedHere, match="live"):
        wf(produce_and_end.start(1).id)


def test_wrong_arguments_of_streams(engine: Engine) -> None:
    """Keys that are no text, starts below zero, unknown workflows, calls from outside."""
    handle = produce_and_end.start(1)
    with pytest.raises(durable.InvalidArgument, match="key"):
        handle.stream(7)  # type: ignore[call-overload]
    with pytest.raises(durable.InvalidArgument, match="from 0"):
        handle.stream("s", start=-1)
    with pytest.raises(durable.WorkflowNotFound, match="nobody"):
        list(durable.read_stream("nobody", "s"))
    for call in (lambda: durable.write_stream("s", 1), lambda: durable.close_stream("s")):
        with pytest.raises(durable.NotInWorkflow):
            call()


def test_a_fork_has_the_stream_as_of_its_step(engine: Engine) -> None:
    """A fork begins with the values that were written before its step."""
    handle = produce_and_end.start(4)
    handle.result(PATIENCE)
    assert list(handle.fork(step=3).stream("s")) == [0, 1, 2, 3]


@pytest.mark.slow
def test_streams_over_every_crash() -> None:
    """N18: whatever crashes, readers see each value once, in order."""

    def program(engine: Engine) -> None:
        handle = telling.options(id="t").start()
        assert list(handle.stream("s")) == ["before", "a3", "b3", "after"]

    testing.crashes(program)


def test_durable_calls_in_a_transaction_are_refused(engine: Engine) -> None:
    """A transaction's body that sends or sets events is told so, and does not hang."""
    import sqlite3

    @durable.transaction
    def wrong(cursor: sqlite3.Cursor, call: str) -> None:
        if call == "stream":
            durable.write_stream("s", 1)
        elif call == "event":
            durable.set_event("e", 1)
        else:
            durable.send("x", 1)

    @workflow
    def wf() -> None:
        for call in ("stream", "event", "send"):
            with pytest.raises(durable.NotAllowedHere, match="transaction"):
                wrong(call)

    wf()


def test_a_reader_that_begins_beyond_the_end_ends(engine: Engine) -> None:
    """Also while the workflow that has closed the stream goes on."""

    @workflow
    def closes() -> None:
        durable.write_stream("s", 1)
        durable.close_stream("s")
        durable.recv("go")

    handle = closes.start()
    assert list(handle.stream("s")) == [1]
    assert list(handle.stream("s", start=5)) == []
    assert list(handle.stream("s", start=5, live=True)) == []
    handle.send(None, "go")
