"""Async workflows and steps: the same options and promises as plain ones, awaited."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import threading
from collections import Counter
from typing import Any

import pytest

import durable
from durable import Engine, Retry, Status, aio, step, testing, transaction, workflow
from durable.errors import (
    NotAllowedHere,
    SerializationError,
    WaitTimeout,
    WorkflowCancelled,
)
from tests.support import PATIENCE, AsyncGate, Gate, dying, until

ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@step
async def double(n: int) -> int:
    ran[f"double {n}"] += 1
    await asyncio.sleep(0)
    return 2 * n


@step
def triple(n: int) -> int:
    ran[f"triple {n}"] += 1
    return 3 * n


@workflow
async def doubled(n: int) -> int:
    return await double(n)


@workflow
def tripled(n: int) -> int:
    return triple(n)


# ---------------------------------------------------------------------- bodies and steps


def test_a_plain_engine_has_a_loop_of_its_own(engine: Engine) -> None:
    """Body and steps run on one event loop, in one thread that the engine made."""
    seen: list[Any] = []

    async def look() -> None:
        seen.append((threading.current_thread().name, asyncio.get_running_loop()))

    @workflow
    async def wf() -> None:
        await look()
        await aio.run_step(look)

    wf.start().result(PATIENCE)
    assert seen[0] == seen[1]
    assert seen[0][0] == "durable loop"


def test_no_loop_without_a_coroutine(engine: Engine) -> None:
    """An engine that runs plain workflows only makes no event loop."""
    tripled(1)
    assert engine._open_engine().loop is None


def test_async_with_runs_on_the_loop_of_the_program(path: str) -> None:
    """Inside `async with Engine`, bodies and steps run on the running loop."""
    seen: list[Any] = []

    @step
    async def look() -> None:
        seen.append(asyncio.get_running_loop())

    @workflow
    async def wf() -> None:
        seen.append(asyncio.get_running_loop())
        await look()

    async def main() -> None:
        async with Engine(path):
            await wf()
            await (await aio.start(wf))
        assert set(seen) == {asyncio.get_running_loop()}

    asyncio.run(main())
    assert len(seen) == 4


def test_a_recorded_async_step_never_runs_again(path: str) -> None:
    """After a crash, recorded steps return what they returned, and only the rest runs."""

    @workflow
    async def wf() -> list[int]:
        first = await double(1)
        await aio.recv()
        return [first, await double(2)]

    with dying(path) as engine:
        wf.options(id="one").start()
        until(lambda: engine.handle("one").steps())
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == [2, 4]
    assert ran == {"double 1": 1, "double 2": 1}


def test_an_unrecorded_async_step_runs_again(path: str) -> None:
    """A process that dies in the middle of a step runs it again: at least once."""
    gate = AsyncGate()

    @workflow
    async def wf() -> int:
        return await aio.run_step(body)

    async def body() -> int:
        ran["body"] += 1
        if ran["body"] == 1:
            await gate.pause()
        return ran["body"]

    with dying(path):
        wf.options(id="one").start()
        gate.wait_reached()
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == 2


class Failed(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"failed with {code}")
        self.code = code


@step
async def fails(code: int) -> None:
    ran["fails"] += 1
    raise Failed(code=code)


def test_the_error_of_an_async_step_is_itself(path: str) -> None:
    """N29: with its attributes, also on a replay."""

    @workflow
    async def wf() -> list[Any]:
        try:
            await fails(7)
        except Failed as error:
            await aio.recv()
            return [str(error), error.code]
        return []

    with dying(path) as engine:
        wf.options(id="one").start()
        until(lambda: engine.handle("one").steps())
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == ["failed with 7", 7]
    assert ran["fails"] == 1


def test_result_raises_what_the_async_workflow_raised(path: str) -> None:
    """The await, `await handle` and `result()` raise the workflow's own exception."""

    @workflow
    async def wf() -> None:
        await fails(3)

    async def main() -> None:
        async with Engine(path):
            with pytest.raises(Failed, match="with 3"):
                await wf()
            with pytest.raises(Failed) as caught:
                await (await aio.start(wf))
            assert caught.value.code == 3

    asyncio.run(main())
    with Engine(path) as engine, pytest.raises(Failed, match="with 3"):
        engine.run(wf)


