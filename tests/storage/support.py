"""A store to talk to in messages: requests go through the log format, answers come back parsed."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import METHODS, Method
from storage.codec import pack_proposal
from storage.engine import Engine
from storage.keyspace import Change, Keyspace, Outcome, Result, Scan
from storage.memory import MemoryEngine

METHOD_OF = {
    pb.RangeRequest: Method.RANGE,
    pb.PutRequest: Method.PUT,
    pb.DeleteRangeRequest: Method.DELETE_RANGE,
    pb.TxnRequest: Method.TXN,
    pb.CompactionRequest: Method.COMPACT,
    pb.LeaseGrantRequest: Method.LEASE_GRANT,
    pb.LeaseRevokeRequest: Method.LEASE_REVOKE,
    pb.AlarmRequest: Method.ALARM,
    pb.MemberPublish: Method.MEMBER_PUBLISH,
    pb.LeaseLead: Method.LEASE_LEAD,
    pb.LeaseExpire: Method.LEASE_EXPIRE,
    pb.LeaseCheckpoints: Method.LEASE_CHECKPOINT,
}


def batch(*requests: Message) -> bytes:
    return b"".join(
        wire.encode(METHOD_OF[type(request)], wire.Kind.CALL, 0, number, request.SerializeToString())
        for number, request in enumerate(requests)
    )


def entry(number: int, *requests: Message, origin: int = 1, incarnation: int = 1) -> bytes:
    """The data of a log entry."""
    return pack_proposal(origin, incarnation, number, batch(*requests))


def answer(request: Message, result: Result) -> Any:
    """The whole response message, with a header that says the revision; an error is raised."""
    if result.status:
        raise errors.from_wire(result.status, result.body.decode())
    header = pb.ResponseHeader(revision=result.revision)
    method = METHOD_OF[type(request)]
    if method not in METHODS:
        assert result.body == b""
        return header
    response = METHODS[method].response()
    response.header.CopyFrom(header)
    response.MergeFromString(result.body)
    return response


class Store:
    """A keyspace with a log of its own. Each call is one entry, in one turn."""

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine: Engine = MemoryEngine() if engine is None else engine
        self.keyspace = Keyspace(self.engine)
        self.log: list[bytes] = []

    def outcome(self, *requests: Message, **origin: int) -> tuple[Outcome, list[Change]]:
        index = self.keyspace.applied[0] + 1
        self.log.append(entry(index, *requests, **origin))
        turn = self.keyspace.begin()
        outcome = turn.apply(index, 1, self.log[-1])
        return outcome, turn.commit()

    def write(self, request: Message) -> Any:
        return answer(request, self.outcome(request)[0].results[0])

    def put(self, key: bytes, value: bytes = b"", **options: Any) -> Any:
        return self.write(pb.PutRequest(key=key, value=value, **options))

    def delete(self, key: bytes, end: bytes = b"", **options: Any) -> Any:
        return self.write(pb.DeleteRangeRequest(key=key, range_end=end, **options))

    def txn(self, compare: Any = (), success: Any = (), failure: Any = ()) -> Any:
        return self.write(pb.TxnRequest(compare=compare, success=success, failure=failure))

    def grant(self, id: int, ttl: int = 60) -> Any:
        return self.write(pb.LeaseGrantRequest(ID=id, TTL=ttl))

    def revoke(self, id: int) -> Any:
        return self.write(pb.LeaseRevokeRequest(ID=id))

    def compact(self, revision: int) -> Any:
        return self.write(pb.CompactionRequest(revision=revision))

    def read(self, request: Message) -> Any:
        return answer(request, finished(self.keyspace.read(METHOD_OF[type(request)], request.SerializeToString())))

    def range(self, key: bytes, end: bytes = b"", **options: Any) -> Any:
        return self.read(pb.RangeRequest(key=key, range_end=end, **options))

    def keys(self, key: bytes = b"\0", end: bytes = b"\0", **options: Any) -> list[bytes]:
        return [kv.key for kv in self.range(key, end, **options).kvs]

    def get(self, key: bytes, **options: Any) -> bytes | None:
        kvs = self.range(key, **options).kvs
        return kvs[0].value if kvs else None

    def sweep(self) -> int:
        steps = 0
        while self.keyspace.sweep():
            steps += 1
        return steps

    def contents(self) -> dict[bytes, bytes]:
        return contents(self.engine)


def finished(read: Result | Scan) -> Result:
    while isinstance(read, Scan):
        read = read.step() or read
    return read


def contents(engine: Engine) -> dict[bytes, bytes]:
    """Everything that is stored."""
    return dict(engine.scan(b"\0", b"\xff"))


def put_op(key: bytes, value: bytes = b"", **options: Any) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, **options))


def delete_op(key: bytes, end: bytes = b"", **options: Any) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end, **options))


def range_op(key: bytes, end: bytes = b"", **options: Any) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key, range_end=end, **options))


def txn_op(compare: Any = (), success: Any = (), failure: Any = ()) -> pb.RequestOp:
    return pb.RequestOp(request_txn=pb.TxnRequest(compare=compare, success=success, failure=failure))


def exists(key: bytes) -> pb.Compare:
    return pb.Compare(target=pb.Compare.VERSION, result=pb.Compare.GREATER, key=key, version=0)
