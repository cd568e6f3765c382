"""Tasks of async workflows: their order does not depend on luck."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

import durable
from durable import Engine, Status, aio, step, testing, workflow
from durable.errors import NotAllowedHere
from tests.support import PATIENCE, AsyncGate, dying, until

ran: Counter[str] = Counter()
pace = [0]
"""Another number makes other steps take longer."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@step
async def lasts(name: str) -> str:
    """A step that takes as long as it likes; the same at each try, where a crash is repeated."""
    ran[name] += 1
    await asyncio.sleep(Random(f"{pace[0]} {name}").uniform(0, 100))
    return name


@step
def lasts_plainly(name: str) -> str:
    ran[name] += 1
    return name


async def sequence(name: str) -> list[str]:
    return [await lasts(f"{name}1"), await aio.run_step(lasts_plainly, f"{name}2")]


async def nested(name: str) -> list[Any]:
    return await asyncio.gather(sequence(f"{name}a"), lasts(f"{name}b"), sequence(f"{name}c"))


async def in_gather() -> list[Any]:
    return await asyncio.gather(lasts("1"), sequence("2"), lasts("3"))


async def in_group() -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(sequence(name)) for name in "abc"]
    return [task.result() for task in tasks]


async def in_tasks() -> list[Any]:
    tasks = [asyncio.create_task(nested(name)) for name in "xy"]
    return [await lasts("beside"), *[await task for task in tasks]]


async def in_map() -> list[Any]:
    return await aio.map(lasts, [str(n) for n in range(5)], workers=3)


async def in_aio_gather() -> list[Any]:
    child = await aio.start(child_of_many, "c")
    return await aio.gather(lasts("1"), sequence("2"), child, aio.run(child_of_many, "d"))


@workflow
async def child_of_many(name: str) -> list[str]:
    return await sequence(name)


SHAPES: list[Callable[[], Any]] = [in_gather, in_group, in_tasks, in_map, in_aio_gather]


@workflow
async def many(shape: int) -> Any:
    return [await SHAPES[shape](), await lasts("after")]


def shaped(shape: int, *, varies: bool = False) -> Callable[[Engine], None]:
    expected: list[Any] = []

    def program(engine: Engine) -> None:
        pace[0] += varies
        handle = many.options(id="many").start(shape)
        result = handle.result()
        numbers = sorted((each.number, each.name) for each in handle.steps())
        expected[:] = expected or [result, numbers]
        assert [result, numbers] == expected

    return program


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [pytest.param(n, marks=pytest.mark.slow if n else ()) for n in range(len(SHAPES))],
    ids=[each.__name__ for each in SHAPES],
)
def test_n11_killed_at_each_write(shape: int) -> None:
    """N11: steps of random lengths, killed at each write: same results, never a mismatch."""
    assert testing.crashes(shaped(shape)).places > 10


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=[each.__name__ for each in SHAPES])
def test_n11_in_many_orders(shape: int) -> None:
    """Whatever finishes first, each step has the same number and the result is the same."""
    testing.orders(shaped(shape, varies=True), runs=5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=[each.__name__ for each in SHAPES])
def test_n11_in_very_many_orders(shape: int) -> None:
    """The same, two hundred times."""
    testing.orders(shaped(shape, varies=True), runs=200)


@pytest.mark.slow
@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=[each.__name__ for each in SHAPES])
def test_n11_killed_twice(shape: int) -> None:
    """Also where the engine that recovers dies at any of its writes."""
    testing.crashes(shaped(shape), depth=2)


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=[each.__name__ for each in SHAPES])
def test_n11_replays(shape: int, path: str) -> None:
    """A finished run replays against its own records, and runs no step."""
    with testing.engine(path=path, seed=shape):
        assert many.options(id="many").start(shape).result()
    before = ran.copy()
    assert "many" in testing.replay(path).replayed
    assert ran == before


def test_numbers_of_tasks(engine: Engine) -> None:
    """A step that is made a task has a number; a task over several has a lane, each its own."""

    @workflow
    async def wf() -> None:
        first = asyncio.create_task(two_steps())
        await asyncio.gather(note("a"), two_steps(), note("b"))
        await first
        await note("c")

    async def two_steps() -> None:
        await note("x")
        await asyncio.create_task(inner())

    async def inner() -> None:
        await note("y")

    @step
    async def note(what: str) -> None: ...

    handle = wf.start()
    handle.result(PATIENCE)
    numbers = ["1.1", "1.2.1", "2", "3", "4.1", "4.2.1", "5"]
    assert sorted(each.number for each in handle.steps()) == numbers


def test_a_call_has_its_number_when_it_is_called(engine: Engine) -> None:
    """Not when it is awaited: coroutines that are awaited in another order keep their numbers."""

    @step
    async def note(what: str) -> str:
        return what

    @workflow
    async def wf() -> list[str]:
        first, second = note("first"), note("second")
        return [await second, await first]

    handle = wf.start()
    assert handle.result(PATIENCE) == ["second", "first"]
    assert [(each.number, each.value) for each in handle.steps()] == [
        ("1", "first"),
        ("2", "second"),
    ]


