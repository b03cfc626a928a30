"""The conversations of a node's processes, over real ZeroMQ. The simulator has its own.

A link takes in all that has arrived and says it in the messages of cluster/internal.py; it knows frames, sockets and
the clock, and decides nothing. What comes from outside and isn't well-formed is counted and dropped here (peers), or
passed on as it is to be answered with an error (clients).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import zmq

from cluster import internal, sockets
from cluster.broadcast import TOPIC_BYTES
from cluster.config import NodeConfig
from cluster.internal import Attached, Floor, Message, PeerAnswer, PeerAsk, Tick
from cluster.metrics import ApplyBoard, RaftBoard
from cluster.raft import message as peer
from kvorum import wire

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
    """A process's sockets, and which of them have something: asking one that has nothing costs more than the poll."""

    def __init__(self, ticker: Ticker, *sources: zmq.Socket[bytes] | int) -> None:
        self._ticker = ticker
        self._poller = zmq.Poller()
        for source in sources:
            self._poller.register(source, zmq.POLLIN)
        self._ready: dict[zmq.Socket[bytes] | int, int] = {}

    def wait(self, *, idle: bool, ms_max: int = 1 << 30) -> None:
        self._ready = dict(self._poller.poll(min(self._ticker.wait_ms(), ms_max) if idle else 0))

    def wake_on(self, fd: int, wanted: bool) -> None:
        if wanted:
            self._poller.register(fd, zmq.POLLIN)
        else:
            self._poller.unregister(fd)

    def drain(self, socket: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
        return _drain(socket) if socket in self._ready else iter(())


def _drain(socket: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
    receive = socket.recv_multipart
    while True:
        try:
            yield receive(zmq.NOBLOCK)
        except zmq.Again:
            return


def _clients(arrived: Iterator[list[bytes]]) -> Iterator[ClientFrame]:
    """What clients have sent, as much as one turn takes. A message that isn't one frame is from no client of ours."""
    size = 0
    for count, frames in enumerate(arrived):
        if len(frames) == 2:
            size += len(frames[1])
            yield ClientFrame(frames[0], frames[1])
        else:
            yield ClientFrame(frames[0], b"?")  # not a batch: is answered as such
        if size > TURN_BYTES or count >= TURN_FRAMES:
            return


def _send(socket: zmq.Socket[bytes], identity: bytes, frame: bytes) -> bool | None:
    """True: taken. False: not now, the client's queue is full. None: the client is gone."""
    try:
        socket.send_multipart([identity, frame], zmq.NOBLOCK)
    except zmq.Again:
        return False
    except zmq.ZMQError as error:
        if error.errno != zmq.EHOSTUNREACH:
            raise
        return None
    return True


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
        self._listener = sockets.peer_listener(context, node.listen_peer)
        self._apply = sockets.local_listener(context, node.ipc("raft"))
        self._peers = {member.id: sockets.peer_caller(context, member.address) for member in node.peers}
        self._heads = {
            (id, what): _PEER_HEAD.pack(_PEER_VERSION, what, node.cluster_id, node.member_id, id)
            for id in self._peers
            for what in (_RAFT, _FLOOR, _ASK, _ANSWER)
        }
        self._ticker = Ticker(node.heartbeat_ms / 1000)
        self._attached = self._stranger = b""
        self._ends = _Ends(self._ticker, self._listener, self._apply, wal_fd)

    def wait(self, *, idle: bool) -> None:
        """Until something arrives, the disk has something to say, or the next tick is due."""
        self._ends.wait(idle=idle)

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
        try:
            self._peers[to].send(frame, zmq.NOBLOCK)
            self._board.peer_sent_bytes[to].add(len(frame))
        except zmq.Again:  # not connected, or its queue is full: Raft says it again
            self._board.peer_send_failures[to].add()

    def to_apply(self, message: Message) -> None:
        self._apply.send_multipart([self._attached, internal.encode(message)])

    def to_stranger(self, message: Message) -> None:
        if isinstance(message, Attached):
            self._attached = self._stranger
        self._apply.send_multipart([self._stranger, internal.encode(message)])


class ApplyLink:
    """Clients, this node's raft process, and its watch process."""

    def __init__(self, context: Context, node: NodeConfig, board: ApplyBoard) -> None:
        self._board = board
        urls = [node.listen_native, f"ipc://{node.ipc('calls')}"]
        self._clients = sockets.client_listener(context, urls, sockets.ANSWERS_MAX)
        self._raft = sockets.local_caller(context, node.ipc("raft"))
        self._watch = sockets.local_listener(context, node.ipc("watch"))
        self._watcher = b""
        self._ticker = Ticker(node.heartbeat_ms / 1000)
        self._ends = _Ends(self._ticker, self._clients, self._raft, self._watch)
        self.wake_on = self._ends.wake_on

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
        for client in _clients(self._ends.drain(self._clients)):
            size += len(client.frame)
            yield client
        if size:
            self._board.received_bytes.add(size)
        if self._ticker.due():
            yield Tick()

    def to_raft(self, message: Message) -> None:
        self._raft.send(internal.encode(message))

    def to_watch(self, message: Message) -> None:
        self._watch.send_multipart([self._watcher, internal.encode(message)])

    def reply(self, identity: bytes, records: Sequence[bytes]) -> list[bytes] | None:
        sent = 0
        for frame, count in frames_of(records):
            taken = _send(self._clients, identity, frame)
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
        self._clients = sockets.client_listener(context, urls, sockets.WATCH_MAX)
        self._broadcast = sockets.broadcaster(context, node.listen_broadcast)
        self._apply = sockets.local_caller(context, node.ipc("watch"))
        self._ticker = Ticker(node.heartbeat_ms / 1000)
        self._ends = _Ends(self._ticker, self._clients, self._broadcast, self._apply)
        self._callers = zmq.Poller()
        for socket in (self._clients, self._broadcast):
            self._callers.register(socket, zmq.POLLIN)

    def wait(self) -> None:
        """Until something arrives or the next tick is due."""
        self._ends.wait(idle=True)

    def rest(self, seconds: float) -> None:
        """For so long, unless a client wants something."""
        self._callers.poll(int(seconds * 1000))

    def receive(self) -> Iterator[Tick | ClientFrame | Subscription | Message]:
        for (frame,) in self._ends.drain(self._apply):
            yield internal.decode(frame)
        for frames in self._ends.drain(self._broadcast):
            if len(frames[0]) == 1 + TOPIC_BYTES and frames[0][0] in (0, 1):  # else of nobody who knows a topic
                yield Subscription(frames[0][1:], bool(frames[0][0]))
        yield from _clients(self._ends.drain(self._clients))
        if self._ticker.due():
            yield Tick()

    def to_apply(self, message: Message) -> None:
        self._apply.send(internal.encode(message))

    def send(self, identity: bytes, frame: bytes) -> bool | None:
        """False: not now, its queue is full. None: it is gone."""
        return _send(self._clients, identity, frame)

    def publish(self, frame: bytes) -> None:
        self._broadcast.send(frame, zmq.NOBLOCK)


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
        self._apply = sockets.gateway_caller(context)
        self._watch = sockets.gateway_caller(context)
        self._monitors = {
            "apply": sockets.breaks(self._apply, f"ipc://{node.ipc('calls')}"),
            "watch": sockets.breaks(self._watch, f"ipc://{node.ipc('streams')}"),
        }
        self._ticker = Ticker(node.heartbeat_ms / 1000)
        self._ends = _Ends(self._ticker, edge_fd, self._apply, self._watch, *self._monitors.values())

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
        return _hand_over(self._apply, frame)

    def to_watch(self, frame: bytes) -> bool:
        return _hand_over(self._watch, frame)


def _hand_over(socket: zmq.Socket[bytes], frame: bytes) -> bool:
    try:
        socket.send(frame, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True
