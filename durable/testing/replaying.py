"""Runs today's code against the records of a file, and runs no step: does it still fit?"""

from __future__ import annotations

import asyncio
import os
import selectors
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from durable.client import check_path
from durable.clock import SystemClock, Thread
from durable.codec import Codec
from durable.engine import Engine
from durable.errors import InvalidArgument, NonDeterminism, NotADurableFile, StorageError
from durable.records import Status
from durable.runtime import execution, lanes, recovery
from durable.runtime.context import PATCH, find_scope
from durable.runtime.host import Host
from durable.runtime.registry import WorkflowSpec, registry
from durable.runtime.runs import Run
from durable.store import steps, workflows
from durable.store.workflows import State


@dataclass
class Replayed:
    """What `replay` did: the ids that it replayed, and those that it left out, with the reason."""

    replayed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def replay(
    source: str | os.PathLike[str], workflow_id: str | None = None, *, codec: Codec | None = None
) -> Replayed:
    """Replay all workflows of a file, or one, with the code as it is now; no step's body is run.

    Raises NonDeterminism for the first that parts from its records: the code asks for another
    step, or ends before all that was recorded. Each is followed to the end of its records: what the
    code does after them, no run has passed yet. The file is copied first, and not changed; an
    engine may have it open. WorkflowNotFound for an unknown id. What this program lacks the code
    of is left out, and told in `skipped`; InvalidArgument if that is all there is.

        def test_the_new_code_fits_the_workflows_in_flight():
            testing.replay("copy-of-production.db")
    """
    with tempfile.TemporaryDirectory(prefix="durable-") as folder:
        copy = str(Path(folder) / "copy.db")
        _copy(check_path(source), copy)
        engine = Engine(
            copy,
            recover="manual",
            synchronous="normal",
            codec=codec,
            clock=_NoTime(),
            schedules=False,
        )
        engine._hooks.only_replay()
        try:
            host = engine.open()._open_engine()
            host.runs.has = lambda workflow_id: True  # type: ignore[method-assign]  # no child runs
            return _replay_all(host, workflow_id)
        except StorageError as error:
            raise type(error)(check_path(source), error.reason) from error
        finally:
            engine.close(timeout=0)


class _NoTime(SystemClock):
    """Runs on the spot what a workflow submits, so that the body finds all that was recorded."""

    real = False

    def spawn(self, name: str, target: Callable[[], None], *, background: bool = False) -> Thread:
        """A submitted step that was under way stops nobody but who waits for it."""
        scope = find_scope(name)
        target()
        if scope is not None and scope.run.failure is None:
            scope.run.stopping = False
        return _Ended()


class _Ended:
    """A thread that has nothing more to do."""

    def join(self, timeout: float | None = None) -> None:
        """Return."""

    def is_alive(self) -> bool:
        """It is not."""
        return False


def _copy(source: str, target: str) -> None:
    """A snapshot of the file, which somebody may be writing to."""
    if not Path(source).is_file():
        raise NotADurableFile(source, "is no file")
    log = Path(f"{source}-wal")  # there as long as somebody has the file open, or has died with it
    if not log.exists():
        shutil.copyfile(source, target)  # SQLite would leave files beside it
    if log.exists():
        _back_up(source, target)


def _back_up(source: str, target: str) -> None:
    origin = sqlite3.connect(f"{Path(source).absolute().as_uri()}?mode=ro", uri=True)
    copy = sqlite3.connect(target)
    try:
        origin.backup(copy)
    except sqlite3.DatabaseError as error:
        raise NotADurableFile(source, f"cannot be read ({error})") from error
    finally:
        origin.close()
        copy.close()


def _replay_all(host: Host, workflow_id: str | None) -> Replayed:
    report = Replayed()
    if workflow_id is not None:
        states = [host.database.read(partial(workflows.find, workflow_id=workflow_id))]
    else:
        states = host.database.read(workflows.everything)
    for state in states:
        spec = registry.workflow(state.name)
        missing = recovery.what_is_missing(host, spec, state)
        if spec is None or missing is not None:
            report.skipped[state.id] = missing or ""
        elif state.status not in (Status.ENQUEUED, Status.DELAYED):
            _replay_one(host, spec, state)
            report.replayed.append(state.id)
    if report.skipped and not report.replayed:
        first, reason = next(iter(report.skipped.items()))
        raise InvalidArgument(f"nothing could be replayed: of workflow {first!r}, {reason}")
    return report


def _replay_one(host: Host, spec: WorkflowSpec, state: State) -> None:
    records = host.database.read(partial(steps.load, workflow=state.seq))
    run = recovery.make_run(host, spec, state, state.epoch, records)
    ended = _follow(host, run)
    if isinstance(run.failure, NonDeterminism):
        raise run.failure
    left = [place for place, record in run.records.items() if not record.name.startswith(PATCH)]
    if ended is not None and left:
        place = min(left, key=lambda place: [int(part) for part in str(place).split(".")])
        end = "the end of the workflow"
        if ended.error is not None:
            end += f" in {type(ended.error).__name__}"
        error = NonDeterminism(run.id, run.name, str(place), run.records[place].name, end)
        raise error from ended.error


def _follow(host: Host, run: Run) -> execution.Ended | None:
    """Run the body to the end of its records; how it ended, if it did there."""
    if not run.spec.is_async:
        return execution.call_body(host, run)
    loop = _NoTimeLoop()
    lanes.adopt(loop)
    try:
        task = loop.create_task(execution.await_body(host, run))
        loop.stuck = task.cancel
        return loop.run_until_complete(task)
    except asyncio.CancelledError:
        return None  # the code does not cancel any more what it had cancelled
    finally:
        lanes.release(loop)
        loop.close()


class _NoTimeLoop(asyncio.SelectorEventLoop):
    """Takes no time to wait, also for ``asyncio.timeout``; calls `stuck` where nothing can come."""

    def __init__(self) -> None:
        self._now = 0.0
        self.stuck: Callable[[], object] = self.stop
        super().__init__(_NoTimeSelector(self))

    def time(self) -> float:
        """The moment, in seconds from the start."""
        return self._now

    def jump(self, span: float | None) -> None:
        """So long nothing happens; for ever, if it is None."""
        if span is None:
            self.stuck()
        else:
            self._now += span


class _NoTimeSelector(selectors.DefaultSelector):
    def __init__(self, loop: _NoTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self._loop.jump(timeout)
        return ready
