"""Snapshot calls at the gateway: a piece of apply's (cluster/snapshots.py) becomes some of etcd's messages.

    call ──▶ begin ──▶ ask ──piece──▶ messages of 32 KiB ──▶ ask ... ──checksum──▶ its message, and the end
                        ▲                    │ the client reads slowly
                        └────── when it reads again; meanwhile apply is told to hold

A piece is asked for when all that came before has been handed over to the edge, and only while its client reads: so a
call holds a piece here and what the edge lets one call hold. Whoever goes takes the snapshot along. If apply dies, the
stream breaks off with "connection lost": what a client has by then lacks its checksum, and etcd's tools refuse it.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from google.protobuf.message import Message

from cluster import version
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method

BLOB_BYTES = 32 << 10
"""etcd's."""
HOLD_TICKS = 50
"""Apply gives up a snapshot after 30 election timeouts of silence, each of 5 ticks at least."""


class Gateway(Protocol):
    """As much of cluster.gatewayd.Gateway as is needed here."""

    def ask(self, method: int, request: Message | bytes, then: Callable[[int, bytes], None]) -> None: ...
    def send(self, id: int, payload: bytes) -> None: ...
    def end(self, id: int, status: int = 0, text: str = "") -> None: ...


class _Call:
    __slots__ = ("asking", "blocked", "id", "left", "snapshot")

    def __init__(self, id: int) -> None:
        self.id = id
        self.snapshot = 0  # apply's number for it
        self.asking = True  # an answer will come
        self.blocked = False
        self.left = -1  # bytes before the checksum


class SnapshotCalls:
    """All that are under way here."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._calls: dict[int, _Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self, id: int) -> None:
        call = self._calls[id] = _Call(id)
        self._gateway.ask(Method.SNAPSHOT, pb.SnapshotRequest(), lambda *told: self._begun(call, *told))

    def of_connection(self, connection: int) -> list[int]:
        return [id for id in self._calls if id >> 32 == connection]

    def cancel(self, id: int) -> None:
        """The client has gone. Ids of no call here are ignored."""
        call = self._calls.pop(id, None)
        if call is not None and call.snapshot:
            self._say(pb.SnapshotRequest(snapshot=call.snapshot, cancel=True))

    def block(self, id: int, blocked: bool) -> None:
        """The client reads too slowly, or reads again. Ids of no call here are ignored."""
        call = self._calls.get(id)
        if call is not None:
            call.blocked = blocked
            self._next(call)

    def stop(self) -> None:
        """End all calls, as this process will."""
        for id in list(self._calls):
            self._gateway.end(id, errors.Stopped.code, errors.Stopped.text)
            self.cancel(id)

    def tick(self, tick: int) -> None:
        if tick % HOLD_TICKS:
            return
        for call in self._calls.values():
            if call.blocked and not call.asking:
                self._say(pb.SnapshotRequest(snapshot=call.snapshot, hold=True))

    # ---- answers of apply

    def _begun(self, call: _Call, status: int, answer: bytes) -> None:
        if status:
            self._failed(call, status, answer)
            return
        call.snapshot = pb.SnapshotResponse.FromString(answer).snapshot
        call.asking = False
        if call.id in self._calls:
            self._next(call)
        else:  # its client has gone meanwhile
            self._say(pb.SnapshotRequest(snapshot=call.snapshot, cancel=True))

    def _next(self, call: _Call) -> None:
        if call.snapshot and not call.asking and not call.blocked:
            call.asking = True
            request = pb.SnapshotRequest(snapshot=call.snapshot)
            self._gateway.ask(Method.SNAPSHOT, request, lambda *told: self._told(call, *told))

    def _told(self, call: _Call, status: int, answer: bytes) -> None:
        if self._calls.get(call.id) is not call:
            return
        if status:
            self._failed(call, status, answer)
            return
        call.asking = False
        piece = pb.SnapshotResponse.FromString(answer)
        for message in messages(piece.blob, piece.remaining_bytes):
            self._gateway.send(call.id, message)
        if piece.blob and not call.left:  # that was the checksum
            del self._calls[call.id]
            self._gateway.end(call.id)
            return
        if piece.blob:
            call.left = piece.remaining_bytes
        self._next(call)

    def _failed(self, call: _Call, status: int, answer: bytes) -> None:
        if self._calls.pop(call.id, None) is not None:
            self._gateway.end(call.id, status, answer.decode("utf-8", "replace"))

    def _say(self, request: Message) -> None:
        self._gateway.ask(
            Method.SNAPSHOT, request, lambda status, answer: None
        )  # if it is no more, the next piece tells


def messages(blob: bytes, remaining: int) -> Iterator[bytes]:
    """A piece, before the last `remaining` bytes, as etcd's messages."""
    left = remaining + len(blob)
    for at in range(0, len(blob), BLOB_BYTES):
        part = blob[at : at + BLOB_BYTES]
        left -= len(part)
        yield pb.SnapshotResponse(remaining_bytes=left, blob=part, version=version.ETCD).SerializeToString()
