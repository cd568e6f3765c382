"""Messages: accepted once, taken first in first out for each workflow and topic."""

from __future__ import annotations

from durable.store.steps import Place
from durable.store.tx import Tx


def key(workflow: int, topic: str | None) -> str:
    """What a receiver waits for."""
    return f"message/{workflow}" if topic is None else f"message/{workflow}/{topic}"


def add(
    tx: Tx,
    workflow: int,
    topic: str | None,
    value: str,
    *,
    sender: str | None,
    idempotency_key: str | None,
    now: float,
) -> bool:
    """Accept a message; False if one with the same idempotency key was accepted before."""
    cursor = tx.execute(
        """
        INSERT INTO durable_message (workflow, topic, value, sender, idempotency_key, sent_at)
        VALUES (:workflow, :topic, :value, :sender, :idempotency_key, :now)
            ON CONFLICT (workflow, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
        """,
        {
            "workflow": workflow,
            "topic": topic,
            "value": value,
            "sender": sender,
            "idempotency_key": idempotency_key,
            "now": now,
        },
    )
    tx.touch(key(workflow, topic))
    return cursor.rowcount == 1


def take(tx: Tx, workflow: int, topic: str | None, by: Place) -> str | None:
    """The recorded text of the first message of the topic, now taken by a step; None if none."""
    row = tx.row(
        """
        UPDATE durable_message
           SET taken_lane = :lane, taken_by = :number
         WHERE seq = (SELECT seq
                        FROM durable_message
                       WHERE workflow = :workflow AND topic IS :topic AND taken_by IS NULL
                       ORDER BY seq
                       LIMIT 1)
        RETURNING value
        """,
        {"workflow": workflow, "topic": topic, "lane": by.lane, "number": by.number},
    )
    return None if row is None else row["value"]


def give_back(tx: Tx, workflow: int, by: Place) -> None:
    """What a step took is as if it never had: the code cancelled the step and did not see it."""
    rows = tx.rows(
        """
        UPDATE durable_message
           SET taken_lane = NULL, taken_by = NULL
         WHERE workflow = :workflow AND taken_lane = :lane AND taken_by = :number
        RETURNING topic
        """,
        {"workflow": workflow, "lane": by.lane, "number": by.number},
    )
    for row in rows:
        tx.touch(key(workflow, row["topic"]))


def is_waiting(tx: Tx, workflow: int, topic: str | None) -> bool:
    """Whether there is a message to take."""
    row = tx.row(
        """
        SELECT 1
          FROM durable_message
         WHERE workflow = :workflow AND topic IS :topic AND taken_by IS NULL
         LIMIT 1
        """,
        {"workflow": workflow, "topic": topic},
    )
    return row is not None


def copy(tx: Tx, source: int, target: int, before: int) -> None:
    """Give a fork every message that step `before` had not yet received, as if never taken.

    Those taken earlier are in the steps that the fork has; the senders will not send again.
    """
    tx.execute(
        """
        INSERT INTO durable_message (workflow, topic, value, sender, idempotency_key, sent_at)
        SELECT :target, topic, value, sender, idempotency_key, sent_at
          FROM durable_message
         WHERE workflow = :source
           AND (taken_by IS NULL
                OR CAST(iif(taken_lane = '', taken_by, taken_lane) AS INTEGER) >= :before)
         ORDER BY seq
        """,
        {"source": source, "target": target, "before": before},
    )
