"""The conversations of a node's processes, over real ZeroMQ. The simulator has its own.

A link takes in all that has arrived and says it in the messages of cluster/internal.py; it knows frames, sockets and
the clock, and decides nothing. What comes from outside and isn't well-formed is counted and dropped here (peers), or
passed on as it is to be answered with an error (clients).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from errno import EAGAIN
from typing import NamedTuple

import zmq

from cluster import internal, sockets
from cluster.broadcast import TOPIC_BYTES
from cluster.config import NodeConfig
from cluster.internal import Attached, Floor, Message, PeerAnswer, PeerAsk, Tick
from cluster.metrics import ApplyBoard, RaftBoard
from cluster.raft import message as peer
from kvorum import wire
from native.ends import Ends

Context = zmq.Context[zmq.Socket[bytes]]
TURN_FRAMES = 4096
TURN_BYTES = 2 << 20
"""About as much of clients' input as one turn takes: up to 130,000 records of nothing, and more for one large frame."""
SOON_MS = 2
"""How soon a client is tried again whose queue was full, and what else can't be waited for is looked at."""


class ClientFrame(NamedTuple):
    """What one client sent in one message."""

    identity: bytes
    frame: bytes


class Subscription(NamedTuple):
    """Somebody has subscribed to a topic, or (`wanted` False) the last who had has gone."""

    topic: bytes
    wanted: bool


class Ticker:
    """Ticks from the monotonic clock, at most one at a time: time slept through is not made up for."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = max(self._next + self._seconds, now)
        return True

    def wait_ms(self) -> int:
        return max(0, int((self._next - time.monotonic()) * 1000) + 1)


class _Ends:
    """A process's ends of its conversations, and which of them have something."""

    def __init__(self, ticker: Ticker) -> None:
        self._ticker = ticker
        self._ends = Ends()
        self._mask = 0
        self._ready = 0
        self._fds: dict[int, int] = {}

    def hear(self, source: zmq.Socket[bytes] | int) -> int:
        """One that is waited for. Returns its number."""
        end = self._ends.add(source)
        self._mask |= 1 << end
        return end

    def tell(self, socket: zmq.Socket[bytes]) -> int:
        """One that is only sent to."""
        return self._ends.add(socket)

    def wake_on(self, fd: int, wanted: bool) -> None:
        end = self._fds.get(fd)
        if end is None:
            end = self._fds[fd] = self._ends.add(fd)
        self.listen(end, wanted)

    def listen(self, end: int, wanted: bool) -> None:
        """Whether it is waited for."""
        self._mask = self._mask | 1 << end if wanted else self._mask & ~(1 << end)

    def heard(self, end: int) -> bool:
        """It had something when the wait ended."""
        return bool(self._ready >> end & 1)

    def wait(self, *, idle: bool, ms_max: int = 1 << 30) -> None:
        self._ready = self._ends.wait(self._mask, min(self._ticker.wait_ms(), ms_max) if idle else 0)

    def wait_for(self, ends: Sequence[int], ms: int) -> None:
        """Only for these, whatever the others have."""
        self._ends.wait(sum([1 << end for end in ends]), ms)

    def drain(self, end: int) -> Iterator[list[bytes]]:
        more = self.heard(end)
        while more:
            messages, more = self._ends.take(end)
            yield from messages

    def clients(self, end: int) -> Iterator[ClientFrame]:
        """What clients have sent, about as much as one turn takes. A message that isn't one frame is from no client of
        ours."""
        size = count = 0
        more = self.heard(end)
        while more and size <= TURN_BYTES and count < TURN_FRAMES:
            messages, more = self._ends.take(end)
            for frames in messages:
                if len(frames) == 2:
                    size += len(frames[1])
                    yield ClientFrame(frames[0], frames[1])
                else:
                    yield ClientFrame(frames[0], b"?")  # not a batch: is answered as such
            count += len(messages)

    def send(self, end: int, frame: bytes) -> bool:
        """False: not now."""
        return not self._ends.send(end, frame)

    def push(self, end: int, frame: bytes, to: bytes = b"") -> None:
        """To a process of this node, whose queues have no limit."""
        self._ends.send(end, frame, to=to, blocking=True)

    def answer(self, end: int, identity: bytes, frame: bytes) -> bool | None:
        """True: taken. False: not now, the client's queue is full. None: the client is gone."""
        error = self._ends.send(end, frame, to=identity)
        return True if not error else False if error == EAGAIN else None


