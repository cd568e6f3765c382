"""Values and exceptions come back as they were, or recording them says where they would not."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import ipaddress
import json
import math
import pathlib
import random
import sqlite3
import sys
import threading
import traceback
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo, available_timezones

import pytest

from durable.codec import (
    JsonCodec,
    Opaque,
    PickleCodec,
    decode_error,
    decode_or_opaque,
    encode_error,
    error_is_exact,
    snapshot,
)
from durable.errors import RemoteError, SerializationError

T = TypeVar("T")
CODEC = JsonCodec()
HERE = __name__
HAS_ZONES = "Europe/Berlin" in available_timezones()


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


# ---- The classes of these tests


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
        if not calls_allowed:
            raise AssertionError("_missing_ was called")
        return super()._missing_(value)


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


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
        if not calls_allowed:
            raise AssertionError("__post_init__ was called")
        object.__setattr__(self, "half", self.value / 2)

    def __setattr__(self, name: str, value: Any) -> None:
        if not calls_allowed:
            raise AssertionError("__setattr__ was called")
        object.__setattr__(self, name, value)

    @functools.cached_property
    def double(self) -> int:
        return self.value * 2


calls_allowed = True


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
        if not calls_allowed:
            raise ZeroDivisionError("hash")
        return 1


# ---- Values


def test_plain_json_is_written_as_plain_json() -> None:
    """What JSON has is written as JSON has it, compact and readable."""
    assert CODEC.encode({"a": [1, "é"]}) == '{"a":[1,"é"]}'
    assert CODEC.encode('it\'s "so"\n') == '"it\'s \\"so\\"\\n"'
    plain: list[Any] = [None, True, False, 7, -1.5, "", [], {}]
    texts = ["null", "true", "false", "7", "-1.5", '""', "[]", "{}"]
    assert [CODEC.encode(value) for value in plain] == texts
    assert CODEC.encode((1, {"k": {2, 1}})) == '{"$tuple":[1,{"k":{"$set":[1,2]}}]}'


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


@pytest.mark.parametrize("seed", [20240501])
def test_random_values_come_back_as_the_same(seed: int) -> None:
    """Three thousand nested values of all kinds come back as they were, and write the same text."""
    rng = random.Random(seed)
    for _ in range(3000):
        value = grow(rng, rng.randrange(1, 5))
        text = CODEC.encode(value)
        assert same(CODEC.decode(text), value), text
        assert CODEC.encode(CODEC.decode(text)) == text


# ---- What is refused


def local_class() -> Any:
    @dataclass
    class Local:
        value: int

    return Local(1)


def cyclic(kind: str) -> Any:
    item: Any = {"list": [], "deque": deque(), "dict": {}, "box": Box(None)}[kind]
    if kind == "dict":
        item["k"] = (item,)
    elif kind == "box":
        item.content = [item]
    else:
        item.append([item])
    return item


REFUSED: list[Any] = [
    ({"items": [1, 2, {"price": object()}]}, "$.items[2].price", "builtins:object"),
    ({"key with space": object()}, "$['key with space']", "object"),
    ({1: object()}, "$[1]", "object"),
    ({(1, 2): object()}, "$.values()[0]", "object"),
    ({"a": 1, object(): 2}, "$.keys()[1]", "object"),
    ((1, (object(),)), "$[1][0]", "object"),
    ([{1, object()}], "$[0].{…}", "object"),
    (deque([object()], maxlen=3), "$[0]", "object"),
    (defaultdict(list, {"x": object()}), "$.x", "object"),
    (Order(1, [Item("a"), Item("b", tags={object()})]), "$.items[1].tags.{…}", "object"),
    (Point(1, object()), "$.y", "object"),
    (MyInt(1), "$", "MyInt"),
    ([MyStr("x")], "$[0]", "MyStr"),
    ({MyStr("x"): 1}, "$.keys()[0]", "MyStr"),
    ({"d": MyDict()}, "$.d", "MyDict"),
    (MyMoment(2024, 1, 1), "$", "MyMoment"),
    (DataDict(), "$", "both a dataclass and a dict"),
    ([local_class()], "$[0]", "top of a module"),
    (defaultdict(lambda: 1), "$", "factory"),
    (WithProperty(1), "$", "'value'"),
    (lambda: 1, "$", "function"),
    ([iter([])], "$[0]", "iterator"),
    (threading.Lock(), "$", "lock"),
    (sys, "$", "module"),
    (int, "$", "type"),
    (types.SimpleNamespace(a=1), "$", "SimpleNamespace"),
    ([cyclic("list")], "$[0][0][0]", "contains itself"),
    (cyclic("deque"), "$[0][0]", "contains itself"),
    ({"a": cyclic("dict")}, "$.a.k[0]", "contains itself"),
    (cyclic("box"), "$.content[0]", "contains itself"),
    ([ValueError(1, object())], "$[0].args[1]", "object"),
    ({"e": ExceptionGroup("g", [ValueError(object())])}, "$.e.exceptions[0].args[0]", "object"),
]


@pytest.mark.parametrize(("value", "path", "reason"), REFUSED)
def test_a_refusal_names_the_place_and_the_reason(value: Any, path: str, reason: str) -> None:
    """What would not come back as it was is refused when it is recorded, with its place."""
    error = refusal(value)
    assert error.path == path
    assert reason in error.reason


def test_nothing_of_an_object_is_dropped_in_silence() -> None:
    """Attributes beside the fields come back too, or the object is refused."""
    item = Guarded(4)
    assert item.double == 8  # a cached property leaves an attribute behind
    named, counter = Named(1, 2), Counter("a")
    named.note = counter.note = "more"  # type: ignore[attr-defined]
    gone = Item("x")
    del gone.name
    assert same(vars(back(item)), {"value": 4, "half": 2.0, "double": 8})
    assert "besides its fields" in refusal(named).reason
    assert "of its own" in refusal(counter).reason
    assert "'name'" in refusal(gone).reason


def test_no_code_of_a_dataclass_runs() -> None:
    """Neither __init__, __post_init__ nor __setattr__ is called, nor the _missing_ of a Flag."""
    global calls_allowed
    text = CODEC.encode([Guarded(4), Place(1.0, 2.0)])
    calls_allowed = False
    try:
        guarded, place = CODEC.decode(text)
        strict = CODEC.decode(recorded("flag", "StrictRights", names=["READ", "WRITE"]))
    finally:
        calls_allowed = True
    assert (guarded.value, guarded.half, place) == (4, 2.0, Place(1.0, 2.0))
    assert strict is StrictRights.READ | StrictRights.WRITE


def test_a_raising_hash_is_a_serialization_error() -> None:
    """The one thing of the user's that is called, the hash in a set, does not raise as itself."""
    global calls_allowed
    text = CODEC.encode([{BadHash(1)}])
    calls_allowed = False
    try:
        error = unreadable(text)
    finally:
        calls_allowed = True
    assert error.path == "$[0]"
    assert "ZeroDivisionError: hash" in error.reason


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {1: v}, lambda v: (v,), Box])
def test_the_depth_has_a_limit_that_can_also_be_read(wrap: Any) -> None:
    """A hundred containers deep comes back, also from a deep stack; what is deeper is refused."""
    deep: Any = wrap(1)
    for _ in range(99):
        deep = wrap(deep)

    def from_a_deep_stack(frames: int) -> Any:
        return from_a_deep_stack(frames - 1) if frames else back(deep)

    assert same(from_a_deep_stack(300), deep)
    assert "100 containers" in refusal(wrap(deep)).reason
    assert len(refusal(wrap(deep)).path) < 200


