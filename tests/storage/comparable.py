"""What kvorum and etcd 3.5.1 must answer alike: requests without the cases in which they needn't, and bare answers.

Left out is where we mean to differ, or etcd says nothing definite: the order of ties when sorting; a sort target
without an order together with a limit (3.5.1 cuts first); negative revisions inside transactions; deletions inside
nested transactions (etcd finds an overlap with a put only in one order); two failed preconditions in one transaction
(3.5.1 looks at all puts first); keeping the value of a key that the same transaction deletes with an open end (3.5.1
panics). Headers of nested transactions are empty there.
"""

from __future__ import annotations

from typing import Any

from kvorum import etcd_pb2 as pb


def bare(response: Any) -> Any:
    response.header.CopyFrom(pb.ResponseHeader(revision=response.header.revision))
    if isinstance(response, pb.TxnResponse):
        without_nested_headers(response)
    return response


def without_nested_headers(response: pb.TxnResponse) -> None:
    for op in response.responses:
        if op.HasField("response_txn"):
            op.response_txn.ClearField("header")
            without_nested_headers(op.response_txn)


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
    request.sort_target = pb.RangeRequest.KEY
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
