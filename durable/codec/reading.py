"""Reading: from a tree of plain JSON to the value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field
from enum import Enum, Flag
from typing import Any

from durable.codec.exceptions import ErrorReader
from durable.codec.objects import class_of, dataclass_fields, fill, is_dataclass, is_namedtuple
from durable.codec.refusals import Refused, class_name, key_place, summary
from durable.codec.standard import BUILDERS, FACTORIES

_NESTED = frozenset({list, dict})


class Reader:
    """One value on its way back."""

    def __init__(self) -> None:
        self._classes: dict[tuple[str, str], Any] = {}

    def value(self, node: Any) -> Any:
        """What `node` stands for; lists and plain objects are filled in place."""
        if type(node) is list:
            return self._items(node)
        if type(node) is not dict:
            return node
        tag = next(iter(node), "")
        if tag[:1] != "$":
            return self._members(node)
        try:
            if tag in _CLASS_READERS:
                return _CLASS_READERS[tag](self, node)
            if tag in BUILDERS:
                return BUILDERS[tag](self.value(node.pop(tag)), **self._members(node))
        except (Refused, RecursionError):
            raise
        except Exception as error:
            raise Refused(f"cannot be rebuilt from its {tag}: {summary(error)}") from error
        raise Refused(f"has the tag {tag!r}, which this version of durable does not know")

    def _items(self, nodes: list[Any]) -> list[Any]:
        try:
            for index, node in enumerate(nodes):
                if type(node) in _NESTED:
                    nodes[index] = self.value(node)
        except Refused as refused:
            refused.inside(nodes, f"[{index}]")
            raise
        return nodes

    def _members(self, nodes: dict[str, Any]) -> dict[str, Any]:
        try:
            for name, node in nodes.items():
                if type(node) in _NESTED:
                    nodes[name] = self.value(node)
        except Refused as refused:
            refused.inside(nodes, key_place(name, 0))
            raise
        return nodes

    # ---- By the kind of the class

    def _class(self, node: dict[str, Any], is_kind: Callable[[type], bool]) -> Any:
        """The class that `node` names under its tag; looked up once for all its instances."""
        tag, name = next(iter(node.items()))
        if (tag, name) not in self._classes:
            self._classes[tag, name] = class_of(name, tag, is_kind)
        return self._classes[tag, name]

    def _fields(self, node: dict[str, Any], cls: type, known: Iterable[str]) -> dict[str, Any]:
        """The recorded fields, all of which the class must still know."""
        fields = self._members({name: item for name, item in node.items() if name[:1] != "$"})
        for name in fields:
            if name not in known:
                raise Refused(
                    f"has a field {name!r}, which {class_name(cls)} does not have any more"
                )
        return fields

    def _enum(self, node: dict[str, Any]) -> Any:
        cls = self._class(node, lambda cls: issubclass(cls, Enum))
        return _member(cls, node["name"])

    def _flag(self, node: dict[str, Any]) -> Any:
        cls = self._class(node, lambda cls: issubclass(cls, Flag))
        bits = node.get("rest", 0)
        for name in node["names"]:
            bits |= _member(cls, name)._value_
        value = cls._value2member_map_.get(bits)
        if value is None:
            # What cls(bits) does, but for a _missing_ of the user's.
            value = Flag._missing_.__func__(cls, bits)  # type: ignore[attr-defined]
        if value._value_ != bits:
            raise Refused(f"has the value {bits}, which {class_name(cls)} does not allow any more")
        return value

    def _namedtuple(self, node: dict[str, Any]) -> Any:
        cls = self._class(node, is_namedtuple)
        items = cls._field_defaults | self._fields(node, cls, cls._fields)
        for name in cls._fields:
            if name not in items:
                raise Refused(f"has no field {name!r}, which {class_name(cls)} needs")
        return tuple.__new__(cls, [items[name] for name in cls._fields])

    def _dataclass(self, node: dict[str, Any]) -> Any:
        cls = self._class(node, is_dataclass)
        known = dataclass_fields(cls)
        state = self._fields(node, cls, known)
        for name, field in known.items():
            if name not in state:
                state[name] = _default(cls, field)
        value = object.__new__(cls)
        fill(value, state | self._members(node.get("$attributes", {})))
        return value

    def _error(self, node: dict[str, Any]) -> BaseException:
        return ErrorReader(self.value, lenient=False).whole(node)


_CLASS_READERS: dict[str, Callable[[Reader, dict[str, Any]], Any]] = {
    "$enum": Reader._enum,
    "$flag": Reader._flag,
    "$namedtuple": Reader._namedtuple,
    "$dataclass": Reader._dataclass,
    "$error": Reader._error,
}


def _member(cls: type[Enum], name: str) -> Any:
    if name not in cls.__members__:
        raise Refused(f"names {class_name(cls)}.{name}, which the class does not have any more")
    return cls.__members__[name]


def _default(cls: type, field: Field[Any]) -> Any:
    """The default of a field that the class got later. Only builtin factories: others are code."""
    if field.default is not MISSING:
        return field.default
    factory: Any = field.default_factory
    if factory in FACTORIES.values():
        return factory()
    raise Refused(f"has no field {field.name!r}, which {class_name(cls)} needs")
