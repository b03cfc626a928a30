"""What kvorum and etcd 3.5.1 must answer alike: requests without the cases in which they needn't, and bare answers.

Left out is where we mean to differ, or etcd says nothing definite: the order of ties when sorting; a sort target
without an order together with a limit (3.5.1 cuts first); negative revisions inside transactions; deletions inside
nested transactions (etcd finds an overlap with a put only in one order); two failed preconditions in one transaction
(3.5.1 looks at all puts first); keeping the value of a key that the same transaction deletes with an open end (3.5.1
panics). Headers of nested transactions are empty there. Of a lease the time that is left runs, and its keys and the
list of leases come in any order.
"""

from __future__ import annotations

import itertools
from typing import Any

from kvorum import etcd_pb2 as pb


def bare(request: Any, response: Any) -> Any:
    """The answer without what may differ: changed in place."""
    response.header.CopyFrom(pb.ResponseHeader(revision=response.header.revision))
    if isinstance(response, pb.TxnResponse):
        bare_txn(request, response)
    elif isinstance(response, pb.RangeResponse):
        bare_range(request, response)
    elif isinstance(response, pb.LeaseTimeToLiveResponse):
        response.TTL = min(response.TTL, 1)
        response.keys.sort()
    elif isinstance(response, pb.LeaseLeasesResponse):
        response.leases.sort(key=lambda lease: lease.ID)
    return response


def bare_txn(request: pb.TxnRequest, response: pb.TxnResponse) -> None:
    done = request.success if response.succeeded else request.failure
    for asked, told in zip(done, response.responses, strict=True):
        if told.HasField("response_txn"):
            told.response_txn.ClearField("header")
            bare_txn(asked.request_txn, told.response_txn)
        elif told.HasField("response_range"):
            bare_range(asked.request_range, told.response_range)


SORTED_BY = {
    pb.RangeRequest.VERSION: "version",
    pb.RangeRequest.CREATE: "create_revision",
    pb.RangeRequest.MOD: "mod_revision",
    pb.RangeRequest.VALUE: "value",
}


def bare_range(request: pb.RangeRequest, response: pb.RangeResponse) -> None:
    """Put ties in the order of their keys; of those that a limit has cut apart only say how many are left."""
    by = SORTED_BY.get(request.sort_target)
    if by is None:
        return
    ties = [list(group) for _, group in itertools.groupby(response.kvs, lambda kv: getattr(kv, by))]
    for tie in ties:
        tie.sort(key=lambda kv: kv.key)
    if response.more and ties:
        ties[-1] = [pb.KeyValue(**{by: getattr(kv, by)}) for kv in ties[-1]]
    kvs = [kv for tie in ties for kv in tie]
    response.ClearField("kvs")
    response.kvs.extend(kvs)


def tamed_for_all(request: Any) -> Any:
    """Besides, without reads of revisions in transactions that may write: where one of them is refused, the member of
    etcd 3.5.1 that was asked does nothing, and the others do the puts.
    """
    request = tamed(request)
    if isinstance(request, pb.TxnRequest) and writes(request):
        read_the_present(request)
    return request


def tamed(request: Any) -> Any:
    if isinstance(request, pb.RangeRequest):
        tame_range(request)
    elif isinstance(request, pb.PutRequest) and request.lease:
        request.ignore_value = False
    elif isinstance(request, pb.LeaseGrantRequest):
        request.TTL = 1_000_000
    elif isinstance(request, pb.TxnRequest):
        tame_txn(request, 0)
    return request


def tame_range(request: pb.RangeRequest) -> None:
    if request.sort_target != pb.RangeRequest.KEY:
        if request.sort_order == pb.RangeRequest.NONE:
            request.limit = 0
        if request.sort_target == pb.RangeRequest.VALUE:
            request.keys_only = False  # or ties couldn't be told
    request.revision = max(request.revision, 0)


def tame_txn(txn: pb.TxnRequest, depth: int) -> None:
    for op in (*txn.success, *txn.failure):
        if op.HasField("request_range"):
            tame_range(op.request_range)
        elif op.HasField("request_put"):
            op.request_put.lease = 0
            op.request_put.ignore_value = op.request_put.ignore_lease = False
        elif op.HasField("request_txn"):
            tame_txn(op.request_txn, depth + 1)
        elif depth:
            op.request_range.key = op.request_delete_range.key


def writes(txn: pb.TxnRequest) -> bool:
    return any(
        writes(op.request_txn) if op.HasField("request_txn") else not op.HasField("request_range")
        for op in (*txn.success, *txn.failure)
    )


def read_the_present(txn: pb.TxnRequest) -> None:
    for op in (*txn.success, *txn.failure):
        if op.HasField("request_range"):
            op.request_range.revision = 0
        elif op.HasField("request_txn"):
            read_the_present(op.request_txn)
