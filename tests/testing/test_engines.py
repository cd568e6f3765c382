"""Engines for tests: quick, apart from each other, and nothing that went wrong is lost."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import Engine, NoEngine, Retry, step, workflow
from durable.clock import SystemClock
from durable.runtime import execution
from durable.store import workflows
from durable.testing import Deadlock, TestEngine, VirtualClock, engines, timeline
from durable.testing import engine as new_engine


@step
def echo(value: Any) -> Any:
    return value


@workflow
def quick(value: Any) -> Any:
    return echo(value)


@workflow
def receive() -> Any:
    return durable.recv("answer")


# ---------------------------------------------------------------------- made and destroyed


def test_an_engine_takes_less_than_twenty_milliseconds() -> None:
    """Made, used for a trivial workflow and destroyed: the best of ten, on a busy machine."""

    def once() -> float:
        began = time.perf_counter()
        with new_engine():
            assert quick.start(1).result() == 1
        return time.perf_counter() - began

    once()
    assert min(once() for _ in range(10)) < 0.020


def test_the_file_is_gone_at_the_end() -> None:
    """The temporary file, and the folder that it is in, are removed."""
    with new_engine() as engine:
        quick(1)
        file = engine.path
        assert file.exists()
    assert not file.parent.exists()


def test_without_a_folder_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /dev/shm, the ordinary temporary folder does."""
    monkeypatch.setattr(engines, "_MEMORY", "/nowhere/at/all")
    with new_engine():
        assert quick(1) == 1


def test_a_file_of_ones_own_stays(tmp_path: Path) -> None:
    """A `path` that was given is used and left, so a test can open it again."""
    path = tmp_path / "mine.db"
    with new_engine(path=path) as engine:
        handle = quick.start("kept")
        assert handle.result() == "kept"
    with new_engine(path=path) as engine:
        assert engine.handle(handle.id).result() == "kept"


def test_what_was_running_goes_on_in_the_next_engine(path: str) -> None:
    """The end of a test engine is an orderly stop, not an outcome."""
    with new_engine(path=path):
        handle = receive.start()
    with new_engine(path=path) as engine:
        engine.send(handle.id, 42, "answer")
        assert engine.handle(handle.id).result() == 42


def test_options_of_engine_are_passed_on(path: str) -> None:
    """All that `Engine` takes, and a clock: the machine's own, for one."""
    clock = SystemClock()
    with new_engine(path=path, recover="manual", version="7", clock=clock) as engine:
        assert engine.clock is clock
        handle = quick.start(1)
        assert handle.result() == 1
        assert handle.info().version == "7"


def test_an_engine_that_the_test_has_closed() -> None:
    """Closing it early is nobody's error."""
    with new_engine() as engine:
        quick.start(1)
        engine.close()
        assert engine.closed


def test_an_engine_opens_once() -> None:
    """It comes open, and `open` says so."""
    with new_engine() as engine, pytest.raises(durable.InvalidArgument, match="open already"):
        engine.open()


# ---------------------------------------------------------------------- apart


def test_several_engines_at_once() -> None:
    """Each has its own file, clock and workflows; the one made last is the current one."""
    with new_engine() as first, new_engine() as second:
        inner = quick.start("second")
        outer = first.start(quick, "first")
        assert (inner.result(), outer.result()) == ("second", "first")
        assert first.clock is not second.clock
        assert [each.args for each in first.workflows()] == [("first",)]
        assert [each.args for each in second.workflows()] == [("second",)]


def test_the_engine_of_the_program_is_left_alone(engine: Engine) -> None:
    """A program's own engine stays open, has nothing of the test's, and is current again after."""
    with new_engine():
        quick("test")
    assert engine.workflows() == []
    assert quick("program") == "program"
    assert [each.args for each in engine.workflows()] == [("program",)]


def test_ids_can_be_told_beforehand(path: str) -> None:
    """Without an id of its own, a workflow gets one by number, never that of an earlier engine."""
    with new_engine(path=path):
        assert [quick.start(n).id for n in range(2)] == ["workflow-1-1", "workflow-1-2"]
    with new_engine(path=path) as engine:
        assert quick.start(3).id == "workflow-2-1"
        assert len(engine.workflows()) == 3


# ---------------------------------------------------------------------- what was left


def test_a_table_of_what_was_still_running(caplog: pytest.LogCaptureFixture) -> None:
    """At the end the log has the unfinished workflows, with where they stand, and no others."""
    with new_engine() as engine:
        quick.options(id="done").start(1).result()
        receive.options(id="left").start()
        engine.clock.advance(minutes=1)
    assert len(caplog.records) == 1
    text = caplog.text
    assert "still unfinished at the end of the test:\n  left tests.testing" in text
    assert "PENDING" in text
    assert "done" not in text


def test_nothing_is_said_where_nothing_was_left(caplog: pytest.LogCaptureFixture) -> None:
    """A test whose workflows have ended is not bothered."""
    caplog.set_level(logging.DEBUG)
    with new_engine():
        quick.start(1).result()
    assert caplog.records == []


# ---------------------------------------------------------------------- what went wrong


def raised_by(block: Any) -> ExceptionGroup[Exception]:
    with pytest.raises(ExceptionGroup, match="background threads of the engine") as caught:
        block()
    return caught.value


