"""The tables of queues: limits that last, windows that slide, runs that come and start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from durable.clock import SystemClock
from durable.errors import Deduplicated, InvalidArgument, QueueNotFound
from durable.store import queues
from durable.store.connections import MEMORY
from durable.store.database import Database
from durable.store.queues import Limits, QueueRow, Window
from durable.store.tx import Tx
from durable.store.workflows import NewWorkflow, Queued, find


@pytest.fixture
def tx() -> Iterator[Tx]:
    """A transaction of a file with a queue of each kind."""
    database = Database(
        MEMORY,
        clock=SystemClock(),
        synchronous="normal",
        create=True,
        on_commit=lambda keys: None,
    )
    tx = Tx(database.open()._writer)
    queues.declare(tx, QueueRow(name="plain", limits=Limits(concurrency=2)))
    queues.declare(tx, QueueRow(name="rich", priority=True, partitioned=True))
    yield tx
    database.close()


def run(name: str, **options: object) -> NewWorkflow:
    queued = Queued(**{"queue": "plain", **options})  # type: ignore[arg-type]
    return NewWorkflow(id=name, name="m:f", input="[[],{}]", queued=queued)


def test_limits_of_the_code_and_of_a_change(tx: Tx) -> None:
    """What is declared again as before leaves a change alone; something else replaces it."""
    queues.change(tx, "plain", Limits(rate_limit=5, rate_per=1.0))
    queues.declare(tx, QueueRow(name="plain", limits=Limits(concurrency=2)))
    assert queues.find(tx, "plain").limits == Limits(rate_limit=5, rate_per=1.0)
    queues.declare(tx, QueueRow(name="plain", limits=Limits(concurrency=3)))
    assert queues.find(tx, "plain").limits == Limits(concurrency=3)


def test_the_kind_of_a_queue_is_what_the_code_says(tx: Tx) -> None:
    """And the limits that were changed stay."""
    queues.change(tx, "plain", Limits(concurrency=7))
    queues.declare(tx, QueueRow(name="plain", limits=Limits(concurrency=2), priority=True))
    assert queues.find(tx, "plain") == QueueRow(
        name="plain", limits=Limits(concurrency=7), priority=True
    )


def test_an_unknown_queue(tx: Tx) -> None:
    """The known ones are listed; durable's own is not."""
    queues.declare(tx, QueueRow(name=queues.DELAYED))
    with pytest.raises(QueueNotFound) as caught:
        queues.find(tx, "other")
    assert caught.value.known == ("plain", "rich")


def test_only_what_changes_is_written(tx: Tx) -> None:
    """A declaration that the file has already costs nothing."""
    before = tx._connection.total_changes
    queues.declare(tx, QueueRow(name="plain", limits=Limits(concurrency=2)))
    assert tx._connection.total_changes == before


def test_an_id_comes_before_its_dedup(tx: Tx) -> None:
    """The same run again is not a second one; another under the same text is."""
    assert queues.add(tx, run("a", dedup="d"), now=1.0)
    assert queues.add(tx, run("a", dedup="d"), now=2.0) is None
    with pytest.raises(Deduplicated):
        queues.add(tx, run("b", dedup="d"), now=3.0)


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 1},
        {"partition": "a"},
        {"queue": "rich", "priority": 1},
    ],
)
def test_what_the_queue_is_not_for(tx: Tx, options: dict[str, object]) -> None:
    """A priority, a partition, or none where there must be one."""
    with pytest.raises(InvalidArgument):
        queues.add(tx, run("a", **options), now=1.0)


def test_the_order_of_turns(tx: Tx) -> None:
    """None before any, then the lower priority, then the order of coming."""
    for name, priority in {"a": 5, "b": None, "c": -1, "d": 5, "e": None}.items():
        queues.add(tx, run(name, queue="rich", partition="p", priority=priority), now=1.0)
    found = queues.waiting(tx, "rich", "p", limit=10)
    assert [each.seq for each in found] == [find(tx, name).seq for name in "becad"]
    assert found == sorted(found, key=lambda each: each.turn)


