"""Promise 8: Ctrl-C at every point of opening, starting, running, waiting and closing.

A trial makes one call on an engine and interrupts it at one point of all that durable does in it on
the main thread. Then either the engine is closed at once, it is looked at what is left behind, and
a fresh engine finishes; or the program goes on with the engine that it has. The thorough tests try
every point, the others a sample.

Points are where Python delivers a signal: see `Interruption`. What no Python code can be safe from
is left out: a Ctrl-C inside `threading.Condition`, between the acquiring of its lock and the return
from its ``__enter__`` (durable takes the lock itself, which is one instruction), and one inside
`threading.Thread.start`, whose thread is then in nobody's list (it finds its run stopped).
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import Client, Engine, Status, step, workflow
from durable.runtime import context
from durable.runtime.registry import registry
from durable.store import database
from tests.store.interrupts import ALL, Interruption
from tests.support import PATIENCE, Gate, until

acted: Counter[str] = Counter()
dies: list[BaseException] = []
gate = Gate()


@step
def acts(number: int) -> int:
    acted[durable.step_key()] += 1
    return number


@step
def at_gate() -> int:
    gate.pass_through()
    return 1


@workflow
def job(count: int) -> int:
    """Steps, an event, a child with a deadline that never comes."""
    total = acts(count)
    if dies:
        raise dies.pop()
    durable.set_event("total", total)
    return total + child.options(timeout=60).start(count).result()


@workflow
def child(count: int) -> int:
    return acts(count)


@workflow
def waits(count: int) -> int:
    return acts(count) + int(durable.recv("go", timeout=3600))


@workflow
def held(count: int) -> int:
    return acts(count) + at_gate()


EXPECTED = {job.name: 6, child.name: 3, waits.name: 5, held.name: 4}

# ---------------------------------------------------------------------- the calls


def opens(engine: Engine, interrupt: Interruption) -> None:
    with interrupt.armed():
        engine.open()


def starts(engine: Engine, interrupt: Interruption) -> None:
    engine.open()
    with interrupt.armed():
        engine.start(job.options(id="new", timeout=60), 3)


def runs(engine: Engine, interrupt: Interruption) -> None:
    engine.open()
    with interrupt.armed():
        assert engine.run(job.options(id="new", timeout=60), 3) == 6


def waits_for_a_result(engine: Engine, interrupt: Interruption) -> None:
    engine.open()
    handle = engine.start(job.options(id="new"), 3)
    with interrupt.armed():
        assert handle.result() == 6


def closes(engine: Engine, interrupt: Interruption) -> None:
    """With a workflow that runs, one that waits, and one that is parked."""
    engine.open()
    engine.start(held.options(id="new", timeout=60), 3)
    gate.wait_reached()
    with interrupt.armed():
        engine.close(timeout=0)


def leaves(engine: Engine, interrupt: Interruption) -> None:
    """The same when the engine is idle, and what was started is done."""
    engine.open()
    engine.start(job.options(id="new"), 3).result()
    with interrupt.armed():
        engine.close(timeout=0.2)


Call = Callable[[Engine, Interruption], None]
CLOSED_AFTER: list[Call] = [opens, starts, runs, waits_for_a_result, closes, leaves]
USED_AFTER: list[Call] = [starts, runs, waits_for_a_result]

# ---------------------------------------------------------------------- the trial


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a process that died, with a workflow that was at work and one that waited."""
    path = tmp_path_factory.mktemp("template") / "file.db"
    with suppress(SystemExit), Engine(path) as engine:
        engine.start(waits.options(id="waiting"), 3)
        until(lambda: read(path, "SELECT * FROM durable_workflow WHERE waits_for IS NOT NULL"))
        dies.append(SystemExit())
        engine.run(job.options(id="working"), 3)
    return path


