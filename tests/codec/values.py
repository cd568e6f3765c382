"""One of each kind of value and exception that comes back as it was."""

from __future__ import annotations

import ipaddress
import math
import pathlib
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

from durable.errors import RemoteError, SerializationError
from tests.codec.classes import (
    Bits,
    Box,
    Color,
    DataError,
    Disk,
    Formatted,
    Guarded,
    Hostile,
    Item,
    KeywordOnly,
    Level,
    Mixed,
    Named,
    NoSuper,
    OldPoint,
    Order,
    Outer,
    OwnNew,
    Place,
    Plain,
    Point,
    Rights,
    Slotted,
    Special,
    Stop,
    Word,
)

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 2**63, 10**4000, -(10**5000), 1e300, 5e-324),
    *(0.0, -0.0, math.nan, math.inf, -math.inf, 1 + 2j, complex(-0.0, math.nan)),
    *("", "é", "😀", "\x00\x1f\u2028", "$tuple", '"$', "\ud800", "a\udfff\\u0041é"),
    *(
        "\ud83d\ude00",
        {"\udc80": "\ud83d\ude00", "😀": "\U0001f600"},
        ["\udcff", math.nan, 10**5000],
    ),
    *(b"", b"\x00\xff", bytearray(b"x"), (), (1,), ((1, [2]), (3,)), [[], [[]]], {}, {"": 1}),
    *({1: "a", "1": "b", None: "c", (1, 2): "d", 1.5: "e"}, {True: 1}, {"$tuple": [1]}),
    *({"a": {"$x": {"b": 1}}}, {"a": 1, "$b": 2}, {math.nan: 1}, {b"k": {Color.RED: []}}),
    *(set(), {1, "1", (2, 3)}, frozenset({frozenset(), frozenset({1})}), {math.nan, 1.0, None}),
    OrderedDict([("b", 1), ("a", OrderedDict())]),
    OrderedDict([(2, 1), (1, 2)]),
    *(
        defaultdict(list, {"a": [1]}),
        defaultdict(None, {1: 2}),
        defaultdict(int),
        defaultdict(dict),
    ),
    *(Counter("hello"), Counter({("a", 1): -3, "b": 0}), Counter()),
    *(deque([1, (2,)]), deque([3], maxlen=5), deque(maxlen=0)),
    *(date(1, 1, 1), date.max, datetime(2024, 5, 1, 12, 30, 0, 7), datetime.min, datetime.max),
    datetime(2024, 5, 1, tzinfo=timezone.utc),  # noqa: UP017
    datetime(2024, 5, 1, fold=1),
    datetime(2024, 5, 1, fold=1, tzinfo=timezone(timedelta(hours=2))),
    datetime(2024, 5, 1, tzinfo=timezone(timedelta(hours=-5, minutes=-30, microseconds=3))),
    datetime(2024, 5, 1, tzinfo=timezone(timedelta(0), "GMT")),
    *(time(1, 2, 3, 4), time(23, fold=1), time(1, tzinfo=timezone(timedelta(hours=1), "CET"))),
    *(timedelta(0), timedelta(-1, 5, 7), timedelta.max, timedelta.min),
    *(timezone.utc, timezone(timedelta(hours=3)), timezone(timedelta(hours=3), "\ud800")),  # noqa: UP017
    *map(Decimal, ("0", "-0", "1.10", "1E+5", "0E-20", "NaN", "-sNaN12", "-Infinity", "9" * 5000)),
    *(Fraction(1, 3), Fraction(-(10**5000), 3), uuid.UUID(int=5)),
    *map(pathlib.PurePosixPath, (".", "/a/b c", "//net", "a\udcff", "..")),
    *map(pathlib.PureWindowsPath, ("C:\\x", "c:", "//host/share/x", ".")),
    *(pathlib.Path("/tmp/é"), range(5), range(10**5000, 3, -2), range(0), ..., NotImplemented),
    *map(ipaddress.ip_address, ("1.2.3.4", "::1", "fe80::1%eth0")),
    *map(ipaddress.ip_network, ("10.0.0.0/8", "::/0")),
    *map(ipaddress.ip_interface, ("10.0.0.5/8", "::1/64")),
    *(Color.RED, Color.SCARLET, Color.GREEN, Level.HIGH, Word.YES, {Level.LOW: Word.YES}),
    *(Rights.READ, Rights.READ | Rights.RUN, Rights(0), Rights.ALL, ~Rights.READ),
    *(Bits.ONE, Bits.ONE | Bits.TWO, Bits(0), Bits(9), Bits(8), ~Bits.ONE),
    *(Point(1), Point(1, Point(2, 3)), OldPoint([1], None), Named("x", ("y",))),
    *(Item("a"), Item("b", Decimal("1.0"), {"x"}), Order(1, [Item("c"), Item("d")], Color.GREEN)),
    *(Place(1.5), Place(math.nan, -0.0), {Place(1.0), Place(2.0)}, Special(1, [], reason="é")),
    *(Plain(3, [Item("e")]), Box[int](5), Box(Box((1, 2))), Guarded(5), Outer.Inner(3)),
    *([Hostile(1)], (Hostile(2),)),
]


def noted(error: BaseException, *notes: str) -> BaseException:
    for note in notes:
        error.add_note(note)
    return error


def caught_from(code: str) -> BaseException:
    try:
        exec(code, {})
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


ERRORS: list[Any] = [
    *(ValueError(), ValueError("x"), ValueError(1, (2, {3})), KeyError("k"), Exception(Color.RED)),
    *(Formatted(7), KeywordOnly(order="o"), NoSuper(1, b=3), Slotted("here"), OwnNew(1, 2)),
    *(OSError(), OSError("x"), FileNotFoundError(2, "No such file", "a.txt"), Disk(5), Mixed("k")),
    *(OSError(18, "cross", "a", None, "b"), BlockingIOError(11, "again", 3), TimeoutError("t")),
    *(ImportError("m", name="mod", path="/p"), NameError("n", name="n"), StopIteration(5)),
    *(AttributeError("a", name="a"), SystemExit(3), SystemExit(), KeyboardInterrupt("k"), Stop(1)),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    UnicodeEncodeError("ascii", "é", 0, 1, "bad"),
    UnicodeTranslateError("é", 0, 1, "bad"),
    SyntaxError("bad", ("f.py", 1, 2, "x =", 1, 3)),
    *(DataError(4, {"a": 1}), noted(ValueError("n"), "one", "two"), RemoteError("a:B", "m", "tb")),
    SerializationError("$.a", "is bad"),
    caught_from("import json; json.loads('[')"),
    caught_from("import sqlite3; c = sqlite3.connect(':memory:'); c.close(); c.execute('')"),
    caught_from("{}['k']"),
    caught_from("unknown_name"),
]
