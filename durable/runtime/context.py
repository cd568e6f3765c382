"""Where the calling code is: in which run, at which number, in which step, with which engine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from durable.errors import NoEngine, NonDeterminism, NotAllowedHere, NotInWorkflow
from durable.records import Current
from durable.runtime.host import Host
from durable.runtime.runs import Run, Stopped
from durable.store.steps import Place, Record
from durable.store.workflows import RunIsOver

T = TypeVar("T")
PATCH = "durable.patched:"


@dataclass
class StepCall:
    """The step whose body is running, at one of its tries."""

    place: Place
    name: str
    attempt: int
    wrote_streams: bool = False


@dataclass
class Scope:
    """A piece of code that takes numbers in a run, on one thread."""

    host: Host
    run: Run
    thread: int
    lane: str = ""
    number: int = 0
    step: StepCall | None = None

    @property
    def file(self) -> Host:
        """Where its run is recorded."""
        return self.host

    @property
    def stop_keys(self) -> tuple[str, ...]:
        """What ends its waits, besides what it waits for."""
        return (self.run.stop_key,)

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
        self.run.stop(None if isinstance(error, RunIsOver) else error)
        return Stopped(self.run.id)

    def at(self, number: int, lane: str | None = None) -> Scope:
        """A scope whose next call, from whichever thread, has that number."""
        lane = self.lane if lane is None else lane
        return Scope(self.host, self.run, threading.get_ident(), lane, number - 1)

    def next(self, name: str) -> tuple[Place, Record | None]:
        """The place of the durable call that begins now, and what the run recorded there.

        Where the record is of another name, the run is over: it ends in NonDeterminism.
        """
        self.run.check()
        while True:
            self.number += 1
            place = Place(self.lane, self.number)
            record = self.run.records.pop(place, None)
            # The marker of a patch() call that the code no longer makes holds nothing to be lost.
            if record is None or record.name == name or not record.name.startswith(PATCH):
                break
        if record is not None and record.name != name:
            self.run.stop(NonDeterminism(self.run.id, self.run.name, str(place), record.name, name))
            self.run.check()
        return place, record

    def take_number(self, name: str) -> int:
        """The number of a call that begins now and asks for its record later, on another thread."""
        self.number += 1
        while (record := self.run.records.get(Place(self.lane, self.number))) is not None:
            if record.name == name or not record.name.startswith(PATCH):
                break
            self.number += 1
        return self.number

    def peek(self) -> Record | None:
        """What the run recorded at the place of the next call."""
        return self.run.records.get(Place(self.lane, self.number + 1))

    def current(self) -> Current:
        """What `durable.current` tells."""
        step = self.step
        return Current(
            workflow_id=self.run.id,
            workflow_name=self.run.name,
            step=None if step is None else str(step.place),
            step_name=None if step is None else step.name,
            attempt=None if step is None else step.attempt,
            replaying=self.run.replaying,
        )


_scope: ContextVar[Scope | None] = ContextVar("durable_scope", default=None)


def find_scope(name: str) -> Scope | None:
    """The scope of the calling code, or None outside workflows.

    NotAllowedHere, naming the call, on a thread that a workflow's code made: it would take numbers
    in an order that depends on luck.
    """
    scope = _scope.get()
    if scope is None:
        if _is_run_alive(getattr(threading.current_thread(), "durable_run", None)):
            raise _foreign_thread(name)
        return None
    if scope.thread != threading.get_ident() and scope.step is None:
        raise _foreign_thread(name)
    return scope


def body_scope(name: str) -> Scope:
    """The scope of a workflow's body; NotInWorkflow outside one, NotAllowedHere in a step."""
    scope = find_scope(name)
    if scope is None:
        raise NotInWorkflow(name)
    if scope.step is not None:
        raise NotAllowedHere(
            f"{name}() was called in step {scope.step.name!r} of workflow {scope.run.id!r}: "
            "a step is recorded as one, so what waits or starts workflows belongs in the "
            "workflow's body"
        )
    return scope


@contextmanager
def enter_run(host: Host, run: Run) -> Iterator[Scope]:
    """The calling thread runs the body of the workflow."""
    scope = Scope(host, run, threading.get_ident())
    before = _scope.get()
    try:
        _scope.set(scope)
        yield scope
    finally:
        _scope.set(before)


def run_in_step(scope: Scope, step: StepCall, body: Callable[[], T]) -> T:
    """What the body of a step returns, run on the calling thread."""
    inner = Scope(scope.host, scope.run, threading.get_ident(), scope.lane, step=step)
    before = _scope.get()
    try:
        _scope.set(inner)
        unguard = scope.host.hooks.unguard
        if unguard is None:
            return body()
        with unguard():
            return body()
    finally:
        _scope.set(before)


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


def current_host(name: str) -> Host:
    """The engine of the running workflow, else the one opened last; NoEngine naming the call."""
    scope = find_scope(name)
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
    if scope is not None and scope.step is None and isinstance(thread, threading.Thread):
        thread.durable_run = scope.run  # type: ignore[attr-defined]


def _is_run_alive(run: Run | None) -> bool:
    return run is not None and not run.over


def _foreign_thread(name: str) -> NotAllowedHere:
    return NotAllowedHere(
        f"{name} was called on thread {threading.current_thread().name!r}, which the code of a "
        "workflow made: what it does there could not be recorded in a fixed order; call it on the "
        "workflow's own thread, or give the work to a step and make the threads in there"
    )
