"""SIGKILL while queues are busy: nothing is lost, nothing runs twice, no slot stays taken."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from durable import Client
from tests.processes.programs import Program

WORK = Path(__file__).with_name("queue_work.py")
LIMITS = {"narrow": 2, "late": 2, "parts": 2}


def kill_until_done(folder: Path, seed: int, *, kills: int, count: int) -> None:
    path, log, rng = str(folder / "work.db"), folder / "log", random.Random(seed)
    killed = 0
    for _ in range(kills):
        with Program(WORK, path, str(log), str(count)) as program:
            assert program.line() == "begins"
            time.sleep(rng.uniform(0.0, 0.1))
            killed += program.running()
            program.kill()
    with Program(WORK, path, str(log), str(count)) as program:
        assert program.succeed()[-1] == "finished"
    audit(path, log.read_text(), killed, count)


def audit(path: str, log: str, kills: int, count: int) -> None:
    with Client(path) as client:
        runs = client.workflows(limit=100_000)
    assert len(runs) == 4 * count
    assert {run.status for run in runs} == {"SUCCESS"}
    begun = Counter(line.split()[1] for line in log.splitlines() if line.startswith("begin"))
    assert len(begun) == 8 * count
    assert all(times <= 1 + kills for times in begun.values())
    check_limits(log)
    rated = sorted(run.started_at.timestamp() for run in runs if run.queue == "rated")  # type: ignore[union-attr]
    assert all(sixth - first >= 0.05 - 1e-6 for first, sixth in zip(rated, rated[5:], strict=False))


def check_limits(log: str) -> None:
    """In each process, no more steps of a queue were under way than it lets run."""
    open_steps: dict[tuple[str, str], set[str]] = {}
    for line in log.splitlines():
        what, key, pid = line.split()
        kind = key.split("/")[0].rstrip("0123456789")
        queue = "narrow" if kind == "late" else kind
        steps = open_steps.setdefault((queue, pid), set())
        steps.add(key) if what == "begin" else steps.discard(key)
        assert len(steps) <= LIMITS.get(queue, 1000), (queue, steps)


@pytest.mark.slow
def test_three_kills_of_busy_queues(tmp_path: Path, seed: int) -> None:
    """Limits, rates, partitions, priorities and delays, killed at random moments."""
    kill_until_done(tmp_path, seed, kills=3, count=10)


@pytest.mark.slow
def test_fifty_kills_of_busy_queues(tmp_path: Path, seed: int) -> None:
    """More of them."""
    kill_until_done(tmp_path, seed, kills=50, count=60)
