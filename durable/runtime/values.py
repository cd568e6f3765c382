"""What a workflow would else draw from the machine, recorded; and the markers of patches."""

from __future__ import annotations

import uuid
from datetime import datetime

from durable.checks import check_text
from durable.clock import as_datetime
from durable.runtime.checkpoint import effect, settle
from durable.runtime.context import PATCH, Scope
from durable.runtime.flows import Flow


def now(scope: Scope) -> Flow[datetime]:
    """The moment, the same on every replay."""
    clock, codec = scope.host.clock, scope.host.codec
    outcome = yield from effect(scope, "durable.now", lambda tx, place: clock.now())
    return as_datetime(settle(outcome, codec))


def uuid4(scope: Scope) -> uuid.UUID:
    """A random id, the same on every replay: it needs no record."""
    return uuid.UUID(int=scope.run.random_ids.getrandbits(128), version=4)


def patched(scope: Scope, name: str) -> Flow[bool]:
    """Whether the run reaches this point for the first time with the change called `name`.

    A run that had recorded a step here before the change goes on without it. The first answer
    holds for the whole run.
    """
    check_text(name, "the name of a patch")
    patches = scope.run.patches
    if name not in patches:
        ahead = scope.peek()
        passed = ahead is not None and ahead.name != PATCH + name
        patches[name] = not passed
        if not passed:
            yield from effect(scope, PATCH + name, lambda tx, place: True)
    return patches[name]
