"""The engine: it owns a file, runs its workflows, and takes up what is unfinished."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Literal, ParamSpec, TypeVar

from durable.checks import check_optional_text, check_texts
from durable.client import Client
from durable.clock import Clock, optional_seconds
from durable.codec import Codec
from durable.declare import WorkflowFunction
from durable.errors import DurableError, EngineClosed, InvalidArgument, NotAllowedHere
from durable.handle import Handle
from durable.records import Workflow
from durable.runtime import context, recovery
from durable.runtime.hooks import Hooks
from durable.runtime.host import Host, log
from durable.runtime.queues import Queues
from durable.runtime.registry import registry
from durable.runtime.runs import Runs
from durable.runtime.timers import Timers
from durable.runtime.waiting import Waiting
from durable.runtime.watcher import Watcher
from durable.store import workflows
from durable.store.database import MEMORY, Database, check_file
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
    on `Workflow` chooses. `version` is kept with each run that begins. ``":memory:"`` is a file
    that is gone when the engine closes.

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
        codec: Codec | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._configure(path, codec, clock)
        if synchronous not in ("full", "normal"):
            raise InvalidArgument(f"synchronous is 'full' or 'normal', not {synchronous!r}")
        if recover not in ("auto", "manual") and not callable(recover):
            raise InvalidArgument(f"recover is 'auto', 'manual' or a predicate, not {recover!r}")
        check_optional_text(version, "the version of an engine", empty=True)
        self._synchronous = synchronous
        self._recover = recover
        self._version = version
        self._hooks = Hooks()
        self._host: Host | None = None
        self._watcher: Watcher | None = None
        self._waiting_queues: list[str] = []
        self._lock = FileLock(self._path)
        self._mutex = threading.Lock()

    def __enter__(self) -> Engine:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(timeout=None if error is None else 0)

    # ------------------------------------------------------------------ opening

    def open(self) -> Engine:
        """Own the file, make it if there is none, and take up what is unfinished."""
        with self._mutex:
            if self._host is not None:
                raise InvalidArgument(f"this engine on {self._path} is open already")
            _watch_forks()
            if self._path != MEMORY:
                check_file(self._path, create=True)
                self._lock.acquire()
            try:
                host = self._open_host()
            except BaseException:
                self._lock.release()
                raise
            self._host = self._file = host
        context.host_opened(host)
        registry.listen(self._declared)
        atexit.register(self._close_at_exit)
        _engines.append(self)
        if self._recover != "manual":
            self._sweep_in_background(host)
        return self

    def _open_host(self) -> Host:
        clock = self._clock
        database = Database(
            self._path,
            clock=clock,
            synchronous=self._synchronous,
            create=True,
            on_commit=lambda keys: host.notified(keys),
        )
        host = Host(
            database,
            self._codec,
            clock,
            Waiting(clock),
            Runs(clock),
            Timers(clock),
            self._hooks,
            self._version,
        )
        database.observer = self._hooks.observer
        host.queues = queues = Queues(host)
        try:
            watcher = Watcher(host) if self._path != MEMORY and clock.real else None
            host.session, self._waiting_queues = database.write(
                "open", partial(self._open_session, queues=queues)
            )
            if watcher is not None:
                watcher.start()
        except BaseException:
            database.close()
            raise
        host.on_start = lambda workflow_id: host.spawn_task(
            f"durable start {workflow_id}", partial(self._take_up, host, workflow_id)
        )
        self._watcher = watcher
        return host

    def _open_session(self, tx: Any, *, queues: Queues) -> tuple[int, list[str]]:
        session = workflows.open_session(
            tx, pid=os.getpid(), version=self._version, now=self._clock.now()
        )
        return session, queues.declare(tx)

    def _sweep_in_background(self, host: Host) -> None:
        wanted = self._wanted()
        host.spawn_task("durable recovery", lambda: recovery.sweep(host, wanted))
        self._queues_of(host).notice_all(self._waiting_queues)

    @staticmethod
    def _queues_of(host: Host) -> Queues:
        assert isinstance(host.queues, Queues)
        return host.queues

    def _wanted(self) -> recovery.Wanted | None:
        predicate = self._recover
        if not callable(predicate):
            return None
        return lambda workflow_id: predicate(self.handle(workflow_id).info())

    @staticmethod
    def _take_up(host: Host, workflow_id: str) -> None:
        recovery.ensure_running(host, workflow_id)

    def _declared(self) -> None:
        host = self._host
        if host is None:
            return
        self._queues_of(host).declare_new()
        if host.blocked:
            host.spawn_task("durable recovery", partial(recovery.retry_blocked, host))

    # ------------------------------------------------------------------ running

    def run(self, wf: WorkflowFunction[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a workflow on this thread, and return its result."""
        return _checked(wf)._run_on(self._open_engine(), *args, **kwargs)

    def start(self, wf: WorkflowFunction[P, R], *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Run a workflow in the background; it is on the disk when this returns."""
        return _checked(wf)._start_on(self._open_engine(), *args, **kwargs)

    def recover(self, ids: Iterable[str] | None = None) -> list[Handle[Any]]:
        """Take up unfinished workflows, all or those named, that are in nobody's hands.

        For engines that were opened with ``recover="manual"``, and for runs that a full disk or an
        exit left unfinished while the engine stayed open. WorkflowNotFound for an unknown id.
        """
        host = self._open_engine()
        if ids is None:
            states = host.database.read(partial(workflows.unfinished, after=0, limit=-1))
            wanted = [state.id for state in states]
        else:
            wanted = list(check_texts(ids, "the ids to recover"))
        for workflow_id in wanted:
            self._take_up(host, workflow_id)
        self._queues_of(host).notice_all()
        return [self.handle(workflow_id) for workflow_id in wanted]

    def serve(self) -> None:
        """Run until Ctrl-C or SIGTERM, then close; what is running goes on at the next start.

        The one place where durable handles a signal, and only on the main thread.
        """
        host = self._open_engine()
        previous = None
        main = threading.current_thread() is threading.main_thread()
        if main:
            previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with contextlib.suppress(KeyboardInterrupt), host.waiting.listen(CLOSED) as listener:
                while not host.stopping:
                    listener.wait(None)
        finally:
            if main:
                signal.signal(signal.SIGTERM, previous)
            self.close(timeout=0)

    def _open_engine(self) -> Host:
        if self._host is None:
            raise EngineClosed(f"the engine on {self._path} is not open: use `with Engine(…):`")
        self._host.check_open()
        return self._host

    # ------------------------------------------------------------------ closing

    def close(self, timeout: float | timedelta | None = None) -> None:
        """Wait until nothing is running, `timeout` seconds at most, then stop and close the file.

        None waits without end, and 0 not at all. What queues can start runs too; what is delayed
        stays in its queue for the next start. What was running then is unfinished and goes on
        when an engine opens the file again. Ctrl-C while it waits stops at once. May be called
        twice. A thread that is stuck in the code of a step is left to itself: what it still does
        is not recorded.
        """
        seconds = optional_seconds(timeout, "the timeout of close")
        host = self._host
        if host is None or _is_inherited(host):
            return
        scope = context.find_scope("close")
        if scope is not None and scope.host is host:
            raise NotAllowedHere("a workflow cannot close the engine that runs it")
        try:
            if seconds is None or seconds > GRACE:
                deadline = None if seconds is None else self._clock.now() + seconds - GRACE
                self._wait_until_idle(host, deadline)
        finally:
            with self._mutex:
                if self._host is host:
                    self._shut(host)
                    self._host = None

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
        with self._mutex:
            host, self._host = self._host, None
            if host is not None:
                host.database.die()
                self._shut(host)

    def _shut(self, host: Host) -> None:
        host.stopping = True
        host.database.impatient = True
        registry.unlisten(self._declared)
        context.host_closed(host)
        for run in host.runs.all():
            host.stop(run, host.closed_error())
        host.runs.wait_stopped(GRACE)
        host.timers.close()
        self._queues_of(host).close()
        if self._watcher is not None:
            self._watcher.close()
        self._close_session(host)
        host.database.close()
        host.waiting.notify_all()
        host.join(GRACE)
        self._lock.release()
        atexit.unregister(self._close_at_exit)
        if self in _engines:
            _engines.remove(self)

    def _close_session(self, host: Host) -> None:
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


def _checked(wf: WorkflowFunction[P, R]) -> WorkflowFunction[P, R]:
    if not isinstance(wf, WorkflowFunction):
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
