"""The gateway process: programs written for etcd come in here.

    etcd clients ──▶ edge (C) ──calls────▶ apply     plain calls: whole batches, untouched on both ways
                          │   ◀─answers──
                          ├───streams────▶ watch     the same way; a Watch stream is a stream of ours
                          └───events─────▶ Gateway   all else: lease streams, locks, snapshots, what is answered here
                                             └─ JsonWay   HTTP/1.1: JSON, /health and the like

It keeps nothing that anybody would miss: calls under way, and which streams are open. If it dies, connections break and
clients come again. If apply dies, or watch, what was under way there ends with etcd's "connection lost": a write may
have been done, and etcd's clients know that of this text.

A call's id on the edge is its id on its way to apply and watch. Calls that are made here have ids of their own, with a
bit that no stream of HTTP/2 has.

Back-pressure: what apply takes no more of waits here, one frame, for a while, and meanwhile the edge isn't asked; what
it doesn't take in stays in the sockets. Answers are the edge's to bound (native/edge.h); a Watch stream whose reader is
slow is paused at the watch process, which serves it from history when it reads again.
"""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import zmq
from google.protobuf.message import DecodeError, Message

from cluster import clientcalls, doors, log, metrics
from cluster.access import ALL, Access
from cluster.config import NodeConfig
from cluster.exits import Exit
from cluster.internal import Tick
from cluster.leadership import Leadership
from cluster.links import Answers, GatewayLink, Lost, Streamed
from cluster.local_answers import LOCAL, Local
from cluster.metrics import GatewayBoard
from cluster.process import Process
from cluster.recipecalls import RecipeCalls
from cluster.snapshotcalls import SnapshotCalls
from cluster.streams import SHARE_HEAD, SHARES
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.errors import Code
from kvorum.wire import Kind, Method
from native import edge
from native.edge import Batch, Edge
from storage.codec import int_field

if TYPE_CHECKING:
    from cluster.jsonway import JsonWay

OWN = 1 << 31
"""In the lower half of a call's id: made here."""
COUNT_TICKS = 10
STATUS_SECONDS = 0.1
"""How often apply is asked whether there is a leader."""
UNSENT_TICKS = 50
"""So long a call waits for an apply process that is starting, or stuck."""
LOST = errors.Unavailable("etcdserver: request timed out, possibly due to connection lost", Code.UNAVAILABLE)

Then = Callable[[int, bytes], None]
"""What to do with an answer: its status, and payload or error text."""

Told = Callable[[int, int, bytes | Message], None]
"""What to do with each answer to an inner call: edge.REPLY, SEND or END; its status; the message, or error text."""


class Link(Protocol):
    def receive(self) -> Iterable[Tick | Answers | Streamed | Lost]: ...
    def to_apply(self, frame: bytes) -> bool:
        """False: not now."""
        ...

    def to_watch(self, frame: bytes) -> bool: ...


class Front(Protocol):
    """As much of native.edge.Edge as is needed here."""

    def poll(self, timeout: float = 0) -> Batch: ...
    def deliver(self, batch: bytes) -> int: ...
    def fan_out(self, payload: bytes, calls: array[int], suffixes: bytes, ends: array[int]) -> int: ...
    def fail(self, status: int, text: str, *, method: int = 0) -> int: ...
    def version_stats(self) -> list[tuple[str, list[int]]]: ...


class Call(NamedTuple):
    """A call that wants something else than to be passed on."""

    id: int
    method: int
    payload: bytes
    token: bytes  # whose it is, by the metadata token or authorization; for users, which there are none yet


def methods() -> list[edge.Method]:
    """What the edge is to know: etcd's paths, and who deals with each."""
    table = []
    for method, shape in wire.METHODS.items():
        if method == Method.WATCH:
            table.append(edge.Method(shape.path, method, edge.STREAM))
        elif method == Method.LEASE_KEEP_ALIVE:
            table.append(edge.Method(shape.path, method, edge.STREAM | edge.CALLS))
        elif method == Method.RANGE_STREAM:
            table.append(edge.Method(shape.path, method, edge.UNARY))
        elif method not in (Method.HELLO, Method.SNAPSHOT):
            table.append(edge.Method(shape.path, method, edge.PIPE))
    return table + [edge.Method(one.path, number, edge.UNARY) for number, one in LOCAL.items()]


