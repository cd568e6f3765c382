"""The types of Python and its library that JSON does not have, each under a tag of its own."""

from __future__ import annotations

import base64
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import EllipsisType, NotImplementedType
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from durable.codec.refusals import Refused
from durable.codec.text import is_utf8

LARGE = 1 << 2_000
"""Ints from here on are hexadecimal: Python limits the digits of decimals."""


class Kind(NamedTuple):
    """A class with a tag: `take` gives what is written under it, `more` what beside it.

    `build` makes the value again, of the first and, as keywords, of the others; what is None in
    `more` is not written.
    """

    tag: str
    cls: type
    take: Callable[[Any], Any]
    build: Callable[..., Any]
    more: Callable[[Any], dict[str, Any]] | None = None


def tagged_scalar(value: float | str) -> Any:
    """An int, float or str, with a tag if JSON or UTF-8 cannot hold it."""
    if type(value) is str:
        return value if is_utf8(value) else {"$str": value.encode("unicode_escape").decode()}
    if type(value) is int:
        return value if -LARGE < value < LARGE else {"$int": hex(value)}
    return value if math.isfinite(value) else {"$float": repr(value)}  # type: ignore[arg-type]


# ---- Collections

FACTORIES: dict[str | None, Any] = {None: None} | {
    cls.__name__: cls
    for cls in (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
}
"""The default factories that can be recorded, and be called without running code of the user's."""


def _plain_dict(value: OrderedDict[Any, Any] | Counter[Any]) -> dict[Any, Any]:
    if vars(value):
        raise Refused("has attributes of its own, which would be lost")
    return dict(value)


def _factory_name(value: defaultdict[Any, Any]) -> dict[str, Any]:
    for name, factory in FACTORIES.items():
        if value.default_factory is factory:
            return {"factory": name}
    raise Refused("has a default factory that is not a builtin class such as list or int")


def _build_defaultdict(items: dict[Any, Any], factory: str | None = None) -> Any:
    return defaultdict(FACTORIES[factory], items)


# ---- Bytes


def _base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode("ascii")


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


# ---- Dates and times


def _iso(value: datetime | time) -> str:
    return (value if _in_iso(value.tzinfo) else value.replace(tzinfo=None)).isoformat()


def _zone_and_fold(value: datetime | time) -> dict[str, Any]:
    return {"zone": None if _in_iso(value.tzinfo) else value.tzinfo, "fold": value.fold or None}


def _in_iso(zone: tzinfo | None) -> bool:
    """Whether isoformat() says all about the zone: none, or an offset without a name."""
    return zone is None or (type(zone) is timezone and _given_name(zone) is None)


def _moment(cls: type[datetime] | type[time]) -> Kind:
    def build(text: str, zone: tzinfo | None = None, fold: int = 0) -> datetime | time:
        value = cls.fromisoformat(text).replace(fold=fold)
        return value.replace(tzinfo=zone) if zone else value

    return Kind(f"${cls.__name__}", cls, _iso, build, _zone_and_fold)


def _given_name(zone: timezone) -> str | None:
    """The name that was given to an offset; without one, Python makes it of the offset."""
    name, offset = zone.tzname(None), zone.utcoffset(None)
    return None if name == timezone(offset).tzname(None) else name


def _build_timezone(offset: timedelta, name: str | None = None) -> timezone:
    return timezone(offset) if name is None else timezone(offset, name)


def _zone_key(value: ZoneInfo) -> str:
    if value.key is None:
        raise Refused("is a time zone that has no key")
    return value.key


# ---- All of them


def _by_text(cls: type) -> Kind:
    """A class whose str() says all."""
    return Kind(f"${cls.__name__.lower()}", cls, str, cls)


def _by_numbers(cls: type, *names: str) -> Kind:
    """A class that is made of the numbers in these attributes."""

    def take(value: object) -> list[Any]:
        return [getattr(value, name) for name in names]

    return Kind(f"${cls.__name__.lower()}", cls, take, lambda numbers: cls(*numbers))


_KINDS = (
    Kind("$tuple", tuple, list, tuple),
    Kind("$set", set, list, set),
    Kind("$frozenset", frozenset, list, frozenset),
    Kind("$deque", deque, list, deque, lambda value: {"maxlen": value.maxlen}),
    Kind("$ordereddict", OrderedDict, _plain_dict, OrderedDict),
    Kind("$counter", Counter, _plain_dict, Counter),
    Kind("$defaultdict", defaultdict, dict, _build_defaultdict, _factory_name),
    Kind("$bytes", bytes, _base64, _from_base64),
    Kind("$bytearray", bytearray, _base64, lambda text: bytearray(_from_base64(text))),
    Kind("$date", date, date.isoformat, date.fromisoformat),
    _moment(time),
    _moment(datetime),
    Kind(
        *("$timezone", timezone, lambda zone: zone.utcoffset(None), _build_timezone),
        more=lambda zone: {"name": _given_name(zone)},
    ),
    Kind("$zoneinfo", ZoneInfo, _zone_key, ZoneInfo),
    Kind("$ellipsis", EllipsisType, lambda _: None, lambda _: ...),
    Kind("$notimplemented", NotImplementedType, lambda _: None, lambda _: NotImplemented),
    _by_numbers(timedelta, "days", "seconds", "microseconds"),
    _by_numbers(range, "start", "stop", "step"),
    _by_numbers(Fraction, "numerator", "denominator"),
    _by_numbers(complex, "real", "imag"),
    *map(_by_text, (Decimal, UUID, PurePosixPath, PosixPath, PureWindowsPath, WindowsPath)),
    *map(_by_text, (IPv4Address, IPv4Interface, IPv4Network)),
    *map(_by_text, (IPv6Address, IPv6Interface, IPv6Network)),
)
KIND_OF: dict[type, Kind] = {kind.cls: kind for kind in _KINDS}
BUILDERS: dict[str, Callable[..., Any]] = {kind.tag: kind.build for kind in _KINDS} | {
    "$dict": dict,
    "$float": float,
    "$int": lambda text: int(text, 16),
    "$str": lambda text: text.encode("ascii").decode("unicode_escape"),
}
