"""What a test may put in the place of the ordinary, for one engine; see `durable.testing`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from durable.store.database import Observer

Guard = Callable[[], AbstractContextManager[None]]


def no_key() -> None:
    """No idempotency key: each message from outside is another one."""


class Hooks:
    """The ordinary behaviour, unless something is put in its place."""

    def __init__(self) -> None:
        self.new_id: Callable[[], str] | None = None
        """The id of a workflow that is given none, if not a fresh one."""
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
