"""What people ask: lists of workflows and of their steps, as public records."""

from __future__ import annotations

import json
from typing import Any

from durable.clock import as_datetime, optional_datetime
from durable.codec import Codec, Opaque, decode_error, decode_or_opaque
from durable.errors import WorkflowNotFound
from durable.records import Status, Step, Workflow
from durable.store.steps import ERROR, VALUE, Place
from durable.store.tx import Tx
from durable.store.workflows import find


def workflow(tx: Tx, workflow_id: str, codec: Codec) -> Workflow:
    """The run with that id; WorkflowNotFound if there is none."""
    row = tx.row("SELECT * FROM durable_workflow WHERE id = :id", {"id": workflow_id})
    if row is None:
        raise WorkflowNotFound(workflow_id)
    return _workflow(row, codec)


def workflows(
    tx: Tx,
    codec: Codec,
    *,
    status: tuple[str, ...],
    name: str | None,
    queue: str | None,
    parent: str | None,
    tag: str | None,
    created_after: float | None,
    completed_before: float | None,
    after: str | None,
    limit: int,
) -> list[Workflow]:
    """The runs that match all that is given, in the order of their creation.

    `after` is an id: the list goes on behind it. WorkflowNotFound if there is none of that id.
    """
    behind = 0 if after is None else find(tx, after).seq
    rows = tx.rows(
        """
        SELECT *
          FROM durable_workflow
         WHERE seq > :behind
           AND (:any_status OR status IN (SELECT value FROM json_each(:status)))
           AND (:name IS NULL OR name = :name)
           AND (:queue IS NULL OR queue = :queue)
           AND (:parent IS NULL OR parent_id = :parent)
           AND (:tag IS NULL OR EXISTS (SELECT 1 FROM json_each(tags) WHERE value = :tag))
           AND (:created_after IS NULL OR created_at > :created_after)
           AND (:completed_before IS NULL OR finished_at < :completed_before)
         ORDER BY seq
         LIMIT :limit
        """,
        {
            "status": json.dumps(status),
            "any_status": not status,
            "name": name,
            "queue": queue,
            "parent": parent,
            "tag": tag,
            "created_after": created_after,
            "completed_before": completed_before,
            "behind": behind,
            "limit": limit,
        },
    )
    return [_workflow(row, codec) for row in rows]


def steps(tx: Tx, workflow_id: str, codec: Codec) -> list[Step]:
    """What the run has recorded, in the order of its numbers."""
    rows = tx.rows(
        "SELECT * FROM durable_checkpoint WHERE workflow = :workflow",
        {"workflow": find(tx, workflow_id).seq},
    )
    found = [_step(row, codec) for row in rows]
    return sorted(found, key=lambda step: [int(part) for part in step.number.split(".")])


def _workflow(row: Any, codec: Codec) -> Workflow:
    args, kwargs = _input(row["input"], codec)
    return Workflow(
        id=row["id"],
        name=row["name"],
        status=Status(row["status"]),
        args=args,
        kwargs=kwargs,
        result=None if row["result"] is None else decode_or_opaque(codec, row["result"]),
        error=None if row["error"] is None else decode_error(row["error"]),
        reason=row["reason"],
        created_at=as_datetime(row["created_at"]),
        started_at=optional_datetime(row["started_at"]),
        finished_at=optional_datetime(row["finished_at"]),
        deadline_at=optional_datetime(row["deadline_at"]),
        wake_at=optional_datetime(row["wake_at"]),
        parent_id=row["parent_id"],
        recoveries=row["recoveries"],
        version=row["version"],
        tags=tuple(json.loads(row["tags"])),
        queue=row["queue"],
        priority=row["priority"],
        dedup=row["dedup"],
        partition=row["partition"],
        delay_until=optional_datetime(row["delay_until"]),
    )


def _input(text: str, codec: Codec) -> tuple[tuple[Any, ...], dict[str, Any]]:
    decoded = decode_or_opaque(codec, text)
    match decoded:
        case [list(args), dict(kwargs), *_]:
            return tuple(args), kwargs
        case Opaque():
            return (decoded,), {}
        case _:
            return (Opaque(text),), {}


def _step(row: Any, codec: Codec) -> Step:
    outcome, text = row["outcome"], row["value"]
    failed = outcome == ERROR or (outcome is None and text is not None)
    return Step(
        number=str(Place(row["lane"], row["number"])),
        name=row["name"],
        outcome=outcome,
        value=decode_or_opaque(codec, text) if outcome == VALUE else None,
        error=decode_error(text) if failed else None,
        attempt=row["attempt"],
        started_at=as_datetime(row["started_at"]),
        finished_at=optional_datetime(row["finished_at"]),
        until_at=optional_datetime(row["until_at"]),
    )
