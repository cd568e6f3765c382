"""What schema.sql refuses, and what its indexes are for."""

from __future__ import annotations

import importlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from durable.store import migrations
from tests.store.recording import Recorder, Statement

WORKFLOW: dict[str, Any] = {
    "id": "w",
    "name": "m:f",
    "status": "PENDING",
    "input": "[[], {}]",
    "created_at": 1.0,
    "seed": "w",
}
STEP: dict[str, Any] = {
    "workflow": 1,
    "lane": "",
    "number": 1,
    "name": "m:s",
    "outcome": "value",
    "value": "1",
    "started_at": 1.0,
    "finished_at": 2.0,
}
MESSAGE: dict[str, Any] = {"workflow": 1, "value": "1", "sent_at": 1.0}
EVENT: dict[str, Any] = {
    "workflow": 1,
    "key": "k",
    "seq": 1,
    "lane": "",
    "number": 1,
    "value": "1",
    "set_at": 1.0,
}
STREAM: dict[str, Any] = {
    "workflow": 1,
    "key": "k",
    "position": 0,
    "lane": "",
    "number": 1,
    "epoch": 1,
    "attempt": 1,
    "value": "1",
    "written_at": 1.0,
}
QUEUE: dict[str, Any] = {"name": "q"}
SCHEDULE: dict[str, Any] = {
    "name": "s",
    "workflow": "m:f",
    "cron": "* * * * *",
    "tz": "UTC",
    "missed": "latest",
    "passed_at": 1.0,
    "session": 1,
}
SESSION: dict[str, Any] = {"pid": 1, "opened_at": 1.0}

GOOD = {
    "durable_workflow": WORKFLOW,
    "durable_step": STEP,
    "durable_step_by_time": STEP | {"attempt": 1},
    "durable_message": MESSAGE,
    "durable_event": EVENT,
    "durable_stream": STREAM,
    "durable_queue": QUEUE,
    "durable_queue_start": {"queue": "q", "at": 1.0, "number": 1},
    "durable_schedule": SCHEDULE,
    "durable_session": SESSION,
    "durable_signal": {"key": "k"},
}


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrations.prepare(connection, ":memory:", create=True)
        yield connection


def put(connection: sqlite3.Connection, table: str, **changes: Any) -> None:
    row = GOOD[table] | changes
    names = ", ".join(row)
    places = ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", row)


def test_all_tables_are_strict_and_have_our_name(connection: sqlite3.Connection) -> None:
    """Each is named durable_… and STRICT; the file keeps the marks of ours."""
    tables = connection.execute("PRAGMA table_list").fetchall()
    ours = {
        name: strict
        for _, name, kind, _, _, strict in tables
        if kind == "table" and not name.startswith("sqlite_")
    }

    assert set(ours) == set(GOOD)
    assert all(ours.values())
    assert all(name.startswith("durable_") for name in ours)


@pytest.mark.parametrize("table", GOOD)
def test_a_right_row_is_taken(connection: sqlite3.Connection, table: str) -> None:
    """The rows from which the wrong ones below are made are right themselves."""
    put(connection, table)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "SUCCESS", "result": "1", "finished_at": 2.0},
        {"status": "ERROR", "error": "{}", "finished_at": 2.0},
        {"status": "CANCELLED", "finished_at": 2.0},
        {"status": "DEAD", "finished_at": 2.0},
        {"status": "ENQUEUED", "queue": "q"},
        {"status": "DELAYED", "queue": "q", "delay_until": 5.0},
    ],
    ids=lambda changes: changes["status"],
)
def test_each_status_has_its_right_form(connection: sqlite3.Connection, changes: Any) -> None:
    """Beside PENDING, which the plain row is."""
    put(connection, "durable_workflow", **changes)


