"""The two doors: what `write` and `read` promise to callers that come all at once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import pytest

import durable
from durable import CorruptFile, DurableError, Engine, EngineClosed, WorkflowNotFound
from durable.clock import Bell, SystemClock
from durable.store import signals
from durable.store.database import Database
from durable.store.requests import Request, wake_in_turn
from durable.store.tx import Bulk, Tx
from tests.processes.programs import Program
from tests.store.interrupts import Interruption
from tests.store.recording import Recorder
from tests.support import PATIENCE, Gate, until


class WatchedClock(SystemClock):
    """Tells each time that a caller of `write` begins to wait for its turn."""

    def __init__(self) -> None:
        self._waiting = threading.Semaphore(0)

    def wait(
        self, condition: threading.Condition, ready: Callable[[], bool], deadline: float | None
    ) -> bool:
        self._waiting.release()
        return super().wait(condition, ready, deadline)

    def bell(self) -> Bell:
        return WatchedBell(super().bell(), self._waiting)

    def wait_for_waiters(self, count: int) -> None:
        """Return when `count` more callers have begun to wait."""
        for _ in range(count):
            assert self._waiting.acquire(timeout=PATIENCE), "nobody waits"


class WatchedBell:
    """Tells each time that its thread begins to wait."""

    def __init__(self, bell: Bell, waiting: threading.Semaphore) -> None:
        self._bell = bell
        self._waiting = waiting
        self.ring = bell.ring

    def wait(self, deadline: float | None) -> bool:
        """Tell, and wait."""
        self._waiting.release()
        return self._bell.wait(deadline)


class Bench:
    """A database with one table, its clock, the SQL that it ran, and the keys that it told."""

    def __init__(self, path: str, **options: Any) -> None:
        self.clock = WatchedClock()
        self.told: list[str] = []
        self.database = Database(
            path,
            clock=self.clock,
            synchronous="normal",
            create=True,
            on_commit=self.told.extend,
            **options,
        ).open()
        self.database.write("table", lambda tx: tx.execute("CREATE TABLE t (x)"))
        self.ran: list[str] = []
        self._gates: list[Gate] = []
        self.database._writer.set_trace_callback(self._trace)

    def _trace(self, sql: str) -> None:
        self.ran.append(sql)
        if sql == "COMMIT" and self._gates:
            self._gates.pop().pass_through()

    def add(self, value: object) -> object:
        """Write a row in a transaction of its own, and return its value."""
        return self.database.write("add", lambda tx: insert(tx, value))

    def rows(self) -> list[Any]:
        """What is committed, in the order in which it was written."""
        return self.database.read(committed)

    @staticmethod
    def read_file(path: str) -> list[Any]:
        """What a file has, when nobody has it open."""
        with closing(sqlite3.connect(path)) as connection:
            return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY rowid")]

    def commits(self) -> int:
        """How many transactions were committed."""
        return self.ran.count("COMMIT")

    def hold_up(self) -> tuple[Gate, Caller]:
        """A caller that is held up while it commits, until the gate opens.

        Later it would be too late to share its commit, and before that others would.
        """
        gate = Gate()
        self._gates.append(gate)
        caller = Caller(lambda: self.database.write("held up", lambda tx: None))
        gate.wait_reached()
        return gate, caller

    def behind_a_commit(self, *actions: Callable[[], Any]) -> list[Caller]:
        """Run the actions, each on its thread, as the callers of one batch, in this order.

        They are queued while another caller is held up in its commit.
        """
        return self._run_behind(*self.hold_up(), actions)

    def behind_a_transaction(self, *actions: Callable[[], Any]) -> list[Caller]:
        """As `behind_a_commit`; the other caller is held up in its function, before it commits."""
        gate = Gate()
        leader = Caller(lambda: self.database.write("slow", lambda tx: gate.pass_through()))
        gate.wait_reached()
        return self._run_behind(gate, leader, actions)

    def _run_behind(
        self, gate: Gate, leader: Caller, actions: Iterable[Callable[[], Any]]
    ) -> list[Caller]:
        callers = []
        for action in actions:
            callers.append(Caller(action))
            self.clock.wait_for_waiters(1)
        gate.open()
        for caller in [leader, *callers]:
            caller.join()
        return callers


class Caller:
    """A thread, with what its function returned or raised."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.result = action()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run, name="caller", daemon=True)
        self.thread.start()

    @property
    def done(self) -> bool:
        """Whether it has returned."""
        return not self.thread.is_alive()

    def join(self, patience: float = PATIENCE) -> None:
        """Wait for it to return."""
        self.thread.join(patience)
        assert self.done, "a caller hangs"


