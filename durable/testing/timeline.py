"""What happened, for people: the journal of an engine's writes, and the steps of its workflows."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from durable.client import Client
from durable.clock import Clock, as_datetime
from durable.records import Step, Workflow


@dataclass(frozen=True)
class Entry:
    """One write of an engine: its moment, the thread that asked for it, and its label."""

    at: float
    thread: str
    label: str

    def __str__(self) -> str:
        return f"{as_datetime(self.at):%Y-%m-%d %H:%M:%S.%f}  {self.thread:<28}  {self.label}"


class Journal:
    """Observes the writes of one engine, and lets a virtual clock switch threads around each."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._switch = getattr(clock, "switch", lambda: None)
        self.entries: list[Entry] = []

    def before(self, label: str) -> None:
        """Another thread may go first."""
        self._switch()

    def after(self, label: str) -> None:
        """Write it down; another thread may go on before the caller knows."""
        thread = threading.current_thread().name
        self.entries.append(Entry(self._clock.now(), thread, label))
        self._switch()

    def __str__(self) -> str:
        return "\n".join(f"  {entry}" for entry in self.entries)


def timeline(client: Client) -> str:
    """The workflows of a file with their steps, as a text of a line each."""
    lines: list[str] = []
    for workflow in client.workflows():
        lines.append(_workflow_line(workflow))
        lines.extend(_step_line(step) for step in client.handle(workflow.id).steps())
    return "\n".join(lines)


def _workflow_line(workflow: Workflow) -> str:
    outcome = workflow.result if workflow.error is None else repr(workflow.error)
    shown = f" -> {outcome!r}" if workflow.status.finished else ""
    reason = f" ({workflow.reason})" if workflow.reason else ""
    return f"  {workflow.id} {workflow.name} {workflow.status}{shown}{reason}"


def _step_line(step: Step) -> str:
    if step.outcome is None:
        until = f" until {step.until_at:%H:%M:%S}" if step.until_at else ""
        shown = f"undecided{until}"
    else:
        shown = repr(step.value) if step.error is None else repr(step.error)
    tries = f", try {step.attempt}" if step.attempt > 1 else ""
    return f"    {step.started_at:%H:%M:%S.%f}  {step.number:>4} {step.name} -> {shown}{tries}"
