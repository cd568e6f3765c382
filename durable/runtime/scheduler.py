"""The thread that begins the runs of schedules, as their moments come.

One write inserts a run and notes that its moment is decided, and whoever wrote it runs it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import tzinfo
from functools import partial
from itertools import islice
from typing import NamedTuple

from durable.clock import as_datetime
from durable.cron import Cron, last_until, moments, next_after
from durable.errors import DurableError, EngineClosed
from durable.runtime import execution
from durable.runtime.host import Host, log
from durable.runtime.registry import ScheduleSpec, registry
from durable.runtime.runs import Run
from durable.runtime.schedules import new_run, run_id, run_input
from durable.runtime.waiting import Listener
from durable.store import schedules, workflows
from durable.store.schedules import KEY, Declared, State
from durable.store.tx import Tx

# Runs that one schedule begins at once where it makes up for what was missed.
AT_ONCE = 100
TRY_AGAIN_SECONDS = 5.0

# While it waits for a moment, a laptop may sleep, which no wait of the system hears of. So it looks
# at the clock this often: a moment that comes soon after waking is not late.
LOOK_AGAIN = 1.0


# ---------------------------------------------------------------------- what is due


class Due(NamedTuple):
    """The moments to be run now, and whether there are more behind them."""

    run: Sequence[int]
    skipped: int | None = None
    """The last of those that are not to be run."""
    more: bool = False


def due(cron: Cron, zone: tzinfo, missed: str, after: float, now: float, room: int) -> Due:
    """What to do about the moments after one and up to now; at most `room` are made up for."""
    first = next_after(cron, zone, after)
    if first is None or first > now:
        return Due(())
    second = next_after(cron, zone, first)
    if second is not None and second <= now:
        if missed == "all":
            found = list(islice(moments(cron, zone, after, now), room + 1))
            return Due(found[:room], more=len(found) > room)
        first = last_until(cron, zone, second - 1, now) or second
        second = next_after(cron, zone, first)
    if missed == "skip" and now - first > grace(first, second):
        return Due((), skipped=first)
    return Due((first,))


def grace(moment: int, following: int | None) -> float:
    """How late a moment may be and not be missed: a tenth of the time to the one after it."""
    return 60.0 if following is None else min(60.0, max(2.0, (following - moment) / 10))


# ---------------------------------------------------------------------- the thread


class Scheduler:
    """Begins the runs of the schedules that the program declares, if it `fires` them at all."""

    def __init__(self, host: Host, *, fires: bool) -> None:
        self._host = host
        self._fires = fires
        self._mutex = threading.Lock()
        self._running = False
        self._stopped = False
        self._known: dict[str, ScheduleSpec] = {}
        self._begun: dict[str, list[Run]] = {}

    def start(self) -> None:
        """Begin to fire, once there is a schedule."""
        with self._mutex:
            if self._fires and self._known and not self._running:
                self._running = True
                self._host.spawn("durable schedules", self._run, background=True)
        self.declared()  # by another thread, before the engine listened

    def stop(self) -> None:
        """Fire no more; what has begun goes on."""
        self._stopped = True

    def declared(self) -> None:
        """Something more may have been declared."""
        if registry.schedules() == self._known:
            return
        if self._running:
            self._host.waiting.notify([KEY])
        else:
            self._host.spawn_task("durable schedules", self._declare_and_start)

    def declare(self) -> None:
        """Tell the file what the program declares that it did not before, and does not any more."""
        specs = registry.schedules()
        new = [spec for name, spec in specs.items() if self._known.get(name) is not spec]
        gone = self._known.keys() - specs.keys()
        if new or gone:
            now = self._host.clock.now()
            self._host.database.write("declare schedules", partial(self._declare, new, gone, now))
        self._known = specs

    def _declare(self, new: list[ScheduleSpec], gone: set[str], now: float, tx: Tx) -> None:
        for name in gone:
            schedules.withdraw(tx, name)
        for spec in new:
            declared = Declared(
                name=spec.name,
                workflow=spec.workflow.name,
                cron=spec.cron.text,
                tz=spec.tz,
                missed=spec.missed,
                timeout=spec.workflow.timeout,
            )
            schedules.declare(tx, declared, session=self._host.session, now=now)

    def _declare_and_start(self) -> None:
        self.declare()
        self.start()

    def _run(self) -> None:
        host = self._host
        while not host.stopping:
            with host.waiting.listen(KEY, *self._ends_of_runs()) as listener:
                try:
                    next_at = self.turn(host.clock.now())
                except EngineClosed:
                    return
                except Exception as error:
                    next_at = self._fail("schedules", error)
                self._wait(listener, next_at)

    def _wait(self, listener: Listener, next_at: float | None) -> None:
        """Until the moment has come, or something has changed."""
        clock = self._host.clock
        while not self._host.stopping:
            look_at = next_at
            if clock.real and next_at is not None:
                look_at = min(next_at, clock.now() + LOOK_AGAIN)
            if listener.wait(look_at) or (next_at is not None and clock.now() >= next_at):
                return

    def _fail(self, what: str, error: Exception) -> float:
        """Say what went wrong; the moment at which to try again."""
        self._host.hooks.errors.append(error)
        expected = isinstance(error, DurableError)
        log.error("%s: %s; tried again soon", what, error, exc_info=None if expected else error)
        return self._host.clock.now() + TRY_AGAIN_SECONDS

    # ------------------------------------------------------------------ a turn

    def turn(self, now: float) -> float | None:
        """Fire what is due by now; the moment of the next turn, None where nothing will be due.

        What goes wrong with one schedule is logged and stops no other.
        """
        self.declare()
        states = self._host.database.read(schedules.everything)
        next_at: list[float] = []
        for state in states:
            spec = self._known.get(state.name)
            if spec is None or state.paused or self._stopped or self._host.stopping:
                continue
            try:
                moment = self._fire_due(spec, state, now)
            except EngineClosed:
                raise
            except Exception as error:
                moment = self._fail(f"schedule {spec.name!r}", error)
            if moment is not None:
                next_at.append(moment)
        return min(next_at, default=None)

    def _fire_due(self, spec: ScheduleSpec, state: State, now: float) -> float | None:
        """Fire what is due of one schedule; when to look at it again, None if something tells."""
        makes_up = spec.missed == "all"
        room = max(0, AT_ONCE - self._count_unfinished(spec.name)) if makes_up else 1
        found = due(spec.cron, spec.zone, spec.missed, state.passed_at, now, room)
        if found.skipped is not None:
            self._skip(spec, found.skipped)
        if found.run:
            self._fire(spec, found.run)
        if found.more:
            return now if found.run else None  # where there is no room, a run that ends makes some
        passed = max(state.passed_at, found.skipped or 0, *found.run, 0)
        return next_after(spec.cron, spec.zone, passed)

    def _skip(self, spec: ScheduleSpec, moment: int) -> None:
        skip = partial(schedules.pass_moment, name=spec.name, moment=moment, runs=False)
        self._host.database.write(f"skip {spec.name}", skip)
        log.info("schedule %r: skipped what was missed up to %s", spec.name, as_datetime(moment))

    def _fire(self, spec: ScheduleSpec, wanted: Sequence[int]) -> None:
        """Begin the runs of the moments, if nobody has paused it, or begun them, meanwhile."""
        host = self._host
        runs = [self._make_run(spec, moment) for moment in wanted]
        for run in runs:
            host.runs.add(run)
        try:
            begin = partial(self._begin, spec=spec, wanted=wanted, runs=runs)
            numbers = host.database.write(f"fire {spec.name}", begin)
            for run, number in zip(list(runs), numbers, strict=True):
                if number is not None:
                    run.seq = number
                    runs.remove(run)
                    execution.launch(host, run)
                    if spec.missed == "all":
                        self._begun.setdefault(spec.name, []).append(run)
        finally:
            for run in runs:
                host.runs.remove(run)

    def _make_run(self, spec: ScheduleSpec, moment: int) -> Run:
        workflow, workflow_id = spec.workflow, run_id(spec.name, moment)
        return Run(
            id=workflow_id,
            name=workflow.name,
            spec=workflow,
            input=run_input(self._host, spec.zone, moment),
            seed=workflow_id,
            timeout=workflow.timeout,
        )

    def _begin(
        self, tx: Tx, *, spec: ScheduleSpec, wanted: Sequence[int], runs: Sequence[Run]
    ) -> list[int | None]:
        """The numbers of the new runs; None for those that exist, or are not to begin."""
        host = self._host
        numbers = []
        for moment, run in zip(wanted, runs, strict=True):
            number = None
            if schedules.pass_moment(tx, spec.name, moment, runs=True):
                new = new_run(
                    spec.name,
                    run.id,
                    name=run.name,
                    text=run.input,
                    timeout=run.timeout,
                    version=host.version,
                )
                number = workflows.insert(tx, new, holder=host.session, now=host.clock.now())
            numbers.append(number)
        return numbers

    # ------------------------------------------------------------------ making up

    def _count_unfinished(self, name: str) -> int:
        """How many of the runs that it began, and this process has in its hands, have not ended."""
        begun = [run for run in self._begun.get(name, ()) if not run.over]
        if begun:
            ended = self._host.database.read(
                partial(workflows.ended, seqs=[run.seq for run in begun])
            )
            begun = [run for run in begun if run.seq not in ended]
        self._begun[name] = begun
        return len(begun)

    def _ends_of_runs(self) -> Iterator[str]:
        for runs in self._begun.values():
            for run in runs:
                yield run.end_key
