"""What every process of a node does first, and how it ends.

    supervisor ──spawn──▶ raft | apply | watch        kvorum local ──spawn──▶ supervisor
         └────────── dies, however ──▶ the kernel signals the child at once

An orphan would keep ports, the WAL and the store open beside its successor (RELIABILITY trap T9). Linux ends it for us
(prctl PR_SET_PDEATHSIG), with two holes that this file and the supervisor close:

- The parent may die before the child has asked. So after asking, the child looks whether its parent is still the one
  that spawned it (KVORUM_PARENT in its environment), and ends if not.
- The kernel means the *thread* that spawned it, not the process. So the supervisor spawns from its main thread only.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from cluster import log

PARENT = "KVORUM_PARENT"
"""Environment variable in which whoever spawns a child leaves its own process id."""

_PR_SET_PDEATHSIG = 1


def die_with_parent(with_signal: int = signal.SIGKILL) -> None:
    """From now on, end when the parent ends. The first thing a child does, before it opens anything.

    Without KVORUM_PARENT in the environment the process was started by hand, by nobody it should die with: then this
    does nothing. Ends the process with code 1 if the parent is gone already.
    """
    expected = os.environ.get(PARENT)
    if expected is None:
        return
    import ctypes  # not needed by a process that is nobody's child

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != int(expected):
        log.error(f"the process {expected} that started this one is gone already")
        sys.exit(1)


class Process:
    """Whether this process has been asked to end."""

    stopping = False

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stopping = True


def start(name: str) -> Process:
    """Begin as the process `name` of a node: die with the supervisor, stop on SIGTERM, leave Ctrl-C to the supervisor.

    SIGTERM sets `stopping`, which a loop sees when its poll next returns: at the latest with the next tick.
    """
    die_with_parent()
    log.setup(f"{os.environ.get('KVORUM_NAME', 'default')}/{name}", os.environ.get("KVORUM_LOG_LEVEL", "info"))
    process = Process()
    signal.signal(signal.SIGTERM, process.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return process


def settle() -> None:
    """All that lives as long as the process is built: keep the garbage collector from walking through it ever again.

    A collection of the oldest generation would otherwise stop the loop for as long as it takes to visit everything
    (RELIABILITY trap T14). Garbage in cycles is still found; there is little of it, so it is looked for less often.
    """
    import gc

    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def fatal(code: int, message: str) -> int:
    """Say why this process ends, and return `code` (cluster.exits) for `main` to return."""
    log.error(message)
    return code
