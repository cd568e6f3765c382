"""Queues: who starts when, who holds a slot, and what a user of them is told."""

from __future__ import annotations

import itertools
import logging
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

import durable
from durable import (
    Client,
    Deduplicated,
    DuplicateName,
    Engine,
    InvalidArgument,
    Queue,
    QueueNotFound,
    Rate,
    Retry,
    Status,
    StorageFull,
    WaitTimeout,
    WorkflowConflict,
    register,
    step,
    testing,
    transaction,
    workflow,
)
from durable.runtime.queues import Allowance, Counts, Queues, may_start
from durable.runtime.registry import registry
from durable.store import queues as store
from durable.store.queues import Limits
from durable.testing.engines import TestEngine
from tests.support import PATIENCE, Gate, dying, until

_numbers = itertools.count(1)


def queue(**options: Any) -> Queue:
    """A queue of its own for a test."""
    return Queue(f"queue {next(_numbers)}", **options)


@pytest.fixture
def virtual() -> Iterator[TestEngine]:
    """An engine whose time jumps."""
    with testing.engine() as engine:
        yield engine


@workflow
def held(value: Any = None) -> Any:
    """Runs until it is told to end."""
    durable.recv("end")
    return value


@workflow
def quick(value: Any = None) -> Any:
    return value


@step
def double(n: int) -> int:
    return 2 * n


def statuses(*handles: durable.Handle[Any]) -> list[str]:
    return [str(handle.info().status) for handle in handles]


def started(*handles: durable.Handle[Any]) -> list[bool]:
    return [handle.info().started_at is not None for handle in handles]


# ---------------------------------------------------------------------- what may start (pure)


@pytest.mark.parametrize(
    ("limits", "counts", "expected"),
    [
        (Limits(), Counts(running=99), Allowance(None)),
        (Limits(concurrency=3), Counts(running=1), Allowance(2)),
        (Limits(concurrency=3), Counts(running=5), Allowance(0)),
        (Limits(rate_limit=2, rate_per=10.0), Counts(), Allowance(2)),
        (Limits(rate_limit=2, rate_per=10.0), Counts(0, 1, 95.0), Allowance(1)),
        (Limits(rate_limit=2, rate_per=10.0), Counts(0, 2, 95.0), Allowance(0, 105.0)),
        (Limits(rate_limit=2, rate_per=10.0), Counts(0, 5, 95.0), Allowance(0, 105.0)),
        (Limits(concurrency=1, rate_limit=5, rate_per=10.0), Counts(0, 1, 95.0), Allowance(1)),
        (Limits(concurrency=1, rate_limit=1, rate_per=10.0), Counts(1, 1, 95.0), Allowance(0)),
    ],
)
def test_what_may_start(limits: Limits, counts: Counts, expected: Allowance) -> None:
    """A pure function of limits, counts and moments says how many, and when to look again."""
    assert may_start(limits, counts, 100.0) == expected


# ---------------------------------------------------------------------- order and limits


def test_first_in_first_out(virtual: TestEngine) -> None:
    """What came first starts first, each when the one before has ended."""
    order: list[int] = []

    @workflow
    def notes(n: int) -> None:
        order.append(n)
        durable.sleep(1)

    one = queue(concurrency=1)
    handles = [one.enqueue(notes, n) for n in range(5)]
    for handle in handles:
        handle.result()
    assert order == [0, 1, 2, 3, 4]


