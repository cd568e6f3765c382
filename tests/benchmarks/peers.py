"""Other engines beside durable: the same work on the same disk, in turns.

Each is installed from the package index into a virtual environment of its own, and has its own
safest settings: what it has recorded, a power cut does not take away.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.benchmarks import programs
from tests.benchmarks.raw import Raw

PROGRAMS = Path(programs.__file__).parent
REPOSITORY = PROGRAMS.parents[2]
PATIENCE = 300
RAW_COMMITS = 300


@dataclass(frozen=True)
class Peer:
    """An engine, and how its program is run."""

    name: str
    program: str
    package: str | None = None
    """What pip installs; durable itself needs nothing."""
    arguments: tuple[str, ...] = ()


@dataclass
class Standing:
    """What was measured of a peer, or why it was not."""

    name: str
    version: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""


def peers(postgres: str | None) -> list[Peer]:
    """All that are compared; DBOS also on PostgreSQL where the URL of a database is given."""
    found = [
        Peer("durable", "with_durable.py"),
        Peer("DBOS on SQLite", "with_dbos.py", "dbos"),
        Peer("unhinged", "with_unhinged.py", "unhinged"),
        Peer("huey, SqliteHuey", "with_huey.py", "huey"),
    ]
    if postgres is not None:
        found.insert(2, Peer("DBOS on PostgreSQL", "with_dbos.py", "dbos", (postgres,)))
    return found


def compare(rounds: int, postgres: str | None, folder: Path | None) -> Iterator[Standing]:
    """What each peer reaches: the medians of rounds in which all take their turn."""
    with tempfile.TemporaryDirectory(prefix="durable-peers-", dir=folder) as name:
        environments = Environments(Path(name))
        standings = {peer: Standing(peer.name) for peer in peers(postgres)}
        for peer, standing in standings.items():
            try:
                standing.version = environments.install(peer)
            except (subprocess.SubprocessError, OSError) as error:
                standing.note = f"not installed: {_why(error)}"
        runs: dict[Peer, list[dict[str, float]]] = {peer: [] for peer in standings}
        raw: list[float] = []
        for number in range(rounds):
            with Raw(str(environments.folder / f"{number}.db"), "full") as connection:
                raw.append(RAW_COMMITS / connection.seconds(RAW_COMMITS))
            for peer, standing in standings.items():
                if not standing.note:
                    try:
                        runs[peer].append(environments.run(peer))
                    except subprocess.SubprocessError as error:
                        standing.note = f"failed: {_why(error)}"
    yield Standing("raw SQLite, a commit each", sqlite3.sqlite_version, {"lone": median(raw)})
    for peer, standing in standings.items():
        for key in runs[peer][0] if runs[peer] else ():
            standing.figures[key] = median(run[key] for run in runs[peer])
        yield standing


class Environments:
    """The virtual environments of the peers, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pythons: dict[str, str] = {}

    def install(self, peer: Peer) -> str:
        """Make the environment that the peer needs, unless there is one; the peer's version."""
        if peer.package is None:
            return "of this folder"
        if peer.package not in self._pythons:
            home = self.folder / peer.package
            venv.create(home, with_pip=True)
            scripts = home / ("Scripts" if sys.platform == "win32" else "bin")
            python = str(scripts / "python")
            _output([python, "-m", "pip", "install", "--quiet", peer.package])
            self._pythons[peer.package] = python
        look = f"import importlib.metadata as m; print(m.version({peer.package!r}))"
        return _output([self._pythons[peer.package], "-c", look]).strip()

    def run(self, peer: Peer) -> dict[str, float]:
        """What the peer's program has measured, on files of its own."""
        python = sys.executable if peer.package is None else self._pythons[peer.package]
        module = f"{programs.__name__}.{Path(peer.program).stem}"
        program = ["-m", module] if peer.package is None else [str(PROGRAMS / peer.program)]
        with tempfile.TemporaryDirectory(dir=self.folder) as files:
            text = _output([python, *program, files, *peer.arguments])
        figures: dict[str, float] = json.loads(text.splitlines()[-1])
        return figures


def _output(command: list[str]) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=PATIENCE, cwd=REPOSITORY
    )
    return done.stdout


def _why(error: Exception) -> str:
    """The last line that the failed program said."""
    said = (getattr(error, "stderr", None) or str(error)).strip()
    return str(said.splitlines()[-1]) if said else type(error).__name__
