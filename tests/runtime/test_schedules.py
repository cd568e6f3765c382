"""Schedules at work: each moment once, whatever happens to the process and to the clock."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import durable
from durable import (
    Client,
    DuplicateName,
    Engine,
    InvalidArgument,
    NotAllowedHere,
    ScheduleNotFound,
    Status,
    StorageFull,
    WaitTimeout,
    WorkflowCancelled,
    WorkflowConflict,
    WorkflowNotFound,
    schedule,
    step,
    testing,
    workflow,
)
from durable.clock import Bell, SystemClock
from durable.cron import parse_cron
from durable.records import Schedule
from durable.runtime.scheduler import AT_ONCE, Due, due, grace
from durable.testing import Deadlock, TestEngine, VirtualClock
from tests.processes.programs import Program, new_seed
from tests.support import PATIENCE, dying, needs_zones, until

# The virtual clock begins with the year 2026.
START = datetime(2026, 1, 1, tzinfo=UTC)


def minutes(count: float) -> datetime:
    return START + timedelta(minutes=count)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "schedules.db")


@pytest.fixture
def engine() -> Iterator[TestEngine]:
    """An open engine with a virtual clock that fires schedules."""
    with testing.engine(schedules=True) as engine:
        yield engine


def opened(file: str, clock: VirtualClock) -> Any:
    """One engine after the other on one file, with one clock."""
    return testing.engine(path=file, clock=clock, schedules=True)


def every(cron: str, *, name: str = "job", **options: Any) -> Callable[..., Any]:
    """Declare a workflow that runs by that expression, and returns its moment."""

    @schedule(cron, name=name, **options)
    @workflow(name=f"app:{name}")
    def job(moment: datetime) -> datetime:
        return moment

    return job


def every_waiting(cron: str) -> None:
    """Declare a workflow that runs by that expression, all of it, and waits for a message."""

    @schedule(cron, missed="all", name="job")
    @workflow(name="app:waiting")
    def waiting(moment: datetime) -> str:
        return f"{moment:%H:%M} {durable.recv('go')}"


def ran(client: Client, name: str = "job") -> list[datetime]:
    """The moments that the runs of a schedule got, in the order in which they were begun."""
    found = client.workflows(tag=f"schedule:{name}", limit=100_000)
    return [each.args[0] for each in found]


def one(client: Client, name: str = "job") -> Schedule:
    (found,) = [each for each in client.schedules() if each.name == name]
    return found


# ---------------------------------------------------------------------- what is due


def check_due(missed: str, after: int, now: float, room: int = 10) -> Due:
    """For an expression that is due each ten seconds."""
    return due(parse_cron("*/10 * * * * *"), UTC, missed, after, now, room)


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_what_comes_now_is_due_whatever_the_policy(missed: str) -> None:
    """On the second, and as late as an engine may well be."""
    assert check_due(missed, 0, 9.9) == Due(())
    assert check_due(missed, 0, 10.0) == Due((10,))
    assert check_due(missed, 0, 12.0) == Due((10,))


def test_skip_runs_nothing_that_is_late() -> None:
    """It notes the last moment that it skips."""
    assert check_due("skip", 0, 12.1) == Due((), skipped=10)
    assert check_due("skip", 0, 4685.0) == Due((), skipped=4680)
    assert check_due("skip", 0, 4681.0) == Due((4680,))


def test_latest_runs_the_last_one() -> None:
    """Whatever its age."""
    assert check_due("latest", 0, 4685.0) == Due((4680,))
    assert check_due("latest", 4670, 4685.0) == Due((4680,))


def test_all_runs_each_as_far_as_there_is_room() -> None:
    """In order; and says whether there are more."""
    assert list(check_due("all", 0, 35.0).run) == [10, 20, 30]
    assert check_due("all", 0, 35.0, room=2) == Due([10, 20], more=True)
    assert check_due("all", 0, 35.0, room=3) == Due([10, 20, 30])
    assert check_due("all", 0, 35.0, room=0) == Due([], more=True)
    assert check_due("all", 0, 15.0, room=0) == Due((10,))


@pytest.mark.parametrize(
    ("following", "late"), [(1, 2.0), (10, 2.0), (60, 6.0), (300, 30.0), (86_400, 60.0)]
)
def test_how_late_a_moment_may_be(following: int, late: float) -> None:
    """A tenth of the time to the next one, between two seconds and a minute."""
    assert grace(0, following) == late
    assert grace(0, None) == 60.0


# ---------------------------------------------------------------------- firing


@needs_zones
def test_it_runs_at_each_moment_and_is_told_which(engine: TestEngine) -> None:
    """An aware datetime in the zone of the schedule; the id is made of the name and the moment."""
    every("0 7 * * *", tz="Europe/Berlin")
    engine.clock.advance(days=2)

    assert [each.isoformat() for each in ran(engine)] == [
        *("2026-01-01T07:00:00+01:00", "2026-01-02T07:00:00+01:00")
    ]
    assert ran(engine)[0].tzinfo is ZoneInfo("Europe/Berlin")
    assert [each.id for each in engine.workflows()] == [
        *("job@2026-01-01T06:00:00Z", "job@2026-01-02T06:00:00Z")
    ]
    assert all(each.status is Status.SUCCESS for each in engine.workflows())


def test_a_schedule_begins_when_it_is_first_declared(engine: TestEngine) -> None:
    """There is nothing to make up for before; the moment of its declaration is not its first."""
    every("* * * * *", missed="all")
    engine.clock.settle()
    assert ran(engine) == []
    engine.clock.advance(minutes=1)
    assert ran(engine) == [minutes(1)]


def test_what_is_declared_before_the_engine_opens_is_known_when_it_is_open() -> None:
    """Nobody has to wait to see it, or to trigger it."""
    every("* * * * *")
    with testing.engine(schedules=True) as engine:
        assert one(engine) == Schedule(
            name="job",
            workflow="app:job",
            cron="* * * * *",
            tz="UTC",
            missed="latest",
            paused=False,
            declared=True,
            last_at=None,
            next_at=minutes(1),
        )


def test_several_schedules_of_different_zones(engine: TestEngine) -> None:
    """Each goes by its own walls."""
    every("0 0 * * *", name="here")
    every("0 0 * * *", name="there", tz="-03:00")
    engine.clock.advance(hours=24)
    assert ran(engine, "there") == [START + timedelta(hours=3)]
    assert ran(engine, "here") == [START + timedelta(hours=24)]


def test_the_timeout_of_the_workflow_holds(engine: TestEngine) -> None:
    """For what a moment begins, and for what is triggered."""

    @schedule("* * * * *", name="job")
    @workflow(name="app:slow", timeout=5)
    def slow(moment: datetime) -> None:
        durable.recv("never")

    engine.clock.advance(minutes=1)
    for handle in (engine.handle("job@2026-01-01T00:01:00Z"), engine.trigger("job")):
        with pytest.raises(WorkflowCancelled, match="deadline"):
            handle.result()


def test_whether_it_fires_is_yes_or_no(file: str) -> None:
    """A list of names, say, is refused."""
    with pytest.raises(InvalidArgument, match="schedules is True or False"):
        Engine(file, schedules=["job"])  # type: ignore[arg-type]


def test_an_engine_may_be_told_not_to_fire() -> None:
    """It knows its schedules, and what is triggered runs; a testing engine is told so."""
    every("* * * * *")
    for options in ({}, {"schedules": False}):
        with testing.engine(clock=VirtualClock(), **options) as engine:
            engine.clock.advance(minutes=5)
            assert ran(engine) == []
            assert one(engine).declared
            assert engine.trigger("job").result() == minutes(5)


# ---------------------------------------------------------------------- restarts


def test_ten_restarts_around_a_moment_make_one_run(file: str, clock: VirtualClock) -> None:
    """N41: and there is one row of the schedule."""
    every("*/5 * * * *", missed="all")
    with opened(file, clock):
        clock.advance(seconds=295)
    for _ in range(10):
        with opened(file, clock):
            clock.advance(seconds=1)
    with opened(file, clock) as engine:
        clock.settle()
        assert ran(engine) == [minutes(5)]
        assert len(engine.schedules()) == 1


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_a_restart_across_a_moment_loses_it_with_no_policy(
    missed: str, file: str, clock: VirtualClock
) -> None:
    """A few seconds late is not missed."""
    every("*/5 * * * *", missed=missed)
    with opened(file, clock):
        clock.advance(seconds=298)
    clock.set(minutes(5) + timedelta(seconds=7))
    with opened(file, clock) as engine:
        clock.settle()
        assert ran(engine) == [minutes(5)]


@pytest.mark.parametrize(
    ("missed", "moments"), [("skip", []), ("latest", [20]), ("all", [5, 10, 15, 20])]
)
def test_what_passed_while_no_engine_was_open(
    missed: str, moments: list[int], file: str, clock: VirtualClock
) -> None:
    """None, the last one, or each in order; and then it goes on as ever."""
    every("*/5 * * * *", missed=missed)
    with opened(file, clock):
        pass
    clock.set(minutes(22))
    with opened(file, clock) as engine:
        clock.settle()
        assert ran(engine) == [minutes(each) for each in moments]
        clock.advance(minutes=5)
        assert ran(engine) == [minutes(each) for each in (*moments, 25)]
    with opened(file, clock) as engine:
        clock.settle()
        assert len(ran(engine)) == len(moments) + 1


def test_a_run_that_was_begun_is_recovered_as_any(file: str, clock: VirtualClock) -> None:
    """The process dies while it runs; the next one finishes it, and begins no other."""
    every_waiting("* * * * *")
    engine = TestEngine(file, clock=clock, schedules=True)
    engine.open()
    clock.advance(seconds=70)
    engine._abandon()
    with opened(file, clock) as engine:
        clock.settle()
        (run,) = engine.workflows()
        engine.send(run.id, "gone", "go")
        assert engine.handle(run.id).result() == "00:01 gone"


def test_two_engines_in_turn_on_one_file(file: str) -> None:
    """The second machine's clock is ten minutes behind: it runs no moment again."""
    every("*/5 * * * *", missed="all")
    with opened(file, VirtualClock()) as engine:
        engine.clock.advance(minutes=30)
    behind = VirtualClock(start=minutes(20))
    with opened(file, behind) as engine:
        behind.advance(minutes=21)
        assert ran(engine) == [minutes(each) for each in (5, 10, 15, 20, 25, 30, 35, 40)]


