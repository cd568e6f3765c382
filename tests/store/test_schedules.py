"""What the file keeps of schedules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from durable import ScheduleNotFound
from durable.clock import SystemClock
from durable.store import schedules, workflows
from durable.store.database import Database
from durable.store.schedules import Declared, State

DAILY = Declared(
    name="daily", workflow="app:daily", cron="@daily", tz="UTC", missed="latest", timeout=None
)


@pytest.fixture
def database(path: str) -> Iterator[Database]:
    """An open file that one engine has opened."""
    database = Database(
        path, clock=SystemClock(), synchronous="normal", create=True, on_commit=lambda keys: None
    )
    opened(database.open())
    yield database
    database.close()


def opened(database: Database) -> int:
    return database.write(
        "open", lambda tx: workflows.open_session(tx, pid=1, version=None, now=0.0)
    )


def declare(database: Database, new: Declared, now: float, session: int = 1) -> State:
    database.write("declare", lambda tx: schedules.declare(tx, new, session=session, now=now))
    return find(database, new.name)


def find(database: Database, name: str) -> State:
    return database.read(lambda tx: schedules.find(tx, name))


def passes(database: Database, moment: float, *, runs: bool = True) -> bool:
    return database.write("pass", lambda tx: schedules.pass_moment(tx, "daily", moment, runs=runs))


def test_a_new_schedule_begins_now(database: Database) -> None:
    """All before its first declaration is decided, and it has run for no moment."""
    state = declare(database, DAILY, now=100.0)
    assert (state.passed_at, state.last_at, state.paused, state.declared) == (
        *(100.0, None),
        *(False, True),
    )


def test_declared_again_it_keeps_its_place(database: Database) -> None:
    """With another policy, another workflow and another timeout, too."""
    declare(database, DAILY, now=100.0)
    passes(database, 150.0)
    new = DAILY._replace(missed="all", workflow="app:other", timeout=5.0)
    state = declare(database, new, now=200.0)
    assert (state.passed_at, state.last_at) == (150.0, 150.0)
    assert (state.missed, state.workflow, state.timeout) == ("all", "app:other", 5.0)


@pytest.mark.parametrize("change", [{"cron": "@hourly"}, {"tz": "+02:00"}])
def test_other_moments_begin_now(database: Database, change: dict[str, str]) -> None:
    """What a new expression would have run in the past was not missed; nothing goes back."""
    declare(database, DAILY, now=100.0)
    assert declare(database, DAILY._replace(**change), now=200.0).passed_at == 200.0
    assert declare(database, DAILY, now=150.0).passed_at == 200.0


def test_a_moment_is_decided_once(database: Database) -> None:
    """It never goes back; only those that run are shown as the last."""
    declare(database, DAILY, now=100.0)
    assert passes(database, 200.0)
    assert not passes(database, 200.0)
    assert not passes(database, 150.0)
    assert passes(database, 300.0, runs=False)
    assert (find(database, "daily").passed_at, find(database, "daily").last_at) == (300.0, 200.0)


def test_nothing_is_decided_while_it_is_paused(database: Database) -> None:
    """And it goes on from the moment at which it is resumed."""
    declare(database, DAILY, now=100.0)
    database.write("pause", lambda tx: schedules.pause(tx, "daily"))
    assert not passes(database, 200.0)
    assert declare(database, DAILY, now=250.0).paused
    database.write("resume", lambda tx: schedules.resume(tx, "daily", now=300.0))
    assert (find(database, "daily").paused, find(database, "daily").passed_at) == (False, 300.0)


def test_resuming_what_is_not_paused_changes_nothing(database: Database) -> None:
    """What was missed meanwhile stays missed."""
    declare(database, DAILY, now=100.0)
    database.write("resume", lambda tx: schedules.resume(tx, "daily", now=300.0))
    assert find(database, "daily").passed_at == 100.0


def test_declared_is_what_the_last_engine_declares(database: Database) -> None:
    """An engine that opens the file and does not know it makes it one without code."""
    declare(database, DAILY, now=100.0)
    second = opened(database)
    assert not find(database, "daily").declared
    assert declare(database, DAILY, now=200.0, session=second).declared


def test_schedules_are_listed_by_name(database: Database) -> None:
    """An unknown name is told them."""
    for name in ("b", "a"):
        declare(database, DAILY._replace(name=name), now=100.0)
    assert [each.name for each in database.read(schedules.everything)] == ["a", "b"]
    with pytest.raises(ScheduleNotFound, match="no schedule 'c' in this file: it has 'a', 'b'"):
        find(database, "c")
    with pytest.raises(ScheduleNotFound):
        database.write("pause", lambda tx: schedules.pause(tx, "c"))
    with pytest.raises(ScheduleNotFound):
        database.write("resume", lambda tx: schedules.resume(tx, "c", now=1.0))
