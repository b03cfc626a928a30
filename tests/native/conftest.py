"""For the tests of the C parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .memory import in_memory


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """As ever, but in memory if possible."""
    with in_memory(tmp_path) as path:
        yield path
