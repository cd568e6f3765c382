"""The clock of the machine."""

from __future__ import annotations

import threading

from durable.clock import SystemClock
from tests.support import PATIENCE, until


def test_a_spawned_thread_has_its_name_and_forgets_its_function() -> None:
    """It is a daemon, and what the function held is free once it has returned."""
    seen: list[threading.Thread] = []
    thread = SystemClock().spawn("one", lambda: seen.append(threading.current_thread()))
    thread.join(PATIENCE)
    until(lambda: not thread.is_alive())
    assert [(each.name, each.daemon) for each in seen] == [("one", True)]
    assert vars(seen[0])["_function"] is None
