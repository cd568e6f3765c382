"""The connections to one file: how each is made, those that read, and a look at what others do."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar, cast

from durable.errors import EngineClosed, InvalidArgument, NotADurableFile, StorageError
from durable.store.faults import is_busy, translate

T = TypeVar("T")

MEMORY: Final = ":memory:"

# SQLite waits this long for a lock before it answers "busy"; then we look whether to go on waiting.
BUSY_SECONDS = 0.25
BUSY_TRIES_BEFORE_A_WARNING = 20
IDLE_READERS = 4

_log = logging.getLogger("durable")


def check_file(path: str, *, create: bool) -> None:
    """Say in plain words what SQLite would only call 'unable to open database file'."""
    if sqlite3.sqlite_version_info < (3, 37):
        raise InvalidArgument(
            f"durable needs SQLite 3.37 or later, and this Python has {sqlite3.sqlite_version}"
        )
    if path == MEMORY:
        return
    file = Path(path)
    if file.is_dir():
        raise NotADurableFile(path, "is a folder; give the path of a file in it")
    if not file.parent.is_dir():
        raise StorageError(path, f"its folder {file.parent} does not exist; make it first")
    if not create and not file.exists():
        raise NotADurableFile(path, "does not exist; an Engine makes it when it opens it")


class Patience:
    """Waits for locks that other processes have on the file at `path`, until that is `ended`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ended = False

    def retry(self, connection: sqlite3.Connection, action: Callable[[], T]) -> T:
        """What `action` returns, tried again and again while a lock keeps it from the file."""
        tries = 0
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            tries += 1
            if self.ended:
                raise EngineClosed(f"{self.path} was closed while another process had it locked")
            if tries == BUSY_TRIES_BEFORE_A_WARNING:
                _log.warning(
                    "%s has been locked by another process for %g s; waiting on",
                    self.path,
                    tries * BUSY_SECONDS,
                )


class Reader:
    """A connection that reads, and the thread that has it now."""

    __slots__ = ("connection", "thread")

    def __init__(self, thread: int | None) -> None:
        self.thread = thread
        self.connection = cast(sqlite3.Connection, None)  # until it is made

    def close(self) -> None:
        """Give the connection back to the system, if it was made."""
        if self.connection is not None:
            self.connection.close()


class Connections:
    """Makes connections to the file, and lends those that read, each to one thread at a time.

    A reader is among `readers` before its connection is made, until that is closed: one that a
    Ctrl-C takes away from its thread is left for `close`.
    """

    def __init__(self, path: str, *, create: bool) -> None:
        self.path = path
        self.readers: list[Reader] = []
        self._mutex = threading.Lock()
        self._refuses = False
        self._uri = MEMORY
        if path != MEMORY:
            self._uri = Path(path).absolute().as_uri() + ("?mode=rwc" if create else "?mode=rw")

    def make(self) -> sqlite3.Connection:
        """A connection of its caller's, which any one thread at a time may use."""
        try:
            connection = sqlite3.connect(
                self._uri,
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
        except sqlite3.Error as error:
            raise translate(error, self.path) from error
        connection.row_factory = sqlite3.Row
        return connection

    def borrow(self) -> Reader:
        """A reader for the calling thread, until `give_back`; EngineClosed after `refuse`."""
        me = threading.get_ident()
        with self._mutex:
            if self._refuses:
                raise EngineClosed(f"{self.path} is closed")
            for reader in self.readers:
                if reader.thread is None:
                    reader.thread = me
                    return reader
            reader = Reader(me)
            self.readers.append(reader)
        try:
            reader.connection = self.make()
            reader.connection.execute("PRAGMA query_only = 1")
        except BaseException:
            self._drop(reader)
            raise
        return reader

    def give_back(self, reader: Reader) -> None:
        """Keep the reader for the next one, unless there are enough."""
        with self._mutex:
            idle = sum(each.thread is None for each in self.readers)
            if not self._refuses and idle < IDLE_READERS:
                reader.thread = None
                return
        self._drop(reader)

    def refuse(self) -> None:
        """Lend no more."""
        with self._mutex:
            self._refuses = True

    def close(self) -> None:
        """Close the readers that are idle, or this thread's; others close when they have read."""
        me = threading.get_ident()
        for reader in list(self.readers):
            if reader.thread in (None, me):
                self._drop(reader)

    def _drop(self, reader: Reader) -> None:
        reader.close()
        with self._mutex:
            self.readers = [each for each in self.readers if each is not reader]


class Watch:
    """Tells when another connection has changed the file: four microseconds a look."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._connection = connection
        self._path = path
        try:
            self._seen = self._version()
        except BaseException:
            connection.close()
            raise

    def changed(self) -> bool:
        """Whether there was a commit since the last call."""
        version = self._version()
        changed = version != self._seen
        self._seen = version
        return changed

    def close(self) -> None:
        """Give the connection back to the system."""
        self._connection.close()

    def _version(self) -> int:
        try:
            return cast(int, self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
