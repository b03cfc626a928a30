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

import errno
import signal

USAGE = 64
"""A setting is wrong, or contradicts another one or the data directory."""

DAMAGED = 65
"""What is on disk is damaged, or belongs to another cluster or member. A person must look."""

DISK_FAILED = 74
"""A write or fsync failed. After that nothing is known about the page cache, so nothing is tried again."""

NO_SPACE = 75
"""The disk is full. Nothing is wrong with what is on it; space may come back."""

OTHER = 1
"""None of these."""

FINAL = frozenset({USAGE, DAMAGED, DISK_FAILED})
"""Codes after which the node stops."""

_MEANING = {
    0: " (as if asked to)",
    USAGE: " (wrong settings)",
    DAMAGED: " (damaged or foreign data)",
    DISK_FAILED: " (the disk failed)",
    NO_SPACE: " (no space on the disk)",
}

_BY_ERRNO = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EIO: DISK_FAILED,
    errno.EROFS: DISK_FAILED,
    errno.EACCES: USAGE,
    errno.EPERM: USAGE,
    errno.ENOTDIR: USAGE,
    errno.ENAMETOOLONG: USAGE,
}


def for_oserror(error: OSError) -> int:
    """The code for an error of the file system met while opening something. Unknown ones are worth another try."""
    return _BY_ERRNO.get(error.errno or 0, OTHER)


def describe(returncode: int) -> str:
    """A `Popen.returncode` in words: "was killed by SIGKILL", "ended with code 74 (the disk failed)"."""
    if returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was killed by signal {-returncode}"
    return f"ended with code {returncode}{_MEANING.get(returncode, '')}"
