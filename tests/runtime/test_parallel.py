"""Parallel steps: numbered when submitted, recorded by themselves, whatever finishes first."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest

import durable
from durable import Engine, Retry, step, testing, workflow
from durable.errors import WaitTimeout
from tests.support import PATIENCE, Gate, dying, until

ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@step
def square(n: int) -> int:
    ran[str(n)] += 1
    return n * n


@step(retry=Retry(attempts=2, delay=5))
def flaky(n: int) -> int:
    if durable.current().attempt == 1 and n % 2:
        raise ConnectionError(f"item {n}")
    return n


@step
def picky(n: int) -> int:
    if n in (3, 5):
        raise ValueError(f"not {n}")
    return n


# ---------------------------------------------------------------------- submit


def test_submitted_steps_run_beside_the_workflow(engine: Engine) -> None:
    """Both steps are under way before either result is asked for."""
    gates = [Gate(), Gate()]

    @workflow
    def wf() -> list[int]:
        futures = [passing.submit(0), passing.submit(1)]
        return durable.gather(*futures)

    @step
    def passing(n: int) -> int:
        gates[n].pass_through()
        return n

    handle = wf.start()
    for gate in reversed(gates):
        gate.wait_reached()
    assert handle.steps() == []
    for gate in gates:
        gate.open()
    assert handle.result(PATIENCE) == [0, 1]
    assert [each.number for each in handle.steps()] == ["1", "2"]


def test_numbers_are_those_of_submission(path: str) -> None:
    """N11: the step that finishes first has no other number; a replay fits, and runs nothing."""
    first = Gate()

    @step
    def slow() -> str:
        ran["slow"] += 1
        first.pass_through()
        return "slow"

    @step
    def quick() -> str:
        ran["quick"] += 1
        return "quick"

    @workflow
    def wf() -> list[str]:
        a, b = slow.submit(), quick.submit()
        results = [b.result()]
        first.open()
        results.append(a.result())
        durable.recv()
        return results

    with dying(path) as engine:
        wf.options(id="one").start()
        until(lambda: len(engine.handle("one").steps()) == 2)
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == ["quick", "slow"]
    assert ran == {"slow": 1, "quick": 1}


def test_the_outcome_waits_for_what_was_submitted(engine: Engine) -> None:
    """A workflow that does not ask for a submitted step still ends after it."""
    gate = Gate()

    @step
    def slow() -> None:
        gate.pass_through()

    @workflow
    def wf() -> str:
        slow.submit()
        return "done"

    handle = wf.start()
    gate.wait_reached()
    with pytest.raises(WaitTimeout):
        handle.result(0.05)
    gate.open()
    assert handle.result(PATIENCE) == "done"
    assert len(handle.steps()) == 1


def test_the_error_of_a_submitted_step(engine: Engine) -> None:
    """`result` raises what the step raised, each time that it is asked."""

    @workflow
    def wf() -> list[str]:
        future = picky.submit(3)
        seen = []
        for _ in range(2):
            with pytest.raises(ValueError, match="not 3") as caught:
                future.result()
            seen.append(str(caught.value))
        return seen

    assert wf() == ["not 3", "not 3"]


def test_gather_takes_futures_and_handles(engine: Engine) -> None:
    """Steps and children together, in the order given; the first error in that order is raised."""

    @workflow
    def child(n: int) -> int:
        return n

    @workflow
    def wf() -> list[Any]:
        with pytest.raises(ValueError, match="not 5"):
            durable.gather(square.submit(1), picky.submit(5), picky.submit(3))
        return durable.gather(square.submit(2), child.start(7), square.submit(3))

    assert wf() == [4, 7, 9]


def test_the_first_of_several_is_recorded(path: str) -> None:
    """`wait(first=True)` over steps: the winner is the same on a replay."""
    gates = [Gate(), Gate()]

    @step
    def passing(n: int) -> int:
        gates[n].pass_through()
        return n

    @workflow
    def wf() -> list[int]:
        waited = durable.wait([passing.submit(0), passing.submit(1)], first=True)
        winner = waited.done[0].result()
        gates[0].open()
        loser = waited.pending[0].result()
        durable.recv()
        return [winner, loser]

    with dying(path) as engine:
        wf.options(id="one").start()
        gates[1].open()
        until(lambda: len(engine.handle("one").steps()) == 3)
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == [1, 0]


def test_submit_outside_and_in_a_step(engine: Engine) -> None:
    """Only the body of a workflow submits."""

    @workflow
    def wf() -> None:
        durable.run_step(square.submit, 1)

    with pytest.raises(durable.NotInWorkflow, match=r"square\.submit"):
        square.submit(1)
    with pytest.raises(durable.NotAllowedHere, match=r"square\.submit"):
        wf()


def test_cancel_stops_what_has_not_begun(engine: Engine) -> None:
    """A cancelled workflow's submitted step ends, and no more begin."""
    gate = Gate()

    @step
    def slow() -> None:
        ran["slow"] += 1
        gate.pass_through()

    @workflow
    def wf() -> None:
        slow.submit()
        durable.recv()
        slow.submit()

    handle = wf.start()
    gate.wait_reached()
    assert handle.cancel()
    gate.open()
    until(lambda: not engine._open_engine().runs.all())
    assert ran["slow"] == 1


# ---------------------------------------------------------------------- map


