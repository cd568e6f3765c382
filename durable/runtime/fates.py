"""What becomes of workflows, where this process knows it without a look at the file."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakValueDictionary

from durable.store.steps import Outcome

# A longer text of an outcome is left to the file.
LONGEST = 10_000


class GoingOn(Protocol):
    """A run, to those who wait for its end."""

    stopping: bool

    @property
    def stop_key(self) -> str:
        """What is notified when it stops, or goes on no more."""

    @property
    def end_key(self) -> str:
        """What is notified when its end is committed."""


class Fate:
    """What becomes of one workflow; kept as long as a handle of it, or its run, is."""

    __slots__ = ("__weakref__", "outcome", "run", "workflow_id")

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self.run: GoingOn | None = None
        """The run that goes on here, on a thread or in a task that nobody interrupts."""
        self.outcome: Outcome | None = None
        """How it ended, once that is committed, where nothing can change it any more."""

    def decide(self, outcome: Outcome) -> None:
        """It has ended like that for good."""
        if outcome.text is None or len(outcome.text) <= LONGEST:
            self.outcome = outcome


class Fates:
    """The fates that somebody in this process waits for, or may."""

    def __init__(self) -> None:
        self._fates: WeakValueDictionary[str, Fate] = WeakValueDictionary()

    def expect(self, workflow_id: str) -> Fate:
        """The fate of a workflow, which the caller keeps."""
        fate = self._fates.get(workflow_id)
        if fate is None:
            fate = self._fates[workflow_id] = Fate(workflow_id)
        return fate

    def of(self, workflow_id: str) -> Fate | None:
        """The fate of the workflow, if anybody keeps it."""
        return self._fates.get(workflow_id)
