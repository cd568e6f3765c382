"""New files, older ones, newer ones, and those of others."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import durable
from durable import Client, Engine, NewerSchema, NotADurableFile
from durable.store import migrations
from tests.processes.programs import Program
from tests.support import PATIENCE

Schema = set[tuple[str, str, str, str | None]]

# Two migrations that durable never had: to version 2, and to version 3.
SYNTHETIC = (
    "CREATE TABLE durable_extra (x INTEGER) STRICT;",
    "ALTER TABLE durable_extra ADD COLUMN y TEXT;INSERT INTO durable_extra VALUES (1, 'migrated');",
)


@pytest.fixture
def connection(path: str) -> Iterator[sqlite3.Connection]:
    with closing(connect(path)) as connection:
        yield connection


def connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def schema_of(connection: sqlite3.Connection) -> Schema:
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema")
    return {(kind, name, table, sql and " ".join(sql.split())) for kind, name, table, sql in rows}


def pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


@durable.workflow
def one() -> int:
    return 1


# ---------------------------------------------------------------------- new files


def test_a_new_file_is_marked_as_durables(path: str) -> None:
    """By its application id and schema version, as `file` and the sqlite3 shell show them."""
    Engine(path).open().close()

    with closing(connect(path)) as connection:
        assert pragma(connection, "application_id") == migrations.APPLICATION_ID
        assert pragma(connection, "user_version") == len(migrations.MIGRATIONS) + 1
        assert pragma(connection, "auto_vacuum") == 2  # incremental
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "of no bytes"])
def test_a_file_without_content_becomes_durables(path: str, content: bytes | None) -> None:
    """As one that `touch` or tempfile made."""
    if content is not None:
        Path(path).write_bytes(content)

    with Engine(path) as engine:
        assert engine.start(one).result(PATIENCE) == 1


def test_an_empty_sqlite_file_becomes_durables(path: str, connection: sqlite3.Connection) -> None:
    """One with pages, but with no table."""
    connection.execute("CREATE TABLE t (x)")
    connection.execute("DROP TABLE t")

    with Engine(path) as engine:
        assert engine.start(one).result(PATIENCE) == 1


def test_opening_again_changes_nothing(path: str) -> None:
    """The tables are made once."""
    Engine(path).open().close()
    with closing(connect(path)) as connection:
        before = schema_of(connection)

    Engine(path).open().close()
    with closing(connect(path)) as connection:
        assert schema_of(connection) == before


def test_tables_of_the_user_may_live_in_the_file(path: str) -> None:
    """A file that durable made may hold other tables, which it leaves alone."""
    Engine(path).open().close()
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE account (x)")
        connection.execute("INSERT INTO account VALUES (1)")

    with Engine(path) as engine:
        assert engine.start(one).result(PATIENCE) == 1
    with closing(connect(path)) as connection:
        assert connection.execute("SELECT x FROM account").fetchall() == [(1,)]


# ---------------------------------------------------------------------- files of others


@pytest.mark.parametrize("opener", [Engine, Client])
def test_another_programs_file_is_refused_untouched(
    path: str, tmp_path: Path, opener: type[Client]
) -> None:
    """NotADurableFile, not one byte is changed, and nothing appears beside it."""
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = Path(path).read_bytes()

    with pytest.raises(NotADurableFile, match="another program"), opener(path) as opened:
        assert opened is None
    assert Path(path).read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["test.db"]


def test_a_file_that_another_program_marked_is_refused(
    path: str, connection: sqlite3.Connection
) -> None:
    """An application id that is not ours counts, also where there is no table yet."""
    connection.execute("PRAGMA application_id = 252006673")
    before = Path(path).read_bytes()

    with pytest.raises(NotADurableFile):
        Engine(path).open()
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("opener", [Engine, Client])
def test_a_file_that_is_not_sqlite_is_refused_untouched(path: str, opener: type[Client]) -> None:
    """A text, a picture: NotADurableFile."""
    before = b"Dear diary,\n" * 1000
    Path(path).write_bytes(before)

    with pytest.raises(NotADurableFile, match="not an SQLite file"), opener(path) as opened:
        assert opened is None
    assert Path(path).read_bytes() == before


# ---------------------------------------------------------------------- newer files


@pytest.mark.parametrize("opener", [Engine, Client])
def test_a_newer_file_is_refused(path: str, opener: type[Client]) -> None:
    """NewerSchema says both versions and what to do; the file is as it was."""
    Engine(path).open().close()
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = Path(path).read_bytes()

    with pytest.raises(NewerSchema, match=r"version 99.*upgrade"), opener(path) as opened:
        assert opened is None
    assert Path(path).read_bytes() == before


# ---------------------------------------------------------------------- older files


def first_schema() -> str:
    """The tables of schema version 1.

    While there is no migration that is schema.sql. Whoever writes the first one keeps the text of
    version 1 beside this test.
    """
    if not migrations.MIGRATIONS:
        return migrations.schema()
    return Path(__file__).with_name("schema_1.sql").read_text("utf-8")


def make_first(connection: sqlite3.Connection) -> None:
    connection.executescript(
        f"PRAGMA auto_vacuum = INCREMENTAL; BEGIN IMMEDIATE;\n{first_schema()}\n"
        f"PRAGMA application_id = {migrations.APPLICATION_ID}; PRAGMA user_version = 1; COMMIT;"
    )


def test_a_migrated_file_equals_a_new_one(tmp_path: Path) -> None:
    """Version 1 with all migrations has the tables and indexes of schema.sql."""
    old, new = str(tmp_path / "old.db"), str(tmp_path / "new.db")
    with closing(connect(old)) as migrated, closing(connect(new)) as fresh:
        make_first(migrated)
        migrations.prepare(migrated, old, create=True)
        migrations.prepare(fresh, new, create=True)

        assert schema_of(migrated) == schema_of(fresh)
        for mark in ("application_id", "user_version", "auto_vacuum"):
            assert pragma(migrated, mark) == pragma(fresh, mark)


def test_each_migration_runs_once_in_its_order(path: str, connection: sqlite3.Connection) -> None:
    """From version 1 to 3; opening again runs none."""
    make_first(connection)
    for _ in range(2):
        migrations.prepare(connection, path, create=True, migrations=SYNTHETIC)

    assert pragma(connection, "user_version") == 3
    assert connection.execute("SELECT * FROM durable_extra").fetchall() == [(1, "migrated")]


def test_a_file_in_between_gets_only_what_it_lacks(
    path: str, connection: sqlite3.Connection
) -> None:
    """Version 2 gets the migration to 3 alone."""
    make_first(connection)
    migrations.prepare(connection, path, create=True, migrations=SYNTHETIC[:1])
    assert pragma(connection, "user_version") == 2

    migrations.prepare(connection, path, create=True, migrations=SYNTHETIC)
    assert pragma(connection, "user_version") == 3


def test_runs_survive_a_migration(path: str, connection: sqlite3.Connection) -> None:
    """What was recorded under the old version is there under the new one."""
    with Engine(path) as engine:
        handle = engine.start(one)
        handle.result(PATIENCE)
    migrations.prepare(connection, path, create=True, migrations=SYNTHETIC)

    assert connection.execute("SELECT id, result FROM durable_workflow").fetchall() == [
        (handle.id, "1")
    ]


@pytest.mark.parametrize("statements", ["SELECT * FROM nowhere", "INSERT INTO durable_extra"])
def test_a_migration_that_fails_leaves_the_old_version_whole(
    path: str, connection: sqlite3.Connection, statements: str
) -> None:
    """Half a migration is none: the tables and the number are those of before."""
    make_first(connection)
    before = schema_of(connection)

    with pytest.raises(sqlite3.Error):
        migrations.prepare(connection, path, create=True, migrations=(SYNTHETIC[0] + statements,))
    assert not connection.in_transaction
    assert schema_of(connection) == before
    assert pragma(connection, "user_version") == 1


DIES_IN_A_MIGRATION = """\
from durable.store import migrations
connection = sqlite3.connect(sys.argv[1], isolation_level=None)

