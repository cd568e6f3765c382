"""What workflows cost that only wait: memory, and the processor's time."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from time import perf_counter, process_time

import durable
from durable import Engine, workflow
from tests.benchmarks.figures import Figure, Setup, benchmark
from tests.benchmarks.measuring import memory_used

IDLE_SECONDS = 10


@workflow
def sleeper() -> None:
    """Sleeps longer than any benchmark."""
    durable.sleep(86_400)


@workflow
def waiter() -> None:
    """Waits for a message that does not come."""
    durable.recv()


@benchmark
def plain_sleepers(setup: Setup) -> Iterator[Figure]:
    """10,000 plain workflows that sleep, each on a thread."""
    whole = 10_000
    count = setup.count(whole if setup.full else 2_500)
    path = setup.path("durable.db")
    engine = Engine(path, synchronous="normal").open()
    before = memory_used()
    begin = perf_counter()
    for _ in range(count):
        engine.start(sleeper)
    _wait_for(path, "SELECT count(*) FROM durable_step", count)
    seconds = perf_counter() - begin
    used = memory_used() - before
    yield Figure(
        "10,000 sleeping plain workflows: memory above the idle engine",
        used * whole / count,
        "MB",
        at_most=250,
        note=f"started in {seconds:.1f} s"
        + ("" if count == whole else f"; measured with {count:,}, whole with --full"),
    )
    engine.close(timeout=0)


@benchmark
def idle(setup: Setup) -> Iterator[Figure]:
    """The processor's time of an engine with 1,000 workflows that wait."""
    count, seconds = setup.count(1_000), IDLE_SECONDS * setup.scale
    path = setup.path("durable.db")
    engine = Engine(path, synchronous="normal").open()
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
    engine.close(timeout=0)


def _wait_for(path: str, query: str, count: int) -> None:
    """Look from outside until the file says so."""
    with closing(sqlite3.connect(path)) as connection:
        while connection.execute(query).fetchone()[0] < count:
            time.sleep(0.05)
