"""What any process may do to a file, while an engine in another process runs its workflows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self

from durable.checks import check_count, check_id, check_optional_text, check_text, check_texts
from durable.clock import Clock, SystemClock, moment
from durable.codec import Codec, JsonCodec
from durable.errors import EngineClosed, InvalidArgument
from durable.handle import Handle
from durable.queues import Queue, Rate, check_queue_name, name_of
from durable.queues import change as change_queue
from durable.records import Cancellation, Schedule, Status, Workflow
from durable.runtime import enqueuing, schedules
from durable.runtime.context import Scope, find_scope
from durable.runtime.file import File
from durable.runtime.flows import actor, drive
from durable.runtime.messages import MISSING
from durable.runtime.starting import make_options
from durable.runtime.waiting import PolledWaiting
from durable.store import queries
from durable.store.database import Database


class Client:
    """Looks at a file and acts on it; it runs no workflow.

    An engine in another process sees what the client does within about 30 ms. The file must exist:
    NotADurableFile otherwise. With another `codec` than the engine's, values cannot be read.

        with durable.Client("shop.db") as client:
            client.send("order-17", "paid", "payment_status")
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        codec: Codec | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._configure(path, codec, clock)
        self._open()

    def _configure(
        self, path: str | os.PathLike[str], codec: Codec | None, clock: Clock | None
    ) -> None:
        self._path = check_path(path)
        self._codec = _check_codec(codec)
        self._clock = clock or SystemClock()
        self._file: File | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        database = Database(
            self._path,
            clock=self._clock,
            synchronous="full",
            create=False,
            on_commit=lambda keys: waiting.notify(keys),
            signals=True,
        )
        waiting = PolledWaiting(self._clock, database.watch)
        database.open()
        self._file = File(database, self._codec, self._clock, waiting)

    def close(self) -> None:
        """Close the file; what the client did stays done. May be called twice."""
        if self._file is not None:
            self._file.database.close()
            self._file.waiting.notify_all()

    def _open_file(self) -> File:
        if self._file is None:
            raise EngineClosed(f"the engine on {self._path} is not open: use `with Engine(…):`")
        return self._file

    # ------------------------------------------------------------------ one workflow

    def handle(self, workflow_id: str) -> Handle[Any]:
        """The handle of a workflow; whether there is one shows when the handle is used."""
        check_id(workflow_id)
        return Handle(self._open_file(), workflow_id)

    def send(
        self,
        workflow_id: str,
        message: object,
        topic: str | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> None:
        """Send a message to a workflow; see `durable.send`."""
        self.handle(workflow_id).send(message, topic, idempotency_key=idempotency_key)

    def event(
        self,
        workflow_id: str,
        key: str,
        *,
        timeout: float | timedelta | None = None,
        default: Any = MISSING,
    ) -> Any:
        """The value of a workflow's event, once it is set; see `durable.get_event`."""
        return self.handle(workflow_id).event(key, timeout=timeout, default=default)

    def events(self, workflow_id: str) -> dict[str, Any]:
        """All events that a workflow has set, with their last values."""
        return self.handle(workflow_id).events()

    def read_stream(
        self,
        workflow_id: str,
        key: str,
        *,
        start: int = 0,
        timeout: float | timedelta | None = None,
    ) -> Iterator[Any]:
        """The values of a workflow's stream, as they come; see `durable.read_stream`."""
        return self.handle(workflow_id).stream(key, start=start, timeout=timeout)

    def cancel(self, workflow_id: str, *, children: bool = True) -> Cancellation:
        """Stop a workflow; see `Handle.cancel`."""
        return self.handle(workflow_id).cancel(children=children)

    def resume(self, workflow_id: str) -> Handle[Any]:
        """Have a stopped workflow go on; see `Handle.resume`."""
        handle = self.handle(workflow_id)
        handle.resume()
        return handle

    def fork(
        self,
        workflow_id: str,
        *,
        step: int | None = None,
        id: str | None = None,  # noqa: A002
    ) -> Handle[Any]:
        """Start a copy of a workflow from one of its steps; see `Handle.fork`."""
        return self.handle(workflow_id).fork(step=step, id=id)

    # ------------------------------------------------------------------ queues

    def enqueue(
        self,
        name: str,
        /,
        *args: Any,
        queue: Queue | str,
        kwargs: Mapping[str, Any] | None = None,
        id: str | None = None,  # noqa: A002
        priority: int | None = None,
        dedup: str | None = None,
        partition: str | None = None,
        delay: float | timedelta | None = None,
        timeout: float | timedelta | None = None,
        tags: Iterable[str] | None = None,
    ) -> Handle[Any]:
        """Have a workflow start when it is its turn in a queue; it is known by its name alone.

        The name is ``module:qualname``, or what ``@workflow(name=…)`` says; that of a step begins
        with ``durable.step:``. `kwargs` are its keyword arguments; all else is as in `options` of a
        workflow. QueueNotFound, which lists the known queues; Deduplicated; WorkflowConflict if
        another workflow has the id. A name that the engine's program does not know stays PENDING,
        with a reason.

            client.enqueue("shop:checkout", "17", queue="orders", dedup="order-17")
        """
        file = self._open_file()
        options = make_options(id, timeout, tags, name_of(queue), priority, dedup, partition, delay)
        make = enqueuing.by_name(file, check_text(name, "a name"), args, kwargs or {}, options)
        scope = self._scope("enqueue")
        return Handle(file, drive(enqueuing.enqueue(file, scope, make), actor(file, scope)))

    def debounce(
        self,
        name: str,
        key: str,
        /,
        *args: Any,
        delay: float | timedelta,
        max_wait: float | timedelta | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: Queue | str | None = None,
    ) -> Handle[Any]:
        """Call a workflow, known by its name, once things are quiet; see `Debouncer`.

        The same name and key are the same run to come, whoever calls.
        """
        file = self._open_file()
        span, longest = enqueuing.check_spans(delay, max_wait)
        options = make_options(queue=name_of(queue), delay=span)
        make = enqueuing.by_name(file, check_text(name, "a name"), args, kwargs or {}, options)
        check_text(key, "the key of a Debouncer")
        scope = self._scope("debounce")
        flow = enqueuing.debounce(file, scope, make, key, longest)
        return Handle(file, drive(flow, actor(file, scope)))

    def change_queue(
        self,
        queue: Queue | str,
        *,
        concurrency: int | None = MISSING,
        rate: Rate | None = MISSING,
    ) -> None:
        """Change limits of a queue, known by its name; see `Queue.change`."""
        name = check_queue_name(name_of(queue))
        change_queue(self._open_file(), self._scope("change_queue"), name, concurrency, rate)

    def _scope(self, name: str) -> Scope | None:
        """The calling workflow, where it belongs to the same file."""
        scope = find_scope(f"Client.{name}")
        return scope if scope is not None and scope.host is self._file else None

    # ------------------------------------------------------------------ many

    def workflows(
        self,
        *,
        status: Status | str | Iterable[Status | str] | None = None,
        name: str | None = None,
        queue: Queue | str | None = None,
        parent: str | None = None,
        tag: str | None = None,
        created_after: datetime | None = None,
        completed_before: datetime | None = None,
        limit: int = 1000,
        after: str | None = None,
    ) -> list[Workflow]:
        """The workflows that match all that is given, in the order of their creation.

        At most `limit`; for the next page, give the id of the last one as `after`.
        """
        file = self._open_file()
        query = partial(
            queries.workflows,
            codec=file.codec,
            status=_statuses(status),
            name=check_optional_text(name, "a name"),
            queue=check_optional_text(name_of(queue), "the name of a queue"),
            parent=check_optional_text(parent, "the id of a parent"),
            tag=check_optional_text(tag, "a tag"),
            created_after=_moment(created_after, "created_after"),
            completed_before=_moment(completed_before, "completed_before"),
            after=check_optional_text(after, "the id to go on after"),
            limit=check_count(limit, "the limit of a list"),
        )
        return file.database.read(query)

    # ------------------------------------------------------------------ schedules

    def schedules(self) -> list[Schedule]:
        """All schedules that programs have declared on this file, by name."""
        return schedules.listing(self._open_file())

    def pause_schedule(self, name: str) -> None:
        """Let the schedule begin no more runs, until `resume_schedule`, over restarts too.

        The moments meanwhile do not count as missed. ScheduleNotFound if there is none.
        """
        schedules.pause(self._open_file(), check_id(name, "the name of a schedule"))

    def resume_schedule(self, name: str) -> None:
        """Let a paused schedule go on with the next moment from now on."""
        schedules.resume(self._open_file(), check_id(name, "the name of a schedule"))

    def trigger(self, name: str, *, id: str | None = None) -> Handle[Any]:  # noqa: A002
        """Run the workflow of a schedule now, paused or not, beside its moments.

        It gets the present moment. As with `options`, an `id` that exists attaches to that run.
        """
        file = self._open_file()
        workflow_id = None if id is None else check_id(id)
        name = check_id(name, "the name of a schedule")
        return Handle(file, schedules.trigger(file, name, workflow_id))

    def backfill(self, name: str, start: datetime, end: datetime) -> list[Handle[Any]]:
        """Run the moments of a schedule from `start` on and before `end`, both in the past.

        Those that have a run already keep it; the handles are of all, in order. They run side by
        side. InvalidArgument for more than 10,000 moments.

            client.backfill("app:report", datetime(2026, 11, 1, tzinfo=UTC), datetime.now(UTC))
        """
        file = self._open_file()
        since, until = (
            moment(start, "the start of a backfill"),
            moment(end, "the end of a backfill"),
        )
        name = check_id(name, "the name of a schedule")
        return [Handle(file, each) for each in schedules.backfill(file, name, since, until)]


def check_path(path: str | os.PathLike[str]) -> str:
    """The path as a text; InvalidArgument unless it is one that the system can have."""
    try:
        text = os.fspath(path)
        usable = isinstance(text, str) and text and b"\0" not in os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        usable = False
    if not usable:
        raise InvalidArgument(f"the path of a file is a text or a Path, not {path!r}")
    return text


def _check_codec(codec: Codec | None) -> Codec:
    chosen = JsonCodec() if codec is None else codec
    if not (
        callable(getattr(chosen, "encode", None)) and callable(getattr(chosen, "decode", None))
    ):
        raise InvalidArgument(f"a codec has encode and decode, like JsonCodec(); {codec!r} has not")
    return chosen


def _statuses(status: Status | str | Iterable[Status | str] | None) -> tuple[str, ...]:
    given = (status,) if isinstance(status, str) else () if status is None else status
    wanted = check_texts(given, "statuses")
    known = {each.value for each in Status}
    for each in wanted:
        if each not in known:
            raise InvalidArgument(f"a status is one of {', '.join(sorted(known))}, not {each!r}")
    return tuple(str(each) for each in wanted)


def _moment(at: datetime | None, what: str) -> float | None:
    return None if at is None else moment(at, what)