# ---------------------------------------------------------------------- clocks that jump


@pytest.mark.slow
@pytest.mark.parametrize(("missed", "count"), [("skip", 0), ("latest", 1), ("all", 468)])
def test_a_laptop_sleeps(engine: TestEngine, missed: str, count: int) -> None:
    """N40: 78 minutes later a job of each ten seconds has made up for none, one or all of them."""
    every("*/10 * * * * *", missed=missed)
    engine.clock.advance(seconds=5)
    engine.clock.set(engine.clock.moment + timedelta(minutes=78))
    assert len(ran(engine)) == count
    engine.clock.advance(seconds=10)
    assert len(ran(engine)) == count + 1


def test_a_clock_that_is_set_back_brings_no_moment_again(engine: TestEngine) -> None:
    """It is quiet until the time comes that has not been; then it goes on."""
    every("*/5 * * * *", missed="all")
    engine.clock.advance(minutes=20)
    engine.clock.set(minutes(2))
    engine.clock.advance(minutes=17)
    assert len(ran(engine)) == 4
    engine.clock.advance(minutes=10)
    assert ran(engine) == [minutes(each) for each in (5, 10, 15, 20, 25)]


def test_pause_and_resume_help_where_a_clock_was_far_ahead(engine: TestEngine) -> None:
    """A clock that was a year ahead is set right: the schedule can be told to go on from now."""
    every("*/5 * * * *")
    engine.clock.settle()
    engine.clock.set(START + timedelta(days=365))
    engine.clock.set(START)
    engine.clock.advance(minutes=5)
    assert ran(engine) == [START + timedelta(days=365)]
    engine.pause_schedule("job")
    engine.resume_schedule("job")
    engine.clock.advance(minutes=5)
    assert ran(engine)[1:] == [minutes(10)]


