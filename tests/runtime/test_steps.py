"""Steps: run until recorded, never after; tried again as their policy says."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

import durable
from durable import Engine, Retry, Status, step, transaction, workflow
from tests.support import PATIENCE, Gate, dying, until


class Flaky(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"failed with {code}")
        self.code = code


def fail_times(times: int, ran: list[int]) -> int:
    ran.append(len(ran) + 1)
    if len(ran) <= times:
        raise Flaky(code=len(ran))
    return len(ran)


def test_a_recorded_step_never_runs_again(path: str) -> None:
    """After a crash, what was recorded is returned, and only what was not is run."""
    ran: list[str] = []

    @step
    def note(what: str) -> str:
        ran.append(what)
        return what.upper()

    @workflow
    def wf() -> list[str]:
        first = note("a")
        durable.recv()
        return [first, note("b")]

    with dying(path) as engine:
        wf.options(id="one").start()
        engine.handle("one")
        until(lambda: engine.handle("one").steps())
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == ["A", "B"]
    assert ran == ["a", "b"]


def test_an_unrecorded_step_runs_again(path: str) -> None:
    """A process that dies in the middle of a step runs it again: at least once."""
    gate, ran = Gate(), []

    @workflow
    def wf() -> int:
        return durable.run_step(body)

    def body() -> int:
        ran.append(1)
        if len(ran) == 1:
            gate.pass_through()
        return len(ran)

    with dying(path):
        wf.options(id="one").start()
        gate.wait_reached()
    gate.open()
    with Engine(path) as engine:
        assert engine.handle("one").result(PATIENCE) == 2


def test_the_error_of_a_step_is_recorded_and_is_itself(path: str) -> None:
    """N29: a step's exception comes back as itself, with its attributes, also on a replay."""
    ran: list[int] = []

    @workflow
    def wf() -> Any:
        try:
            durable.run_step(fail_times, 1, ran)
        except Flaky as error:
            durable.recv()
            return [type(error).__name__, str(error), error.code]

    with dying(path) as engine:
        wf.options(id="one").start()
        until(lambda: engine.handle("one").steps())
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == ["Flaky", "failed with 1", 1]
    assert ran == [1]


def test_result_raises_what_the_workflow_raised(engine: Engine) -> None:
    """`result()` and the call raise the workflow's own exception."""

    @workflow
    def wf() -> None:
        raise Flaky(code=7)

    with pytest.raises(Flaky, match="failed with 7") as called:
        wf()
    with pytest.raises(Flaky) as waited:
        wf.start().result(PATIENCE)
    assert called.value.code == waited.value.code == 7


def test_stop_iteration_is_an_error_like_any_other(engine: Engine) -> None:
    """A step that raises StopIteration raises it in the workflow."""

    @workflow
    def wf() -> str:
        try:
            durable.run_step(next, iter(()))
        except StopIteration:
            return "empty"
        return "full"

    assert wf() == "empty"


# ---------------------------------------------------------------------- retries


def test_retry_until_it_works(engine: Engine) -> None:
    """A failed try is followed by another; the record says how many there were."""
    ran: list[int] = []
    tried = step(name="tried", retry=Retry(attempts=5, delay=0))(fail_times)

    @workflow
    def wf() -> int:
        return tried(2, ran)

    handle = wf.start()
    assert handle.result(PATIENCE) == 3
    assert handle.steps()[0].attempt == 3


def test_exhausted_retries_raise_the_last_error_without_a_pause(engine: Engine) -> None:
    """N27: after the last try the exception is raised as it is, and nothing waits any more."""
    policy = Retry(attempts=2, delay=0.001, backoff=1e9, max_delay=1e9)
    assert policy.pause_after(2, Flaky(code=1)) is None
    ran: list[int] = []
    hopeless = step(name="hopeless", retry=policy)(fail_times)

    @workflow
    def wf() -> int:
        return hopeless(99, ran)

    with pytest.raises(Flaky, match="failed with 2"):
        wf()
    assert ran == [1, 2]