def test_no_recursion_error_escapes() -> None:
    """From the very end of the stack, and for endless text, the error is a SerializationError."""
    deep: Any = []
    for _ in range(90):
        deep = (deep,)
    text = CODEC.encode(deep)

    def at_the_end_of_the_stack(action: Any, argument: Any) -> Any:
        try:
            return at_the_end_of_the_stack(action, argument)
        except RecursionError:
            return action(argument)  # some frames further down this fails, further up it succeeds
        except SerializationError as error:
            assert "too deep" in error.reason
            raise RecursionError from None

    assert same(at_the_end_of_the_stack(CODEC.decode, text), deep)
    assert at_the_end_of_the_stack(CODEC.encode, deep) == text
    assert "too deep" in unreadable("[" * 200_000).reason
    assert "too deep" in unreadable('{"$tuple":[' * 50_000).reason


# ---- Text that is damaged, foreign or of another version of the program


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1,]", "nope", "NaN", "[Infinity]", '{"a":NaN}', "1 2", '"\n"', None, b"1", 5),
        *('{"$new":1}', '{"$":1}', '{"$tuple":5}', '{"$tuple":[1],"x":2}', '{"$set":[[1]]}'),
        *(
            '{"$decimal":"x"}',
            '{"$bytes":"?"}',
            '{"$int":7}',
            '{"$float":[1]}',
            '{"$range":[1,2,0]}',
        ),
        *('{"$date":"2024-13-01"}', '{"$datetime":"now"}', '{"$dict":[[1]]}', '{"$dict":[[[],1]]}'),
        *('{"$dataclass":5}', '{"$dataclass":["a"]}', '{"$enum":"x:y"}', '{"$error":"x"}'),
        *('{"$defaultdict":{},"factory":"eval"}', '{"$zoneinfo":"../x"}', '{"$fraction":[1,0]}'),
        '{"$flag":"enum:Flag","names":["A"]}',
        '{"a":[{"$uuid":"5"}]}',
    ],
)
def test_text_that_is_not_ours_is_a_serialization_error(text: Any) -> None:
    """Damaged text and unknown tags never raise anything else, and never give half a value."""
    unreadable(text)


