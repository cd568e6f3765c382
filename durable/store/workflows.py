"""The runs of workflows: how one begins, is taken up, waits, ends, and goes on again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from durable.codec import decode_error
from durable.errors import Deduplicated, NonDeterminism, WorkflowConflict, WorkflowNotFound
from durable.records import Status
from durable.store.tx import Tx

# In `waits_for`: the run waits for what no single key of the file tells.
ANY_KEY = "any"
KINDS_IN_THE_FILE = ("message/", "event/", "workflow/", "stream/")


class RunIsOver(Exception):
    """The run that wants to write is not the present one, or has ended: nothing was written."""


class Queued(NamedTuple):
    """In which queue a run waits, and what for."""

    queue: str
    priority: int | None = None
    dedup: str | None = None
    partition: str | None = None
    delay: float | None = None


class NewWorkflow(NamedTuple):
    """What `insert` needs to know of a run, or `queues.add` of one that is `queued`."""

    id: str
    name: str
    input: str
    timeout: float | None = None
    parent_id: str | None = None
    version: str | None = None
    tags: tuple[str, ...] = ()
    queued: Queued | None = None


class State(NamedTuple):
    """What the engine needs to know of a run that the file has."""

    status: Status
    seq: int
    id: str
    name: str
    input: str
    epoch: int
    holder: int | None
    recoveries: int
    progress: int
    waits_for: str | None
    wake_at: float | None
    timeout: float | None
    deadline_at: float | None
    parent_id: str | None
    reason: str | None
    seed: str
    queue: str | None
    partition: str | None
    dedup: str | None


STATE = ", ".join(State._fields)
"""The columns of a `State`; those of a row that `state_of` is given begin with them."""


class Present(NamedTuple):
    """What may change of an unfinished run; all else is as it was as long as the epoch is."""

    epoch: int
    holder: int | None


class Ending(NamedTuple):
    """How a run ended, as recorded texts."""

    status: Status
    result: str | None
    error: str | None
    reason: str | None
    recoveries: int


def key(seq: int) -> str:
    """What those who wait for the end of a run wait for."""
    return f"workflow/{seq}"


def cancel_key(workflow_id: str) -> str:
    """Tells the engine that runs a workflow to stop it."""
    return f"cancel/{workflow_id}"


def key_to_wait_for(keys: Sequence[str]) -> str:
    """What `waits_for` keeps of the keys that a run listens to."""
    single = len(keys) == 1 and keys[0].startswith(KINDS_IN_THE_FILE)
    return keys[0] if single else ANY_KEY


def start_key(workflow_id: str) -> str:
    """Tells the engine that a workflow wants to be taken up."""
    return f"start/{workflow_id}"


def queue_key(queue: str) -> str:
    """Tells the engine that something in the queue may be able to start."""
    return f"queue/{queue}"


# ---------------------------------------------------------------------- beginning


def insert(tx: Tx, new: NewWorkflow, *, holder: int | None, now: float) -> int | None:
    """The number of the new run; None if the id exists already, and nothing was written."""
    return insert_row(tx, columns(new, now, now) | {"status": "PENDING", "holder": holder})


def columns(new: NewWorkflow, created_at: float, started_at: float | None) -> dict[str, Any]:
    """What the table keeps of a new run, whether it starts with that or waits."""
    deadline_at = None
    if started_at is not None and new.timeout is not None:
        deadline_at = started_at + new.timeout
    return {
        "id": new.id,
        "name": new.name,
        "input": new.input,
        "created_at": created_at,
        "started_at": started_at,
        "timeout": new.timeout,
        "deadline_at": deadline_at,
        "parent_id": new.parent_id,
        "seed": new.id,
        "version": new.version,
        "tags": json.dumps(new.tags) if new.tags else "[]",
    }


def insert_row(tx: Tx, row: dict[str, Any]) -> int | None:
    """As `insert`, given the columns; what is None is left out, and so NULL.

    To bind a None takes sqlite3 as long as five texts.
    """
    given = {name: value for name, value in row.items() if value is not None}
    cursor = tx.execute(_inserting(tuple(given)), tuple(given.values()))
    return cursor.lastrowid if cursor.rowcount else None


@lru_cache(maxsize=100)
def _inserting(columns: tuple[str, ...]) -> str:
    """The statement that inserts them."""
    return f"""
        INSERT INTO durable_workflow ({", ".join(columns)})
        VALUES ({", ".join("?" * len(columns))})
            ON CONFLICT (id) DO NOTHING
        """


# ---------------------------------------------------------------------- looking


def find(tx: Tx, workflow_id: str) -> State:
    """The run with that id; WorkflowNotFound if there is none."""
    row = tx.row(f"SELECT {STATE} FROM durable_workflow WHERE id = :id", {"id": workflow_id})
    if row is None:
        raise WorkflowNotFound(workflow_id)
    return state_of(row)


def find_with_ending(tx: Tx, workflow_id: str) -> tuple[State, Ending | None]:
    """The run with that id, and how it ended if it has; WorkflowNotFound if there is none."""
    row = tx.row(
        f"SELECT {STATE}, result, error, finished_at FROM durable_workflow WHERE id = :id",
        {"id": workflow_id},
    )
    if row is None:
        raise WorkflowNotFound(workflow_id)
    return state_of(row), _ending_of(row) if row["finished_at"] is not None else None


def unfinished(tx: Tx, *, after: int, limit: int) -> list[State]:
    """The runs to be recovered, in the order of their creation, from `after` on."""
    rows = tx.rows(
        f"""
        SELECT {STATE}
          FROM durable_workflow
         WHERE status = 'PENDING' AND seq > :after
         ORDER BY seq
         LIMIT :limit
        """,
        {"after": after, "limit": limit},
    )
    return [state_of(row) for row in rows]


def present(tx: Tx, seqs: Sequence[int]) -> dict[int, Present]:
    """Those of the runs that are unfinished: which run it is by now, and who has it."""
    rows = tx.rows(
        """
        SELECT seq, epoch, holder
          FROM durable_workflow
         WHERE seq IN (SELECT value FROM json_each(:seqs)) AND status = 'PENDING'
        """,
        {"seqs": json.dumps(seqs)},
    )
    return {seq: Present(epoch, holder) for seq, epoch, holder in rows}


def last(tx: Tx) -> int:
    """The number of the run that was created last; 0 if there is none."""
    row = tx.row("SELECT coalesce(max(seq), 0) AS seq FROM durable_workflow", {})
    assert row is not None
    return int(row["seq"])


def everything(tx: Tx) -> list[State]:
    """All runs of the file, in the order of their creation."""
    rows = tx.rows(f"SELECT {STATE} FROM durable_workflow ORDER BY seq", {})
    return [state_of(row) for row in rows]


def ending(tx: Tx, seq: int) -> Ending | None:
    """How the run ended; None while it has not."""
    row = tx.row(
        """
        SELECT status, result, error, reason, recoveries
          FROM durable_workflow
         WHERE seq = :seq AND finished_at IS NOT NULL
        """,
        {"seq": seq},
    )
    return None if row is None else _ending_of(row)


def _ending_of(row: Any) -> Ending:
    return Ending(
        status=Status(row["status"]),
        result=row["result"],
        error=row["error"],
        reason=row["reason"],
        recoveries=row["recoveries"],
    )


def ended(tx: Tx, seqs: Sequence[int]) -> dict[int, float]:
    """Those of the runs that have ended, and when."""
    rows = tx.rows(
        """
        SELECT seq, finished_at
          FROM durable_workflow
         WHERE seq IN (SELECT value FROM json_each(:seqs)) AND finished_at IS NOT NULL
        """,
        {"seqs": json.dumps(seqs)},
    )
    return {row["seq"]: row["finished_at"] for row in rows}


def is_current(tx: Tx, seq: int, epoch: int) -> bool:
    """Whether the run is unfinished, and has not been taken up again since."""
    row = tx.row(
        "SELECT 1 FROM durable_workflow WHERE seq = :seq AND epoch = :epoch AND status = 'PENDING'",
        {"seq": seq, "epoch": epoch},
    )
    return row is not None


def guard(tx: Tx, seq: int, epoch: int) -> None:
    """Raise RunIsOver unless `is_current`: the run may not have any further effect."""
    if not is_current(tx, seq, epoch):
        raise RunIsOver


# ---------------------------------------------------------------------- running


def take_up(
    tx: Tx, state: State, *, holder: int, recoveries: int, progress: int, now: float
) -> int | None:
    """The epoch of the run that begins; None if another thread took it up, or it ended."""
    cursor = tx.execute(
        """
        UPDATE durable_workflow
           SET holder = :holder, epoch = epoch + 1, recoveries = :recoveries,
               progress = :progress, reason = NULL, waits_for = NULL,
               wake_at = iif(wake_at > :now, wake_at, NULL),
               started_at = coalesce(started_at, :now),
               deadline_at = coalesce(deadline_at, :now + timeout)
         WHERE seq = :seq AND epoch = :epoch AND status = 'PENDING'
        """,
        {
            "seq": state.seq,
            "epoch": state.epoch,
            "holder": holder,
            "recoveries": recoveries,
            "progress": progress,
            "now": now,
        },
    )
    return state.epoch + 1 if cursor.rowcount == 1 else None


def give_up(tx: Tx, state: State, *, reason: str, recoveries: int, now: float) -> None:
    """The run is DEAD."""
    tx.execute(
        """
        UPDATE durable_workflow
           SET status = 'DEAD', reason = :reason, recoveries = :recoveries,
               finished_at = :now, holder = NULL, epoch = epoch + 1
         WHERE seq = :seq AND epoch = :epoch AND status = 'PENDING'
        """,
        {
            "seq": state.seq,
            "epoch": state.epoch,
            "reason": reason,
            "recoveries": recoveries,
            "now": now,
        },
    )
    tx.touch(key(state.seq))
    _free_slot(tx, state.queue)


def _free_slot(tx: Tx, queue: str | None) -> None:
    """A run of the queue, if it is of one, does not hold its slot any more."""
    if queue is not None:
        tx.touch(queue_key(queue))


def set_waiting(
    tx: Tx, seq: int, epoch: int, *, waits_for: str | None, wake_at: float | None
) -> None:
    """The run waits for a key, or until a moment; with None for both it does not wait any more."""
    tx.execute(
        """
        UPDATE durable_workflow
           SET waits_for = :waits_for, wake_at = :wake_at
         WHERE seq = :seq AND epoch = :epoch
        """,
        {"seq": seq, "epoch": epoch, "waits_for": waits_for, "wake_at": wake_at},
    )


def release(tx: Tx, seq: int, epoch: int, reason: str | None) -> None:
    """The run is in nobody's hands, although this process lives; `reason` says why.

    With a reason it has no slot in its queue, until it waits there again (`queues.put_back`).
    """
    row = tx.row(
        """
        UPDATE durable_workflow
           SET holder = NULL, reason = :reason
         WHERE seq = :seq AND epoch = :epoch AND status = 'PENDING'
        RETURNING queue
        """,
        {"seq": seq, "epoch": epoch, "reason": reason},
    )
    if row is not None:
        _free_slot(tx, row["queue"])


def release_all(tx: Tx, holder: int) -> None:
    """The engine closes: none of its runs counts as one that died with it."""
    tx.execute(
        "UPDATE durable_workflow SET holder = NULL WHERE status = 'PENDING' AND holder = :holder",
        {"holder": holder},
    )


# ---------------------------------------------------------------------- ending


def finish(
    tx: Tx, seq: int, epoch: int, *, result: str | None, error: str | None, now: float
) -> bool:
    """Record the outcome, and say whether it counts: a run ends once, and only the present one."""
    tx.touch(key(seq))
    status, column, text = "SUCCESS", "result", result
    if error is not None:
        status, column, text = "ERROR", "error", error
    cursor = tx.execute(
        f"""
        UPDATE durable_workflow
           SET status = ?, {column} = ?, finished_at = ?,
               holder = NULL, waits_for = NULL, wake_at = NULL, reason = NULL
         WHERE seq = ? AND epoch = ? AND status = 'PENDING'
        """,
        (status, text, now, seq, epoch),
    )
    return cursor.rowcount == 1


def family(tx: Tx, workflow_id: str) -> list[State]:
    """The run with that id and all that descend from it, parents first."""
    rows = tx.rows(
        f"""
        WITH RECURSIVE family (id, depth) AS (
            SELECT :id, 0
             UNION
            SELECT child.id, family.depth + 1
              FROM family JOIN durable_workflow AS child ON child.parent_id = family.id
        )
        SELECT {STATE}
          FROM family CROSS JOIN durable_workflow USING (id)
         ORDER BY family.depth, seq
        """,
        {"id": workflow_id},
    )
    return [state_of(row) for row in rows]


def cancel(tx: Tx, workflow_id: str, *, children: bool, reason: str, now: float) -> Status | None:
    """Cancel the run, and all that descend from it; None if it did, else how it had ended.

    A finished run is left as it is, and its descendants too.
    """
    state = find(tx, workflow_id)
    if state.status.finished:
        return state.status
    for each in family(tx, workflow_id) if children else [state]:
        if not each.status.finished:
            own = each.seq == state.seq
            _cancel_one(
                tx,
                each,
                reason=reason if own else f"its ancestor {workflow_id!r} was stopped: {reason}",
                cancelled_by=None if own else workflow_id,
                now=now,
            )
    return None


def _cancel_one(tx: Tx, state: State, *, reason: str, cancelled_by: str | None, now: float) -> None:
    tx.execute(
        """
        UPDATE durable_workflow
           SET status = 'CANCELLED', reason = :reason, cancelled_by = :cancelled_by,
               finished_at = :now, holder = NULL
         WHERE seq = :seq
        """,
        {"seq": state.seq, "reason": reason, "cancelled_by": cancelled_by, "now": now},
    )
    tx.touch(key(state.seq))
    tx.touch(cancel_key(state.id))
    _free_slot(tx, state.queue)


def resume(tx: Tx, workflow_id: str, *, now: float) -> None:
    """Make a stopped run unfinished again, with what its cancel took along.

    Its recorded steps stay; its deadline, if it had one, begins anew.
    """
    state = find(tx, workflow_id)
    if not _may_resume(tx, state):
        raise WorkflowConflict(
            workflow_id,
            f"ended as {state.status}; only what was cancelled, is dead or ended in "
            "NonDeterminism can be resumed, and fork() begins a copy of any other",
        )
    _resume_one(tx, state, now)
    for each in family(tx, workflow_id):
        if each.status is Status.CANCELLED and _cancelled_by(tx, each.seq) == workflow_id:
            _resume_one(tx, each, now)


def _may_resume(tx: Tx, state: State) -> bool:
    if state.status in (Status.CANCELLED, Status.DEAD):
        return True
    end = ending(tx, state.seq)
    if end is None or end.error is None:
        return False
    return isinstance(decode_error(end.error), NonDeterminism)


def _cancelled_by(tx: Tx, seq: int) -> str | None:
    row = tx.row("SELECT cancelled_by FROM durable_workflow WHERE seq = :seq", {"seq": seq})
    return None if row is None else row["cancelled_by"]


def _resume_one(tx: Tx, state: State, now: float) -> None:
    """One of a queue waits there again, at its old place; its deadline counts from its start."""
    if state.queue is not None and state.dedup is not None:
        refuse_duplicate(tx, state.queue, state.dedup)
    tx.execute(
        """
        UPDATE durable_workflow
           SET status = CASE WHEN queue IS NULL THEN 'PENDING'
                             WHEN delay_until > :now THEN 'DELAYED'
                             ELSE 'ENQUEUED' END,
               epoch = epoch + 1, holder = NULL, recoveries = 0,
               result = NULL, error = NULL, reason = NULL, cancelled_by = NULL,
               finished_at = NULL, waits_for = NULL, wake_at = NULL, debounce = NULL,
               deadline_at = iif(queue IS NULL, :now + timeout, NULL)
         WHERE seq = :seq
        """,
        {"seq": state.seq, "now": now},
    )
    tx.touch(start_key(state.id) if state.queue is None else queue_key(state.queue))


def find_dedup(tx: Tx, queue: str, dedup: str) -> str | None:
    """The id of the run that waits or runs in the queue under `dedup`."""
    row = tx.row(
        """
        SELECT id
          FROM durable_workflow
         WHERE queue = :queue AND dedup = :dedup AND finished_at IS NULL
        """,
        {"queue": queue, "dedup": dedup},
    )
    return None if row is None else str(row["id"])


def refuse_duplicate(tx: Tx, queue: str, dedup: str) -> None:
    """Raise Deduplicated if a run waits or runs in the queue under `dedup`."""
    holder = find_dedup(tx, queue, dedup)
    if holder is not None:
        raise Deduplicated(queue, dedup, holder)


def fork(tx: Tx, original: State, new_id: str, *, now: float) -> int:
    """The number of a copy of the run with no records; WorkflowConflict if the id exists.

    A copy of one of a queue waits its turn there, behind those that wait already.
    """
    cursor = tx.execute(
        """
        INSERT INTO durable_workflow
               (id, name, status, input, created_at, timeout, seed, version, tags,
                queue, priority, partition)
        SELECT :id, name, iif(queue IS NULL, 'PENDING', 'ENQUEUED'), input, :now, timeout, seed,
               version, tags, queue, priority, partition
          FROM durable_workflow
         WHERE seq = :seq
            ON CONFLICT (id) DO NOTHING
        """,
        {"id": new_id, "now": now, "seq": original.seq},
    )
    if not cursor.rowcount or cursor.lastrowid is None:
        raise WorkflowConflict(new_id, "exists already; a fork needs an id of its own")
    tx.touch(start_key(new_id) if original.queue is None else queue_key(original.queue))
    return cursor.lastrowid


# ---------------------------------------------------------------------- sessions


def open_session(tx: Tx, *, pid: int, version: str | None, now: float) -> int:
    """The number of the engine that opens the file."""
    cursor = tx.execute(
        """
        INSERT INTO durable_session (pid, version, opened_at) VALUES (:pid, :version, :now)
        """,
        {"pid": pid, "version": version, "now": now},
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def close_session(tx: Tx, session: int, *, now: float) -> None:
    """The engine closes the file, and holds no run any more."""
    release_all(tx, session)
    tx.execute(
        "UPDATE durable_session SET closed_at = :now WHERE seq = :session",
        {"session": session, "now": now},
    )


def state_of(row: Any) -> State:
    """The record of a row that begins with `STATE`; ValueError if its status makes no sense."""
    # By position: to look up a name, sqlite3 compares it with those of all columns before it.
    return State(Status(row[0]), *row[1 : len(State._fields)])
