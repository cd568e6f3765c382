"""Random histories of queues, compared with a model of them in fifty lines."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import Deduplicated, Queue, Rate, workflow
from durable.testing import VirtualClock
from durable.testing.engines import TestEngine


@dataclass
class Item:
    """A run, as the model has it."""

    number: int
    priority: int | None
    partition: str | None
    dedup: str | None
    due_at: float
    started_at: float | None = None
    over: bool = False

    def turn(self) -> tuple[Any, ...]:
        return (self.priority is not None, self.priority or 0, self.number)


@dataclass
class Model:
    """What a queue does, in plain words: look at all of it, again and again."""

    now: float
    concurrency: int | None
    rate: tuple[int, float] | None
    items: list[Item] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)

    def add(self, **options: Any) -> Item | None:
        if any(each.dedup == options["dedup"] for each in self.unfinished() if each.dedup):
            return None
        self.items.append(Item(len(self.items), **options))
        return self.items[-1]

    def unfinished(self) -> list[Item]:
        return [each for each in self.items if not each.over]

    def running(self) -> list[Item]:
        return [each for each in self.unfinished() if each.started_at is not None]

    def may_start(self, item: Item) -> bool:
        beside = [each for each in self.running() if each.partition == item.partition]
        if item.due_at > self.now or (self.concurrency and len(beside) >= self.concurrency):
            return False
        return self.rate is None or len(self.counting(self.rate[1])) < self.rate[0]

    def counting(self, per: float) -> list[float]:
        return [at for at in self.starts if at + per > self.now]

    def settle(self) -> None:
        waiting = [each for each in self.unfinished() if each.started_at is None]
        for item in sorted(waiting, key=Item.turn):
            if self.may_start(item):
                item.started_at = self.now
                self.starts += [self.now] if self.rate else []

    def advance(self, span: float) -> None:
        end = self.now + span
        while self.now < end:
            moments = [each.due_at for each in self.items]
            moments += [at + self.rate[1] for at in self.starts] if self.rate else []
            self.now = min([at for at in moments if self.now < at < end], default=end)
            self.settle()


# ---------------------------------------------------------------------- the engine beside it


@workflow
def held() -> str:
    """Runs until it is told to end."""
    return str(durable.recv("end"))


class History:
    """One queue of an engine, and the model, to which the same things happen."""

    def __init__(self, path: Path, seed: int) -> None:
        self.luck = random.Random(seed)
        self.path = path
        self.clock = VirtualClock(seed)
        self.priority, self.partitioned = self.luck.random() < 0.5, self.luck.random() < 0.4
        self.per = float(self.luck.randint(2, 20))
        limits = self.limits()
        self.queue = declared(
            priority=self.priority,
            partitioned=self.partitioned,
            concurrency=limits[0],
            rate=limits[1] and Rate(*limits[1]),
        )
        self.model = Model(self.clock.now(), *limits)
        self.engine = self.opened()
        self.told: list[str] = []

    def limits(self) -> tuple[int | None, tuple[int, float] | None]:
        rate = (self.luck.randint(1, 4), self.per)
        return self.luck.choice([None, 1, 2, 3]), self.luck.choice([None, rate])

    def opened(self) -> TestEngine:
        engine = TestEngine(self.path, clock=self.clock)
        engine.open()
        return engine

    # ------------------------------------------------------------------ what may happen

    def enqueue(self) -> None:
        options = {
            "priority": self.luck.choice([None, 1, 2]) if self.priority else None,
            "partition": self.luck.choice(["a", "b", "c"]) if self.partitioned else None,
            "dedup": self.luck.choice([None, None, None, "x"]),
        }
        delay = self.luck.choice([None, None, self.luck.randint(1, 30)])
        item = self.model.add(due_at=self.model.now + (delay or 0), **options)
        number = len(self.model.items) - (item is not None)
        chosen = held.options(id=f"w{number}", delay=delay, **options)
        if item is None:
            with pytest.raises(Deduplicated):
                self.queue.enqueue(chosen)
        else:
            self.queue.enqueue(chosen)

    def end(self) -> None:
        if running := self.model.running():
            item = self.luck.choice(running)
            item.over = True
            self.engine.send(f"w{item.number}", "over", "end")

    def cancel(self) -> None:
        if unfinished := self.model.unfinished():
            item = self.luck.choice(unfinished)
            item.over = True
            assert self.engine.cancel(f"w{item.number}")

    def advance(self) -> None:
        span = self.luck.randint(1, 15)
        self.clock.advance(seconds=span)
        self.model.advance(span)

    def change(self) -> None:
        limits = self.limits()
        self.model.concurrency, self.model.rate = limits
        self.queue.change(concurrency=limits[0], rate=limits[1] and Rate(*limits[1]))

    def crash(self) -> None:
        self.engine._abandon()
        self.engine = self.opened()

    def restart(self) -> None:
        self.engine.close(timeout=0)
        self.engine = self.opened()

    def step(self) -> None:
        acts = [self.enqueue, self.end, self.cancel, self.advance, self.change]
        act = self.luck.choices([*acts, self.crash, self.restart], [8, 6, 1, 4, 1, 1, 1])[0]
        self.told.append(act.__name__)
        act()
        self.model.settle()
        self.clock.settle()
        self.compare()

    def compare(self) -> None:
        for item in self.model.items:
            info = self.engine.handle(f"w{item.number}").info()
            started_at = None if info.started_at is None else info.started_at.timestamp()
            assert (info.status.finished, started_at) == (item.over, item.started_at), (
                f"{info.id} after {self.told}"
            )


def declared(**options: Any) -> Queue:
    """A queue of that declaration, and none other."""
    return Queue(f"model {sorted(options.items())}", **options)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 30, 15))
def test_queues_do_what_the_model_does(tmp_path: Path, first: int) -> None:
    """Whatever happens, in whatever order: exactly those run that the model says, since then."""
    for seed in range(first, first + 15):
        run_history(tmp_path, seed, steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1100, 50))
def test_queues_do_what_the_model_does_in_long_histories(tmp_path: Path, first: int) -> None:
    """Fifty longer histories."""
    for seed in range(first, first + 25):
        run_history(tmp_path, seed, steps=100)


def run_history(folder: Path, seed: int, *, steps: int) -> None:
    history = History(folder / f"{seed}.db", seed)
    try:
        for _ in range(steps):
            history.step()
        assert not history.engine.errors
    except BaseException as error:
        error.add_note(f"seed {seed}: {history.queue!r}, {history.told}")
        raise
    finally:
        history.engine.close(timeout=0)
