"""The edge of a gateway process: gRPC and HTTP/1.1 in, wire batches and events out, and back (native/edge.h).

    edge = Edge([Method("/etcdserverpb.KV/Put", 3, PIPE), Method("/etcdserverpb.Watch/Watch", 7, STREAM), ...])
    edge.listen("127.0.0.1", 2379)
    while True:
        poller.poll()                       # edge.fileno() among ZeroMQ's sockets
        batch = edge.poll()
        if batch.calls:
            apply.send(batch.calls)         # a wire batch as it is
        for call, deadline, at, length, extra, kind, method, status in batch.events:
            payload = batch.data[at : at + length]
            ...
        edge.deliver(answers)               # a wire batch as it came

Everything is per batch; the one loop over events is for what is not in `calls`. That includes calls of PIPE methods
with a token or hasleader, and whatever came when `calls` was full. Of a stream with CALLS, each message is such a call.
When CANCELLED or CLOSED is told, nobody waits for
the call any more, and an answer to it would be dropped. A call that went into `calls` is the edge's to watch: its
deadline, its client, and fail() when nobody is left to answer. For one thread.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from native._edge import ffi, lib

UNARY, PIPE, STREAM, GRANTED = lib.EDGE_UNARY, lib.EDGE_PIPE, lib.EDGE_STREAM, lib.EDGE_GRANTED
CALLS = lib.EDGE_CALLS

OPENED, CLOSED, CALL, BEGUN = lib.EDGE_OPENED, lib.EDGE_CLOSED, lib.EDGE_CALL, lib.EDGE_BEGUN
MESSAGE, HALF_CLOSED, CANCELLED, UNKNOWN = lib.EDGE_MESSAGE, lib.EDGE_HALF_CLOSED, lib.EDGE_CANCELLED, lib.EDGE_UNKNOWN
BLOCKED, WRITABLE, BYTES, REQUEST = lib.EDGE_BLOCKED, lib.EDGE_WRITABLE, lib.EDGE_BYTES, lib.EDGE_REQUEST

HTTP1, HTTP2 = lib.EDGE_HTTP1, lib.EDGE_HTTP2
HAS_LEADER, TOKEN, AUTHORIZATION = lib.EDGE_HAS_LEADER, lib.EDGE_TOKEN, lib.EDGE_AUTHORIZATION
BAD_VERSION = lib.EDGE_BAD_VERSION
BY_PEER, BY_US, BAD_PROTOCOL = lib.EDGE_BY_PEER, lib.EDGE_BY_US, lib.EDGE_BAD_PROTOCOL
TOO_MUCH, TOO_LATE = lib.EDGE_TOO_MUCH, lib.EDGE_TOO_LATE

REPLY, SEND, END, HEADERS = lib.EDGE_REPLY, lib.EDGE_SEND, lib.EDGE_END, lib.EDGE_HEADERS
RESET, GRANT, WRITE, CLOSE = lib.EDGE_RESET, lib.EDGE_GRANT, lib.EDGE_WRITE, lib.EDGE_CLOSE
PAUSE, RESUME = lib.EDGE_PAUSE, lib.EDGE_RESUME
RESPONSE, RESPONSE_BEGUN = lib.EDGE_RESPONSE, lib.EDGE_RESPONSE_BEGUN

SUFFIX_MAX: int = lib.EDGE_SUFFIX_MAX

_RECORD = struct.Struct("<IBBHQ")
_EVENT = struct.Struct("<QQIIIBBH")
assert _EVENT.size == ffi.sizeof("struct edge_event")

Event = tuple[int, int, int, int, int, int, int, int]
"""call, deadline, at, length, extra, kind, method, status; edge.h says what each kind has in them."""


class Method(NamedTuple):
    path: str
    number: int
    shape: int


@dataclass(frozen=True)
class Limits:
    """Bounds, with etcd's values where etcd has one. Bytes, milliseconds (of CLOCK_MONOTONIC), counts."""

    connections_max: int = 20_000
    streams_max: int = 10_000
    message_max: int = 1_572_864 + 524_288
    header_list_max: int = 64 << 10
    continuations_max: int = 16
    stream_window: int = 64 << 10
    connection_window: int = 1 << 20
    inbound_connection_max: int = 32 << 20
    inbound_max: int = 256 << 20
    outbound_high: int = 1 << 20
    outbound_connection_high: int = 8 << 20
    outbound_connection_max: int = 64 << 20
    memory_max: int = 1 << 30
    reset_burst: int = 10_000
    reset_rate: int = 2_000
    noise_burst: int = 5_000
    noise_rate: int = 500
    ping_min_ms: int = 5_000
    ping_strikes_max: int = 2
    handshake_ms: int = 10_000
    keepalive_ms: int = 7_200_000
    keepalive_timeout_ms: int = 20_000
    assembly_ms: int = 60_000
    batch_bytes: int = 4 << 20
    batch_records: int = 8_192