WRONG = [
    # workflows
    ("durable_workflow", {"id": ""}, "an id is not empty"),
    ("durable_workflow", {"id": None}, "there is an id"),
    ("durable_workflow", {"name": ""}, "a name is not empty"),
    ("durable_workflow", {"status": "RUNNING"}, "the status is one of seven"),
    ("durable_workflow", {"status": "pending"}, "in capitals"),
    ("durable_workflow", {"input": None}, "there is an input"),
    ("durable_workflow", {"timeout": -1.0}, "no span is negative"),
    ("durable_workflow", {"created_at": "yesterday"}, "a moment is a number"),
    ("durable_workflow", {"finished_at": 2.0}, "what is pending has not finished"),
    ("durable_workflow", {"result": "1"}, "what is pending has no result"),
    ("durable_workflow", {"error": "{}"}, "what is pending has no error"),
    ("durable_workflow", {"status": "SUCCESS", "result": "1"}, "what ended, ended some time"),
    ("durable_workflow", {"status": "SUCCESS", "finished_at": 2.0}, "success has a result"),
    (
        "durable_workflow",
        {"status": "SUCCESS", "finished_at": 2.0, "result": "1", "error": "{}"},
        "success has no error",
    ),
    ("durable_workflow", {"status": "ERROR", "finished_at": 2.0}, "an error is told"),
    (
        "durable_workflow",
        {"status": "ERROR", "finished_at": 2.0, "result": "1", "error": "{}"},
        "an error has no result",
    ),
    (
        "durable_workflow",
        {"status": "CANCELLED", "finished_at": 2.0, "result": "1"},
        "what was cancelled has no result",
    ),
    ("durable_workflow", {"status": "DEAD"}, "what is dead, died some time"),
    ("durable_workflow", {"status": "ENQUEUED"}, "what is queued is in a queue"),
    ("durable_workflow", {"status": "DELAYED", "delay_until": 5.0}, "so is what is delayed"),
    ("durable_workflow", {"status": "DELAYED", "queue": "q"}, "a delay has an end"),
    ("durable_workflow", {"status": "ENQUEUED", "queue": "q", "holder": 1}, "nobody holds it yet"),
    # steps
    ("durable_step", {"number": 0}, "steps are counted from one"),
    ("durable_step", {"outcome": "done"}, "the outcome is one of three"),
    ("durable_step", {"value": None}, "a value is there"),
    ("durable_step", {"outcome": "error", "value": None}, "an error is there"),
    ("durable_step", {"outcome": "timeout"}, "a timeout has no value"),
    ("durable_step", {"outcome": None}, "what is undecided has not finished"),
    ("durable_step", {"finished_at": None}, "what was decided, was some time"),
    ("durable_step", {"value": b"\x00"}, "values are text"),
    ("durable_step_by_time", {"number": 0}, "also where they stand by time"),
    ("durable_step_by_time", {"outcome": "timeout"}, "what stands by time has a value or an error"),
    ("durable_step_by_time", {"outcome": None}, "and is decided"),
    ("durable_step_by_time", {"value": None}, "its value is there"),
    ("durable_step_by_time", {"finished_at": None}, "and its end"),
    # messages
    ("durable_message", {"taken_by": 3}, "what was taken, was in a lane"),
    ("durable_message", {"taken_lane": ""}, "what was taken, was by a step"),
    ("durable_message", {"value": None}, "a message has a value"),
    ("durable_message", {"workflow": None}, "a message is to a workflow"),
    # streams
    ("durable_stream", {"position": -1}, "positions are counted from zero"),
    # queues
    ("durable_queue", {"name": ""}, "a queue has a name"),
    ("durable_queue", {"concurrency": 0}, "a queue lets something through"),
    ("durable_queue", {"rate_limit": 5}, "a rate has a span"),
    ("durable_queue", {"rate_per": 5.0}, "a rate has a number"),
    ("durable_queue", {"rate_limit": 5, "rate_per": 0.0}, "the span is not empty"),
    ("durable_queue", {"rate_limit": 0, "rate_per": 1.0}, "the number is not zero"),
    ("durable_queue", {"priority": 2}, "yes or no"),
    ("durable_queue", {"partitioned": 2}, "yes or no"),
    # schedules
    ("durable_schedule", {"missed": "some"}, "the policy is one of three"),
    ("durable_schedule", {"name": ""}, "a schedule has a name"),
    ("durable_schedule", {"workflow": ""}, "a schedule has a workflow"),
    ("durable_schedule", {"passed_at": None}, "it begins somewhere"),
    ("durable_schedule", {"timeout": -1.0}, "no span of a workflow is negative"),
    ("durable_schedule", {"paused": 2}, "yes or no"),
]


