"""The table for people, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date

from tests.benchmarks.figures import Figure
from tests.benchmarks.measuring import MILLISECOND
from tests.benchmarks.peers import Standing

COLUMNS = ("what", "figure", "to reach", "", "raw commits/s", "")
PEER_COLUMNS = ("", "version", "steps/s", "64 workflows", "round trip", "queued tasks/s", "")


def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def as_json(figures: Sequence[Figure], standings: Sequence[Standing], failed: Sequence[str]) -> str:
    """All that was measured, for a machine."""
    everything = {
        "machine": machine(),
        "figures": [asdict(figure) | {"reached": figure.reached} for figure in figures],
        "peers": [asdict(standing) for standing in standings],
        "failed": list(failed),
    }
    return json.dumps(everything, indent=1, ensure_ascii=False)


def heading() -> str:
    """The line above the table."""
    return ", ".join(f"{name} {value}" for name, value in machine().items() if name != "date")


def as_table(figures: Sequence[Figure]) -> str:
    """The figures, as a table."""
    return _markdown([COLUMNS, *(_row(figure) for figure in figures)])


def as_peer_table(standings: Sequence[Standing]) -> str:
    """The peers, as a table."""
    return _markdown([PEER_COLUMNS, *(_peer_row(standing) for standing in standings)])


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown with columns of even width; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.what,
        f"{_number(figure.value)} {figure.unit}",
        _target(figure),
        "" if _target(figure) == "" else "yes" if figure.reached else "NO",
        "" if figure.raw is None else f"{figure.raw:,.0f}",
        figure.note,
    )


def _peer_row(standing: Standing) -> tuple[str, ...]:
    figures = standing.figures
    return (
        standing.name,
        standing.version,
        *(f"{figures[key]:,.0f}" if key in figures else "" for key in ("lone", "many")),
        f"{figures['trip'] / MILLISECOND:,.1f} ms" if "trip" in figures else "",
        f"{figures['queued']:,.0f}" if "queued" in figures else "",
        standing.note,
    )


def _target(figure: Figure) -> str:
    if figure.at_least is not None:
        return f"≥ {_number(figure.at_least)}"
    return "" if figure.at_most is None else f"≤ {_number(figure.at_most)}"


def _number(value: float) -> str:
    """With three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
