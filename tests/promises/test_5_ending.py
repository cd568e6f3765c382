"""Promise 5: a workflow ends exactly once, and cancel says truly what it did."""

from __future__ import annotations

import pytest

import durable
from durable import Engine, Status, step, testing, workflow


@step
def work() -> str:
    return "done"


@workflow
def job() -> str:
    work()
    return work()


@workflow
def parent() -> str:
    return job.start().result()


@pytest.mark.slow
def test_cancel_and_completion_agree_in_every_order() -> None:
    """N20: whatever comes first, cancel's answer, the status and the result agree for good."""
    seen = set()

    def program(engine: Engine) -> None:
        handle = job.options(id="job").start()
        testing_clock = engine._clock
        assert isinstance(testing_clock, testing.VirtualClock)
        testing_clock.switch()
        cancelled = handle.cancel()
        status = handle.info().status
        assert bool(cancelled) == (status is Status.CANCELLED)
        assert cancelled.status is status
        try:
            assert handle.result() == "done"
            assert not cancelled
        except durable.WorkflowCancelled:
            assert cancelled
        assert handle.info().status is status
        seen.add(status)

    testing.orders(program, runs=100)
    assert seen == {Status.CANCELLED, Status.SUCCESS}


@pytest.mark.slow
def test_no_child_survives_in_any_order() -> None:
    """N24: a parent that is cancelled at any moment leaves no child running."""

    def program(engine: Engine) -> None:
        handle = parent.options(id="p").start()
        clock = engine._clock
        assert isinstance(clock, testing.VirtualClock)
        clock.switch()
        if handle.cancel():
            assert not engine.workflows(status=["PENDING"])

    testing.orders(program, runs=100)


def test_cancelled_over_every_crash() -> None:
    """A cancel that was answered holds over a crash, and one that was not can be given again."""

    @workflow
    def waits() -> None:
        durable.recv()

    def program(engine: Engine) -> None:
        handle = waits.options(id="w").start()
        handle.cancel()
        assert handle.info().status is Status.CANCELLED

    testing.crashes(program)
