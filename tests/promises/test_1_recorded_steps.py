"""Promise 1: a recorded step never runs again, and its result never changes."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Any

import pytest

from durable import Engine, step, testing, workflow
from tests.promises.programs import PROGRAMS, paid

ran: Counter[str] = Counter()


@step
def count(name: str) -> str:
    ran[name] += 1
    return name


@workflow
def three() -> list[str]:
    return [count("a"), count("b"), count("c")]


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda each: each.__name__)
def test_every_crash_comes_out_the_same(program: Any) -> None:
    """A crash before or after any write changes no outcome, step, event or message."""
    report = testing.crashes(program)
    assert report.places > 10


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda each: each.__name__)
def test_every_crash_of_a_recovery_too(program: Any) -> None:
    """Nor does a second crash, at any write of the engine that recovers."""
    assert testing.crashes(program, depth=2).places > 100


def test_a_body_with_a_record_never_runs_again() -> None:
    """Wherever the process dies, only bodies whose record is missing run after it."""
    skipped: Counter[str] = Counter()

    def program(engine: Engine) -> None:
        steps = engine.handle("three").steps() if engine.workflows() else []
        recorded = ["abc"[int(each.number) - 1] for each in steps]
        before = ran.copy()
        three.options(id="three").start().result()
        for name in recorded:
            assert ran[name] == before[name]
            skipped[name] += 1

    testing.crashes(program)
    assert min(skipped[name] for name in "abc") > 1


@pytest.mark.slow
def test_a_transaction_is_exactly_once() -> None:
    """After any crash, what a transaction wrote is there once."""

    def program(engine: Engine) -> None:
        paid(engine)
        with sqlite3.connect(engine._path) as connection:
            assert connection.execute("SELECT count(*) FROM booking").fetchone() == (1,)
        connection.close()

    testing.crashes(program)


def test_a_step_that_records_is_not_called_on_a_replay() -> None:
    """A replay of the finished run calls no body, and gives the same result."""

    with testing.engine():
        ran.clear()
        handle = three.options(id="three").start()
        first = handle.result()
        with testing.replace(count, raises=AssertionError("called")):
            again = handle.fork(step=4)
            assert again.result() == first
    assert set(ran.values()) == {1}
