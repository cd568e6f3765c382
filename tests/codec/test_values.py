"""Values come back as they were."""

from __future__ import annotations

import json
import math
import pathlib
import random
import sqlite3
import sys
import uuid
from collections import OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest

from tests.codec.classes import Box, Color, Hostile, Place, Point, Rights
from tests.codec.support import CODEC, back, same, unreadable
from tests.codec.values import VALUES

HAS_ZONES = "Europe/Berlin" in available_timezones()


def test_plain_json_is_written_as_plain_json() -> None:
    """What JSON has is written as JSON has it, compact and readable."""
    assert CODEC.encode({"a": [1, "é"]}) == '{"a":[1,"é"]}'
    assert CODEC.encode('it\'s "so"\n') == '"it\'s \\"so\\"\\n"'
    plain: list[Any] = [None, True, False, 7, -1.5, "", [], {}]
    texts = ["null", "true", "false", "7", "-1.5", '""', "[]", "{}"]
    assert [CODEC.encode(value) for value in plain] == texts
    assert CODEC.encode((1, {"k": {2, 1}})) == '{"$tuple":[1,{"k":{"$set":[1,2]}}]}'


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_a_value_comes_back_as_the_same(value: Any) -> None:
    """Each kind of value, and each in a container, comes back equal, of the same type, in order."""
    if isinstance(value, (list, tuple)) and value and type(value[0]) is Hostile:
        assert object.__getattribute__(back(value)[0], "__dict__") in ({"value": 1}, {"value": 2})
        return
    assert same(back(value), value)
    assert same(back([value, {"k": (value,)}]), [value, {"k": (value,)}])
    json.loads(CODEC.encode(value), parse_constant=pytest.fail)
    CODEC.encode(value).encode("utf-8")


@pytest.mark.skipif(not HAS_ZONES, reason="needs the time zone database")
@pytest.mark.parametrize("fold", [0, 1])
def test_a_named_zone_comes_back_by_its_key(fold: int) -> None:
    """A moment in a zone keeps its wall time, its zone and its fold; a lost zone is an error."""
    moment = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
    copy = back([moment, moment.timetz(), moment.tzinfo])
    assert same(copy, [moment, moment.timetz(), moment.tzinfo])
    assert copy[0].utcoffset() == moment.utcoffset()
    assert "Mars/Base" in unreadable('[{"$zoneinfo":"Mars/Base"}]').reason


def test_the_text_of_a_set_is_the_same_in_every_process() -> None:
    """Elements are written in an order of their own, not in that of their hashes."""
    words = [f"w{n}" for n in range(50)]
    texts = {CODEC.encode(set(words[n:] + words[:n])) for n in range(50)}
    mixed = CODEC.encode({(2, "b"), (1, "a"), "z", 3})
    assert len(texts) == 1
    assert mixed == '{"$set":["z",3,{"$tuple":[1,"a"]},{"$tuple":[2,"b"]}]}'


def test_lone_surrogates_can_be_stored() -> None:
    """A file name that is no UTF-8 goes through SQLite, which takes no lone surrogate."""
    value = {"name\udcff": pathlib.PurePosixPath("x\udc80"), "é": "\ud83d\ude00"}
    with sqlite3.connect(":memory:") as db:
        (text,) = db.execute("SELECT ?", (CODEC.encode(value),)).fetchone()
    db.close()
    assert same(CODEC.decode(text), value)


def test_numbers_that_python_will_not_print_are_kept() -> None:
    """An int of more digits than Python's limit is written in hexadecimal, under any limit."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert back(10**640) == 10**640
        assert back({"n": [-(10**3000)]}) == {"n": [-(10**3000)]}
    finally:
        sys.set_int_max_str_digits(before)


ATOMS = [None, True, 3, -(2**70), 1.5, -0.0, math.nan, "", "é", "$k", "x\udc80", b"\x00"]
OTHERS = [Decimal("1.0"), Color.RED, Rights(5), date(2024, 1, 1), timedelta(1), uuid.UUID(int=1)]


def grow(rng: random.Random, depth: int, *, hashable: bool = False) -> Any:
    """Some value, at most `depth` deep."""
    kind = rng.randrange(2 if depth == 0 else 5 if hashable else 13)
    if kind < 2:
        return rng.choice((ATOMS, OTHERS)[kind])
    parts = [grow(rng, depth - 1, hashable=hashable) for _ in range(rng.randrange(4))]
    if kind < 5:
        return (tuple(parts), Point(7, tuple(parts)), Place(1.0, tuple(parts)))[kind - 2]
    keys = [grow(rng, 1, hashable=True) for _ in parts]
    pairs = list(zip(keys, parts, strict=True))
    makers = (
        *(lambda: parts, lambda: {f"{n}": p for n, p in enumerate(parts)}, lambda: dict(pairs)),
        *(lambda: set(keys), lambda: OrderedDict(pairs), lambda: defaultdict(list, pairs)),
        *(lambda: deque(parts, maxlen=9), lambda: Box(parts)),
    )
    return makers[kind - 5]()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [20240501])
def test_random_values_come_back_as_the_same(seed: int) -> None:
    """Three thousand nested values of all kinds come back as they were, and write the same text."""
    rng = random.Random(seed)
    for _ in range(3000):
        value = grow(rng, rng.randrange(1, 5))
        text = CODEC.encode(value)
        assert same(CODEC.decode(text), value), text
        assert CODEC.encode(CODEC.decode(text)) == text
