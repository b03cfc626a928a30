"""Standing in line: the order of creation below a prefix, in which everyone waits for the one in front only.

    prefix/1a   created 7   <- first: has its turn
    prefix/3f   created 9   <- watches prefix/1a
    prefix/2b   created 12  <- watches prefix/3f

A place is a key named after its owner's lease, so it is given up when the owner dies, and asking twice finds the same
place (etcd's scheme, client/v3/concurrency). Whoever's turn has come looks once more whether the own place is still
there: the lease may have ended while it stood in line (Jepsen, etcd 3.4.3).
"""

from __future__ import annotations

from time import monotonic

from kvorum import etcd_pb2 as pb
from kvorum import txn, verbs
from kvorum.recipes.steps import KeptLease, Steps, Watched
from kvorum.txn import Key, to_bytes


class PlaceLost(Exception):
    """The place in the line is gone: its lease ended, or somebody deleted it."""


class Place:
    """`key` below `prefix`, created at `revision`: the smaller, the nearer to the front. enter() makes it."""

    def __init__(self, prefix: bytes, lease: KeptLease, revision: int, value: bytes) -> None:
        self._prefix, self.lease, self.revision = prefix, lease, revision
        self.key = key_of(prefix, lease)
        self.value = value
        """What its key held when it was entered, or found."""

    def wait(self, timeout: float | None) -> Steps[bool]:
        """Until all who came before have left. False: not within `timeout` seconds.

        Raises PlaceLost.
        """
        until = None if timeout is None else monotonic() + timeout
        while True:
            ahead: pb.RangeResponse = yield verbs.get_prefix_response(
                self._prefix, limit=1, sort_order="descend", sort_target="create", max_create_revision=self.revision - 1
            )
            if not ahead.kvs:
                yield from self.confirm()
                return True
            if self.lease.lost:
                raise PlaceLost(f"the lease of {self.key!r} ended while waiting")
            left = None if until is None else until - monotonic()
            if left is not None and left <= 0:
                return False
            # At most a lease's time: then it is seen whether the own place is still worth waiting in.
            patience = self.lease.ttl if left is None else min(left, self.lease.ttl)
            yield from wait_deleted(ahead.kvs[0].key, ahead.header.revision + 1, patience)

    def confirm(self) -> Steps[None]:
        """Raises PlaceLost unless it is still there."""
        found = (yield verbs.get_response(self.key)).kvs
        if not found or found[0].create_revision != self.revision:
            raise PlaceLost(f"{self.key!r} is gone")

    def leave(self) -> Steps[bool]:
        """Give the place up. False if it was gone already."""
        mine: bool
        mine, _ = yield verbs.transaction([self.is_mine], [txn.delete(self.key)])
        return mine

    @property
    def is_mine(self) -> pb.Compare:
        """Holds while the place is there: a condition for whatever must not be done without it."""
        return txn.create(self.key) == self.revision


def enter(prefix: bytes, lease: KeptLease, value: Key = b"") -> Steps[Place]:
    """Enter the line, or find the place that this lease has in it already."""
    key = key_of(prefix, lease)
    new, (answer, *_) = yield verbs.transaction([txn.create(key) == 0], [txn.put(key, value, lease)], [txn.get(key)])
    if new:
        return Place(prefix, lease, answer.header.revision, to_bytes(value))
    there, meta = answer[0]
    return Place(prefix, lease, meta.create_revision, there)


def key_of(prefix: bytes, lease: KeptLease) -> bytes:
    return prefix + b"%x" % (lease.id & (1 << 64) - 1)


def wait_deleted(key: bytes, revision: int, timeout: float | None) -> Steps[bool]:
    """Until `key` is deleted at `revision` or later. False: not within `timeout` seconds."""
    return wait_event(key, revision, timeout, "noput")


def wait_event(key: bytes, revision: int, timeout: float | None, without: str) -> Steps[bool]:
    """Until something but what the filter leaves out happens to `key` at `revision` or later. False: not in time."""
    until = None if timeout is None else monotonic() + timeout
    while True:
        left = None if until is None else max(0.0, until - monotonic())
        response = yield Watched(key, left, {"start_revision": revision, "filters": [without]})
        if response is None:
            return False
        if response.events:  # not only progress
            return True
        revision = response.revision + 1


def place_of(name: Key) -> bytes:
    """The prefix of a line: where etcd's own clients would stand in it, too."""
    return to_bytes(name) + b"/"
