"""An open transaction, as the functions of the store take it, and the bodies of `@transaction`s."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from durable.errors import NotAllowedHere


class Bulk(NamedTuple):
    """A function that writes one row, called as `partial(one, row)`, and one that writes many."""

    one: Callable[[Any, Tx], None]
    many: Callable[[Sequence[Any], Tx], None]


class Tx:
    """An open transaction, as the functions of the store take it."""

    __slots__ = ("_connection", "execute", "touched")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.execute: Callable[..., sqlite3.Cursor] = connection.execute
        self.touched: list[str] = []

    def touch(self, key: str) -> None:
        """Name a key that waiters may be waiting for: they are notified after the commit."""
        self.touched.append(key)

    def row(self, sql: str, values: dict[str, Any]) -> sqlite3.Row | None:
        """The first row, or None."""
        return cast("sqlite3.Row | None", self.execute(sql, values).fetchone())

    def rows(self, sql: str, values: dict[str, Any]) -> list[sqlite3.Row]:
        """All rows, fetched: an open cursor, left by a Ctrl-C, would hold the write-ahead log."""
        return self.execute(sql, values).fetchall()

    @contextmanager
    def user_cursor(self, name: str) -> Iterator[sqlite3.Cursor]:
        """A cursor for the body of transaction `name`, which may do all but end the transaction.

        NotAllowedHere if it tries, or writes to durable's own tables.
        """
        refused: list[str] = []

        def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
            why = _refusal(action, first)
            if why is None:
                return sqlite3.SQLITE_OK
            refused.append(why)
            return sqlite3.SQLITE_DENY

        cursor = self._connection.cursor()
        self._connection.set_authorizer(authorize)
        try:
            yield cursor
        except sqlite3.Error as error:
            if not refused:
                raise
            raise NotAllowedHere(
                f"transaction {name!r} may not {refused[0]}: durable begins and commits it, "
                "together with its checkpoint"
            ) from error
        finally:
            self._connection.set_authorizer(None)
            cursor.close()


_WRITES = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)


def _refusal(action: int, first: str | None) -> str | None:
    """What the body of a transaction wants to do and may not; None if it may."""
    if action in (sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT):
        return f"call {first}"
    if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
        return "attach or detach files"
    if action == sqlite3.SQLITE_PRAGMA:
        return f"use PRAGMA {first}"
    if action in _WRITES and first is not None and first.startswith("durable_"):
        return f"write to {first}"
    return None
