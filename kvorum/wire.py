"""The one record format that everything speaks: clients, the processes of a node, the log, the peers.

    record   | u32 length | u8 method | u8 kind | u16 status | u64 id | payload ... |     little-endian
    batch    records back to back, in one ZeroMQ frame

`length` counts the payload alone, so a record takes 16 + length bytes. `id` is the caller's own number for a call or a
stream; the answer carries it back. `status` is 0 in requests and a gRPC code in replies; when it is not 0 the payload
is the error's text in UTF-8. Else the payload is the etcd v3 message of the method, protobuf-encoded (etcd.proto).
kvorum/PROTOCOL.md is this page for strangers. Pure.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from google.protobuf.message import Message

from kvorum import etcd_pb2 as pb

PROTOCOL = 1
"""The version that Hello speaks of."""

HEADER = struct.Struct("<IBBHQ")
BATCH_BYTES_MAX = 8 << 20
"""A batch over this is refused where it enters."""
BATCH_RECORDS_MAX = 16_384
"""A batch with more records than this is refused where it enters: half a million empty ones would fit into the bytes,
and be work for seconds."""


class Kind(IntEnum):
    CALL = 0
    REPLY = 1
    STREAM_OPEN = 2
    STREAM_MESSAGE = 3
    STREAM_CLOSE = 4
    STREAM_PAUSE = 5
    STREAM_RESUME = 6
    STREAM_SHARE = 7


class Method(IntEnum):
    """Numbers are for ever. 64 and up never leave a cluster."""

    HELLO = 1
    RANGE = 2
    PUT = 3
    DELETE_RANGE = 4
    TXN = 5
    COMPACT = 6
    WATCH = 7
    LEASE_GRANT = 8
    LEASE_REVOKE = 9
    LEASE_KEEP_ALIVE = 10
    LEASE_TIME_TO_LIVE = 11
    LEASE_LEASES = 12
    MEMBER_LIST = 13
    STATUS = 18
    HASH = 20
    HASH_KV = 21
    SNAPSHOT = 22
    MOVE_LEADER = 23
    ALARM = 25
    RANGE_STREAM = 26
    MEMBER_PUBLISH = 64
    LEASE_EXPIRE = 65
    LEASE_CHECKPOINT = 66
    LEASE_LEAD = 67


class Shape(NamedTuple):
    """What a method is on gRPC, and the messages it takes and gives."""

    path: str
    request: type[Message]
    response: type[Message]


METHODS: dict[Method, Shape] = {
    Method.HELLO: Shape("/kvorum.Node/Hello", pb.HelloRequest, pb.HelloResponse),
    Method.RANGE: Shape("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse),
    Method.PUT: Shape("/etcdserverpb.KV/Put", pb.PutRequest, pb.PutResponse),
    Method.DELETE_RANGE: Shape("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeRequest, pb.DeleteRangeResponse),
    Method.TXN: Shape("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse),
    Method.COMPACT: Shape("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse),
    Method.WATCH: Shape("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse),
    Method.LEASE_GRANT: Shape("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse),
    Method.LEASE_REVOKE: Shape("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
    Method.LEASE_KEEP_ALIVE: Shape(
        "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse
    ),
    Method.LEASE_TIME_TO_LIVE: Shape(
        "/etcdserverpb.Lease/LeaseTimeToLive", pb.LeaseTimeToLiveRequest, pb.LeaseTimeToLiveResponse
    ),
    Method.LEASE_LEASES: Shape("/etcdserverpb.Lease/LeaseLeases", pb.LeaseLeasesRequest, pb.LeaseLeasesResponse),
    Method.MEMBER_LIST: Shape("/etcdserverpb.Cluster/MemberList", pb.MemberListRequest, pb.MemberListResponse),
    Method.STATUS: Shape("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse),
    Method.HASH: Shape("/etcdserverpb.Maintenance/Hash", pb.HashRequest, pb.HashResponse),
    Method.HASH_KV: Shape("/etcdserverpb.Maintenance/HashKV", pb.HashKVRequest, pb.HashKVResponse),
    Method.SNAPSHOT: Shape("/etcdserverpb.Maintenance/Snapshot", pb.SnapshotRequest, pb.SnapshotResponse),
    Method.MOVE_LEADER: Shape("/etcdserverpb.Maintenance/MoveLeader", pb.MoveLeaderRequest, pb.MoveLeaderResponse),
    Method.RANGE_STREAM: Shape("/etcdserverpb.KV/RangeStream", pb.RangeRequest, pb.RangeStreamResponse),
    Method.ALARM: Shape("/etcdserverpb.Maintenance/Alarm", pb.AlarmRequest, pb.AlarmResponse),
}
"""What a client may call. The numbers between are kept for the rest of etcd's API, in its own order."""


class MalformedBatch(ValueError):
    """The frame is not a sequence of whole records."""


class Record(NamedTuple):
    method: int
    kind: int
    status: int
    id: int
    payload: bytes


def encode(method: int, kind: int, status: int, id: int, payload: bytes) -> bytes:
    return HEADER.pack(len(payload), method, kind, status, id) + payload


def decode(batch: bytes, records_max: int = 0, bytes_max: int = BATCH_BYTES_MAX) -> list[Record]:
    """Take a batch apart.

    Raises MalformedBatch if it is over `bytes_max`, has over `records_max` records (0: any number), or does not end
    where a record ends. Methods, kinds and payloads are not judged here.
    """
    size = len(batch)
    if size > bytes_max:
        raise MalformedBatch(f"batch of {size} bytes is over the limit of {bytes_max}")
    if records_max and size > records_max * HEADER.size:
        _count(batch, records_max)
    records = []
    unpack, at = HEADER.unpack_from, 0
    try:
        while at < size:
            length, method, kind, status, id = unpack(batch, at)
            at += 16
            end = at + length
            records.append(Record(method, kind, status, id, batch[at:end]))
            at = end
    except struct.error:
        raise MalformedBatch(f"batch of {size} bytes breaks off inside a record's header") from None
    if at != size:
        raise MalformedBatch(f"batch of {size} bytes breaks off inside a record's payload")
    return records


def _count(batch: bytes, records_max: int) -> None:
    """Raises MalformedBatch when the batch has more records; whether it is one is not judged."""
    at, left, last = 0, records_max, len(batch) - HEADER.size
    while at <= last:
        if not left:
            raise MalformedBatch(f"batch of over {records_max} records")
        left -= 1
        at += HEADER.size + int.from_bytes(batch[at : at + 4], "little")
