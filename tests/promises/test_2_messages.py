"""Promise 2: an accepted message is received exactly once, in order, or stays to be seen."""

from __future__ import annotations

from typing import Any

import pytest

import durable
from durable import Engine, testing, workflow
from tests.promises.programs import conversation, echo


@workflow
def collect(count: int) -> list[Any]:
    return [durable.recv("t") for _ in range(count)]


@workflow
def deliver(to: str, name: str, count: int) -> None:
    for number in range(count):
        durable.send(to, [name, number], "t")


@pytest.mark.slow
def test_exactly_once_in_every_order() -> None:
    """Three senders and a receiver: nothing lost, nothing twice, each sender's in order."""

    def program(engine: Engine) -> None:
        receiver = collect.options(id="r").start(6)
        for name in "abc":
            deliver.start("r", name, 2)
        received = receiver.result()
        assert sorted(received) == [[name, n] for name in "abc" for n in range(2)]
        assert all([n for who, n in received if who == name] == [0, 1] for name in "abc")

    assert testing.orders(program, runs=40).places == 40


@pytest.mark.slow
def test_a_conversation_in_every_order() -> None:
    """Workflows that answer each other never wait for a message that has come."""
    testing.orders(conversation, runs=30)


def test_what_nobody_receives_stays() -> None:
    """After any crash, the messages that were not received are all still there."""

    def program(engine: Engine) -> None:
        handle = collect.options(id="r").start(1)
        for number in range(3):
            handle.send(number, "t")
        assert handle.result() == [0]

    testing.crashes(program)


@pytest.mark.slow
def test_sent_from_a_workflow_exactly_once() -> None:
    """A workflow that dies anywhere around `send` has sent once."""

    def program(engine: Engine) -> None:
        receiver = collect.options(id="r").start(2)
        deliver.options(id="d").start("r", "x", 2)
        assert receiver.result() == [["x", 0], ["x", 1]]

    testing.crashes(program)


@pytest.mark.slow
def test_a_message_in_the_gap_between_look_and_wait() -> None:
    """In no order is a message missed that comes while its receiver is about to wait."""

    def program(engine: Engine) -> None:
        handle = echo.options(id="e").start(1)
        sink = collect.options(id="s").start(0)
        handle.send(["s", "hello"])
        assert handle.result() == ["hello"]
        assert sink.result() == []

    testing.orders(program, runs=50)