@pytest.mark.parametrize("seed", [7])
def test_text_with_random_damage_raises_nothing_else(seed: int) -> None:
    """Whatever is cut from or put into a text, it gives a value or a SerializationError."""
    rng = random.Random(seed)
    texts = [CODEC.encode(value) for value in VALUES] + [encode_error(error) for error in ERRORS]
    for text in (text for text in texts if len(text) < 2000):
        for _ in range(20):
            cut, end = sorted(rng.choices(range(len(text) + 1), k=2))
            put = rng.choice(["", "1", '"', "[]", "{}", "null", '"x"', rng.choice(texts)[:200]])
            damaged = text[:cut] + put + text[end if rng.random() < 0.5 else cut :]
            decode_error(damaged)
            with contextlib.suppress(SerializationError):
                CODEC.decode(damaged)


def test_the_place_is_named_when_reading_too() -> None:
    """Also in the recorded text, the path leads to the part that cannot be rebuilt."""
    assert unreadable('{"a":[1,{"$tuple":[{"$decimal":"x"}]}]}').path == "$.a[1][0]"


@pytest.mark.parametrize("tag", ["dataclass", "enum", "flag", "namedtuple", "error"])
@pytest.mark.parametrize(
    "name",
    [
        *(
            "os.system",
            "os:system",
            "posix:system",
            "subprocess:Popen",
            "builtins:eval",
            "builtins:int",
        ),
        *(
            "",
            ":",
            "os",
            "nowhere:Gone",
            "antigravity:Gone",
            f"{HERE}:Guarded.double",
            "sys:modules",
        ),
    ],
)
def test_nothing_that_the_text_names_is_imported_or_called(tag: str, name: str) -> None:
    """A text naming a function, or a class that is not what the tag says, is refused."""
    before = set(sys.modules)
    unreadable(
        json.dumps({f"${tag}": name, "name": "x", "names": [], "args": ["true"], "text": ""})
    )
    unreadable(json.dumps([{"$tuple": [{f"${tag}": name, "args": "true"}]}]))
    assert set(sys.modules) == before


