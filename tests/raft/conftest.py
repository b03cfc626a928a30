"""`pytest tests/raft --rewrite` writes what golden scripts give now into their files; a person reads the difference."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", default=False, help="write the output of golden scripts anew")


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    # Without a path on the command line this file is read too late for its option to be known.
    return bool(request.config.getoption("--rewrite", default=False))
