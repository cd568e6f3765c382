"""What everything costs, in counts: statements and commits, threads and wake-ups, objects.

Times differ from machine to machine, and are in `tests.benchmarks`; counts may not drift. That no
query scans a table is in tests/store/test_schema.py.
"""

from __future__ import annotations

import gc
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import durable
from durable import Engine, Queue, aio, step, transaction, workflow
from durable.runtime import recovery
from durable.store.snapshot import KEEP, KEPT_AFTER
from tests.store.recording import steps_at_once
from tests.support import PATIENCE, Gate, durable_threads, dying, until


@step
def first() -> str:
    return "1"


@step
async def first_async() -> str:
    return "1"


@transaction
def book(cursor: sqlite3.Cursor) -> None:
    cursor.execute("SELECT 1")


class Costs:
    """The statements of the writing connection, and the looks of this thread at the file.

    Not among them: the query by which a few commits in a row keep the read lock for those to come.
    """

    def __init__(self, writer: sqlite3.Connection) -> None:
        self.statements: list[str] = []
        self.locks = 0
        self.commits = 0
        self.looks = 0
        self._writer = writer

    def count(self, sql: str) -> None:
        """A statement begins: outside a transaction, it is one itself."""
        if sql == KEEP:
            self.locks += 1
            return
        kind = sql.split(maxsplit=1)[0]
        self.statements.append(kind)
        alone = kind not in ("BEGIN", "SELECT") and not self._writer.in_transaction
        self.commits += kind == "COMMIT" or alone


@contextmanager
def costs_of(engine: Engine) -> Iterator[Costs]:
    """What is written in the block, by whichever thread; and what this thread reads."""
    database, me = engine._open_engine().database, threading.get_ident()
    costs = Costs(database._writer)
    connections = database.connections
    borrow = connections.borrow

    def counted() -> Any:
        costs.looks += threading.get_ident() == me  # the watcher looks at the file, too
        return borrow()

    connections.borrow = counted  # type: ignore[method-assign]
    database._writer.set_trace_callback(costs.count)
    try:
        yield costs
    finally:
        database._writer.set_trace_callback(None)
        del connections.borrow


def cost_in_a_workflow(engine: Engine, action: Callable[[], object]) -> Costs:
    """What the action costs in the body of a workflow."""
    seen: list[Costs] = []

    @workflow
    def wf() -> None:
        with costs_of(engine) as costs:
            action()
        seen.append(costs)

    wf()
    return seen[0]


# ---------------------------------------------------------------------- steps


def test_a_fresh_step_is_one_statement(engine: Engine) -> None:
    """Each costs one INSERT, which is a transaction itself, and no read on any connection."""
    costs = cost_in_a_workflow(engine, lambda: [first(), first()])
    assert costs.statements == ["INSERT", "INSERT"]
    assert costs.commits == 2
    assert costs.looks == 0


def test_steps_in_a_row_keep_the_read_lock_for_those_to_come(engine: Engine) -> None:
    """By a query after a few of them; each is one INSERT all the same."""
    costs = cost_in_a_workflow(engine, lambda: [first() for _ in range(20)])
    assert costs.statements == ["INSERT"] * 20
    assert 1 <= costs.locks <= 20 // KEPT_AFTER


def test_a_lone_async_step_is_one_statement(engine: Engine) -> None:
    """Its INSERT is a transaction itself, unless others share its commit."""
    seen: list[Costs] = []

    @workflow
    async def wf() -> None:
        with costs_of(engine) as costs:
            await first_async()
        seen.append(costs)

    wf.start().result(PATIENCE)
    assert [(each.statements, each.commits) for each in seen] == [(["INSERT"], 1)]


def test_steps_that_wait_for_the_same_commit_share_statements(engine: Engine) -> None:
    """A hundred are recorded by 64, 32 and 4; the one that held them up is in the same commit."""
    with costs_of(engine) as costs:
        assert steps_at_once(engine, 100) == 9900
        engine._open_engine().database.settle()
        ran = " ".join(costs.statements)
    assert "BEGIN " + "INSERT " * 3 + "COMMIT" in ran