def test_the_step_that_finishes_first_has_no_other_number(path: str) -> None:
    """N11: killed between two of a gather, only the one without a record runs again."""
    gate = AsyncGate()

    @step
    async def slow() -> str:
        ran["slow"] += 1
        if ran["slow"] == 1:
            await gate.pause()
        return "slow"

    @step
    async def quick() -> str:
        ran["quick"] += 1
        return "quick"

    @workflow
    async def wf() -> list[str]:
        return await asyncio.gather(slow(), quick())

    with dying(path) as engine:
        wf.options(id="one").start()
        gate.wait_reached()
        until(lambda: engine.handle("one").steps())
        assert [each.number for each in engine.handle("one").steps()] == ["2"]
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == ["slow", "quick"]
    assert ran == {"slow": 2, "quick": 1}


def test_wait_for_and_shield(path: str) -> None:
    """`asyncio.wait_for` and `asyncio.shield` around a step are tasks like others."""

    @workflow
    async def wf() -> list[str]:
        seen = [await asyncio.wait_for(note("a"), 60), await asyncio.shield(note("b"))]
        await aio.recv()
        return [*seen, await note("c")]

    @step
    async def note(what: str) -> str:
        ran[what] += 1
        return what

    with dying(path) as engine:
        wf.options(id="one").start()
        until(lambda: len(engine.handle("one").steps()) == 2)
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == ["a", "b", "c"]
        assert [each.number for each in engine.handle("one").steps()] == ["1", "2", "3", "4"]
    assert ran == {"a": 1, "b": 1, "c": 1}


# ---------------------------------------------------------------------- who came first


@workflow
async def races(kind: str) -> list[str]:
    """Two steps, a sequence and a child: who came first, and in which order the rest."""
    child = await aio.start(child_of_many, "child")
    racers: list[Any] = [lasts("a"), lasts("b"), sequence("c"), child]
    seen = []
    if kind == "first":
        waited = await aio.wait(racers, first=True)
        seen.append(str(await waited.done[0]))
        seen.append(str(len(waited.pending)))
    elif kind == "all":
        seen += [str(await each) for each in (await aio.wait(racers)).done]
    else:
        async for each in aio.as_completed(racers):
            seen.append(str(await each))
    await aio.set_event("seen", seen)
    await aio.recv()
    return seen


@pytest.mark.parametrize("kind", ["first", "all", "as_completed"])
def test_who_came_first_is_recorded(kind: str, path: str) -> None:
    """With other lengths of all steps, the next engine sees the same order."""
    with testing.engine(path=path) as engine:
        seen = races.options(id="race").start(kind).event("seen")
    assert len(seen) == (2 if kind == "first" else 4)
    pace[0] += 1
    before = ran.copy()
    with testing.engine(path=path, seed=5) as engine:
        engine.send("race", None)
        assert engine.handle("race").result() == seen
    if kind != "first":
        assert ran == before


@pytest.mark.slow
def test_races_over_every_crash() -> None:
    """Killed at any write: `first`, as far as it was decided, stays the first."""

    @workflow
    async def wf() -> list[str]:
        waited = await aio.wait([pause(30), pause(10), pause(20)], first=True)
        seen = [await waited.done[0]]
        async for each in aio.as_completed(waited.pending):
            seen.append(await each)
        return seen

    async def pause(seconds: float) -> str:
        await aio.sleep(seconds)
        return f"after {seconds}"

    def program(engine: Engine) -> None:
        handle = wf.options(id="w").start()
        assert handle.result() == ["after 10", "after 20", "after 30"]

    testing.crashes(program)


def test_wait_takes_what_has_ended(engine: Engine) -> None:
    """Tasks that were done before, in the order in which they ended."""

    @workflow
    async def wf() -> list[int]:
        tasks = []
        for n in range(3):
            tasks.append(asyncio.create_task(asyncio.sleep(0, n)))
            await tasks[-1]
        tasks.reverse()
        waited = await aio.wait(tasks)
        return [each.result() for each in waited.done]  # type: ignore[attr-defined]

    assert wf.start().result(PATIENCE) == [0, 1, 2]


# ---------------------------------------------------------------------- threads


