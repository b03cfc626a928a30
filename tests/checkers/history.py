"""What clients did and were told: the only thing a checker believes.

    called ──▶ answered              done, with this answer
           ├─▶ refused               certainly not done (errors.Refused, errors.Unavailable)
           └─▶ (nothing, Ambiguous)  maybe: done at most once, at any moment after the call, or never

Requests and answers are the etcd messages that were on the wire, so nothing is translated on the way to a checker.
Every value that is put must be unlike every other in the history; only then does a value say which call wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvorum import etcd_pb2 as pb
from kvorum.errors import Ambiguous, KvorumError

LeaseRequest = (
    pb.LeaseGrantRequest
    | pb.LeaseRevokeRequest
    | pb.LeaseKeepAliveRequest
    | pb.LeaseTimeToLiveRequest
    | pb.LeaseLeasesRequest
)
LeaseAnswer = (
    pb.LeaseGrantResponse
    | pb.LeaseRevokeResponse
    | pb.LeaseKeepAliveResponse
    | pb.LeaseTimeToLiveResponse
    | pb.LeaseLeasesResponse
)
"""Not for the checkers here: tests.simulation.ledger judges them."""
Request = pb.PutRequest | pb.DeleteRangeRequest | pb.RangeRequest | pb.TxnRequest | pb.CompactionRequest | LeaseRequest
Answer = (
    pb.PutResponse | pb.DeleteRangeResponse | pb.RangeResponse | pb.TxnResponse | pb.CompactionResponse | LeaseAnswer
)


@dataclass(slots=True, eq=False)
class Operation:
    """One call. Times are of one clock, in any unit; `returned` None: no answer of any kind has come."""

    id: int
    client: int
    member: int
    called: float
    request: Request
    returned: float | None = None
    answer: Answer | None = None
    error: KvorumError | None = None

    @property
    def maybe(self) -> bool:
        return self.answer is None and (self.error is None or isinstance(self.error, Ambiguous))

    @property
    def refused(self) -> bool:
        return self.answer is None and not self.maybe

    def __str__(self) -> str:
        end = "..." if self.returned is None else f"{self.returned:g}"
        told = brief(self.answer) if self.answer is not None else repr(self.error) if self.error else "no answer"
        return (
            f"#{self.id} client {self.client} at member {self.member} [{self.called:g}, {end}] "
            f"{brief(self.request)} -> {told}"
        )


def brief(message: object) -> str:
    """A message on one line."""
    return f"{type(message).__name__}({' '.join(str(message).split())})"


def revision_of(answer: Answer) -> int:
    return int(answer.header.revision)


def wrote(answer: object) -> bool:
    """Whether the operation that was answered so has made a revision of its own."""
    if isinstance(answer, pb.PutResponse):
        return True
    if isinstance(answer, pb.DeleteRangeResponse):
        return answer.deleted > 0
    if isinstance(answer, pb.TxnResponse):
        return any(wrote(getattr(op, str(op.WhichOneof("response")))) for op in answer.responses)
    return False


def serializable(request: object) -> bool:
    """Whether a stale answer is a right answer (etcd: a txn of serializable ranges alone is serializable)."""
    if isinstance(request, pb.RangeRequest):
        return request.serializable
    if isinstance(request, pb.TxnRequest):
        ops = [*request.success, *request.failure]
        return all(op.WhichOneof("request") == "request_range" and op.request_range.serializable for op in ops)
    return False


def values_put(request: object) -> Iterator[bytes]:
    """Every value that the request could write, in whichever branch."""
    if isinstance(request, pb.PutRequest):
        yield request.value
    elif isinstance(request, pb.TxnRequest):
        for op in [*request.success, *request.failure]:
            yield from values_put(getattr(op, str(op.WhichOneof("request"))))


def deletes(request: object) -> bool:
    """Whether the request could delete, in whichever branch."""
    if isinstance(request, pb.TxnRequest):
        ops = [*request.success, *request.failure]
        return any(deletes(getattr(op, str(op.WhichOneof("request")))) for op in ops)
    return isinstance(request, pb.DeleteRangeRequest)


def pairs_seen(answer: object) -> Iterator[pb.KeyValue]:
    """Every key-value pair that the answer shows."""
    if isinstance(answer, pb.RangeResponse):
        yield from answer.kvs
    elif isinstance(answer, pb.PutResponse):
        if answer.HasField("prev_kv"):
            yield answer.prev_kv
    elif isinstance(answer, pb.DeleteRangeResponse):
        yield from answer.prev_kvs
    elif isinstance(answer, pb.TxnResponse):
        for op in answer.responses:
            yield from pairs_seen(getattr(op, str(op.WhichOneof("response"))))


def ranges_touched(request: object) -> Iterator[tuple[bytes, bytes]]:
    """Every (key, range_end) that the request reads, writes or compares, in whichever branch."""
    if isinstance(request, pb.PutRequest):
        yield request.key, b""
    elif isinstance(request, pb.RangeRequest | pb.DeleteRangeRequest):
        yield request.key, request.range_end
    elif isinstance(request, pb.TxnRequest):
        for compare in request.compare:
            yield compare.key, compare.range_end
        for op in [*request.success, *request.failure]:
            yield from ranges_touched(getattr(op, str(op.WhichOneof("request"))))
