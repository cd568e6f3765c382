"""Time zones: found by name, and asked for their offset and where it changes.

A *wall* is what the clock on the wall shows: seconds, counted as if they were UTC's.
"""

from __future__ import annotations

import difflib
import re
import zoneinfo
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Final, NamedTuple

from durable.checks import check_text
from durable.errors import InvalidArgument

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
DAY: Final = 86_400

# No zone of tzdata ever changed its offset twice within three days (tests/test_cron.py looks).
HOP: Final = 2 * DAY

_OFFSET = re.compile(r"(?:UTC)?([+-])(\d\d):?(\d\d)")


class Change(NamedTuple):
    """The offset of a zone changes, at a moment, from one number of seconds to another."""

    at: int
    before: int
    after: int


def find_zone(name: str) -> tzinfo:
    """The zone of that name: ``UTC``, an offset such as ``+02:00``, or a name of tzdata.

    InvalidArgument if there is none; only named zones need the system's tzdata.
    """
    text = check_text(name, "the time zone")
    if text == "UTC":
        return UTC
    if offset := _OFFSET.fullmatch(text):
        return _fixed(text, *offset.groups())
    try:
        return zoneinfo.ZoneInfo(text)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidArgument(_advice(text)) from error


def _fixed(name: str, sign: str, hours: str, minutes: str) -> timezone:
    span = timedelta(hours=int(hours), minutes=int(minutes))
    if span >= timedelta(days=1) or int(minutes) > 59:
        raise InvalidArgument(f"the time zone {name!r} is no offset from -23:59 to +23:59")
    return timezone(-span if sign == "-" else span)


def _advice(name: str) -> str:
    known = zoneinfo.available_timezones()
    reason = f"the time zone {name!r} cannot be loaded"
    without = "UTC and offsets such as '+02:00' need nothing"
    if not known:
        return f"{reason}: this system has no time zones; `pip install tzdata` has them ({without})"
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    meant = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    return (
        f"{reason}: this system has none of that name{meant}; newer or more zones come with "
        f"`pip install tzdata` ({without})"
    )


def at_wall(zone: tzinfo, moment: int) -> datetime:
    """The moment as an aware ``datetime`` in the zone."""
    return (EPOCH + timedelta(seconds=moment)).astimezone(zone)


def offset_at(zone: tzinfo, moment: int) -> int:
    """How many seconds the walls of the zone are ahead of UTC at the moment."""
    offset = at_wall(zone, moment).utcoffset()
    assert offset is not None, "a zone of find_zone has an offset at every moment"
    return offset // timedelta(seconds=1)


def change_before(zone: tzinfo, moment: int) -> Change | None:
    """The change at the moment or up to two days before it."""
    return _change_between(zone, moment - HOP, moment)


def change_after(zone: tzinfo, moment: int, until: int) -> Change | None:
    """The first change after the moment, up to and including `until`."""
    if isinstance(zone, timezone):
        return None
    while moment < until:
        hop = min(moment + HOP, until)
        if change := _change_between(zone, moment, hop):
            return change
        moment = hop
    return None


def _change_between(zone: tzinfo, low: int, high: int) -> Change | None:
    """The one change after `low` and not after `high`."""
    if isinstance(zone, timezone):
        return None
    before, after = offset_at(zone, low), offset_at(zone, high)
    if before == after:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if offset_at(zone, middle) == before:
            low = middle
        else:
            high = middle
    return Change(high, before, after)
