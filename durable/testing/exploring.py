"""Tries a program under every crash and under many orders of its threads.

A *program* is a function of an engine: it starts workflows, sends messages, looks at results. It is
what the world outside does, so after a crash it is called again from its first line, as a script is
that somebody starts again: workflows that are given no id get the same ones as before, and what was
sent before the crash is not sent a second time.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Row
from typing import Any

from durable.codec import decode_error
from durable.errors import EngineClosed, InvalidArgument, NotAllowedHere
from durable.runtime.context import StepCall, find_scope
from durable.runtime.runs import Stopped
from durable.store import steps
from durable.store.tx import Tx
from durable.testing.clock import Deadlock, Stuck, VirtualClock
from durable.testing.engines import TestEngine, raise_errors, temporary_file
from durable.testing.timeline import story

Program = Callable[[TestEngine], Any]

# Their values are the moment itself, and a crash may well move it.
MOMENTS = ("durable.now", "durable.sleep")

# A program that writes more often than this with one engine is taken to go on for ever.
MOST_WRITES = 10_000
ENDLESS = "stopped, as it goes on for ever"


@dataclass(frozen=True)
class Place:
    """A place to die: before or after the write number `number` of an engine, from 1."""

    number: int
    when: str

    def __str__(self) -> str:
        return f"{self.number}-{self.when}"

    @staticmethod
    def parse(text: str) -> Place:
        """The place of that name."""
        number, _, when = text.partition("-")
        if not number.isdecimal() or when not in ("before", "after"):
            raise InvalidArgument(
                f"a place is the number of a write and before or after, as in '5-after', or "
                f"several with a / between them, not {text!r}"
            )
        return Place(int(number), when)


@dataclass(frozen=True)
class Report:
    """What was tried: `places` crashes or orders, in `seconds` of real time."""

    places: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.places} tried in {self.seconds:.2f} s"


@dataclass
class _Outcome:
    """What a program left behind: facts by name, and the story for people.

    `labels` are those of the writes of each engine, one after the other, until it died; `places`
    are where it could have died, each with what it would have left.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    story: str = ""
    labels: list[list[str]] = field(default_factory=list)
    places: list[list[tuple[Place, object]]] = field(default_factory=list)


# ---------------------------------------------------------------------- crashes


def crashes(
    program: Program,
    *,
    depth: int = 1,
    seed: int = 0,
    only: str | None = None,
    schedules: bool = False,
) -> Report:
    """Kill the process before and after each write of the program, and let a new engine finish.

    The outcome of every workflow, its steps, events and streams, and the messages left must be
    those of the run that did not crash. With ``depth=2`` the engine that recovers dies at its own
    writes too, once for each state in which it can leave the file. AssertionError names the first
    place where something differs, with both stories; `only` tries that place alone. Values that
    differ between two runs without a crash are not compared. What the program keeps in memory
    outlives its process here: only the file counts.
    With `schedules`, their moments begin runs, until the program has returned.

        def program(engine):
            checkout.options(id="17").start("17")
            engine.send("17", "paid", "payment_status")

        testing.crashes(program)
    """
    began = time.perf_counter()
    search = _Search(program, seed, depth, schedules)
    if only is None:
        search.below((), search.calm.places[0])
    else:
        search.visit(tuple(Place.parse(part) for part in only.split("/")))
    return Report(search.tried, time.perf_counter() - began)


