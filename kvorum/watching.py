"""What a client knows of its watches, without a socket or a clock.

    add ──▶ waiting ──(open + create left)──▶ opening ──(created)──▶ live ──(canceled, refused, cancel())──▶ over
               ▲                                 │                    │ │
               └────────── connection lost ──────┴────────────────────┘ └─(its reader is slow)─▶ paused ──▶ waiting

Each watch has a stream of its own, so what arrives on a stream needs no further address, and one connection carries
them all. `next` is the first revision the watch has not been given: a lost connection is repaired by creating the watch
anew from there, on whichever node answers, so the reader sees every event once and in order. A watch that started
"now" learns its `next` from the answer to its creation. Events of one revision that come in fragments are given on
only when they are complete, and forgotten if the connection is lost between.

A reader that falls behind by BACKLOG_BYTES_MAX costs no more memory: its stream is closed and created anew, from where
it stopped, when it has caught up. What was compacted meanwhile ends it with Compacted, never with a silent gap.

Events are broadcast once for all watches of the same keys, whoever's they are. A live watch of a node that does so has
a topic, and listens to it beside its stream. The first publication that begins no later than at its `next` takes it
over, and the stream is closed; one that begins later says that something was missed, and a stream is opened from `next`
on, until a publication connects again. So it moves between the two by revision alone and takes from either exactly what
lies behind what it has; a publisher that has fallen silent is left for the stream as well.

        live ──(a publication connects)──▶ tuned ──(a gap, or SILENCE_SECONDS)──▶ opening, from `next` on

A node that is alive but serves nothing is found by asking: after QUIET_SECONDS without a word a stream without a watch
asks for its progress, which is answered at once; no answer within ANSWER_SECONDS is a lost connection.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from enum import Enum
from random import Random
from typing import NamedTuple

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.core import DIAL_SECONDS, NEVER, Phase
from kvorum.endpoints import Endpoints, of_same_host, usable
from kvorum.errors import Code, KvorumError
from kvorum.results import WatchResponse
from kvorum.txn import Key, to_bytes
from kvorum.wire import BATCH_BYTES_MAX, HEADER, Kind, Method

BACKLOG_BYTES_MAX = 32 << 20
QUIET_SECONDS = 5.0
ANSWER_SECONDS = 10.0
SILENCE_SECONDS = 10.0
"""A topic is published to every few seconds, if only to say that nothing happened."""
IDLE_SECONDS = 30.0
"""How long a connection that carries no watch is kept for the next one."""

TOPIC_BYTES = 16
_PUBLICATION = struct.Struct("<16sQQ")  # topic, first and last revision that it covers; then a WatchResponse or nothing
_FILTERS = {"noput": pb.WatchCreateRequest.NOPUT, "nodelete": pb.WatchCreateRequest.NODELETE}


class State(Enum):
    WAITING = "waiting"
    OPENING = "opening"
    LIVE = "live"
    TUNED = "tuned"
    PAUSED = "paused"
    OVER = "over"


class Watch:
    """One watch: what it wants, and how far it is.

    Args:
      start_revision: the first revision to see; 0 is from now on, as the node that creates the watch sees now.
      range_end: as in RangeRequest; None watches the one key.
      filters: "noput" and "nodelete" leave out what they name.
      progress_notify: also say how far things are when nothing happens: responses without events, every 10 minutes.
    Raises:
      TypeError: key or range_end is neither str nor bytes.
      ValueError: start_revision is negative, a filter is unknown, or nothing can be in the range.
    """

    __slots__ = ("_fragments", "asked", "curious", "given_bytes", "next", "read_bytes", "state", "stream", "topic")

    def __init__(
        self,
        key: Key,
        range_end: Key | None = None,
        *,
        start_revision: int = 0,
        prev_kv: bool = False,
        filters: Iterable[str] = (),
        progress_notify: bool = False,
    ) -> None:
        if start_revision < 0:
            raise ValueError(f"start_revision must not be negative, not {start_revision}")
        names = list(filters)
        if unknown := [name for name in names if name not in _FILTERS]:
            raise ValueError(f"a filter is one of {', '.join(_FILTERS)}, not {unknown[0]!r}")
        self.asked = pb.WatchCreateRequest(
            key=to_bytes(key),
            range_end=b"" if range_end is None else to_bytes(range_end),
            prev_kv=prev_kv,
            filters=[_FILTERS[name] for name in names],
            progress_notify=progress_notify,
            fragment=True,
            broadcast=not progress_notify,
        )
        if self.asked.range_end not in (b"", b"\0") and self.asked.range_end <= self.asked.key:
            raise ValueError("nothing can be in the range to watch: its end is not after its start")
        self.next = start_revision
        self.state = State.WAITING
        self.stream = 0
        self.topic = b""
        self.curious = False  # its reader has asked how far it is
        self.given_bytes = 0
        self.read_bytes = 0
        """Of what was given; its reader counts."""
        self._fragments: list[pb.Event] = []

    def create(self) -> bytes:
        """The request that creates it from where it is."""
        self._fragments.clear()
        self.asked.start_revision = self.next
        return pb.WatchRequest(create_request=self.asked).SerializeToString()

    def drop_fragments(self) -> None:
        """What was incomplete comes again, whole, from elsewhere."""
        self._fragments.clear()

    def take(self, response: pb.WatchResponse) -> WatchResponse | None:
        """Note how far a response brings it, and give what the reader is to see of it."""
        if response.fragment:
            self._fragments += response.events
            return None
        events = [*self._fragments, *response.events] if self._fragments else response.events
        if events:
            self.next = events[-1].kv.mod_revision + 1
            seen = WatchResponse(response.header, events)
            self._fragments.clear()
            return seen
        self.next = max(self.next, response.header.revision + 1)
        return WatchResponse(response.header, ())


class Channel:
    """A topic, and who listens to it here."""

    __slots__ = ("heard_at", "watches")

    def __init__(self, now: float) -> None:
        self.watches: dict[Watch, None] = {}
        self.heard_at = now


class Session:
    """One connection to a node's watch port, and to its broadcasts."""

    __slots__ = ("ask_at", "broadcast", "endpoint", "give_up_at", "phase", "ping", "proved")

    def __init__(self, endpoint: str, give_up_at: float) -> None:
        self.endpoint = endpoint
        self.phase = Phase.DIALING
        self.give_up_at = give_up_at  # dialing, or waiting for a sign of life
        self.ask_at = NEVER
        self.ping = 0  # the stream without a watch; 0: not opened
        self.proved = False  # it has said something: to be connected proves little
        self.broadcast = ""  # where it publishes, once that is known


