"""Calls that the code of an async workflow cancels, and workflows that are stopped inside."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from random import Random
from typing import Any

import pytest

import durable
from durable import Engine, Status, aio, step, testing, workflow
from durable.errors import EngineClosed, WorkflowCancelled
from tests.support import PATIENCE, AsyncGate, dying, until

ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@step
async def note(what: str) -> str:
    ran[what] += 1
    return what


@step
async def forever() -> None:
    ran["forever"] += 1
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ran["forever cleaned up"] += 1


@workflow
async def lasting(seconds: float) -> str:
    await aio.sleep(seconds)
    return "lasted"


# ---------------------------------------------------------------------- what the code cancels


async def give_up_on(awaitable: Any, seconds: float = 5) -> str:
    try:
        async with asyncio.timeout(seconds):
            return repr(await awaitable)
    except TimeoutError:
        return "gave up"


@step
async def lingers(n: int) -> None:
    await forever.fn()


@workflow
async def gives_up() -> list[Any]:
    """Each kind of call, cancelled by a timeout, and what follows."""
    seen = [
        await give_up_on(forever()),
        await give_up_on(aio.recv("t")),
        await give_up_on(lasting(60)),
        await give_up_on(aio.map(lingers, [1, 2, 3], workers=2)),
        await give_up_on(aio.run_step(forever)),
        await give_up_on(asyncio.gather(forever(), note("beside"))),
        await give_up_on(aio.get_event("gives up", "none")),
    ]
    seen.append(await note("after"))
    await aio.set_event("waits", True)
    return [*seen, await aio.recv("t")]


EXPECTED = ["gave up"] * 7 + ["after", "hello"]


def giving_up(engine: Engine) -> None:
    handle = gives_up.options(id="gives up").start()
    handle.event("waits")
    handle.send("hello", "t", idempotency_key="h")
    assert handle.result() == EXPECTED


def test_a_timeout_around_each_kind_of_call() -> None:
    """`asyncio.timeout` ends steps, waits, children, maps and gathers; the child itself goes on."""
    with testing.engine() as engine:
        giving_up(engine)
        assert [each.name for each in engine.handle("gives up").steps()].count(
            "durable.recv:t"
        ) == 2
        engine.clock.advance(seconds=60)
        assert engine.workflows(parent="gives up")[0].result == "lasted"


@pytest.mark.slow
def test_what_was_cancelled_is_cancelled_again_after_a_crash() -> None:
    """Killed at any place, it comes out the same: the records say what the code has cancelled."""
    assert testing.crashes(giving_up).places > 20


def test_a_cancelled_call_is_recorded_with_the_next_write(path: str) -> None:
    """Nothing is written for the cancelling itself; a replay waits to be cancelled again."""

    @workflow
    async def wf() -> list[str]:
        seen = [await give_up_on(forever(), 0.01), await note("after")]
        await aio.recv()
        return seen

    with dying(path) as engine:
        wf.options(id="one").start()
        until(lambda: len(engine.handle("one").steps()) == 2)
        recorded = engine.handle("one").steps()
        assert [each.outcome for each in recorded] == ["cancelled", "value"]
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == ["gave up", "after"]
    assert ran == {"forever": 1, "forever cleaned up": 1, "after": 1}


def test_code_that_does_not_cancel_any_more(path: str) -> None:
    """Where the changed code asks for what it had cancelled, `replay` follows it so far."""
    limit: list[float | None] = [0.01]

    @workflow
    async def wf() -> str:
        try:
            async with asyncio.timeout(limit[0]):
                await aio.recv("never")
        except TimeoutError:
            await note("after")
        return "ended"

    with Engine(path):
        assert wf.options(id="one").start().result(PATIENCE) == "ended"
        assert testing.replay(path).replayed == ["one"]
        limit[0] = None
        assert testing.replay(path).replayed == ["one"]


def test_a_message_that_was_being_taken_is_not_lost() -> None:
    """A wait that is cancelled while it takes a message: the message is for the next wait."""

    @workflow
    async def wf() -> list[Any]:
        seen = []
        for _ in range(50):
            task = asyncio.create_task(aio.recv())
            await asyncio.sleep(durable.random().random())
            task.cancel()
            try:
                seen.append(await task)
            except asyncio.CancelledError:
                await note("cancelled")
        while len(seen) < 20:
            seen.append(await aio.recv())
        return seen

    def program(engine: testing.TestEngine) -> None:
        handle, luck = wf.options(id="w").start(), Random(1)
        for number in range(20):
            engine.clock.advance(seconds=luck.random())
            handle.send(number, idempotency_key=str(number))
        assert handle.result() == list(range(20))

    testing.orders(program, runs=4)


def test_the_message_of_a_cancelled_wait_is_there_again() -> None:
    """A write that cannot be undone any more gives its message back with the next one."""
    taken: list[asyncio.Task[Any]] = []

    @workflow
    async def wf() -> Any:
        taken.append(asyncio.create_task(aio.recv()))
        try:
            await taken[0]
        except asyncio.CancelledError:
            await note("cancelled")
        return await aio.recv()

    class Cancels:
        def before(self, label: str) -> None:
            if label == "durable.recv" and len(taken) == 1 and not taken[0].cancelling():
                taken[0].cancel()  # the write is on its way: it will take the message

        def after(self, label: str) -> None: ...

    with testing.engine() as engine:
        host = engine._open_engine()
        handle = wf.start()
        host.database.observer = Cancels()  # from here on, no other thread goes first
        handle.send("hello")
        assert handle.result() == "hello"
        assert [each.outcome for each in handle.steps()] == ["cancelled", "value", "value"]


def test_a_task_group_whose_sibling_fails(path: str) -> None:
    """The others are cancelled; a replay cancels them again, and gets the same group."""

    @step
    async def fails() -> None:
        ran["fails"] += 1
        raise ValueError("no")

    @workflow
    async def wf() -> list[str]:
        seen = []
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(forever())
                group.create_task(aio.recv())
                group.create_task(fails())
        except* ValueError as errors:
            seen += [str(each) for each in errors.exceptions]
        seen.append(await note("after"))
        await aio.recv("go")
        return seen

    with dying(path) as engine:
        wf.options(id="one").start()
        until(lambda: ran["after"] and len(engine.handle("one").steps()) >= 4)
    with Engine(path) as engine:
        engine.send("one", "for the cancelled wait")
        engine.send("one", None, "go")
        assert engine.handle("one").result(PATIENCE) == ["no", "after"]
    assert ran["fails"] == ran["after"] == ran["forever"] == 1


@pytest.mark.slow
def test_task_groups_over_every_crash() -> None:
    """A group whose sibling fails comes out the same, wherever it is killed."""

    @workflow
    async def wf() -> list[str]:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(aio.recv())
                group.create_task(sequence())
        except* ValueError as errors:
            seen = [str(each) for each in errors.exceptions]
        return [*seen, await note("after")]

    async def sequence() -> None:
        await note("first")
        await aio.sleep(10)
        raise ValueError(await note("second"))

    def program(engine: Engine) -> None:
        assert wf.options(id="w").start().result() == ["second", "after"]

    assert testing.crashes(program).places > 10
    testing.orders(program, runs=4)


def test_awaiting_what_was_cancelled(engine: Engine) -> None:
    """A body or a step that ends in a cancellation that nobody asked for ends in an error."""

    async def leaks() -> None:
        task = asyncio.create_task(asyncio.sleep(5))
        task.cancel()
        await task

    @workflow
    async def wf(in_step: bool) -> None:
        await (aio.run_step(leaks) if in_step else leaks())

    for in_step in (True, False):
        with pytest.raises(WorkflowCancelled, match="awaited something that had been cancelled"):
            wf.start(in_step).result(PATIENCE)


def test_n26_a_start_that_is_cancelled() -> None:
    """N26: a child's start, cancelled at any moment: a whole child or none, and no blank id."""

    @workflow
    async def wf() -> str:
        task = asyncio.create_task(aio.start(lasting, 1.0))
        for _ in range(durable.random().randrange(5)):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            await note("cancelled")
        return "done"

    def program(engine: testing.TestEngine) -> None:
        for number in range(5):
            handle = wf.options(id=f"w{number}").start()
            assert handle.result() == "done"
            children = engine.workflows(parent=f"w{number}")
            assert [each.id for each in children] in ([], [f"w{number}.1"])
            assert all(each.name == lasting.name for each in children)

    testing.orders(program, runs=4)