class _Search:
    """Visits places, and below each of them those of the engine that recovers."""

    def __init__(self, program: Program, seed: int, depth: int, schedules: bool) -> None:
        if depth < 1:
            raise InvalidArgument(f"depth is how often the process dies: 1 or more, not {depth!r}")
        self._program = program
        self._seed = seed
        self._depth = depth
        self._schedules = schedules
        self.calm = _run(program, seed, schedules)
        self._varying = _varying(self.calm, _run(program, seed, schedules))
        self.tried = 0

    def below(self, above: tuple[Place, ...], places: list[tuple[Place, object]]) -> None:
        """Let the first engine die at each of these places, and one that recovers at the telling.

        Of places that leave the same to the next engine, the last one tells: what a step has done
        there was done, and is not recorded.
        """
        telling = set({left: place for place, left in places}.values())
        for place, _ in places:
            if above and place not in telling:
                continue
            here = (*above, place)
            crashed = self.visit(here)
            if len(here) < self._depth and place in telling:
                self.below(here, crashed.places[len(here)])

    def visit(self, places: tuple[Place, ...]) -> _Outcome:
        """Crash at these places, one engine after the other, and compare what comes out."""
        self.tried += 1
        seed = f", seed={self._seed}" if self._seed else ""
        again = f"to try just this one: crashes(program, only={_name(places)!r}{seed})"
        crashed = _Outcome()
        try:
            _run_into(crashed, self._program, self._seed, places, self._schedules)
        except _NotReached as error:
            raise AssertionError(f"{error}\n{crashed.story}\n{again}") from None
        except BaseException as error:
            if is_of_the_tests_process(error):
                raise
            raise AssertionError(
                f"after {_describe(places, crashed.labels)} the program did not finish: "
                f"{type(error).__name__}: {error}\n"
                f"without the crash:\n{self.calm.story}\nwith it:\n{crashed.story}\n{again}"
            ) from error
        _compare(self.calm, crashed, self._varying, places, again)
        return crashed


def is_of_the_tests_process(error: BaseException) -> bool:
    """Whether somebody wants the whole process to stop, rather than the program to have failed."""
    return isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))


class _NotReached(Exception):
    """The program did not get to the place where its process was to die."""


def _name(places: Iterable[Place]) -> str:
    return "/".join(map(str, places))


def _describe(places: Iterable[Place], labels: list[list[str]]) -> str:
    """The places in words, as far as there are writes for them."""
    return "a crash " + " and then ".join(
        f"{place.when} write {place.number} of engine {index}, {each[place.number - 1]!r}"
        for index, (place, each) in enumerate(zip(places, labels, strict=False), 1)
        if 0 < place.number <= len(each)
    )


