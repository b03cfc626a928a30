"""The thread that carries a synchronous client's watches, and what a reader of a watch holds.

    any thread ──(orders, nudge)──▶ the watcher's thread: core, sockets, callbacks ──(queue)──▶ the reader's thread

Only this thread touches the core and its sockets; it starts with the first watch. Callbacks run in it, one after the
other, so a slow one holds up every watch of its client, and what comes meanwhile waits in memory. A callback that
raises ends its watch, and the exception goes where those of threads go (threading.excepthook).
"""

from __future__ import annotations

import contextlib
import queue
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from time import monotonic

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.errors import KvorumError
from kvorum.link import ListeningLines
from kvorum.nudge import Nudge
from kvorum.results import WatchResponse
from kvorum.watching import Given, Session, State, Watch, WatchCore

Hello = Callable[[float], tuple[pb.HelloResponse, str]]
Callback = Callable[[WatchResponse | KvorumError], None]

CLOSED = errors.Unreachable("the client was closed")
"""The end of a watch that its own client brings about: no error to its reader, like cancel()."""
LEARN_SECONDS = 1.0
"""How long the thread waits for a Hello when no node that it knows answers; and how long until it asks again."""


class WatchTimedOut(TimeoutError):
    """No event came in the time that was given."""


class Watcher:
    """All watches of one client.

    Args:
      hello: asks any node for its Hello, within so many seconds; says over which endpoint it came.
      discover: watch on any member; False, on the one that answers hello only.
    """

    def __init__(self, hello: Hello, *, discover: bool) -> None:
        self._hello = hello
        self._discover = discover
        self._core = WatchCore(Random())
        self._poll = select.poll()
        self._lines: ListeningLines[Session] = ListeningLines(
            self._core, lambda fd: self._poll.register(fd, select.POLLIN), self._poll.unregister
        )
        self._nudge = Nudge()
        self._poll.register(self._nudge.fd, select.POLLIN)
        self._orders: deque[Callable[[float], None]] = deque()
        self._takers: dict[Watch, Callable[[Given], None]] = {}
        self._learn_at = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def add(self, watch: Watch, take: Callable[[Given], None], timeout: float) -> None:
        """Start a watch, and wait until a node has created it: what happens after this call, `take` will see.

        Raises:
          Unavailable, Ambiguous: no node created it within `timeout` seconds.
          Refused: a node said no, for instance Compacted.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback cannot start a watch: it would wait for itself")
        until = monotonic() + timeout
        self._start(timeout)
        settled: queue.SimpleQueue[KvorumError | None] = queue.SimpleQueue()

        def first(given: Given) -> None:
            if given.what is None:
                self._takers[watch] = take
            settled.put(given.what if isinstance(given.what, KvorumError) else None)

        def start(now: float) -> None:
            self._takers[watch] = first
            self._core.add(watch, now)

        self._order(start)
        try:
            refusal = settled.get(timeout=max(0.0, until - monotonic()))
        except queue.Empty:
            self.cancel(watch)
            trouble = self._core.endpoints.trouble()
            raise errors.Unreachable(
                f"the watch was not created within {timeout:g} s" + (f": {trouble}" if trouble else "")
            ) from None
        except BaseException:
            self.cancel(watch)
            raise
        if refusal is not None:
            raise refusal

    def cancel(self, watch: Watch) -> None:
        """Nothing more is handed to its `take`, except what this thread is handing to it now."""

        def stop(now: float) -> None:
            self._takers.pop(watch, None)
            self._core.cancel(watch, now)

        self._order(stop)

    def caught_up(self, watch: Watch) -> None:
        """Its reader has read everything."""
        self._order(lambda now: self._core.caught_up(watch, now))

    def ask_progress(self) -> None:
        """Have each watch told how far it is."""
        self._order(self._core.ask_progress)

    def close(self) -> None:
        """End every watch. Waits for the thread, unless called by it."""
        with self._starting:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        self._nudge.poke()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # ---- the thread

    def _start(self, timeout: float) -> None:
        if self._core.wants_members:
            told = self._hello(timeout)
            self._order(lambda _: self._learn(*told))
        with self._starting:
            if self._closed:
                raise RuntimeError("this client is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kvorum-watch", daemon=True)
                self._thread.start()

    def _order(self, order: Callable[[float], None]) -> None:
        self._orders.append(order)
        self._nudge.poke()

    def _run(self) -> None:
        end: KvorumError = CLOSED
        try:
            while not self._closed:
                self._turn()
        except BaseException as error:
            end = errors.Unreachable(f"the watch thread ended: {error!r}")
            raise
        finally:
            self._closed = True
            self._lines.close()
            for watch, take in list(self._takers.items()):
                self._hand_over(take, Given(watch, end, 0))

    def _turn(self) -> None:
        now = monotonic()
        while self._orders:
            self._orders.popleft()(now)
        if self._core.wants_members and self._takers and now >= self._learn_at:
            self._ask_hello()
            now = monotonic()
        self._lines.pump(now)
        given = self._core.given
        while given:
            item = given.popleft()
            watch = item.watch
            take = self._takers.get(watch)
            if take is not None:
                self._hand_over(take, item)
            if watch.state is State.PAUSED and watch.read_bytes == watch.given_bytes:
                # A callback has read it all by now; an iterator's reader, while we were about to call it slow.
                self._core.caught_up(watch, monotonic())
        wait = self._lines.wait(now)
        if self._core.wants_members and self._takers:
            wait = min(wait, max(0.0, self._learn_at - now))
        for fd, _ in self._poll.poll(None if wait == float("inf") else wait * 1000):
            if fd == self._nudge.fd:
                self._nudge.drain()
            else:
                self._lines.readable(fd)

    def _hand_over(self, take: Callable[[Given], None], item: Given) -> None:
        if isinstance(item.what, KvorumError):
            self._takers.pop(item.watch, None)
        try:
            take(item)
        except Exception:
            self._takers.pop(item.watch, None)
            self._core.cancel(item.watch, monotonic())
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))

    def _ask_hello(self) -> None:
        """No node that we know answers: perhaps the cluster has others by now."""
        with contextlib.suppress(KvorumError):  # not now: the watches wait, as they do for any node
            self._learn(*self._hello(LEARN_SECONDS))
        self._learn_at = monotonic() + LEARN_SECONDS

    def _learn(self, hello: pb.HelloResponse, via: str) -> None:
        self._core.learn(hello, via, others=self._discover)


class Events(Iterator[WatchResponse]):
    """A watch being read: iterate, or get() with a timeout. Ends when it is cancelled, else raises what ended it."""

    def __init__(self, watcher: Watcher, watch: Watch) -> None:
        self._watcher = watcher
        self._watch = watch
        self._queue: queue.SimpleQueue[Given] = queue.SimpleQueue()
        self._over: KvorumError | None = None
        self._cancelled = False

    def take(self, given: Given) -> None:
        """For the watcher's thread."""
        if given.what is not None:
            self._queue.put(given)

    def cancel(self) -> None:
        """End the watch. What has arrived and was not read is forgotten."""
        self._cancelled = True
        self._watcher.cancel(self._watch)
        self._queue.put(Given(self._watch, None, 0))  # for a thread that waits for the next

    def get(self, timeout: float | None = None) -> WatchResponse:
        """The next response; None waits for ever.

        Raises:
          WatchTimedOut: nothing came within `timeout` seconds.
          StopIteration: the watch was cancelled.
          Compacted: what it was to see next has been compacted; `compact_revision` says up to where.
        """
        if self._cancelled or self._over is CLOSED:
            raise StopIteration
        if self._over is not None:
            raise self._over
        try:
            _, what, size = self._queue.get(timeout=timeout)
        except queue.Empty:
            raise WatchTimedOut(f"no event within {timeout:g} s") from None
        if what is None:
            raise StopIteration
        if isinstance(what, KvorumError):
            self._over = what
            return self.get()
        self._watch.read_bytes += size
        if self._watch.state is State.PAUSED and self._queue.empty():
            self._watcher.caught_up(self._watch)
        return what

    def __next__(self) -> WatchResponse:
        return self.get()
