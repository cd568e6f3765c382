"""Testing workflows: a clock that one drives, every crash, every order, and code against records.

Needs nothing but the standard library; `durable.testing.plugin` adds fixtures for pytest.
"""

from durable.testing.clock import Deadlock, VirtualClock
from durable.testing.engines import TestEngine, engine
from durable.testing.exploring import Report, crashes, orders
from durable.testing.replacing import Replacement, replace
from durable.testing.replaying import Replayed, replay
from durable.testing.strictness import NotDeterministic, strict
from durable.testing.timeline import timeline

__all__ = [
    "Deadlock",
    "NotDeterministic",
    "Replacement",
    "Replayed",
    "Report",
    "TestEngine",
    "VirtualClock",
    "crashes",
    "engine",
    "orders",
    "replace",
    "replay",
    "strict",
    "timeline",
]
