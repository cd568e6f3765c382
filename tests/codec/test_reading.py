"""Text that is damaged, foreign or of another version of the program; and no code is run."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import types
from typing import Any

import pytest

from durable.codec import decode_error, encode_error
from durable.errors import SerializationError
from tests.codec.classes import BadHash, Grown, GrownPoint, Guarded, Place, StrictRights, no_calls
from tests.codec.support import CODEC, HERE, recorded, same, unreadable
from tests.codec.values import ERRORS, VALUES


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
    error = {"$error": "builtins:OSError", "text": "", "args": [1], "attributes": {"a": {"$x": 1}}}
    assert unreadable(json.dumps([error])).path == "$[0].a"
    assert unreadable(json.dumps([error | {"args": [{"$x": 1}]}])).path == "$[0].args[0]"


def test_no_code_of_a_dataclass_runs() -> None:
    """Neither __init__, __post_init__ nor __setattr__ is called, nor the _missing_ of a Flag."""
    text = CODEC.encode([Guarded(4), Place(1.0, 2.0)])
    with no_calls():
        guarded, place = CODEC.decode(text)
        strict = CODEC.decode(recorded("flag", "StrictRights", names=["READ", "WRITE"]))
    assert (guarded.value, guarded.half, place) == (4, 2.0, Place(1.0, 2.0))
    assert strict is StrictRights.READ | StrictRights.WRITE


def test_a_raising_hash_is_a_serialization_error() -> None:
    """The one thing of the user's that is called, the hash in a set, does not raise as itself."""
    text = CODEC.encode([{BadHash(1)}])
    with no_calls():
        error = unreadable(text)
    assert error.path == "$[0]"
    assert "ZeroDivisionError: hash" in error.reason


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
