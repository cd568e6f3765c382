"""Promises of examples/reports.py, on a clock that jumps, and once in real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from durable import Engine, schedule
from durable.testing import TestEngine, VirtualClock, crashes, engine
from examples import reports
from tests.support import until

ROOT = Path(__file__).resolve().parents[2]
MONDAY = datetime(2026, 11, 23, 6, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the example works."""
    monkeypatch.setattr(reports, "folder", tmp_path)
    schedule("0 7 * * *")(reports.daily_report)  # other tests do not see those of this module
    return tmp_path


@pytest.fixture
def shop(folder: Path) -> Iterator[TestEngine]:
    """An engine on Monday, an hour before the report of Sunday."""
    with engine(clock=VirtualClock(start=MONDAY), schedules=True) as used:
        yield used


def sent(folder: Path) -> list[str]:
    """The mails in the outbox."""
    return sorted(path.name for path in (folder / "outbox").glob("*.txt"))


def test_many_sales_make_one_overview(shop: TestEngine, folder: Path) -> None:
    """It comes five seconds after the last of them, and has all of them."""
    for _ in range(3):
        shop.run(reports.sell, "Bern", 150)
        shop.clock.advance(seconds=4)
    assert not (folder / "overview.txt").exists()
    shop.clock.advance(seconds=2)
    text = (folder / "overview.txt").read_text(encoding="utf-8")
    assert text.splitlines()[1].split() == ["Bern", "4.50"]
    assert len(shop.workflows(name="examples.reports:overview")) == 1


def test_sales_without_end_do_not_hold_the_overview_up(shop: TestEngine, folder: Path) -> None:
    """It comes half a minute after the first at the latest."""
    for _ in range(10):
        shop.run(reports.sell, "Bern", 150)
        shop.clock.advance(seconds=4)
    assert (folder / "overview.txt").exists()


def test_each_day_has_one_report(shop: TestEngine, folder: Path) -> None:
    """With what was sold on the day before."""
    shop.run(reports.sell, "Bern", 150)
    shop.clock.advance(hours=2)
    assert sent(folder) == []
    shop.clock.advance(days=2)
    assert sent(folder) == ["Bern-2026-11-23.txt"]
    text = (folder / "outbox" / "Bern-2026-11-23.txt").read_text(encoding="utf-8")
    assert text == "Monday: 1.50\n"


def test_a_night_without_the_machine_loses_no_report(folder: Path) -> None:
    """The last report that was missed is made when the engine opens; it is made once."""
    path = folder / "shop.db"
    with Engine(path, clock=VirtualClock(start=MONDAY)) as used:
        used.run(reports.sell, "Bern", 150)
    for hour in (10, 11):
        clock = VirtualClock(start=MONDAY.replace(day=24, hour=hour))
        with Engine(path, clock=clock):
            clock.settle()
        assert sent(folder) == ["Bern-2026-11-23.txt"]


def test_mails_do_not_flood(shop: TestEngine, folder: Path) -> None:
    """Three leave in a minute at most."""
    for number in range(7):
        shop.run(reports.sell, f"shop-{number}", 100)
    shop.clock.advance(seconds=60)
    report = shop.start(reports.report_now)
    counts = []
    for _ in range(3):
        shop.clock.advance(seconds=59)
        counts.append(len(sent(folder)))
        shop.clock.advance(seconds=1)
    assert counts == [3, 6, 7]
    assert report.result() == 7


@pytest.mark.slow
def test_it_may_die_anywhere(folder: Path) -> None:
    """Each sale is booked once, and each mail sent, whenever the process dies."""

    def program(used: TestEngine) -> int:
        for number in range(2):
            reports.sell.options(id=f"sale-{number}").start("Bern", 100).result()
        return reports.report_now.options(id="report").start().result()

    assert crashes(program).places > 20


@pytest.mark.slow
def test_in_processes(tmp_path: Path) -> None:
    """One serves, others sell and ask for a report."""
    command = [sys.executable, "-m", "examples.reports"]
    serving = [*command, "serve", str(tmp_path)]
    with subprocess.Popen(serving, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert "Ctrl-C" in child.stdout.readline()
            ask = [*command, "sell", str(tmp_path), "Bern", "250"]
            subprocess.run(ask, cwd=ROOT, check=True, capture_output=True)
            answer = subprocess.check_output(
                [*command, "report", str(tmp_path)], cwd=ROOT, text=True
            )
            assert answer == "mails sent: 1\n"
            until(lambda: len(sent(tmp_path)) == 1)
        finally:
            child.terminate()
