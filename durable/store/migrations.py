"""Makes a new file durable's, brings an older one up to date, and refuses what is not ours."""

from __future__ import annotations

import pkgutil
import sqlite3
from collections.abc import Sequence
from typing import Final

from durable.errors import NewerSchema, NotADurableFile

APPLICATION_ID: Final = 0x64757262  # "durb"

# The statements that lead from schema version n + 1 to n + 2; schema.sql has the outcome of all.
MIGRATIONS: Sequence[str] = ()


def schema() -> str:
    """The text of schema.sql."""
    text = pkgutil.get_data("durable.store", "schema.sql")
    assert text is not None, "the package was installed without its schema.sql"
    return text.decode("utf-8")


def prepare(
    connection: sqlite3.Connection,
    path: str,
    *,
    create: bool,
    migrations: Sequence[str] | None = None,
) -> None:
    """Check the file behind `connection`; make or migrate it if `create`.

    Each change and its number commit together: a crash leaves the file as it was before or after.
    """
    steps = MIGRATIONS if migrations is None else migrations
    newest = len(steps) + 1
    _refuse_strangers(connection, path)
    version = _number(connection, "user_version")
    if version > newest:
        raise NewerSchema(
            path, f"has schema version {version}, and this durable knows {newest}: upgrade it"
        )
    if version == newest:
        return
    if not create:
        raise NotADurableFile(
            path,
            "is empty; an Engine makes its tables when it opens it"
            if version == 0
            else f"has the older schema version {version}; open it with an Engine once",
        )
    if version == 0:
        # Must come before the first table and before write-ahead logging.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _change(connection, schema(), newest)
        return
    for number, statements in enumerate(steps[version - 1 :], version + 1):
        _change(connection, statements, number)


def _refuse_strangers(connection: sqlite3.Connection, path: str) -> None:
    try:
        application = _number(connection, "application_id")
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_NOTADB:
            raise
        raise NotADurableFile(path, "is not an SQLite file") from error
    if application != APPLICATION_ID and (application or tables):
        raise NotADurableFile(
            path, "is an SQLite file of another program; durable only opens its own or empty ones"
        )


def _change(connection: sqlite3.Connection, statements: str, version: int) -> None:
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{statements}\n"
            f"PRAGMA application_id = {APPLICATION_ID};\n"
            f"PRAGMA user_version = {version};\nCOMMIT;"
        )
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
