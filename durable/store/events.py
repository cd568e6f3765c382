"""Events: named values that a workflow shows; the last value set counts."""

from __future__ import annotations

from durable.store.steps import Place
from durable.store.tx import Tx


def key(workflow: int, event: str) -> str:
    """What somebody who waits for an event waits for."""
    return f"event/{workflow}/{event}"


def put(tx: Tx, workflow: int, event: str, value: str, *, by: Place, now: float) -> None:
    """Set the event; earlier values stay for forks."""
    tx.execute(
        """
        INSERT INTO durable_event (workflow, key, seq, lane, number, value, set_at)
        VALUES (:workflow, :key,
                (SELECT coalesce(max(seq), 0) + 1
                   FROM durable_event
                  WHERE workflow = :workflow AND key = :key),
                :lane, :number, :value, :now)
        """,
        {
            "workflow": workflow,
            "key": event,
            "lane": by.lane,
            "number": by.number,
            "value": value,
            "now": now,
        },
    )
    tx.touch(key(workflow, event))


def get(tx: Tx, workflow: int, event: str) -> str | None:
    """The recorded text of the event's last value; None if it was never set."""
    row = tx.row(
        """
        SELECT value
          FROM durable_event
         WHERE workflow = :workflow AND key = :key
         ORDER BY seq DESC
         LIMIT 1
        """,
        {"workflow": workflow, "key": event},
    )
    return None if row is None else row["value"]


def get_all(tx: Tx, workflow: int) -> dict[str, str]:
    """The recorded text of each event's last value."""
    rows = tx.rows(
        "SELECT key, value FROM durable_event WHERE workflow = :workflow ORDER BY key, seq",
        {"workflow": workflow},
    )
    return {row["key"]: row["value"] for row in rows}


def copy(tx: Tx, source: int, target: int, before: int) -> None:
    """Give a fork the values that were set before step `before`."""
    tx.execute(
        """
        INSERT INTO durable_event (workflow, key, seq, lane, number, value, set_at)
        SELECT :target, key, seq, lane, number, value, set_at
          FROM durable_event
         WHERE workflow = :source
           AND CAST(iif(lane = '', number, lane) AS INTEGER) < :before
        """,
        {"source": source, "target": target, "before": before},
    )
