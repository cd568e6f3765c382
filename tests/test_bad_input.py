"""What is of no use is refused: one clear error of the tree, nothing written, nothing lost."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import (
    Client,
    DurableError,
    Engine,
    EngineClosed,
    InvalidArgument,
    NoEngine,
    NotAllowedHere,
    NotInWorkflow,
    Retry,
    SerializationError,
    WorkflowConflict,
    WorkflowNotFound,
    run_step,
    step,
    transaction,
    workflow,
)
from tests.support import PATIENCE

HUGE = 10**400  # an int that is no float
SURROGATE = "a\ud800b"  # a text that is no UTF-8
SPANS = {
    "negative": -1,
    "negative timedelta": timedelta(seconds=-1),
    "nan": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "a text": "5",
    "a bool": True,
    "a list": [5],
    "a moment": datetime.now(UTC),
}


def case(name: str, *values: Any) -> Any:
    return pytest.param(*values, id=name)


def cases(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(value, id=name) for name, value in table.items()]


@step
def plus_one(n: int) -> int:
    return n + 1


@workflow
def adds(n: int) -> int:
    return plus_one(n)


@workflow
def receives() -> Any:
    return durable.recv(timeout=60)


@transaction
def counts(cursor: sqlite3.Cursor) -> int:
    return int(cursor.execute("SELECT count(*) FROM durable_workflow").fetchone()[0])


_body: Callable[[], Any] = lambda: None  # noqa: E731 - replaced by each test


@workflow
def runs_the_body() -> Any:
    return _body()


@step
def step_that_runs_the_body() -> Any:
    return _body()


@workflow
def runs_the_body_in_a_step() -> Any:
    return step_that_runs_the_body()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """In memory where the system has such a folder: hundreds of files, and none must be flushed."""
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=base) as folder:
        yield f"{folder}/test.db"


@pytest.fixture
def done(engine: Engine) -> durable.Handle[int]:
    """A workflow that has ended."""
    handle = engine.start(adds, 1)
    handle.result(PATIENCE)
    return handle


def rows(path: str) -> dict[str, int]:
    """How many rows each of durable's tables has."""
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'durable_%'"
        ).fetchall()
        return {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for (name,) in names
        }


def refused(call: Callable[[], Any], kind: type[BaseException]) -> BaseException:
    """The error of the call, which is of that class, and says something."""
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value)
    return caught.value


# ---------------------------------------------------------------------- declaring


async def coroutine() -> int:
    return 1


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> Any:
    yield 1


class Callable_:
    def __call__(self) -> int:
        return 1


NO_PLAIN_FUNCTIONS = {
    "a generator function": generator,
    "an async generator function": async_generator,
    "a number": 5,
    "nothing": None,
    "a class": Callable_,
    "an object": Callable_(),
    "a partial": functools.partial(pow, 2),
}


@pytest.mark.parametrize("decorator", [workflow, step, transaction], ids=lambda d: d.__name__)
@pytest.mark.parametrize("fn", cases(NO_PLAIN_FUNCTIONS))
def test_only_plain_functions_are_decorated(decorator: Any, fn: Any) -> None:
    """Anything else is refused where it is declared, by an error that names it."""
    error = refused(lambda: decorator(name="tests:refused")(fn), InvalidArgument)
    assert getattr(fn, "__name__", repr(fn)) in str(error)


def test_an_async_transaction_is_refused() -> None:
    """It would wait while nothing else can be written; the error says so."""
    error = refused(lambda: transaction(coroutine), InvalidArgument)
    assert "must not wait" in str(error)


@pytest.mark.parametrize(
    "fn", cases({k: v for k, v in NO_PLAIN_FUNCTIONS.items() if not callable(v) or "async" in k})
)
def test_run_step_takes_plain_functions(fn: Any) -> None:
    """run_step refuses what it cannot call, or what would return before it is done."""
    refused(lambda: run_step(fn), InvalidArgument)


@pytest.mark.parametrize("span", cases(SPANS))
def test_a_declared_timeout_is_a_span(span: Any) -> None:
    """For workflows and steps."""
    refused(lambda: workflow(timeout=span)(lambda: None), InvalidArgument)
    refused(lambda: step(timeout=span)(lambda: None), InvalidArgument)


