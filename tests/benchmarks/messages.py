"""How long a message takes: between two workflows, and from another process."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from time import perf_counter

import durable
from durable import Client, Engine, workflow
from tests.benchmarks.figures import Figure, Setup, benchmark
from tests.benchmarks.measuring import MICROSECOND, MILLISECOND, percentile
from tests.benchmarks.raw import Raw

_round_trips: list[float] = []
_raw_commits: list[float] = []
_raw: list[Raw] = []


@workflow
def ping(other: str, count: int) -> None:
    """Sends and waits for the answer; in between, raw commits."""
    for number in range(count):
        _raw_commits.append(_raw[0].seconds(1))
        begin = perf_counter()
        durable.send(other, number)
        durable.recv()
        _round_trips.append(perf_counter() - begin)


@workflow
def pong(other: str, count: int) -> None:
    """Answers."""
    for _ in range(count):
        durable.send(other, durable.recv())


@benchmark
def ping_pong(setup: Setup) -> Iterator[Figure]:
    """A message and its answer between two workflows: four commits."""
    count = setup.rounds * setup.count(60)
    with (
        Raw(setup.path("raw.db"), "full") as raw,
        Engine(setup.path("durable.db")) as engine,
    ):
        _raw.append(raw)
        pong.options(id="pong").start("ping", count)
        ping.options(id="ping").start("pong", count)
        engine.handle("ping").result()
    commit, trip = median(_raw_commits), median(_round_trips)
    yield Figure(
        "message ping-pong between two workflows, round trip",
        (trip - 4 * commit) / MICROSECOND,
        "µs over 4 commits",
        at_most=300,
        raw=1 / commit,
        note=f"{trip / MICROSECOND:,.0f} µs in all",
    )


@workflow
def receiver(count: int) -> list[float]:
    """How many seconds each message took, which says when it was sent."""
    return [_elapsed(durable.recv()) for _ in range(count)]


def _elapsed(sent_at: float) -> float:
    return time.time() - sent_at


@benchmark
def message_from_outside(setup: Setup) -> Iterator[Figure]:
    """Messages that another process sends to a workflow that waits."""
    count, path = setup.rounds * setup.count(40), setup.path("durable.db")
    with Engine(path) as engine:
        handle = receiver.options(id="receiver").start(count)
        subprocess.run([sys.executable, "-m", __name__, path, str(count)], check=True)
        times = engine.handle(handle.id).result()
    what = "message from another process to a waiting workflow"
    yield Figure(f"{what}, median", median(times) / MILLISECOND, "ms", at_most=20)
    yield Figure(f"{what}, 95 %", percentile(times, 95) / MILLISECOND, "ms", at_most=40)


def _send(path: str, count: int) -> None:
    """The other process: sends at moments that have nothing to do with those of the receiver."""
    pauses = random.Random(1)
    with Client(path) as client:
        for _ in range(count):
            time.sleep(pauses.uniform(0.02, 0.05))
            client.send("receiver", time.time())


if __name__ == "__main__":
    _send(sys.argv[1], int(sys.argv[2]))
