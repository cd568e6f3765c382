"""What a benchmark yields, and the list of all benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One line of the table: a number, and what it is to reach."""

    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    raw: float | None = None
    """Commits per second of raw SQLite, measured in between."""
    note: str = ""
    """What the figure is made of, or what was scaled down."""

    @property
    def reached(self) -> bool:
        """Whether the target is reached; what has none always is."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)


@dataclass(frozen=True)
class Setup:
    """How a benchmark is to be run: in which empty folder, how often, how much of it."""

    folder: Path
    rounds: int
    scale: float = 1.0
    full: bool = False
    """Whether to do the whole work also where the default is a part of it."""

    def count(self, number: int, *, least: int = 1) -> int:
        """A count of the work of one round, scaled."""
        return max(least, round(number * self.scale))

    def path(self, name: str) -> str:
        """The path of a file in the folder."""
        return str(self.folder / name)


@dataclass(frozen=True)
class Benchmark:
    """A function that measures, by its name."""

    name: str
    about: str
    run: Callable[[Setup], Iterable[Figure]]


benchmarks: dict[str, Benchmark] = {}


def benchmark(run: Callable[[Setup], Iterable[Figure]]) -> Callable[[Setup], Iterable[Figure]]:
    """Add the function to the list; the first line of its docstring says what it measures."""
    name = run.__name__.replace("_", "-")
    assert name not in benchmarks, f"there are two benchmarks {name!r}"
    benchmarks[name] = Benchmark(name, (run.__doc__ or "").split("\n")[0], run)
    return run
