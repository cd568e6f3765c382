"""Schedules: what programs declared, which of their moments are decided, and who is paused."""

from __future__ import annotations

from typing import Any, NamedTuple

from durable.errors import ScheduleNotFound
from durable.store.tx import Tx

# What the engine that fires schedules listens to.
KEY = "schedules"


class Declared(NamedTuple):
    """What a program says of a schedule."""

    name: str
    workflow: str
    cron: str
    tz: str
    missed: str
    timeout: float | None


class State(NamedTuple):
    """A schedule as the file has it; `declared` by the program that opened the file last."""

    name: str
    workflow: str
    cron: str
    tz: str
    missed: str
    timeout: float | None
    paused: bool
    passed_at: float
    last_at: float | None
    declared: bool


def declare(tx: Tx, new: Declared, *, session: int, now: float) -> None:
    """Keep what the program says; a schedule that is new, or has other moments, begins now."""
    tx.execute(
        """
        INSERT INTO durable_schedule
               (name, workflow, cron, tz, missed, timeout, passed_at, session)
        VALUES (:name, :workflow, :cron, :tz, :missed, :timeout, :now, :session)
            ON CONFLICT (name) DO UPDATE
           SET workflow = :workflow, cron = :cron, tz = :tz, missed = :missed, timeout = :timeout,
               passed_at = iif(cron = :cron AND tz = :tz, passed_at, max(passed_at, :now)),
               session = :session
        """,
        {
            "name": new.name,
            "workflow": new.workflow,
            "cron": new.cron,
            "tz": new.tz,
            "missed": new.missed,
            "timeout": new.timeout,
            "now": now,
            "session": session,
        },
    )


def withdraw(tx: Tx, name: str) -> None:
    """The program that has the file open does not declare it any more."""
    tx.execute("UPDATE durable_schedule SET session = 0 WHERE name = :name", {"name": name})


def everything(tx: Tx) -> list[State]:
    """All schedules of the file, by name."""
    rows = tx.rows(
        """
        SELECT *, session = (SELECT max(seq) FROM durable_session) AS declared
          FROM durable_schedule
         ORDER BY name
        """,
        {},
    )
    return [_state(row) for row in rows]


def find(tx: Tx, name: str) -> State:
    """The schedule of that name; ScheduleNotFound, with those that there are, if there is none."""
    row = tx.row(
        """
        SELECT *, session = (SELECT max(seq) FROM durable_session) AS declared
          FROM durable_schedule
         WHERE name = :name
        """,
        {"name": name},
    )
    if row is None:
        known = tx.rows("SELECT name FROM durable_schedule ORDER BY name", {})
        raise ScheduleNotFound(name, tuple(each["name"] for each in known))
    return _state(row)


def pass_moment(tx: Tx, name: str, moment: float, *, runs: bool) -> bool:
    """The moment is decided, and all before it; False if it was before, or if it is paused."""
    cursor = tx.execute(
        """
        UPDATE durable_schedule
           SET passed_at = :moment, last_at = iif(:runs, :moment, last_at)
         WHERE name = :name AND passed_at < :moment AND NOT paused
        """,
        {"name": name, "moment": moment, "runs": runs},
    )
    return cursor.rowcount == 1


def pause(tx: Tx, name: str) -> None:
    """It begins no more runs; ScheduleNotFound if there is none."""
    find(tx, name)
    tx.execute("UPDATE durable_schedule SET paused = 1 WHERE name = :name", {"name": name})
    tx.touch(KEY)


def resume(tx: Tx, name: str, *, now: float) -> None:
    """If it is paused, it goes on from now: what it would have run meanwhile was not missed."""
    find(tx, name)
    tx.execute(
        """
        UPDATE durable_schedule SET paused = 0, passed_at = :now WHERE name = :name AND paused
        """,
        {"name": name, "now": now},
    )
    tx.touch(KEY)


def _state(row: Any) -> State:
    return State(
        name=row["name"],
        workflow=row["workflow"],
        cron=row["cron"],
        tz=row["tz"],
        missed=row["missed"],
        timeout=row["timeout"],
        paused=bool(row["paused"]),
        passed_at=row["passed_at"],
        last_at=row["last_at"],
        declared=bool(row["declared"]),
    )