def test_an_error_of_a_background_thread_is_raised() -> None:
    """What the engine only logs is raised at the end, with what the workflows did."""

    def block() -> None:
        with new_engine() as engine:
            quick.options(id="innocent").start(1)
            engine._open_engine().spawn("durable helper", lambda: {}["nothing"])
            engine.clock.settle()

    group = raised_by(block)
    assert [type(each) for each in group.exceptions] == [KeyError]
    assert "innocent tests.testing" in "".join(group.__notes__)


def test_a_run_that_breaks_down_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the engine's own code, which leaves a run unfinished, is raised at the end."""

    def finish(*args: Any, **kwargs: Any) -> bool:
        raise ZeroDivisionError("a bug of the engine")

    monkeypatch.setattr(workflows, "finish", finish)

    def block() -> None:
        with new_engine() as engine:
            quick.start(1)
            engine.clock.settle()

    group = raised_by(block)
    assert [str(each) for each in group.exceptions] == ["a bug of the engine"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_a_timer_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of the timers is watched as well."""

    def expire(*args: Any) -> None:
        raise ZeroDivisionError("a bug in a timer")

    monkeypatch.setattr(execution, "_expire", expire)

    def block() -> None:
        with new_engine() as engine:
            receive.options(timeout=60).start()
            engine.clock.advance(minutes=1)

    group = raised_by(block)
    assert [str(each) for each in group.exceptions] == ["a bug in a timer"]


def test_an_outcome_is_no_error_of_a_thread() -> None:
    """A workflow that fails, or is cancelled, has an outcome; the engine is well."""

    @workflow
    def fails() -> None:
        raise ValueError("an outcome")

    with new_engine() as engine:
        handle = fails.start()
        stopped = receive.start()
        engine.clock.settle()
        assert stopped.cancel()
        with pytest.raises(ValueError, match="an outcome"):
            handle.result()
        engine.clock.settle()
        assert engine.errors == []


def test_a_test_that_fails_tells_what_the_workflows_did() -> None:
    """The exception that leaves the block has the timeline as a note."""
    with pytest.raises(Deadlock) as caught, new_engine():
        quick.options(id="done").start("shown")
        receive.options(id="stuck").start().result()
    notes = "".join(caught.value.__notes__)
    assert "  done tests.testing.test_engines:quick SUCCESS -> 'shown'" in notes
    assert "1 tests.testing.test_engines:echo -> 'shown'" in notes
    assert "  stuck tests.testing.test_engines:receive PENDING" in notes


def test_a_test_that_fails_after_closing() -> None:
    """Its own error is told, though there is no timeline any more."""
    with pytest.raises(NoEngine) as caught, new_engine() as engine:
        engine.close()
        quick.start(1)
    assert "cannot be told" in "".join(caught.value.__notes__)


# ---------------------------------------------------------------------- journal and timeline


def test_the_journal_has_every_write() -> None:
    """Who wrote what, and when."""
    with new_engine() as engine:
        engine.clock.settle()
        quick.options(id="one").start(1).result()
        entries = [(each.thread.split()[0], each.label) for each in engine.journal.entries]
    assert entries == [
        ("MainThread", "open"),
        ("MainThread", "start tests.testing.test_engines:quick"),
        ("durable", "step tests.testing.test_engines:echo"),
        ("durable", "finish tests.testing.test_engines:quick"),
    ]
    assert "2026-01-01 00:00:00.000000  MainThread  " in str(engine.journal)


def told(engine: TestEngine) -> str:
    return timeline(engine)


def test_the_timeline_tells_what_is_undecided() -> None:
    """A wait with its deadline, a step between two tries with what went wrong, a timeout."""

    @step(retry=Retry(attempts=2, delay=60))
    def fails() -> None:
        raise OSError("not yet")

    @workflow
    def tries() -> None:
        durable.recv(timeout=1, default=None)
        fails()

    with new_engine() as engine:
        tries.start()
        engine.clock.settle()
        assert "1 durable.recv -> undecided until 2026-01-01 00:00:01.000000" in told(engine)
        engine.clock.advance(seconds=1)
        assert "1 durable.recv -> timeout" in told(engine)
        undecided = "undecided until 2026-01-01 00:01:01.000000, after OSError('not yet')"
        assert f"fails -> {undecided}" in told(engine)
        engine.clock.advance(days=1)
        assert "fails -> OSError('not yet'), try 2" in told(engine)
        assert "ERROR -> OSError('not yet')" in told(engine)


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def test_the_timeline_tells_any_value() -> None:
    """A long value is cut, and one whose repr() fails does not hide all the others."""

    @workflow
    def wf() -> str:
        raise Unspeakable

    with new_engine() as engine:
        quick("x" * 5000)
        with pytest.raises(Unspeakable):
            wf()
        lines = told(engine).splitlines()
    assert all(len(line) < 400 for line in lines)
    assert "<Unspeakable instance at" in lines[-1]


def test_a_clock_may_be_given() -> None:
    """The seed, or a clock that has one."""
    with new_engine(seed=5) as engine:
        assert engine.clock.seed == 5
    clock = VirtualClock(6)
    with new_engine(clock=clock) as engine:
        assert engine.clock is clock
