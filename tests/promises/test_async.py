"""The nine promises, for async workflows."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from typing import Any

import pytest

import durable
from durable import Engine, NonDeterminism, Status, aio, step, testing, workflow
from durable.store.transactions import NOT_COMMITTED, Transactions
from tests.promises.async_programs import PROGRAMS, children, fulfil, lap, late, paid
from tests.support import PATIENCE, dying, until

ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@step
async def count(name: str) -> str:
    ran[name] += 1
    await asyncio.sleep(0)
    return name


@workflow
async def three() -> list[str]:
    return [await count("a"), *await asyncio.gather(count("b"), count("c"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [pytest.param(each, marks=() if each is paid else pytest.mark.slow) for each in PROGRAMS],
    ids=[each.__name__ for each in PROGRAMS],
)
def test_every_crash_comes_out_the_same(program: Any) -> None:
    """1, 2, 3: a crash before or after any write changes no outcome, step, event or message."""
    assert testing.crashes(program).places > 10


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda each: each.__name__)
def test_every_crash_of_a_recovery_too(program: Any) -> None:
    """Nor does a second crash, at any write of the engine that recovers."""
    assert testing.crashes(program, depth=2).places > 100


def test_a_body_with_a_record_never_runs_again() -> None:
    """1: wherever the process dies, only bodies whose record is missing run after it."""
    names = {"1": "a", "2": "b", "3": "c"}
    skipped: Counter[str] = Counter()

    def program(engine: Engine) -> None:
        steps = engine.handle("three").steps() if engine.workflows() else []
        before = ran.copy()
        three.options(id="three").start().result()
        for each in steps:
            assert ran[names[each.number]] == before[names[each.number]]
            skipped[each.number] += 1

    testing.crashes(program)
    assert min(skipped[number] for number in names) > 0


@pytest.mark.slow
def test_a_transaction_is_exactly_once() -> None:
    """1: after any crash, what a transaction wrote is there once."""

    def program(engine: Engine) -> None:
        paid(engine)
        with sqlite3.connect(engine._path) as connection:
            assert connection.execute("SELECT count(*) FROM booking").fetchone() == (1,)
        connection.close()

    testing.crashes(program)


def test_messages_in_every_order() -> None:
    """2: three senders, and a receiver with two waits at once: nothing lost, nothing twice."""

    @workflow
    async def collect() -> list[Any]:
        return await asyncio.gather(*[aio.recv("t") for _ in range(6)])

    @workflow
    async def deliver(name: str) -> None:
        for number in range(2):
            await aio.send("r", [name, number], "t")

    def program(engine: Engine) -> None:
        receiver = collect.options(id="r").start()
        for name in "abc":
            deliver.options(id=name).start(name)
        assert sorted(receiver.result()) == [[name, n] for name in "abc" for n in range(2)]

    testing.orders(program, runs=5)


def test_what_was_decided_stays_decided() -> None:
    """3: in every order, timeouts and the first of several are the same."""
    testing.orders(late, runs=4)
    testing.orders(children, runs=4)


def test_what_has_returned_is_on_the_disk(path: str) -> None:
    """4: when an awaited call has returned, the next process finds what it did."""

    @workflow
    async def wf() -> list[Any]:
        first = await count("a")
        returned.append(first)
        return [first, await aio.recv("t"), await aio.recv("end")]

    returned: list[str] = []

    async def main() -> None:
        engine = await Engine(path).__aenter__()
        await aio.start(wf.options(id="one"))
        await aio.send("one", "x", "t")
        while not returned:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(engine._abandon)  # the process is killed here

    asyncio.run(main())
    with Engine(path) as engine:
        engine.send("one", "y", "end")
        assert engine.handle("one").result(PATIENCE) == ["a", "x", "y"]
    assert ran["a"] == 1


def test_cancel_and_completion_agree_in_every_order() -> None:
    """5, N20: whatever comes first, cancel's answer, the status and the result agree for good."""
    seen = set()

    def program(engine: testing.TestEngine) -> None:
        handle = three.options(id="job").start()
        engine.clock.switch()
        cancelled = handle.cancel()
        status = handle.info().status
        assert bool(cancelled) == (status is Status.CANCELLED)
        try:
            assert handle.result() == ["a", "b", "c"]
            assert not cancelled
        except durable.WorkflowCancelled:
            assert cancelled
        assert handle.info().status is status
        seen.add(status)

    testing.orders(program, runs=30)
    assert seen == {Status.CANCELLED, Status.SUCCESS}


def test_no_child_survives_in_any_order() -> None:
    """5, N24: a parent that is cancelled at any moment leaves no child running."""

    @workflow
    async def parent() -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(aio.run(lap, 5.0))
            group.create_task(aio.start(lap, 7.0))
        return await lap(1.0)

    def program(engine: testing.TestEngine) -> None:
        handle = parent.options(id="p").start()
        engine.clock.switch()
        if handle.cancel():
            assert not engine.workflows(status=["PENDING"])

    testing.orders(program, runs=10)


