"""Every metric that a board declares is set by somebody: one that is always 0 is worse than none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.metrics import ApplyBoard, Board, RaftBoard, WatchBoard

SOURCES = "\n".join(
    path.read_text() for path in Path(__file__).parents[2].joinpath("cluster").glob("*.py") if path.name != "metrics.py"
)


@pytest.mark.parametrize("board", [RaftBoard([1]), ApplyBoard(), WatchBoard()], ids=lambda board: type(board).__name__)
def test_every_declared_metric_is_written_somewhere(board: Board) -> None:
    constants = {"is_learner"}  # there are none yet, and 0 says so
    names = {name for name in vars(board) if not name.startswith("_") and name != "series"} - constants
    unwritten = [
        name for name in names if not re.search(rf"board\.{name}(\[\w+(\.\w+)?\])?\.(set|add|observe)", SOURCES)
    ]
    assert not unwritten
