"""Snapshots under way at an apply process: from "begin" to the last piece, and every other end.

    begin ──▶ mark ──flush──▶ export, a process of its own (cluster/exporter.py) ──▶ pieces, as they are asked for
                              opens the store as it is on disk, and sends what etcd's tools take for a database

What a snapshot is of. `begin` takes the index that is applied here as the mark, when this store is fresh, as for a
serializable read (cluster/reads.py): so whatever this node has shown is in it. It waits until a flush has made the mark
durable, and the export then opens a view, which is all of the store at one moment and refused if that is before the
mark (storage/rocks.py). The applied index lies in the same batch as the data, so it is the state after exactly one
entry, without a hole and without half a transaction, whatever is written meanwhile.

Who waits for whom. Nobody for a snapshot: the flush is done by a thread, all reading, packing and hashing by a process
of low priority, and what is done here is to pass on a piece of PIECE_BYTES when a client has asked for one. The
export is ahead of its client by one piece and what a pipe holds, and stands still otherwise; so memory is bounded, and
a client that doesn't ask costs a process that sleeps.

What it leaves behind: nothing. There is no file. What the export holds are descriptors of the store's own files, which
go with it, and it goes when it has sent all, when its client cancels or says nothing for so long, when this process
ends (cluster/child.py), or when it can't go on: then its client is told so, nobody else. The one cost is that files
which the store has replaced take their room until then; when the disk gets full, snapshots are the first thing to be
given up.

Whoever has all the bytes can tell: their checksum is the last of them. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cluster import version
from cluster.callers import Caller
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.errors import Code
from storage.export import CHECKSUM_BYTES

PIECE_BYTES = 256 << 10
SNAPSHOTS_MAX = 2
"""At once. More are refused."""
WAIT_ELECTIONS = 1
"""After so many election timeouts whoever asked is told that there is nothing yet."""
SILENCE_ELECTIONS = 30
"""A client that says nothing for so many has gone."""
SIZE_BYTES = 8
"""An export begins with its size, little-endian, not counting the checksum. NO_SIZE: why there is none follows."""
NO_SIZE = (1 << 64) - 1
_REASON_BYTES = 4096

TOO_MANY = errors.Unavailable("kvorum: other snapshots are under way here, try again later", Code.RESOURCE_EXHAUSTED)
NO_ROOM = errors.Unavailable("kvorum: no space left on the disk to take a snapshot", Code.RESOURCE_EXHAUSTED)
UNKNOWN = errors.Unavailable("kvorum: this snapshot is not under way here, begin a new one", Code.ABORTED)
BUSY = errors.Refused("kvorum: one piece of a snapshot at a time", Code.FAILED_PRECONDITION)


class Export(Protocol):
    """A process that exports the store."""

    def read(self, most: int) -> bytes | None:
        """Up to `most` bytes of it, b"" at its end, None if there is nothing yet; then this process is woken later."""
        ...

    def close(self) -> None:
        """End it, if it hasn't ended. Doesn't wait."""
        ...


class _Snapshot:
    def __init__(self, owner: bytes, mark: int, tick: int) -> None:
        self.owner, self.mark = owner, mark
        self.export: Export | None = None
        self.caller: Caller | None = None  # who waits for a piece
        self.since = tick  # it has waited, or been silent
        self.held = b""  # read, and not asked for yet
        self.left: int | None = None  # bytes of the database that weren't given yet; None: nobody knows
        self.failure: errors.KvorumError | None = None

    @property
    def wanted(self) -> int:
        """How large the next piece is: all that is read ahead."""
        if self.left is None:
            return SIZE_BYTES
        return min(self.left, PIECE_BYTES) or CHECKSUM_BYTES


class Snapshots:
    """See the module.

    Args:
      start: start an export of a store in which entry `mark` is durable. Raises OSError.
      answer: an answer's status, and its bytes.
      epoch: of this process, so that ids are not used twice.
    """

    def __init__(
        self,
        start: Callable[[int], Export],
        answer: Callable[[Caller, int, bytes], None],
        *,
        epoch: int,
        election_ticks: int,
    ) -> None:
        self._start, self._answer = start, answer
        self._wait_ticks, self._silence_ticks = WAIT_ELECTIONS * election_ticks, SILENCE_ELECTIONS * election_ticks
        self._under_way: dict[int, _Snapshot] = {}
        self._last_id = epoch << 32
        self._tick = 0

    def __len__(self) -> int:
        return len(self._under_way)

    # ---- what clients say

    def begin(self, caller: Caller, mark: int) -> None:
        """Of the store as it is now, having applied `mark`. It is the caller's to have that flushed.

        Raises Unavailable if there are too many.
        """
        if len(self._under_way) >= SNAPSHOTS_MAX:
            raise TOO_MANY
        self._last_id += 1
        self._under_way[self._last_id] = _Snapshot(caller.identity, mark, self._tick)
        self._say(caller, pb.SnapshotResponse(snapshot=self._last_id, version=version.ETCD))

    def ask(self, caller: Caller, request: pb.SnapshotRequest) -> None:
        """For the next piece, or that it be kept or given up. Raises what is wrong with that."""
        snapshot = self._under_way.get(request.snapshot)
        if snapshot is None or snapshot.owner != caller.identity:
            raise UNKNOWN
        snapshot.since = self._tick
        if request.cancel:
            self._end(request.snapshot)
            self._say(caller, pb.SnapshotResponse())
        elif request.hold:
            self._say(caller, pb.SnapshotResponse())
        elif snapshot.caller is not None:
            raise BUSY
        else:
            snapshot.caller = caller
            self._advance(request.snapshot, snapshot)

    # ---- what comes of it

    def turn(self, durable: int) -> None:
        """`durable`: the entry up to which the store is on disk."""
        for id, snapshot in list(self._under_way.items()):
            if snapshot.export is None and snapshot.failure is None and durable >= snapshot.mark:
                try:
                    snapshot.export = self._start(snapshot.mark)
                except OSError as error:
                    self._fail(snapshot, _broken(f"cannot be begun: {error}"))
            self._advance(id, snapshot)

    def tick(self, tick: int) -> None:
        """Tell those who have waited for long, and end what nobody asks for."""
        self._tick = tick
        for id, snapshot in list(self._under_way.items()):
            if snapshot.caller is not None and tick - snapshot.since >= self._wait_ticks:
                self._give(snapshot, pb.SnapshotResponse(version=version.ETCD))
            elif snapshot.caller is None and tick - snapshot.since >= self._silence_ticks:
                self._end(id)

    def give_up(self, error: errors.KvorumError) -> None:
        """All of them: their clients are told why when they ask."""
        for id, snapshot in list(self._under_way.items()):
            if snapshot.failure is None:
                self._fail(snapshot, error)
            self._advance(id, snapshot)

    def close(self) -> None:
        for id in list(self._under_way):
            self._end(id)

    # ---- pieces

    def _advance(self, id: int, snapshot: _Snapshot) -> None:
        self._read(snapshot)
        if snapshot.caller is None:
            return
        if snapshot.failure is not None:
            caller, snapshot.caller = snapshot.caller, None
            self._answer(caller, snapshot.failure.code, snapshot.failure.text.encode())
            self._end(id)
        elif snapshot.left is not None and len(snapshot.held) == snapshot.wanted:
            last = not snapshot.left
            snapshot.left = max(0, snapshot.left - len(snapshot.held))
            piece, snapshot.held = snapshot.held, b""
            self._give(snapshot, pb.SnapshotResponse(remaining_bytes=snapshot.left, blob=piece, version=version.ETCD))
            if last:
                self._end(id)
            else:
                self._read(snapshot)

    def _read(self, snapshot: _Snapshot) -> None:
        """Ahead of whoever asks, one piece."""
        while snapshot.export is not None and snapshot.failure is None:
            room = snapshot.wanted - len(snapshot.held)
            data = snapshot.export.read(room) if room else None
            if data is None:
                return
            snapshot.held += data
            if not data:
                self._fail(snapshot, _broken("has broken off"))
            elif snapshot.left is None and len(snapshot.held) == SIZE_BYTES:
                size, snapshot.held = int.from_bytes(snapshot.held, "little"), b""
                if size == NO_SIZE:
                    reason = snapshot.export.read(_REASON_BYTES) or b""  # written together with the size
                    self._fail(snapshot, _broken(reason.decode("utf-8", "replace")))
                else:
                    snapshot.left = size

    def _give(self, snapshot: _Snapshot, response: pb.SnapshotResponse) -> None:
        assert snapshot.caller is not None
        caller, snapshot.caller, snapshot.since = snapshot.caller, None, self._tick
        self._say(caller, response)

    def _say(self, caller: Caller, response: pb.SnapshotResponse) -> None:
        self._answer(caller, 0, response.SerializeToString())

    def _fail(self, snapshot: _Snapshot, error: errors.KvorumError) -> None:
        snapshot.failure, snapshot.held = error, b""
        if snapshot.export is not None:
            snapshot.export.close()

    def _end(self, id: int) -> None:
        snapshot = self._under_way.pop(id)
        if snapshot.caller is not None:
            self._answer(snapshot.caller, UNKNOWN.code, UNKNOWN.text.encode())
        if snapshot.export is not None and snapshot.failure is None:
            snapshot.export.close()


def _broken(why: str) -> errors.KvorumError:
    return errors.Unavailable(f"kvorum: the snapshot {why}; the node's log may say more", Code.ABORTED)
