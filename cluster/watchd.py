"""The watch process: who wants to hear of which keys, and the changes on their way there.

    apply ──▶ changes, progress, history        clients ──▶ streams of WatchRequest, as on etcd's Watch call
    every watcher is either
      synced   it has been sent everything up to `_head`, and takes each Changes as it comes
      behind   it has been sent everything below its `next`; a slice of history brings it forward

What is promised, as by etcd, and what it rests on. `next` is the first revision that a watcher has not been sent. It
moves only when a message that covers all revisions up to some r has been handed to ZeroMQ for its connection, and
then to r + 1.

  ordered       revisions are sent from `next` on, upwards, and those of one revision as the request made them
  unique        nothing below `next` is sent
  reliable      `next` moves past nothing that was not sent; whatever goes wrong before a message is handed over
                leaves it where it was and the watcher behind, and history from `next` on is what it is sent next
  atomic        apply sends whole revisions, and a WatchResponse is cut between revisions only, unless the watcher
                asked for fragments, which are marked
  resumable     the client resumes behind the last revision it was given, and revisions mean the same on every node
  bookmarkable  progress is told only by the header of a synced watcher: all up to there has been sent before, on the
                same connection, which keeps its order

and why it holds across

  a drop               a connection that is full refuses the message, so `next` stays. One that breaks loses its tail,
                       which the client sees: it resumes. A broadcast that is lost shows by its revisions (below)
  another node         a created watch names nothing of this process but where it starts. A node that is further back
                       than the start sends nothing until it is there
  a restart of watch   all it knows are positions that clients have, too; they connect anew
  a restart of apply   the session ends, and the next begins at the revision of that moment: what was before is
                       history. Only what is committed is applied, so apply comes back with the same revisions; until
                       it has all that this node has ever shown (`_fresh`), nobody is told what "now" is
  a change of leader   commits come later; what is committed stays
  a compaction         who is before it is cancelled, with its revision; it is never a hole. The ring may still hold
                       what is compacted, and then it is sent; apply tells of a compaction before it answers it

Behind is served out of a ring of the newest changes, which holds all behind its floor as this process has taken them
in, or else by apply. A watcher becomes synced only when that has covered `_head`, in the same turn, with no Changes
between. Which watchers a change is for is found by an index of their ranges, so a change costs what it matches. A
synced watcher that wants nothing of it is not touched: its `next` falls behind and stands for the revision after
`_head`, until it is brought something, or the session ends.

After each telling this process rests; what changes meanwhile is told together. A client that wants something ends the
rest, and as apply says what changed before it answers whoever changed it, and is heard here before clients are, a watch
"from now on" is behind all that its client knows. What keys were
before their changes is looked up by apply only once a watcher has asked for it; its first request waits until apply
knows (a new session). Only while there are streams is there a session with apply at all.

A watcher that doesn't read costs the few messages which its connection's queue may hold. It is behind then, and tried
again every tick. Whoever has many streams on one connection, as the gateway has, pauses those whose readers are slow.

A stream serves each watcher by itself. Whoever can listen to broadcasts (cluster/broadcast.py) and is not the only
one here to watch these keys is told of their topic when its watch is created, and leaves the stream when a
publication connects with where it is; what it misses there it fetches from a stream again. So all that is said above
of streams holds for it too: between the two it moves by revision alone, taking from either exactly what lies behind
what it has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol
from zlib import crc32

import zmq
from google.protobuf.message import DecodeError

from cluster import metrics
from cluster.broadcast import TOPIC_BYTES, Groups, Seen, Spec, event_field
from cluster.config import NodeConfig
from cluster.exits import Exit
from cluster.internal import (
    Changes,
    History,
    HistoryRequest,
    Message,
    Progress,
    Tick,
    WatchAck,
    WatchAttach,
    WatchAttached,
    WatchDetach,
    WatchLost,
)
from cluster.links import ClientFrame, Subscription, WatchLink, frames_of
from cluster.metrics import WatchBoard
from cluster.node import Node
from cluster.process import Process
from cluster.ranges import Place, Ranges
from cluster.ring import Ring
from cluster.streams import SHARES, Stream, StreamKey, Watcher, parts, response, see, share
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind, Method
from storage.failpoint import hit
from storage.keyspace import Change

HISTORY_BYTES = 1 << 20
RING_BYTES = 8 << 20
CATCH_UP_BYTES = 8 << 20
"""What is handed out of the ring in one turn."""
DELIVERY_BYTES = 1 << 18
"""Changes that have waited together are delivered together, in pieces of about this size."""
STREAMS_MAX = 200_000
PROBE_TICKS = 100
"""How often an idle client is sent an empty batch, by which we learn that it is gone."""
PROGRESS_TICKS = 6000
DETACH_TICKS = 50


class Link(Protocol):
    """The watch process's ends of its conversations."""

    def receive(self) -> Iterable[Tick | ClientFrame | Subscription | Message]: ...
    def to_apply(self, message: Message) -> None: ...

    def send(self, identity: bytes, frame: bytes) -> bool | None:
        """False: not now, its queue is full. None: it is gone."""
        ...

    def publish(self, frame: bytes) -> None:
        """To all who are subscribed to its topic, the first 16 bytes. Whose queue is full doesn't get it."""
        ...


