"""The runs that this process has in its hands: which there are, and how each is told to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from functools import cached_property
from random import Random
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from durable.clock import Clock
from durable.runtime.fates import Fate
from durable.runtime.loops import OnLoop
from durable.runtime.registry import WorkflowSpec
from durable.store import workflows
from durable.store.steps import Place, Record
from durable.store.tx import Tx

# So often in a row the event loop turns, while a run replays, without another record being asked
# for, until it is clear that nobody will.
TURNS_FOR_REPLAY = 10


class Stopped(BaseException):
    """Ends a run from inside: cancelled, superseded, or its engine closes. Never an outcome.

    A ``BaseException``, so that ``except Exception`` in a workflow does not catch it; and raised
    again by each further durable call of the run.
    """


class Slot(Protocol):
    """The slot that a run holds in its queue; the commit of its end gives it to the next ones."""

    queue: str
    partition: str | None

    def hand_over(self, tx: Tx, now: float) -> None:
        """In the transaction in which the run ends; it may be called again for the same end."""

    def handed_over(self) -> None:
        """That is committed: the next ones begin."""

    def abandoned(self, run: Run) -> None:
        """The run is unfinished as the file failed: nobody else would free the slot."""


class Run:
    """One workflow from its first line to its outcome, in this process."""

    def __init__(
        self,
        id: str,  # noqa: A002
        name: str,
        spec: WorkflowSpec,
        input: str,  # noqa: A002
        *,
        seed: str,
        seq: int = 0,
        epoch: int = 1,
        parent_id: str | None = None,
        timeout: float | None = None,
        deadline_at: float | None = None,
        records: dict[Place, Record] | None = None,
        slot: Slot | None = None,
        fate: Fate | None = None,
    ) -> None:
        self.id = id
        self.name = name
        self.spec = spec
        self.input = input
        self.seed = seed
        self.seq = seq
        self.epoch = epoch
        self.parent_id = parent_id
        self.timeout = timeout
        self.deadline_at = deadline_at
        self.records = {} if records is None else records
        """What was recorded and not yet asked for; the run is replaying while there is any."""
        self.stopping = False
        self.failure: BaseException | None = None
        """Why it stopped, where the file does not tell."""
        self.over = False
        """Whether its code has returned."""
        self.beside: set[Any] = set()
        """What goes on beside its body: submitted steps, workers of a map, tasks."""
        self.loop: OnLoop | None = None
        """Where the body runs, if it is a coroutine."""
        self.task: asyncio.Task[Any] | None = None
        """What runs that body; other tasks of the run are in `beside`."""
        self.slot = slot
        """What it holds in a queue, if it is of one."""
        self.fate = fate
        """Where those look who wait for its end in this process, if there may be any."""
        self.thread: int | None = None
        """The thread that took it in hand, while that may yet drop it: None once it has its own."""

    # What few runs have is made when it is asked for: there may be ten thousand that wait.

    @cached_property
    def patches(self) -> dict[str, bool]:
        """What `durable.patched` has said."""
        return {}

    @cached_property
    def futures(self) -> list[Any]:
        """The steps that it has submitted."""
        return []

    @property
    def has_futures(self) -> bool:
        """Whether it has submitted any."""
        return "futures" in self.__dict__

    @cached_property
    def interrupted(self) -> set[asyncio.Task[Any]]:
        """The tasks that were told to stop."""
        return set()

    @cached_property
    def cancelled(self) -> dict[Place, str]:
        """Calls that the code of the body has cancelled, to be recorded with its next write."""
        return {}

    @cached_property
    def ended_at(self) -> WeakKeyDictionary[asyncio.Future[Any], float]:
        """When each of its tasks has ended."""
        return WeakKeyDictionary()

    @cached_property
    def random(self) -> Random:
        """The generator of `durable.random`: the same numbers on every replay."""
        return Random(f"{self.seed} random")

    @cached_property
    def random_ids(self) -> Random:
        """The generator of `durable.uuid4`: numbers drawn from the other do not move it."""
        return Random(f"{self.seed} uuid4")

    @property
    def key(self) -> tuple[int, int]:
        """What fences its writes: the number and the epoch."""
        return (self.seq, self.epoch)

    @property
    def stop_key(self) -> str:
        """What each of its waits listens to, besides what it waits for."""
        return f"stop/{self.id}"

    @property
    def end_key(self) -> str:
        """What those listen to who wait for its end."""
        return workflows.key(self.seq)

    @property
    def replaying(self) -> bool:
        """Whether recorded steps lie ahead."""
        return bool(self.records)

    def forget_lane(self, lane: str) -> None:
        """What was recorded in the lane, and below it, will not be asked for."""
        for place in [each for each in self.records if each.is_in(lane)]:
            del self.records[place]

    def stop(self, failure: BaseException | None = None) -> None:
        """Have its next durable call raise Stopped; the first failure counts."""
        if self.failure is None:
            self.failure = failure
        self.stopping = True

    def check(self) -> None:
        """Raise Stopped if it is to stop."""
        if self.stopping:
            raise Stopped(self.id)

    def cancel_tasks(self) -> None:
        """Interrupt what waits on the event loop, where this is called."""
        self.interrupt([self.task, *self.beside])

    def interrupt(self, tasks: Iterable[Any]) -> None:
        """Cancel the tasks, each once: what it does to clean up is not interrupted again."""
        for task in tasks:
            if isinstance(task, asyncio.Task) and task not in self.interrupted:
                self.interrupted.add(task)
                task.cancel()

    async def let_replay_go_first(self) -> None:
        """What is recorded comes to its end before anything new begins beside it."""
        turns = TURNS_FOR_REPLAY
        while self.records and turns:
            left = len(self.records)
            await asyncio.sleep(0)
            turns = turns - 1 if len(self.records) == left else TURNS_FOR_REPLAY


class Runs:
    """All runs of an engine, and whether there are any."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._active: dict[str, list[Run]] = {}
        self._parked: dict[str, str] = {}
        self._tasks: set[object] = set()
        self._hurried = False
        self._held: dict[str, str] = {}
        self._failures: dict[str, BaseException] = {}
        self._lost: set[str] = set()
        self._claimed: set[str] = set()
        self._waiters = 0

    def add(self, run: Run) -> None:
        """The run is in the hands of this process: the calling thread runs it, or has it run."""
        run.thread = threading.get_ident()
        with self._mutex:
            self._active.setdefault(run.id, []).append(run)
            self._failures.pop(run.id, None)
            self._lost.discard(run.id)

    def remove(self, run: Run) -> None:
        """The run is no longer in the hands of this process; harmless if it is gone already."""
        with self._mutex:
            self._remove(run)

    def _remove(self, run: Run) -> None:
        run.over = True
        known = self._active.get(run.id, [])
        if run not in known:
            return
        known.remove(run)
        if not known:  # else it was taken up again: how that goes is what counts
            del self._active[run.id]
            if run.failure is not None:
                self._failures[run.id] = run.failure
        self._notify()

    def lose(self, error: BaseException) -> list[Run]:
        """The calling thread was interrupted: stop what it ran, or was about to have run."""
        me = threading.get_ident()
        with self._mutex:
            lost = [run for runs in self._active.values() for run in runs if run.thread == me]
            for run in lost:
                run.stop(error)
                self._remove(run)
        return lost

    def of(self, workflow_id: str) -> list[Run]:
        """The runs of one workflow: one, or a second where it was taken up again."""
        with self._mutex:
            return list(self._active.get(workflow_id, ()))

    def has(self, workflow_id: str) -> bool:
        """Whether the workflow is running or parked; a run that is being stopped does not count."""
        with self._mutex:
            active = self._active.get(workflow_id, ())
            return workflow_id in self._parked or any(not run.stopping for run in active)

    def claim(self, workflow_ids: set[str]) -> None:
        """Be the one that takes the workflows up, until `unclaim`; wait for those who do now."""
        with self._mutex:
            self._wait(lambda: not self._claimed & workflow_ids, None)
            self._claimed |= workflow_ids

    def unclaim(self, workflow_ids: set[str]) -> None:
        """They were taken up, or not."""
        with self._mutex:
            self._claimed -= workflow_ids
            self._notify()

    def all(self) -> list[Run]:
        """All that are running or waiting on a thread."""
        with self._mutex:
            return [run for runs in self._active.values() for run in runs]

    def failure_of(self, workflow_id: str) -> BaseException | None:
        """Why the last run of the workflow stopped without an outcome."""
        with self._mutex:
            return self._failures.get(workflow_id)

    def cannot_begin(self, workflow_id: str) -> None:
        """The workflow, which the file says is in our hands, could not begin here."""
        with self._mutex:
            self._lost.add(workflow_id)

    def is_stopped(self, workflow_id: str) -> bool:
        """Whether the workflow is known to have stopped here without an outcome."""
        with self._mutex:
            return workflow_id in self._lost or workflow_id in self._failures

    def forgive(self, workflow_id: str) -> None:
        """The workflow goes on: why its last run stopped is told no more."""
        with self._mutex:
            self._failures.pop(workflow_id, None)

    def park(self, workflow_id: str, name: str) -> None:
        """The workflow waits without a thread."""
        with self._mutex:
            self._parked[workflow_id] = name

    def unpark(self, workflow_id: str) -> bool:
        """The workflow waits no more; False if somebody else said so before."""
        with self._mutex:
            found = self._parked.pop(workflow_id, None) is not None
            self._notify()
            return found

    def begin_task(self, task: object) -> None:
        """Something goes on that may make more runs begin, until `end_task`."""
        with self._mutex:
            self._tasks.add(task)

    def end_task(self, task: object) -> None:
        """Undo `begin_task`; harmless if it is done already."""
        with self._mutex:
            self._tasks.discard(task)
            self._notify()

    def hold(self, name: str, why: str) -> None:
        """Something that nobody works on now goes on in a while, unless the engine closes."""
        with self._mutex:
            self._held[name] = why

    def let_go(self, name: str) -> None:
        """Undo `hold`; harmless if there was none."""
        with self._mutex:
            if self._held.pop(name, None) is not None:
                self._notify()

    def wait_idle(self, deadline: float | None) -> bool:
        """Wait until nothing is running, parked or held; False if the deadline came first."""
        with self._mutex:
            return self._wait(lambda: self._hurried or self._is_idle(), deadline)

    def _is_idle(self) -> bool:
        return not (self._active or self._parked or self._tasks or self._held)

    def hurry(self) -> None:
        """Have `wait_idle` wait no longer."""
        with self._mutex:
            self._hurried = True
            self._notify()

    def wait_stopped(self, patience: float) -> bool:
        """Wait until nothing is running, as long as one ends every `patience` seconds."""
        left = None
        while left != (left := len(self.all())):
            deadline = self._clock.now() + patience
            with self._mutex:
                if self._wait(lambda: not (self._active or self._tasks), deadline):
                    return True
        return False

    # Both are called with the mutex held.

    def _wait(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        self._waiters += 1
        try:
            return self._clock.wait(self._changed, ready, deadline)
        finally:
            self._waiters -= 1

    def _notify(self) -> None:
        if self._waiters:  # nearly always there are none
            self._changed.notify_all()

    def describe(self) -> list[str]:
        """What is running or parked, for people."""
        with self._mutex:
            active = [f"{run.id} ({run.name})" for runs in self._active.values() for run in runs]
            others = {**self._parked, **self._held}
            return active + [f"{each} ({name})" for each, name in others.items()]