@pytest.mark.parametrize("decorator", [workflow, step, transaction], ids=lambda d: d.__name__)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param(5, id="a number"),
        pytest.param(b"x", id="bytes"),
        pytest.param(SURROGATE, id="surrogate"),
    ],
)
def test_a_name_is_a_text(decorator: Any, name: Any) -> None:
    """A name that the file cannot keep is refused where it is declared."""
    refused(lambda: decorator(name=name)(lambda: None), InvalidArgument)


@pytest.mark.parametrize("count", cases({"negative": -1, "a text": "5", "a float": 1.5}))
def test_max_recoveries_is_a_count(count: Any) -> None:
    """From 0 on."""
    refused(lambda: workflow(max_recoveries=count)(lambda: None), InvalidArgument)


@pytest.mark.parametrize(
    "aliases",
    [
        pytest.param([""], id="an empty one"),
        pytest.param([5], id="a number in it"),
        pytest.param(5, id="a number"),
        pytest.param("old-name", id="a text"),
    ],
)
def test_aliases_are_names(aliases: Any) -> None:
    """A list of texts."""
    refused(lambda: workflow(name="tests:aliased", aliases=aliases)(lambda: None), InvalidArgument)


@pytest.mark.parametrize("retry", cases({"a number": 3, "a text": "3", "a class": Retry}))
def test_retry_is_a_policy(retry: Any) -> None:
    """A Retry, not a number of attempts."""
    refused(lambda: step(retry=retry)(lambda: None), InvalidArgument)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"attempts": 0}, id="no attempt"),
        pytest.param({"attempts": -1}, id="less than none"),
        pytest.param({"attempts": 1.5}, id="half an attempt"),
        pytest.param({"attempts": "3"}, id="attempts as a text"),
        pytest.param({"attempts": True}, id="attempts as a bool"),
        pytest.param({"delay": -1}, id="a negative delay"),
        pytest.param({"delay": math.nan}, id="a delay of nan"),
        pytest.param({"delay": "1"}, id="a delay as a text"),
        pytest.param({"delay": HUGE}, id="a huge delay"),
        pytest.param({"max_delay": math.inf}, id="an endless delay"),
        pytest.param({"backoff": -2}, id="a negative backoff"),
        pytest.param({"backoff": "2"}, id="a backoff as a text"),
        pytest.param({"backoff": timedelta(1)}, id="a backoff as a span"),
        pytest.param({"jitter": 2}, id="more than all"),
        pytest.param({"jitter": -0.1}, id="less than nothing"),
        pytest.param({"jitter": math.nan}, id="a jitter of nan"),
        pytest.param({"jitter": "1"}, id="a jitter as a text"),
        pytest.param({"on": 5}, id="on a number"),
        pytest.param({"on": (ValueError, "x")}, id="on a tuple with a text"),
        pytest.param({"on": KeyboardInterrupt}, id="on Ctrl-C"),
        pytest.param({"give_up_on": BaseException}, id="give up on everything"),
        pytest.param({"give_up_on": [ValueError]}, id="give up on a list"),
    ],
)
def test_a_retry_policy_is_checked_when_it_is_made(options: Any) -> None:
    """Not when the step fails for the first time, at night."""
    refused(lambda: Retry(**options), InvalidArgument)


@pytest.mark.parametrize("instance", [object(), type("Keyed", (), {"durable_key": 5})()])
def test_an_instance_has_a_key(instance: object) -> None:
    """register() says what the class lacks."""
    assert "durable_key" in str(refused(lambda: durable.register(instance), InvalidArgument))


# ---------------------------------------------------------------------- opening


@pytest.mark.parametrize("opener", [Engine, Client])
@pytest.mark.parametrize(
    "path",
    [
        pytest.param("", id="empty"),
        pytest.param(None, id="nothing"),
        pytest.param(5, id="a number"),
        pytest.param(b"x.db", id="bytes"),
        pytest.param("a\0b", id="a zero byte"),
        pytest.param(f"/tmp/{SURROGATE}", id="surrogate"),
    ],
)
def test_a_path_is_a_text(opener: Any, path: Any) -> None:
    """InvalidArgument, before anything is made."""

    def use() -> None:
        with opener(path):
            pass

    refused(use, InvalidArgument)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"synchronous": "off"}, id="synchronous off"),
        pytest.param({"synchronous": 1}, id="synchronous 1"),
        pytest.param({"synchronous": "FULL"}, id="synchronous in capitals"),
        pytest.param({"recover": "never"}, id="recover never"),
        pytest.param({"recover": False}, id="recover False"),
        pytest.param({"version": 5}, id="version 5"),
        pytest.param({"version": SURROGATE}, id="surrogate"),
        pytest.param({"codec": "json"}, id="codec"),
    ],
)
def test_the_options_of_an_engine_are_checked(path: str, options: Any) -> None:
    """When it is made or opened; no file appears."""

    def use() -> None:
        with Engine(path, **options):
            pass

    refused(use, InvalidArgument)
    assert not Path(path).exists()
    assert not Path(f"{path}.lock").exists()


