"""Writing: from a value to a tree of plain JSON."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, Flag
from functools import lru_cache
from types import NoneType
from typing import Any

from durable.codec.exceptions import ErrorWriter
from durable.codec.objects import dataclass_fields, is_dataclass, is_namedtuple, name_of, state_of
from durable.codec.refusals import Refused, check_depth, class_name, key_place
from durable.codec.standard import KIND_OF, Kind, tagged_scalar
from durable.codec.text import dump, is_utf8

_SCALARS = frozenset({NoneType, bool, int, float, str})


class Writer:
    """One value on its way to JSON. `careful` looks at every scalar too."""

    def __init__(self, *, careful: bool) -> None:
        self._careful = careful
        # The types whose values are left to json as they are.
        self._atoms = frozenset({NoneType, bool}) if careful else _SCALARS
        self._names: dict[type, str] = {}

    def tree(self, value: Any, depth: int = 1) -> Any:
        """What JSON holds for `value`, which is inside of `depth` - 1 containers."""
        cls: Any = type(value)
        if cls in self._atoms:
            return value
        if cls is dict:
            return self._dict(value, depth)
        if cls is list:
            return self._items(value, depth)
        if cls in _SCALARS:
            return tagged_scalar(value)
        if cls is set or cls is frozenset:
            return {KIND_OF[cls].tag: _in_order(self._items(value, depth))}
        if kind := KIND_OF.get(cls):
            return self._standard(value, kind, depth)
        return _class_writer(cls)(self, value, depth)

    # Below, the place of what is refused is added by try and except: `within` around every part
    # would take longer than most parts do.

    def _items(self, value: Any, depth: int) -> list[Any]:
        check_depth(depth)
        atoms = self._atoms
        if type(value) is list and atoms.issuperset(map(type, value)):
            return value
        tree: list[Any] = []
        try:
            for item in value:
                tree.append(item if type(item) in atoms else self.tree(item, depth + 1))
        except Refused as refused:
            refused.inside(value, f"[{len(tree)}]" if type(value) is list else ".{…}")
            raise
        return tree

    def _dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        careful = self._careful
        for key in value:
            if type(key) is not str or key[:1] == "$" or (careful and not is_utf8(key)):
                return {"$dict": self._pairs(value, depth)}
        return self._members(value, value, depth)

    def _members(self, owner: object, items: dict[str, Any], depth: int) -> dict[str, Any]:
        """The parts `items` of `owner`, by name."""
        check_depth(depth)
        atoms = self._atoms
        if atoms.issuperset(map(type, items.values())):
            return items
        tree: dict[str, Any] = {}
        try:
            for name, item in items.items():
                tree[name] = item if type(item) in atoms else self.tree(item, depth + 1)
        except Refused as refused:
            refused.inside(owner, key_place(name, len(tree)))
            raise
        return tree

    def _pairs(self, value: dict[Any, Any], depth: int) -> list[Any]:
        check_depth(depth)
        tree: list[Any] = []
        try:
            for key, item in value.items():
                place = f".keys()[{len(tree)}]"
                pair = [self.tree(key, depth + 1)]
                place = key_place(key, len(tree))
                pair.append(self.tree(item, depth + 1))
                tree.append(pair)
        except Refused as refused:
            refused.inside(value, place)
            raise
        return tree

    def _standard(self, value: Any, kind: Kind, depth: int) -> dict[str, Any]:
        try:
            tree = {kind.tag: self.tree(kind.take(value), depth)}
            more = kind.more(value) if kind.more else {}
            for name, item in more.items():
                if item is not None:
                    tree[name] = self.tree(item, depth)
        except Refused as refused:
            refused.inside(value, "")  # what take() made is another object each time round a cycle
            raise
        return tree

    # ---- By the kind of the class

    def _name(self, cls: type) -> str:
        """`name_of`, which is asked once for all instances of a class."""
        name = self._names.get(cls)
        if name is None:
            name = self._names[cls] = name_of(cls)
        return name

    def _enum(self, value: Enum, _depth: int) -> dict[str, Any]:
        cls, name = type(value), value._name_
        if cls.__members__.get(name) is value:
            return {"$enum": self._name(cls), "name": name}
        if isinstance(value, Flag):
            return self._flag(value)
        raise Refused(f"is not among the members of {class_name(cls)}")

    def _flag(self, value: Flag) -> dict[str, Any]:
        """A combination, or nothing, by the names of its members; `rest` are bits without one."""
        cls, names, rest = type(value), [], value._value_
        for name, member in cls.__members__.items():
            bits = member._value_
            if bits and bits & rest == bits:
                names.append(name)
                rest &= ~bits
        node = {"$flag": self._name(cls), "names": names}
        return node | {"rest": rest} if rest else node

    def _namedtuple(self, value: Any, depth: int) -> dict[str, Any]:
        if state_of(value):
            raise Refused("has attributes besides its fields, which would be lost")
        cls = type(value)
        items = dict(zip(cls._fields, tuple.__iter__(value), strict=True))
        return {"$namedtuple": self._name(cls)} | self._members(value, items, depth)

    def _dataclass(self, value: Any, depth: int) -> dict[str, Any]:
        cls: Any = type(value)
        state, known = state_of(value), dataclass_fields(cls)
        for name in known:
            if name not in state:
                raise Refused(f"has no value of its own in the field {name!r}")
        items = {name: state.pop(name) for name in known}
        node = {"$dataclass": self._name(cls)} | self._members(value, items, depth)
        if state:
            node["$attributes"] = self._members(value, state, depth)
        return node

    def _error(self, value: BaseException, depth: int) -> dict[str, Any]:
        return ErrorWriter(self.tree, lenient=False).whole(value, depth)


@lru_cache(maxsize=512)
def _class_writer(cls: Any) -> Callable[[Writer, Any, int], dict[str, Any]]:
    if issubclass(cls, Enum):
        return Writer._enum
    if issubclass(cls, BaseException):
        return Writer._error
    if is_namedtuple(cls):
        return Writer._namedtuple
    if is_dataclass(cls):
        return Writer._dataclass
    raise Refused(
        f"is of class {class_name(cls)}, which has no exact form in JSON: use plain data, a "
        "dataclass, a NamedTuple or an Enum, or give the engine codec=PickleCodec()"
    )


def _in_order(items: list[Any]) -> list[Any]:
    """The elements of a set, in an order that does not depend on the process."""
    classes = set(map(type, items))
    return sorted(items) if classes in ({str}, {int}) else sorted(items, key=dump)
