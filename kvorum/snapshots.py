"""Taking a snapshot piece by piece: which requests to make, and what their answers are worth.

    begin ──▶ next ──▶ next ... ──▶ the last 32 bytes are the SHA-256 of all before them
                └─ an answer without a piece: there is none yet

All requests go to the node that it was begun at, on the connection it was begun on: elsewhere nobody knows it. So it
fails with a connection, and then it is begun anew. Nothing is changed by any of it, whatever an error says. The clients
bind this to their way to wait. Pure.
"""

from __future__ import annotations

import hashlib

from kvorum import etcd_pb2 as pb
from kvorum.errors import Code, Unavailable
from kvorum.verbs import Ask
from kvorum.wire import Method

CHECKSUM_BYTES = 32


class Taking:
    """One snapshot."""

    def __init__(self) -> None:
        self.bytes = 0
        """Given so far."""
        self.done = False
        self._id = 0
        self._left: int | None = None
        self._checksum = hashlib.sha256()

    def next(self) -> Ask[pb.SnapshotResponse]:
        """What to ask for now."""
        return _ask(pb.SnapshotRequest(snapshot=self._id))

    def take(self, answer: pb.SnapshotResponse) -> bytes:
        """The piece in it, which may be empty.

        Raises:
          Unavailable: the checksum is wrong; something on the way has damaged it.
        """
        if not self._id:
            self._id = answer.snapshot
            return b""
        if self._left == 0 and answer.blob:
            if answer.blob != self._checksum.digest():
                raise Unavailable("kvorum: the snapshot arrived damaged: its checksum is wrong", Code.DATA_LOSS)
            self.done = True
        elif answer.blob:
            self._left = answer.remaining_bytes
            self._checksum.update(answer.blob)
        self.bytes += len(answer.blob)
        return answer.blob

    def cancel(self) -> Ask[pb.SnapshotResponse] | None:
        """What to ask when no more is wanted; None: nothing."""
        return _ask(pb.SnapshotRequest(snapshot=self._id, cancel=True)) if self._id and not self.done else None


def _ask(request: pb.SnapshotRequest) -> Ask[pb.SnapshotResponse]:
    return Ask(Method.SNAPSHOT, request.SerializeToString(), pb.SnapshotResponse.FromString, False, None)
