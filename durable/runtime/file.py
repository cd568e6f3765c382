"""An open file: what any process needs to look at it, to act on it, and to wait for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from durable.clock import Clock
from durable.codec import Codec
from durable.runtime.hooks import no_key, random_id
from durable.runtime.waiting import Waiting
from durable.store.database import Database, Tx

T = TypeVar("T")


@dataclass
class File:
    """The database, the codec of its values, the clock, and those who wait."""

    database: Database
    codec: Codec
    clock: Clock
    waiting: Waiting

    def wait_for(
        self,
        keys: tuple[str, ...],
        look: Callable[[Tx], T | None],
        timeout: float | None,
        workflow_id: str | None = None,
    ) -> T | None:
        """What `look` finds, once it finds something; None when `timeout` seconds are over.

        Where it waits for what that workflow does: raise why it stopped, if it did unfinished.
        """
        deadline = None if timeout is None else self.clock.now() + timeout
        with self.waiting.listen(*keys) as listener:
            while True:
                failure = None if workflow_id is None else self.failure_of(workflow_id)
                found = self.database.read(look)
                if found is not None:
                    return found
                if failure is not None:
                    raise failure
                if deadline is not None and self.clock.now() >= deadline:
                    return None
                listener.wait(deadline)

    def new_id(self) -> str:
        """The id of a workflow that is given none."""
        return random_id()

    def new_message_key(self) -> str | None:
        """The idempotency key of a message from outside that is given none."""
        no_key()
        return None

    def failure_of(self, workflow_id: str) -> BaseException | None:
        """Why a run of this process stopped without an outcome; only an engine knows."""
        return None
