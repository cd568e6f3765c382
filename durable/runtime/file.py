"""An open file: what any process needs to look at it, to act on it, and to wait for it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from durable.clock import Clock
from durable.codec import Codec
from durable.runtime.fates import Fates
from durable.runtime.hooks import no_key
from durable.runtime.loops import OnLoop
from durable.runtime.waiting import Waiting
from durable.store.database import Database

# The bits of a UUID that tell its version and variant, and what they are in version 7.
_KIND = 0xF << 76 | 0x3 << 62
_VERSION_7 = 0x7 << 76 | 0x2 << 62


def fresh_id(now: float) -> str:
    """An id for what begins now: a UUID of version 7 (RFC 9562, section 5.7).

    It begins with the millisecond, so the ids of one time stand side by side in an index: what is
    started together changes a page of it, and not one each.
    """
    milliseconds = (
        int(now * 1_000_000 + 0.5) // 1_000 & 0xFFFF_FFFF_FFFF
    )  # exact: clocks tell whole µs
    bits = milliseconds << 80 | int.from_bytes(os.urandom(10))
    text = f"{bits & ~_KIND | _VERSION_7:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class File:
    """The database, the codec of its values, the clock, and those who wait."""

    def __init__(self, database: Database, codec: Codec, clock: Clock, waiting: Waiting) -> None:
        self.database = database
        self.codec = codec
        self.clock = clock
        self.waiting = waiting
        self.fates = Fates()
        self.no_arguments = codec.encode([[], {}])
        """The recorded input of a workflow that takes none."""
        self._loops: dict[asyncio.AbstractEventLoop, OnLoop] = {}

    def on_loop(self) -> OnLoop:
        """The running event loop, for other threads to call on."""
        loop = asyncio.get_running_loop()
        on_loop = self._loops.get(loop)
        if on_loop is None:
            self._loops = {each: on for each, on in self._loops.items() if not each.is_closed()}
            on_loop = self._loops[loop] = OnLoop(loop)
        return on_loop

    def decode_input(self, text: str) -> tuple[Any, Any, Any]:
        """The arguments of a workflow by position and by name, and what it is bound to, or None."""
        if text == self.no_arguments:
            return (), {}, None
        args, kwargs, *target = self.codec.decode(text)
        return args, kwargs, target[0] if target else None

    def new_id(self) -> str:
        """The id of a workflow that is given none."""
        return fresh_id(self.clock.now())

    def new_message_key(self) -> str | None:
        """The idempotency key of a message from outside that is given none."""
        no_key()
        return None

    def failure_of(self, workflow_id: str) -> BaseException | None:
        """Why a run of this process stopped without an outcome; only an engine knows."""
        return None
