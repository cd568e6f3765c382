"""`crashes`: the process dies before and after each write, and nothing comes out differently."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import durable
from durable import InvalidArgument, Retry, step, transaction, workflow
from durable.runtime import events, messages
from durable.runtime.checkpoint import Subject, value_outcome
from durable.runtime.context import Scope
from durable.runtime.flows import Flow, Wait, Write
from durable.store import steps, workflows
from durable.store.steps import TIMEOUT, Outcome
from durable.store.tx import Tx
from durable.testing import TestEngine, VirtualClock, crashes, exploring

lives: list[list[str]] = []
"""What the bodies of steps did, for each call of the program."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    lives.clear()


@step
def note(what: str) -> str:
    lives[-1].append(what)
    return what


@workflow
def two_steps() -> str:
    return note("a") + note("b")


@workflow
def receive() -> list[Any]:
    return [durable.recv("answer"), note("received")]


def run_two_steps(engine: TestEngine) -> None:
    lives.append([])
    engine.clock.settle()  # the engine has looked for what is unfinished, before there is anything
    assert two_steps.start().result() == "ab"


def failure_of(program: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        crashes(program, **options)
    return str(caught.value)


# ---------------------------------------------------------------------- each place


def test_every_write_is_a_place_before_and_after() -> None:
    """Open, start, two steps, the end and close: six writes, twelve places."""
    report = crashes(run_two_steps)
    assert report.places == 12
    assert str(report).startswith("12 tried in ")


ALL = ["a", "b"]


@pytest.mark.parametrize(
    ("place", "done"),
    [
        ("1-before", [ALL]),
        ("1-after", [ALL]),
        ("2-before", [[], ALL]),
        ("2-after", [[], ALL]),
        ("3-before", [["a"], ALL]),
        ("3-after", [["a"], ["b"]]),
        ("4-before", [ALL, ["b"]]),
        ("4-after", [ALL, []]),
        ("5-before", [ALL, []]),
        ("5-after", [ALL, []]),
        ("6-before", [ALL, []]),
        ("6-after", [ALL, []]),
    ],
)
def test_the_process_dies_right_there(place: str, done: list[list[str]]) -> None:
    """What bodies did before the place is done, nothing after it, and the next engine the rest."""
    assert crashes(run_two_steps, only=place).places == 1
    calm, again, *lived = lives
    assert calm == again == ALL
    assert lived == done


def test_it_dies_again_while_it_recovers() -> None:
    """With depth=2 places have those of the recovery below them, and each can be tried alone."""
    assert crashes(lambda engine: None).places == 4  # before and after it opens and closes
    assert crashes(lambda engine: None, depth=2).places == 4 + 3 * 3  # before, between, after
    crashes(run_two_steps, only="3-after/3-before")  # open, start, step a; open, recover, step b
    assert lives[2:] == [["a"], ["b"], ["b"]]


def test_a_recovery_dies_once_for_each_state_of_the_file() -> None:
    """At the last place of each: there, the step that is not recorded has done what it does."""
    states = 7  # of an engine that opens, starts or takes up, records two steps, ends and closes
    assert crashes(run_two_steps, depth=2).places <= 12 + states * states
    in_a_row = [lives[i : i + 3] for i in range(len(lives) - 2)]
    assert [ALL, ["b"], ["b"]] in in_a_row  # a is recorded; b is done, and its engine dies, twice


def test_a_plain_workflow_will_do() -> None:
    """No ids, no clock, no result asked for: what it started is let to its end."""
    lives.append([])
    crashes(lambda engine: two_steps.start())
    assert len(lives[-1]) > 20


def test_the_dead_write_nothing() -> None:
    """A body that catches the end of its process, and goes on, changes nothing and is not heard."""
    survivors: list[str] = []

    @step
    def stubborn(target: str) -> None:
        try:
            durable.send(target, "hello")
        except Exception:
            survivors.append("caught it")
        durable.send(target, "hello again")

    @workflow
    def wf(target: str) -> None:
        try:
            stubborn(target)
        except Exception:
            survivors.append("went on")

    def program(engine: TestEngine) -> None:
        target = receive.start()
        wf.start(target.id).result()

    assert "message left on topic None, number 3" in failure_of(program, only=place_of(program))
    assert survivors == []


def place_of(program: Any) -> str:
    """After the first message that a step of the program sends."""
    text = failure_of(program)
    assert "after write" in text
    assert "'durable.send'" in text.splitlines()[0]
    return only_of(text)


def only_of(text: str) -> str:
    """The place that a message tells one to try alone."""
    found = re.search(r"to try just this one: crashes\(program, only='([^']+)'\)$", text)
    assert found is not None, text
    return found[1]


@pytest.mark.slow
def test_a_step_that_works_beside_the_others_dies_too() -> None:
    """Several workflows at once: each write of each of them is a place."""

    def program(engine: TestEngine) -> None:
        lives.append([])
        handles = [two_steps.start() for _ in range(2)]
        assert [each.result() for each in handles] == ["ab"] * 2

    assert crashes(program).places >= 2 * (1 + 2 * 4 + 1)


# ---------------------------------------------------------------------- what the engine promises


@step(retry=Retry(attempts=3, delay=5))
def flaky() -> int:
    attempt = durable.current().attempt
    assert attempt is not None
    if attempt < 3:
        raise OSError("again")
    return attempt


@step
def progress(target: str) -> None:
    durable.set_event("progress", 1)
    durable.set_event("progress", 2)
    durable.write_stream("log", "from a step")
    durable.send(target, "from a step", "go", idempotency_key=durable.step_key())


@transaction
def book(cursor: sqlite3.Cursor, entry: str) -> int:
    cursor.execute("CREATE TABLE IF NOT EXISTS booking (entry TEXT)")
    cursor.execute("INSERT INTO booking VALUES (?)", (entry,))
    return int(cursor.execute("SELECT count(*) FROM booking").fetchone()[0])


@workflow
def sleeper(number: int) -> int:
    durable.sleep(3 - number)
    if number == 2:
        raise ValueError("the first to end")
    return number


@workflow
def patient() -> list[str]:
    return [durable.recv("go", timeout=10, default="nothing") for _ in range(2)]


@workflow
def works() -> list[Any]:
    """Steps of every kind, and what a workflow may draw from the machine."""
    future = note.submit("beside")
    out: list[Any] = [durable.random().random(), str(durable.uuid4())]
    out += [flaky(), book("x") + book("y"), durable.map(note, ["m1", "m2"])]
    if durable.patched("change"):
        durable.sleep_until(durable.now())
    return [*out, future.result()]


@workflow
def talks() -> list[Any]:
    """Messages, events and streams, from bodies and from steps, in time and too late."""
    durable.set_event("stage", "begun")
    durable.write_stream("log", "from a body")
    waiting = patient.options(id="patient").start()
    durable.sleep(15)
    durable.send("patient", "from a workflow", "go")
    progress("patient")
    durable.set_event("stage", "talked")
    durable.close_stream("log")
    return [waiting.result(), durable.get_event("patient", "never", default="no event")]


@workflow
def has_children() -> list[Any]:
    """Children that end in another order than they began, one that fails, one that is stopped."""
    children = [sleeper.start(n) for n in (1, 2)]
    out: list[Any] = [each.id for each in durable.wait(children, first=True).done]
    for child in children:
        try:
            out.append(child.result())
        except ValueError as error:
            out.append(str(error))
    victim = receive.options(id="victim").start()
    return [*out, bool(victim.cancel())]


@workflow(timeout=7)
def expires() -> None:
    durable.recv("never")


def run_works(engine: TestEngine) -> None:
    lives.append([])
    assert works.options(id="works").start().result()[2:] == [3, 1 + 2, ["m1", "m2"], "beside"]


def run_talks(engine: TestEngine) -> None:
    handle = talks.options(id="talks").start()
    left = receive.options(id="left").start()
    left.send("nobody takes it", "other")
    assert handle.event("stage") in ("begun", "talked")
    assert list(engine.read_stream("talks", "log")) == ["from a body", "from a step"]
    assert handle.result() == [["nothing", "from a workflow"], "no event"]


def run_has_children(engine: TestEngine) -> None:
    expiring = expires.start()
    handle = has_children.options(id="parent").start()
    with pytest.raises(durable.WorkflowCancelled):
        expiring.result()
    assert handle.result() == ["parent.2", 1, "the first to end", True]


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [run_works, *(pytest.param(p, marks=pytest.mark.slow) for p in (run_talks, run_has_children))],
)
def test_no_crash_changes_what_comes_out(program: Any) -> None:
    """Steps and retries, messages and events, children and timeouts: whatever the place."""
    assert crashes(program).places > 25