def _caller() -> object:
    """Who writes: a task, where an event loop runs, or a thread."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


class _Life:
    """Observes the writes of one engine in the place of its journal; it may die at one of them."""

    def __init__(self, engine: TestEngine, place: Place | None) -> None:
        self._engine = engine
        self._journal = engine.journal
        self._place = place
        self._number_of: dict[object, int] = {}
        self.labels: list[str] = []
        self.places: list[tuple[Place, object]] = []
        self.death: str | None = None

    def before(self, label: str) -> None:
        """Let others go first, or die here."""
        self._journal.before(label)
        if self.death is not None:
            self._stop()
        self.labels.append(label)
        self._number_of[_caller()] = len(self.labels)
        if len(self.labels) > MOST_WRITES:
            self._die(ENDLESS)
        self._die_at("before")

    def after(self, label: str) -> None:
        """Die here, where the caller does not know yet, or go on."""
        self._journal.note(label)
        self._die_at("after")
        self._journal.switch()

    def _die_at(self, when: str) -> None:
        number = self._number_of[_caller()]
        place = Place(number, when)
        if self._place == place and self.death is None:
            self._die(f"died {when} {self.labels[number - 1]!r}")
        if self.death is None:
            self.places.append((place, self._what_is_left()))

    def _what_is_left(self) -> object:
        """Equal for places of this engine whose file is the same, at the same moment."""
        host = self._engine._host
        assert host is not None  # it writes
        return (host.database.rows_changed, host.clock.now())

    def _die(self, death: str) -> None:
        self.death = death
        self._engine._die()
        self._stop()

    def _stop(self) -> None:
        """End what the calling thread does; the body of a step must not catch it and go on."""
        with suppress(NotAllowedHere):  # a thread that the engine made for a workflow's body
            scope = find_scope("a crash")
            if isinstance(scope, StepCall):
                scope.run.stop()
                raise Stopped(scope.run.id)
        raise EngineClosed("the process died here")

    def check_end(self) -> None:
        """AssertionError if the program had to be stopped."""
        if self.death == ENDLESS:
            raise AssertionError(
                f"more than {MOST_WRITES} writes, the last one {self.labels[-1]!r}: what goes on "
                "for ever cannot be tried; have the program cancel it at its end"
            )


def _run(program: Program, seed: int, schedules: bool) -> _Outcome:
    outcome = _Outcome()
    _run_into(outcome, program, seed, (), schedules)
    return outcome


def _run_into(
    outcome: _Outcome, program: Program, seed: int, places: tuple[Place, ...], schedules: bool
) -> None:
    """Let the program finish, its process dying at the first place, the next at the second, …"""
    clock = VirtualClock(seed)
    with temporary_file() as file:
        for place in places:
            if not _live(outcome, program, file, clock, place, schedules):
                raise _NotReached(
                    f"there is no crash at {_name(places)}: write {place.number} of engine "
                    f"{len(outcome.labels)} was not reached, which made "
                    f"{len(outcome.labels[-1])} writes; is the program the same every time?"
                )
        _live(outcome, program, file, clock, None, schedules)


def _live(
    outcome: _Outcome,
    program: Program,
    file: Path,
    clock: VirtualClock,
    place: Place | None,
    schedules: bool,
) -> bool:
    """One engine, from its first write to its last or to its death; whether it died."""
    engine = TestEngine(file, clock=clock, schedules=schedules)
    life = _Life(engine, place)
    engine._hooks.observer = life
    engine._hooks.new_id = _new_ids()
    engine._hooks.new_message_key = _counted("message")
    outcome.labels.append(life.labels)
    outcome.places.append(life.places)
    try:
        engine.open()
        program(engine)
        _finish(engine)
        outcome.facts = engine._open_engine().database.read(_read_facts)
        told = story(engine)
        engine.close(timeout=0)
    except BaseException as error:
        told = story(engine)
        life.check_end()
        if life.death is None or is_of_the_tests_process(error):
            raise
    finally:
        engine._abandon()
        if life.death is not None:
            told = f"  -- {life.death} --"
            clock.errors.clear()
        outcome.story += f"  -- engine {len(outcome.labels)} --\n{engine.journal}\n{told}\n"
    return life.death is not None


def _counted(what: str) -> Callable[[], str]:
    count = itertools.count(1)
    return lambda: f"{what}-{next(count)}"


def _new_ids() -> Callable[[], str]:
    """Gives the program the same ids after a crash, and a workflow that forks another as well."""
    count = _counted("workflow")

    def new_id() -> str:
        scope = find_scope("a new id")
        if scope is None or isinstance(scope, StepCall):
            return count()
        return f"{scope.run.id}.{steps.Place(scope.lane, scope.number + 1)}"

    return new_id


def _finish(engine: TestEngine) -> None:
    """Let everything end that can: what waits for a message that nobody sends is left waiting."""
    engine.clock.settle()  # recovery may not have begun
    engine._scheduler.stop()
    try:
        engine._open_engine().runs.wait_idle(None)
    except Stuck:
        raise
    except Deadlock:
        pass
    engine.clock.settle()
    raise_errors(engine)


# ---------------------------------------------------------------------- comparing


def _read_facts(tx: Tx) -> dict[str, Any]:
    """All that must not depend on a crash, by name."""
    facts: dict[str, Any] = {}
    ids: dict[int, str] = {}
    for row in tx.rows("SELECT * FROM durable_workflow ORDER BY seq", {}):
        ids[row["seq"]] = row["id"]
        facts[f"workflow {row['id']}: status"] = (row["name"], row["status"], row["reason"])
        facts[f"workflow {row['id']}: outcome"] = row["result"] or _error(row["error"])
    for row in tx.rows("SELECT * FROM durable_checkpoint ORDER BY workflow, lane, number", {}):
        place = f"{row['lane']}.{row['number']}" if row["lane"] else str(row["number"])
        name = f"workflow {ids[row['workflow']]}, step {place}"
        facts[f"{name}: name"] = (row["name"], row["outcome"])
        if row["outcome"] is not None and row["name"] not in MOMENTS:
            failed = row["outcome"] == "error"
            facts[f"{name}: value"] = _error(row["value"]) if failed else row["value"]
    _number(facts, ids, "event {key!r}, setting", tx.rows(_EVENTS, {}))
    written = "SELECT * FROM durable_stream WHERE position IS NOT NULL ORDER BY position"
    _number(facts, ids, "stream {key!r}, value", tx.rows(written, {}))
    left = "SELECT * FROM durable_message WHERE taken_by IS NULL ORDER BY seq"
    _number(facts, ids, "message left on topic {topic!r}, number", tx.rows(left, {}))
    return facts


# A step's body may run again, and set its events again: of those, the last values count. What the
# body of a workflow sets is a step of its own, and set once.
_EVENTS = """
    SELECT event.*
      FROM durable_event AS event
      LEFT JOIN durable_checkpoint AS step USING (workflow, lane, number)
     WHERE step.name = 'durable.set_event:' || event.key
        OR event.seq = (SELECT max(seq)
                          FROM durable_event AS other
                         WHERE other.workflow = event.workflow AND other.key = event.key
                           AND other.lane = event.lane AND other.number = event.number)
     ORDER BY event.workflow, event.key, event.seq
