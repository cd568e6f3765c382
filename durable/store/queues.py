"""Queues: their limits, what waits in them, what holds a slot, and what was started when."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from durable.errors import InvalidArgument, QueueNotFound
from durable.store.tx import Tx
from durable.store.workflows import (
    STATE,
    NewWorkflow,
    Queued,
    State,
    columns,
    insert_row,
    queue_key,
    refuse_duplicate,
    state_of,
)

DELAYED: Final = "durable.delayed"
"""The queue, without limits, of what has a delay and no queue."""

# The epoch of a run of a queue that starts for the first time.
STARTED_ONCE: Final = 2

# Clocks count in floats: what a window's edge may be off by.
EDGE = 0.001


class Limits(NamedTuple):
    """What may change while a queue lives; None is no limit."""

    concurrency: int | None = None
    rate_limit: int | None = None
    rate_per: float | None = None


class QueueRow(NamedTuple):
    """A queue as it is declared, or as the file has it."""

    name: str
    limits: Limits = Limits()
    priority: bool = False
    partitioned: bool = False


class Room(NamedTuple):
    """A queue, and what there is in one partition of it."""

    queue: QueueRow
    running: int
    """How many hold a slot; 0 where that does not matter."""
    anybody_waits: bool


class Waiting(NamedTuple):
    """A run that waits for its turn, and what decides whose turn it is."""

    seq: int
    priority: int | None

    @property
    def turn(self) -> tuple[bool, int, int]:
        """The least is first: no priority before any, then the order of creation."""
        return (self.priority is not None, self.priority or 0, self.seq)


# ---------------------------------------------------------------------- the queues


def find(tx: Tx, name: str) -> QueueRow:
    """The queue of that name; QueueNotFound, which lists those that there are."""
    row = tx.row("SELECT * FROM durable_queue WHERE name = :name", {"name": name})
    if row is None:
        raise _not_found(tx, name)
    return _queue_of(row)


def look(tx: Tx, name: str, partition: str | None) -> Room:
    """The queue, and what there is in the partition; QueueNotFound as `find`.

    In one statement, as each run of a queue needs it twice. A slot is held as `running` has it.
    """
    row = tx.row(
        """
        SELECT *,
               iif(concurrency IS NULL, 0,
                   (SELECT count(*)
                      FROM durable_workflow
                     WHERE queue = :name AND partition IS :partition AND status = 'PENDING'
                       AND (holder IS NOT NULL OR reason IS NULL))) AS running,
               EXISTS (SELECT 1
                         FROM durable_workflow
                        WHERE queue = :name AND partition IS :partition AND status = 'ENQUEUED')
               AS anybody_waits
          FROM durable_queue
         WHERE name = :name
        """,
        {"name": name, "partition": partition},
    )
    if row is None:
        raise _not_found(tx, name)
    return Room(_queue_of(row), row["running"], bool(row["anybody_waits"]))


def _not_found(tx: Tx, name: str) -> QueueNotFound:
    return QueueNotFound(name, tuple(each for each in names(tx) if each != DELAYED))


def _queue_of(row: Any) -> QueueRow:
    return QueueRow(
        name=row["name"],
        limits=Limits(
            concurrency=row["concurrency"], rate_limit=row["rate_limit"], rate_per=row["rate_per"]
        ),
        priority=bool(row["priority"]),
        partitioned=bool(row["partitioned"]),
    )


def names(tx: Tx) -> list[str]:
    """All queues of the file."""
    rows = tx.rows("SELECT name FROM durable_queue ORDER BY name", {})
    return [row["name"] for row in rows]


def with_work(tx: Tx) -> list[str]:
    """The queues in which anything waits, for its turn or for its moment."""
    rows = tx.rows(
        """
        SELECT name
          FROM durable_queue
         WHERE EXISTS (SELECT 1 FROM durable_workflow
                        WHERE queue = durable_queue.name AND status = 'ENQUEUED')
            OR EXISTS (SELECT 1 FROM durable_workflow
                        WHERE queue = durable_queue.name AND status = 'DELAYED')
         ORDER BY name
        """,
        {},
    )
    return [row["name"] for row in rows]


def declare(tx: Tx, queue: QueueRow) -> None:
    """Make the queue known. Its limits count if they differ from those that were declared last.

    Else what was changed on the live queue since then stays.
    """
    limits = queue.limits
    tx.execute(
        """
        INSERT INTO durable_queue
               (name, concurrency, rate_limit, rate_per, priority, partitioned, declared)
        VALUES (:name, :concurrency, :rate_limit, :rate_per, :priority, :partitioned, :declared)
            ON CONFLICT (name) DO UPDATE
           SET concurrency = iif(declared = :declared, concurrency, :concurrency),
               rate_limit = iif(declared = :declared, rate_limit, :rate_limit),
               rate_per = iif(declared = :declared, rate_per, :rate_per),
               priority = :priority, partitioned = :partitioned, declared = :declared
         WHERE (declared, priority, partitioned) <> (:declared, :priority, :partitioned)
        """,
        {
            "name": queue.name,
            "concurrency": limits.concurrency,
            "rate_limit": limits.rate_limit,
            "rate_per": limits.rate_per,
            "priority": queue.priority,
            "partitioned": queue.partitioned,
            "declared": json.dumps([limits.concurrency, limits.rate_limit, limits.rate_per]),
        },
    )


def change(tx: Tx, name: str, limits: Limits) -> None:
    """Give the queue other limits, which hold until the code declares others than now."""
    tx.execute(
        """
        UPDATE durable_queue
           SET concurrency = :concurrency, rate_limit = :rate_limit, rate_per = :rate_per
         WHERE name = :name
        """,
        {
            "name": name,
            "concurrency": limits.concurrency,
            "rate_limit": limits.rate_limit,
            "rate_per": limits.rate_per,
        },
    )
    tx.touch(queue_key(name))


# ---------------------------------------------------------------------- coming in


def add(
    tx: Tx,
    new: NewWorkflow,
    *,
    now: float,
    queue: QueueRow | None = None,
    holder: int | None = None,
) -> int | None:
    """The number of the new run, which waits in its queue; with a `holder`, it has started there.

    None if the id exists already: nothing was written. QueueNotFound, Deduplicated, or
    InvalidArgument where the queue, if it was not looked up before, is none for such a run.
    """
    queued = new.queued
    assert queued is not None
    _check(queue or find(tx, queued.queue), queued)
    if queued.dedup is not None and not _exists(tx, new.id):
        refuse_duplicate(tx, queued.queue, queued.dedup)
    return _insert(tx, new, queued, now=now, holder=holder)


def _check(queue: QueueRow, queued: Queued) -> None:
    if queued.priority is not None and not queue.priority:
        raise InvalidArgument(
            f"queue {queue.name!r} has no priorities: declare it with "
            f"Queue({queue.name!r}, priority=True)"
        )
    if queued.partition is not None and not queue.partitioned:
        raise InvalidArgument(
            f"queue {queue.name!r} has no partitions: declare it with "
            f"Queue({queue.name!r}, partitioned=True)"
        )
    if queued.partition is None and queue.partitioned:
        raise InvalidArgument(
            f"queue {queue.name!r} is partitioned: say which one with options(partition=…)"
        )


def _exists(tx: Tx, workflow_id: str) -> bool:
    row = tx.row("SELECT 1 FROM durable_workflow WHERE id = :id", {"id": workflow_id})
    return row is not None


def _insert(
    tx: Tx,
    new: NewWorkflow,
    queued: Queued,
    *,
    now: float,
    holder: int | None = None,
    debounce: str | None = None,
) -> int | None:
    """The number of the run that was written: None if the id exists.

    One that starts with that has the epoch of one that was started once.
    """
    status = "DELAYED" if queued.delay else "ENQUEUED" if holder is None else "PENDING"
    row = columns(new, now, None if holder is None else now) | {
        "status": status,
        "epoch": 1 if holder is None else STARTED_ONCE,
        "holder": holder,
        "queue": queued.queue,
        "priority": queued.priority,
        "dedup": queued.dedup,
        "partition": queued.partition,
        "delay_until": None if queued.delay is None else now + queued.delay,
        "debounce": debounce,
    }
    return insert_row(tx, row)


# ---------------------------------------------------------------------- delays


def make_due(tx: Tx, queue: str, *, limit: int, now: float) -> int:
    """Let what was delayed until now, or before, wait for its turn; how many there were."""
    cursor = tx.execute(
        """
        UPDATE durable_workflow
           SET status = 'ENQUEUED'
         WHERE seq IN (SELECT seq
                         FROM durable_workflow
                        WHERE queue = :queue AND status = 'DELAYED' AND delay_until <= :now
                        ORDER BY delay_until
                        LIMIT :limit)
        """,
        {"queue": queue, "limit": limit, "now": now},
    )
    return cursor.rowcount


def next_due(tx: Tx, queue: str) -> float | None:
    """The moment until which the first of the delayed is."""
    row = tx.row(
        """
        SELECT min(delay_until) AS at
          FROM durable_workflow
         WHERE queue = :queue AND status = 'DELAYED'
        """,
        {"queue": queue},
    )
    return None if row is None else row["at"]


def debounce(tx: Tx, new: NewWorkflow, key: str, *, max_wait: float | None, now: float) -> str:
    """The id of the run to come of that name and key, which now has this input and delay.

    It starts `max_wait` seconds after the first call at the latest. One that is due is left alone,
    and another comes after it.
    """
    queued = new.queued
    assert queued is not None and queued.delay is not None
    _check(find(tx, queued.queue), queued)
    coming = _postpone(tx, new, key, queued.delay, max_wait, now)
    if coming is None:
        _let_go(tx, new.name, key)
        written = _insert(tx, new, queued, now=now, debounce=key)
        assert written is not None, "it has an id of its own"
        coming = new.id
    tx.touch(queue_key(queued.queue))
    return coming


def _postpone(
    tx: Tx, new: NewWorkflow, key: str, delay: float, max_wait: float | None, now: float
) -> str | None:
    row = tx.row(
        """
        UPDATE durable_workflow
           SET input = :input,
               delay_until = min(:now + :delay, coalesce(created_at + :max_wait, :now + :delay))
         WHERE debounce = :key AND name = :name AND status = 'DELAYED' AND delay_until > :now
        RETURNING id
        """,
        {
            "input": new.input,
            "delay": delay,
            "max_wait": max_wait,
            "key": key,
            "name": new.name,
            "now": now,
        },
    )
    return None if row is None else str(row["id"])


def _let_go(tx: Tx, name: str, key: str) -> None:
    """No call of the Debouncer changes the run that was to come any more."""
    tx.execute(
        """
        UPDATE durable_workflow
           SET debounce = NULL
         WHERE debounce = :key AND name = :name AND status = 'DELAYED'
        """,
        {"key": key, "name": name},
    )


# ---------------------------------------------------------------------- starting


def running(tx: Tx, queue: str, partition: str | None, *, most: int) -> int:
    """How many hold a slot of the partition, counted up to `most`.

    Those too that died with their process, as they are taken up again; but not what is in nobody's
    hands for a reason.
    """
    row = tx.row(
        """
        SELECT count(*) AS n
          FROM (SELECT 1
                  FROM durable_workflow
                 WHERE queue = :queue AND partition IS :partition AND status = 'PENDING'
                   AND (holder IS NOT NULL OR reason IS NULL)
                 LIMIT :most)
        """,
        {"queue": queue, "partition": partition, "most": most},
    )
    assert row is not None
    return int(row["n"])


def waiting(tx: Tx, queue: str, partition: str | None, *, limit: int) -> list[Waiting]:
    """The first that wait for their turn in the partition."""
    rows = tx.rows(
        """
        SELECT seq, priority
          FROM durable_workflow
         WHERE queue = :queue AND partition IS :partition AND status = 'ENQUEUED'
         ORDER BY priority, seq
         LIMIT :limit
        """,
        {"queue": queue, "partition": partition, "limit": limit},
    )
    return [Waiting(row["seq"], row["priority"]) for row in rows]


def next_partition(tx: Tx, queue: str, *, after: str) -> str | None:
    """The next partition, in the order of their names, in which anything waits."""
    row = tx.row(
        """
        SELECT partition
          FROM durable_workflow
         WHERE queue = :queue AND partition > :after AND status = 'ENQUEUED'
         ORDER BY partition
         LIMIT 1
        """,
        {"queue": queue, "after": after},
    )
    return None if row is None else str(row["partition"])


def start(tx: Tx, seq: int, *, holder: int, version: str | None, now: float) -> State:
    """The run, which now is in the hands of `holder`; LookupError if it does not wait."""
    # Not RETURNING *: SQLite keeps what it returns in a table, which takes as long as the rest.
    cursor = tx.execute(
        """
        UPDATE durable_workflow
           SET status = 'PENDING', holder = :holder, epoch = epoch + 1, reason = NULL,
               waits_for = NULL, wake_at = NULL, version = coalesce(version, :version),
               started_at = coalesce(started_at, :now),
               deadline_at = coalesce(deadline_at, :now + timeout)
         WHERE seq = :seq AND status = 'ENQUEUED'
        """,
        {"seq": seq, "holder": holder, "version": version, "now": now},
    )
    row = tx.row(f"SELECT {STATE} FROM durable_workflow WHERE seq = :seq", {"seq": seq})
    if row is None or cursor.rowcount != 1:
        raise LookupError(f"run {seq} waits in the index of its queue, and not in its row")
    return state_of(row)


def has_records(state: State) -> bool:
    """Whether a run that has just been started may have recorded steps: not if it is its first."""
    return state.epoch > STARTED_ONCE or state.seed != state.id


def held(tx: Tx, queue: str, holder: int) -> list[State]:
    """The runs of the queue that are in the hands of `holder`."""
    rows = tx.rows(
        f"""
        SELECT {STATE}
          FROM durable_workflow
         WHERE queue = :queue AND status = 'PENDING' AND holder = :holder
           AND (holder IS NOT NULL OR reason IS NULL)
        """,
        {"queue": queue, "holder": holder},
    )
    return [state_of(row) for row in rows]


def set_timeout(tx: Tx, state: State, timeout: float, *, now: float) -> None:
    """Give the run the timeout of its workflow: whoever enqueued it by name did not know it."""
    tx.execute(
        """
        UPDATE durable_workflow
           SET timeout = :timeout, deadline_at = :now + :timeout
         WHERE seq = :seq
        """,
        {"seq": state.seq, "timeout": timeout, "now": now},
    )


def put_back(tx: Tx, state: State) -> None:
    """A run that was in nobody's hands for a reason waits for its turn again, at its old place."""
    assert state.queue is not None
    tx.execute(
        """
        UPDATE durable_workflow
           SET status = 'ENQUEUED', reason = NULL
         WHERE seq = :seq AND epoch = :epoch AND status = 'PENDING' AND holder IS NULL
        """,
        {"seq": state.seq, "epoch": state.epoch},
    )
    tx.touch(queue_key(state.queue))


