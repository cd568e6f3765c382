"""Recording steps: one by one, and many at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from durable.store import migrations, steps
from durable.store.steps import VALUE, Decided, Place
from durable.store.tx import Tx
from durable.store.workflows import RunIsOver

# More than one statement of each size takes.
MANY = 64 + 2 * 8 + 3
EPOCH = 2


@pytest.fixture
def tx() -> Iterator[Tx]:
    """A transaction on a file with `MANY` workflows, at their second epoch."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrations.prepare(connection, ":memory:", create=True)
        connection.executemany(
            "INSERT INTO durable_workflow (id, name, status, input, created_at, seed, epoch)"
            " VALUES (?, 'm:f', 'PENDING', '[[], {}]', 0, '', ?)",
            [(str(n), EPOCH) for n in range(MANY)],
        )
        yield Tx(connection)


def decided(seq: int, text: str = "null", epoch: int = EPOCH) -> Decided:
    return ("4", 7, "m:step", VALUE, text, 1, 0.1, 0.2, seq, epoch)


def recorded(tx: Tx) -> list[tuple[Any, ...]]:
    return tx.execute("SELECT * FROM durable_step ORDER BY workflow").fetchall()


def test_many_are_recorded_as_each_would_be(tx: Tx) -> None:
    """However many there are, and whatever they returned."""
    texts = ["null", '"\\u0000"', '"ä\U0001f600"', "1e308", '"' + "x" * 10_000 + '"']
    rows = [decided(seq, texts[seq % len(texts)]) for seq in range(1, MANY + 1)]
    for row in rows:
        steps.record(row, tx)
    one_by_one = recorded(tx)
    tx.execute("DELETE FROM durable_step")

    steps.record_all(rows, tx)
    assert recorded(tx) == one_by_one
    assert len(one_by_one) == MANY


@pytest.mark.parametrize("which", [1, 63, 64, 65, 73, 81, MANY])
def test_one_that_is_of_no_present_run_is_refused(tx: Tx, which: int) -> None:
    """Wherever it stands among the others, as it is when it comes alone."""
    rows = [decided(seq, epoch=EPOCH - (seq == which)) for seq in range(1, MANY + 1)]
    with pytest.raises(RunIsOver):
        steps.record(rows[which - 1], tx)
    with pytest.raises(RunIsOver):
        steps.record_all(rows, tx)


def test_one_that_has_ended_before_is_refused(tx: Tx) -> None:
    """What is recorded stays as it is."""
    steps.record(decided(5, "1"), tx)
    with pytest.raises(RunIsOver):
        steps.record_all([decided(seq, "2") for seq in range(1, 10)], tx)
    assert ("1",) in tx.execute("SELECT value FROM durable_step WHERE workflow = 5").fetchall()


def test_steps_that_were_to_be_tried_again_end(tx: Tx) -> None:
    """Their rows are there already: they get the outcome, and no moment any more."""
    for seq in range(1, 10):
        run = (seq, EPOCH)
        steps.postpone(tx, run, Place("4", 7), "m:step", until_at=9.0, started_at=0.1)
    steps.record_all([decided(seq) for seq in range(1, 10)], tx)

    rows = tx.execute("SELECT outcome, until_at FROM durable_step").fetchall()
    assert [tuple(row) for row in rows] == [(VALUE, None)] * 9
