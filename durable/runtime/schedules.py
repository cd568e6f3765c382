"""Schedules: what anybody may ask of them, and the runs that their moments have.

The id of a run is made of the schedule's name and the moment. So each moment has one run, whatever
restarts, clocks that are set back, and backfills come together. The thread that begins them as the
moments come is in `scheduler`.
"""

from __future__ import annotations

import math
from datetime import datetime, tzinfo
from functools import partial
from itertools import islice

from durable.clock import as_datetime, optional_datetime
from durable.cron import moments, next_after, parse_cron
from durable.errors import InvalidArgument, NotAllowedHere, WorkflowConflict
from durable.records import Schedule
from durable.runtime.context import StepCall, find_scope
from durable.runtime.file import File
from durable.store import schedules, workflows
from durable.store.schedules import State
from durable.store.tx import Tx
from durable.zones import find_zone

# Moments of one backfill.
MOST_AT_ONCE = 10_000


# ---------------------------------------------------------------------- runs


def run_id(name: str, moment: float) -> str:
    """The id of the run of a schedule for a moment: ``name@2026-11-22T07:00:00Z``."""
    return f"{name}@{as_datetime(moment):%Y-%m-%dT%H:%M:%SZ}"


def run_input(file: File, zone: tzinfo, moment: float) -> str:
    """The recorded arguments: the moment, as the walls of the zone show it."""
    return file.codec.encode([[as_datetime(moment).astimezone(zone)], {}])


def new_run(
    schedule: str,
    workflow_id: str,
    *,
    name: str,
    text: str,
    timeout: float | None,
    version: str | None = None,
) -> workflows.NewWorkflow:
    """The row of a run of the schedule, whose arguments are recorded as `text`."""
    return workflows.NewWorkflow(
        id=workflow_id,
        name=name,
        input=text,
        timeout=timeout,
        version=version,
        tags=(f"schedule:{schedule}",),
    )


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
    text = run_input(file, find_zone(state.tz), now)

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
    inputs = {run_id(name, moment): run_input(file, zone, moment) for moment in wanted}
    if inputs:
        file.database.write("backfill schedule", partial(_insert, inputs, state, now))
    return list(inputs)


def _refuse_in_body(name: str) -> None:
    scope = find_scope(name)
    if scope is not None and not isinstance(scope, StepCall):
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
        new = new_run(
            state.name, workflow_id, name=state.workflow, text=text, timeout=state.timeout
        )
        if workflows.insert(tx, new, holder=None, now=now) is not None:
            tx.touch(workflows.start_key(workflow_id))


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