class Gateway:
    """All that is under way here."""

    def __init__(
        self,
        front: Front,
        link: Link,
        board: GatewayBoard,
        *,
        message_max: int = (1536 + 512) << 10,
        metrics_path: str = "",
        tick_seconds: float = 0.1,
        election_ticks: int = 10,
        access: Access = ALL,
        now_and_then: Callable[[], None] = lambda: None,
        client_calls: clientcalls.ClientCalls | None = None,
    ) -> None:
        self.front, self.link, self.board = front, link, board
        self._client_calls = client_calls or clientcalls.ClientCalls(None)
        self._by_json = {"unary": 0, "stream": 0}
        self._json: JsonWay | None = None
        self._for_json = message_max, metrics_path, tick_seconds, access
        self._now_and_then = now_and_then
        self.leadership = Leadership(election_ticks)
        self._status_asked = False
        self._status_ticks = max(1, round(STATUS_SECONDS / tick_seconds))
        self._ticks = 0
        self._last_own = 0
        self._own: dict[int, Then] = {}
        self._inner: dict[int, Told] = {}  # calls made here that are dealt with like those of clients
        self._own_watches: dict[int, Then] = {}
        self.recipes = RecipeCalls(self, LOST)
        self.snapshots = SnapshotCalls(self)
        self._watches: dict[int, None] = {}
        self._ranges: dict[int, None] = {}  # RangeStreams, which apply answers to the edge
        self._renewals: dict[int, int] = {}  # lease streams, and how many answers they wait for
        self._renewing: dict[int, None] = {}  # those that the edge deals with
        self._closing: set[int] = set()  # lease streams whose client says no more
        self._to_apply: list[bytes] = []  # records of this turn
        self._to_watch: list[bytes] = []
        self._answers: list[bytes] = []
        self._unsent: dict[str, bytes] = {}  # a frame that apply, or watch, has no room for yet
        self._unsent_since: dict[str, int] = {}

    @property
    def json(self) -> JsonWay:
        """Loaded when somebody first comes by HTTP/1.1: 3 MB that a node whose clients speak gRPC can do without."""
        if self._json is None:
            from cluster.jsonway import JsonWay

            self._json = JsonWay(self, *self._for_json)
        return self._json

    @property
    def has_leader(self) -> bool:
        return self.leadership.known

    @property
    def stuck(self) -> bool:
        """Something waits for room that nobody will tell of."""
        return bool(self._unsent)

    def turn(self) -> None:
        for item in self.link.receive():
            if isinstance(item, Answers):
                self.front.deliver(item.frame)
                if self._own:
                    self._own_answers(item.frame)
                if self._ranges:
                    self._ended_ranges(item.frame)
            elif isinstance(item, Streamed):
                self._streamed(item.frame)
            elif isinstance(item, Lost):
                self._lost(item.whom)
            else:
                self._tick()
        self._flush()
        if not self._unsent:
            batch = self.front.poll()
            if batch.call_count:
                self.board.calls.add(batch.call_count)
                self._to_apply.append(batch.calls)
            if batch.events:
                self._events(batch)
            self._flush()
        if self._answers:
            answers, self._answers = b"".join(self._answers), []
            self.front.deliver(answers)

    def drain(self) -> None:
        """Keep nobody by HTTP/1.1, which has no GOAWAY. The rest is the edge's to do."""
        if self._json is not None:
            self._json.drain()

    # ---- to the others

    def _flush(self) -> None:
        self._send("apply", self._to_apply, self.link.to_apply)
        self._send("watch", self._to_watch, self.link.to_watch)

    def _send(self, whom: str, records: list[bytes], send: Callable[[bytes], bool]) -> None:
        while whom in self._unsent or records:
            frame = self._unsent.pop(whom, b"") or _frame(records)
            if not send(frame):
                self._unsent[whom] = frame
                self._unsent_since.setdefault(whom, self._ticks)
                return
            self._unsent_since.pop(whom, None)

    def ask(self, method: int, request: Message | bytes, then: Then) -> None:
        """Call apply; `then` is told what it answered."""
        self._last_own += 1
        id = self._last_own << 32 | OWN
        self._own[id] = then
        payload = request if isinstance(request, bytes) else request.SerializeToString()
        self._to_apply.append(wire.encode(method, Kind.CALL, 0, id, payload))

    # ---- inner calls: what came in as JSON takes the ways that gRPC takes

    def inner(self, told: Told) -> int:
        """The id for one call or stream. `told` hears all answers, until the last of them or `inner_gone`."""
        self._last_own += 1
        id = self._last_own << 32 | OWN
        self._inner[id] = told
        return id

    def inner_call(self, id: int, method: int, payload: bytes, flags: int, token: bytes) -> None:
        self._call(Call(id, method, payload, token), flags)

    def inner_begin(self, id: int, method: int, flags: int, token: bytes) -> None:
        self._begun(id, method, flags, token)

    def inner_message(self, id: int, payload: bytes) -> None:
        self._message(id, payload)

    def inner_half_closed(self, id: int) -> None:
        self._half_closed(id)

    def inner_blocked(self, id: int, blocked: bool) -> None:
        self._blocked(id, blocked)

    def inner_gone(self, id: int) -> None:
        if self._inner.pop(id, None) is not None:
            self._cancelled(id, connection=False)

    def watch(self, request: Message, then: Then) -> int:
        """Open a stream to watch with this one request; `then` is told each of its responses, or how it ended: once,
        with a status. Returns its id, for `unwatch`."""
        self._last_own += 1
        id = self._last_own << 32 | OWN
        self._own_watches[id] = then
        self._to_watch += [
            wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, id, b""),
            wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, id, request.SerializeToString()),
        ]
        return id

    def unwatch(self, id: int) -> None:
        """`then` is told nothing more, not even of the end."""
        if self._own_watches.pop(id, None) is not None:
            self._to_watch.append(wire.encode(Method.WATCH, Kind.STREAM_CLOSE, 0, id, b""))

    def pause(self, id: int, paused: bool) -> None:
        """Have watch send nothing on this stream until it is told to go on."""
        kind = Kind.STREAM_PAUSE if paused else Kind.STREAM_RESUME
        self._to_watch.append(wire.encode(Method.WATCH, kind, 0, id, b""))

    def _own_answers(self, frame: bytes) -> None:
        for record in _ours(frame):
            then = self._own.pop(record.id, None)
            if then is not None:
                then(record.status, record.payload)

    def _ended_ranges(self, frame: bytes) -> None:
        for _, kind, _, id, _, _ in _records(frame):
            if kind == Kind.STREAM_CLOSE:
                self._ranges.pop(id, None)

    def _lost(self, whom: str) -> None:
        """Apply, or watch, is gone, and with it what was under way there."""
        self._unsent.pop(whom, None)
        self._unsent_since.pop(whom, None)
        if whom == "watch":
            for id in list(self._watches):
                self.end(id, LOST.code, LOST.text)
            self._watches.clear()
            self._to_watch.clear()
            own, self._own_watches = self._own_watches, {}
            for then in own.values():
                then(LOST.code, LOST.text.encode())
            return
        for method in wire.METHODS:
            if method != Method.WATCH:
                self.front.fail(LOST.code, LOST.text, method=method)
        for id in self._ranges:
            self.end(id, LOST.code, LOST.text)
        self._ranges.clear()
        own, self._own = self._own, {}
        for then in own.values():
            then(LOST.code, LOST.text.encode())

    # ---- to the clients

    def reply(self, id: int, response: Message | bytes) -> None:
        self.leadership.forget(id)
        self._answer(edge.REPLY, id, response)

    def send(self, id: int, payload: bytes) -> None:
        """One message of many."""
        self._answer(edge.SEND, id, payload)

    def end(self, id: int, status: int = 0, text: str = "") -> None:
        """No more messages. Also the end of a call that gets none."""
        self.leadership.forget(id)
        self._answer(edge.END, id, text.encode(), status)

    def _answer(self, kind: int, id: int, answer: Message | bytes, status: int = 0) -> None:
        if not id & OWN:
            self.to_edge(kind, id, answer if isinstance(answer, bytes) else answer.SerializeToString(), status)
            return
        told = self._inner.get(id) if kind == edge.SEND else self._inner.pop(id, None)
        if told is not None:
            told(kind, status, answer)

    def to_edge(self, kind: int, id: int, payload: bytes = b"", status: int = 0) -> None:
        self._answers.append(edge.record(kind, id, payload, status=status))

    # ---- events of the edge

    def _events(self, batch: Batch) -> None:
        data = batch.data
        for id, _, at, length, extra, kind, method, status in batch.events:
            if kind == edge.MESSAGE:
                self._message(id, data[at : at + length])
            elif kind == edge.CALL:
                end = at + length
                self._call(Call(id, method, data[at:end], data[end : end + extra]), status)
            elif kind == edge.BEGUN:
                self._begun(id, method, status, data[at : at + extra])
            elif kind == edge.BYTES:
                self.json.event(id, kind, data[at : at + length])
            elif kind in (edge.CANCELLED, edge.CLOSED):
                self._cancelled(id, connection=kind == edge.CLOSED)
                self._tell_json(id, kind)
            elif kind in (edge.BLOCKED, edge.WRITABLE):
                self._blocked(id, kind == edge.BLOCKED)
                self._tell_json(id, kind)
            elif kind == edge.HALF_CLOSED:
                self._half_closed(id)
                self._tell_json(id, kind)
            elif kind == edge.UNKNOWN:
                self.end(id, Code.UNIMPLEMENTED, _unknown(data[at : at + length].decode("utf-8", "replace")))
            elif kind == edge.OPENED:
                if method and status == edge.HTTP1:  # over TLS
                    self.json.event(id, kind, b"")
            elif kind == edge.REQUEST:
                end = at + length
                self.json.request(id, data[end : end + extra].decode("latin-1"), data[at:end])

    def _tell_json(self, id: int, kind: int) -> None:
        if self._json is not None:
            self._json.event(id, kind, b"")

    def _call(self, call: Call, flags: int) -> None:
        self.board.calls.add()
        if call.id & OWN:
            self._by_json["stream" if call.method in _STREAMS else "unary"] += 1
        if flags & edge.BAD_VERSION:
            self.end(call.id, errors.BadClientVersion.code, errors.BadClientVersion.text)
        elif flags & edge.HAS_LEADER and not self.leadership.known:
            self.end(call.id, errors.NoLeader.code, errors.NoLeader.text)
        elif call.method in LOCAL:
            if flags & edge.HAS_LEADER and LOCAL[call.method].stream:
                self.leadership.needed_by(call.id)
            self._local(LOCAL[call.method], call)
        elif call.method == Method.RANGE_STREAM:
            self._ranges[call.id] = None
            self._to_apply.append(wire.encode(call.method, Kind.STREAM_OPEN, 0, call.id, call.payload))
        elif call.id & OWN:
            self.ask(call.method, call.payload, lambda status, told: self._answer(edge.REPLY, call.id, told, status))
        else:
            self._to_apply.append(wire.encode(call.method, Kind.CALL, 0, call.id, call.payload))

    def _local(self, local: Local, call: Call) -> None:
        try:
            request = local.request.FromString(call.payload)
        except DecodeError:
            self.end(call.id, errors.Malformed.code, errors.Malformed.text)
            return
        try:
            local.answer(self, call.id, request)
        except errors.KvorumError as error:
            self.end(call.id, error.code, error.text)

    def _begun(self, id: int, method: int, flags: int, token: bytes) -> None:
        """A stream. token: as Call has it."""
        self.board.calls.add()
        if id & OWN:
            self._by_json["stream"] += 1
        if flags & edge.BAD_VERSION:
            self.end(id, errors.BadClientVersion.code, errors.BadClientVersion.text)
            return
        if flags & edge.HAS_LEADER:
            if not self.has_leader:
                self.end(id, errors.NoLeader.code, errors.NoLeader.text)
                return
            self.leadership.needed_by(id)
        if method == Method.WATCH:
            self._watches[id] = None
            takes = b"" if id & OWN else SHARES  # the edge fans out, and knows no inner streams
            self._to_watch.append(wire.encode(Method.WATCH, Kind.STREAM_OPEN, 0, id, takes))
        elif flags or id & OWN:
            self._renewals[id] = 0
        else:
            self._renewing[id] = None

    def _message(self, id: int, payload: bytes) -> None:
        if id in self._watches:
            self._to_watch.append(wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, id, payload))
        elif id in self._renewing:
            self._to_apply.append(wire.encode(Method.LEASE_KEEP_ALIVE, Kind.CALL, 0, id, payload))
        elif id in self._renewals:
            self._renewals[id] += 1
            self.ask(Method.LEASE_KEEP_ALIVE, payload, lambda status, answer: self._renewed(id, status, answer))

    def _renewed(self, id: int, status: int, answer: bytes) -> None:
        if id not in self._renewals:
            return
        self._renewals[id] -= 1
        if status:
            del self._renewals[id]
            self._closing.discard(id)
            self.end(id, status, answer.decode("utf-8", "replace"))
            return
        self.send(id, answer)
        self._maybe_end(id)

    def _blocked(self, id: int, blocked: bool) -> None:
        if id in self._watches:
            self.pause(id, blocked)
        elif id in self._ranges:
            kind = Kind.STREAM_PAUSE if blocked else Kind.STREAM_RESUME
            self._to_apply.append(wire.encode(Method.RANGE_STREAM, kind, 0, id, b""))
        else:
            self.recipes.block(id, blocked)
            self.snapshots.block(id, blocked)

    def _half_closed(self, id: int) -> None:
        if id in self._renewals:
            self._closing.add(id)
            self._maybe_end(id)

    def _maybe_end(self, id: int) -> None:
        """etcd ends a lease stream when its client has, and everything is answered."""
        if id in self._closing and not self._renewals[id]:
            self._closing.discard(id)
            del self._renewals[id]
            self.end(id)

    def _cancelled(self, id: int, *, connection: bool) -> None:
        if not connection:
            self._abandon(id)
            return
        known = *self._watches, *self._ranges, *self._renewals, *self._renewing
        for gone in [one for one in known if one >> 32 == id >> 32 and not one & OWN]:
            self._forget(gone)
        for gone in self.recipes.of_connection(id >> 32):
            if not gone & OWN:
                self._abandon(gone)
        for gone in self.snapshots.of_connection(id >> 32):
            if not gone & OWN:
                self._abandon(gone)

    def _abandon(self, id: int) -> None:
        """Nobody wants to hear more of this stream, or call of a recipe."""
        self._forget(id)
        self.recipes.cancel(id)
        self.snapshots.cancel(id)

    def _forget(self, id: int) -> None:
        self.leadership.forget(id)
        if id in self._watches:
            del self._watches[id]
            self._to_watch.append(wire.encode(Method.WATCH, Kind.STREAM_CLOSE, 0, id, b""))
        if id in self._ranges:
            del self._ranges[id]
            self._to_apply.append(wire.encode(Method.RANGE_STREAM, Kind.STREAM_CLOSE, 0, id, b""))
        self._renewing.pop(id, None)
        self._renewals.pop(id, None)
        self._closing.discard(id)

    def _streamed(self, frame: bytes) -> None:
        if not frame:
            return  # watch asks whether we are there
        if frame[5] == Kind.STREAM_SHARE:
            self._share(frame)
            return
        if frame[11] & 0x80:  # of a stream of ours, alone as all are: the bit is OWN
            self._own_events(frame)
            return
        self.front.deliver(frame)
        if frame[5] == Kind.STREAM_CLOSE:  # goes alone
            id = wire.HEADER.unpack_from(frame)[4]
            self._watches.pop(id, None)
            self.leadership.forget(id)

    def _share(self, frame: bytes) -> None:
        """One message to many streams; each has its own watch_id at its end, as the order of fields means nothing."""
        (count,) = SHARE_HEAD.unpack_from(frame, wire.HEADER.size)
        at = wire.HEADER.size + SHARE_HEAD.size
        end = at + 16 * count
        suffixes, ends, calls = b"", array("I"), array("Q")
        for id, watch_id in struct.iter_unpack("<Qq", frame[at:end]):
            calls.append(id)
            suffixes += int_field(b"\x10", watch_id)
            ends.append(len(suffixes))
        self.front.fan_out(frame[end:], calls, suffixes, ends)

    def _own_events(self, frame: bytes) -> None:
        for record in _ours(frame):
            ended = record.kind == Kind.STREAM_CLOSE
            if record.id in self._own_watches:
                then = self._own_watches.pop(record.id) if ended else self._own_watches[record.id]
                then(record.status or (LOST.code if ended else 0), record.payload)
                continue
            if ended:
                self._watches.pop(record.id, None)
                self.leadership.forget(record.id)
            self._answer(record.kind, record.id, record.payload, record.status)

    # ---- time

    def _tick(self) -> None:
        self._ticks += 1
        if self._json is not None:
            self._json.tick()
        self.snapshots.tick(self._ticks)
        for whom in [whom for whom, since in self._unsent_since.items() if self._ticks - since > UNSENT_TICKS]:
            self._lost(whom)
        if self._ticks % COUNT_TICKS == 0:
            self._count()
        for id in self.leadership.tick():
            self._abandon(id)
            self.end(id, errors.NoLeader.code, errors.NoLeader.text)
        if self._ticks % self._status_ticks == 0:
            if not self._status_asked:
                self._status_asked = True
                self.ask(Method.STATUS, pb.StatusRequest(), self._told_status)
            self._now_and_then()
        calls = len(self.recipes) + len(self.snapshots)
        own = len(self._watches) + len(self._ranges) + len(self._renewals) + len(self._renewing)
        self.board.streams.set(own + calls)

    def _count(self) -> None:
        """Whose calls have come in. What comes as JSON names no version."""
        counts = {(kind, "unknown"): count for kind, count in self._by_json.items() if count}
        for version, started in self.front.version_stats():
            streams = sum(started[method] for method in _STREAMS)
            for kind, count in (("unary", sum(started) - streams), ("stream", streams)):
                if count:
                    counts[kind, version] = counts.get((kind, version), 0) + count
        self._client_calls.write(counts)

    def _told_status(self, status: int, answer: bytes) -> None:
        self._status_asked = False
        self.leadership.known = status == 0 and pb.StatusResponse.FromString(answer).leader != 0


