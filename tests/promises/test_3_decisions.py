"""Promise 3: a timeout, a sleep, the first of several: once decided, decided the same."""

from __future__ import annotations

from datetime import datetime

import pytest

import durable
from durable import Engine, testing, workflow
from durable.testing.clock import START
from tests.promises.programs import children, late


@workflow
def month() -> datetime:
    durable.sleep(30 * 86400)
    return durable.now()


@pytest.mark.slow
def test_a_timeout_stays_a_timeout() -> None:
    """In every order, and over every crash, who has timed out has timed out."""
    testing.orders(late, runs=25)
    testing.crashes(late)


@pytest.mark.slow
def test_the_first_stays_the_first() -> None:
    """In every order, the child that sleeps least wins, and the others are cancelled."""
    testing.orders(children, runs=25)


def test_a_sleep_ends_at_its_moment() -> None:
    """A sleep that a crash interrupts ends when it would have ended."""

    def program(engine: Engine) -> None:
        woken = month.options(id="m").start().result()
        assert (woken - START).days == 30

    testing.crashes(program)