def test_no_more_than_the_limit_run_at_once(engine: Engine) -> None:
    """However many threads enqueue, and however fast the runs end."""
    running, most, lock = 0, 0, threading.Lock()

    @workflow
    def counts() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1

    three = queue(concurrency=3)
    handles: list[durable.Handle[None]] = []
    threads = [
        threading.Thread(target=lambda: handles.extend(three.enqueue(counts) for _ in range(40)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.result(PATIENCE)
    assert len(handles) == 160
    assert most <= 3


def test_the_lower_priority_comes_first_and_none_before_any(virtual: TestEngine) -> None:
    """Among equals, the first that came."""
    one = queue(concurrency=1, priority=True)
    first = one.enqueue(held)
    given = [2, 1, None, 1, -5, None]
    handles = [one.enqueue(held.options(priority=each)) for each in given]
    order = []
    for _ in given:
        (now,) = [each for each in (first, *handles) if each.info().status == "PENDING"]
        order.append((first, *handles).index(now))
        now.send(None, "end")
        virtual.clock.settle()
    assert [given[index - 1] for index in order[1:]] == [None, None, -5, 1, 1]
    assert order == [0, 3, 6, 5, 2, 4]


def test_a_partition_has_its_own_slots(virtual: TestEngine) -> None:
    """One full partition does not stop another."""
    q = queue(concurrency=1, partitioned=True)
    a, also_a, b = (q.enqueue(held.options(partition=each)) for each in "aab")
    virtual.clock.settle()
    assert statuses(a, also_a, b) == ["PENDING", "ENQUEUED", "PENDING"]
    assert also_a.info().partition == "a"


def test_partitions_share_the_rate_in_the_order_of_coming(virtual: TestEngine) -> None:
    """The rate is that of the queue: whoever came first starts first, in whatever partition."""
    q = queue(rate=Rate(1, per=10), partitioned=True)
    handles = [q.enqueue(quick.options(partition=each), each) for each in "zxya"]
    for handle in handles:
        handle.result()
    moments = [handle.info().started_at for handle in handles]
    assert moments == sorted(moments)  # type: ignore[type-var]


def test_a_hundred_and_more_partitions_are_all_served(path: str) -> None:
    """Also those that one transaction does not get to."""
    q = queue(concurrency=1, partitioned=True)
    with Engine(path):
        pass
    with Client(path) as client:
        for n in range(230):
            client.enqueue(quick.name, n, queue=q, partition=f"p{n}")
    with Engine(path) as engine:
        for each in engine.workflows(queue=q):
            assert engine.handle(each.id).result(PATIENCE) == each.args[0]


def test_the_rate_is_that_of_a_sliding_window(virtual: TestEngine) -> None:
    """In no span of ten seconds do more than three start; and no time is lost."""
    q = queue(rate=Rate(3, per=timedelta(seconds=10)))
    begin = virtual.clock.now()
    handles = [q.enqueue(quick) for _ in range(2)]
    virtual.clock.advance(seconds=6)
    handles += [q.enqueue(quick) for _ in range(6)]
    for handle in handles:
        handle.result()
    at = [each.info().started_at.timestamp() - begin for each in handles]  # type: ignore[union-attr]
    assert at == [0, 0, 6, 10, 10, 16, 20, 20]


def test_the_rate_holds_over_a_restart(path: str) -> None:
    """What was started before the process died counts."""
    q = queue(rate=Rate(2, per=60))
    clock = testing.VirtualClock()
    begin = clock.moment
    with dying(path, clock=clock):
        first = [q.enqueue(quick) for _ in range(3)]
        clock.settle()
        assert started(*first) == [True, True, False]
    clock.advance(seconds=30)
    with Engine(path, clock=clock) as engine:
        clock.settle()
        third = engine.handle(first[2].id)
        assert started(third) == [False]
        third.result()
        assert third.info().started_at == begin + timedelta(seconds=60)


def test_a_run_that_waits_keeps_its_slot(virtual: TestEngine) -> None:
    """Asleep, it is running."""

    @workflow
    def sleeps() -> None:
        durable.sleep(3600)

    one = queue(concurrency=1)
    asleep, next_one = one.enqueue(sleeps), one.enqueue(quick)
    virtual.clock.advance(minutes=59)
    assert statuses(asleep, next_one) == ["PENDING", "ENQUEUED"]
    assert next_one.result() is None


def test_an_idle_queue_does_nothing(virtual: TestEngine) -> None:
    """No look at the file, however long nothing happens; also not where the queue is full."""
    full, rated = queue(concurrency=1), queue(concurrency=1, rate=Rate(1, per=60))
    handles = [each.enqueue(held) for each in (full, rated) for _ in range(3)]
    virtual.clock.advance(minutes=2)
    before = list(virtual.journal.entries)
    virtual.clock.advance(hours=10)
    assert virtual.journal.entries == before
    assert statuses(*handles).count("PENDING") == 2


@pytest.mark.slow
def test_a_queue_with_many_waiting_does_not_delay_another(engine: Engine, path: str) -> None:
    """What is in a full queue is not looked at when another starts something."""
    full, other = queue(concurrency=1), queue(concurrency=1)
    full.enqueue(held)
    with sqlite3.connect(path) as connection:
        connection.execute(
            """
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
            INSERT INTO durable_workflow (id, name, status, input, created_at, seed, queue)
            SELECT 'many' || i, ?, 'ENQUEUED', '[[],{}]', 1.0, 'many' || i, ? FROM n
            """,
            (quick.name, full.name),
        )
    connection.close()
    instructions: list[int] = []
    writer = engine._host.database._writer  # type: ignore[union-attr]
    writer.set_progress_handler(lambda: instructions.append(1) and None, 1000)
    try:
        assert other.enqueue(quick, 5).result(PATIENCE) == 5
    finally:
        writer.set_progress_handler(None, 0)
    assert len(instructions) < 20  # thousands of steps of SQLite's machine; a scan takes 1,000


# ---------------------------------------------------------------------- ends of all kinds


def test_a_run_that_fails_frees_its_slot(engine: Engine) -> None:
    """An error is an end like any other."""

    @workflow
    def fails() -> None:
        raise ValueError("no")

    one = queue(concurrency=1)
    failed, after = one.enqueue(fails), one.enqueue(quick, 1)
    with pytest.raises(ValueError, match="no"):
        failed.result(PATIENCE)
    assert after.result(PATIENCE) == 1


def test_a_cancelled_run_frees_its_slot(virtual: TestEngine) -> None:
    """At once, and what waits can be cancelled too: it never starts."""
    one = queue(concurrency=1)
    first, second, third = (one.enqueue(held) for _ in range(3))
    assert second.cancel()
    assert first.cancel()
    virtual.clock.settle()
    assert statuses(first, second, third) == ["CANCELLED", "CANCELLED", "PENDING"]
    assert started(second) == [False]


def test_a_deadline_counts_from_the_start(virtual: TestEngine) -> None:
    """The time in the queue is not the run's; when it is over, the slot is free."""
    one = queue(concurrency=1)
    first = one.enqueue(held.options(timeout=10))
    second = one.enqueue(held.options(timeout=10))
    virtual.clock.advance(seconds=15)
    assert statuses(first, second) == ["CANCELLED", "PENDING"]
    virtual.clock.advance(seconds=6)
    assert statuses(second) == ["CANCELLED"]


def test_a_delayed_run_can_be_cancelled(virtual: TestEngine) -> None:
    """It never starts, also when its moment comes."""
    handle = held.options(delay=60).start()
    assert statuses(handle) == ["DELAYED"]
    assert handle.cancel()
    virtual.clock.advance(seconds=90)
    assert statuses(handle) == ["CANCELLED"]
    assert started(handle) == [False]


def test_a_cancelled_family_in_queues(virtual: TestEngine) -> None:
    """Children that wait in a queue are cancelled with their parent, and go on with it."""
    one = queue(concurrency=1)

    @workflow
    def parent() -> Any:
        handles = [one.enqueue(held, n) for n in range(2)]
        return [handle.result() for handle in handles]

    top = parent.options(id="top").start()
    virtual.clock.settle()
    family = [virtual.handle(each.id) for each in virtual.workflows(parent="top")]
    top.cancel()
    virtual.clock.settle()
    assert statuses(*family) == ["CANCELLED"] * 2
    top.resume()
    virtual.clock.settle()
    assert statuses(*family) == ["PENDING", "ENQUEUED"]
    for each in family:
        each.send(None, "end")
    assert top.result() == [0, 1]


def test_a_resumed_run_waits_for_its_turn(virtual: TestEngine) -> None:
    """It takes its old place in the queue, and has what it had recorded."""
    one = queue(concurrency=1)
    first, second, third = (one.enqueue(held, n) for n in range(3))
    first.cancel()
    virtual.clock.settle()
    first.resume()
    virtual.clock.settle()
    assert statuses(first, second, third) == ["ENQUEUED", "PENDING", "ENQUEUED"]
    second.send(None, "end")
    virtual.clock.settle()
    assert statuses(first, second, third) == ["PENDING", "SUCCESS", "ENQUEUED"]


def test_a_fork_goes_through_the_queue(virtual: TestEngine) -> None:
    """A copy needs a slot like its original."""
    one = queue(concurrency=1)
    original = one.enqueue(held, 7)
    copy = original.fork()
    virtual.clock.settle()
    assert statuses(original, copy) == ["PENDING", "ENQUEUED"]
    for each in (original, copy):
        each.send(None, "end")
        assert each.result() == 7


def test_a_run_that_exits_frees_its_slot(path: str) -> None:
    """A step that calls sys.exit() leaves its run for the next start, where it takes its turn."""
    leaving = [True]

    @step
    def leaves() -> str:
        if leaving.pop():
            raise SystemExit("mend me")
        return "mended"

    one = queue(concurrency=1)
    with Engine(path) as engine:
        engine.recover()  # whatever there is to recover was
        left, after = one.enqueue(leaves), one.enqueue(quick, 1)
        assert after.result(PATIENCE) == 1
        leaving[:] = [False, False]
    with Engine(path) as engine:
        assert engine.handle(left.id).result(PATIENCE) == "mended"


def test_a_run_that_comes_back_to_its_queue_keeps_its_steps(path: str) -> None:
    """It had started with the commit that enqueued it; what it recorded is not done again."""
    done: list[int] = []
    leaving = [True]

    @step
    def first() -> int:
        done.append(1)
        return 1

    @workflow
    def leaves() -> int:
        value = first()
        if leaving[0]:
            raise SystemExit("mend me")
        return value

    one = queue(concurrency=1)
    with Engine(path) as engine:
        handle = one.enqueue(leaves)
        until(lambda: handle.info().reason)
        leaving[0] = False
        engine.recover([handle.id])  # it waits for its turn again
        assert handle.result(PATIENCE) == 1
    assert done == [1]


def test_those_that_wait_begin_before_those_that_come(engine: Engine) -> None:
    """Where there is room and somebody waits, one that comes does not go past."""
    begun: list[int] = []

    @workflow
    def job(number: int) -> None:
        begun.append(number)

    one, gate = queue(concurrency=1), Gate()
    blocker = one.enqueue(workflow(gate.pass_through, name="queues:blocker"))
    gate.wait_reached()
    handles = [one.enqueue(job, number) for number in range(5)]
    gate.open()
    handles += [one.enqueue(job, number) for number in range(5, 30)]
    for handle in (blocker, *handles):
        handle.result(PATIENCE)
    assert begun == list(range(30))


def test_the_next_one_begins_on_the_thread_of_the_last(engine: Engine) -> None:
    """No thread is woken where one is just free; each has its own name and context."""
    threads: list[threading.Thread] = []
    names: list[str] = []

    @workflow
    def job(number: int) -> None:
        threads.append(threading.current_thread())
        names.append(threading.current_thread().name)

    one, gate = queue(concurrency=1), Gate()
    one.enqueue(workflow(gate.pass_through, name="queues:holder"))
    gate.wait_reached()
    handles = [one.enqueue(job, number) for number in range(5)]
    gate.open()
    for handle in handles:
        handle.result(PATIENCE)
    assert len(set(threads)) == 1
    assert names == [f"durable {handle.id}" for handle in handles]


def test_n02_a_dead_run_frees_its_slot(path: str) -> None:
    """N02: given up, it does not block the queue."""
    one = queue(concurrency=1)
    gate = Gate()

    @workflow(max_recoveries=0)
    def poison() -> None:
        gate.pass_through()

    with dying(path):
        dead, after = one.enqueue(poison), one.enqueue(quick, 1)
        gate.wait_reached()
    gate.open()
    with Engine(path) as engine:
        assert engine.handle(after.id).result(PATIENCE) == 1
        assert statuses(engine.handle(dead.id)) == ["DEAD"]


def test_n53_a_run_without_its_code_frees_its_slot(path: str) -> None:
    """N53: it stays, with a reason; when its code is there, it takes its turn."""
    one, name = queue(concurrency=1), f"not_there_yet_{secrets.token_hex(4)}"
    with Engine(path) as engine:
        stuck = engine.enqueue(name, 5, queue=one)
        assert one.enqueue(quick, 1).result(PATIENCE) == 1
        assert name in str(stuck.info().reason)
    with Engine(path) as engine:
        stuck = engine.handle(stuck.id)
        blocker = one.enqueue(held)
        until(lambda: statuses(blocker) == ["PENDING"])

        @workflow(name=name)
        def not_there_yet(n: int) -> int:
            return n

        until(lambda: statuses(stuck) == ["ENQUEUED"])
        blocker.send(None, "end")
        assert stuck.result(PATIENCE) == 5


def test_a_run_without_its_instance_frees_its_slot(path: str) -> None:
    """And takes its turn when the instance is registered."""

    class Shop:
        def __init__(self, durable_key: str) -> None:
            self.durable_key = durable_key

        @workflow
        def sells(self) -> str:
            return self.durable_key

    one = queue(concurrency=1)
    with dying(path):
        blocker = one.enqueue(held)
        sale = one.enqueue(Shop("corner").sells)
        blocker.cancel()
    registry._instances.clear()
    with Engine(path) as engine:
        assert one.enqueue(quick, 1).result(PATIENCE) == 1
        register(Shop("corner"))
        assert engine.handle(sale.id).result(PATIENCE) == "corner"


def test_a_run_that_the_predicate_leaves_frees_its_slot(path: str) -> None:
    """recover= may refuse a run; recover([id]) has it wait for its turn."""
    one = queue(concurrency=1)
    clock = testing.VirtualClock()
    with dying(path, clock=clock):
        left = one.enqueue(held, 1)
        clock.settle()
    with Engine(path, clock=clock, recover=lambda run: run.id != left.id) as engine:
        assert one.enqueue(quick, 2).result() == 2
        left = engine.handle(left.id)
        assert "recover" in str(left.info().reason)
        engine.recover([left.id])
        left.send(None, "end")
        assert left.result() == 1


@pytest.mark.slow
def test_a_run_whose_file_failed_frees_its_slot(engine: Engine) -> None:
    """Once the file can be written again; the run itself waits for the next start, or recover()."""
    one = queue(concurrency=1)
    failing = [True, True]

    class Full:
        def before(self, label: str) -> None:
            if label.startswith(f"finish {quick.name}") and failing:
                failing.pop()
                raise StorageFull("test.db", "no space left")

        def after(self, label: str) -> None: ...

    assert engine._host is not None
    engine._host.database.observer = Full()
    failed, also, after = (one.enqueue(quick, n) for n in range(3))
    assert after.result(PATIENCE) == 2
    assert "no space left" in str(failed.info().reason)
    engine.recover()
    assert [failed.result(PATIENCE), also.result(PATIENCE)] == [0, 1]


def test_a_system_without_more_threads(
    virtual: TestEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken begins when there are threads again."""
    host = virtual._host
    assert host is not None
    one = queue(concurrency=1)
    virtual.clock.settle()
    with monkeypatch.context() as patch:
        spawn = host.spawn

        def refuse(name: str, target: Any) -> None:
            if name.startswith("durable workflow-"):  # the id of a run
                raise RuntimeError("can't start new thread")
            spawn(name, target)

        patch.setattr(host, "spawn", refuse)
        handles = [one.enqueue(quick, n) for n in range(3)]
        virtual.clock.settle()
        assert statuses(*handles) == ["PENDING", "ENQUEUED", "ENQUEUED"]
    assert [handle.result() for handle in handles] == [0, 1, 2]


@pytest.mark.slow
def test_recovery_leaves_alone_what_is_about_to_begin() -> None:
    """In any order of threads: what a queue starts while recovery looks around runs once."""
    one, ran = queue(concurrency=1), []

    @workflow
    def counts(n: int) -> None:
        ran.append(n)

    def program(engine: Engine) -> None:
        ran.clear()
        handles = [one.enqueue(counts, n) for n in range(3)]
        engine.recover()
        for handle in handles:
            handle.result()
        assert ran == [0, 1, 2]

    testing.orders(program, runs=100)


@pytest.mark.slow
def test_ctrl_c_while_something_is_enqueued(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken in that moment begins all the same: no slot stays taken for nothing."""
    one = queue(concurrency=1)
    assert isinstance(engine._host.queues, Queues)  # type: ignore[union-attr]
    with monkeypatch.context() as patch:

        def interrupted(*_: Any) -> None:
            patch.undo()
            raise KeyboardInterrupt

        patch.setattr(engine._host.queues, "begin", interrupted)  # type: ignore[union-attr]
        with pytest.raises(KeyboardInterrupt):
            one.enqueue(quick.options(id="a"), 1)
    assert one.enqueue(quick, 2).result(PATIENCE) == 2
    assert engine.handle("a").result(PATIENCE) == 1


# ---------------------------------------------------------------------- restarts


def test_nothing_is_lost_over_a_crash(path: str) -> None:
    """What ran goes on in its slot, what waited waits, and what was delayed starts when due."""
    two = queue(concurrency=2)
    clock = testing.VirtualClock()
    with dying(path, clock=clock):
        ids = [two.enqueue(held, n).id for n in range(4)]
        later = two.enqueue(held.options(delay=100), 4).id
        clock.settle()
    with Engine(path, clock=clock) as engine:
        clock.settle()
        handles = [engine.handle(each) for each in (*ids, later)]
        assert statuses(*handles) == ["PENDING"] * 2 + ["ENQUEUED"] * 2 + ["DELAYED"]
        for handle in handles:
            handle.send(None, "end")
        assert [handle.result() for handle in handles] == [0, 1, 2, 3, 4]


def test_a_delay_ends_while_nothing_runs(path: str) -> None:
    """The next engine starts it at once."""
    clock = testing.VirtualClock()
    with Engine(path, clock=clock):
        handle = quick.options(delay=60).start(1)
        assert handle.info().delay_until == clock.moment + timedelta(seconds=60)
    clock.advance(minutes=5)
    with Engine(path, clock=clock) as engine:
        assert engine.handle(handle.id).result() == 1
        assert engine.handle(handle.id).info().started_at == clock.moment


def test_leaving_the_block_drains_the_queue(path: str) -> None:
    """All that can start as slots come free is done; what is delayed stays for the next start."""
    two = queue(concurrency=2)
    with Engine(path) as engine:
        handles = [two.enqueue(quick, n) for n in range(50)]
        delayed = two.enqueue(quick.options(delay=3600))
    with Client(path) as client:
        assert {each.status for each in client.workflows(limit=50)} == {Status.SUCCESS}
        assert len(handles) == 50
        assert client.handle(delayed.id).info().status == "DELAYED"
    assert engine is not None


def test_leaving_the_block_waits_for_the_rate(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A script that enqueues more than may start at once ends when all are done, and says why."""
    clock = testing.VirtualClock()
    slow = queue(rate=Rate(2, per=60))
    with caplog.at_level(logging.WARNING, "durable"), Engine(path, clock=clock):
        begin = clock.now()
        for n in range(5):
            slow.enqueue(quick, n)
    assert clock.now() - begin == 120
    assert f"queue {slow.name!r} (waits for its rate)" in caplog.text
    with Client(path) as client:
        assert {each.status for each in client.workflows()} == {Status.SUCCESS}


def test_nobody_waits_for_the_rate_of_what_was_cancelled(path: str) -> None:
    """Leaving the block does not wait for a window that nothing waits for."""
    clock = testing.VirtualClock()
    slow = queue(rate=Rate(1, per=3600))
    with Engine(path, clock=clock):
        begin = clock.now()
        slow.enqueue(quick).result()
        slow.enqueue(quick).cancel()
    assert clock.now() == begin


@pytest.mark.parametrize(
    "limits",
    [{"concurrency": None}, {"concurrency": 300}, {"concurrency": None, "rate": Rate(999, per=60)}],
)
def test_more_than_one_transaction_takes(virtual: TestEngine, limits: Any) -> None:
    """Hundreds that may start at the same moment all do."""
    q = queue(concurrency=1)
    first = q.enqueue(held)
    handles = q.enqueue_many(quick, range(350))
    q.change(**limits)
    virtual.clock.settle()
    assert statuses(first) == ["PENDING"]
    assert set(statuses(*handles)) == {"SUCCESS"}


@pytest.mark.slow
def test_hundreds_are_due_at_the_same_moment(virtual: TestEngine) -> None:
    """All of them start then."""
    handles = queue().enqueue_many(quick.options(delay=30), range(350))
    virtual.clock.advance(seconds=30)
    assert set(statuses(*handles)) == {"SUCCESS"}


def test_closing_at_once_leaves_what_waits(path: str) -> None:
    """It starts when an engine opens the file again."""
    one = queue(concurrency=1)
    engine = Engine(path).open()
    handles = [one.enqueue(held, n) for n in range(3)]
    engine.close(timeout=0)
    with Client(path) as client:
        assert [each.status for each in client.workflows()] == ["PENDING", "ENQUEUED", "ENQUEUED"]
    with Engine(path) as engine:
        for handle in handles:
            engine.handle(handle.id).send(None, "end")


def test_recover_manual_leaves_queues_alone(path: str) -> None:
    """Until recover() is called; then what ran and what waits goes on."""
    one = queue(concurrency=1)
    with dying(path):
        handles = [one.enqueue(held, n) for n in range(2)]
    clock = testing.VirtualClock()
    with Engine(path, recover="manual", clock=clock) as engine:
        clock.settle()
        assert statuses(*(engine.handle(each.id) for each in handles)) == ["PENDING", "ENQUEUED"]
        assert engine._host is not None
        assert not engine._host.runs.all()
        engine.recover()
        for each in handles:
            engine.send(each.id, None, "end")


def test_lowered_limits_over_a_restart(path: str) -> None:
    """What runs goes on; nothing new starts before it is fewer than the new limit."""
    q = queue(concurrency=3)
    clock = testing.VirtualClock()
    with dying(path, clock=clock):
        handles = [q.enqueue(held, n) for n in range(5)]
        clock.settle()
        q.change(concurrency=1)
    with Engine(path, clock=clock) as engine:
        handles = [engine.handle(each.id) for each in handles]
        for n in range(5):
            clock.settle()
            running = statuses(*handles).count("PENDING")
            assert running == max(3 - n, 1)
            handles[n].send(None, "end")
            handles[n].result()


# ---------------------------------------------------------------------- limits that change


def test_raised_limits_count_at_once(virtual: TestEngine) -> None:
    """Nothing has to end first."""
    q = queue(concurrency=1, rate=Rate(2, per=3600))
    handles = [q.enqueue(held) for _ in range(4)]
    q.change(concurrency=None)
    virtual.clock.settle()
    assert started(*handles) == [True, True, False, False]
    virtual.change_queue(q.name, rate=None)
    virtual.clock.settle()
    assert started(*handles) == [True] * 4


def test_changed_limits_survive_and_a_new_declaration_wins(path: str) -> None:
    """A change holds over restarts, until the code says something else than it did."""
    q = queue(concurrency=1)

    def limit(engine: Engine) -> int | None:
        assert engine._file is not None
        return engine._file.database.read(lambda tx: store.find(tx, q.name)).limits.concurrency

    with Engine(path) as engine:
        q.change(concurrency=5)
    with Engine(path) as engine:
        assert limit(engine) == 5
    del registry._queues[q.name]
    Queue(q.name, concurrency=2)
    with Engine(path) as engine:
        assert limit(engine) == 2


def test_a_change_from_another_process(path: str) -> None:
    """A client changes the limits of the queue of a running engine."""
    one = queue(concurrency=1)
    with Engine(path), Client(path) as client:
        handles = [one.enqueue(held) for _ in range(2)]
        client.change_queue(one.name, concurrency=2)
        until(lambda: started(*handles) == [True, True])
        for handle in handles:
            handle.send(None, "end")


# ---------------------------------------------------------------------- dedup


def test_dedup_refuses_a_second_one(virtual: TestEngine) -> None:
    """While one waits or runs under it; afterwards it is free."""
    one = queue(concurrency=1)
    running = one.enqueue(held.options(dedup="a"))
    waiting = one.enqueue(held.options(dedup="b"))
    for dedup, holder in (("a", running), ("b", waiting)):
        with pytest.raises(Deduplicated) as caught:
            one.enqueue(held.options(dedup=dedup))
        assert caught.value.workflow_id == holder.id
        assert (caught.value.queue, caught.value.dedup) == (one.name, dedup)
    queue().enqueue(held.options(dedup="a"))
    running.send(None, "end")
    running.result()
    again = one.enqueue(held.options(dedup="a"))
    assert again.info().dedup == "a"


def test_dedup_counts_while_delayed(virtual: TestEngine) -> None:
    """A run to come is one that waits."""
    q = queue()
    first = q.enqueue(quick.options(dedup="a", delay=60))
    with pytest.raises(Deduplicated):
        q.enqueue(quick.options(dedup="a"))
    first.cancel()
    assert q.enqueue(quick.options(dedup="a"), 1).result() == 1


def test_dedup_in_a_workflow_is_recorded(virtual: TestEngine) -> None:
    """The same at every replay, although the text is free by then."""
    one = queue(concurrency=1)

    @workflow
    def parent() -> str:
        try:
            one.enqueue(quick.options(dedup="a"))
        except Deduplicated as error:
            held_by = error.workflow_id
        durable.recv("go on")
        return held_by

    holder = one.enqueue(held.options(dedup="a"))
    handle = parent.start()
    virtual.clock.settle()
    holder.send(None, "end")
    holder.result()
    virtual._host.stop(virtual._host.runs.of(handle.id)[0])  # type: ignore[union-attr]
    virtual.clock.settle()
    virtual.recover([handle.id])
    handle.send(None, "go on")
    assert handle.result() == holder.id


def test_a_resumed_run_may_find_its_dedup_taken(virtual: TestEngine) -> None:
    """Then it stays as it is, and the error says who has it."""
    q = queue()
    first = q.enqueue(held.options(dedup="a"))
    first.cancel()
    second = q.enqueue(held.options(dedup="a"))
    with pytest.raises(Deduplicated) as caught:
        first.resume()
    assert caught.value.workflow_id == second.id
    assert statuses(first) == ["CANCELLED"]


def test_an_id_that_exists_attaches(virtual: TestEngine) -> None:
    """Enqueued twice under one id it runs once, whatever its dedup is."""
    q = queue()
    handles = [q.enqueue(held.options(id="same", dedup="a"), n) for n in range(2)]
    handles[1].send(None, "end")
    assert [handle.result() for handle in handles] == [0, 0]
    with pytest.raises(WorkflowConflict):
        q.enqueue(quick.options(id="same"))


def test_many_share_a_commit(virtual: TestEngine) -> None:
    """Each item is one run; hundreds are written together, and limits and order are as ever."""
    one = queue(concurrency=1)
    before = len(virtual.journal.entries)
    handles = one.enqueue_many(quick, range(450))
    labels = [each.label for each in virtual.journal.entries[before:]]
    assert labels.count(f"enqueue {quick.name}") == 3
    assert [handle.result() for handle in handles] == list(range(450))
    starts = [handle.info().started_at for handle in handles]
    assert starts == sorted(starts)  # type: ignore[type-var]
    assert one.enqueue_many(double, []) == []


def test_many_in_a_workflow_are_its_children(virtual: TestEngine) -> None:
    """Each with a number of its own."""
    two = queue(concurrency=2)

    @workflow
    def parent() -> list[int]:
        return [handle.result() for handle in two.enqueue_many(double, range(3))]

    assert parent.options(id="p")() == [0, 2, 4]
    assert [each.id for each in virtual.workflows(parent="p")] == ["p.1", "p.2", "p.3"]


@pytest.mark.parametrize("options", [{"id": "a"}, {"dedup": "a"}])
def test_many_cannot_share_an_id(virtual: TestEngine, options: Any) -> None:
    """Nothing is written."""
    with pytest.raises(InvalidArgument, match="one by one"):
        queue().enqueue_many(quick.options(**options), [1, 2])
    with pytest.raises(InvalidArgument, match="decorate"):
        queue().enqueue_many(len, [[]])  # type: ignore[arg-type]
    assert not virtual.workflows()


# ---------------------------------------------------------------------- in workflows


def test_children_in_a_queue(virtual: TestEngine) -> None:
    """Enqueued in a workflow, they are its children; a call waits for its turn and the result."""
    two = queue(concurrency=2)

    @workflow
    def parent() -> list[Any]:
        handles = [two.enqueue(quick, n) for n in range(5)]
        return [quick.options(queue=two)("called"), *durable.gather(*handles)]

    assert parent.options(id="p")() == ["called", 0, 1, 2, 3, 4]
    assert {each.queue for each in virtual.workflows(parent="p")} == {two.name}


def test_a_parent_that_waits_for_a_child_in_its_own_full_queue(
    virtual: TestEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """It is warned of, once, with both names and the queue; raising the limit frees them."""
    one = queue(concurrency=1)

    @workflow
    def parent() -> Any:
        handles = [one.enqueue(quick, n) for n in range(2)]
        return [handle.result() for handle in handles]

    handle = one.enqueue(parent.options(id="waiter"))
    with caplog.at_level(logging.WARNING, "durable"):
        virtual.clock.settle()
    (warning,) = [each.getMessage() for each in caplog.records]
    assert "'waiter'" in warning
    assert "'waiter.1'" in warning
    assert repr(one.name) in warning
    one.change(concurrency=2)
    assert handle.result() == [0, 1]


def test_no_warning_where_nothing_is_stuck(
    virtual: TestEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """A child in another queue, or in the same one with a free slot."""
    two, other = queue(concurrency=2), queue(concurrency=1)

    @workflow
    def parent() -> Any:
        return [two.enqueue(quick, 1).result(), other.enqueue(quick, 2).result()]

    with caplog.at_level(logging.WARNING, "durable"):
        assert two.enqueue(parent).result() == [1, 2]
    assert not caplog.records


def test_a_step_may_not_enqueue(virtual: TestEngine) -> None:
    """It may run twice."""
    q = queue()

    @step
    def enqueues(by_name: bool) -> None:
        if by_name:
            virtual.enqueue(quick.name, queue=q)
        else:
            q.enqueue(quick)

    @workflow
    def parent(by_name: bool) -> None:
        enqueues(by_name)

    for by_name in (True, False):
        with pytest.raises(durable.NotAllowedHere):
            parent(by_name)


# ---------------------------------------------------------------------- steps


def test_a_step_in_a_queue(virtual: TestEngine) -> None:
    """It runs as a workflow of its own, which is named for it."""
    handle = queue(concurrency=1).enqueue(double, n=4)
    assert handle.result() == 8
    assert handle.info().name == f"durable.step:{double.name}"
    assert [each.name for each in handle.steps()] == [double.name]


def test_a_step_in_a_queue_is_tried_again(virtual: TestEngine) -> None:
    """By its own policy."""
    tries: list[int] = []

    @step(retry=Retry(attempts=3, delay=60))
    def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError
        return len(tries)

    assert queue().enqueue(flaky).result() == 3


def test_a_step_in_a_queue_over_a_crash(path: str) -> None:
    """It is found again by its name."""
    gate = Gate()

    @step
    def waits() -> str:
        gate.pass_through()
        return "done"

    one = queue(concurrency=1)
    with dying(path):
        handles = [one.enqueue(waits), one.enqueue(double, 2)]
        gate.wait_reached()
    gate.open()
    with Engine(path) as engine:
        assert [engine.handle(each.id).result(PATIENCE) for each in handles] == ["done", 4]


def test_a_transaction_in_a_queue(virtual: TestEngine) -> None:
    """Its cursor is durable's to give."""

    @transaction
    def adds(cursor: sqlite3.Cursor, n: int) -> int:
        return int(cursor.execute("SELECT ? + 1", (n,)).fetchone()[0])

    assert queue().enqueue(adds, 1).result() == 2


def test_a_method_that_is_a_step_cannot_be_enqueued(virtual: TestEngine) -> None:
    """The error says what to do instead."""

    class Shop:
        @step
        def sells(self) -> None: ...

    with pytest.raises(InvalidArgument, match="enqueue a workflow"):
        queue().enqueue(Shop().sells)


# ---------------------------------------------------------------------- by name


def test_a_client_enqueues_by_name(path: str) -> None:
    """With all options; the engine starts it."""
    one = queue(concurrency=1, priority=True)
    with Engine(path), Client(path) as client:
        handle = client.enqueue(
            quick.name, queue=one, kwargs={"value": 5}, id="a", priority=1, tags=["t"], dedup="d"
        )
        assert handle.result(PATIENCE) == 5
        info = handle.info()
        assert (info.id, info.priority, info.tags, info.dedup) == ("a", 1, ("t",), "d")
        assert client.enqueue(f"durable.step:{double.name}", 4, queue=one).result(PATIENCE) == 8


def test_a_client_enqueues_while_no_engine_runs(path: str) -> None:
    """The next engine starts it."""
    one = queue(concurrency=1)
    Engine(path).open().close()
    with Client(path) as client:
        handles = [client.enqueue(quick.name, n, queue=one.name) for n in range(3)]
    with Engine(path) as engine:
        assert [engine.handle(each.id).result(PATIENCE) for each in handles] == [0, 1, 2]


def test_a_run_enqueued_by_name_has_the_timeout_of_its_workflow(virtual: TestEngine) -> None:
    """Although whoever enqueued it did not know it."""

    @workflow(timeout=60)
    def expires() -> None:
        durable.recv("never")

    handle = virtual.enqueue(expires.name, queue=queue())
    virtual.clock.advance(seconds=61)
    assert statuses(handle) == ["CANCELLED"]


def test_an_unknown_queue_is_an_error_that_lists_the_known_ones(virtual: TestEngine) -> None:
    """Nothing is written."""
    known = queue()
    with pytest.raises(QueueNotFound, match=known.name) as caught:
        virtual.enqueue(quick.name, queue="unknown")
    assert caught.value.name == "unknown"
    assert known.name in caught.value.known
    with pytest.raises(QueueNotFound):
        quick.options(queue="unknown").start()
    with pytest.raises(QueueNotFound):
        virtual.change_queue("unknown", concurrency=1)
    assert not virtual.workflows()


@pytest.mark.slow
def test_n35_each_of_a_thousand_jobs_runs_once(path: str) -> None:
    """N35: however many processes enqueue and however many threads take, each job runs once."""
    ran: list[int] = []
    four = queue(concurrency=4)

    @workflow
    def job(n: int) -> None:
        ran.append(n)

    def enqueue(first: int) -> None:
        with Client(path) as client:
            for n in range(first, first + 250):
                client.enqueue(job.name, n, queue=four)

    with Engine(path):
        threads = [threading.Thread(target=enqueue, args=(n * 250,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: len(ran) >= 1000)
    assert sorted(ran) == list(range(1000))


# ---------------------------------------------------------------------- declaring and asking


def test_a_queue_declared_twice(virtual: TestEngine) -> None:
    """The same again is fine, other limits are an error that shows both."""
    q = queue(concurrency=2, rate=Rate(5, per=60))
    Queue(q.name, concurrency=2, rate=Rate(5, per=timedelta(minutes=1)))
    with pytest.raises(DuplicateName, match=r"concurrency=2, rate=Rate\(5, per=60\)"):
        Queue(q.name, concurrency=3)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"rate": 5}, "durable.Rate"),
        ({"priority": 1}, "priority"),
        ({"partitioned": "a"}, "partitioned"),
    ],
)
def test_a_queue_of_no_use_is_refused(options: Any, match: str) -> None:
    """When it is declared."""
    with pytest.raises(InvalidArgument, match=match):
        queue(**options)


@pytest.mark.parametrize("name", ["", 5, None, "durable.mine", "a\nb"])
def test_a_name_of_no_use_is_refused(name: Any) -> None:
    """A name is a text of printable characters, and not one of durable's own."""
    with pytest.raises(InvalidArgument):
        Queue(name)


@pytest.mark.parametrize(("limit", "per"), [(0, 1), (1, 0), (1, -1), (1.5, 1), ("1", 1), (1, "1")])
def test_a_rate_of_no_use_is_refused(limit: Any, per: Any) -> None:
    """At least one start in a span that is not empty."""
    with pytest.raises(InvalidArgument):
        Rate(limit, per)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"priority": 1}, "priority=True"),
        ({"partition": "a"}, "partitioned=True"),
    ],
)
def test_options_that_the_queue_does_not_have(
    virtual: TestEngine, options: Any, match: str
) -> None:
    """The error says how the queue would have to be declared."""
    with pytest.raises(InvalidArgument, match=match):
        queue().enqueue(quick.options(**options))
    with pytest.raises(InvalidArgument, match="partition="):
        queue(partitioned=True).enqueue(quick)