def test_an_engine_opens_once(engine: Engine) -> None:
    """Opening it a second time is refused, and it stays open."""
    assert "open already" in str(refused(engine.open, InvalidArgument))
    assert engine.run(adds, 1) == 2


@pytest.mark.parametrize("timeout", cases(SPANS))
def test_the_timeout_of_close_is_a_span(engine: Engine, timeout: Any) -> None:
    """Otherwise it is refused, and the engine stays open."""
    refused(lambda: engine.close(timeout=timeout), InvalidArgument)
    assert engine.run(adds, 1) == 2


# ---------------------------------------------------------------------- calls from outside

Use = Callable[[Engine, "durable.Handle[Any]"], Any]

OUTSIDE = [
    # ids
    ("handle of an empty id", lambda e, h: e.handle(""), InvalidArgument),
    ("handle of no text", lambda e, h: e.handle(5), InvalidArgument),
    ("handle of a surrogate", lambda e, h: e.handle(SURROGATE), InvalidArgument),
    ("handle of a new line", lambda e, h: e.handle("a\nb"), InvalidArgument),
    ("an empty id", lambda e, h: adds.options(id=""), InvalidArgument),
    ("an id that is no text", lambda e, h: adds.options(id=17), InvalidArgument),
    ("an id with a zero byte", lambda e, h: adds.options(id="a\0b"), InvalidArgument),
    ("a fork with an empty id", lambda e, h: h.fork(id=""), InvalidArgument),
    ("a fork with its own id", lambda e, h: h.fork(id=h.id), WorkflowConflict),
    # unknown ids
    ("send to nobody", lambda e, h: e.send("nobody", 1), WorkflowNotFound),
    ("result of nobody", lambda e, h: e.handle("nobody").result(), WorkflowNotFound),
    ("info of nobody", lambda e, h: e.handle("nobody").info(), WorkflowNotFound),
    ("event of nobody", lambda e, h: e.event("nobody", "k"), WorkflowNotFound),
    ("events of nobody", lambda e, h: e.events("nobody"), WorkflowNotFound),
    ("cancel nobody", lambda e, h: e.cancel("nobody"), WorkflowNotFound),
    ("resume nobody", lambda e, h: e.resume("nobody"), WorkflowNotFound),
    ("fork nobody", lambda e, h: e.fork("nobody"), WorkflowNotFound),
    ("recover nobody", lambda e, h: e.recover(["nobody"]), WorkflowNotFound),
    ("wait for nobody", lambda e, h: durable.wait([e.handle("nobody")]), WorkflowNotFound),
    # states
    ("resume what succeeded", lambda e, h: h.resume(), WorkflowConflict),
    # not workflows
    ("start a step", lambda e, h: e.start(plus_one, 1), InvalidArgument),
    ("start a function", lambda e, h: e.start(len, "x"), InvalidArgument),
    ("run a name", lambda e, h: e.run("adds", 1), InvalidArgument),
    ("wait for an id", lambda e, h: durable.wait([h.id]), InvalidArgument),
    ("wait for nothing", lambda e, h: durable.wait([]), InvalidArgument),
    # numbers, texts and moments
    ("fork before the first step", lambda e, h: h.fork(step=0), InvalidArgument),
    ("fork at a text", lambda e, h: h.fork(step="1"), InvalidArgument),
    ("fork at True", lambda e, h: h.fork(step=True), InvalidArgument),
    ("a topic that is a number", lambda e, h: h.send(1, 5), InvalidArgument),
    ("a topic of bytes", lambda e, h: h.send(1, b"t"), InvalidArgument),
    ("a key that is a number", lambda e, h: h.send(1, idempotency_key=5), InvalidArgument),
    ("an event that is a number", lambda e, h: h.event(5), InvalidArgument),
    ("an event that is nothing", lambda e, h: h.event(None), InvalidArgument),
    ("a list of none", lambda e, h: e.workflows(limit=0), InvalidArgument),
    ("a list of few", lambda e, h: e.workflows(limit=1.5), InvalidArgument),
    ("an unknown status", lambda e, h: e.workflows(status="OK"), InvalidArgument),
    (
        "a naive moment",
        lambda e, h: e.workflows(created_after=datetime(2024, 1, 1)),
        InvalidArgument,
    ),
    ("no moment", lambda e, h: e.workflows(completed_before=5), InvalidArgument),
    ("an empty tag", lambda e, h: adds.options(tags=[""]), InvalidArgument),
    ("a tag that is a number", lambda e, h: adds.options(tags=[5]), InvalidArgument),
    # values
    ("a message that is an object", lambda e, h: h.send(object()), SerializationError),
    ("a message with a lambda", lambda e, h: h.send({"f": len}), SerializationError),
    ("an argument that is an object", lambda e, h: e.start(adds, object()), SerializationError),
    # arguments
    ("too few arguments", lambda e, h: e.start(adds), TypeError),
    ("too many arguments", lambda e, h: e.start(adds, 1, 2), TypeError),
    ("an unknown argument", lambda e, h: adds.start(1, m=2), TypeError),
    ("an argument twice", lambda e, h: adds(1, n=2), TypeError),
    # outside of workflows
    ("recv", lambda e, h: durable.recv(), NotInWorkflow),
    ("set_event", lambda e, h: durable.set_event("k", 1), NotInWorkflow),
    ("write_stream", lambda e, h: durable.write_stream("s", 1), NotInWorkflow),
    ("close_stream", lambda e, h: durable.close_stream("s"), NotInWorkflow),
    ("sleep", lambda e, h: durable.sleep(0), NotInWorkflow),
    ("sleep_until", lambda e, h: durable.sleep_until(datetime.now(UTC)), NotInWorkflow),
    ("now", lambda e, h: durable.now(), NotInWorkflow),
    ("random", lambda e, h: durable.random(), NotInWorkflow),
    ("uuid4", lambda e, h: durable.uuid4(), NotInWorkflow),
    ("patched", lambda e, h: durable.patched("x"), NotInWorkflow),
    ("current", lambda e, h: durable.current(), NotInWorkflow),
    ("step_key", lambda e, h: durable.step_key(), NotInWorkflow),
]

