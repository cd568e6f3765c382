"""Fails a workflow whose body does what a replay would do differently."""

from __future__ import annotations

import builtins
import io
import os
import random
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from durable.engine import Engine
from durable.runtime.context import current_host
from durable.testing.places import Owner, line_of, owner_of

# Through whose code a call is still the doing of the body. What libraries ask the clock for
# themselves is theirs; but Python's Path.read_text opens a file for whoever calls it, and a
# request over the network is one, whichever package makes it.
_DIRECT: tuple[Owner, ...] = ()
_THROUGH_PYTHON = (Owner.PYTHON,)
_THROUGH_ALL = (Owner.PYTHON, Owner.PACKAGE)


class _Finding(NamedTuple):
    """A call that no body of a workflow makes, and what to use in its place."""

    name: str
    instead: str
    through: tuple[Owner, ...] = _DIRECT


_CLOCK = "durable.now()"
_RANDOM = "durable.random()"
_STEP = "a step"


def _file(name: str) -> _Finding:
    return _Finding(name, _STEP, _THROUGH_PYTHON)


def _far(name: str) -> _Finding:
    return _Finding(name, _STEP, _THROUGH_ALL)


# Functions written in C are known by themselves, those written in Python by their code.
_IN_C: dict[Any, _Finding] = {
    **{
        getattr(time, name): _Finding(f"time.{name}", _CLOCK)
        for name in (
            *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"),
            *("process_time", "process_time_ns", "localtime", "gmtime", "ctime"),
        )
    },
    time.sleep: _Finding("time.sleep", "durable.sleep()"),
    os.urandom: _Finding("os.urandom", _RANDOM),
    io.open: _file("open"),
    os.open: _file("os.open"),
    sqlite3.connect: _file("sqlite3.connect"),
    builtins.input: _Finding("input", "a step, or durable.recv()"),
    **{
        getattr(os, name): _far(f"os.{name}")
        for name in ("system", "fork", "posix_spawn")
        if hasattr(os, name)
    },
    getattr(subprocess, "_fork_exec", None): _far("multiprocessing"),
}
_OF_CLASSES = {
    (datetime, "now"): _Finding("datetime.now", _CLOCK),
    (datetime, "utcnow"): _Finding("datetime.utcnow", _CLOCK),
    (datetime, "today"): _Finding("datetime.today", _CLOCK),
    (date, "today"): _Finding("date.today", _CLOCK),
}
_IN_PYTHON: dict[CodeType, _Finding] = {
    uuid.uuid1.__code__: _Finding("uuid.uuid1", "durable.uuid4()"),
    uuid.uuid4.__code__: _Finding("uuid.uuid4", "durable.uuid4()"),
    secrets.token_bytes.__code__: _Finding("secrets.token_bytes", _RANDOM),
    secrets.token_hex.__code__: _Finding("secrets.token_hex", _RANDOM),
    secrets.token_urlsafe.__code__: _Finding("secrets.token_urlsafe", _RANDOM),
    secrets.randbelow.__code__: _Finding("secrets.randbelow", _RANDOM),
    subprocess.Popen.__init__.__code__: _far("subprocess"),
    socket.socket.__init__.__code__: _far("socket.socket"),
}
_SHARED_RANDOM: random.Random = random._inst
_RANDOM_FILE = random.__file__
_NEW_RANDOM = random.Random.__init__.__code__

# Parts of Python's library that read files for themselves, whoever calls them.
_READS_FOR_ITSELF = frozenset(
    ("gettext", "importlib", "linecache", "logging", "pdb", "traceback", "warnings", "zoneinfo")
)
_LIBRARY = Path(os.__file__).parent


class NotDeterministic(AssertionError):
    """The body of a workflow did what a replay would not repeat; the text names call and line."""


@contextmanager
def strict(engine: Engine | None = None) -> Iterator[None]:
    """While inside, bodies of workflows on `engine`, or the current one, are watched.

    A body that reads the clock, draws from the shared random numbers, makes a uuid, opens a file, a
    socket or a process, or sleeps for real, outside a step, fails at once in NotDeterministic: it
    names the call, the line and what to use. A body that catches it fails when it ends. What
    libraries do for themselves is not held against the body. Bodies that begin inside are watched
    to their end. Uses ``sys.setprofile`` on the threads of the workflows.
    """
    hooks = current_host("strict()").hooks if engine is None else engine._hooks
    before = hooks.guard, hooks.unguard
    hooks.surround(_watched, _unwatched)
    try:
        yield
    finally:
        hooks.surround(*before)


