"""What would not come back as it was is refused when it is recorded, with its place."""

from __future__ import annotations

import sys
import threading
import types
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from typing import Any

import pytest

from durable.errors import SerializationError
from tests.codec.classes import (
    Box,
    DataDict,
    Guarded,
    Item,
    MyDict,
    MyInt,
    MyMoment,
    MyStr,
    Named,
    Order,
    Point,
    WithProperty,
)
from tests.codec.support import CODEC, back, refusal, same, unreadable


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