@pytest.mark.parametrize("tag", ["dataclass", "enum", "namedtuple", "error"])
def test_a_class_is_read_past_getattr(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the __getattr__ of a module nor that of a metaclass is asked."""

    class Nosy(type):
        def __getattr__(cls, name: str) -> Any:
            pytest.fail(f"asked for {name}")

    module = types.ModuleType("nosy_module")
    module.Thing = Nosy("Thing", (), {})  # type: ignore[attr-defined]
    module.__getattr__ = lambda name: pytest.fail(f"asked for {name}")  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "nosy_module", module)
    unreadable(json.dumps({f"${tag}": "nosy_module:Gone", "name": "x", "args": [], "text": ""}))
    unreadable(json.dumps({f"${tag}": "nosy_module:Thing", "name": "x", "args": [], "text": ""}))


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


def recorded(tag: str, cls: str, /, **parts: Any) -> str:
    return json.dumps({f"${tag}": f"{HERE}:{cls}"} | parts)


def test_a_field_added_since_gets_its_default() -> None:
    """A record from before the field existed is read with the field's plain default."""
    first = CODEC.decode(recorded("dataclass", "Grown", id=1))
    second = CODEC.decode(recorded("dataclass", "Grown", id=2))
    first.parts.append(5)
    assert (first, second) == (Grown(1, "none", [5]), Grown(2))
    assert same(CODEC.decode(recorded("namedtuple", "GrownPoint", x=1)), GrownPoint(1))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (recorded("dataclass", "GrownByCode", id=1), "'made'"),
        (recorded("dataclass", "GrownNeedy", id=1), "'owner'"),
        (recorded("dataclass", "Shrunk", id=1, color="red"), "'color'"),
        (recorded("dataclass", "Shrunk", id=1, **{"$attributes": {"more": 1}}), "'more'"),
        (recorded("namedtuple", "GrownPoint", x=1, y=2), "'y'"),
        (recorded("namedtuple", "GrownPoint", z=1), "'x'"),
        (recorded("enum", "Color", name="BLUE"), "BLUE"),
        (recorded("flag", "Rights", names=["READ", "SELL"]), "SELL"),
        (recorded("flag", "Rights", names=[], rest=8), "8"),
        (recorded("dataclass", "Gone", id=1), "Gone"),
    ],
)
def test_what_the_program_no_longer_has_is_named(text: str, named: str) -> None:
    """A field, member or class that is gone gives an error that names it, not another value."""
    assert named in unreadable(text).reason


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
        if not calls_allowed:
            raise AssertionError("__new__ was called")
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


def noted(error: BaseException, *notes: str) -> BaseException:
    for note in notes:
        error.add_note(note)
    return error


