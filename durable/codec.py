"""Values and exceptions as text, and back as they were, without running code that the text names.

`JsonCodec` writes None, bool, int, finite float, str, list and dict with str keys as plain JSON.
All else is an object whose first key is a tag, which begins with ``$``::

    {"$tuple": [1, 2]}           {"$datetime": "2024-05-01T12:00:00+00:00"}
    {"$dict": [[1, "one"]]}      {"$enum": "shop:Color", "name": "RED"}
    {"$decimal": "1.10"}         {"$dataclass": "shop:Order", "id": 17, "items": []}
    {"$float": "nan"}            {"$error": "shop:Declined", "text": "no", "args": ["no"]}

A dict with a key that begins with ``$`` is written as ``$dict``, so a tag is always ours. Only
exact types count: a subclass of int is no int, and is refused unless it is an Enum, a named tuple,
a dataclass or an exception. A part that the value holds twice comes back as two equal parts.

Classes are found by name among the modules already imported, and filled without their ``__new__``,
``__init__`` or ``__setattr__``. Only the ``__hash__`` and ``__eq__`` of what was in a set, or was a
key of a dict, are called: there is no set without them.
"""

from __future__ import annotations

import base64
import builtins
import json
import math
import pickle
import traceback
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, dataclass, fields
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import (
    BuiltinFunctionType,
    EllipsisType,
    MemberDescriptorType,
    NoneType,
    NotImplementedType,
)
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from durable.errors import RemoteError, SerializationError
from durable.names import find_class, qualified_name

# The deepest nesting of containers. One takes up to 4 frames, a defaultdict 6, of the 1000 that
# Python allows by default: that leaves the caller, whose stack may be deep already, about half.
_DEEPEST = 100
_LONGEST_CHAIN = 20  # exceptions, each the cause or the context of the one before
_LONGEST_TRACEBACK = 16_000  # characters
_LONGEST_REPR = 1_000  # characters
_LARGE = 1 << 2_000  # ints from here on are hexadecimal: Python limits the digits of decimals

_SCALARS = frozenset({NoneType, bool, int, float, str})
_NESTED = frozenset({list, dict})
_TRACEBACK = "__durable_traceback__"
# Attributes that are no state: what we add ourselves, and what calling Box[int](…) leaves behind.
_UNRECORDED = frozenset({_TRACEBACK, "__orig_class__"})


class Codec(Protocol):
    """How values become the text that the file keeps."""

    def encode(self, value: object) -> str:
        """The text of `value`; SerializationError where it would not come back as it is."""

    def decode(self, text: str) -> Any:
        """The value of `text`; SerializationError where it is damaged, or a class is gone."""


class JsonCodec:
    """The default: exact, readable in the ``sqlite3`` shell, safe to read from anyone's file."""

    def encode(self, value: object) -> str:
        """The JSON text of `value`; SerializationError names the place that has no exact form."""
        if type(value) is str and value.isascii():
            return _quote(value)
        if type(value) is int and -_LARGE < value < _LARGE:
            return repr(value)
        if type(value) is bool:
            return "true" if value else "false"
        if value is None:
            return "null"
        try:
            return _to_json(value)
        except _Refused as refused:
            raise refused.error() from refused.__cause__
        except Exception as error:
            raise _unexpected(error, "cannot be written") from error

    def decode(self, text: str) -> Any:
        """The value of `text`; nothing that it names is imported or called."""
        try:
            node = _parse(text)
            return _Reader().value(node) if '"$' in text else node
        except _Refused as refused:
            raise refused.error() from refused.__cause__
        except Exception as error:
            raise _unexpected(error, "is damaged") from error


class PickleCodec:
    """For those who ask for it: whatever pickle can write, as base64.

    Whoever can write to the file can run code in the process that reads it.
    """

    def encode(self, value: object) -> str:
        """The text of `value`; SerializationError where pickle cannot write it."""
        try:
            return base64.b64encode(pickle.dumps(value, protocol=5)).decode("ascii")
        except Exception as error:
            raise _unexpected(error, "cannot be pickled") from error

    def decode(self, text: str) -> Any:
        """The value of `text`; SerializationError where pickle cannot read it."""
        try:
            return pickle.loads(base64.b64decode(text, validate=True))
        except Exception as error:
            raise _unexpected(error, "cannot be unpickled") from error


@dataclass(frozen=True)
class Opaque:
    """Stands for a value that this program cannot rebuild; `text` is what was recorded."""

    text: str

    def __repr__(self) -> str:
        return f"<recorded as {self.text}>"


