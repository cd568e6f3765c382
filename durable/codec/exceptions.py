"""Exceptions with their chains as JSON, and back, without running code of theirs to make them.

What they hold (args, attributes) may be any value, and any value may hold an exception: so the
functions that write and read a value are given to these classes, which are below both.
"""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from durable.codec.objects import TRACEBACK, attributes_of, class_of, fill, name_of, state_of
from durable.codec.refusals import Refused, check_depth, class_name, safely, within
from durable.codec.text import printable
from durable.errors import RemoteError

_LONGEST_CHAIN = 20  # exceptions, each the cause or the context of the one before
_LONGEST_TRACEBACK = 16_000  # characters
_LONGEST_REPR = 1_000  # characters

_BUILTIN_ERRORS = frozenset(
    cls
    for cls in vars(builtins).values()
    if isinstance(cls, type) and issubclass(cls, BaseException)
)
_UNICODE_ERRORS = {UnicodeEncodeError: str, UnicodeDecodeError: bytes, UnicodeTranslateError: str}


class ErrorWriter:
    """One exception with its chain on its way to JSON. `write` writes a value at a depth.

    `lenient` refuses nothing: what has no exact form is replaced by its repr, and the node marked
    as lossy.
    """

    def __init__(self, write: Callable[[Any, int], Any], *, lenient: bool) -> None:
        self._write, self._lenient = write, lenient
        self._lossy = False
        self._above: list[BaseException] = []  # those whose cause, context or member this one is

    def whole(self, error: BaseException, depth: int) -> dict[str, Any]:
        """The node of the exception, with its chain and where it was raised."""
        node = self._node(error, depth)
        if text := _traceback(error):
            node["traceback"] = text
        return node | {"lossy": True} if self._lossy else node

    def _node(self, error: BaseException, depth: int) -> dict[str, Any]:
        self._above.append(error)
        node = described(error)
        with self._or_lossy():  # with no more than this, it comes back as a RemoteError
            node |= self._content(error, depth)
        node |= self._links(error, depth)
        self._above.pop()
        return node

    def _content(self, error: BaseException, depth: int) -> dict[str, Any]:
        """What it takes to make the exception again."""
        check_depth(depth)
        name_of(type(error))  # refuses a class that could not be found again
        if isinstance(error, BaseExceptionGroup):
            node = self._group(error, depth)
        else:
            _blank(type(error))
            args = enumerate(error.args)
            node = {"args": [self._part(error, f".args[{i}]", item, depth) for i, item in args]}
        if state := state_of(error):
            node["attributes"] = {
                name: self._part(error, f".{name}", item, depth) for name, item in state.items()
            }
        return node

    def _group(self, error: BaseExceptionGroup[Any], depth: int) -> dict[str, Any]:
        with self._or_lossy():
            if error.args != (error.message, list(error.exceptions)):
                raise Refused("is a group whose args are not its message and a list of its parts")
        members = []
        for index, member in enumerate(error.exceptions):
            with within(error, f".exceptions[{index}]"):
                members.append(self._node(member, depth + 1))
        return {"message": self._part(error, ".message", error.message, depth), "errors": members}

    def _links(self, error: BaseException, depth: int) -> dict[str, Any]:
        """The cause, and the context where it shows."""
        suppressed = error.__suppress_context__
        node: dict[str, Any] = {"suppress": True} if suppressed else {}
        shown = {
            "__cause__": error.__cause__,
            "__context__": None if suppressed else error.__context__,
        }
        for link, other in shown.items():
            if other is not None:
                with self._or_lossy(), within(error, f".{link}"):
                    if len(self._above) == _LONGEST_CHAIN or any(other is e for e in self._above):
                        raise Refused("is in a chain of exceptions that is endless or too long")
                    node[link] = self._node(other, depth + 1)
        return node

    def _part(self, error: BaseException, place: str, item: object, depth: int) -> Any:
        with self._or_lossy(), within(error, place):
            return self._write(item, depth + 1)
        return printable(safely(repr, item))[:_LONGEST_REPR]

    @contextmanager
    def _or_lossy(self) -> Iterator[None]:
        try:
            yield
        except Refused:
            if not self._lenient:
                raise
            self._lossy = True


def described(error: BaseException) -> dict[str, Any]:
    """The least that is recorded of an exception: the name of its class, and its text."""
    return {"$error": class_name(type(error)), "text": printable(safely(str, error))}


def _traceback(error: BaseException) -> str:
    """Where it was raised, as Python prints it, below where it was raised before, if it was."""
    earlier = (attributes_of(error) or {}).get(TRACEBACK, "")
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
    return printable(text)


class ErrorReader:
    """One exception with its chain on its way back. `read` reads the value of a node.

    `lenient` puts a RemoteError for one that cannot be made again.
    """

    def __init__(self, read: Callable[[Any], Any], *, lenient: bool) -> None:
        self._read, self._lenient = read, lenient

    def whole(self, node: dict[str, Any]) -> BaseException:
        """The exception of `node`, with its chain and where it was raised."""
        try:
            error = self._alone(node)
        except Exception:
            if not self._lenient:
                raise
            error = RemoteError(str(node["$error"]), node["text"], node.get("traceback", ""))
        for link in ("__cause__", "__context__"):
            if link in node:
                with within(node, f".{link}"):
                    object.__setattr__(error, link, self.whole(node[link]))
        object.__setattr__(error, "__suppress_context__", "suppress" in node)
        if "traceback" in node:
            fill(error, {TRACEBACK: node["traceback"]})
        return error

    def _alone(self, node: dict[str, Any]) -> BaseException:
        cls = class_of(node["$error"], "$error", lambda cls: issubclass(cls, BaseException))
        if "errors" in node:
            error = self._group(cls, node)
        elif "args" in node:
            error = _blank(cls)
            with within(node, ".args"):
                object.__setattr__(error, "args", tuple(self._read(node["args"])))
        else:
            raise Refused(f"is of class {node['$error']}, and was recorded as text only")
        attributes = {}
        try:
            for name, item in node.get("attributes", {}).items():
                attributes[name] = self._read(item)
        except Refused as refused:
            refused.inside(node, f".{name}")
            raise
        _check_unicode_error(cls, attributes)
        fill(error, attributes)
        return error

    def _group(self, cls: type[BaseExceptionGroup[Any]], node: dict[str, Any]) -> BaseException:
        members = []
        for index, member in enumerate(node["errors"]):
            with within(node, f".exceptions[{index}]"):
                members.append(self.whole(member))
        message = self._read(node["message"])
        error = BaseExceptionGroup.__new__(cls, message, members)
        object.__setattr__(error, "args", (message, members))
        return error


def _blank(cls: Any) -> Any:
    """An exception of class `cls`, made by its nearest builtin base and by no code of its own."""
    base = cls
    while base not in _BUILTIN_ERRORS:
        base = base.__base__
    try:
        return base.__new__(cls)
    except TypeError:
        raise Refused(f"is of class {class_name(cls)}, made by an extension module") from None


def _check_unicode_error(cls: type, attributes: dict[str, Any]) -> None:
    """Python crashes in str() where the `object` or `start` of one is not what __init__ takes."""
    for base, kind in _UNICODE_ERRORS.items():
        if issubclass(cls, base) and "object" in attributes:
            possible = type(attributes["object"]) is kind and attributes.get("start", 0) >= 0
            if not possible:
                raise Refused(f"is no {base.__name__}: its object or start is impossible")