class SleepyClock(SystemClock):
    """A clock of the machine that somebody sets forward while all wait."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead

    def wait(
        self, condition: threading.Condition, ready: Callable[[], bool], deadline: float | None
    ) -> bool:
        return super().wait(condition, ready, self.there(deadline))

    def bell(self) -> SleepyBell:
        return SleepyBell(self, super().bell())

    def there(self, deadline: float | None) -> float | None:
        """The moment by the clock as it was."""
        return None if deadline is None else deadline - self.ahead


class SleepyBell:
    def __init__(self, clock: SleepyClock, bell: Bell) -> None:
        self._clock = clock
        self._bell = bell
        self.ring = bell.ring

    def wait(self, deadline: float | None) -> bool:
        return self._bell.wait(self._clock.there(deadline))


def test_waking_up_is_noticed_soon(path: str) -> None:
    """No wait of the system hears of a laptop's sleep; a second later the schedule goes on."""
    every("@hourly")
    clock = SleepyClock()
    with Engine(path, clock=clock) as engine:
        clock.ahead = 3600.0
        until(lambda: ran(engine))
        assert len(ran(engine)) == 1


@pytest.mark.slow
def test_it_runs_by_the_clock_of_the_machine(path: str) -> None:
    """Each second; leaving `with` does not wait for the next one."""
    every("* * * * * *", missed="all")
    with Engine(path) as engine:
        until(lambda: len(ran(engine)) >= 2)
    with Client(path) as client:
        first, second = ran(client)[:2]
    assert second - first == timedelta(seconds=1)


