"""All SQL that durable runs, seen from outside, and a session in which it runs about all it has."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import (
    Client,
    Debouncer,
    Engine,
    Queue,
    Rate,
    Retry,
    aio,
    step,
    transaction,
    workflow,
)
from durable.runtime.queues import Queues
from durable.store import database, transactions, tx
from durable.store.tx import Tx
from durable.testing import VirtualClock
from tests.support import PATIENCE, Gate, dying, until

STORE = Path(database.__file__).parent
DOORS = (database.__file__, transactions.__file__, tx.__file__)


@dataclass
class Statement:
    """One statement as durable gave it to SQLite, and the function of the store that did."""

    connection: int
    sql: str
    values: Any
    caller: str

    @property
    def verb(self) -> str:
        """Its first word."""
        return self.sql.split()[0].upper()


@dataclass
class Recorder:
    """What was run on each connection, in the order in which it was."""

    statements: list[Statement] = field(default_factory=list)
    traced: dict[int, list[str]] = field(default_factory=dict)
    """As SQLite saw it: also the statements in scripts, and those of the user's cursors."""

    @contextmanager
    def listening(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
        """Record all connections that are made in this block."""
        recorder, make = self, sqlite3.connect
        count = iter(range(1_000_000))

        class Recording(sqlite3.Connection):
            def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
                recorder.statements.append(Statement(self.number, sql, values, _caller()))
                return super().execute(sql, values)

        def connect(*args: Any, **options: Any) -> Recording:
            connection = make(*args, **options, factory=Recording)
            connection.number = next(count)
            recorder.traced[connection.number] = []
            connection.set_trace_callback(recorder.traced[connection.number].append)
            return connection

        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", connect)
            yield self

    def distinct(self) -> dict[str, Statement]:
        """Each text once."""
        return {statement.sql: statement for statement in self.statements}


def _caller() -> str:
    """``module.function`` of the store, for the statement that is being run."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename in DOORS:
        frame = frame.f_back
    if frame is None or Path(frame.f_code.co_filename).parent != STORE:
        return "database"
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"


# ---------------------------------------------------------------------- a session of all kinds


@step
def double(n: int) -> int:
    return 2 * n


@step(retry=Retry(attempts=3, delay=0))
def flaky() -> int:
    call = durable.current()
    if call.attempt == 1:
        raise ConnectionError("try again")
    durable.set_event("from a step", call.attempt)
    return 1


@transaction
def book(cursor: sqlite3.Cursor, n: int) -> None:
    cursor.execute("CREATE TABLE IF NOT EXISTS account (n INTEGER)")
    cursor.execute("INSERT INTO account VALUES (?)", (n,))


@workflow
def child(n: int) -> int:
    return double(n)


@workflow
def receiver() -> list[Any]:
    first = durable.recv("a", timeout=3600)
    second = durable.recv(timeout=0.001, default="none")
    return [first, second]


@workflow
def parent(receiver_id: str) -> Any:
    durable.patched("change")
    durable.now()
    handles = [child.options(tags=["x"]).start(n) for n in range(3)]
    winner = durable.wait(handles, first=True)
    durable.wait(handles)
    book(flaky())
    durable.sleep(0.001)
    durable.send(receiver_id, {"n": 1}, "a", idempotency_key="once")
    durable.set_event("winner", winner.done[0].id)
    durable.get_event(receiver_id, "never", timeout=0.001, default=None)
    return [handle.result() for handle in handles]


@step(retry=Retry(attempts=2, delay=0))
def streams_from_a_step() -> None:
    durable.write_stream("s", durable.step_key())
    if durable.current().attempt == 1:
        raise ConnectionError("try again")


@workflow
def streams() -> list[Any]:
    durable.write_stream("s", 0)
    streams_from_a_step()
    durable.close_stream("s")
    with suppress(durable.WorkflowConflict):
        durable.write_stream("s", "too late")
    futures = [double.submit(n) for n in range(3)]
    durable.wait(futures, first=True)
    return [*durable.gather(*futures), *durable.map(double, range(3))]


@workflow
def reads(workflow_id: str) -> int:
    return len(list(durable.read_stream(workflow_id, "s")))


@workflow
async def gives_up() -> None:
    """Cancels a call, which is recorded with the next one."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await aio.recv("nothing")
    await aio.set_event("gave up", True)


@step
async def double_async(n: int) -> int:
    return 2 * n


_begin: list[asyncio.Event] = []


@workflow
async def at_once(count: int) -> int:
    """So many steps, when `steps_at_once` lets them begin."""
    await _begin[-1].wait()
    return sum(await asyncio.gather(*(double_async(n) for n in range(count))))


def steps_at_once(engine: Engine, count: int) -> int:
    """What `at_once` returns, whose steps have all waited for one commit."""
    assert engine._host is not None
    host, database = engine._host, engine._host.database
    _begin.append(asyncio.Event())
    handle = engine.start(at_once, count)
    assert host.loop is not None
    on_loop = host.loop

    def write(tx: Tx) -> None:
        on_loop.post(_begin[-1].set)
        until(lambda: len(database._queue) > count)

    database.write("before", write)
    total: int = handle.result(PATIENCE)
    return total


@workflow
def fails() -> None:
    raise ValueError("no")


@workflow(timeout=0.01)
def expires() -> None:
    durable.recv("never")


_gates: dict[str, Gate] = {}
_left: list[str] = []
_left_in_queue: list[str] = []


@step
def at_gate(name: str) -> None:
    _gates[name].pass_through()


@workflow
def waits_at(name: str) -> str:
    double(1)
    at_gate(name)
    return durable.recv("go")


@workflow(max_recoveries=0)
def poison(name: str) -> None:
    at_gate(name)


@workflow
def leaves_once() -> None:
    if not _left:
        _left.append(durable.current().workflow_id)
        raise SystemExit


@workflow
def family(name: str) -> None:
    waits_at.options(id=f"{name} child").start(name)
    durable.recv("never")


def _schedule(engine: Engine, client: Client) -> None:
    """Declare a schedule, let it run and be missed, and do all that can be done to it."""

    @durable.schedule("@yearly", missed="skip", name="yearly")
    @workflow(name="yearly")
    def yearly(moment: datetime) -> int:
        return moment.year

    until(client.schedules)
    after = client.schedules()[0].next_at
    assert after is not None
    engine._scheduler.turn(after.timestamp())
    engine._scheduler.turn(after.timestamp() + 400 * 86_400)
    with suppress(durable.ScheduleNotFound):
        client.pause_schedule("daily")
    client.pause_schedule("yearly")
    client.resume_schedule("yearly")
    assert client.trigger("yearly").result(PATIENCE)
    workflow(name="yearly")(yearly.fn)  # declared again, without its schedule
    until(lambda: not client.schedules()[0].declared)
    durable.schedule("@yearly", missed="skip", name="yearly")(workflow(name="yearly")(yearly.fn))
    until(lambda: client.schedules()[0].declared)
    before = datetime.now(UTC)
    assert client.backfill("yearly", before - timedelta(days=400), before)[0].result(PATIENCE)


slow = Queue("slow", concurrency=1, priority=True)
rated = Queue("rated", rate=Rate(1, per=3600), partitioned=True)


@workflow(timeout=3600)
def knows_its_time() -> None: ...


def queue_session(path: str) -> None:
    """What queues do, over the exit of a run, a restart and a clock that is set back."""
    clock = VirtualClock()
    with dying(path, clock=clock) as engine:
        clock.settle()
        left = slow.enqueue(leaves_in_queue)
        clock.settle()
        assert left.info().reason
        waiting = [slow.enqueue(at_rest.options(dedup=f"d{n}", priority=n)) for n in range(2)]
        with pytest.raises(durable.Deduplicated):
            slow.enqueue(at_rest.options(dedup="d1"))
        for partition in "ab":
            rated.enqueue(child.options(partition=partition), 1)
        clock.settle()
        waiting[0].cancel()
        waiting[0].resume()
        waiting[0].fork().cancel()
        assert isinstance(engine._host.queues, Queues)
        engine._host.queues.rescue("slow")
        clock.advance(seconds=2)
    earlier = VirtualClock(start=clock.moment - timedelta(hours=1))
    with Engine(path, clock=earlier) as engine:
        engine.change_queue(slow, concurrency=5)
        with pytest.raises(durable.QueueNotFound):
            engine.enqueue("any", queue="unknown")
        engine.enqueue("tests.store.recording:knows_its_time", queue="slow").result()
        later = Debouncer(child, delay=10)
        assert later.call("k", 1).id == later.call("k", 2).id
        earlier.advance(seconds=20)
        later.call("k", 3)
        assert engine.workflows(queue="slow")
        for each in engine.workflows(queue="slow"):
            engine.cancel(each.id)


@workflow
def leaves_in_queue() -> None:
    if not _left_in_queue:
        _left_in_queue.append(durable.current().workflow_id)
        raise SystemExit


@workflow
def at_rest() -> None:
    durable.recv("never")


def rich_session(path: str) -> None:
    """Two engines one after the other, the first of which dies, and a client beside them."""
    queue_session(path)
    _gates.update(dead=Gate(), cancelled=Gate(), poison=Gate())
    with dying(path) as engine:
        with suppress(SystemExit):
            engine.run(leaves_once)
        waits_at.options(id="unfinished").start("dead")
        engine.start(poison, "poison")
        parked = receiver.options(id="parked").start()
        waiting = family.options(id="family").start("cancelled")
        for gate in _gates.values():
            gate.wait_reached()
        _wait_until_noted(engine, parked.id)
        assert waiting.cancel()
    for gate in _gates.values():
        gate.open()
    with Engine(path) as engine, Client(path) as client:
        to = receiver.options(id="receiver").start()
        top = parent.options(id="top").start(to.id)
        assert top.result(PATIENCE) == [0, 2, 4]
        assert to.result(PATIENCE) == [{"n": 1}, "none"]
        assert top.fork().result(PATIENCE) == [0, 2, 4]
        top.fork(step=5).result(PATIENCE)
        streaming = engine.start(streams)
        assert streaming.result(PATIENCE) == [0, 2, 4, 0, 2, 4]
        assert engine.start(reads, streaming.id).result(PATIENCE) == 2
        assert list(client.handle(streaming.id).stream("s", live=True))
        streaming.fork(step=4).result(PATIENCE)
        engine.run(gives_up)
        assert steps_at_once(engine, 100) == 9900
        failed = engine.start(fails)
        with pytest.raises(ValueError, match="no"):
            failed.result(PATIENCE)
        with pytest.raises(durable.WorkflowCancelled):
            engine.start(expires).result(PATIENCE)
        client.send("parked", "late", "a", idempotency_key="k")
        client.send("unfinished", "go", "go")
        assert client.handle("unfinished").result(PATIENCE) == "go"
        assert client.handle("parked").result(PATIENCE) == ["late", "none"]
        client.resume("family")
        client.cancel("family")
        assert client.event("top", "winner") == client.events("top")["winner"]
        assert client.workflows(status="SUCCESS", name=top.info().name, limit=10)
        client.handle("top").steps()
        _schedule(engine, client)
        engine.recover()
        assert engine._watcher is not None
        engine._watcher.forget()


def _wait_until_noted(engine: Engine, workflow_id: str) -> None:
    """Wait until the file says that the workflow waits."""
    deadline, tick = engine._clock.now() + PATIENCE, threading.Event()
    while engine.handle(workflow_id).info().wake_at is None:
        assert engine._clock.now() < deadline, "the wait was never noted"
        tick.wait(0.01)
