"""Every error of durable, in one tree.

    DurableError
    ├── InvalidArgument         (also ValueError)  an id, span, moment or function of no use
    │   └── InvalidCron         a cron expression that cannot be understood
    ├── DuplicateName           two different functions declared under one name
    ├── SerializationError      (also TypeError)  a value that would not come back as it was
    ├── RemoteError             stands for a recorded exception whose class is gone
    ├── WaitTimeout             (also TimeoutError)  nothing came within the time given
    ├── EventNotSet             the workflow ended without setting the event
    ├── WorkflowNotFound        (also LookupError)  no workflow has this id
    ├── ScheduleNotFound        (also LookupError)  no schedule has this name
    ├── WorkflowCancelled       the workflow was cancelled, or its deadline passed
    ├── WorkflowConflict        another workflow has the id, or its state forbids this
    ├── WorkflowDead            the workflow brought its process down too often
    ├── Deduplicated            a run waits or runs in the queue under the same dedup
    ├── QueueNotFound           (also LookupError)  no queue has this name
    ├── NonDeterminism          the code asks for another step than the recorded one
    ├── NotInWorkflow           called outside a workflow
    ├── NotAllowedHere          called in a step, or on a thread that is not the workflow's
    ├── NoEngine                there is no open engine
    ├── EngineClosed            the engine is closed, or belongs to the parent process
    ├── AlreadyRunning          another engine owns the file
    └── StorageError            the file cannot be used
        ├── NotADurableFile     not a file that durable made
        ├── NewerSchema         made by a newer durable
        ├── CorruptFile         damaged
        ├── ReadOnlyFile        may not be written
        └── StorageFull         no space left

Each error keeps its facts as attributes and writes its sentence in ``__str__``.
"""

from __future__ import annotations


class DurableError(Exception):
    """The root of all errors of durable."""


class InvalidArgument(DurableError, ValueError):
    """An argument cannot be used: an empty id, a negative span, a moment without a time zone.

    Raised before anything is written.
    """


class InvalidCron(InvalidArgument):
    """A cron expression cannot be understood; raised where the schedule is declared.

    `field` is the one that is wrong (None if it is all of them), and `place` where the faulty part
    of it begins and ends in `expression`. `allowed` says what may stand there.
    """

    def __init__(
        self,
        expression: str,
        field: str | None,
        reason: str,
        place: tuple[int, int] | None,
        allowed: str,
    ) -> None:
        super().__init__(expression, field, reason, place, allowed)
        self.expression, self.field, self.reason = expression, field, reason
        self.place, self.allowed = place, allowed

    def __str__(self) -> str:
        field = "" if self.field is None else f"in the {self.field}, "
        lines = [f"the cron expression {self.expression!r} cannot be used: {field}{self.reason}"]
        if self.place is not None:
            start, end = self.place
            lines += [f"    {self.expression}", f"    {' ' * start}{'^' * (end - start)}"]
        return "\n".join([*lines, self.allowed] if self.allowed else lines)


class DuplicateName(DurableError):
    """Two different functions were declared under one name.

    Declaring the same function again (a reload, a notebook cell run twice) is not an error.
    """

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(name, first, second)
        self.name, self.first, self.second = name, first, second

    def __str__(self) -> str:
        return (
            f"the name {self.name!r} is taken by {self.first}, so {self.second} cannot have it: "
            "give one of them another with name=…"
        )


class SerializationError(DurableError, TypeError):
    """A value would not come back from the file as it was; `path` is its place in the value.

    ``$`` is the value itself, ``$.items[3].price`` an attribute or key of a part of it. `what` says
    whose value it is ("the result of step 'shop:reserve'"); the codec alone does not know it.
    """

    def __init__(self, path: str, reason: str, what: str = "the value") -> None:
        super().__init__(path, reason, what)
        self.path, self.reason, self.what = path, reason, what

    def __str__(self) -> str:
        return f"{self.what} cannot be serialized: {self.path} {self.reason}"


class RemoteError(DurableError):
    """Stands for a recorded exception whose class this program does not have.

    `type_name` is the class as ``module:qualname``, `message` its text, `traceback` where it was
    raised. Import the module that defines the class, and the exception comes back as itself.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name, self.message, self.traceback = type_name, message, traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class WaitTimeout(DurableError, TimeoutError):
    """Nothing came within the time given: a message, an event, a result, the end of a step.

    Not raised where a `default` was given. Raised in a workflow, it is recorded, and raised again
    at the same place on every replay.
    """

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what, seconds)
        self.what, self.seconds = what, seconds

    def __str__(self) -> str:
        return f"{self.what} did not come within {self.seconds:g} s"


class EventNotSet(DurableError):
    """The workflow ended without setting the event that was waited for.

    If it ended in an error, that is the `__cause__`. Not raised where a `default` was given, nor
    while the workflow may still set the event.
    """

    def __init__(self, workflow_id: str, key: str, status: str) -> None:
        super().__init__(workflow_id, key, status)
        self.workflow_id, self.key, self.status = workflow_id, key, status

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r} ended as {self.status} "
            f"without setting the event {self.key!r}"
        )


class WorkflowNotFound(DurableError, LookupError):
    """No workflow in this file has the id."""

    def __init__(self, workflow_id: str) -> None:
        super().__init__(workflow_id)
        self.workflow_id = workflow_id

    def __str__(self) -> str:
        return f"there is no workflow {self.workflow_id!r} in this file"


class ScheduleNotFound(DurableError, LookupError):
    """No schedule in this file has the name; `known` are those that it has."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        there = f"it has {', '.join(map(repr, self.known))}" if self.known else "it has none"
        return f"there is no schedule {self.name!r} in this file: {there}"