# ---------------------------------------------------------------------- the workflow is stopped


def test_cancel_interrupts_an_async_step(engine: Engine) -> None:
    """At its next await; `finally` blocks of step, task and body run to their end."""

    @workflow
    async def wf() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(forever())
                group.create_task(forever())
        finally:
            await asyncio.sleep(0.01)
            ran["body cleaned up"] += 1

    handle = wf.start()
    until(lambda: ran["forever"] == 2)
    assert handle.cancel()
    until(lambda: not engine._open_engine().runs.all())
    assert ran["forever cleaned up"] == 2
    assert ran["body cleaned up"] == 1
    with pytest.raises(WorkflowCancelled):
        handle.result(PATIENCE)


def test_cleaning_up_is_interrupted_by_nothing(engine: Engine) -> None:
    """A `finally` block that awaits is not cancelled a second time, in body or task."""

    async def cleans_up(name: str) -> None:
        try:
            await aio.recv(name)
        finally:
            for _ in range(20):
                await asyncio.sleep(0.001)
            ran[f"{name} cleaned up"] += 1

    @workflow
    async def wf() -> None:
        task = asyncio.create_task(cleans_up("task"))
        await cleans_up("body")
        await task

    handle = wf.start()
    until(lambda: len(engine._open_engine().waiting._waiters) >= 2)
    handle.cancel()
    until(lambda: not engine._open_engine().runs.all())
    assert ran == {"task cleaned up": 1, "body cleaned up": 1}


