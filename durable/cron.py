"""Cron expressions: what they say, and at which moments they are due in a time zone.

Moments are whole seconds since 1970 UTC. Days follow the rule of Vixie's cron: where the day of the
month and the day of the week are both restricted, either is enough.

Where daylight saving moves the clock: an expression whose minute or hour begins with ``*`` goes by
elapsed time, so it is due as often as ever, also in the hour that comes twice. A fixed time is due
once on such a day. What names its hours and falls into the hour that is left out is due later, by
as much as the clock was moved.
"""

from __future__ import annotations

import calendar
import math
import re
from bisect import bisect_left
from collections.abc import Iterator
from datetime import date, tzinfo
from typing import Final, NamedTuple

from durable.checks import check_text
from durable.errors import InvalidCron
from durable.zones import DAY, EPOCH, Change, change_after, change_before, offset_at

MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LAST_YEAR = 9998  # of those that a datetime can have in every zone
_CYCLE = 400  # years after which all dates have the same days of the week again
_FIRST_DAY = EPOCH.toordinal()
_LAST_MOMENT = (date(_LAST_YEAR, 12, 31).toordinal() - _FIRST_DAY) * DAY


class _Field(NamedTuple):
    """What may stand at one place of an expression."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        named = f" ({self.names[0]}-{self.names[-1]})" if self.names else ""
        return (
            f"the {self.name} is {self.low}-{self.high}{named}, a range such as "
            f"{self.low + 1}-{self.low + 3}, * for all, a step such as */2, or several of these "
            "with commas"
        )


_SECOND = _Field("second", 0, 59)
_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 7, _WEEKDAYS),
)


class Cron(NamedTuple):
    """An expression that was understood; each field as the numbers it stands for, in order."""

    text: str
    """As it was given, with single spaces."""
    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    """From 0, Sunday."""
    either_day: bool
    """Whether the day of the month or that of the week is enough; else both must be right."""
    names_hours: bool
    """Whether it is due at some hours only: then no day goes by without."""
    fixed: bool
    """Whether it names minutes and hours: then no time of a day is due twice."""

    def wall_from(self, wall: int) -> int | None:
        """The first wall that it is due at, from `wall` on; None if there is none any more."""
        day, second = divmod(wall, DAY)
        if self._is_due_on(date.fromordinal(day + _FIRST_DAY)):
            time = self._time_from(second)
            if time is not None:
                return day * DAY + time
        found = self._day_from(day + 1)
        return None if found is None else found * DAY + self._first_time()

    @property
    def never(self) -> bool:
        """Whether no day is right: the 30th of February, for one."""
        return self._day_from(0) is None

    def _first_time(self) -> int:
        return 3600 * self.hours[0] + 60 * self.minutes[0] + self.seconds[0]

    def _time_from(self, time: int) -> int | None:
        """The first time of a day, in seconds, from that one on; None if the day has no more."""
        least_hour, least_minute, least_second = time // 3600, time // 60 % 60, time % 60
        second = _at_least(self.seconds, least_second)
        if second is None:
            least_minute, second = least_minute + 1, self.seconds[0]
        minute = _at_least(self.minutes, least_minute)
        if minute is None:
            least_hour, minute = least_hour + 1, self.minutes[0]
        if minute != least_minute:
            second = self.seconds[0]
        hour = _at_least(self.hours, least_hour)
        if hour is None:
            return None
        if hour != least_hour:
            return 3600 * hour + self._first_time() % 3600
        return 3600 * hour + 60 * minute + second

    def _day_from(self, day: int) -> int | None:
        """The first day from `day` on, both counted from 1970."""
        first = date.fromordinal(day + _FIRST_DAY)
        for year in range(first.year, min(first.year + _CYCLE, _LAST_YEAR) + 1):
            for month in self.months:
                if (year, month) < (first.year, first.month):
                    continue
                start = first.day if (year, month) == (first.year, first.month) else 1
                for number in range(start, calendar.monthrange(year, month)[1] + 1):
                    found = date(year, month, number)
                    if self._is_due_on(found):
                        return found.toordinal() - _FIRST_DAY
        return None

    def _is_due_on(self, day: date) -> bool:
        by_month, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        right = (by_month or by_week) if self.either_day else (by_month and by_week)
        return right and day.month in self.months


def _at_least(numbers: tuple[int, ...], least: int) -> int | None:
    place = bisect_left(numbers, least)
    return numbers[place] if place < len(numbers) else None


# ---------------------------------------------------------------------- moments


def next_after(cron: Cron, zone: tzinfo, after: float) -> int | None:
    """The first moment after that one at which it is due; None if no year has one any more."""
    start = math.floor(after) + 1
    while start < _LAST_MOMENT:
        change = change_before(zone, start)
        found = min(_from(cron, zone, start, change), default=None)
        if found is None:
            return None
        later = change_after(zone, start, found)
        if later is None:
            return found
        start = later.at  # up to there it is not due, and from there the walls show otherwise
    return None


def _from(cron: Cron, zone: tzinfo, start: int, change: Change | None) -> Iterator[int]:
    """The next moments from `start` on, as if the clocks were never moved after it."""
    offset = offset_at(zone, start)
    least = start + offset
    if change is not None and change.after < change.before and cron.fixed:
        least = max(least, change.at + change.before)  # these walls come for the second time
    if (wall := cron.wall_from(least)) is not None:
        yield wall - offset
    if change is not None and change.after > change.before and cron.names_hours:
        left_out = cron.wall_from(start + change.before)
        if left_out is not None and left_out < change.at + change.after:
            yield left_out - change.before


def last_until(cron: Cron, zone: tzinfo, after: float, until: float) -> int | None:
    """The last moment after one and up to another; None if there is none in between.

    It takes no longer where there are millions of them.
    """

    def is_due_after(moment: int) -> bool:
        found = next_after(cron, zone, moment)
        return found is not None and found <= until

    low, high = math.floor(after), math.floor(until)
    if not is_due_after(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if is_due_after(middle):
            low = middle
        else:
            high = middle
    return next_after(cron, zone, low)


def moments(cron: Cron, zone: tzinfo, after: float, until: float) -> Iterator[int]:
    """All moments after one and up to another, in order."""
    found = next_after(cron, zone, after)
    while found is not None and found <= until:
        yield found
        found = next_after(cron, zone, found)


# ---------------------------------------------------------------------- reading


def parse_cron(text: str) -> Cron:
    """The expression: five fields, six with the seconds first, or a word such as ``@daily``.

    InvalidCron points at the field that cannot be understood.
    """
    given = " ".join(check_text(text, "the expression of a schedule").split())
    written = _write_out(given)
    parts = [(found.start(), found[0]) for found in re.finditer(r"\S+", written)]
    seconds: tuple[int, ...] = (0,)
    if len(parts) == 6:
        seconds = _read(written, _SECOND, *parts.pop(0))
    elif len(parts) != 5:
        raise InvalidCron(written, None, f"it has {len(parts)} fields", None, _SHAPE)
    minutes, hours, days, months, weekdays = (
        _read(written, field, start, part)
        for field, (start, part) in zip(_FIELDS, parts, strict=True)
    )
    minute, hour, day, _, weekday = (part for _, part in parts)
    names_hours = not hour.startswith("*") and len(hours) < 24
    cron = Cron(
        text=given,
        seconds=seconds,
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=weekdays,
        either_day=not day.startswith("*") and not weekday.startswith("*"),
        names_hours=names_hours,
        fixed=names_hours and not minute.startswith("*") and len(minutes) < 60,
    )
    if cron.never:
        start = parts[2][0]
        end = parts[3][0] + len(parts[3][1])
        raise InvalidCron(written, "day of the month", "no such month has it", (start, end), "")
    return cron


_SHAPE: Final = (
    "there are five: minute, hour, day of the month, month, day of the week; or six, with seconds "
    f"first; or one of {', '.join(MACROS)}"
)


def _write_out(text: str) -> str:
    """The fields that a word such as ``@daily`` stands for."""
    if not text.startswith("@"):
        return text
    written = MACROS.get(text.lower())
    if written is None:
        raise InvalidCron(text, None, "there is no such word", (0, len(text)), _SHAPE)
    return written


def _read(expression: str, field: _Field, start: int, part: str) -> tuple[int, ...]:
    """The numbers that a part of the expression stands for; `start` is its place in there."""
    numbers: set[int] = set()
    for item in part.split(","):
        try:
            numbers.update(_numbers(field, item))
        except ValueError as error:
            place = (start, start + max(len(item), 1))
            raise InvalidCron(expression, field.name, str(error), place, field.allowed) from None
        start += len(item) + 1
    if field.names == _WEEKDAYS:
        numbers = {number % 7 for number in numbers}  # 7 is Sunday, as 0 is
    return tuple(sorted(numbers))


def _numbers(field: _Field, item: str) -> range:
    """What one item of a list stands for; ValueError says what is wrong with it."""
    if not item:
        raise ValueError("there is nothing next to a comma")
    span, slash, step = item.partition("/")
    first, dash, last = span.partition("-")
    if span == "*":
        low, high = field.low, field.high
    else:
        low = _value(field, first)
        high = _value(field, last, least=low) if dash else low
    if low > high:
        raise ValueError(
            f"{span!r} runs backwards: write {first}-{field.high},{field.low}-{last} to go round"
        )
    if not slash:
        return range(low, high + 1)
    if span != "*" and not dash:
        raise ValueError(f"a step needs * or a range: write {first}-{field.high}/{step}")
    most = field.high - field.low
    if not _is_number(step) or not 1 <= int(step) <= most:
        raise ValueError(f"the step {step!r} is not a number from 1 to {most}")
    return range(low, high + 1, int(step))


def _value(field: _Field, text: str, *, least: int = 0) -> int:
    """The number that a number or a name stands for; Sunday ends a week that began on `least`."""
    name = text.lower()
    if name in field.names:
        value = field.names.index(name) + field.low
        return 7 if name == "sun" and least > 0 else value
    if _is_number(text):
        if not field.low <= int(text) <= field.high:
            raise ValueError(f"{text} is not from {field.low} to {field.high}")
        return int(text)
    if re.search(r"[#?]|[lw]$", name):
        raise ValueError(f"{text!r} is of another cron: L, W, # and ? are not known here")
    raise ValueError(f"{text!r} is no {field.name}")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None
