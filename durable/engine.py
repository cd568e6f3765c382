"""The engine: it owns a file, runs its workflows, and takes up what is unfinished."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Literal, ParamSpec, TypeVar

from durable.checks import check_optional_text, check_texts
from durable.client import Client
from durable.clock import Clock, optional_seconds
from durable.codec import Codec
from durable.errors import DurableError, EngineClosed, InvalidArgument, NotAllowedHere
from durable.functions import DeclaredWorkflow
from durable.handle import Handle
from durable.interrupts import on_main_thread
from durable.records import Workflow
from durable.runtime import context, lanes, recovery
from durable.runtime.hooks import Hooks
from durable.runtime.host import Host, log
from durable.runtime.loops import Signal
from durable.runtime.queues import Queues
from durable.runtime.registry import registry
from durable.runtime.runs import Runs
from durable.runtime.scheduler import Scheduler
from durable.runtime.timers import Timers
from durable.runtime.waiting import Waiting
from durable.runtime.watcher import Watcher
from durable.store import steps, workflows
from durable.store.connections import MEMORY, check_file
from durable.store.database import Database
from durable.store.lock import FileLock

P = ParamSpec("P")
R = TypeVar("R")

Recover = Literal["auto", "manual"] | Callable[[Workflow], bool]

SAY_WHAT_IT_WAITS_FOR_AFTER = 2.0
GRACE = 0.1
CLOSED = "engine/closed"


class Engine(Client):
    """Runs the workflows of one file; it does nothing until it is opened.

    `synchronous`: with ``"full"`` a power cut loses nothing that was recorded; with ``"normal"`` a
    process crash loses nothing, and a power cut at most the last moments. `recover`: ``"auto"``
    takes up all unfinished workflows when it opens, ``"manual"`` waits for `recover`, a predicate
    on `Workflow` chooses. `version` is kept with each run that begins. With ``schedules=False``
    no moment of a schedule begins a run. ``":memory:"`` is a file that is gone when the engine
    closes.

        with Engine("shop.db") as engine:
            handle = engine.start(checkout, "17")
            print(handle.result())

    AlreadyRunning if another engine owns the file; NotADurableFile, NewerSchema, CorruptFile,
    ReadOnlyFile or StorageFull if the file cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["full", "normal"] = "full",
        recover: Recover = "auto",
        version: str | None = None,
        schedules: bool = True,
        codec: Codec | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._configure(path, codec, clock)
        if synchronous not in ("full", "normal"):
            raise InvalidArgument(f"synchronous is 'full' or 'normal', not {synchronous!r}")
        if recover not in ("auto", "manual") and not callable(recover):
            raise InvalidArgument(f"recover is 'auto', 'manual' or a predicate, not {recover!r}")
        check_optional_text(version, "the version of an engine", empty=True)
        if not isinstance(schedules, bool):
            raise InvalidArgument(f"schedules is True or False, not {schedules!r}")
        self._synchronous = synchronous
        self._recover = recover
        self._version = version
        self._fires = schedules
        self._scheduler: Scheduler
        self._queues: Queues
        self._hooks = Hooks()
        self._host: Host | None = None
        self._watcher: Watcher | None = None
        self._lock = FileLock(self._path)
        self._mutex = threading.Lock()

    def __enter__(self) -> Engine:
        context.find_scope("with Engine(…)")  # which would block an event loop when it is left
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close(timeout=None if error is None else 0)
        except KeyboardInterrupt:
            self.close(timeout=0)  # what it had not finished
            raise

    async def __aenter__(self) -> Engine:
        """Open it, and run async workflows on the loop of the calling program."""
        if not self._clock.real:
            raise InvalidArgument(
                "a virtual clock has an event loop of its own: use `with`, and start the async "
                "workflows from there"
            )
        return self._open_with(lanes.use_running_loop)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose(timeout=None if error is None else 0)

    # ------------------------------------------------------------------ opening

    def open(self) -> Engine:
        """Own the file, make it if there is none, and take up what is unfinished."""
        return self._open_with(lambda host: None)

    def _open_with(self, prepare: Callable[[Host], None]) -> Engine:
        """Open it; `prepare` is called before the first workflow runs."""
        opening = False
        try:
            with self._mutex:
                if self._host is not None:
                    raise InvalidArgument(f"this engine on {self._path} is open already")
                opening = True
                self._host = self._make_host()
                self._open_host(self._host, prepare)
        except BaseException:
            if opening:
                self._stop()
            raise
        return self

    def _make_host(self) -> Host:
        """The host, of which nothing is open yet: from here on `_shut` knows what to close."""
        clock = self._clock
        database = Database(
            self._path,
            clock=clock,
            synchronous=self._synchronous,
            create=True,
            on_commit=lambda keys: host.notified(keys),
            in_bulk=steps.IN_BULK,
        )
        database.observer = self._hooks.observer
        host = Host(
            database,
            self._codec,
            clock,
            Waiting(clock),
            runs=Runs(clock),
            timers=Timers(clock),
            hooks=self._hooks,
            version=self._version,
        )
        host.on_start = lambda ids: host.spawn_task(
            f"durable start {ids[0]}", partial(recovery.take_up_all_loose, host, ids)
        )
        self._watcher = Watcher(host) if self._path != MEMORY and clock.real else None
        self._queues = host.queues = Queues(host)
        self._scheduler = Scheduler(host, fires=self._fires)
        return host

    def _open_host(self, host: Host, prepare: Callable[[Host], None]) -> None:
        _watch_forks()
        if self._path != MEMORY:
            check_file(self._path, create=True)
            self._lock.acquire()
        host.database.open()
        if self._watcher is not None:
            self._watcher.look()
        host.session, last, waiting = host.database.write("open", self._open_session)
        self._scheduler.declare()
        self._file = host
        if self._watcher is not None:
            self._watcher.start()
        prepare(host)
        context.host_opened(host)
        registry.listen(self._declared)
        atexit.register(self._close_at_exit)
        _engines.append(self)
        if self._recover != "manual":
            self._sweep_in_background(host, last)
            self._queues.notice_all(waiting)
        self._scheduler.start()

    def _open_session(self, tx: Any) -> tuple[int, int, list[str]]:
        """The number of the session, the last workflow by now, and the queues that have work."""
        session = workflows.open_session(
            tx, pid=os.getpid(), version=self._version, now=self._clock.now()
        )
        return session, workflows.last(tx), self._queues.declare(tx)

    def _sweep_in_background(self, host: Host, last: int) -> None:
        wanted = self._wanted()
        host.spawn_task("durable recovery", lambda: recovery.sweep(host, wanted, last=last))

    def _wanted(self) -> recovery.Wanted | None:
        predicate = self._recover
        if not callable(predicate):
            return None
        return lambda workflow_id: predicate(self.handle(workflow_id).info())

    @staticmethod
    def _take_up(host: Host, workflow_id: str) -> None:
        recovery.take_up_if_loose(host, workflow_id)

    def _declared(self) -> None:
        host = self._host
        if host is None:
            return
        self._queues.declare_new()
        if host.blocked:
            host.spawn_task("durable recovery", partial(recovery.retry_blocked, host))
        self._scheduler.declared()

    # ------------------------------------------------------------------ running

    def run(self, wf: DeclaredWorkflow[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a workflow on this thread, and return its result."""
        return _checked(wf)._run_on(self._open_engine(), *args, **kwargs)

    def start(self, wf: DeclaredWorkflow[P, R], *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Run a workflow in the background; it is on the disk when this returns."""
        return _checked(wf)._start_on(self._open_engine(), *args, **kwargs)

    def recover(self, ids: Iterable[str] | None = None) -> list[Handle[Any]]:
        """Take up unfinished workflows, all or those named, that are in nobody's hands.

        For engines that were opened with ``recover="manual"``, and for runs that a full disk or an
        exit left unfinished while the engine stayed open. WorkflowNotFound for an unknown id.
        """
        host = self._open_engine()
        host.database.settle()  # what the file is about to have is recovered as well
        if ids is None:
            states = host.database.read(partial(workflows.unfinished, after=0, limit=-1))
            wanted = [state.id for state in states]
        else:
            wanted = list(check_texts(ids, "the ids to recover"))
        for workflow_id in wanted:
            self._take_up(host, workflow_id)
        self._queues.notice_all()
        return [self.handle(workflow_id) for workflow_id in wanted]

    def serve(self) -> None:
        """Run until Ctrl-C or SIGTERM, then close; what is running goes on at the next start.

        The one place where durable handles a signal, and only on the main thread.
        """
        host = self._open_engine()
        main = on_main_thread()
        previous = signal.getsignal(signal.SIGTERM)
        try:
            if main:
                signal.signal(signal.SIGTERM, _interrupt)
            with host.waiting.listen(CLOSED) as listener:
                while not host.stopping:
                    listener.wait(None)
        except KeyboardInterrupt:
            pass
        finally:
            if main:
                signal.signal(signal.SIGTERM, previous)
            self.close(timeout=0)

    def _open_engine(self) -> Host:
        if self._host is None or self._host is not self._file:
            raise EngineClosed(f"the engine on {self._path} is not open: use `with Engine(…):`")
        self._host.check_open()
        return self._host

    # ------------------------------------------------------------------ closing

    def close(self, timeout: float | timedelta | None = None) -> None:
        """Wait until nothing is running, `timeout` seconds at most, then stop and close the file.

        None waits without end, and 0 not at all. What queues can start runs too; what is delayed
        stays in its queue for the next start. What was running then is unfinished and goes on
        when an engine opens the file again. Ctrl-C while it waits stops at once. May be called
        twice, and again where it was interrupted. A thread that is stuck in the code of a step is
        left to itself: what it still does is not recorded.
        """
        seconds = optional_seconds(timeout, "the timeout of close")
        host = self._host
        if host is None or _is_inherited(host):
            return
        context.find_scope("close")
        self._refuse_in_workflow(host)
        try:
            if seconds is None or seconds > GRACE:
                deadline = None if seconds is None else self._clock.now() + seconds - GRACE
                self._wait_until_idle(host, deadline)
        finally:
            self._stop()

    async def aclose(self, timeout: float | timedelta | None = None) -> None:
        """`close`, for a program with an event loop: its coroutines go on until they are stopped.

        Cancelled while it waits, it stops at once.
        """
        host = self._host
        if host is None:
            return
        self._refuse_in_workflow(host)
        on_loop = host.on_loop()
        on_loop.look_again()
        signal = Signal(on_loop)
        errors = []

        def close() -> None:
            try:
                self.close(timeout)
            except BaseException as error:
                errors.append(error)
            finally:
                signal.give()

        thread = self._clock.spawn("durable close", close)
        try:
            await signal
        except asyncio.CancelledError:
            host.runs.hurry()
            on_loop.look_again()
            while not signal.given:
                with suppress(asyncio.CancelledError):
                    await signal
            raise
        finally:
            thread.join()
            host.database.connections.close()  # what a Ctrl-C here has kept from being given back
        for error in errors:
            raise error

    @staticmethod
    def _refuse_in_workflow(host: Host) -> None:
        scope = context.find_scope("close", blocks=False)
        if scope is not None and scope.host is host:
            raise NotAllowedHere("a workflow cannot close the engine that runs it")

    def _wait_until_idle(self, host: Host, deadline: float | None) -> None:
        speak_at = self._clock.now() + SAY_WHAT_IT_WAITS_FOR_AFTER
        if deadline is None or speak_at < deadline:
            if host.runs.wait_idle(speak_at):
                return
            running = host.runs.describe()
            log.warning(
                "%s: waiting for %d unfinished workflow(s): %s%s; "
                "Ctrl-C leaves them for the next start",
                self._path,
                len(running),
                ", ".join(running[:5]),
                ", …" if len(running) > 5 else "",
            )
        host.runs.wait_idle(deadline)

    def _die(self) -> None:
        """From here on nothing is written any more, as if the process had died; then `_abandon`."""
        if self._file is not None:
            self._file.database.die()
            self._file.waiting.notify_all()

    def _abandon(self) -> None:
        """Stop as if the process had died here: nothing more is written, runs count as dead."""
        if self._host is not None:
            self._host.database.die()
            self._stop()

    def _stop(self) -> None:
        """Close all that is open, once; where that is interrupted, the next call finishes it."""
        with self._mutex:
            if self._host is not None:
                self._shut(self._host)
                self._host = None

    def _shut(self, host: Host) -> None:
        host.stopping = True
        host.database.hurry()
        registry.unlisten(self._declared)
        context.host_closed(host)
        for run in host.runs.all():
            host.stop(run, host.closed_error())
        host.runs.wait_stopped(GRACE)
        lanes.leave_loop(host, GRACE)
        host.timers.close()
        if self._watcher is not None:
            self._watcher.close()
        self._close_session(host)
        host.database.close()
        host.waiting.notify_all()
        host.threads.close(GRACE)
        self._lock.release()
        atexit.unregister(self._close_at_exit)
        if self in _engines:
            _engines.remove(self)

    def _close_session(self, host: Host) -> None:
        if host.database.closed or not host.session:
            return
        now = self._clock.now()
        try:
            host.database.write(
                "close", lambda tx: workflows.close_session(tx, host.session, now=now)
            )
        except EngineClosed:
            pass  # it was abandoned
        except DurableError as error:
            log.error("%s could not be told that its engine closes: %s", self._path, error)

    def _close_at_exit(self) -> None:
        """The program ends without having closed: nothing that ran counts as a death."""
        self.close(timeout=0)


def _checked(wf: DeclaredWorkflow[P, R]) -> DeclaredWorkflow[P, R]:
    if not isinstance(wf, DeclaredWorkflow):
        raise InvalidArgument(f"{wf!r} is not a workflow: decorate the function with @workflow")
    return wf


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# ---------------------------------------------------------------------- forks

_engines: list[Engine] = []
_watching_forks = False


def _watch_forks() -> None:
    """From the first engine on: a forked child lets go of what it inherited."""
    global _watching_forks  # noqa: PLW0603
    if not _watching_forks and hasattr(os, "register_at_fork"):
        _watching_forks = True
        os.register_at_fork(after_in_child=_let_go_in_child)


def _let_go_in_child() -> None:
    for engine in _engines:
        engine._lock.forget()
        atexit.unregister(engine._close_at_exit)
    _engines.clear()


def _is_inherited(host: Host) -> bool:
    try:
        host.database.check_process()
    except EngineClosed:
        return True
    return False