def test_stopped_inside_a_task_group_is_a_cancellation(engine: Engine) -> None:
    """A group in a stopped workflow sees cancelled tasks: no group of strange errors comes out."""
    seen: list[BaseException] = []

    async def receives() -> None:
        try:
            await aio.recv()
        except BaseException as error:
            seen.append(error)
            raise

    @workflow
    async def wf() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(receives())
                group.create_task(receives())
        except BaseException as error:
            seen.append(error)
            raise

    handle = wf.start()
    until(lambda: engine._open_engine().waiting._waiters)
    handle.cancel()
    until(lambda: not engine._open_engine().runs.all())
    assert [type(each) for each in seen] == [asyncio.CancelledError] * 3


def test_a_durable_call_in_a_cleanup_of_a_stopped_workflow(engine: Engine) -> None:
    """It is not done: the workflow is over."""

    @workflow
    async def wf() -> None:
        try:
            await aio.recv()
        finally:
            try:
                await note("in finally")
            except asyncio.CancelledError:
                ran["refused"] += 1
                raise

    handle = wf.start()
    until(lambda: engine._open_engine().waiting._waiters)
    handle.cancel()
    until(lambda: not engine._open_engine().runs.all())
    assert ran == {"refused": 1}


def test_n21_a_body_that_swallows_cancellation(engine: Engine) -> None:
    """N21: each further durable call raises again, so that even such a body ends when cancelled."""

    @workflow
    async def wf() -> str:
        for _ in range(100):
            try:
                await aio.recv()
            except asyncio.CancelledError:
                ran["swallowed"] += 1
        return "not to be told"

    handle = wf.start()
    until(lambda: engine._open_engine().waiting._waiters)
    assert handle.cancel()
    until(lambda: not engine._open_engine().runs.all())
    assert handle.info().status is Status.CANCELLED
    assert ran["swallowed"] == 100


def test_cancelled_before_it_has_begun(engine: Engine) -> None:
    """A workflow that is cancelled before the loop gets to it never runs, and is off the list."""
    host = engine._open_engine()

    @workflow
    async def blocks() -> None:
        gate.pass_through()

    @workflow
    async def wf() -> None:
        ran["wf"] += 1

    gate = AsyncGate()
    first = blocks.start()
    gate.wait_reached()
    handle = wf.start()
    assert handle.cancel()
    gate.open()
    first.result(PATIENCE)
    until(lambda: not host.runs.all())
    assert ran["wf"] == 0


# ---------------------------------------------------------------------- leftover tasks


def test_leftover_tasks_end_with_the_body(engine: Engine) -> None:
    """They are cancelled, their `finally` blocks run, and the outcome comes after that."""

    async def lingers() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ran["lingering cleaned up"] += 1

    @workflow
    async def wf() -> str:
        tasks.append(asyncio.create_task(lingers()))
        while not ran["forever"]:
            await asyncio.sleep(0)
        return "done"

    tasks: list[asyncio.Task[None]] = []
    assert wf.start().result(PATIENCE) == "done"
    assert ran["lingering cleaned up"] == ran["forever cleaned up"] == 1
    assert tasks[0].cancelled()


