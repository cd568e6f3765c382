"""An open file: what any process needs to look at it, to act on it, and to wait for it."""

from __future__ import annotations

from dataclasses import dataclass

from durable.clock import Clock
from durable.codec import Codec
from durable.runtime.hooks import no_key, random_id
from durable.runtime.waiting import Waiting
from durable.store.database import Database


@dataclass
class File:
    """The database, the codec of its values, the clock, and those who wait."""

    database: Database
    codec: Codec
    clock: Clock
    waiting: Waiting

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