# ---------------------------------------------------------------------- making up


def test_at_most_a_hundred_are_made_up_for_at_once(engine: TestEngine) -> None:
    """The next ones begin as those end."""
    every_waiting("* * * * *")
    engine.clock.settle()
    engine.clock.set(minutes(130.5))
    begun = engine.workflows()
    assert len(begun) == AT_ONCE
    for each in begun[:20]:
        engine.send(each.id, None, "go")
    engine.clock.settle()
    assert len(engine.workflows()) == AT_ONCE + 20
    for each in begun[20:50]:
        engine.cancel(each.id)
    engine.clock.settle()
    assert ran(engine) == [minutes(each) for each in range(1, 131)]


def test_one_schedule_that_makes_up_stops_no_other(engine: TestEngine) -> None:
    """However many of its runs there are that do not end."""
    every_waiting("* * * * * *")
    every("*/5 * * * *", name="other")
    engine.clock.settle()
    engine.clock.set(minutes(11))
    engine.clock.advance(minutes=4)
    assert ran(engine, "other") == [minutes(10), minutes(15)]
    assert len(ran(engine)) == AT_ONCE


# ---------------------------------------------------------------------- code that changes


def test_another_expression_begins_now(file: str, clock: VirtualClock) -> None:
    """What it would have run before it was declared was not missed."""
    every("*/5 * * * *", missed="all")
    with opened(file, clock):
        clock.advance(minutes=6)
    clock.set(minutes(30))
    every("*/2 * * * *", missed="all")
    with opened(file, clock) as engine:
        clock.settle()
        assert ran(engine) == [minutes(5)]
        clock.advance(minutes=2)
        assert ran(engine) == [minutes(5), minutes(32)]


def test_another_policy_rules_at_once(file: str, clock: VirtualClock) -> None:
    """The moments are the same, and those that were missed still are."""
    every("*/5 * * * *", missed="skip")
    with opened(file, clock):
        pass
    clock.set(minutes(13))
    every("*/5 * * * *", missed="all")
    with opened(file, clock) as engine:
        clock.settle()
        assert ran(engine) == [minutes(5), minutes(10)]


def test_a_schedule_whose_code_is_gone(file: str, clock: VirtualClock) -> None:
    """It does not fire, is shown as such, and can be started by nobody."""
    every("*/5 * * * *")
    with opened(file, clock):
        clock.advance(minutes=6)
    durable.runtime.registry.registry._schedules.clear()
    with opened(file, clock) as engine:
        clock.advance(minutes=30)
        assert ran(engine) == [minutes(5)]
        assert (one(engine).declared, one(engine).next_at) == (False, None)
        assert one(engine).last_at == minutes(5)
        with pytest.raises(InvalidArgument, match=r"'job'.*its code is gone"):
            engine.trigger("job")
        with pytest.raises(InvalidArgument, match=r"'job'.*its code is gone"):
            engine.backfill("job", START, minutes(10))


def test_what_is_declared_while_the_engine_is_open_begins_then(engine: TestEngine) -> None:
    """A module that is imported late."""
    every("*/5 * * * *", name="first")
    engine.clock.advance(minutes=7)
    every("*/5 * * * *", name="second", missed="all")
    engine.clock.advance(minutes=5)
    assert ran(engine, "first") == [minutes(5), minutes(10)]
    assert ran(engine, "second") == [minutes(10)]


def test_a_reload_takes_the_place_of_what_was(engine: TestEngine) -> None:
    """Declared again with another expression, a function has that alone; without one, none."""

    def declare(*crons: str) -> None:
        @workflow(name="app:reloaded")
        def job(moment: datetime) -> datetime:
            return moment

        for cron in crons:
            schedule(cron)(job)

    declare("*/5 * * * *", "*/7 * * * *")
    engine.clock.settle()
    assert [each.name for each in engine.schedules()] == [
        "app:reloaded",
        "app:reloaded */7 * * * *",
    ]
    declare("*/20 * * * *")
    engine.clock.advance(minutes=15)
    assert engine.workflows() == []
    assert [each.declared for each in engine.schedules()] == [True, False]
    declare()
    engine.clock.advance(minutes=15)
    assert engine.workflows() == []
    assert [each.declared for each in engine.schedules()] == [False, False]
    declare("*/20 * * * *")
    engine.clock.advance(minutes=10)
    assert [each.cron for each in engine.schedules() if each.declared] == ["*/20 * * * *"]
    assert engine.workflows()[-1].id == "app:reloaded@2026-01-01T00:40:00Z"