@pytest.mark.parametrize(
    ("table", "changes"), [case[:2] for case in WRONG], ids=[case[2] for case in WRONG]
)
def test_a_wrong_row_is_refused(connection: sqlite3.Connection, table: str, changes: Any) -> None:
    """The file cannot hold a state that durable would not know what to do with."""
    with pytest.raises(sqlite3.IntegrityError):
        put(connection, table, **changes)


def test_a_running_workflow_cannot_be_changed_to_a_wrong_state(
    connection: sqlite3.Connection,
) -> None:
    """The checks hold for updates too."""
    put(connection, "durable_workflow")
    for change in ("status = 'SUCCESS'", "finished_at = 2.0", "error = '{}'", "id = ''"):
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(f"UPDATE durable_workflow SET {change}")


@pytest.mark.parametrize(
    "table",
    [
        "durable_workflow",
        "durable_step",
        "durable_step_by_time",
        "durable_event",
        "durable_stream",
        "durable_queue_start",
    ],
)
def test_a_second_row_of_one_key_is_refused(connection: sqlite3.Connection, table: str) -> None:
    """One run has an id, one outcome a step, one place a value of an event or a stream."""
    put(connection, table)
    with pytest.raises(sqlite3.IntegrityError):
        put(connection, table)


def test_a_second_message_of_one_idempotency_key_is_refused(
    connection: sqlite3.Connection,
) -> None:
    """For one workflow; another one may have its own of that key."""
    put(connection, "durable_message", idempotency_key="k")
    put(connection, "durable_message", idempotency_key="k", workflow=2)
    put(connection, "durable_message", idempotency_key=None)
    put(connection, "durable_message", idempotency_key=None)
    with pytest.raises(sqlite3.IntegrityError):
        put(connection, "durable_message", idempotency_key="k")


def test_a_second_unfinished_run_of_one_dedup_is_refused(connection: sqlite3.Connection) -> None:
    """In one queue; once the first has ended, the text is free again."""
    put(connection, "durable_workflow", queue="q", dedup="d")
    put(connection, "durable_workflow", queue="other", dedup="d", id="v")
    with pytest.raises(sqlite3.IntegrityError):
        put(connection, "durable_workflow", queue="q", dedup="d", id="x", status="ENQUEUED")
    connection.execute("UPDATE durable_workflow SET status = 'CANCELLED', finished_at = 2.0")
    put(connection, "durable_workflow", queue="q", dedup="d", id="x", status="ENQUEUED")


def test_a_second_run_to_come_of_one_debouncer_is_refused(connection: sqlite3.Connection) -> None:
    """Of one workflow and key; once the first is due, there may be another."""
    coming = {"status": "DELAYED", "queue": "q", "delay_until": 5.0, "debounce": "k"}
    put(connection, "durable_workflow", **coming)
    put(connection, "durable_workflow", **coming | {"id": "v", "name": "m:other"})
    with pytest.raises(sqlite3.IntegrityError):
        put(connection, "durable_workflow", **coming | {"id": "x"})
    connection.execute("UPDATE durable_workflow SET status = 'ENQUEUED'")
    put(connection, "durable_workflow", **coming | {"id": "x"})


def test_the_number_of_a_deleted_run_is_never_used_again(connection: sqlite3.Connection) -> None:
    """What still points to it can never mean another."""
    put(connection, "durable_workflow", id="a")
    put(connection, "durable_workflow", id="b")
    connection.execute("DELETE FROM durable_workflow")
    put(connection, "durable_workflow", id="c")

    assert connection.execute("SELECT seq FROM durable_workflow").fetchall() == [(3,)]


# ---------------------------------------------------------------------- what the queries use