TEXTS_AND_NUMBERS = [
    ("steps of nobody", lambda e, h: e.handle("nobody").steps(), WorkflowNotFound),
    ("a huge fork", lambda e, h: h.fork(step=2**70), InvalidArgument),
    ("a huge list", lambda e, h: e.workflows(limit=2**70), InvalidArgument),
    ("a list of True", lambda e, h: e.workflows(limit=True), InvalidArgument),
    ("a name that is a number", lambda e, h: e.workflows(name=5), InvalidArgument),
    ("a name that is no text", lambda e, h: e.workflows(name=e), InvalidArgument),
    ("a tag that is no text", lambda e, h: e.workflows(tag=e), InvalidArgument),
    ("a parent that is no text", lambda e, h: e.workflows(parent=e), InvalidArgument),
    ("after what is no text", lambda e, h: e.workflows(after=e), InvalidArgument),
    ("after nobody", lambda e, h: e.workflows(after="nobody"), WorkflowNotFound),
    ("a status that is a number", lambda e, h: e.workflows(status=5), InvalidArgument),
    ("a surrogate topic", lambda e, h: h.send(1, SURROGATE), InvalidArgument),
    ("a surrogate key", lambda e, h: h.send(1, idempotency_key=SURROGATE), InvalidArgument),
    ("a surrogate event", lambda e, h: h.event(SURROGATE, timeout=0), InvalidArgument),
    ("a surrogate name", lambda e, h: e.workflows(name=SURROGATE), InvalidArgument),
    ("tags that are a number", lambda e, h: adds.options(tags=5), InvalidArgument),
    ("wait for a number", lambda e, h: durable.wait(5), InvalidArgument),
    ("gather a number", lambda e, h: durable.gather(5), InvalidArgument),
    ("recover a number", lambda e, h: e.recover(5), InvalidArgument),
    ("recover a text", lambda e, h: e.recover("w1"), InvalidArgument),
    ("recover numbers", lambda e, h: e.recover([5]), InvalidArgument),
    ("a stream that is a number", lambda e, h: next(h.stream(5)), InvalidArgument),
    ("a surrogate stream", lambda e, h: next(h.stream(SURROGATE)), InvalidArgument),
    ("a stream from before its start", lambda e, h: next(h.stream("s", start=-1)), InvalidArgument),
    ("a stream from a text", lambda e, h: next(h.stream("s", start="1")), InvalidArgument),
    ("a stream from far away", lambda e, h: next(h.stream("s", start=2**70)), InvalidArgument),
    ("a stream of nobody", lambda e, h: next(e.read_stream("nobody", "s")), WorkflowNotFound),
]


