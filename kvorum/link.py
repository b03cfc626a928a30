"""ZeroMQ under a client: one connection is one socket with its monitor. The only file here that makes sockets.

    Lines.pump:  tick, open and close links as the core says, send its batches, give it what came in
    poll the file descriptors in between; pump again when one is readable or the core's `wake_at` has come

A socket connects once: with reconnecting off and IMMEDIATE on, ZeroMQ queues nothing for a node that is not there, and
the monitor's DISCONNECTED is the end. So a batch that was accepted went to the one node we greeted, or nowhere; never,
later, to another process that took its port. Heartbeats find a peer that went away without a word.

Three traps of libzmq are handled here. Its file descriptors are edge-triggered: they tell of news since the last look,
so a link is read until empty before anyone waits (and after each send, which may have looked). A monitored socket
whose monitor was closed first blocks the reaper thread, and with it every later close, for ever: `_close` keeps the
order. And a connection whose queue is full can end the whole process (seen with 4.3.5): by "Assertion failed:
!_io_error" when its peer goes and the next heartbeat is due, by "_input_stopped" (libzmq #3937) when it was replaced by
a reconnect and is read again. Nor are heartbeats read from it, so it is lost although its peer lives. So nothing here
has a bound on its queue: what comes while nobody reads takes this process's memory, and not the node's.
"""

from __future__ import annotations

import itertools
import os
import struct
import threading
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import zmq

HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS, HEARTBEAT_TTL_MS = 500, 2000, 10_000
"""A node that goes away without a word is missed after 2.5 s; it misses a client that stands still after 10 s."""
RECEIVE_BYTES_MAX = 1 << 30
"""A batch of answers over this ends the connection before memory is taken for it."""

_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_MORE = int(zmq.RCVMORE)
_NOBLOCK = int(zmq.NOBLOCK)
_MONITORED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_MONITORED |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_MONITORED |= zmq.EVENT_HANDSHAKE_FAILED_AUTH

_serial = itertools.count()
_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}
_contexts_lock = threading.Lock()


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """One context, with one I/O thread, for all clients of a process; a forked child gets its own."""
    with _contexts_lock:
        pid = os.getpid()
        if pid not in _contexts:
            _contexts[pid] = zmq.Context()
        return _contexts[pid]


def _close(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes], pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not touch its parent's sockets
        socket.disable_monitor()
        monitor.close(0)
        socket.close(0)


