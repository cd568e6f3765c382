"""Queues, as a program declares them: who may start, how many at once, how often."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, Protocol, TypeVar

from durable.checks import check_count, check_text
from durable.clock import seconds
from durable.errors import InvalidArgument
from durable.handle import Handle
from durable.runtime import enqueuing, starting
from durable.runtime.context import Scope, current_host, find_scope, parent_scope
from durable.runtime.file import File
from durable.runtime.flows import actor, drive
from durable.runtime.messages import MISSING
from durable.runtime.registry import registry
from durable.runtime.starting import Invocation
from durable.store.queues import Limits, QueueRow

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class Rate:
    """At most `limit` starts in any span of `per` seconds (or a ``timedelta``).

    The window slides, and what was started before a restart counts.
    """

    limit: int
    per: float | timedelta

    def __post_init__(self) -> None:
        check_count(self.limit, "Rate.limit")
        if seconds(self.per, "Rate.per") == 0:
            raise InvalidArgument("Rate.per is a span of more than 0 s")


class Enqueueable(Protocol[P, R]):
    """A workflow or a step."""

    def _start_in(self, queue: str, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...

    def in_queue(self, queue: str, /, *args: P.args, **kwargs: P.kwargs) -> Invocation:
        """What is to be started in that queue."""


class Queue:
    """A queue of workflows and steps that start in the order in which they came.

    `concurrency`: so many run at once at most, in each partition of its own where the queue is
    `partitioned`. A run that waits (`sleep`, `recv`, for a child) is running. `rate`: so many
    start in a span of time at most. None is no limit. With `priority`, runs may be given one: the
    lower starts first, and those without before all others. DuplicateName if the queue was declared
    with other limits before.

        emails = Queue("emails", concurrency=4, rate=Rate(100, per=60))

        handle = emails.enqueue(send_email, "ann@example.com")
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        rate: Rate | None = None,
        priority: bool = False,
        partitioned: bool = False,
    ) -> None:
        self.name = check_queue_name(name)
        if self.name.startswith("durable."):
            raise InvalidArgument(f"names that begin with 'durable.' are durable's own ({name!r})")
        for value, what in ((priority, "priority"), (partitioned, "partitioned")):
            if not isinstance(value, bool):
                raise InvalidArgument(f"{what} of a queue is True or False, not {value!r}")
        registry.add_queue(
            QueueRow(
                name=self.name,
                limits=Limits(**changes_of(concurrency, rate)),
                priority=priority,
                partitioned=partitioned,
            )
        )

    def __repr__(self) -> str:
        return f"<queue {self.name!r}>"

    def enqueue(
        self, function: Enqueueable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Handle[R]:
        """Have a workflow or a step start when it is its turn; it is on the disk on return.

        In a workflow, it is a child. A step runs as a workflow of its own, named
        ``durable.step:…``, with its retries. Options: ``queue.enqueue(wf.options(priority=1), …)``.
        """
        _check_function(function)
        return function._start_in(self.name, *args, **kwargs)

    def enqueue_many(self, function: Enqueueable[[T], R], items: Iterable[T], /) -> list[Handle[R]]:
        """`enqueue` for each item, which is the one argument: many share a commit.

        Of ten thousand, a crash or an error in between leaves those that were enqueued before, some
        hundreds at a time.

            handles = emails.enqueue_many(send_email, addresses)
        """
        _check_function(function)
        name = f"queue {self.name!r}"
        host = current_host(name)
        scope = parent_scope(name)
        invocations = (function.in_queue(self.name, item) for item in items)
        flow = starting.start_many(host, scope, invocations)
        fates = drive(flow, actor(host, scope))
        return [Handle(host, each.workflow_id, each) for each in fates]

    def change(self, *, concurrency: int | None = MISSING, rate: Rate | None = MISSING) -> None:
        """Change limits of the queue on the current engine, at once; what is running goes on.

        They hold, over restarts too, until the program declares others than it does now.
        """
        host = current_host(f"queue {self.name!r}")
        change(host, find_scope("Queue.change"), self.name, concurrency, rate)


def _check_function(function: object) -> None:
    if not hasattr(function, "in_queue"):
        raise InvalidArgument(
            f"{function!r} is neither a workflow nor a step: decorate the function"
        )


def check_queue_name(name: object) -> str:
    """`name`, if a queue may have it."""
    text = check_text(name, "the name of a queue")
    if not text.isprintable():
        raise InvalidArgument(f"the name of a queue is of printable characters, not {text!r}")
    return text


def name_of(queue: Queue | str | None) -> str | None:
    """The name of a queue that is given as itself or by name."""
    return queue.name if isinstance(queue, Queue) else queue


def change(file: File, scope: Scope | None, queue: str, concurrency: Any, rate: Any) -> None:
    """Give the queue other limits; what is MISSING stays as it is."""
    changes = changes_of(concurrency, rate)
    if not changes:
        raise InvalidArgument("nothing to change: give concurrency=… or rate=…")
    drive(enqueuing.change(file, scope, queue, changes), actor(file, scope))


def changes_of(concurrency: Any, rate: Any) -> dict[str, Any]:
    """The limits as the file has them; what is MISSING is left out."""
    changes: dict[str, Any] = {}
    if concurrency is not MISSING:
        changes["concurrency"] = (
            None if concurrency is None else check_count(concurrency, "the concurrency of a queue")
        )
    if rate is not MISSING:
        if rate is not None and not isinstance(rate, Rate):
            raise InvalidArgument(f"rate is a durable.Rate, as Rate(10, per=60), not {rate!r}")
        changes["rate_limit"] = None if rate is None else rate.limit
        changes["rate_per"] = None if rate is None else seconds(rate.per, "Rate.per")
    return changes