@pytest.mark.parametrize("options", [{"priority": 0}, {"partition": "a"}, {"dedup": "a"}])
def test_options_of_queues_need_a_queue(virtual: TestEngine, options: Any) -> None:
    """And say so; a priority of 0 is one."""
    with pytest.raises(InvalidArgument, match=f"{next(iter(options))} .*queue="):
        quick.options(**options).start()


def test_what_is_enqueued_is_a_workflow_or_a_step(virtual: TestEngine) -> None:
    """Anything else is refused by name, and so are arguments that do not fit."""
    q = queue()
    with pytest.raises(InvalidArgument, match="decorate"):
        q.enqueue(len, [])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        q.enqueue(double)  # type: ignore[call-arg]
    with pytest.raises(InvalidArgument, match="options"):
        q.enqueue(quick.options(queue=queue()))
    with pytest.raises(InvalidArgument, match="nothing to change"):
        q.change()


def test_a_queue_declared_while_the_engine_is_open(virtual: TestEngine) -> None:
    """It is known at once, to clients too."""
    late = queue()
    assert virtual.enqueue(quick.name, 1, queue=late.name).result() == 1


def test_lists_show_queues(virtual: TestEngine) -> None:
    """Where a run waits, and since when it may start, is in its record."""
    q = queue(priority=True)
    handle = q.enqueue(quick.options(priority=3, delay=60, dedup="d"))
    quick()
    (info,) = virtual.workflows(queue=q)
    assert info.id == handle.id
    assert (info.queue, info.priority, info.dedup, info.partition) == (q.name, 3, "d", None)
    assert info.delay_until == virtual.clock.moment + timedelta(seconds=60)
    assert virtual.workflows(queue=q.name, status="DELAYED") == [info]


def test_a_result_waits_through_the_queue(engine: Engine) -> None:
    """And times out in it."""
    one = queue(concurrency=1)
    first, second = one.enqueue(held), one.enqueue(held, 2)
    with pytest.raises(WaitTimeout):
        second.result(timeout=0.01)
    for each in (first, second):
        each.send(None, "end")
    assert second.result(PATIENCE) == 2


def test_a_clock_that_is_set_back_does_not_stop_the_rate(path: str) -> None:
    """What was started in the future counts as started now."""
    q = queue(rate=Rate(1, per=10))
    clock = testing.VirtualClock()
    with Engine(path, clock=clock):
        q.enqueue(quick).result()
    earlier = testing.VirtualClock(start=clock.moment - timedelta(days=1))
    with Engine(path, clock=earlier):
        begin = earlier.now()
        q.enqueue(quick).result()
        assert earlier.now() - begin <= 10