def test_a_transaction_shares_its_commit_with_its_checkpoint(engine: Engine) -> None:
    """Its body runs between BEGIN and COMMIT, after a look whether the run is the present one."""
    costs = cost_in_a_workflow(engine, book)
    assert costs.statements == ["BEGIN", "SELECT", "SELECT", "INSERT", "COMMIT"]


def test_a_map_is_one_commit_for_each_item_at_most(engine: Engine) -> None:
    """And one for the whole; those that end at the same time share one, and a statement."""
    database, rows = engine._open_engine().database, []

    def action() -> None:
        before = database.rows_changed
        durable.map(first_of, range(10))
        rows.append(database.rows_changed - before)

    costs = cost_in_a_workflow(engine, action)
    assert rows == [11]
    assert set(costs.statements) <= {"BEGIN", "INSERT", "COMMIT"}
    assert costs.statements.count("INSERT") <= 11
    assert costs.commits <= 11


@step
def first_of(number: int) -> int:
    return number


# ---------------------------------------------------------------------- workflows


def test_an_empty_workflow_is_two_commits(engine: Engine) -> None:
    """Run to its result: one statement each to begin and to end, and no read."""

    @workflow
    def empty() -> None: ...

    with costs_of(engine) as costs:
        empty()
    assert costs.statements == ["INSERT", "UPDATE"]
    assert costs.commits == 2
    assert costs.looks == 0


def test_a_start_is_one_commit(engine: Engine) -> None:
    """When it returns, it is on the disk; it has read nothing."""
    gate = Gate()

    @workflow
    def wf() -> None:
        gate.pass_through()

    with costs_of(engine) as costs:
        handle = wf.start()
        gate.wait_reached()
    gate.open()
    handle.result(PATIENCE)
    assert costs.statements == ["INSERT"]
    assert costs.commits == 1
    assert costs.looks == 0


def test_the_start_of_a_child_is_one_commit(engine: Engine) -> None:
    """Its row and the parent's checkpoint, after a look whether the parent is the present run."""
    gate = Gate()

    @workflow
    def child() -> None:
        gate.pass_through()

    def start() -> None:
        child.start()
        gate.wait_reached()

    costs = cost_in_a_workflow(engine, start)
    gate.open()
    assert costs.statements == ["BEGIN", "SELECT", "INSERT", "INSERT", "COMMIT"]


def test_an_enqueued_workflow_is_two_commits(engine: Engine) -> None:
    """Where there is room in its queue, it begins with the commit that enqueues it."""

    @workflow
    def empty() -> None: ...

    queue = Queue("costs", concurrency=8)
    queue.enqueue(empty).result(PATIENCE)  # the first one declares the queue
    with costs_of(engine) as costs:
        queue.enqueue(empty).result(PATIENCE)
    assert costs.statements == [
        *["BEGIN", "SELECT", "INSERT", "COMMIT"],
        *["BEGIN", "UPDATE", "SELECT", "COMMIT"],
    ]


def test_a_queued_workflow_starts_with_the_end_of_another(engine: Engine) -> None:
    """In the same commit, with a look whether there is room, one for the next, and its start."""
    gate = Gate()

    @workflow
    def holds() -> None:
        gate.pass_through()

    queue = Queue("costs of the next", concurrency=1)
    first, second = queue.enqueue(holds), queue.enqueue(holds)
    gate.wait_reached()
    with costs_of(engine) as costs:
        gate.open()
        first.result(PATIENCE)
        second.result(PATIENCE)
    end = ["BEGIN", "UPDATE", "SELECT", "COMMIT"]
    start = ["SELECT", "UPDATE", "SELECT"]
    assert costs.statements == [*end[:3], *start, "COMMIT", *end]