"""


def _number(facts: dict[str, Any], ids: dict[int, str], what: str, rows: list[Row]) -> None:
    """Add the value of each row, numbered from 1 among those of the same workflow and kind."""
    counts: Counter[str] = Counter()
    for row in rows:
        name = f"workflow {ids[row['workflow']]}, {what.format_map(dict(row))}"
        counts[name] += 1
        facts[f"{name} {counts[name]}: value"] = row["value"]


def _error(text: str | None) -> str | None:
    return None if text is None else repr(decode_error(text))


def _varying(first: _Outcome, second: _Outcome) -> set[str]:
    """The values that differ from run to run; AssertionError where more than values does."""
    names = first.facts.keys() | second.facts.keys()
    differing = {each for each in names if first.facts.get(each) != second.facts.get(each)}
    fixed = [
        each
        for each in sorted(differing)
        if not each.endswith((": value", ": outcome"))
        or not (each in first.facts and each in second.facts)
    ]
    if fixed:
        raise AssertionError(
            "two runs of the program differ, though none crashed: what depends on chance belongs "
            f"in a step\n{_difference(first, second, fixed, 'once', 'then')}"
        )
    return differing


def _compare(
    calm: _Outcome, crashed: _Outcome, varying: set[str], places: tuple[Place, ...], again: str
) -> None:
    names = (calm.facts.keys() | crashed.facts.keys()) - varying
    differing = sorted(each for each in names if calm.facts.get(each) != crashed.facts.get(each))
    if differing:
        raise AssertionError(
            f"{_describe(places, crashed.labels)} changes what comes out:\n"
            f"{_difference(calm, crashed, differing, 'without', 'with')}\n"
            f"without the crash:\n{calm.story}\nwith it:\n{crashed.story}\n{again}"
        )


def _difference(
    first: _Outcome, second: _Outcome, names: Iterable[str], here: str, there: str
) -> str:
    return "\n".join(
        f"  {name.removesuffix(': value')}: {_show(first.facts.get(name))} {here}, "
        f"{_show(second.facts.get(name))} {there}"
        for name in names
    )


def _show(fact: Any) -> str:
    """A fact for people: a recorded text, or several that belong together."""
    if isinstance(fact, tuple):
        return ", ".join(str(part) for part in fact if part is not None)
    return "nothing" if fact is None else str(fact)


# ---------------------------------------------------------------------- orders


def orders(
    program: Program, *, runs: int = 200, seed: int | None = None, schedules: bool = False
) -> Report:
    """Run the program under many seeds of the clock, each another order of the threads.

    The program judges itself: what it raises, a Deadlock too, is raised as AssertionError with the
    seed and the order of events; `seed` runs that one alone. `schedules` is as for `crashes`.

        def program(engine):
            handles = [transfer.start(n) for n in range(3)]
            assert sum(handle.result() for handle in handles) == 300

        testing.orders(program)
    """
    began = time.perf_counter()
    seeds = range(runs) if seed is None else [seed]
    for each in seeds:
        _run_order(program, each, schedules)
    return Report(len(seeds), time.perf_counter() - began)


def _run_order(program: Program, seed: int, schedules: bool) -> None:
    with temporary_file() as file:
        engine = TestEngine(file, clock=VirtualClock(seed), schedules=schedules)
        life = _Life(engine, None)
        engine._hooks.observer = life
        engine._hooks.new_id = _new_ids()
        engine.open()
        try:
            try:
                program(engine)
                _finish(engine)
            finally:
                life.check_end()
        except BaseException as error:
            if is_of_the_tests_process(error):
                raise
            raise AssertionError(
                f"with seed {seed}: {type(error).__name__}: {error}\n"
                f"the order of events:\n{engine.journal}\n{story(engine)}\n"
                f"to run just this one: orders(program, seed={seed})"
            ) from error
        finally:
            engine.close(timeout=0)
