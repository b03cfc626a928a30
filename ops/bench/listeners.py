"""Watchers for the load generator: kvorum's own client core, many of them in one process without a thread for each.

    python -m ops.bench.listeners '{"endpoints": [...], "watchers": 100, ...}' FD

FD is memory of 8 bytes, in which it keeps the revision that the slowest watcher has heard.

    ── {"event": "ready"} ─▶        every watch is created
    ◀─ {"begin": t, "end": t} ──    the window, on the machine's monotonic clock
    ◀─ {"newest": r, "replies": [[r, t], ...], "own": {key: r}} ──   after the load has ended
    ── {"event": "heard", ...} ─▶   when everybody has heard of everything, or after 60 s

Every put of the load makes one revision, so whoever watches all keys must be given as many events as revisions: that is
checked for every response, and every 50th is read event by event. Which revisions a response covers is the client's
own arithmetic, as it is in any program; the Go client's watchers are checked in the same way.
"""

from __future__ import annotations

import json
import mmap
import select
import sys
from random import Random
from time import perf_counter as clock
from typing import Any

from kvorum import Client, KvorumError
from kvorum.link import ListeningLines
from kvorum.results import WatchResponse
from kvorum.watching import Session, Watch, WatchCore

CATCH_UP_SECONDS_MAX = 60.0
READY_SECONDS_MAX = 300.0
READ_EVERY = 50
ERRORS_KEPT = 5


class Listener:
    """One client of a node, and its watches."""

    def __init__(self, audience: Audience, endpoint: str, watches: list[Watch], seed: int) -> None:
        client = Client(endpoint, discover=False)
        hello = client.hello()
        client.close()
        self.core = WatchCore(Random(seed))
        self.core.learn(hello, endpoint, others=False)
        self.lines: ListeningLines[Session] = ListeningLines(
            self.core, lambda fd: audience.register(fd, self), audience.unregister
        )
        for watch in watches:
            self.core.add(watch, clock())