class Link:
    """One connection, from dialing to its end. Not thread-safe.

    Raises (constructor):
      zmq.ZMQError: the address is not one that ZeroMQ understands.
    """

    _kind = zmq.DEALER
    _options: tuple[tuple[int, int], ...] = ((zmq.IMMEDIATE, 1),)

    def __init__(self, address: str) -> None:
        context = _context()
        self.up = False
        self.stirred = True
        """There may be something to receive()."""
        self.news = True
        """There may be something to look() at. True at first: connecting may have swallowed the first news."""
        self.trouble = ""
        """Why the link is down for good; empty while it may yet come up or is up."""
        self.socket = context.socket(self._kind)
        monitor_address = f"inproc://kvorum-link-{next(_serial)}"
        self.socket.monitor(monitor_address, int(_MONITORED))
        self.monitor = context.socket(zmq.PAIR)
        self.monitor.connect(monitor_address)
        self._finalizer = weakref.finalize(self, _close, self.socket, self.monitor, os.getpid())
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RECONNECT_IVL, -1),
            (zmq.RCVHWM, 0),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
            (zmq.HEARTBEAT_TTL, HEARTBEAT_TTL_MS),
            (zmq.MAXMSGSIZE, RECEIVE_BYTES_MAX),
            *self._options,
        ):
            self.socket.setsockopt(option, value)
        if address.startswith("tcp://["):
            self.socket.setsockopt(zmq.IPV6, 1)
        self.fds = (int(self.socket.FD), int(self.monitor.FD))
        try:
            self.socket.connect(address)
        except zmq.ZMQError:
            self.close()
            raise

    def send(self, batch: bytes) -> bool:
        """False: ZeroMQ did not take it, so it has not left; try again after the next news."""
        try:
            self.socket.send(batch, _NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """The next batch; None if there is none yet. A message of several frames ends the link (`trouble`)."""
        if not self.socket.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]
            return None
        try:
            batch = self.socket.recv(_NOBLOCK)
        except zmq.Again:
            return None
        if self.socket.getsockopt(_MORE):
            self.trouble = "sent a message of several frames"
            return None
        return batch

    def look(self) -> None:
        """Read the monitor: sets `up` or `trouble`."""
        self.news = False
        while self.monitor.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]
            frames = self.monitor.recv_multipart(_NOBLOCK)
            event, _ = struct.unpack("=HI", frames[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.up = True
            elif event == zmq.EVENT_DISCONNECTED:
                self.trouble = self.trouble or "connection lost"
            elif event == zmq.EVENT_CLOSED:
                self.trouble = self.trouble or "connection refused"
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self.trouble = "does not speak ZeroMQ"
            else:
                self.trouble = "does not speak ZeroMQ the way we do"

    def close(self) -> None:
        self._finalizer()


class Ear(Link):
    """Where a node's broadcasts are heard. What is missed, here or with the connection, nobody tells it."""

    _kind = zmq.SUB
    _options = ()

    def tune(self, topic: bytes, wanted: bool) -> None:
        self.socket.setsockopt(zmq.SUBSCRIBE if wanted else zmq.UNSUBSCRIBE, topic)
        self.stirred = True  # looking into it may have swallowed the news of something to receive


class Session(Protocol):
    """A connection as the core names it."""

    endpoint: str


S = TypeVar("S", bound=Session)


class Core(Protocol[S]):
    """What this shell asks of a core: the client's (core.py) and the watcher's (watching.py)."""

    opening: list[S]
    closing: list[S]
    current: S | None
    wake_at: float

    def tick(self, now: float) -> None: ...
    def connected(self, session: S, now: float) -> None: ...
    def lost(self, session: S, now: float, trouble: str) -> None: ...
    def take(self) -> bytes: ...
    def untake(self, batch: bytes) -> None: ...
    def received(self, session: S, batch: bytes, now: float) -> None: ...


class Lines(Generic[S]):
    """The links of one core. Never blocks, never raises for what a network does.

    Args:
      watch, unwatch: told of the file descriptors to poll for reading.
    """

    def __init__(self, core: Core[S], watch: Callable[[int], None], unwatch: Callable[[int], None]) -> None:
        self._core = core
        self._watch = watch
        self._unwatch = unwatch
        self._links: dict[S, Link] = {}
        self._by_fd: dict[int, Link] = {}
        self._blocked = False

    def readable(self, fd: int) -> None:
        """`fd` polled readable: have the next pump() look there."""
        link = self._by_fd.get(fd)
        if link is not None:
            if fd == link.fds[0]:
                link.stirred = True
            else:
                link.news = True

    def pump(self, now: float) -> None:
        """Do all that can be done now. Wait at most `wait(now)` for a file descriptor before the next one."""
        core = self._core
        again = True
        while again:
            again = False
            for session, link in tuple(self._links.items()):
                if link.stirred or link.news:
                    again |= self._receive(session, link, now)
            if now >= core.wake_at:  # after receiving: what has arrived is not late, however long we slept
                core.tick(now)
            if core.opening or core.closing:
                self._rearrange(now)
                again = True
            if core.current is not None:
                again |= self._send(self._links[core.current])
                again |= self._listen(core.current, now)

    def _listen(self, session: S, now: float) -> bool:
        """What a kind of core has besides its link. Returns whether the core has heard anything."""
        return False

    def _stop_listening(self, session: S) -> None:
        """The session is over."""

    def wait(self, now: float) -> float:
        """Seconds until pump() is due without any news; may be infinite, never negative."""
        wait = max(0.0, self._core.wake_at - now)
        return min(wait, 0.01) if self._blocked else wait

    def close(self) -> None:
        for link in self._links.values():
            self._shut(link)
        self._links.clear()

    def _send(self, link: Link) -> bool:
        """Returns whether there was something to send, so that there may be something to receive."""
        core = self._core
        self._blocked = tried = False
        while batch := core.take():
            link.stirred = tried = True  # sending may have swallowed the news of something to receive
            if not link.send(batch):
                core.untake(batch)
                self._blocked = True
                break
        return tried and not self._blocked

    def _receive(self, session: S, link: Link, now: float) -> bool:
        """Returns whether the core has heard anything, so that there may be more to send."""
        heard = False
        link.stirred = False
        while (batch := link.receive()) is not None:
            self._core.received(session, batch, now)
            heard = True
        if link.news:
            was_up = link.up
            link.look()
            if link.up and not was_up:
                self._core.connected(session, now)
                heard = True
            if link.trouble:  # what came in before the end still counts
                while (batch := link.receive()) is not None:
                    self._core.received(session, batch, now)
        if link.trouble:
            self._core.lost(session, now, link.trouble)
            heard = True
        return heard

    def _rearrange(self, now: float) -> None:
        core = self._core
        while core.closing:
            session = core.closing.pop()
            link = self._links.pop(session, None)
            if link is not None:
                self._shut(link)
            self._stop_listening(session)
        while core.opening:
            session = core.opening.pop()
            try:
                link = Link(session.endpoint)
            except zmq.ZMQError as error:
                core.lost(session, now, str(error))
                continue
            self._links[session] = link
            for fd in link.fds:
                self._by_fd[fd] = link
                self._watch(fd)

    def _shut(self, link: Link) -> None:
        for fd in link.fds:
            del self._by_fd[fd]
            self._unwatch(fd)
        link.close()


class ListeningSession(Session, Protocol):
    broadcast: str
    """Where the node publishes; empty if it doesn't, or nobody wants to hear."""


L = TypeVar("L", bound=ListeningSession)


class ListeningCore(Core[L], Protocol[L]):
    tuning: list[tuple[bytes, bool]]
    """Topics to subscribe to (True), or to leave."""

    def published(self, session: L, frame: bytes, now: float) -> None: ...
    def deafened(self, session: L) -> None: ...


class ListeningLines(Lines[L]):
    """Lines of a core that listens to broadcasts, too."""

    _core: ListeningCore[L]

    def __init__(self, core: ListeningCore[L], watch: Callable[[int], None], unwatch: Callable[[int], None]) -> None:
        super().__init__(core, watch, unwatch)
        self._ears: dict[L, Ear] = {}

    def readable(self, fd: int) -> None:
        for ear in self._ears.values():
            if fd in ear.fds:
                ear.stirred = True
                ear.news |= fd == ear.fds[1]
                return
        super().readable(fd)

    def close(self) -> None:
        super().close()
        for session in tuple(self._ears):
            self._stop_listening(session)

    def _listen(self, session: L, now: float) -> bool:
        """Subscribe as the core wants it, and give it what was published."""
        core = self._core
        ear = self._ears.get(session)
        if ear is None:
            if not core.tuning or not session.broadcast:
                return False
            try:
                ear = self._ears[session] = Ear(session.broadcast)
            except zmq.ZMQError:  # nowhere to listen: the streams do it alone
                core.tuning.clear()
                session.broadcast = ""
                return False
            for fd in ear.fds:
                self._watch(fd)
        for topic, wanted in core.tuning:
            ear.tune(topic, wanted)
        core.tuning.clear()
        heard = False
        if ear.stirred:
            ear.stirred = False
            if ear.news:
                ear.look()
            while (frame := ear.receive()) is not None:
                core.published(session, frame, now)
                heard = True
            if ear.trouble:
                self._stop_listening(session)
                core.deafened(session)
                heard = True
        return heard

    def _stop_listening(self, session: L) -> None:
        ear = self._ears.pop(session, None)
        if ear is not None:
            for fd in ear.fds:
                self._unwatch(fd)
            ear.close()