# ---------------------------------------------------------------------- the rate


class Window(NamedTuple):
    """The starts that still count, of a queue with a rate."""

    started: int = 0
    oldest_at: float | None = None
    last_number: int = 0


def window(tx: Tx, queue: str, *, per: float, now: float) -> Window:
    """The starts of the last `per` seconds; those before are forgotten."""
    newest = _edge_of_window(tx, queue, newest=True)
    if newest is None:
        return Window()
    if newest[0] > now:
        _correct_starts(tx, queue, now)
    _forget_starts(tx, queue, per, now)
    oldest, newest = (_edge_of_window(tx, queue, newest=each) for each in (False, True))
    if oldest is None or newest is None:
        return Window()
    return Window(newest[1] - oldest[1] + 1, oldest[0], newest[1])


def _edge_of_window(tx: Tx, queue: str, *, newest: bool) -> tuple[float, int] | None:
    if newest:
        row = tx.row(
            """
            SELECT at, number
              FROM durable_queue_start
             WHERE queue = :queue
             ORDER BY at DESC, number DESC
             LIMIT 1
            """,
            {"queue": queue},
        )
    else:
        row = tx.row(
            """
            SELECT at, number
              FROM durable_queue_start
             WHERE queue = :queue
             ORDER BY at, number
             LIMIT 1
            """,
            {"queue": queue},
        )
    return None if row is None else (float(row["at"]), int(row["number"]))


def _correct_starts(tx: Tx, queue: str, now: float) -> None:
    """Somebody set the clock back: what was started later than now, was started now."""
    tx.execute(
        "UPDATE durable_queue_start SET at = :now WHERE queue = :queue AND at > :now",
        {"queue": queue, "now": now},
    )


def _forget_starts(tx: Tx, queue: str, per: float, now: float) -> None:
    tx.execute(
        """
        DELETE FROM durable_queue_start
         WHERE queue = :queue AND at <= :now - :per + :edge AND at + :per <= :now
        """,
        {"queue": queue, "now": now, "per": per, "edge": EDGE},
    )


def note_start(tx: Tx, queue: str, number: int, *, now: float) -> None:
    """Something was started in a queue with a rate; `number` is one more than the last one's."""
    tx.execute(
        "INSERT INTO durable_queue_start (queue, at, number) VALUES (:queue, :now, :number)",
        {"queue": queue, "now": now, "number": number},
    )
