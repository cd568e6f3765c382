"""Sees a run that waits for another behind itself in a queue: neither may ever go on."""

from __future__ import annotations

from durable.errors import QueueNotFound
from durable.records import Status
from durable.runtime.context import Scope
from durable.runtime.host import log
from durable.store import queues
from durable.store.tx import Tx
from durable.store.workflows import State


def warn_if_behind(scope: Scope | None, tx: Tx, awaited: State) -> None:
    """Warn, once for each run, if it is about to wait for one that needs a slot such as its own.

    Whoever waits keeps its slot. Where all slots are held by such as wait, nothing moves.
    """
    if scope is None or scope.run.slot is None or awaited.status is not Status.ENQUEUED:
        return
    run, slot = scope.run, scope.run.slot
    if (awaited.queue, awaited.partition) != (slot.queue, slot.partition):
        return
    if not _is_full(tx, slot.queue, slot.partition):
        return
    mark = f"{run.id} waits behind itself"
    if mark not in scope.host.warned:
        scope.host.warned.add(mark)
        log.warning(
            "workflow %r (%s) waits for %r (%s), which waits for a slot of the same queue %r, and "
            "all are taken: if those that hold them wait like this one, none goes on; "
            "use another queue for what is waited for, or raise its concurrency with change()",
            run.id,
            run.name,
            awaited.id,
            awaited.name,
            slot.queue,
        )


def _is_full(tx: Tx, queue: str, partition: str | None) -> bool:
    try:
        most = queues.find(tx, queue).limits.concurrency
    except QueueNotFound:
        return False
    return most is not None and queues.running(tx, queue, partition, most=most) >= most
