"""From opening to closing: what an engine leaves behind, and what stopping it does to its runs."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import (
    Client,
    Engine,
    EngineClosed,
    InvalidArgument,
    NoEngine,
    NotAllowedHere,
    WaitTimeout,
    step,
    workflow,
)
from durable.clock import SystemClock, Thread
from tests.processes.programs import Program
from tests.support import PATIENCE, Gate, durable_threads, dying

_gate = Gate()
_ran: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    global _gate
    _gate = Gate()
    _ran.clear()
    yield
    _gate.open()


@step
def note(what: Any) -> Any:
    _ran.append(what)
    return what


@step
def at_gate() -> str:
    _gate.pass_through()
    return "through"


@workflow
def one(n: int = 1) -> int:
    return n


@workflow
def passes_gate() -> str:
    note("before")
    at_gate()
    note("after")
    return "done"


@workflow
def receives() -> Any:
    return durable.recv(timeout=3600)


@workflow
def starts_others(depth: int) -> int:
    if depth:
        starts_others.start(depth - 1)
    note(depth)
    return depth


def records(path: str) -> list[tuple[Any, ...]]:
    """All of the runs and steps that the file has."""
    with closing(sqlite3.connect(path)) as connection:
        runs = connection.execute("SELECT id, status, epoch, result, error FROM durable_workflow")
        steps = connection.execute(
            "SELECT workflow, number, outcome, value FROM durable_checkpoint"
        )
        return [*runs, *steps]


def in_thread(call: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=call, name="in thread", daemon=True)
    thread.start()
    return thread


def wait_noted(handle: durable.Handle[Any]) -> None:
    """Wait until the file says that the workflow waits."""
    tick, deadline = threading.Event(), time.monotonic() + PATIENCE
    while handle.info().wake_at is None:
        assert time.monotonic() < deadline, "the wait was never noted"
        tick.wait(0.005)


# ---------------------------------------------------------------------- leaving `with`


def test_leaving_with_waits_until_nothing_is_running(path: str) -> None:
    """Not left while a workflow runs, left when it has ended."""
    left = threading.Event()

    def use() -> None:
        with Engine(path) as engine:
            engine.start(passes_gate)
        left.set()

    thread = in_thread(use)
    _gate.wait_reached()
    assert not left.is_set()

    _gate.open()
    assert left.wait(PATIENCE)
    thread.join(PATIENCE)
    assert _ran == ["before", "after"]


def test_leaving_with_waits_for_what_is_started_meanwhile(path: str) -> None:
    """Children that nobody waits for, and theirs."""
    with Engine(path) as engine:
        engine.start(starts_others, 5)

    assert sorted(_ran) == [0, 1, 2, 3, 4, 5]
    assert all(status == "SUCCESS" for _, status, *_ in records(path)[:6])


def test_leaving_with_waits_for_what_was_recovered(path: str) -> None:
    """Also where nothing was started."""
    with dying(path) as engine:
        engine.start(passes_gate)
        _gate.wait_reached()
    _gate.open()
    with Engine(path):
        pass

    with Client(path) as client:
        assert [run.status for run in client.workflows()] == ["SUCCESS"]


class LateRecovery(SystemClock):
    """Lets the recovery begin when its gate is opened."""

    def __init__(self) -> None:
        self.gate = Gate()

    def spawn(self, name: str, target: Callable[[], None]) -> Thread:
        def later() -> None:
            if name == "durable recovery":
                self.gate.pass_through()
            target()

        return super().spawn(name, later)


@pytest.mark.slow
def test_leaving_with_waits_for_a_recovery_that_has_not_begun(path: str) -> None:
    """However late the thread that recovers gets to run, `with` is not left before it."""
    leave_unfinished(path, "w")
    clock = LateRecovery()
    engine = Engine(path, clock=clock).open()
    leaving = in_thread(engine.close)
    clock.gate.wait_reached()
    leaving.join(0.5)
    early = not leaving.is_alive()
    clock.gate.open()
    leaving.join(PATIENCE)

    assert not early
    with Client(path) as client:
        assert client.handle("w").info().status == "SUCCESS"


def test_after_an_exception_the_engine_stops_at_once(path: str) -> None:
    """The exception comes out; what ran is unfinished, and goes on at the next start."""
    with pytest.raises(ZeroDivisionError), Engine(path) as engine:
        handle = engine.start(receives)
        wait_noted(handle)
        _ = 1 / 0

    with Engine(path) as engine:
        engine.send(handle.id, "on")
        assert engine.handle(handle.id).result(PATIENCE) == "on"


@pytest.mark.slow
def test_who_is_waited_for_is_told(path: str) -> None:
    """After 2 s the log says which workflows, and that Ctrl-C is harmless."""
    heard = Heard("waiting for 1 unfinished workflow")
    engine = Engine(path).open()
    passes_gate.options(id="slow-one").start()
    with heard.listening():
        closing_thread = in_thread(engine.close)
        assert heard.event.wait(PATIENCE)
    assert "slow-one" in heard.text
    assert "Ctrl-C leaves" in heard.text
    assert closing_thread.is_alive()

    _gate.open()
    closing_thread.join(PATIENCE)
    assert not closing_thread.is_alive()


class Heard(logging.Handler):
    """Sets an event when a line with a word comes."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word
        self.event = threading.Event()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        if self._word in record.getMessage():
            self.text = record.getMessage()
            self.event.set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        logging.getLogger("durable").addHandler(self)
        try:
            yield
        finally:
            logging.getLogger("durable").removeHandler(self)