@pytest.mark.parametrize(
    ("use", "kind"),
    [pytest.param(use, kind, id=name) for name, use, kind in OUTSIDE + TEXTS_AND_NUMBERS],
)
def test_a_bad_call_is_refused_and_writes_nothing(
    engine: Engine, done: durable.Handle[int], path: str, use: Use, kind: type[Exception]
) -> None:
    """The class of the error is the one that fits; the file and the engine are as before."""
    before = rows(path)

    refused(lambda: use(engine, done), kind)
    assert rows(path) == before
    assert engine.run(adds, 1) == 2


@pytest.mark.parametrize("span", [*cases(SPANS), pytest.param(HUGE, id="a huge number")])
def test_a_bad_span_is_refused_from_outside(
    engine: Engine, done: durable.Handle[int], path: str, span: Any
) -> None:
    """The timeouts of results, events and runs."""
    before = rows(path)

    refused(lambda: done.result(timeout=span), InvalidArgument)
    refused(lambda: done.event("k", timeout=span), InvalidArgument)
    refused(lambda: engine.event(done.id, "k", timeout=span), InvalidArgument)
    refused(lambda: durable.get_event(done.id, "k", timeout=span), InvalidArgument)
    refused(lambda: adds.options(timeout=span), InvalidArgument)
    assert rows(path) == before


@pytest.mark.parametrize("use", [use for _, use, _ in OUTSIDE], ids=[name for name, *_ in OUTSIDE])
def test_a_closed_engine_answers_with_an_error_of_the_tree(path: str, use: Use) -> None:
    """Also where there would be another thing to say."""
    with Engine(path) as engine:
        handle = engine.start(adds, 1)

    refused(lambda: use(engine, handle), (DurableError, TypeError))


UNSERIALISABLE = [
    (object(), "args[0]"),
    ([1, {"deep": [object()]}], "args[0][1].deep[0]"),
    ({"a": lambda: 1}, "args[0].a"),
    (threading.Lock(), "args[0]"),
    ((i for i in ()), "args[0]"),
    (sqlite3, "args[0]"),
]


@pytest.mark.parametrize(("value", "place"), UNSERIALISABLE, ids=[p for _, p in UNSERIALISABLE])
def test_an_argument_that_cannot_be_recorded_is_named(
    engine: Engine, path: str, value: Any, place: str
) -> None:
    """The error says which argument, where in it, and of which workflow; there is no run."""
    before = rows(path)

    error = refused(lambda: engine.start(adds, value), SerializationError)
    assert error.path == place
    assert adds.name in str(error)
    refused(lambda: engine.run(adds, n=value), SerializationError)
    assert rows(path) == before


def test_a_circle_is_no_value(engine: Engine) -> None:
    """A list that holds itself is refused, and does not run in circles."""
    circle: list[Any] = []
    circle.append(circle)

    assert "contains itself" in str(refused(lambda: engine.start(adds, circle), SerializationError))


# ---------------------------------------------------------------------- calls from a workflow


def in_a_workflow(engine: Engine, body: Callable[[], Any], wf: Any = runs_the_body) -> Any:
    global _body
    _body = body
    return engine.start(wf).result(PATIENCE)