_STREAMS = [
    *(Method.WATCH, Method.LEASE_KEEP_ALIVE, Method.RANGE_STREAM),
    *(number for number, one in LOCAL.items() if one.path.endswith(("/Snapshot", "/Observe"))),
]
"""What is a stream with etcd, in either direction."""


def _ours(frame: bytes) -> Iterator[wire.Record]:
    """The answers to calls that were made here. What is for others is not copied."""
    for method, kind, status, id, at, end in _records(frame):
        if id & OWN:
            yield wire.Record(method, kind, status, id, frame[at:end])


def _records(frame: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Method, kind, status, id, and where the payload lies. A frame of this node's own processes may be of any size: an
    answer that is larger than a batch may be goes alone."""
    at, size = 0, len(frame)
    while at < size:
        length, method, kind, status, id = wire.HEADER.unpack_from(frame, at)
        at += wire.HEADER.size + length
        yield method, kind, status, id, at - length, at


def _frame(records: list[bytes]) -> bytes:
    """As many as fit into a batch, of which they are taken."""
    size = count = 0
    for record in records:
        size += len(record)
        if count and size > wire.BATCH_BYTES_MAX:
            break
        count += 1
    frame = b"".join(records[:count])
    del records[:count]
    return frame


def _unknown(path: str) -> str:
    """As grpc-go says it."""
    service, _, method = path.lstrip("/").rpartition("/")
    if any(one.path.startswith(f"/{service}/") for one in methods()):
        return f"unknown method {method} for service {service}"
    return f"unknown service {service}"


def main(argv: Sequence[str]) -> int:
    """Of (NODE_JSON, EPOCH, NAME), as cluster/part.py calls it. Returns the exit code."""
    name = argv[2]
    process = Process(name)
    config = NodeConfig.load(argv[0])
    log.setup(f"{config.name}/{name}", config.log_level)
    board = GatewayBoard(name)
    board.open(f"{metrics.directory(config.run_dir)}/{name}")
    message_max = config.max_request_bytes + (512 << 10)
    front = Edge(methods(), edge.Limits(message_max=message_max, handshake_ms=5_000))
    more: dict[str, Any] = {}
    if config.tls is not None and any(map(doors.encrypted, config.listen_client)):
        from cluster import certificates

        try:
            certificates.load(front, config.tls)
            more["now_and_then"] = certificates.Complaints(front).look
        except edge.TlsError as trouble:  # it was well when the node began (cluster/certificates.py), and will be again
            return process.fatal(1, f"TLS: {trouble}")
    try:
        first = name == config.gateways[0]
        doors.open_all(front, config.listen_client, first=first, several=config.gateway_processes > 1)
    except OSError as error:
        return process.fatal(Exit.USAGE, f"cannot listen on {error.filename} (--listen-client-urls): {error.strerror}")
    link = GatewayLink(zmq.Context(), config, front.fileno())
    gateway = Gateway(
        front,
        link,
        board,
        message_max=message_max,
        metrics_path=metrics.door(config.run_dir),
        tick_seconds=config.heartbeat_ms / 1000,
        client_calls=clientcalls.ClientCalls(clientcalls.path(metrics.directory(config.run_dir), name)),
        election_ticks=config.election_ms // config.heartbeat_ms,
        access=Access(config.cors, config.host_whitelist),
        **more,
    )
    process.settle()
    while not process.stopping:
        link.wait(stuck=gateway.stuck)
        gateway.turn()
    gateway.drain()
    gateway.recipes.stop()
    gateway.snapshots.stop()
    until = time.monotonic() + GRACE_SECONDS
    while front.drain(GRACE_SECONDS) or (len(gateway.recipes) and time.monotonic() < until):
        link.wait(stuck=True)
        gateway.turn()
    front.close()
    if first:
        doors.close_all(config.listen_client)
    return 0


GRACE_SECONDS = 2.0
