"""Event loops: what other threads post there, who waits there, and the loop of an engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import durable
from durable import Client, Engine, Handle, aio, workflow
from durable.clock import SystemClock
from durable.runtime.loops import ACTIONS_AT_ONCE, Inside, LoopThread, OnLoop, Signal
from durable.runtime.waiting import Waiting
from tests.support import PATIENCE, until


def run(main: Callable[[OnLoop], Coroutine[Any, Any, Any]]) -> Any:
    """What the coroutine returns, on a loop, given that loop for other threads."""

    async def on_loop() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await main(OnLoop(asyncio.get_running_loop()))

    return asyncio.run(on_loop())


def in_thread(target: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=target)
    thread.start()
    return thread


# ---------------------------------------------------------------------- other threads


def test_all_that_is_posted_is_done_in_order() -> None:
    """By many threads at once: nothing is lost, and each thread's stays in its order."""

    async def main(on_loop: OnLoop) -> None:
        seen: list[tuple[int, int]] = []

        def post(who: int) -> None:
            for n in range(500):
                on_loop.post(lambda n=n: seen.append((who, n)))  # type: ignore[misc]

        threads = [in_thread(lambda who=who: post(who)) for who in range(4)]  # type: ignore[misc]
        while len(seen) < 2000:
            await asyncio.sleep(0.001)
        for who, thread in enumerate(threads):
            thread.join()
            assert [n for each, n in seen if each == who] == list(range(500))

    run(main)


def test_many_actions_leave_the_loop_time_for_others() -> None:
    """After so many of them, the loop looks after its tasks before it does the rest."""

    async def main(on_loop: OnLoop) -> list[int]:
        done = [0]
        for _ in range(3 * ACTIONS_AT_ONCE):
            on_loop.post(lambda: done.__setitem__(0, done[0] + 1))
        seen = []
        while done[0] < 3 * ACTIONS_AT_ONCE:
            await asyncio.sleep(0)
            seen.append(done[0])
        return seen

    assert {ACTIONS_AT_ONCE, 2 * ACTIONS_AT_ONCE} <= set(run(main))


def test_many_that_want_a_turn_leave_the_loop_time_for_others() -> None:
    """So many have theirs at once, in order; one that is cancelled meanwhile holds up nobody."""

    async def main(on_loop: OnLoop) -> None:
        done: list[int] = []

        async def works(n: int) -> None:
            if (turn := on_loop.take_turn()) is not None:
                await turn
            done.append(n)

        tasks = [asyncio.create_task(works(n)) for n in range(3 * ACTIONS_AT_ONCE + 1)]
        await asyncio.sleep(0)
        tasks[-1].cancel()
        seen = {len(done)}
        while len(done) < 3 * ACTIONS_AT_ONCE:
            await asyncio.sleep(0)
            seen.add(len(done))
        assert done == list(range(3 * ACTIONS_AT_ONCE))
        assert {ACTIONS_AT_ONCE, 2 * ACTIONS_AT_ONCE} <= seen
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert on_loop.take_turn() is None

    run(main)


def test_each_round_of_the_loop_has_its_own_count_of_turns() -> None:
    """Who comes in the next one does not wait because of those that came before."""

    async def main() -> None:
        on_loop = OnLoop(asyncio.get_running_loop())
        for _ in range(3):
            turns = [on_loop.take_turn() for _ in range(ACTIONS_AT_ONCE - 1)]
            assert turns == [None] * len(turns)
            await asyncio.sleep(0)

    asyncio.run(main())


def test_posting_to_a_closed_loop_is_harmless() -> None:
    """Nobody waits there any more."""

    async def main(on_loop: OnLoop) -> OnLoop:
        return on_loop

    on_loop = run(main)
    on_loop.post(lambda: pytest.fail("called"))
    Signal(on_loop).give()


def test_a_signal_may_come_before_the_wait_or_twice() -> None:
    """It is not missed, and the second time nothing happens."""

    async def main(on_loop: OnLoop) -> None:
        early, late = Signal(on_loop), Signal(on_loop)
        in_thread(early.give).join()
        await asyncio.sleep(0)
        await early
        asyncio.get_running_loop().call_later(0.01, late.give)
        await late
        late.give()
        await asyncio.sleep(0)

    run(main)


def test_a_signal_is_awaited_again_after_a_cancellation() -> None:
    """Who was cancelled meanwhile may wait on until it is given."""

    async def wait_through(signal: Signal) -> int:
        cancelled = 0
        while not signal.given:
            try:
                await signal
            except asyncio.CancelledError:
                cancelled += 1
        return cancelled

    async def main(on_loop: OnLoop) -> None:
        signal = Signal(on_loop)
        task = asyncio.create_task(wait_through(signal))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        in_thread(signal.give)
        assert await task == 3

    run(main)


def test_running_beside_the_loop() -> None:
    """What the function returns or raises, StopIteration too; the loop goes on meanwhile."""

    async def main(on_loop: OnLoop) -> None:
        event = threading.Event()

        def spawn(target: Callable[[], None]) -> None:
            in_thread(target)

        asyncio.get_running_loop().call_soon(event.set)
        assert await on_loop.run_beside(spawn, lambda: event.wait(PATIENCE))
        with pytest.raises(ZeroDivisionError):
            await on_loop.run_beside(spawn, lambda: 1 / 0)

    run(main)


