"""How a process of a node says, by its exit code, whether starting it again can help.

    0                        it was asked to stop, and did
    USAGE, DAMAGED,          starting again cannot help and may harm: the whole node stops with the same code, the
    DISK_FAILED              reason being the last thing on stderr
    NO_SPACE, anything       the supervisor starts it again, after a pause that grows while it keeps dying
    else, any signal

The numbers are those of BSD's sysexits.h where it has a word for the case (EX_USAGE, EX_DATAERR, EX_IOERR,
EX_TEMPFAIL), so that people and tools read them right.
"""

from __future__ import annotations

import signal
from enum import IntEnum


class Exit(IntEnum):
    """Why a process of a node ended."""

    USAGE = 64
    """A setting is wrong, or contradicts another one or the data directory."""
    DAMAGED = 65
    """What is on disk is damaged, or belongs to another cluster or member. A person must look."""
    DISK_FAILED = 74
    """A write or fsync failed. After that nothing is known about the page cache, so nothing is tried again."""
    NO_SPACE = 75
    """The disk is full. Nothing is wrong with what is on it; space may come back."""


FINAL = frozenset({Exit.USAGE, Exit.DAMAGED, Exit.DISK_FAILED})
"""Codes after which the node stops."""

_MEANING = {
    0: " (as if asked to)",
    Exit.USAGE: " (wrong settings)",
    Exit.DAMAGED: " (damaged or foreign data)",
    Exit.DISK_FAILED: " (the disk failed)",
    Exit.NO_SPACE: " (no space on the disk)",
}


def describe(returncode: int) -> str:
    """A `Popen.returncode` in words: "was killed by SIGKILL", "ended with code 74 (the disk failed)"."""
    if returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was killed by signal {-returncode}"
    return f"ended with code {returncode}{_MEANING.get(returncode, '')}"
