"""The checkpoints of a run."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple

from durable.store.tx import Bulk, Tx
from durable.store.workflows import RunIsOver

VALUE, ERROR, TIMEOUT, CANCELLED = "value", "error", "timeout", "cancelled"

# What goes by time (schema.sql says what the two tables are for).
SEVERAL = 8
"""So many that share a commit: a page for each costs more than an index."""
LONG = 700
"""A text of more characters."""


class Place(NamedTuple):
    """Where a step stands in its run: a lane (``''`` is the workflow) and a number from 1."""

    lane: str
    number: int

    def is_in(self, lane: str) -> bool:
        """Whether it stands in that lane, or in one that was opened there."""
        return self.lane == lane or self.lane.startswith(f"{lane}.")

    def __str__(self) -> str:
        return f"{self.lane}.{self.number}" if self.lane else str(self.number)


NOWHERE = Place("", 0)
"""Where a caller outside workflows stands."""


class Outcome(NamedTuple):
    """How a step ended: VALUE or ERROR, with the recorded text, TIMEOUT or CANCELLED."""

    kind: str
    text: str | None = None


class Record(NamedTuple):
    """A recorded step; without an `outcome` it is undecided."""

    name: str
    outcome: Outcome | None
    attempt: int
    until_at: float | None
    started_at: float


Decided = tuple[str, int, str, str, str | None, int, float, float, int, int]
"""A step that has ended: its place, name and outcome, the try, when that began, now, seq, epoch."""

_TEXT: Final = 4  # in Decided


def load(tx: Tx, workflow: int) -> dict[Place, Record]:
    """All that the run has recorded."""
    return load_all(tx, [workflow])[workflow]


def load_all(tx: Tx, workflows: Sequence[int]) -> dict[int, dict[Place, Record]]:
    """All that each of the runs has recorded."""
    # Not from the view: SQLite would read all of it, and look at the list of runs afterwards.
    rows = tx.rows(
        """
        SELECT workflow, lane, number, name, outcome, value, attempt, until_at, started_at
          FROM durable_step
         WHERE workflow IN (SELECT value FROM json_each(:workflows))
         UNION ALL
        SELECT workflow, lane, number, name, outcome, value, attempt, NULL, started_at
          FROM durable_step_by_time
         WHERE workflow IN (SELECT value FROM json_each(:workflows))
        """,
        {"workflows": json.dumps(workflows)},
    )
    found: dict[int, dict[Place, Record]] = {workflow: {} for workflow in workflows}
    for workflow, lane, number, name, kind, value, attempt, until_at, started_at in rows:
        outcome = None if kind is None else Outcome(kind, value)
        record = Record(name, outcome, attempt, until_at, started_at)
        found[workflow][Place(lane, number)] = record
    return found


def decide(
    tx: Tx,
    run: tuple[int, int],
    place: Place,
    name: str,
    outcome: Outcome,
    *,
    started_at: float,
    now: float,
    attempt: int = 1,
) -> None:
    """Record an outcome for good; RunIsOver if the run (its seq and epoch) is not the present one.

    A run that was cancelled may still record a step that it has finished: nothing is done twice
    when it is resumed.
    """
    record((*place, name, *outcome, attempt, started_at, now, *run), tx)


def record(decided: Decided, tx: Tx) -> None:
    """`decide`, with all of it in one row."""
    if len(decided[_TEXT] or "") > LONG and tx.execute(_BY_TIME[1], decided).rowcount == 1:
        return
    try:
        recorded = tx.execute(_ONE_BY_PLACE, decided + decided[:2]).rowcount
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_NOTNULL:
            raise
        raise RunIsOver from error  # there is no such run, or it has another epoch
    if recorded != 1:
        raise RunIsOver


def record_all(decided: Sequence[Decided], tx: Tx) -> None:
    """`record` each of them, with as few statements; RunIsOver if one of the runs is over."""
    by_time = decided
    if len(decided) < SEVERAL:
        by_time = [each for each in decided if len(each[_TEXT] or "") > LONG]
    recorded = _insert(_BY_TIME, by_time, tx)
    if recorded < len(decided):
        recorded += _insert(_BY_PLACE, decided, tx)  # refuses what went by time
    if recorded < len(decided):
        raise RunIsOver


IN_BULK = Bulk(record, record_all)


def _insert(statements: dict[int, str], decided: Sequence[Decided], tx: Tx) -> int:
    """How many of them were recorded."""
    begin = recorded = 0
    for count, statement in statements.items():
        while len(decided) - begin >= count:
            rows = decided[begin : begin + count]
            recorded += tx.execute(statement, list(chain.from_iterable(rows))).rowcount
            begin += count
    return recorded


# Each statement refuses a run that is over, and a place that the other table has. One by place
# decides what is undecided there; one by time leaves it to that.

_DECIDE = """UPDATE
           SET outcome = excluded.outcome, value = excluded.value, attempt = excluded.attempt,
               until_at = NULL, finished_at = excluded.finished_at
         WHERE outcome IS NULL"""

# A row of VALUES, unlike one of a query, is known to be the only one: SQLite prepares for no
# failure half-way. To do so, it would copy the page while the read lock is kept (`snapshot`).
_ONE_BY_PLACE = f"""
        INSERT INTO durable_step
               (lane, number, name, outcome, value, attempt, started_at, finished_at, workflow)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?,
                (SELECT seq
                   FROM durable_workflow
                  WHERE seq = ? AND epoch = ?
                    AND NOT EXISTS (SELECT 1
                                      FROM durable_step_by_time
                                     WHERE workflow = seq AND lane = ? AND number = ?)))
            ON CONFLICT (workflow, lane, number) DO {_DECIDE}
        """


def _recording(table: str, other: str, conflict: str) -> dict[int, str]:
    """The statements that record so many steps in one of the two tables, the most at once first."""
    # By position: sqlite3 takes a third of the time of the whole statement to look up ten names.
    return {
        count: f"""
        INSERT INTO {table}
               (lane, number, name, outcome, value, attempt, started_at, finished_at, workflow)
        SELECT column1, column2, column3, column4, column5, column6, column7, column8, seq
          FROM (VALUES {", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * count)})
         CROSS JOIN durable_workflow ON seq = column9 AND epoch = column10
         WHERE NOT EXISTS (SELECT 1
                             FROM {other}
                            WHERE workflow = seq AND lane = column1 AND number = column2)
            ON CONFLICT (workflow, lane, number) DO {conflict}
        """
        for count in (64, 32, 16, 8, 4, 2, 1)  # more than 64 are no faster
    }


_BY_PLACE = _recording("durable_step", "durable_step_by_time", _DECIDE)
_BY_TIME = _recording("durable_step_by_time", "durable_step", "NOTHING")


def postpone(
    tx: Tx,
    run: tuple[int, int],
    place: Place,
    name: str,
    *,
    until_at: float,
    started_at: float,
    attempt: int = 1,
    error: str | None = None,
) -> None:
    """Record that the step is undecided until a moment: then its wait ends, or it is retried."""
    cursor = tx.execute(
        """
        INSERT INTO durable_step
               (workflow, lane, number, name, value, attempt, until_at, started_at)
        SELECT seq, :lane, :number, :name, :error, :attempt, :until_at, :started_at
          FROM durable_workflow
         WHERE seq = :seq AND epoch = :epoch
           AND NOT EXISTS (SELECT 1
                             FROM durable_step_by_time
                            WHERE workflow = seq AND lane = :lane AND number = :number)
            ON CONFLICT (workflow, lane, number) DO UPDATE
           SET value = excluded.value, attempt = excluded.attempt, until_at = excluded.until_at
         WHERE outcome IS NULL
        """,
        {
            "seq": run[0],
            "epoch": run[1],
            "lane": place.lane,
            "number": place.number,
            "name": name,
            "error": error,
            "attempt": attempt,
            "until_at": until_at,
            "started_at": started_at,
        },
    )
    if cursor.rowcount != 1:
        raise RunIsOver


def cancel(tx: Tx, run: tuple[int, int], place: Place, name: str, *, now: float) -> None:
    """Record that the code of the workflow cancelled the call, whatever had come of it."""
    tx.execute(
        """
        DELETE FROM durable_step_by_time
         WHERE workflow = (SELECT seq FROM durable_workflow WHERE seq = :seq AND epoch = :epoch)
           AND lane = :lane AND number = :number
        """,
        {"seq": run[0], "epoch": run[1], "lane": place.lane, "number": place.number},
    )
    cursor = tx.execute(
        """
        INSERT INTO durable_step
               (workflow, lane, number, name, outcome, started_at, finished_at)
        SELECT seq, :lane, :number, :name, 'cancelled', :now, :now
          FROM durable_workflow
         WHERE seq = :seq AND epoch = :epoch
            ON CONFLICT (workflow, lane, number) DO UPDATE
           SET outcome = 'cancelled', value = NULL, until_at = NULL, finished_at = :now
        """,
        {
            "seq": run[0],
            "epoch": run[1],
            "lane": place.lane,
            "number": place.number,
            "name": name,
            "now": now,
        },
    )
    if cursor.rowcount != 1:
        raise RunIsOver


def copy(tx: Tx, source: int, target: int, before: int) -> None:
    """Give a fork the steps before number `before`, with the lanes that they opened."""
    tx.execute(
        """
        INSERT INTO durable_step
               (workflow, lane, number, name, outcome, value, attempt, until_at, started_at,
                finished_at)
        SELECT :target, lane, number, name, outcome, value, attempt, until_at, started_at,
               finished_at
          FROM durable_checkpoint
         WHERE workflow = :source
           AND CAST(iif(lane = '', number, lane) AS INTEGER) < :before
        """,
        {"source": source, "target": target, "before": before},
    )
