"""Ending: cancel, deadline, resume, fork; and what is never an outcome."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import durable
from durable import Engine, Status, step, testing, workflow
from durable.store.tx import Tx
from tests.support import PATIENCE, Gate, dying, until

ran: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@step
def note(what: str) -> str:
    ran.append(what)
    return what


@workflow
def waits() -> str:
    note("before")
    value = durable.recv("go")
    return note(f"after {value}")


def started() -> Any:
    handle = waits.options(id="one").start()
    until(lambda: len(handle.steps()) == 1)
    return handle


# ---------------------------------------------------------------------- cancel


def test_cancel_wakes_who_waits(engine: Engine) -> None:
    """A cancelled workflow that waits stops at once, and `result` says so."""
    handle = started()
    assert handle.cancel()
    with pytest.raises(durable.WorkflowCancelled, match=r"one.*cancelled"):
        handle.result(PATIENCE)
    assert handle.info().status is Status.CANCELLED
    until(lambda: not engine._open_engine().runs.all())


def test_cancel_wakes_a_sleeper(engine: Engine) -> None:
    """A durable sleep is no hiding place."""

    @workflow
    def sleeps() -> None:
        durable.sleep(3600)

    handle = sleeps.start()
    until(lambda: handle.steps())
    assert handle.cancel()
    until(lambda: not engine._open_engine().runs.all())


def test_cancel_says_that_it_came_too_late(engine: Engine) -> None:
    """Cancelling what has ended changes nothing and says how it had ended."""
    handle = started()
    handle.send("x", "go")
    handle.result(PATIENCE)
    cancelled = handle.cancel()
    assert not cancelled
    assert cancelled.status is Status.SUCCESS
    assert handle.result() == "after x"


def test_cancel_and_completion_agree(engine: Engine) -> None:
    """N20: cancel races completion: its answer and the status always agree."""

    @workflow
    def quick() -> str:
        return "done"

    seen = set()
    for n in range(150):
        handle = quick.options(id=f"q{n}").start()
        cancelled = handle.cancel()
        status = handle.info().status
        assert bool(cancelled) == (status is Status.CANCELLED)
        assert cancelled.status is status
        seen.add(status)
    assert seen <= {Status.CANCELLED, Status.SUCCESS}


def test_swallowing_exceptions_does_not_hinder_cancel(engine: Engine) -> None:
    """N21: a loop of `except Exception: pass` ends when it is cancelled."""

    @workflow
    def stubborn() -> None:
        while True:
            try:
                durable.recv("never", timeout=0.001)
            except Exception:
                continue

    handle = stubborn.start()
    until(lambda: len(handle.steps()) > 2)
    assert handle.cancel()
    until(lambda: not engine._open_engine().runs.all())


def test_cancel_during_a_step(engine: Engine) -> None:
    """A plain step cannot be stopped: it finishes, is recorded, and nothing comes after it."""
    gate = Gate()

    @workflow
    def wf() -> None:
        durable.run_step(gate.pass_through)
        note("not reached")

    handle = wf.start()
    gate.wait_reached()
    assert handle.cancel()
    gate.open()
    until(lambda: not engine._open_engine().runs.all())
    assert ran == []
    assert [each.outcome for each in handle.steps()] == ["value"]


def test_cancel_is_not_caught_as_a_steps_error(engine: Engine) -> None:
    """The signal that stops a run is never stored as the outcome of a step."""
    gate = Gate()

    @workflow
    def wf() -> None:
        durable.run_step(lambda: None)
        gate.pass_through()
        note("refused")

    handle = wf.start()
    gate.wait_reached()
    handle.cancel()
    gate.open()
    until(lambda: not engine._open_engine().runs.all())
    assert len(handle.steps()) == 1
    assert ran == []


def test_cancel_of_an_unknown_workflow(engine: Engine) -> None:
    """WorkflowNotFound, as everywhere."""
    for action in (engine.cancel, engine.resume, engine.fork):
        with pytest.raises(durable.WorkflowNotFound, match="nobody"):
            action("nobody")


# ---------------------------------------------------------------------- resume


def test_resume_keeps_what_was_recorded(engine: Engine) -> None:
    """N23: cancelled, then resumed: recorded steps are kept, and the run goes on from there."""
    handle = started()
    handle.cancel()
    handle.resume()
    handle.send("x", "go")
    assert handle.result(PATIENCE) == "after x"
    assert ran == ["before", "after x"]


def test_resume_while_the_old_run_is_stuck_in_a_step(engine: Engine) -> None:
    """The old run's late result is not recorded over the new run's."""
    gates = [Gate(), Gate()]
    results = iter(["old", "new"])

    @workflow
    def wf() -> str:
        return durable.run_step(stuck)

    def stuck() -> str:
        mine, gate = next(results), gates[len(ran)]
        ran.append(mine)
        gate.pass_through()
        return mine

    handle = wf.options(id="one").start()
    gates[0].wait_reached()
    handle.cancel()
    handle.resume()
    gates[1].wait_reached()
    gates[0].open()
    until(lambda: len(engine._open_engine().runs.of("one")) == 1)
    assert handle.steps() == []
    gates[1].open()
    assert handle.result(PATIENCE) == "new"


def test_resume_of_what_is_not_stopped(engine: Engine) -> None:
    """WorkflowConflict that says how it stands."""
    handle = started()
    with pytest.raises(durable.WorkflowConflict, match="PENDING"):
        handle.resume()
    handle.send("x", "go")
    handle.result(PATIENCE)
    with pytest.raises(durable.WorkflowConflict, match="SUCCESS"):
        handle.resume()


# ---------------------------------------------------------------------- deadline


def test_the_deadline_stops_a_run(engine: Engine) -> None:
    """A workflow that runs longer than its timeout is stopped, wherever it waits."""
    handle = waits.options(timeout=0.05).start()
    with pytest.raises(durable.WorkflowCancelled, match="deadline"):
        handle.result(PATIENCE)
    assert handle.info().status is Status.CANCELLED


def test_the_deadline_holds_over_a_restart(path: str) -> None:
    """The deadline counts from the start of the run; a restart does not move it."""
    with dying(path):
        handle = waits.options(id="one", timeout=0.2).start()
        until(lambda: len(handle.steps()) == 1)
        deadline = handle.info().deadline_at
    with Engine(path) as engine:
        with pytest.raises(durable.WorkflowCancelled, match="deadline"):
            engine.handle("one").result(PATIENCE)
        info = engine.handle("one").info()
    assert info.deadline_at == deadline
    assert info.finished_at is not None
    assert deadline is not None
    assert info.finished_at >= deadline


def test_resume_after_the_deadline_begins_it_anew() -> None:
    """A run stopped at its deadline can be resumed, and gets the same span again."""
    with testing.engine() as engine:
        handle = waits.options(timeout=60).start()
        with pytest.raises(durable.WorkflowCancelled):
            handle.result()
        handle.resume()
        engine._clock.advance(seconds=59)  # type: ignore[attr-defined]
        handle.send("x", "go")
        assert handle.result() == "after x"


# ---------------------------------------------------------------------- fork


@workflow
def story() -> list[Any]:
    durable.set_event("stage", 1)
    first = durable.recv("t")
    durable.set_event("stage", 2)
    second = durable.recv("t")
    return [first, note(f"between {second}"), second]


def finished_story(engine: Engine) -> Any:
    handle = story.options(id="story").start()
    handle.send("a", "t")
    handle.send("b", "t")
    assert handle.result(PATIENCE) == ["a", "between b", "b"]
    ran.clear()
    return handle


def test_fork_from_a_step(engine: Engine) -> None:
    """A fork has the steps before its step and runs the rest; the original stays as it is."""
    handle = finished_story(engine)
    copy = handle.fork(step=5, id="copy")
    assert copy.result(PATIENCE) == ["a", "between b", "b"]
    assert ran == ["between b"]
    assert handle.result() == ["a", "between b", "b"]


def test_fork_has_messages_and_events_as_of_its_step(engine: Engine) -> None:
    """N52: messages not received before the step are there again; events are as they were."""
    handle = finished_story(engine)
    assert handle.fork(step=4).result(PATIENCE) == ["a", "between b", "b"]
    beginning = handle.fork(id="from-the-start")
    assert beginning.result(PATIENCE) == ["a", "between b", "b"]
    assert beginning.events() == {"stage": 2}


def test_fork_of_a_workflow_without_steps(engine: Engine) -> None:
    """N52: nothing recorded: the fork begins at the beginning."""

    @workflow
    def empty() -> str:
        return "done"

    handle = empty.start()
    handle.result(PATIENCE)
    assert handle.fork().result(PATIENCE) == "done"
    assert handle.fork(step=7).result(PATIENCE) == "done"


def test_fork_needs_an_id_of_its_own(engine: Engine) -> None:
    """An id that exists is refused, and so is a step that is no number."""
    handle = finished_story(engine)
    with pytest.raises(durable.WorkflowConflict, match="story"):
        handle.fork(id="story")
    for wrong in (0, -1, "3", True):
        with pytest.raises(durable.InvalidArgument, match="fork"):
            handle.fork(step=wrong)  # type: ignore[arg-type]


def test_fork_of_an_unfinished_workflow(engine: Engine) -> None:
    """What is running can be forked too; both go on."""
    handle = started()
    copy = handle.fork(step=2)
    copy.send("copy", "go")
    handle.send("original", "go")
    assert copy.result(PATIENCE) == "after copy"
    assert handle.result(PATIENCE) == "after original"
    assert ran.count("before") == 1


# ---------------------------------------------------------------------- never an outcome


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupts_leave_a_run_unfinished(path: str, error: type[BaseException]) -> None:
    """KeyboardInterrupt, SystemExit and their like pass through, and the run goes on later."""

    @workflow
    def wf() -> str:
        note("first")
        if len(ran) == 1:
            raise error
        return note("second")

    with Engine(path) as engine:
        with pytest.raises(error):
            wf.options(id="one")()
        info = engine.handle("one").info()
        assert info.status is Status.PENDING
        assert error.__name__ in str(info.reason)
    ran.append("restarted")
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == "second"
    assert ran == ["first", "restarted", "second"]


def test_an_interrupt_in_a_step_is_not_recorded(path: str) -> None:
    """Ctrl-C in a step: the step runs again at the next start."""

    @workflow
    def wf() -> str:
        return durable.run_step(interrupted)

    def interrupted() -> str:
        ran.append("try")
        if len(ran) == 1:
            raise KeyboardInterrupt
        return "done"

    with pytest.raises(KeyboardInterrupt), Engine(path):
        wf.options(id="one")()
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == "done"


def test_who_waits_for_a_run_hears_that_it_stopped(path: str) -> None:
    """What left it unfinished is raised also where its event or its stream is waited for."""

    @workflow
    def leaves() -> None:
        durable.write_stream("shown", 1)
        raise SystemExit("mend this first")

    with Engine(path) as engine:
        handle = leaves.start()
        with pytest.raises(SystemExit, match="mend this first"):
            handle.event("never set")
        for live in (False, True):
            values = handle.stream("shown", live=live)
            next(values)
            with pytest.raises(SystemExit, match="mend this first"):
                next(values)
        assert engine.handle(handle.id).info().status is Status.PENDING


def test_a_result_after_close_is_not_written(path: str) -> None:
    """N47: a step that returns after `close` writes nothing and raises nothing."""
    gate = Gate()

    @workflow
    def wf() -> str:
        durable.run_step(gate.pass_through)
        return note("not reached")

    engine = Engine(path).open()
    handle = wf.options(id="one").start()
    gate.wait_reached()
    thread = next(each for each in threading.enumerate() if each.name == "durable one")
    engine.close(timeout=0)
    gate.open()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert ran == []
    with pytest.raises(durable.EngineClosed):
        handle.result()
    with Engine(path, recover="manual") as engine:
        assert engine.handle("one").steps() == []


def test_waiting_for_a_result_when_the_engine_closes(path: str) -> None:
    """Whoever waits for a result in this process gets EngineClosed, and is not left waiting."""
    engine = Engine(path).open()
    handle = waits.options(id="one").start()
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            handle.result()
        except durable.EngineClosed as error:
            seen.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: len(handle.steps()) == 1)
    engine.close(timeout=0)
    thread.join(PATIENCE)
    assert len(seen) == 1


def test_a_thread_does_not_wait_for_the_commit_of_an_end(engine: Engine) -> None:
    """While another thread commits, that of a run which has come to its end is free."""
    host, gate = engine._open_engine(), Gate()
    with ThreadPoolExecutor() as pool:
        begun = Gate()
        handle = workflow(begun.pass_through, name="ending:waits").start()
        pool.submit(host.database.write, "slow", lambda tx: gate.pass_through())
        gate.wait_reached()
        begun.open()
        until(lambda: host.threads._free)
        assert handle.info().status is Status.PENDING
        gate.open()
        assert handle.result(PATIENCE) is None


@pytest.mark.parametrize("by_main", [True, False])
def test_what_follows_an_end_is_done_by_who_commits(
    engine: Engine, caplog: pytest.LogCaptureFixture, by_main: bool
) -> None:
    """Not on the main thread: a Ctrl-C would come in between."""
    database = engine._open_engine().database

    def let_it_end(tx: Tx) -> None:
        gate.open()
        until(lambda: [each for each in database._queue if each.label.startswith("finish")])

    gate = Gate()
    handle = workflow(lambda: (gate.pass_through(), 1 / 0), name="ending:fails").start()
    gate.wait_reached()
    with ThreadPoolExecutor(thread_name_prefix="other") as pool:
        if by_main:
            database.write("slow", let_it_end)
        else:
            pool.submit(database.write, "slow", let_it_end).result()
    with pytest.raises(ZeroDivisionError):
        handle.result(PATIENCE)
    until(lambda: caplog.records)
    (record,) = caplog.records
    assert str(record.threadName).startswith("durable" if by_main else "other")
