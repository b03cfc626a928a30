"""Fake nodes that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.client.fake import FakeNode


@pytest.fixture
def node() -> Iterator[FakeNode]:
    """A node with a store."""
    with FakeNode() as made:
        yield made


@pytest.fixture
def start() -> Iterator[Callable[..., FakeNode]]:
    """FakeNode(...), as many as wanted."""
    made: list[FakeNode] = []

    def one(*args: object, **kwargs: object) -> FakeNode:
        made.append(FakeNode(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for each in made:
        each.close()
