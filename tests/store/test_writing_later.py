"""`write_later`: the door for callers that must not wait, as those on an event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from durable.errors import EngineClosed, WorkflowNotFound
from durable.store.tx import Tx
from tests.store.interrupts import Interruption
from tests.store.test_database import Bench, Caller, insert
from tests.support import PATIENCE, until


@pytest.fixture
def bench(path: str) -> Iterator[Bench]:
    bench = Bench(path)
    yield bench
    bench.database.close()


class Later:
    """One call of `write_later`, with the event that says that it is over."""

    def __init__(self, bench: Bench, fn: Callable[[Tx], Any]) -> None:
        self._over = threading.Event()
        self._result = bench.database.write_later("later", fn, self._over.set)

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def result(self) -> Any:
        assert self._over.wait(PATIENCE), "a caller was never told"
        return self._result()


def add_later(bench: Bench, value: object) -> Later:
    return Later(bench, lambda tx: insert(tx, value))


def test_the_caller_does_not_wait(bench: Bench) -> None:
    """It returns while another holds the file; the result is there once it is told."""
    gate, caller = bench.hold_up()
    later = add_later(bench, "x")
    assert not later.over
    gate.open()
    assert later.result() == "x"
    assert bench.rows() == ["x"]
    caller.join()


def test_those_that_come_meanwhile_share_one_commit(bench: Bench) -> None:
    """A hundred that wait for the file cost one flush, with those of threads."""
    gate, caller = bench.hold_up()
    before = bench.commits()
    laters = [add_later(bench, n) for n in range(100)]
    other = Caller(lambda: bench.add("from a thread"))
    until(lambda: len(bench.database._queue) == 102)
    gate.open()
    assert [each.result() for each in laters] == list(range(100))
    for each in (caller, other):
        each.join()
    assert bench.commits() - before == 1  # beside the one that was held up
    assert bench.rows() == [*range(100), "from a thread"]


def test_keys_are_told(bench: Bench) -> None:
    """Of each commit, as for any writer."""
    add_later(bench, "x").result()
    until(lambda: bench.told == ["key/x"])


def test_an_error_is_its_own(bench: Bench) -> None:
    """Of a batch, the one that fails is undone; its caller gets the error, and no other."""

    def fails(tx: Tx) -> None:
        insert(tx, "undone")
        raise WorkflowNotFound("x")

    gate, caller = bench.hold_up()
    first, bad, last = add_later(bench, 1), Later(bench, fails), add_later(bench, 2)
    gate.open()
    assert [first.result(), last.result()] == [1, 2]
    with pytest.raises(WorkflowNotFound):
        bad.result()
    assert bench.rows() == [1, 2]
    caller.join()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exit_is_its_own_too(bench: Bench, error: type[BaseException]) -> None:
    """What the body of a transaction raises to end the program does not end the writer."""

    def exits(tx: Tx) -> None:
        raise error

    gate, caller = bench.hold_up()
    first, bad = add_later(bench, 1), Later(bench, exits)
    gate.open()
    with pytest.raises(error):
        bad.result()
    assert first.result() == 1
    assert add_later(bench, 2).result() == 2
    assert bench.rows() == [1, 2]
    caller.join()


def test_no_thread_without_such_a_caller(bench: Bench) -> None:
    """The writer's thread is begun by the first call, and ended by `close`."""
    bench.add(1)
    assert "durable writer" not in [each.name for each in threading.enumerate()]
    add_later(bench, 2).result()
    assert "durable writer" in [each.name for each in threading.enumerate()]
    bench.database.close()
    assert "durable writer" not in [each.name for each in threading.enumerate()]


def test_close_finishes_what_was_accepted(bench: Bench, path: str) -> None:
    """Those that are queued when it closes are committed, and told; later ones are refused."""
    gate, caller = bench.hold_up()
    laters = [add_later(bench, n) for n in range(3)]
    closing = Caller(bench.database.close)
    until(lambda: bench.database.closed)
    with pytest.raises(EngineClosed):
        add_later(bench, "too late")
    gate.open()
    for each in (caller, closing):
        each.join()
    assert [each.result() for each in laters] == [0, 1, 2]
    assert Bench.read_file(path) == [0, 1, 2]


def test_a_dead_database_writes_nothing(bench: Bench, path: str) -> None:
    """After `die`, as after the death of the process, those that waited get EngineClosed."""
    gate, caller = bench.hold_up()
    later = add_later(bench, "lost")
    dying = Caller(bench.database.die)
    until(lambda: bench.database.closed)
    gate.open()
    with pytest.raises(EngineClosed):
        later.result()
    for each in (caller, dying):
        each.join()
    assert Bench.read_file(path) == []


def test_many_callers_of_both_kinds(bench: Bench) -> None:
    """Threads that wait and threads that do not, all at once: each write once, none forgotten."""

    def work(who: int) -> None:
        for n in range(60):
            if (who + n) % 2:
                bench.add(f"{who}/{n}")
            else:
                assert add_later(bench, f"{who}/{n}").result() == f"{who}/{n}"

    def pour(who: int) -> None:
        laters = [add_later(bench, f"{who}/{n}") for n in range(300)]
        assert [each.result() for each in laters] == [f"{who}/{n}" for n in range(300)]

    callers = [Caller(lambda who=who: work(who)) for who in range(4)]
    callers += [Caller(lambda who=who: pour(who)) for who in range(4, 6)]
    for each in callers:
        each.join()
        assert each.error is None
    expected = {f"{who}/{n}" for who in range(4) for n in range(60)}
    expected |= {f"{who}/{n}" for who in range(4, 6) for n in range(300)}
    rows = bench.rows()
    assert len(rows) == len(expected)
    assert set(rows) == expected
    assert not bench.database._writer_thread.outstanding


def test_ctrl_c_at_any_point_of_a_leading_thread(path: str) -> None:
    """Interrupted anywhere, the main thread's write leaves none behind that cannot lead itself."""
    at = 0
    while True:
        at += 3
        bench = Bench(f"{path}{at}")
        interruption = Interruption(at)
        laters: list[Later] = []

        def leads(tx: Tx, bench: Bench = bench, laters: list[Later] = laters) -> object:
            if not laters:
                laters.append(add_in_between(bench))
            return insert(tx, "mine")

        try:
            with interruption.armed():
                bench.database.write("leads", leads)
        except KeyboardInterrupt:
            pass
        laters = laters or [add_later(bench, "later")]
        assert laters[0].result() == "later", interruption.where
        assert "later" in bench.rows()
        bench.database.close()
        if not interruption.happened:
            break
    assert at > 15


def add_in_between(bench: Bench) -> Later:
    """A call of another thread, which comes while this one holds the file."""
    found: list[Later] = []
    thread = threading.Thread(target=lambda: found.append(add_later(bench, "later")))
    thread.start()
    thread.join()
    return found[0]
