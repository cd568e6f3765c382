"""The operating system's lock that makes one engine the owner of a file.

It is held on ``<path>.lock`` beside the file, never on the file itself: closing any descriptor of a
database file would drop SQLite's own locks on it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from durable.errors import AlreadyRunning, ReadOnlyFile

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
    """The lock of one engine, held from `acquire` to `release` and dropped with the process."""

    def __init__(self, path: str) -> None:
        self._owned = path
        self._file = Path()
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, and leave the pid for others to read; AlreadyRunning if it is held."""
        self._file = Path(os.path.realpath(self._owned) + ".lock")
        while self._descriptor is None:
            descriptor = self._open()
            if not _try_lock(descriptor):
                os.close(descriptor)
                raise AlreadyRunning(self._owned, self._owner())
            if self._is_in_place(descriptor):
                self._descriptor = descriptor
            else:  # its last owner removed it between our open and our lock
                os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Remove the lock file and drop the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with suppress(OSError):  # Windows does not remove an open file; what is left is harmless
            self._file.unlink(missing_ok=True)
        os.close(descriptor)

    def forget(self) -> None:
        """In a child process: close the inherited descriptor; the lock dies with the parent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _open(self) -> int:
        try:
            return os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ReadOnlyFile(
                self._owned, f"its lock file {self._file} cannot be made ({error.strerror})"
            ) from error

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._file.stat())
        except FileNotFoundError:
            return False

    def _owner(self) -> int | None:
        try:
            return int(self._file.read_text("ascii"))
        except (OSError, ValueError):
            return None