# ---------------------------------------------------------------------- close


def test_close_waits_as_long_as_it_is_told(engine: Engine) -> None:
    """With a timeout it gives up waiting; what ran is unfinished."""
    handle = engine.start(receives)
    wait_noted(handle)
    began = time.monotonic()
    engine.close(timeout=0.3)

    assert 0.1 < time.monotonic() - began < 5


def test_close_with_a_timeout_does_not_wait_longer_than_it_must(engine: Engine) -> None:
    """It returns when the last workflow has ended."""
    engine.start(passes_gate)
    _gate.wait_reached()
    thread = in_thread(lambda: engine.close(timeout=3600))
    _gate.open()
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("stuck", [1, 20])
def test_n46_close_does_not_wait_for_stuck_threads(path: str, stuck: int) -> None:
    """N46: threads in the middle of a step are left to themselves."""
    engine = Engine(path).open()
    handles = [engine.start(passes_gate) for _ in range(stuck)]
    _gate.wait_reached()
    began = time.monotonic()
    engine.close(timeout=0.2)

    assert time.monotonic() - began < 5
    assert not Path(f"{path}.lock").exists()
    assert len(handles) == stuck


def test_n47_what_a_stuck_step_still_does_is_not_recorded(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """N47: after close its result is dropped: nothing is written, nothing is raised or logged."""
    engine = Engine(path).open()
    engine.start(passes_gate)
    _gate.wait_reached()
    engine.close(timeout=0)
    (stuck,) = durable_threads()
    before = records(path)
    caplog.clear()

    _gate.open()
    stuck.join(PATIENCE)
    assert records(path) == before
    assert _ran == ["before"]
    assert not caplog.records
    assert not Path(f"{path}-wal").exists()


def test_n47_a_stuck_step_does_not_write_into_the_next_engine(path: str) -> None:
    """N47: its run was taken up again; only the new one counts."""
    first = Engine(path).open()
    handle = first.start(passes_gate)
    old = _gate
    old.wait_reached()
    first.close(timeout=0)
    stuck = durable_threads()
    globals()["_gate"] = Gate()
    with Engine(path) as second:
        _gate.wait_reached()
        old.open()
        stuck[0].join(PATIENCE)
        assert second.handle(handle.id).info().status == "PENDING"
        _gate.open()
        assert second.handle(handle.id).result(PATIENCE) == "done"
    assert _ran == ["before", "after"]


def test_close_twice_is_harmless(engine: Engine) -> None:
    """One after the other, and at once."""
    threads = [in_thread(engine.close) for _ in range(5)]
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    engine.close()
    engine.close(timeout=0)


def test_whoever_waits_is_told_of_the_close(engine: Engine) -> None:
    """A result that is waited for while the engine closes: EngineClosed, not silence."""
    handle = engine.start(receives)
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            handle.result()
        except BaseException as error:
            outcome.append(error)

    thread = in_thread(wait)
    wait_noted(handle)
    engine.close(timeout=0)
    thread.join(PATIENCE)
    assert isinstance(outcome[0], EngineClosed)


def test_an_engine_that_closes_starts_nothing_more(path: str) -> None:
    """Twenty threads start workflows while it closes: each is on the disk, or was refused."""
    engine = Engine(path).open()
    accepted: list[str] = []
    refused: list[BaseException] = []
    go = threading.Barrier(21)

    def start(n: int) -> None:
        go.wait(PATIENCE)
        try:
            accepted.append(one.options(id=f"w{n}").start(n).id)
        except (EngineClosed, NoEngine) as error:
            refused.append(error)

    threads = [in_thread(lambda n=n: start(n)) for n in range(20)]
    go.wait(PATIENCE)
    engine.close(timeout=0)
    for thread in threads:
        thread.join(PATIENCE)

    assert len(accepted) + len(refused) == 20
    with Engine(path) as again:
        for workflow_id in accepted:
            assert again.handle(workflow_id).result(PATIENCE) == int(workflow_id[1:])
        assert len(again.workflows()) >= len(accepted)


def test_a_workflow_cannot_close_its_engine(engine: Engine) -> None:
    """NotAllowedHere, in its body and in a step; it goes on, and so does the engine."""

    def close() -> str:
        try:
            engine.close()
        except NotAllowedHere as error:
            return str(error)
        return "closed"

    global _callback
    _callback = close
    assert "cannot close" in engine.run(calls_back)
    assert "cannot close" in engine.run(calls_back_in_a_step)
    assert engine.run(one) == 1


_callback: Callable[[], str] = str


@workflow
def calls_back() -> str:
    return _callback()


@workflow
def calls_back_in_a_step() -> str:
    return durable.run_step(_callback)


# ---------------------------------------------------------------------- stopping from inside


@workflow
def leaves() -> str:
    _ran.append("body")
    if len(_ran) == 1:
        sys.exit(3)
    return "stayed"


def test_sys_exit_in_a_workflow_is_no_outcome(path: str) -> None:
    """`run` raises SystemExit; the run is unfinished, says why, and goes on at the next start."""
    with suppress(SystemExit), Engine(path) as engine:
        leaves.options(id="w")()
    with Client(path) as client:
        run = client.handle("w").info()
    assert run.status == "PENDING"
    assert "SystemExit" in str(run.reason)
    assert run.recoveries == 0

    with Engine(path) as engine:
        assert engine.handle("w").result(PATIENCE) == "stayed"
        assert engine.handle("w").info().reason is None


def test_sys_exit_in_a_background_workflow_disturbs_no_other(engine: Engine) -> None:
    """The others go on, the engine stays open, and `recover` takes it up."""
    other = engine.start(passes_gate)
    _gate.wait_reached()
    _ran.clear()
    handle = engine.start(leaves)
    with pytest.raises(SystemExit):
        handle.result(PATIENCE)
    assert handle.info().status == "PENDING"
    _gate.open()
    assert other.result(PATIENCE) == "done"

    assert [each.id for each in engine.recover([handle.id])] == [handle.id]
    assert handle.result(PATIENCE) == "stayed"


@workflow
def interrupted() -> str:
    _ran.append("body")
    if len(_ran) == 1:
        raise KeyboardInterrupt
    return "went on"


def test_ctrl_c_in_a_workflow_is_no_outcome(path: str) -> None:
    """The same for KeyboardInterrupt."""
    with pytest.raises(KeyboardInterrupt), Engine(path):
        interrupted.options(id="w")()
    with Engine(path) as engine:
        assert engine.handle("w").result(PATIENCE) == "went on"


# ---------------------------------------------------------------------- opened again


def test_an_engine_can_be_opened_again(path: str) -> None:
    """The same object: what was unfinished goes on."""
    engine = Engine(path)
    with engine:
        handle = engine.start(receives)
        wait_noted(handle)
        engine.close(timeout=0)
    with engine:
        engine.send(handle.id, "again")
        assert engine.handle(handle.id).result(PATIENCE) == "again"
        with pytest.raises(InvalidArgument, match="open already"):
            engine.open()


def test_handles_of_before_say_that_the_engine_was_closed(path: str) -> None:
    """A handle belongs to one opening; the id leads to the run in the next."""
    engine = Engine(path)
    with engine:
        handle = engine.start(one)
        assert handle.result(PATIENCE) == 1
    with engine:
        with pytest.raises(EngineClosed):
            handle.info()
        assert engine.handle(handle.id).result(PATIENCE) == 1


def test_a_closed_engine_starts_nothing(path: str) -> None:
    """EngineClosed from all that it could do before."""
    engine = Engine(path).open()
    engine.close()
    for use in (
        lambda: engine.start(one),
        lambda: engine.run(one),
        lambda: engine.send("w", 1),
        lambda: engine.workflows(),
        lambda: engine.recover(),
        lambda: engine.serve(),
    ):
        with pytest.raises(EngineClosed):
            use()


@pytest.mark.slow
def test_n48_a_hundred_engines_leave_nothing(path: str) -> None:
    """N48: opened, used and closed one after the other: no thread, no open file, soon done."""
    memory = Path("/dev/shm")
    file = str(memory / f"durable-test-{os.getpid()}.db") if memory.exists() else path
    threads, files = threading.active_count(), open_files()
    began = time.monotonic()
    try:
        for number in range(100):
            with Engine(file) as engine:
                assert engine.run(one, number) == number
    finally:
        Path(file).unlink()

    assert time.monotonic() - began < 30
    assert threading.active_count() == threads
    assert open_files() == files


def open_files() -> int | None:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else None


def test_an_engine_that_cannot_open_leaves_nothing(tmp_path: Path) -> None:
    """No thread, no open file, no lock, and no current engine."""
    (tmp_path / "test.db").write_bytes(b"no database " * 1000)
    threads, files = threading.active_count(), open_files()
    for _ in range(3):
        with pytest.raises(durable.NotADurableFile):
            Engine(tmp_path / "test.db").open()

    assert threading.active_count() == threads
    assert open_files() == files
    with pytest.raises(NoEngine):
        one()


class CountingClock(SystemClock):
    """Remembers the names of the threads that it started."""

    def __init__(self) -> None:
        self.spawned: list[str] = []

    def spawn(self, name: str, target: Callable[[], None]) -> Thread:
        self.spawned.append(name)
        return super().spawn(name, target)


def test_closing_starts_no_threads(path: str) -> None:
    """However many workflows wait without one."""
    with Engine(path) as engine:
        for handle in [engine.start(receives) for _ in range(20)]:
            wait_noted(handle)
        engine.close(timeout=0)
    clock = CountingClock()
    engine = Engine(path, clock=clock).open()
    engine.run(one)
    before = len(clock.spawned)
    engine.close(timeout=0)

    assert clock.spawned[before:] == []


# ---------------------------------------------------------------------- several engines


def test_two_engines_run_on_two_files(tmp_path: Path) -> None:
    """Beside each other, with the same ids; neither sees the other's runs."""
    with Engine(tmp_path / "a.db") as a, Engine(tmp_path / "b.db") as b:
        first, second = a.start(receives_as, "w"), b.start(receives_as, "w")
        a.send(first.id, "to a")
        b.send(second.id, "to b")

        assert first.result(PATIENCE) == "to a"
        assert second.result(PATIENCE) == "to b"
        assert len(a.workflows()) == len(b.workflows()) == 1
        with pytest.raises(durable.WorkflowNotFound):
            a.handle(second.id).info()


@workflow
def receives_as(name: str) -> Any:
    return durable.recv(timeout=PATIENCE)


def test_the_current_engine_is_the_one_opened_last_and_still_open(tmp_path: Path) -> None:
    """And the one before it again, when it is closed; NoEngine after the last."""
    a, b = Engine(tmp_path / "a.db"), Engine(tmp_path / "b.db")
    with pytest.raises(NoEngine):
        one()
    with a:
        one.options(id="first")()
        with b:
            one.options(id="second")()
            one.options(id="third").start().result(PATIENCE)
        one.options(id="fourth")()
        assert [run.id for run in a.workflows()] == ["first", "fourth"]
    with pytest.raises(NoEngine):
        one()
    with b:
        assert [run.id for run in b.workflows()] == ["second", "third"]


def test_the_current_engine_may_be_closed_before_the_older_one(tmp_path: Path) -> None:
    """In whatever order: of those that are open, the one opened last counts."""
    a, b, c = (Engine(tmp_path / f"{name}.db").open() for name in "abc")
    b.close()
    one.options(id="on c")()
    c.close()
    one.options(id="on a")()
    assert [run.id for run in a.workflows()] == ["on a"]
    a.close()
    with pytest.raises(NoEngine):
        one()


@workflow
def has_children(child_id: str) -> int:
    at_gate()
    return one.options(id=child_id)(5)


def test_a_workflow_stays_with_its_engine(tmp_path: Path) -> None:
    """Its children run there, although another engine was opened since."""
    with Engine(tmp_path / "a.db") as a:
        handle = a.start(has_children, "child")
        _gate.wait_reached()
        with Engine(tmp_path / "b.db") as b:
            _gate.open()
            assert handle.result(PATIENCE) == 5
            assert b.workflows() == []
        assert a.handle("child").info().parent_id == handle.id


# ---------------------------------------------------------------------- recovery on opening


def leave_unfinished(path: str, *names: str) -> None:
    with dying(path):
        for name in names:
            passes_gate.options(id=name).start()
            _gate.wait_reached()
    _gate.open()


def test_manual_recovery_waits_for_the_call(path: str) -> None:
    """`recover="manual"`: nothing goes on before `recover`, then what it names does."""
    leave_unfinished(path, "a", "b")
    with Engine(path, recover="manual") as engine:
        with pytest.raises(WaitTimeout):
            engine.handle("a").result(timeout=0)
        assert [handle.id for handle in engine.recover(["b"])] == ["b"]
        assert engine.handle("b").result(PATIENCE) == "done"
        assert engine.handle("a").info().status == "PENDING"
        assert [handle.id for handle in engine.recover()] == ["a"]
        assert engine.handle("a").result(PATIENCE) == "done"


def test_a_predicate_chooses_what_goes_on(path: str) -> None:
    """It gets the Workflow of each unfinished run."""
    leave_unfinished(path, "a", "b")
    with Engine(path, recover=lambda run: run.id == "b") as engine:
        assert engine.handle("b").result(PATIENCE) == "done"
        assert engine.handle("a").info().status == "PENDING"


def test_a_predicate_that_raises_stops_no_other_run(path: str) -> None:
    """The error is logged; the runs of which it says nothing bad go on."""
    leave_unfinished(path, "a", "b")

    def choose(run: durable.Workflow) -> bool:
        if run.id == "a":
            raise KeyError("a")
        return True

    with Engine(path, recover=choose) as engine:
        assert engine.handle("b").result(PATIENCE) == "done"


# ---------------------------------------------------------------------- whole programs

WAITS = """\
from durable.clock import SystemClock

class Telling(SystemClock):
    def wait(self, condition, ready, deadline):
        if threading.current_thread() is threading.main_thread():
            print("waits")
        return super().wait(condition, ready, deadline)

@step
def first():
    print("first")

@step
def endless():
    print("endless")
    if sys.argv[2] == "stuck":
        time.sleep(3600)

@workflow
def runs():
    first()
    endless()
    return durable.recv("go")

with Engine(sys.argv[1], clock=Telling()) as engine:
    runs.options(id="w").start()
print("left")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["waiting", "stuck"])
def test_ctrl_c_leaves_what_runs_for_the_next_start(path: str, how: str) -> None:
    """At the end of `with`, while it waits for a workflow: it ends soon, and says why."""
    with Program(WAITS, path, how) as program:
        lines = [program.line() for _ in range(3)]
        assert sorted(lines) == ["endless", "first", "waits"]
        assert lines.index("first") < lines.index("endless")
        began = time.monotonic()
        program.interrupt()
        assert "left" not in program.rest()
        assert program.wait() != 0
        assert time.monotonic() - began < 10
        assert program.errors().rstrip().endswith("KeyboardInterrupt")
    assert not Path(f"{path}.lock").exists()

    with Program(WAITS, path, "waiting") as program, Client(path) as client:
        client.send("w", "on", "go")
        assert "first" not in program.succeed()
        assert client.handle("w").result(PATIENCE) == "on"
        assert client.handle("w").info().recoveries == 0


FORGETS = """\
@workflow
def receives():
    return durable.recv("go", timeout=3600)

engine = Engine(sys.argv[1]).open()
handles = [receives.options(id=f"w{n}").start() for n in range(3)]
while any(handle.info().wake_at is None for handle in handles):
    time.sleep(0.01)
print("ends")
"""


@pytest.mark.slow
def test_a_program_may_end_without_closing(path: str, tmp_path: Path) -> None:
    """It ends at once, without a word; nothing counts as a death, nothing stays behind."""
    with Program(FORGETS, path) as program:
        assert program.succeed() == ["ends"]
        assert program.errors() == ""
    assert [each.name for each in tmp_path.iterdir()] == ["test.db"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(
            "SELECT DISTINCT status, holder, recoveries FROM durable_workflow"
        ).fetchall() == [("PENDING", None, 0)]
        assert connection.execute("SELECT count(closed_at) FROM durable_session").fetchone() == (1,)


@pytest.mark.slow
def test_a_program_may_end_without_closing_though_workflows_are_parked(
    path: str, tmp_path: Path
) -> None:
    """The same where they wait without a thread, as they do when they were recovered."""
    for _ in range(2):
        with Program(FORGETS, path) as program:
            assert program.succeed() == ["ends"]
            assert program.errors() == ""
    assert [each.name for each in tmp_path.iterdir()] == ["test.db"]


EXITS = """\
@workflow
def leaves():
    print("in the workflow")
    sys.exit(3)

with Engine(sys.argv[1]) as engine:
    engine.run(leaves)
print("not reached")
"""


@pytest.mark.slow
def test_sys_exit_in_a_workflow_ends_the_program_with_its_code(path: str) -> None:
    """As it would without durable; the run is unfinished."""
    with Program(EXITS, path) as program:
        assert program.rest() == ["in the workflow"]
        assert program.wait() == 3
    with Client(path) as client:
        assert [run.status for run in client.workflows()] == ["PENDING"]


SERVES = """\
@workflow
def receives():
    print("receives")
    return durable.recv("go")

before = signal.getsignal(signal.SIGTERM)
with Engine(sys.argv[1]) as engine:
    receives.options(id="w").start()
    engine.serve()
    print("served")
    print(signal.getsignal(signal.SIGTERM) is before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
@pytest.mark.parametrize("end", [Program.terminate, Program.interrupt], ids=["SIGTERM", "Ctrl-C"])
def test_serve_runs_until_a_signal(path: str, end: Callable[[Program], None]) -> None:
    """Then it closes, returns, and has put the handler back; what ran goes on at the next start."""
    tick = threading.Event()
    with Program(SERVES, path) as program:
        assert program.line() == "receives"
        while not _handles_sigterm(program.pid):
            assert program.running()
            tick.wait(0.005)
        end(program)
        assert program.succeed() == ["served", "True"]
        assert program.errors() == ""
    assert not Path(f"{path}.lock").exists()
    with Client(path) as client:
        assert client.handle("w").info().status == "PENDING"


def _handles_sigterm(pid: int) -> bool:
    """Whether the process has begun to serve: it has a handler for SIGTERM then."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "SigCgt":
            return bool(int(value, 16) & (1 << 14))
    return False


def test_serve_returns_when_the_engine_is_closed(path: str) -> None:
    """By another thread: there is nothing to be served any more."""
    engine = Engine(path).open()
    serving = in_thread(engine.serve)
    engine.run(one)
    engine.close()
    serving.join(2)
    assert not serving.is_alive()


SILENT = """\
import contextlib

@step
def two():
    return 2

@workflow
def fails():
    raise ValueError("no")

@workflow
def all_kinds():
    durable.set_event("k", two())
    durable.sleep(0.01)
    return durable.recv(timeout=0.01, default=None)

with Engine(sys.argv[1]) as engine:
    engine.run(all_kinds)
    with contextlib.suppress(ValueError):
        engine.start(fails).result()
    engine.workflows()
with Engine(sys.argv[1]) as engine, Client(sys.argv[1]) as client:
    client.workflows()
"""


def test_n49_nothing_is_written_to_stdout(path: str) -> None:
    """N49: results are the program's own; chatter goes to logging."""
    with Program(SILENT, path) as program:
        assert program.succeed() == []


IMPORTS = """\
import atexit, logging, os, signal, sqlite3, sys, threading, warnings

done = []

def watch(owner, name):
    original = getattr(owner, name)
    def watched(*args, **options):
        frame = sys._getframe(1)
        while frame is not None:
            if "/durable/" in frame.f_code.co_filename.replace(os.sep, "/"):
                done.append(f"{name} in {frame.f_code.co_filename}:{frame.f_lineno}")
                break
            if "importlib" not in frame.f_code.co_filename:
                break  # what the standard library does for itself
            frame = frame.f_back
        return original(*args, **options)
    setattr(owner, name, watched)

for owner, name in [
    (sys, "addaudithook"), (sys, "settrace"), (threading.Thread, "start"), (atexit, "register"),
    (sqlite3, "connect"), (logging.Logger, "addHandler"), (logging, "basicConfig"),
    (signal, "signal"), (os, "register_at_fork"), (os, "open"), (warnings, "simplefilter"),
    (logging.Logger, "setLevel"),
]:
    watch(owner, name)

before = set(threading.enumerate())
import durable
assert set(threading.enumerate()) == before
assert not logging.getLogger("durable").handlers
assert logging.getLogger("durable").level == logging.NOTSET
sys.stdout.write(f"{done}\\n")
"""


def test_n49_importing_does_nothing(tmp_path: Path) -> None:
    """N49: no file, no thread, no hook, no handler; clean where warnings are errors."""
    script = tmp_path / "imports.py"
    script.write_text(IMPORTS)
    with Program(script) as program:
        assert program.succeed() == ["[]"]
        assert program.errors() == ""


@pytest.mark.parametrize("module", ["durable", "durable.testing"])
def test_n49_importing_is_clean(module: str) -> None:
    """N49: no output at all, under -W error."""
    with Program(f"import {module}") as program:
        assert program.succeed() == []
        assert program.errors() == ""
