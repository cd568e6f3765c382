"""Where the calling code is: in which run, at which number, in which step, with which engine."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from durable.errors import NoEngine, NonDeterminism, NotAllowedHere, NotInWorkflow
from durable.records import Current
from durable.runtime.file import File
from durable.runtime.host import Host
from durable.runtime.loops import OnLoop
from durable.runtime.runs import Run, Stopped
from durable.runtime.threads import STARTED_BY
from durable.store import messages, steps
from durable.store.steps import CANCELLED, Place, Record
from durable.store.tx import Tx
from durable.store.workflows import RunIsOver

T = TypeVar("T")
PATCH = "durable.patched:"


class WasCancelled(BaseException):
    """The code of the workflow cancelled this call, and will do so again."""


class Scope:
    """A piece of code that takes numbers in a run: on one thread, or in one task.

    `name` is that of the durable call that began last.
    """

    __slots__ = ("file", "host", "lane", "name", "number", "run", "thread")

    def __init__(self, host: Host, run: Run, thread: int, lane: str = "", number: int = 0) -> None:
        self.host = host
        self.file: File = host
        """Where its run is recorded."""
        self.run = run
        self.thread = thread
        self.lane = lane
        self.number = number
        self.name = ""

    @property
    def in_coroutine(self) -> bool:
        """Whether this is the body of an async workflow, or one of its tasks."""
        return self.run.spec.is_async

    @property
    def stop_keys(self) -> tuple[str, ...]:
        """What ends its waits, besides what it waits for; tasks are cancelled instead."""
        return () if self.in_coroutine else (self.run.stop_key,)

    def on_loop(self) -> OnLoop:
        """The event loop on which an async workflow runs."""
        assert self.run.loop is not None
        return self.run.loop

    def check(self) -> None:
        """Raise Stopped if the run is to stop."""
        self.run.check()

    def begin(self) -> None:
        """Raise Stopped if the run may only replay: whatever is to be done is not recorded."""
        if self.host.hooks.replay_only:
            self.run.stop()
            self.run.check()

    def explain(self, error: Exception) -> Stopped:
        """Stop the run, which is over, or whose file failed."""
        self.host.stop(self.run, None if isinstance(error, RunIsOver) else error)
        return Stopped(self.run.id)

    def at(self, number: int, lane: str | None = None) -> Scope:
        """A scope whose next call, from whichever thread, has that number."""
        lane = self.lane if lane is None else lane
        return Scope(self.host, self.run, threading.get_ident(), lane, number - 1)

    def next(self, name: str) -> tuple[Place, Record | None]:
        """The place of the durable call that begins now, and what the run recorded there.

        Where the record is of another name, the run is over: it ends in NonDeterminism.
        """
        run = self.run
        while True:
            place = Place(self.lane, self.begin_call(name))
            record = run.records.pop(place, None) if run.records else None
            # The marker of a patch() call that the code no longer makes holds nothing to be lost.
            if record is None or record.name == name or not record.name.startswith(PATCH):
                break
        if record is not None:
            self._compare(place, name, record)
        return place, record

    def begin_call(self, name: str) -> int:
        """The number of the durable call that begins now; enough where nothing is recorded."""
        if self.run.stopping:
            self.run.check()
        self.name = name
        self.number += 1
        return self.number

    def _compare(self, place: Place, name: str, record: Record) -> None:
        """The code must ask for what was recorded."""
        cancelled = record.outcome is not None and record.outcome.kind == CANCELLED
        if record.name == name and not cancelled:
            return
        if record.name == name and self.run.spec.is_async:
            raise WasCancelled
        recorded = f"{record.name} (cancelled)" if cancelled else record.name
        error = NonDeterminism(self.run.id, self.run.name, str(place), recorded, name)
        self.host.stop(self.run, error)
        self.run.check()

    @property
    def replaying(self) -> bool:
        """Whether something is recorded that was not asked for."""
        return self.run.replaying

    async def begin_anew(self) -> None:
        """Wait for what is recorded, before something that is not is begun on an event loop."""
        await self.run.let_replay_go_first()

    @property
    def cancelled(self) -> dict[Place, str]:
        """Calls that the code has cancelled, and that are not recorded yet."""
        return self.run.cancelled

    def record_cancelled(self, tx: Tx, calls: dict[Place, str]) -> None:
        """Record those; what they had taken is there again."""
        for place, name in calls.items():
            steps.cancel(tx, self.run.key, place, name, now=self.host.clock.now())
            messages.give_back(tx, self.run.seq, place)

    def open_lane(self) -> Scope:
        """The scope of a task that begins beside this code, in a lane of its own."""
        return self.at(1, str(Place(self.lane, self.take_number(""))))

    def take(self, places: int = 1) -> Scope:
        """A scope for a call, which has its number, or several, now, whenever it begins."""
        inner = self.at(self.take_number(""))
        self.number += places - 1
        return inner

    def take_number(self, name: str) -> int:
        """The number of a call that begins now, and asks for its record later and elsewhere."""
        self.number += 1
        records = self.run.records
        while records and (record := records.get(Place(self.lane, self.number))) is not None:
            if record.name == name or not record.name.startswith(PATCH):
                break
            self.number += 1
        return self.number

    def peek(self) -> Record | None:
        """What the run recorded at the place of the next call."""
        return self.run.records.get(Place(self.lane, self.number + 1))

    def current(self) -> Current:
        """What `durable.current` tells."""
        return Current(
            workflow_id=self.run.id,
            workflow_name=self.run.name,
            step=None,
            step_name=None,
            attempt=None,
            replaying=self.run.replaying,
        )


class StepCall(Scope):
    """The body of a step that is running, at one of its tries: nothing takes numbers there.

    Its `number` and its `name` are the step's.
    """

    __slots__ = ("attempt", "started_at", "wrote_streams")

    def __init__(
        self, scope: Scope, number: int, name: str, attempt: int, started_at: float
    ) -> None:
        # Not by Scope.__init__: each step makes one, and what is called once more takes its time.
        self.host = scope.host
        self.file = scope.file
        self.run = scope.run
        self.thread = scope.thread
        self.lane = scope.lane
        self.number = number
        self.name = name
        self.attempt = attempt
        self.started_at = started_at
        self.wrote_streams = False

    @property
    def place(self) -> Place:
        """Where it stands; made when it is asked for, which few steps are."""
        return Place(self.lane, self.number)

    @property
    def in_coroutine(self) -> bool:
        """It is not the body of a workflow."""
        return False

    def current(self) -> Current:
        """What `durable.current` tells."""
        step = str(self.place)
        return super().current()._replace(step=step, step_name=self.name, attempt=self.attempt)


_scope: ContextVar[Scope | None] = ContextVar("durable_scope", default=None)


def find_scope(name: str, *, blocks: bool = True) -> Scope | None:
    """The scope of the calling code, or None outside workflows.

    NotAllowedHere, naming the call, on a thread that a workflow's code made: it would take numbers
    in an order that depends on luck; and, if the call `blocks`, where it would stop an event loop.
    """
    if blocks and engine_loops and asyncio._get_running_loop() in engine_loops:
        raise NotAllowedHere(
            f"{name} would block the event loop and all that runs on it; use {_awaited(name)}"
        )
    scope = _scope.get()
    if scope is None:
        if _is_run_alive(getattr(threading.current_thread(), STARTED_BY, None)):
            raise _foreign_thread(name)
        return None
    if scope.thread != threading.get_ident() and not isinstance(scope, StepCall):
        raise _foreign_thread(name)
    return scope


def _awaited(name: str) -> str:
    """What to call in place of a call that blocks."""
    kind, _, _rest = name.partition(" ")
    if kind in ("step", "transaction"):
        return "`await durable.aio.run_step(…)`, or make it an async function"
    if kind == "workflow":
        return "`await durable.aio.run(…)`, or `await durable.aio.start(…)`"
    if kind == "queue":
        return "`await durable.aio.enqueue(…)`"
    if name == "Debouncer.call" or kind == "the":
        return "`await durable.aio.debounce(…)`"
    if name.startswith("Client.") or name == "Queue.change":
        return "`await asyncio.to_thread(…)` with it"
    if name == "close":
        return "`await engine.aclose()`"
    if name == "with Engine(…)":
        return "`async with Engine(…)`"
    if name.endswith(".submit"):
        return "a task, as `asyncio.create_task(step(…))` makes one"
    if name in ("Handle.result", "Future.result"):
        return "`await` it"
    of_handle = name.removeprefix("Handle.")
    named = {"event": "get_event", "stream": "read_stream"}.get(of_handle, of_handle)
    verb = "async for … in" if named == "read_stream" else "await"
    return f"`{verb} durable.aio.{named}(…)`"


engine_loops: set[asyncio.AbstractEventLoop] = set()
"""The event loops on which engines run their coroutines."""


def body_scope(name: str, *, blocks: bool = True) -> Scope:
    """The scope of a workflow's body; NotInWorkflow outside one, NotAllowedHere in a step."""
    scope = find_scope(name, blocks=blocks)
    if scope is None:
        raise NotInWorkflow(name)
    if isinstance(scope, StepCall):
        raise NotAllowedHere(
            f"{name}() was called in step {scope.name!r} of workflow {scope.run.id!r}: "
            "a step is recorded as one, so what waits or starts workflows belongs in the "
            "workflow's body"
        )
    return scope