def test_leftover_tasks_after_an_error(engine: Engine) -> None:
    """Also where the body raises."""

    @workflow
    async def wf() -> None:
        task = asyncio.create_task(forever())
        while not ran["forever"]:
            await asyncio.sleep(0)
        raise ValueError(task.get_name() and "no")

    with pytest.raises(ValueError, match="no"):
        wf.start().result(PATIENCE)
    assert ran["forever cleaned up"] == 1


# ---------------------------------------------------------------------- exits are no outcome


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["body", "step", "task", "forgotten task"])
def test_an_exit_leaves_the_run_unfinished(
    path: str, error: type[BaseException], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 8, on an engine's own loop: who waits gets it, and the next engine goes on."""

    async def exits() -> str:
        ran["exits"] += 1
        if ran["exits"] == 1:
            raise error(3)
        return "went on"

    @workflow
    async def wf() -> str:
        if where == "body":
            return await exits()
        if where == "step":
            return await aio.run_step(exits)
        task = asyncio.create_task(exits())
        if where == "forgotten task" and ran["exits"] == 0:
            await aio.recv()
        return await task

    engine = Engine(path, recover="manual").open()  # its recovery might be slow, and find it
    handle = wf.options(id="one").start()
    with pytest.raises(error):
        handle.result(PATIENCE)
    assert handle.info().status is Status.PENDING
    engine.close(timeout=0)
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == "went on"


def test_an_exit_on_the_loop_of_the_program(path: str) -> None:
    """Under `asyncio.run`, SystemExit in a body ends what awaits it; the run is unfinished."""

    @workflow
    async def wf() -> str:
        ran["wf"] += 1
        if ran["wf"] == 1:
            raise SystemExit(3)
        return "went on"

    async def main() -> None:
        async with Engine(path, recover="manual"):
            await wf.options(id="one")()

    with pytest.raises(SystemExit):
        asyncio.run(main())
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == "went on"


def test_a_loop_survives_an_exit(engine: Engine) -> None:
    """One workflow that exits does not stop the loop for the others."""

    @workflow
    async def exits() -> None:
        await asyncio.create_task(aio.run_step(sys_exit))

    async def sys_exit() -> None:
        raise SystemExit(1)

    other = lasting.start(0.05)
    with pytest.raises(SystemExit):
        exits.start().result(PATIENCE)
    assert other.result(PATIENCE) == "lasted"


# ---------------------------------------------------------------------- closing


def test_close_stops_async_workflows(path: str) -> None:
    """`finally` blocks run, nothing is recorded, and the next engine goes on."""

    @workflow
    async def wf() -> str:
        try:
            return str(await aio.recv())
        finally:
            ran["cleaned up"] += 1

    engine = Engine(path).open()
    handle = wf.options(id="one").start()
    until(lambda: engine._open_engine().waiting._waiters)
    engine.close(timeout=0)
    assert ran["cleaned up"] == 1
    with pytest.raises(EngineClosed):
        handle.result(PATIENCE)
    with Engine(path) as engine:
        engine.send("one", "late")
        assert engine.handle("one").result(PATIENCE) == "late"


@pytest.mark.slow
def test_n46_close_with_a_coroutine_that_ignores_cancellation(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """N46: `close` returns within its time; what is left to itself records nothing."""
    gate = AsyncGate()

    @workflow
    async def stubborn() -> str:
        while True:
            try:
                await gate.pause()
                break
            except asyncio.CancelledError:
                ran["ignored"] += 1
        return await note("late")

    engine = Engine(path).open()
    stubborn.options(id="one").start()
    gate.wait_reached()
    clock = engine._clock
    began = clock.now()
    engine.close(timeout=0.3)
    assert clock.now() - began < 5
    gate.open()
    with caplog.at_level(logging.ERROR), Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == "late"
    assert ran["ignored"] >= 1
    assert ran["late"] == 1


@pytest.mark.slow
def test_n47_a_late_async_step_writes_nothing(path: str) -> None:
    """N47: a step that goes on after the close of its engine is not recorded."""
    gate = AsyncGate()

    @step
    async def stubborn() -> str:
        while True:
            try:
                await gate.pause()
                return "late"
            except asyncio.CancelledError:
                ran["ignored"] += 1

    @workflow
    async def wf() -> str:
        return await stubborn()

    engine = Engine(path).open()
    wf.options(id="one").start()
    gate.wait_reached()
    engine.close(timeout=0.2)
    gate.open()
    with Engine(path, recover="manual") as engine:
        assert engine.handle("one").steps() == []
        assert engine.handle("one").info().status is Status.PENDING