def test_to_wait_for_a_workflow_reads_nothing(engine: Engine) -> None:
    """If it runs in this process; else, or if nobody had a handle, its end is one look."""
    gate = Gate()

    @workflow
    def wf() -> int:
        gate.pass_through()
        return 1

    handle = wf.start()
    thread = threading.Thread(target=lambda: (gate.wait_reached(), gate.open()))
    thread.start()
    with costs_of(engine) as costs:
        assert handle.result(PATIENCE) == handle.result() == 1
    thread.join()
    assert costs.looks == 0
    workflow_id = handle.id
    del handle
    until(lambda: engine._open_engine().fates.of(workflow_id) is None)
    with costs_of(engine) as costs:
        assert engine.handle(workflow_id).result() == 1
    assert costs.looks == 1


def test_a_replayed_step_writes_nothing(path: str) -> None:
    """A replay of n steps costs one write, that takes the run up, whatever n is."""

    @workflow
    def wf() -> None:
        for _ in range(50):
            first()
        durable.recv()

    with dying(path):
        handle = wf.options(id="one").start()
        until(lambda: len(handle.steps()) == 50)
    with Engine(path, recover="manual") as engine:
        engine.send("one", None)
        with costs_of(engine) as costs:
            engine.recover()[0].result(PATIENCE)
        assert costs.commits == 3  # taken up, message received, finished


def test_a_recovery_takes_up_several_with_one_commit(path: str) -> None:
    """The first one alone, so that it goes on at once; then several at a time."""
    gate = Gate()

    @workflow
    def wf() -> None:
        first()
        gate.pass_through()

    count = 1 + 2 * recovery.TOGETHER
    with dying(path):
        for _ in range(count):
            wf.start()
        until(lambda: all(len(engine_steps(path, n + 1)) for n in range(count)))
    with Engine(path, recover="manual") as engine:
        with costs_of(engine) as costs:
            recovery.sweep(engine._open_engine())
        gate.open()
    assert costs.commits == 3
    assert costs.statements.count("SELECT") == 2 * 3  # who has them, and what they recorded


def engine_steps(path: str, number: int) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        query = "SELECT 1 FROM durable_checkpoint WHERE workflow = ?"
        return connection.execute(query, (number,)).fetchall()
    finally:
        connection.close()


# ---------------------------------------------------------------------- messages, events, sleep


def test_a_message_is_one_commit_on_each_side(engine: Engine) -> None:
    """To send one is a commit, and to receive one that is there, with the checkpoint, another."""

    @workflow
    def receiver() -> None:
        gate.pass_through()
        durable.recv()

    gate = Gate()
    handle = receiver.start()
    gate.wait_reached()
    sent = cost_in_a_workflow(engine, lambda: durable.send(handle.id, 1))
    with costs_of(engine) as received:
        gate.open()
        handle.result(PATIENCE)
    assert sent.statements == ["BEGIN", "SELECT", "SELECT", "INSERT", "INSERT", "COMMIT"]
    assert received.commits == 2  # the second ends the workflow
    assert received.statements[:5] == ["BEGIN", "SELECT", "UPDATE", "INSERT", "COMMIT"]


@pytest.mark.parametrize(
    ("action", "commits"),
    [
        (lambda: durable.set_event("key", 1), 1),
        (lambda: durable.write_stream("key", 1), 1),
        (lambda: durable.sleep(0), 1),
        (lambda: durable.now(), 1),
        (lambda: durable.patched("change"), 1),
        (lambda: durable.random().random(), 0),
        (lambda: durable.uuid4(), 0),
        (lambda: durable.current(), 0),
    ],
    ids=["set_event", "write_stream", "sleep", "now", "patched", "random", "uuid4", "current"],
)
def test_each_durable_call_is_one_commit(
    engine: Engine, action: Callable[[], object], commits: int
) -> None:
    """And what needs no record is none; nothing is read outside the commit."""
    costs = cost_in_a_workflow(engine, action)
    assert costs.commits == commits
    assert costs.looks == 0


# ---------------------------------------------------------------------- while nothing happens


@workflow
def waits() -> None:
    durable.recv(timeout=3600)


@workflow
async def waits_async() -> None:
    await aio.recv(timeout=3600)


def threads_by_kind() -> Counter[str]:
    """How many threads of durable there are, by the first two words of their names."""
    return Counter(" ".join(thread.name.split()[:2]) for thread in durable_threads())


