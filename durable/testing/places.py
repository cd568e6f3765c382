"""Whose code a line is, for messages: the program's own, a package's, Python's or durable's."""

from __future__ import annotations

import os
from enum import Enum
from functools import lru_cache
from pathlib import Path
from types import FrameType

_PYTHON = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120 - compared as text
_DURABLE = str(Path(__file__).parents[1]) + os.sep
_PACKAGES = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


class Owner(Enum):
    """Who wrote a file."""

    PROGRAM = "program"
    PACKAGE = "package"
    PYTHON = "python"
    DURABLE = "durable"


@lru_cache(maxsize=1024)
def owner_of(file: str) -> Owner:
    """Who wrote the code of that file name; what was typed in is the program's."""
    if file.startswith(_DURABLE):
        return Owner.DURABLE
    if any(packages in file for packages in _PACKAGES):
        return Owner.PACKAGE
    if file.startswith((_PYTHON, "<frozen ")):
        return Owner.PYTHON
    return Owner.PROGRAM


def line_of(frame: FrameType) -> str:
    """``file:line`` of a frame."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def program_line(frame: FrameType | None) -> str | None:
    """``function (file:line)``: the innermost of the program's own lines, seen from a frame."""
    while frame is not None and owner_of(frame.f_code.co_filename) is not Owner.PROGRAM:
        frame = frame.f_back
    return None if frame is None else f"{frame.f_code.co_qualname} ({line_of(frame)})"
