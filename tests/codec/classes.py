"""The classes of the values and exceptions in these tests."""

from __future__ import annotations

import collections
import enum
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import pytest

T = TypeVar("T")

_calls_allowed = True


@contextmanager
def no_calls() -> Iterator[None]:
    """The code of the classes below must not be called in this block."""
    global _calls_allowed
    _calls_allowed = False
    try:
        yield
    finally:
        _calls_allowed = True


def called(name: str) -> None:
    """Say that the code of a class is called."""
    if not _calls_allowed:
        raise AssertionError(f"{name} was called")


# ---- Enums


class Color(enum.Enum):
    RED = 1
    SCARLET = 1
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    YES = "yes"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4
    ALL = 7


class StrictRights(enum.Flag):
    READ = 1
    WRITE = 2

    @classmethod
    def _missing_(cls, value: object) -> Any:
        called("_missing_")
        return super()._missing_(value)


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


# ---- Dataclasses and named tuples


@dataclass
class Item:
    name: str
    price: Decimal = Decimal("0")
    tags: set[Any] = field(default_factory=set)
    total: ClassVar[int] = 0


@dataclass
class Order:
    id: int
    items: list[Item]
    status: Color = Color.RED


@dataclass(frozen=True, slots=True, order=True)
class Place:
    x: float
    y: Any = 0.0


@dataclass
class Special(Order):
    reason: str = "none"


class Plain(Order):
    """No dataclass of its own."""


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class Guarded:
    """Whose own code refuses to make it."""

    value: int
    half: float = field(init=False)

    def __post_init__(self) -> None:
        called("__post_init__")
        object.__setattr__(self, "half", self.value / 2)

    def __setattr__(self, name: str, value: Any) -> None:
        called("__setattr__")
        object.__setattr__(self, name, value)

    @functools.cached_property
    def double(self) -> int:
        return self.value * 2


class Outer:
    @dataclass
    class Inner:
        value: int


class Point(NamedTuple):
    x: Any
    y: Any = 5


OldPoint = collections.namedtuple("OldPoint", "x y")


class Named(collections.namedtuple("Named", "a b")):
    """A named tuple with methods, and so with a __dict__."""


@dataclass(eq=False)
class Hostile:
    """Whatever is asked of it, it raises; but it is plain data."""

    value: int

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("getattribute")


@dataclass(frozen=True)
class BadHash:
    value: int

    def __hash__(self) -> int:
        if not _calls_allowed:
            raise ZeroDivisionError("hash")
        return 1


# ---- What is refused


class MyInt(int):
    pass


class MyStr(str):
    pass


class MyDict(dict[str, Any]):
    pass


class MyMoment(datetime):
    pass


@dataclass
class DataDict(dict[str, Any]):
    value: int = 1


@dataclass
class WithProperty:
    value: int

    @property  # type: ignore[no-redef]
    def value(self) -> int:
        raise AssertionError("a property was read")

    @value.setter
    def value(self, value: int) -> None:
        self._value = value


# ---- What has changed since something was recorded


@dataclass
class Grown:
    id: int
    note: str = "none"
    parts: list[int] = field(default_factory=list)


@dataclass
class GrownByCode:
    id: int
    made: Any = field(default_factory=lambda: pytest.fail("a factory was called"))


@dataclass
class GrownNeedy:
    id: int
    owner: str


@dataclass(slots=True)
class Shrunk:
    id: int


class GrownPoint(NamedTuple):
    x: int
    z: int = 0


# ---- Exceptions


class Formatted(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"failed with {code}")
        self.code = code


class KeywordOnly(Exception):
    def __init__(self, *, order: str) -> None:
        super().__init__(order)
        self.order = order

    def __str__(self) -> str:
        return f"order {self.order} failed"


class NoSuper(ValueError):
    def __init__(self, a: int, b: int = 2) -> None:
        self.sum = a + b


class Slotted(LookupError):
    __slots__ = ("place", "unset")

    def __init__(self, place: str) -> None:
        self.place = place


class OwnNew(Exception):
    def __new__(cls, *args: Any) -> OwnNew:
        called("__new__")
        return super().__new__(cls, *args)


class Disk(OSError):
    def __init__(self, code: int) -> None:
        super().__init__(f"disk {code}")
        self.errno = code


class Mixed(KeyError, OSError):
    pass


@dataclass
class DataError(Exception):
    code: int
    detail: dict[str, int] = field(default_factory=dict)


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Group(ExceptionGroup[Exception]):
    pass


class Stop(BaseException):
    pass
