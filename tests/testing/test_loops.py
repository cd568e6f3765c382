"""The event loop on a virtual clock, and the other tools for async workflows."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections import Counter
from typing import Any

import pytest

import durable
from durable import Engine, NonDeterminism, Retry, aio, step, testing, workflow
from durable.testing import Deadlock, NotDeterministic, VirtualClock
from tests.support import PATIENCE

ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@step
async def note(what: str) -> str:
    ran[what] += 1
    return what


def moments(*awaited: Any) -> list[Any]:
    """What a coroutine returns, run as the body of a workflow under a virtual clock."""

    @workflow
    async def wf() -> Any:
        return await awaited[0]()

    with testing.engine() as engine:
        began = engine.clock.now()
        value = wf.start().result()
        return [value, engine.clock.now() - began]


# ---------------------------------------------------------------------- time


def test_sleeps_jump() -> None:
    """A day of `asyncio.sleep` and thirty of `aio.sleep` take no time."""

    async def body() -> float:
        await asyncio.sleep(86400)
        await aio.sleep(30 * 86400)
        return 1.0

    real = time.monotonic()
    value, passed = moments(body)
    assert (value, round(passed, 3)) == (1.0, 31 * 86400)
    assert time.monotonic() - real < PATIENCE


def test_timers_come_in_order() -> None:
    """Those of tasks, of `call_later` and of durable sleeps, each at its moment."""

    async def body() -> list[str]:
        loop, seen = asyncio.get_running_loop(), []
        began = loop.time()

        def see(what: str) -> None:
            seen.append(f"{what} {loop.time() - began:.0f}")

        async def sleeps(seconds: float) -> None:
            await aio.sleep(seconds)
            see("durable")

        loop.call_later(20, see, "call_later")
        await asyncio.gather(sleeps(30), sleeps(10), asyncio.sleep(40))
        return seen

    assert moments(body) == [["durable 10", "call_later 20", "durable 30"], 40.0]


def test_timeouts_of_asyncio_are_the_clocks() -> None:
    """`asyncio.timeout` ends a wait at its moment."""

    async def body() -> str:
        try:
            async with asyncio.timeout(3600):
                await aio.recv()
        except TimeoutError:
            return "gave up"
        return "got it"

    assert moments(body) == ["gave up", 3600.0]


def test_threads_of_asyncio_belong_to_the_clock() -> None:
    """`asyncio.to_thread` in an async step: the time stands still meanwhile."""

    async def body() -> str:
        return await aio.run_step(threaded)

    async def threaded() -> str:
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    assert moments(body) == ["executor", 0.0]


def test_a_socket_holds_the_time() -> None:
    """While a coroutine waits for what comes from outside, no time passes."""

    async def body() -> str:
        return await aio.run_step(talks)

    async def talks() -> str:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)
        thread = threading.Thread(target=lambda: (time.sleep(0.02), there.sendall(b"hello\n")))
        thread.start()
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        thread.join()
        there.close()
        return line.decode().strip()

    value, passed = moments(body)
    assert value == "hello"
    assert passed == 0.0


def test_a_deadlock_names_the_loop() -> None:
    """When nothing can happen any more, the test is told, and not left to hang."""

    @workflow
    async def wf() -> None:
        await asyncio.Event().wait()

    with testing.engine(), pytest.raises(Deadlock, match="nothing can happen"):
        wf.start().result()


def test_a_loop_is_the_same_for_the_same_seed() -> None:
    """Many coroutines and threads: the seed decides the order, and decides it again."""

    @workflow
    async def wf() -> list[str]:
        seen: list[str] = []

        async def sees(name: str) -> None:
            seen.append(await note(name))
            seen.append(await aio.run_step(str.upper, name))

        await asyncio.gather(*[sees(name) for name in "abcd"])
        return seen

    def result(seed: int) -> Any:
        with testing.engine(seed=seed):
            return wf.start().result()

    orders = [result(seed) for seed in range(12)]
    assert orders == [result(seed) for seed in range(12)]
    assert len({str(each) for each in orders}) > 1


def test_advance_drives_coroutines() -> None:
    """All that falls due in the span has happened, and nothing that comes later."""

    @workflow
    async def wf() -> None:
        for number in range(10):
            await asyncio.sleep(60)
            await aio.set_event("number", number)

    with testing.engine() as engine:
        handle = wf.start()
        engine.clock.advance(minutes=3.5)
        assert handle.event("number") == 2
        assert handle.info().status == "PENDING"


def test_async_with_needs_a_real_clock() -> None:
    """A virtual clock has a loop of its own; the error says what to do."""

    async def main() -> None:
        with pytest.raises(durable.InvalidArgument, match="event loop of its own"):
            async with Engine(":memory:", clock=VirtualClock()):
                pass

    asyncio.run(main())


# ---------------------------------------------------------------------- replace


def test_replacing_async_steps_and_workflows() -> None:
    """By values, errors, plain functions and coroutine functions; the calls are kept."""

    @step(retry=Retry(attempts=2, delay=1))
    async def fetch(n: int) -> str:
        raise AssertionError("called")

    @workflow
    async def child(n: int) -> str:
        raise AssertionError("called")

    @workflow
    async def wf(n: int) -> list[str]:
        return [await fetch(n), await child(n), *await aio.map(fetch, [1, 2])]

    async def answer(n: int) -> str:
        await asyncio.sleep(5)
        return f"answer {n}"

    with testing.engine():
        answers = [OSError(), "a", "b", "c"]
        with testing.replace(fetch, returns=answers) as fetched, testing.replace(child, returns=5):
            assert wf.start(7).result() == ["a", 5, "b", "c"]
        assert [call.args for call in fetched.calls] == [(7,), (7,), (1,), (2,)]
        with testing.replace(fetch, calls=answer), testing.replace(child, calls=answer):
            assert wf.start(1).result() == ["answer 1", "answer 1", "answer 1", "answer 2"]
        with testing.replace(fetch, raises=KeyError("no")), pytest.raises(KeyError):
            wf.start(1).result()


# ---------------------------------------------------------------------- strict

FORBIDDEN = {
    "time.time": lambda: time.time(),
    "random.random": lambda: random.random(),
    "open": lambda: open("/dev/null").close(),  # noqa: PTH123
}


async def in_task(call: Any) -> None:
    await asyncio.sleep(0)
    call()


@pytest.mark.parametrize("where", ["body", "task", "group"])
@pytest.mark.parametrize("name", FORBIDDEN)
def test_strict_watches_async_bodies(name: str, where: str) -> None:
    """What a replay would not repeat fails in a body, before and after an await, and in a task."""
    call = FORBIDDEN[name]

    @workflow
    async def wf() -> None:
        await note("before")
        if where == "task":
            await asyncio.create_task(in_task(call))
        if where == "group":
            await asyncio.gather(in_task(call), note("beside"))
        call()

    with testing.engine(), testing.strict(), pytest.raises(NotDeterministic, match=name):
        wf.start().result()


def test_strict_leaves_async_steps_alone() -> None:
    """Steps may do what they like, also while the body waits; the loop itself asks the clock."""

    @step
    async def free() -> float:
        await asyncio.sleep(0.01)
        return time.time() + random.random()

    @workflow
    async def wf() -> list[Any]:
        return [await asyncio.gather(free(), aio.run_step(time.time), free()), await aio.sleep(1)]

    with testing.engine() as engine, testing.strict():
        wf.start().result()
        assert not engine.errors


def test_strict_and_a_task_that_never_begins() -> None:
    """It is closed without a word."""

    @workflow
    async def wf() -> str:
        asyncio.create_task(in_task(time.time)).cancel()
        return await note("done")

    with testing.engine(), testing.strict():
        assert wf.start().result() == "done"


# ---------------------------------------------------------------------- replay


def test_replay_of_an_async_workflow(path: str) -> None:
    """Code that asks for another step ends in NonDeterminism, in a lane too; steps do not run."""
    asked = ["b"]

    @workflow
    async def wf() -> list[str]:
        return await asyncio.gather(sequence(), note("c"))

    async def sequence() -> str:
        await note("a")
        return await (note("b") if asked == ["b"] else aio.run_step(str.upper, "b"))

    with testing.engine(path=path):
        wf.options(id="w").start().result()
    before = ran.copy()
    assert testing.replay(path).replayed == ["w"]
    asked[:] = ["other"]
    with pytest.raises(NonDeterminism, match=r"step 2\.2 was recorded as .*note"):
        testing.replay(path)
    assert ran == before


def test_replay_of_code_that_does_less(path: str) -> None:
    """Code that ends before all that was recorded is found out."""
    count = [3]

    @workflow
    async def wf() -> None:
        await asyncio.gather(*[note(str(n)) for n in range(count[0])])

    with testing.engine(path=path):
        wf.options(id="w").start().result()
    count[0] = 2
    with pytest.raises(NonDeterminism, match="end of the workflow"):
        testing.replay(path)


def test_replay_of_an_unfinished_async_workflow(path: str) -> None:
    """It is followed to the end of its records, whatever it waits for there."""

    @workflow
    async def wf() -> None:
        await note("a")
        async with asyncio.TaskGroup() as group:
            group.create_task(aio.recv("never"))
            group.create_task(aio.sleep(3600))
            group.create_task(note("b"))

    with testing.engine(path=path) as engine:
        wf.options(id="w").start()
        engine.clock.settle()
    assert testing.replay(path).replayed == ["w"]
    assert ran == {"a": 1, "b": 1}