def decode_or_opaque(codec: Codec, text: str) -> Any:
    """The value of `text`, or an `Opaque`: for lists, which one lost class must not break."""
    try:
        return codec.decode(text)
    except Exception:
        return Opaque(text)


def snapshot(codec: Codec, value: Any) -> tuple[str, Any]:
    """The text of `value`, and the value as a replay will see it.

    The caller goes on with the second, which is no longer an object that others may change.
    """
    text = codec.encode(value)
    return text, value if type(value) in _SCALARS else codec.decode(text)


def encode_error(error: BaseException) -> str:
    """The JSON text of any exception, whatever the codec of the engine; never raises.

    What has no exact form in it is replaced by its repr; `error_is_exact` is then false.
    """
    writer = _ErrorWriter(_Writer(careful=True), lenient=True)
    try:
        return _storable(_dump(writer.whole(error, 1)))
    except Exception:
        return json.dumps(_described(error) | {"lossy": True})


def error_is_exact(text: str) -> bool:
    """Whether `decode_error` gives back all of the exception but its frames."""
    try:
        node = _parse(text)
        return "$error" in node and "lossy" not in node
    except Exception:
        return False


def decode_error(text: str) -> BaseException:
    """The exception of `text`, or a `RemoteError` where its class is gone; never raises.

    Where it was raised is in its attribute ``__durable_traceback__``.
    """
    try:
        return _Reader().error(_parse(text), lenient=True)
    except Exception:
        return RemoteError("unknown", str(text))


# ---- JSON


_quote: Callable[[str], str] = json.encoder.encode_basestring
_dump = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_no_constant)


def _parse(text: str) -> Any:
    node, end = _decoder.raw_decode(text)
    # What follows is white space, or decode() says what is wrong with it.
    return node if end == len(text) else _decoder.decode(text)


def _to_json(value: object) -> str:
    # First the scalars are left to json, at its speed. It refuses the few that need a tag (nan,
    # huge ints), and UTF-8, which SQLite wants, refuses lone surrogates: then each is looked at.
    try:
        return _storable(_dump(_Writer(careful=False).tree(value, 1)))
    except ValueError:
        return _storable(_dump(_Writer(careful=True).tree(value, 1)))


def _storable(text: str) -> str:
    if not text.isascii():
        text.encode()
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    return str.encode(text, "utf-8", "backslashreplace").decode()


# ---- What to say of a value that is refused


class _Refused(Exception):
    """Why a part of a value cannot be recorded or rebuilt; collects its place on the way up."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[tuple[object, str]] = []

    def inside(self, container: object, part: str) -> None:
        self.steps.append((container, part))

    def error(self) -> SerializationError:
        parts, reason, above = [], self.reason, set()
        for container, part in reversed(self.steps):
            if id(container) in above:
                reason = "contains itself"
                break
            above.add(id(container))
            parts.append(part)
        if len(parts) > 12:
            parts = [*parts[:6], "…", *parts[-5:]]
        return SerializationError("".join(["$", *parts]), reason)


@contextmanager
def _within(container: object, part: str) -> Iterator[None]:
    try:
        yield
    except _Refused as refused:
        refused.inside(container, part)
        raise


def _unexpected(error: Exception, reason: str) -> SerializationError:
    if isinstance(error, RecursionError):
        return SerializationError("$", "is nested too deep for the stack of its caller")
    return SerializationError("$", f"{reason}: {_summary(error)}")


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {_safely(str, error)}"


def _safely(show: Callable[[Any], str], thing: object) -> str:
    """`show` of something of the user's, which may raise."""
    try:
        return show(thing)
    except Exception:
        return f"<{type(thing).__name__} that has no {show.__name__}>"


def _class_name(cls: type) -> str:
    return _safely(qualified_name, cls)


def _key_place(key: object, index: int) -> str:
    """The place of the value at `key`. Only keys of ours are shown: a repr may be the user's."""
    if type(key) is str:
        return f".{key}" if key.isidentifier() else f"[{_printable(key[:40])!r}]"
    if key is None or type(key) in (bool, float) or (type(key) is int and abs(key) < _LARGE):
        return f"[{key!r}]"
    return f".values()[{index}]"


def _check_depth(depth: int) -> None:
    if depth > _DEEPEST:
        raise _Refused(f"is nested more than {_DEEPEST} containers deep")


# ---- What an object holds, read and written past the code of its class

