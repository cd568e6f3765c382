"""Runs today's code against the records of a file, and runs no step: does it still fit?"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from durable.client import check_path
from durable.codec import Codec
from durable.engine import Engine
from durable.errors import NonDeterminism, NotADurableFile
from durable.records import Status
from durable.runtime import execution
from durable.runtime.host import Host
from durable.runtime.registry import registry
from durable.runtime.runs import Run
from durable.store import steps, workflows

SKIPPED_REASON = "no workflow of its name is declared"


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
    step, or ends before all that was recorded. A run that was unfinished is followed to the end of
    its records. The file is copied first, and not changed; an engine may have it open.
    WorkflowNotFound for an unknown id; workflows that this program does not declare are left out
    and told of.

        def test_the_new_code_fits_the_workflows_in_flight():
            testing.replay("copy-of-production.db")
    """
    with tempfile.TemporaryDirectory(prefix="durable-") as folder:
        copy = str(Path(folder) / "copy.db")
        _copy(check_path(source), copy)
        engine = Engine(copy, recover="manual", synchronous="normal", codec=codec)
        engine._hooks.replay_only = True
        try:
            return _replay_all(engine.open()._open_engine(), workflow_id)
        finally:
            engine.close(timeout=0)


def _copy(source: str, target: str) -> None:
    """A snapshot of the file, taken through SQLite as somebody may be writing to it."""
    if not Path(source).is_file():
        raise NotADurableFile(source, "is no file")
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
        if registry.workflow(state.name) is None:
            report.skipped[state.id] = SKIPPED_REASON
        elif state.status not in (Status.ENQUEUED, Status.DELAYED):
            _replay_one(host, state)
            report.replayed.append(state.id)
    return report


def _replay_one(host: Host, state: workflows.State) -> None:
    spec = registry.workflow(state.name)
    assert spec is not None
    run = Run(
        id=state.id,
        name=state.name,
        spec=spec,
        input=state.input,
        seed=state.seed,
        seq=state.seq,
        epoch=state.epoch,
        records=host.database.read(partial(steps.load, workflow=state.seq)),
    )
    outcome: Any = execution.call_body(host, run)
    if isinstance(run.failure, NonDeterminism):
        raise run.failure
    if outcome is not None and run.records:
        place, record = min(run.records.items(), key=lambda each: each[0].number)
        raise NonDeterminism(run.id, run.name, str(place), record.name, "the end of the workflow")
