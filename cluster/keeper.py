"""Keep a few processes running: start them, start them again when they die, stop them in order.

    ┌─────────────── pause ◀── died ────────┐
    ▼                                       │
  start ──▶ running ────────────────────────┤         what a death means is the owner's to say: start again,
                └── stop: TERM, grace, KILL ┴──▶ gone   leave it, or end everything with a code

`kvorum node` keeps its children with this, and `kvorum local` its nodes. One thread: it sleeps until a signal arrives
(a child's death is one), a pause is over, or a file descriptor its owner registered has something to say. Every child
is spawned from here, never forked from a process with threads and libraries in it (RELIABILITY trap T15), and always
from the main thread, whose death is what the kernel tells the children of (cluster.child).
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from types import FrameType

from cluster import log
from cluster.child import PARENT
from cluster.exits import describe

PAUSE_SECONDS_MIN = 0.05
PAUSE_SECONDS_MAX = 5.0
STEADY_SECONDS = 10.0
"""Who lived that long has recovered: the next pause is the shortest again."""


class Backoff:
    """How long to wait before starting something again that keeps dying."""

    def __init__(self) -> None:
        self._next = PAUSE_SECONDS_MIN

    def pause(self, lived_seconds: float) -> float:
        """The pause after a life of `lived_seconds`: 50 ms, doubled up to 5 s while lives are shorter than 10 s."""
        if lived_seconds >= STEADY_SECONDS:
            self._next = PAUSE_SECONDS_MIN
        pause, self._next = self._next, min(self._next * 2, PAUSE_SECONDS_MAX)
        return pause


class NotYet(Exception):
    """It can't be started just now; the reason is the text."""


class Kept:
    """One of the processes, running or not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self.due: float | None = 0.0  # when to start it; None: not at all
        self.started = 0.0
        self.restarts = 0
        self.backoff = Backoff()

    @property
    def pid(self) -> int:
        """0 when it isn't running."""
        return self.process.pid if self.process else 0


RESTART, LEAVE = -1, -2


class Keeper:
    """Keeps `names`. The three functions are the owner's part:

    spawn(name)          start it; raises NotYet to be asked again after a pause
    verdict(name, code)  what its end means: RESTART, LEAVE, or the code to end everything with
    changed()            something was started or has ended
    """

    def __init__(
        self,
        names: Iterable[str],
        spawn: Callable[[str], subprocess.Popen[bytes]],
        verdict: Callable[[str, int], int],
        changed: Callable[[], None],
    ) -> None:
        self.kept = {name: Kept(name) for name in names}
        self.stopping = False
        self._spawn, self._verdict, self._changed = spawn, verdict, changed
        self._selector = selectors.DefaultSelector()
        self._timer: tuple[float, Callable[[], float | None]] | None = None
        self._interrupts = 0

    def on_readable(self, fd: int, act: Callable[[], None]) -> None:
        """Call `act` when `fd` has something to say."""
        self._selector.register(fd, selectors.EVENT_READ, act)

    def forget(self, fd: int) -> None:
        self._selector.unregister(fd)

    def every(self, act: Callable[[], float | None]) -> None:
        """Call `act` now, and again after as many seconds as it returns, until it returns None."""
        self._timer = (0.0, act)

    def run(self) -> int:
        """Keep them until told to stop (0), a verdict ends everything (its code), or none is left (0).

        Returns with all of them still running or not; `stop` is the owner's next call.
        """
        self._listen_for_signals()
        while not self.stopping:
            now = time.monotonic()
            code = self._bury(now)
            if code is not None:
                return code
            self._start(now)
            if all(each.process is None and each.due is None for each in self.kept.values()):
                return 0
            self._wait(now)
        return 0

    def stop(self, *stages: Iterable[str], grace_seconds: float) -> None:
        """End them stage by stage: TERM, and KILL for who is still there after the grace or a second interrupt."""
        for stage in stages:
            going = [each for name in stage if (each := self.kept[name]).process]
            for each in going:
                each.process.terminate()  # type: ignore[union-attr]
            deadline = time.monotonic() + grace_seconds
            while (left := [each for each in going if each.process and each.process.poll() is None]) and (
                time.monotonic() < deadline and self._interrupts < 2
            ):
                self._sleep(min(0.2, max(0.0, deadline - time.monotonic())))
            for each in left:
                log.warn(f"{each.name} doesn't end by itself; killing it")
                each.process.kill()  # type: ignore[union-attr]
            for each in going:
                each.process.wait()  # type: ignore[union-attr]
                each.process = None
        self._changed()

    def _listen_for_signals(self) -> None:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = reader
        self._selector.register(reader, selectors.EVENT_READ, None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # it is ignored under nohup
            signal.signal(signal.SIGHUP, self._asked_to_stop)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self._interrupts += 1

    def _bury(self, now: float) -> int | None:
        """See who has ended, and say with what code everything shall, if so."""
        for each in self.kept.values():
            if each.process is None or (code := each.process.poll()) is None:
                continue
            each.process = None
            verdict = self._verdict(each.name, code)
            if verdict == RESTART:
                pause = each.backoff.pause(now - each.started)
                each.due, each.restarts = now + pause, each.restarts + 1
                log.warn(f"{each.name} {describe(code)}; starting it again in {pause:.2f} s")
            else:
                each.due = None
            self._changed()
            if verdict not in (RESTART, LEAVE):
                return verdict
        return None

    def _start(self, now: float) -> None:
        for each in self.kept.values():
            if each.process is not None or each.due is None or now < each.due:
                continue
            try:
                each.process = self._spawn(each.name)
            except NotYet as reason:
                pause = each.backoff.pause(0.0)
                each.due = now + pause
                log.warn(f"{each.name} can't be started: {reason}; trying again in {pause:.2f} s")
                continue
            each.started = time.monotonic()
            self._changed()

    def _wait(self, now: float) -> None:
        due = [each.due for each in self.kept.values() if each.process is None and each.due is not None]
        if self._timer is not None:
            when, act = self._timer
            if now >= when:
                again = act()
                self._timer = None if again is None else (now + again, act)
            if self._timer is not None:
                due.append(self._timer[0])
        self._sleep(max(0.0, min(due) - time.monotonic()) if due else None)

    def _sleep(self, seconds: float | None) -> None:
        for key, _events in self._selector.select(seconds):
            if key.data is not None:
                key.data()
            else:
                os.read(self._wakeup, 4096)


def spawn(arguments: list[str], *, inherit: int | None = None, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start `python -m ARGUMENTS` as a child that can end with us (cluster.child), in a process group of its own.

    Of its own, so that Ctrl-C in a terminal reaches the parent alone, which then stops things in order. The child
    imports from where we were imported, whatever the current directory holds (-P). It inherits stdin, stdout, stderr,
    and the file descriptor `inherit`; nothing else. Raises OSError if the system can't start a process.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", *arguments],
        env={**environment, "PYTHONPATH": path, PARENT: str(os.getpid())},
        pass_fds=() if inherit is None else (inherit,),
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
