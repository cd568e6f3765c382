"""The virtual clock: one thread at a time, in an order drawn from a seed, and time that jumps."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import Engine, InvalidArgument, Retry, Status, step, workflow
from durable.testing import Deadlock, TestEngine, VirtualClock
from durable.testing import engine as new_engine
from tests.support import PATIENCE, dying

DAY = 86400.0


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def wait(clock: VirtualClock, seconds: float | None = None) -> bool:
    """Wait for nothing, so many seconds."""
    condition = threading.Condition()
    with condition:
        deadline = None if seconds is None else clock.now() + seconds
        return clock.wait(condition, lambda: False, deadline)


class Signal:
    """Something that one thread waits for, and another one does."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._condition = threading.Condition()
        self._given = False

    def give(self) -> None:
        with self._condition:
            self._given = True
            self._condition.notify_all()

    def wait(self, seconds: float | None = None) -> bool:
        with self._condition:
            deadline = None if seconds is None else self._clock.now() + seconds
            return self._clock.wait(self._condition, lambda: self._given, deadline)


def passed(clock: VirtualClock) -> float:
    """Seconds since the clock was made."""
    return (clock.moment - datetime(2026, 1, 1, tzinfo=UTC)).total_seconds()


def spawn_sleepers(clock: VirtualClock, log: list[Any], *seconds: float) -> None:
    def sleeper(span: float) -> Callable[[], None]:
        def run() -> None:
            wait(clock, span)
            log.append((span, passed(clock)))

        return run

    for span in seconds:
        clock.spawn(f"sleeper {span}", sleeper(span))


# ---------------------------------------------------------------------- time


def test_a_wait_jumps_to_its_deadline(clock: VirtualClock) -> None:
    """Thirty days later, to the second, at once."""
    assert not wait(clock, 30 * DAY)
    assert passed(clock) == 30 * DAY


def test_a_clock_begins_where_it_is_told() -> None:
    """`start` is the first moment; one without a time zone is refused."""
    start = datetime(2030, 5, 6, 7, 8, tzinfo=UTC)
    assert VirtualClock(start=start).moment == start
    with pytest.raises(InvalidArgument, match=r"start of a clock.*time zone"):
        VirtualClock(start=datetime(2030, 5, 6))


def test_a_clock_that_is_set_forward_lets_nothing_run_in_between(clock: VirtualClock) -> None:
    """As when a laptop sleeps: all that fell due goes on at the end, late."""
    log: list[Any] = []
    spawn_sleepers(clock, log, 30, 10)
    clock.settle()
    clock.set(clock.moment + timedelta(seconds=60))
    assert sorted(log) == [(10, 60), (30, 60)]


def test_a_clock_that_is_set_back_makes_all_wait_longer(clock: VirtualClock) -> None:
    """A deadline is a moment, not a span."""
    log: list[Any] = []
    spawn_sleepers(clock, log, 10)
    clock.settle()
    clock.set(clock.moment - timedelta(seconds=5))
    clock.advance(seconds=14)
    assert log == []
    clock.advance(seconds=1)
    assert log == [(10, 10)]


def test_a_clock_is_set_to_a_moment_by_its_owner(clock: VirtualClock) -> None:
    """One with a time zone, and by nobody else."""
    with pytest.raises(InvalidArgument, match=r"clock is set to.*time zone"):
        clock.set(datetime(2030, 5, 6))
    refused: list[str] = []

    def another() -> None:
        with pytest.raises(InvalidArgument, match="only the thread that made the clock"):
            clock.set(clock.moment)
        refused.append("refused")

    clock.spawn("another", another)
    clock.settle()
    assert refused == ["refused"]


def test_what_waits_in_the_background_is_passed_but_not_waited_for(clock: VirtualClock) -> None:
    """Time jumps over its deadlines on the way to another one, and never on their account alone."""
    log: list[float] = []

    def beat() -> None:
        while len(log) < 1000:
            wait(clock, 10)
            log.append(passed(clock))

    clock.spawn("beat", beat, background=True)
    with pytest.raises(Deadlock):
        wait(clock)
    assert log == []
    wait(clock, 35)
    assert log == [10, 20, 30]


