"""`orders`: the same program under many orders of its threads, and the first that fails, alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

import durable
from durable import Status, step, workflow
from durable.errors import WorkflowNotFound
from durable.records import Workflow
from durable.runtime import events, messages
from durable.runtime.checkpoint import Subject
from durable.runtime.context import Scope
from durable.runtime.file import File
from durable.runtime.flows import Flow, Listen, Read, Wait, Write
from durable.store import steps, workflows
from durable.store.steps import Outcome
from durable.store.tx import Tx
from durable.testing import Deadlock, TestEngine, exploring, orders

T = TypeVar("T")

RUNS = 50


@workflow
def quick(value: Any) -> Any:
    return durable.run_step(str, value)


@workflow
def receive() -> Any:
    return durable.recv("answer")


def failure_of(program: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        orders(program, **options)
    return str(caught.value)


def seed_of(text: str) -> int:
    """The seed that a message tells one to run alone."""
    found = re.search(r"to run just this one: orders\(program, seed=(\d+)\)$", text)
    assert found is not None, text
    assert text.startswith(f"with seed {found[1]}: ")
    return int(found[1])


# ---------------------------------------------------------------------- orders


def test_every_seed_is_another_engine() -> None:
    """So many runs, each on a file and with a clock of its own; one where a seed is given."""
    seeds: list[int] = []

    def program(engine: TestEngine) -> None:
        assert engine.workflows() == []
        quick.start(1)
        seeds.append(engine.clock.seed)

    report = orders(program, runs=7)
    assert (report.places, seeds) == (7, list(range(7)))
    assert str(report).startswith("7 tried in ")
    assert orders(program, seed=40).places == 1
    assert seeds[-1] == 40


def test_orders_differ() -> None:
    """The order in which three workflows take their steps is another one nearly every time."""
    seen: set[tuple[str, ...]] = set()

    def program(engine: TestEngine) -> None:
        for handle in [quick.start(n) for n in range(3)]:
            handle.result()
        seen.add(tuple(each.thread for each in engine.journal.entries))

    orders(program, runs=30)
    assert len(seen) > 20


balance: list[int] = []


@step
def look() -> int:
    return balance[0]


@step
def put(amount: int) -> None:
    balance[0] = amount


@workflow
def deposit() -> None:
    put(look() + 1)


def two_deposits(engine: TestEngine) -> None:
    balance[:] = [0]
    for handle in [deposit.start(), deposit.start()]:
        handle.result()
    assert balance == [2], "a deposit is lost"


def test_a_race_between_workflows_is_found() -> None:
    """Read, then written from another thread: the message has the seed and the order of events."""
    text = failure_of(two_deposits)
    seed = seed_of(text)
    assert "AssertionError: a deposit is lost" in text
    assert re.search(r" durable workflow-1 +step tests.testing.test_orders:look\n", text)
    assert "workflow-2 tests.testing.test_orders:deposit SUCCESS" in text
    for _ in range(3):
        assert failure_of(two_deposits, seed=seed) == text


def test_a_deadlock_is_found() -> None:
    """A program that waits for ever in one order fails in that order, and says who waits where."""

    def program(engine: TestEngine) -> None:
        first, second = receive.options(id="one").start(), quick.start(2)
        if not second.info().status.finished:
            first.send("hello", "answer")
        first.result()

    text = failure_of(program)
    assert "Deadlock: nothing can happen any more:\n  the test: waits in " in text
    assert "durable one: waits in receive (" in text
    assert failure_of(program, seed=seed_of(text)) == text


def test_what_the_program_raises_is_the_cause() -> None:
    """The error itself is at hand; so is that of pytest.fail(), which is no Exception."""

    def program(engine: TestEngine) -> None:
        {}["nothing"]

    with pytest.raises(AssertionError, match="with seed 0: KeyError") as caught:
        orders(program)
    assert isinstance(caught.value.__cause__, KeyError)
    text = failure_of(lambda engine: pytest.fail("not like this"))
    assert text.startswith("with seed 0: Failed: not like this\n")


def test_ctrl_c_is_for_everybody() -> None:
    """Who wants to stop the test stops it."""

    def program(engine: TestEngine) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        orders(program)


def test_a_workflow_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be waited for without end."""
    monkeypatch.setattr(exploring, "MOST_WRITES", 50)

    @workflow
    def ticks() -> None:
        while True:
            durable.sleep(3600)

    assert "more than 50 writes" in failure_of(lambda engine: ticks.start())


def test_an_error_of_a_background_thread_fails_it() -> None:
    """What nobody asks for is not lost."""

    def program(engine: TestEngine) -> None:
        engine._open_engine().spawn("durable helper", lambda: {}["nothing"])

    assert "ExceptionGroup: errors on background threads" in failure_of(program)


def test_what_is_left_waiting_is_no_error() -> None:
    """The program alone judges; a workflow that waits for a message may go on waiting."""
    orders(lambda engine: receive.start(), runs=5)


# ---------------------------------------------------------------------- planted bugs


def looks_before_it_listens(
    scope: Scope, name: str, subject: Subject, timeout: float | None
) -> Flow[Outcome]:
    """A `recv` that looks first and then begins to listen: what comes in between wakes nobody."""
    place, _ = scope.next(name)
    now = scope.host.clock.now()

    def look(tx: Tx) -> Outcome | None:
        found = subject.find(tx, place)
        if found is not None:
            steps.decide(tx, scope.run.key, place, name, found, started_at=now, now=now)
        return found

    while True:
        found = yield Write(name, look)
        if found is not None:
            return found
        with scope.host.waiting.listen(*subject.keys, scope.run.stop_key) as listener:
            yield Wait(listener, None)