_BUILTIN_ERRORS = frozenset(
    cls
    for cls in vars(builtins).values()
    if isinstance(cls, type) and issubclass(cls, BaseException)
)
_UNICODE_ERRORS = {UnicodeEncodeError: str, UnicodeDecodeError: bytes, UnicodeTranslateError: str}
_UNICODE_FIELDS = ("encoding", "object", "start", "end", "reason")
# What builtin exceptions keep neither in their args nor in their __dict__; but AttributeError.obj
# may be anything, and is there for whoever looks for the mistake: like the frames, it is left out.
_C_FIELDS: dict[type, tuple[str, ...]] = {
    OSError: ("errno", "strerror", "filename", "filename2", "winerror", "characters_written"),
    ImportError: ("msg", "name", "path", "name_from"),
    NameError: ("name",),
    AttributeError: ("name",),
    StopIteration: ("value",),
    SystemExit: ("code",),
    **dict.fromkeys(_UNICODE_ERRORS, _UNICODE_FIELDS),
    SyntaxError: (
        *("msg", "filename", "lineno", "offset", "text"),
        *("end_lineno", "end_offset", "print_file_and_line"),
    ),
}


def _has(cls: type, name: str) -> bool:
    """hasattr(), past the metaclass."""
    return any(name in vars(base) for base in cls.__mro__)


def _is_namedtuple(cls: type) -> bool:
    return issubclass(cls, tuple) and _has(cls, "_fields")


def _is_dataclass(cls: type) -> bool:
    return _has(cls, "__dataclass_fields__")


@lru_cache(maxsize=512)
def _fields(cls: Any) -> dict[str, Field[Any]]:
    """The fields of a dataclass; refused if it is a dict, an int or the like besides."""
    for base in cls.__mro__[:-1]:
        if isinstance(vars(base).get("__new__"), BuiltinFunctionType):
            raise _Refused(
                f"is of class {_class_name(cls)}, both a dataclass and a {base.__name__}"
            )
    return {field.name: field for field in fields(cls)}


@lru_cache(maxsize=512)
def _slots(cls: Any) -> dict[str, Any]:
    """The descriptors of what instances hold outside their ``__dict__``."""
    slots: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        own = vars(base)
        if "__slots__" in own:
            slots |= {name: own[name] for name in own if type(own[name]) is MemberDescriptorType}
        slots |= {name: own[name] for name in _C_FIELDS.get(base, ()) if name in own}
    return slots


def _attributes(thing: object) -> dict[str, Any] | None:
    try:
        return object.__getattribute__(thing, "__dict__")  # type: ignore[no-any-return]
    except AttributeError:
        return None


def _state(thing: object) -> dict[str, Any]:
    """All that an instance holds, by name; properties and attributes of its class are not."""
    cls: Any = type(thing)
    state: dict[str, Any] = {}
    for name, slot in _slots(cls).items():
        with suppress(AttributeError):  # a slot that was never filled
            item = slot.__get__(thing)
            if item is not None or slot.__objclass__ not in _C_FIELDS:
                state[name] = item
    state |= _attributes(thing) or {}
    if not {str}.issuperset(map(type, state)):
        raise _Refused("has an attribute whose name is not a str")
    return {name: item for name, item in state.items() if name not in _UNRECORDED}


def _restore(thing: object, state: dict[str, Any]) -> None:
    cls: Any = type(thing)
    slots, attributes = _slots(cls), _attributes(thing)
    for name, item in state.items():
        if name in slots:
            slots[name].__set__(thing, item)
        elif attributes is not None:
            attributes[name] = item
        else:
            raise _Refused(f"has {name!r}, for which {_class_name(cls)} has no slot")


def _check_unicode_error(cls: type, state: dict[str, Any]) -> None:
    """Python crashes in str() where the `object` or `start` of one is not what __init__ takes."""
    for base, kind in _UNICODE_ERRORS.items():
        if issubclass(cls, base) and "object" in state:
            possible = type(state["object"]) is kind and state.get("start", 0) >= 0
            if not possible:
                raise _Refused(f"is no {base.__name__}: its object or start is impossible")


def _blank(cls: Any) -> Any:
    """An exception of class `cls`, made by its nearest builtin base and by no code of its own."""
    base = cls
    while base not in _BUILTIN_ERRORS:
        base = base.__base__
    try:
        return base.__new__(cls)
    except TypeError:
        raise _Refused(f"is of class {_class_name(cls)}, made by an extension module") from None


# ---- The classes of the standard library that have a tag


