"""Classes by their name, and what their instances hold, read and filled past their own code.

None of ``__new__``, ``__init__``, ``__getattribute__``, ``__setattr__`` and properties is called.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import Field, fields
from functools import lru_cache
from types import BuiltinFunctionType, MemberDescriptorType
from typing import Any

from durable.codec.refusals import Refused, class_name
from durable.names import find_class, qualified_name

TRACEBACK = "__durable_traceback__"
"""The attribute of a rebuilt exception that says where it was raised."""

# Attributes that are no state: what we add ourselves, and what calling Box[int](…) leaves behind.
_UNRECORDED = frozenset({TRACEBACK, "__orig_class__"})

_UNICODE_FIELDS = ("encoding", "object", "start", "end", "reason")
# What builtin exceptions keep neither in their args nor in their __dict__; but AttributeError.obj
# may be anything, and is there for whoever looks for the mistake: like the frames, it is left out.
_ERROR_FIELDS: dict[type, tuple[str, ...]] = {
    OSError: ("errno", "strerror", "filename", "filename2", "winerror", "characters_written"),
    ImportError: ("msg", "name", "path", "name_from"),
    NameError: ("name",),
    AttributeError: ("name",),
    StopIteration: ("value",),
    SystemExit: ("code",),
    UnicodeEncodeError: _UNICODE_FIELDS,
    UnicodeDecodeError: _UNICODE_FIELDS,
    UnicodeTranslateError: _UNICODE_FIELDS,
    SyntaxError: (
        *("msg", "filename", "lineno", "offset", "text"),
        *("end_lineno", "end_offset", "print_file_and_line"),
    ),
}


# ---- Classes


def name_of(cls: type) -> str:
    """The name of a class to record, which leads back to it; else it is refused."""
    name = qualified_name(cls)
    if find_class(name) is not cls:
        raise Refused(
            f"is of class {name}, and this name does not lead back to the class: "
            "define it at the top of a module"
        )
    return name


def class_of(name: str, tag: str, is_kind: Callable[[type], bool]) -> Any:
    """The class that was recorded as `name` under `tag`, if it still is what the tag says."""
    cls = find_class(name)
    if cls is None:
        raise Refused(f"is of class {name}, which no imported module has")
    if not is_kind(cls):
        raise Refused(f"names {name} as {tag}, which it is not")
    return cls


def is_namedtuple(cls: type) -> bool:
    """Whether `cls` is a NamedTuple, or made by collections.namedtuple()."""
    return issubclass(cls, tuple) and _has(cls, "_fields")


def is_dataclass(cls: type) -> bool:
    """Whether `cls` or a base of it is decorated as a dataclass."""
    return _has(cls, "__dataclass_fields__")


def _has(cls: type, name: str) -> bool:
    # Not hasattr(), which asks the metaclass.
    return any(name in vars(base) for base in cls.__mro__)


@lru_cache(maxsize=512)
def dataclass_fields(cls: Any) -> dict[str, Field[Any]]:
    """The fields of a dataclass; refused if it is a dict, an int or the like besides."""
    for base in cls.__mro__[:-1]:
        if isinstance(vars(base).get("__new__"), BuiltinFunctionType):
            raise Refused(f"is of class {class_name(cls)}, both a dataclass and a {base.__name__}")
    return {field.name: field for field in fields(cls)}


# ---- Their instances


def state_of(thing: object) -> dict[str, Any]:
    """All that an instance holds, by name; properties and attributes of its class are not."""
    cls: Any = type(thing)
    state: dict[str, Any] = {}
    for name, slot in _slots(cls).items():
        with suppress(AttributeError):  # a slot that was never filled
            item = slot.__get__(thing)
            # A builtin exception says None for a field that was not given.
            if item is not None or slot.__objclass__ not in _ERROR_FIELDS:
                state[name] = item
    state |= attributes_of(thing) or {}
    if not {str}.issuperset(map(type, state)):
        raise Refused("has an attribute whose name is not a str")
    return {name: item for name, item in state.items() if name not in _UNRECORDED}


def fill(thing: object, state: dict[str, Any]) -> None:
    """Give an instance what `state_of` found in the recorded one."""
    cls: Any = type(thing)
    slots, attributes = _slots(cls), attributes_of(thing)
    for name, item in state.items():
        if name in slots:
            slots[name].__set__(thing, item)
        elif attributes is not None:
            attributes[name] = item
        else:
            raise Refused(f"has {name!r}, for which {class_name(cls)} has no slot")


def attributes_of(thing: object) -> dict[str, Any] | None:
    """The ``__dict__`` of an instance, None if it has none."""
    try:
        return object.__getattribute__(thing, "__dict__")  # type: ignore[no-any-return]
    except AttributeError:
        return None


@lru_cache(maxsize=512)
def _slots(cls: type) -> dict[str, Any]:
    """The descriptors of what instances hold outside their ``__dict__``."""
    slots: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        own = vars(base)
        if "__slots__" in own:
            slots |= {name: own[name] for name in own if type(own[name]) is MemberDescriptorType}
        slots |= {name: own[name] for name in _ERROR_FIELDS.get(base, ()) if name in own}
    return slots
