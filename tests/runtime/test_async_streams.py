"""Streams of async workflows, and their async readers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import durable
from durable import Engine, Retry, aio, step, testing, workflow
from durable.errors import WaitTimeout
from durable.records import StreamValue
from tests.support import PATIENCE, AsyncGate


@workflow
async def produce(count: int, closes: bool = True) -> None:
    for number in range(count):
        await aio.write_stream("s", number)
    if closes:
        await aio.close_stream("s")
        await aio.recv("end")


async def read(workflow_id: str, start: int = 0) -> list[Any]:
    return [each async for each in aio.read_stream(workflow_id, "s", start=start)]


def test_many_readers_from_any_start(path: str) -> None:
    """Forty coroutines read one stream at once, each from its own start, until it is closed."""

    async def main() -> list[list[int]]:
        async with Engine(path):
            handle = await aio.start(produce.options(id="p"), 40)
            seen = await asyncio.gather(*[read("p", start) for start in range(41)])
            await aio.send(handle, None, "end")
            return seen

    assert asyncio.run(main()) == [list(range(start, 40)) for start in range(41)]


def test_n19_a_reader_ends_with_the_workflow(path: str) -> None:
    """N19: a workflow that ends without closing ends its streams; offsets resume without gaps."""

    async def main() -> None:
        async with Engine(path):
            await aio.start(produce.options(id="p"), 5, closes=False)
            assert await read("p") == [0, 1, 2, 3, 4]
            assert await read("p", 3) == [3, 4]
            assert await read("p", 9) == []

    asyncio.run(main())


def test_n18_a_step_that_is_tried_three_times_is_read_once() -> None:
    """N18: readers see what the try wrote that succeeded; a live one sees all, with its try."""

    @step(retry=Retry(attempts=3, delay=1))
    async def writes() -> None:
        attempt = durable.current().attempt
        await aio.write_stream("s", f"try {attempt}")
        if attempt != 3:
            raise ConnectionError("not yet")

    @workflow
    async def wf() -> None:
        await writes()

    with testing.engine() as engine:
        handle = wf.options(id="w").start()
        seen = list(engine.handle("w").stream("s", live=True))
        assert seen == [StreamValue(f"try {n}", "1", n) for n in (1, 2, 3)]
        assert list(handle.stream("s")) == ["try 3"]


def test_live_values_are_there_at_once(path: str) -> None:
    """A live reader sees what a running step writes; others see it when the step has ended."""
    gate = AsyncGate()

    @step
    async def writes() -> None:
        await aio.write_stream("s", "early")
        await gate.pause()

    @workflow
    async def wf() -> None:
        await writes()

    async def main() -> None:
        async with Engine(path):
            handle = await aio.start(wf)
            live = aio.read_stream(handle, "s", live=True)
            assert (await anext(live)).value == "early"
            with pytest.raises(WaitTimeout):
                await anext(aio.read_stream(handle, "s", timeout=0.02))
            gate.open()
            assert await read(handle.id) == ["early"]
            await live.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())


@pytest.mark.slow
def test_a_reader_in_a_workflow_over_every_crash() -> None:
    """Each value that a workflow reads is a step: wherever it dies, it reads each once."""

    @workflow
    async def reads() -> list[Any]:
        return await read("p")

    def program(engine: Engine) -> None:
        produce.options(id="p").start(2)
        assert reads.options(id="r").start().result() == [0, 1]
        engine.send("p", None, "end", idempotency_key="end")
        engine.handle("p").result()

    assert testing.crashes(program).places > 10


def test_a_reader_that_gives_up(path: str) -> None:
    """Cancelled while it waits, it can be followed by another from the same place."""

    async def main() -> None:
        async with Engine(path):
            handle = await aio.start(produce.options(id="p"), 3)
            seen: list[int] = []

            async def follow() -> None:
                async for each in aio.read_stream(handle, "s", start=len(seen)):
                    seen.append(each)

            task = asyncio.create_task(follow())
            while not seen:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            async with asyncio.timeout(PATIENCE):
                await follow()
            assert seen == [0, 1, 2]
            await aio.send(handle, None, "end")

    asyncio.run(main())
