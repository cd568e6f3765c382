"""What is left to chance has a seed."""

from __future__ import annotations

import pytest

from tests.processes.programs import new_seed


@pytest.fixture
def seed() -> int:
    """A seed, printed where the test fails."""
    return new_seed()
