"""What goes wrong with a file: SQLite's errors, and rows that make no sense, in durable's words."""

from __future__ import annotations

import sqlite3

from durable.errors import (
    CorruptFile,
    DurableError,
    ReadOnlyFile,
    StorageError,
    StorageFull,
)


def translate(error: Exception, path: str) -> DurableError:
    """The error of durable's tree for one of SQLite's, or for what a damaged row has caused."""
    if not isinstance(error, sqlite3.Error):
        return CorruptFile(path, f"has a row that cannot be read ({error}); restore it from a copy")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    text = str(error)
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(path, f"no space left ({text}); what was recorded before is kept")
    if code == sqlite3.SQLITE_READONLY:
        return ReadOnlyFile(path, f"may not be written by this process ({text})")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CorruptFile(path, f"is damaged ({text}); restore it from a copy")
    if code == sqlite3.SQLITE_CANTOPEN:
        return StorageError(path, f"cannot be opened ({text}); does its folder exist and allow it?")
    return StorageError(path, f"SQLite says: {text}")


def is_of_the_file(error: sqlite3.Error) -> bool:
    """Whether SQLite complains of the file or the disk, rather than of the statement."""
    return type(translate(error, "")) is not StorageError or (
        getattr(error, "sqlite_errorcode", 0) & 0xFF
        in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM)
    )


def is_busy(error: sqlite3.OperationalError) -> bool:
    """Whether another process has the lock."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


OF_THE_FILE = (sqlite3.Error, MemoryError, ValueError, TypeError, LookupError, OverflowError)
"""What SQLite raises, or code of the store that reads rows that durable never wrote."""


def explain(error: BaseException, path: str) -> BaseException:
    """The error of durable's tree for one of SQLite's, or for rows that make no sense.

    Arguments were checked, and what the user's code raises comes wrapped: neither is ever taken for
    an error of the file.
    """
    if isinstance(error, DurableError) or not isinstance(error, OF_THE_FILE):
        return error
    explained = translate(error, path)
    explained.__cause__ = error
    return explained
