"""What an async workflow waits for: which of several tasks and workflows has ended first."""

from __future__ import annotations

import asyncio
from typing import Any

from durable.runtime.context import Scope
from durable.runtime.file import File


class Watched:
    """A task or future of asyncio, as something that workflows can wait for."""

    def __init__(self, file: File, scope: Scope | None, future: asyncio.Future[Any]) -> None:
        self.future = future
        self.key = f"task/{id(future)}"
        self.ended = future.done()
        now = file.clock.now()
        self.finished_at = now if scope is None else scope.run.ended_at.get(future, now)
        self._file = file
        if not self.ended:
            future.add_done_callback(self._end)

    def _end(self, future: asyncio.Future[Any]) -> None:
        self.finished_at = self._file.clock.now()
        self.ended = True
        self._file.waiting.notify([self.key])
