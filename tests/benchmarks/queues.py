"""How many workflows go through a queue, and how soon one begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter

from durable import Engine, Handle, Queue, workflow
from tests.benchmarks.figures import Figure, Setup, benchmark
from tests.benchmarks.measuring import MICROSECOND
from tests.benchmarks.raw import Raw

CONCURRENCY = 8
LET_IT_REST = 0.005

crowded = Queue("benchmark-crowded", concurrency=CONCURRENCY)
quiet = Queue("benchmark-quiet", concurrency=CONCURRENCY)


@workflow
def empty(number: int) -> None:
    """Nothing."""


def enqueue_together(count: int) -> list[Handle[None]]:
    """As a program does that has so many."""
    return crowded.enqueue_many(empty, range(count))


def enqueue_one_by_one(count: int) -> list[Handle[None]]:
    """As requests come in; each is on the disk before the next one is there."""
    return [crowded.enqueue(empty, number) for number in range(count)]


@benchmark
def queue_drain(setup: Setup) -> Iterator[Figure]:
    """Empty workflows, enqueued by `enqueue_many` and run by 8 at once, until the last ended."""
    yield from _drain(setup, "10,000 empty workflows enqueued and run by 8", enqueue_together, 0.8)


@benchmark
def queue_one_by_one(setup: Setup) -> Iterator[Figure]:
    """The same, enqueued one after the other by one thread: one commit each, before any ends."""
    yield from _drain(setup, "the same, enqueued one after the other", enqueue_one_by_one, None)


def _drain(
    setup: Setup,
    what: str,
    enqueue: Callable[[int], list[Handle[None]]],
    at_least: float | None,
) -> Iterator[Figure]:
    whole = 10_000
    count, commits = setup.count(whole if setup.full else whole // 10), setup.count(300)
    ratios, rates, raws = [], [], []
    with Raw(setup.path("raw.db"), "full") as raw, Engine(setup.path("durable.db")):
        for _ in range(setup.rounds):
            raw_seconds = raw.seconds(commits)
            begin = perf_counter()
            for handle in enqueue(count):
                handle.result()
            rate = count / (perf_counter() - begin)
            raw_rate = 2 * commits / (raw_seconds + raw.seconds(commits))
            rates.append(rate)
            raws.append(raw_rate)
            ratios.append(rate / raw_rate)
    yield Figure(
        f"{what}, workflows/s, full",
        median(ratios),
        "of raw",
        at_least=at_least,
        raw=median(raws),
        note=f"{median(rates):,.0f} workflows/s"
        + ("" if count == whole else f"; measured with {count:,}, whole with --full"),
    )


_begun: list[float] = []


@workflow
def marked() -> None:
    """Notes when its first line ran."""
    _begun.append(perf_counter())


@benchmark
def queue_start(setup: Setup) -> Iterator[Figure]:
    """From enqueue() on an idle queue to the first line of the workflow."""
    waits, raws = [], []
    with Raw(setup.path("raw.db"), "full") as raw, Engine(setup.path("durable.db")):
        for _ in range(setup.rounds * setup.count(40)):
            raws.append(raw.seconds(1))
            time.sleep(LET_IT_REST)
            begin = perf_counter()
            quiet.enqueue(marked).result()
            waits.append(_begun[-1] - begin)
    commit = median(raws)
    yield Figure(
        "enqueue on an idle queue to the first line",
        (median(waits) - commit) / MICROSECOND,
        "µs over 1 commit",
        raw=1 / commit,
        note=f"{median(waits) / MICROSECOND:,.0f} µs in all",
    )