class _Kind(NamedTuple):
    """A class with a tag: `take` gives what is written under it, `more` what beside it.

    `build` makes the value again, of the first and, as keywords, of the others.
    """

    tag: str
    cls: type
    take: Callable[[Any], Any]
    build: Callable[..., Any]
    more: Callable[[Any], dict[str, Any]] | None = None


def _take_dict(value: OrderedDict[Any, Any] | Counter[Any]) -> dict[Any, Any]:
    if vars(value):
        raise _Refused("has attributes of its own, which would be lost")
    return dict(value)


_FACTORIES: dict[str | None, Any] = {None: None} | {
    cls.__name__: cls
    for cls in (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
}


def _factory(value: defaultdict[Any, Any]) -> dict[str, Any]:
    for name, factory in _FACTORIES.items():
        if value.default_factory is factory:
            return {"factory": name}
    raise _Refused("has a default factory that is not a builtin class such as list or int")


def _build_defaultdict(items: dict[Any, Any], factory: str | None = None) -> Any:
    return defaultdict(_FACTORIES[factory], items)


def _base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode("ascii")


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _in_iso(zone: tzinfo | None) -> bool:
    """Whether isoformat() says all about the zone: none, or an offset without a name."""
    return zone is None or (type(zone) is timezone and _zone_name(zone)["name"] is None)


def _zone_name(zone: timezone) -> dict[str, Any]:
    name = zone.tzname(None)
    return {"name": None if timezone(zone.utcoffset(None)).tzname(None) == name else name}


def _build_timezone(offset: timedelta, name: str | None = None) -> timezone:
    return timezone(offset) if name is None else timezone(offset, name)


_Moment = TypeVar("_Moment", datetime, time)


def _iso(value: _Moment) -> str:
    return value.isoformat() if _in_iso(value.tzinfo) else value.replace(tzinfo=None).isoformat()


def _zone_and_fold(value: _Moment) -> dict[str, Any]:
    return {"zone": None if _in_iso(value.tzinfo) else value.tzinfo, "fold": value.fold or None}


def _moment(cls: type[_Moment]) -> _Kind:
    def build(text: str, zone: tzinfo | None = None, fold: int = 0) -> _Moment:
        value = cls.fromisoformat(text).replace(fold=fold)
        return value.replace(tzinfo=zone) if zone else value

    return _Kind(f"${cls.__name__}", cls, _iso, build, _zone_and_fold)


def _zone_key(value: ZoneInfo) -> str:
    if value.key is None:
        raise _Refused("is a time zone that has no key")
    return value.key


def _by_text(cls: type) -> _Kind:
    return _Kind(f"${cls.__name__.lower()}", cls, str, cls)


def _by_numbers(cls: type, *names: str) -> _Kind:
    def take(value: object) -> list[Any]:
        return [getattr(value, name) for name in names]

    return _Kind(f"${cls.__name__}".lower(), cls, take, lambda numbers: cls(*numbers))


_KINDS = (
    _Kind("$tuple", tuple, list, tuple),
    _Kind("$set", set, list, set),
    _Kind("$frozenset", frozenset, list, frozenset),
    _Kind("$deque", deque, list, deque, lambda value: {"maxlen": value.maxlen}),
    _Kind("$ordereddict", OrderedDict, _take_dict, OrderedDict),
    _Kind("$counter", Counter, _take_dict, Counter),
    _Kind("$defaultdict", defaultdict, dict, _build_defaultdict, _factory),
    _Kind("$bytes", bytes, _base64, _from_base64),
    _Kind("$bytearray", bytearray, _base64, lambda text: bytearray(_from_base64(text))),
    _Kind("$date", date, date.isoformat, date.fromisoformat),
    _moment(time),
    _moment(datetime),
    _Kind("$timezone", timezone, lambda zone: zone.utcoffset(None), _build_timezone, _zone_name),
    _Kind("$zoneinfo", ZoneInfo, _zone_key, ZoneInfo),
    _Kind("$ellipsis", EllipsisType, lambda _: None, lambda _: ...),
    _Kind("$notimplemented", NotImplementedType, lambda _: None, lambda _: NotImplemented),
    _by_numbers(timedelta, "days", "seconds", "microseconds"),
    _by_numbers(range, "start", "stop", "step"),
    _by_numbers(Fraction, "numerator", "denominator"),
    _by_numbers(complex, "real", "imag"),
    *map(_by_text, (Decimal, UUID, PurePosixPath, PosixPath, PureWindowsPath, WindowsPath)),
    *map(_by_text, (IPv4Address, IPv4Interface, IPv4Network)),
    *map(_by_text, (IPv6Address, IPv6Interface, IPv6Network)),
)
_KIND_OF: dict[type, _Kind] = {kind.cls: kind for kind in _KINDS}
_BUILDERS: dict[str, Callable[..., Any]] = {kind.tag: kind.build for kind in _KINDS} | {
    "$dict": dict,
    "$float": float,
    "$int": lambda text: int(text, 16),
    "$str": lambda text: text.encode("ascii").decode("unicode_escape"),
}


# ---- Writing: from a value to a tree of plain JSON


class _Writer:
    """One value on its way to JSON. `careful` looks at every scalar too."""

    def __init__(self, *, careful: bool) -> None:
        self.careful = careful
        self.atoms = frozenset({NoneType, bool}) if careful else _SCALARS
        self.names: dict[type, str] = {}

    def tree(self, value: Any, depth: int) -> Any:
        cls: Any = type(value)
        if cls in self.atoms:
            return value
        if cls is dict:
            return self.mapping(value, depth)
        if cls is list:
            return self.items(value, depth)
        if cls in _SCALARS:
            return _tagged_scalar(value)
        if cls is set or cls is frozenset:
            return {_KIND_OF[cls].tag: _in_order(self.items(value, depth))}
        kind = _KIND_OF.get(cls)
        return self.known(value, kind, depth) if kind else _class_writer(cls)(self, value, depth)

    def items(self, value: Any, depth: int) -> list[Any]:
        _check_depth(depth)
        atoms = self.atoms
        if type(value) is list and atoms.issuperset(map(type, value)):
            return value
        tree: list[Any] = []
        try:
            for item in value:
                tree.append(item if type(item) in atoms else self.tree(item, depth + 1))
        except _Refused as refused:
            refused.inside(value, f"[{len(tree)}]" if type(value) is list else ".{…}")
            raise
        return tree

    def mapping(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        careful = self.careful
        for key in value:
            if type(key) is not str or key[:1] == "$" or (careful and not _is_utf8(key)):
                return {"$dict": self.pairs(value, depth)}
        return self.members(value, value, depth)

    def members(self, owner: object, items: dict[str, Any], depth: int) -> dict[str, Any]:
        """The parts `items` of `owner`, by name."""
        _check_depth(depth)
        atoms = self.atoms
        if atoms.issuperset(map(type, items.values())):
            return items
        tree: dict[str, Any] = {}
        try:
            for name, item in items.items():
                tree[name] = item if type(item) in atoms else self.tree(item, depth + 1)
        except _Refused as refused:
            refused.inside(owner, _key_place(name, len(tree)))
            raise
        return tree

    def pairs(self, value: dict[Any, Any], depth: int) -> list[Any]:
        _check_depth(depth)
        tree: list[Any] = []
        try:
            for key, item in value.items():
                place = f".keys()[{len(tree)}]"
                pair = [self.tree(key, depth + 1)]
                place = _key_place(key, len(tree))
                pair.append(self.tree(item, depth + 1))
                tree.append(pair)
        except _Refused as refused:
            refused.inside(value, place)
            raise
        return tree

    def known(self, value: Any, kind: _Kind, depth: int) -> dict[str, Any]:
        try:
            tree = {kind.tag: self.tree(kind.take(value), depth)}
            more = kind.more(value) if kind.more else {}
            for name, item in more.items():
                if item is not None:
                    tree[name] = self.tree(item, depth)
        except _Refused as refused:
            refused.inside(value, "")  # what take() made is another object each time round a cycle
            raise
        return tree

    def name(self, cls: type) -> str:
        """The name of a class, checked to lead back to it."""
        name = self.names.get(cls)
        if name is None:
            name = qualified_name(cls)
            if find_class(name) is not cls:
                raise _Refused(
                    f"is of class {name}, and this name does not lead back to the class: "
                    "define it at the top of a module"
                )
            self.names[cls] = name
        return name


def _tagged_scalar(value: float | str) -> Any:
    if type(value) is str:
        return value if _is_utf8(value) else {"$str": value.encode("unicode_escape").decode()}
    if type(value) is int:
        return value if -_LARGE < value < _LARGE else {"$int": hex(value)}
    return value if math.isfinite(value) else {"$float": repr(value)}  # type: ignore[arg-type]


def _in_order(items: list[Any]) -> list[Any]:
    """The elements of a set, in an order that does not depend on the process."""
    classes = set(map(type, items))
    return sorted(items) if classes in ({str}, {int}) else sorted(items, key=_dump)


@lru_cache(maxsize=512)
def _class_writer(cls: Any) -> Callable[[_Writer, Any, int], dict[str, Any]]:
    if issubclass(cls, Enum):
        return _write_enum
    if issubclass(cls, BaseException):
        return _write_error
    if _is_namedtuple(cls):
        return _write_namedtuple
    if _is_dataclass(cls):
        return _write_dataclass
    raise _Refused(
        f"is of class {_class_name(cls)}, which has no exact form in JSON: use plain data, a "
        "dataclass, a NamedTuple or an Enum, or give the engine codec=PickleCodec()"
    )


def _write_enum(writer: _Writer, value: Enum, _depth: int) -> dict[str, Any]:
    cls, name = type(value), value._name_
    if cls.__members__.get(name) is value:
        return {"$enum": writer.name(cls), "name": name}
    if isinstance(value, Flag):
        return _write_flag(writer, value)
    raise _Refused(f"is not among the members of {_class_name(cls)}")


def _write_flag(writer: _Writer, value: Flag) -> dict[str, Any]:
    """A combination, or nothing, by the names of its members; `rest` are the bits without one."""
    cls, names, rest = type(value), [], value._value_
    for name, member in cls.__members__.items():
        bits = member._value_
        if bits and bits & rest == bits:
            names.append(name)
            rest &= ~bits
    node = {"$flag": writer.name(cls), "names": names}
    return node | {"rest": rest} if rest else node


def _write_namedtuple(writer: _Writer, value: Any, depth: int) -> dict[str, Any]:
    if _state(value):
        raise _Refused("has attributes besides its fields, which would be lost")
    cls = type(value)
    items = dict(zip(cls._fields, tuple.__iter__(value), strict=True))
    return {"$namedtuple": writer.name(cls)} | writer.members(value, items, depth)


def _write_dataclass(writer: _Writer, value: Any, depth: int) -> dict[str, Any]:
    cls: Any = type(value)
    state, known = _state(value), _fields(cls)
    for name in known:
        if name not in state:
            raise _Refused(f"has no value of its own in the field {name!r}")
    items = {name: state.pop(name) for name in known}
    node = {"$dataclass": writer.name(cls)} | writer.members(value, items, depth)
    if state:
        node["$attributes"] = writer.members(value, state, depth)
    return node


def _write_error(writer: _Writer, value: BaseException, depth: int) -> dict[str, Any]:
    return _ErrorWriter(writer, lenient=False).whole(value, depth)


class _ErrorWriter:
    """One exception with its chain on its way to JSON.

    `lenient` refuses nothing: what has no exact form is replaced by its repr, and sets `lossy`.
    """

    def __init__(self, writer: _Writer, *, lenient: bool) -> None:
        self.writer, self.lenient, self.lossy = writer, lenient, False
        self.above: list[BaseException] = []

    def whole(self, error: BaseException, depth: int) -> dict[str, Any]:
        node = self.node(error, depth)
        if trace := _traceback(error):
            node["traceback"] = trace
        return node | {"lossy": True} if self.lossy else node

    def node(self, error: BaseException, depth: int) -> dict[str, Any]:
        self.above.append(error)
        node = _described(error)
        with self.or_lossy():  # with no more than this, it comes back as a RemoteError
            node |= self.content(error, depth)
        node |= self.links(error, depth)
        self.above.pop()
        return node

    def content(self, error: BaseException, depth: int) -> dict[str, Any]:
        """What it takes to make the exception again."""
        _check_depth(depth)
        self.writer.name(type(error))
        if isinstance(error, BaseExceptionGroup):
            node = self.group(error, depth)
        else:
            _blank(type(error))
            node = {
                "args": [
                    self.part(error, f".args[{index}]", item, depth)
                    for index, item in enumerate(error.args)
                ]
            }
        if state := _state(error):
            node["attributes"] = {
                name: self.part(error, f".{name}", item, depth) for name, item in state.items()
            }
        return node

    def group(self, error: BaseExceptionGroup[Any], depth: int) -> dict[str, Any]:
        if error.args != (error.message, list(error.exceptions)):
            with self.or_lossy():
                raise _Refused("is a group whose args are not its message and a list of its parts")
        members = []
        for index, member in enumerate(error.exceptions):
            with _within(error, f".exceptions[{index}]"):
                members.append(self.node(member, depth + 1))
        return {"message": self.part(error, ".message", error.message, depth), "errors": members}

    def links(self, error: BaseException, depth: int) -> dict[str, Any]:
        """The cause, and the context where it shows."""
        suppressed = error.__suppress_context__
        node: dict[str, Any] = {"suppress": True} if suppressed else {}
        shown = {"cause": error.__cause__, "context": None if suppressed else error.__context__}
        for link, other in shown.items():
            if other is not None:
                with self.or_lossy(), _within(error, f".__{link}__"):
                    if len(self.above) == _LONGEST_CHAIN or any(other is e for e in self.above):
                        raise _Refused("is in a chain of exceptions that is endless or too long")
                    node[f"__{link}__"] = self.node(other, depth + 1)
        return node

    def part(self, error: BaseException, place: str, item: object, depth: int) -> Any:
        with self.or_lossy(), _within(error, place):
            return self.writer.tree(item, depth + 1)
        return _printable(_safely(repr, item)[:_LONGEST_REPR])

    @contextmanager
    def or_lossy(self) -> Iterator[None]:
        try:
            yield
        except _Refused:
            if not self.lenient:
                raise
            self.lossy = True


def _described(error: BaseException) -> dict[str, Any]:
    return {"$error": _class_name(type(error)), "text": _printable(_safely(str, error))}


def _traceback(error: BaseException) -> str:
    """Where it was raised, as Python prints it, below where it was raised before, if it was."""
    earlier = (_attributes(error) or {}).get(_TRACEBACK, "")
    if error.__traceback__ is None:
        return str(earlier)
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        return str(earlier)
    if earlier:
        text = f"{earlier}\nIt was recorded, and raised again here:\n\n{text}"
    if len(text) > _LONGEST_TRACEBACK:
        half = _LONGEST_TRACEBACK // 2
        text = f"{text[:half]}\n…\n{text[-half:]}"
    return _printable(text)


# ---- Reading: from parsed JSON to the value


class _Reader:
    """One value on its way back."""

    def __init__(self) -> None:
        self.classes: dict[tuple[str, str], type] = {}

    def value(self, node: Any) -> Any:
        """What `node` stands for; lists and plain objects are filled in place."""
        if type(node) is list:
            return self.items(node)
        if type(node) is not dict:
            return node
        tag = next(iter(node), "")
        if tag[:1] != "$":
            return self.members(node)
        try:
            if tag in _CLASS_READERS:
                return _CLASS_READERS[tag](self, node)
            if tag in _BUILDERS:
                return _BUILDERS[tag](self.value(node.pop(tag)), **self.members(node))
        except (_Refused, RecursionError):
            raise
        except Exception as error:
            raise _Refused(f"cannot be rebuilt from its {tag}: {_summary(error)}") from error
        raise _Refused(f"has the tag {tag!r}, which this version of durable does not know")

    def items(self, nodes: list[Any]) -> list[Any]:
        try:
            for index, node in enumerate(nodes):
                if type(node) in _NESTED:
                    nodes[index] = self.value(node)
        except _Refused as refused:
            refused.inside(nodes, f"[{index}]")
            raise
        return nodes

    def members(self, nodes: dict[str, Any]) -> dict[str, Any]:
        try:
            for name, node in nodes.items():
                if type(node) in _NESTED:
                    nodes[name] = self.value(node)
        except _Refused as refused:
            refused.inside(nodes, _key_place(name, 0))
            raise
        return nodes

    def fields(self, node: dict[str, Any]) -> dict[str, Any]:
        return self.members({name: item for name, item in node.items() if name[:1] != "$"})

    def cls(self, node: dict[str, Any]) -> Any:
        """The class that `node` names, checked to be what its tag says."""
        tag, name = next(iter(node.items()))
        found = self.classes.get((tag, name))
        if found is None:
            found = find_class(name)
            if found is None:
                raise _Refused(f"is of class {name}, which no imported module has")
            if not _IS_KIND[tag](found):
                raise _Refused(f"names {name} as {tag}, which it is not")
            self.classes[tag, name] = found
        return found

    def error(self, node: dict[str, Any], *, lenient: bool) -> BaseException:
        """The exception of `node` with its chain; `lenient` puts a RemoteError for a lost one."""
        try:
            error = self.lone_error(node, lenient)
        except Exception:
            if not lenient:
                raise
            error = RemoteError(str(node["$error"]), node["text"], node.get("traceback", ""))
        for link in ("__cause__", "__context__"):
            if link in node:
                with _within(node, f".{link}"):
                    object.__setattr__(error, link, self.error(node[link], lenient=lenient))
        object.__setattr__(error, "__suppress_context__", "suppress" in node)
        if "traceback" in node:
            _restore(error, {_TRACEBACK: node["traceback"]})
        return error

    def lone_error(self, node: dict[str, Any], lenient: bool) -> BaseException:
        cls = self.cls(node)
        if "errors" in node:
            error = self.group(cls, node, lenient)
        elif "args" in node:
            error = _blank(cls)
            with _within(node, ".args"):
                object.__setattr__(error, "args", tuple(self.items(node["args"])))
        else:
            raise _Refused(f"is of class {node['$error']}, and was recorded as text only")
        attributes = self.members(node.get("attributes", {}))
        _check_unicode_error(cls, attributes)
        _restore(error, attributes)
        return error

    def group(self, cls: Any, node: dict[str, Any], lenient: bool) -> BaseException:
        members = []
        for index, member in enumerate(node["errors"]):
            with _within(node, f".exceptions[{index}]"):
                members.append(self.error(member, lenient=lenient))
        message = self.value(node["message"])
        error: BaseException = BaseExceptionGroup.__new__(cls, message, members)
        object.__setattr__(error, "args", (message, members))
        return error


def _read_enum(reader: _Reader, node: dict[str, Any]) -> Any:
    cls = reader.cls(node)
    name = node["name"]
    if name not in cls.__members__:
        raise _Refused(f"is {node['$enum']}.{name}, which the class does not have any more")
    return cls.__members__[name]


def _read_flag(reader: _Reader, node: dict[str, Any]) -> Any:
    cls = reader.cls(node)
    number = node.get("rest", 0)
    for name in node["names"]:
        if name not in cls.__members__:
            raise _Refused(f"has {node['$flag']}.{name}, which the class does not have any more")
        number |= cls.__members__[name]._value_
    known = cls._value2member_map_.get(number)
    # What cls(number) does, but for a _missing_ of the user's.
    value = Flag._missing_.__func__(cls, number) if known is None else known  # type: ignore[attr-defined]
    if value._value_ != number:
        raise _Refused(f"has bits that {node['$flag']} does not allow any more")
    return value


def _read_namedtuple(reader: _Reader, node: dict[str, Any]) -> Any:
    cls = reader.cls(node)
    items = reader.fields(node)
    _check_fields(cls, items, cls._fields)
    defaults = cls._field_defaults
    for name in cls._fields:
        if name not in items and name not in defaults:
            raise _Refused(f"has no field {name!r}, which {_class_name(cls)} needs")
    return tuple.__new__(cls, [items.get(name, defaults.get(name)) for name in cls._fields])


def _read_dataclass(reader: _Reader, node: dict[str, Any]) -> Any:
    cls = reader.cls(node)
    known, state = _fields(cls), reader.fields(node)
    _check_fields(cls, state, known)
    for name, field in known.items():
        if name not in state:
            state[name] = _default(cls, field)
    value = object.__new__(cls)
    _restore(value, state)
    _restore(value, reader.members(node.get("$attributes", {})))
    return value


def _check_fields(cls: type, recorded: dict[str, Any], known: Any) -> None:
    for name in recorded:
        if name not in known:
            raise _Refused(f"has a field {name!r}, which {_class_name(cls)} does not have any more")


def _default(cls: type, field: Field[Any]) -> Any:
    """The default of a field that the class got later. Only builtin factories: others are code."""
    if field.default is not MISSING:
        return field.default
    factory: Any = field.default_factory
    if factory in _FACTORIES.values():
        return factory()
    raise _Refused(f"has no field {field.name!r}, which {_class_name(cls)} needs")


def _read_error(reader: _Reader, node: dict[str, Any]) -> BaseException:
    return reader.error(node, lenient=False)


_CLASS_READERS: dict[str, Callable[[_Reader, dict[str, Any]], Any]] = {
    "$enum": _read_enum,
    "$flag": _read_flag,
    "$namedtuple": _read_namedtuple,
    "$dataclass": _read_dataclass,
    "$error": _read_error,
}
_IS_KIND: dict[str, Callable[[type], bool]] = {
    "$enum": lambda cls: issubclass(cls, Enum),
    "$flag": lambda cls: issubclass(cls, Flag),
    "$namedtuple": _is_namedtuple,
    "$dataclass": _is_dataclass,
    "$error": lambda cls: issubclass(cls, BaseException),
}
