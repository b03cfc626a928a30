"""A process that must not outlive the one that started it.

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
