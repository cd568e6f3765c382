"""What a test may put in the place of the ordinary, for one engine; see `durable.testing`."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from durable.store.database import Observer

Guard = Callable[[], AbstractContextManager[None]]


def random_id() -> str:
    """A fresh id, as engines give it."""
    return str(uuid.uuid4())


def no_key() -> None:
    """No idempotency key: each message from outside is another one."""


@dataclass(eq=False, repr=False)
class Hooks:
    """The ordinary behaviour, unless something is put in its place."""

    new_id: Callable[[], str] = random_id
    """The id of a workflow that is given none."""
    new_message_key: Callable[[], str | None] = no_key
    """The idempotency key of a message from outside that is given none."""
    observer: Observer | None = None
    """Told of each write."""
    replacements: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """What is called in place of the steps and workflows of these names."""
    replay_only: bool = False
    """Whether a run stops where its records end, before anything is done."""
    guard: Guard | None = None
    """What surrounds the body of each workflow whenever it runs; its steps are outside it."""
    unguard: Guard | None = None
    """What surrounds the body of each step."""
    errors: deque[BaseException] = field(default_factory=lambda: deque(maxlen=100))
    """What went wrong on threads that nobody waits for."""