def test_editing_strands_nothing(path: str) -> None:
    """6: a run under new code ends in NonDeterminism, once, and the others go on."""
    new = [False]

    @workflow
    async def edited(changes: bool) -> list[str]:
        first = await (aio.run_step(str.upper, "x") if new[0] and changes else count("a"))
        await aio.recv()
        patched = await aio.patched("more")
        return [first, await count("more" if patched else "b")]

    with dying(path) as engine:
        edited.options(id="bad").start(True)
        edited.options(id="good").start(False)
        until(lambda: engine.handle("bad").steps() and engine.handle("good").steps())
    new[0] = True
    with Engine(path) as engine:
        with pytest.raises(NonDeterminism, match=r"step 1 was recorded as .*count"):
            engine.handle("bad").result(PATIENCE)
        engine.send("good", None)
        assert engine.handle("good").result(PATIENCE) == ["a", "more"]


def test_a_lock_of_another_delays_and_fails_nothing(path: str) -> None:
    """7: while another process holds the file, the loop goes on, and every workflow finishes."""

    async def main() -> list[Any]:
        async with Engine(path) as engine:
            other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            other.execute("BEGIN IMMEDIATE")
            tasks = [asyncio.ensure_future(three()) for _ in range(10)]
            for _ in range(50):
                await asyncio.sleep(0.005)
            assert not any(task.done() for task in tasks)
            other.execute("ROLLBACK")
            other.close()
            assert engine
            return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [["a", "b", "c"]] * 10


def test_a_full_disk_is_a_clear_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """7: StorageFull for who waits; the run is unfinished, and goes on at the next start."""
    full = [False]

    def commit(self: Transactions, batch: Any, *, careful: bool = False) -> None:
        if full[0]:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            self._fail(batch, error)
        else:
            before(self, batch, careful=careful)

    def commit_single(self: Transactions, fn: Any) -> Any:
        return NOT_COMMITTED if full[0] else before_single(self, fn)

    @workflow
    async def wf() -> str:
        await count("a")
        full[0] = ran["b"] == 0
        return await count("b")

    before, before_single = Transactions.commit, Transactions.commit_single
    monkeypatch.setattr(Transactions, "commit", commit)
    monkeypatch.setattr(Transactions, "commit_single", commit_single)
    engine = Engine(path, recover="manual").open()
    with pytest.raises(durable.StorageFull):
        wf.options(id="one").start().result(PATIENCE)
    full[0] = False
    engine.close(timeout=0)
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == "b"
    assert ran == {"a": 1, "b": 2}


@pytest.mark.slow
def test_an_exit_is_never_an_outcome_at_any_crash() -> None:
    """8: a step that exits once leaves the run unfinished; `recover` lets it go on, or a crash."""
    exits = {"left": 0}

    @workflow
    async def wf() -> str:
        await count("a")
        if exits["left"]:
            exits["left"] -= 1
            raise SystemExit("mend me first")
        return await fulfil("17")

    def program(engine: Engine) -> None:
        exits["left"] = 1
        handle = wf.options(id="w").start()
        try:
            assert handle.result() == "packed 17"
        except SystemExit:
            engine.recover(["w"])
            assert handle.result() == "packed 17"

    testing.crashes(program)


def test_reading_runs_nothing(path: str) -> None:
    """9: the file of an async program is read by one that has none of its code."""
    with Engine(path) as engine:
        engine.run(three)
    ran.clear()
    with durable.Client(path) as client:
        assert [each.result for each in client.workflows()] == [["a", "b", "c"]]
    assert not ran


def test_a_death_while_an_async_workflow_waits_is_not_its_death(path: str) -> None:
    """A sleep, and a wait, over which process after process dies, do not make it DEAD."""

    @workflow(max_recoveries=2)
    async def sleeps() -> None:
        await aio.sleep(3600)

    @workflow(max_recoveries=2)
    async def receives() -> str:
        return str(await aio.recv(timeout=3600))

    def wait_until_both_wait(engine: Engine) -> None:
        until(lambda: [bool(each.wake_at) for each in engine.workflows()] == [True, True])

    with dying(path) as engine:
        sleeps.options(id="s").start()
        receives.options(id="r").start()
        wait_until_both_wait(engine)
    for _ in range(5):
        with dying(path) as engine:
            until(lambda engine=engine: len(engine._open_engine().runs.all()) == 2)  # type: ignore[misc]
            wait_until_both_wait(engine)
    with Engine(path) as engine:
        assert {each.status for each in engine.workflows()} == {Status.PENDING}
        engine.send("r", "hello")
        assert engine.handle("r").result(PATIENCE) == "hello"
        engine.close(timeout=0)
