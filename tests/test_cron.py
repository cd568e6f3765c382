"""Cron expressions: what they say, judged by an oracle that looks at every minute."""

from __future__ import annotations

import functools
import random
import re
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta, tzinfo
from itertools import islice, pairwise
from pathlib import Path

import pytest

from durable.cron import MACROS, last_until, moments, next_after, parse_cron
from durable.errors import InvalidArgument, InvalidCron
from durable.zones import HOP, at_wall, change_after, find_zone, offset_at
from tests.processes.programs import new_seed
from tests.support import needs_zones

pytestmark = needs_zones

MINUTE = 60
BERLIN = "Europe/Berlin"


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    """The moment that the walls of the zone show so."""
    return int(datetime.fromisoformat(text).replace(tzinfo=find_zone(zone), fold=fold).timestamp())


def walls(expression: str, zone: str, after: str, count: int) -> list[str]:
    """What the walls show at the next moments, without the year."""
    name = find_zone(zone)
    found: list[str] = []
    moment: int | None = at(after, zone)
    for _ in range(count):
        moment = next_after(parse_cron(expression), name, moment or 0)
        assert moment is not None
        found.append(at_wall(name, moment).strftime("%m-%d %H:%M:%S%z"))
    return found


def days(expression: str, after: str, count: int) -> list[str]:
    return [wall[:5] for wall in walls(expression, "UTC", after, count)]


def times(expression: str, after: str, count: int) -> list[str]:
    return [wall[6:14] for wall in walls(expression, "UTC", after, count)]


# ---------------------------------------------------------------------- the oracle


@functools.cache
def has(part: str, number: int, low: int) -> bool:
    """Whether a part of an expression, whose numbers begin with `low`, has the number."""
    for item in part.split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        least = low if span == "*" else int(first)
        most = 99 if span == "*" else int(last or first)
        if least <= number <= most and (number - least) % int(step or 1) == 0:
            return True
    return False


class Oracle:
    """Looks at one minute after the other; knows nothing of the code that it judges."""

    def __init__(self, expression: str, zone: tzinfo) -> None:
        self.parts = expression.split()
        self.zone = zone
        minute, hour = self.parts[:2]
        whole_day = hour.startswith("*") or hour == "0-23"
        self.names_hours = not whole_day
        self.fixed = not whole_day and not minute.startswith("*") and minute != "0-59"

    def is_due(self, wall: datetime) -> bool:
        minute, hour, day, month, weekday = self.parts
        if not (has(minute, wall.minute, 0) and has(hour, wall.hour, 0)):
            return False
        by_month = has(day, wall.day, 1)
        by_week = has(weekday, wall.isoweekday(), 0) or has(weekday, wall.isoweekday() % 7, 0)
        both = day[0] == "*" or weekday[0] == "*"
        right_day = (by_month and by_week) if both else (by_month or by_week)
        return right_day and has(month, wall.month, 1)

    def moments(self, after: int, until: int) -> Iterator[int]:
        """All moments, minute by minute; those left out by a change are due when it is over."""
        late: set[int] = set()
        before = offset_at(self.zone, after)
        for moment in range(after - after % MINUTE + MINUTE, until + 1, MINUTE):
            wall = at_wall(self.zone, moment)
            offset = int((wall.utcoffset() or timedelta()).total_seconds())
            if offset > before and self.names_hours:
                for skipped in range(0, offset - before, MINUTE):
                    left_out = datetime.fromtimestamp(moment + before + skipped, UTC)
                    if self.is_due(left_out):
                        late.add(moment + skipped)
            before = offset
            again = wall.fold == 1 and self.fixed
            if (self.is_due(wall) and not again) or moment in late:
                yield moment


def expressions(rng: random.Random) -> Iterator[str]:
    """Random expressions of all forms."""

    def item(low: int, high: int) -> str:
        first = rng.randint(low, high)
        last = rng.randint(first, high)
        return rng.choice([str(first), f"{first}-{last}", f"{first}-{last}/{rng.randint(1, 5)}"])

    def part(low: int, high: int, stars: float) -> str:
        if rng.random() < stars:
            return rng.choice(["*", "*", f"*/{rng.randint(2, max(2, (high - low) // 2))}"])
        return ",".join(item(low, high) for _ in range(rng.randint(1, 3)))

    while True:
        yield " ".join(
            [
                part(0, 59, 0.4),
                part(0, 23, 0.4),
                part(1, 28, 0.6),
                part(1, 12, 0.8),
                part(0, 7, 0.7),
            ]
        )