def raised(error: Any, cause: BaseException | None = None) -> Any:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


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
C_FIELDS = (
    *("errno", "strerror", "filename", "filename2", "characters_written", "name", "path", "msg"),
    *("value", "code", "encoding", "object", "start", "end", "reason", "lineno", "text", "offset"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_exception_comes_back_as_itself(error: BaseException) -> None:
    """Type, text, args and attributes are kept, whatever its __init__ asks for; none is called."""
    global calls_allowed
    text = encode_error(error)
    calls_allowed = False
    try:
        copy = decode_error(text)
        value = back([error])[0] if isinstance(error, Exception) else copy
    finally:
        calls_allowed = True
    for one in (copy, value):
        assert same(one, error)
        for name in C_FIELDS:
            assert same(getattr(one, name, None), getattr(error, name, None)), name
    assert error_is_exact(text)
    assert not hasattr(copy, "unset")


def test_a_chain_comes_back() -> None:
    """Cause and context come back; a context that does not show is left out."""
    cause, context = raised(KeyError("c")), raised(ValueError("v"), Formatted(1))
    error, hidden = raised(Formatted(2), cause), ValueError("h")
    error.__context__ = hidden
    shown = ValueError("s")
    shown.__context__ = context
    copy, second = decode_error(encode_error(error)), decode_error(encode_error(shown))
    assert same(copy.__cause__, cause)
    assert (copy.__context__, copy.__suppress_context__) == (None, True)
    assert same(second.__context__, context)
    assert same(second.__context__.__cause__, Formatted(1))  # type: ignore[union-attr]
    assert (second.__cause__, second.__suppress_context__) == (None, False)


def test_a_chain_that_is_endless_or_long_is_cut() -> None:
    """A circle of causes does not loop, a long chain is limited; both are marked as not exact."""
    first, second = ValueError(1), ValueError(2)
    first.__cause__, second.__cause__ = second, first
    long = ValueError(0)
    for n in range(1, 500):
        long = raised(ValueError(n), long)
    copies = [decode_error(encode_error(error)) for error in (first, long)]
    assert [copies[0].args, copies[0].__cause__.args] == [(1,), (2,)]  # type: ignore[union-attr]
    assert copies[0].__cause__.__cause__ is None  # type: ignore[union-attr]
    assert copies[1].args == (499,)
    assert not error_is_exact(encode_error(first))
    assert not error_is_exact(encode_error(long))
    assert "endless" in refusal([first]).reason


def test_a_group_comes_back_with_its_members() -> None:
    """Exception groups keep their class, message and members, with the causes of those."""
    error = ExceptionGroup("g", [Group("in", [Formatted(1)]), raised(KeyError("k"), ValueError(5))])
    text = encode_error(noted(error, "note"))
    copy = decode_error(text)
    assert same(copy, error)
    assert error_is_exact(text)
    assert same(copy.exceptions[0].exceptions[0], Formatted(1))  # type: ignore[attr-defined]
    assert same(copy.exceptions[1].__cause__, ValueError(5))  # type: ignore[attr-defined]
    stop: Any = BaseExceptionGroup("b", [Stop(1)])
    assert same(decode_error(encode_error(stop)), stop)
    odd = ExceptionGroup("\udcff", [ValueError("\udcff")])
    assert same(decode_error(encode_error(odd)), odd)


def test_the_traceback_comes_along_as_text() -> None:
    """Where it was raised can be read on the copy; it is limited, and no attribute to record."""
    error = raised(Formatted(1), raised(KeyError("cause")))
    copy = decode_error(encode_error(error))
    trace = copy.__durable_traceback__  # type: ignore[attr-defined]
    assert trace == "".join(traceback.format_exception(error))
    assert "in raised" in trace
    assert "KeyError: 'cause'" in trace
    again = decode_error(encode_error(raised(copy))).__durable_traceback__  # type: ignore[attr-defined]
    assert again.startswith(trace)
    assert "raised again here" in again
    assert "attributes" not in json.loads(encode_error(decode_error(encode_error(ValueError("x")))))
    huge = decode_error(encode_error(raised(ValueError("x" * 100_000))))
    assert len(huge.__durable_traceback__) < 20_000  # type: ignore[attr-defined]
    assert len(str(huge)) == 100_000


def test_what_cannot_be_kept_is_replaced_by_its_repr_and_marked() -> None:
    """An arg or attribute without an exact form comes back as text, and the record says so."""
    lock = threading.Lock()
    error = ValueError("x", lock, [1, lock])
    error.lock = lock  # type: ignore[attr-defined]
    error.good = (1,)  # type: ignore[attr-defined]
    text = encode_error(error)
    copy = decode_error(text)
    assert type(copy) is ValueError
    assert copy.args == ("x", repr(lock), repr([1, lock]))
    assert (copy.lock, copy.good) == (repr(lock), (1,))  # type: ignore[attr-defined]
    assert not error_is_exact(text)
    assert error_is_exact(encode_error(ValueError("x", (1,))))


def test_an_exception_that_breaks_what_it_is_asked_is_recorded() -> None:
    """A raising __str__ or __repr__, an arg that holds the exception: nothing makes it fail."""
    selfish = ValueError()
    selfish.args = (selfish,)
    copy = decode_error(encode_error(BadStr(1, BadStr(object()))))
    assert type(copy) is BadStr
    assert copy.args[0] == 1
    assert type(decode_error(encode_error(selfish))) is ValueError
    assert not error_is_exact(encode_error(selfish))
    assert str(decode_error(encode_error(ValueError("\ud83d\ude00")))) == "\ud83d\ude00"


def test_an_exception_of_a_local_class_comes_back_as_remote_error() -> None:
    """A class that cannot be found again is recorded all the same, with its cause and traceback."""

    class Local(ValueError):
        pass

    text = encode_error(raised(Local("why"), KeyError("cause")))
    copy = decode_error(text)
    assert type(copy) is RemoteError
    assert copy.type_name == f"{HERE}:{Local.__qualname__}"
    assert copy.message == "why"
    assert "raise error from cause" in copy.traceback
    assert same(copy.__cause__, KeyError("cause"))
    assert not error_is_exact(text)
    assert "top of a module" in refusal([Local("why")]).reason


def test_an_exception_whose_class_is_gone_comes_back_as_remote_error() -> None:
    """What is gone is replaced where it is, in a chain or a group; the others are kept."""
    text = encode_error(raised(Formatted(1), ExceptionGroup("g", [NoSuper(1), ValueError(2)])))
    copy = decode_error(text.replace("NoSuper", "Gone"))
    group: Any = copy.__cause__
    assert type(copy) is Formatted
    assert [type(member) for member in group.exceptions] == [RemoteError, ValueError]
    assert group.exceptions[0].type_name == f"{HERE}:Gone"
    assert type(decode_error(text.replace("Formatted", "Gone"))) is RemoteError
    assert "Gone" in unreadable(text.replace("NoSuper", "Gone")).reason


@pytest.mark.parametrize("text", ["", "nope", "[]", "{}", "null", "5", None, "[" * 100_000])
def test_decoding_an_error_never_raises(text: Any) -> None:
    """Text that is not understood is the message of a RemoteError."""
    error = decode_error(text)
    assert type(error) is RemoteError
    assert error.message == str(text)
    assert not error_is_exact(text)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "builtins:int", f"{HERE}:Item"])