@pytest.mark.parametrize(
    ("policy", "tries"),
    [
        (Retry(attempts=3, delay=0, on=KeyError), 1),
        (Retry(attempts=3, delay=0, on=(KeyError, Flaky)), 3),
        (Retry(attempts=3, delay=0, on=lambda error: isinstance(error, Flaky)), 3),
        (Retry(attempts=3, delay=0, give_up_on=Flaky), 1),
    ],
)
def test_which_errors_are_tried_again(engine: Engine, policy: Retry, tries: int) -> None:
    """`on` is a class, several, or a predicate; `give_up_on` wins."""
    ran: list[int] = []
    chosen = step(name="chosen", retry=policy)(fail_times)
    durable.declare.registry._steps.pop("chosen")

    @workflow
    def wf() -> int:
        return chosen(99, ran)

    with pytest.raises(Flaky):
        wf()
    assert len(ran) == tries


def test_pauses_grow_up_to_a_limit() -> None:
    """The pause before try n + 1 is delay * backoff ** (n - 1), and never above max_delay."""
    policy = Retry(attempts=10_000, delay=1, backoff=2, max_delay=10)
    error = Flaky(code=1)
    assert [policy.pause_after(n, error) for n in (1, 2, 3, 4, 5, 9_000)] == [1, 2, 4, 8, 10, 10]


@pytest.mark.slow
def test_retries_keep_their_count_and_next_moment_over_a_restart(path: str) -> None:
    """A process that dies between two tries goes on with the next one, at its moment."""
    ran: list[int] = []
    tried = step(name="kept", retry=Retry(attempts=3, delay=0.2, backoff=1))(fail_times)

    @workflow
    def wf() -> int:
        return tried(99, ran)

    with dying(path) as engine:
        handle = wf.options(id="one").start()
        until(lambda: handle.steps())
        recorded = handle.steps()[0]
        assert recorded.outcome is None
        assert recorded.attempt == 1
        assert recorded.until_at is not None
    with Engine(path) as engine:
        with pytest.raises(Flaky):
            engine.handle("one").result(PATIENCE)
        last = engine.handle("one").steps()[0]
    assert len(ran) == 3
    assert last.attempt == 3
    assert last.finished_at is not None
    assert last.finished_at > recorded.until_at


def test_closing_during_a_pause_counts_nothing(path: str) -> None:
    """N28: a run that is stopped between two tries is unfinished, and its count stays."""
    ran: list[int] = []
    tried = step(name="paused", retry=Retry(attempts=2, delay=3600))(fail_times)

    @workflow
    def wf() -> int:
        return tried(1, ran)

    engine = Engine(path).open()
    handle = wf.options(id="one").start()
    until(lambda: handle.steps())
    engine.close(timeout=0)
    with Engine(path, recover="manual") as engine:
        assert engine.handle("one").info().status is Status.PENDING
        assert engine.handle("one").steps()[0].attempt == 1


def test_a_step_that_comes_too_late(engine: Engine) -> None:
    """A plain step's result that comes after its timeout counts as WaitTimeout."""

    @step(timeout=0)
    def late() -> int:
        return sum(range(1000))

    @workflow
    def wf() -> int:
        return late()

    with pytest.raises(durable.WaitTimeout, match="late"):
        wf()


# ---------------------------------------------------------------------- values


def test_the_first_value_seen_equals_the_replayed_one(path: str) -> None:
    """N54: what the workflow sees is what was recorded, though the program changes the object."""
    shared: list[int] = []

    @step
    def give() -> list[int]:
        shared.append(len(shared))
        return shared

    @workflow
    def wf() -> list[list[int]]:
        first, second = give(), give()
        first.append(99)
        shared.append(77)
        durable.recv()
        return [first, second]

    with dying(path) as engine:
        handle = wf.options(id="one").start()
        until(lambda: len(handle.steps()) >= 2)
    with Engine(path) as engine:
        engine.send("one", None)
        assert engine.handle("one").result(PATIENCE) == [[0, 99], [0, 1]]


def test_a_value_that_cannot_be_recorded(engine: Engine) -> None:
    """N13: SerializationError that names step and place, the same on a replay, never None."""

    @step
    def bad() -> Any:
        return {"items": [1, {"price": object()}]}

    @workflow
    def wf() -> str:
        try:
            bad()
        except durable.SerializationError as error:
            return str(error)
        return "?"

    shown = wf()
    assert "bad" in shown
    assert "items" in shown
    assert "price" in shown


def test_a_result_that_cannot_be_recorded(engine: Engine) -> None:
    """A workflow whose result cannot be recorded ends in SerializationError, not in None."""

    @workflow
    def wf() -> Any:
        return [object()]

    with pytest.raises(durable.SerializationError, match=r"\$\[0\]"):
        wf()


