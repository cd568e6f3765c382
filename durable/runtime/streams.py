"""Streams: written by a workflow, read by many, from any place, until closed or at its end."""

from __future__ import annotations

from typing import Any

from durable.checks import check_count, check_text
from durable.clock import optional_seconds
from durable.errors import NotAllowedHere, WaitTimeout
from durable.records import StreamValue
from durable.runtime.checkpoint import Subject, awaited, effect, settle, wait_for
from durable.runtime.context import Scope, StepCall
from durable.runtime.file import File
from durable.runtime.flows import Flow, Read, Write
from durable.runtime.messages import encode_for
from durable.store import streams, workflows
from durable.store.steps import TIMEOUT, VALUE, Outcome, Place
from durable.store.streams import Item, Try
from durable.store.tx import Tx

# The recorded end of a stream; a value is recorded as a list of one.
END = "[]"


def write(scope: Scope, key: str, value: object) -> Flow[None]:
    """Add a value: once from the body; from a step, to be seen when the try has succeeded."""
    check_text(key, "the key of a stream", empty=True)
    text = encode_for(scope.host, value, f"a value of stream {key!r} of {scope.run.id!r}")
    yield from _append(scope, f"durable.write_stream:{key}", key, text)


def close(scope: Scope, key: str) -> Flow[None]:
    """Nothing comes behind this: readers end here."""
    check_text(key, "the key of a stream", empty=True)
    yield from _append(scope, f"durable.close_stream:{key}", key, None)


def _append(scope: Scope, name: str, key: str, text: str | None) -> Flow[None]:
    run, clock = scope.run, scope.host.clock
    if not isinstance(scope, StepCall):

        def work(tx: Tx, place: Place) -> None:
            by = Try(place, run.epoch, 1)
            streams.append(tx, run.seq, key, text, by=by, visible=True, now=clock.now())

        settle((yield from effect(scope, name, work)), scope.host.codec)
        return
    by = Try(scope.place, run.epoch, scope.attempt)

    def append(tx: Tx) -> None:
        workflows.guard(tx, *run.key)
        streams.append(tx, run.seq, key, text, by=by, visible=False, now=clock.now())

    yield Write(name, append)
    scope.wrote_streams = True


# ---------------------------------------------------------------------- reading

Turn = Flow[list[Any] | None]
"""The values that came since the last turn, at least one; None at the end of the stream."""


class Reader:
    """Reads one stream, turn by turn; in the body of a workflow each value is a step."""

    def __init__(
        self, file: File, scope: Scope | None, workflow_id: str, key: str, start: int, timeout: Any
    ) -> None:
        self.file = file
        self._workflow_id = workflow_id
        self._key = check_text(key, "the key of a stream", empty=True)
        self._position = check_count(start, "the start of a stream", least=0)
        self._seconds = optional_seconds(timeout, "the timeout of a stream")
        self.in_body = scope is not None and not isinstance(scope, StepCall)
        self._seq: int | None = None

    def turn(self, scope: Scope | None) -> Turn:
        """Wait for values, and give them once."""
        if self.in_body:
            assert scope is not None
            return self._turn_in_body(scope)
        return self._turn_outside()

    def _turn_outside(self) -> Turn:
        seq, keys = yield from self._find()

        def look(tx: Tx) -> list[Item] | None:
            return _or_end(tx, seq, self._key, self._read(tx, seq))

        while True:
            items = yield from wait_for(self.file, keys, look, self._seconds, self._workflow_id)
            if items is None:
                raise self._timed_out()
            wanted = [each for item in items if item.text is not None for each in self._take(item)]
            if wanted:
                return wanted
            if not items or items[-1].text is None:
                return None

    def _read(self, tx: Tx, seq: int) -> list[Item]:
        return streams.read(tx, seq, self._key, self._position)

    def _take(self, item: Item) -> list[Any]:
        """The value of the item; nothing if it is not wanted."""
        self._position += 1
        return [self.file.codec.decode(item.text or "")]

    def _turn_in_body(self, scope: Scope) -> Turn:
        workflow_id, key, position = self._workflow_id, self._key, self._position

        def subject(tx: Tx) -> Subject:
            seq = workflows.find(tx, workflow_id).seq

            def find(tx: Tx, place: Place) -> Outcome | None:
                items = _or_end(tx, seq, key, streams.read(tx, seq, key, position)[:1])
                if items is None:
                    return None
                text = items[0].text if items else None
                return Outcome(VALUE, END if text is None else f"[{text}]")

            return Subject((streams.key(seq, key), workflows.key(seq)), find)

        name = f"durable.read_stream:{key}"
        outcome = yield from awaited(scope, name, subject, self._seconds)
        if outcome.kind == TIMEOUT:
            raise self._timed_out()
        self._position += 1
        values: list[Any] = settle(outcome, scope.host.codec)
        return values or None

    def _find(self) -> Flow[tuple[int, tuple[str, ...]]]:
        if self._seq is None:
            found: workflows.State = yield Read(lambda tx: workflows.find(tx, self._workflow_id))
            self._seq = found.seq
        return self._seq, (streams.key(self._seq, self._key), workflows.key(self._seq))

    def _timed_out(self) -> WaitTimeout:
        return WaitTimeout(
            f"a value of stream {self._key!r} of workflow {self._workflow_id!r}",
            self._seconds or 0.0,
        )


class LiveReader(Reader):
    """Reads everything that is written, as it is written, also by tries that fail later."""

    def __init__(
        self, file: File, scope: Scope | None, workflow_id: str, key: str, start: int, timeout: Any
    ) -> None:
        super().__init__(file, scope, workflow_id, key, start, timeout)
        if self.in_body:
            raise NotAllowedHere(
                "a workflow cannot read a stream live: what it saw of a try that failed later "
                "could not be seen again on a replay"
            )
        self._skip = self._position
        self._after = 0

    def _read(self, tx: Tx, seq: int) -> list[Item]:
        return streams.read_live(tx, seq, self._key, self._after)

    def _take(self, item: Item) -> list[StreamValue]:
        self._after = item.seq
        if self._skip:
            self._skip -= 1
            return []
        value = self.file.codec.decode(item.text or "")
        return [StreamValue(value, str(item.place), item.attempt)]


def _or_end(tx: Tx, seq: int, key: str, items: list[Item]) -> list[Item] | None:
    """The items; an empty list where no more can come, None where there may be more."""
    if items or streams.is_closed(tx, seq, key) or workflows.ending(tx, seq) is not None:
        return items
    return None