# Scans that are meant, by the function that makes them.
ALLOWED = {
    "workflows.release_all": "goes over the partial index that holds unfinished runs only",
    "schedules.everything": "goes over all schedules, which are as many as the program declares",
    "schedules.find": "names the schedules that there are, where there is none of the name",
    "queues.names": "goes over the queues, of which there are a handful",
    "queues.with_work": "goes over the queues, too",
    "migrations._refuse_strangers": "counts the tables of a file that is not known yet",
}
# What EXPLAIN calls a scan and is none of a table: lists given as JSON, recursive queries, and the
# view, whose tables have lines of their own.
NO_TABLE = re.compile(
    r"SCAN (json_each\b|(\d+ )?CONSTANT ROWS?\b|family\b|\(subquery|durable_checkpoint\b)"
)


def plan(connection: sqlite3.Connection, statement: Statement) -> list[str]:
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.values)
    return [row[3] for row in rows]


@pytest.fixture
def plans(recorded: Recorder, session_path: Path) -> dict[str, list[str]]:
    """The plan of every statement of the session that touches tables, by the function it is of."""
    plans: dict[str, list[str]] = {}
    with closing(sqlite3.connect(session_path)) as connection:
        for statement in recorded.distinct().values():
            if statement.verb in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
                plans.setdefault(statement.caller, []).extend(plan(connection, statement))
    return plans


def test_no_query_scans_a_table(plans: dict[str, list[str]]) -> None:
    """However many runs the file has, what is looked for is found by a key or an index."""
    for caller, lines in plans.items():
        scans = [line for line in lines if "SCAN" in line and not NO_TABLE.match(line)]
        assert not scans or caller in ALLOWED, f"{caller}: {scans}"


def test_what_is_allowed_to_scan_exists(plans: dict[str, list[str]]) -> None:
    """The list of exceptions is no longer than it must be."""
    for caller in ALLOWED:
        assert any("SCAN" in line for line in plans[caller])


# Not for engines: what it may scan does not matter.
FOR_TOOLS = {"workflows.everything": "the testing kit replays all runs of a file"}


def test_the_session_runs_about_all_sql_that_there_is(recorded: Recorder) -> None:
    """Every function of the store that has SQL was called: the checks above leave nothing out."""
    store = Path(migrations.__file__).parent
    callers = {statement.caller for statement in recorded.statements}
    for file in store.glob("*.py"):
        if file.stem in ("database", "migrations", "lock"):
            continue
        for function in re.split(r"\n(?=def )", file.read_text("utf-8"))[1:]:
            name = f"{file.stem}.{function[4 : function.index('(')]}"
            has_sql = re.search(r"tx\.(execute|rows?)\(", function)
            called = name in callers or name in FOR_TOOLS
            assert not has_sql or called, f"the session of all kinds lacks {name}"


def indexes() -> dict[str, str]:
    """Each index that schema.sql makes, with the comment above it."""
    found = re.findall(r"-- (.+)\nCREATE (?:UNIQUE )?INDEX (\w+)", migrations.schema())
    return {name: comment for comment, name in found}


def test_each_index_says_what_it_is_for(connection: sqlite3.Connection) -> None:
    """Above its CREATE: the queries that it serves, or what it refuses."""
    made = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
    )
    assert {name for (name,) in made} == set(indexes())
    assert all(comment.startswith(("serves ", "refuses ")) for comment in indexes().values())


@pytest.mark.parametrize("index", indexes())
def test_each_index_is_used_by_the_queries_that_it_names(
    index: str, plans: dict[str, list[str]]
) -> None:
    """`serves module.function` is true: there is such a function, and its plan has the index."""
    named = re.findall(r"\b([a-z_]+)\.([a-z_]+)\b", indexes()[index])
    assert named or indexes()[index].startswith("refuses")
    for module, function in named:
        assert hasattr(importlib.import_module(f"durable.store.{module}"), function)
        lines = plans[f"{module}.{function}"]
        assert any(re.search(rf"INDEX {index}\b", line) for line in lines), lines


def test_unfinished_runs_are_found_without_looking_at_the_finished_ones(
    connection: sqlite3.Connection, recorded: Recorder
) -> None:
    """Recovery is as fast after a million finished runs as after none, and needs no sorting."""
    (statement,) = [
        each for each in recorded.distinct().values() if each.caller == "workflows.unfinished"
    ]
    assert plan(connection, statement) == [
        "SEARCH durable_workflow USING INDEX durable_workflow_unfinished (seq>?)"
    ]
