"""The read lock of the connection that writes, kept from one small commit to the next.

A commit of one statement asks the system for locks six times. Four of them take and drop the read
lock that each transaction has (https://www.sqlite.org/wal.html#concurrency). While a query of the
same connection is not read to its end, the lock stays, and a commit takes and drops only that for
writing. In return, nothing is copied from the log into the file meanwhile, and no other process can
empty the log. So it is kept for some commits of many, and let go when none follows.
"""

from __future__ import annotations

import sqlite3

KEPT_AFTER = 4
"""So many commits one after the other: more may follow."""
KEPT_FOR = 32
"""The next one goes without, and copies the log if that is due. More save next to nothing."""

# One row, which nobody asks for a second time: so it is not known to be the last.
KEEP = "SELECT 1 FROM sqlite_schema WHERE rowid = 1"


class Snapshot:
    """Keeps the read lock of `connection`, and with it what that sees of the file.

    A commit of another connection makes it useless: SQLite answers "busy" to the next write.
    """

    __slots__ = ("_connection", "_cursor", "left")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._cursor: sqlite3.Cursor | None = None
        self.left = KEPT_AFTER
        """How many small commits there are until `renew` is to be called; who commits counts."""

    @property
    def kept(self) -> bool:
        """Whether the lock is taken between transactions."""
        return self._cursor is not None

    def renew(self) -> None:
        """Let go for one commit; or keep the lock, after that or after the first few."""
        if self.kept:
            self.drop()
            self.left = 1
            return
        self.left = KEPT_FOR
        try:
            self._cursor = self._connection.execute(KEEP)
        except (sqlite3.Error, MemoryError):
            self.drop()  # what is wrong, the next commit says

    def drop(self) -> None:
        """Let go, until the next few small commits."""
        cursor, self._cursor, self.left = self._cursor, None, KEPT_AFTER
        if cursor is not None:
            cursor.close()
