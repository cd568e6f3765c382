"""A recorded session of all kinds, run once for all tests that look at its SQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable.runtime.registry import registry
from tests.processes.programs import new_seed
from tests.store.recording import Recorder, rich_session


@pytest.fixture(scope="session")
def session_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recorded session leaves its file."""
    return tmp_path_factory.mktemp("session") / "session.db"


@pytest.fixture(scope="session")
def recorded(session_path: Path) -> Recorder:
    """All SQL of the session."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch, recorder.listening(patch):
        patch.setattr(registry, "_schedules", {})  # for the session alone
        rich_session(str(session_path))
    return recorder


@pytest.fixture
def seed() -> int:
    """A seed, printed where the test fails."""
    return new_seed()
