"""What the processes of a node have in common: how they start, how they settle down, how they end."""

from __future__ import annotations

import errno
import gc
import signal
import sys
from types import FrameType

from cluster.child import die_with_parent
from cluster.exits import Exit


class Process:
    """This process. `stopping` becomes true when it is asked to end; its loop looks at it every tick at least."""

    def __init__(self, name: str) -> None:
        die_with_parent()
        self.name = name
        self.stopping = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def settle(self) -> None:
        """All long-lived objects exist now: keep the collector from walking them again and again (RELIABILITY T14)."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    def fatal(self, code: int, reason: str) -> int:
        """Say why this process ends; the last line on stderr is what the supervisor's reader sees."""
        print(f"{self.name}: {reason}", file=sys.stderr, flush=True)
        return int(code)


def exit_for(error: OSError) -> Exit:
    """What an error of the disk means for starting again."""
    return Exit.NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else Exit.DISK_FAILED