# ---------------------------------------------------------------------- pause, resume


def test_a_paused_schedule_begins_nothing(engine: TestEngine) -> None:
    """Resumed, it goes on with the next moment: nothing was missed."""
    every("*/5 * * * *", missed="all")
    engine.clock.advance(minutes=6)
    engine.pause_schedule("job")
    assert (one(engine).paused, one(engine).next_at) == (True, None)
    engine.clock.advance(minutes=10)
    engine.resume_schedule("job")
    assert one(engine).next_at == minutes(20)
    engine.clock.advance(minutes=4)
    assert ran(engine) == [minutes(5), minutes(20)]


def test_a_pause_lasts_over_restarts(file: str, clock: VirtualClock) -> None:
    """And over a new declaration."""
    every("*/5 * * * *", missed="all")
    with opened(file, clock) as engine:
        engine.pause_schedule("job")
    every("*/2 * * * *", missed="all")
    with opened(file, clock) as engine:
        clock.advance(minutes=20)
        assert ran(engine) == []
        assert one(engine).paused


@pytest.mark.slow
def test_a_client_in_another_process_pauses_and_resumes(path: str) -> None:
    """The engine hears of it, and need not be asked anew."""
    every("* * * * * *")
    with Engine(path) as engine, Client(path) as client:
        until(lambda: ran(engine))
        client.pause_schedule("job")
        count = len(ran(client))
        client.resume_schedule("job")
        until(lambda: len(ran(client)) > count)


def test_an_unknown_schedule_is_told_those_that_there_are(engine: TestEngine) -> None:
    """By each of the methods."""
    every("* * * * *")
    engine.clock.settle()
    for act in (
        lambda: engine.pause_schedule("jbo"),
        lambda: engine.resume_schedule("jbo"),
        lambda: engine.trigger("jbo"),
        lambda: engine.backfill("jbo", START, START),
    ):
        with pytest.raises(ScheduleNotFound, match="no schedule 'jbo' in this file: it has 'job'"):
            act()


@pytest.mark.parametrize("name", [None, 5, "", b"job", "a\nb", "\ud800"])
def test_what_is_no_name_is_refused(engine: TestEngine, name: Any) -> None:
    """Before the file is looked at."""
    for act in (
        lambda: engine.pause_schedule(name),
        lambda: engine.resume_schedule(name),
        lambda: engine.trigger(name),
        lambda: engine.backfill(name, START, START),
    ):
        with pytest.raises(InvalidArgument, match="the name of a schedule"):
            act()


# ---------------------------------------------------------------------- trigger, backfill


def test_trigger_runs_it_now(engine: TestEngine) -> None:
    """For the present moment, beside the schedule's own, also while it is paused."""
    every("*/5 * * * *", tz="+02:00")
    engine.clock.settle()
    engine.pause_schedule("job")
    engine.clock.advance(seconds=30)
    handle = engine.trigger("job")
    assert handle.result().isoformat() == "2026-01-01T02:00:30+02:00"
    assert handle.info().name == "app:job"
    assert one(engine).last_at is None


def test_trigger_with_an_id_attaches(engine: TestEngine) -> None:
    """A script that is run again starts nothing twice; another workflow's id is refused."""
    every("*/5 * * * *")
    other = every("0 0 1 1 *", name="other")
    engine.clock.settle()
    other.options(id="taken").start(START)  # type: ignore[attr-defined]
    assert engine.trigger("job", id="mine").result() == START
    engine.clock.advance(seconds=1)
    assert engine.trigger("job", id="mine").result() == START
    with pytest.raises(WorkflowConflict, match="run of 'app:other'"):
        engine.trigger("job", id="taken")


def test_a_client_in_another_process_triggers(path: str) -> None:
    """The client needs no code for it; without an engine, it runs when one opens."""
    every("@yearly")
    with Engine(path), Client(path) as client:
        assert client.trigger("job").result(PATIENCE)
    with Client(path) as client:
        handle = client.trigger("job")
        with pytest.raises(WaitTimeout):
            handle.result(timeout=0)
    with Engine(path), Client(path) as client:
        assert client.handle(handle.id).result(PATIENCE)


def test_backfill_runs_the_moments_of_a_span(engine: TestEngine) -> None:
    """From its start on and before its end; the handles are in order."""
    every("*/5 * * * *")
    engine.clock.set(minutes(60))
    handles = engine.backfill("job", minutes(10), minutes(25))
    assert [handle.result() for handle in handles] == [minutes(10), minutes(15), minutes(20)]
    assert [handle.id[-9:] for handle in handles] == ["00:10:00Z", "00:15:00Z", "00:20:00Z"]


