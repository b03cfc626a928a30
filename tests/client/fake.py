"""A node in the test's own process, as far as a client can tell: the protocol over real ZeroMQ, and a script.

`FakeNode(handle)` answers each call with what `handle(record)` returns: bytes (the reply's payload), an error of
kvorum.errors (sent as one), or None (never answered). Hello it answers itself. Watches are served from the history of
the Store that is its handle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import zmq

from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.errors import KvorumError
from kvorum.wire import PROTOCOL, Kind, Method, Record

Answer = bytes | KvorumError | None
Handle = Callable[[Record], Answer]

CLUSTER = 0xC1


class Store:
    """The least of a key-value store that a client can be tried against, with a history for watchers."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.kvs: dict[bytes, pb.KeyValue] = {}
        self.history: list[pb.Event] = []
        self.alarms: list[pb.AlarmMember] = []
        self._methods: dict[int, Callable[[bytes], bytes]] = {
            Method.PUT: lambda raw: self._put(pb.PutRequest.FromString(raw)).SerializeToString(),
            Method.RANGE: lambda raw: self._range(pb.RangeRequest.FromString(raw)).SerializeToString(),
            Method.DELETE_RANGE: lambda raw: self._delete(pb.DeleteRangeRequest.FromString(raw)).SerializeToString(),
            Method.TXN: lambda raw: self._txn(pb.TxnRequest.FromString(raw)).SerializeToString(),
            Method.COMPACT: self._compact,
            Method.STATUS: self._status,
            Method.MEMBER_LIST: self._members,
            Method.ALARM: lambda raw: self._alarm(pb.AlarmRequest.FromString(raw)).SerializeToString(),
            Method.HASH_KV: self._hash,
        }

    def __call__(self, record: Record) -> Answer:
        return self._methods[record.method](record.payload)

    def header(self) -> pb.ResponseHeader:
        return pb.ResponseHeader(cluster_id=CLUSTER, member_id=0xA1, revision=self.revision, raft_term=2)

    def _note(self, kind: pb.Event.EventType, kv: pb.KeyValue, prev: pb.KeyValue | None) -> None:
        self.history.append(pb.Event(type=kind, kv=kv, prev_kv=prev))

    def _put(self, request: pb.PutRequest) -> pb.PutResponse:
        self.revision += 1
        old = self.kvs.get(request.key)
        self.kvs[request.key] = pb.KeyValue(
            key=request.key,
            value=request.value,
            lease=request.lease,
            mod_revision=self.revision,
            create_revision=old.create_revision if old else self.revision,
            version=old.version + 1 if old else 1,
        )
        self._note(pb.Event.PUT, self.kvs[request.key], old)
        return pb.PutResponse(header=self.header(), prev_kv=old if request.prev_kv else None)

    def _select(self, key: bytes, end: bytes) -> list[pb.KeyValue]:
        if not end:
            return [self.kvs[key]] if key in self.kvs else []
        return [self.kvs[k] for k in sorted(self.kvs) if k >= key and (end == b"\0" or k < end)]

    def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        kvs = self._select(request.key, request.range_end)
        shown = kvs[: request.limit or None]
        if request.sort_order == pb.RangeRequest.DESCEND:
            shown = shown[::-1]
        if request.count_only:
            shown = []
        if request.keys_only:
            shown = [pb.KeyValue(key=kv.key, mod_revision=kv.mod_revision) for kv in shown]
        return pb.RangeResponse(header=self.header(), kvs=shown, count=len(kvs), more=0 < request.limit < len(kvs))

    def _delete(self, request: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
        gone = self._select(request.key, request.range_end)
        self.revision += bool(gone)
        for kv in gone:
            del self.kvs[kv.key]
            self._note(pb.Event.DELETE, pb.KeyValue(key=kv.key, mod_revision=self.revision), kv)
        prev = gone if request.prev_kv else []
        return pb.DeleteRangeResponse(header=self.header(), deleted=len(gone), prev_kvs=prev)

    def _txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Comparisons for equality and order of one key's value or numbers; each put has a revision of its own."""
        held = all(self._holds(compare) for compare in request.compare)
        answer = pb.TxnResponse(succeeded=held)
        for op in request.success if held else request.failure:
            which = op.WhichOneof("request")
            if which == "request_put":
                answer.responses.add(response_put=self._put(op.request_put))
            elif which == "request_range":
                answer.responses.add(response_range=self._range(op.request_range))
            elif which == "request_delete_range":
                answer.responses.add(response_delete_range=self._delete(op.request_delete_range))
            else:
                answer.responses.add(response_txn=self._txn(op.request_txn))
        answer.header.CopyFrom(self.header())
        return answer

    def _holds(self, compare: pb.Compare) -> bool:
        kv = self.kvs.get(compare.key, pb.KeyValue())
        field = compare.WhichOneof("target_union") or "version"
        have, want = getattr(kv, field), getattr(compare, field)
        return {0: have == want, 1: have > want, 2: have < want, 3: have != want}[compare.result]

    def _compact(self, raw: bytes) -> bytes:
        self.compacted = pb.CompactionRequest.FromString(raw).revision
        return pb.CompactionResponse(header=self.header()).SerializeToString()

    def _alarm(self, request: pb.AlarmRequest) -> pb.AlarmResponse:
        one = pb.AlarmMember(memberID=request.memberID, alarm=request.alarm)
        found = self.alarms if request.action == pb.AlarmRequest.GET else [one]
        if request.action == pb.AlarmRequest.ACTIVATE:
            self.alarms = [*self.alarms, one]
        elif request.action == pb.AlarmRequest.DEACTIVATE:
            self.alarms = [alarm for alarm in self.alarms if alarm != one]
        return pb.AlarmResponse(header=self.header(), alarms=found)

    def _hash(self, raw: bytes) -> bytes:
        revision = pb.HashKVRequest.FromString(raw).revision or self.revision
        answer = pb.HashKVResponse(header=self.header(), hash=1234567890, compact_revision=-1, hash_revision=revision)
        return answer.SerializeToString()

    def _status(self, _: bytes) -> bytes:
        return pb.StatusResponse(
            header=self.header(),
            version="3.6.0",
            storageVersion="3.6.0",
            dbSize=24576,
            dbSizeInUse=16384,
            dbSizeQuota=2 << 30,
            leader=0xA1,
            raftIndex=12,
            raftTerm=2,
            raftAppliedIndex=11,
            downgradeInfo=pb.DowngradeInfo(),
        ).SerializeToString()

    def _members(self, _: bytes) -> bytes:
        header = pb.ResponseHeader(cluster_id=CLUSTER, member_id=0xA1, raft_term=2)
        members = [
            pb.Member(ID=0xA1, name="node1", peerURLs=["http://a:2380"], clientURLs=["http://a:2379"]),
            pb.Member(ID=0xB2, peerURLs=["http://b:2380"], isLearner=True),
        ]
        return pb.MemberListResponse(header=header, members=members).SerializeToString()


class _Stream:
    def __init__(self, peer: bytes, id: int) -> None:
        self.peer, self.id = peer, id
        self.asked: pb.WatchCreateRequest | None = None
        self.at = 0


class FakeNode:
    """ROUTERs on free ports of 127.0.0.1, served by a thread of its own until close()."""

    def __init__(self, handle: Handle | None = None, *, cluster: int = CLUSTER, address: str = "") -> None:
        self.store = handle if isinstance(handle, Store) else Store()
        self.handle = handle or self.store
        self.cluster = cluster
        self.members: list[pb.Endpoint] = []
        """What Hello tells beside this node."""
        self.hello: Callable[[Record], Answer] | None = None
        self.batches: list[list[Record]] = []
        """Every batch of calls that came in, Hello left out."""
        self.raw: list[list[bytes]] = []
        """Messages to send as they are, in place of an answer to the next call."""
        self.peers: set[bytes] = set()
        self.streams: dict[tuple[bytes, int], _Stream] = {}
        self.watch_requests: list[pb.WatchRequest] = []
        self.mute = False
        """Take everything, answer nothing."""
        self._context = zmq.Context()
        self._router, self.address = self._listen(address)
        self._watch, self.watch_address = self._listen("")
        self._orders = self._context.socket(zmq.PAIR)
        self._orders.bind("inproc://orders")
        self._boss = self._context.socket(zmq.PAIR)
        self._boss.connect("inproc://orders")
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _listen(self, address: str) -> tuple[zmq.Socket[bytes], str]:
        router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        while address:
            try:
                router.bind(address)
                return router, address
            except zmq.ZMQError as error:  # ZeroMQ closes the socket that had it before in its own thread
                if error.errno != zmq.EADDRINUSE:
                    raise
                time.sleep(0.001)
        return router, f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"

    @property
    def endpoint(self) -> pb.Endpoint:
        return pb.Endpoint(member_id=0xA1, name="node1", native=self.address, watch=self.watch_address)

    def push(self, frame: bytes) -> None:
        """Send a frame to every caller seen so far."""
        self._boss.send(b"push" + frame)

    def cut_watches(self) -> None:
        """Lose the watch connections, and listen again at once."""
        self._boss.send(b"cut")

    def close(self) -> None:
        """Go away as a process that ends does: every connection is closed."""
        if self._boss.closed:
            return
        self._boss.send(b"stop")
        self._thread.join()
        self._boss.close(0)
        self._context.term()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> FakeNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the thread

    def _serve(self) -> None:
        try:
            self._loop()
        except Exception as error:
            self._failure = error
        finally:
            for socket in (self._orders, self._router, self._watch):
                socket.close(0)

    def _loop(self) -> None:
        poller = zmq.Poller()
        for socket in (self._orders, self._router, self._watch):
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(20))  # another node may have changed the store that we share
            if self._orders in ready:
                order = self._orders.recv()
                if order == b"stop":
                    break
                if order == b"cut":
                    poller.unregister(self._watch)
                    self._watch.close()
                    self.streams.clear()
                    self._watch, _ = self._listen(self.watch_address)
                    poller.register(self._watch, zmq.POLLIN)
                    continue
                for peer in self.peers:
                    self._router.send_multipart([peer, order.removeprefix(b"push")])
            if self._router in ready:
                peer, frame = self._router.recv_multipart()
                self._calls(peer, frame)
            if self._watch in ready:
                peer, frame = self._watch.recv_multipart()
                self._streams(peer, frame)
            self._publish()

    def _calls(self, peer: bytes, frame: bytes) -> None:
        self.peers.add(peer)
        calls = wire.decode(frame)
        asked = [call for call in calls if call.method != Method.HELLO]
        if asked:
            self.batches.append(asked)
        if self.mute:
            return
        out = []
        for call in calls:
            assert call.kind == Kind.CALL
            if call.method != Method.HELLO and self.raw:
                self._router.send_multipart([peer, *self.raw.pop(0)])
                continue
            answer: Answer
            if call.method == Method.HELLO:
                answer = self.hello(call) if self.hello else self._hello()
            else:
                answer = self.handle(call)
            if isinstance(answer, KvorumError):
                out.append(wire.encode(call.method, Kind.REPLY, answer.code, call.id, answer.text.encode()))
            elif answer is not None:
                out.append(wire.encode(call.method, Kind.REPLY, 0, call.id, answer))
        if out:
            self._router.send_multipart([peer, b"".join(out)])

    def _hello(self) -> bytes:
        header = pb.ResponseHeader(cluster_id=self.cluster, member_id=0xA1)
        members = [self.endpoint, *self.members]
        return pb.HelloResponse(header=header, protocol=PROTOCOL, version="0", members=members).SerializeToString()

    # ---- watches

    def _streams(self, peer: bytes, frame: bytes) -> None:
        for record in wire.decode(frame):
            key = (peer, record.id)
            if record.kind == Kind.STREAM_OPEN:
                self.streams[key] = _Stream(peer, record.id)
            elif record.kind == Kind.STREAM_CLOSE:
                self.streams.pop(key, None)
            else:
                self._request(self.streams[key], pb.WatchRequest.FromString(record.payload))

    def _request(self, stream: _Stream, request: pb.WatchRequest) -> None:
        self.watch_requests.append(request)
        if request.HasField("progress_request"):
            self._respond(stream, pb.WatchResponse(watch_id=-1))
            return
        stream.asked = request.create_request
        stream.at = stream.asked.start_revision or self.store.revision + 1
        self._respond(stream, pb.WatchResponse(created=True))
        if stream.at < self.store.compacted:
            self._respond(stream, pb.WatchResponse(canceled=True, compact_revision=self.store.compacted))
            stream.asked = None

    def _publish(self) -> None:
        for stream in self.streams.values():
            if stream.asked is None:
                continue
            for revision in range(stream.at, self.store.revision + 1):
                events = [e for e in self.store.history if e.kv.mod_revision == revision and wants(stream.asked, e)]
                if not stream.asked.prev_kv:
                    events = [pb.Event(type=e.type, kv=e.kv) for e in events]
                if events:
                    self._respond(stream, pb.WatchResponse(events=events))
            stream.at = max(stream.at, self.store.revision + 1)

    def _respond(self, stream: _Stream, response: pb.WatchResponse) -> None:
        header = self.store.header()
        header.cluster_id = self.cluster
        response.header.CopyFrom(header)
        record = wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, stream.id, response.SerializeToString())
        self._watch.send_multipart([stream.peer, record])


def wants(asked: pb.WatchCreateRequest, event: pb.Event) -> bool:
    if event.type in asked.filters:
        return False
    key, end = asked.key, asked.range_end
    return event.kv.key == key if not end else key <= event.kv.key and (end == b"\0" or event.kv.key < end)
