"""What a step costs: alone, beside others, late in a long workflow, and in the file."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal

from durable import Engine, Status, aio, step, workflow
from tests.benchmarks.figures import Figure, Setup, benchmark
from tests.benchmarks.filling import fill
from tests.benchmarks.measuring import compare, memory_used, ratio_of, raw_rate_of
from tests.benchmarks.raw import Raw

EMPTY_STEP = "benchmark:empty"
LONG = "benchmark:long"


@step(name=EMPTY_STEP)
def empty() -> None:
    """What is measured is durable, not the work."""


@workflow
def lone(count: int) -> float:
    """That many empty steps; how many seconds they took."""
    begin = perf_counter()
    for _ in range(count):
        empty()
    return perf_counter() - begin


def _lone(
    setup: Setup, synchronous: Literal["full", "normal"], count: int, target: float
) -> Figure:
    count = setup.count(count)
    with (
        Raw(setup.path("raw.db"), synchronous) as raw,
        Engine(setup.path("durable.db"), synchronous=synchronous) as engine,
    ):
        rounds = compare(
            setup.rounds,
            raw=(count, raw.seconds),
            measured=(count, lambda count: engine.run(lone, count)),
        )
    return Figure(
        f"lone plain workflow, steps/s, {synchronous}",
        ratio_of(rounds),
        "of raw",
        at_least=target,
        raw=raw_rate_of(rounds),
        note=f"{median(each.rate for each in rounds):,.0f} steps/s",
    )


@benchmark
def lone_full(setup: Setup) -> Iterator[Figure]:
    """Steps of one workflow, one after the other, each flushed to the disk."""
    yield _lone(setup, "full", 150, target=0.9)


@benchmark
def new_file(setup: Setup) -> Iterator[Figure]:
    """The first steps of one workflow in a new file: what a script does."""
    count, numbers = setup.count(200), itertools.count()

    def raw_commits(count: int) -> float:
        with Raw(setup.path(f"raw{next(numbers)}.db"), "full") as raw:
            return raw.seconds(count)

    def steps(count: int) -> float:
        with Engine(setup.path(f"durable{next(numbers)}.db")) as engine:
            return engine.run(lone, count)

    rounds = compare(setup.rounds, raw=(count, raw_commits), measured=(count, steps))
    yield Figure(
        f"the first {count} steps in a new file, steps/s, full",
        ratio_of(rounds),
        "of raw",
        raw=raw_rate_of(rounds),
        note=f"{median(each.rate for each in rounds):,.0f} steps/s",
    )


@benchmark
def lone_normal(setup: Setup) -> Iterator[Figure]:
    """Steps of one workflow, one after the other, not flushed each time."""
    yield _lone(setup, "normal", 600, target=0.6)


@benchmark
def many_full(setup: Setup) -> Iterator[Figure]:
    """Steps of 64 workflows at once, from their start to the last result.

    They are started one after the other: each has so many steps that the last has begun long before
    the first ends.
    """
    workflows, steps = 64, setup.count(100)

    def together(count: int) -> float:
        begin = perf_counter()
        handles = [engine.start(lone, steps) for _ in range(workflows)]
        for handle in handles:
            handle.result()
        return perf_counter() - begin

    with (
        Raw(setup.path("raw.db"), "full") as raw,
        Engine(setup.path("durable.db")) as engine,
    ):
        rounds = compare(
            setup.rounds,
            raw=(setup.count(300), raw.seconds),
            measured=(workflows * steps, together),
            slices=2,
        )
    yield Figure(
        "64 plain workflows at once, steps/s, full",
        ratio_of(rounds),
        "of raw",
        at_least=3,
        raw=raw_rate_of(rounds),
        note=f"{median(each.rate for each in rounds):,.0f} steps/s",
    )


@step
async def empty_async() -> None:
    """What is measured is durable, not the work."""


@workflow
async def lone_async(count: int) -> None:
    """That many empty steps."""
    for _ in range(count):
        await empty_async()


@benchmark
def many_async_full(setup: Setup) -> Iterator[Figure]:
    """Steps of 1,000 async workflows at once, from their start to the last result."""
    workflows, steps = setup.count(1_000), 25

    async def together() -> float:
        begin = perf_counter()
        handles = await asyncio.gather(*(aio.start(lone_async, steps) for _ in range(workflows)))
        await asyncio.gather(*handles)
        return perf_counter() - begin

    with Raw(setup.path("raw.db"), "full") as raw, asyncio.Runner() as runner:
        engine = Engine(setup.path("durable.db"))
        runner.run(engine.__aenter__())
        rounds = compare(
            setup.rounds,
            raw=(setup.count(500), raw.seconds),
            measured=(workflows * steps, lambda _: runner.run(together())),
            slices=1,
        )
        runner.run(engine.aclose())
    yield Figure(
        "1,000 async workflows at once, steps/s, full",
        ratio_of(rounds),
        "of raw",
        at_least=6,
        raw=raw_rate_of(rounds),
        note=f"{median(each.rate for each in rounds):,.0f} steps/s",
    )


# ---------------------------------------------------------------------- long workflows


class Turns:
    """Two workflows that take turns with the program that measures them."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._asked = threading.Semaphore(0)
        self._answered = threading.Semaphore(0)

    def take(self, count: int) -> float:
        """Have it run that many steps now; how many seconds they took."""
        self.count = count
        self._asked.release()
        self._answered.acquire()
        return self.seconds

    def serve(self) -> None:
        """Run steps when asked for, on the workflow's thread, until none are wanted."""
        while True:
            self._asked.acquire()
            begin = perf_counter()
            for _ in range(self.count):
                empty()
            self.seconds = perf_counter() - begin
            self._answered.release()
            if not self.count:
                return


