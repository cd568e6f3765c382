"""Schedules at work: a thread that begins the runs of the moments that are due.

The id of a run is made of the schedule's name and the moment, and one write inserts the run and
notes that the moment is decided. So each moment has one run, whatever restarts, clocks that are set
back, and backfills come together.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, tzinfo
from functools import partial
from itertools import islice
from typing import NamedTuple

from durable.clock import as_datetime, optional_datetime
from durable.cron import Cron, last_until, moments, next_after, parse_cron
from durable.errors import (
    DurableError,
    EngineClosed,
    InvalidArgument,
    NotAllowedHere,
    WorkflowConflict,
)
from durable.records import Schedule
from durable.runtime import execution
from durable.runtime.context import find_scope
from durable.runtime.file import File
from durable.runtime.host import Host, log
from durable.runtime.registry import ScheduleSpec, registry
from durable.runtime.runs import Run
from durable.runtime.waiting import Listener
from durable.store import schedules, workflows
from durable.store.database import Tx
from durable.store.schedules import KEY, Declared, State
from durable.zones import find_zone

# Moments of one backfill.
MOST_AT_ONCE = 10_000

# Runs that one schedule begins at once where it makes up for what was missed.
AT_ONCE = 100
TRY_AGAIN_SECONDS = 5.0

# While it waits for a moment, a laptop may sleep, which no wait of the system hears of. So it looks
# at the clock this often: a moment that comes soon after waking is not late.
LOOK_AGAIN = 1.0


def run_id(name: str, moment: float) -> str:
    """The id of the run of a schedule for a moment: ``name@2026-11-22T07:00:00Z``."""
    return f"{name}@{as_datetime(moment):%Y-%m-%dT%H:%M:%SZ}"


# ---------------------------------------------------------------------- what is due


class Due(NamedTuple):
    """The moments to be run now, and whether there are more behind them."""

    run: Sequence[int]
    skipped: int | None = None
    """The last of those that are not to be run."""
    more: bool = False


def due(cron: Cron, zone: tzinfo, missed: str, after: float, now: float, room: int) -> Due:
    """What to do about the moments after one and up to now; at most `room` are made up for."""
    first = next_after(cron, zone, after)
    if first is None or first > now:
        return Due(())
    second = next_after(cron, zone, first)
    if second is not None and second <= now:
        if missed == "all":
            found = list(islice(moments(cron, zone, after, now), room + 1))
            return Due(found[:room], more=len(found) > room)
        first = last_until(cron, zone, second - 1, now) or second
        second = next_after(cron, zone, first)
    if missed == "skip" and now - first > grace(first, second):
        return Due((), skipped=first)
    return Due((first,))


def grace(moment: int, following: int | None) -> float:
    """How late a moment may be and not be missed: a tenth of the time to the one after it."""
    return 60.0 if following is None else min(60.0, max(2.0, (following - moment) / 10))


# ---------------------------------------------------------------------- the thread


class Scheduler:
    """Begins the runs of the schedules that the program declares, if it `fires` them at all."""

    def __init__(self, host: Host, *, fires: bool) -> None:
        self._host = host
        self._fires = fires
        self._mutex = threading.Lock()
        self._running = False
        self._stopped = False
        self._known: dict[str, ScheduleSpec] = {}
        self._begun: dict[str, list[Run]] = {}

    def start(self) -> None:
        """Begin to fire, once there is a schedule."""
        with self._mutex:
            if self._fires and self._known and not self._running:
                self._running = True
                self._host.spawn("durable schedules", self._run, background=True)

    def stop(self) -> None:
        """Fire no more; what has begun goes on."""
        self._stopped = True

    def declared(self) -> None:
        """Something more may have been declared."""
        if registry.schedules() == self._known:
            return
        if self._running:
            self._host.waiting.notify([KEY])
        else:
            self._host.spawn_task("durable schedules", self._declare_and_start)

    def declare(self) -> None:
        """Tell the file what the program declares that it did not before."""
        specs = registry.schedules()
        new = [spec for name, spec in specs.items() if self._known.get(name) is not spec]
        if new:
            now = self._host.clock.now()
            self._host.database.write("declare schedules", partial(self._declare, new, now))
        self._known = specs

    def _declare(self, new: list[ScheduleSpec], now: float, tx: Tx) -> None:
        for spec in new:
            declared = Declared(
                name=spec.name,
                workflow=spec.workflow.name,
                cron=spec.cron.text,
                tz=spec.tz,
                missed=spec.missed,
                timeout=spec.workflow.timeout,
            )
            schedules.declare(tx, declared, session=self._host.session, now=now)

    def _declare_and_start(self) -> None:
        self.declare()
        self.start()

    def _run(self) -> None:
        host = self._host
        while not host.stopping:
            with host.waiting.listen(KEY, *self._ends_of_runs()) as listener:
                try:
                    next_at = self.turn(host.clock.now())
                except EngineClosed:
                    return
                except Exception as error:
                    next_at = self._fail("schedules", error)
                self._wait(listener, next_at)

    def _wait(self, listener: Listener, next_at: float | None) -> None:
        """Until the moment has come, or something has changed."""
        clock = self._host.clock
        while not self._host.stopping:
            look_at = next_at
            if clock.real and next_at is not None:
                look_at = min(next_at, clock.now() + LOOK_AGAIN)
            if listener.wait(look_at) or (next_at is not None and clock.now() >= next_at):
                return

    def _fail(self, what: str, error: Exception) -> float:
        """Say what went wrong; the moment at which to try again."""
        self._host.hooks.errors.append(error)
        expected = isinstance(error, DurableError)
        log.error("%s: %s; tried again soon", what, error, exc_info=None if expected else error)
        return self._host.clock.now() + TRY_AGAIN_SECONDS

    # ------------------------------------------------------------------ a turn

    def turn(self, now: float) -> float | None:
        """Fire what is due by now; the moment of the next turn, None where nothing will be due.

        What goes wrong with one schedule is logged and stops no other.
        """
        self.declare()
        states = self._host.database.read(schedules.everything)
        next_at: list[float] = []
        for state in states:
            spec = self._known.get(state.name)
            if spec is None or state.paused or self._stopped or self._host.stopping:
                continue
            try:
                moment = self._fire_due(spec, state, now)
            except EngineClosed:
                raise
            except Exception as error:
                moment = self._fail(f"schedule {spec.name!r}", error)
            if moment is not None:
                next_at.append(moment)
        return min(next_at, default=None)

    def _fire_due(self, spec: ScheduleSpec, state: State, now: float) -> float | None:
        """Fire what is due of one schedule; when to look at it again, None if something tells."""
        makes_up = spec.missed == "all"
        room = max(0, AT_ONCE - self._count_unfinished(spec.name)) if makes_up else 1
        found = due(spec.cron, spec.zone, spec.missed, state.passed_at, now, room)
        if found.skipped is not None:
            self._skip(spec, found.skipped)
        if found.run:
            self._fire(spec, found.run)
        if found.more:
            return now if found.run else None  # where there is no room, a run that ends makes some
        passed = max(state.passed_at, found.skipped or 0, *found.run, 0)
        return next_after(spec.cron, spec.zone, passed)

    def _skip(self, spec: ScheduleSpec, moment: int) -> None:
        skip = partial(schedules.pass_moment, name=spec.name, moment=moment, runs=False)
        self._host.database.write(f"skip {spec.name}", skip)
        log.info("schedule %r: skipped what was missed up to %s", spec.name, as_datetime(moment))

    def _fire(self, spec: ScheduleSpec, wanted: Sequence[int]) -> None:
        """Begin the runs of the moments, if nobody has paused it, or begun them, meanwhile."""
        host = self._host
        runs = [self._make_run(spec, moment) for moment in wanted]
        for run in runs:
            host.runs.add(run)
        try:
            begin = partial(self._begin, spec=spec, wanted=wanted, runs=runs)
            numbers = host.database.write(f"fire {spec.name}", begin)
            for run, number in zip(list(runs), numbers, strict=True):
                if number is not None:
                    run.seq = number
                    runs.remove(run)
                    execution.launch(host, run)
                    if spec.missed == "all":
                        self._begun.setdefault(spec.name, []).append(run)
        finally:
            for run in runs:
                host.runs.remove(run)

    def _make_run(self, spec: ScheduleSpec, moment: int) -> Run:
        workflow, workflow_id = spec.workflow, run_id(spec.name, moment)
        return Run(
            id=workflow_id,
            name=workflow.name,
            spec=workflow,
            input=_input(self._host, spec.zone, moment),
            seed=workflow_id,
            timeout=workflow.timeout,
        )

    def _begin(
        self, tx: Tx, *, spec: ScheduleSpec, wanted: Sequence[int], runs: Sequence[Run]
    ) -> list[int | None]:
        """The numbers of the new runs; None for those that exist, or are not to begin."""
        host = self._host
        numbers = []
        for moment, run in zip(wanted, runs, strict=True):
            number = None
            if schedules.pass_moment(tx, spec.name, moment, runs=True):
                new = _new(spec.name, run.id, run.name, run.input, run.timeout, host.version)
                number = workflows.insert(tx, new, holder=host.session, now=host.clock.now())
            numbers.append(number)
        return numbers

    # ------------------------------------------------------------------ making up

    def _count_unfinished(self, name: str) -> int:
        """How many of the runs that it began, and this process has in its hands, have not ended."""
        begun = [run for run in self._begun.get(name, ()) if not run.over]
        if begun:
            ended = self._host.database.read(
                partial(workflows.ended, seqs=[run.seq for run in begun])
            )
            begun = [run for run in begun if run.seq not in ended]
        self._begun[name] = begun
        return len(begun)

    def _ends_of_runs(self) -> Iterator[str]:
        for runs in self._begun.values():
            for run in runs:
                yield workflows.key(run.seq)


# ---------------------------------------------------------------------- what anybody may ask


def listing(file: File) -> list[Schedule]:
    """All schedules of the file, by name."""
    now = file.clock.now()
    return [_record(state, now) for state in file.database.read(schedules.everything)]


def pause(file: File, name: str) -> None:
    """Let the schedule begin no more runs."""
    _refuse_in_body("pause_schedule")
    file.database.write("pause schedule", partial(schedules.pause, name=name))


def resume(file: File, name: str) -> None:
    """Let a paused schedule go on from now."""
    _refuse_in_body("resume_schedule")
    now = file.clock.now()
    file.database.write("resume schedule", partial(schedules.resume, name=name, now=now))


def trigger(file: File, name: str, workflow_id: str | None) -> str:
    """The id of a run of the schedule's workflow for the present moment.

    An id that exists attaches to that run; WorkflowConflict if another workflow has it.
    """
    _refuse_in_body("trigger")
    state = _find_declared(file, name)
    now = file.clock.now()
    fresh_id = workflow_id or file.new_id()
    text = _input(file, find_zone(state.tz), now)

    def write(tx: Tx) -> None:
        _insert({fresh_id: text}, state, now, tx)
        existing = workflows.find(tx, fresh_id)
        if existing.name != state.workflow:
            raise WorkflowConflict(
                fresh_id, f"is a run of {existing.name!r}: use another id to trigger {name!r}"
            )
        tx.touch(workflows.start_key(fresh_id))

    file.database.write("trigger schedule", write)
    return fresh_id


def backfill(file: File, name: str, start: float, end: float) -> list[str]:
    """The ids of the runs of all moments from `start` on and before `end`; the missing ones begin.

    InvalidArgument for a span that has not passed, or has too many moments.
    """
    _refuse_in_body("backfill")
    state = _find_declared(file, name)
    now = file.clock.now()
    if not start <= end <= now:
        raise InvalidArgument("a backfill is of a span that has passed, and start comes before end")
    zone = find_zone(state.tz)
    found = moments(parse_cron(state.cron), zone, math.ceil(start) - 1, end)
    wanted = [moment for moment in islice(found, MOST_AT_ONCE + 1) if moment < end]
    if len(wanted) > MOST_AT_ONCE:
        raise InvalidArgument(
            f"schedule {name!r} has more than {MOST_AT_ONCE} moments in this span: backfill it in "
            "parts, and let each end before the next"
        )
    inputs = {run_id(name, moment): _input(file, zone, moment) for moment in wanted}
    if inputs:
        file.database.write("backfill schedule", partial(_insert, inputs, state, now))
    return list(inputs)


def _refuse_in_body(name: str) -> None:
    scope = find_scope(name)
    if scope is not None and scope.step is None:
        raise NotAllowedHere(
            f"{name}() acts on a schedule at once, and workflow {scope.run.id!r} would do it again "
            "on every replay: call it in a step"
        )


def _find_declared(file: File, name: str) -> State:
    state = file.database.read(partial(schedules.find, name=name))
    if not state.declared:
        raise InvalidArgument(
            f"schedule {name!r} is in this file, but the program that opened it last does not "
            "declare it: its code is gone, or not imported"
        )
    return state


def _insert(inputs: dict[str, str], state: State, now: float, tx: Tx) -> None:
    """The runs that do not exist yet, for the engine to take up."""
    for workflow_id, text in inputs.items():
        new = _new(state.name, workflow_id, state.workflow, text, state.timeout, None)
        if workflows.insert(tx, new, holder=None, now=now) is not None:
            tx.touch(workflows.start_key(workflow_id))


def _new(
    schedule: str,
    workflow_id: str,
    name: str,
    text: str,
    timeout: float | None,
    version: str | None,
) -> workflows.NewWorkflow:
    return workflows.NewWorkflow(
        id=workflow_id,
        name=name,
        input=text,
        timeout=timeout,
        version=version,
        tags=(f"schedule:{schedule}",),
    )


def _input(file: File, zone: tzinfo, moment: float) -> str:
    """The recorded arguments: the moment, as the walls of the zone show it."""
    return file.codec.encode([[as_datetime(moment).astimezone(zone)], {}])


def _record(state: State, now: float) -> Schedule:
    return Schedule(
        name=state.name,
        workflow=state.workflow,
        cron=state.cron,
        tz=state.tz,
        missed=state.missed,
        paused=state.paused,
        declared=state.declared,
        last_at=optional_datetime(state.last_at),
        next_at=_next_at(state, now) if state.declared and not state.paused else None,
    )


def _next_at(state: State, now: float) -> datetime | None:
    try:
        cron, zone = parse_cron(state.cron), find_zone(state.tz)
    except InvalidArgument:
        return None  # a zone that only the engine's system has
    return optional_datetime(next_after(cron, zone, max(now, state.passed_at)))