def parent_scope(name: str, *, blocks: bool = True) -> Scope | None:
    """The scope of the workflow that starts another; None outside workflows, refused in a step."""
    if find_scope(name, blocks=blocks) is None:
        return None
    return body_scope(name, blocks=blocks)


def async_scope(name: str) -> Scope | None:
    """The scope of the calling coroutine, for what is awaited; None outside workflows.

    NotAllowedHere in the body of a plain workflow, which has calls of its own.
    """
    scope = find_scope(name, blocks=False)
    if scope is not None and not isinstance(scope, StepCall):
        refuse_plain_body(scope, name, "what `durable` has under the same name")
    return scope


def refuse_plain_body(scope: Scope, name: str, instead: str) -> None:
    """NotAllowedHere where the body of a plain workflow calls what is to be awaited."""
    if not scope.run.spec.is_async:
        raise NotAllowedHere(
            f"{name} is awaited, and workflow {scope.run.id!r} ({scope.run.name}) is a plain "
            f"function; use {instead}"
        )


def refuse_without_loop(name: str, instead: str) -> None:
    """NotAllowedHere where no event loop runs that could await the call."""
    if asyncio._get_running_loop() is None:
        raise NotAllowedHere(f"{name} is async, and no event loop runs here; {instead}")


def in_coroutine() -> Scope | None:
    """The scope of the calling code, if that is the body of an async workflow."""
    scope = _scope.get()
    if scope is None or not scope.in_coroutine or scope.run.over:
        return None
    return scope


