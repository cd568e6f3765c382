"""What an open engine gives to its runs: the file, the runs in hand, timers and threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from durable.clock import Thread
from durable.errors import DurableError, EngineClosed
from durable.runtime.file import File
from durable.runtime.hooks import Hooks
from durable.runtime.runs import Run, Runs
from durable.runtime.timers import Timers
from durable.store import workflows

log = logging.getLogger("durable")


@dataclass
class Host(File):
    """The file of an engine, and all that goes on in it."""

    runs: Runs
    timers: Timers
    hooks: Hooks
    version: str | None = None
    session: int = 0
    on_start: Callable[[str], None] | None = None
    """Called with the id of a workflow that somebody wants to be taken up."""
    stopping: bool = False
    blocked: dict[str, str] = field(default_factory=dict)
    """Unfinished workflows whose code or instance this program lacks: id and reason."""
    warned: set[str] = field(default_factory=set)
    _threads: list[Thread] = field(default_factory=list)
    _threads_mutex: threading.Lock = field(default_factory=threading.Lock)
    _prune_at: int = 64

    def new_id(self) -> str:
        """The id of a workflow that is given none."""
        return self.hooks.new_id()

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

    def spawn(self, name: str, target: Callable[[], None]) -> None:
        """Run `target` on a thread that `close` waits for; an error in it is logged, not lost."""

        def guarded() -> None:
            try:
                target()
            except EngineClosed:
                pass  # what it wanted to do is done by the next engine
            except Exception as error:
                self.hooks.errors.append(error)
                expected = isinstance(error, DurableError)
                log.error("%s: %s", name, error, exc_info=None if expected else error)

        with self._threads_mutex:
            if len(self._threads) >= self._prune_at:
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                self._prune_at = 2 * len(self._threads) + 64
            self._threads.append(self.clock.spawn(name, guarded))

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

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, `timeout` seconds at most for those that are stuck."""
        deadline = self.clock.now() + timeout
        for thread in list(self._threads):
            if not thread.is_alive():
                continue
            thread.join(max(0.0, deadline - self.clock.now()))

    def notified(self, keys: Sequence[str]) -> None:
        """A commit, of this process or of another, touched these keys."""
        self.waiting.notify(keys)
        for key in keys:
            kind, _, workflow_id = key.partition("/")
            if kind == "cancel":
                self._stop_if_over(workflow_id)
            elif kind == "start" and self.on_start is not None:
                self.on_start(workflow_id)

    def let_go(self, error: BaseException) -> None:
        """The calling thread was interrupted: what it ran, or had just started, is unfinished.

        To be called where the interrupt leaves durable: it may have come between any two lines.
        """
        for run in self.runs.let_go(error):
            self.waiting.notify([run.stop_key, workflows.key(run.seq)])

    def stop(self, run: Run, failure: BaseException | None = None) -> None:
        """Tell a run to stop, and wake it if it waits."""
        run.stop(failure)
        self.waiting.notify([run.stop_key])

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
