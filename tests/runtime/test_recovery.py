"""Recovery: every unfinished run goes on, on its own, in the order of creation."""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import Any

import pytest

import durable
from durable import Engine, Status, step, workflow
from durable.runtime import recovery
from durable.runtime.registry import registry
from durable.store.database import Database
from durable.store.transactions import Transactions
from tests.support import PATIENCE, Gate, dying, until

ran: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@step
def note(what: str) -> str:
    ran.append(what)
    return what


@workflow
def waits(name: str) -> str:
    note(f"{name} before")
    durable.recv("go")
    return note(f"{name} after")


@workflow(max_recoveries=2)
def poison(gates: int) -> None:
    durable.run_step(die_here)


current_gate: list[Gate] = []


def die_here() -> None:
    current_gate[-1].pass_through()


def leave_unfinished(path: str, names: list[str]) -> None:
    """Workflows that have recorded a step each, in a file whose engine died."""
    with dying(path):
        handles = [waits.options(id=name).start(name) for name in names]
        until(lambda: all(len(handle.steps()) == 1 for handle in handles))
    with Engine(path, recover="manual") as engine:
        for name in names:
            engine.send(name, None, "go")
    ran.clear()


def test_in_the_order_of_creation(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfinished runs are taken up in the order in which they were created."""
    labels: list[str] = []
    leave_unfinished(path, [])
    with dying(path, recover="manual"):
        names = [f"n{n}" for n in range(20)]
        handles = [waits.options(id=name).start(name) for name in names]
        until(lambda: all(len(handle.steps()) == 1 for handle in handles))
    write = Database.write

    def traced(self: Database, label: str, fn: Any, *others: Any) -> Any:
        result = write(self, label, fn, *others)
        if label.startswith("recover"):
            labels.extend(run.id for run in result)
        return result

    monkeypatch.setattr(Database, "write", traced)
    with Engine(path) as engine:
        for name in names:
            engine.send(name, None, "go")
            engine.handle(name).result(PATIENCE)
    assert labels == names


def test_transient_errors_stop_no_recovery(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N01: the file answers busy while one of n is taken up: all n finish."""
    leave_unfinished(path, ["a", "b", "c"])
    begin = Transactions.begin
    failed: list[int] = []

    def busy_once(self: Transactions) -> None:
        if len(failed) < 3:
            failed.append(1)
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            calls = iter([error])

            def action() -> Any:
                for each in calls:
                    raise each
                return self._writer.execute("BEGIN IMMEDIATE")

            self._patience.retry(self._writer, action)
            return
        begin(self)

    monkeypatch.setattr(Transactions, "begin", busy_once)
    with Engine(path) as engine:
        assert [engine.handle(n).result(PATIENCE) for n in "abc"] == [f"{n} after" for n in "abc"]
    assert sorted(ran) == ["a after", "b after", "c after"]


@pytest.mark.slow
def test_a_failing_disk_delays_a_recovery(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N01: an I/O error while one of n is taken up: it is tried again, and all n finish."""
    leave_unfinished(path, ["a", "b", "c"])
    write = Database.write
    failed: list[str] = []

    def fail_once(self: Database, label: str, fn: Any, *others: Any) -> Any:
        if label.startswith("recover") and len(failed) < 2:
            failed.append(label)
            raise durable.StorageError(path, "disk I/O error")
        return write(self, label, fn, *others)

    monkeypatch.setattr(Database, "write", fail_once)
    with Engine(path) as engine:
        assert [engine.handle(n).result(PATIENCE) for n in "abc"] == [f"{n} after" for n in "abc"]
    assert len(failed) == 2


def test_a_predicate_that_raises_leaves_one_run(path: str) -> None:
    """A `recover` predicate that raises for one run stops no other."""
    leave_unfinished(path, ["a", "b"])

    def wanted(each: durable.Workflow) -> bool:
        return {"b": True}[each.id]

    with Engine(path, recover=wanted) as engine:
        assert engine.handle("b").result(PATIENCE) == "b after"
        assert engine.handle("a").info().status is Status.PENDING


def test_one_bad_run_stops_no_other(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A run whose row is damaged stays unfinished with a reason; the others go on."""
    leave_unfinished(path, ["a", "b", "c"])
    with Engine(path, recover="manual") as engine:
        engine._open_engine().database.write(
            "damage",
            lambda tx: tx.execute("UPDATE durable_workflow SET input = '{' WHERE id = 'b'"),
        )
    with Engine(path) as engine:
        assert engine.handle("a").result(PATIENCE) == "a after"
        assert engine.handle("c").result(PATIENCE) == "c after"
        until(lambda: engine.handle("b").info().reason is not None)
        assert engine.handle("b").info().status is Status.PENDING
        assert "input" in str(engine.handle("b").info().reason)
        assert engine.cancel("b")


@pytest.mark.slow
def test_dead_after_too_many_deaths(path: str) -> None:
    """N02: a run that brings its process down again and again is DEAD, and the others finish."""
    leave_unfinished(path, ["a"])
    with dying(path, recover="manual"):
        current_gate.append(Gate())
        poison.options(id="poison").start(1)
        current_gate[-1].wait_reached()
    for _ in range(2):
        current_gate[-1].open()
        current_gate.append(Gate())
        with dying(path, recover=lambda each: each.id == "poison"):
            current_gate[-1].wait_reached()
    current_gate[-1].open()
    with Engine(path) as engine:
        with pytest.raises(durable.WorkflowDead, match="2 times"):
            engine.handle("poison").result(PATIENCE)
        assert engine.handle("poison").info().status is Status.DEAD
        assert engine.handle("a").result(PATIENCE) == "a after"
        current_gate.append(Gate())
        current_gate[-1].open()
        engine.resume("poison")
        assert engine.handle("poison").result(PATIENCE) is None


@pytest.mark.slow
def test_closing_is_not_a_death(path: str) -> None:
    """Only a death of the process counts: closing the engine, however often, does not."""
    Engine(path).open().close()
    for _ in range(4):
        gate = Gate()
        current_gate.append(gate)
        engine = Engine(path).open()
        poison.options(id="one").start(1)
        gate.wait_reached()
        engine.close(timeout=0)
        gate.open()
    current_gate.append(gate)
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) is None
        assert engine.handle("one").info().recoveries == 0


@pytest.mark.slow
def test_dying_while_it_waits_is_not_its_death(path: str) -> None:
    """A run that waits for a message when its process dies has not brought it down."""
    leave_unfinished(path, [])
    with dying(path):
        waits.options(id="one").start("one")
        until(lambda: ran == ["one before"])
    with dying(path) as engine:
        host = engine._open_engine()
        until(
            lambda: host.database.read(
                lambda tx: tx.execute("SELECT waits_for FROM durable_workflow").fetchone()[0]
            )
        )
        before = engine.handle("one").info().recoveries
    for _ in range(3):
        with dying(path) as engine:
            host = engine._open_engine()
            until(lambda: host.runs.describe())  # noqa: B023
            assert host.runs.all() == []
    with Engine(path) as engine:
        engine.send("one", None, "go")
        assert engine.handle("one").result(PATIENCE) == "one after"
        assert engine.handle("one").info().recoveries == before


def test_a_wait_that_is_over_parks_nobody(path: str) -> None:
    """A run that was parked, got its message and died later is taken up at once."""
    gate = Gate()

    @workflow
    def wf() -> str:
        status = durable.recv("t", timeout=3600)
        durable.run_step(lambda: len(ran) == 1 and gate.pass_through())
        return str(status)

    with dying(path):
        handle = wf.options(id="one").start()
        until(lambda: handle.info().wake_at is not None)
    with dying(path) as engine:
        until(lambda: engine._open_engine().runs.describe())
        ran.append("once")
        engine.send("one", "came", "t")
        gate.wait_reached()
        assert engine.handle("one").info().wake_at is None
    ran.append("twice")
    gate.open()
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == "came"


@pytest.mark.slow
def test_progress_starts_the_count_anew(path: str) -> None:
    """A run that records something between two deaths is not stuck."""

    @workflow(max_recoveries=1)
    def slow(steps: int) -> int:
        for _ in range(steps):
            durable.run_step(die_here)
        return steps

    for _ in range(3):
        current_gate.append(Gate())
        with dying(path):
            slow.options(id="one").start(4)
            current_gate[-1].wait_reached()
            following = Gate()
            current_gate.append(following)
            current_gate[-2].open()
            following.wait_reached()
        following.open()
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == 4


def test_unregistered_stays_with_a_reason_and_one_warning(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A workflow whose code is not there stays unfinished, visibly; declaring it lets it go on."""
    gone = workflow(name="gone-workflow")(lambda: note("found") and durable.recv("go"))
    with dying(path):
        for n in range(3):
            gone.options(id=f"g{n}").start()
        until(lambda: len(ran) == 3)
    registry._workflows.pop("gone-workflow")
    with Engine(path) as engine:
        until(lambda: all(engine.handle(f"g{n}").info().reason for n in range(3)))
        info = engine.handle("g1").info()
        assert info.status is Status.PENDING
        assert "gone-workflow" in str(info.reason)
        warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert len(warnings) == 1
        workflow(name="gone-workflow")(lambda: note("again") and durable.recv("go"))
        for n in range(3):
            engine.send(f"g{n}", "went on", "go")
            assert engine.handle(f"g{n}").result(PATIENCE) == "went on"
            assert engine.handle(f"g{n}").info().reason is None


def test_a_method_without_its_instance(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """N09: it stays unfinished with a reason and a warning; registering it later lets it go on."""

    class Machine:
        durable_key = "m1"

        @workflow
        def work(self) -> str:
            return f"{self.durable_key} {durable.recv('go')}"

    with dying(path):
        Machine().work.options(id="one").start()
    registry._instances.clear()
    with Engine(path) as engine:
        until(lambda: engine.handle("one").info().reason)
        assert "durable.register" in str(engine.handle("one").info().reason)
        assert "m1" in caplog.text
        durable.register(Machine())
        engine.send("one", "went on", "go")
        assert engine.handle("one").result(PATIENCE) == "m1 went on"


def test_starting_while_recovering(path: str) -> None:
    """N03: ids that are started while the engine recovers them run once each."""
    names = [f"n{n}" for n in range(40)]
    leave_unfinished(path, names)
    with Engine(path) as engine:
        threads = [
            threading.Thread(target=lambda name=name: waits.options(id=name).start(name))  # type: ignore[misc]
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert [engine.handle(n).result(PATIENCE) for n in names] == [f"{n} after" for n in names]
    assert sorted(ran) == sorted(f"{n} after" for n in names)


def test_two_recoverers_of_one_row(path: str) -> None:
    """N10: two threads that take up the same run: one does."""
    leave_unfinished(path, ["a"])
    with Engine(path, recover="manual") as engine:
        barrier = threading.Barrier(8)

        def recover() -> None:
            barrier.wait(PATIENCE)
            engine.recover(["a"])

        threads = [threading.Thread(target=recover) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert engine.handle("a").result(PATIENCE) == "a after"
    assert ran == ["a after"]


def test_manual_recovery(path: str) -> None:
    """With recover="manual" nothing goes on until it is asked for, by id or all."""
    leave_unfinished(path, ["a", "b", "c"])
    with Engine(path, recover="manual") as engine:
        assert [each.result(PATIENCE) for each in engine.recover(["b"])] == ["b after"]
        assert ran == ["b after"]
        assert {each.id: each.result(PATIENCE) for each in engine.recover()} == {
            "a": "a after",
            "c": "c after",
        }
        with pytest.raises(durable.WorkflowNotFound):
            engine.recover(["unknown"])


def test_starting_an_unfinished_id_takes_it_up(path: str) -> None:
    """With recover="manual", starting the id that is unfinished lets that run go on."""
    leave_unfinished(path, ["a"])
    with Engine(path, recover="manual"):
        assert waits.options(id="a")("ignored") == "a after"


def test_recovery_by_predicate(path: str) -> None:
    """A predicate on the workflow chooses what goes on."""
    leave_unfinished(path, ["a", "b"])
    engine = Engine(path, recover=lambda each: each.args == ("b",)).open()
    assert engine.handle("b").result(PATIENCE) == "b after"
    engine.close()
    assert ran == ["b after"]


def test_code_that_changed_elsewhere_changes_nothing(path: str) -> None:
    """N08: another version, another docstring, another workflow: the run still goes on."""
    leave_unfinished(path, ["a"])
    with Engine(path, version="2") as engine:
        assert engine.handle("a").result(PATIENCE) == "a after"


def test_many_unfinished_workflows(path: str) -> None:
    """N06: a hundred unfinished runs are all taken up and finish."""
    names = [f"n{n}" for n in range(100)]
    leave_unfinished(path, names)
    with Engine(path) as engine:
        assert [engine.handle(n).result(PATIENCE) for n in names] == [f"{n} after" for n in names]
    assert sorted(ran) == sorted(f"{n} after" for n in names)


def test_n10_two_threads_that_want_one_run_begin_it_once(path: str) -> None:
    """N10: also where the second one looks after the write of the first and before it runs."""
    leave_unfinished(path, ["a"])
    with Engine(path, recover="manual") as engine:
        host = engine._open_engine()
        add, waiting = host.runs.add, threading.Event()

        def late(run: Any) -> None:
            other = threading.Thread(target=recovery.take_up_if_loose, args=(host, "a"))
            other.start()
            waiting.wait(0.05)  # the other one has looked, and waits for us or goes wrong
            add(run)
            others.append(other)

        others: list[threading.Thread] = []
        host.runs.add = late  # type: ignore[method-assign]
        engine.recover(["a"])
        host.runs.add = add  # type: ignore[method-assign]
        for other in others:
            other.join(PATIENCE)
        assert len(others) == 1
        assert engine.handle("a").result(PATIENCE) == "a after"
