"""What other processes may do to a file while an engine runs its workflows."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import (
    Client,
    Engine,
    EngineClosed,
    EventNotSet,
    Opaque,
    RemoteError,
    SerializationError,
    Status,
    WaitTimeout,
    WorkflowCancelled,
    WorkflowConflict,
    WorkflowNotFound,
    workflow,
)
from durable.clock import Bell, SystemClock
from tests.processes.programs import Program
from tests.support import PATIENCE

ENGINE = """\
from dataclasses import dataclass

@dataclass
class Order:
    number: int

class Declined(Exception):
    pass

def say(*words):
    print(durable.current().workflow_id, *words)

@step
def add(a, b):
    say("add", a, b)
    return a + b

@workflow
def receives(count=1):
    got = []
    for _ in range(count):
        got.append(durable.recv("topic"))
        say("got", got[-1])
    return got

@workflow
def shows():
    durable.recv("go")
    durable.set_event("shown", {"n": 1})
    durable.recv("end")
    return "ended"

@workflow
def sums(a, b, c):
    return add(add(a, b), c)

@workflow
def stuck():
    add(1, 2)
    say("stuck")
    durable.recv("never")

@workflow
def family():
    stuck.options(id=durable.current().workflow_id + "-child").start()
    durable.recv("never")

@workflow
def own_classes(order):
    durable.set_event("order", order)
    durable.set_event("plain", 1)
    received = durable.recv("order")
    durable.run_step(lambda: order)
    return received

@workflow
def own_error():
    raise Declined("no money", 17)

with Engine(sys.argv[1]) as engine:
    print("engine open")
    for line in sys.stdin:
        exec(line)
    engine.close(timeout=0)
"""


class Running:
    """An engine in another process, with a client here."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.program = Program(ENGINE, path)
        self._said: dict[str, list[str]] = {}
        self._ids = (f"w{number}" for number in range(1000))
        assert self.line("engine") == "open"
        self.client = Client(path)

    def start(self, call: str) -> durable.Handle[Any]:
        """Start a workflow there, ``"sums(1, 2, 3)"``, under an id of its own."""
        workflow_id = next(self._ids)
        name, arguments = call.split("(", 1)
        self.program.say(
            f"{name}.options(id={workflow_id!r}).start({arguments}; print({workflow_id!r}, 'begun')"
        )
        self.wait_for(workflow_id, "begun")
        return self.client.handle(workflow_id)

    def line(self, workflow_id: str) -> str:
        """The next line that this workflow says."""
        while not self._said.get(workflow_id):
            speaker, _, line = self.program.line().partition(" ")
            self._said.setdefault(speaker, []).append(line)
        return self._said[workflow_id].pop(0)

    def wait_for(self, workflow_id: str, line: str) -> None:
        """Return when the workflow has said that; what it said before is kept."""
        before = []
        while (said := self.line(workflow_id)) != line:
            before.append(said)
        self._said[workflow_id][:0] = before


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests: each has workflows of its own."""
    running = Running(str(tmp_path_factory.mktemp("running") / "test.db"))
    with running.program, running.client:
        yield running


class Waits:
    """A call on a thread of its own, with what it returned or raised."""

    def __init__(self, call: Any) -> None:
        self.outcome: list[Any] = []

        def run() -> None:
            try:
                self.outcome.append(call())
            except BaseException as error:
                self.outcome.append(error)

        self.thread = threading.Thread(target=run, name="waits", daemon=True)
        self.thread.start()

    @property
    def done(self) -> bool:
        return bool(self.outcome)

    def join(self) -> Any:
        self.thread.join(PATIENCE)
        assert self.outcome, "it still waits"
        return self.outcome[0]


# ---------------------------------------------------------------------- beside an engine elsewhere


def test_a_message_from_another_process_arrives(running: Running) -> None:
    """The receiver gets what the client sent, and the client what the workflow returned."""
    handle = running.start("receives()")
    running.client.send(handle.id, {"n": (1, 2)}, "topic")

    assert handle.result(PATIENCE) == [{"n": (1, 2)}]


def test_a_message_from_another_process_arrives_soon(running: Running) -> None:
    """In 20 ms or so; a second is what a busy machine may take."""
    handle = running.start("receives(10)")
    slowest = 0.0
    for number in range(10):
        began = time.perf_counter()
        handle.send(number, "topic")
        assert running.line(handle.id) == f"got {number}"
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 1


SENDS = """\
with Client(sys.argv[1]) as client:
    for n in range(25):
        client.send(sys.argv[2], [sys.argv[3], n], "topic")