# Both are the methods themselves: what a ``finally`` puts back is back, wherever a Ctrl-C comes.

here = _scope.get
"""The scope of the calling code, or None: to be entered again at the end of another."""

enter = _scope.set
"""From here on, in this context, code takes its numbers in that scope."""


def enter_run(host: Host, run: Run) -> Scope:
    """The calling thread runs the body of the workflow, until it enters what was `here` before."""
    scope = Scope(host, run, threading.get_ident())
    enter(scope)
    return scope


def run_in_step(step: StepCall, body: Callable[[], T]) -> T:
    """What the body of a step returns, run on the calling thread."""
    before = here()
    try:
        enter(step)
        unguard = step.host.hooks.unguard
        if unguard is None:
            return body()
        with unguard():
            return body()
    finally:
        enter(before)


# ---------------------------------------------------------------------- engines

_open_hosts: list[Host] = []


def host_opened(host: Host) -> None:
    """From now on it is the current engine, outside workflows."""
    _watch_threads()
    _open_hosts.append(host)


def host_closed(host: Host) -> None:
    """The one opened before it is the current engine again."""
    if host in _open_hosts:
        _open_hosts.remove(host)


def current_host(name: str, *, blocks: bool = True) -> Host:
    """The engine of the running workflow, else the one opened last; NoEngine naming the call."""
    scope = find_scope(name, blocks=blocks)
    if scope is not None:
        return scope.host
    if not _open_hosts:
        raise NoEngine(name)
    return _open_hosts[-1]


# ---------------------------------------------------------------------- threads of the user

_watching_threads = False


def _watch_threads() -> None:
    """Mark threads that the body of a workflow starts, so that a step called there is refused.

    Such a thread does not inherit context variables; without the mark, the step would run as a
    plain call, unrecorded, and nobody would know. An audit hook is the one place where Python tells
    who starts a thread; it stays for the life of the process. Python 3.11 has no such event: there,
    the function by which the module `threading` starts threads is wrapped.
    """
    global _watching_threads  # noqa: PLW0603
    if _watching_threads:
        return
    _watching_threads = True
    if sys.version_info >= (3, 12):
        sys.addaudithook(_hear_of_thread)
    else:
        start = threading._start_new_thread  # type: ignore[attr-defined,unused-ignore]

        def start_marked(function: Callable[..., Any], *args: Any) -> Any:
            _mark_thread(function)
            return start(function, *args)

        threading._start_new_thread = start_marked  # type: ignore[attr-defined,unused-ignore]


def _hear_of_thread(event: str, args: tuple[Any, ...]) -> None:
    if event in ("_thread.start_new_thread", "_thread.start_joinable_thread"):
        _mark_thread(args[0])


def _mark_thread(function: Any) -> None:
    """Let the thread that is about to run `function`, a method of it, know who starts it."""
    scope = _scope.get()
    thread = getattr(function, "__self__", None)
    if (
        scope is not None
        and not isinstance(scope, StepCall)
        and isinstance(thread, threading.Thread)
    ):
        setattr(thread, STARTED_BY, scope.run)


def _is_run_alive(run: Run | None) -> bool:
    return run is not None and not run.over


def _foreign_thread(name: str) -> NotAllowedHere:
    return NotAllowedHere(
        f"{name} was called on thread {threading.current_thread().name!r}, which the code of a "
        "workflow made: what it does there could not be recorded in a fixed order; call it on the "
        "workflow's own thread, or give the work to a step and make the threads in there"
    )