def wait_until_recorded(engine: Engine, count: int) -> None:
    until(lambda: sum(run.wake_at is not None for run in engine.workflows(limit=count)) == count)


@pytest.mark.slow
def test_an_engine_at_rest_has_one_thread(engine: Engine) -> None:
    """The watcher, which looks for what other processes did."""
    engine.run(workflow(lambda: None, name="costs:nothing"))
    until(lambda: threads_by_kind() == {"durable watcher": 1})


def test_async_workflows_that_wait_share_a_thread(engine: Engine) -> None:
    """However many: one for their loop, one for its writes, beside the watcher and the timers."""
    for _ in range(20):
        waits_async.start()
    wait_until_recorded(engine, 20)
    until(lambda: sum(threads_by_kind().values()) <= 4)


def test_nothing_but_the_watcher_wakes_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workflows that wait cost no time of the processor, and nothing is written."""
    for _ in range(20):
        waits.start()
    wait_until_recorded(engine, 20)
    until(lambda: threads_by_kind().total() == 21)
    woken: Counter[str] = Counter()
    for waited_on in (threading.Condition, type(engine._open_engine().clock.bell())):

        def counted(self: Any, *args: Any, wait: Any = waited_on.wait) -> Any:
            woken[threading.current_thread().name] += 1  # whoever was woken waits again
            return wait(self, *args)

        monkeypatch.setattr(waited_on, "wait", counted)
    until(lambda: woken["durable watcher"] >= 5)
    woken.clear()  # one may have been on its way to wait
    with costs_of(engine) as costs:
        until(lambda: woken["durable watcher"] >= 10)
    assert {name for name in woken if name.startswith("durable")} == {"durable watcher"}
    assert costs.statements == []
    assert costs.looks == 0


# ---------------------------------------------------------------------- memory


@workflow
def sleeps(seconds: float) -> None:
    durable.sleep(seconds)


@pytest.mark.parametrize(("seconds", "by_writer"), [(0, False), (3600, True)])
def test_a_thread_that_only_sleeps_runs_no_sql(
    engine: Engine, seconds: float, by_writer: bool
) -> None:
    """What SQLite allocates on a thread stays with it; a short sleep does not wait for another."""
    wrote: list[str] = []
    writer = engine._open_engine().database._writer

    def note(sql: str) -> None:
        if sql.lstrip().startswith("INSERT") and "durable_step" in sql:
            wrote.append(threading.current_thread().name)

    writer.set_trace_callback(note)
    engine.start(sleeps, seconds)
    until(lambda: wrote)
    assert (wrote == ["durable writer"]) == by_writer


def count_objects() -> int:
    """All but weak references: sqlite3 keeps some to the last of its cursors."""
    gc.collect()
    return sum(type(each) is not weakref.ref for each in gc.get_objects())


@pytest.mark.slow
def test_a_workflow_keeps_nothing_of_its_finished_steps(engine: Engine) -> None:
    """After a thousand more of them there are no more objects than before."""
    counts: list[int] = []

    @workflow
    def wf() -> None:
        for number in range(1100):
            first()
            if number in (99, 1099):
                counts.append(count_objects())

    wf()
    assert counts[1] - counts[0] < 50


@pytest.mark.slow
def test_an_engine_keeps_nothing_of_finished_workflows(engine: Engine) -> None:
    """After two hundred more of them there are no more objects than before."""

    @workflow
    def empty() -> None: ...

    def objects_after(count: int) -> int:
        for _ in range(count):
            empty.start().result(PATIENCE)
        return count_objects()

    before = objects_after(20)
    assert objects_after(200) - before < 50


# ---------------------------------------------------------------------- import


def test_no_chain_of_imports_is_long() -> None:
    """Each link takes 1 KB of the interpreter's stack; past 16 KB, a call may cost a page."""
    command = [sys.executable, "-X", "importtime", "-c", "import durable"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    names = [line.rpartition("|")[2][1:] for line in report.splitlines()]
    assert "durable" in names
    assert max(len(name) - len(name.lstrip()) for name in names) // 2 <= 12
