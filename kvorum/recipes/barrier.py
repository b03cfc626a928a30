"""Barriers: waiting for each other.

Barrier         hold() ... others wait() ... release()
DoubleBarrier   enter(): until `count` are there; leave(): until all have left
"""

from __future__ import annotations

from time import monotonic

from kvorum import txn, verbs
from kvorum.lease import Lease
from kvorum.recipes.line import key_of, place_of, wait_deleted, wait_event
from kvorum.recipes.steps import KeptLease, Steps, run
from kvorum.sync import Client
from kvorum.txn import AnyLease, Key, to_bytes


class BarrierCore:
    """A barrier of either client."""

    def __init__(self, name: Key) -> None:
        self._key = to_bytes(name)

    def _hold(self, lease: AnyLease | None) -> verbs.Ask[bool]:
        return verbs.put_if_not_exists(self._key, b"", lease)

    def _release(self) -> Steps[None]:
        yield verbs.delete(self._key)

    def _wait(self, timeout: float | None) -> Steps[bool]:
        found = yield verbs.get_response(self._key)
        return not found.kvs or (yield from wait_deleted(self._key, found.header.revision + 1, timeout))


class Barrier(BarrierCore):
    """A key: while it is there, everybody waits."""

    def __init__(self, client: Client, name: Key) -> None:
        super().__init__(name)
        self._client = client

    def hold(self, lease: Lease | int | None = None) -> bool:
        """Let everybody wait from now on; with a `lease`, at most as long as it lives. False: somebody did already."""
        return self._client.ask(self._hold(lease))

    def release(self) -> None:
        """Let everybody go on."""
        run(self._client, self._release())

    def wait(self, timeout: float | None = None) -> bool:
        """Until nobody holds it. False: not within `timeout` seconds."""
        return run(self._client, self._wait(timeout))


class DoubleBarrierCore:
    """A participant of either client."""

    def __init__(self, name: Key, count: int, lease: KeptLease) -> None:
        prefix = place_of(name)
        self._waiting, self._ready = prefix + b"waiting/", prefix + b"ready"
        self._count, self._lease = count, lease
        self._mine = key_of(self._waiting, lease)

    def _enter(self, timeout: float | None) -> Steps[bool]:
        """However it ends without having begun, we are not in."""
        entered = None
        begun = False
        try:
            entered = yield verbs.put(self._mine, b"", self._lease)
            there = yield verbs.get_prefix_response(self._waiting, count_only=True)
            if there.count >= self._count:
                yield verbs.put(self._ready, b"")
                yield None
                begun = True
            else:
                begun = yield from wait_event(self._ready, entered.header.revision, timeout, "nodelete")
        finally:
            if entered is not None and not begun:
                yield verbs.delete(self._mine)
        return begun

    def _leave(self, timeout: float | None) -> Steps[bool]:
        until = None if timeout is None else monotonic() + timeout
        yield verbs.transaction([], [txn.delete(self._mine), txn.delete(self._ready)])
        while True:
            others = yield verbs.get_prefix_response(self._waiting, limit=1)
            if not others.kvs:
                return True
            left = None if until is None else max(0.0, until - monotonic())
            if not (yield from wait_deleted(others.kvs[0].key, others.header.revision + 1, left)):
                return False


class DoubleBarrier(DoubleBarrierCore):
    """`count` participants that begin together and end together.

    Each is a key of its own lease, so that one that dies is missed by nobody for ever: with too few left to begin,
    those that wait go on waiting; to end, it counts as having left.
    """

    def __init__(self, client: Client, name: Key, count: int, lease: Lease) -> None:
        super().__init__(name, count, lease)
        self._client = client

    def enter(self, timeout: float | None = None) -> bool:
        """Until `count` have entered. False: not within `timeout` seconds; then we are not in."""
        return run(self._client, self._enter(timeout))

    def leave(self, timeout: float | None = None) -> bool:
        """Until all who entered have left. False: not within `timeout` seconds; we have left all the same."""
        return run(self._client, self._leave(timeout))