def test_what_is_there_already_is_not_waited_for(clock: VirtualClock) -> None:
    """A wait that is over before it begins moves no time, whether it was given or is due."""
    given = Signal(clock)
    given.give()
    assert given.wait(DAY)
    assert not wait(clock, 0)
    assert passed(clock) == 0


def test_a_signal_comes_before_a_later_deadline(clock: VirtualClock) -> None:
    """Who is woken has not waited until the deadline."""
    signal = Signal(clock)

    def later() -> None:
        wait(clock, 10)
        signal.give()

    clock.spawn("giver", later)
    assert signal.wait(DAY)
    assert passed(clock) == 10


def test_deadlines_come_in_order(clock: VirtualClock) -> None:
    """Each sleeper wakes at its own moment, whatever the order in which they began."""
    log: list[Any] = []
    spawn_sleepers(clock, log, 30, 10, 20)
    wait(clock, 40)
    assert log == [(10, 10), (20, 20), (30, 30)]


def test_advance_lets_fall_due_what_lies_in_the_span(clock: VirtualClock) -> None:
    """`advance` ends at its very moment: what is due then happens, what is due later does not."""
    log: list[Any] = []
    spawn_sleepers(clock, log, 1, 60, 61)
    clock.advance(minutes=1)
    assert log == [(1, 1), (60, 60)]
    assert passed(clock) == 60
    clock.advance(days=1, hours=2, minutes=3, seconds=4)
    assert [span for span, _ in log] == [1, 60, 61]
    assert passed(clock) == 60 + DAY + 2 * 3600 + 3 * 60 + 4


def test_advance_does_not_go_back(clock: VirtualClock) -> None:
    """A negative span is refused."""
    with pytest.raises(InvalidArgument, match="turned back"):
        clock.advance(hours=-1)


def test_settle_moves_no_time(clock: VirtualClock) -> None:
    """`settle` lets everybody go on who can, and nobody's deadline come."""
    log: list[Any] = []
    spawn_sleepers(clock, log, 0, 1)
    clock.settle()
    assert log == [(0, 0)]
    clock.advance(seconds=1)


# ---------------------------------------------------------------------- the baton


def test_nothing_moves_behind_the_test(clock: VirtualClock) -> None:
    """A thread begins only when the test waits on the clock."""
    log: list[str] = []
    thread = clock.spawn("worker", lambda: log.append("ran"))
    assert log == []
    assert thread.is_alive()
    thread.join()
    assert log == ["ran"]
    assert not thread.is_alive()


def test_one_thread_runs_at_a_time(clock: VirtualClock) -> None:
    """Between two switches nobody else runs."""
    inside, seen = [0], set()

    def work() -> None:
        for _ in range(20):
            inside[0] += 1
            seen.add(inside[0])
            inside[0] -= 1
            clock.switch()

    threads = [clock.spawn(f"worker {n}", work) for n in range(4)]
    for thread in threads:
        thread.join()
    assert seen == {1}