def test_backfill_runs_nothing_twice(engine: TestEngine) -> None:
    """What has run keeps its run; a moment that was backfilled does not come again."""
    every("*/5 * * * *")
    engine.clock.advance(minutes=11)
    for _ in range(2):
        assert len(engine.backfill("job", START, minutes(11))) == 3
    engine.clock.settle()
    assert sorted(ran(engine)) == [minutes(0), minutes(5), minutes(10)]


def test_a_moment_that_was_backfilled_is_passed_by(file: str, clock: VirtualClock) -> None:
    """It would have been made up for; the others are."""
    every("*/5 * * * *", missed="all")
    with opened(file, clock):
        pass
    clock.set(minutes(12))
    with testing.engine(path=file, clock=clock) as engine:
        (handle,) = engine.backfill("job", minutes(4), minutes(6))
        handle.result()
    with opened(file, clock) as engine:
        clock.settle()
        assert ran(engine) == [minutes(5), minutes(10)]
        assert one(engine).last_at == minutes(10)


def test_a_large_backfill_is_taken_up_in_one_go(path: str) -> None:
    """Not by a thread for each run, and told of again by each commit meanwhile."""
    every("* * * * *")
    with Engine(path) as engine:
        spawn, names = engine._clock.spawn, []
        engine._clock.spawn = lambda name, *args, **options: (  # type: ignore[method-assign]
            names.append(name) or spawn(name, *args, **options)
        )
        now = datetime.now(UTC)
        handles = engine.backfill("job", now - timedelta(minutes=200), now)
        assert all(handle.result(PATIENCE) for handle in handles)
        assert len(handles) == 200
        assert sum(name.startswith("durable start") for name in names) < 20


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (minutes(5), minutes(4)),
        (minutes(5), minutes(120)),
        (minutes(5), minutes(5).replace(tzinfo=None)),
        ("yesterday", minutes(5)),
    ],
)
def test_a_span_of_no_use_is_refused(engine: TestEngine, start: Any, end: Any) -> None:
    """Turned round, not over yet, without a zone."""
    every("*/5 * * * *")
    engine.clock.set(minutes(60))
    with pytest.raises(InvalidArgument, match="backfill"):
        engine.backfill("job", start, end)


def test_a_span_of_too_many_moments_is_refused(engine: TestEngine) -> None:
    """Nothing of it begins."""
    every("* * * * * *")
    engine.clock.settle()
    engine.pause_schedule("job")
    engine.clock.set(minutes(200))
    with pytest.raises(InvalidArgument, match="more than 10000 moments"):
        engine.backfill("job", START, minutes(200))
    assert engine.workflows() == []
    assert engine.backfill("job", START, START) == []


def test_in_a_workflow_they_belong_in_a_step(engine: TestEngine) -> None:
    """A replay of the body would do them again."""
    every("@yearly")

    @step
    def trigger() -> str:
        return engine.trigger("job").id

    @workflow
    def in_step() -> str:
        return trigger()

    @workflow
    def in_body(act: str) -> None:
        arguments = (START, START) if act == "backfill" else ()
        getattr(engine, act)("job", *arguments)

    engine.clock.settle()
    assert engine.handle(in_step()).result() == START
    for act in ("trigger", "backfill", "pause_schedule", "resume_schedule"):
        with pytest.raises(NotAllowedHere, match="in a step"):
            in_body(act)


# ---------------------------------------------------------------------- what goes wrong


