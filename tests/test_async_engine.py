"""`async with Engine`: on the loop of the program, opened and left, waited for and stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import pytest

import durable
from durable import Engine, Status, aio, step, workflow
from durable.clock import SystemClock
from durable.errors import AlreadyRunning, EngineClosed, InvalidArgument, NotAllowedHere
from durable.runtime.loops import OnLoop
from durable.testing import VirtualClock
from tests.processes.programs import PRELUDE, ROOT, Program
from tests.support import PATIENCE, AsyncGate, durable_threads, dying, until

ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@step
async def note(what: str) -> str:
    ran[what] += 1
    return what


@workflow
async def waits(topic: str | None = None) -> Any:
    try:
        return [await note("before"), await aio.recv(topic), await note("after")]
    finally:
        ran["finally"] += 1


async def reached(condition: Any) -> None:
    """`until`, for coroutines."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


# ---------------------------------------------------------------------- opening


def test_unfinished_workflows_go_on_on_the_programs_loop(path: str) -> None:
    """What recovery takes up runs on that loop, however fast it is: there is no second one."""
    with dying(path):
        for number in range(20):
            waits.options(id=str(number)).start()

    async def main() -> None:
        async with Engine(path) as engine:
            for number in range(20):
                await aio.send(str(number), "go")
            results = await asyncio.gather(*[engine.handle(str(n)) for n in range(20)])
            assert results == [["before", "go", "after"]] * 20
            assert "durable loop" not in [each.name for each in threading.enumerate()]

    asyncio.run(main())


def test_plain_and_async_programs_take_turns(path: str) -> None:
    """A run that began under a plain engine goes on under an async one, and the other way."""
    with dying(path) as engine:
        waits.options(id="one").start()
        until(lambda: engine.handle("one").steps())

    async def main() -> None:
        engine = await Engine(path).__aenter__()
        await reached(lambda: engine._open_engine().runs.has("one"))
        await engine.aclose(timeout=0)

    asyncio.run(main())
    with Engine(path) as engine:
        engine.send("one", "go")
        assert engine.handle("one").result(PATIENCE) == ["before", "go", "after"]
    assert ran["before"] == 1


def test_the_errors_of_opening(path: str) -> None:
    """A second engine on the file, the same one twice, a virtual clock."""

    async def main() -> None:
        async with Engine(path) as engine:
            with pytest.raises(AlreadyRunning):
                await Engine(path).__aenter__()
            with pytest.raises(InvalidArgument, match="open already"):
                await engine.__aenter__()
        with pytest.raises(InvalidArgument, match="virtual clock"):
            await Engine(path, clock=VirtualClock()).__aenter__()
        assert asyncio.get_running_loop().get_task_factory() is None

    asyncio.run(main())


def test_a_plain_engine_inside_an_async_program(path: str) -> None:
    """It has a loop of its own, as anywhere; the program's is as it was."""

    async def main() -> None:
        with Engine(path) as engine:
            assert engine
            handle = waits.options(id="one").start()
            await aio.send("one", "go")
            assert await handle == ["before", "go", "after"]
            assert asyncio.get_running_loop().get_task_factory() is None

    asyncio.run(main())


# ---------------------------------------------------------------------- leaving


def test_leaving_waits_for_what_runs(path: str) -> None:
    """The block ends when the workflows have; the loop goes on meanwhile."""
    gate = AsyncGate()

    @workflow
    async def slow() -> str:
        await aio.run_step(gate.pause)
        return "done"

    async def opens() -> None:
        await asyncio.sleep(0.05)
        gate.open()

    async def main() -> Any:
        opener = asyncio.create_task(opens())
        async with Engine(path):
            handle = await aio.start(slow)
        assert gate._open.is_set()
        await opener
        return handle.id

    workflow_id = asyncio.run(main())
    with Engine(path, recover="manual") as engine:
        assert engine.handle(workflow_id).info().result == "done"


def test_leaving_after_an_error_stops_at_once(path: str) -> None:
    """What runs is unfinished, its `finally` blocks have run, and the error comes out."""

    async def main() -> None:
        async with Engine(path) as engine:
            handle = await aio.start(waits.options(id="one"))
            await reached(handle.steps)
            assert engine
            raise KeyError("of the program")

    with pytest.raises(KeyError, match="of the program"):
        asyncio.run(main())
    assert ran["finally"] == 1
    with Engine(path) as engine:
        engine.send("one", "go")
        assert engine.handle("one").result(PATIENCE) == ["before", "go", "after"]


