"""`strict`: what a replay would not repeat fails at once, with the call, the line, and the cure."""

from __future__ import annotations

import datetime as dt
import gettext
import importlib
import inspect
import io
import linecache
import logging
import multiprocessing
import os
import random
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import types
import urllib.request
import uuid
import zoneinfo
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import Status, step, transaction, workflow
from durable.testing import NotDeterministic, TestEngine, strict
from durable.testing import engine as new_engine

Body = Callable[[], Any]


@pytest.fixture(autouse=True)
def engine() -> Iterator[TestEngine]:
    with new_engine() as engine:
        yield engine


def run(body: Body, *, inline: bool = False) -> Any:
    """What a workflow of that body returns, in the background or here."""

    @workflow
    def wf() -> Any:
        return body()

    return wf() if inline else wf.start().result()


# ---------------------------------------------------------------------- what is caught

CLOCK, RANDOM, STEP = "durable.now()", "durable.random()", "a step"

FORBIDDEN: list[tuple[Body, str, str]] = [
    (lambda: time.time(), "time.time", CLOCK),
    (lambda: time.time_ns(), "time.time_ns", CLOCK),
    (lambda: time.monotonic(), "time.monotonic", CLOCK),
    (lambda: time.perf_counter(), "time.perf_counter", CLOCK),
    (lambda: time.localtime(), "time.localtime", CLOCK),
    (lambda: dt.datetime.now(), "datetime.now", CLOCK),
    (lambda: dt.datetime.now(dt.UTC), "datetime.now", CLOCK),
    (lambda: dt.datetime.today(), "datetime.today", CLOCK),
    (lambda: dt.date.today(), "date.today", CLOCK),
    (lambda: time.sleep(60), "time.sleep", "durable.sleep()"),
    (lambda: random.random(), "random.random", RANDOM),
    (lambda: random.randint(1, 6), "random.randint", RANDOM),
    (lambda: random.choice("abc"), "random.choice", RANDOM),
    (lambda: random.seed(1), "random.seed", RANDOM),
    (lambda: random.Random(), "random.Random() without a seed", RANDOM),
    (lambda: random.SystemRandom().random(), "random.SystemRandom", RANDOM),
    (lambda: secrets.choice("abc"), "random.SystemRandom", RANDOM),
    (lambda: secrets.token_hex(), "secrets.token_hex", RANDOM),
    (lambda: os.urandom(8), "os.urandom", RANDOM),
    (lambda: uuid.uuid4(), "uuid.uuid4", "durable.uuid4()"),
    (lambda: uuid.uuid1(), "uuid.uuid1", "durable.uuid4()"),
    (lambda: open(os.devnull), "open", STEP),  # noqa: PTH123, SIM115
    (lambda: io.open(os.devnull), "open", STEP),  # noqa: SIM115, UP020
    (lambda: Path(os.devnull).read_text(), "open", STEP),
    (lambda: os.open(os.devnull, os.O_RDONLY), "os.open", STEP),
    (lambda: shutil.copy(os.devnull, os.devnull + "2"), "open", STEP),
    (lambda: tempfile.TemporaryFile(), "open", STEP),  # noqa: SIM115
    (lambda: sqlite3.connect(":memory:"), "sqlite3.connect", STEP),
    (lambda: subprocess.run(["true"]), "subprocess", STEP),  # noqa: PLW1510
    (lambda: subprocess.Popen(["true"]), "subprocess", STEP),
    (lambda: os.system("true"), "os.system", STEP),
    (lambda: os.popen("true"), "subprocess", STEP),
    (lambda: os.fork(), "os.fork", STEP),
    (
        lambda: multiprocessing.get_context("spawn").Process(target=print).start(),
        "multiprocessing",
        STEP,
    ),
    (lambda: socket.socket(), "socket.socket", STEP),
    (lambda: socket.create_connection(("127.0.0.1", 9)), "socket.socket", STEP),
    (lambda: urllib.request.urlopen("http://127.0.0.1:9/"), "socket.socket", STEP),
    (lambda: input(), "input", "a step, or durable.recv()"),
]


@pytest.mark.parametrize(("body", "call", "instead"), FORBIDDEN)
def test_the_call_the_line_and_the_cure(body: Body, call: str, instead: str) -> None:
    """The message says all three, and the workflow has failed with it."""
    line = inspect.getsourcelines(body)[1]
    with strict(), pytest.raises(NotDeterministic) as caught:
        run(body)
    where, _, what = str(caught.value).partition(": ")
    assert where.startswith(f"{__file__}:")
    assert abs(int(where.rpartition(":")[2]) - line) <= 1
    assert what == (
        f"the body of a workflow calls {call}, which a replay would not repeat; "
        f"use {instead} instead"
    )


