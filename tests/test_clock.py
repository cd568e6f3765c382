"""The clock of the machine, and the condition that a waiting workflow has."""

from __future__ import annotations

import threading

from durable.clock import SoloCondition, SystemClock
from tests.support import PATIENCE, until


def test_a_notified_wait_ends_before_its_deadline() -> None:
    """Another thread makes it ready, and notifies it."""
    clock, mutex, told = SystemClock(), threading.Lock(), []
    condition = SoloCondition(mutex)

    def tell() -> None:
        with condition:
            told.append(1)
            condition.notify()

    with condition:
        clock.spawn("tells", tell)
        assert clock.wait(condition, lambda: bool(told), clock.now() + PATIENCE)
    assert not mutex.locked()


def test_a_wait_ends_at_its_deadline() -> None:
    """Nobody notifies it; whoever does so later notifies nobody."""
    clock, condition = SystemClock(), SoloCondition(threading.Lock())
    with condition:
        assert not clock.wait(condition, lambda: False, clock.now() + 0.001)
        condition.notify()
        assert not condition.wait(0.001)


def test_a_spawned_thread_has_its_name_and_forgets_its_function() -> None:
    """It is a daemon, and what the function held is free once it has returned."""
    seen: list[threading.Thread] = []
    thread = SystemClock().spawn("one", lambda: seen.append(threading.current_thread()))
    thread.join(PATIENCE)
    until(lambda: not thread.is_alive())
    assert [(each.name, each.daemon) for each in seen] == [("one", True)]
    assert vars(seen[0])["_function"] is None
