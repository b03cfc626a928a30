"""Golden scripts: the protocol as it can be read. Each file in scripts/ tells one story; script.py has the language."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.raft.script import Runner

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_as_it_was_read_and_accepted(path: Path, rewrite: bool) -> None:
    before = path.read_text()
    after = Runner().run(before)
    if rewrite:
        path.write_text(after)
    else:
        assert after == before


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 55
