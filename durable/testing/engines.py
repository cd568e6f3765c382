"""Engines for tests: on a temporary file, with a virtual clock, apart from every other."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from durable.clock import Clock, SystemClock
from durable.engine import Engine
from durable.errors import DurableError
from durable.records import Status
from durable.runtime.host import Host
from durable.store.database import Database
from durable.store.tx import Tx
from durable.testing.clock import VirtualClock
from durable.testing.timeline import Journal, story, timeline

T = TypeVar("T")

log = logging.getLogger("durable.testing")

UNFINISHED = [each for each in Status if not each.finished]

# A folder in memory, where there is one: what a test writes need not reach a disk.
_MEMORY = "/dev/shm"


class TestEngine(Engine):
    """An engine that keeps a journal of its writes and lets other threads go on around each.

    Around each look at the file, too. Workflows that are given no id get ``workflow-1-1`` and so
    on (the first of the file's first engine), so that a run can be the same as the one before.
    """

    __test__ = False  # its name begins with "Test", and pytest must not collect it

    def __init__(self, path: str | Path, *, clock: Clock, **options: Any) -> None:
        options.setdefault("synchronous", "normal")
        options.setdefault("schedules", False)  # not another job of the program, for every test
        super().__init__(path, clock=clock, **options)
        self.journal = Journal(clock)
        self._hooks.observer = self.journal
        numbers = itertools.count(1)
        self._hooks.new_id = lambda: f"workflow-{self._open_engine().session}-{next(numbers)}"
        self._last_host: Host | None = None

    @property
    def path(self) -> Path:
        """Its file."""
        return Path(self._path)

    @property
    def clock(self) -> Any:
        """The clock that it was given: a `VirtualClock`, unless somebody gave another."""
        return self._clock

    @property
    def closed(self) -> bool:
        """Whether it was closed, or has died."""
        return self._host is None or self._host.database.closed

    @property
    def errors(self) -> list[BaseException]:
        """What went wrong on threads that nobody waits for."""
        host = self._last_host
        failures = [] if host is None else list(host.runs._failures.values())
        unforeseen = [
            each
            for each in failures
            if isinstance(each, Exception) and not isinstance(each, DurableError)
        ]
        return [*self._hooks.errors, *getattr(self._clock, "errors", []), *unforeseen]

    def _make_host(self) -> Host:
        host = self._last_host = super()._make_host()
        read, switch = host.database.read, self.journal.switch

        def read_between_switches(fn: Callable[[Tx], T]) -> T:
            switch()
            try:
                return read(fn)
            finally:
                switch()

        host.database.read = read_between_switches  # type: ignore[method-assign]
        return host


@contextmanager
def engine(
    *, seed: int = 0, clock: Clock | None = None, path: str | Path | None = None, **options: Any
) -> Iterator[TestEngine]:
    """An engine on a temporary file with a `VirtualClock` of its own, gone at the end.

    `clock` and `path` may be given instead, and all `options` of `Engine`; schedules run only with
    ``schedules=True``. What is still running at
    the end is stopped, and a table of it is logged. An error of a background thread is raised, as
    an ExceptionGroup; an exception that leaves the block gets a note of what the workflows did.
    The engine does not hear what a `Client` of its file does: it is one itself.

        with testing.engine() as engine:
            handle = reminder.start("Ann")
            assert handle.result() == "sent"       # thirty days later, at once
    """
    with temporary_file() as temporary:
        used = TestEngine(path or temporary, clock=clock or VirtualClock(seed), **options)
        used.open()
        told = ""
        try:
            try:
                yield used
                _tell_what_is_left(used)
            finally:
                told = story(used)
                used.close(timeout=0)
            raise_errors(used)
        except Exception as error:
            error.add_note(f"what the workflows did:\n{told}")
            raise


def raise_errors(used: TestEngine) -> None:
    """Raise what went wrong on threads that nobody waits for."""
    if used.errors:
        raise BaseExceptionGroup("errors on background threads of the engine", used.errors)


@contextmanager
def temporary_file() -> Iterator[Path]:
    """An empty file of durable's in a folder of its own, which is gone at the end."""
    memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="durable-", dir=memory) as folder:
        file = Path(folder) / "test.db"
        file.write_bytes(_empty_file())
        yield file


@functools.cache
def _empty_file() -> bytes:
    """What a new file is made of; to make its tables anew would cost as much as all the rest."""
    with tempfile.TemporaryDirectory(prefix="durable-") as folder:
        file = Path(folder) / "empty.db"
        Database(
            str(file),
            clock=SystemClock(),
            synchronous="normal",
            create=True,
            on_commit=lambda keys: None,
        ).open().close()
        return file.read_bytes()


def _tell_what_is_left(used: TestEngine) -> None:
    if not used.closed and used.workflows(status=UNFINISHED):
        left = timeline(used, status=UNFINISHED)
        log.warning("still unfinished at the end of the test:\n%s", left)