REST_SHARE = 20
"""After telling of changes this process rests for so many times the CPU time that it took, so that it takes a twentieth
of a CPU: what comes meanwhile is told together. To tell a hundred watchers of one event costs nearly as much as to tell
them of fifty, here and at their end, so the more there is to tell, the fewer times it is told."""
REST_SECONDS_MIN, REST_SECONDS_MAX = 0.001, 0.018
UNSENT_MAX = 1000
HELD_MAX = 10_000


class Watchd:
    """All streams of this node, and how far this process itself has heard.

    Args:
      share_from: how many watchers of the same it takes until they are told together: to a single one a stream is the
        shorter way.
    """

    def __init__(
        self,
        link: Link,
        node: Node,
        board: WatchBoard,
        *,
        epoch: int,
        response_bytes_max: int,
        progress_ticks: int,
        broadcast: str = "",
        share_from: int = 2,
        new_topic: Callable[[], bytes] = lambda: os.urandom(TOPIC_BYTES),
    ) -> None:
        self._broadcast, self._share_from = broadcast, share_from
        self._groups = Groups(new_topic)
        self.link, self.node, self.board, self.epoch = link, node, board, epoch
        self._response_bytes_max, self._progress_ticks = response_bytes_max, progress_ticks
        self._session = 0
        self._sequence = 0
        self._head = 0  # every change up to here has been seen in this session
        self._compacted = 0
        self._term = 0
        self._streams: dict[StreamKey, Stream] = {}
        self._of: dict[bytes, dict[int, Stream]] = {}
        self._probes: list[dict[bytes, None]] = [{} for _ in range(PROBE_TICKS)]  # clients, by when they are probed
        self._unsent: dict[Stream, None] = {}  # streams with answers that wait
        self._progress_wanted: dict[Watcher, None] = {}
        self._watching: dict[Spec, int] = {}  # how many watchers of these there are
        self._watchers = 0
        self._wanted: Ranges[Watcher] = Ranges()
        self._behind: dict[Watcher, None] = {}
        self._stalled: set[Watcher] = set()  # behind because its queue is full: waits for a tick
        self._request = 0
        self._requested = False
        self._attaching = False
        self._prev = False  # changes tell what was before them
        self._prev_asked = self._prev_wanted = False
        self._arrived: list[Change] = []  # and not delivered
        self._arrived_bytes = self._arrived_revision = 0
        self._ring = Ring(RING_BYTES)
        self._fresh = True  # apply doesn't know yet what "from now on" means
        self._held: list[tuple[Stream, bytes]] = []  # requests that wait for a session that knows
        self._idle_ticks = 0
        self._ticks = 0

    def turn(self) -> int:
        """Returns how many changes it told of."""
        told = 0
        for item in self.link.receive():
            if isinstance(item, Changes):
                if item.session == self._session:
                    told += self._arrive(item)
                continue
            told += self._deliver()
            match item:
                case ClientFrame(identity, frame):
                    self._take(identity, frame)
                case Subscription(topic, wanted):
                    self._subscription(topic, wanted)
                case History():
                    if item.session == self._session and item.id == self._request:
                        self._history(item)
                case Progress():
                    if item.session == self._session:
                        self._progress(item)
                case WatchAttached():
                    self._attached(item)
                case WatchLost(session):
                    if session == self._session:
                        self._lost()
                case Tick():
                    self._tick()
                case _:
                    raise AssertionError(f"not for watch: {item!r}")
        told += self._deliver()
        self._catch_up()
        return told

    # ---- the conversation with apply

    def _attached(self, item: WatchAttached) -> None:
        """Changes after its revision will come. What watchers lack up to there is history."""
        self._session, self._sequence, self._attaching = item.session, 0, False
        if self._head != item.revision:
            self._groups.restart(item.revision)
        if self._head != item.revision or self._prev != self._prev_asked:
            self._ring.restart(item.revision)
        self._prev = self._prev_asked
        told = self._head + 1
        self._head, self._compacted, self._term = item.revision, item.compacted, item.term
        self._fresh = bool(item.fresh)
        self._requested = False
        for stream in self._streams.values():
            for watcher in stream.watchers.values():
                if watcher.synced:
                    watcher.next = max(watcher.next, told)
                self._place(watcher)
        self._take_held()

    def _take_held(self) -> None:
        if self._fresh:
            return
        held, self._held = self._held, []  # who must wait on is held again
        for stream, payload in held:
            if self._streams.get(stream.key) is stream:
                try:
                    self._request_of(stream, payload)
                except errors.KvorumError as error:
                    self._refuse(stream.key.identity, Method.WATCH, stream.key.id, error)

    def _lost(self) -> None:
        self._session = 0
        self._requested = False
        self._attach()

    def _attach(self) -> None:
        self._attaching = True
        self._prev_asked = self._prev_wanted
        self.link.to_apply(WatchAttach(self.epoch, int(self._prev_wanted)))

    def _detach(self) -> None:
        """Nobody watches, for a while now."""
        self.link.to_apply(WatchDetach(self._session))
        self._session = 0
        self._prev_wanted = False

    def _place(self, watcher: Watcher) -> None:
        watcher.synced = watcher.next > self._head
        if watcher.synced:
            self._behind.pop(watcher, None)
        else:
            self._behind[watcher] = None

    def _arrive(self, item: Changes) -> int:
        """More changes. Those of a turn are delivered together, up to a size. Returns how many were delivered."""
        if item.sequence != self._sequence + 1:  # one was lost between us: what is missing is history
            told = self._deliver()
            self._lost()
            return told
        self._sequence = item.sequence
        self._arrived += item.changes
        self._arrived_revision = item.revision
        self._arrived_bytes += sum(len(change.event) + len(change.prev) for change in item.changes)
        return self._deliver() if self._arrived_bytes > DELIVERY_BYTES else 0

    def _deliver(self) -> int:
        """What has arrived, to all who are synced. Returns how many changes that were."""
        if not self._arrived:
            return 0
        changes, revision = self._arrived, self._arrived_revision
        self._arrived, self._arrived_bytes = [], 0
        told, self._head = self._head + 1, revision
        self.link.to_apply(WatchAck(self._session, self._sequence))
        seen = see(changes)
        self._ring.add(seen, revision)
        hit("watchBeforeSend")
        for frame in self._groups.changes(seen, revision, self.node.header(revision, self._term), self._ticks):
            self.link.publish(frame)
        found: dict[Place[Watcher], list[Seen]] = {}
        for change in seen:
            for place in self._wanted.at(change.key):
                found.setdefault(place, []).append(change)
        for place, its in found.items():
            shares: dict[tuple[bytes, Spec], list[Watcher]] = {}
            for watcher in list(place.wanted_by):
                if watcher.synced:
                    watcher.next = max(watcher.next, told)
                    if watcher.stream.takes_shares and watcher.next == told:
                        shares.setdefault((watcher.stream.key.identity, watcher.spec), []).append(watcher)
                    else:
                        self._bring(watcher, its, revision)
            for (identity, spec), watchers in shares.items():
                self._bring_all(identity, spec, watchers, its, revision)
        return len(changes)

    def _subscription(self, topic: bytes, wanted: bool) -> None:
        """What it is told first connects it: what was before is in the streams."""
        if not wanted:
            self._groups.unsubscribed(topic, self._ticks)
            return
        frame = self._groups.subscribed(topic, self._head, self._ticks)
        if frame is not None and self._session:
            self.link.publish(frame)

    def _progress(self, item: Progress) -> None:
        self._compacted, self._term, self._fresh = item.compacted, item.term, bool(item.fresh)
        self._take_held()
        if item.sequence != self._sequence:
            self._lost()

    def _catch_up(self) -> None:
        """Bring forward who is behind: from the ring as far as it reaches, else apply is asked for a slice."""
        if not self._session or not self._behind:
            return
        budget, oldest = CATCH_UP_BYTES, 0
        for watcher in list(self._behind):
            while watcher in self._behind and watcher not in self._stalled and not watcher.stream.paused:
                if watcher.next <= self._ring.floor:
                    oldest = min(oldest or watcher.next, watcher.next)
                    break
                if budget <= 0:
                    return
                seen, covered, size = self._ring.since(watcher.next, HISTORY_BYTES)
                budget -= size
                self._bring(watcher, seen, covered)
        if oldest and not self._requested:
            self._request += 1
            self._requested = True
            self.link.to_apply(HistoryRequest(self._session, self._request, oldest, HISTORY_BYTES))

    def _history(self, item: History) -> None:
        self._requested = False
        if item.covered < item.first:  # compacted away
            self._compacted = item.compacted
            for watcher in [w for w in self._behind if w.next < item.compacted]:
                self._cancel_compacted(watcher)
            return
        seen = see(item.changes)
        for watcher in [w for w in self._behind if item.first <= w.next <= item.covered and w not in self._stalled]:
            self._bring(watcher, seen, item.covered)

    # ---- delivery

    def _bring(self, watcher: Watcher, seen: Sequence[Seen], covered: int) -> None:
        """Send `watcher` what it wants of `seen`, which holds all changes of its range from its `next` to `covered`."""
        wanted = [s for s in seen if s.revision >= watcher.next and watcher.wants(s.kind, s.key)]
        if wanted:
            watcher.idle_ticks = 0
            self.board.events.add(len(wanted))
        for part, last in self._parts(watcher, wanted, covered):
            if part and not self._send(watcher.stream, part):
                self._stalled.add(watcher)
                break
            watcher.next = max(watcher.next, last + 1)
        if watcher.stream.watchers.get(watcher.id) is watcher:
            self._place(watcher)

    def _parts(self, watcher: Watcher, wanted: Sequence[Seen], covered: int) -> Iterable[tuple[list[bytes], int]]:
        header = self.node.header(self._head, self._term)
        return parts(watcher, wanted, covered, header, self._response_bytes_max)

    def _bring_all(
        self, identity: bytes, spec: Spec, watchers: list[Watcher], seen: Sequence[Seen], covered: int
    ) -> None:
        """The same for watchers of the same keys on streams of one client, whose `next` is the first of `seen`."""
        events = [event_field(one, spec.prev_kv) for one in seen if one.kind not in spec.unwanted]
        if not events:
            return  # they are synced, and stay so
        together = [w for w in watchers if not (w.stream.paused or w.stream.unsent)]
        if len(together) < 2 or sum(map(len, events)) > self._response_bytes_max:
            together = []
        for watcher in watchers if not together else [w for w in watchers if w.stream.paused or w.stream.unsent]:
            self._bring(watcher, seen, covered)
        if not together:
            return
        sent = self.link.send(identity, share(together, self.node.header(self._head, self._term), events))
        if sent is None:
            self._forget_client(identity)
            return
        self.board.events.add(len(events) * len(together) if sent else 0)
        for watcher in together:
            if sent:
                watcher.idle_ticks = 0
                watcher.next = covered + 1
            else:
                self._stalled.add(watcher)
            self._place(watcher)

    def _send(self, stream: Stream, payloads: list[bytes]) -> bool:
        """Send `payloads`, in order and after what still waits. False: not now, and nothing of them was sent.

        Once the first has gone the others count as sent: they wait in `unsent` if the queue fills up between.
        """
        if stream.paused or (stream.unsent and not self._flush(stream)):
            return False
        records = [wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, stream.key.id, payload) for payload in payloads]
        sent = self.link.send(stream.key.identity, records[0])
        if sent is None:
            self._forget_client(stream.key.identity)
        elif sent and len(records) > 1:
            stream.unsent += records[1:]
            self._flush(stream)
        return bool(sent)

    def _flush(self, stream: Stream) -> bool:
        """Send what waits. True if nothing does any more."""
        if stream.paused and stream.unsent:
            return False
        for frame, count in list(frames_of(stream.unsent)):
            sent = self.link.send(stream.key.identity, frame)
            if sent is None:
                self._forget_client(stream.key.identity)
                return False
            if not sent:
                self._unsent[stream] = None
                return False
            del stream.unsent[:count]
        self._unsent.pop(stream, None)
        return True

    def _answer(self, stream: Stream, response: pb.WatchResponse) -> None:
        """Answers to requests keep their order, also with the events that follow them."""
        payload = response.SerializeToString()
        stream.unsent.append(wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, stream.key.id, payload))
        if not self._flush(stream) and len(stream.unsent) > UNSENT_MAX:  # it asks and asks and never reads
            if stream.paused:
                self._refuse(stream.key.identity, Method.WATCH, stream.key.id, errors.TooManyRequests())
            else:
                self._forget_client(stream.key.identity)

    def _header(self, revision: int | None = None) -> pb.ResponseHeader:
        raw = self.node.header(self._head if revision is None else revision, self._term)
        return pb.WatchResponse.FromString(raw).header

    # ---- requests

    def _take(self, identity: bytes, frame: bytes) -> None:
        try:
            records = wire.decode(frame, wire.BATCH_RECORDS_MAX)
        except wire.MalformedBatch as malformed:
            self.board.malformed_frames.add()
            self._refuse(identity, 0, 0, errors.Malformed(f"kvorum: {malformed}"))
            return
        for record in records:
            try:
                self._record(identity, record)
            except errors.KvorumError as error:
                self._refuse(identity, record.method, record.id, error)

    def _refuse(self, identity: bytes, method: int, id: int, error: errors.KvorumError) -> None:
        """End the stream, saying why."""
        stream = self._streams.get(StreamKey(identity, id))
        if stream is not None:
            self._forget(stream)
        self.link.send(identity, wire.encode(method, Kind.STREAM_CLOSE, error.code, id, error.text.encode()))

    def _record(self, identity: bytes, record: wire.Record) -> None:
        if record.method != Method.WATCH:
            raise errors.Unimplemented(f"unknown method {record.method}")
        key = StreamKey(identity, record.id)
        stream = self._streams.get(key)
        match record.kind:
            case Kind.STREAM_OPEN:
                if stream is not None:
                    raise errors.Refused(f"kvorum: stream {record.id} is open", errors.Code.ALREADY_EXISTS)
                if len(self._streams) >= STREAMS_MAX:
                    raise errors.TooManyRequests
                if identity not in self._of:
                    self._of[identity] = {}
                    self._probes[crc32(identity) % PROBE_TICKS][identity] = None
                self._streams[key] = self._of[identity][record.id] = Stream(key, record.payload == SHARES)
            case Kind.STREAM_MESSAGE:
                if stream is None:
                    raise errors.Refused(f"kvorum: stream {record.id} is not open", errors.Code.NOT_FOUND)
                self._request_of(stream, record.payload)
            case Kind.STREAM_CLOSE:
                if stream is not None:
                    self._forget(stream)
            case Kind.STREAM_PAUSE | Kind.STREAM_RESUME:
                if stream is not None:
                    stream.paused = record.kind == Kind.STREAM_PAUSE
                    self._stalled.difference_update(stream.watchers.values())
                    self._flush(stream)
            case _:
                raise errors.Unimplemented(f"kvorum: a record of kind {record.kind} is not of a stream")

    def _request_of(self, stream: Stream, payload: bytes) -> None:
        try:
            request = pb.WatchRequest.FromString(payload)
        except DecodeError as error:
            raise errors.Malformed from error
        self._prev_wanted |= request.create_request.prev_kv
        more = self._prev_wanted and not self._prev  # is to be asked of apply
        if not self._session or self._fresh or more:
            if len(self._held) >= HELD_MAX:
                raise errors.TooManyRequests
            self._held.append((stream, payload))
            if not self._attaching and (not self._session or more):
                self._attach()
            return
        match request.WhichOneof("request_union"):
            case "create_request":
                self._create(stream, request.create_request)
            case "cancel_request":
                self._cancel(stream, request.cancel_request.watch_id)
            case "progress_request":
                if all(w.synced and w.next <= self._head + 1 for w in stream.watchers.values()):
                    self._answer(stream, pb.WatchResponse(header=self._header(), watch_id=-1))

    def _create(self, stream: Stream, request: pb.WatchCreateRequest) -> None:
        refusal = None
        if request.start_revision < 0:
            refusal = errors.Compacted.text
        elif request.range_end and request.range_end != b"\0" and request.range_end <= (request.key or b"\0"):
            refusal = "mvcc: watcher range is empty"
        elif request.watch_id and request.watch_id in stream.watchers:
            refusal = "mvcc: duplicate watch ID provided on the WatchStream"
        if refusal is not None:
            refused = pb.WatchResponse(header=self._header(), watch_id=-1, created=True, canceled=True)
            refused.cancel_reason = refusal
            self._answer(stream, refused)
            return
        id = request.watch_id
        if not id:
            while stream.next_id in stream.watchers:
                stream.next_id += 1
            id = stream.next_id
            stream.next_id += 1
        watcher = Watcher(stream, id, request, request.start_revision or self._head + 1)
        stream.watchers[id] = watcher
        self._wanted.add(watcher.spec.key, watcher.spec.end, watcher)
        self._watching[watcher.spec] = self._watching.get(watcher.spec, 0) + 1
        self._watchers += 1
        if watcher.progress:
            self._progress_wanted[watcher] = None
        created = pb.WatchResponse(header=self._header(), watch_id=id, created=True)
        if request.broadcast and self._broadcast:
            shared = self._watching[watcher.spec] >= self._share_from
            group = self._groups.join(watcher.spec, self._head, self._ticks, found=shared)
            if group is not None:
                created.topic, created.broadcast = group.topic, self._broadcast
        self._answer(stream, created)
        if stream.key not in self._streams:
            return  # gone while we answered
        if watcher.next < self._compacted:
            self._cancel_compacted(watcher)
        else:
            self._place(watcher)

    def _cancel(self, stream: Stream, id: int) -> None:
        watcher = stream.watchers.get(id)
        if watcher is not None:  # an unknown id is not answered, as in etcd
            self._remove(watcher)
            self._answer(stream, pb.WatchResponse(header=self._header(), watch_id=id, canceled=True))

    def _cancel_compacted(self, watcher: Watcher) -> None:
        self._remove(watcher)
        gone = pb.WatchResponse(header=self._header(0), watch_id=watcher.id, canceled=True)
        gone.compact_revision = self._compacted
        self._answer(watcher.stream, gone)

    def _remove(self, watcher: Watcher) -> None:
        if watcher.stream.watchers.get(watcher.id) is not watcher:
            return  # with its client, while its neighbours were cancelled
        del watcher.stream.watchers[watcher.id]
        self._wanted.remove(watcher.spec.key, watcher.spec.end, watcher)
        self._watchers -= 1
        left = self._watching[watcher.spec] = self._watching[watcher.spec] - 1
        if not left:
            del self._watching[watcher.spec]
        self._progress_wanted.pop(watcher, None)
        watcher.synced = False
        self._behind.pop(watcher, None)
        self._stalled.discard(watcher)

    def _forget(self, stream: Stream) -> None:
        for watcher in list(stream.watchers.values()):
            self._remove(watcher)
        self._streams.pop(stream.key, None)
        self._unsent.pop(stream, None)
        streams = self._of.get(stream.key.identity)
        if streams is not None:
            streams.pop(stream.key.id, None)
            if not streams:
                del self._of[stream.key.identity]
                del self._probes[crc32(stream.key.identity) % PROBE_TICKS][stream.key.identity]

    def _forget_client(self, identity: bytes) -> None:
        for stream in list(self._of.get(identity, {}).values()):
            self._forget(stream)

    # ---- time

    def _tick(self) -> None:
        self._ticks += 1
        self._idle_ticks = 0 if self._streams or self._groups.listening else self._idle_ticks + 1
        if self._session and self._idle_ticks > DETACH_TICKS:
            self._detach()
        elif self._session:
            self.link.to_apply(WatchAck(self._session, self._sequence))
        elif self._streams:
            self._attach()
        self._stalled.clear()
        if self._session:
            for frame in self._groups.tick(self._head, self._ticks):
                self.link.publish(frame)
        for identity in list(self._probes[self._ticks % PROBE_TICKS]):
            if self.link.send(identity, b"") is None:
                self._forget_client(identity)
        for stream in list(self._unsent):
            self._flush(stream)
        for watcher in list(self._progress_wanted):
            self._notify_progress(watcher)
        self.board.streams.set(len(self._streams))
        self.board.watchers.set(self._watchers)
        self.board.slow_watchers.set(len(self._behind))

    def _notify_progress(self, watcher: Watcher) -> None:
        watcher.idle_ticks += 1
        if watcher.idle_ticks >= self._progress_ticks and watcher.synced and watcher.next <= self._head + 1:
            watcher.idle_ticks = 0
            self._send(watcher.stream, [response(self.node.header(self._head, self._term), watcher.id, [])])


def main(argv: Sequence[str]) -> int:
    """Of (NODE_JSON, EPOCH), as cluster/part.py calls it. Returns the exit code."""
    process = Process("watch")
    config, epoch = NodeConfig.load(argv[0]), int(argv[1])
    board = WatchBoard()
    board.open(f"{metrics.directory(config.run_dir)}/watch")
    try:
        link = WatchLink(zmq.Context(), config)
    except OSError as error:
        return process.fatal(Exit.USAGE, str(error))
    watchd = Watchd(
        link,
        Node(config),
        board,
        epoch=epoch,
        response_bytes_max=config.max_request_bytes + (512 << 10),
        progress_ticks=PROGRESS_TICKS * 100 // config.heartbeat_ms,
        broadcast=config.advertise_broadcast,
    )
    process.settle()
    used = time.process_time()
    while not process.stopping:
        link.wait()
        told = watchd.turn()
        before, used = used, time.process_time()  # from turn to turn, for much is done by ZeroMQ's thread in between
        if told:
            link.rest(min(REST_SECONDS_MAX, max(REST_SECONDS_MIN, REST_SHARE * (used - before))))
    return 0