def test_what_cannot_be_recorded_names_its_place(engine: Engine) -> None:
    """N13: SerializationError for the result of an async step, and of the workflow."""

    @workflow
    async def wf(outer: bool) -> Any:
        if outer:
            return {"a": [object()]}
        return await aio.run_step(make_object)

    async def make_object() -> Any:
        return {"b": object()}

    with pytest.raises(SerializationError, match=r"result of workflow.*\$\.a\[0\]"):
        wf.start(True).result(PATIENCE)
    with pytest.raises(SerializationError, match=r"result of step.*\$\.b"):
        wf.start(False).result(PATIENCE)


def test_stop_iteration_is_an_error_like_any_other(engine: Engine) -> None:
    """A step that raises StopIteration raises it in the async workflow."""

    def stops() -> None:
        raise StopIteration(5)

    @workflow
    async def wf() -> str:
        try:
            await aio.run_step(stops)
        except RuntimeError as error:  # Python's word for it, where a coroutine raises it
            return repr(error.__cause__)
        return "nothing"

    assert wf.start().result(PATIENCE) == "StopIteration(5)"


# ---------------------------------------------------------------------- both ways


def test_plain_steps_run_on_threads(engine: Engine) -> None:
    """A plain step that an async workflow calls does not hold up the loop."""
    gate = Gate()
    ticks: list[str] = []

    def slow() -> str:
        gate.pass_through()
        return threading.current_thread().name

    @workflow
    async def wf() -> str:
        task = asyncio.create_task(aio.run_step(slow))
        while not gate._reached.is_set():
            await asyncio.sleep(0.001)
        ticks.append("the loop goes on")
        gate.open()
        return await task

    assert wf.start().result(PATIENCE) != "durable loop"
    assert ticks


def test_a_transaction_in_an_async_workflow(engine: Engine) -> None:
    """Its SQL and its checkpoint commit together."""

    @transaction
    def book(cursor: sqlite3.Cursor, n: int) -> int:
        cursor.execute("CREATE TABLE IF NOT EXISTS booked (n INTEGER)")
        cursor.execute("INSERT INTO booked VALUES (?)", (n,))
        return int(cursor.execute("SELECT count(*) FROM booked").fetchone()[0])

    @workflow
    async def wf() -> list[int]:
        return [await aio.run_step(book, n) for n in range(3)]

    assert wf.start().result(PATIENCE) == [1, 2, 3]


def test_an_async_workflow_starts_plain_ones(engine: Engine) -> None:
    """As children: with `aio.run`, or with `aio.start` and `await handle`."""

    @workflow
    async def wf() -> list[int]:
        handle = await aio.start(tripled, 2)
        return [await aio.run(tripled, 1), await handle, await doubled(3), await doubled(4)]

    handle = wf.start()
    assert handle.result(PATIENCE) == [3, 6, 6, 8]
    assert len(engine.workflows(parent=handle.id)) == 4


def test_a_plain_workflow_starts_async_ones(engine: Engine) -> None:
    """As children, with `start` and `result`; and calls async steps."""

    @workflow
    def wf() -> list[Any]:
        handle = doubled.start(1)
        future = double.submit(3)
        durable.wait([handle, future])
        return [handle.result(), durable.run_step(double, 2), future.result()]

    handle = wf.start()
    assert handle.result(PATIENCE) == [2, 4, 6]
    assert len(engine.workflows(parent=handle.id)) == 1


def test_a_plain_workflow_maps_an_async_step(engine: Engine) -> None:
    """The items run on the loop, `workers` at a time."""

    @workflow
    def wf() -> list[int]:
        return durable.map(double, range(5), workers=2)

    assert wf() == [0, 2, 4, 6, 8]