def run_everything(engine: TestEngine) -> None:
    run_has_children(engine)
    run_talks(engine)
    run_works(engine)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_crash_changes_what_comes_out_in_any_order(seed: int) -> None:
    """All of it, under several orders of the threads."""
    assert crashes(run_everything, seed=seed).places > 90


# ---------------------------------------------------------------------- planted bugs


def consumed_then_recorded(
    scope: Scope, name: str, subject: Subject, timeout: float | None
) -> Flow[Outcome]:
    """A `recv` that takes the message in one write and records it in the next."""
    place, record = scope.next(name)
    if record is not None and record.outcome is not None:
        return record.outcome
    now = scope.host.clock.now()
    with scope.host.waiting.listen(*subject.keys, scope.run.stop_key) as listener:
        while True:
            found = yield Write("take the message", partial(subject.find, place=place))
            if found is not None:
                break
            yield Wait(listener, None)

    def record_it(tx: Tx) -> None:
        steps.decide(tx, scope.run.key, place, name, found, started_at=now, now=now)

    yield Write("record the message", record_it)
    return found


def send_and_receive(engine: TestEngine) -> None:
    lives.append([])
    handle = receive.options(id="17").start()
    handle.send("paid", "answer")
    assert handle.result() == ["paid", "received"]


@pytest.mark.slow
def test_a_message_consumed_before_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The crash between the two writes loses the message: it is found, named, and found again."""
    monkeypatch.setattr(messages, "awaited", consumed_then_recorded)
    text = failure_of(send_and_receive)
    place = only_of(text)
    first = text.splitlines()[0]
    assert re.match(r"after a crash after write \d+ of engine 1, 'take the message' the", first)
    assert "Deadlock: nothing can happen any more" in text
    assert text.count("-- engine 1 --") == 2
    assert "  take the message\n  -- died after 'take the message' --\n  -- engine 2 --" in text
    assert failure_of(send_and_receive, only=place) == text
    monkeypatch.undo()
    crashes(send_and_receive)


def timeout_not_recorded(
    scope: Scope, name: str, subject: Subject, timeout: float | None
) -> Flow[Outcome]:
    """A `recv` that records what came, and forgets that nothing did."""
    place, record = scope.next(name)
    if record is not None and record.outcome is not None:
        return record.outcome
    now = scope.host.clock.now()
    deadline = None if timeout is None else now + timeout

    def look(tx: Tx) -> Outcome | None:
        found = subject.find(tx, place)
        if found is not None:
            steps.decide(tx, scope.run.key, place, name, found, started_at=now, now=now)
        return found

    with scope.host.waiting.listen(*subject.keys, scope.run.stop_key) as listener:
        while True:
            found = yield Write(name, look)
            if found is not None:
                return found
            if deadline is not None and scope.host.clock.now() >= deadline:
                return Outcome(TIMEOUT)
            yield Wait(listener, deadline)


@workflow
def impatient() -> str:
    answer = durable.recv("answer", timeout=60, default="nothing")
    note("decided")
    durable.recv("go")
    return str(answer)


def answer_too_late(engine: TestEngine) -> None:
    lives.append([])
    handle = impatient.options(id="17").start()
    engine.clock.advance(minutes=2)
    handle.send("late", "answer")
    handle.send(None, "go")


@pytest.mark.slow
def test_a_timeout_that_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash the late message is taken: the difference is told, and where it comes from."""
    monkeypatch.setattr(messages, "awaited", timeout_not_recorded)
    text = failure_of(answer_too_late)
    place = only_of(text)
    assert re.match(r"a crash \w+ write \d+ of engine 1, '.+' changes what comes out:\n", text)
    assert '\n  workflow 17: outcome: "nothing" without, "late" with\n' in text
    assert failure_of(answer_too_late, only=place) == text
    monkeypatch.undo()
    crashes(answer_too_late)


