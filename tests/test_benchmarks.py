"""The parts of the benchmark program work; how fast anything is, is no test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.benchmarks", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )


def run_tiny(tmp_path: Path, *arguments: str) -> str:
    tiny = ["--rounds", "1", "--scale", "0.02", "--folder", str(tmp_path)]
    done = program("--only", "lone-normal", *tiny, *arguments)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []  # its files are gone
    return done.stdout


@pytest.mark.slow
def test_json_has_each_figure_with_its_target(tmp_path: Path) -> None:
    """A machine reads what was measured, on what, and whether it reached what it should."""
    everything: dict[str, Any] = json.loads(run_tiny(tmp_path, "--json"))

    assert everything["machine"].keys() == {"date", "python", "sqlite", "system"}
    assert everything["failed"] == everything["peers"] == []
    (figure,) = everything["figures"]
    assert figure["what"] == "lone plain workflow, steps/s, normal"
    assert figure["at_least"] == 0.6
    assert figure["raw"] > 0 < figure["value"]
    assert figure["reached"] is (figure["value"] >= 0.6)


@pytest.mark.slow
def test_the_table_has_a_line_for_each_figure(tmp_path: Path) -> None:
    """A person reads the same: the figure, the target, yes or NO, and the raw commits."""
    table = [line for line in run_tiny(tmp_path).splitlines() if line.startswith("|")]

    assert len(table) == 3
    assert len({len(line) for line in table}) == 1
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells[0] == "lone plain workflow, steps/s, normal"
    assert cells[2] == "≥ 0.60"
    assert cells[3] in ("yes", "NO")


@pytest.mark.slow
def test_the_list_says_what_each_measures() -> None:
    """One line for each benchmark, with a sentence."""
    lines = program("--list").stdout.splitlines()

    assert len(lines) > 10
    assert all(line.endswith(".") for line in lines)


def test_an_unknown_name_is_refused() -> None:
    """Nothing runs where no benchmark has the name."""
    done = program("--only", "nothing like it")

    assert done.returncode == 2
    assert "nothing like it" in done.stderr
