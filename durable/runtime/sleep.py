"""Durable sleep: the moment of waking is recorded when it begins."""

from __future__ import annotations

from collections.abc import Callable

from durable.runtime.context import Scope
from durable.runtime.flows import Flow, Pause, Write
from durable.store import steps, workflows
from durable.store.steps import VALUE, Outcome
from durable.store.tx import Tx

# Longer sleeps are written down by the writer, so that their threads run no SQL: see
# `Database.write_by_writer`. Shorter ones might last longer by that.
LONG = 1.0


def sleep(scope: Scope, until: Callable[[float], float]) -> Flow[None]:
    """Wait until the moment that `until` makes of the present one, when it is first asked."""
    name = "durable.sleep"
    place, record = scope.next(name)
    if record is not None and record.outcome is not None:
        moment = float(record.outcome.text or 0)
    else:
        now = scope.host.clock.now()
        moment = until(now)

        def write(tx: Tx) -> None:
            workflows.guard(tx, *scope.run.key)
            outcome = Outcome(VALUE, repr(moment))
            steps.decide(tx, scope.run.key, place, name, outcome, started_at=now, now=now)
            if not scope.run.beside:  # else, others of the run may have something to do
                workflows.set_waiting(tx, *scope.run.key, waits_for=None, wake_at=moment)

        yield Write(name, write, unhurried=moment - now > LONG)
    yield Pause(moment)