def order_of(seed: int) -> str:
    """In which order three threads take their turns."""
    clock, log = VirtualClock(seed), []

    def worker(name: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(3):
                log.append(name)
                clock.switch()

        return run

    threads = [clock.spawn(name, worker(name)) for name in "abc"]
    for thread in threads:
        thread.join()
    return "".join(log)


def test_the_seed_decides_the_order() -> None:
    """The same seed gives the same order, and others give others."""
    assert len({order_of(7) for _ in range(10)}) == 1
    assert len({order_of(seed) for seed in range(20)}) > 10


def test_a_join_may_time_out(clock: VirtualClock) -> None:
    """`join` waits so many seconds of the clock at most."""
    thread = clock.spawn("sleeper", lambda: wait(clock, 10) and None)
    thread.join(9)
    assert thread.is_alive()
    thread.join(9)
    assert not thread.is_alive()
    assert passed(clock) == 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_a_thread_is_kept(clock: VirtualClock) -> None:
    """What a spawned thread raises ends that thread, is kept, and holds nobody up."""
    clock.spawn("bad", lambda: {}["nothing"])
    assert not wait(clock, 1)
    assert [type(error) for error in clock.errors] == [KeyError]


# ---------------------------------------------------------------------- deadlocks


def waits_for_ever(clock: VirtualClock) -> None:
    wait(clock)


def test_a_deadlock_says_who_waits_where(clock: VirtualClock) -> None:
    """Nobody can go on and no deadline will come: the test learns of each thread's line."""
    clock.spawn("lonely", lambda: waits_for_ever(clock))
    with pytest.raises(Deadlock) as caught:
        wait(clock)
    text = str(caught.value)
    assert text.startswith("nothing can happen any more:\n")
    here = Path(__file__).name
    assert f"the test: waits in wait ({__file__}" in text
    assert "lonely: waits in wait (" in text
    assert f"{here}:" in text


def test_after_a_deadlock_the_clock_goes_on(clock: VirtualClock) -> None:
    """The test that was told of a deadlock may do what was missing."""
    signal, log = Signal(clock), []
    clock.spawn("waiter", lambda: log.append(signal.wait()))
    with pytest.raises(Deadlock):
        wait(clock)
    signal.give()
    clock.settle()
    assert log == [True]


def test_a_sleeper_is_no_deadlock(clock: VirtualClock) -> None:
    """As long as somebody waits for a moment, that moment comes."""
    signal = Signal(clock)

    def give() -> None:
        wait(clock, 100 * DAY)
        signal.give()

    clock.spawn("giver", give)
    assert signal.wait()


def test_a_thread_that_is_stuck_is_found() -> None:
    """A thread that waits for what the clock does not know is named with its line, not waited for.

    The test has the baton then, and the others go on.
    """
    clock, never, log = VirtualClock(patience=0.1), threading.Event(), []
    stuck = clock.spawn("stuck", lambda: never.wait(PATIENCE) and None)
    with pytest.raises(Deadlock, match=r"0.1 s of real time.*\n.*\n  stuck: running in .*lambda"):
        stuck.join()
    spawn_sleepers(clock, log, 5)
    assert not wait(clock, 10)
    assert log == [(5, 5)]
    never.set()
    stuck._thread.join(PATIENCE)


def test_a_guest_that_never_acts_is_found() -> None:
    """Idle threads of an executor might act; when none does for long, the test learns of them."""
    clock = VirtualClock(patience=0.05)
    with ThreadPoolExecutor(1, thread_name_prefix="idle") as executor:
        executor.submit(int).result()
        with pytest.raises(Deadlock, match="idle_0: not known to the clock"):
            wait(clock)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt also where a shell runs the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_while_everybody_waits() -> None:
    """Ctrl-C reaches the test, though a step is stuck; the engine can be closed all the same."""
    released = threading.Event()

    @workflow
    def wf() -> None:
        durable.run_step(_thread.interrupt_main)
        durable.run_step(released.wait, PATIENCE)

    with pytest.raises(KeyboardInterrupt), new_engine() as engine:
        wf.start().result()
    released.set()
    assert engine.closed


# ---------------------------------------------------------------------- threads of the test's own


def test_outside_lets_the_others_go_on(clock: VirtualClock) -> None:
    """While the test is outside, those who can go on do, and the time stands still."""
    log: list[Any] = []
    done = threading.Event()

    def work() -> None:
        log.append("worked")
        done.set()

    clock.spawn("worker", work)
    spawn_sleepers(clock, log, 5)
    with clock.outside():
        assert done.wait(PATIENCE)
    assert log == ["worked"]
    assert passed(clock) == 0
    clock.advance(seconds=5)


def test_a_step_may_wait_for_the_test() -> None:
    """A step that is outside holds nobody up, and no time passes until it is back."""
    reached, released = threading.Event(), threading.Event()

    def at_the_gate() -> float:
        with clock.outside():
            reached.set()
            assert released.wait(PATIENCE)
        return clock.now()

    @workflow
    def wf() -> float:
        return durable.run_step(at_the_gate)

    with new_engine() as engine:
        clock = engine.clock
        handle, began = wf.start(), clock.now()
        with clock.outside():
            assert reached.wait(PATIENCE)
        clock.settle()
        assert handle.steps() == []
        with clock.outside():
            released.set()
        assert handle.result(1) == began


def test_only_the_test_drives_the_clock() -> None:
    """A workflow cannot move the time, and a thread of the test's own neither."""

    @workflow
    def wf() -> None:
        clock.advance(days=1)

    with new_engine() as engine:
        clock = engine.clock
        with pytest.raises(InvalidArgument, match="only the thread that made the clock"):
            wf.start().result()
        with ThreadPoolExecutor(1) as executor:
            for move in (clock.settle, clock.outside().__enter__):
                assert isinstance(executor.submit(move).exception(), InvalidArgument)


def test_a_thread_unknown_to_the_clock_may_send() -> None:
    """What a thread of the test's own does wakes workflows, and the test that waits for them."""
    with new_engine():
        handle = receive.start(None)
        thread = threading.Thread(target=lambda: handle.send("hello"))
        thread.start()
        assert handle.result() == "hello"
        thread.join()


def test_a_thread_unknown_to_the_clock_may_wait() -> None:
    """A thread of the test's own sees the result when it is there."""
    with new_engine() as engine, ThreadPoolExecutor(1) as executor:
        handle = receive.start(None)
        result = executor.submit(handle.result)
        assert not result.done()
        handle.send("hello")
        with engine.clock.outside():
            assert result.result(PATIENCE) == "hello"


def test_the_time_stands_still_while_a_thread_unknown_to_the_clock_works() -> None:
    """As long as it uses the engine, time does not run away while a commit of its is awaited."""
    with new_engine() as engine:
        handle = receive.start(None)

        def busy() -> None:
            for number in range(100):
                handle.send(number, "other")
            handle.send("in time")

        with ThreadPoolExecutor(2) as executor:
            futures = [executor.submit(busy) for _ in range(2)]
            for number in range(50):
                handle.send(number, "mine")
            assert handle.result() == "in time"
            assert [each.result(PATIENCE) for each in futures] == [None, None]
        assert passed(engine.clock) < 5


# ---------------------------------------------------------------------- engines


@step
def echo(value: Any) -> Any:
    return value


@workflow
def receive(timeout: float | None) -> Any:
    return durable.recv(timeout=timeout, default="nothing")


@workflow
def sleeps(spans: list[float]) -> None:
    for span in spans:
        durable.sleep(span)


@workflow
def races(count: int) -> list[Any]:
    """Children that sleep, work and end in some order."""
    handles = [racer.start(n) for n in range(count)]
    done = durable.wait(handles).done
    return [each.result() for each in done]


@workflow
def racer(number: int) -> int:
    durable.sleep(durable.random().choice([1, 2]))
    return int(echo(number))


def test_a_sleep_of_thirty_days_costs_no_time() -> None:
    """Less than a millisecond, the best of three times fifty; and all of them are in the file."""

    def fifty(engine: TestEngine) -> float:
        handle = sleeps.start([30 * DAY] * 50)
        began = time.perf_counter()
        handle.result()
        took = time.perf_counter() - began
        assert len(handle.steps()) == 50
        return took / 50

    with new_engine() as engine:
        assert min(fifty(engine) for _ in range(3)) < 0.001
        assert passed(engine.clock) == 150 * 30 * DAY


def test_the_time_stands_still_while_a_step_works() -> None:
    """A step that takes long, in threads that the clock does not know, takes no time of it."""

    def work() -> float:
        began = clock.now()
        with ThreadPoolExecutor(2) as executor:
            assert sum(executor.map(len, ["ab"] * 100)) == 200
        return clock.now() - began

    @workflow
    def works() -> float:
        return durable.run_step(work)

    with new_engine() as engine:
        clock = engine.clock
        asleep = sleeps.start([1e-6])
        assert works.start().result() == 0
        asleep.result()


@pytest.mark.parametrize("seed", range(10))
def test_the_time_stands_still_while_the_test_is_about_to_send(seed: int) -> None:
    """A workflow that waits one second gets what the test sends, however long the test thinks."""
    with new_engine(seed=seed) as engine:
        handle = receive.start(1)
        engine.clock.settle()
        for _ in range(5):
            other = receive.start(60)
            other.send("first")
            assert other.result() == "first"
        handle.send("in time")
        assert handle.result() == "in time"


def test_a_timeout_comes_at_its_moment() -> None:
    """`recv`, an event and a result time out after just so long."""
    with new_engine() as engine:
        assert receive.start(90).result() == "nothing"
        assert passed(engine.clock) == 90
        handle = receive.start(None)
        with pytest.raises(durable.WaitTimeout):
            handle.event("never", timeout=60)
        assert passed(engine.clock) == 150
        with pytest.raises(durable.WaitTimeout):
            handle.result(timeout=timedelta(minutes=1))
        assert passed(engine.clock) == 210


def test_retries_come_at_their_moments() -> None:
    """The pauses between tries are those of the policy, to the second."""
    tries: list[float] = []

    @step(retry=Retry(attempts=4, delay=10, backoff=3, max_delay=50))
    def fails() -> None:
        tries.append(passed(clock))
        raise OSError("no")

    @workflow
    def wf() -> None:
        fails()

    with new_engine() as engine:
        clock = engine.clock
        with pytest.raises(OSError, match="no"):
            wf.start().result()
    assert tries == [0, 10, 40, 90]


def test_retries_with_jitter_are_the_same_every_time() -> None:
    """A run is the same for the same seed, pauses that are made longer by chance included."""

    @step(retry=Retry(attempts=3, jitter=0.5))
    def fails() -> None:
        raise OSError("no")

    @workflow
    def wf() -> None:
        fails()

    def moments() -> list[float]:
        with new_engine() as engine, pytest.raises(OSError, match="no"):
            wf.start().result()
        return [each.at for each in engine.journal.entries]

    assert moments() == moments()


def test_a_workflows_timeout_comes_at_its_moment() -> None:
    """A workflow is stopped when its time is over, in the middle of a sleep."""
    with new_engine() as engine:
        handle = sleeps.options(timeout=timedelta(hours=1)).start([DAY])
        with pytest.raises(durable.WorkflowCancelled, match="deadline"):
            handle.result()
        assert passed(engine.clock) == 3600
        assert handle.info().status is Status.CANCELLED


def test_advance_drives_workflows() -> None:
    """By hand: what falls due in the span happens, and nothing of what lies after it."""
    with new_engine() as engine:
        handle = sleeps.start([10 * DAY, 10 * DAY, 20 * DAY])
        engine.clock.advance(days=30)
        assert passed(engine.clock) == 30 * DAY
        assert handle.info().status is Status.PENDING
        assert len(handle.steps()) == 3
        engine.clock.advance(days=10)
        assert handle.info().status is Status.SUCCESS


def test_a_deadlock_of_workflows_says_where_they_wait() -> None:
    """Two workflows that wait for what nobody sends are named, with their lines."""
    with new_engine():
        one = receive.options(id="one").start(None)
        receive.options(id="two").start(None)
        with pytest.raises(Deadlock) as caught:
            one.result()
    for name in ("one", "two"):
        assert f"  durable {name}: waits in receive ({__file__}:" in str(caught.value)


# ---------------------------------------------------------------------- the same every time


def journal(seed: int) -> str:
    with new_engine(seed=seed) as engine:
        races.start(4).result()
        return str(engine.journal)


@pytest.mark.slow
def test_a_run_is_the_same_for_the_same_seed() -> None:
    """Twenty times the same moments, threads, ids and writes, in the same order."""
    assert len({journal(3) for _ in range(20)}) == 1


def test_other_seeds_give_other_orders() -> None:
    """Seeds are worth trying: ten of them give nearly as many orders."""
    assert len({journal(seed) for seed in range(10)}) >= 8


@pytest.mark.slow
def test_a_run_is_the_same_in_every_process() -> None:
    """Neither hash randomisation nor the process shows in what a run does."""
    code = f"from {__name__} import journal; print(journal(3))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.rstrip()
        for seed in ("1", "2")
    }
    assert outputs == {journal(3)}


