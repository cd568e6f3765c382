"""Files with many workflows, made by SQL through durable's own schema: running them takes long."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import Any

from durable import Engine, Status


def fill(
    path: str, name: str, count: int, *, status: Status, steps: int, step: str = "app:step"
) -> None:
    """Make a file that has `count` runs of workflow `name`, each with its recorded `steps`.

    Run number n has the argument n. The unfinished ones are of an engine whose process died.
    """
    with Engine(path):
        pass
    finished = status.finished
    values: dict[str, Any] = {
        "count": count,
        "name": name,
        "status": str(status),
        "finished_at": time.time() if finished else None,
        "result": "null" if status is Status.SUCCESS else None,
        "now": time.time(),
        "steps": steps,
        "step": step,
    }
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO durable_session (pid, opened_at) VALUES (1, :now)", {"now": values["now"]}
        )
        connection.execute(
            """
            INSERT INTO durable_workflow
                   (id, name, status, input, result, holder, created_at, started_at, finished_at,
                    seed)
              WITH RECURSIVE number (n) AS (
                       VALUES (1) UNION ALL SELECT n + 1 FROM number WHERE n < :count
                   )
            SELECT format('%032x', n), :name, :status, format('[[%d],{}]', n), :result,
                   iif(:finished_at IS NULL, (SELECT max(seq) FROM durable_session), NULL),
                   :now, :now, :finished_at, format('%032x', n)
              FROM number
            """,
            values,
        )
        connection.execute(
            """
            INSERT INTO durable_step
                   (workflow, lane, number, name, outcome, value, started_at, finished_at)
              WITH RECURSIVE number (n) AS (
                       VALUES (1) UNION ALL SELECT n + 1 FROM number WHERE n < :steps
                   )
            SELECT seq, '', n, :step, 'value', 'null', :now, :now
              FROM durable_workflow CROSS JOIN number
             WHERE :steps > 0
             ORDER BY seq, n
            """,
            values,
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
