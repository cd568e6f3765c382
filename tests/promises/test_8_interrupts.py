"""Promise 8: KeyboardInterrupt, SystemExit and process death are never a workflow's outcome."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import durable
from durable import Engine, EngineClosed, Status, step, testing, workflow
from durable.runtime import execution
from durable.runtime.runs import Run
from durable.store.database import Database
from tests.promises.programs import PROGRAMS
from tests.support import Gate, until

interrupts: list[type[BaseException]] = []


@step
def interrupted() -> str:
    if interrupts:
        raise interrupts.pop()
    return "done"


@workflow
def job(in_step: bool) -> str:
    if in_step:
        return interrupted()
    return interrupted.fn()


def run_of_job(run_id: str, *, parent_id: str | None = None) -> Run:
    spec = job._spec
    return Run(run_id, spec.name, spec, input="[[true],{}]", seed="", parent_id=parent_id)


@pytest.mark.parametrize("in_step", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_outcome(path: str, error: type[BaseException], in_step: bool) -> None:
    """In a body or a step, called or in the background: unfinished, and it goes on next time."""
    for name in ("called", "started"):
        interrupts.append(error)
        engine = Engine(path, recover="manual").open()
        with pytest.raises(error):
            if name == "called":
                job.options(id=name)(in_step)
            else:
                job.options(id=name).start(in_step).result()
        assert engine.handle(name).info().status is Status.PENDING
        engine.close()
    with Engine(path) as engine:
        assert [engine.handle(each).result() for each in ("called", "started")] == ["done"] * 2


def test_recover_takes_up_what_an_interrupted_start_had_queued(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write was in a commit of others that was still under way when the program went on."""

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    database, gate = engine._open_engine().database, Gate()
    with ThreadPoolExecutor() as pool:
        pool.submit(database.write, "slow", lambda tx: gate.pass_through())
        gate.wait_reached()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Database, "_follow", interrupt)
            job.options(id="new").start(True)
        recovered = pool.submit(engine.recover)
        until(lambda: recovered.done() or database._queue[-1].label == "settle")
        gate.open()
        assert [each.result() for each in recovered.result()] == ["done"]


def test_what_is_left_of_an_interrupted_run_does_not_stop_the_next_one(engine: Engine) -> None:
    """The thread of a child begins late, when its parent has been taken up again."""

    @workflow
    def parent() -> str:
        return str(durable.recv())

    host = engine._open_engine()
    handle = parent.options(id="one").start()
    child = run_of_job("one.1", parent_id="one")
    host.runs.add(child)
    host.let_go(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        execution.run_here(host, child)
    engine.send("one", "m")
    assert handle.result() == "m"


def test_who_waits_for_a_run_that_nobody_drives_any_more_is_told(engine: Engine) -> None:
    """Where its event loop was closed, or stopped by a Ctrl-C: it is unfinished, and says so."""
    host, run = engine._open_engine(), run_of_job("one")
    host.runs.add(run)
    flow = execution._live(host, run)
    next(flow)
    flow.close()

    assert isinstance(run.failure, EngineClosed)
    assert "'one' is unfinished" in str(run.failure)
    assert host.runs.wait_idle(None)


def test_an_interrupt_stops_nothing_that_another_thread_takes_up(engine: Engine) -> None:
    """Not even where the thread that was interrupted had led the commit that took it up."""
    host, run = engine._open_engine(), run_of_job("one")
    with ThreadPoolExecutor() as pool:
        pool.submit(host.runs.add, run).result()
        host.let_go(KeyboardInterrupt())
        assert not run.stopping
        pool.submit(host.let_go, KeyboardInterrupt()).result()
    assert run.stopping


@pytest.mark.slow
def test_no_crash_is_an_outcome() -> None:
    """Over all crashes of all programs, no workflow ends in an error that is not its own."""
    report = testing.crashes(PROGRAMS[0])
    assert report.places


def test_closing_is_no_outcome(path: str) -> None:
    """A run that the engine stops when it closes is unfinished, and goes on next time."""

    @workflow
    def waits() -> str:
        try:
            return str(durable.recv())
        except Exception as error:
            return f"caught {error!r}"

    engine = Engine(path).open()
    waits.options(id="one").start()
    engine.close(timeout=0)
    with Engine(path) as engine:
        assert engine.handle("one").info().status is Status.PENDING
        engine.send("one", "m")
        assert engine.handle("one").result() == "m"
