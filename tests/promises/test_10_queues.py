"""Promise 10: a queue keeps its limits and its order over any crash; nothing is lost or stuck."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

import durable
from durable import Debouncer, Engine, Queue, Rate, Status, step, testing, workflow
from tests.store.interrupts import ALL, Interruption
from tests.support import PATIENCE

ONE = Queue("promise: one", concurrency=1, priority=True)
TWO = Queue("promise: two", concurrency=2)
RATED = Queue("promise: rated", rate=Rate(2, per=60))
PARTS = Queue("promise: parts", concurrency=1, partitioned=True, rate=Rate(2, per=60))


@step
def work(n: int) -> int:
    return n


@workflow
def job(n: int) -> int:
    return work(n) + work(1)


@workflow
def asks(n: int) -> int:
    done = work(n)
    durable.set_event("asking", True)
    return done + int(durable.recv("more"))


@workflow
def parent(count: int) -> list[int]:
    handles = [TWO.enqueue(job, n) for n in range(count)]
    return [handle.result() for handle in handles]


edited = Debouncer(job.options(queue=ONE), delay=10, max_wait=15)


@workflow
def editor() -> int:
    for n in range(3):
        handle = edited.call("page", n)
        durable.sleep(7)
    return handle.result()


def in_turn(engine: Engine) -> None:
    """A queue of one slot, with priorities, in which one waits for a message."""
    handles = [ONE.enqueue(asks.options(id="asks"), 1)]
    handles += [ONE.enqueue(job.options(id=f"j{n}", priority=n), n) for n in (2, 1)]
    engine.send("asks", 10, "more")
    assert [handle.result() for handle in handles] == [11, 3, 2]


def at_a_rate(engine: Engine) -> None:
    """A queue in which two start in a minute."""
    handles = [RATED.enqueue(work, n) for n in range(4)]
    assert [handle.result() for handle in handles] == [0, 1, 2, 3]


def in_partitions(engine: Engine) -> None:
    """Partitions that share a rate."""
    handles = [PARTS.enqueue(job.options(partition=each), n) for n, each in enumerate("aab")]
    assert [handle.result() for handle in handles] == [1, 2, 3]


def delayed(engine: Engine) -> None:
    """A delay, with a queue and without."""
    handles = [job.options(delay=60).start(1), job.options(delay=90, queue=ONE).start(2)]
    assert [handle.result() for handle in handles] == [2, 3]


def fanned_out(engine: Engine) -> None:
    """A parent whose children are in a queue."""
    assert parent.options(id="parent")(4) == [1, 2, 3, 4]


def debounced(engine: Engine) -> None:
    """A workflow that calls a debounced one three times."""
    assert editor.options(id="editor")() >= 1


def stopped(engine: Engine) -> None:
    """A run that is cancelled in the queue, and one that is while it runs."""
    running = ONE.enqueue(asks.options(id="running"), 1)
    waiting = ONE.enqueue(asks.options(id="waiting"), 2)
    after = ONE.enqueue(job.options(id="after"), 3)
    engine.event("running", "asking")
    for handle in (waiting, running):
        handle.cancel()
    assert after.result() == 4
    assert running.info().status is waiting.info().status is Status.CANCELLED


PROGRAMS = [in_turn, at_a_rate, in_partitions, delayed, fanned_out, stopped]


def name(program: Any) -> str:
    return str(program.__name__)


@pytest.mark.slow
@pytest.mark.parametrize("program", [*PROGRAMS, debounced], ids=name)
def test_a_crash_at_any_write_changes_nothing(program: Any) -> None:
    """Killed in every state of a queue: each run ends once, as it would have, and none is stuck."""
    testing.crashes(program)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=name)
def test_two_crashes_change_nothing(program: Any) -> None:
    """Nor does a crash of each recovery."""
    testing.crashes(program, depth=2)


@pytest.mark.slow
@pytest.mark.parametrize("program", [*PROGRAMS, debounced], ids=name)
def test_any_order_of_threads_will_do(program: Any) -> None:
    """Whoever is faster."""
    testing.orders(program, runs=50)


@pytest.mark.slow
def test_the_limit_holds_in_any_order_and_over_any_crash() -> None:
    """What runs at once in a queue is counted in the steps themselves."""
    now, most = set(), 0

    @step
    def counts(n: int) -> None:
        nonlocal most
        now.add(n)
        most = max(most, len(now))
        engine_of_test[0]._clock.switch()
        now.discard(n)

    engine_of_test: list[Any] = []

    def program(engine: Engine) -> None:
        engine_of_test[:] = [engine]
        now.clear()
        for handle in [TWO.enqueue(counts, n) for n in range(5)]:
            handle.result()

    testing.orders(program, runs=50)
    testing.crashes(program)
    assert most == 2


@pytest.mark.slow
def test_a_ctrl_c_at_any_point_of_enqueue_leaves_no_slot_taken(path: str) -> None:
    """What was accepted runs, and so does what comes after it."""
    begun: list[durable.Handle[int]] = []
    with Engine(path, synchronous="normal") as engine:
        for at in range(1, 10_000):
            q = Queue(f"interrupted {at}", concurrency=1)
            point = Interruption(at, ALL)
            with suppress(KeyboardInterrupt), point.armed():
                q.enqueue(job.options(id=f"r{at}"), at)
            begun += [engine.handle(each.id) for each in engine.workflows(queue=q)]
            begun.append(q.enqueue(job, 0))
            if not point.happened:
                break
        assert at > 100
        for handle in begun:
            assert handle.result(PATIENCE) > 0