class Batch(NamedTuple):
    """What one poll gathered.

    calls: a wire batch of `call_count` records, never more than wire.BATCH_BYTES_MAX and wire.BATCH_RECORDS_MAX allow.
    events: in the order in which they came, over all connections.
    data: what the events point into: data[at : at + length] is the payload, and the next `extra` bytes the extra.
    """

    calls: bytes
    call_count: int
    events: list[Event]
    data: bytes


class TlsError(Exception):
    """A certificate, key, CA or CRL is missing, unreadable or does not fit; nothing was changed."""


def record(kind: int, call: int, payload: bytes = b"", *, status: int = 0, method: int = 0) -> bytes:
    """One record for deliver(): edge.h lists the kinds."""
    return _RECORD.pack(len(payload), method, kind, status, call) + payload


def self_signed(hosts: str, days: int) -> tuple[bytes, bytes]:
    """A new certificate that signs itself, and its key, as PEM. Raises TlsError.

    hosts: alternative names as OpenSSL reads them, "IP:127.0.0.1,DNS:localhost".
    """
    certificate, key = ffi.new("char[]", 8192), ffi.new("char[]", 8192)
    if lib.edge_tls_self_signed(hosts.encode(), days, certificate, key, 8192):
        raise TlsError(f"OpenSSL makes no certificate for {hosts}")
    return ffi.string(certificate), ffi.string(key)


def _error(what: str) -> OSError:
    return OSError(ffi.errno, f"{what}: {os.strerror(ffi.errno)}")