@pytest.mark.slow
@pytest.mark.parametrize("program", [run_works, send_and_receive, answer_too_late])
def test_no_two_crashes_change_what_comes_out(program: Any) -> None:
    """Nor does it when the engine that recovers dies as well."""
    assert crashes(program, depth=2).places > 50


def done_then_recorded(scope: Scope, name: str, work: Any) -> Flow[Outcome]:
    """A `set_event` that sets the event in one write and records that in the next."""
    place, record = scope.next(name)
    if record is not None and record.outcome is not None:
        return record.outcome
    now = scope.host.clock.now()
    yield Write(name, partial(work, place=place))
    outcome = value_outcome(scope.host.codec, None)

    def record_it(tx: Tx) -> None:
        steps.decide(tx, scope.run.key, place, name, outcome, started_at=now, now=now)

    yield Write("record the event", record_it)
    return outcome


@workflow
def shows() -> None:
    durable.set_event("stage", "one")
    durable.set_event("stage", "two")


@pytest.mark.slow
def test_an_event_set_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last value is the same, but there is one setting more: that counts."""

    def program(engine: TestEngine) -> None:
        shows.options(id="17").start()

    monkeypatch.setattr(events, "effect", done_then_recorded)
    text = failure_of(program)
    assert "'durable.set_event:stage' changes what comes out:" in text.splitlines()[0]
    assert "  workflow 17, event 'stage', setting 3: nothing without, \"two\" with\n" in text
    assert failure_of(program, only=only_of(text)) == text
    monkeypatch.undo()
    crashes(program)


def test_a_step_that_sets_an_event_again_is_no_bug() -> None:
    """In a step it is set at each try, as documented: only the last value is compared."""

    @step
    def counts() -> None:
        durable.set_event("count", 1)
        durable.set_event("count", 2)

    @workflow
    def wf() -> None:
        counts()

    def program(engine: TestEngine) -> None:
        assert wf.start().event("count") in (1, 2)

    crashes(program)


# ---------------------------------------------------------------------- bugs of workflows


@pytest.fixture
def _same_dice() -> Iterator[None]:
    """Chance that repeats itself, so that the test does."""
    state = random.getstate()
    random.seed(17)
    yield
    random.setstate(state)


@workflow
def gambles() -> None:
    for _ in range(8):
        note("heads") if random.random() < 0.5 else durable.sleep(1)


def run_gambles(engine: TestEngine) -> None:
    lives.append([])
    gambles.options(id="17").start()


@pytest.mark.usefixtures("_same_dice")
def test_a_body_that_draws_a_random_number() -> None:
    """Two runs without any crash differ: that is told before anything else."""
    text = failure_of(run_gambles)
    assert text.startswith("two runs of the program differ, though none crashed: what depends on")
    assert "workflow 17, step 1: name: " in text


def test_a_body_that_a_replay_finds_otherwise() -> None:
    """What is the same twice and then not ends in NonDeterminism, which names both steps."""
    calls: list[None] = []

    @workflow
    def moody() -> None:
        calls.append(None)
        durable.sleep(1) if len(calls) < 4 else note("other")
        note("last")

    def program(engine: TestEngine) -> None:
        lives.append([])
        engine.clock.settle()
        moody.options(id="17").start()

    text = failure_of(program, only="3-after")
    assert "workflow 17: outcome: null without, NonDeterminism('17', " in text
    assert "'1', 'durable.sleep', 'tests.testing.test_crashes:note') with" in text


def test_a_value_that_chance_decides_is_not_compared() -> None:
    """A step may return what it likes: where two runs differ, a crashed one may as well."""

    @step
    def roll() -> float:
        return random.random()

    @workflow
    def wf() -> float:
        rolled = roll()
        durable.set_event("rolled", rolled)
        return rolled

    crashes(lambda engine: wf.start())


def test_the_moment_is_not_compared() -> None:
    """`now` and the end of a sleep are later where the process was dead in between."""

    @workflow
    def wf() -> bool:
        began = durable.now()
        durable.sleep(60)
        return (durable.now() - began).total_seconds() >= 60

    crashes(lambda engine: wf.start())


# ---------------------------------------------------------------------- programs


def test_a_program_that_fails_without_a_crash() -> None:
    """Its own error comes as it is: no crash is to blame."""

    def program(engine: TestEngine) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        crashes(program)


def test_a_program_that_fails_after_a_crash() -> None:
    """What it raises then, pytest.fail() too, names the place and has both stories."""
    calls: list[None] = []

    def program(engine: TestEngine) -> None:
        lives.append([])
        engine.clock.settle()
        calls.append(None)
        two_steps.start().result()
        if len(calls) == 4:
            pytest.fail("a result of its own")

    text = failure_of(program, only="3-before")
    assert text.startswith(
        "after a crash before write 3 of engine 1, "
        "'step tests.testing.test_crashes:note' the program did not finish: "
        "Failed: a result of its own\nwithout the crash:\n"
    )


def test_a_program_that_looks_at_what_died_is_forgiven() -> None:
    """Until it is called again, whatever goes wrong in it is the death of its process."""

    def program(engine: TestEngine) -> None:
        lives.append([])
        handle = two_steps.start()
        try:
            handle.result()
        except durable.EngineClosed:
            pytest.fail("the process is dead, and this is its last word")

    crashes(program)


def test_ctrl_c_is_for_everybody() -> None:
    """Who wants to stop the test stops it, at whatever place."""
    calls: list[None] = []

    def program(engine: TestEngine) -> None:
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        engine.run(sleeper, 1)

    with pytest.raises(KeyboardInterrupt):
        crashes(program)


def test_a_program_that_changes_is_found_out() -> None:
    """A place that is not reached any more is no success."""
    calls: list[None] = []

    def program(engine: TestEngine) -> None:
        calls.append(None)
        engine.clock.settle()
        left = receive.options(id="left").start()
        for _ in range(2 if len(calls) <= 2 else 1):
            left.send("the same", idempotency_key="1")

    text = failure_of(program)
    assert re.match(
        r"there is no crash at (\d+)-before: write \1 of engine 1 was not reached", text
    )
    assert "is the program the same every time?" in text


def test_a_workflow_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be waited for without end; a program that cancels it can be tried."""
    monkeypatch.setattr(exploring, "MOST_WRITES", 50)

    @workflow
    def ticks() -> None:
        while True:
            durable.sleep(3600)

    def program(engine: TestEngine) -> None:
        handle = ticks.options(id="17").start()
        engine.clock.settle()
        handle.cancel()

    assert "goes on for ever" in failure_of(lambda engine: ticks.start())
    assert crashes(program).places > 8


