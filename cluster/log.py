"""One line on stderr for one thing that happened.

    2026-11-23T07:38:10.123Z warn  n1/raft: no leader for 1.2 s

Four processes of a node, and several nodes of a local cluster, share one stderr. A line is therefore one `write`, which
the kernel doesn't mix with others (up to 4096 bytes on a pipe), and there is no buffer to lose in a crash. The standard
logging package would cost each process a megabyte for handlers, filters and formats that nobody configures here.

Whoever should read the lines may be stuck, or a terminal be stopped. No loop of a node waits for that (etcd #22214): a
line that would have to is dropped, and the next one that can be written says how many were. Processes that share
stderr may both find the same last page of a pipe free, so one of them could wait after all; then there is one whole
page less to find for the next.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress

LEVELS = ("debug", "info", "warn", "error")

_who = "kvorum"
_least = LEVELS.index("info")
_dropped = 0
_stderr = select.poll()
_stderr.register(2, select.POLLOUT)


def setup(who: str, level: str = "info") -> None:
    """Name this process in its lines and leave out what is below `level`. Raises ValueError for an unknown level."""
    global _who, _least
    _who, _least = who, LEVELS.index(level)


def debug(text: str) -> None:
    _line(0, text)


def info(text: str) -> None:
    _line(1, text)


def warn(text: str) -> None:
    _line(2, text)


def error(text: str) -> None:
    _line(3, text)


def _line(level: int, text: str) -> None:
    if level < _least:
        return
    global _dropped
    if not _stderr.poll(0):
        _dropped += 1
        return
    if _dropped:
        text, _dropped = f"{text} (and {_dropped} lines were dropped before: nobody read them)", 0
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    line = f"{stamp}.{int(now * 1000) % 1000:03d}Z {LEVELS[level]:5} {_who}: {text}\n"
    with suppress(OSError):  # whoever read our stderr is gone: no reason for a member of a quorum to stop
        os.write(2, line.encode(errors="backslashreplace"))
