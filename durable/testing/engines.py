"""Engines for tests: on a temporary file, with a virtual clock, apart from every other."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from durable.clock import Clock
from durable.engine import Engine
from durable.testing.clock import VirtualClock
from durable.testing.timeline import Journal, timeline

log = logging.getLogger("durable.testing")


class TestEngine(Engine):
    """An engine that keeps a journal of its writes and lets other threads go on around each."""

    __test__ = False  # its name begins with "Test", and pytest must not collect it

    def __init__(self, path: str | Path, *, clock: Clock, **options: Any) -> None:
        options.setdefault("synchronous", "normal")
        super().__init__(path, clock=clock, **options)
        self.journal = Journal(clock)
        self._hooks.observer = self.journal

    @property
    def errors(self) -> list[BaseException]:
        """What went wrong on threads that nobody waits for."""
        return list(self._hooks.errors)


@contextmanager
def engine(
    *, seed: int = 0, clock: Clock | None = None, path: str | Path | None = None, **options: Any
) -> Iterator[TestEngine]:
    """An engine on a temporary file with a `VirtualClock` of its own, gone at the end.

    `clock` and `path` may be given instead, and all `options` of `Engine`. What is still running at
    the end is stopped, and a table of it is logged; an error of a background thread is raised, as
    an ExceptionGroup.

        with testing.engine() as engine:
            handle = reminder.start("Ann")
            assert handle.result() == "sent"       # thirty days later, at once
    """
    with tempfile.TemporaryDirectory(prefix="durable-") as folder:
        used = TestEngine(
            path or Path(folder) / "test.db", clock=clock or VirtualClock(seed), **options
        )
        used.open()
        try:
            yield used
        finally:
            _log_what_is_left(used)
            used.close(timeout=0)
        if used.errors:
            raise BaseExceptionGroup("errors on background threads of the engine", used.errors)


def _log_what_is_left(used: Engine) -> None:
    host = used._host
    left = [] if host is None or host.database.closed else host.runs.describe()
    if left:
        log.warning("still unfinished at the end of the test:\n%s", timeline(used))
