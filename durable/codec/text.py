"""JSON text that is strict (no NaN), compact, and UTF-8, so that SQLite can store it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_to_text = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode

# What `dump` does with one str, without what it takes to get there.
quote: Callable[[str], str] = json.encoder.encode_basestring


def dump(tree: Any) -> str:
    """The text of plain JSON; ValueError for nan, huge ints and lone surrogates."""
    text = _to_text(tree)
    if not text.isascii():
        text.encode()  # refuses lone surrogates, as SQLite would
    return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_no_constant)


def parse(text: str) -> Any:
    """What `dump` wrote; ValueError for all that is not JSON."""
    node, end = _decoder.raw_decode(text)
    # raw_decode() is the faster one, but does not mind what follows: decode() says what is wrong.
    return node if end == len(text) else _decoder.decode(text)


def is_utf8(text: str) -> bool:
    """Whether `text` can be written as UTF-8: it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """`text` with its lone surrogates as escapes, for people to read."""
    # Not text.encode(): what a __str__ returned may be of a subclass that has its own.
    return str.encode(text, "utf-8", "backslashreplace").decode()
