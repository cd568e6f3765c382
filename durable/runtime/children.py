"""What one workflow asks of another: its end, which ended first, to stop, to go on, a fork."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from durable.checks import check_count, check_id
from durable.errors import (
    WorkflowCancelled,
    WorkflowDead,
    WorkflowNotFound,
)
from durable.records import Cancellation, Status
from durable.runtime.blocking import warn_if_behind
from durable.runtime.checkpoint import Subject, awaited, effect, error_outcome, settle, wait_for
from durable.runtime.context import Scope, StepCall
from durable.runtime.fates import Fate
from durable.runtime.file import File
from durable.runtime.flows import Flow, Listen, Read, Wait, Write
from durable.runtime.messages import MISSING, timed_out
from durable.store import events, messages, steps, streams, workflows
from durable.store.steps import ERROR, NOWHERE, TIMEOUT, VALUE, Outcome, Place
from durable.store.tx import Tx


def outcome_of(workflow_id: str, ending: workflows.Ending) -> Outcome:
    """What waiting for a finished workflow gives."""
    if ending.status is Status.SUCCESS:
        return Outcome(VALUE, ending.result)
    if ending.status is Status.ERROR:
        return Outcome(ERROR, ending.error)
    if ending.status is Status.DEAD:
        return error_outcome(WorkflowDead(workflow_id, ending.recoveries))
    return error_outcome(WorkflowCancelled(workflow_id, ending.reason or "cancelled"))


# ---------------------------------------------------------------------- the end of one


def result(file: File, scope: Scope | None, workflow_id: str, timeout: float | None) -> Flow[Any]:
    """What the workflow returned, or raise what it raised; recorded in the body of a workflow."""

    def subject(tx: Tx) -> Subject:
        return _end_of(tx, workflow_id, scope)

    if scope is not None and not isinstance(scope, StepCall):
        outcome = yield from awaited(scope, f"durable.result:{workflow_id}", subject, timeout)
    else:
        outcome = yield from _end_outside(file, scope, workflow_id, timeout)
    if outcome.kind == TIMEOUT:
        return timed_out(f"the end of workflow {workflow_id!r}", timeout, MISSING)
    return settle(outcome, file.codec)


def _end_outside(
    file: File, scope: Scope | None, workflow_id: str, timeout: float | None
) -> Flow[Outcome]:
    """How the workflow ended, for those who record nothing; TIMEOUT if it is not over in time."""
    file.database.check_process()  # a forked child has the fates, but nobody decides them there
    deadline = None if timeout is None else file.clock.now() + timeout
    fate = file.fates.of(workflow_id)
    if fate is not None:
        yield from _wait_here(file, fate, deadline)
        if fate.outcome is not None:
            return fate.outcome
    seq, found = yield Read(partial(_look, workflow_id=workflow_id, scope=scope))
    if found is None:
        left = None if deadline is None else max(0.0, deadline - file.clock.now())
        look = partial(_find_end, workflow_id=workflow_id, seq=seq)
        found = yield from wait_for(file, (workflows.key(seq),), look, left, workflow_id)
    return found or Outcome(TIMEOUT)


def _wait_here(file: File, fate: Fate, deadline: float | None) -> Flow[None]:
    """Wait for a run of this process without a look at the file, as long as it goes on.

    Whatever ends or stops it tells so under one of its keys, and after it did.
    """
    run = fate.run
    if run is None or fate.outcome is not None:
        return
    with (yield Listen(run.stop_key, run.end_key)) as listener:
        while fate.run is run and fate.outcome is None and not run.stopping:
            if deadline is not None and file.clock.now() >= deadline:
                return
            yield Wait(listener, deadline)


def _look(tx: Tx, workflow_id: str, scope: Scope | None) -> tuple[int, Outcome | None]:
    """The number of the workflow, and how it ended if it did; or that there is none."""
    try:
        state, ending = workflows.find_with_ending(tx, workflow_id)
    except WorkflowNotFound as error:
        return 0, error_outcome(error)
    warn_if_behind(scope, tx, state)
    return state.seq, None if ending is None else outcome_of(workflow_id, ending)


def _find_end(tx: Tx, workflow_id: str, seq: int) -> Outcome | None:
    ending = workflows.ending(tx, seq)
    return None if ending is None else outcome_of(workflow_id, ending)


def _end_of(tx: Tx, workflow_id: str, scope: Scope | None) -> Subject:
    try:
        state = workflows.find(tx, workflow_id)
    except WorkflowNotFound as error:
        missing = error_outcome(error)
        return Subject((), lambda tx, place: missing)
    seq = state.seq
    warn_if_behind(scope, tx, state)
    return Subject((workflows.key(seq),), lambda tx, place: _find_end(tx, workflow_id, seq))


# ---------------------------------------------------------------------- the end of several


class Beside(Protocol):
    """Something that runs beside a workflow, and ends."""

    @property
    def key(self) -> str:
        """What is notified when it has ended."""

    @property
    def ended(self) -> bool:
        """Whether it has."""

    finished_at: float
    """When it did."""


def wait(
    file: File, scope: Scope | None, awaited_for: Sequence[str | Beside], *, first: bool
) -> Flow[list[int]]:
    """The positions of those that ended, in the order in which they did: all, or just the first.

    What is waited for are ids of workflows, and what runs beside the calling one.
    """

    def subject(tx: Tx) -> Subject:
        return _ends_of(tx, awaited_for, 1 if first else len(awaited_for), scope)

    if scope is not None and not isinstance(scope, StepCall):
        outcome = yield from awaited(scope, "durable.wait", subject, None)
    else:
        keys, find = yield Read(subject)
        found = yield from wait_for(file, keys, lambda tx: find(tx, NOWHERE), None)
        assert found is not None
        outcome = found
    return list(settle(outcome, file.codec))


def _ends_of(
    tx: Tx, awaited_for: Sequence[str | Beside], wanted: int, scope: Scope | None
) -> Subject:
    try:
        states = {
            index: workflows.find(tx, each)
            for index, each in enumerate(awaited_for)
            if isinstance(each, str)
        }
    except WorkflowNotFound as error:
        missing = error_outcome(error)
        return Subject((), lambda tx, place: missing)
    for state in states.values():
        warn_if_behind(scope, tx, state)
    numbers = {index: state.seq for index, state in states.items()}
    beside = {i: each for i, each in enumerate(awaited_for) if not isinstance(each, str)}

    def find(tx: Tx, place: Place) -> Outcome | None:
        moments = workflows.ended(tx, list(numbers.values()))
        ended = [(moments[seq], index) for index, seq in numbers.items() if seq in moments]
        ended += [(each.finished_at, index) for index, each in beside.items() if each.ended]
        if len(ended) < wanted:
            return None
        return Outcome(VALUE, json.dumps([index for _, index in sorted(ended)[:wanted]]))

    keys = [workflows.key(seq) for seq in numbers.values()]
    return Subject((*keys, *(each.key for each in beside.values())), find)


# ---------------------------------------------------------------------- acting on one


def cancel(
    file: File, scope: Scope | None, workflow_id: str, *, children: bool
) -> Flow[Cancellation]:
    """Cancel the workflow, with its children unless told otherwise; say what was done."""
    now = file.clock.now()

    def write(tx: Tx) -> str | None:
        return workflows.cancel(tx, workflow_id, children=children, reason="cancelled", now=now)

    ended = yield from _act(file, scope, "durable.cancel", write)
    status = Status.CANCELLED if ended is None else Status(ended)
    return Cancellation(workflow_id, ended is None, status)


def resume(file: File, scope: Scope | None, workflow_id: str) -> Flow[None]:
    """Make a workflow that was stopped go on from its last checkpoint."""
    now = file.clock.now()
    yield from _act(
        file, scope, "durable.resume", lambda tx: workflows.resume(tx, workflow_id, now=now)
    )


def fork(
    file: File, scope: Scope | None, workflow_id: str, step: int | None, new_id: str | None
) -> Flow[str]:
    """The id of a copy that goes on at number `step` of the workflow, or from its beginning."""
    if step is not None:
        check_count(step, "the step of a fork")
    if new_id is not None:
        check_id(new_id)
    now = file.clock.now()
    fresh_id = new_id or file.new_id()

    def write(tx: Tx) -> str:
        original = workflows.find(tx, workflow_id)
        copy = workflows.fork(tx, original, fresh_id, now=now)
        for table in (steps, messages, events, streams):
            table.copy(tx, original.seq, copy, step or 1)
        return fresh_id

    return str((yield from _act(file, scope, "durable.fork", write)))


def _act(file: File, scope: Scope | None, name: str, write: Callable[[Tx], Any]) -> Flow[Any]:
    """What `write` returns; in the body of a workflow it is a step."""
    if scope is None or isinstance(scope, StepCall):
        return (yield Write(name, write))
    outcome = yield from effect(scope, name, lambda tx, place: write(tx))
    return settle(outcome, file.codec)
