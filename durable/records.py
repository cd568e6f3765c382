"""What durable tells about workflows and steps: frozen records, moments as ``datetime`` in UTC."""

# No annotations as texts here: a named tuple compiles each of them, at every import of durable.

from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Status(StrEnum):
    """Where a workflow stands."""

    DELAYED = "DELAYED"
    """In a queue, not to start before its moment."""
    ENQUEUED = "ENQUEUED"
    """In a queue, waiting for its turn."""
    PENDING = "PENDING"
    """Started and not finished: running, waiting, or to be taken up by the next engine."""
    SUCCESS = "SUCCESS"
    """Returned its result."""
    ERROR = "ERROR"
    """Ended in an exception."""
    CANCELLED = "CANCELLED"
    """Cancelled, or its deadline passed; `resume` makes it go on."""
    DEAD = "DEAD"
    """Given up, as process after process died while it ran; `resume` makes it go on."""

    @property
    def finished(self) -> bool:
        """Whether the workflow has ended."""
        return self in _FINISHED


_FINISHED = frozenset({Status.SUCCESS, Status.ERROR, Status.CANCELLED, Status.DEAD})


class Workflow(NamedTuple):
    """One run of a workflow, as the file has it.

    What this program cannot rebuild of `args`, `kwargs` and `result` is `Opaque`: its text.
    """

    id: str
    name: str
    status: Status
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    """What it returned; None unless `status` is SUCCESS."""
    error: BaseException | None
    """What it raised; None unless `status` is ERROR."""
    reason: str | None
    """Why it was stopped, or why it does not go on although it is unfinished."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    wake_at: datetime | None
    """Until when it sleeps or waits at the longest, where that is known."""
    parent_id: str | None
    recoveries: int
    """How many processes in a row died while it ran, with no checkpoint in between."""
    version: str | None
    """The `version` of the engine that started it."""
    tags: tuple[str, ...]
    queue: str | None
    """The queue that it is of, with the options that it was enqueued with."""
    priority: int | None
    dedup: str | None
    partition: str | None
    delay_until: datetime | None
    """Not to be started before."""


class Step(NamedTuple):
    """One recorded step of a workflow."""

    number: str
    """Its place: ``"3"``, or ``"4.1"`` for the first in the lane that step 4 opened."""
    name: str
    """``module:qualname`` of the function, or ``durable.recv:topic`` and the like."""
    outcome: str | None
    """``value``, ``error``, ``timeout``, or None while undecided (waiting, or to be retried).

    ``cancelled`` where an async workflow gave it up, as ``asyncio.timeout`` does.
    """
    value: Any
    error: BaseException | None
    attempt: int
    started_at: datetime
    finished_at: datetime | None
    until_at: datetime | None
    """While undecided: the deadline of the wait, or the moment of the next attempt."""


class Schedule(NamedTuple):
    """A schedule, as the file has it."""

    name: str
    workflow: str
    """The name of the workflow that it runs."""
    cron: str
    tz: str
    missed: str
    """``skip``, ``latest`` or ``all``: which of the moments run that passed meanwhile."""
    paused: bool
    declared: bool
    """Whether the program that opened the file last declares it; it does not run if its code is
    gone."""
    last_at: datetime | None
    """The last moment that it began a run for."""
    next_at: datetime | None
    """The next moment; None where it is paused or its code is gone."""


class Cancellation(NamedTuple):
    """What `cancel` did: true if it cancelled, false if it came too late.

    `status` is what the workflow has for good: CANCELLED, or how it had already ended.
    """

    workflow_id: str
    cancelled: bool
    status: Status

    def __bool__(self) -> bool:
        return self.cancelled


class Current(NamedTuple):
    """Where the calling code is; see `durable.current`."""

    workflow_id: str
    workflow_name: str
    step: str | None
    """The step being run, or None in the body of the workflow."""
    step_name: str | None
    attempt: int | None
    replaying: bool
    """True while recorded steps lie ahead."""


class StreamValue(NamedTuple):
    """A value of a stream that is read live: which step wrote it, at which of its tries."""

    value: Any
    step: str
    attempt: int


class Waited(NamedTuple, Generic[T]):
    """What `durable.wait` returns: those that ended, the first one first, and the others."""

    done: list[T]
    pending: list[T]