def test_a_cancelled_wait_for_the_end_stops_at_once(path: str) -> None:
    """While a workflow sleeps for an hour, cancelling who leaves the block ends it."""

    @workflow
    async def sleeps() -> None:
        try:
            await aio.sleep(3600)
        finally:
            ran["finally"] += 1

    async def program(engine: Engine) -> None:
        async with engine:
            await aio.start(sleeps.options(id="one"))

    async def main() -> None:
        engine = Engine(path)
        task = asyncio.create_task(program(engine))
        await reached(lambda: engine._host and any(each.wake_at for each in engine.workflows()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine._host is None

    asyncio.run(main())
    assert ran["finally"] == 1
    with Engine(path, recover="manual") as engine:
        assert engine.handle("one").info().status is Status.PENDING


@pytest.mark.parametrize("lost", ["the call", "the signal"])
def test_what_a_ctrl_c_loses_on_the_loop_holds_up_no_end(
    path: str, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Interrupted between a callback and its first line, the loop forgets what a write has told."""
    act, dropped = OnLoop._act, threading.Event()

    def drop(on_loop: OnLoop) -> None:
        dropped.set()
        if lost == "the signal":
            on_loop._called = False
            on_loop._actions.popleft()

    async def main() -> None:
        async with Engine(path):
            monkeypatch.setattr(OnLoop, "_act", drop)
            task = asyncio.create_task(aio.run(waits))
            await reached(dropped.is_set)
            monkeypatch.setattr(OnLoop, "_act", act)
            task.cancel()
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(asyncio.CancelledError):
                    await task
            raise LookupError  # so that nothing is waited for

    with pytest.raises(LookupError):
        asyncio.run(main())


def test_ctrl_c_in_a_workflow_on_the_programs_loop_ends_the_program(path: str) -> None:
    """It comes out of `asyncio.run`, as from any task, and is no outcome."""

    @workflow
    async def interrupted() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        async with Engine(path):
            await aio.start(interrupted.options(id="one"))
            await asyncio.sleep(PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    with Engine(path, recover="manual") as engine:
        assert engine.handle("one").info().status is Status.PENDING


def test_ctrl_c_while_a_workflow_sleeps(path: str) -> None:
    """In `asyncio.run`, Ctrl-C ends the program; the run is unfinished, and goes on next time."""
    script = """\
import asyncio
from durable import aio

@workflow(name="sleeps")
async def sleeps():
    print("sleeping")
    try:
        await aio.sleep(float(sys.argv[2]))
    finally:
        print("cleaned up")
    return "woke"

async def main():
    async with Engine(sys.argv[1]) as engine:
        await aio.start(sleeps.options(id="one"))

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""
    with Program(script, path, "3600") as program:
        assert program.line() == "sleeping"
        program.interrupt()
        assert program.succeed() == ["cleaned up", "interrupted"]
        assert program.errors() == ""
    with durable.Client(path) as client:
        assert client.handle("one").info().status is Status.PENDING


@pytest.mark.slow
def test_aclose_with_a_timeout(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """N46: it returns within the time, also where a coroutine ignores cancellation."""
    gate = AsyncGate()

    @workflow
    async def stubborn() -> None:
        while not gate._open.is_set():
            try:
                await gate.pause()
            except asyncio.CancelledError:
                ran["ignored"] += 1

    async def main() -> None:
        async with Engine(path) as engine:
            await aio.start(stubborn)
            await reached(gate._reached.is_set)
            began = SystemClock().now()
            await engine.aclose(timeout=0.3)
            assert SystemClock().now() - began < 5
            await engine.aclose()  # may be called twice
        gate.open()

    asyncio.run(main())
    assert ran["ignored"] >= 1


def test_aclose_from_inside_a_workflow(path: str) -> None:
    """A workflow cannot close the engine that runs it, in its body or in a step."""

    @workflow
    async def closes(engine_of: str) -> None:
        with pytest.raises(NotAllowedHere, match="cannot close the engine"):
            await engines[0].aclose()
        with pytest.raises(NotAllowedHere, match="cannot close the engine"):
            await aio.run_step(engines[0].aclose)

    engines: list[Engine] = []

    async def main() -> None:
        async with Engine(path) as engine:
            engines.append(engine)
            await closes("this")

    asyncio.run(main())


def test_awaiting_after_the_close(path: str) -> None:
    """EngineClosed, from a handle and from a start; those who wait meanwhile get it too."""

    async def main() -> None:
        engine = await Engine(path).__aenter__()
        handle = await aio.start(waits.options(id="one"))

        async def wait() -> Any:
            return await handle

        waiting = asyncio.create_task(wait())
        await reached(handle.steps)
        await engine.aclose(timeout=0)
        with pytest.raises(EngineClosed):
            await waiting
        with pytest.raises(EngineClosed):
            await handle
        with pytest.raises(durable.NoEngine):
            await waits()

    asyncio.run(main())


def test_it_says_what_it_waits_for(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, a line in the log names the workflows that are still running."""
    monkeypatch.setattr("durable.engine.SAY_WHAT_IT_WAITS_FOR_AFTER", 0.01)

    async def sends(handle: Any) -> None:
        await reached(lambda: "waiting for" in caplog.text)
        await aio.send(handle, "go")

    async def main() -> None:
        async with Engine(path):
            task = asyncio.create_task(sends(await aio.start(waits.options(id="one"))))
        await task

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert "waiting for 1 unfinished workflow(s): one" in caplog.text


# ---------------------------------------------------------------------- several


def test_several_engines_on_one_loop(path: str) -> None:
    """Each has its own workflows; a workflow of one may wait for one of the other."""

    @workflow
    async def asks(other: Any) -> Any:
        return await engines[1].handle(other)

    engines: list[Engine] = []

    async def main() -> None:
        async with Engine(path) as first, Engine(f"{path}2") as second:
            engines[:] = [first, second]
            there = await aio.start(waits.options(id="there"))  # on the one opened last
            assert [each.id for each in second.workflows()] == ["there"]
            assert first.workflows() == []
            await aio.send(there, "go")
            async with Engine(f"{path}3"):
                assert await there == ["before", "go", "after"]

    asyncio.run(main())


@pytest.mark.slow
def test_opened_and_closed_many_times_on_one_loop(path: str) -> None:
    """N48: no task, thread, listener or loop is left behind."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in range(20):
            async with Engine(path, synchronous="normal") as engine:
                handle = await aio.start(waits.options(id=str(number)))
                await aio.send(handle, number)
                assert (await handle)[1] == number
                waiting = engine._open_engine().waiting
            assert not waiting._waiters
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert loop.get_task_factory() is None
        for thread in durable_threads():
            thread.join(PATIENCE)
        assert not durable_threads()

    asyncio.run(main())
    gc.collect()


def test_many_programs_in_one_process(path: str) -> None:
    """One `asyncio.run` after the other, each with an engine on the same file."""

    async def main(number: int) -> Any:
        async with Engine(path, synchronous="normal"):
            handle = await aio.start(waits.options(id=str(number)))
            await aio.send(handle, number)
            return (await handle)[1]

    assert [asyncio.run(main(number)) for number in range(10)] == list(range(10))


def test_a_loop_that_ends_without_closing_the_engine(path: str) -> None:
    """A program that forgets to close: what ran is unfinished, and `close` still works."""
    engines: list[Engine] = []

    async def main() -> None:
        engine = await Engine(path).__aenter__()
        engines.append(engine)
        handle = await aio.start(waits.options(id="one"))
        await reached(handle.steps)

    asyncio.run(main())
    engines[0].close(timeout=0)
    with Engine(path) as engine:
        engine.send("one", "go")
        assert engine.handle("one").result(PATIENCE) == ["before", "go", "after"]


# ---------------------------------------------------------------------- nothing to complain about


@pytest.mark.slow
def test_under_python_dev_mode(tmp_path: Any) -> None:
    """With -X dev -W error, asyncio debug and all: no warning of any kind on standard error."""
    script = """\
import asyncio, gc, logging
from durable import aio

# On a busy machine asyncio says, in its debug mode, that something took long.
slow_message = lambda record: not record.getMessage().startswith("Executing")
logging.getLogger("asyncio").addFilter(slow_message)

@step
async def echo(n):
    await asyncio.sleep(0)
    return n

@step
async def fails():
    raise ValueError("no")

@step(timeout=0.01)
async def slow():
    await asyncio.sleep(60)

async def two(n):
    return [await echo(n), await aio.run_step(abs, -n)]

async def leftover():
    await aio.recv("never")

@workflow
async def wf(n):
    seen = [await asyncio.gather(two(n), echo(n)), await aio.map(echo, [n])]
    for call in (slow, fails):
        try:
            await call()
        except Exception as error:
            seen.append(type(error).__name__)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            group.create_task(aio.recv("never"))
    except* ValueError:
        seen.append("group")
    asyncio.create_task(leftover())
    return seen

@workflow
async def forever():
    await asyncio.gather(aio.recv("never"), leftover(), aio.sleep(3600))

async def main(path):
    async with Engine(path) as engine:
        results = await asyncio.gather(*[wf(n) for n in range(3)])
        handle = await aio.start(forever)
        await aio.cancel(handle)
        await aio.start(forever)
        await engine.aclose(timeout=0)
    print(results[2])

asyncio.run(main(sys.argv[1]), debug=True)
with Engine(sys.argv[1] + "2") as engine:
    print(engine.run(wf, 1))
    forever.start()
    engine.close(timeout=0)
gc.collect()
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PRELUDE + script, str(tmp_path / "a")],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    expected = "[[[{0}, {0}], {0}], [{0}], 'WaitTimeout', 'ValueError', 'group']"
    assert done.stdout.splitlines() == [expected.format(2), expected.format(1)]
    assert done.stderr == ""
