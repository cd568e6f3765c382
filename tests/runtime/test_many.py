"""Many workflows at once in one process."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import durable
from durable import Engine, aio, step, workflow
from tests.support import until


@step
async def little(n: int) -> int:
    return n


@workflow
async def ten_steps(n: int) -> int:
    for _ in range(10):
        n = await little(n)
    return n


@workflow
async def sleeps() -> str:
    await aio.sleep(86400)
    return "woke"


@workflow
def sleeps_plainly() -> str:
    durable.sleep(86400)
    return "woke"


async def longest_gap(gaps: list[float]) -> None:
    """How long the loop kept a task waiting that only wanted to go on."""
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_loop_stays_responsive(path: str, count: int) -> None:
    """While so many workflows of ten steps run, a heartbeat is never held up for long.

    Compared with the whole: if the loop waited for the disk, or did all of one kind of work at
    once, the longest gap would be a large part of it.
    """

    async def main() -> tuple[list[float], float]:
        gaps: list[float] = []
        async with Engine(path, synchronous="normal"):
            heart = asyncio.create_task(longest_gap(gaps))
            began = time.perf_counter()
            handles = await asyncio.gather(*[aio.start(ten_steps, n) for n in range(count)])
            results = await asyncio.gather(*handles)
            duration = time.perf_counter() - began
            heart.cancel()
            assert results == list(range(count))
        return gaps, duration

    tries = [asyncio.run(main()) for _ in range(3 if count == 1000 else 2)]
    best = min(max(gaps) / duration for gaps, duration in tries)
    assert best < 0.25, best
    assert min(len(gaps) for gaps, _ in tries) > 10


@pytest.mark.slow
@pytest.mark.parametrize("workflow", [sleeps, sleeps_plainly], ids=["async", "plain"])
def test_ten_thousand_sleepers(path: str, workflow: Any) -> None:
    """They live in one process, with few threads, and are taken up by the next one.

    Plain ones hold a thread until they are parked at the next start; async ones never do.
    """
    count = 10_000 if workflow is sleeps else 1_000
    before = threading.active_count()
    engine = Engine(path, synchronous="normal").open()
    for n in range(count):
        workflow.options(id=str(n)).start()
    until(lambda: all(each.wake_at for each in engine.workflows(limit=count)))
    if workflow is sleeps:
        assert threading.active_count() - before < 10
    engine.close(timeout=0)
    with Engine(path, synchronous="normal") as engine:
        until(lambda: not engine._open_engine().runs._tasks)
        assert len(engine._open_engine().runs.describe()) == count
        assert threading.active_count() - before < 10
        engine.close(timeout=0)
