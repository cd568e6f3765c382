"""Declaring a schedule: a workflow that runs at the moments of a cron expression."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Concatenate, Literal, TypeVar

from durable.checks import check_id
from durable.cron import Cron, parse_cron
from durable.errors import InvalidArgument
from durable.functions import DeclaredWorkflow
from durable.runtime.registry import ScheduleSpec, WorkflowSpec, registry
from durable.zones import find_zone

W = TypeVar("W", bound=DeclaredWorkflow[Concatenate[datetime, ...], Any])

Missed = Literal["skip", "latest", "all"]


def schedule(
    cron: str, *, tz: str = "UTC", missed: Missed = "latest", name: str | None = None
) -> Callable[[W], W]:
    """Run a workflow at each moment of a cron expression, once, in every engine that is open.

    `cron` has five fields (minute, hour, day of the month, month, day of the week), or six with the
    seconds first, or is a word such as ``@daily``. `tz` is ``"UTC"``, an offset (``"+02:00"``) or
    the name of a time zone. The workflow gets the moment, a ``datetime`` in that zone.

    `missed` says what becomes of the moments that passed while no engine was open, or while the
    machine slept: with ``"latest"`` the last of them runs, with ``"all"`` each of them, in order
    and at most a hundred at a time, with ``"skip"`` none. A moment is missed once the next one has
    come, or when it is late by a tenth of the time to the next (at least 2 s, at most 60 s).

    `name` is how the file knows the schedule: else it is that of the workflow, and for a further
    schedule of the same workflow its expression is added. A schedule that is new, or has another
    expression or zone than before, begins now. InvalidCron, which points at the field, and
    InvalidArgument for a zone that cannot be loaded.

        @schedule("30 7 * * mon-fri", tz="Europe/Berlin")
        @workflow
        def report(moment: datetime) -> None: ...
    """
    expression, zone = parse_cron(cron), find_zone(tz)
    if missed not in ("skip", "latest", "all"):
        raise InvalidArgument(f"missed is 'skip', 'latest' or 'all', not {missed!r}")
    given = None if name is None else check_id(name, "the name of a schedule")

    def declare(wf: W) -> W:
        workflow = _check_workflow(wf)
        own = given or _name_of(workflow, expression, tz)
        registry.add_schedule(ScheduleSpec(own, workflow, expression, tz, zone, missed))
        return wf

    return declare


def _name_of(workflow: WorkflowSpec, cron: Cron, tz: str) -> str:
    """The workflow's name; with the expression if a schedule of the workflow has it already."""
    known = registry.schedules().get(workflow.name)
    if known is None or known.workflow is not workflow or (known.cron, known.tz) == (cron, tz):
        return workflow.name
    return f"{workflow.name} {cron.text}" + ("" if tz == "UTC" else f" {tz}")


def _check_workflow(wf: Any) -> WorkflowSpec:
    """What is declared of it; InvalidArgument unless it is a function that takes one moment."""
    if not isinstance(wf, DeclaredWorkflow):
        raise InvalidArgument(
            f"@schedule goes on a workflow, not on {wf!r}: put it above @workflow"
        )
    spec = wf._spec
    owner = spec.fn.__qualname__.rpartition(".")[0]
    if spec.is_bound or (spec.kind == "function" and owner and not owner.endswith("<locals>")):
        raise InvalidArgument(
            f"@schedule goes on a function, and {spec.name} is a method: nobody would know of "
            "which object; make it a static method, or a function that finds the object"
        )
    try:
        spec.signature.bind(datetime.min)
    except TypeError as error:
        raise InvalidArgument(
            f"a workflow with a schedule takes one argument, the moment: {spec.name}(): {error}"
        ) from None
    return spec