class Trial:
    """One call, to be interrupted at one point."""

    def __init__(self, template: Path, folder: Path, call: Call, at: int) -> None:
        global gate
        acted.clear()
        gate = Gate()
        folder.mkdir()
        self.path = folder / "file.db"
        shutil.copy(template, self.path)
        self.engine = Engine(self.path, synchronous="normal")
        self.call = call
        self.interruption = Interruption(at, ALL)

    def run(self, *, go_on: bool) -> bool:
        """Make the call and audit what becomes of it; False if it has no such point."""
        try:
            with suppress(KeyboardInterrupt):
                self.call(self.engine, self.interruption)
            gate.open()
            if go_on:
                self.engine.recover()
                self.finish(self.engine)
            self.engine.close(timeout=0)
            self.check_nothing_is_left()
            self.check_the_rest_is_done_once()
        except BaseException as error:
            error.add_note(f"interrupted at {self.interruption.where}")
            with suppress(Exception):
                self.engine.close(timeout=0)  # the tests after this one are not to blame
            raise
        shutil.rmtree(self.path.parent)
        return self.interruption.happened

    def check_nothing_is_left(self) -> None:
        """No thread, no lock, no other file, no open engine; and the file is whole."""
        for thread in threading.enumerate():
            if thread.name.startswith("durable") and thread.ident is not None:
                thread.join(PATIENCE)
                assert not thread.is_alive(), f"{thread.name} is left"
        assert [each.name for each in self.path.parent.iterdir()] == [self.path.name]
        assert not context._open_hosts
        assert not registry._listeners
        assert not database._opened
        assert read(self.path, "PRAGMA integrity_check") == [("ok",)]
        assert not read(self.path, "SELECT id FROM durable_workflow WHERE holder IS NOT NULL")

    def check_the_rest_is_done_once(self) -> None:
        """A fresh engine finishes what was begun; what was recorded does not run again."""
        recorded = self.recorded()
        before = Counter(acted)
        with Engine(self.path, synchronous="normal") as engine:
            self.finish(engine)
        assert all(acted[key] == before[key] for key in recorded)
        assert recorded <= self.recorded()

    def recorded(self) -> set[str]:
        """The keys of the steps that the file has."""
        with Client(self.path) as client:
            return {
                f"{each.id}/{step.number}"
                for each in client.workflows()
                for step in client.handle(each.id).steps()
                if step.outcome is not None
            }

    def finish(self, engine: Engine) -> None:
        """Have all workflows end; each ends as it should, whatever was interrupted."""
        if engine.handle("waiting").info().status is Status.PENDING:
            engine.send("waiting", 2, "go", idempotency_key="once")
        for each in engine.workflows():
            assert engine.handle(each.id).result(PATIENCE) == EXPECTED[each.name]


def read(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def try_points(template: Path, folder: Path, call: Call, *, step: int, go_on: bool = False) -> None:
    """One trial after the other, until the call has no further point."""
    at = 1
    while Trial(template, folder / str(at), call, at).run(go_on=go_on):
        at += step
    assert at > 3, "points there were"


@pytest.mark.slow
@pytest.mark.parametrize("call", CLOSED_AFTER)
def test_ctrl_c_at_every_point_leaves_nothing_behind(
    template: Path, tmp_path: Path, call: Call
) -> None:
    """The engine can be closed, and the next one goes on from what was recorded."""
    try_points(template, tmp_path, call, step=1)


@pytest.mark.slow
@pytest.mark.parametrize("call", USED_AFTER)
def test_after_ctrl_c_at_every_point_the_engine_is_of_use(
    template: Path, tmp_path: Path, call: Call
) -> None:
    """A program that catches it may go on: what was interrupted can be taken up again."""
    try_points(template, tmp_path, call, step=1, go_on=True)


@pytest.mark.slow
@pytest.mark.parametrize("call", CLOSED_AFTER)
def test_ctrl_c_leaves_nothing_behind(template: Path, tmp_path: Path, call: Call) -> None:
    """The same at a sample of the points."""
    try_points(template, tmp_path, call, step=37)


@pytest.mark.slow
@pytest.mark.parametrize("call", USED_AFTER)
def test_after_ctrl_c_the_engine_is_of_use(template: Path, tmp_path: Path, call: Call) -> None:
    """The same at a sample of the points."""
    try_points(template, tmp_path, call, step=37, go_on=True)