def test_map_keeps_the_order_of_the_items(engine: Engine) -> None:
    """Results stand where their items stood; each item is a step in the map's lane."""

    @workflow
    def wf() -> list[int]:
        square(9)
        return durable.map(square, range(5), workers=3)

    handle = wf.start()
    assert handle.result(PATIENCE) == [0, 1, 4, 9, 16]
    numbers = [each.number for each in handle.steps()]
    assert numbers == ["1", "2", "2.1", "2.2", "2.3", "2.4", "2.5"]


def test_map_of_nothing(engine: Engine) -> None:
    """No items, no results."""

    @workflow
    def wf() -> list[int]:
        return durable.map(square, [])

    assert wf() == []


def test_map_takes_any_function(engine: Engine) -> None:
    """A function that is no step is one for the map."""

    @workflow
    def wf() -> list[int]:
        return durable.map(len, ["a", "bb"])

    assert wf() == [1, 2]


def test_map_has_at_most_so_many_workers(engine: Engine) -> None:
    """No more items are under way at once than there are workers."""
    now, most, mutex = [0], [0], threading.Lock()
    barrier = threading.Barrier(3)

    @step
    def counted(n: int) -> None:
        with mutex:
            now[0] += 1
            most[0] = max(most[0], now[0])
        barrier.wait(PATIENCE)
        with mutex:
            now[0] -= 1

    @workflow
    def wf() -> None:
        durable.map(counted, range(9), workers=3)

    wf()
    assert most == [3]


@pytest.mark.slow
def test_a_killed_map_runs_only_what_was_not_recorded(path: str) -> None:
    """Killed in the middle of many items, only those without a record run again."""
    gate = Gate()

    @step
    def item(n: int) -> int:
        ran[str(n)] += 1
        if n == 300 and ran["300"] == 1:
            gate.pass_through()
        return n

    @workflow
    def wf() -> int:
        return sum(durable.map(item, range(1000), workers=4))

    with dying(path) as engine:
        wf.options(id="one").start()
        gate.wait_reached()
        recorded = {each.number for each in engine.handle("one").steps()}
    gate.open()
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == sum(range(1000))
    twice = {f"1.{int(n) + 1}" for n, times in ran.items() if times > 1}
    assert "1.301" in twice
    assert not twice & recorded


def test_the_first_error_of_a_map(engine: Engine) -> None:
    """It is raised with its item's index in a note, and what has not begun does not begin."""

    @workflow
    def wf() -> list[Any]:
        with pytest.raises(ValueError, match="not 3") as caught:
            durable.map(picky, range(100), workers=1)
        return list(caught.value.__notes__)

    handle = wf.start()
    notes = handle.result(PATIENCE)
    assert len(notes) == 1
    assert "item 3" in notes[0]
    assert len(handle.steps()) == 5


def test_a_maps_error_is_the_same_on_a_replay(path: str) -> None:
    """Which item failed first is recorded."""

    @workflow
    def wf() -> str:
        try:
            durable.map(picky, range(10), workers=4)
        except ValueError as error:
            seen = f"{error} {error.__notes__}"
        durable.recv()
        return seen + " " + str(square(2))

    with dying(path) as engine:
        wf.options(id="one").start()
        until(lambda: any(each.number == "1" for each in engine.handle("one").steps()))
        first = next(e for e in engine.handle("one").steps() if e.number == "1").value
    with Engine(path) as engine:
        engine.send("one", None)
        result = engine.handle("one").result(PATIENCE)
    assert f"item {first}" in result
    assert result.endswith(" 4")


def test_errors_may_be_collected(engine: Engine) -> None:
    """With errors="collect" every item runs, and errors stand in their places."""

    @workflow
    def wf() -> list[str]:
        return [repr(each) for each in durable.map(picky, range(6), errors="collect")]

    assert wf() == ["0", "1", "2", "ValueError('not 3')", "4", "ValueError('not 5')"]


def test_wrong_arguments_of_map(engine: Engine) -> None:
    """A number of workers or a way with errors that there is not is refused."""

    @workflow
    def wf() -> None:
        for options in ({"workers": 0}, {"errors": "ignore"}):
            with pytest.raises(durable.InvalidArgument):
                durable.map(square, [1], **options)  # type: ignore[arg-type]

    wf()


def test_an_exit_in_an_item_leaves_the_run_unfinished(path: str) -> None:
    """SystemExit in a parallel step is no outcome; the map goes on at the next start."""

    @step
    def exits(n: int) -> int:
        ran["exits"] += 1
        if ran["exits"] == 1:
            raise SystemExit(3)
        return n

    @workflow
    def wf() -> list[int]:
        return durable.map(exits, [1, 2], workers=1)

    engine = Engine(path).open()
    with pytest.raises(SystemExit):
        wf.options(id="one")()
    engine.close(timeout=0)
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == [1, 2]


# ---------------------------------------------------------------------- every crash, every order


@workflow
def everything(count: int) -> list[Any]:
    a, b = flaky.submit(1), square.submit(2)
    durable.wait([flaky.submit(5)], first=True)
    mapped = durable.map(flaky, range(count), workers=2)
    return [durable.gather(a, b), mapped, durable.map(picky, range(3, 5), errors="collect")[1]]


def program(engine: Engine) -> None:
    handle = everything.options(id="e").start(3)
    assert handle.result() == [[1, 4], [0, 1, 2], 4]


@pytest.mark.slow
def test_parallel_steps_over_every_crash() -> None:
    """N11: crash anywhere: same outputs, no mismatch."""
    assert testing.crashes(program).places > 20


@pytest.mark.slow
def test_parallel_steps_in_every_order() -> None:
    """In every order of their threads, the same outputs."""
    testing.orders(program, runs=40)
