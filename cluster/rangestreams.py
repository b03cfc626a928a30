"""Ranges that are told in parts (etcd 3.7's KV.RangeStream): a stream holds a place in the keyspace, never the answer.

    client  open, RangeRequest ──▶ read index ──▶ first part ──▶ part ──▶ part ──▶ last part: header, more, count; close
              pause / resume / close ─────────────────┘ between two parts

All parts are of one revision: the newest when the first is read, or the one that was asked for. In between nothing is
held but the key that comes next, no iterator and no snapshot, so a stream that nobody reads from costs a hundred bytes,
for as long as it likes; what it needs may be compacted meanwhile, and then it ends with that error.

One part is made at a time, over all streams, one slice of work (storage.reads) a turn, and only for a client that takes
what it has: so what all of it holds is one part and what the outbox keeps. A client that wants no more for now says so
(the gateway, when the reader of its own stream is slow), or doesn't read, or has said before how many parts it takes.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Protocol

from cluster.callers import Caller
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind, Method
from storage import codec, requests
from storage.keyspace import Keyspace, Result, Scan
from storage.reads import Page

FIRST_KEYS = 10
"""In the first part, as with etcd: who waits sees something soon."""
PART_BYTES = 512 << 10
"""About; one KeyValue may be larger."""
STREAMS_MAX = 10_000
REQUESTS_BYTES_MAX = 64 << 20
"""What the requests of all streams take."""
PROBE_TICKS = 100
"""Whoever has paused streams is sent an empty frame that often: it may be gone."""
_PARTS = struct.Struct("<I")
"""In a stream-resume: so many more."""


class Host(Protocol):
    """The apply process, as far as it is of interest here."""

    keyspace: Keyspace

    def header_now(self, revision: int) -> bytes: ...
    def begin_read(self, caller: Caller, payload: bytes, *, serializable: bool) -> None:
        """`begin` is called when the read may be done, or `drop`, if that took too long."""
        ...

    def takes(self, identity: bytes) -> bool:
        """Whether the client has room for more answers now."""
        ...

    def put(self, identity: bytes, record: bytes) -> None: ...
    def gone(self, identity: bytes) -> bool: ...


class _Stream:
    __slots__ = ("caller", "count", "held", "left", "page", "request", "revision", "size", "tail", "window", "work")

    def __init__(self, caller: Caller, request: pb.RangeRequest, size: int) -> None:
        self.caller, self.request, self.size = caller, request, size
        self.left = request.limit if request.limit > 0 else 1 << 63
        self.revision = 0  # that the header will tell
        self.count = 0  # keys told
        self.held = False  # by stream-pause
        self.window: int | None = None  # parts that may still be sent, if the client has said how many
        self.page = Page()
        self.work: Scan | None = None
        self.tail: bytes | None = None  # the last part, while what the limit cuts off is counted

    @property
    def paused(self) -> bool:
        return self.held or self.window == 0


class RangeStreams:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._streams: dict[tuple[bytes, int], _Stream] = {}
        self._ready: deque[_Stream] = deque()  # those that want a part
        self._working: _Stream | None = None
        self._ticks = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def busy(self) -> bool:
        """There is work that the next turn can do."""
        return self._working is not None or any(self._host.takes(one.caller.identity) for one in self._ready)

    # ---- what clients say

    def take(self, caller: Caller, kind: int, payload: bytes) -> None:
        """A record of this method. Raises what the stream ends with."""
        key = (caller.identity, caller.id)
        stream = self._streams.get(key)
        if kind == Kind.STREAM_OPEN:
            if stream is not None:
                raise errors.Refused("kvorum: this stream is open", errors.Code.ALREADY_EXISTS)
            self._open(caller, payload)
        elif kind not in (Kind.STREAM_CLOSE, Kind.STREAM_PAUSE, Kind.STREAM_RESUME):
            raise errors.Unimplemented(f"kvorum: a record of kind {kind} has no place in a RangeStream")
        elif stream is None:
            return  # it has ended meanwhile
        elif kind == Kind.STREAM_CLOSE:
            self.drop(caller)
        else:
            stream.held = kind == Kind.STREAM_PAUSE
            if payload:
                if kind != Kind.STREAM_RESUME or len(payload) != _PARTS.size:
                    raise errors.Malformed
                stream.window = (stream.window or 0) + _PARTS.unpack(payload)[0]
            if stream.paused:
                self._not_ready(stream)
            elif stream.revision and stream is not self._working and stream not in self._ready:
                self._ready.append(stream)

    def _open(self, caller: Caller, payload: bytes) -> None:
        request = requests.parse(Method.RANGE, payload)
        default = request.sort_order == pb.RangeRequest.NONE or (
            request.sort_target == pb.RangeRequest.KEY and request.sort_order == pb.RangeRequest.ASCEND
        )
        if not default:
            raise errors.Unimplemented("RangeStream does not support custom sort orders")
        if (
            request.min_mod_revision
            or request.max_mod_revision
            or request.min_create_revision
            or request.max_create_revision
        ):
            raise errors.Unimplemented("RangeStream does not support revision filters")
        if len(self._streams) >= STREAMS_MAX or self._bytes + len(payload) > REQUESTS_BYTES_MAX:
            raise errors.TooManyRequests
        self._streams[caller.identity, caller.id] = _Stream(caller, request, len(payload))
        self._bytes += len(payload)
        try:
            self._host.begin_read(caller, payload, serializable=request.serializable)
        except errors.KvorumError:
            self.drop(caller)
            raise

    def begin(self, caller: Caller) -> None:
        """What was applied since it was opened is enough."""
        stream = self._streams.get((caller.identity, caller.id))
        if stream is not None:
            stream.revision = self._host.keyspace.revision
            if not stream.paused:
                self._ready.append(stream)

    def drop(self, caller: Caller) -> None:
        stream = self._streams.pop((caller.identity, caller.id), None)
        if stream is not None:
            self._bytes -= stream.size
            self._not_ready(stream)
            if self._working is stream:
                self._working = None

    def gone(self, identity: bytes) -> None:
        """The client is."""
        for stream in [one for one in self._streams.values() if one.caller.identity == identity]:
            self.drop(stream.caller)

    def _not_ready(self, stream: _Stream) -> None:
        if stream in self._ready:
            self._ready.remove(stream)

    # ---- the work

    def turn(self) -> None:
        """One slice, if there is something to do and somebody to take it."""
        if self._working is None:
            for _ in range(len(self._ready)):
                stream = self._ready.popleft()
                if self._host.takes(stream.caller.identity):
                    self._working = stream
                    break
                self._ready.append(stream)
        if self._working is not None:
            self._step(self._working)

    def tick(self) -> None:
        self._ticks += 1
        if self._ticks % PROBE_TICKS == 0:
            for identity in {one.caller.identity: None for one in self._streams.values() if one.paused}:
                if self._host.gone(identity):
                    self.gone(identity)

    def _step(self, stream: _Stream) -> None:
        result = stream.work.step() if stream.work is not None else self._read(stream)
        if result is None or isinstance(result, Scan):
            stream.work = result or stream.work
            return
        stream.work = None
        self._working = None
        if result.status:
            self._close(stream, result.status, result.body)
        elif stream.request.count_only:
            count = pb.RangeResponse.FromString(result.body).count
            if stream.tail is None:
                self._finish(stream, b"", count, more=False)
            else:
                self._finish(stream, stream.tail, stream.count + count, more=True)
        else:
            self._told(stream, result)

    def _read(self, stream: _Stream) -> Result | Scan:
        request = stream.request
        if not request.revision > 0 and not stream.count:
            request.revision = stream.revision = self._host.keyspace.revision
        if request.count_only:
            return self._host.keyspace.read(Method.RANGE, request.SerializeToString())
        keys = stream.left if stream.count else min(FIRST_KEYS, stream.left)
        return self._host.keyspace.paged(request, stream.page, keys, PART_BYTES)

    def _told(self, stream: _Stream, result: Result) -> None:
        page = stream.page
        stream.count += page.count
        stream.left -= page.count
        if not page.more:
            self._finish(stream, result.body, stream.count, more=False)
            return
        stream.request.key = page.last + b"\0"
        if stream.left:
            self._send(stream, result.body)
        else:
            stream.tail = result.body
            stream.request.count_only, stream.request.limit = True, 0
        if not stream.paused:
            self._ready.append(stream)

    def _finish(self, stream: _Stream, kvs: bytes, count: int, *, more: bool) -> None:
        parts = [self._host.header_now(stream.revision), kvs]
        if more:
            parts.append(b"\x18\x01")
        if count:
            parts.append(b"\x20" + codec.varint(count))
        self._send(stream, b"".join(parts))
        self._close(stream, 0, b"")

    def _send(self, stream: _Stream, response: bytes) -> None:
        if stream.window is not None:
            stream.window -= 1
        self._put(stream, Kind.STREAM_MESSAGE, 0, codec.field(b"\x0a", response))

    def _close(self, stream: _Stream, status: int, text: bytes) -> None:
        self._put(stream, Kind.STREAM_CLOSE, status, text)
        self.drop(stream.caller)

    def _put(self, stream: _Stream, kind: Kind, status: int, payload: bytes) -> None:
        self._host.put(
            stream.caller.identity, wire.encode(Method.RANGE_STREAM, kind, status, stream.caller.id, payload)
        )
