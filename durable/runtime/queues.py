"""Queues: what may start now, who starts it, and when to look again.

Whatever may let a run start looks in its own transaction: the one that enqueues, and the one that
ends a run, take what may start and begin it once they are committed. So nothing polls, and a slot
passes from one run to the next in one commit. What else may let something start (a delay or a
window of the rate is over, a cancel, other limits, another process) touches the queue's key, which
leads to a *turn* of the queue.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from durable.errors import DurableError, EngineClosed, QueueNotFound
from durable.records import Status
from durable.runtime import execution, recovery
from durable.runtime.host import Host, log
from durable.runtime.registry import registry
from durable.runtime.runs import Run
from durable.runtime.timers import Timer
from durable.store import queues, steps, workflows
from durable.store.queues import STARTED_ONCE, Limits, QueueRow, Room, Waiting
from durable.store.steps import Place, Record
from durable.store.tx import Tx
from durable.store.workflows import NewWorkflow, Queued, State, queue_key

# So many are started, or become due, in one transaction at most: others want to write as well.
BATCH = 100
# So many partitions are looked at.
LANES = 100
TRY_AGAIN_SECONDS = 1.0


# ---------------------------------------------------------------------- the decision


class Counts(NamedTuple):
    """What counts against the limits: what runs in the partition, and the starts of the window."""

    running: int = 0
    started: int = 0
    oldest_at: float | None = None


class Allowance(NamedTuple):
    """How many may start now (None: all), and when more may, if nothing else happens before."""

    number: int | None
    again_at: float | None = None


FULL = Allowance(0)
"""All slots are taken: the end of one of those runs looks again."""


def may_start(limits: Limits, counts: Counts, now: float) -> Allowance:
    """How many runs of a partition may start now, and when to look again.

    `again_at` is None where no moment helps, but only the end of a run.
    """
    slots = None
    if limits.concurrency is not None:
        slots = max(0, limits.concurrency - counts.running)
    if limits.rate_limit is None or limits.rate_per is None or slots == 0:
        return Allowance(slots)
    starts = max(0, limits.rate_limit - counts.started)
    if starts == 0:
        oldest_at = now if counts.oldest_at is None else counts.oldest_at
        return Allowance(0, oldest_at + limits.rate_per)
    return Allowance(starts if slots is None else min(slots, starts))


# ---------------------------------------------------------------------- taking

Started = tuple[State, dict[Place, Record]]
"""A run that holds a slot now, and what it has recorded."""


class Taken:
    """What was started in a transaction that may not be committed yet."""

    def __init__(self, queue: str, cancels: int) -> None:
        self.queue = queue
        self.cancels = cancels
        """How many cancels the engine had heard of before."""
        self.runs: list[Started] = []
        self.again_at: float | None = None
        """When the rate lets more of those start that wait."""
        self.more = False
        """Whether more may start now, by the next transaction."""
        self.looked_until: str | None = None
        """The last partition that was looked at, where there are others behind it."""


class _Taking:
    """One look at a queue, in an open transaction, that starts what may start."""

    def __init__(self, tx: Tx, host: Host, queue: QueueRow, now: float) -> None:
        self._tx, self._host, self._queue, self._now = tx, host, queue, now
        self._limits = queue.limits
        self._window = queues.Window()
        if self._limits.rate_per is not None:
            self._window = queues.window(tx, queue.name, per=self._limits.rate_per, now=now)
        self.taken = Taken(queue.name, host.cancels)

    def take(self, partition: str | None, running: int | None = None) -> None:
        """Start what may start in the partition, where so many are running, up to BATCH."""
        counts = self._counts(partition, running)
        allowed = may_start(self._limits, counts, self._now)
        if allowed == FULL:
            return
        wanted = BATCH if allowed.number is None else min(allowed.number, BATCH)
        if self._limits.rate_limit is None:
            found = queues.waiting(self._tx, self._queue.name, partition, limit=wanted)
            self._start(found)
            self.taken.more |= len(found) == wanted != allowed.number
            return
        # One more than may start: whether anything is left decides whether to look again.
        found = queues.waiting(self._tx, self._queue.name, partition, limit=wanted + 1)
        self._start(found[:wanted])
        if len(found) > wanted:
            window, running = self._window, counts.running + wanted
            left = may_start(
                self._limits, Counts(running, window.started, window.oldest_at), self._now
            )
            self.taken.again_at = left.again_at
            self.taken.more |= left.number != 0

    def take_in_some(self, after: str) -> None:
        """Start what may start in the partitions behind `after`, up to LANES of them."""
        if after == "":
            self.take(None)
        for _ in range(LANES):
            partition = queues.next_partition(self._tx, self._queue.name, after=after)
            if partition is None:
                return
            self.take(partition)
            after = partition
        self.taken.looked_until = after

    def take_fairly(self) -> None:
        """Start what may start in all partitions, which share the rate: the first of all first."""
        found: list[Waiting] = []
        for partition in self._partitions():
            allowed = may_start(self._limits, self._counts(partition), self._now)
            wanted = BATCH if allowed.number is None else min(allowed.number, BATCH)
            first = queues.waiting(self._tx, self._queue.name, partition, limit=max(wanted, 1))
            if first and allowed.again_at is not None:
                self.taken.again_at = allowed.again_at
                return
            found += first[:wanted]
        limit = self._limits.rate_limit
        starts = BATCH if limit is None else min(BATCH, limit - self._window.started)
        self._start(sorted(found, key=lambda each: each.turn)[:starts])
        self.taken.more = bool(found)

    def _partitions(self) -> list[str | None]:
        found: list[str | None] = [None]
        last: str | None = ""
        while last is not None:
            last = queues.next_partition(self._tx, self._queue.name, after=last)
            found += [] if last is None else [last]
        return found

    def _counts(self, partition: str | None, running: int | None = None) -> Counts:
        most = self._limits.concurrency
        if most is None:
            running = 0
        elif running is None:
            running = queues.running(self._tx, self._queue.name, partition, most=most)
        return Counts(running, self._window.started, self._window.oldest_at)

    def _start(self, waiting: Iterable[Waiting]) -> None:
        """Start these, which begin after the commit."""
        tx, host, now = self._tx, self._host, self._now
        for each in waiting:
            state = queues.start(tx, each.seq, holder=host.session, version=host.version, now=now)
            if self._limits.rate_per is not None:
                self._count_start()
            spec = registry.workflow(state.name)
            if state.timeout is None and spec is not None and spec.timeout is not None:
                queues.set_timeout(tx, state, spec.timeout, now=now)
                state = state._replace(timeout=spec.timeout, deadline_at=now + spec.timeout)
            records = steps.load(tx, state.seq) if queues.has_records(state) else {}
            self.taken.runs.append((state, records))

    def _count_start(self) -> None:
        window, now = self._window, self._now
        number = window.last_number + 1
        queues.note_start(self._tx, self._queue.name, number, now=now)
        oldest_at = now if window.oldest_at is None else window.oldest_at
        self._window = queues.Window(window.started + 1, oldest_at, number)


def _started(new: NewWorkflow, queued: Queued, seq: int, holder: int | None, now: float) -> State:
    """The new run as the file has it."""
    return State(
        status=Status.PENDING,
        seq=seq,
        id=new.id,
        name=new.name,
        input=new.input,
        epoch=STARTED_ONCE,
        holder=holder,
        recoveries=0,
        progress=0,
        waits_for=None,
        wake_at=None,
        timeout=new.timeout,
        deadline_at=None if new.timeout is None else now + new.timeout,
        parent_id=new.parent_id,
        reason=None,
        seed=new.id,
        queue=queued.queue,
        partition=queued.partition,
        dedup=queued.dedup,
    )


# ---------------------------------------------------------------------- the queues of an engine


class _Slot:
    """The slot of one run; see `runs.Slot`."""

    def __init__(self, owner: Queues, queue: str, partition: str | None) -> None:
        self.owner = owner
        self.queue = queue
        self.partition = partition
        self.taken: Taken | None = None

    def hand_over(self, tx: Tx, now: float) -> None:
        self.taken = self.owner.take(tx, self.queue, self.partition, now=now)

    def handed_over(self) -> None:
        self.owner.begin(self.taken, on_this_thread=True)

    def abandoned(self, run: Run) -> None:
        self.owner.free_later(run)


class Queues:
    """Lets the runs of the queues of one engine begin."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._mutex = threading.Lock()
        self._known: set[str] = set()
        self._noticed: dict[str, set[str]] = {}
        """The queues that want a turn, and behind which of their partitions."""
        self._turning = False
        self._timers: dict[str, Timer] = {}

    def slot(self, queue: str, partition: str | None) -> _Slot:
        """The slot of a run of that queue that is in the hands of this process."""
        return _Slot(self, queue, partition)

    # ------------------------------------------------------------------ in a transaction

    def declare(self, tx: Tx) -> list[str]:
        """Make the queues known to the file that the program has declared.

        Returns those, of all queues of the file, in which anything waits.
        """
        for queue in (QueueRow(name=queues.DELAYED), *registry.queues()):
            queues.declare(tx, queue)
            self._known.add(queue.name)
        return queues.with_work(tx)

    def add(self, tx: Tx, news: Sequence[NewWorkflow], *, now: float) -> Taken | None:
        """Put the new runs in their queue, and take what may start now; None if the ids exist.

        All are of one queue and one partition.
        """
        queued = news[0].queued
        assert queued is not None
        room = queues.look(tx, queued.queue, queued.partition)
        started: list[Started] = []
        exist = 0
        for new in news:
            starts = self._may_start_at_once(room, queued)
            holder = self._host.session if starts else None
            seq = queues.add(tx, new, now=now, queue=room.queue, holder=holder)
            if seq is None:
                exist += 1
            elif starts:
                started.append((_started(new, queued, seq, holder, now), {}))
                room = room._replace(running=room.running + 1)
            elif queued.delay:
                tx.touch(queue_key(queued.queue))  # its turn sets a timer
            else:
                room = room._replace(anybody_waits=True)
        if exist == len(news):
            return None
        taken = self._take(tx, room, queued.partition, now)
        taken.runs[:0] = started
        return taken

    def _may_start_at_once(self, room: Room, queued: Queued) -> bool:
        """Whether a new run need not wait: there is room, and nobody is before it."""
        limits = room.queue.limits
        if room.anybody_waits or queued.delay or self._host.stopping:
            return False
        return limits.rate_limit is None and may_start(limits, Counts(room.running), 0) != FULL

    def take(self, tx: Tx, name: str, partition: str | None, *, now: float) -> Taken:
        """Start what may start in the partition."""
        try:
            room = queues.look(tx, name, partition)
        except QueueNotFound:
            return Taken(name, self._host.cancels)  # somebody deleted its row
        return self._take(tx, room, partition, now)

    def _take(self, tx: Tx, room: Room, partition: str | None, now: float) -> Taken:
        queue = room.queue
        if self._host.stopping or not room.anybody_waits:
            return Taken(queue.name, self._host.cancels)
        if partition is not None and queue.limits.rate_limit is not None:
            tx.touch(queue_key(queue.name))  # its turn looks at all partitions
            return Taken(queue.name, self._host.cancels)
        taking = _Taking(tx, self._host, queue, now)
        taking.take(partition, room.running)
        return taking.taken

    # ------------------------------------------------------------------ after the commit

    def declare_new(self) -> None:
        """The program may have declared another queue: make it known to the file."""
        if any(queue.name not in self._known for queue in registry.queues()):
            try:
                waiting = self._host.database.write("declare queues", self.declare)
            except BaseException:
                self._known.clear()
                raise
            self.notice_all(waiting)

    def begin(self, taken: Taken | None, *, on_this_thread: bool = False) -> None:
        """Let what was taken begin; to be called once that is committed.

        One of it `on_this_thread`, which has nothing to do but to return.
        """
        if taken is None:
            return
        for state, records in taken.runs:
            self._begin_one(state, records, taken.cancels, on_this_thread)
        if taken.again_at is not None:
            self._host.runs.hold(f"queue {taken.queue!r}", "waits for its rate")
            self._look_again(taken.queue, taken.again_at)
        if taken.more:
            self.notice(taken.queue)
        if taken.looked_until is not None:
            self.notice(taken.queue, taken.looked_until)

    def _begin_one(
        self, state: State, records: dict[Place, Record], cancels: int, on_this_thread: bool
    ) -> None:
        host = self._host
        try:
            spec = registry.workflow(state.name)
            missing = recovery.what_is_missing(host, spec, state)
            if spec is None or missing is not None:
                recovery.block(host, state, missing or "")
                return
            run = recovery.make_run(host, spec, state, state.epoch, records)
            try:
                host.runs.add(run)
                if host.cancels != cancels and not self._is_current(run):
                    run.stop()  # cancelled before we had it
                execution.launch(host, run, on_this_thread=on_this_thread)
            except BaseException:
                host.runs.remove(run)
                host.runs.cannot_begin(run.id)
                raise
        except EngineClosed:
            pass  # the next engine takes it up
        except (DurableError, RuntimeError) as error:
            log.error("workflow %r (%s) is not started yet: %s", state.id, state.name, error)
            recovery.try_again(host, state)

    def _is_current(self, run: Run) -> bool:
        return self._host.database.read(partial(workflows.is_current, seq=run.seq, epoch=run.epoch))

    def rescue(self, queue: str) -> None:
        """The thread that took something was interrupted: let it begin all the same.

        In a while: what other threads have taken begins before.
        """
        host = self._host
        at = host.clock.now() + TRY_AGAIN_SECONDS
        host.timers.at(at, lambda: host.spawn_task("durable rescue", partial(self._rescue, queue)))

    def _rescue(self, queue: str) -> None:
        host = self._host
        for state in host.database.read(partial(queues.held, queue=queue, holder=host.session)):
            if not host.runs.has(state.id):
                host.runs.cannot_begin(state.id)
                recovery.take_up_if_loose(host, state.id)
        self.notice(queue)

    def free_later(self, run: Run) -> None:
        """The file failed under the run, which nobody takes up now: free its slot, once it can."""
        host = self._host
        at = host.clock.now() + TRY_AGAIN_SECONDS
        host.timers.at(at, lambda: host.spawn_task("durable slot", partial(self._free, run)))

    def _free(self, run: Run) -> None:
        reason = f"{run.failure}; it goes on when an engine opens the file"
        free = partial(workflows.release, seq=run.seq, epoch=run.epoch, reason=reason)
        try:
            self._host.database.write(f"leave {run.name}", free)
        except EngineClosed:
            pass
        except DurableError:
            self.free_later(run)

    # ------------------------------------------------------------------ turns

    def notice_all(self, names: Iterable[str] | None = None) -> None:
        """Give all those queues a turn; or those of the file in which anything waits."""
        for name in self._host.database.read(queues.with_work) if names is None else names:
            self.notice(name)

    def notice(self, queue: str, after: str = "") -> None:
        """Give the queue a turn soon, on another thread, in its partitions behind `after`."""
        with self._mutex:
            self._noticed.setdefault(queue, set()).add(after)
            if not (self._turning or self._host.stopping):
                self._host.spawn_task("durable queues", self._turns)
                self._turning = True

    def _turns(self) -> None:
        """One turn for each queue that wants one, and so on, until none does."""
        try:
            while (noticed := self._next_noticed()) is not None:
                queue, places = noticed
                for after in sorted(places):
                    self._try_turn(queue, after)
        except BaseException:
            self._turning = False
            raise

    def _next_noticed(self) -> tuple[str, set[str]] | None:
        with self._mutex:
            self._turning = bool(self._noticed) and not self._host.stopping
            if not self._turning:
                return None
            queue = next(iter(self._noticed))
            return queue, self._noticed.pop(queue)

    def _try_turn(self, queue: str, after: str) -> None:
        host = self._host
        try:
            self.turn(queue, after)
        except EngineClosed:
            pass  # the next engine gives it a turn when it opens
        except DurableError as error:
            log.error("queue %r cannot go on yet: %s", queue, error)
            self._look_again(queue, host.clock.now() + TRY_AGAIN_SECONDS)

    def turn(self, queue: str, after: str = "") -> None:
        """Start what may start, in the partitions behind `after`, and see when to look again."""
        turn = partial(self._turn, name=queue, after=after)
        taken, due_at = self._host.database.write(f"queue {queue}", turn)
        self._host.runs.let_go(f"queue {queue!r}")
        self.begin(taken)
        if due_at is not None:
            self._look_again(queue, due_at)

    def _turn(self, tx: Tx, *, name: str, after: str) -> tuple[Taken | None, float | None]:
        now = self._host.clock.now()
        if self._host.stopping:
            return None, None
        try:
            queue = queues.find(tx, name)
        except QueueNotFound:
            return None, None
        due = queues.make_due(tx, name, limit=BATCH, now=now)
        taking = _Taking(tx, self._host, queue, now)
        if queue.limits.rate_limit is None:
            taking.take_in_some(after)
        else:
            taking.take_fairly()
        taking.taken.more |= due == BATCH
        return taking.taken, queues.next_due(tx, name)

    def _look_again(self, queue: str, at: float) -> None:
        """Give the queue a turn at that moment, or earlier."""
        with self._mutex:
            earlier = self._timers.get(queue)
            if earlier is not None and earlier.at <= at:
                return
            self._timers[queue] = self._host.timers.at(at, partial(self._due, queue))
            if earlier is not None:
                self._host.timers.cancel(earlier)

    def _due(self, queue: str) -> None:
        with self._mutex:
            self._timers.pop(queue, None)
        self.notice(queue)
