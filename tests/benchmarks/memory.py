"""What workflows cost that only wait: memory, and the processor's time."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from time import perf_counter, process_time
from typing import Any

import durable
from durable import Engine, aio, workflow
from tests.benchmarks.figures import Figure, Setup, benchmark
from tests.benchmarks.measuring import memory_used

IDLE_SECONDS = 10


@workflow
def sleeper() -> None:
    """Sleeps longer than any benchmark."""
    durable.sleep(86_400)


@workflow
async def async_sleeper() -> None:
    """Sleeps longer than any benchmark."""
    await aio.sleep(86_400)


@workflow
def waiter() -> None:
    """Waits for a message that does not come."""
    durable.recv()


@benchmark
def plain_sleepers(setup: Setup) -> Iterator[Figure]:
    """10,000 plain workflows that sleep, each on a thread."""
    whole = 10_000
    count = setup.count(whole if setup.full else whole // 4)
    yield _sleepers(setup, sleeper, "plain", count, whole, at_most=250)


@benchmark
def async_sleepers(setup: Setup) -> Iterator[Figure]:
    """10,000 async workflows that sleep."""
    whole = 10_000
    yield _sleepers(setup, async_sleeper, "async", setup.count(whole), whole, at_most=100)


def _sleepers(
    setup: Setup, workflow: Any, kind: str, count: int, whole: int, at_most: float
) -> Figure:
    path = setup.path("durable.db")
    with _stopped_at_the_end(path) as engine:

        def used_by(number: int) -> float:
            for _ in range(number - started):
                engine.start(workflow)
            _wait_for(path, "SELECT count(*) FROM durable_checkpoint", number)
            return memory_used() - before

        started, before, begin = 0, memory_used(), perf_counter()
        used_by_half = used_by(count // 2)
        started = count // 2
        used = used_by(count)
        seconds = perf_counter() - begin
    each = (used - used_by_half) / (count - started)  # what the first ones cost is paid once
    return Figure(
        f"10,000 sleeping {kind} workflows: memory above the idle engine",
        used + each * (whole - count),
        "MB",
        at_most=at_most,
        note=f"started in {seconds:.1f} s"
        + ("" if count == whole else f"; measured with {count:,}, whole with --full"),
    )


@benchmark
def idle(setup: Setup) -> Iterator[Figure]:
    """The processor's time of an engine with 1,000 workflows that wait."""
    count, seconds = setup.count(1_000), IDLE_SECONDS * setup.scale
    path = setup.path("durable.db")
    with _stopped_at_the_end(path) as engine:
        for _ in range(count):
            engine.start(waiter)
        noted = "SELECT count(*) FROM durable_workflow WHERE waits_for IS NOT NULL"
        _wait_for(path, noted, count)
        time.sleep(1.5 * min(1.0, setup.scale))  # what the last wake-ups still do
        before, begin = process_time(), perf_counter()
        time.sleep(seconds)
        used, elapsed = process_time() - before, perf_counter() - begin
    yield Figure(
        "processor used by an engine with 1,000 waiting workflows, idle",
        100 * used / elapsed,
        "%",
        at_most=1,
        note=f"over {seconds:g} s",
    )


@contextmanager
def _stopped_at_the_end(path: str) -> Iterator[Engine]:
    """An engine that does not wait for what sleeps."""
    engine = Engine(path, synchronous="normal").open()
    try:
        yield engine
    finally:
        engine.close(timeout=0)


def _wait_for(path: str, query: str, count: int) -> None:
    """Look from outside until the file says so."""
    with closing(sqlite3.connect(path)) as connection:
        while connection.execute(query).fetchone()[0] < count:
            time.sleep(0.05)
