"""A put that remembers what it needs of the key before writes the very bytes of one that looks it up."""

from __future__ import annotations

import random

import pytest

from storage import lives
from storage.keyspace import Keyspace
from storage.lives import Lives
from storage.memory import MemoryEngine
from tests.storage.support import contents
from tests.storage.test_determinism import a_log


@pytest.mark.parametrize("size", [0, 3, 100])
@pytest.mark.parametrize("seed", range(4))
def test_remembering_changes_nothing_that_is_written_or_answered(seed: int, size: int) -> None:
    """Puts, deletions, transactions and compactions of few keys, in turns of any length, with little to remember."""
    log, rng = a_log(seed), random.Random(seed)
    looking, remembering = Keyspace(MemoryEngine()), Keyspace(MemoryEngine())
    remembering._lives = Lives(size)
    at = 0
    while at < len(log):
        until = min(at + rng.choice([1, 1, 3, 20]), len(log))
        plain, quick = looking.begin(), remembering.begin(prev=rng.random() < 0.2)
        for index in range(at, until):
            assert plain.apply(index + 1, 1, log[index]) == quick.apply(index + 1, 1, log[index])
        told = [(change.revision, change.event) for change in plain.commit()]
        assert [(change.revision, change.event) for change in quick.commit()] == told
        at = until
    assert contents(looking.engine) == contents(remembering.engine)


def test_a_turn_that_is_dropped_leaves_no_memory() -> None:
    keyspace = Keyspace(MemoryEngine())
    before = dict(keyspace._lives._known)
    turn = keyspace.begin(prev=False)
    turn.apply(1, 1, a_log(1)[0])
    assert dict(keyspace._lives._known) == before


def test_only_so_many_are_remembered_the_oldest_forgotten_first() -> None:
    known = Lives(2)
    known.update({b"a": lives.pack(2, 2, 1), b"b": lives.pack(3, 3, 1), b"c": lives.pack(4, 4, 1)})
    assert (known.get(b"a"), known.get(b"b")) == (None, lives.pack(3, 3, 1))
    known.update({b"b": 0})
    assert known.get(b"b") is None


def test_a_key_that_comes_and_goes_takes_no_room() -> None:
    known = Lives(3)
    for mod in range(2, 100):
        known.update({b"a": lives.pack(mod, mod, 1)})
        known.update({b"a": 0})
    assert len(known._order) <= 6
    known.update({b"a": lives.pack(100, 100, 1)})
    assert known.get(b"a") == lives.pack(100, 100, 1)


def test_a_life_holds_numbers_of_any_size() -> None:
    largest = 2**63 - 1
    for create, mod, version in ((2, 2, 1), (largest - 1, largest, largest), (1, largest, 3)):
        life = lives.pack(create, mod, version)
        found = [life >> shift & lives.MASK for shift in (lives.CREATE, lives.MOD, lives.VERSION)]
        assert found == [create, mod, version]
