"""Random valid requests over gRPC at random members of kvorum and of etcd: every answer and error, field by field.

tests/storage/comparable.py says what is left out; besides, reads of revisions in transactions that may write: where one
of them is refused, the member of etcd 3.5.1 that was asked does nothing, and the others do the puts. Headers are
compared by their revision, and by which of their other fields are set at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from kvorum import etcd_pb2 as pb
from kvorum.wire import METHODS
from tests.storage.comparable import bare, tamed
from tests.storage.requests_at_random import Dice
from tests.storage.support import METHOD_OF
from tests.system.realclients.etcds import NODES, Pair

REQUESTS = 600
"""For each seed: some 3 ms each on an idle machine."""
SECONDS = 60.0


class Members:
    """The members of one cluster, called over gRPC."""

    def __init__(self, endpoints: list[str]) -> None:
        self.channels = [grpc.insecure_channel(endpoint) for endpoint in endpoints]

    def close(self) -> None:
        for channel in self.channels:
            channel.close()

    def call(self, member: int, request: Any) -> Any:
        """The answer with a bare header and what was set in it, or the error's code and text."""
        shape = METHODS[METHOD_OF[type(request)]]
        call = self.channels[member].unary_unary(
            shape.path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=shape.response.FromString,
        )
        try:
            response = call(request, timeout=SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            return error.code(), error.details()
        header = [field.name for field, _ in response.header.ListFields()]
        return header, bare(request, response)


def draw(dice: Dice) -> Any:
    request = tamed(dice.range() if dice.maybe(0.3) else dice.read_only_txn() if dice.maybe(0.1) else dice.write())
    if isinstance(request, pb.TxnRequest) and writes(request):
        read_the_present(request)
    return request


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


@pytest.fixture
def clusters(both: Pair) -> Iterator[tuple[Members, Members]]:
    ours, theirs = Members(both.kvorum), Members(both.etcd)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("seed", range(4))
def test_answers_agree(clusters: tuple[Members, Members], seed: int) -> None:
    ours, theirs = clusters
    dice, member, refused, sure = Dice(seed), 0, 0, False
    dice.revision = ours.call(0, pb.RangeRequest(key=b"a"))[1].header.revision
    for number in range(REQUESTS):
        request = draw(dice)
        if isinstance(request, pb.TxnRequest) and not (request.success or request.failure):
            continue  # etcd doesn't wait for the newest state to answer it
        if isinstance(request, pb.RangeRequest) and sure and dice.maybe():
            request.serializable = True  # where the last request was answered: it has applied all that there is
        else:
            member = dice.random.randrange(NODES)
        mine, real = ours.call(member, request), theirs.call(member, request)
        assert mine == real, (number, request)
        sure = not isinstance(mine[1], str)
        if not sure:
            refused += 1
        else:
            dice.revision = mine[1].header.revision
    assert 0 < refused < REQUESTS / 2, "requests are to be valid, for the most part"