@contextmanager
def _watched() -> Iterator[None]:
    watch = _Watch()
    with _profile(watch.look):
        try:
            yield
        finally:
            if watch.found is not None:  # also where the body has caught it
                raise watch.found


@contextmanager
def _unwatched() -> Iterator[None]:
    with _profile(None):
        yield


@contextmanager
def _profile(look: Callable[[FrameType, str, Any], None] | None) -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)


class _Watch:
    """Looks at each call that the body of one workflow makes; `found` is the first forbidden."""

    def __init__(self) -> None:
        self.found: NotDeterministic | None = None

    def look(self, frame: FrameType, event: str, argument: Any) -> None:
        """What `sys.setprofile` calls."""
        if event == "c_call":
            finding, caller = _forbidden_c(argument), frame
        elif event == "call" and frame.f_back is not None:
            finding, caller = _forbidden_python(frame), frame.f_back
        else:
            return
        culprit = None if finding is None else _culprit(caller, finding.through)
        if finding is not None and culprit is not None:
            sys.setprofile(None)  # what is raised is raised once
            self.found = NotDeterministic(
                f"{line_of(culprit)}: the body of a workflow calls {finding.name}, "
                f"which a replay would not repeat; use {finding.instead} instead"
            )
            raise self.found


def _forbidden_c(function: Callable[..., Any]) -> _Finding | None:
    try:
        found = _IN_C.get(function)
    except TypeError:  # a method of an object that cannot be hashed
        return None
    if found is not None:
        return found
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    if owner is _SHARED_RANDOM:
        return _Finding(f"random.{name}", _RANDOM)
    if isinstance(owner, type):
        for (cls, method), finding in _OF_CLASSES.items():
            if name == method and issubclass(owner, cls):
                return finding
    return None


def _forbidden_python(frame: FrameType) -> _Finding | None:
    code = frame.f_code
    if code.co_filename != _RANDOM_FILE:
        return _IN_PYTHON.get(code)
    this = frame.f_locals.get("self")
    if this is _SHARED_RANDOM:
        return _Finding(f"random.{code.co_name}", _RANDOM)
    if isinstance(this, random.SystemRandom):
        return _Finding("random.SystemRandom", _RANDOM)
    if code is _NEW_RANDOM and frame.f_locals.get("x") is None:
        return _Finding("random.Random() without a seed", _RANDOM)
    return None


def _culprit(frame: FrameType, through: tuple[Owner, ...]) -> FrameType | None:
    """The frame of the program whose doing a call from `frame` is; None if it is a library's."""
    home = _home(_body(frame).f_code.co_filename)
    at: FrameType | None = frame
    while at is not None:
        file = at.f_code.co_filename
        owner = owner_of(file)
        if owner is Owner.PROGRAM or (owner is Owner.PACKAGE and _home(file) == home):
            return at
        if owner not in through or _reads_for_itself(file):
            return None
        at = at.f_back
    return None


def _body(frame: FrameType) -> FrameType:
    """The outermost frame that the engine called: that of the workflow."""
    while frame.f_back and owner_of(frame.f_back.f_code.co_filename) is not Owner.DURABLE:
        frame = frame.f_back
    return frame


@lru_cache(maxsize=1024)
def _home(file: str) -> str | None:
    """The installed package that the file belongs to; a workflow may be in one as well."""
    parts = Path(file).parts
    for packages in ("site-packages", "dist-packages"):
        if packages in parts:
            return parts[parts.index(packages) + 1]
    return None


@lru_cache(maxsize=1024)
def _reads_for_itself(file: str) -> bool:
    if file.startswith("<frozen "):
        return "import" in file
    path = Path(file)
    return path.is_relative_to(_LIBRARY) and (
        path.relative_to(_LIBRARY).parts[0].removesuffix(".py") in _READS_FOR_ITSELF
    )