class Edge:
    """Owns listeners and connections.

    Raises OSError if the kernel refuses, ValueError if the methods or limits are not sound.
    """

    def __init__(self, methods: Iterable[Method], limits: Limits = Limits()) -> None:
        table = [(ffi.new("char[]", method.path.encode()), method.number, method.shape) for method in methods]
        self._edge = lib.edge_new(ffi.new("struct edge_config *", asdict(limits)), table, len(table))
        if not self._edge:
            if ffi.errno == 22:
                raise ValueError("edge: the methods or limits are not sound")
            raise _error("edge")
        self._batch = ffi.new("struct edge_batch *")

    def listen(self, address: str, port: int, *, reuse_port: bool = False, tls: bool = False) -> int:
        """Listen on a numeric address; returns the port, which the kernel chooses for 0. Raises OSError."""
        found: int = lib.edge_listen(self._edge, address.encode(), port, reuse_port, tls)
        if found < 0:
            raise _error(f"listening on {address}:{port}")
        return found

    def listen_on(self, socket: int, *, tls: bool = False) -> None:
        """Take connections from a socket that listens and doesn't block, the edge's from now on. Raises OSError."""
        if lib.edge_listen_on(self._edge, socket, tls):
            raise _error("listening")

    def adopt(self, socket: int, *, tls: bool = False) -> None:
        """Take over a connected stream socket, which is the edge's from now on. Raises OSError."""
        if lib.edge_adopt(self._edge, socket, tls):
            raise _error("edge")

    def tls(
        self,
        certificate: str,
        key: str,
        *,
        ca: str | None = None,
        crl: str | None = None,
        hosts: str | None = None,
        ciphers: str | None = None,
        version_min: int = 0,
        version_max: int = 0,
    ) -> None:
        """Read PEM files for connections to come; with `ca`, clients must show a certificate. Raises TlsError.

        From then on the edge reads them again when they change. What is of no use then is counted (`stats()`), told by
        `tls_error`, and changes nothing. hosts, ciphers and versions: edge_tls_config.
        """
        texts = {"certificate": certificate, "key": key, "ca": ca, "crl": crl, "hosts": hosts, "ciphers": ciphers}
        kept = {
            name: ffi.NULL if text is None else ffi.new("char[]", os.fsencode(text)) for name, text in texts.items()
        }
        versions = {"version_min": version_min, "version_max": version_max}
        if lib.edge_tls(self._edge, ffi.new("struct edge_tls_config *", kept | versions)):
            raise TlsError(self.tls_error)

    @property
    def tls_error(self) -> str:
        """What was last wrong with the files of tls(); "" if nothing ever was."""
        return ffi.string(lib.edge_tls_error(self._edge)).decode(errors="replace")  # type: ignore[no-any-return]

    def fileno(self) -> int:
        """Readable when poll() has something to do."""
        return int(lib.edge_fileno(self._edge))

    def poll(self, timeout: float = 0) -> Batch:
        """Do all there is to do, waiting up to `timeout` seconds for something. A signal ends the wait.

        Raises OSError if the edge is of no more use.
        """
        batch = self._batch
        if lib.edge_poll(self._edge, int(timeout * 1000), batch):
            if ffi.errno == 4:
                return Batch(b"", 0, [], b"")
            raise _error("edge")
        calls = ffi.buffer(batch.calls, batch.calls_size)[:] if batch.call_count else b""
        events: list[Any] = []
        data = b""
        if batch.event_count:
            events = list(_EVENT.iter_unpack(ffi.buffer(batch.events, batch.event_count * 32)))
            if batch.bytes_size:
                data = ffi.buffer(batch.bytes, batch.bytes_size)[:]
        found = Batch(calls, batch.call_count, events, data)
        lib.edge_clear(self._edge)
        return found

    def deliver(self, batch: bytes) -> int:
        """Carry out the records of a wire batch, and write. Returns how many found their call.

        Raises ValueError if the batch breaks off or has a record of an unknown kind; those before it are carried out.
        """
        found: int = lib.edge_deliver(self._edge, batch, len(batch))
        if found < 0:
            raise ValueError("edge: no batch of answers")
        return found

    def fan_out(self, payload: bytes, calls: array[int], suffixes: bytes, ends: array[int]) -> int:
        """To each stream of `calls` (array "Q") one message: the payload, then its suffix, suffixes[ends[i-1]:ends[i]].

        ends is an array "I"; a suffix is of at most SUFFIX_MAX bytes. Returns how many streams were found.
        Raises ValueError if ends are not rising, too far apart, or beyond the suffixes.
        """
        if len(calls) != len(ends):
            raise ValueError("edge: as many ends as calls are needed")
        ids, places = ffi.from_buffer("uint64_t[]", calls), ffi.from_buffer("uint32_t[]", ends)
        sizes = len(calls), suffixes, len(suffixes)
        found: int = lib.edge_fan_out(self._edge, payload, len(payload), ids, places, *sizes)
        if found < 0:
            raise ValueError("edge: the ends do not fit the suffixes") if ffi.errno == 22 else _error("edge")
        return found

    def fail(self, status: int, text: str, *, method: int = 0) -> int:
        """Answer all calls that went into `calls` and have no answer. Returns how many."""
        return int(lib.edge_fail(self._edge, method, status, text.encode()))

    def drain(self, grace: float) -> int:
        """Listen no more, send clients elsewhere, close connections with their last call or after `grace` seconds.

        Returns how many connections are left; go on polling until there are none. Called again, it only counts.
        """
        return int(lib.edge_drain(self._edge, int(grace * 1000)))

    def stats(self) -> dict[str, int]:
        """struct edge_stats by name."""
        stats = ffi.new("struct edge_stats *")
        lib.edge_stats(self._edge, stats)
        return {name: int(getattr(stats, name)) for name, _ in ffi.typeof("struct edge_stats").fields}

    def method_stats(self, method: int) -> tuple[int, list[int]]:
        """How many calls of the method began, and how many ended with each status, 0 to 16. Raises KeyError."""
        started, ended = ffi.new("uint64_t *"), ffi.new("uint64_t[17]")
        if lib.edge_method_stats(self._edge, method, started, ended):
            raise KeyError(method)
        return int(started[0]), [int(n) for n in ended]

    def version_stats(self) -> list[tuple[str, list[int]]]:
        """For each client-api-version that calls named: what it is, and how many calls of each method, by number, began
        with it. The first is "unknown", of calls that name none; the second "other", of what there was no room for."""
        text, length, started = ffi.new("char[32]"), ffi.new("uint32_t *"), ffi.new("uint64_t[256]")
        found: list[tuple[str, list[int]]] = []
        while not lib.edge_version_stats(self._edge, len(found), text, length, started):
            found.append((bytes(ffi.buffer(text, length[0])).decode(), ffi.unpack(started, 256)))
        return found

    def close(self) -> None:
        """Close everything at once. Nothing else may be called afterwards."""
        if self._edge:
            lib.edge_free(self._edge)
            self._edge = ffi.NULL
