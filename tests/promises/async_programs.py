"""The small programs of `tests.promises.programs`, as async workflows."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import durable
from durable import Engine, Retry, aio, step, transaction, workflow


@step(retry=Retry(attempts=3, delay=10))
async def reserve(order: str) -> str:
    await asyncio.sleep(1)
    if durable.current().attempt == 1:
        raise ConnectionError("not yet")
    return f"https://pay.example/{order}"


@step
async def fulfil(order: str) -> str:
    await asyncio.sleep(1)
    return f"packed {order}"


@transaction
def book(cursor: sqlite3.Cursor, order: str) -> int:
    cursor.execute("CREATE TABLE IF NOT EXISTS booking (entry TEXT)")
    cursor.execute("INSERT INTO booking VALUES (?)", (order,))
    return int(cursor.execute("SELECT count(*) FROM booking").fetchone()[0])


@workflow
async def checkout(order: str) -> str:
    await aio.set_event("payment_url", await reserve(order))
    try:
        status = await aio.recv("payment_status", timeout=120)
    except durable.WaitTimeout:
        return "expired"
    await aio.run_step(book, order)
    return f"{status}: {await fulfil(order)}"


@workflow
async def echo(count: int) -> list[Any]:
    """Send back what comes, to the one that it comes from."""
    seen = []
    for _ in range(count):
        sender, value = await aio.recv()
        seen.append(value)
        await aio.send(sender, value, "echo")
    return seen


@workflow
async def talk(to: str, count: int) -> list[Any]:
    heard = []
    for number in range(count):
        await aio.send(to, [durable.current().workflow_id, number])
        heard.append(await aio.recv("echo"))
    return heard


@workflow
async def lap(seconds: float) -> float:
    await aio.sleep(seconds)
    return seconds


@workflow
async def race(lengths: list[float]) -> float:
    """The result of the first child to end; the others are cancelled."""
    handles = [await aio.start(lap, length) for length in lengths]
    waited = await aio.wait(handles, first=True)
    for handle in waited.pending:
        await aio.cancel(handle)  # type: ignore[arg-type]
    return await waited.done[0]


@workflow
async def timed_out() -> list[Any]:
    """Two waits that time out, and a third that gets the message that came too late for them."""
    first = await aio.recv("t", timeout=10, default="none")
    second = await aio.recv("t", timeout=10, default="none")
    await aio.set_event("both missed", True)
    return [first, second, await aio.recv("t")]


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
