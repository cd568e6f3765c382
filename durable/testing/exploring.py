"""Tries a program under every crash and under many orders of its threads.

A *program* is a function of an engine: it starts workflows, sends messages, looks at results. It is
what the world outside does, so after a crash it is called again from its first line, as a script is
that somebody starts again: workflows that are given no id get the same ones as before, and what was
sent before the crash is not sent a second time.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durable.codec import decode_error
from durable.engine import Engine
from durable.errors import EngineClosed
from durable.store.database import Tx
from durable.testing.clock import Deadlock, VirtualClock
from durable.testing.engines import TestEngine
from durable.testing.timeline import timeline

Program = Callable[[Engine], Any]

# Their values are the moment itself, and a crash may well move it.
MOMENTS = ("durable.now", "durable.sleep")


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
    """What a program left behind: facts by name, and the story for people."""

    facts: dict[str, Any]
    story: str
    labels: list[list[str]]
    """The labels of the writes of each engine, one after the other."""


# ---------------------------------------------------------------------- crashes


def crashes(program: Program, *, depth: int = 1, seed: int = 0, only: str | None = None) -> Report:
    """Kill the process before and after each write of the program, and let a new engine finish.

    The outcome of every workflow, its events and steps, and the messages left must be those of the
    run that did not crash. With ``depth=2`` the engine that recovers dies at each of its own too.
    AssertionError names the first place where something differs, with both stories; `only` tries
    that place alone. Values that differ between two runs without a crash are not compared; what
    depends on which of two workflows comes first may well differ, and is a matter for `orders`.

        def program(engine):
            checkout.options(id="17").start("17")
            engine.send("17", "paid", "payment_status")

        testing.crashes(program)
    """
    began = time.perf_counter()
    search = _Search(program, seed, depth)
    if only is None:
        search.below((), search.calm.labels[0])
    else:
        search.visit(tuple(Place.parse(part) for part in only.split("/")))
    return Report(search.tried, time.perf_counter() - began)


class _Search:
    """Visits places, and below each of them those of the engine that recovers."""

    def __init__(self, program: Program, seed: int, depth: int) -> None:
        self._program = program
        self._seed = seed
        self._depth = depth
        self.calm = _run(program, seed, ())
        self._varying = _varying(self.calm, _run(program, seed, ()))
        self.tried = 0

    def below(self, above: tuple[Place, ...], labels: list[str]) -> None:
        """Visit each place of an engine whose writes have these labels."""
        for number, when in itertools.product(range(1, len(labels) + 1), ("before", "after")):
            here = (*above, Place(number, when))
            generations = self.visit(here).labels
            if len(here) < self._depth and len(generations) > len(here):
                self.below(here, generations[len(here)])

    def visit(self, places: tuple[Place, ...]) -> _Outcome:
        """Crash at these places, one engine after the other, and compare what comes out."""
        self.tried += 1
        try:
            crashed = _run(self._program, self._seed, places)
        except Exception as error:
            raise AssertionError(
                f"crash at {_name(places)}: the program did not finish after it: {error}\n"
                f"to try just this one: crashes(program, only={_name(places)!r})"
            ) from error
        _compare(self.calm, crashed, self._varying, places)
        return crashed


def _name(places: Iterable[Place]) -> str:
    return "/".join(map(str, places))


class _Crash:
    """Observes writes in the place of the journal, and lets the process die at one of them."""

    def __init__(self, engine: TestEngine, place: Place | None) -> None:
        self._engine = engine
        self._journal = engine.journal
        self._place = place
        self.labels: list[str] = []
        self.happened = False

    def before(self, label: str) -> None:
        """Die here, or let others go first."""
        self._journal.before(label)
        self.labels.append(label)
        self._number = len(self.labels)
        self._die_at("before")

    def after(self, label: str) -> None:
        """Die here, where the caller does not know yet, or go on."""
        self._die_at("after")
        self._journal.after(label)

    def _die_at(self, when: str) -> None:
        if self.happened or self._place != Place(len(self.labels), when):
            return
        self.happened = True
        self._engine._die()
        raise EngineClosed(f"the process died {when} the write {self.labels[-1]!r}")


def _run(program: Program, seed: int, places: tuple[Place, ...]) -> _Outcome:
    """Let the program finish, its process dying at the first place, the next at the second, …"""
    labels: list[list[str]] = []
    clock = VirtualClock(seed)
    with tempfile.TemporaryDirectory(prefix="durable-") as folder:
        for place in [*places, None]:
            engine = TestEngine(Path(folder) / "test.db", clock=clock)
            crash = _Crash(engine, place)
            engine._hooks.observer = crash
            engine._hooks.new_id = _counted("workflow")
            engine._hooks.new_message_key = _counted("message")
            try:
                engine.open()
                program(engine)
                _finish(engine)
            except Exception:
                if not crash.happened:
                    engine._abandon()
                    raise
            labels.append(crash.labels)
            if not crash.happened:
                break
            engine._abandon()
        try:
            return _Outcome(_facts(engine), f"{engine.journal}\n{timeline(engine)}", labels)
        finally:
            engine._hooks.observer = engine.journal
            engine.close(timeout=0)


def _counted(what: str) -> Callable[[], str]:
    count = itertools.count(1)
    return lambda: f"{what}-{next(count)}"


def _finish(engine: TestEngine) -> None:
    """Let everything end that can: what waits for a message that nobody sends is left waiting."""
    with suppress(Deadlock):
        engine._open_engine().runs.wait_idle(None)
    if engine.errors:
        raise BaseExceptionGroup("errors on background threads of the engine", engine.errors)


# ---------------------------------------------------------------------- comparing


def _facts(engine: Engine) -> dict[str, Any]:
    """All that must not depend on a crash, by name."""
    return engine._open_engine().database.read(_read_facts)


def _read_facts(tx: Tx) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    ids: dict[int, str] = {}
    for row in tx.rows("SELECT * FROM durable_workflow ORDER BY seq", {}):
        ids[row["seq"]] = row["id"]
        facts[f"workflow {row['id']}: status"] = (row["name"], row["status"], row["reason"])
        facts[f"workflow {row['id']}: outcome"] = row["result"] or _error(row["error"])
    for row in tx.rows("SELECT * FROM durable_step ORDER BY workflow, lane, number", {}):
        place = f"{row['lane']}.{row['number']}" if row["lane"] else str(row["number"])
        name = f"workflow {ids[row['workflow']]}, step {place}"
        facts[f"{name}: name"] = (row["name"], row["outcome"])
        if row["outcome"] is not None and row["name"] not in MOMENTS:
            failed = row["outcome"] == "error"
            facts[f"{name}: value"] = _error(row["value"]) if failed else row["value"]
    for row in tx.rows("SELECT * FROM durable_event ORDER BY workflow, key, seq", {}):
        name = f"workflow {ids[row['workflow']]}, event {row['key']!r}, value {row['seq']}"
        facts[name] = row["value"]
    left = tx.rows("SELECT * FROM durable_message WHERE taken_by IS NULL ORDER BY seq", {})
    counts: dict[str, int] = {}
    for row in left:
        topic = f"messages left to {ids[row['workflow']]}, topic {row['topic']!r}"
        counts[topic] = counts.get(topic, 0) + 1
        facts[f"{topic}, number {counts[topic]}"] = row["value"]
    return facts


def _error(text: str | None) -> str | None:
    return None if text is None else repr(decode_error(text))


def _varying(first: _Outcome, second: _Outcome) -> set[str]:
    """The values that differ from run to run; AssertionError where more than values does."""
    names = first.facts.keys() | second.facts.keys()
    differing = {each for each in names if first.facts.get(each) != second.facts.get(each)}
    fixed = [each for each in sorted(differing) if not each.endswith((": value", ": outcome"))]
    if fixed:
        raise AssertionError(
            "two runs of the program differ, though none crashed: what depends on chance belongs "
            f"in a step\n{_difference(first, second, fixed)}"
        )
    return differing


def _compare(
    calm: _Outcome, crashed: _Outcome, varying: set[str], places: tuple[Place, ...]
) -> None:
    names = (calm.facts.keys() | crashed.facts.keys()) - varying
    differing = sorted(each for each in names if calm.facts.get(each) != crashed.facts.get(each))
    if not differing:
        return
    where = [
        f"{place.when} write {place.number} of engine {index}, {labels[place.number - 1]!r}"
        for index, (place, labels) in enumerate(zip(places, crashed.labels, strict=False), 1)
        if place.number <= len(labels)
    ]
    raise AssertionError(
        f"a crash {' and then '.join(where)} changes what comes out:\n"
        f"{_difference(calm, crashed, differing)}\n"
        f"without the crash:\n{calm.story}\nwith it:\n{crashed.story}\n"
        f"to try just this one: crashes(program, only={_name(places)!r})"
    )


def _difference(first: _Outcome, second: _Outcome, names: Iterable[str]) -> str:
    missing = "nothing"
    return "\n".join(
        f"  {name}: {first.facts.get(name, missing)!r} without, "
        f"{second.facts.get(name, missing)!r} with"
        for name in names
    )


# ---------------------------------------------------------------------- orders


def orders(program: Program, *, runs: int = 200, seed: int | None = None) -> Report:
    """Run the program under many seeds of the clock, each another order of the threads.

    The program judges itself: what it raises, a Deadlock too, is raised as AssertionError with the
    seed and the order of events; `seed` runs that one alone.

        def program(engine):
            handles = [transfer.start(n) for n in range(3)]
            assert sum(handle.result() for handle in handles) == 300

        testing.orders(program)
    """
    began = time.perf_counter()
    seeds = range(runs) if seed is None else [seed]
    for each in seeds:
        _run_order(program, each)
    return Report(len(seeds), time.perf_counter() - began)


def _run_order(program: Program, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="durable-") as folder:
        engine = TestEngine(Path(folder) / "test.db", clock=VirtualClock(seed))
        engine._hooks.new_id = _counted("workflow")
        engine.open()
        try:
            program(engine)
            _finish(engine)
        except Exception as error:
            raise AssertionError(
                f"with seed {seed}: {type(error).__name__}: {error}\n"
                f"the order of events:\n{engine.journal}\n{timeline(engine)}\n"
                f"to run just this one: orders(program, seed={seed})"
            ) from error
        finally:
            engine.close(timeout=0)