def check(expression: str, zone: str, after: int, until: int) -> None:
    """The moments are the oracle's; the last of them is found in one go as well."""
    where, cron = find_zone(zone), parse_cron(expression)
    expected = list(Oracle(expression, where).moments(after, until))
    assert list(moments(cron, where, after, until)) == expected, (expression, zone)
    last = expected[-1] if expected else None
    assert last_until(cron, where, after, until) == last, (expression, zone)


# Forward and back; by half an hour (Lord Howe); at midnight; half hours; a whole day left out; in
# winter rather than summer; with Ramadan; and none.
ZONES = (
    BERLIN,
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Asia/Kolkata",
    "Pacific/Apia",
    "Europe/Dublin",
    "Africa/Casablanca",
    "UTC",
    "-03:30",
)


def changes(zone: str, after: int, until: int) -> Iterator[int]:
    found = change_after(find_zone(zone), after, until)
    while found is not None:
        yield found.at
        found = change_after(find_zone(zone), found.at, until)


@pytest.mark.slow
def test_random_expressions_around_each_change_of_a_year() -> None:
    """Every minute of the three days around each change of the clocks is right."""
    rng = random.Random(new_seed())
    ways = expressions(rng)
    for zone in ZONES:
        for change in changes(zone, at("2011-06-01"), at("2012-06-01")):
            for expression in islice(ways, 2):
                check(expression, zone, change - 36 * 3600, change + 36 * 3600)


@pytest.mark.slow
def test_random_expressions_over_a_month() -> None:
    """Every minute of a month is right, also where days of the week and of the month meet."""
    rng = random.Random(new_seed())
    for expression in islice(expressions(rng), 2):
        start = at("2024-02-01") + rng.randrange(300) * 86_400
        check(expression, rng.choice(ZONES), start, start + 30 * 86_400)


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES[:4])
def test_two_years_minute_by_minute(zone: str) -> None:
    """Each minute of two years, with expressions of all forms."""
    rng = random.Random(new_seed())
    for expression in ["30 2 * * *", *islice(expressions(rng), 1)]:
        check(expression, zone, at("2010-01-01"), at("2012-01-01"))


# ---------------------------------------------------------------------- a daily job


def check_daily(zone: str, clock: str, start: int, end: int) -> None:
    """A job at that time of day runs once for each local day; later where the time is left out.

    The standard library says when that is: with ``fold=0``, a time that comes twice is the first of
    the two, and one that is left out goes by the offset of before.
    """
    hour, minute = map(int, clock.split(":"))
    where, cron = find_zone(zone), parse_cron(f"{minute} {hour} * * *")
    first, last = at_wall(where, start).date(), at_wall(where, end).date()
    days = [first + timedelta(days=count) for count in range(-1, (last - first).days + 2)]
    expected = {int(datetime.combine(day, time(hour, minute), where).timestamp()) for day in days}
    found = list(moments(cron, where, start, end))
    assert found == sorted(each for each in expected if start < each <= end), (zone, clock)