def test_an_async_step_in_the_body_of_a_plain_workflow(engine: Engine) -> None:
    """It cannot be awaited there; the error says what can be done."""

    @workflow
    def wf() -> None:
        coroutine = double(1)
        coroutine.close()

    with pytest.raises(NotAllowedHere, match=r"plain function.*durable\.run_step"):
        wf()


def test_calling_an_async_workflow_without_a_loop(engine: Engine) -> None:
    """The error says what to do; `engine.run` runs it from plain code."""
    with pytest.raises(NotAllowedHere, match=r"no event loop runs here.*start"):
        doubled(1)
    assert engine.run(doubled, 1) == 2


def test_steps_outside_workflows_are_plain_calls(engine: Engine) -> None:
    """An async step that is awaited outside a workflow, or in a step, runs and records nothing."""

    @step
    async def outer() -> int:
        return await double(5) + await aio.run_step(triple, 1)

    @workflow
    async def wf() -> int:
        return await outer()

    assert asyncio.run(double(4)) == 8
    handle = wf.start()
    assert handle.result(PATIENCE) == 13
    assert len(handle.steps()) == 1


def test_asyncio_run_in_a_plain_step(engine: Engine) -> None:
    """A plain step may run a loop of its own."""

    @step
    def nested(n: int) -> int:
        return asyncio.run(double.fn(n))

    @workflow
    async def wf() -> int:
        return await aio.run_step(nested, 4)

    @workflow
    def plain() -> int:
        return nested(5)

    assert wf.start().result(PATIENCE) == 8
    assert plain() == 10


def test_asyncio_run_in_a_plain_body_cannot_await_steps(engine: Engine) -> None:
    """Durable calls there would have no fixed order; the error says what to use."""

    @workflow
    def wf() -> None:
        asyncio.run(main())

    async def main() -> None:
        await double(1)

    with pytest.raises(NotAllowedHere, match="plain function"):
        wf()


def test_asyncio_run_in_an_async_body_is_refused(engine: Engine) -> None:
    """By Python itself."""

    @workflow
    async def wf() -> None:
        coroutine = double.fn(1)
        try:
            asyncio.run(coroutine)
        finally:
            coroutine.close()

    with pytest.raises(RuntimeError, match="running event loop"):
        wf.start().result(PATIENCE)


def test_context_variables(engine: Engine) -> None:
    """A body sees nothing of who started it; its tasks and steps see what it has set."""
    variable = contextvars.ContextVar("variable", default="none")

    async def look() -> str:
        return variable.get()

    @workflow
    async def wf() -> list[str]:
        before = variable.get()
        variable.set("inside")
        task = asyncio.create_task(look())
        return [before, await task, await aio.run_step(look)]

    variable.set("outside")
    assert wf.start().result(PATIENCE) == ["none", "inside", "inside"]


# ---------------------------------------------------------------------- options


def test_options_of_an_async_workflow(engine: Engine) -> None:
    """An id attaches to its run; tags find it."""
    wanted = doubled.options(id="one", tags=["t"])
    handles = [wanted.start(2), wanted.start(2)]
    assert [handle.result(PATIENCE) for handle in handles] == [4, 4]
    assert [each.id for each in engine.workflows(tag="t")] == ["one"]
    assert ran["double 2"] == 1


def test_an_async_workflow_at_its_deadline() -> None:
    """It is cancelled there, and its `finally` blocks run."""

    @workflow(timeout=60)
    async def wf() -> None:
        try:
            await aio.sleep(3600)
        finally:
            ran["finally"] += 1

    with testing.engine() as engine:
        began = engine.clock.moment
        handle = wf.start()
        with pytest.raises(WorkflowCancelled, match="deadline"):
            handle.result()
        assert (engine.clock.moment - began).total_seconds() == 60
        engine.clock.settle()
        assert ran["finally"] == 1