# ---------------------------------------------------------------------- several


def test_two_engines_share_a_clock() -> None:
    """One order and one time for both, and a workflow of one may talk to the other's."""
    clock = VirtualClock()
    with new_engine(clock=clock) as first, new_engine(clock=clock) as second:
        one, two = first.start(sleeps, [5]), second.start(sleeps, [7])
        three = second.start(receive, 60)
        first.run(sleeps, [1])
        second.send(three.id, "hello")
        assert (one.result(), two.result(), three.result()) == (None, None, "hello")
        assert passed(clock) == 7


def test_two_clocks_go_each_its_own_way() -> None:
    """What is awaited on one clock moves that one alone."""
    with new_engine() as first, new_engine() as second:
        one, two = first.start(sleeps, [DAY]), second.start(sleeps, [DAY])
        one.result()
        assert passed(first.clock) == DAY
        assert passed(second.clock) == 0
        assert two.info().status is Status.PENDING
        two.result()
        assert passed(second.clock) == DAY


def test_a_workflow_may_use_an_engine_with_another_clock() -> None:
    """On another clock it is a guest, who is let in when that engine's test waits."""

    def send(target: str) -> None:
        second.send(target, "hello")

    @workflow
    def sends(target: str) -> None:
        durable.run_step(send, target)

    with new_engine() as first, new_engine() as second:
        handle = second.start(receive, 60)
        first.run(sends, handle.id)
        assert handle.result() == "hello"


