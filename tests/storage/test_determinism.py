"""Members that apply the same log hold the same bytes: Reliability D8, T5."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from storage.engine import Engine
from storage.keyspace import Keyspace, Result
from storage.memory import LossyEngine, MemoryEngine
from tests.storage.model import Model
from tests.storage.requests_at_random import Dice
from tests.storage.support import contents, entry
from tests.storage.test_model import modelled

ENTRIES = 300


def a_log(seed: int) -> list[bytes]:
    """Entries with requests of every kind, from three origins, some of them twice."""
    dice, model = Dice(seed, alarms=True), Model()
    log: list[bytes] = []
    while len(log) < ENTRIES:
        wanted = []
        for _ in range(dice.random.randint(1, 6)):
            dice.revision = model.revision
            wanted.append(dice.write())
            modelled(model, wanted[-1])
        log.append(entry(len(log) + 1, *wanted, origin=dice.random.randint(1, 3)))
        if dice.maybe(0.1):
            log.append(dice.random.choice(log))
    return log


def replayed(keyspace: Keyspace, log: list[bytes], cuts: random.Random, sweeps: bool) -> list[Result]:
    results = []
    while keyspace.applied[0] < len(log):
        turn = keyspace.begin()
        for _ in range(min(cuts.choice([1, 1, 3, 20]), len(log) - turn.index)):
            results += turn.apply(turn.index + 1, 1, log[turn.index]).results
        turn.commit()
        while sweeps and cuts.random() < 0.4 and keyspace.sweep():
            pass
    return results


def digest(engine: Engine) -> str:
    found = hashlib.sha256()
    for key, value in engine.scan(b"\0", b"\xff"):
        found.update(b"%d %d " % (len(key), len(value)) + key + value)
    return found.hexdigest()


@pytest.mark.parametrize("seed", range(3))
def test_turns_and_sweeps_make_no_difference_to_the_bytes(engine: Engine, seed: int) -> None:
    log = a_log(seed)
    one, other = Keyspace(MemoryEngine()), Keyspace(engine)
    results = replayed(one, log, random.Random(1), sweeps=False)
    assert replayed(other, log, random.Random(seed + 2), sweeps=True) == results
    while one.sweep():
        pass
    while other.sweep():
        pass
    assert contents(one.engine) == contents(other.engine)


def test_the_hash_seed_makes_no_difference_to_the_bytes() -> None:
    """Reliability T5: neither the order of a set nor of a dictionary of bytes may be seen in what is stored."""
    found = {
        subprocess.run(
            [sys.executable, "-m", "tests.storage.test_determinism"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(found) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_at_any_batch_changes_nothing_in_the_end(seed: int) -> None:
    """Reliability T1: whatever prefix survives, applying the log from the applied index on gives the same answers and
    the same bytes."""
    log = a_log(seed)
    whole = Keyspace(MemoryEngine())
    answers = replayed(whole, log, random.Random(0), sweeps=False)
    starts = [0]
    fresh = Keyspace(MemoryEngine())
    for data in log:
        turn = fresh.begin()
        starts.append(starts[-1] + len(turn.apply(turn.index + 1, 1, data).results))
        turn.commit()
    for lost in range(0, 100, 3):
        engine = LossyEngine()
        keyspace = Keyspace(engine)
        replayed(keyspace, log[:200], random.Random(lost), sweeps=False)
        engine.crash(max(engine.unflushed - lost, 0))
        survived = Keyspace(engine)
        index = survived.applied[0]
        prefix = Keyspace(MemoryEngine())
        replayed(prefix, log[:index], random.Random(lost), sweeps=False)
        assert contents(engine) == contents(prefix.engine), "an exact prefix"
        assert replayed(survived, log, random.Random(lost), sweeps=False) == answers[starts[index] :]
        assert contents(engine) == contents(whole.engine)


if __name__ == "__main__":
    space = Keyspace(MemoryEngine())
    space_results = replayed(space, a_log(9), random.Random(9), sweeps=True)
    print(hashlib.sha256(repr(space_results).encode()).hexdigest(), digest(space.engine))
