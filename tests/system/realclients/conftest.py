"""What the tests here share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.realclients.pairs import Pair, pair


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair(tmp_path_factory.mktemp("both")) as running:
        yield running
