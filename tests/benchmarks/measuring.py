"""Rounds, medians, memory: what the benchmarks measure with."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

MICROSECOND = 1e-6
MILLISECOND = 1e-3
MEGABYTE = 1e6


@dataclass(frozen=True)
class Round:
    """How often both were done in one round, and how long each took in all."""

    raw_count: int
    raw_seconds: float
    count: int
    seconds: float

    @property
    def raw_rate(self) -> float:
        """Raw commits per second."""
        return self.raw_count / self.raw_seconds

    @property
    def rate(self) -> float:
        """What was measured, per second."""
        return self.count / self.seconds

    @property
    def ratio(self) -> float:
        """The one as a part of the other."""
        return self.rate / self.raw_rate


def compare(
    rounds: int,
    *,
    raw: tuple[int, Callable[[int], float]],
    measured: tuple[int, Callable[[int], float]],
    slices: int = 5,
) -> list[Round]:
    """Rounds of raw commits and of what is measured, in turns, so that a slow moment hits both.

    Both are given as the count of one slice, and the function that does as many and says how many
    seconds it took.
    """
    (raw_count, do_raw), (count, do) = raw, measured
    do_raw(raw_count)  # what only the first ones cost
    do(count)
    done = []
    for _ in range(rounds):
        times = [(do_raw(raw_count), do(count)) for _ in range(slices)]
        raw_seconds, seconds = (sum(column) for column in zip(*times, strict=True))
        done.append(Round(slices * raw_count, raw_seconds, slices * count, seconds))
    return done


def ratio_of(rounds: Sequence[Round]) -> float:
    """The median of the rounds' ratios."""
    return median(each.ratio for each in rounds)


def raw_rate_of(rounds: Sequence[Round]) -> float:
    """The median of raw commits per second."""
    return median(each.raw_rate for each in rounds)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def memory_used() -> float:
    """Megabytes of memory that this process occupies; the largest so far where that is unknown."""
    gc.collect()
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text("ascii").split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE")) / MEGABYTE
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024) / MEGABYTE
