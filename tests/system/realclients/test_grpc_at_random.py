"""Random valid requests over gRPC at random members of kvorum and of etcd: every answer and error, field by field.

tests/storage/comparable.py says what is left out. Headers are compared by their revision, and by which of their other
fields are set at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kvorum import etcd_pb2 as pb
from tests.storage.comparable import tamed_for_all
from tests.storage.requests_at_random import Dice
from tests.system.realclients.calls import Members
from tests.system.realclients.pairs import NODES, Pair

REQUESTS = 600
"""For each seed: some 3 ms each on an idle machine."""


def draw(dice: Dice) -> Any:
    return tamed_for_all(dice.range() if dice.maybe(0.3) else dice.read_only_txn() if dice.maybe(0.1) else dice.write())


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