def insert(tx: Tx, value: object) -> object:
    tx.execute("INSERT INTO t VALUES (:x)", {"x": value})
    tx.touch(f"key/{value}")
    return value


def committed(tx: Tx) -> list[Any]:
    return [row["x"] for row in tx.rows("SELECT x FROM t ORDER BY rowid", {})]


@pytest.fixture
def bench(path: str) -> Iterator[Bench]:
    bench = Bench(path)
    yield bench
    bench.database.close()


# ---------------------------------------------------------------------- group commit


def insert_row(value: object, tx: Tx) -> None:
    if value == "bad":
        raise WorkflowNotFound("x")
    insert(tx, value)


def insert_rows(values: Sequence[object], tx: Tx) -> None:
    for value in values:
        insert_row(value, tx)
    tx.touch(f"bulk/{len(values)}")


@pytest.fixture
def bulk_bench(path: str) -> Iterator[Bench]:
    bench = Bench(path, in_bulk=Bulk(insert_row, insert_rows))
    yield bench
    bench.database.close()


def add_row(bench: Bench, value: object) -> Callable[[], None]:
    return lambda: bench.database.write("row", partial(insert_row, value), None, True)


def test_rows_that_wait_for_a_commit_are_written_at_once(bulk_bench: Bench) -> None:
    """In one call for all of them; others that wait with them are written, too."""
    others = [lambda: bulk_bench.add("other"), lambda: bulk_bench.add("another")]
    bulk_bench.behind_a_commit(*[add_row(bulk_bench, n) for n in range(5)], *others)

    assert sorted(map(str, bulk_bench.rows())) == ["0", "1", "2", "3", "4", "another", "other"]
    assert [key for key in bulk_bench.told if key.startswith("bulk")] == ["bulk/5"]
    assert bulk_bench.commits() == 2  # the one that held them up, and theirs


def test_a_row_that_is_refused_is_its_callers_own_error(bulk_bench: Bench) -> None:
    """The other rows of the batch, which were undone with it, are written all the same."""
    callers = bulk_bench.behind_a_commit(*[add_row(bulk_bench, x) for x in ("a", "bad", "b")])

    assert [type(caller.error) for caller in callers] == [NoneType, WorkflowNotFound, NoneType]
    assert bulk_bench.rows() == ["a", "b"]
    assert sorted(bulk_bench.told) == ["key/a", "key/b"]


def test_a_row_that_is_alone_is_written_alone(bulk_bench: Bench) -> None:
    """By the function for one row, in a statement that is a transaction itself."""
    add_row(bulk_bench, "a")()

    assert (bulk_bench.rows(), bulk_bench.told) == (["a"], ["key/a"])
    assert [sql.split()[0] for sql in bulk_bench.ran] == ["INSERT"]


def test_callers_that_come_while_a_commit_is_held_up_share_the_next_one(bench: Bench) -> None:
    """One flush for all that waited."""
    bench.behind_a_commit(*[lambda n=n: bench.add(n) for n in range(20)])

    assert bench.rows() == list(range(20))
    assert bench.commits() == 2  # of the one that was held up, and of the twenty


def test_callers_that_come_before_a_commit_share_it(bench: Bench) -> None:
    """While the leader is still at work on its transaction, they are taken in."""
    bench.behind_a_transaction(*[lambda n=n: bench.add(n) for n in range(20)])

    assert bench.rows() == list(range(20))
    assert bench.commits() == 1


def test_a_few_that_come_late_share_the_next_commit(bench: Bench) -> None:
    """A transaction that several are in waits for as many again, and not for one."""
    held_up, leader = bench.hold_up()
    at_work = Gate()
    callers = []
    for action in [
        *[lambda n=n: bench.add(n) for n in range(3)],
        lambda: bench.database.write("slow", lambda tx: at_work.pass_through()),
    ]:
        callers.append(Caller(action))
        bench.clock.wait_for_waiters(1)
    held_up.open()
    at_work.wait_reached()
    callers.append(Caller(lambda: bench.add("late")))
    bench.clock.wait_for_waiters(1)
    at_work.open()
    for caller in [leader, *callers]:
        caller.join()

    assert bench.rows() == [0, 1, 2, "late"]
    assert bench.commits() == 3  # of the one that was held up, of the four, and of the last


