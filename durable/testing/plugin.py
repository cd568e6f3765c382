"""The pytest plugin: two fixtures, the seed, and the timeline of a test that failed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from durable import testing
from durable.testing.engines import TestEngine
from durable.testing.timeline import story

_ENGINE = pytest.StashKey[TestEngine]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --durable-seed."""
    parser.getgroup("durable").addoption(
        "--durable-seed",
        type=int,
        default=0,
        metavar="N",
        help="the seed of durable's virtual clock: another order of threads (default: 0)",
    )


@pytest.fixture
def durable_clock(request: pytest.FixtureRequest) -> testing.VirtualClock:
    """The clock of `durable_engine`: ``durable_clock.advance(days=30)``."""
    return testing.VirtualClock(request.config.getoption("--durable-seed"))


@pytest.fixture
def durable_engine(
    request: pytest.FixtureRequest, durable_clock: testing.VirtualClock
) -> Iterator[TestEngine]:
    """An open engine on a temporary file, with a virtual clock."""
    with testing.engine(clock=durable_clock) as engine:
        request.node.stash[_ENGINE] = engine
        yield engine


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the workflows of a failed test did."""
    report = yield
    engine = item.stash.get(_ENGINE, None)
    if engine is not None and report.when == "call" and report.failed:
        seed = item.config.getoption("--durable-seed")
        report.sections.append(
            (f"durable: workflows and steps (--durable-seed={seed})", story(engine))
        )
        report.sections.append(("durable: writes", str(engine.journal)))
    return report