def test_a_clock_outlives_its_engine(path: str) -> None:
    """After a restart the time goes on where it was."""
    clock = VirtualClock()
    with Engine(path, clock=clock) as engine:
        engine.run(sleeps, [DAY])
    with Engine(path, clock=clock) as engine:
        engine.run(sleeps, [DAY])
    assert passed(clock) == pytest.approx(2 * DAY, abs=1)


def test_leaving_an_engine_waits_for_what_it_recovers(path: str) -> None:
    """A program that only opens its engine, and leaves it, lets what was unfinished end."""
    with dying(path, clock=VirtualClock()):
        sleeps.options(id="17").start([DAY])
    with Engine(path, clock=VirtualClock()):
        pass
    with Engine(path, recover="manual") as engine:
        assert engine.handle("17").info().status is Status.SUCCESS


def test_a_closed_engine_leaves_no_thread_on_the_clock() -> None:
    """When an engine is closed, the test is alone again, whatever was running."""
    clock = VirtualClock()
    with new_engine(clock=clock):
        receive.options(timeout=DAY).start(None)
        sleeps.start([DAY])
        clock.settle()
        assert "durable timers" in clock.table()
    assert clock.table().splitlines()[0].startswith("  the test: running")
    assert "durable" not in clock.table().replace(__file__, "")


def test_a_moment_that_no_calendar_has(clock: VirtualClock) -> None:
    """A deadline in a million years is a deadline all the same, and can be told."""
    clock.spawn("patient", lambda: wait(clock, 1e15) and None)
    clock.settle()
    assert "patient: waits until 9999-12-31 23:59:59.999999" in clock.table()
    clock.advance(days=1)
    with pytest.raises(Deadlock):
        wait(clock)