def survives(engine: Engine, call: Callable[[], Any], kind: type[BaseException]) -> None:
    """The call is refused in a workflow, which goes on, and has the same outcome on a replay."""
    messages = []

    def body() -> int:
        with pytest.raises(kind) as caught:
            call()
        messages.append(str(caught.value))
        return plus_one(1)

    assert in_a_workflow(engine, body) == 2
    assert in_a_workflow(engine, body, runs_the_body) == 2
    assert all(messages)


INSIDE = [
    ("an empty id", lambda: adds.options(id="").start(1), InvalidArgument),
    ("send to nobody", lambda: durable.send("nobody", 1), WorkflowNotFound),
    ("send to no text", lambda: durable.send(5, 1), DurableError),
    ("send an object", lambda: durable.send(me(), object()), SerializationError),
    ("send to a topic of bytes", lambda: durable.send(me(), 1, b"t"), InvalidArgument),
    ("recv of a number", lambda: durable.recv(5), InvalidArgument),
    ("set_event of a number", lambda: durable.set_event(5, 1), InvalidArgument),
    ("set_event of an object", lambda: durable.set_event("k", object()), SerializationError),
    ("get_event of nobody", lambda: durable.get_event("nobody", "k"), WorkflowNotFound),
    ("get_event of a number", lambda: durable.get_event(me(), 5), InvalidArgument),
    ("sleep until a naive moment", lambda: durable.sleep_until(datetime.now()), InvalidArgument),
    ("sleep until a number", lambda: durable.sleep_until(5), InvalidArgument),
    ("a patch without a name", lambda: durable.patched(""), InvalidArgument),
    ("a patch that is a number", lambda: durable.patched(5), InvalidArgument),
    ("wait for nothing", lambda: durable.wait([]), InvalidArgument),
    ("wait for a step", lambda: durable.wait([plus_one]), InvalidArgument),
    ("an argument that is an object", lambda: adds(object()), SerializationError),
    ("a child with too few arguments", lambda: adds(), TypeError),
    ("a step with too few arguments", lambda: plus_one(), TypeError),
    ("a step of the wrong type", lambda: plus_one("x"), TypeError),
    ("a step that returns an object", lambda: run_step(object), SerializationError),
    ("step_key in the body", lambda: durable.step_key(), NotInWorkflow),
    ("cancel nobody", lambda: handle("nobody").cancel(), WorkflowNotFound),
    ("resume oneself", lambda: handle(me()).resume(), WorkflowConflict),
    ("fork nobody", lambda: handle("nobody").fork(), WorkflowNotFound),
    ("the result of nobody", lambda: handle("nobody").result(), WorkflowNotFound),
]

SURROGATES = [
    ("send to a surrogate", lambda: durable.send(me(), 1, SURROGATE), InvalidArgument),
    ("recv of a surrogate", lambda: durable.recv(SURROGATE, timeout=0), InvalidArgument),
    ("set_event of a surrogate", lambda: durable.set_event(SURROGATE, 1), InvalidArgument),
    ("a patch of a surrogate", lambda: durable.patched(SURROGATE), InvalidArgument),
    ("a stream of a surrogate", lambda: durable.write_stream(SURROGATE, 1), InvalidArgument),
    ("a stream of a number", lambda: durable.write_stream(5, 1), InvalidArgument),
    ("a stream of objects", lambda: durable.write_stream("s", object()), SerializationError),
    ("to close a surrogate", lambda: durable.close_stream(SURROGATE), InvalidArgument),
    ("to close a number", lambda: durable.close_stream(5), InvalidArgument),
    ("map of no function", lambda: durable.map(5, ["x"]), InvalidArgument),
    ("map with no choice", lambda: durable.map(plus_one, [1], errors="drop"), InvalidArgument),
    ("map with no workers", lambda: durable.map(plus_one, [1], workers=0), InvalidArgument),
    ("map with half a worker", lambda: durable.map(plus_one, [1], workers=0.5), InvalidArgument),
    ("submit with too few arguments", lambda: plus_one.submit().result(), TypeError),
    ("gather of a number", lambda: durable.gather(5), InvalidArgument),
]


def me() -> str:
    return durable.current().workflow_id


def handle(workflow_id: str) -> durable.Handle[Any]:
    from durable.runtime.context import current_host

    return durable.Handle(current_host("a test"), workflow_id)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        *[pytest.param(call, kind, id=name) for name, call, kind in INSIDE + SURROGATES],
        pytest.param(
            lambda: durable.map(plus_one, 5),
            InvalidArgument,
            id="map over no list",
        ),
    ],
)
def test_a_bad_call_in_a_workflow_can_be_caught(
    engine: Engine, call: Callable[[], Any], kind: type[Exception]
) -> None:
    """It raises where it is made; the workflow that catches it goes on."""
    survives(engine, call, kind)