def test_the_line_is_the_one_that_calls() -> None:
    """Deep in a helper it is the helper's line, not the workflow's."""

    def helper() -> float:
        return time.time()

    line = inspect.getsourcelines(helper)[1] + 1
    with strict(), pytest.raises(NotDeterministic, match=rf"test_strict.py:{line}: "):
        run(lambda: [helper() for _ in range(3)])


def test_the_call_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails before anything has happened."""
    state = random.getstate()
    with strict(), pytest.raises(NotDeterministic):
        run(lambda: random.random())
    assert random.getstate() == state


@pytest.mark.parametrize("inline", [True, False])
def test_here_and_in_the_background(inline: bool) -> None:
    """The body is watched on whatever thread it runs."""
    with strict(), pytest.raises(NotDeterministic):
        run(lambda: time.time(), inline=inline)


def test_it_is_an_outcome(engine: TestEngine) -> None:
    """The run has ended in the error; another process sees it."""

    @workflow
    def wf() -> None:
        time.time()

    with strict():
        handle = wf.start()
        engine.clock.settle()
    info = handle.info()
    assert info.status is Status.ERROR
    assert isinstance(info.error, NotDeterministic)


def test_a_body_that_catches_it_fails_all_the_same() -> None:
    """`except Exception` hides nothing: the finding is raised when the body ends."""

    def hides() -> str:
        try:
            time.time()
        except Exception:
            return "never mind"
        return "not reached"

    def gives_another() -> None:
        try:
            time.time()
        except AssertionError as error:
            raise ValueError("another") from error

    for body in (hides, gives_another):
        with strict(), pytest.raises(NotDeterministic, match=r"time\.time"):
            run(body)


def test_a_child_is_watched_too() -> None:
    """In the background and called here; its parent goes on being watched after it."""

    @workflow
    def child() -> str:
        return str(durable.now())

    @workflow
    def bad_child() -> float:
        return time.time()

    with strict():
        with pytest.raises(NotDeterministic):
            run(lambda: bad_child())
        with pytest.raises(NotDeterministic):
            run(lambda: bad_child.start().result())
        with pytest.raises(NotDeterministic):
            run(lambda: (child(), time.time()))


def test_after_a_step_the_body_is_watched_again() -> None:
    """A step is a pause, not an end."""

    def body() -> float:
        durable.run_step(time.time)
        return time.time()

    with strict(), pytest.raises(NotDeterministic):
        run(body)


# ---------------------------------------------------------------------- what is allowed


@step
def does_it_all() -> int:
    time.sleep(0)
    with open(os.devnull), socket.socket():  # noqa: PTH123
        return len([time.time(), random.random(), uuid.uuid4()])


@transaction
def does_it_in_a_transaction(cursor: sqlite3.Cursor) -> int:
    return len([time.time(), random.random(), uuid.uuid4()])


@step
def takes(value: float) -> float:
    return value + time.time() * 0


def test_steps_may_do_it_all() -> None:
    """Steps, transactions, steps on the spot, and those beside the workflow."""

    def body() -> list[Any]:
        future = takes.submit(1)
        return [
            does_it_all(),
            does_it_in_a_transaction(),
            durable.run_step(lambda: len([time.time()])),
            future.result(),
            durable.map(takes, [2, 3]),
        ]

    with strict():
        assert run(body) == [3, 3, 1, 1, [2, 3]]
        assert run(body, inline=True) == [3, 3, 1, 1, [2, 3]]


def durable_names() -> Any:
    durable.sleep(1)
    durable.sleep_until(durable.now())
    durable.set_event("key", str(durable.uuid4()))
    durable.logger.warning("said")
    durable.recv("topic", timeout=1, default=None)
    durable.write_stream("log", 1)
    return durable.random().choice([durable.random().random(), durable.random().randint(1, 6)])


def seeded() -> Any:
    mine = random.Random(1)
    return [mine.random(), mine.randint(1, 6), mine.sample(range(9), 3), random.Random("x")]


def moments() -> Any:
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return [moment.isoformat(), moment.timestamp(), dt.datetime.fromtimestamp(0, dt.UTC)]


def logs() -> Any:
    logging.getLogger("test_strict").error("with %s", "time and thread", exc_info=True)


def formats_a_traceback() -> Any:
    linecache.clearcache()
    try:
        return {}["nothing"]
    except KeyError:
        return [traceback.format_exc(), traceback.format_stack()]


def imports() -> Any:
    sys.modules.pop("colorsys", None)
    return importlib.import_module("colorsys")


def zones() -> Any:
    zoneinfo.ZoneInfo.clear_cache()
    return [gettext.find("nothing"), zoneinfo.available_timezones()]


def computes() -> Any:
    uuid.UUID(int=5), uuid.uuid5(uuid.NAMESPACE_DNS, "example"), threading.Event().set()
    io.StringIO("text").read()
    return sorted(textwrap.wrap("a b c", 1), key=hash)


@pytest.mark.parametrize(
    "body",
    [durable_names, seeded, moments, logs, formats_a_traceback, imports, zones, computes],
)
def test_what_a_body_may_do(body: Body) -> None:
    """What durable offers, seeded chance, and what Python's library does for itself."""
    with strict():
        run(lambda: [body(), None][1])