# ---------------------------------------------------------------------- nesting


def test_a_step_in_a_step_is_a_plain_call(engine: Engine) -> None:
    """A step that calls a step is one step."""

    @step
    def inner() -> int:
        return 1

    @step
    def outer() -> int:
        return inner() + inner()

    @workflow
    def wf() -> int:
        return outer()

    handle = wf.start()
    assert handle.result(PATIENCE) == 2
    assert len(handle.steps()) == 1


def test_step_key_is_the_same_for_all_tries(path: str) -> None:
    """`step_key` is stable over retries and recoveries, and differs from step to step."""
    keys: list[str] = []

    @step(retry=Retry(attempts=2, delay=0))
    def charge() -> None:
        keys.append(durable.step_key())
        if len(keys) == 1:
            raise Flaky(code=1)

    @workflow
    def wf() -> None:
        charge()
        charge()

    with Engine(path):
        wf()
    assert keys[0] == keys[1] != keys[2]


def test_current_tells_workflow_step_and_attempt(engine: Engine) -> None:
    """`current` knows the workflow, and in a step its number, name and attempt."""

    @workflow
    def wf() -> list[Any]:
        body = durable.current()
        inside = durable.run_step(in_step)
        return [body.workflow_id, body.step, *inside]

    def in_step() -> list[Any]:
        now = durable.current()
        return [now.workflow_id, now.step, now.attempt, now.replaying]

    assert wf.options(id="one")() == ["one", None, "one", "1", 1, False]


# ---------------------------------------------------------------------- transactions


@transaction
def add(cursor: sqlite3.Cursor, amount: int) -> int:
    cursor.execute("CREATE TABLE IF NOT EXISTS account (cents INTEGER)")
    cursor.execute("INSERT INTO account VALUES (?)", (amount,))
    return int(cursor.execute("SELECT sum(cents) FROM account").fetchone()[0])


@transaction
def add_and_fail(cursor: sqlite3.Cursor) -> None:
    cursor.execute("INSERT INTO account VALUES (1000)")
    raise Flaky(code=5)


def test_a_transaction_and_its_checkpoint_share_one_commit(engine: Engine) -> None:
    """What the body wrote is there once, with its record; a failing body leaves nothing."""

    @workflow
    def wf() -> int:
        add(1)
        with pytest.raises(Flaky):
            add_and_fail()
        return add(2)

    handle = wf.start()
    assert handle.result(PATIENCE) == 3
    assert [each.outcome for each in handle.steps()] == ["value", "error", "value"]


def test_a_transaction_outside_a_workflow_just_commits(engine: Engine) -> None:
    """Outside a workflow a transaction is a plain one."""
    assert add(5) == 5
    with pytest.raises(Flaky):
        add_and_fail()
    assert add(1) == 6


@pytest.mark.parametrize(
    "statement",
    ["COMMIT", "ROLLBACK", "SAVEPOINT s", "DELETE FROM durable_step", "PRAGMA synchronous = OFF"],
)
def test_a_transaction_cannot_end_itself(engine: Engine, statement: str) -> None:
    """A body that commits, or writes to durable's tables, is refused, and nothing is lost."""

    @transaction
    def cheat(cursor: sqlite3.Cursor) -> None:
        cursor.execute(statement)

    @workflow
    def wf() -> int:
        add(1)
        with pytest.raises(durable.NotAllowedHere, match="cheat"):
            cheat()
        return add(1)

    assert wf() == 2


def test_a_users_sql_error_is_the_users(engine: Engine) -> None:
    """An sqlite3 error that the user's own SQL raised comes back as itself."""

    @transaction
    def broken(cursor: sqlite3.Cursor) -> None:
        cursor.execute("SELEKT")

    @workflow
    def wf() -> None:
        broken()

    with pytest.raises(sqlite3.OperationalError, match="SELEKT"):
        wf()


def test_a_transaction_as_a_method(engine: Engine) -> None:
    """A transaction that is a method gets its instance, then the cursor."""

    class Bank:
        @transaction
        def total(self, cursor: sqlite3.Cursor, extra: int) -> int:
            return int(cursor.execute("SELECT 40").fetchone()[0]) + extra

    @workflow
    def wf() -> int:
        return Bank().total(2)

    assert wf() == 42
