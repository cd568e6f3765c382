"""Fails a workflow whose body does what a replay would do differently."""

from __future__ import annotations

import builtins
import io
import os
import random
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from types import CodeType, FrameType
from typing import Any

from durable.engine import Engine
from durable.runtime.context import current_host

_CLOCK = "durable.now()"
_RANDOM = "durable.random()"
_STEP = "a step"

# What may not be called in the body of a workflow, and what to use in its place. Functions written
# in C are known by themselves, those written in Python by their code.
_IN_C: dict[Any, tuple[str, str]] = {
    time.time: ("time.time", _CLOCK),
    time.time_ns: ("time.time_ns", _CLOCK),
    time.monotonic: ("time.monotonic", _CLOCK),
    time.monotonic_ns: ("time.monotonic_ns", _CLOCK),
    time.perf_counter: ("time.perf_counter", _CLOCK),
    time.perf_counter_ns: ("time.perf_counter_ns", _CLOCK),
    time.localtime: ("time.localtime", _CLOCK),
    time.gmtime: ("time.gmtime", _CLOCK),
    time.sleep: ("time.sleep", "durable.sleep()"),
    os.urandom: ("os.urandom", _RANDOM),
    os.system: ("os.system", _STEP),
    io.open: ("open", _STEP),
    builtins.input: ("input", "a step, or durable.recv()"),
}
_OF_CLASSES = {
    (datetime, "now"): ("datetime.now", _CLOCK),
    (datetime, "utcnow"): ("datetime.utcnow", _CLOCK),
    (datetime, "today"): ("datetime.today", _CLOCK),
    (date, "today"): ("date.today", _CLOCK),
}
_IN_PYTHON: dict[CodeType, tuple[str, str]] = {
    uuid.uuid1.__code__: ("uuid.uuid1", "durable.uuid4()"),
    uuid.uuid4.__code__: ("uuid.uuid4", "durable.uuid4()"),
    secrets.token_bytes.__code__: ("secrets.token_bytes", _RANDOM),
    secrets.token_hex.__code__: ("secrets.token_hex", _RANDOM),
    secrets.token_urlsafe.__code__: ("secrets.token_urlsafe", _RANDOM),
    subprocess.Popen.__init__.__code__: ("subprocess", _STEP),
    socket.socket.__init__.__code__: ("socket.socket", _STEP),
}
_SHARED_RANDOM: random.Random = random._inst
_RANDOM_FILE = random.__file__


class NotDeterministic(AssertionError):
    """The body of a workflow did what a replay would not repeat; the text names call and line."""


@contextmanager
def strict(engine: Engine | None = None) -> Iterator[None]:
    """While inside, bodies of workflows on `engine`, or the current one, are watched.

    A body that reads the clock, draws from the shared random numbers, makes a uuid, opens a file, a
    socket or a process, or sleeps for real, outside a step, fails at once in NotDeterministic: it
    names the call, the line and what to use. What libraries do for themselves is not held against
    the body. Uses ``sys.setprofile`` on the threads of the workflows.
    """
    hooks = current_host("strict()").hooks if engine is None else engine._hooks
    before = hooks.guard, hooks.unguard
    hooks.guard, hooks.unguard = _watched, _unwatched
    try:
        yield
    finally:
        hooks.guard, hooks.unguard = before


@contextmanager
def _watched() -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(_look)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextmanager
def _unwatched() -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(before)


def _look(frame: FrameType, event: str, argument: Any) -> None:
    if event == "c_call":
        found, caller = _forbidden_c(argument), frame
    elif event == "call" and frame.f_back is not None:
        found, caller = _forbidden_python(frame), frame.f_back
    else:
        return
    if found is not None and _is_users(caller):
        sys.setprofile(None)  # what is raised is raised once
        name, instead = found
        raise NotDeterministic(
            f"{caller.f_code.co_filename}:{caller.f_lineno}: the body of a workflow calls {name}, "
            f"which a replay would not repeat; use {instead} instead"
        )


def _forbidden_c(function: Callable[..., Any]) -> tuple[str, str] | None:
    try:
        found = _IN_C.get(function)
    except TypeError:  # a method of an object that cannot be hashed
        return None
    if found is not None:
        return found
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    if owner is _SHARED_RANDOM:
        return f"random.{name}", _RANDOM
    if isinstance(owner, type):
        for (cls, method), answer in _OF_CLASSES.items():
            if name == method and issubclass(owner, cls):
                return answer
    return None


def _forbidden_python(frame: FrameType) -> tuple[str, str] | None:
    code = frame.f_code
    if code.co_filename == _RANDOM_FILE and frame.f_locals.get("self") is _SHARED_RANDOM:
        return f"random.{code.co_name}", _RANDOM
    return _IN_PYTHON.get(code)


_LIBRARY = os.path.dirname(os.__file__)  # noqa: PTH120 - compared as text, on each call
_OURS = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120


def _is_users(frame: FrameType) -> bool:
    """Whether the code is the program's own: not Python's library, and not durable."""
    file = frame.f_code.co_filename
    if file.startswith("<frozen"):
        return False
    in_packages = "site-packages" in file
    return not file.startswith(_OURS) and (in_packages or not file.startswith(_LIBRARY))
