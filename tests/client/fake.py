"""A node in the test's own process, as far as a client can tell: the protocol over real ZeroMQ, and a script.

`FakeNode(handle)` answers each call with what `handle(record)` returns: bytes (the reply's payload), an error of
kvorum.errors (sent as one), None (never answered), or a callable (run later by `release()`). Hello it answers itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import zmq

from kvorum import etcd_pb2 as pb
from kvorum.errors import KvorumError
from kvorum.wire import PROTOCOL, Kind, Method, Record, decode, encode

Answer = bytes | KvorumError | None
Handle = Callable[[Record], Answer]

CLUSTER = 0xC1


class FakeNode:
    """A ROUTER on a free port of 127.0.0.1, served by a thread of its own until close()."""

    def __init__(self, handle: Handle, *, member: int = 1, cluster: int = CLUSTER, address: str | None = None) -> None:
        self.handle = handle
        self.member, self.cluster = member, cluster
        self.members: list[pb.Endpoint] = []
        self.hello: Callable[[Record], Answer] | None = None
        self.batches: list[list[Record]] = []
        """Every batch of calls that came in, Hello left out."""
        self.raw: list[bytes] = []
        """Frames to send as they are, in place of an answer to the next call."""
        self.kvs: dict[bytes, pb.KeyValue] = {}
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        if address is None:
            port = self._router.bind_to_random_port("tcp://127.0.0.1")
            address = f"tcp://127.0.0.1:{port}"
        else:
            self._router.bind(address)
        self.address = address
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.bind("inproc://stop")
        self._stopper = self._context.socket(zmq.PAIR)
        self._stopper.connect("inproc://stop")
        self.peers: set[bytes] = set()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._stop, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stop in ready:
                order = self._stop.recv()
                if order == b"stop":
                    break
                for peer in self.peers:
                    self._router.send_multipart([peer, order[1:]])
            if self._router in ready:
                peer, frame = self._router.recv_multipart()
                self._batch(peer, frame)
        self._router.close()
        self._stop.close()

    def _batch(self, peer: bytes, frame: bytes) -> None:
        self.peers.add(peer)
        calls = decode(frame)
        out = []
        asked = [call for call in calls if call.method != Method.HELLO]
        if asked:
            self.batches.append(asked)
        for call in calls:
            assert call.kind == Kind.CALL
            answer: Answer
            if call.method == Method.HELLO:
                answer = self.hello(call) if self.hello else self._hello()
            else:
                if self.raw:
                    self._router.send_multipart([peer, self.raw.pop(0)])
                    continue
                answer = self.handle(call)
            if isinstance(answer, KvorumError):
                out.append(encode(call.method, Kind.REPLY, answer.code, call.id, answer.text.encode()))
            elif answer is not None:
                out.append(encode(call.method, Kind.REPLY, 0, call.id, answer))
        if out:
            self._router.send_multipart([peer, b"".join(out)])

    def _hello(self) -> bytes:
        header = pb.ResponseHeader(cluster_id=self.cluster, member_id=self.member)
        return pb.HelloResponse(header=header, protocol=PROTOCOL, version="0", members=self.members).SerializeToString()

    def push(self, frame: bytes) -> None:
        """Send a frame to every client seen so far."""
        self._stopper.send(b"!" + frame)

    def close(self) -> None:
        """Go away as a process that ends does: every connection is closed."""
        if self._thread.is_alive():
            self._stopper.send(b"stop")
            self._thread.join()
            self._stopper.close()
            self._context.term()


class Store:
    """The least of a key-value store that a client can be tried against: handle() for a FakeNode."""

    def __init__(self) -> None:
        self.revision = 1
        self.kvs: dict[bytes, pb.KeyValue] = {}

    def __call__(self, record: Record) -> Answer:
        if record.method == Method.PUT:
            return self._put(pb.PutRequest.FromString(record.payload))
        if record.method == Method.RANGE:
            return self._range(pb.RangeRequest.FromString(record.payload))
        if record.method == Method.DELETE_RANGE:
            return self._delete(pb.DeleteRangeRequest.FromString(record.payload))
        raise AssertionError(f"the fake has no method {record.method}")

    def _header(self) -> pb.ResponseHeader:
        return pb.ResponseHeader(cluster_id=CLUSTER, member_id=1, revision=self.revision, raft_term=2)

    def _put(self, request: pb.PutRequest) -> bytes:
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
        answer = pb.PutResponse(header=self._header())
        if request.prev_kv and old:
            answer.prev_kv.CopyFrom(old)
        return answer.SerializeToString()

    def _select(self, key: bytes, end: bytes) -> list[pb.KeyValue]:
        if not end:
            return [self.kvs[key]] if key in self.kvs else []
        return [self.kvs[k] for k in sorted(self.kvs) if k >= key and (end == b"\0" or k < end)]

    def _range(self, request: pb.RangeRequest) -> bytes:
        kvs = self._select(request.key, request.range_end)
        return pb.RangeResponse(header=self._header(), kvs=kvs, count=len(kvs)).SerializeToString()

    def _delete(self, request: pb.DeleteRangeRequest) -> bytes:
        gone = self._select(request.key, request.range_end)
        if gone:
            self.revision += 1
        for kv in gone:
            del self.kvs[kv.key]
        return pb.DeleteRangeResponse(
            header=self._header(), deleted=len(gone), prev_kvs=gone if request.prev_kv else []
        ).SerializeToString()