"""


@pytest.mark.slow
def test_messages_of_many_processes_arrive_once_and_in_order(running: Running) -> None:
    """Three programs send 25 each at once; of each they come in order, none twice."""
    handle = running.start("receives(75)")
    with ExitStack() as stack:
        for name in "abc":
            stack.enter_context(Program(SENDS, running.path, handle.id, name))
        got = handle.result(PATIENCE)

    for name in "abc":
        assert [n for sender, n in got if sender == name] == list(range(25))


def test_an_idempotent_message_of_two_clients_arrives_once(running: Running) -> None:
    """The second one with the key is dropped, whoever sends it."""
    handle = running.start("receives(2)")
    with Client(running.path) as other:
        for client in (running.client, other, running.client):
            client.send(handle.id, "charge", "topic", idempotency_key="order-17")
    handle.send("last", "topic")

    assert handle.result(PATIENCE) == ["charge", "last"]


def test_a_client_waits_for_an_event(running: Running) -> None:
    """Not done before it is set, done after; all events come with their last values."""
    handle = running.start("shows()")
    waits = Waits(lambda: running.client.event(handle.id, "shown"))
    with pytest.raises(WaitTimeout):
        handle.event("shown", timeout=0.05)
    assert handle.event("shown", timeout=0, default="none") == "none"
    assert not waits.done

    handle.send(None, "go")
    assert waits.join() == {"n": 1}
    assert running.client.events(handle.id) == {"shown": {"n": 1}}


def test_a_client_waits_for_a_result(running: Running) -> None:
    """Not done while the workflow runs, done when it has ended."""
    handle = running.start("shows()")
    waits = Waits(handle.result)
    handle.send(None, "go")
    assert handle.event("shown", timeout=PATIENCE)
    with pytest.raises(WaitTimeout):
        handle.result(timeout=0.05)
    assert not waits.done

    handle.send(None, "end")
    assert waits.join() == "ended"
    with pytest.raises(EventNotSet):
        handle.event("other")


def test_a_client_cancels_with_all_children(running: Running) -> None:
    """The engine stops them at once; both say how they ended."""
    family = running.start("family()")
    child = running.client.handle(f"{family.id}-child")
    running.wait_for(child.id, "stuck")

    cancelled = family.cancel()
    assert (cancelled.cancelled, cancelled.status) == (True, Status.CANCELLED)
    for handle in (family, child):
        with pytest.raises(WorkflowCancelled):
            handle.result(PATIENCE)
    assert not child.cancel()
    running.program.say(
        f"while engine._host.runs.has({child.id!r}): time.sleep(0.01)"
    )  # what a stopped run leaves behind is nothing
    running.program.say(f"print('{child.id}', 'gone')")
    running.wait_for(child.id, "gone")


def test_a_client_cancels_without_children(running: Running) -> None:
    """They go on."""
    family = running.start("family()")
    child = running.client.handle(f"{family.id}-child")
    running.wait_for(child.id, "stuck")

    assert family.cancel(children=False)
    assert child.info().status == "PENDING"


def test_a_client_resumes_what_was_cancelled(running: Running) -> None:
    """The engine takes it up by itself; what was recorded does not run again."""
    handle = running.start("stuck()")
    assert [running.line(handle.id), running.line(handle.id)] == ["add 1 2", "stuck"]
    handle.cancel()
    with pytest.raises(WorkflowCancelled):
        handle.result(PATIENCE)

    running.client.resume(handle.id)
    assert running.line(handle.id) == "stuck"  # with no "add 1 2" before it
    assert handle.info().status == "PENDING"


def test_a_client_forks_a_run(running: Running) -> None:
    """The engine runs the copy from the step given; the steps before are those of the first."""
    handle = running.start("sums(1, 2, 3)")
    assert handle.result(PATIENCE) == 6

    copy = running.client.fork(handle.id, step=2, id="copy")
    assert copy.result(PATIENCE) == 6
    assert running.line("copy") == "add 3 3"  # with no "add 1 2" before it
    assert [each.value for each in copy.steps()] == [3, 6]
    with pytest.raises(WorkflowConflict):
        running.client.fork(handle.id, id="copy")


def test_a_client_sees_the_steps_of_a_running_workflow(running: Running) -> None:
    """Those that are recorded, with names, values and moments."""
    handle = running.start("stuck()")
    running.wait_for(handle.id, "stuck")

    (first, *_) = handle.steps()
    assert (first.number, first.name) == ("1", "__main__:add")
    assert (first.outcome, first.value, first.attempt) == ("value", 3, 1)
    assert first.finished_at is not None
    assert abs(datetime.now(UTC) - first.finished_at) < timedelta(minutes=1)


@pytest.mark.slow
def test_clients_outlive_the_engine(path: str) -> None:
    """They see what it left, send to what is unfinished, and wait through its next start."""
    running = Running(path)
    with running.program, running.client:
        handle = running.start("receives()")
        waits = Waits(handle.result)
        running.program.kill()
        assert handle.info().status == "PENDING"
        handle.send("sent while nobody ran it", "topic")
        assert not waits.done

        with Program(ENGINE, path) as second:
            assert "engine open" in (second.line(), second.line())  # or what was unfinished ends
            assert waits.join() == ["sent while nobody ran it"]


# ------------------------------------------------------------- what is not known here (N30)


def has_shown_all(running: Running) -> durable.Handle[Any]:
    """A workflow whose argument and one of whose events are of a class that is not known here."""
    handle = running.start("own_classes(Order(17))")
    assert handle.event("plain", timeout=PATIENCE) == 1
    return handle


def test_n30_values_of_unknown_classes_do_not_break_lists(running: Running) -> None:
    """N30: the class is in the other program only: lists show the recorded text instead."""
    handle = has_shown_all(running)
    running.program.say(f"engine.send({handle.id!r}, Order(18), 'order')")
    with pytest.raises(SerializationError, match="__main__:Order"):
        handle.result(PATIENCE)

    run = handle.info()
    assert run.status == Status.SUCCESS
    assert isinstance(run.result, Opaque)
    assert '"number":18' in run.result.text
    assert isinstance(run.args[0], Opaque)
    assert handle.id in ids(running.client.workflows())
    assert any(isinstance(each.value, Opaque) for each in handle.steps())


def test_n30_errors_of_unknown_classes_come_as_remote_errors(running: Running) -> None:
    """N30: with the name of the class, the text and the traceback."""
    handle = running.start("own_error()")

    with pytest.raises(RemoteError, match="no money") as caught:
        handle.result(PATIENCE)
    assert caught.value.type_name == "__main__:Declined"
    assert "own_error" in caught.value.traceback
    assert isinstance(handle.info().error, RemoteError)


def test_n30_an_event_of_an_unknown_class_says_so(running: Running) -> None:
    """N30: whoever asks for that one event is told what is missing."""
    with pytest.raises(SerializationError, match="__main__:Order"):
        has_shown_all(running).event("order")


def test_n30_an_event_of_an_unknown_class_does_not_hide_the_others(running: Running) -> None:
    """N30: all events are listed, that one as its text."""
    events = has_shown_all(running).events()

    assert events["plain"] == 1
    assert isinstance(events["order"], Opaque)


# ---------------------------------------------------------------------- in the engine's own process


@workflow
def echoes() -> Any:
    return durable.recv(timeout=PATIENCE)


@workflow
def one(n: int = 1) -> int:
    return n


@workflow
def other() -> None:
    raise ValueError("no")


@workflow
def starts_three() -> list[int]:
    return [handle.result() for handle in [one.start(n) for n in range(3)]]


def test_a_client_may_be_in_the_engines_process(engine: Engine, path: str) -> None:
    """Its messages arrive, and it sees what ends."""
    with Client(path) as client:
        handle = echoes.start()
        client.send(handle.id, "hello")

        assert client.handle(handle.id).result(PATIENCE) == "hello"


def test_a_client_is_not_the_current_engine(path: str) -> None:
    """It runs nothing: workflows still need an engine."""
    Engine(path).open().close()
    with Client(path), pytest.raises(durable.NoEngine):
        one()


def test_a_client_reads_what_an_engine_with_another_codec_wrote(path: str) -> None:
    """As text; with the same codec as values."""
    with Engine(path, codec=durable.PickleCodec()) as engine:
        handle = engine.start(one, 5)
        assert handle.result(PATIENCE) == 5

    with Client(path) as client:
        assert isinstance(client.handle(handle.id).info().result, Opaque)
    with Client(path, codec=durable.PickleCodec()) as client:
        assert client.handle(handle.id).result(timeout=0) == 5


def test_a_closed_client_says_so(engine: Engine, path: str) -> None:
    """EngineClosed; closing it twice is harmless, and the engine does not mind."""
    handle = engine.start(one)
    handle.result(PATIENCE)
    client = Client(path)
    client.close()
    client.close()
    for use in (client.workflows, lambda: client.send(handle.id, 1), client.handle("x").info):
        with pytest.raises(EngineClosed):
            use()
    assert engine.run(one) == 1


class TellingClock(SystemClock):
    """Says when somebody waits."""

    def __init__(self) -> None:
        self.waits = threading.Event()

    def wait(
        self, condition: threading.Condition, ready: Callable[[], bool], deadline: float | None
    ) -> bool:
        self.waits.set()
        return super().wait(condition, ready, deadline)

    def bell(self) -> TellingBell:
        return TellingBell(self, super().bell())


class TellingBell:
    def __init__(self, clock: TellingClock, bell: Bell) -> None:
        self._clock = clock
        self._bell = bell
        self.ring = bell.ring

    def wait(self, deadline: float | None) -> bool:
        self._clock.waits.set()
        return self._bell.wait(deadline)


def test_a_client_that_is_closed_stops_waiting(path: str) -> None:
    """Whoever waits in it gets EngineClosed, not silence."""
    engine = Engine(path).open()
    workflow_id = engine.start(echoes).id
    engine.close(timeout=0)
    clock = TellingClock()
    client = Client(path, clock=clock)
    waits = Waits(client.handle(workflow_id).result)
    assert clock.waits.wait(PATIENCE)
    client.close()
    waits.thread.join(2)
    stopped = waits.done
    with Client(path) as other:
        other.cancel(workflow_id)  # lets it go where close() did not

    assert isinstance(waits.join(), EngineClosed)
    assert stopped


def test_many_threads_share_a_client(engine: Engine, path: str) -> None:
    """Twenty at once send and read."""
    handles = [echoes.options(id=f"w{n}").start() for n in range(20)]
    with Client(path) as client:
        waits = [
            Waits(
                lambda n=n: (
                    client.send(f"w{n}", n),
                    client.handle(f"w{n}").result(PATIENCE),
                )[1]
            )
            for n in range(20)
        ]
        assert [each.join() for each in waits] == list(range(20))
    assert len(handles) == 20


def test_what_nobody_knows_is_not_found(engine: Engine, path: str) -> None:
    """WorkflowNotFound, from each call that names it."""
    with Client(path) as client:
        for use in (
            lambda: client.send("w", 1),
            lambda: client.event("w", "k"),
            lambda: client.events("w"),
            lambda: client.cancel("w"),
            lambda: client.resume("w"),
            lambda: client.fork("w"),
            lambda: client.handle("w").result(timeout=1),
            lambda: client.handle("w").info(),
        ):
            with pytest.raises(WorkflowNotFound, match="'w'"):
                use()


# ---------------------------------------------------------------------- lists


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with runs of several kinds, that nobody has open.

    a and b (one), c (other, which failed), p and its three children, g (which waits).
    """
    path = tmp_path_factory.mktemp("runs") / "runs.db"
    with Engine(path, version="7") as engine:
        one.options(id="a", tags=["red", "blue"]).start(1).result(PATIENCE)
        one.options(id="b", tags="red").start(2).result(PATIENCE)
        with pytest.raises(ValueError, match="no"):
            other.options(id="c").start().result(PATIENCE)
        starts_three.options(id="p").start().result(PATIENCE)
        echoes.options(id="g").start()
        engine.close(timeout=0)
    return path


