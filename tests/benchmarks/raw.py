"""Raw SQLite: the same one-row commits with the same pragmas, and nothing else."""

from __future__ import annotations

import sqlite3
from time import perf_counter
from types import TracebackType


class Raw:
    """A file of its own with one table that has the columns and the key of recorded steps.

    What is inserted is what an empty step leaves. There are no checks on the columns, and nothing
    is looked up: it is what somebody would write by hand who only wants to keep his place. Its log
    grows with each commit, as SQLite's does until it has reached 1,000 pages and is written over.
    """

    def __init__(self, path: str, synchronous: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._number = 0
        for statement in (
            "PRAGMA auto_vacuum = INCREMENTAL",
            f"PRAGMA synchronous = {synchronous}",
            "PRAGMA fullfsync = 1",
            "PRAGMA checkpoint_fullfsync = 1",
            "PRAGMA journal_mode = WAL",
            """
            CREATE TABLE step (
                workflow    INTEGER NOT NULL,
                lane        TEXT NOT NULL,
                number      INTEGER NOT NULL,
                name        TEXT NOT NULL,
                outcome     TEXT,
                value       TEXT,
                attempt     INTEGER NOT NULL,
                until_at    REAL,
                started_at  REAL NOT NULL,
                finished_at REAL,
                PRIMARY KEY (workflow, lane, number)
            ) WITHOUT ROWID
            """,
        ):
            self._connection.execute(statement)

    def __enter__(self) -> Raw:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    def seconds(self, commits: int) -> float:
        """How long that many commits of one row take."""
        execute = self._connection.execute
        begin = perf_counter()
        for number in range(self._number, self._number + commits):
            execute("BEGIN IMMEDIATE")
            execute(
                """
                INSERT INTO step (workflow, lane, number, name, outcome, value, attempt,
                                  started_at, finished_at)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
                """,
                (1, "", number, "app:step", "value", "null", 1, begin, begin),
            )
            execute("COMMIT")
        self._number += commits
        return perf_counter() - begin
