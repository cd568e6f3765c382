"""SQLite's write-ahead log, laid out ahead of the commits that will be written to it.

A commit that makes the log longer has the file system record the new length too, and waits for
that: on ext4 it takes twice as long as one that writes over what is there. SQLite writes over the
log once it has reached 1,000 pages and was copied into the file; until then, each commit appends.
So a log that has filled up gets the next piece in one go, from a transaction that is rolled back.
"""

from __future__ import annotations

import os
import sqlite3
from io import FileIO

from durable.store.snapshot import KEPT_FOR

PAGE = 4096
FRAME = PAGE + 24

# A piece costs as much as some ten commits that append. Programs with few commits never pay.
FIRST = 32 * FRAME
PIECE = 128 * FRAME
# From here on SQLite begins anew at the front (https://www.sqlite.org/wal.html#automatic_checkpoint).
WHOLE = 1000 * FRAME
# Commits that keep the read lock go on for a while. A small one writes up to four pages.
SPARE = 4 * KEPT_FOR * FRAME


class Log:
    """How far the log of the file at `path` is laid out, through the connection that writes it."""

    __slots__ = ("_cache", "_file", "_laid_out", "_path", "_writer")

    def __init__(self, path: str, writer: sqlite3.Connection) -> None:
        self._path = path + "-wal"
        self._writer = writer
        self._file: FileIO | None = None
        (self._cache,) = writer.execute("PRAGMA cache_size").fetchone()
        self._laid_out = self._size() + FIRST

    @property
    def is_whole(self) -> bool:
        """Whether it need not grow any more."""
        return self._laid_out >= WHOLE

    @property
    def is_full(self) -> bool:
        """Whether commits append to it, since what was laid out is used up."""
        return self._size() > self._laid_out

    def lay_out(self) -> None:
        """Make it longer by one piece, the last one by what is spare, too; no transaction is open.

        What does not fit into the cache of the connection, which is nearly all, is written to the
        log before it is known that nobody wants it. Where that fails, the next commit says why.
        """
        size, piece = self._size(), PIECE
        if size + piece >= WHOLE:
            piece += SPARE
        self._laid_out = size + piece
        try:
            self._append(piece)
        except (sqlite3.Error, MemoryError):
            self._laid_out = WHOLE  # not tried again: what is wrong will cost the commits enough

    def _append(self, size: int) -> None:
        writer = self._writer
        try:
            writer.execute("PRAGMA cache_size = 1")
            writer.execute("BEGIN IMMEDIATE")
            writer.execute(
                """
                INSERT INTO durable_event (workflow, key, seq, lane, number, value, set_at)
                VALUES (0, '', 0, '', 0, CAST(zeroblob(:size) AS TEXT), 0)
                """,
                {"size": size},
            )
        finally:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            writer.execute(f"PRAGMA cache_size = {self._cache}")

    def _size(self) -> int:
        """Not by stat(): to have been asked when it changed makes the next change of a file slow.

        Its time is noted more finely then, from Linux 6.13 on, and a commit waits for that, too.
        """
        if self._file is None or self._file.closed:
            try:
                self._file = FileIO(self._path)
            except OSError:  # there is none before the first write
                return 0
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Forget the file; before the connection is closed, which removes it."""
        if self._file is not None:
            self._file.close()