def frames_of(records: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """Join records into frames within the size of a batch, and how many are in each. One that is larger goes alone."""
    part: list[bytes] = []
    size = 0
    for record in records:
        if part and size + len(record) > wire.BATCH_BYTES_MAX:
            yield b"".join(part), len(part)
            part, size = [], 0
        part.append(record)
        size += len(record)
    if part:
        yield b"".join(part), len(part)


_PEER_HEAD = struct.Struct("<BBQQQ")
_PEER_VERSION, _RAFT, _FLOOR, _ASK, _ANSWER = 1, 0, 1, 2, 3
_FLOOR_BODY = struct.Struct("<Q")
_NUMBER = struct.Struct("<Q")


FromPeer = peer.Message | Floor | PeerAsk | PeerAnswer


class RaftLink:
    """Peers, and this node's apply process.

    A peer frame is `u8 version | u8 what | u64 cluster | u64 from | u64 to | body`. One that names another cluster or
    member, or whose body isn't exactly one message, never reaches the core.
    """

    def __init__(self, context: Context, node: NodeConfig, board: RaftBoard, wal_fd: int) -> None:
        self._node, self._board = node, board
        self._ticker = Ticker(node.heartbeat_ms / 1000)
        self._ends = ends = _Ends(self._ticker)
        self._listener = ends.hear(sockets.peer_listener(context, node.listen_peer))
        self._apply = ends.hear(sockets.local_listener(context, node.ipc("raft")))
        self._peers = {member.id: ends.tell(sockets.peer_caller(context, member.address)) for member in node.peers}
        self._disk = ends.hear(wal_fd)
        self._heads = {
            (id, what): _PEER_HEAD.pack(_PEER_VERSION, what, node.cluster_id, node.member_id, id)
            for id in self._peers
            for what in (_RAFT, _FLOOR, _ASK, _ANSWER)
        }
        self._attached = self._stranger = b""

    def wait(self, *, idle: bool, disk: bool) -> None:
        """Until something arrives, the next tick is due, or, if wanted, the disk has something to say."""
        self._ends.listen(self._disk, disk)
        self._ends.wait(idle=idle)

    @property
    def disk_spoke(self) -> bool:
        return self._ends.heard(self._disk)

    def receive(self) -> Iterator[Tick | FromPeer | Message]:
        for frames in self._ends.drain(self._listener):
            item = self._peer_item(frames)
            if item is None:
                self._board.malformed_frames.add()
            else:
                self._board.peer_received_bytes[item.sender].add(len(frames[1]))
                yield item
        for identity, frame in self._ends.drain(self._apply):
            self._stranger = identity
            yield internal.decode(frame)
        if self._ticker.due():
            yield Tick()

    def _peer_item(self, frames: list[bytes]) -> FromPeer | None:
        if len(frames) != 2 or len(frames[1]) < _PEER_HEAD.size:
            return None
        frame = frames[1]
        version, what, cluster, sender, to = _PEER_HEAD.unpack_from(frame)
        if (version, cluster, to) != (_PEER_VERSION, self._node.cluster_id, self._node.member_id):
            return None
        if sender not in self._peers:
            return None
        body = frame[_PEER_HEAD.size :]
        if what == _FLOOR and len(body) == _FLOOR_BODY.size:
            return Floor(sender, *_FLOOR_BODY.unpack(body))
        if what in (_ASK, _ANSWER) and len(body) >= _NUMBER.size:
            (number,) = _NUMBER.unpack_from(body)
            return (PeerAsk if what == _ASK else PeerAnswer)(sender, number, body[_NUMBER.size :])
        if what != _RAFT:
            return None
        try:
            message = peer.decode(body)
        except peer.MalformedMessage:
            return None
        return message if (message.sender, message.to) == (sender, to) else None

    def send(self, messages: Sequence[peer.Message]) -> None:
        for message in messages:
            self._send(message.to, _RAFT, peer.encode(message))

    def send_floor(self, index: int) -> None:
        for id in self._peers:
            self._send(id, _FLOOR, _FLOOR_BODY.pack(index))

    def send_ask(self, to: int, number: int, body: bytes) -> None:
        self._send(to, _ASK, _NUMBER.pack(number) + body)

    def send_answer(self, to: int, number: int, body: bytes) -> None:
        self._send(to, _ANSWER, _NUMBER.pack(number) + body)

    def _send(self, to: int, what: int, body: bytes) -> None:
        frame = self._heads[to, what] + body
        if self._ends.send(self._peers[to], frame):
            self._board.peer_sent_bytes[to].add(len(frame))
        else:  # not connected, or its queue is full: Raft says it again
            self._board.peer_send_failures[to].add()

    def to_apply(self, message: Message) -> None:
        self._ends.push(self._apply, internal.encode(message), self._attached)

    def to_stranger(self, message: Message) -> None:
        if isinstance(message, Attached):
            self._attached = self._stranger
        self._ends.push(self._apply, internal.encode(message), self._stranger)


class ApplyLink:
    """Clients, this node's raft process, and its watch process."""

    def __init__(self, context: Context, node: NodeConfig, board: ApplyBoard) -> None:
        self._board = board
        urls = [node.listen_native, f"ipc://{node.ipc('calls')}"]
        self._ticker = Ticker(node.heartbeat_ms / 1000)
        self._ends = ends = _Ends(self._ticker)
        self._clients = ends.hear(sockets.client_listener(context, urls, sockets.ANSWERS_MAX))
        self._raft = ends.hear(sockets.local_caller(context, node.ipc("raft")))
        self._watch = ends.hear(sockets.local_listener(context, node.ipc("watch")))
        self._watcher = b""
        self.wake_on = ends.wake_on

    def wait(self, *, idle: bool, soon: bool) -> None:
        """Until something arrives or the next tick is due; not long if there will be something to do `soon`."""
        self._ends.wait(idle=idle, ms_max=SOON_MS if soon else 1 << 30)

    def receive(self) -> Iterator[Tick | ClientFrame | Message]:
        for (frame,) in self._ends.drain(self._raft):
            yield internal.decode(frame)
        for identity, frame in self._ends.drain(self._watch):
            self._watcher = identity
            yield internal.decode(frame)
        size = 0
        for client in self._ends.clients(self._clients):
            size += len(client.frame)
            yield client
        if size:
            self._board.received_bytes.add(size)
        if self._ticker.due():
            yield Tick()

    def to_raft(self, message: Message) -> None:
        self._ends.push(self._raft, internal.encode(message))

    def to_watch(self, message: Message) -> None:
        self._ends.push(self._watch, internal.encode(message), self._watcher)

    def reply(self, identity: bytes, records: Sequence[bytes]) -> list[bytes] | None:
        sent = 0
        for frame, count in frames_of(records):
            taken = self._ends.answer(self._clients, identity, frame)
            if taken is None:
                self._board.replies_dropped.add(len(records) - sent)
                return None
            if not taken:
                break
            sent += count
            self._board.sent_bytes.add(len(frame))
        return list(records[sent:])


class WatchLink:
    """Clients' watch streams, those who listen to broadcasts, and this node's apply process."""

    def __init__(self, context: Context, node: NodeConfig) -> None:
        urls = [node.listen_watch, f"ipc://{node.ipc('streams')}"]
        self._ticker = Ticker(node.heartbeat_ms / 1000)
        self._ends = ends = _Ends(self._ticker)
        self._clients = ends.hear(sockets.client_listener(context, urls, sockets.WATCH_MAX))
        self._broadcast = ends.hear(sockets.broadcaster(context, node.listen_broadcast))
        self._apply = ends.hear(sockets.local_caller(context, node.ipc("watch")))

    def wait(self) -> None:
        """Until something arrives or the next tick is due."""
        self._ends.wait(idle=True)

    def rest(self, seconds: float) -> None:
        """For so long, unless a client wants something."""
        self._ends.wait_for((self._clients, self._broadcast), int(seconds * 1000))

    def receive(self) -> Iterator[Tick | ClientFrame | Subscription | Message]:
        for (frame,) in self._ends.drain(self._apply):
            yield internal.decode(frame)
        for frames in self._ends.drain(self._broadcast):
            if len(frames[0]) == 1 + TOPIC_BYTES and frames[0][0] in (0, 1):  # else of nobody who knows a topic
                yield Subscription(frames[0][1:], bool(frames[0][0]))
        yield from self._ends.clients(self._clients)
        if self._ticker.due():
            yield Tick()

    def to_apply(self, message: Message) -> None:
        self._ends.push(self._apply, internal.encode(message))

    def send(self, identity: bytes, frame: bytes) -> bool | None:
        """False: not now, its queue is full. None: it is gone."""
        return self._ends.answer(self._clients, identity, frame)

    def publish(self, frame: bytes) -> None:
        self._ends.send(self._broadcast, frame)


class Answers(NamedTuple):
    """Apply's, to calls: a batch."""

    frame: bytes


class Streamed(NamedTuple):
    """Watch's: a batch of what streams are told."""

    frame: bytes


class Lost(NamedTuple):
    """The connection to "apply" or "watch" has broken: it is gone, or was replaced."""

    whom: str


class GatewayLink:
    """The edge, and this node's apply and watch processes, whose client the gateway is."""

    def __init__(self, context: Context, node: NodeConfig, edge_fd: int) -> None:
        self._ticker = Ticker(node.heartbeat_ms / 1000)
        self._ends = ends = _Ends(self._ticker)
        ends.hear(edge_fd)
        apply, watch = sockets.gateway_caller(context), sockets.gateway_caller(context)
        monitors = {
            "apply": sockets.breaks(apply, f"ipc://{node.ipc('calls')}"),
            "watch": sockets.breaks(watch, f"ipc://{node.ipc('streams')}"),
        }
        self._apply, self._watch = ends.hear(apply), ends.hear(watch)
        self._monitors = {whom: ends.hear(monitor) for whom, monitor in monitors.items()}

    def wait(self, *, stuck: bool) -> None:
        """Until something arrives, the edge has something to do, or the next tick is due; not long if `stuck`."""
        self._ends.wait(idle=True, ms_max=SOON_MS if stuck else 1 << 30)

    def receive(self) -> Iterator[Tick | Answers | Streamed | Lost]:
        for (frame,) in self._ends.drain(self._apply):
            yield Answers(frame)
        for (frame,) in self._ends.drain(self._watch):
            yield Streamed(frame)
        for whom, monitor in self._monitors.items():
            for _ in self._ends.drain(monitor):
                yield Lost(whom)
        if self._ticker.due():
            yield Tick()

    def to_apply(self, frame: bytes) -> bool:
        return self._ends.send(self._apply, frame)

    def to_watch(self, frame: bytes) -> bool:
        return self._ends.send(self._watch, frame)
