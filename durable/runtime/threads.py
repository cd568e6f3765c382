"""The threads of an engine: a new one where none is free, and each used again for a while.

To start a thread takes ten times as long as to hand a function to one that waits. Of many functions
that come at once, each is run by the first thread that gets to it: one free thread is called, and
calls the next one if anything is left. Where a function is done soon, the same few threads do most
of the work, and the others sleep on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context

from durable.clock import Bell, Clock, Thread

# A thread that has nothing to do ends after this time, or at once if as many others wait.
FREE_SECONDS = 1.0
MOST_FREE = 64

Task = tuple[str, Callable[[], None]]
"""A function to run, and how its thread is called meanwhile."""

STARTED_BY = "durable_run"
"""The attribute of a thread that names the run whose code has started it; see `context`."""


class Threads:
    """Runs functions, each on a thread where nothing else runs, until `close`.

    There are never more functions that wait for a thread than threads that are free to run one.
    `failed` is called with the name of one and the exception that it raised.

    Under a clock that is not real every function has a thread of its own, which begins and ends
    with it: the order of threads is what such a clock draws from its seed.
    """

    def __init__(self, clock: Clock, failed: Callable[[str, Exception], None]) -> None:
        self.failed = failed
        self._clock = clock
        self._mutex = threading.Lock()
        self._all: set[_Worker] = set()
        self._free: list[_Worker] = []
        self._tasks: deque[Task] = deque()
        self._called: _Worker | None = None
        self._closed = False
        self._here = threading.local()

    def run(self, name: str, target: Callable[[], None], *, background: bool = False) -> None:
        """Run `target` on a thread that is called `name` meanwhile; `background` as in `Clock`."""
        with self._mutex:
            if len(self._tasks) < len(self._free):
                self._call()  # first: nothing is run for a caller who is interrupted in here
                self._tasks.append((name, target))
                return
            worker = _Worker(self, name, target)
            self._all.add(worker)
        try:
            options = {"background": True} if background else {}
            worker.thread = self._clock.spawn(name, worker.work, **options)
        except Exception:  # after a Ctrl-C nobody knows whether it has begun
            self.forget(worker)
            raise

    def run_next(self, name: str, target: Callable[[], None]) -> bool:
        """Run `target` on the calling thread when what it runs now has returned.

        False if it cannot: it is not one of these, or has something to run already.
        """
        worker: _Worker | None = getattr(self._here, "worker", None)
        if worker is None or worker.task is not None or not self._clock.real:
            return False
        worker.task = (name, target)
        return True

    def close(self, timeout: float) -> None:
        """Let all threads end, and wait `timeout` seconds at most for those that are stuck."""
        with self._mutex:
            self._closed = True
            for worker in self._free:
                worker.bell.ring()
            threads = [worker.thread for worker in self._all if worker.thread is not None]
        deadline = self._clock.now() + timeout
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - self._clock.now()))

    def wait_for_work(self, worker: _Worker) -> bool:
        """Whether there is more to do for the worker, which has done what it was given."""
        if worker.task is not None:
            return True
        with self._mutex:
            rests = self._clock.real and not self._closed and len(self._free) < MOST_FREE
            if self._tasks or not rests:
                return self._take_or_end(worker)
            self._free.append(worker)
        while True:
            called = worker.bell.wait(self._clock.now() + FREE_SECONDS)
            with self._mutex:
                if self._called is worker:
                    self._called = None
                if self._tasks or self._closed or not called:
                    self._free.remove(worker)
                    return self._take_or_end(worker)

    def _take_or_end(self, worker: _Worker) -> bool:
        """With the mutex held: give the worker, which is not free, what waits; False if nothing."""
        if not self._tasks:
            self._all.discard(worker)
            return False
        worker.task = self._tasks.popleft()
        if self._tasks:
            self._call()
        return True

    def _call(self) -> None:
        """With the mutex held: have a free worker come, unless one is on its way."""
        if self._called is None:
            worker = self._free[-1]
            worker.bell.ring()
            self._called = worker

    def bell(self) -> Bell:
        """What wakes a worker that is free."""
        return self._clock.bell()

    def enter(self, worker: _Worker) -> None:
        """The calling thread is the worker's."""
        self._here.worker = worker

    def forget(self, worker: _Worker) -> None:
        """The worker has not begun, or is about to end."""
        with self._mutex:
            self._all.discard(worker)


class _Worker:
    """One thread, and what it is to run next."""

    __slots__ = ("_threads", "bell", "task", "thread")

    def __init__(self, threads: Threads, name: str, target: Callable[[], None]) -> None:
        self.task: Task | None = (name, target)
        self.bell = threads.bell()
        self.thread: Thread | None = None
        self._threads = threads

    def work(self) -> None:
        """Run one thing after the other, each in a context that knows nothing of the last one."""
        # Whoever needed it first, it belongs to the engine.
        vars(threading.current_thread()).pop(STARTED_BY, None)
        self._threads.enter(self)
        used = False  # the clock has given it its first name
        while self.task is not None:
            name, target = self.task
            self.task = None
            if used:
                threading.current_thread().name = name
            used = True
            try:
                Context().run(target)
            except Exception as error:
                self._threads.failed(name, error)
            except BaseException:
                self._threads.forget(self)
                if self.task is not None:
                    self._threads.run(*self.task)
                raise
            del target  # holds what the run held
            if not self._threads.wait_for_work(self):
                return