# ---------------------------------------------------------------------- waiting for keys


def test_a_notification_between_look_and_wait_is_not_missed() -> None:
    """N16, for coroutines: who has registered, and looks, may be notified before it waits."""

    async def main(on_loop: OnLoop) -> None:
        waiting = Waiting(SystemClock())
        with waiting.listen_on(on_loop, "key", "other") as listener:
            in_thread(lambda: waiting.notify(["key"])).join()
            assert await listener.wait(None)
            deadline = waiting.clock.now() + 0.02
            assert not await listener.wait(deadline)
            assert waiting.clock.now() >= deadline
            asyncio.get_running_loop().call_later(0.01, waiting.notify, ["other"])
            assert await listener.wait(waiting.clock.now() + PATIENCE)
        assert not waiting._waiters

    run(main)


def test_a_cancelled_wait_is_off_the_list() -> None:
    """And a notification that comes later finds nobody."""

    async def main(on_loop: OnLoop) -> None:
        waiting = Waiting(SystemClock())

        async def wait() -> None:
            with waiting.listen_on(on_loop, "key") as listener:
                await listener.wait(None)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not waiting._waiters
        waiting.notify(["key"])

    run(main)


def test_a_client_waits_on_a_loop_too(path: str) -> None:
    """In a program without an engine: `await handle` and `async for` of a client's handle."""

    @workflow
    async def wf() -> str:
        for n in range(3):
            await aio.write_stream("s", n)
        return str(await aio.recv())

    async def main(handle: Handle[str]) -> Any:
        seen = []
        async for each in aio.read_stream(handle, "s"):
            seen.append(each)
            if len(seen) == 3:
                break
        await aio.send(handle, "done")
        return [seen, await handle]

    with Engine(path):
        handle = wf.options(id="one").start()
        with Client(path) as client:
            assert asyncio.run(main(client.handle(handle.id))) == [[0, 1, 2], "done"]


# ---------------------------------------------------------------------- the engine's loop


def test_a_loop_thread_ends_its_tasks() -> None:
    """`close` cancels what is left there, lets it clean up, and the thread is gone."""
    seen: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    thread = LoopThread(SystemClock())
    tasks: list[Any] = []
    OnLoop(thread.loop).post(lambda: tasks.append(thread.loop.create_task(waits())))
    until(lambda: tasks)
    thread.close(PATIENCE)
    assert seen == ["cleaned up"]
    assert thread.loop.is_closed()
    thread.close(PATIENCE)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_loop_thread_outlives_an_exit(error: type[BaseException]) -> None:
    """A task that raises what would end a program ends alone."""

    async def exits() -> None:
        raise error

    thread = LoopThread(SystemClock())
    future = asyncio.run_coroutine_threadsafe(exits(), thread.loop)
    with pytest.raises(error):
        future.result(PATIENCE)
    assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0, 5), thread.loop).result(PATIENCE) == 5
    thread.close(PATIENCE)


def test_a_stubborn_task_is_left_to_itself() -> None:
    """`close` returns after its patience, though a coroutine does not end."""
    released = threading.Event()

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    thread = LoopThread(SystemClock())
    tasks: list[Any] = []
    OnLoop(thread.loop).post(lambda: tasks.append(thread.loop.create_task(stubborn())))
    until(lambda: tasks)
    thread.close(0.05)
    assert thread._thread.is_alive()
    released.set()
    thread._thread.join(PATIENCE)
    assert not thread._thread.is_alive()


# ---------------------------------------------------------------------- inside a guard


@contextmanager
def noting(log: list[str]) -> Iterator[None]:
    log.append("in")
    try:
        yield
    finally:
        log.append("out")


def test_a_coroutine_inside_a_guard() -> None:
    """The guard is on whenever the coroutine runs, and off while others do."""
    log: list[str] = []

    async def body() -> int:
        log.append("begins")
        await asyncio.sleep(0)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.append("cancelled")
        return 5

    async def main() -> Any:
        task = asyncio.get_running_loop().create_task(Inside(lambda: noting(log), body()))
        for _ in range(3):
            await asyncio.sleep(0)
        log.append("outside")
        task.cancel()
        return await task

    assert asyncio.run(main()) == 5
    assert log == ["in", "begins", "out", "in", "out", "outside", "in", "cancelled", "out"]


def test_a_guarded_coroutine_that_never_begins() -> None:
    """Cancelled before it has begun, it is closed: Python does not say "never awaited"."""
    log: list[str] = []

    async def body() -> None:
        log.append("begins")

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(Inside(lambda: noting(log), body()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert "begins" not in log
    Inside(lambda: noting(log), body()).close()


def test_durable_is_not_on_every_loop() -> None:
    """A program's loop without an engine is left alone: what blocks is allowed there."""

    async def main() -> None:
        with pytest.raises(durable.NoEngine):
            durable.send("x", 1)

    asyncio.run(main())
