"""A small shop's bookkeeping: a daily report, mails that do not flood, an overview that is fresh.

    python3 -m examples.reports                         # a week of it, which takes a second
    python3 -m examples.reports serve FOLDER            # the real thing, until Ctrl-C
    python3 -m examples.reports sell FOLDER SHOP CENTS  # from another terminal, meanwhile
    python3 -m examples.reports report FOLDER           # the report of today so far, at once

    FOLDER/shop.db          sales and workflows, in one file
    FOLDER/overview.txt     what each shop has sold, fresh within half a minute
    FOLDER/outbox/          the mails, a file for each: a stand-in for a mail server

What it shows: a schedule (`daily_report` runs once for each day, also after a night in which the
machine was off), a queue with a rate (mails leave three in a minute at most, over restarts too), a
queue that another process fills by the name of a workflow (`sell`), a debounced refresh (many sales
in a short time are one new overview), and, without arguments, the virtual clock that makes a week
of all that take a second.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import durable
from durable import (
    Client,
    Debouncer,
    Engine,
    Queue,
    Rate,
    Retry,
    schedule,
    step,
    transaction,
    workflow,
)
from durable.testing import VirtualClock

folder = Path()
"""Where everything is; set before an engine is opened."""

sales = Queue("sales")
mails = Queue("mails", concurrency=2, rate=Rate(3, per=60))

# ---------------------------------------------------------------------- sales


@workflow
def sell(shop: str, cents: int) -> int:
    """Book a sale, and have the overview made anew once there was none for a while."""
    total = book(shop, cents, durable.now())
    refresh.call("overview")
    return total


@transaction
def book(cursor: sqlite3.Cursor, shop: str, cents: int, at: datetime) -> int:
    """Add a sale, exactly once; what the shop has sold by now, in cents."""
    make_table(cursor)
    cursor.execute("INSERT INTO sale VALUES (?, ?, ?)", (shop, cents, at.timestamp()))
    cursor.execute("SELECT sum(cents) FROM sale WHERE shop = ?", (shop,))
    return int(cursor.fetchone()[0])


@transaction
def totals(cursor: sqlite3.Cursor, since: datetime, until: datetime) -> dict[str, int]:
    """What each shop sold from one moment on and before another, in cents."""
    make_table(cursor)
    cursor.execute(
        "SELECT shop, sum(cents) FROM sale WHERE at >= ? AND at < ? GROUP BY shop ORDER BY shop",
        (since.timestamp(), until.timestamp()),
    )
    return dict(cursor.fetchall())


def make_table(cursor: sqlite3.Cursor) -> None:
    """Make the table of sales, where there is none."""
    cursor.execute(
        "CREATE TABLE IF NOT EXISTS sale (shop TEXT NOT NULL, cents INTEGER NOT NULL, at REAL)"
    )


# ---------------------------------------------------------------------- the overview


@workflow
def overview() -> None:
    """Write down what each shop has sold since ever."""
    now = durable.now()
    lines = [f"{shop:20} {money(cents)}" for shop, cents in totals(LONG_AGO, now).items()]
    show("\n".join([f"as of {now:%Y-%m-%d %H:%M:%S}", *lines]))


LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
refresh = Debouncer(overview, delay=5, max_wait=30)

# ---------------------------------------------------------------------- the report


@schedule("0 7 * * *")
@workflow
def daily_report(moment: datetime) -> int:
    """Mail each shop what it sold on the day before; how many mails that were."""
    until = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return send_reports(until - timedelta(days=1), until)


@workflow
def report_now() -> int:
    """Mail each shop what it has sold today."""
    now = durable.now()
    return send_reports(now.replace(hour=0, minute=0, second=0, microsecond=0), now)


def send_reports(since: datetime, until: datetime) -> int:
    """Enqueue a mail for each shop that sold anything, and wait until they are sent."""
    sent = [
        mails.enqueue(mail, f"{shop}-{since:%Y-%m-%d}", f"{since:%A}: {money(cents)}")
        for shop, cents in totals(since, until).items()
    ]
    durable.gather(*sent)
    return len(sent)


@step(retry=Retry(attempts=5, delay=60))
def mail(subject: str, text: str) -> str:
    """Send a mail: here, write it to the outbox. To write it twice would do no harm."""
    return write(f"outbox/{subject}.txt", text)


@step
def show(text: str) -> str:
    """Put a new overview in the place of the old one."""
    return write("overview.txt", text)


def write(name: str, text: str) -> str:
    """Write a file so that nobody ever sees half of it; its name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(f"{text}\n", encoding="utf-8")
    beside.replace(path)
    return name


def money(cents: int) -> str:
    """The amount, for people."""
    return f"{cents // 100}.{cents % 100:02}"


# ---------------------------------------------------------------------- the program


def a_week(start: datetime) -> None:
    """Tell what a week brings, with a clock that does not wait."""
    clock = VirtualClock(start=start)
    with Engine(folder / "shop.db", clock=clock) as engine:
        for day in range(7):
            for hour in range(4):
                for number, shop in enumerate(("Ayr", "Bern", "Cork", "Delft")):
                    engine.start(sell, shop, 250 * (day + 1) + 100 * hour + number)
                    clock.advance(seconds=2)
                clock.advance(hours=2)
            clock.advance(hours=16)
            sent = sorted(path.name for path in (folder / "outbox").glob("*.txt"))
            made = len(engine.workflows(name="examples.reports:overview", status="SUCCESS"))
            print(f"{clock.moment:%A %H:%M}  mails {len(sent):2}  overviews {made:2}")
        print((folder / "overview.txt").read_text(encoding="utf-8"), end="")


def serve() -> None:
    """Run until Ctrl-C."""
    folder.mkdir(parents=True, exist_ok=True)
    with Engine(folder / "shop.db") as engine:
        print(f"bookkeeping in {folder}; Ctrl-C ends it", flush=True)
        engine.serve()


def sell_from_outside(shop: str, cents: int) -> None:
    """Have the process that serves book a sale; it is booked later if none does now."""
    with Client(folder / "shop.db") as client:
        handle = client.enqueue("examples.reports:sell", shop, cents, queue=sales)
        print(f"accepted as {handle.id}")


def report_from_outside() -> None:
    """Have the process that serves send a report of today."""
    with Client(folder / "shop.db") as client:
        handle = client.enqueue("examples.reports:report_now", queue=sales)
        print(f"mails sent: {handle.result(timeout=600)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="python3 -m examples.reports",
        description="A daily report, mails that do not flood, and an overview that is fresh. "
        "Without a command it shows a week of it, in a temporary folder.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in (
        ("serve", "run until Ctrl-C"),
        ("sell", "book a sale, while another process serves"),
        ("report", "mail what was sold today, while another process serves"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=Path, help="where shop.db is")
        if name == "sell":
            command.add_argument("shop")
            command.add_argument("cents", type=int)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, and do what they say."""
    global folder  # noqa: PLW0603 - steps need it, and a run that goes on has it anew
    asked = parse(arguments)
    try:
        if asked.command is None:
            with tempfile.TemporaryDirectory(prefix="durable-reports-") as temporary:
                folder = Path(temporary)
                a_week(datetime(2026, 11, 23, 8, tzinfo=UTC))
            return 0
        folder = asked.folder
        if asked.command == "serve":
            serve()
        elif asked.command == "sell":
            sell_from_outside(asked.shop, asked.cents)
        else:
            report_from_outside()
    except KeyboardInterrupt:
        return 130
    except (durable.DurableError, OSError) as error:
        raise SystemExit(f"reports: {error}") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