def test_who_holds_a_slot(tx: Tx) -> None:
    """What runs, and what is to be taken up again; not what has a reason and no holder."""
    for name in "abc":
        queues.add(tx, run(name), now=1.0)
        queues.start(tx, find(tx, name).seq, holder=1, version=None, now=1.0)
    tx.execute("UPDATE durable_workflow SET holder = NULL WHERE id IN ('b', 'c')")
    tx.execute("UPDATE durable_workflow SET reason = 'no code' WHERE id = 'c'")
    assert queues.running(tx, "plain", None, most=10) == 2
    assert queues.running(tx, "plain", None, most=1) == 1
    queues.put_back(tx, find(tx, "c"))
    assert [each.seq for each in queues.waiting(tx, "plain", None, limit=10)] == [find(tx, "c").seq]


def test_only_what_waits_is_started(tx: Tx) -> None:
    """A run that an index shows in a queue, and its row does not: the file is damaged."""
    queues.add(tx, run("a"), now=1.0)
    tx.execute("UPDATE durable_workflow SET status = 'PENDING', holder = 2")
    for seq in (find(tx, "a").seq, 77):
        with pytest.raises(LookupError, match=f"run {seq} waits in the index of its queue"):
            queues.start(tx, seq, holder=1, version=None, now=1.0)
    assert find(tx, "a").holder == 2


def test_a_deadline_that_runs_is_kept(tx: Tx) -> None:
    """A run that comes back to its queue, and starts again, has no more time than before."""
    new = NewWorkflow(
        id="a", name="m:f", input="[[],{}]", timeout=60.0, queued=Queued(queue="plain")
    )
    queues.add(tx, new, now=1.0)
    assert find(tx, "a").deadline_at is None
    queues.start(tx, find(tx, "a").seq, holder=1, version=None, now=10.0)
    tx.execute("UPDATE durable_workflow SET holder = NULL, reason = 'no code'")
    queues.put_back(tx, find(tx, "a"))
    queues.start(tx, find(tx, "a").seq, holder=1, version=None, now=50.0)
    assert find(tx, "a").deadline_at == 70.0


def test_a_window_slides(tx: Tx) -> None:
    """A start counts for exactly as long as the span, whatever floats make of it."""
    for number in range(1, 6):
        queues.note_start(tx, "plain", number, now=number * 0.1)
    assert queues.window(tx, "plain", per=10.0, now=0.5) == Window(5, 0.1, 5)
    oldest_gone = 0.1 + 10.0
    assert queues.window(tx, "plain", per=10.0, now=oldest_gone) == Window(4, 0.2, 5)
    assert queues.window(tx, "plain", per=10.0, now=99.0) == Window()
    assert queues.window(tx, "rich", per=10.0, now=99.0) == Window()


def test_a_window_after_the_clock_was_set_back(tx: Tx) -> None:
    """What was started later than now was started now."""
    queues.note_start(tx, "plain", 1, now=1000.0)
    queues.note_start(tx, "plain", 2, now=1000.0)
    assert queues.window(tx, "plain", per=10.0, now=5.0) == Window(2, 5.0, 2)


def test_what_is_due_waits_for_its_turn(tx: Tx) -> None:
    """The first to be due first, so many at once as is said."""
    for name, delay in {"a": 3.0, "b": 1.0, "c": 2.0}.items():
        queues.add(tx, run(name, delay=delay), now=0.0)
    assert queues.next_due(tx, "plain") == 1.0
    assert queues.make_due(tx, "plain", limit=1, now=2.0) == 1
    assert [find(tx, name).status for name in "abc"] == ["DELAYED", "ENQUEUED", "DELAYED"]
    assert queues.make_due(tx, "plain", limit=9, now=2.0) == 1
    assert queues.next_due(tx, "plain") == 3.0


def test_partitions_one_after_the_other(tx: Tx) -> None:
    """Those in which anything waits, by name."""
    for number, partition in enumerate("baab"):
        queues.add(tx, run(f"w{number}", queue="rich", partition=partition), now=1.0)
    assert queues.next_partition(tx, "rich", after="") == "a"
    assert queues.next_partition(tx, "rich", after="a") == "b"
    assert queues.next_partition(tx, "rich", after="b") is None


def test_queues_with_work(tx: Tx) -> None:
    """Where something waits for its turn, or for its moment."""
    assert queues.with_work(tx) == []
    queues.add(tx, run("a", delay=5.0), now=1.0)
    assert queues.with_work(tx) == ["plain"]
    queues.add(tx, run("b", queue="rich", partition="p"), now=1.0)
    assert queues.with_work(tx) == ["plain", "rich"]
