"""Barriers: waiting for each other.

Barrier         hold() ... others wait() ... release()
DoubleBarrier   enter(): until `count` are there; leave(): until all have left
"""

from __future__ import annotations

from time import monotonic

from kvorum import txn
from kvorum.lease import Lease
from kvorum.recipes.line import place_of, wait_deleted
from kvorum.sync import Client
from kvorum.txn import Key, to_bytes
from kvorum.watches import WatchTimedOut


class Barrier:
    """A key: while it is there, everybody waits."""

    def __init__(self, client: Client, name: Key) -> None:
        self._client, self._key = client, to_bytes(name)

    def hold(self, lease: Lease | int | None = None) -> bool:
        """Let everybody wait from now on; with a `lease`, at most as long as it lives. False: somebody did already."""
        return self._client.put_if_not_exists(self._key, b"", lease)

    def release(self) -> None:
        """Let everybody go on."""
        self._client.delete(self._key)

    def wait(self, timeout: float | None = None) -> bool:
        """Until nobody holds it. False: not within `timeout` seconds."""
        found = self._client.get_response(self._key)
        if not found.kvs:
            return True
        try:
            wait_deleted(self._client, self._key, found.header.revision + 1, timeout)
        except WatchTimedOut:
            return False
        return True


class DoubleBarrier:
    """`count` participants that begin together and end together.

    Each is a key of its own lease, so that one that dies is missed by nobody for ever: with too few left to begin,
    those that wait go on waiting; to end, it counts as having left.
    """

    def __init__(self, client: Client, name: Key, count: int, lease: Lease) -> None:
        self._client, self._prefix, self._count = client, place_of(name), count
        self._mine = self._prefix + b"waiting/%x" % (lease.id & (1 << 64) - 1)
        self._ready, self._lease = self._prefix + b"ready", lease

    def enter(self, timeout: float | None = None) -> bool:
        """Until `count` have entered. False: not within `timeout` seconds; then we are not in."""
        entered = self._client.put(self._mine, b"", self._lease)
        waiting = self._prefix + b"waiting/"
        if self._client.get_prefix_response(waiting, count_only=True).count >= self._count:
            self._client.put(self._ready, b"")
            return True
        try:
            self._client.watch_once(self._ready, timeout, start_revision=entered.header.revision, filters=["nodelete"])
        except WatchTimedOut:
            self._client.delete(self._mine)
            return False
        return True

    def leave(self, timeout: float | None = None) -> bool:
        """Until all who entered have left. False: not within `timeout` seconds; we have left all the same."""
        until = None if timeout is None else monotonic() + timeout
        waiting = self._prefix + b"waiting/"
        self._client.transaction([], [txn.delete(self._mine), txn.delete(self._ready)])
        while True:
            others = self._client.get_prefix_response(waiting, limit=1)
            if not others.kvs:
                return True
            left = None if until is None else max(0.0, until - monotonic())
            try:
                wait_deleted(self._client, others.kvs[0].key, others.header.revision + 1, left)
            except WatchTimedOut:
                return False