class Audience:
    """All watches of this process. `last`: how far each has heard; None until it is created."""

    def __init__(
        self, every_key: bool, puts: int = 1, *, keep_times: bool = False, heard_fd: int | None = None
    ) -> None:
        self.listeners: list[Listener] = []
        self.last: dict[Watch, int] = {}
        self.begin = self.end = float("inf")
        self.events = 0
        self.responses = 0
        self.heard: list[tuple[int, int, float]] = []  # first and last revision, when
        self.errors = 0
        self.first_errors: list[str] = []
        self._every_key, self._puts, self._keep_times = every_key, puts, keep_times
        self._heard = mmap.mmap(heard_fd, 8) if heard_fd is not None else None
        self._poll = select.epoll()
        self._by_fd: dict[int, Listener] = {}
        self._look_at = 0.0

    def register(self, fd: int, listener: Listener) -> None:
        self._by_fd[fd] = listener
        self._poll.register(fd, select.EPOLLIN)

    def unregister(self, fd: int) -> None:
        del self._by_fd[fd]
        self._poll.unregister(fd)

    def add(self, endpoint: str, watches: list[Watch]) -> None:
        self.listeners.append(Listener(self, endpoint, watches, len(self.listeners)))

    def pump(self, also: int = -1) -> bool:
        """Take what has come, waiting up to 50 ms for it. Whether the file descriptor `also` is readable."""
        stirred: dict[Listener, None] = {}
        called = False
        for fd, _ in self._poll.poll(0.05):
            listener = self._by_fd.get(fd)
            if listener is None:
                called |= fd == also
            else:
                listener.lines.readable(fd)
                stirred[listener] = None
        now = clock()
        if now >= self._look_at:
            self._look_at = now + 0.05
            stirred.update((one, None) for one in self.listeners if one.lines.wait(now) <= 0)
        for listener in stirred:
            listener.lines.pump(now)
            given = listener.core.given
            while given:
                watch, what, _ = given.popleft()
                if isinstance(what, WatchResponse):
                    self._take(watch, what, clock())
                elif what is None:
                    self.last.setdefault(watch, watch.next - 1)
                else:
                    self._failed(f"a watch ended: {what}")
        if self._heard is not None and stirred and self.last:
            self._heard[:] = min(self.last.values()).to_bytes(8, "little")
        return called

    def follow(self, fd: int) -> None:
        """Have pump() tell when this one is readable."""
        self._poll.register(fd, select.EPOLLIN)

    def _take(self, watch: Watch, response: WatchResponse, now: float) -> None:
        last, to = self.last[watch], response.revision
        count = len(response)
        if to <= last or (self._every_key and count != self._puts * (to - last)):
            self._failed(f"a watcher hears {count} events up to revision {to} after {last}")
        self.responses += 1
        if self.responses % READ_EVERY == 0:
            self._read(watch, response, last)
        if self.begin <= now < self.end:
            self.events += count
        if self._keep_times:
            self.heard.append((last + 1, to, now))
        self.last[watch] = to
        watch.read_bytes = watch.given_bytes

    def _read(self, watch: Watch, response: WatchResponse, last: int) -> None:
        for i, event in enumerate(response.events):
            key, revision = event.key, event.mod_revision
            if self._every_key:
                right = revision == last + 1 + i // self._puts
            else:
                right = revision > last and key == watch.asked.key
            if not right or not event.value.startswith(key):
                self._failed(f"a watcher hears of {key!r} at {revision}, after {last}")

    def _failed(self, why: str) -> None:
        self.errors += 1
        if len(self.first_errors) < ERRORS_KEPT:
            self.first_errors.append(why)

    def wait_created(self, count: int) -> None:
        until = clock() + READY_SECONDS_MAX
        while len(self.last) < count:
            self.pump()
            if clock() > until:
                raise SystemExit(f"{len(self.last)} of {count} watches were created in {READY_SECONDS_MAX:g} s")

    def wait_heard(self, newest: int, own: dict[str, int]) -> None:
        """Until each has heard of the newest revision that concerns it."""
        want = {watch: newest if self._every_key else own[watch.asked.key.decode()] for watch in self.last}
        until = clock() + CATCH_UP_SECONDS_MAX
        late = list(want)
        while late and clock() < until:
            self.pump()
            late = [watch for watch in late if self.last[watch] < want[watch]]
        for watch in late:
            self._failed(f"a watcher has heard up to revision {self.last[watch]}, not {want[watch]}")

    def delays(self, replies: dict[int, float]) -> list[float]:
        """Seconds from a put's reply to its event, never below zero, for every watcher."""
        found = []
        for first, last, at in self.heard:
            for revision in range(first, last + 1):
                replied = replies.get(revision)
                if replied is not None:
                    found.append(max(0.0, at - replied))
        return sorted(found)


def watches_of(spec: dict[str, Any]) -> list[Watch]:
    count, keys = spec["watchers"], spec["keys"]
    if spec["own_keys"]:
        return [Watch(b"key-%08d" % (i * keys // count)) for i in range(count)]
    return [Watch(b"key-", b"key.") for _ in range(count)]


def main() -> None:
    spec = json.loads(sys.argv[1])
    every_key, keep_times = not spec["own_keys"], spec["rate"] > 0
    audience = Audience(every_key, spec["puts"], keep_times=keep_times, heard_fd=int(sys.argv[2]))
    watches, endpoints = watches_of(spec), spec["endpoints"]
    count = spec["connections"] if spec["own_keys"] else len(watches)
    try:
        for i in range(count):
            audience.add(endpoints[i % len(endpoints)], watches[i::count])
    except KvorumError as error:
        raise SystemExit(str(error)) from None
    audience.wait_created(len(watches))
    emit({"event": "ready"})
    audience.follow(sys.stdin.fileno())
    window = _told(audience)
    audience.begin, audience.end = window["begin"], window["end"]
    ended = _told(audience)
    audience.wait_heard(ended["newest"], ended["own"])
    emit(
        {
            "event": "heard",
            "events": audience.events,
            "delays": audience.delays(dict(ended["replies"])),
            "errors": audience.errors,
            "first_errors": audience.first_errors,
        }
    )


def _told(audience: Audience) -> Any:
    while not audience.pump(sys.stdin.fileno()):
        pass
    return json.loads(sys.stdin.readline())


def emit(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main()