def package(folder: Path, name: str, source: str) -> types.ModuleType:
    """A module that was installed, as pip does it."""
    place = folder / "site-packages" / name
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(source)
    spec = importlib.util.spec_from_file_location(name, place / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LIBRARY = """
import time, socket, random, subprocess

def cached(): return time.monotonic() and random.random() and open(__file__).close()
def request(): socket.create_connection(("127.0.0.1", 9))
def process(): subprocess.run(["true"])
"""


def test_what_an_installed_package_does_for_itself(tmp_path: Path) -> None:
    """Its own clock, chance and files are its own; a request or a process is the caller's."""
    library = package(tmp_path, "library", LIBRARY)
    with strict():
        run(library.cached)
        for call in (library.request, library.process):
            line = inspect.getsourcelines(run)[1] + 5
            with pytest.raises(NotDeterministic, match=rf"test_strict.py:{line}: .* use a step"):
                run(call)


def test_a_workflow_that_is_installed(tmp_path: Path) -> None:
    """Where the program itself is an installed package, its bodies are watched as any."""
    source = "import time, durable\n@durable.workflow\ndef wf():\n    return time.time()\n"
    installed = package(tmp_path, "installed", source)
    with strict(), pytest.raises(NotDeterministic, match=r"__init__.py:4: .* calls time.time"):
        installed.wf.start().result()


# ---------------------------------------------------------------------- how long, and where


def test_afterwards_it_is_off() -> None:
    """Also after an error; nothing of it stays on any thread."""
    with pytest.raises(KeyError), strict():
        raise KeyError
    assert run(lambda: time.time()) > 0
    assert run(lambda: time.time(), inline=True) > 0
    assert sys.getprofile() is None


def test_a_profiler_is_put_back() -> None:
    """Who profiles the test goes on doing so, after the body, and after a finding in it."""
    seen: list[str] = []

    def profiler(frame: Any, event: str, argument: Any) -> None:
        seen.append(event)

    sys.setprofile(profiler)
    try:
        with strict():
            run(lambda: None, inline=True)
            with pytest.raises(NotDeterministic):
                run(lambda: time.time(), inline=True)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert seen


def test_the_test_itself_is_not_watched() -> None:
    """Only bodies of workflows are."""
    with strict():
        assert time.time() > 0
        assert does_it_all() == 3
        assert run(lambda: 1) == 1


def test_one_engine_alone(engine: TestEngine) -> None:
    """Another engine in the same process is not watched."""

    @workflow
    def wf() -> float:
        return time.time()

    with new_engine() as other, strict(engine):
        assert other.run(wf) > 0
        with pytest.raises(NotDeterministic):
            engine.run(wf)


def test_what_began_before_goes_on_unwatched(engine: TestEngine) -> None:
    """A body is watched from its beginning, or not at all."""

    @workflow
    def wf() -> float:
        durable.recv("go")
        return time.time()

    early = wf.start()
    engine.clock.settle()
    with strict():
        late = wf.start()
        engine.clock.settle()
    early.send(None, "go")
    late.send(None, "go")
    assert early.result() > 0
    with pytest.raises(NotDeterministic):
        late.result()


def test_without_an_engine(engine: TestEngine) -> None:
    """There must be one, open or given."""
    engine.close()
    with pytest.raises(durable.NoEngine, match="strict"), strict():
        pass
