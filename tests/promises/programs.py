"""Small programs that the promises are judged by, under every crash and many orders."""

from __future__ import annotations

import sqlite3
from typing import Any

import durable
from durable import Engine, Retry, step, transaction, workflow


@step(retry=Retry(attempts=3, delay=10))
def reserve(order: str) -> str:
    if durable.current().attempt == 1:
        raise ConnectionError("not yet")
    return f"https://pay.example/{order}"


@step
def fulfil(order: str) -> str:
    return f"packed {order}"


@transaction
def book(cursor: sqlite3.Cursor, order: str) -> int:
    cursor.execute("CREATE TABLE IF NOT EXISTS booking (entry TEXT)")
    cursor.execute("INSERT INTO booking VALUES (?)", (order,))
    return int(cursor.execute("SELECT count(*) FROM booking").fetchone()[0])


@workflow
def checkout(order: str) -> str:
    durable.set_event("payment_url", reserve(order))
    try:
        status = durable.recv("payment_status", timeout=120)
    except durable.WaitTimeout:
        return "expired"
    book(order)
    return f"{status}: {fulfil(order)}"


@workflow
def echo(count: int) -> list[Any]:
    """Send back what comes, to the one that it comes from."""
    seen = []
    for _ in range(count):
        sender, value = durable.recv()
        seen.append(value)
        durable.send(sender, value, "echo")
    return seen


@workflow
def talk(to: str, count: int) -> list[Any]:
    heard = []
    for number in range(count):
        durable.send(to, [durable.current().workflow_id, number])
        heard.append(durable.recv("echo"))
    return heard


@workflow
def lap(seconds: float) -> float:
    durable.sleep(seconds)
    return seconds


@workflow
def race(lengths: list[float]) -> float:
    """The result of the first child to end; the others are cancelled."""
    waited = durable.wait([lap.start(length) for length in lengths], first=True)
    for handle in waited.pending:
        handle.cancel()
    return waited.done[0].result()


@workflow
def timed_out() -> list[Any]:
    """Two waits that time out, and a third that gets the message that came too late for them."""
    first = durable.recv("t", timeout=10, default="none")
    second = durable.recv("t", timeout=10, default="none")
    durable.set_event("both missed", True)
    return [first, second, durable.recv("t")]


def paid(engine: Engine) -> None:
    """A checkout that is paid in time."""
    handle = checkout.options(id="order").start("17")
    handle.event("payment_url")
    handle.send("paid", "payment_status")
    assert handle.result() == "paid: packed 17"


def unpaid(engine: Engine) -> None:
    """A checkout that nobody pays."""
    assert checkout.options(id="order").start("17").result() == "expired"


def dialogue(engine: Engine) -> None:
    """A workflow that talks to another."""
    echo.options(id="echo").start(2)
    assert talk.options(id="talk").start("echo", 2).result() == [0, 1]


def conversation(engine: Engine) -> None:
    """Two workflows that talk to a third; who comes first is a matter of luck."""
    echo.options(id="echo").start(4)
    handles = [talk.options(id=f"t{n}").start("echo", 2) for n in range(2)]
    assert [handle.result() for handle in handles] == [[0, 1], [0, 1]]


def children(engine: Engine) -> None:
    """A parent that waits for the first of its children and cancels the others."""
    assert race.options(id="race").start([30.0, 10.0, 20.0]).result() == 10.0


def late(engine: Engine) -> None:
    """A message that comes after two waits for it have timed out."""
    handle = timed_out.options(id="late").start()
    handle.event("both missed")
    handle.send("late", "t")
    assert handle.result() == ["none", "none", "late"]


PROGRAMS = [paid, unpaid, dialogue, children, late]
