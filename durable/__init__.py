"""Durable workflows in one package and one SQLite file: kill the process anywhere, and it goes on.

Decorate functions as workflows and steps, and open an `Engine`. See the README for a tutorial.
"""

# What imports most of the standard library comes first, and what stands highest comes last: where a
# chain of imports is longer than the first piece of the interpreter's stack, each call at its edge
# asks the system for the next piece. That took eight of 90 ms.
from durable.codec import JsonCodec, Opaque, PickleCodec

# isort: split
from durable.client import Client
from durable.debounce import Debouncer
from durable.declare import map, register, run_step, step, transaction, workflow  # noqa: A004
from durable.engine import Engine
from durable.errors import (
    AlreadyRunning,
    CorruptFile,
    Deduplicated,
    DuplicateName,
    DurableError,
    EngineClosed,
    EventNotSet,
    InvalidArgument,
    InvalidCron,
    NewerSchema,
    NoEngine,
    NonDeterminism,
    NotADurableFile,
    NotAllowedHere,
    NotInWorkflow,
    QueueNotFound,
    ReadOnlyFile,
    RemoteError,
    ScheduleNotFound,
    SerializationError,
    StorageError,
    StorageFull,
    WaitTimeout,
    WorkflowCancelled,
    WorkflowConflict,
    WorkflowDead,
    WorkflowNotFound,
)
from durable.handle import Handle
from durable.ops import (
    close_stream,
    current,
    gather,
    get_event,
    logger,
    now,
    patched,
    random,
    read_stream,
    recv,
    send,
    set_event,
    sleep,
    sleep_until,
    step_key,
    uuid4,
    wait,
    write_stream,
)
from durable.queues import Queue, Rate
from durable.records import (
    Cancellation,
    Current,
    Schedule,
    Status,
    Step,
    StreamValue,
    Waited,
    Workflow,
)
from durable.retry import Retry
from durable.runtime.parallel import Future
from durable.scheduling import schedule

# isort: split
from durable import aio as aio

__all__ = [
    "AlreadyRunning",
    "Cancellation",
    "Client",
    "CorruptFile",
    "Current",
    "Debouncer",
    "Deduplicated",
    "DuplicateName",
    "DurableError",
    "Engine",
    "EngineClosed",
    "EventNotSet",
    "Future",
    "Handle",
    "InvalidArgument",
    "InvalidCron",
    "JsonCodec",
    "NewerSchema",
    "NoEngine",
    "NonDeterminism",
    "NotADurableFile",
    "NotAllowedHere",
    "NotInWorkflow",
    "Opaque",
    "PickleCodec",
    "Queue",
    "QueueNotFound",
    "Rate",
    "ReadOnlyFile",
    "RemoteError",
    "Retry",
    "Schedule",
    "ScheduleNotFound",
    "SerializationError",
    "Status",
    "Step",
    "StorageError",
    "StorageFull",
    "StreamValue",
    "WaitTimeout",
    "Waited",
    "Workflow",
    "WorkflowCancelled",
    "WorkflowConflict",
    "WorkflowDead",
    "WorkflowNotFound",
    "close_stream",
    "current",
    "gather",
    "get_event",
    "logger",
    "map",
    "now",
    "patched",
    "random",
    "read_stream",
    "recv",
    "register",
    "run_step",
    "schedule",
    "send",
    "set_event",
    "sleep",
    "sleep_until",
    "step",
    "step_key",
    "transaction",
    "uuid4",
    "wait",
    "workflow",
    "write_stream",
]
