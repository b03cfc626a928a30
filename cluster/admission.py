"""What clients send, taken apart: refusals are told at once, reads are begun, writes wait to be proposed together.

    frame ──▶ nothing but plain writes, and room for all of them ──▶ as it is ───────────┐
          └─▶ record by record ──▶ refused, or answered here                             ├─▶ take_entries: the writes of
                               ──▶ read: begun, and answered by whoever does it          │   a wake-up, as few entries
                               ──▶ write: ids and times that all members need, settled ──┘   as their size allows

Whether something is refused may depend on what is here (the quota, the backlog): it wasn't proposed, so no is true.
From then on everything about it is decided by the log. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from cluster.callers import AfterSweep, Caller
from cluster.links import ClientFrame
from cluster.metrics import ApplyBoard
from cluster.quota import Quota
from cluster.requests import parsed
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind, Method
from native import plain
from native.plain import Scanner
from storage.requests import Limits, Path, admit, cost

ENTRY_BYTES = 1 << 20
"""A batch is cut into entries of about this size."""
_PUT, _TXN = int(Method.PUT), int(Method.TXN)


class Host(Protocol):
    """The apply process, as far as it is of interest here."""

    board: ApplyBoard

    @property
    def overloaded(self) -> bool:
        """Too much is under way: new writes are refused."""
        ...

    def settled(self, grant: bytes) -> bytes:
        """A LeaseGrantRequest with all that every member must see alike."""
        ...

    def begin_read(self, caller: Caller, payload: bytes, *, serializable: bool) -> None:
        """Raises TooManyRequests."""
        ...

    def stream_ranges(self, caller: Caller, kind: int, payload: bytes) -> None: ...
    def fail(self, caller: Caller, error: errors.KvorumError) -> None: ...


class Admission:
    """Args:
    local: the calls that are neither reads nor writes of the store, by method; they may raise what is wrong.
    """

    def __init__(
        self, host: Host, limits: Limits, quota: Quota, local: Mapping[int, Callable[[Caller, bytes], None]]
    ) -> None:
        self._host, self._limits, self._quota, self._local = host, limits, quota, local
        self._scanner = Scanner(limits.max_request_bytes, limits.max_txn_ops)
        self.writes: list[tuple[bytes, list[Caller]]] = []
        """Of this wake-up: batches, and who waits for each of their records."""

    def take(self, client: ClientFrame) -> None:
        if not self._take_plain(client):
            self._take_apart(client)

    def take_entries(self) -> Iterator[tuple[bytes, list[Caller]]]:
        """The writes taken since the last time, each a batch for an entry of the log."""
        writes, self.writes = self.writes, []
        parts: list[bytes] = []
        callers: list[Caller] = []
        size = 0
        for batch, its in writes:
            if size and size + len(batch) > ENTRY_BYTES:
                yield b"".join(parts), callers
                parts, callers, size = [], [], 0
            parts.append(batch)
            callers += its
            size += len(batch)
        if parts:
            yield b"".join(parts), callers

    def _take_plain(self, client: ClientFrame) -> bool:
        """Admit a frame of nothing but plain writes (native.plain), of which there is no more to ask than if there is
        room for all of them. False: it is something else, or has to be looked at one by one."""
        identity, frame = client
        scanned = self._scanner.scan(frame)
        if scanned is None or scanned[1] or len(frame) > wire.BATCH_BYTES_MAX:
            return False
        numbers, at, end = scanned[0], 0, len(scanned[0])
        callers: list[Caller] = []
        while at < end:
            if numbers[at] == plain.PUT:
                callers.append(Caller(identity, numbers[at + 1], _PUT))
                at += 6
            else:
                callers.append(Caller(identity, numbers[at + 1], _TXN))
                at = numbers[at + 2]
        if len(callers) > wire.BATCH_RECORDS_MAX or self._host.overloaded:
            return False
        if self._quota.room() < len(frame) + 256 * plain.LIST_MAX * len(callers):
            return False
        if callers:
            self.writes.append((frame, callers))
        return True

    def _take_apart(self, client: ClientFrame) -> None:
        identity, frame = client
        try:
            records = wire.decode(frame, wire.BATCH_RECORDS_MAX)
        except wire.MalformedBatch as malformed:
            self._host.fail(Caller(identity, 0, 0), errors.Malformed(f"kvorum: {malformed}"))
            return
        callers: list[Caller] = []
        kept: list[bytes] = []
        as_it_is = True
        for record in records:
            caller = Caller(identity, record.id, record.method)
            try:
                proposed = self._admit(caller, record.kind, record.payload)
            except errors.KvorumError as error:
                self._host.fail(caller, error)
                continue
            if proposed is not None:
                if record.method == Method.COMPACT and parsed(pb.CompactionRequest, record.payload).physical:
                    caller = AfterSweep(*caller)
                callers.append(caller)
                kept.append(proposed)
                as_it_is &= proposed is record.payload
        if as_it_is and len(callers) == len(records) and callers:
            self.writes.append((frame, callers))
        elif callers:
            whole = b"".join(
                wire.encode(caller.method, Kind.CALL, 0, caller.id, payload)
                for caller, payload in zip(callers, kept, strict=True)
            )
            self.writes.append((whole, callers))

    def _admit(self, caller: Caller, kind: int, payload: bytes) -> bytes | None:
        """Start on a request. If it is a write, the payload to be proposed with the others of its frame."""
        method, host = caller.method, self._host
        if method == Method.RANGE_STREAM:
            if len(payload) > self._limits.max_request_bytes:
                raise errors.RequestTooLarge
            host.stream_ranges(caller, kind, payload)
            return None
        if kind != Kind.CALL:
            raise errors.Unimplemented(f"kvorum: a record of kind {kind} is not a call")
        local = self._local.get(method)
        if local is not None:
            local(caller, payload)
            return None
        if method not in wire.METHODS or method == Method.WATCH:
            raise errors.Unimplemented(f"unknown method {method}")
        path = admit(method, payload, self._limits)
        if path is Path.WRITE:
            if not self._guard(caller, payload):
                return None
            return host.settled(payload) if method == Method.LEASE_GRANT else payload
        if len(payload) > self._limits.max_request_bytes:
            raise errors.RequestTooLarge
        host.begin_read(caller, payload, serializable=path is Path.SERIALIZABLE)
        return None

    def _guard(self, caller: Caller, payload: bytes) -> bool:
        """Whether a write may be proposed now; if not, and nothing is raised, its caller is told when it is time."""
        if self._host.overloaded:
            self._host.board.refused.add()
            raise errors.TooManyRequests
        if self._quota.room() >= len(payload) + 256 * self._limits.max_txn_ops:
            return True
        growth = cost(caller.method, payload)  # close enough to look at it
        return not growth or self._quota.admits(caller, growth)
