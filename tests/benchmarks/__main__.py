"""The program: ``python3 -m tests.benchmarks``, from the top of the repository."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from tests.benchmarks import peers, report
from tests.benchmarks.figures import Benchmark, Figure, Setup, benchmarks
from tests.benchmarks.peers import Standing

PATIENCE = 1_800

# The modules that have benchmarks, in the order of the table.
SUBJECTS = ("steps", "workflows", "messages", "queues", "recovery", "memory", "imports")
for _subject in SUBJECTS:
    importlib.import_module(f"tests.benchmarks.{_subject}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 if a benchmark failed to run, whatever the figures are."""
    options = _parser().parse_args(arguments)
    chosen = [each for each in benchmarks.values() if _is_chosen(each.name, options)]
    if options.list:
        _print("\n".join(f"{each.name:22}{each.about}" for each in chosen))
        return 0
    if not chosen and not options.peers:
        _print(f"no benchmark has a name like {options.only!r}; --list shows them", sys.stderr)
        return 2
    if options.here:
        for each in chosen:
            for figure in _measure(each, options):
                _print(json.dumps(figure.__dict__))
        return 0
    figures: list[Figure] = []
    failed: list[str] = []
    for each in chosen:
        _print(f"{each.name} …", sys.stderr)
        try:
            figures += _measure_in_child(each, options)
        except subprocess.SubprocessError as error:
            _print(f"{each.name} failed: {error}", sys.stderr)
            failed.append(each.name)
    standings: list[Standing] = []
    if options.peers:
        _print("peers …", sys.stderr)
        standings = list(peers.compare(options.rounds, options.postgres, options.folder))
    if options.json:
        _print(report.as_json(figures, standings, failed))
        return 1 if failed else 0
    _print(f"{report.heading()}\n")
    if figures:
        _print(report.as_table(figures))
    if standings:
        _print(("\n" if figures else "") + report.as_peer_table(standings))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.benchmarks", description="How fast durable is on this machine."
    )
    add = parser.add_argument
    add("--list", action="store_true", help="show the benchmarks and run none")
    add("--only", metavar="PATTERN", help="those whose name has this in it, or matches it: mem*")
    add(
        "--rounds",
        type=_positive,
        default=3,
        help="rounds of each (%(default)s); the median counts",
    )
    add("--scale", type=float, default=1.0, help="a part of the work, for a quick look: 0.1")
    add("--full", action="store_true", help="the whole size also of what takes minutes")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--folder", type=Path, help="where the files are made, so on which disk")
    add("--peers", action="store_true", help="compare other engines instead, which pip installs")
    add("--postgres", metavar="URL", help="a database in which DBOS may work, with --peers")
    add("--here", action="store_true", help="in this process, one figure a line: for profilers")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("is 1 or more")
    return number


def _is_chosen(name: str, options: argparse.Namespace) -> bool:
    if options.only is None:
        return not options.peers
    return options.only in name or fnmatch.fnmatch(name, options.only)


def _measure(each: Benchmark, options: argparse.Namespace) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="durable-", dir=options.folder) as folder:
        yield from each.run(Setup(Path(folder), options.rounds, options.scale, options.full))


def _measure_in_child(each: Benchmark, options: argparse.Namespace) -> list[Figure]:
    """One benchmark leaves threads, garbage and warm caches behind: the next begins afresh.

    It also leaves files to be written or removed; the system does so now, and not in between.
    """
    if hasattr(os, "sync"):
        os.sync()
    command = [sys.executable, "-m", "tests.benchmarks", "--here", "--only", each.name]
    command += ["--rounds", str(options.rounds), "--scale", str(options.scale)]
    command += ["--full"] * options.full
    command += [] if options.folder is None else ["--folder", str(options.folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE)
    return [Figure(**json.loads(line)) for line in done.stdout.splitlines()]


def _print(text: str, file: TextIO = sys.stdout) -> None:
    file.write(text + "\n")
    file.flush()


if __name__ == "__main__":
    sys.exit(main())