def test_what_fails_with_one_schedule_stops_no_other(
    engine: TestEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for a moment: it is tried again, and logged."""
    every("*/5 * * * *", name="bad")
    every("*/5 * * * *", name="good")
    engine.clock.settle()
    database = engine._open_engine().database
    write, failures = database.write, [StorageFull("job.db", "no space left")]

    def full(label: str, fn: Any, *others: Any) -> Any:
        if label == "fire bad" and failures:
            raise failures.pop()
        return write(label, fn, *others)

    monkeypatch.setattr(database, "write", full)
    engine.clock.advance(minutes=5)
    assert (ran(engine, "bad"), ran(engine, "good")) == ([], [minutes(5)])
    engine.clock.advance(seconds=5)
    assert ran(engine, "bad") == [minutes(5)]
    assert [type(each) for each in engine._hooks.errors] == [StorageFull]
    engine._hooks.errors.clear()


def test_a_run_that_fails_stops_nothing(engine: TestEngine) -> None:
    """The next moment has its own."""

    @schedule("* * * * *", name="job")
    @workflow(name="app:fails")
    def fails(moment: datetime) -> None:
        raise ValueError("no")

    engine.clock.advance(minutes=3)
    assert [each.status for each in engine.workflows()] == [Status.ERROR] * 3


# ---------------------------------------------------------------------- declaring


@needs_zones
def test_names_of_several_schedules_of_one_workflow() -> None:
    """The one next to the function has the workflow's name; others have their expression, too."""

    @schedule("0 7 * * *", tz="Europe/Berlin")
    @schedule("0 7 * * *", name="mine")
    @schedule("0 7 * * *")
    @schedule("@hourly")
    @workflow(name="app:report")
    def report(moment: datetime) -> None: ...

    with testing.engine() as engine:
        assert [each.name for each in engine.schedules()] == [
            *("app:report", "app:report 0 7 * * *"),
            *("app:report 0 7 * * * Europe/Berlin", "mine"),
        ]


def test_a_name_that_is_taken_is_refused() -> None:
    """By the schedule of another workflow, or by another schedule of this one."""
    first = every("@daily")
    schedule("@daily", name="job")(first)  # the same once more
    with pytest.raises(DuplicateName, match="'job'"):
        every("@daily", name="other")
        schedule("@hourly", name="job")(first)


def test_the_function_is_what_it_was() -> None:
    """A schedule adds to it; it can be called and started as before."""
    job = every("@daily")
    with testing.engine():
        assert job(START) == START
        assert job.fn(START) == START  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"cron": "61 * * * *"}, "in the minute, 61"),
        ({"tz": "Europe/Berlinn"}, "pip install tzdata"),
        ({"missed": "none"}, "'skip', 'latest' or 'all'"),
        ({"missed": ["all"]}, "'skip', 'latest' or 'all'"),
        ({"name": ""}, "name of a schedule"),
        ({"name": "a\nb"}, "name of a schedule"),
    ],
)
def test_what_cannot_be_used_is_refused_when_declared(arguments: Any, told: str) -> None:
    """Before there is any engine."""
    with pytest.raises(InvalidArgument, match=told):
        schedule(**{"cron": "@daily"} | arguments)


def test_it_goes_on_a_workflow_that_takes_a_moment() -> None:
    """And says what to do where it does not."""

    def plain(moment: datetime) -> None: ...

    @workflow
    def nothing() -> None: ...

    @workflow
    def two(moment: datetime, more: int) -> None: ...

    @workflow
    def optional(moment: datetime, more: int = 1) -> None: ...

    with pytest.raises(InvalidArgument, match="above @workflow"):
        schedule("@daily")(plain)  # type: ignore[arg-type]
    for each in (nothing, two):
        with pytest.raises(InvalidArgument, match="takes one argument, the moment"):
            schedule("@daily")(each)  # type: ignore[arg-type]
    schedule("@daily")(optional)


def test_methods_are_refused_and_static_ones_are_not(engine: TestEngine) -> None:
    """Nobody would know of which object."""
    with pytest.raises(InvalidArgument, match="is a method"):

        class Instance:
            @schedule("@daily")
            @workflow
            def run(self) -> None: ...

    with pytest.raises(InvalidArgument, match="is a method"):

        class Class:
            @schedule("@daily")
            @workflow
            @classmethod
            def run(cls, moment: datetime) -> None: ...

    class Static:
        @schedule("@hourly", name="job")
        @workflow
        @staticmethod
        def run(moment: datetime) -> datetime:
            return moment

    engine.clock.advance(hours=1)
    assert ran(engine) == [minutes(60)]


# ---------------------------------------------------------------------- daylight saving


@needs_zones
@pytest.mark.parametrize(("day", "hours"), [("2026-03-28", 71), ("2026-10-24", 73)])
def test_a_daily_job_over_a_change_of_the_clocks(day: str, hours: int) -> None:
    """N42: once on each of three days, of which one has an hour less, or one more."""
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo("Europe/Berlin"))
    with testing.engine(clock=VirtualClock(start=start), schedules=True) as engine:
        every("30 2 * * *", tz="Europe/Berlin", missed="all")
        engine.clock.advance(hours=hours)
        assert [f"{each:%d}" for each in ran(engine)] == [
            f"{start + timedelta(days=count):%d}" for count in range(3)
        ]


# ---------------------------------------------------------------------- the testing kit


