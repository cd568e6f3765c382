"""What it costs to start a workflow and to end it, also in a file that has a million of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from time import perf_counter

from durable import Engine, Status, workflow
from tests.benchmarks.figures import Figure, Setup, benchmark
from tests.benchmarks.filling import fill
from tests.benchmarks.measuring import MICROSECOND, MILLISECOND, compare, ratio_of, raw_rate_of
from tests.benchmarks.raw import Raw
from tests.benchmarks.steps import EMPTY_STEP, lone

LET_THE_CALLER_WAIT = 0.003


@workflow
def empty() -> None:
    """Nothing."""


@benchmark
def empty_workflows(setup: Setup) -> Iterator[Figure]:
    """Empty workflows, one after the other, run to their result: two commits each."""

    def one_by_one(count: int) -> float:
        begin = perf_counter()
        for _ in range(count):
            engine.run(empty)
        return perf_counter() - begin

    with (
        Raw(setup.path("raw.db"), "full") as raw,
        Engine(setup.path("durable.db")) as engine,
    ):
        rounds = compare(
            setup.rounds,
            raw=(setup.count(100), raw.seconds),
            measured=(setup.count(70), one_by_one),
        )
    yield Figure(
        "empty workflows one after another, full",
        ratio_of(rounds),
        "of raw",
        at_least=0.45,
        raw=raw_rate_of(rounds),
        note=f"{median(each.rate for each in rounds):,.0f} workflows/s",
    )


_moments: list[float] = []


@workflow
def marked() -> None:
    """Notes when its first line ran, and its last."""
    _moments.append(perf_counter())
    time.sleep(LET_THE_CALLER_WAIT)
    _moments.append(perf_counter())


@benchmark
def start_and_end(setup: Setup) -> Iterator[Figure]:
    """From start() to the first line in the background, from the last line to result().

    The workflow lasts a while, so that its caller waits. A commit after such a rest takes longer
    than one after another: the end of a workflow is compared with one after the same rest.
    """
    starts, ends, raws, rested = [], [], [], []
    with (
        Raw(setup.path("raw.db"), "full") as raw,
        Engine(setup.path("durable.db")) as engine,
    ):
        for _ in range(setup.rounds):
            for _ in range(setup.count(60)):
                time.sleep(LET_THE_CALLER_WAIT)
                rested.append(raw.seconds(1))
            for _ in range(setup.count(60)):
                raws.append(raw.seconds(1))
                _moments.clear()
                begin = perf_counter()
                engine.start(marked).result()
                end = perf_counter()
                first_line, last_line = _moments
                starts.append(first_line - begin)
                ends.append(end - last_line)
    for what, times, commits in (
        ("start of a background workflow to its first line", starts, raws),
        ("end of a background workflow to result() returning", ends, rested),
    ):
        commit = median(commits)
        yield Figure(
            what,
            (median(times) - commit) / MICROSECOND,
            "µs over 1 commit",
            at_most=150,
            raw=1 / commit,
            note=f"{median(times) / MICROSECOND:,.0f} µs in all",
        )


@benchmark
def million_finished(setup: Setup) -> Iterator[Figure]:
    """A step's cost, and the opening, of a file with 1,000,000 finished workflows."""
    workflows, count = setup.count(1_000_000), setup.count(300)
    large, small = setup.path("large.db"), setup.path("small.db")
    fill(large, "benchmark:finished", workflows, status=Status.SUCCESS, steps=1, step=EMPTY_STEP)
    fill(small, "benchmark:finished", 1, status=Status.SUCCESS, steps=1, step=EMPTY_STEP)
    with (
        Engine(large, synchronous="normal") as on_large,
        Engine(small, synchronous="normal") as on_small,
    ):
        rounds = compare(
            setup.rounds,
            raw=(count, lambda count: on_small.run(lone, count)),
            measured=(count, lambda count: on_large.run(lone, count)),
        )
    note = "" if workflows == 1_000_000 else f"{workflows:,} finished"
    yield Figure(
        "step with 1,000,000 finished workflows in the file / in an empty one",
        1 / ratio_of(rounds),
        "times",
        at_most=1.2,
        note=note,
    )
    openings = [(_opening(small), _opening(large)) for _ in range(5 * setup.rounds)]
    on_small_file, on_large_file = (median(column) for column in zip(*openings, strict=True))
    yield Figure(
        "opening a file with 1,000,000 finished workflows / an empty one",
        on_large_file / on_small_file,
        "times",
        at_most=3,
        note=note,
    )
    yield Figure(
        "opening a file with 1,000,000 finished workflows",
        on_large_file / MILLISECOND,
        "ms",
        at_most=100,
        note=note,
    )


def _opening(path: str) -> float:
    engine = Engine(path)
    begin = perf_counter()
    engine.open()
    opened = perf_counter() - begin
    engine.close()
    return opened