def test_a_workflow_may_be_left_waiting() -> None:
    """What waits for a message that nobody sends waits after a crash as well."""
    lives.append([])
    crashes(lambda engine: receive.start())


def test_an_error_of_a_background_thread_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that broke down is not taken for one that waits."""

    def finish(*args: Any, **kwargs: Any) -> bool:
        raise ZeroDivisionError("a bug of the engine")

    monkeypatch.setattr(workflows, "finish", finish)
    lives.append([])
    with pytest.raises(ExceptionGroup) as caught:
        crashes(lambda engine: two_steps.start())
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


def test_a_seed_other_than_the_first_is_told() -> None:
    """How to run it again is complete."""

    def program(engine: TestEngine) -> None:
        lives.append([])
        receive.options(id="left").start()
        engine.run(sends)

    @step
    def send_without_key() -> None:
        durable.send("left", "hello")

    @workflow
    def sends() -> None:
        send_without_key()

    text = failure_of(program, seed=5)
    again = re.search(r"crashes\(program, only='([^']+)', seed=5\)$", text)
    assert again is not None
    assert failure_of(program, only=again[1], seed=5) == text


@pytest.mark.parametrize("place", ["", "3", "before", "3-between", "x-after", "3-after/"])
def test_a_place_that_is_none(place: str) -> None:
    """A misspelt place is refused, with how one is written."""
    with pytest.raises(InvalidArgument, match="as in '5-after'"):
        crashes(run_two_steps, only=place)


@pytest.mark.slow
def test_a_workflow_that_forks_another() -> None:
    """The id of the copy is the same after a crash, as are those that the program is given."""

    @workflow
    def forks() -> str:
        first = sleeper.start(1)
        first.result()
        return first.fork().id

    def program(engine: TestEngine) -> None:
        handles = [forks.start(), sleeper.start(0)]
        assert [each.id for each in handles] == ["workflow-1", "workflow-2"]
        assert handles[0].result() == "workflow-1.3"

    for seed in range(2):
        crashes(program, seed=seed)


def test_a_depth_that_is_none() -> None:
    """The process dies once or more."""
    with pytest.raises(InvalidArgument, match="1 or more"):
        crashes(run_two_steps, depth=0)


def test_the_clock_of_the_program() -> None:
    """A program may let time pass itself."""
    lives.append([])

    def program(engine: TestEngine) -> None:
        assert isinstance(engine.clock, VirtualClock)
        sleeper.start(0)
        engine.clock.advance(days=30)

    crashes(program)