class WorkflowCancelled(DurableError):
    """The workflow whose result was asked for was cancelled, or its deadline passed.

    Inside the cancelled workflow itself this is never raised: it is stopped by a signal that
    ``except Exception`` does not catch.
    """

    def __init__(self, workflow_id: str, reason: str = "cancelled") -> None:
        super().__init__(workflow_id, reason)
        self.workflow_id, self.reason = workflow_id, reason

    def __str__(self) -> str:
        return f"workflow {self.workflow_id!r} was stopped: {self.reason}"


class WorkflowConflict(DurableError):
    """The workflow is not what was asked for: another one has the id, or its state forbids this."""

    def __init__(self, workflow_id: str, reason: str) -> None:
        super().__init__(workflow_id, reason)
        self.workflow_id, self.reason = workflow_id, reason

    def __str__(self) -> str:
        return f"workflow {self.workflow_id!r} {self.reason}"


class WorkflowDead(DurableError):
    """The workflow was given up: process after process died while it ran (`max_recoveries`)."""

    def __init__(self, workflow_id: str, recoveries: int) -> None:
        super().__init__(workflow_id, recoveries)
        self.workflow_id, self.recoveries = workflow_id, recoveries

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r} was given up: it was recovered {self.recoveries} times "
            "and each time the process died before its next checkpoint; mend the cause, "
            f"then resume({self.workflow_id!r})"
        )


class Deduplicated(DurableError):
    """A run that waits or runs in the queue has the same `dedup`; `workflow_id` is its id.

    Once that run has ended, the same `dedup` is free again. In the body of a workflow this is
    recorded, and raised again at the same place on every replay.
    """

    def __init__(self, queue: str, dedup: str, workflow_id: str) -> None:
        super().__init__(queue, dedup, workflow_id)
        self.queue, self.dedup, self.workflow_id = queue, dedup, workflow_id

    def __str__(self) -> str:
        return (
            f"queue {self.queue!r} has {self.dedup!r} already: workflow {self.workflow_id!r} "
            "waits or runs under it"
        )


class QueueNotFound(DurableError, LookupError):
    """No program has declared a queue of this name on the file; `known` are those that there are.

    A queue is known once an engine has opened the file in a program that declares it.
    """

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        shown = ", ".join(map(repr, self.known)) or "none"
        return (
            f"there is no queue {self.name!r} in this file (there is {shown}): declare it with "
            f"durable.Queue({self.name!r}) in the program whose engine runs the file"
        )


class NonDeterminism(DurableError):
    """The code asks for another step than the one that the run recorded at this place.

    `step` is the place (``"3"``, or ``"4.1"`` in a lane), `recorded` and `asked` are names.
    """

    def __init__(
        self, workflow_id: str, workflow_name: str, step: str, recorded: str, asked: str
    ) -> None:
        super().__init__(workflow_id, workflow_name, step, recorded, asked)
        self.workflow_id, self.workflow_name = workflow_id, workflow_name
        self.step, self.recorded, self.asked = step, recorded, asked

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id!r} ({self.workflow_name}): step {self.step} was recorded "
            f"as {self.recorded!r}, and the code now asks for {self.asked!r}; guard the change "
            f"with durable.patched(…) and resume it, or fork it at a step before {self.step}"
        )


class NotInWorkflow(DurableError):
    """Called outside a workflow: `recv`, `sleep` and the like need the run that records them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"{self.name}() records what it does in the workflow that calls it, and there is none "
            "here: call it in a function under @workflow, on the thread that runs it"
        )


class NotAllowedHere(DurableError):
    """Called where it cannot be recorded: inside a step, or on a thread that the user made."""


class NoEngine(DurableError):
    """There is no open engine in this process."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} needs an open engine: call it inside `with durable.Engine(path):`"


class EngineClosed(DurableError):
    """The engine is closed, or was opened by another process than this one (after a fork).

    What was running is unfinished, and goes on when an engine opens the file again.
    """


class AlreadyRunning(DurableError):
    """Another engine owns the file; `pid` is its process (None where it could not be read)."""

    def __init__(self, path: str, pid: int | None) -> None:
        super().__init__(path, pid)
        self.path, self.pid = path, pid

    def __str__(self) -> str:
        owner = "another engine" if self.pid is None else f"the engine of process {self.pid}"
        return (
            f"{self.path} is owned by {owner}: one engine at a time runs the workflows of a file; "
            "to look at them or to act on them from here, use durable.Client(path)"
        )


class StorageError(DurableError):
    """The file cannot be used; `path` is the file, `reason` what the system said.

    What was recorded before stays recorded.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class NotADurableFile(StorageError):
    """The path is not a file that durable made: a folder, or a file of another program."""


class NewerSchema(StorageError):
    """The file was made by a newer version of durable, and this one does not know its tables."""


class CorruptFile(StorageError):
    """The file is damaged."""


class ReadOnlyFile(StorageError):
    """The file, or the folder that it is in, may not be written by this process."""


class StorageFull(StorageError):
    """There is no space left for the file."""
