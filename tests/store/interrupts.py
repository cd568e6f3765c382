"""Ctrl-C at every point of a piece of code, one after the other."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from durable import clock
from durable.store import database

# Where the code under test is interrupted. The standard library's own locks and conditions are
# left out: what a Ctrl-C inside of them does is theirs.
FILES = frozenset({database.__file__, clock.__file__})


class Interruption:
    """A KeyboardInterrupt at point number `at` (from 1 on) of what the calling thread runs.

    A point is where Python looks for signals: when a function begins, when a loop goes round, and
    when a call of something written in C has returned. `happened` says that the point was reached,
    `where` where it was.
    """

    def __init__(self, at: int) -> None:
        self._left = at
        self.happened = False
        self.where = "nowhere"
        self._last: dict[FrameType, str] = {}

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Interrupt inside this block."""
        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # before settrace(), or Python 3.12 is not told
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "call":
            if frame.f_back is not None:
                # The call that is being made is one of Python code: no point when it returns.
                self._last.pop(frame.f_back, None)
            if frame.f_code.co_filename not in FILES:
                return None
            self._last[frame] = "RESUME"
            frame.f_trace = self._trace  # before the next line, or Python 3.13 is not told
            frame.f_trace_opcodes = True
        elif event == "opcode":
            operation = _operation(frame.f_code, frame.f_lasti)
            if operation != "RESUME" and self._is_point(self._last.get(frame, "")):
                self._left -= 1
                if self._left == 0:
                    self.happened = True
                    self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                    raise KeyboardInterrupt
            self._last[frame] = operation
        return self._trace

    @staticmethod
    def _is_point(operation: str) -> bool:
        return operation.startswith(("CALL", "RESUME", "JUMP_BACKWARD")) and not (
            operation.startswith("CALL_INTRINSIC")
        )


_operations: dict[CodeType, dict[int, str]] = {}


def _operation(code: CodeType, offset: int) -> str:
    if code not in _operations:
        _operations[code] = {each.offset: each.opname for each in dis.get_instructions(code)}
    return _operations[code].get(offset, "")
