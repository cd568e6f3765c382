"""Recording steps: one by one, and many at once."""

from __future__ import annotations

import sqlite3
import statistics
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from durable.store import migrations, steps
from durable.store.steps import SEVERAL, VALUE, Decided, Outcome, Place
from durable.store.tx import Tx
from durable.store.workflows import RunIsOver

# More than one statement of each size takes.
MANY = 64 + 2 * 8 + 3
EPOCH = 2

PLACE = Place("4", 7)
TABLES = ("durable_step", "durable_step_by_time")
TEXTS = {"short": "1", "long": '"' + "x" * 2_000 + '"'}


@pytest.fixture
def tx() -> Iterator[Tx]:
    """A transaction on a file with `MANY` workflows, at their second epoch."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrations.prepare(connection, ":memory:", create=True)
        add_workflows(connection, MANY)
        yield Tx(connection)


def add_workflows(connection: sqlite3.Connection, count: int) -> None:
    connection.executemany(
        "INSERT INTO durable_workflow (id, name, status, input, created_at, seed, epoch)"
        " VALUES (?, 'm:f', 'PENDING', '[[], {}]', 0, '', ?)",
        [(str(n), EPOCH) for n in range(count)],
    )


def log_size(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


def decided(seq: int, text: str = "null", epoch: int = EPOCH, attempt: int = 1) -> Decided:
    return ("4", 7, "m:step", VALUE, text, attempt, 0.1, 0.2, seq, epoch)


def recorded(tx: Tx, table: str = "durable_checkpoint") -> list[tuple[Any, ...]]:
    return tx.execute(f"SELECT * FROM {table} ORDER BY workflow").fetchall()


def test_many_are_recorded_as_each_would_be(tx: Tx) -> None:
    """However many there are, and whatever they returned."""
    texts = ["null", '"\\u0000"', '"ä\U0001f600"', "1e308", '"' + "x" * 10_000 + '"']
    rows = [decided(seq, texts[seq % len(texts)]) for seq in range(1, MANY + 1)]
    for row in rows:
        steps.record(row, tx)
    one_by_one = recorded(tx)
    for table in TABLES:
        tx.execute(f"DELETE FROM {table}")

    steps.record_all(rows, tx)
    assert recorded(tx) == one_by_one
    assert len(one_by_one) == MANY
    assert len(recorded(tx, "durable_step_by_time")) == MANY


@pytest.mark.parametrize("which", [1, 63, 64, 65, 73, 81, MANY])
def test_one_that_is_of_no_present_run_is_refused(tx: Tx, which: int) -> None:
    """Wherever it stands among the others, as it is when it comes alone."""
    rows = [decided(seq, epoch=EPOCH - (seq == which)) for seq in range(1, MANY + 1)]
    with pytest.raises(RunIsOver):
        steps.record(rows[which - 1], tx)
    with pytest.raises(RunIsOver):
        steps.record_all(rows, tx)


def test_a_row_that_makes_no_sense_is_not_taken_for_one_of_a_run_that_is_over(tx: Tx) -> None:
    """What the schema refuses for another reason is an error of its own."""
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        steps.record(("", 0, *decided(1)[2:]), tx)


@pytest.mark.parametrize("first", [1, SEVERAL])
@pytest.mark.parametrize("second", [1, SEVERAL])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_one_that_has_ended_before_is_refused(tx: Tx, first: int, second: int, text: str) -> None:
    """What is recorded stays as it is, whether it came alone or with others, short or long."""
    steps.record_all([decided(seq, "1") for seq in range(5, 5 + first)], tx)
    with pytest.raises(RunIsOver):
        steps.record_all([decided(seq, text) for seq in (5, *range(20, 19 + second))], tx)
    with pytest.raises(RunIsOver):
        steps.postpone(tx, (5, EPOCH), PLACE, "m:step", until_at=9.0, started_at=0.1)

    assert [row[5] for row in recorded(tx) if row[0] == 5] == ["1"]


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("others", [0, 1, SEVERAL])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_steps_that_were_to_be_tried_again_end(
    tx: Tx, attempt: int, others: int, text: str
) -> None:
    """Their rows are there already: they get the outcome, and no moment any more."""
    for seq in range(1, 10):
        steps.postpone(tx, (seq, EPOCH), PLACE, "m:step", until_at=9.0, started_at=0.1)
    new = [decided(seq, text) for seq in range(10, 10 + others)]
    steps.record(decided(1, text, attempt=attempt), tx)
    steps.record_all([decided(seq, text, attempt=attempt) for seq in range(2, 10)] + new, tx)

    found = [steps.load(tx, seq)[PLACE] for seq in range(1, 10 + others)]
    assert all(each.outcome == (VALUE, text) and each.until_at is None for each in found)
    assert [each.attempt for each in found] == [attempt] * 9 + [1] * others
    assert len(recorded(tx)) == 9 + others


@pytest.mark.parametrize("run", [3, 10])
def test_beside_a_step_that_is_tried_again_a_run_that_is_over_is_refused(tx: Tx, run: int) -> None:
    """Whether it has to be in the one table or in the other."""
    for seq in range(1, 5):
        steps.postpone(tx, (seq, EPOCH), PLACE, "m:step", until_at=9.0, started_at=0.1)
    rows = [decided(seq, epoch=EPOCH - (seq == run)) for seq in range(1, 20)]
    with pytest.raises(RunIsOver):
        steps.record_all(rows, tx)


@pytest.mark.parametrize("together", [1, SEVERAL])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_cancelled_call_is_recorded_once(tx: Tx, together: int, text: str) -> None:
    """In the place of its outcome, wherever that stands; a run that is over changes nothing."""
    steps.record_all([decided(seq, text) for seq in range(1, 1 + together)], tx)
    with pytest.raises(RunIsOver):
        steps.cancel(tx, (1, EPOCH - 1), PLACE, "m:step", now=0.3)
    assert [row[4] for row in recorded(tx)] == ["value"] * together

    steps.cancel(tx, (1, EPOCH), PLACE, "m:step", now=0.3)
    assert [row[4] for row in recorded(tx)] == ["cancelled"] + ["value"] * (together - 1)


@pytest.mark.parametrize("together", [1, SEVERAL])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_fork_gets_the_steps_wherever_they_stand(tx: Tx, together: int, text: str) -> None:
    """Those before a number, as they were recorded."""
    steps.record_all([decided(seq, text) for seq in range(1, 1 + together)], tx)
    steps.copy(tx, 1, MANY, 5)
    steps.copy(tx, 1, MANY - 1, 4)  # the lane was opened by step 4

    assert steps.load(tx, MANY) == steps.load(tx, 1)
    assert steps.load(tx, MANY - 1) == {}


@pytest.mark.parametrize("together", [1, SEVERAL - 1])
def test_a_long_value_goes_by_time(tx: Tx, together: int) -> None:
    """Alone, or among a few short ones, which stay by place."""
    text = TEXTS["long"]
    steps.record_all([decided(1, text), *(decided(seq, "1") for seq in range(2, 1 + together))], tx)

    by_place, by_time = (recorded(tx, table) for table in TABLES)
    assert [row[5] for row in by_time] == [text]
    assert [row[5] for row in by_place] == ["1"] * (together - 1)


@pytest.mark.parametrize("noted", [False, True])
def test_a_long_message_is_recorded_wherever_its_wait_stands(tx: Tx, noted: bool) -> None:
    """By time; by place where the wait for it was noted there."""
    if noted:
        steps.postpone(tx, (1, EPOCH), PLACE, "m:recv", until_at=9.0, started_at=0.1)
    outcome = Outcome(VALUE, TEXTS["long"])
    steps.decide(tx, (1, EPOCH), PLACE, "m:recv", outcome, started_at=0.1, now=0.2)

    assert [len(recorded(tx, table)) for table in TABLES] == [noted, not noted]
    assert steps.load(tx, 1)[PLACE].outcome == outcome


def test_a_long_value_needs_little_more_room_than_it_has(tx: Tx) -> None:
    """Two of 1,500 characters to a page of 4,096 bytes."""
    (before,) = tx.execute("PRAGMA page_count").fetchone()
    text = '"' + "x" * 1_500 + '"'
    for number in range(1, 201):
        steps.record(("", number, *decided(1, text)[2:]), tx)
    (after,) = tx.execute("PRAGMA page_count").fetchone()
    assert after - before <= 110


def test_steps_of_one_commit_stand_side_by_side(tmp_path: Path) -> None:
    """64 long workflows that commit together write a few pages, not one for each of them."""
    path = tmp_path / "test.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrations.prepare(connection, str(path), create=True)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        add_workflows(connection, 64)
        written = []
        for number in range(1, 151):
            rows = [("", number, *decided(seq)[2:]) for seq in range(1, 65)]
            size = log_size(path)
            connection.execute("BEGIN")
            steps.record_all(rows, Tx(connection))
            connection.execute("COMMIT")
            written.append((log_size(path) - size) // 4096)
    assert max(written) < 40
    assert statistics.mean(written) < 25
