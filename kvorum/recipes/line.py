"""Standing in line: the order of creation below a prefix, in which everyone waits for the one in front only.

    prefix/1a   created 7   <- first: has its turn
    prefix/3f   created 9   <- watches prefix/1a
    prefix/2b   created 12  <- watches prefix/3f

A place is a key named after its owner's lease, so it is given up when the owner dies, and asking twice finds the same
place (etcd's scheme, client/v3/concurrency). Whoever's turn has come looks once more whether the own place is still
there: the lease may have ended while it stood in line (Jepsen, etcd 3.4.3).
"""

from __future__ import annotations

import contextlib
from time import monotonic

from kvorum import etcd_pb2 as pb
from kvorum import txn
from kvorum.lease import Lease
from kvorum.results import DeleteEvent
from kvorum.sync import Client
from kvorum.txn import Key, to_bytes
from kvorum.watches import WatchTimedOut


class PlaceLost(Exception):
    """The place in the line is gone: its lease ended, or somebody deleted it."""


class Place:
    """`key` below `prefix`, created at `revision`: the smaller, the nearer to the front."""

    def __init__(self, client: Client, prefix: bytes, lease: Lease, value: Key = b"") -> None:
        """Enter the line, or find the place that this lease has in it already."""
        self._client, self._prefix, self.lease = client, prefix, lease
        self.key = prefix + b"%x" % (lease.id & (1 << 64) - 1)
        new, (answer, *_) = client.transaction(
            [txn.create(self.key) == 0], [txn.put(self.key, value, lease)], [txn.get(self.key)]
        )
        if new:
            assert isinstance(answer, pb.PutResponse)
            self.revision = answer.header.revision
        else:
            assert isinstance(answer, list)
            self.revision = answer[0][1].create_revision

    def wait(self, timeout: float | None) -> bool:
        """Until all who came before have left. False: not within `timeout` seconds.

        Raises PlaceLost.
        """
        until = None if timeout is None else monotonic() + timeout
        while True:
            ahead = self._client.get_prefix_response(
                self._prefix, limit=1, sort_order="descend", sort_target="create", max_create_revision=self.revision - 1
            )
            if not ahead.kvs:
                self.confirm()
                return True
            if self.lease.lost:
                raise PlaceLost(f"the lease of {self.key!r} ended while waiting")
            left = None if until is None else until - monotonic()
            if left is not None and left <= 0:
                return False
            # At most a lease's time: then it is seen whether the own place is still worth waiting in.
            patience = self.lease.ttl if left is None else min(left, self.lease.ttl)
            with contextlib.suppress(WatchTimedOut):
                wait_deleted(self._client, ahead.kvs[0].key, ahead.header.revision + 1, patience)

    def confirm(self) -> None:
        """Raises PlaceLost unless it is still there."""
        found = self._client.get_response(self.key).kvs
        if not found or found[0].create_revision != self.revision:
            raise PlaceLost(f"{self.key!r} is gone")

    def leave(self) -> bool:
        """Give the place up. False if it was gone already."""
        mine, _ = self._client.transaction([self.is_mine], [txn.delete(self.key)])
        return mine

    @property
    def is_mine(self) -> pb.Compare:
        """Holds while the place is there: a condition for whatever must not be done without it."""
        return txn.create(self.key) == self.revision


def wait_deleted(client: Client, key: bytes, revision: int, timeout: float | None) -> None:
    """Until `key` is deleted at `revision` or later. Raises WatchTimedOut."""
    until = None if timeout is None else monotonic() + timeout
    while True:
        left = None if until is None else max(0.0, until - monotonic())
        response = client.watch_once_response(key, left, start_revision=revision, filters=["noput"])
        if any(isinstance(event, DeleteEvent) for event in response.events):
            return
        revision = response.revision + 1


def place_of(name: Key) -> bytes:
    """The prefix of a line: where etcd's own clients would stand in it, too."""
    return to_bytes(name) + b"/"
