"""The doors for callers that do not wait: `write_later`, as on an event loop, `write_or_leave`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
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
        self._result = bench.database.write_later("later", fn, self._over.set).outcome

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def result(self) -> Any:
        assert self._over.wait(PATIENCE), "a caller was never told"
        return self._result()


class Left(Later):
    """One call of `write_or_leave`, with the thread that told how it ended."""

    def __init__(self, bench: Bench, fn: Callable[[Tx], Any]) -> None:
        self._over = threading.Event()
        self.told_on: list[threading.Thread] = []
        bench.database.write_or_leave("left", fn, self._tell)

    def _tell(self, outcome: Callable[[], Any]) -> None:
        self._result = outcome
        self.told_on.append(threading.current_thread())
        self._over.set()


Door = type[Later]
DOORS: list[Door] = [Later, Left]


def add_later(bench: Bench, value: object, door: Door = Later) -> Later:
    return door(bench, lambda tx: insert(tx, value))


@pytest.mark.parametrize("door", DOORS)
def test_the_caller_does_not_wait(bench: Bench, door: Door) -> None:
    """It returns while another holds the file; the result is there once it is told."""
    gate, caller = bench.hold_up()
    later = add_later(bench, "x", door)
    assert not later.over
    gate.open()
    assert later.result() == "x"
    assert bench.rows() == ["x"]
    caller.join()


def test_where_nobody_commits_the_caller_does(bench: Bench) -> None:
    """`write_or_leave` has told the caller how it ended when it returns; no thread was begun."""
    left = Left(bench, lambda tx: insert(tx, "x"))
    assert left.told_on == [threading.current_thread()]
    assert left.result() == "x"
    assert "durable writer" not in [each.name for each in threading.enumerate()]


def test_where_another_commits_it_tells(bench: Bench) -> None:
    """What is left to the transaction of another thread is done, and told, by that thread."""
    found: list[Left] = []
    (caller,) = bench.behind_a_transaction(
        lambda: found.append(Left(bench, lambda tx: insert(tx, "x"))) or bench.add("y")
    )
    assert caller.result == "y"
    assert found[0].result() == "x"
    assert found[0].told_on[0] not in (caller.thread, threading.current_thread())
    assert bench.rows() == ["x", "y"]


def test_what_is_told_by_another_has_been_told_to_on_commit_before(bench: Bench) -> None:
    """`on_commit` comes first, once, with what was returned; not where the write failed."""
    heard: list[object] = []
    write = bench.database.write_or_leave
    write("good", lambda tx: 1, lambda outcome: heard.append(("end", outcome())), heard.append)
    assert heard == [1, ("end", 1)]
    write("bad", raise_not_found, lambda outcome: heard.append("end"), heard.append)
    assert heard == [1, ("end", 1), "end"]


def raise_not_found(tx: Tx) -> None:
    raise WorkflowNotFound("x")


@pytest.mark.parametrize("door", DOORS)
def test_those_that_come_meanwhile_share_one_commit(bench: Bench, door: Door) -> None:
    """A hundred that wait for the file cost one flush, with those of threads."""
    gate, caller = bench.hold_up()
    before = bench.commits()
    laters = [add_later(bench, n, door) for n in range(100)]
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


@pytest.mark.parametrize("door", DOORS)
def test_an_error_is_its_own(bench: Bench, door: Door) -> None:
    """Of a batch, the one that fails is undone; its caller gets the error, and no other."""

    def fails(tx: Tx) -> None:
        insert(tx, "undone")
        raise WorkflowNotFound("x")

    gate, caller = bench.hold_up()
    first, bad, last = add_later(bench, 1, door), door(bench, fails), add_later(bench, 2, door)
    gate.open()
    assert [first.result(), last.result()] == [1, 2]
    with pytest.raises(WorkflowNotFound):
        bad.result()
    assert bench.rows() == [1, 2]
    caller.join()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exit_is_its_own_too(bench: Bench, error: type[BaseException], door: Door) -> None:
    """What the body of a transaction raises to end the program does not end the writer."""

    def exits(tx: Tx) -> None:
        raise error

    gate, caller = bench.hold_up()
    first, bad = add_later(bench, 1, door), door(bench, exits)
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


def test_a_thread_that_will_wait_long_does_not_commit(bench: Bench) -> None:
    """The writer runs what it writes; it has the result, or the error, when it is there."""
    ran_on: list[str] = []

    def noting(tx: Tx) -> object:
        ran_on.append(threading.current_thread().name)
        return insert(tx, "x")

    def failing(tx: Tx) -> object:
        raise WorkflowNotFound("w")

    noted = Caller(lambda: bench.database.write_by_writer("noting", noting))
    noted.join()
    failed = Caller(lambda: bench.database.write_by_writer("failing", failing))
    failed.join()
    assert (noted.result, noted.error) == ("x", None)
    assert isinstance(failed.error, WorkflowNotFound)
    assert (ran_on, bench.rows()) == (["durable writer"], ["x"])


def test_the_main_thread_commits_itself(bench: Bench) -> None:
    """It is but one, and may be interrupted: it needs no writer."""
    bench.database.write_by_writer("add", lambda tx: insert(tx, "x"))

    assert bench.rows() == ["x"]
    assert "durable writer" not in [each.name for each in threading.enumerate()]


def test_where_no_thread_can_be_started_nothing_waits_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told at once, and those after it write on."""

    def spawn(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(bench.clock, "spawn", spawn)
        with pytest.raises(RuntimeError, match="new thread"):
            add_later(bench, "lost")
        bench.add("a")
    assert add_later(bench, "b").result() == "b"
    assert bench.rows() == ["a", "b"]


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


def test_many_callers_of_all_kinds(bench: Bench) -> None:
    """Threads that wait and threads that do not, all at once: each write once, none forgotten."""

    def work(who: int) -> None:
        for n in range(60):
            if (who + n) % 2:
                bench.add(f"{who}/{n}")
            else:
                door = DOORS[n % 4 // 2]
                assert add_later(bench, f"{who}/{n}", door).result() == f"{who}/{n}"

    def pour(who: int) -> None:
        laters = [add_later(bench, f"{who}/{n}", DOORS[n % 2]) for n in range(300)]
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


@pytest.mark.parametrize("begun", [False, True], ids=["new writer", "writer at rest"])
@pytest.mark.parametrize("door", DOORS)
def test_ctrl_c_at_any_point_of_a_leading_thread(path: str, door: Door, begun: bool) -> None:
    """Interrupted anywhere, the main thread's write leaves none behind that cannot lead itself."""
    at = 0
    while True:
        at += 3
        bench = Bench(f"{path}{at}")
        if begun:
            add_later(bench, "before").result()
        interruption = Interruption(at)
        laters: list[Later] = []

        def leads(tx: Tx, bench: Bench = bench, laters: list[Later] = laters) -> object:
            if not laters:
                laters.append(add_in_between(bench, door))
            return insert(tx, "mine")

        try:
            with interruption.armed():
                bench.database.write("leads", leads)
        except KeyboardInterrupt:
            pass
        laters = laters or [add_later(bench, "later", door)]
        assert laters[0].result() == "later", interruption.where
        assert "later" in bench.rows()
        bench.database.close()
        if not interruption.happened:
            break
    assert at > 15


@pytest.mark.parametrize("begun", [False, True], ids=["new writer", "writer at rest"])
def test_ctrl_c_at_any_point_of_a_call_leaves_the_door_open(path: str, begun: bool) -> None:
    """What the main thread brought is written once or not at all, and the next one goes on."""
    at, interruption = 0, None
    while interruption is None or interruption.happened:
        at += 1
        bench = Bench(f"{path}{at}")
        if begun:
            add_later(bench, "before").result()
        interruption = Interruption(at)
        later = None
        with suppress(KeyboardInterrupt), interruption.armed():
            later = add_later(bench, "mine")
        Caller(lambda bench=bench: bench.add("next")).join(patience=5)
        if later is not None:
            assert later.result() == "mine", interruption.where
        bench.database.settle()
        rows = bench.rows()
        assert rows.count("next") == 1, interruption.where
        assert rows.count("mine") in ((0, 1) if later is None else (1,)), interruption.where
        bench.database.close()
    assert at > 10


def add_in_between(bench: Bench, door: Door) -> Later:
    """A call of another thread, which comes while this one holds the file."""
    found: list[Later] = []
    thread = threading.Thread(target=lambda: found.append(add_later(bench, "later", door)))
    thread.start()
    thread.join()
    return found[0]