def stall():
    print("in the middle")
    sys.stdin.readline()

connection.create_function("stall", 0, stall)
connection.execute("PRAGMA cache_size = 1")  # what is not committed reaches the disk
migrations.prepare(
    connection, sys.argv[1], create=True, migrations=[sys.argv[2] + "SELECT stall();"]
)
"""


def test_a_crash_in_a_migration_leaves_the_old_version_whole(path: str) -> None:
    """The process dies between two statements: the next one finds the old version, and migrates."""
    with closing(connect(path)) as connection:
        make_first(connection)
        before = schema_of(connection)
    with Program(DIES_IN_A_MIGRATION, path, SYNTHETIC[0]) as program:
        assert program.line() == "in the middle"
        program.kill()

    with closing(connect(path)) as connection:
        assert schema_of(connection) == before
        assert pragma(connection, "user_version") == 1
        migrations.prepare(connection, path, create=True, migrations=SYNTHETIC)
        assert pragma(connection, "user_version") == 3


def test_a_client_does_not_migrate(path: str, connection: sqlite3.Connection) -> None:
    """The engine that runs may be the old one: a client leaves the tables alone, and says so."""
    make_first(connection)
    before = schema_of(connection)

    with pytest.raises(NotADurableFile, match="older schema version 1"):
        migrations.prepare(connection, path, create=False, migrations=SYNTHETIC)
    assert schema_of(connection) == before


def test_a_client_makes_no_tables(path: str, connection: sqlite3.Connection) -> None:
    """An empty file stays empty."""
    with pytest.raises(NotADurableFile, match="is empty"):
        Client(path)
    assert schema_of(connection) == set()
