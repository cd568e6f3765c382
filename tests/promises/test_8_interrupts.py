"""Promise 8: KeyboardInterrupt, SystemExit and process death are never a workflow's outcome."""

from __future__ import annotations

import pytest

import durable
from durable import Engine, Status, step, testing, workflow
from tests.promises.programs import PROGRAMS

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