@pytest.fixture
def listed(runs: Path) -> Iterator[Client]:
    """A client on that file."""
    with Client(runs) as client:
        yield client


def ids(runs: list[durable.Workflow]) -> list[str]:
    return [run.id for run in runs]


def test_a_list_is_in_the_order_of_creation(listed: Client) -> None:
    """All of them, children too, the oldest first."""
    assert ids(listed.workflows()) == ["a", "b", "c", "p", "p.1", "p.2", "p.3", "g"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"status": "PENDING"}, ["g"]),
        ({"status": Status.ERROR}, ["c"]),
        ({"status": ["ERROR", Status.PENDING]}, ["c", "g"]),
        ({"status": []}, ["a", "b", "c", "p", "p.1", "p.2", "p.3", "g"]),
        ({"status": "DEAD"}, []),
        ({"name": other.name}, ["c"]),
        ({"name": "nobody:knows"}, []),
        ({"parent": "p"}, ["p.1", "p.2", "p.3"]),
        ({"parent": "a"}, []),
        ({"tag": "red"}, ["a", "b"]),
        ({"tag": "blue"}, ["a"]),
        ({"tag": "re"}, []),
        ({"tag": "red", "name": one.name, "status": "SUCCESS", "limit": 1}, ["a"]),
        ({"limit": 3}, ["a", "b", "c"]),
        ({"limit": 3, "after": "c"}, ["p", "p.1", "p.2"]),
        ({"limit": 3, "after": "p.2"}, ["p.3", "g"]),
        ({"after": "g"}, []),
        ({"name": one.name, "after": "a"}, ["b", "p.1", "p.2", "p.3"]),
    ],
    ids=str,
)
def test_a_list_has_what_matches(listed: Client, wanted: Any, expected: list[str]) -> None:
    """All that is given, together."""
    assert ids(listed.workflows(**wanted)) == expected


