"""Requests drawn from a seeded generator: few keys, so that they meet; every option, so that options meet."""

from __future__ import annotations

import random
from typing import Any

from kvorum import etcd_pb2 as pb

KEYS = [b"a", b"a\0", b"a\0\0", b"a\0\xff", b"a\x01", b"ab", b"b", b"b\xff", b"c", b"\0", b"\0\0", b"\xff", b"\xff\xff"]
ENDS = [*KEYS, b"\0", b"\0", b"\0", b"d", b"b", b"c"]

LEASES = [7, 8, -1, -(2**63)]
ALARMS = [(pb.NOSPACE, 1), (pb.CORRUPT, 1), (pb.NOSPACE, 2), (7, 1), (-7, 2**64 - 1), (pb.NONE, 1)]


class Dice:
    """`alarms`: now and then one is raised, and stands for a while."""

    def __init__(self, seed: int, *, alarms: bool = False) -> None:
        self.random = random.Random(seed)
        self.alarms = alarms
        self.revision = 1  # roughly the newest, told by the caller
        self.oldest = -1  # no revision below is asked for

    def maybe(self, odds: float = 0.3) -> bool:
        return self.random.random() < odds

    def key(self) -> bytes:
        return self.random.choice(KEYS)

    def end(self, odds: float = 0.5) -> bytes:
        return self.random.choice(ENDS) if self.maybe(odds) else b""

    def value(self) -> bytes:
        return self.random.choice([b"", b"\0", b"x", b"y", b"value", bytes(300)])

    def some_revision(self) -> int:
        return self.random.randint(max(self.revision - 12, self.oldest), self.revision + 1)

    def put(self) -> pb.PutRequest:
        request = pb.PutRequest(key=self.key(), value=self.value(), prev_kv=self.maybe())
        if self.maybe(0.1):
            request.ignore_value, request.value = True, b""
        if self.maybe(0.1):
            request.ignore_lease = True
        elif self.maybe(0.2):
            request.lease = self.random.choice(LEASES)
        return request

    def delete(self) -> pb.DeleteRangeRequest:
        return pb.DeleteRangeRequest(key=self.key(), range_end=self.end(), prev_kv=self.maybe())

    def range(self, odds: float = 0.5) -> pb.RangeRequest:
        request = pb.RangeRequest(key=self.key(), range_end=self.end(0.8))
        if self.maybe(odds):
            request.revision = self.some_revision()
        if self.maybe():
            request.limit = self.random.randint(-1, 6)
        if self.maybe():
            request.sort_order, request.sort_target = self.random.randint(0, 2), self.random.randint(0, 4)
        request.keys_only, request.count_only = self.maybe(0.2), self.maybe(0.1)
        for field in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if self.maybe(0.1):
                setattr(request, field, self.some_revision())
        return request

    def compare(self) -> pb.Compare:
        compare = pb.Compare(result=self.random.randint(0, 3), target=self.random.randint(0, 4), key=self.key())
        field = self.random.choice(["version", "create_revision", "mod_revision", "value", "lease", ""])
        if field == "value":
            compare.value = self.value()
        elif field:
            setattr(compare, field, self.random.choice([0, 1, 2, self.some_revision()]))
        if self.maybe():
            compare.range_end = self.end()
        return compare

    def op(self, depth: int) -> pb.RequestOp:
        kind = self.random.choice(["put", "put", "delete", "range", "txn"])
        if kind == "put":
            return pb.RequestOp(request_put=self.put())
        if kind == "delete":
            return pb.RequestOp(request_delete_range=self.delete())
        if kind == "txn" and depth < 3:
            return pb.RequestOp(request_txn=self.txn(depth + 1))
        return pb.RequestOp(request_range=self.range(0.2))

    def ops(self, depth: int) -> list[pb.RequestOp]:
        return [self.op(depth) for _ in range(self.random.choice([0, 1, 1, 2, 3, 4]))]

    def txn(self, depth: int = 0) -> pb.TxnRequest:
        compares = [self.compare() for _ in range(self.random.choice([0, 1, 1, 2]))]
        return pb.TxnRequest(compare=compares, success=self.ops(depth), failure=self.ops(depth))

    def read_only_txn(self) -> pb.TxnRequest:
        compares = [self.compare() for _ in range(self.random.choice([0, 1, 2]))]
        success, failure = ([pb.RequestOp(request_range=self.range()) for _ in range(n)] for n in (2, 1))
        return pb.TxnRequest(compare=compares, success=success, failure=failure)

    def compact(self) -> pb.CompactionRequest:
        return pb.CompactionRequest(revision=self.random.randint(self.revision - 15, self.revision + 1))

    def grant(self) -> pb.LeaseGrantRequest:
        return pb.LeaseGrantRequest(ID=self.random.choice(LEASES), TTL=self.random.choice([2, 60, 9_000_000_000]))

    def revoke(self) -> pb.LeaseRevokeRequest:
        return pb.LeaseRevokeRequest(ID=self.random.choice(LEASES))

    def alarm(self) -> pb.AlarmRequest:
        type, member = self.random.choices(ALARMS, [4, 4, 1, 1, 1, 1])[0]
        action = self.random.choices([pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE, 0, 9], [2, 15, 1, 1])[0]
        return pb.AlarmRequest(action=action, memberID=member, alarm=type)  # type: ignore[arg-type]

    def write(self) -> Any:
        if self.alarms and self.maybe(0.08):
            return self.alarm()
        kinds = ["put", "delete", "txn", "compact", "grant", "revoke"]
        kind = self.random.choices(kinds, [50, 15, 30, 2, 6, 2])[0]
        return getattr(self, kind)()
