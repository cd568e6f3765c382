"""How soon unfinished workflows go on when the engine opens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from statistics import median
from time import perf_counter

from durable import Engine, Status, workflow
from tests.benchmarks.figures import Figure, Setup, benchmark
from tests.benchmarks.filling import fill
from tests.benchmarks.measuring import MILLISECOND
from tests.benchmarks.steps import EMPTY_STEP, empty

STEPS = 10
UNFINISHED = "benchmark:unfinished"

_went_on: list[float] = []
_all_went_on = threading.Event()
_expected = 0


@workflow(name=UNFINISHED)
def unfinished(number: int) -> None:
    """Ten steps that are recorded; then it notes that it goes on, and ends."""
    for _ in range(STEPS):
        empty()
    _went_on.append(perf_counter())
    if len(_went_on) == _expected:
        _all_went_on.set()


@benchmark
def recovery(setup: Setup) -> Iterator[Figure]:
    """10,000 unfinished workflows of 10 recorded steps: from opening until they go on."""
    global _expected
    _expected = setup.count(10_000)
    rates, firsts = [], []
    for number in range(setup.rounds if setup.full else min(setup.rounds, 2)):
        path = setup.path(f"{number}.db")
        fill(path, UNFINISHED, _expected, status=Status.PENDING, steps=STEPS, step=EMPTY_STEP)
        _went_on.clear()
        _all_went_on.clear()
        begin = perf_counter()
        with Engine(path):
            _all_went_on.wait()
        rates.append(_expected / (max(_went_on) - begin))
        firsts.append(min(_went_on) - begin)
    note = "" if _expected == 10_000 else f"of {_expected:,}"
    yield Figure(
        "10,000 unfinished workflows of 10 steps: recovered",
        median(rates),
        "per s",
        at_least=3_000,
        note=note,
    )
    yield Figure(
        "10,000 unfinished workflows of 10 steps: until the first goes on",
        median(firsts) / MILLISECOND,
        "ms",
        at_most=100,
        note=note,
    )
