"""Durable sleep."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from durable import Engine, Status, now, sleep, sleep_until, workflow
from tests.support import PATIENCE, dying, until


@workflow
def nap(seconds: float) -> float:
    before = now()
    sleep(seconds)
    return (now() - before).total_seconds()


def test_it_sleeps(engine: Engine) -> None:
    """A sleep lasts as long as it says, and a little."""
    assert 0.05 <= nap(0.05) < PATIENCE


def test_sleep_takes_a_timedelta(engine: Engine) -> None:
    """A span may be a timedelta; zero is a span."""

    @workflow
    def wf() -> None:
        sleep(timedelta(milliseconds=1))
        sleep(0)

    assert wf() is None


def test_sleep_until_a_moment_that_has_passed(engine: Engine) -> None:
    """A moment in the past does not wait."""

    @workflow
    def wf() -> str:
        sleep_until(datetime(2020, 1, 1, tzinfo=UTC))
        return "awake"

    assert wf() == "awake"


@pytest.mark.slow
def test_the_moment_of_waking_holds_over_a_restart(path: str) -> None:
    """A sleep that was begun is not begun anew; what slept needs no thread until it wakes."""
    with dying(path) as engine:
        handle = nap.options(id="one").start(0.3)
        until(lambda: handle.info().wake_at is not None)
        wake_at = handle.info().wake_at
    with Engine(path) as engine:
        info = engine.handle("one").info()
        assert info.wake_at == wake_at
        assert engine.handle("one").result(PATIENCE) >= 0.3
        finished = engine.handle("one").info().finished_at
    assert finished is not None
    assert wake_at is not None
    assert finished >= wake_at


def test_many_sleepers_are_recovered_without_threads(path: str) -> None:
    """Workflows asleep far away are left parked when the engine opens; cancel still ends them."""
    with dying(path) as engine:
        handles = [nap.options(id=f"s{n}").start(3600) for n in range(20)]
        until(lambda: all(handle.info().wake_at is not None for handle in handles))
    engine = Engine(path).open()
    host = engine._open_engine()
    until(lambda: len(host.runs.describe()) >= 20)
    assert host.runs.all() == []
    assert engine.cancel("s3")
    assert engine.handle("s3").info().status is Status.CANCELLED
    until(lambda: len(host.runs.describe()) <= 19)
    engine.close(timeout=0)
