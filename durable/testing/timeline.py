"""What happened, for people: the journal of an engine's writes, and the steps of its workflows."""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from durable.client import Client
from durable.clock import Clock
from durable.errors import DurableError
from durable.records import Status, Step, Workflow
from durable.testing.clock import show_moment

LONGEST_VALUE = 200


@dataclass(frozen=True)
class Entry:
    """One write of an engine: its moment, the thread that asked for it, and its label."""

    at: float
    thread: str
    label: str

    def __str__(self) -> str:
        return f"{show_moment(self.at)}  {self.thread:<28}  {self.label}"


class Journal:
    """Observes the writes of one engine, and lets a virtual clock switch threads around each."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.switch = getattr(clock, "switch", lambda: None)
        self.entries: list[Entry] = []

    def before(self, label: str) -> None:
        """Another thread may go first."""
        self.switch()

    def after(self, label: str) -> None:
        """Write it down; another thread may go on before the caller knows."""
        self.note(label)
        self.switch()

    def note(self, label: str) -> None:
        """Write it down."""
        thread = threading.current_thread().name
        self.entries.append(Entry(self._clock.now(), thread, label))

    def __str__(self) -> str:
        return "\n".join(f"  {entry}" for entry in self.entries)


def timeline(client: Client, *, status: Status | Iterable[Status] | None = None) -> str:
    """The workflows of a file, or those of a status, with their steps: a text of a line each."""
    lines: list[str] = []
    for workflow in client.workflows(status=status):
        lines.append(_workflow_line(workflow))
        lines.extend(_step_line(step) for step in client.handle(workflow.id).steps())
    return "\n".join(lines)


def story(client: Client) -> str:
    """The timeline, where a test has failed: why there is none, if the file cannot be read."""
    try:
        return timeline(client)
    except DurableError as error:
        return f"  (cannot be told: {error})"


def _workflow_line(workflow: Workflow) -> str:
    ended = workflow.status in (Status.SUCCESS, Status.ERROR)
    shown = f" -> {_show(workflow.error or workflow.result)}" if ended else ""
    reason = f" ({workflow.reason})" if workflow.reason else ""
    return f"  {workflow.id} {workflow.name} {workflow.status}{shown}{reason}"


def _step_line(step: Step) -> str:
    if step.outcome is None:
        until = f" until {_at(step.until_at)}" if step.until_at else ""
        shown = f"undecided{until}" + (f", after {_show(step.error)}" if step.error else "")
    elif step.outcome == "timeout":
        shown = "timeout"
    else:
        shown = _show(step.value if step.error is None else step.error)
    tries = f", try {step.attempt}" if step.attempt > 1 else ""
    return f"    {_at(step.started_at)}  {step.number:>4} {step.name} -> {shown}{tries}"


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"


def _show(value: object) -> str:
    """A value as people see it: not too long, whatever its ``__repr__`` does."""
    try:
        text = repr(value)
    except Exception:  # it is somebody else's code, and a test is failing already
        text = reprlib.repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
