"""Streams: values that only ever grow in number; a null value closes one.

What a step writes has no position until the try that wrote it has succeeded: readers do not see it,
but for those who read live.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from durable.errors import WorkflowConflict
from durable.store.steps import Place
from durable.store.tx import Tx

PAGE = 100


class Try(NamedTuple):
    """One try of a step, also of one whose process died: its place, the run's epoch, its number."""

    place: Place
    epoch: int
    attempt: int


class Item(NamedTuple):
    """A value of a stream as recorded; without a text it closes the stream."""

    seq: int
    text: str | None
    place: Place
    attempt: int


def key(workflow: int, stream: str) -> str:
    """What a reader waits for."""
    return f"stream/{workflow}/{stream}"


def append(
    tx: Tx, workflow: int, stream: str, text: str | None, *, by: Try, visible: bool, now: float
) -> None:
    """Write a value, or close the stream; WorkflowConflict if it is closed."""
    if is_closed(tx, workflow, stream):
        raise WorkflowConflict(
            _id(tx, workflow), f"has closed its stream {stream!r}, so nothing can be added to it"
        )
    tx.execute(
        """
        INSERT INTO durable_stream
               (workflow, key, position, lane, number, epoch, attempt, value, written_at)
        VALUES (:workflow, :key,
                iif(:visible,
                    (SELECT coalesce(max(position) + 1, 0)
                       FROM durable_stream
                      WHERE workflow = :workflow AND key = :key),
                    NULL),
                :lane, :number, :epoch, :attempt, :value, :now)
        """,
        {
            "workflow": workflow,
            "key": stream,
            "visible": visible,
            "lane": by.place.lane,
            "number": by.place.number,
            "epoch": by.epoch,
            "attempt": by.attempt,
            "value": text,
            "now": now,
        },
    )
    tx.touch(key(workflow, stream))


def publish(tx: Tx, workflow: int, by: Try) -> None:
    """The try has succeeded: what it wrote gets its positions; what earlier tries wrote goes."""
    values = {
        "workflow": workflow,
        "lane": by.place.lane,
        "number": by.place.number,
        "epoch": by.epoch,
        "attempt": by.attempt,
    }
    tx.execute(
        """
        DELETE FROM durable_stream
         WHERE workflow = :workflow AND lane = :lane AND number = :number AND position IS NULL
           AND (epoch <> :epoch OR attempt <> :attempt)
        """,
        values,
    )
    rows = tx.rows(
        """
        SELECT seq, key
          FROM durable_stream
         WHERE workflow = :workflow AND lane = :lane AND number = :number AND position IS NULL
         ORDER BY seq
        """,
        values,
    )
    for row in rows:
        tx.execute(
            """
            UPDATE durable_stream
               SET position = (SELECT coalesce(max(position) + 1, 0)
                                 FROM durable_stream
                                WHERE workflow = :workflow AND key = :key)
             WHERE seq = :seq
            """,
            {"workflow": workflow, "key": row["key"], "seq": row["seq"]},
        )
        tx.touch(key(workflow, row["key"]))


def read(tx: Tx, workflow: int, stream: str, start: int) -> list[Item]:
    """What stands at `start` and behind it, a page at most; the closing is an item without text."""
    rows = tx.rows(
        """
        SELECT seq, value, lane, number, attempt
          FROM durable_stream
         WHERE workflow = :workflow AND key = :key AND position >= :start
         ORDER BY position
         LIMIT :limit
        """,
        {"workflow": workflow, "key": stream, "start": start, "limit": PAGE},
    )
    return [_item(row) for row in rows]


def read_live(tx: Tx, workflow: int, stream: str, after: int) -> list[Item]:
    """What was written since row `after`, also by tries that have not succeeded, or never will."""
    rows = tx.rows(
        """
        SELECT seq, value, lane, number, attempt
          FROM durable_stream
         WHERE workflow = :workflow AND key = :key AND seq > :after
         ORDER BY seq
         LIMIT :limit
        """,
        {"workflow": workflow, "key": stream, "after": after, "limit": PAGE},
    )
    return [_item(row) for row in rows]


def copy(tx: Tx, source: int, target: int, before: int) -> None:
    """Give a fork the values that were written before step `before`."""
    tx.execute(
        """
        INSERT INTO durable_stream
               (workflow, key, position, lane, number, epoch, attempt, value, written_at)
        SELECT :target, key, position, lane, number, epoch, attempt, value, written_at
          FROM durable_stream
         WHERE workflow = :source AND position IS NOT NULL
           AND CAST(iif(lane = '', number, lane) AS INTEGER) < :before
         ORDER BY seq
        """,
        {"source": source, "target": target, "before": before},
    )


def is_closed(tx: Tx, workflow: int, stream: str) -> bool:
    """Whether nothing more comes in the stream."""
    row = tx.row(
        """
        SELECT value IS NULL AS closed
          FROM durable_stream
         WHERE workflow = :workflow AND key = :key AND position IS NOT NULL
         ORDER BY position DESC
         LIMIT 1
        """,
        {"workflow": workflow, "key": stream},
    )
    return row is not None and bool(row["closed"])


def _id(tx: Tx, workflow: int) -> str:
    row = tx.row("SELECT id FROM durable_workflow WHERE seq = :seq", {"seq": workflow})
    return "" if row is None else str(row["id"])


def _item(row: sqlite3.Row) -> Item:
    return Item(row["seq"], row["value"], Place(row["lane"], row["number"]), row["attempt"])