def test_retries_of_an_async_step() -> None:
    """They wait on the clock, each try is counted, and the last error is the outcome."""

    @step(retry=Retry(attempts=3, delay=10, backoff=2))
    async def flaky(successful: int) -> int:
        attempt = durable.current().attempt or 0
        if attempt != successful:
            raise Failed(code=attempt)
        return attempt

    @workflow
    async def wf(successful: int) -> int:
        return await flaky(successful)

    with testing.engine() as engine:
        began = engine.clock.moment
        handle = wf.start(3)
        assert handle.result() == 3
        assert handle.steps()[0].attempt == 3
        assert (engine.clock.moment - began).total_seconds() == 30
        with pytest.raises(Failed, match="with 3"):
            wf.start(4).result()


# ---------------------------------------------------------------------- timeouts of steps


def test_an_async_step_ends_at_its_timeout() -> None:
    """It is cancelled at that moment, cleans up, and WaitTimeout is what the workflow gets."""

    @step(timeout=5)
    async def slow() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ran["cleaned up"] += 1

    @workflow
    async def wf() -> str:
        try:
            await slow()
        except WaitTimeout as error:
            return str(error)
        return "in time"

    with testing.engine() as engine:
        began = engine.clock.moment
        assert "slow" in wf.start().result()
        assert (engine.clock.moment - began).total_seconds() == 5
    assert ran["cleaned up"] == 1


def test_a_timeout_counts_as_a_failure_for_the_retry() -> None:
    """A try that takes too long is tried again."""

    @step(timeout=5, retry=Retry(attempts=2, delay=1))
    async def slow_once() -> int:
        attempt = durable.current().attempt or 0
        if attempt == 1:
            await asyncio.sleep(60)
        return attempt

    @workflow
    async def wf() -> int:
        return await slow_once()

    with testing.engine():
        assert wf.start().result() == 2


def test_a_timeout_of_its_own_is_not_the_steps() -> None:
    """A step that raises TimeoutError itself raises just that."""

    @step(timeout=60)
    async def gives_up() -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(5)

    @workflow
    async def wf() -> str:
        try:
            await gives_up()
        except TimeoutError as error:
            return type(error).__name__
        return "nothing"

    with testing.engine():
        assert wf.start().result() == "TimeoutError"


def test_a_plain_step_that_is_late_has_timed_out() -> None:
    """It cannot be stopped; what comes after its timeout counts as not come, in both kinds."""

    @step(timeout=5)
    def slow() -> None:
        clock, condition = clocks[0], threading.Condition()
        with condition:
            clock.wait(condition, lambda: False, clock.now() + 10)

    @workflow
    async def wf() -> None:
        await aio.run_step(slow)

    @workflow
    def plain() -> None:
        slow()

    with testing.engine() as engine:
        clocks = [engine.clock]
        for each in (wf.start(), plain.start()):
            with pytest.raises(WaitTimeout, match="slow"):
                each.result()


# ---------------------------------------------------------------------- methods


class Account:
    def __init__(self, key: str) -> None:
        self.durable_key = key

    @workflow
    async def pay(self, n: int) -> list[Any]:
        await aio.recv()
        return [self.durable_key, await self.fee(n), await self.rate(n), await self.tax(n)]

    @workflow
    @classmethod
    async def opened(cls, n: int) -> list[Any]:
        return [cls.__name__, await cls.rate(n)]

    @workflow
    @staticmethod
    async def closed(n: int) -> int:
        return await Account.tax(n)

    @step
    async def fee(self, n: int) -> str:
        ran["fee"] += 1
        return f"{self.durable_key}{n}"

    @step
    @classmethod
    async def rate(cls, n: int) -> str:
        return f"{cls.__name__}{n}"

    @step
    @staticmethod
    async def tax(n: int) -> int:
        return n + 1


def test_async_methods(engine: Engine) -> None:
    """Class and static methods are workflows and steps."""
    assert Account.opened.start(1).result(PATIENCE) == ["Account", "Account1"]
    assert Account.closed.start(1).result(PATIENCE) == 2