def test_an_error_names_nothing_that_is_called(name: str) -> None:
    """A record that names something else than an exception gives a RemoteError."""
    error = decode_error(json.dumps({"$error": name, "text": "t", "args": ["true"]}))
    assert (type(error), str(error)) == (RemoteError, f"{name}: t")


@pytest.mark.parametrize("name", ["UnicodeDecodeError", "UnicodeEncodeError"])
@pytest.mark.parametrize(
    ("thing", "start"), [("x", -(10**12)), (None, 0), ({"$bytes": "eA=="}, -1)]
)
def test_no_text_makes_an_error_that_crashes_python(name: str, thing: Any, start: int) -> None:
    """The fields of a UnicodeError are checked: str() of it reads the memory that they say."""
    state = {"encoding": "x", "object": thing, "start": start, "end": start + 1, "reason": "r"}
    node = {"$error": f"builtins:{name}", "text": "t", "args": [], "attributes": state}
    assert str(decode_error(json.dumps(node))) == f"builtins:{name}: t"


# ---- What callers use


def test_a_snapshot_is_what_a_replay_will_see() -> None:
    """The value given back equals the replayed one, also when the original is changed later."""
    value = {"items": [1, (2, 3)]}
    text, seen = snapshot(CODEC, value)
    value["items"].append(4)
    assert same(seen, {"items": [1, (2, 3)]})
    assert same(CODEC.decode(text), seen)
    word = "a long word that is not copied"
    assert snapshot(CODEC, word)[1] is word


def test_one_lost_class_does_not_break_a_list() -> None:
    """What cannot be rebuilt is shown as its recorded text."""
    text = '{"$dataclass":"nowhere:Gone","id":1}'
    shown = [decode_or_opaque(CODEC, one) for one in ("[1]", text, "{damaged")]
    assert shown == [[1], Opaque(text), Opaque("{damaged")]
    assert repr(shown[1]) == f"<recorded as {text}>"


def test_pickle_is_there_for_those_who_ask() -> None:
    """PickleCodec takes what pickle takes, as ASCII; what fails is a SerializationError."""
    codec = PickleCodec()
    value = [MyInt(5), int, types.SimpleNamespace(a=1), {1: (2,)}]
    text, seen = snapshot(codec, value)
    assert text.isascii()
    assert same(seen, value)
    with pytest.raises(SerializationError, match="pickled"):
        codec.encode(lambda: 1)
    for damaged in ("?", "AAAA", "é", ""):
        with pytest.raises(SerializationError, match="unpickled"):
            codec.decode(damaged)


def test_numbers_that_python_will_not_print_are_kept() -> None:
    """An int of more digits than Python's limit is written in hexadecimal, under any limit."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert back(10**640) == 10**640
        assert back({"n": [-(10**3000)]}) == {"n": [-(10**3000)]}
    finally:
        sys.set_int_max_str_digits(before)