@pytest.mark.parametrize("span", [*cases(SPANS), pytest.param(HUGE, id="a huge number")])
def test_a_bad_span_is_refused_in_a_workflow(engine: Engine, span: Any) -> None:
    """Those of sleep, recv and get_event, and the timeout of a child."""
    survives(engine, lambda: durable.sleep(span), InvalidArgument)
    survives(engine, lambda: durable.recv(timeout=span), InvalidArgument)
    survives(engine, lambda: durable.get_event(me(), "k", timeout=span), InvalidArgument)
    survives(engine, lambda: adds.options(timeout=span).start(1), InvalidArgument)


def test_a_bad_call_that_is_not_caught_ends_the_workflow_with_it(engine: Engine) -> None:
    """The error is the workflow's outcome, and comes back as itself."""
    with pytest.raises(InvalidArgument, match="time zone"):
        in_a_workflow(engine, lambda: durable.sleep_until(datetime(2024, 1, 1)))
    with pytest.raises(WorkflowNotFound) as caught:
        in_a_workflow(engine, lambda: durable.send("nobody", 1))
    assert caught.value.workflow_id == "nobody"


def test_a_result_that_cannot_be_recorded_is_an_error_of_the_workflow(engine: Engine) -> None:
    """SerializationError names the place and the workflow; it is recorded, not tried for ever."""
    with pytest.raises(SerializationError) as caught:
        in_a_workflow(engine, lambda: {"a": [object()]})
    assert caught.value.path == "$.a[0]"
    assert runs_the_body.name in str(caught.value)
    assert [run.status for run in engine.workflows()] == ["ERROR"]


# ---------------------------------------------------------------------- moments far away


FAR = {
    "a million years": timedelta(days=365_000_000),
    "the longest timedelta": timedelta.max,
    "1e15 seconds": 1e15,
    "1e300 seconds": 1e300,
}


@pytest.mark.parametrize("span", cases(FAR))
def test_a_moment_beyond_the_calendar_breaks_no_list(engine: Engine, span: Any) -> None:
    """One run that sleeps past the year 9999, and the list of all runs still works."""
    global _body
    _body = lambda: (durable.set_event("asleep", True), durable.sleep(span))  # noqa: E731
    handle = engine.start(runs_the_body)
    assert handle.event("asleep", timeout=PATIENCE)
    tick, deadline = threading.Event(), threading.Timer(PATIENCE, lambda: None)
    while not any(each.name == "durable.sleep" for each in handle.steps()):
        tick.wait(0.01)
    deadline.cancel()

    assert handle.info().id == handle.id
    assert [run.id for run in engine.workflows()] == [handle.id]


@pytest.mark.parametrize("span", cases(FAR))
def test_a_deadline_beyond_the_calendar_breaks_no_list(engine: Engine, span: Any) -> None:
    """One run with a timeout past the year 9999."""
    handle = adds.options(timeout=span).start(1)
    assert handle.result(PATIENCE) == 2

    assert handle.info().id == handle.id
    assert [run.id for run in engine.workflows()] == [handle.id]


def test_a_sleep_until_the_end_of_the_calendar_can_be_listed(engine: Engine) -> None:
    """The last moment that a datetime has."""
    global _body
    last = datetime.max.replace(tzinfo=UTC) - timedelta(days=1)
    _body = lambda: (durable.set_event("asleep", True), durable.sleep_until(last))  # noqa: E731
    handle = engine.start(runs_the_body)
    assert handle.event("asleep", timeout=PATIENCE)

    assert [run.id for run in engine.workflows()] == [handle.id]


# ---------------------------------------------------------------------- steps and threads


IN_A_STEP = {
    "recv": lambda: durable.recv(timeout=1),
    "sleep": lambda: durable.sleep(0),
    "sleep_until": lambda: durable.sleep_until(datetime.now(UTC)),
    "now": durable.now,
    "random": durable.random,
    "uuid4": durable.uuid4,
    "patched": lambda: durable.patched("x"),
    "a workflow": lambda: adds(1),
    "a workflow in the background": lambda: adds.start(1),
}


