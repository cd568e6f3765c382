"""`durable.aio`: every name, in a body, in a step, outside, and in the wrong place."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import durable
from durable import (
    Client,
    Debouncer,
    Engine,
    Handle,
    Queue,
    aio,
    ops,
    step,
    testing,
    workflow,
)
from durable.errors import (
    EventNotSet,
    InvalidArgument,
    NoEngine,
    NotAllowedHere,
    NotInWorkflow,
    SerializationError,
    WaitTimeout,
    WorkflowConflict,
    WorkflowNotFound,
)
from tests.support import PATIENCE


@step
async def echo(value: Any) -> Any:
    return value


@step
def plain_echo(value: Any) -> Any:
    return value


@workflow
async def other(value: Any = None) -> Any:
    """What the others act on: shows an event, writes a stream, waits for a message."""
    await aio.set_event("shown", 1)
    await aio.write_stream("s", "x")
    await aio.close_stream("s")
    return await aio.recv("end", timeout=3600, default=value)


queue = Queue("tests.aio")
debounced = Debouncer(other, delay=1)


async def read(workflow_id: str) -> list[Any]:
    return [each async for each in aio.read_stream(workflow_id, "s")]


async def send_and_recv() -> Any:
    await aio.send(durable.current().workflow_id, "hello", "to myself")
    return await aio.recv("to myself")


async def in_order() -> list[Any]:
    return [await each async for each in aio.as_completed([echo(1)])]


async def ended(first: bool = False) -> Any:
    return await (await aio.wait([echo("won")], first=first)).done[0]


async def cancel_and_resume() -> str:
    answer = await aio.cancel("other")
    await aio.resume("other")
    return str(answer.status)


NAMES: dict[str, tuple[Callable[[], Awaitable[Any]], Any]] = {
    "as_completed": (in_order, [1]),
    "cancel": (cancel_and_resume, "CANCELLED"),
    "close_stream": (lambda: aio.close_stream("c"), None),
    "debounce": (lambda: aio.debounce(debounced, "key", 1), Handle),
    "enqueue": (lambda: aio.enqueue(queue, other, 1), Handle),
    "fork": (lambda: aio.fork("other", id=f"fork-{durable.current().workflow_id}"), Handle),
    "gather": (lambda: aio.gather(echo(1), echo(2)), [1, 2]),
    "get_event": (lambda: aio.get_event("other", "shown"), 1),
    "map": (lambda: aio.map(echo, [1, 2], workers=1), [1, 2]),
    "now": (lambda: aio.now(), datetime),
    "patched": (lambda: aio.patched("p"), True),
    "read_stream": (lambda: read("other"), ["x"]),
    "recv": (lambda: aio.recv("none", timeout=0, default="nothing"), "nothing"),
    "resume": (cancel_and_resume, "CANCELLED"),
    "run": (lambda: aio.run(other.options(id="run"), 5), 5),
    "run_step": (lambda: aio.run_step(plain_echo, 3), 3),
    "send": (send_and_recv, "hello"),
    "set_event": (lambda: aio.set_event("e", 1), None),
    "sleep": (lambda: aio.sleep(timedelta(seconds=1)), None),
    "sleep_until": (lambda: aio.sleep_until(datetime(2026, 1, 2, tzinfo=UTC)), None),
    "start": (lambda: aio.start(other, 7), Handle),
    "wait": (ended, "won"),
    "write_stream": (lambda: aio.write_stream("w", 1), None),
}
THE_SAME = {"current", "logger", "random", "step_key", "uuid4"}
ONLY_IN_A_BODY = {
    "debounce",
    "enqueue",
    "map",
    "now",
    "patched",
    "recv",
    "run",
    "sleep",
    "sleep_until",
    "start",
}
NOT_OUTSIDE = {"close_stream", "set_event", "write_stream"} | ONLY_IN_A_BODY - {
    "debounce",
    "enqueue",
    "run",
    "start",
}


def test_the_public_names() -> None:
    """`__all__` is what the module has: each name of `ops` that waits or writes, and no other."""
    assert sorted(aio.__all__) == aio.__all__
    assert set(aio.__all__) == NAMES.keys() | THE_SAME
    own = {
        name
        for name, value in vars(aio).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == "durable.aio"
    }
    assert own - {"P", "R", "T"} == set(NAMES)
    for name in THE_SAME:
        assert getattr(aio, name) is getattr(ops, name)
    plain = {name for name in ops.__dict__ if name in durable.__all__ and name.islower()}
    assert plain <= set(aio.__all__)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_parameters_are_those_of_the_plain_name(name: str) -> None:
    """Whoever knows `durable.recv` knows `aio.recv`; those with a workflow take a handle too."""
    plain = getattr(durable, name, None)
    if not callable(plain) or name in ("gather", "wait", "run_step"):
        return
    ours, theirs = (inspect.signature(each).parameters for each in (getattr(aio, name), plain))
    assert [
        each.replace("workflow", "workflow_id") if each == "workflow" else each for each in ours
    ][: len(theirs)] == list(theirs)
    assert [ours[each].default for each in ours][: len(theirs)] == [
        theirs[each].default for each in theirs
    ]


def run(body: Callable[[], Awaitable[Any]]) -> Any:
    """What an async workflow of that body returns, under a virtual clock, beside another one."""

    @workflow
    async def wf() -> Any:
        value = await body()
        return "a handle" if isinstance(value, Handle) else value

    with testing.engine() as engine:
        other.options(id="other").start()
        engine.handle("other").event("shown")
        handle = wf.options(id="w").start()
        try:
            return handle.result()
        finally:
            assert testing.replay(engine.path).replayed


@pytest.mark.parametrize("name", sorted(NAMES))
def test_in_the_body(name: str) -> None:
    """Each name does its work there, is recorded, and replays."""
    body, expected = NAMES[name]
    value = run(body)
    if expected is Handle:
        assert value == "a handle"
    elif isinstance(expected, type):
        assert isinstance(value, expected)
    else:
        assert value == expected


ELSEWHERE: dict[str, Callable[[], Awaitable[Any]]] = {
    **{name: body for name, (body, _) in NAMES.items()},
    "send": lambda: aio.send("other", "hello"),
    "fork": lambda: aio.fork("other", id=f"fork {uuid.uuid4()}"),
    "run": lambda: aio.run(one),
}


@workflow
async def one() -> int:
    return 1


def test_in_an_async_step() -> None:
    """What makes sense in a step works there; what waits or starts workflows is refused."""

    async def in_step(name: str) -> None:
        await ELSEWHERE[name]()

    async def body() -> None:
        for name in sorted(NAMES):
            if name in ONLY_IN_A_BODY:
                with pytest.raises(NotAllowedHere, match="belongs in the workflow's body"):
                    await aio.run_step(in_step, name)
            else:
                await aio.run_step(in_step, name)

    run(body)


def test_outside_workflows(path: str) -> None:
    """What makes sense outside works under `async with Engine`; the rest says where it belongs."""

    async def main() -> None:
        async with Engine(path) as engine:
            handle = await aio.start(other.options(id="other"))
            await aio.get_event(handle, "shown")
            for name in sorted(NAMES):
                if name in NOT_OUTSIDE:
                    with pytest.raises(NotInWorkflow, match=name):
                        await ELSEWHERE[name]()
                else:
                    await ELSEWHERE[name]()
            await engine.aclose(timeout=0)

    asyncio.run(main())


def test_in_the_body_of_a_plain_workflow() -> None:
    """There the plain name is to be used; the error says so."""

    @workflow
    def wf() -> None:
        for name in sorted(NAMES):
            with pytest.raises(NotAllowedHere, match="plain function"):
                asyncio.run(main(name))

    async def main(name: str) -> None:
        await ELSEWHERE[name]()

    with testing.engine():
        other.options(id="other").start()
        wf()


def test_without_an_engine() -> None:
    """NoEngine, which names the call."""

    async def main() -> None:
        for name in sorted(NAMES.keys() - NOT_OUTSIDE - {"gather", "run_step", "wait"}):
            with pytest.raises(NoEngine):
                await ELSEWHERE[name]()
        with pytest.raises(NoEngine, match="wait"):
            await aio.wait([asyncio.get_running_loop().create_future()])

    asyncio.run(main())


# ---------------------------------------------------------------------- names that block

BLOCKING: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a step": (lambda handle: plain_echo(1), r"aio\.run_step"),
    "a workflow": (lambda handle: plain_workflow(), r"aio\.run\(.*aio\.start"),
    "start": (lambda handle: plain_workflow.start(), r"aio\.start"),
    "start of an async one": (lambda handle: other.start(), r"aio\.start"),
    "submit": (lambda handle: plain_echo.submit(1), r"create_task"),
    "submit of an async step": (lambda handle: echo.submit(1), r"create_task"),
    "run_step": (lambda handle: durable.run_step(len, "x"), r"aio\.run_step"),
    "map": (lambda handle: durable.map(echo, [1]), r"aio\.map"),
    "send": (lambda handle: durable.send("other", 1), r"aio\.send"),
    "recv": (lambda handle: durable.recv(), r"aio\.recv"),
    "set_event": (lambda handle: durable.set_event("e", 1), r"aio\.set_event"),
    "get_event": (lambda handle: durable.get_event("other", "e"), r"aio\.get_event"),
    "write_stream": (lambda handle: durable.write_stream("s", 1), r"aio\.write_stream"),
    "close_stream": (lambda handle: durable.close_stream("s"), r"aio\.close_stream"),
    "read_stream": (lambda handle: durable.read_stream("other", "s"), r"async for.*read_stream"),
    "sleep": (lambda handle: durable.sleep(1), r"aio\.sleep"),
    "sleep_until": (lambda handle: durable.sleep_until(datetime.now(UTC)), r"aio\.sleep_until"),
    "now": (lambda handle: durable.now(), r"aio\.now"),
    "patched": (lambda handle: durable.patched("p"), r"aio\.patched"),
    "wait": (lambda handle: durable.wait([handle]), r"aio\.wait"),
    "gather": (lambda handle: durable.gather(handle), r"`await` it"),
    "result": (lambda handle: handle.result(), r"`await` it"),
    "Handle.send": (lambda handle: handle.send(1), r"aio\.send"),
    "Handle.event": (lambda handle: handle.event("e"), r"aio\.get_event"),
    "Handle.stream": (lambda handle: handle.stream("s"), r"async for.*read_stream"),
    "Handle.cancel": (lambda handle: handle.cancel(), r"aio\.cancel"),
    "Handle.resume": (lambda handle: handle.resume(), r"aio\.resume"),
    "Handle.fork": (lambda handle: handle.fork(), r"aio\.fork"),
    "engine.run": (lambda handle: engines[0].run(other), r"aio\.run"),
    "engine.start": (lambda handle: engines[0].start(other), r"aio\.start"),
    "engine.send": (lambda handle: engines[0].send("other", 1), r"aio\.send"),
    "engine.close": (lambda handle: engines[0].close(), r"aclose"),
    "with Engine": (lambda handle: Engine(":memory:").__enter__(), r"async with"),
}
engines: list[Engine] = []


@workflow
def plain_workflow() -> None: ...


@pytest.mark.parametrize("inside", [True, False], ids=["in a workflow", "outside"])
def test_a_blocking_name_on_the_loop(inside: bool, path: str) -> None:
    """It raises at once, and names what is awaited instead."""

    @workflow
    async def wf() -> None:
        for call, instead in BLOCKING.values():
            with pytest.raises(NotAllowedHere, match=f"block the event loop.*{instead}"):
                call(Handle(engines[0]._open_file(), "other"))

    async def main() -> None:
        async with Engine(path) as engine:
            engines[:] = [engine]
            await (wf() if inside else wf.fn())

    asyncio.run(main())


def test_a_client_on_the_loop_blocks_it_too(path: str) -> None:
    """Also the methods of a `Client`; off the loop they are what they were."""

    async def main() -> None:
        async with Engine(path):
            handle = await aio.start(other.options(id="other"))
            client = await asyncio.to_thread(Client, path)
            with pytest.raises(NotAllowedHere, match=r"aio\.send"):
                client.send("other", "x", "end")
            await asyncio.to_thread(client.send, "other", "x", "end")
            assert await handle == "x"
            client.close()

    asyncio.run(main())


def test_looks_do_not_block(engine: Engine) -> None:
    """`info`, `steps`, `events`, `current`, `random` and `uuid4` are for coroutines as well."""

    @workflow
    async def wf() -> str:
        handle = engine.handle(durable.current().workflow_id)
        assert handle.info().status == "PENDING"
        assert handle.steps() == []
        assert handle.events() == {}
        assert durable.random().random() != durable.random().random()
        assert aio.uuid4() != aio.uuid4()
        return handle.info().name

    assert wf.start().result(PATIENCE) == wf.name


# ---------------------------------------------------------------------- errors


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "send": (lambda: aio.send("nobody", 1), WorkflowNotFound, "nobody"),
    "send what": (lambda: aio.send("other", object()), SerializationError, "message to 'other'"),
    "recv": (lambda: aio.recv("t", timeout=1), WaitTimeout, "topic 't'"),
    "get_event": (lambda: aio.get_event("other", "e", timeout=1), WaitTimeout, "'e'"),
    "get_event of nobody": (lambda: aio.get_event("nobody", "e"), WorkflowNotFound, "nobody"),
    "get_event never": (lambda: aio.get_event("done", "e"), EventNotSet, "'e'"),
    "set_event": (lambda: aio.set_event("e", object()), SerializationError, "event 'e'"),
    "stream": (lambda: aio.write_stream("s", object()), SerializationError, "stream 's'"),
    "read_stream": (lambda: read("nobody"), WorkflowNotFound, "nobody"),
    "await handle": (lambda: never(), WorkflowNotFound, "nobody"),
    "start": (lambda: aio.start(plain_workflow.options(id="other")), WorkflowConflict, "other"),
    "cancel": (lambda: aio.cancel("nobody"), WorkflowNotFound, "nobody"),
    "resume": (lambda: aio.resume("other"), WorkflowConflict, "other"),
    "fork": (lambda: aio.fork("nobody"), WorkflowNotFound, "nobody"),
    "fork where": (lambda: aio.fork("other", step=0), InvalidArgument, "step of a fork"),
    "map": (lambda: aio.map(echo, 5), InvalidArgument, "iterable"),  # type: ignore[arg-type]
    "map workers": (lambda: aio.map(echo, [], workers=0), InvalidArgument, "workers"),
    "map errors": (lambda: aio.map(echo, [], errors="x"), InvalidArgument, "errors"),  # type: ignore[call-overload]
    "wait": (lambda: aio.wait([]), InvalidArgument, "needs something"),
    "wait what": (lambda: aio.wait(5), InvalidArgument, "several"),  # type: ignore[arg-type]
    "gather": (lambda: aio.gather(5), InvalidArgument, "awaited"),  # type: ignore[arg-type]
    "start what": (lambda: aio.start(len), InvalidArgument, "not a workflow"),  # type: ignore[arg-type]
    "run what": (lambda: aio.run(5), InvalidArgument, "not a workflow"),  # type: ignore[arg-type]
    "run_step": (lambda: aio.run_step(5), InvalidArgument, "function"),  # type: ignore[call-overload]
    "sleep": (lambda: aio.sleep(-1), InvalidArgument, "span"),
    "sleep_until": (lambda: aio.sleep_until(datetime(2026, 1, 1)), InvalidArgument, "time zone"),
    "arguments": (lambda: other(1, 2, 3), TypeError, "too many"),  # type: ignore[call-arg]
}


async def never() -> Any:
    return await Handle(durable.runtime.context.current_host("", blocks=False), "nobody")


def test_typed_errors() -> None:
    """What is wrong has its error, by its class and with the name of what it is about."""

    async def body() -> None:
        await aio.run(plain_workflow.options(id="done"))
        for call, kind, match in ERRORS.values():
            with pytest.raises(kind, match=match):
                await call()

    run(body)


def test_a_gather_raises_the_first_error_and_forgets_none(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The first in the order given; asyncio says of no other that it was never retrieved."""

    @step
    async def fails(after: int) -> None:
        for _ in range(after):
            await asyncio.sleep(0)
        raise ValueError(f"after {after}")

    @workflow
    async def wf() -> None:
        await aio.gather(fails(3), fails(0), fails(1))

    async def main() -> None:
        async with Engine(path):
            with pytest.raises(ValueError, match="after 3"):
                await wf()

    asyncio.run(main(), debug=True)
    assert not [each for each in caplog.records if each.name == "asyncio" and each.levelno >= 40]


def test_a_cancelled_gather_waits_for_its_coroutines(engine: Engine) -> None:
    """They are cancelled, and have cleaned up when it raises."""
    seen: list[str] = []

    async def cleans_up() -> None:
        try:
            await aio.recv()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    @workflow
    async def wf() -> list[str]:
        try:
            async with asyncio.timeout(0.02):
                await aio.gather(cleans_up(), cleans_up())
        except TimeoutError:
            return list(seen)
        return []

    assert wf.start().result(PATIENCE) == ["cleaned up", "cleaned up"]
