"""What an open engine gives to its runs: the file, the runs in hand, timers and threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from durable.clock import Clock
from durable.codec import Codec
from durable.errors import DurableError, EngineClosed
from durable.runtime.file import File
from durable.runtime.hooks import Hooks
from durable.runtime.loops import LoopThread, OnLoop
from durable.runtime.runs import Run, Runs, Slot
from durable.runtime.threads import Threads
from durable.runtime.timers import Timers
from durable.runtime.waiting import Waiting
from durable.store import workflows
from durable.store.database import Database
from durable.store.tx import Tx
from durable.store.workflows import NewWorkflow

log = logging.getLogger("durable")


class Turns(Protocol):
    """What lets the runs of queues begin; `runtime.queues` has it."""

    def slot(self, queue: str, partition: str | None) -> Slot:
        """The slot of a run of that queue that is in the hands of this process."""

    def add(self, tx: Tx, news: Sequence[NewWorkflow], *, now: float) -> Any:
        """Put the new runs in their queue, and take what may start now; None if the ids exist.

        All are of one queue and one partition.
        """

    def begin(self, taken: Any) -> None:
        """What `add` took begins; to be called once that is committed."""

    def rescue(self, queue: str) -> None:
        """The thread that took something was interrupted: let it begin all the same."""

    def notice(self, queue: str) -> None:
        """Something in the queue may be able to start."""


class Host(File):
    """The file of an engine, and all that goes on in it."""

    def __init__(
        self,
        database: Database,
        codec: Codec,
        clock: Clock,
        waiting: Waiting,
        *,
        runs: Runs,
        timers: Timers,
        hooks: Hooks,
        version: str | None,
    ) -> None:
        super().__init__(database, codec, clock, waiting)
        self.runs = runs
        self.timers = timers
        self.hooks = hooks
        self.version = version
        self.threads = Threads(clock, self._failed)
        self.session = 0
        self.on_start: Callable[[list[str]], None] | None = None
        """Called with the ids of workflows that somebody wants to be taken up."""
        self.loop: OnLoop | None = None
        """Where its coroutines run, once there is one: the program's loop, or one of its own."""
        self.loop_thread: LoopThread | None = None
        self.loop_mutex = threading.Lock()
        self.queues: Turns | None = None
        self.cancels = 0
        """How often this process heard of a cancel: who runs a workflow looks if it changed."""
        self.stopping = False
        self.blocked: dict[str, str] = {}
        """Unfinished workflows whose code or instance this program lacks: id and reason."""
        self.warned: set[str] = set()

    def new_id(self) -> str:
        """The id of a workflow that is given none."""
        return super().new_id() if self.hooks.new_id is None else self.hooks.new_id()

    def new_message_key(self) -> str | None:
        """The idempotency key of a message from outside that is given none."""
        return self.hooks.new_message_key()

    def failure_of(self, workflow_id: str) -> BaseException | None:
        """Why the last run of the workflow stopped without an outcome."""
        return self.runs.failure_of(workflow_id)

    def check_open(self) -> None:
        """Raise EngineClosed if the engine is closing or closed, or its process was forked."""
        self.database.check_process()
        if self.stopping:
            raise self.closed_error()

    def closed_error(self) -> EngineClosed:
        """What those get who still want something of a closed engine."""
        return EngineClosed(
            f"the engine on {self.database.path} is closed: open it again, "
            "and what was unfinished goes on"
        )

    def spawn(self, name: str, target: Callable[[], None], *, background: bool = False) -> None:
        """Run `target` on a thread that `close` waits for; an error in it is logged, not lost."""
        self.threads.run(name, target, background=background)

    def spawn_next(self, name: str, target: Callable[[], None]) -> None:
        """As `spawn`; on the calling thread, if that is one of these, once it has returned."""
        if not self.threads.run_next(name, target):
            self.spawn(name, target)

    def _failed(self, name: str, error: Exception) -> None:
        """What ran on a thread raised the error."""
        if isinstance(error, EngineClosed):
            return  # what it wanted to do is done by the next engine
        self.hooks.errors.append(error)
        expected = isinstance(error, DurableError)
        log.error("%s: %s", name, error, exc_info=None if expected else error)

    def spawn_task(self, name: str, target: Callable[[], None]) -> None:
        """`spawn`, for what may make runs begin: the engine is not idle until it has ended."""

        def task() -> None:
            try:
                target()
            finally:
                self.runs.end_task(task)

        try:
            self.runs.begin_task(task)
            self.spawn(name, task)
        except BaseException:
            self.runs.end_task(task)
            raise

    def notified(self, keys: Sequence[str]) -> None:
        """A commit, of this process or of another, touched these keys."""
        self.waiting.notify(keys)
        wanted = []
        for key in keys:
            kind, _, name = key.partition("/")
            if kind == "cancel":
                self.cancels += 1  # before the look at the runs: see recovery.take_up
                self._stop_if_over(name)
            elif kind == "start":
                wanted.append(name)
            elif kind == "queue" and self.queues is not None:
                self.queues.notice(name)
        if wanted and self.on_start is not None:
            self.on_start(wanted)

    def let_go(self, error: BaseException) -> None:
        """The calling thread was interrupted: what it ran, or had just started, is unfinished.

        To be called where the interrupt leaves durable: it may have come between any two lines.
        """
        for run in self.runs.lose(error):
            self.waiting.notify([run.stop_key, run.end_key])

    def stop(self, run: Run, failure: BaseException | None = None) -> None:
        """Tell a run to stop, and wake it if it waits."""
        run.stop(failure)
        self.waiting.notify([run.stop_key])
        if run.loop is not None:
            run.loop.post(run.cancel_tasks)

    def _stop_if_over(self, workflow_id: str) -> None:
        """Stop the runs that the file says are over; a later one of the same workflow goes on."""
        for run in self.runs.of(workflow_id):
            try:
                current = self.database.read(
                    partial(workflows.is_current, seq=run.seq, epoch=run.epoch)
                )
            except DurableError:
                continue  # its next write is refused all the same
            if not current:
                self.stop(run)
