"""Arguments, checked where they come in: what the file could not keep is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from durable.errors import InvalidArgument

# The largest number that SQLite keeps.
LARGEST = 2**63 - 1


def check_text(text: object, what: str, *, empty: bool = False) -> str:
    """`text`, if it is one that UTF-8 can write; InvalidArgument, naming `what`, if not."""
    if not isinstance(text, str):
        raise InvalidArgument(f"{what} is a text, not {type(text).__name__} ({_shown(text)})")
    if not text and not empty:
        raise InvalidArgument(f"{what} is a text that is not empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{what} is a text that UTF-8 can write, not {text!r}: it has half a surrogate pair"
        ) from error
    return text


def check_optional_text(text: object, what: str, *, empty: bool = False) -> str | None:
    """`check_text`, or None for None."""
    return None if text is None else check_text(text, what, empty=empty)


def check_texts(texts: Any, what: str) -> tuple[str, ...]:
    """The texts of a list or another iterable; a lone text is none, nor is None."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InvalidArgument(f"{what} are a list of texts, not {_shown(texts)}")
    return tuple(check_text(text, f"each of {what}") for text in texts)


def check_count(count: object, what: str, *, least: int = 1) -> int:
    """`count`, if it is a whole number from `least` on that SQLite can keep."""
    if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= LARGEST:
        raise InvalidArgument(f"{what} is a whole number from {least} on, not {_shown(count)}")
    return count


def check_id(identifier: object, what: str = "the id of a workflow") -> str:
    """`identifier`, if it is a text of printable characters."""
    text = check_text(identifier, what)
    if not text.isprintable():
        raise InvalidArgument(f"{what} is of printable characters, not {text!r}")
    return text


def _shown(value: object) -> str:
    """The value for people, however it behaves: numbers may be too long, reprs may fail."""
    try:
        shown = repr(value)
    except Exception:  # the repr is the user's
        return f"a {type(value).__name__}"
    return shown if len(shown) <= 100 else f"{shown[:100]}…"
