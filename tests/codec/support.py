"""There and back, and whether it is the same."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from datetime import datetime, time, timezone
from decimal import Decimal
from typing import Any

import pytest

from durable.codec import JsonCodec
from durable.errors import SerializationError
from tests.codec import classes

CODEC = JsonCodec()
HERE = classes.__name__


def back(value: Any) -> Any:
    return CODEC.decode(CODEC.encode(value))


def refusal(value: Any) -> SerializationError:
    with pytest.raises(SerializationError) as caught:
        CODEC.encode(value)
    return caught.value


def unreadable(text: str) -> SerializationError:
    with pytest.raises(SerializationError) as caught:
        CODEC.decode(text)
    return caught.value


def recorded(tag: str, cls: str, /, **parts: Any) -> str:
    return json.dumps({f"${tag}": f"{HERE}:{cls}"} | parts)


def same(a: Any, b: Any) -> bool:
    """Equal and of the same type, all the way down; nan is nan, 0.0 is not -0.0, order counts."""
    if type(a) is not type(b):
        return False
    if isinstance(a, BaseException):
        return same(a.args, b.args) and str(a) == str(b) and same(state(a), state(b))
    if dataclasses.is_dataclass(a):
        return same(state(a), state(b))
    if isinstance(a, (float, complex)):
        return repr(a) == repr(b)
    if isinstance(a, Decimal):
        return bool(a.as_tuple() == b.as_tuple())
    if isinstance(a, (datetime, time)):
        parts = a.replace(tzinfo=None), a.fold
        return parts == (b.replace(tzinfo=None), b.fold) and same(a.tzinfo, b.tzinfo)
    if isinstance(a, timezone):
        return (a, a.tzname(None)) == (b, b.tzname(None))
    if isinstance(a, (set, frozenset)):
        return same(sorted(a, key=repr), sorted(b, key=repr))
    if isinstance(a, dict):
        factories = getattr(a, "default_factory", None), getattr(b, "default_factory", None)
        return factories[0] is factories[1] and same(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple, deque)):
        lengths = getattr(a, "maxlen", None) == getattr(b, "maxlen", None) and len(a) == len(b)
        return lengths and all(map(same, a, b))
    return bool(a == b)


def state(thing: Any) -> dict[str, Any]:
    found = dict(getattr(thing, "__dict__", {}))
    for name in getattr(type(thing), "__slots__", ()):
        if hasattr(thing, name):
            found[name] = getattr(thing, name)
    return {k: v for k, v in found.items() if k not in ("__durable_traceback__", "__orig_class__")}