@pytest.mark.parametrize("call", cases(IN_A_STEP))
def test_what_waits_or_starts_is_not_allowed_in_a_step(
    engine: Engine, call: Callable[[], Any]
) -> None:
    """NotAllowedHere names the call and the step; the error is the step's, and can be caught."""
    with pytest.raises(NotAllowedHere) as caught:
        in_a_workflow(engine, call, runs_the_body_in_a_step)
    assert "step_that_runs_the_body" in str(caught.value)


def in_a_thread(call: Callable[[], Any]) -> Any:
    """What the call returns on a thread that the calling code makes, or raise what it raises."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="made by the user")
    thread.start()
    thread.join(PATIENCE)
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def in_a_pool(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(PATIENCE)


def in_an_event_loop(call: Callable[[], Any]) -> Any:
    async def run() -> Any:
        return await asyncio.to_thread(call)

    return asyncio.run(run())


ON_A_THREAD = {
    "a step": lambda: plus_one(1),
    "run_step": lambda: run_step(len, "x"),
    "a transaction": lambda: counts(),
    "recv": lambda: durable.recv(timeout=1),
    "sleep": lambda: durable.sleep(0),
    "set_event": lambda: durable.set_event("k", 1),
    "send": lambda: durable.send("nobody", 1),
    "a workflow": lambda: adds(1),
}


@pytest.mark.parametrize("call", cases(ON_A_THREAD))
@pytest.mark.parametrize(
    "run",
    [
        in_a_thread,
        in_a_pool,
        in_an_event_loop,
    ],
)
def test_a_durable_call_on_a_thread_of_the_user_is_refused(
    engine: Engine, path: str, run: Callable[..., Any], call: Callable[[], Any]
) -> None:
    """It could not be recorded in a fixed order: NotAllowedHere, before it does anything."""

    def body() -> int:
        with pytest.raises(NotAllowedHere) as caught:
            run(call)
        assert "thread" in str(caught.value)
        return plus_one(1)

    assert in_a_workflow(engine, body) == 2
    assert rows(path)["durable_step"] == 1
    assert rows(path)["durable_message"] == 0


def test_a_thread_that_a_step_made_may_call_steps_plainly(engine: Engine) -> None:
    """In a step, all is one record: what it calls there, on whatever thread, is a plain call."""
    assert in_a_workflow(engine, lambda: in_a_thread(lambda: plus_one(1)), runs_the_body_in_a_step)


def test_a_thread_that_outlives_its_workflow_calls_steps_plainly(engine: Engine) -> None:
    """Once the run is over there is nothing to be recorded."""
    go, results = threading.Event(), []
    threads = []

    def body() -> None:
        def later() -> None:
            go.wait(PATIENCE)
            results.append(plus_one(1))

        threads.append(threading.Thread(target=later, name="outlives"))
        threads[0].start()

    in_a_workflow(engine, body)
    go.set()
    threads[0].join(PATIENCE)
    assert results == [2]


# ---------------------------------------------------------------------- without an engine


WITHOUT = {
    "a workflow": lambda: adds(1),
    "a workflow in the background": lambda: adds.start(1),
    "send": lambda: durable.send("w", 1),
    "get_event": lambda: durable.get_event("w", "k"),
    "a transaction": lambda: counts(),
}


@pytest.mark.parametrize("call", cases(WITHOUT))
def test_without_an_engine_there_is_a_clear_error(call: Callable[[], Any]) -> None:
    """NoEngine says what to do."""
    assert "with durable.Engine" in str(refused(call, NoEngine))


def test_a_step_needs_no_engine() -> None:
    """Outside a workflow it is a plain call."""
    assert plus_one(1) == 2
    assert run_step(len, "abc") == 3


def test_an_engine_that_was_never_opened_says_so(path: str) -> None:
    """EngineClosed for all that needs the file; closing it is harmless."""
    engine = Engine(path)
    for use in (
        lambda: engine.start(adds, 1),
        lambda: engine.run(adds, 1),
        engine.workflows,
        engine.recover,
        engine.serve,
        lambda: engine.handle("w"),
        lambda: engine.send("w", 1),
    ):
        assert "not open" in str(refused(use, EngineClosed))
    engine.close()
    assert not Path(path).exists()
