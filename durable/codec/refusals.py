"""What is said of a value that is refused: why, and which part of it.

All that is of the user's is asked here with care: a str() or repr() of theirs may raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from durable.codec.text import printable
from durable.errors import SerializationError
from durable.names import qualified_name

# The deepest nesting of containers. One takes up to 4 frames, a defaultdict 6, of the 1000 that
# Python allows by default: that leaves the caller, whose stack may be deep already, about half.
_DEEPEST = 100
_LONGEST_KEY = 40  # characters of a key in a place


class Refused(Exception):
    """Why a part of a value cannot be recorded or rebuilt; collects its place on the way up."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[tuple[object, str]] = []

    def inside(self, container: object, part: str) -> None:
        """Say that what was refused is `part` of `container`."""
        self.steps.append((container, part))

    def error(self) -> SerializationError:
        """What the user gets to see.

        A value that contains itself was refused as too deep: the writer looks for no cycles, which
        would slow down every value. Only here, on the way to the deepest part, are they told apart.
        """
        place, reason, above = [], self.reason, set()
        for container, part in reversed(self.steps):
            if id(container) in above:
                reason = "contains itself"
                break
            above.add(id(container))
            place.append(part)
        if len(place) > 12:
            place = [*place[:6], "…", *place[-5:]]
        return SerializationError("".join(["$", *place]), reason)


@contextmanager
def within(container: object, part: str) -> Iterator[None]:
    """Adds `part` to the place of what is refused in the block."""
    try:
        yield
    except Refused as refused:
        refused.inside(container, part)
        raise


def check_depth(depth: int) -> None:
    """Refuse a container below too many others."""
    if depth > _DEEPEST:
        raise Refused(f"is nested more than {_DEEPEST} containers deep")


def key_place(key: object, index: int) -> str:
    """The place of the value at `key`. Only keys of ours are shown: a repr may be the user's."""
    if type(key) is str:
        return f".{key}" if key.isidentifier() else f"[{printable(key[:_LONGEST_KEY])!r}]"
    if key is None or type(key) in (bool, int, float):
        return f"[{safely(repr, key)[:_LONGEST_KEY]}]"
    return f".values()[{index}]"


def unexpected(error: Exception, reason: str) -> SerializationError:
    """The error for any exception but Refused; `reason` says what failed."""
    if isinstance(error, RecursionError):
        return SerializationError("$", "is nested too deep for the stack of its caller")
    return SerializationError("$", f"{reason}: {summary(error)}")


def summary(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {safely(str, error)}"


def safely(show: Callable[[Any], str], thing: object) -> str:
    """`show(thing)`, or words for it where that raises."""
    try:
        return show(thing)
    except Exception:
        return f"<{type(thing).__name__} that has no {show.__name__}>"


def class_name(cls: type) -> str:
    """``module:qualname``, for messages: it may not lead back to the class."""
    return printable(safely(qualified_name, cls))