def test_a_schedule_alone_is_nothing_to_wait_for(engine: TestEngine) -> None:
    """Where only moments of schedules would come, a test that waits is told so, at once."""
    every("* * * * *")

    @workflow
    def waits() -> None:
        durable.recv("never")

    handle = waits.start()
    with pytest.raises(Deadlock, match=r"durable schedules: waits until .*clock\.advance"):
        handle.result()
    assert ran(engine) == []


def test_a_sleep_passes_the_moments_in_order(engine: TestEngine) -> None:
    """Those that come before its end."""
    every("*/5 * * * *")

    @workflow
    def sleeps() -> list[str]:
        durable.sleep(11 * 60)
        return ["awake"]

    sleeps()
    assert ran(engine) == [minutes(5), minutes(10)]


@workflow(name="app:until")
def until_twelve_minutes_past() -> None:
    durable.sleep_until(minutes(12))


def program(engine: TestEngine) -> None:
    """A job of each five minutes, of two steps, for twelve minutes; one is made up for, one not."""

    @step(name="app:work")
    def work(moment: datetime) -> str:
        return f"{moment:%H:%M}"

    @schedule("*/5 * * * *", missed="all", name="job")
    @workflow(name="app:steps")
    def job(moment: datetime) -> list[str]:
        return [work(moment), work(moment)]

    until_twelve_minutes_past.options(id="until").start().result()
    (handle,) = engine.backfill("job", START, minutes(1))
    assert handle.result() == ["00:00", "00:00"]
    engine.trigger("job", id="now").result()
    engine.clock.settle()  # after a crash, what was missed is made up for beside the program
    for at in ("00:05", "00:10"):
        assert engine.handle(f"job@2026-01-01T{at}:00Z").result() == [at, at]
    with pytest.raises(WorkflowNotFound):
        engine.handle("job@2026-01-01T00:15:00Z").info()


@pytest.mark.slow
def test_it_survives_every_crash() -> None:
    """Between firing and running, too: each moment runs once, and comes to its end."""
    report = testing.crashes(program, schedules=True)
    assert report.places > 40


@pytest.mark.slow
def test_it_works_in_any_order_of_threads() -> None:
    """Fifty orders of the schedule's thread, the runs and the program."""
    testing.orders(program, runs=50, schedules=True)


def short_program(engine: TestEngine) -> None:
    """A job of one moment."""
    every("*/5 * * * *")

    @workflow(name="app:seven")
    def seven() -> None:
        durable.sleep_until(minutes(7))

    seven.options(id="seven").start().result()
    engine.clock.settle()  # after a crash, what was missed is made up for beside the program
    assert engine.handle("job@2026-01-01T00:05:00Z").result() == minutes(5)


@pytest.mark.slow
def test_it_survives_two_crashes_in_a_row() -> None:
    """The engine that recovers dies as well."""
    report = testing.crashes(short_program, schedules=True, depth=2)
    assert report.places > 100


SERVES = """
@durable.schedule("* * * * * *", missed="all", name="job")
@workflow(name="app:job")
def job(moment):
    return moment

engine = Engine(sys.argv[1]).open()
print("open")
engine.serve()
"""


@pytest.mark.slow
def test_a_program_of_schedules_alone_serves_until_it_is_told_to_end(path: str) -> None:
    """SIGTERM ends it, with nothing on its standard error."""
    with Program(SERVES, path) as program:
        assert program.line() == "open"
        with Client(path) as client:
            until(lambda: len(ran(client)) >= 2)
        program.terminate()
        assert program.wait() == 0
        assert program.errors() == ""


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again(path: str) -> None:
    """N41, with SIGKILL: each second from the first to the last has one run, which has ended."""
    rng = random.Random(new_seed())
    for _ in range(12):
        with Program(SERVES, path) as program:
            assert program.line() == "open"
            time.sleep(rng.uniform(0, 1.2))
            program.kill()
    every("* * * * * *", missed="all")
    with Engine(path) as engine:
        count = len(ran(engine))
        until(lambda: len(ran(engine)) > count)
    with Client(path) as client:
        found = ran(client)
        assert len(found) >= 3
        assert found == [found[0] + timedelta(seconds=count) for count in range(len(found))]
        assert {each.status for each in client.workflows(limit=1000)} == {Status.SUCCESS}


def test_an_engine_that_dies_each_second_around_a_moment(file: str) -> None:
    """N41, without a close: one run."""
    every("*/5 * * * *", missed="all")
    clock = SleepyClock()
    clock.ahead = minutes(4.95).timestamp() - SystemClock().now()
    for _ in range(6):
        with dying(file, clock=clock):
            clock.ahead += 1
    with Engine(file, clock=clock) as engine:
        until(lambda: ran(engine))
        assert ran(engine) == [minutes(5)]
