"""Ctrl-C at every point of a piece of code, one after the other."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from durable import clock
from durable.store import database, requests, snapshot, transactions

# Where code is interrupted. The standard library's own locks and conditions are left out: what a
# Ctrl-C inside of them does is theirs.
OF_WRITING = frozenset(
    str(module.__file__) for module in (database, transactions, snapshot, requests, clock)
)
ALL = frozenset(str(file) for file in Path(clock.__file__).parent.rglob("*.py"))


class Interruption:
    """A KeyboardInterrupt at point number `at` (from 1 on) of what this thread runs in `files`.

    A point is where Python looks for signals: when a function begins, and when a call of something
    written in C has returned; its result is lost then. `happened` says that the point was reached,
    `where` where it was.
    """

    def __init__(self, at: int, files: frozenset[str] = OF_WRITING) -> None:
        self._left = at
        self._files = files
        self.happened = False
        self.where = "nowhere"

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Interrupt inside this block, where no garbage is collected: that of others has points."""
        before = sys.getprofile()
        gc.disable()
        sys.setprofile(self._count)
        try:
            yield
        finally:
            sys.setprofile(before)
            gc.enable()

    def _count(self, frame: FrameType, event: str, arg: Any) -> None:
        if event not in ("call", "c_return") or frame.f_code.co_filename not in self._files:
            return
        self._left -= 1
        if self._left == 0:
            self.happened = True
            what = "the first line" if event == "call" else f"{arg.__name__}()"
            file = Path(frame.f_code.co_filename).name
            self.where = f"{what} in {frame.f_code.co_name}, {file}:{frame.f_lineno}"
            raise KeyboardInterrupt