def test_a_list_goes_by_moments(listed: Client) -> None:
    """created_after and completed_before take aware datetimes of any time zone."""
    runs = {run.id: run for run in listed.workflows()}
    between = runs["c"].created_at + (runs["p"].created_at - runs["c"].created_at) / 2
    elsewhere = between.astimezone(timezone(timedelta(hours=5, minutes=30)))
    later = datetime.now(UTC) + timedelta(minutes=1)

    assert ids(listed.workflows(created_after=between)) == ["p", "p.1", "p.2", "p.3", "g"]
    assert ids(listed.workflows(created_after=elsewhere)) == ["p", "p.1", "p.2", "p.3", "g"]
    assert ids(listed.workflows(created_after=later)) == []
    assert ids(listed.workflows(completed_before=runs["p"].created_at)) == ["a", "b", "c"]
    assert "g" not in ids(listed.workflows(completed_before=later))


def test_a_list_before_or_after_a_run_is_without_it(listed: Client) -> None:
    """The moments of a run, as it tells them, can be given back: that run is not in the list."""
    for run in listed.workflows(status="SUCCESS"):
        assert run.id not in ids(listed.workflows(created_after=run.created_at))
        assert run.id not in ids(listed.workflows(completed_before=run.finished_at))


def test_pages_lead_through_all_runs(runs: Path, path: str) -> None:
    """With `limit` and `after` each run is seen once, also where more are created meanwhile."""
    shutil.copy(runs, path)
    seen: list[str] = []
    with Engine(path, recover="manual") as engine:
        while page := ids(engine.workflows(limit=2, after=seen[-1] if seen else None)):
            seen += page
            if len(seen) == 4:
                one.options(id="late").start(1).result(PATIENCE)

    assert seen == ["a", "b", "c", "p", "p.1", "p.2", "p.3", "g", "late"]


def test_a_list_is_cut_at_a_thousand_unless_told_otherwise(engine: Engine) -> None:
    """`limit` is 1,000: a list of a large file does not take all memory."""
    import inspect

    assert inspect.signature(engine.workflows).parameters["limit"].default == 1000


def test_a_run_is_told_whole(listed: Client) -> None:
    """Name, arguments, result, moments, tags, parent and version of one run."""
    run = listed.handle("a").info()

    assert (run.name, run.status, run.args, run.kwargs, run.result) == (
        one.name,
        Status.SUCCESS,
        (1,),
        {},
        1,
    )
    assert run.tags == ("red", "blue")
    assert (run.error, run.reason, run.parent_id, run.version) == (None, None, None, "7")
    assert run.finished_at is not None
    assert run.created_at <= run.finished_at
    assert run.created_at.utcoffset() == timedelta(0)
    assert listed.handle("p.1").info().parent_id == "p"
    assert isinstance(listed.handle("c").info().error, ValueError)
