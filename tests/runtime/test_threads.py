"""The threads of an engine: used again, known by what runs on them, gone when it closes."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

import durable
from durable import Engine, workflow
from durable.clock import SystemClock
from durable.runtime import threads as module
from durable.runtime.threads import Threads
from tests.store.interrupts import Interruption
from tests.support import PATIENCE, Gate, until


def raise_again(name: str, error: Exception) -> None:
    raise error


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(SystemClock(), raise_again)
    yield threads
    threads.close(PATIENCE)


def run(threads: Threads, name: str, function: Callable[[], object]) -> threading.Thread:
    """The thread on which the function has run, free again."""
    seen: list[threading.Thread] = []

    def target() -> None:
        function()
        seen.append(threading.current_thread())

    count = len(threads._free)
    threads.run(name, target)
    until(lambda: seen and len(threads._free) >= count)
    until(lambda: threads._free)
    return seen[0]


def test_a_free_thread_is_used_again(threads: Threads) -> None:
    """The second of two that run one after the other needs no new thread, and has its own name."""
    names = []
    first = run(threads, "durable one", lambda: names.append(threading.current_thread().name))
    second = run(threads, "durable two", lambda: names.append(threading.current_thread().name))

    assert first is second
    assert names == ["durable one", "durable two"]


def run_at_once(threads: Threads, count: int) -> None:
    """Run so many functions of which none ends before all have begun."""
    gates = [Gate() for _ in range(count)]
    for gate in gates:
        threads.run("durable test", gate.pass_through)
    for gate in gates:
        gate.wait_reached()
    for gate in gates:
        gate.open()


def test_what_runs_at_once_has_threads_of_its_own(threads: Threads) -> None:
    """Nothing waits for a thread: as many run as there is to do."""
    run_at_once(threads, 10)


def free(threads: Threads, count: int) -> None:
    """Let there be so many free threads."""
    run_at_once(threads, count)
    until(lambda: len(threads._free) == count)


def test_what_comes_at_once_and_blocks_has_threads_of_its_own(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is called at a time; each calls the next before it runs what it took."""
    monkeypatch.setattr(module, "FREE_SECONDS", PATIENCE)
    free(threads, 10)
    known = set(threads._all)
    run_at_once(threads, 15)
    assert known < threads._all
    assert len(threads._all) == 15


def test_what_is_done_soon_needs_no_more_threads(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred functions are run by the threads that are there."""
    monkeypatch.setattr(module, "FREE_SECONDS", PATIENCE)
    free(threads, 10)
    known = set(threads._all)
    done: list[int] = []
    for number in range(100):
        until(lambda: len(threads._tasks) < len(threads._free))
        threads.run("durable test", lambda number=number: done.append(number))  # type: ignore[misc]
    until(lambda: len(done) == 100)
    assert sorted(done) == list(range(100))
    assert threads._all <= known


def test_an_interrupted_call_leaves_the_next_one_served(threads: Threads) -> None:
    """Wherever a Ctrl-C comes while a function is handed over, the functions after it run."""
    at = 0
    while True:
        at += 1
        free(threads, 2)
        done = threading.Event()
        interruption = Interruption(at, frozenset({module.__file__}))
        with suppress(KeyboardInterrupt), interruption.armed():
            threads.run("durable interrupted", lambda: None)
        threads.run("durable next", done.set)
        assert done.wait(PATIENCE), interruption.where
        until(lambda: len(threads._free) >= 2)
        if not interruption.happened:
            break
    assert at > 3


def test_functions_that_wait_for_a_thread_are_run_before_it_ends(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that are free for too long, and `close`, lose nothing that came just before."""
    monkeypatch.setattr(module, "FREE_SECONDS", 0.0001)
    done: list[int] = []
    for number in range(300):
        threads.run("durable test", lambda number=number: done.append(number))  # type: ignore[misc]
    threads.close(PATIENCE)
    assert sorted(done) == list(range(300))


def test_what_is_to_run_next_runs_on_the_same_thread(threads: Threads) -> None:
    """Once what runs there has returned; one thing at most, and not on other threads."""
    seen: list[threading.Thread] = []

    def note() -> None:
        seen.append(threading.current_thread())

    def first() -> None:
        note()
        assert threads.run_next("durable next", note)
        assert not threads.run_next("durable too many", note)
        assert len(seen) == 1

    run(threads, "durable first", first)
    until(lambda: len(seen) == 2)
    assert seen[0] is seen[1]
    assert not threads.run_next("durable elsewhere", note)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_is_to_run_next_runs_also_after_an_exit(threads: Threads) -> None:
    """On another thread, as this one has ended."""
    seen: list[str] = []

    def leaves() -> None:
        threads.run_next("durable next", lambda: seen.append("next"))
        raise SystemExit

    threads.run("durable leaves", leaves)
    until(lambda: seen)


def test_nothing_is_left_of_what_ran_before(threads: Threads) -> None:
    """A context variable that one function sets is unset in the next on the same thread."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen = []
    first = run(threads, "durable one", lambda: variable.set("by the first"))
    second = run(threads, "durable two", lambda: seen.append(variable.get()))

    assert first is second
    assert seen == ["unset"]


def test_a_free_thread_ends_after_a_while(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that has nothing to do keeps no threads for it."""
    monkeypatch.setattr(module, "FREE_SECONDS", 0.01)
    gate = Gate()
    threads.run("durable test", gate.pass_through)
    gate.open()
    until(lambda: not threads._all)
    assert threads._free == []


def test_close_ends_the_free_ones_and_waits_for_the_others() -> None:
    """After `close` there is no thread; what is stuck is waited for as long as told."""
    threads, gate = Threads(SystemClock(), raise_again), Gate()
    run(threads, "durable free", lambda: None)
    threads.run("durable busy", gate.pass_through)
    gate.wait_reached()
    threads.close(0.0)
    gate.open()
    threads.close(PATIENCE)
    assert not threads._all


def test_a_thread_does_not_belong_to_who_needed_it_first(engine: Engine) -> None:
    """One that was made for the child of a workflow may run what has nothing to do with it."""
    gate = Gate()
    seen: list[object] = []

    @workflow
    def child() -> None: ...

    @workflow
    def parent() -> None:
        child.start().result()
        gate.pass_through()

    handle = parent.start()
    gate.wait_reached()
    host = engine._open_engine()
    until(lambda: host.threads._free)
    host.spawn("durable test", lambda: seen.append(_step_outside()))
    until(lambda: seen)
    gate.open()
    handle.result(PATIENCE)
    assert seen == ["ran"]


@durable.step
def _step_outside() -> str:
    return "ran"
