"""What a test may put in the place of the ordinary, for one engine; see `durable.testing`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from durable.store.database import Observer

Guard = Callable[[], AbstractContextManager[None]]


# The bits that tell the version and the variant of a UUID, and what they are in a random one.
_UUID_KIND = 0xF << 76 | 0x3 << 62
_RANDOM_UUID = 0x4 << 76 | 0x2 << 62


def random_id() -> str:
    """A fresh id, as engines give it: `str(uuid.uuid4())`, without the object in between."""
    bits = int.from_bytes(os.urandom(16)) & ~_UUID_KIND | _RANDOM_UUID
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def no_key() -> None:
    """No idempotency key: each message from outside is another one."""


class Hooks:
    """The ordinary behaviour, unless something is put in its place."""

    def __init__(self) -> None:
        self.new_id: Callable[[], str] = random_id
        """The id of a workflow that is given none."""
        self.new_message_key: Callable[[], str | None] = no_key
        """The idempotency key of a message from outside that is given none."""
        self.observer: Observer | None = None
        """Told of each write."""
        self.replacements: dict[str, Callable[..., Any]] = {}
        """What is called in place of the steps and workflows of these names."""
        self.replay_only = False
        """Whether a run stops where its records end, before anything is done."""
        self.guard: Guard | None = None
        """What surrounds the body of each workflow whenever it runs; its steps are outside it."""
        self.unguard: Guard | None = None
        """What surrounds the body of each step."""
        self.around_steps = False
        """Whether steps are not simply called, because of any of these."""
        self.errors: deque[BaseException] = deque(maxlen=100)
        """What went wrong on threads that nobody waits for."""

    def replace(self, name: str, function: Callable[..., Any] | None) -> None:
        """Put the function in the place of the step or workflow of that name; None: no more."""
        if function is None:
            del self.replacements[name]
        else:
            self.replacements[name] = function
        self._look_around_steps()

    def surround(self, guard: Guard | None, unguard: Guard | None) -> None:
        """Have bodies of workflows run inside the one, those of steps inside the other."""
        self.guard, self.unguard = guard, unguard
        self._look_around_steps()

    def only_replay(self) -> None:
        """Let each run stop where its records end."""
        self.replay_only = True
        self._look_around_steps()

    def _look_around_steps(self) -> None:
        self.around_steps = bool(self.replacements or self.unguard or self.replay_only)