def test_an_async_method_is_recovered_with_its_instance(path: str) -> None:
    """The instance is found again by its key."""
    with dying(path):
        Account("ann").pay.options(id="one").start(3)
    durable.register(Account("ann"))
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == ["ann", "ann3", "Account3", 4]


# ---------------------------------------------------------------------- ends


def test_n22_cancelling_the_task_that_awaits_a_handle(path: str) -> None:
    """N22: it stops waiting, and the workflow goes on to its end."""
    gate = AsyncGate()

    @workflow
    async def wf() -> str:
        await aio.run_step(gate.pause)
        return "done"

    async def waits(handle: Any) -> Any:
        return await handle

    async def main() -> None:
        async with Engine(path):
            handle = await aio.start(wf)
            task = asyncio.create_task(waits(handle))
            while not gate._reached.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await handle
            assert handle.info().status is Status.PENDING
            gate.open()
            assert await handle == "done"

    asyncio.run(main())


@pytest.mark.slow
def test_recovery_runs_many_async_workflows(path: str) -> None:
    """N06: two hundred unfinished runs, async and plain, are all taken up and finish."""

    @workflow
    async def waiting(n: int) -> int:
        await aio.recv()
        return await double(n)

    @workflow
    def plainly(n: int) -> int:
        durable.recv()
        return triple(n)

    with dying(path, synchronous="normal"):
        for n in range(100):
            waiting.options(id=f"a{n}").start(n)
            plainly.options(id=f"p{n}").start(n)
    with Engine(path, synchronous="normal") as engine:
        for n in range(100):
            engine.send(f"a{n}", None)
            engine.send(f"p{n}", None)
        assert [engine.handle(f"a{n}").result(PATIENCE) for n in range(100)] == [
            2 * n for n in range(100)
        ]
        assert engine.handle("p99").result(PATIENCE) == 297


def test_resume_and_fork_of_an_async_workflow(engine: Engine) -> None:
    """N23: a cancelled one goes on with what it had recorded; a fork begins at a step."""

    @workflow
    async def wf() -> list[Any]:
        return [await double(1), await aio.recv(), await double(2)]

    handle = wf.options(id="one").start()
    until(handle.steps)
    assert handle.cancel()
    with pytest.raises(WorkflowCancelled):
        handle.result(PATIENCE)
    handle.resume()
    handle.send("go")
    assert handle.result(PATIENCE) == [2, "go", 4]
    assert handle.fork(step=3).result(PATIENCE) == [2, "go", 4]
    assert ran == {"double 1": 1, "double 2": 2}


def test_another_step_than_recorded_ends_in_non_determinism(path: str) -> None:
    """N12: NonDeterminism names workflow, number and both names; `finally` blocks run."""
    first = [True]

    @workflow
    async def wf() -> None:
        try:
            if first[0]:
                await double(1)
            else:
                await aio.run_step(triple, 1)
            await aio.recv()
        finally:
            await asyncio.sleep(0)
            ran["finally"] += 1

    with dying(path) as engine:
        wf.options(id="one").start()
        until(lambda: engine.handle("one").steps())
    first[0], ran["finally"] = False, 0
    with Engine(path) as engine:
        with pytest.raises(durable.NonDeterminism, match=r"(?s)one.*double.*triple"):
            engine.handle("one").result(PATIENCE)
        until(lambda: ran["finally"] == 1)


def test_the_logger_and_current_in_a_coroutine(engine: Engine) -> None:
    """`current` knows workflow and step in each of several tasks at once."""

    @step
    async def where() -> list[Any]:
        await asyncio.sleep(0)
        here = durable.current()
        return [here.workflow_id, here.step, durable.step_key()]

    @workflow
    async def wf() -> list[Any]:
        assert durable.current().step is None
        durable.logger.debug("here")
        return await asyncio.gather(where(), where())

    assert wf.options(id="w").start().result(PATIENCE) == [
        ["w", "1", "w/1"],
        ["w", "2", "w/2"],
    ]
