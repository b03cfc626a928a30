"""The short way through a batch and the long way write the same bytes and give the same answers."""

from __future__ import annotations

import random

import pytest

from kvorum import wire
from kvorum.wire import Kind
from native.plain import Scanner
from storage.codec import pack_proposal
from storage.keyspace import Keyspace
from storage.memory import MemoryEngine
from tests.native.batches import request
from tests.storage.requests_at_random import Dice
from tests.storage.support import contents


class Blind(Scanner):
    """Sees nothing plain anywhere."""

    def scan(self, batch: bytes) -> None:  # type: ignore[override]
        return None


def log(seed: int) -> list[bytes]:
    dice, entries = Dice(seed, alarms=True), []
    for number in range(1, 60):
        dice.revision = 4 * number
        batch = [wire.encode(*_record(dice, id)) for id in range(dice.random.randint(1, 12))]
        entries.append(pack_proposal(3, 1, number, b"".join(batch)))
    return entries


def _record(dice: Dice, id: int) -> tuple[int, int, int, int, bytes]:
    method, payload = request(dice)
    return method, Kind.CALL, 0, id, payload


@pytest.mark.parametrize("prev", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_both_ways_lead_to_the_same(seed: int, prev: bool) -> None:
    short, long, silent = (Keyspace(MemoryEngine()) for _ in range(3))
    long._scanner = Blind()
    dice, at, entries = random.Random(seed), 0, log(seed)
    while at < len(entries):
        until = min(at + dice.choice([1, 1, 4]), len(entries))
        turns = [keyspace.begin(prev=prev) for keyspace in (short, long, silent)]
        for index in range(at, until):
            outcome = turns[0].apply(index + 1, 1, entries[index])
            assert outcome == turns[1].apply(index + 1, 1, entries[index])
            turns[2].apply(index + 1, 1, entries[index], answers=False)
        changes = [turn.commit() for turn in turns]
        if prev:
            assert changes[0] == changes[1] == changes[2]
        at = until
    assert contents(short.engine) == contents(long.engine) == contents(silent.engine)