def send_and_receive(engine: TestEngine) -> None:
    handle = receive.options(id="17").start()
    handle.send("paid", "answer")
    assert handle.result() == "paid"


@pytest.mark.slow
def test_a_lost_wake_up_between_look_and_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some order sends between look and wait: a deadlock, with the write before it in sight."""
    monkeypatch.setattr(messages, "awaited", looks_before_it_listens)
    text = failure_of(send_and_receive, runs=RUNS)
    assert "Deadlock: nothing can happen any more" in text
    assert "  durable 17: waits in receive (" in text
    assert re.search(r"durable 17 +durable.recv:answer\n.* MainThread +durable.send:answer\n", text)
    assert failure_of(send_and_receive, seed=seed_of(text)) == text
    monkeypatch.undo()
    orders(send_and_receive, runs=RUNS)


def reads_before_it_listens(
    file: File,
    keys: tuple[str, ...],
    look: Callable[[Tx], T | None],
    timeout: float | None,
    workflow_id: str | None = None,
) -> Flow[T | None]:
    """The same from outside a workflow, where the look is no write."""
    while True:
        found: T | None = yield Read(look)
        if found is not None:
            return found
        with (yield Listen(*keys)) as listener:
            yield Wait(listener, None)


@pytest.mark.slow
def test_a_lost_wake_up_of_the_test_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads change places around reads, too: here the test misses that the event is set."""

    @workflow
    def shows() -> None:
        durable.set_event("shown", 1)
        durable.recv("what nobody sends")

    def program(engine: TestEngine) -> None:
        assert shows.start().event("shown") == 1

    monkeypatch.setattr(events, "wait_for", reads_before_it_listens)
    text = failure_of(program, runs=RUNS)
    assert "Deadlock: nothing can happen any more:\n  the test: waits in" in text
    assert failure_of(program, seed=seed_of(text)) == text
    monkeypatch.undo()
    orders(program, runs=RUNS)


def cancel_whatever_it_was(
    tx: Tx, workflow_id: str, *, children: bool, reason: str, now: float
) -> Status | None:
    """A `cancel` that does not look whether the workflow has ended."""
    tx.execute(
        """
        UPDATE durable_workflow
           SET status = 'CANCELLED', result = NULL, error = NULL, reason = :reason,
               finished_at = :now
         WHERE id = :id
        """,
        {"id": workflow_id, "reason": reason, "now": now},
    )
    return None


def finish_and_cancel(engine: TestEngine) -> None:
    """Once it has ended, it has ended; and `cancel` says what it did."""

    def look() -> Workflow:
        return handle.info()

    handle = quick.start("value")
    before = look()
    cancelled = handle.cancel()
    after = look()
    assert after.status is cancelled.status
    if before.status.finished:
        assert not cancelled
        assert after == before, "what had ended has changed"


@pytest.mark.slow
def test_a_cancel_that_overwrites_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some order finishes first: then the success is gone, and that is seen."""
    monkeypatch.setattr(workflows, "cancel", cancel_whatever_it_was)
    text = failure_of(finish_and_cancel, runs=RUNS)
    assert re.search(
        r"finish tests.testing.test_orders:quick\n.* MainThread +durable.cancel\n", text
    )
    assert "workflow-1 tests.testing.test_orders:quick CANCELLED (cancelled)" in text
    assert failure_of(finish_and_cancel, seed=seed_of(text)) == text
    monkeypatch.undo()
    orders(finish_and_cancel, runs=RUNS)


# ---------------------------------------------------------------------- what the engine promises


@workflow
def hub(count: int) -> list[Any]:
    """Gathers what `count` spokes send, and tells each that it has it."""
    got = [durable.recv("in") for _ in range(count)]
    for number, _ in got:
        durable.send(f"spoke {number}", "thanks", "out")
    durable.set_event("gathered", len(got))
    return sorted(got)


@workflow
def spoke(number: int) -> str:
    durable.send("hub", (number, "first"), "in")
    return str(durable.recv("out", timeout=60))


def hub_and_spokes(engine: TestEngine) -> None:
    handle = hub.options(id="hub").start(3)
    spokes = [spoke.options(id=f"spoke {n}").start(n) for n in range(3)]
    assert handle.event("gathered") == 3
    assert [each.result() for each in spokes] == ["thanks"] * 3
    assert handle.result() == [(n, "first") for n in range(3)]


def stopped_while_it_works(engine: TestEngine) -> None:
    handle = hub.options(id="hub", timeout=60).start(2)
    handle.send((0, "first"), "in")
    if handle.cancel():
        handle.resume()
    spoke.options(id="spoke 0").start(0)
    handle.send((1, "first"), "in")
    spoke.options(id="spoke 1").start(1)
    try:
        assert len(handle.result()) == 2
    except WorkflowNotFound as error:
        assert error.workflow_id.startswith("spoke")


@pytest.mark.slow
@pytest.mark.parametrize("program", [hub_and_spokes, stopped_while_it_works])
def test_no_order_changes_what_comes_out(program: Any) -> None:
    """Messages, events, timeouts, cancel and resume between workflows: whatever the order."""
    orders(program, runs=25)


@pytest.mark.slow
@pytest.mark.parametrize("program", [hub_and_spokes, stopped_while_it_works])
def test_no_order_of_many_changes_what_comes_out(program: Any) -> None:
    """The same, a thousand times."""
    orders(program, runs=1000)


def test_deadlock_is_an_assertion() -> None:
    """A test that hangs has failed; it is not an error of the test."""
    assert issubclass(Deadlock, AssertionError)
