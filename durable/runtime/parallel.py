"""Steps beside the workflow: submitted one by one, or mapped over many items.

Each has its place from the moment that it is submitted, in the order of submission: what finishes
first changes nothing. A submitted step stands in the workflow's own lane; the items of a map stand
in the lane that the map opens, and the map itself is recorded when it is decided.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from durable.checks import check_count
from durable.runtime import steps
from durable.runtime.checkpoint import settle
from durable.runtime.context import Scope
from durable.runtime.flows import Carried, Flow, Listen, Spawn, Wait, Write, carried, drive
from durable.runtime.registry import StepSpec
from durable.runtime.runs import Stopped
from durable.store import steps as store
from durable.store.steps import VALUE, Outcome, Place
from durable.store.tx import Tx

R = TypeVar("R")


class Future(Generic[R]):
    """A step that runs beside its workflow; `result` waits for it."""

    def __init__(self, scope: Scope, number: int, name: str) -> None:
        self._scope = scope
        self._name = name
        self._place = Place(scope.lane, number)
        self._ended = False
        self._value: Any = None
        self._error: BaseException | None = None
        self.finished_at = 0.0

    def __repr__(self) -> str:
        return f"<Future of step {self._place} {self._name!r}>"

    @property
    def key(self) -> str:
        """What those who wait for it wait for."""
        return f"future/{self._scope.run.id}/{self._place}"

    @property
    def ended(self) -> bool:
        """Whether the step has ended; what a workflow does may not depend on it."""
        return self._ended

    def result(self) -> R:
        """What the step returned, once it has; or raise what it raised."""
        drive(_wait_for(self), self._scope)
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[no-any-return]

    def run(self, call: Callable[[Scope], Flow[Any]]) -> None:
        """Do the work, on the calling thread, and tell those who wait."""
        scope = self._scope
        inner = scope.at(self._place.number)
        try:
            self._value = drive(call(inner), inner)
        except BaseException as error:
            self._error = error
            if not isinstance(error, (Exception, Stopped)):
                scope.host.stop(scope.run, error)
        self.finished_at = scope.host.clock.now()
        self._ended = True
        scope.run.beside.discard(self)
        scope.host.waiting.notify([self.key])


def submit(
    scope: Scope, spec: StepSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Future[Any]:
    """Run the step beside the workflow; it takes the next number now."""
    scope.run.check()
    number = scope.take_number(spec.name)
    future: Future[Any] = Future(scope, number, spec.name)
    scope.run.futures.append(future)
    scope.run.beside.add(future)
    work = partial(future.run, lambda inner: steps.call(inner, spec, args, kwargs))
    scope.host.spawn(f"durable {scope.run.id} step {number}", work)
    return future


def _wait_for(future: Future[Any]) -> Flow[None]:
    if future.ended:
        return
    with (yield Listen(future.key)) as listener:
        while not future.ended:
            yield Wait(listener, None)


def finish_all(scope: Scope) -> None:
    """Wait for what the workflow submitted and did not wait for; its outcome comes after theirs."""
    for future in scope.run.futures if scope.run.has_futures else ():
        drive(_wait_for(future), scope)


# ---------------------------------------------------------------------- map


def map_step(
    scope: Scope, spec: StepSpec, items: Sequence[Any], *, workers: int, collect: bool
) -> Flow[list[Any]]:
    """The results of the step for each item, in the order of the items."""
    check_count(workers, "the number of workers")
    return (yield from _Map(scope, spec, items, collect).run(workers))


class _Map:
    """One call of `map`: its items, and which of them have ended how."""

    def __init__(self, scope: Scope, spec: StepSpec, items: Sequence[Any], collect: bool) -> None:
        self._scope = scope
        self._spec = spec
        self._items = items
        self._collect = collect
        self._mutex = threading.Lock()
        self._next = 0
        self._working = 0
        self._results: list[Any] = [None] * len(items)
        self._errors: dict[int, BaseException] = {}
        self._first: int | None = None
        self._lane = ""

    def run(self, workers: int) -> Flow[list[Any]]:
        name = f"durable.map:{self._spec.name}"
        place, record = self._scope.next(name)
        self._lane = str(place)
        if record is not None and record.outcome is not None:
            self._first = settle(record.outcome, self._scope.host.codec)
            yield from self._replay()
        else:
            yield from self._work(min(workers, len(self._items)), place)
            self._first = yield from self._decide(name, place)
        return self._outcome()

    def _work(self, workers: int, place: Place) -> Flow[None]:
        run = self._scope.run
        key = f"map/{run.id}/{place}"
        self._working = workers
        for number in range(workers):
            name = f"durable {run.id} map {place} worker {number}"
            yield Spawn(name, partial(self._worker, key), self._scope)
        try:
            with (yield Listen(key)) as listener:
                while self._working:
                    yield Wait(listener, None)
        finally:
            self._next = len(self._items)  # where nobody waits any more, nothing more begins

    def _worker(self, key: str) -> Flow[None]:
        try:
            while (index := self._take()) is not None:
                yield from self._do(index)
        finally:
            with self._mutex:
                self._working -= 1
            self._scope.host.waiting.notify([key])

    def _take(self) -> int | None:
        """The next item to begin with; None when there is none, or when one has failed."""
        with self._mutex:
            over = self._next >= len(self._items) or self._scope.run.stopping
            if over or (self._first is not None and not self._collect):
                return None
            self._next += 1
            return self._next - 1

    def _do(self, index: int) -> Flow[None]:
        inner = self._scope.at(index + 1, self._lane)
        try:
            self._results[index] = yield from steps.call(
                inner, self._spec, (self._items[index],), {}
            )
        except Exception as error:
            self._fail(index, error.error if isinstance(error, Carried) else error)
        except Stopped:
            pass
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._scope.host.stop(self._scope.run, error)

    def _fail(self, index: int, error: BaseException) -> None:
        with self._mutex:
            self._errors[index] = error
            if self._first is None:
                self._first = index

    def _decide(self, name: str, place: Place) -> Flow[int | None]:
        """Record which item failed first, or that none did."""
        host, run, first = self._scope.host, self._scope.run, self._first
        outcome = Outcome(VALUE, host.codec.encode(None if self._collect else first))
        now = host.clock.now()

        def write(tx: Tx) -> None:
            store.decide(tx, run.key, place, name, outcome, started_at=now, now=now)

        yield Write(name, write)
        return None if self._collect else first

    def _replay(self) -> Flow[None]:
        """Take what was recorded: every item, or those that had begun when one failed."""
        wanted = range(len(self._items)) if self._first is None else [self._first]
        for index in wanted:
            yield from self._do(index)
        if self._first is not None:
            self._scope.run.forget_lane(self._lane)

    def _outcome(self) -> list[Any]:
        if self._collect:
            return [self._errors.get(i, value) for i, value in enumerate(self._results)]
        if self._first is not None:
            error = self._errors[self._first]
            note = f"raised for item {self._first} of map over {self._spec.name}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise carried(error)
        return self._results