_turns: list[Turns] = []


@workflow(name=LONG)
def long(which: int) -> None:
    """As many steps as it has recorded, then as many as it is asked for."""
    for _ in range(_recorded[which]):
        empty()
    _turns[which].serve()


_recorded: dict[int, int] = {}


@benchmark
def long_workflow(setup: Setup) -> Iterator[Figure]:
    """Step 100,000 of a workflow beside step 100 of another, in turns.

    A third one comes behind both in the file: at the very end of a table, SQLite has less to do.
    """
    late, early, count = setup.count(99_900), 100, setup.count(300)
    path = setup.path("durable.db")
    fill(path, LONG, 1, status=Status.PENDING, steps=late, step=EMPTY_STEP)
    _recorded.update({1: late, 2: 0})
    _turns.extend([Turns(), Turns(), Turns()])
    with Engine(path, synchronous="normal") as engine:
        engine.start(long, 2)
        engine.run(lone, 1)
        _turns[1].take(0 if late == 0 else 1)
        _turns[2].take(early)
        ratios, slices = [], 15
        for _ in range(setup.rounds):
            times = [(_turns[1].take(count), _turns[2].take(count)) for _ in range(slices)]
            slow, quick = (sum(column) for column in zip(*times, strict=True))
            ratios.append(slow / quick)
        for turns in _turns[1:]:
            turns.take(0)
    yield Figure(
        "cost of step 100,000 of a workflow / of step 100",
        median(ratios),
        "times",
        at_most=1.2,
        note="" if late == 99_900 else f"step {late:,}",
    )


@benchmark
def memory_of_steps(setup: Setup) -> Iterator[Figure]:
    """What a running workflow keeps of its finished steps, and of those of others."""
    count = setup.count(10_000)
    with Engine(setup.path("durable.db"), synchronous="normal") as engine:
        engine.run(lone, count)
        before = memory_used()
        engine.run(lone, count)
        for _ in range(10):
            engine.run(lone, count // 10)
        grown = memory_used() - before
    yield Figure(
        f"memory grown by {2 * count:,} finished steps",
        grown,
        "MB",
        at_most=3,
        note="up to 2 MB are the cache of SQLite",
    )


@benchmark
def bytes_per_step(setup: Setup) -> Iterator[Figure]:
    """How much an empty step adds to the file."""
    count, path = setup.count(5_000, least=100), setup.path("durable.db")

    def size() -> int:
        with Engine(path, synchronous="normal") as engine:
            engine.run(lone, count)
        return Path(path).stat().st_size

    first, second = size(), size()
    yield Figure("bytes in the file for an empty step", (second - first) / count, "B", at_most=200)