def check_around(zone: str, change: int) -> None:
    """A job that falls into what is left out there, or comes twice, and one at 02:30."""
    before, after = offsets_around(zone, change)
    middle = at_wall(UTC, change + (before + after) // 2).strftime("%H:%M")
    for clock in {middle, "02:30"}:
        check_daily(zone, clock, change - 3 * 86_400, change + 3 * 86_400)


def offsets_around(zone: str, change: int) -> tuple[int, int]:
    """What the zone is ahead of UTC before the change, and after it."""
    where = find_zone(zone)
    return offset_at(where, change - 1), offset_at(where, change)


@pytest.mark.parametrize("zone", ZONES)
def test_a_daily_job_around_the_changes_of_ten_years(zone: str) -> None:
    """Once on each day, whatever the clocks do."""
    for change in changes(zone, at("2006-01-01"), at("2016-01-01")):
        check_around(zone, change)


def different_zones() -> list[str]:
    """All zones of the system, each under one of its names: almost half of them are others'."""
    found: dict[bytes, str] = {}
    for name in sorted(zoneinfo.available_timezones()):
        files = [Path(folder, name) for folder in zoneinfo.TZPATH]
        rules = next((file.read_bytes() for file in files if file.is_file()), name.encode())
        found.setdefault(rules, name)
    return list(found.values())


@pytest.mark.slow
def test_a_daily_job_in_all_zones_at_all_kinds_of_changes() -> None:
    """N42: once on each local day, in every zone of tzdata, from 2000 until the rules repeat."""
    seen = set()
    for zone in different_zones():
        for change in changes(zone, at("2000-01-01"), at("2038-01-01")):
            kind = (*offsets_around(zone, change), change % 86_400)
            if kind not in seen:  # from where to where, at which time of the day
                seen.add(kind)
                check_around(zone, change)
    assert len(seen) > 50


@pytest.mark.slow
def test_no_zone_changes_twice_within_the_hop_of_the_search() -> None:
    """What `durable.zones` relies on to find every change."""
    times = range(at("2000-01-01"), at("2025-01-01"), HOP // 2)
    for zone in different_zones():
        where = find_zone(zone)
        offsets = pairwise((moment, offset_at(where, moment)) for moment in times)
        moved = [when for (_, before), (when, after) in offsets if before != after]
        assert all(later - earlier > HOP for earlier, later in pairwise(moved)), zone


# ---------------------------------------------------------------------- daylight saving


def test_a_time_that_is_left_out_runs_once_later() -> None:
    """Half past two does not exist on that day in Berlin: it is half past three."""
    assert walls("30 2 * * *", BERLIN, "2026-03-28T00:00", 3) == [
        "03-28 02:30:00+0100",
        "03-29 03:30:00+0200",
        "03-30 02:30:00+0200",
    ]


def test_a_time_that_comes_twice_runs_once() -> None:
    """The first time."""
    assert walls("30 2 * * *", BERLIN, "2026-10-24T00:00", 3) == [
        "10-24 02:30:00+0200",
        "10-25 02:30:00+0200",
        "10-26 02:30:00+0100",
    ]


def test_a_span_of_minutes_goes_by_elapsed_time() -> None:
    """Every quarter of an hour is one, on both days of change."""
    zone, cron = find_zone(BERLIN), parse_cron("*/15 * * * *")
    for day in ("2026-03-28T12:00", "2026-10-24T12:00"):
        found = list(moments(cron, zone, at(day, BERLIN), at(day, BERLIN) + 86_400))
        assert [later - earlier for earlier, later in pairwise(found)] == [900] * 95


def test_every_hour_is_an_hour() -> None:
    """Also where the hour that it is comes twice."""
    found = walls("0 * * * *", BERLIN, "2026-10-25T00:30", 4)
    assert [wall[6:8] for wall in found] == ["01", "02", "02", "03"]


def test_an_hour_that_is_left_out_loses_no_run_that_names_it() -> None:
    """Every quarter of the hour from two to three is that of three to four on the day without."""
    found = walls("*/15 2 * * *", BERLIN, "2026-03-29T00:00", 5)
    assert [wall[6:11] for wall in found] == ["03:00", "03:15", "03:30", "03:45", "02:00"]


def test_two_times_that_become_one_run_once() -> None:
    """Two o'clock, shifted, is three o'clock: each moment is due once."""
    found = walls("0 2,3 * * *", BERLIN, "2026-03-29T00:00", 3)
    assert [wall[6:8] for wall in found] == ["03", "02", "03"]


def test_a_moment_in_the_hour_that_comes_twice_does_not_bring_it_back() -> None:
    """Asked in the second half of the two hours from two to three, it is due on the next day."""
    second = at("2026-10-25T02:15", BERLIN, fold=1)
    found = next_after(parse_cron("30 2 * * *"), find_zone(BERLIN), second)
    assert found == at("2026-10-26T02:30", BERLIN)


# ---------------------------------------------------------------------- what an expression says


def test_a_month_goes_by_its_days() -> None:
    """The 31st is due in seven months of the year."""
    assert days("0 0 31 * *", "2026-01-01", 4) == ["01-31", "03-31", "05-31", "07-31"]


def test_the_29th_of_february_comes_every_four_years() -> None:
    """And not in 2100."""
    found = islice(moments(parse_cron("0 0 29 2 *"), UTC, at("2090-01-01"), at("2200-01-01")), 3)
    assert [at_wall(UTC, each).year for each in found] == [2092, 2096, 2104]


def test_either_day_is_enough_where_both_are_named() -> None:
    """The 13th, and every Friday: the rule of Vixie's cron."""
    assert days("0 0 13 * fri", "2026-01-01", 4) == ["01-02", "01-09", "01-13", "01-16"]


def test_both_days_must_be_right_where_one_begins_with_a_star() -> None:
    """Every second day of the month, if it is a Monday."""
    assert days("0 0 */2 * mon", "2026-01-01", 3) == ["01-05", "01-19", "02-09"]


@pytest.mark.parametrize(
    ("expression", "weekdays"),
    [
        ("0 0 * * 0", {7}),
        ("0 0 * * 7", {7}),
        ("0 0 * * SUN", {7}),
        ("0 0 * * Mon-fri", {1, 2, 3, 4, 5}),
        ("0 0 * * fri-sun", {5, 6, 7}),
        ("0 0 * * 5-7", {5, 6, 7}),
        ("0 0 * * sun-tue", {7, 1, 2}),
        ("0 0 * * 1,wed", {1, 3}),
        ("0 0 * * 1-7/3", {1, 4, 7}),
        ("0 0 * * *", {1, 2, 3, 4, 5, 6, 7}),
    ],
)
def test_days_of_the_week(expression: str, weekdays: set[int]) -> None:
    """Numbers from 0 and names in any case; Sunday begins the week or ends it."""
    found = islice(moments(parse_cron(expression), UTC, at("2026-01-01"), at("2027-01-01")), 14)
    assert {at_wall(UTC, each).isoweekday() for each in found} == weekdays


def test_months_have_names() -> None:
    """Three letters, in any case."""
    assert days("0 0 1 JAN,jul-Sep *", "2026-01-02", 4) == ["07-01", "08-01", "09-01", "01-01"]


def test_six_fields_begin_with_the_seconds() -> None:
    """Five are due at the full minute."""
    assert times("*/20 * * * * *", "2026-01-01", 3) == ["00:00:20", "00:00:40", "00:01:00"]
    assert times("5 30 7 * * *", "2026-01-01", 1) == ["07:30:05"]
    assert times("* * * * *", "2026-01-01", 2) == ["00:01:00", "00:02:00"]


def test_ranges_steps_and_lists() -> None:
    """They may be combined; an item that comes twice counts once."""
    found = times("10-20/5,15,50-51 9 * * *", "2026-01-01", 6)
    assert [each[:5] for each in found] == ["09:10", "09:15", "09:20", "09:50", "09:51", "09:10"]


WORDS = {
    "@yearly": "01-01 00:00",
    "@annually": "01-01 00:00",
    "@monthly": "06-01 00:00",
    "@weekly": "05-17 00:00",
    "@daily": "05-14 00:00",
    "@midnight": "05-14 00:00",
    "@hourly": "05-13 11:00",
}


def test_words() -> None:
    """Each stands for an expression, and is kept as it was written."""
    assert set(WORDS) == set(MACROS)
    for word, first in WORDS.items():
        assert walls(word.title(), "UTC", "2026-05-13T10:30", 1)[0][:11] == first
        assert parse_cron(word).text == word


def test_spaces_do_not_matter() -> None:
    """Tabs and several spaces part fields as one does."""
    assert parse_cron("  0\t0  1 *  *\n") == parse_cron("0 0 1 * *")


def test_the_search_ends_with_the_calendar() -> None:
    """There is no moment after the last year that Python has."""
    assert next_after(parse_cron("@yearly"), UTC, at("9998-06-01")) is None
    assert next_after(parse_cron("* * * * *"), UTC, 1e12) is None


def test_the_last_of_millions_is_found_at_once() -> None:
    """A moment that was due every second for thirty years; and none where none is due."""
    every_second = parse_cron("* * * * * *")
    assert last_until(every_second, UTC, 0, 1_000_000_000.5) == 1_000_000_000
    assert last_until(parse_cron("@yearly"), UTC, at("2026-01-01"), at("2026-12-31")) is None


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("expression", "field", "under"),
    [
        ("60 * * * *", "minute", "60"),
        ("0 24 * * *", "hour", "24"),
        ("0 1,25,3 * * *", "hour", "25"),
        ("0 0 0 * *", "day of the month", "0"),
        ("0 0 1-32 * *", "day of the month", "1-32"),
        ("0 0 * 13 *", "month", "13"),
        ("0 0 * foo *", "month", "foo"),
        ("0 0 * * 8", "day of the week", "8"),
        ("0 0 * * monday", "day of the week", "monday"),
        ("61 * * * * *", "second", "61"),
        ("1,,2 * * * *", "minute", ","),
        ("1- * * * *", "minute", "1-"),
        ("-1 * * * *", "minute", "-1"),
        ("1.5 * * * *", "minute", "1.5"),
        ("\u0663 * * * *", "minute", "\u0663"),
        ("99999999999999999999 * * * *", "minute", "9" * 20),
        ("*/0 * * * *", "minute", "*/0"),
        ("*/x * * * *", "minute", "*/x"),
        ("*/90 * * * *", "minute", "*/90"),
        ("5/15 * * * *", "minute", "5/15"),
        ("0 22-2 * * *", "hour", "22-2"),
        ("0 0 * * fri-mon", "day of the week", "fri-mon"),
        ("0 0 L * *", "day of the month", "L"),
        ("0 0 15W * *", "day of the month", "15W"),
        ("0 0 ? * mon", "day of the month", "?"),
        ("0 0 * * fri#2", "day of the week", "fri#2"),
        ("0 0 * * 5L", "day of the week", "5L"),
        ("0 0 30 2 *", "day of the month", "30 2"),
        ("0 0 31 apr,jun *", "day of the month", "31 apr,jun"),
    ],
)
def test_an_error_points_at_the_field(expression: str, field: str, under: str) -> None:
    """It names the field, and has a mark under what is wrong in it."""
    with pytest.raises(InvalidCron) as caught:
        parse_cron(expression)
    error = caught.value
    assert error.field == field
    assert error.place is not None
    assert expression[slice(*error.place)] == under
    shown, marks = str(error).splitlines()[1:3]
    assert shown[marks.index("^") : marks.rindex("^") + 1] == under
    assert isinstance(error, InvalidArgument)


@pytest.mark.parametrize(
    "expression", ["* * * *", "* * * * * * *", "@reboot", "@every 5m", "every day"]
)
def test_an_error_of_the_whole_says_what_there_is(expression: str) -> None:
    """The fields, in order, and the words."""
    with pytest.raises(InvalidCron, match=r"minute, hour, day of the month.*@daily"):
        parse_cron(expression)


@pytest.mark.parametrize("expression", ["", None, 5, b"* * * * *", "\ud800 * * * *"])
def test_what_is_no_text_is_refused(expression: object) -> None:
    """As every argument is."""
    with pytest.raises(InvalidArgument):
        parse_cron(expression)  # type: ignore[arg-type]


def test_advice_can_be_taken() -> None:
    """What an error tells to write instead is right."""
    for expression in ("5/15 * * * *", "0 22-2 * * *", "0 0 * nov-feb *", "0 0 * * fri-mon"):
        with pytest.raises(InvalidCron) as caught:
            parse_cron(expression)
        advice = re.search(r"write (\S+)", caught.value.reason)
        assert advice is not None
        start, end = caught.value.place or (0, 0)
        parse_cron(expression[:start] + advice[1] + expression[end:])


# ---------------------------------------------------------------------- zones


def no_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without tzdata."""

    def missing(key: str) -> zoneinfo.ZoneInfo:
        raise zoneinfo.ZoneInfoNotFoundError(key)

    monkeypatch.setattr(zoneinfo, "ZoneInfo", missing)
    monkeypatch.setattr(zoneinfo, "available_timezones", set)


@pytest.mark.parametrize(
    ("name", "offset"),
    [("UTC", 0), ("+02:00", 7200), ("-0330", -12600), ("UTC+05:45", 20700), ("+00:00", 0)],
)
def test_offsets_need_no_tzdata(name: str, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """N43: on a system with no time zones they are there all the same."""
    no_zones(monkeypatch)
    assert offset_at(find_zone(name), 0) == offset


def test_a_named_zone_without_tzdata_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """N43: at once, with the command."""
    no_zones(monkeypatch)
    with pytest.raises(InvalidArgument, match=r"Europe/Berlin.*no time zones.*pip install tzdata"):
        find_zone(BERLIN)


def test_a_misspelt_zone_is_told_its_neighbours() -> None:
    """And that there may be newer ones."""
    with pytest.raises(InvalidArgument, match=r"did you mean 'Europe/Berlin'.*pip install tzdata"):
        find_zone("Europe/Berlinn")


@pytest.mark.parametrize(
    "name", ["", "Europe", "../UTC", "/etc/passwd", "+24:00", "+01:60", "2", None, "a\0b", "é"]
)
def test_what_is_no_zone_is_refused(name: object) -> None:
    """Folders and paths, too."""
    with pytest.raises(InvalidArgument, match="time zone"):
        find_zone(name)  # type: ignore[arg-type]
