"""Ranges that come in parts (etcd 3.7's KV.RangeStream), at the client: what has come and was not read yet.

    Call ──▶ stream-open ──▶ part ─▶ part ─▶ part ... ─▶ stream-close
                              └─ read by one Call each: the first is the one that opened it

The node is told how many parts it may send, WINDOW_PARTS at first and then as many as have been read, so what waits
here has a bound also while nobody looks at the sockets, which is what a thread does that works at what it has read.

A stream is open over the core's current session only, since nothing can be said to another one. If that session is lost
or retired, a stream of which nothing has come is opened again elsewhere, like any read; another breaks off, behind the
parts that have come: no other node knows which revision they are of, as only the last part tells it. Nobody who reads
slowly is late: time counts only while a call waits for a part. Pure.
"""

from __future__ import annotations

import struct
from collections import deque

from kvorum.errors import KvorumError
from kvorum.wire import HEADER, Kind, Method

WINDOW_PARTS = 8
"""A node's parts are of half a MiB, so these are 4; or more, if single keys are larger than a part."""
_PARTS = struct.Struct("<I")


class Stream:
    """One of them, from before it is opened to its end."""

    __slots__ = ("ended", "error", "id", "over", "parts", "unsaid")

    def __init__(self) -> None:
        self.id = 0  # while it is open
        self.parts: deque[bytes] = deque()
        self.unsaid = 0  # parts read, of which the node does not know yet
        self.over = False
        """Behind the parts that are held comes nothing but `error`, or, without one, its end."""
        self.error: KvorumError | None = None
        self.ended = False
        """Its end has been read: the call that did has no part."""


class Streams:
    """Those that are open over the current session."""

    def __init__(self) -> None:
        self.controls: list[bytes] = []
        """Records to be sent before everything else."""
        self._open: dict[int, Stream] = {}

    def __getitem__(self, id: int) -> Stream | None:
        return self._open.get(id)

    def opened(self, stream: Stream, id: int) -> bytes:
        """Returns what is to be sent behind the record that opens it."""
        self._open[id] = stream
        stream.id = id
        return _record(id, Kind.STREAM_RESUME, _PARTS.pack(WINDOW_PARTS))

    def opens(self) -> list[Stream]:
        return list(self._open.values())

    def unopened(self, stream: Stream) -> None:
        """It did not leave, or shall be opened anew."""
        del self._open[stream.id]
        stream.id = 0

    def read(self, stream: Stream) -> bytes:
        """The next of the parts held."""
        stream.unsaid += 1
        if stream.unsaid >= WINDOW_PARTS // 2 and stream.id:
            self.controls.append(_record(stream.id, Kind.STREAM_RESUME, _PARTS.pack(stream.unsaid)))
            stream.unsaid = 0
        return stream.parts.popleft()

    def closed(self, stream: Stream, error: KvorumError | None) -> None:
        """The node has."""
        del self._open[stream.id]
        stream.id, stream.over, stream.error = 0, True, error

    def close(self, stream: Stream) -> None:
        """Nobody reads it any more."""
        stream.parts.clear()
        if stream.id:
            self.controls.append(_record(stream.id, Kind.STREAM_CLOSE, b""))
            self.closed(stream, None)


def _record(id: int, kind: Kind, payload: bytes) -> bytes:
    return HEADER.pack(len(payload), Method.RANGE_STREAM, kind, 0, id) + payload
