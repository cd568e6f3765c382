"""Many workflows at once in one process."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator

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


SLEEPERS = 10_000


class Heart:
    """A task that only wants to go on: `busy` and `gaps` tell how long the loop kept it waiting.

    In seconds that the loop's thread worked, and in seconds that passed.
    """

    def __init__(self) -> None:
        self.busy: list[float] = []
        self.gaps: list[float] = []

    async def beat(self) -> None:
        while True:
            worked, moment = time.thread_time(), time.perf_counter()
            await asyncio.sleep(0.001)
            self.busy.append(time.thread_time() - worked)
            self.gaps.append(time.perf_counter() - moment)


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """The garbage collector does not look at what other tests have left in this process."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_loop_stays_responsive(path: str, count: int) -> None:
    """While so many workflows of ten steps run, no other task of the loop is held up for long.

    Compared with the whole: if the loop did all of one kind of work at once, or waited for the
    disk, the longest gap would be a large part of it. The program itself lets go of the loop now
    and then: a thousand calls of its own in one expression are one piece of work.
    """

    async def start(n: int) -> int:
        return await (await aio.start(ten_steps, n))

    async def main() -> Heart:
        heart = Heart()
        async with Engine(path, synchronous="normal"):
            beating = asyncio.create_task(heart.beat())
            tasks = []
            for n in range(count):
                tasks.append(asyncio.create_task(start(n)))
                if n % 20 == 0:
                    await asyncio.sleep(0)
            assert await asyncio.gather(*tasks) == list(range(count))
            beating.cancel()
        return heart

    hearts = [asyncio.run(main()) for _ in range(3)]
    assert min(max(heart.busy) / sum(heart.busy) for heart in hearts) < 0.2
    assert min(max(heart.gaps) / sum(heart.gaps) for heart in hearts) < 0.4


@pytest.mark.slow
def test_ten_thousand_async_sleepers(path: str) -> None:
    """They live in one process, on one thread, and so they do in the next one."""
    before = threading.active_count()
    engine = Engine(path, synchronous="normal").open()
    for n in range(SLEEPERS):
        sleeps.options(id=str(n)).start()
    until(lambda: all(each.wake_at for each in engine.workflows(limit=SLEEPERS)))
    assert threading.active_count() - before < 10
    engine.close(timeout=0)
    wait_for_all(path, before)


@pytest.mark.slow
def test_ten_thousand_plain_sleepers(path: str) -> None:
    """A process that takes them up gives no thread to a workflow that sleeps for long."""
    before = threading.active_count()
    for batch in range(10):
        with Engine(path, synchronous="normal", recover="manual") as engine:
            for n in range(SLEEPERS // 10):
                sleeps_plainly.options(id=f"{batch}/{n}").start()
            until(lambda: all(each.wake_at for each in engine.workflows(limit=SLEEPERS)))
            engine.close(timeout=0)
    wait_for_all(path, before)


def wait_for_all(path: str, threads_before: int) -> None:
    with Engine(path, synchronous="normal") as engine:
        runs = engine._open_engine().runs
        for part in range(1, 21):  # it takes as long as it takes, as long as it goes on
            least = part * SLEEPERS // 20
            until(lambda least=least: len(runs._active) + len(runs._parked) >= least)  # type: ignore[misc]
        until(lambda: threading.active_count() - threads_before < 10)
        engine.close(timeout=0)
