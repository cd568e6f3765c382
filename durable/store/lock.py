"""The operating system's lock that makes one engine the owner of a file.

It is held on ``<path>.lock`` beside the file, never on the file itself: closing any descriptor of a
database file would drop SQLite's own locks on it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import FileIO
from pathlib import Path

from durable.errors import AlreadyRunning, DurableError, ReadOnlyFile

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        # The byte locked lies far behind the text: others must be able to read the pid.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class FileLock:
    """The lock of one engine, held from `acquire` to `release` and dropped with the process.

    A Ctrl-C may come anywhere in here. So the descriptor belongs to a file object, which may be
    closed twice, and is closed by Python where it is lost; and `acquire` undoes what it has begun.
    """

    def __init__(self, path: str) -> None:
        self._owned = path
        self._path = Path()
        self._file: FileIO | None = None

    def acquire(self) -> None:
        """Take the lock, and leave the pid for others to read; AlreadyRunning if it is held."""
        try:
            self._take()
        except DurableError:
            raise
        except BaseException:
            with suppress(DurableError):
                self._take()
            self.release()
            raise

    def _take(self) -> None:
        self._path = Path(os.path.realpath(self._owned) + ".lock")
        while self._file is None:
            file = self._open()
            try:
                if not _try_lock(file.fileno()):
                    raise AlreadyRunning(self._owned, self._owner())
                if self._is_in_place(file):  # else its last owner removed it before our lock
                    self._file = file
            finally:
                if self._file is None:
                    file.close()
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Remove the lock file and drop the lock; may be called again where it was interrupted."""
        if self._file is None:
            return
        if not self._file.closed and self._is_in_place(self._file):
            with suppress(OSError):  # Windows does not remove an open file; it is harmless
                self._path.unlink(missing_ok=True)
        self._file.close()
        self._file = None

    def forget(self) -> None:
        """In a child process: close the inherited descriptor; the lock dies with the parent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> FileIO:
        try:
            return FileIO(self._path, "a+")
        except OSError as error:
            raise ReadOnlyFile(
                self._owned, f"its lock file {self._path} cannot be made ({error.strerror})"
            ) from error

    def _is_in_place(self, file: FileIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _owner(self) -> int | None:
        try:
            return int(self._path.read_text("ascii"))
        except (OSError, ValueError):
            return None