def test_a_commit_ends_however_many_come(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has enough takes in no more: they share the next."""
    monkeypatch.setattr("durable.store.database.MOST_TOGETHER", 1)
    bench.behind_a_transaction(*[lambda n=n: bench.add(n) for n in range(5)])

    assert bench.rows() == list(range(5))
    assert bench.commits() == 2


def test_one_that_is_taken_in_and_fails_fails_alone(bench: Bench) -> None:
    """The leader's own write, which was done before, is committed."""

    def fail(tx: Tx) -> None:
        insert(tx, "undone")
        raise WorkflowNotFound("x")

    gate = Gate()

    def first(tx: Tx) -> None:
        insert(tx, "first")
        gate.pass_through()

    leader = Caller(lambda: bench.database.write("slow", first))
    gate.wait_reached()
    bad = Caller(lambda: bench.database.write("bad", fail))
    bench.clock.wait_for_waiters(1)
    gate.open()
    leader.join()
    bad.join()

    assert isinstance(bad.error, WorkflowNotFound)
    assert leader.error is None
    assert bench.rows() == ["first"]


def test_a_lone_caller_commits_at_once(bench: Bench) -> None:
    """One call, one transaction, no savepoint."""
    bench.add(1)

    assert [sql.split()[0] for sql in bench.ran] == ["BEGIN", "INSERT", "COMMIT"]


def test_each_caller_gets_its_own_result(bench: Bench) -> None:
    """Results do not go astray in a batch."""
    callers = bench.behind_a_commit(*[lambda n=n: bench.add(n) for n in range(20)])

    assert [caller.result for caller in callers] == list(range(20))


def test_a_caller_waits_until_its_write_is_committed(bench: Bench) -> None:
    """Not done while another holds the connection, done and committed after."""
    gate = Gate()
    leader = Caller(lambda: bench.database.write("slow", lambda tx: gate.pass_through()))
    gate.wait_reached()
    caller = Caller(lambda: bench.add(1))
    bench.clock.wait_for_waiters(1)
    assert not caller.done
    assert bench.rows() == []

    gate.open()
    leader.join()
    caller.join()
    assert bench.rows() == [1]


@pytest.mark.parametrize("bad", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("error", [ValueError("no"), sqlite3.IntegrityError("no")], ids=repr)
def test_one_callers_error_is_its_own(bench: Bench, bad: int, error: Exception) -> None:
    """It undoes what that caller wrote; the others of the batch are committed."""

    def fail(tx: Tx) -> None:
        insert(tx, "undone")
        raise error

    actions: list[Callable[[], Any]] = [lambda: bench.add("a"), lambda: bench.add("b")]
    actions.insert(bad, lambda: bench.database.write("bad", fail))
    callers = bench.behind_a_commit(*actions)

    assert bench.rows() == ["a", "b"]
    assert sorted(bench.told) == ["key/a", "key/b"]
    assert [caller.error is not None for caller in callers] == [n == bad for n in range(3)]


def test_an_error_of_sqlite_in_a_batch_is_its_callers_own(bench: Bench) -> None:
    """A statement that fails takes nothing of the others with it, and comes as a DurableError."""
    good, bad, last = bench.behind_a_commit(
        lambda: bench.add("a"),
        lambda: bench.database.write(
            "bad", lambda tx: tx.execute("INSERT INTO nowhere VALUES (1)")
        ),
        lambda: bench.add("b"),
    )

    assert bench.rows() == ["a", "b"]
    assert (good.error, last.error) == (None, None)
    assert isinstance(bad.error, DurableError)


def test_an_error_of_a_lone_caller_leaves_nothing_behind(bench: Bench) -> None:
    """No row, no key, no open transaction."""

    def fail(tx: Tx) -> None:
        insert(tx, 1)
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError, match="no"):
        bench.database.write("bad", fail)
    assert bench.rows() == []
    assert bench.told == []
    assert not bench.database._writer.in_transaction


def reads_nonsense(tx: Tx) -> None:
    """As code of the store does where a damaged index gives another row than the one wanted."""
    insert(tx, "undone")
    {}[None]


def test_a_write_that_reads_a_damaged_row_says_that_the_file_is_corrupt(bench: Bench) -> None:
    """CorruptFile with the path, in a commit of its own and in one with others."""
    with pytest.raises(CorruptFile, match=r"test\.db"):
        bench.database.write("bad", reads_nonsense)
    bad, _ = bench.behind_a_commit(
        lambda: bench.database.write("bad", reads_nonsense), lambda: bench.add("good")
    )

    assert isinstance(bad.error, CorruptFile)
    assert bench.rows() == ["good"]


def test_keys_are_told_after_the_commit(path: str) -> None:
    """Whoever is told of a key finds what was written."""
    seen: list[Any] = []
    database = Database(
        path,
        clock=SystemClock(),
        synchronous="normal",
        create=True,
        on_commit=lambda keys: seen.append((list(keys), database.read(committed))),
    ).open()
    database.write("table", lambda tx: tx.execute("CREATE TABLE t (x)"))
    database.write("add", lambda tx: insert(tx, 1))
    database.close()

    assert seen == [(["key/1"], [1])]


def test_a_client_leaves_its_keys_in_the_file(path: str) -> None:
    """With `signals`, the engine in another process finds what was touched."""
    bench = Bench(path, signals=True)
    bench.add(1)
    bench.add(1)
    bench.add(2)

    assert bench.database.read(lambda tx: signals.after(tx, 0))[1] == ["key/1", "key/2"]
    bench.database.close()


# ---------------------------------------------------------------------- single statements


def add_single(bench: Bench, value: object) -> object:
    """Write a row in one statement, before which its key is touched."""
    return bench.database.write("single", lambda tx: insert_single(tx, value), None, True)


def insert_single(tx: Tx, value: object, gate: Gate | None = None) -> object:
    if gate is not None:
        gate.pass_through()
    tx.touch(f"key/{value}")
    tx.execute("INSERT INTO t VALUES (?)", (value,))
    return value


def held_up_single(bench: Bench, value: object) -> tuple[Gate, Caller]:
    """A caller that is held up in its single statement, with nobody else, until the gate opens."""
    gate = Gate()
    write = partial(bench.database.write, "single", single=True)
    caller = Caller(lambda: write(lambda tx: insert_single(tx, value, gate)))
    gate.wait_reached()
    return gate, caller


def test_a_single_statement_that_is_alone_is_a_transaction_itself(bench: Bench) -> None:
    """No BEGIN and no COMMIT; its keys are told all the same."""
    assert add_single(bench, "a") == "a"
    assert [sql.split()[0] for sql in bench.ran] == ["INSERT"]
    assert not bench.database._writer.in_transaction
    assert (bench.rows(), bench.told) == (["a"], ["key/a"])


def test_single_statements_share_a_commit_with_others(bench: Bench) -> None:
    """One flush for all that waited, whatever they are."""
    bench.behind_a_commit(*[lambda n=n: add_single(bench, n) for n in range(5)])
    assert bench.rows() == list(range(5))
    assert bench.commits() == 2  # the one that held them up, and theirs


def test_those_that_come_during_a_single_statement_are_next(bench: Bench) -> None:
    """Whatever they are; they share a commit, after it."""
    actions = [lambda: add_single(bench, "single"), lambda: bench.add("other")]
    bench._run_behind(*held_up_single(bench, "first"), actions)
    assert (bench.rows(), bench.commits()) == (["first", "single", "other"], 1)


def test_a_single_statement_is_told_before_its_keys(bench: Bench) -> None:
    """`on_commit` knows what was written when the first hears of it."""
    bench.database.write("single", lambda tx: insert_single(tx, "a"), bench.told.append, True)
    assert bench.told == ["a", "key/a"]


def test_close_finishes_a_single_statement(bench: Bench) -> None:
    """`close` returns after it, and refuses what comes meanwhile."""
    gate, single = held_up_single(bench, "a")
    closing = Caller(bench.database.close)
    bench.clock.wait_for_waiters(1)
    assert not closing.done
    with pytest.raises(EngineClosed):
        add_single(bench, "late")
    gate.open()
    for caller in (single, closing):
        caller.join()
    assert Bench.read_file(bench.database.path) == ["a"]


def test_a_single_statement_that_fails_says_why(bench: Bench) -> None:
    """It is tried again as any other write: nothing is left of it, and its caller hears why."""
    with pytest.raises(DurableError, match="no such table"):
        bench.database.write(
            "single", lambda tx: tx.execute("INSERT INTO u VALUES (1)"), None, True
        )
    add_single(bench, "goes on")
    assert bench.rows() == ["goes on"]


def test_a_single_statement_waits_for_the_lock_of_another_process(bench: Bench, path: str) -> None:
    """As long as it takes, and is written once."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        caller = Caller(lambda: add_single(bench, "a"))
        until(lambda: bench.ran.count("BEGIN IMMEDIATE") > 1)  # it has tried again
        other.execute("COMMIT")
        caller.join()
    assert (caller.result, bench.rows()) == ("a", ["a"])


def test_a_single_statement_of_a_client_leaves_its_keys_in_the_file(path: str) -> None:
    """They are a second statement, so it has a transaction."""
    bench = Bench(path, signals=True)
    add_single(bench, "a")
    assert bench.database.read(lambda tx: signals.after(tx, 0))[1] == ["key/a"]
    assert [sql.split()[0] for sql in bench.ran] == ["BEGIN", "INSERT", "INSERT", "COMMIT"]
    bench.database.close()


def test_a_single_statement_after_death_is_not_written(bench: Bench, path: str) -> None:
    """As of every other write, nothing comes into the file."""
    bench.database._transactions.dead = True
    with pytest.raises(EngineClosed):
        add_single(bench, "a")
    bench.database.close()
    assert bench.read_file(path) == []


# ---------------------------------------------------------------------- who is woken when


class Ringing:
    """A request whose thread says that it was called, and when told to, wakes."""

    def __init__(self, name: str, called: list[str]) -> None:
        self.request: Request[None] = Request(name, lambda tx: None)
        self.request.bell = self
        self._name = name
        self._called = called

    def ring(self) -> None:
        self._called.append(self._name)

    def wait(self, deadline: float | None) -> bool:
        raise AssertionError("its thread does not wait here")

    def wake(self) -> None:
        """Its thread is awake, and lets the others go on."""
        self.request.awaken()


class StoppedClock(SystemClock):
    """Stands still until it is told to go on."""

    def __init__(self, *, real: bool = True) -> None:
        self.time = 100.0
        self.real = real

    def now(self) -> float:
        return self.time


def ringing(clock: StoppedClock) -> tuple[list[Ringing], list[str]]:
    """Four threads whose requests are done, and the list of those that are called."""
    called: list[str] = []
    threads = [Ringing(name, called) for name in "abcd"]
    wake_in_turn([thread.request for thread in threads], clock)
    return threads, called


def test_threads_wake_one_after_the_other() -> None:
    """Each calls the next one when it is awake."""
    threads, called = ringing(StoppedClock())
    seen = ["".join(called)]
    for thread in threads:
        thread.wake()
        seen.append("".join(called))
    assert seen == ["a", "ab", "abc", "abcd", "abcd"]


def test_a_thread_that_woke_by_itself_is_not_called() -> None:
    """Nobody would answer: the next one is."""
    threads, called = ringing(StoppedClock())
    threads[1].wake()
    threads[0].wake()
    assert called == ["a", "c", "d"]


def test_where_a_thread_takes_long_to_wake_all_others_are_called() -> None:
    """Somebody computes, and lets go of the interpreter now and then: each is to be ready then."""
    clock = StoppedClock()
    threads, called = ringing(clock)
    clock.time += 0.002
    threads[0].wake()
    assert called == ["a", "b", "c", "d"]


def test_a_clock_that_draws_the_order_is_told_of_all() -> None:
    """Which of them goes on first is what it tries out."""
    _, called = ringing(StoppedClock(real=False))
    assert called == ["a", "b", "c", "d"]


# ---------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_in_a_leading_caller_is_its_own(bench: Bench) -> None:
    """The caller that leads is interrupted in its function; the rest of its batch is committed."""

    def interrupted(tx: Tx) -> None:
        insert(tx, "undone")
        raise KeyboardInterrupt

    leader, *others = bench.behind_a_commit(
        lambda: bench.database.write("interrupted", interrupted),
        lambda: bench.add("a"),
        lambda: bench.add("b"),
    )

    assert isinstance(leader.error, KeyboardInterrupt)
    assert [caller.error for caller in others] == [None, None]
    assert bench.rows() == ["a", "b"]
    assert bench.add("c") == "c"


def test_what_stops_one_caller_stops_no_other(bench: Bench) -> None:
    """sys.exit() in the function of one does not reach the one that leads the batch."""

    def leave(tx: Tx) -> None:
        raise SystemExit(3)

    leader, leaver, last = bench.behind_a_commit(
        lambda: bench.add("a"),
        lambda: bench.database.write("leave", leave),
        lambda: bench.add("b"),
    )

    assert (leader.error, last.error) == (None, None)
    assert isinstance(leaver.error, SystemExit)
    assert bench.rows() == ["a", "b"]


def interrupted_write(bench: Bench, at: int) -> Interruption:
    """Interrupt this thread at a point of its write, while it leads a batch of three."""
    interruption = Interruption(at)
    gate, held = bench.hold_up()
    others: list[Caller] = []

    def direct() -> None:
        bench.clock.wait_for_waiters(1)  # this thread is the first in the queue
        for name in ("a", "b"):
            others.append(Caller(lambda name=name: bench.add(f"{at}:{name}")))
            bench.clock.wait_for_waiters(1)
        gate.open()

    director = Caller(direct)
    returned = False
    try:
        with interruption.armed():
            bench.add(f"{at}:main")
        returned = True
    except KeyboardInterrupt:
        bench.clock._waiting.release()  # it may have been interrupted before it waited
    held.join()
    director.join()
    for caller in others:
        caller.join(patience=5)
    while bench.clock._waiting.acquire(blocking=False):
        pass
    rows = [row for row in bench.rows() if row.startswith(f"{at}:")]
    assert {f"{at}:a", f"{at}:b"} <= set(rows), "another caller's write was lost"
    assert len(rows) == len(set(rows)), "a write was done twice"
    assert f"{at}:main" in rows or not returned, "a write that returned was lost"
    assert {f"key/{row}" for row in rows} <= set(bench.told), "a committed key was not told"
    return interruption


def test_ctrl_c_at_any_point_of_a_write_loses_no_other_callers_write(bench: Bench) -> None:
    """At each point where Python delivers it: nobody hangs, nothing is lost or written twice."""
    at, interruption = 0, None
    while interruption is None or interruption.happened:
        at += 1
        try:
            interruption = interrupted_write(bench, at)
            bench.add(f"{at} goes on")
        except AssertionError as error:
            error.add_note(f"interrupted at point {at}")
            raise
    assert at > 30  # points there were


def test_ctrl_c_at_any_point_of_a_single_write_leaves_the_door_open(bench: Bench) -> None:
    """It is written once or not at all; if it is, its key is told, and the next one goes on."""
    at, interruption = 0, None
    while interruption is None or interruption.happened:
        at += 1
        interruption, returned = Interruption(at), False
        with suppress(KeyboardInterrupt), interruption.armed():
            add_single(bench, at)
            returned = True
        add_single(bench, -at)
        rows = bench.rows()
        assert rows.count(at) in ((1,) if returned else (0, 1)), interruption.where
        assert rows.count(-at) == 1, interruption.where
        assert at not in rows or f"key/{at}" in bench.told, interruption.where
    assert at > 10  # points there were


def test_ctrl_c_at_any_point_of_a_single_write_loses_nobody_behind_it(bench: Bench) -> None:
    """Two callers came while it was at work: theirs are written, whatever became of it."""
    at, interruption = 0, None
    while interruption is None or interruption.happened:
        at += 1
        interruption = Interruption(at)
        behind: list[Caller] = []

        def insert_before_others(tx: Tx, at: int = at, behind: list[Caller] = behind) -> None:
            insert_single(tx, at)
            for name in ("a", "b"):
                behind.append(Caller(lambda name=name: bench.add(f"{at}:{name}")))
                bench.clock.wait_for_waiters(1)

        with suppress(KeyboardInterrupt), interruption.armed():
            bench.database.write("single", insert_before_others, None, True)
        for caller in behind:
            caller.join(patience=5)
        while bench.clock._waiting.acquire(blocking=False):
            pass
        names = [row for row in bench.rows() if str(row).startswith(f"{at}:")]
        assert sorted(names) == [f"{at}:{name}" for name in "ab"[: len(behind)]], interruption.where
        add_single(bench, -at)
    assert at > 8  # points there were


CTRL_C_AT_RANDOM = """\
import faulthandler, random
from durable.clock import SystemClock
from durable.store.database import Database
from durable.store.requests import Request, wake_in_turn

faulthandler.dump_traceback_later(18, exit=True)  # where it hangs, if it does
seed, path = int(sys.argv[1]), sys.argv[2]
rng = random.Random(seed)
database = Database(path, clock=SystemClock(), synchronous="normal", create=True,
                    on_commit=lambda keys: None).open()
database.write("table", lambda tx: tx.execute("CREATE TABLE t (who, n, UNIQUE (who, n))"))
stop = threading.Event()
done = {}

def add(who, n):
    insert = lambda tx: tx.execute("INSERT INTO t VALUES (?, ?)", (who, n))
    database.write("add", insert, None, n % 2 == 0)  # every other one is single

def write_on(who):
    while not stop.is_set():
        add(who, done[who] + 1)
        done[who] += 1

threads = []
for who in range(4):
    done[who] = 0
    threads.append(threading.Thread(target=write_on, args=(who,), daemon=True))
    threads[-1].start()

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
interrupted, n, surely = 0, 0, []
while interrupted < int(sys.argv[3]):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
            while True:
                n += 1
                add("main", n)
                surely.append(n)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
stop.set()
for thread in threads:
    thread.join(5)
    assert not thread.is_alive(), "a caller hangs"
found = database.read(lambda tx: tx.rows("SELECT who, n FROM t", {}))
for who in range(4):
    numbers = sorted(row["n"] for row in found if row["who"] == who)
    assert numbers == list(range(1, done[who] + 1)), (who, done[who], numbers[-3:])
assert set(surely) <= {row["n"] for row in found if row["who"] == "main"}
database.close()
print("all is there")
"""


def interrupt_at_random(path: str, seed: int, times: int) -> None:
    with Program(CTRL_C_AT_RANDOM, str(seed), path, str(times)) as program:
        assert program.succeed() == ["all is there"]


@pytest.mark.slow
def test_ctrl_c_at_random_moments_loses_no_other_callers_write(path: str, seed: int) -> None:
    """Real signals on the main thread, again and again, while four threads write beside it."""
    interrupt_at_random(path, seed, 150)


@pytest.mark.slow
def test_ctrl_c_at_many_random_moments_loses_no_other_callers_write(path: str, seed: int) -> None:
    """The same, thousands of times."""
    interrupt_at_random(path, seed, 3_000)


# ---------------------------------------------------------------------- closing


def test_close_finishes_what_was_accepted(bench: Bench) -> None:
    """Those that are queued when it closes are committed; `close` returns after them."""
    gate = Gate()
    leader = Caller(lambda: bench.database.write("held up", lambda tx: gate.pass_through()))
    gate.wait_reached()
    callers = [Caller(lambda n=n: bench.add(n)) for n in range(3)]
    bench.clock.wait_for_waiters(3)
    closing = Caller(bench.database.close)
    bench.clock.wait_for_waiters(1)
    assert not closing.done

    gate.open()
    for caller in [leader, *callers, closing]:
        caller.join()
    assert sorted(caller.result for caller in callers) == [0, 1, 2]
    assert sorted(Bench.read_file(bench.database.path)) == [0, 1, 2]


def test_a_closing_database_refuses_new_callers(bench: Bench) -> None:
    """What comes after `close` has begun is refused, and is not written."""
    gate = Gate()
    leader = Caller(lambda: bench.database.write("held up", lambda tx: gate.pass_through()))
    gate.wait_reached()
    closing = Caller(bench.database.close)
    bench.clock.wait_for_waiters(1)

    with pytest.raises(EngineClosed):
        bench.add("late")
    gate.open()
    leader.join()
    closing.join()
    assert Bench.read_file(bench.database.path) == []


def test_a_closed_database_says_so(bench: Bench) -> None:
    """Writing and reading raise EngineClosed with the path; closing again is harmless."""
    bench.database.close()
    bench.database.close()

    for action in (lambda: bench.add(1), bench.rows):
        with pytest.raises(EngineClosed, match="is closed"):
            action()


def test_close_leaves_one_file(path: str, tmp_path: Path) -> None:
    """No write-ahead log and no index of it stay behind."""
    bench = Bench(path)
    bench.add(1)
    bench.rows()
    bench.database.close()

    assert [file.name for file in tmp_path.iterdir()] == ["test.db"]


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "sql", ["INSERT INTO t VALUES (1)", "DELETE FROM t", "CREATE TABLE u (x)", "DROP TABLE t"]
)
def test_readers_cannot_write(bench: Bench, sql: str) -> None:
    """A write through the reading door is refused, and the reader is of use afterwards."""
    bench.add("kept")

    with pytest.raises(DurableError):
        bench.database.read(lambda tx: tx.execute(sql))
    assert bench.rows() == ["kept"]


def test_readers_see_only_what_is_committed(bench: Bench) -> None:
    """While a transaction is open, readers see the file without it, and do not wait for it."""
    gate = Gate()

    def add_slowly(tx: Tx) -> None:
        insert(tx, 1)
        gate.pass_through()

    writer = Caller(lambda: bench.database.write("slow", add_slowly))
    gate.wait_reached()
    assert bench.rows() == []

    gate.open()
    writer.join()
    assert bench.rows() == [1]


def test_a_reader_sees_one_moment(bench: Bench) -> None:
    """What is committed while it reads does not change what it reads."""

    def read_twice(tx: Tx) -> tuple[list[Any], list[Any]]:
        first = committed(tx)
        bench.add(1)
        return first, committed(tx)

    assert bench.database.read(read_twice) == ([], [])
    assert bench.rows() == [1]


def test_an_error_while_reading_is_the_callers(bench: Bench) -> None:
    """It comes as it is, and no snapshot stays open that would hold the write-ahead log."""
    with pytest.raises(ZeroDivisionError):
        bench.database.read(lambda tx: 1 / 0)
    assert all(not each.connection.in_transaction for each in bench.database.connections.readers)


def test_readers_run_beside_each_other(bench: Bench) -> None:
    """Ten readers at once, each with a snapshot of its own."""
    gates = [Gate() for _ in range(10)]
    bench.add(1)

    def read(gate: Gate) -> list[Any]:
        return bench.database.read(lambda tx: (gate.pass_through(), committed(tx))[1])

    callers = [Caller(lambda gate=gate: read(gate)) for gate in gates]
    for gate in gates:
        gate.wait_reached()
    for gate in gates:
        gate.open()
    for caller in callers:
        caller.join()
    assert [caller.result for caller in callers] == [[1]] * 10


# ---------------------------------------------------------------------- in memory


def test_a_database_in_memory_is_shared_by_threads() -> None:
    """`:memory:` is one database, whichever thread asks."""
    bench = Bench(":memory:")
    callers = bench.behind_a_commit(*[lambda n=n: bench.add(n) for n in range(10)])

    assert [caller.result for caller in callers] == list(range(10))
    assert bench.rows() == list(range(10))
    bench.database.close()


@durable.workflow
def adds_up(numbers: list[int]) -> int:
    handles = [one.start(number) for number in numbers]
    return sum(handle.result() for handle in handles)


@durable.workflow
def one(number: int) -> int:
    return number


def test_an_engine_in_memory_runs_workflows_on_many_threads() -> None:
    """`:memory:` is an engine like any other, and leaves no file."""
    with Engine(":memory:") as engine:
        handles = [engine.start(adds_up, list(range(5))) for _ in range(5)]

        assert [handle.result(PATIENCE) for handle in handles] == [10] * 5
    assert not Path(":memory:").exists()
    assert not Path(":memory:.lock").exists()


# ---------------------------------------------------------------------- N34

SINGLE = {
    ("INSERT", "INTO", "DURABLE_STEP"),
    ("INSERT", "INTO", "DURABLE_WORKFLOW"),
    ("UPDATE", "DURABLE_WORKFLOW", "SET"),
}
WRITES = {"INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "DROP", "ALTER"}


@pytest.mark.slow
def test_every_write_comes_after_begin_immediate(recorded: Recorder) -> None:
    """N34: of all SQL of a session, each write is in a transaction that began as a writer's.

    Or it is one itself, which takes the writer's lock as BEGIN IMMEDIATE does.
    """
    assert len(recorded.traced) > 3
    for statements in recorded.traced.values():
        began = None
        for sql in statements:
            words = sql.upper().split()
            if words[0] == "BEGIN":
                began = " ".join(words).rstrip(";")
            elif words[0] in ("COMMIT", "ROLLBACK") and words[1:2] != ["TO"]:
                began = None
            elif words[0] in WRITES or words[0] == "WITH":
                reads_only = words[0] == "WITH" and WRITES.isdisjoint(words)
                single = began is None and tuple(words[:3]) in SINGLE
                assert began == "BEGIN IMMEDIATE" or reads_only or single, sql
            elif words[0] in ("SAVEPOINT", "RELEASE"):
                assert began == "BEGIN IMMEDIATE", sql


def test_a_connection_that_reads_never_writes_and_the_other_way_round(recorded: Recorder) -> None:
    """N34: no transaction reads first and writes then, which fails under another's lock."""
    for statements in recorded.traced.values():
        begins = {sql.rstrip(";") for sql in statements if sql.startswith("BEGIN")}
        assert begins in ({"BEGIN IMMEDIATE"}, {"BEGIN"}, set())
        if begins == {"BEGIN"}:
            assert "PRAGMA query_only = 1" in statements
