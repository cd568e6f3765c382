"""The ids that workflows get."""

from __future__ import annotations

import time
import uuid

import pytest

from durable import Engine, workflow
from durable.runtime.file import fresh_id

MANY = 10_000


@workflow
def nothing() -> None: ...


def test_an_id_that_is_not_given_is_a_uuid_of_its_moment(engine: Engine) -> None:
    """Version 7, as RFC 9562 lays it out: the milliseconds since 1970 in the first 48 bits."""
    before = time.time_ns() // 1_000_000
    found = uuid.UUID(engine.start(nothing).id)
    after = time.time_ns() // 1_000_000

    assert found.version == 7
    assert found.variant == uuid.RFC_4122
    assert before <= found.int >> 80 <= after


def test_ids_of_one_moment_differ() -> None:
    """Also of ten thousand."""
    assert len({fresh_id(1.0) for _ in range(MANY)}) == MANY


def test_ids_are_in_the_order_of_their_milliseconds() -> None:
    """Each begins with its own, of a moment of today as well as of one in 1970."""
    for begin in (0, 1_000, 1_763_000_000_000):
        moments = range(begin, begin + 2_000)
        assert [uuid.UUID(fresh_id(each / 1_000)).int >> 80 for each in moments] == [*moments]


@pytest.mark.parametrize("now", [-1.0, -1e9, 0.0, 1e12])
def test_a_clock_that_is_wrong_still_gives_ids(now: float) -> None:
    """Before 1970, or in the year 33,658."""
    text = fresh_id(now)
    assert str(uuid.UUID(text)) == text
    assert uuid.UUID(text).version == 7
