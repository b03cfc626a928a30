"""What an exit code says to people and to the supervisor."""

from __future__ import annotations

import os
import signal

import pytest

from cluster.exits import FINAL, Exit, describe


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with code 0 (as if asked to)"),
        (3, "ended with code 3"),
        (Exit.DISK_FAILED, "ended with code 74 (the disk failed)"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-99, "was killed by signal 99"),
    ],
)
def test_an_end_is_described_in_words(code: int, words: str) -> None:
    assert describe(code) == words


def test_only_what_a_restart_cannot_help_is_final() -> None:
    """DESIGN: a failed fsync ends the node; a full disk may have space again."""
    assert {Exit.USAGE, Exit.DAMAGED, Exit.DISK_FAILED} == FINAL
    assert (Exit.USAGE, Exit.DAMAGED, Exit.DISK_FAILED) == (os.EX_USAGE, os.EX_DATAERR, os.EX_IOERR)