@pytest.mark.parametrize("how", ["to_thread", "executor", "own executor", "thread"])
def test_n50_durable_calls_from_threads(engine: Engine, how: str) -> None:
    """N50: from a thread that the body makes they are refused, before anything runs."""
    refused: list[str] = []
    done = threading.Event()

    def on_thread() -> None:
        for call in (lasts_plainly, durable.sleep, durable.recv):
            try:
                call("x")  # type: ignore[operator]
            except NotAllowedHere as error:
                refused.append(str(error))
        done.set()

    @workflow
    async def wf() -> None:
        loop = asyncio.get_running_loop()
        if how == "to_thread":
            await asyncio.to_thread(on_thread)
        elif how == "executor":
            await loop.run_in_executor(None, on_thread)
        elif how == "own executor":
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                await loop.run_in_executor(pool, on_thread)
        else:
            threading.Thread(target=on_thread, name="mine").start()
            while not done.is_set():
                await asyncio.sleep(0.001)

    handle = wf.start()
    handle.result(PATIENCE)
    assert len(refused) == 3
    assert all("thread" in each and "fixed order" in each for each in refused)
    assert not ran
    assert handle.steps() == []


def test_to_thread_in_an_async_step(engine: Engine) -> None:
    """In a step threads are free: what is called there belongs to the step."""

    @step
    async def threaded() -> list[Any]:
        return [
            await asyncio.to_thread(durable.step_key),
            await asyncio.to_thread(lasts_plainly, "in the step"),
        ]

    @workflow
    async def wf() -> list[Any]:
        return await threaded()

    handle = wf.options(id="w").start()
    assert handle.result(PATIENCE) == ["w/1", "in the step"]
    assert len(handle.steps()) == 1


# ---------------------------------------------------------------------- the loop of a program


def test_other_tasks_of_the_program_have_no_lanes(path: str) -> None:
    """What the program does on the same loop is none of the engine's business."""

    async def outside() -> None:
        assert await lasts_fn() == "x"
        with pytest.raises(durable.NotInWorkflow):
            await aio.recv()

    async def lasts_fn() -> str:
        return lasts_plainly.fn("x")

    async def main() -> None:
        async with Engine(path):
            await asyncio.gather(outside(), outside())
            await asyncio.create_task(outside())

    asyncio.run(main())


def test_the_task_factory_is_restored(path: str) -> None:
    """After the last of several engines on one loop, it is as it was, with its own factory."""
    made: list[str] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made.append("task")
        return asyncio.Task(coroutine, loop=loop, **options)

    @workflow
    async def wf() -> int:
        return await asyncio.create_task(asyncio.sleep(0, 5))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        attributes = set(vars(loop))
        for number in range(3):
            async with Engine(f"{path}{number}"), Engine(f"{path}{number}b") as inner:
                assert await inner.handle((await aio.start(wf)).id) == 5
                assert loop.get_task_factory() is not factory
        assert loop.get_task_factory() is factory
        assert set(vars(loop)) == attributes

    asyncio.run(main())
    assert made


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks(path: str) -> None:
    """With `asyncio.eager_task_factory` numbers and results are the same."""

    @step
    async def note(what: str) -> str:
        return what

    async def two(what: str) -> list[str]:
        return [await note(f"{what}1"), await note(f"{what}2")]

    @workflow
    async def wf() -> Any:
        tasks = [asyncio.create_task(two(name)) for name in "ab"]
        return [await asyncio.gather(*tasks, note("c")), await note("d")]

    async def main() -> list[str]:
        eager = asyncio.eager_task_factory  # type: ignore[attr-defined,unused-ignore]
        asyncio.get_running_loop().set_task_factory(eager)
        async with Engine(path):
            handle = await aio.start(wf)
            assert await handle == [[["a1", "a2"], ["b1", "b2"], "c"], "d"]
        return sorted(each.number for each in await asyncio.to_thread(steps_of, path, handle.id))

    def steps_of(path: str, workflow_id: str) -> list[Any]:
        with durable.Client(path) as client:
            return client.handle(workflow_id).steps()

    assert asyncio.run(main()) == ["1.1", "1.2", "2.1", "2.2", "3", "4"]


# ---------------------------------------------------------------------- many


def test_two_hundred_coroutines(path: str) -> None:
    """A body with two hundred tasks of three steps, killed halfway, has each result once."""
    gate = AsyncGate()

    @step
    async def item(n: int, k: int) -> int:
        ran[f"{n}.{k}"] += 1
        if (n, k) == (150, 1) and ran["150.1"] == 1:
            await gate.pause()
        return n

    async def three(n: int) -> int:
        return sum([await item(n, k) for k in range(3)])

    @workflow
    async def wf() -> int:
        return sum(await asyncio.gather(*[three(n) for n in range(200)]))

    with dying(path, synchronous="normal") as engine:
        wf.options(id="one").start()
        gate.wait_reached()
        until(lambda: len(engine.handle("one").steps()) > 300)
        recorded = {each.number for each in engine.handle("one").steps()}
    with Engine(path, synchronous="normal") as engine:
        assert engine.handle("one").result(PATIENCE) == 3 * sum(range(200))
        assert engine.handle("one").info().status is Status.SUCCESS
    twice = {
        f"{int(n) + 1}.{int(k) + 1}" for n, k in (e.split(".") for e, t in ran.items() if t > 1)
    }
    assert "151.2" in twice
    assert not twice & recorded