class Given(NamedTuple):
    """Something for a watch's reader: a response; None, whenever the watch has been created; an error, at its end."""

    watch: Watch
    what: WatchResponse | KvorumError | None
    size: int


class WatchCore:
    """See the module. Not thread-safe. `given` holds what came for the watches, in order."""

    def __init__(self, rng: Random, *, dial_seconds: float = DIAL_SECONDS) -> None:
        self.endpoints = Endpoints([], rng)
        self.wants_members = True
        """No node is known that works: learn() is wanted."""
        self.opening: list[Session] = []
        self.closing: list[Session] = []
        self.current: Session | None = None
        self.wake_at = NEVER
        self.given: deque[Given] = deque()
        self._dial_seconds = dial_seconds
        self._cluster = 0
        self._watches: dict[Watch, None] = {}
        self._streams: dict[int, Watch] = {}
        self._channels: dict[bytes, Channel] = {}
        self.tuning: list[tuple[bytes, bool]] = []
        """Topics to subscribe to (True) or to leave, at the current session's `broadcast`."""
        self._next_stream = 0
        self._header = pb.ResponseHeader()  # of the node that the watches are at
        self._outbox: deque[bytes] = deque()
        self._idle_since = 0.0

    # ---- the reader's side

    def learn(self, hello: pb.HelloResponse, via: str, *, others: bool = True) -> None:
        """Where to watch: on the member that answered Hello over `via`, and on the `others` it told of."""
        self._cluster = hello.header.cluster_id
        told = hello.members
        own = [of_same_host(member.watch, via) for member in told if member.member_id == hello.header.member_id]
        self.endpoints.learn(usable(own, via))
        if others:
            self.endpoints.learn(usable([member.watch for member in told], via))
        self.wants_members = not len(self.endpoints)
        self.wake_at = 0.0

    def add(self, watch: Watch, now: float) -> None:
        self._watches[watch] = None
        if self.current is not None and self.current.phase is Phase.READY:
            self._open(watch)
        self.wake_at = min(self.wake_at, now)

    def cancel(self, watch: Watch, now: float) -> None:
        """Nothing more is given for it from now on."""
        if watch.state is not State.OVER:
            self._end(watch, tell=True)
            self._idle_since = now
            self.wake_at = min(self.wake_at, now)

    def caught_up(self, watch: Watch, now: float) -> None:
        """Its reader has read what there was: go on if it was paused."""
        if watch.state is State.PAUSED:
            watch.state = State.WAITING
            if self.current is not None and self.current.phase is Phase.READY:
                self._open(watch)
            self.wake_at = min(self.wake_at, now)

    def ask_progress(self, now: float) -> None:
        """Have each watch told how far it is, once, by a response without events: when its node says so, or with the
        next publication. A node doesn't say so of a watch that lacks something; then whatever says it next is told."""
        for watch in self._watches:
            watch.curious = True
            if watch.state is State.LIVE:
                self._ask_of(watch.stream)
        self.wake_at = min(self.wake_at, now)

    # ---- time

    def tick(self, now: float) -> None:
        current = self.current
        if current is None:
            if any(watch.state is State.WAITING for watch in self._watches):
                self._dial(now)
        elif now >= current.give_up_at:
            self._drop(current, now, "does not answer")
            self._dial(now)
        elif not self._watches and now >= self._idle_since + IDLE_SECONDS:
            self._leave(current)
        elif now >= current.ask_at:
            self._ask(current, now)
        self._leave_silent(now)
        self._set_wake()

    def _set_wake(self) -> None:
        current = self.current
        if current is None:
            waiting = any(watch.state is State.WAITING for watch in self._watches)
            self.wake_at = self.endpoints.usable_at() if waiting else NEVER
        else:
            idle = NEVER if self._watches else self._idle_since + IDLE_SECONDS
            silent = min((channel.heard_at for channel in self._channels.values()), default=NEVER) + SILENCE_SECONDS
            self.wake_at = min(current.give_up_at, current.ask_at, idle, silent)

    def _dial(self, now: float) -> None:
        address = self.endpoints.choose(now)
        if address is not None:
            self.current = Session(address, now + self._dial_seconds)
            self.opening.append(self.current)

    def _ask(self, session: Session, now: float) -> None:
        if not session.ping:
            session.ping = self._new_stream()
            self._put(Kind.STREAM_OPEN, session.ping, b"")
        self._ask_of(session.ping)
        session.ask_at = NEVER
        session.give_up_at = now + ANSWER_SECONDS

    def _ask_of(self, stream: int) -> None:
        request = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        self._put(Kind.STREAM_MESSAGE, stream, request.SerializeToString())

    # ---- the connection's side

    def connected(self, session: Session, now: float) -> None:
        if session.phase is not Phase.DIALING:
            return
        session.phase = Phase.READY
        for watch in self._watches:
            if watch.state is State.WAITING:
                self._open(watch)
        self._ask(session, now)  # nothing is settled before the node has said something
        self._set_wake()

    def lost(self, session: Session, now: float, trouble: str) -> None:
        if session.phase is not Phase.GONE:
            self._drop(session, now, trouble)
            self._set_wake()

    def take(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        while self._outbox and (not parts or size + len(self._outbox[0]) <= BATCH_BYTES_MAX):
            parts.append(self._outbox.popleft())
            size += len(parts[-1])
        return b"".join(parts)

    def untake(self, batch: bytes) -> None:
        self._outbox.appendleft(batch)

    def received(self, session: Session, batch: bytes, now: float) -> None:
        """A batch came in. An empty one is the node asking if we are there."""
        if session is not self.current:
            return
        session.ask_at, session.give_up_at = now + QUIET_SECONDS, NEVER
        if not session.proved:
            session.proved = True
            self.endpoints.succeeded(session.endpoint)
        at, size = 0, len(batch)
        try:
            while at < size and session is self.current:
                length, method, kind, status, id = HEADER.unpack_from(batch, at)
                at += 16
                end = at + length
                if end > size or method != Method.WATCH:
                    raise struct.error
                if kind == Kind.STREAM_MESSAGE:
                    self._message(session, id, batch[at:end], now)
                elif kind == Kind.STREAM_CLOSE:
                    self._closed(session, id, status, batch[at:end], now)
                else:
                    raise struct.error
                at = end
        except (struct.error, DecodeError):
            self.lost(session, now, "sent something that is not a watch's")
            return
        self._set_wake()

    # ---- broadcasts

    def published(self, session: Session, frame: bytes, now: float) -> None:
        """A publication came in; one that is none is dropped, as whatever else was missed would be."""
        if session is not self.current or len(frame) < _PUBLICATION.size:
            return
        topic, first, last = _PUBLICATION.unpack_from(frame)
        channel = self._channels.get(topic)
        if channel is None:
            return
        channel.heard_at = now
        whole: WatchResponse | None = None
        if len(frame) > _PUBLICATION.size:
            try:
                response = pb.WatchResponse.FromString(frame[_PUBLICATION.size :])
            except DecodeError:
                return
            whole = WatchResponse(response.header, response.events)
        for watch in list(channel.watches):
            if watch.next < first:
                if watch.state is State.TUNED:
                    self._open(watch)
                    self.wake_at = 0.0
            elif watch.next <= last + 1 and (watch.state is State.TUNED or watch.state is State.LIVE):
                self._connect(watch, whole, last, len(frame))

    def _connect(self, watch: Watch, whole: WatchResponse | None, last: int, size: int) -> None:
        """Everything up to `last` is in `whole`, or has been given."""
        if watch.state is State.LIVE:
            self._close(watch)
            watch.drop_fragments()
            watch.state = State.TUNED
        if whole is not None and watch.next <= last:
            fresh = whole.behind(watch.next - 1)
            if len(fresh):
                self._give(watch, fresh, size)
                self._pause_if_slow(watch)
        watch.next = last + 1
        if watch.curious:
            watch.curious = False
            header = pb.ResponseHeader()
            header.CopyFrom(self._header)
            header.revision = last
            self._give(watch, WatchResponse(header, ()))

    def _tune(self, watch: Watch, topic: bytes, now: float) -> None:
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = Channel(now)
            self.tuning.append((topic, True))
        channel.watches[watch] = None
        watch.topic = topic

    def _untune(self, watch: Watch) -> None:
        channel = self._channels.get(watch.topic)
        if channel is not None:
            channel.watches.pop(watch, None)
            if not channel.watches:
                del self._channels[watch.topic]
                self.tuning.append((watch.topic, False))
        watch.topic = b""

    def deafened(self, session: Session) -> None:
        """Nothing is heard of its broadcasts any more. Whoever depends on them goes on by a stream, which will tell
        where to listen again; whoever has a stream keeps to it, so a port that nobody reaches is not tried for ever."""
        if session is self.current:
            self._forsake(list(self._channels.values()))
            self.tuning.clear()
            self._set_wake()

    def _leave_silent(self, now: float) -> None:
        """Whoever publishes no longer: their watches go on by streams, and are told of a topic anew."""
        self._forsake([one for one in self._channels.values() if now >= one.heard_at + SILENCE_SECONDS])

    def _forsake(self, channels: Iterable[Channel]) -> None:
        for channel in channels:
            for watch in list(channel.watches):
                self._untune(watch)
                if watch.state is State.TUNED:
                    self._open(watch)

    # ---- what comes for a watch

    def _message(self, session: Session, stream: int, payload: bytes, now: float) -> None:
        watch = self._streams.get(stream)
        if watch is None:
            return  # of a stream that we have closed, or a sign of life
        response = pb.WatchResponse.FromString(payload)
        if response.canceled:
            self._end(watch, tell=True)
            self._give(watch, _why(response))
        elif response.created:
            if response.header.cluster_id != self._cluster:
                self.lost(session, now, f"is of another cluster: {response.header.cluster_id:x}")
                return
            watch.state = State.LIVE
            watch.next = watch.next or response.header.revision + 1
            self._header = response.header
            if watch.curious:
                self._ask_of(stream)
            if len(response.topic) == TOPIC_BYTES and response.broadcast and response.topic != watch.topic:
                self._untune(watch)
                session.broadcast = session.broadcast or of_same_host(response.broadcast, session.endpoint)
                self._tune(watch, response.topic, now)
            self._give(watch, None)
        else:
            seen = watch.take(response)
            if seen is not None and (len(seen) or watch.asked.progress_notify or watch.curious):
                watch.curious &= bool(len(seen))
                self._give(watch, seen, len(payload))
                self._pause_if_slow(watch)

    def _closed(self, session: Session, stream: int, status: int, payload: bytes, now: float) -> None:
        error = errors.from_wire(status, payload.decode("utf-8", "replace"))
        watch = self._streams.pop(stream, None)
        if watch is not None and isinstance(error, errors.Refused):
            self._end(watch, tell=False)
            self._give(watch, error)
        elif watch is not None or stream in (session.ping, 0):
            self.lost(session, now, error.text)  # it cannot serve now: go on elsewhere

    def _give(self, watch: Watch, what: WatchResponse | KvorumError | None, size: int = 0) -> None:
        watch.given_bytes += size
        self.given.append(Given(watch, what, size))

    def _pause_if_slow(self, watch: Watch) -> None:
        """Only now that it was given something, so that whoever reads that will find it paused."""
        if watch.given_bytes - watch.read_bytes > BACKLOG_BYTES_MAX:
            self._close(watch)
            self._untune(watch)
            watch.state = State.PAUSED

    # ---- streams

    def _new_stream(self) -> int:
        self._next_stream += 1
        return self._next_stream

    def _put(self, kind: Kind, stream: int, payload: bytes) -> None:
        self._outbox.append(HEADER.pack(len(payload), Method.WATCH, kind, 0, stream) + payload)

    def _open(self, watch: Watch) -> None:
        watch.stream = self._new_stream()
        watch.state = State.OPENING
        self._streams[watch.stream] = watch
        self._put(Kind.STREAM_OPEN, watch.stream, b"")
        self._put(Kind.STREAM_MESSAGE, watch.stream, watch.create())

    def _close(self, watch: Watch) -> None:
        if self._streams.pop(watch.stream, None) is not None:
            self._put(Kind.STREAM_CLOSE, watch.stream, b"")

    def _end(self, watch: Watch, *, tell: bool) -> None:
        if tell:
            self._close(watch)
        self._untune(watch)
        self._watches.pop(watch, None)
        watch.state = State.OVER

    def _leave(self, session: Session) -> None:
        session.phase = Phase.GONE
        self.closing.append(session)
        self.current = None
        self._outbox.clear()
        self._streams.clear()
        self._channels.clear()
        self.tuning.clear()
        for watch in self._watches:
            watch.topic = b""
            if watch.state is not State.PAUSED:
                watch.state = State.WAITING

    def _drop(self, session: Session, now: float, trouble: str) -> None:
        self._leave(session)
        self.endpoints.failed(session.endpoint, now, trouble)
        self.wants_members |= self.endpoints.usable_at() > now


def _why(response: pb.WatchResponse) -> KvorumError:
    """Why a node has ended a watch: clientv3 reads the same fields."""
    why = _reason(response)
    why.response = response
    return why


def _reason(response: pb.WatchResponse) -> KvorumError:
    if response.compact_revision or response.cancel_reason == errors.Compacted.text:
        compacted = errors.Compacted()
        compacted.compact_revision = response.compact_revision
        return compacted
    reason = response.cancel_reason or "etcdserver: watch canceled"
    if reason.startswith("rpc error: code = PermissionDenied"):
        return errors.Refused(reason.partition("desc = ")[2], Code.PERMISSION_DENIED)
    return errors.Refused(reason, Code.CANCELLED)
