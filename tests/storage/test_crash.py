"""kill -9 of a process that writes to RocksDB: what is found is an exact prefix of what it wrote. Reliability T1, T8.

The child applies a log that only depends on the seed, as fast as it can, flushing now and then, with memtables so small
that RocksDB flushes of its own accord, and reports each mark that is durable. The parent kills it at a random moment,
opens the store, applies the same log to a memory engine up to the applied index that it finds, and compares every byte.
Then the next child goes on from there.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from rocksdict import Rdict

from kvorum import etcd_pb2 as pb
from storage import codec, rocks
from storage.keyspace import Keyspace
from storage.memory import MemoryEngine
from storage.rocks import RocksEngine
from tests.storage.support import contents, entry

KEYS = 300


def log_entry(index: int) -> bytes:
    """Entry `index`, the same in every process."""
    dice = random.Random(index)
    requests: list[pb.PutRequest | pb.DeleteRangeRequest | pb.CompactionRequest] = []
    for _ in range(dice.randint(1, 30)):
        number = dice.randrange(KEYS)
        if dice.random() < 0.1:
            requests.append(pb.DeleteRangeRequest(key=b"k%04d" % number, range_end=b"k%04d" % (number + 3)))
        else:
            requests.append(pb.PutRequest(key=b"k%04d" % number, value=dice.randbytes(dice.choice([10, 300, 2000]))))
    if index % 50 == 0:
        requests.append(pb.CompactionRequest(revision=index * 5))
    return entry(index, *requests)


def child(path: str) -> None:
    """Write for ever. Each line on stdout is an applied index that is durable."""
    engine = RocksEngine(Path(path))
    keyspace, told = Keyspace(engine), 0
    dice = random.Random(keyspace.applied[0])
    print("0", flush=True)
    while True:
        turn = keyspace.begin()
        for _ in range(dice.randint(1, 5)):
            turn.apply(turn.index + 1, 1, log_entry(turn.index + 1))
        turn.commit()
        keyspace.sweep()
        if dice.random() < 0.05:
            engine.begin_flush(keyspace.applied[0])
        if engine.flushed() > told:
            told = engine.flushed()
            print(told, flush=True)


def killed(path: Path, after_seconds: float, *, opening: bool = False) -> int:
    """Let a child write for a while, or perhaps only open the store, and kill it. Returns the newest index that it
    called durable."""
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.storage.test_crash", str(path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert running.stdout is not None
    with running.stdout:
        try:
            assert opening or running.stdout.readline() == "0\n"
            time.sleep(after_seconds)  # a real process: it runs by the clock
        finally:
            running.send_signal(signal.SIGKILL)
            running.wait()
        told = [line for line in running.stdout.read().split("\n")[:-1] if line]
    return int(told[-1]) if told else 0


def check(path: Path, expected: Keyspace, durable: int) -> int:
    """The store in `path` must be `expected` as of some applied index >= `durable`; returns that index."""
    assert Rdict.list_cf(str(path)) == ["default"], "Reliability T1: one column family"
    engine = RocksEngine(path)
    try:
        found = Keyspace(engine)
        index = found.applied[0]
        assert index >= durable, "what was called durable is gone"
        while expected.applied[0] < index:
            turn = expected.begin()
            turn.apply(turn.index + 1, 1, log_entry(turn.index + 1))
            turn.commit()
        assert expected.applied[0] == index
        for keyspace in (found, expected):
            while keyspace.sweep():
                pass
        assert (found.revision, found.compacted) == (expected.revision, expected.compacted)
        assert contents(engine) == contents(expected.engine)
        consistent(found)
    finally:
        engine.close()
    return index


def consistent(keyspace: Keyspace) -> None:
    """The tables agree with each other: every newest state is the last event of its key, and nothing else is stored."""
    engine = keyspace.engine
    newest: dict[bytes, pb.Event] = {}
    places = []
    for place, event in engine.scan(b"r", b"s"):
        told = pb.Event.FromString(event)
        newest[told.kv.key] = told
        places.append(codec.revision_place(place))
        assert engine.get(codec.history_key(told.kv.key, *places[-1])) is not None
    assert all(one < other for one, other in pairwise(places))
    assert len(list(engine.scan_keys(b"h", b"i"))) == len(places)
    alive = {key: told.kv for key, told in newest.items() if told.type == pb.Event.PUT}
    assert {key[1:]: pb.KeyValue.FromString(kv) for key, kv in engine.scan(b"k", b"l")} == alive
    assert not places or places[-1][0] <= keyspace.revision


def cycles(path: Path, count: int, seed: int) -> list[int]:
    dice = random.Random(seed)
    expected = Keyspace(MemoryEngine())
    found = []
    for _ in range(count):
        if dice.random() < 0.3:
            killed(path, dice.uniform(0.1, 0.5), opening=True)
        durable = killed(path, dice.uniform(0.0, 0.4))
        found.append(check(path, expected, durable))
    return found


def test_kill_leaves_an_exact_prefix(tmp_path: Path) -> None:
    found = cycles(tmp_path / "store", 15, seed=1)
    assert found == sorted(found)
    assert found[-1] > 50, "the children got nowhere"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_kill_leaves_an_exact_prefix_again_and_again(tmp_path: Path, seed: int) -> None:
    cycles(tmp_path / "store", 100, seed)


@pytest.mark.parametrize("damage", ["none", "an event gone", "a value changed", "the index moved", "less than durable"])
def test_the_checker_notices(tmp_path: Path, damage: str) -> None:
    """A test that cannot fail proves nothing."""
    path = tmp_path / "store"
    engine = RocksEngine(path)
    turn = Keyspace(engine).begin()
    for index in range(1, 6):
        turn.apply(index, 1, log_entry(index))
    turn.commit()
    batch = engine.batch()
    place, event = next(iter(engine.scan(b"r", b"s")))
    state = codec.unpack_state(engine.get(codec.STATE) or b"")
    if damage == "an event gone":
        batch.delete(place)
    elif damage == "a value changed":
        batch.put(place, event + b"\x08\x00")
    elif damage == "the index moved":
        batch.put(codec.STATE, codec.pack_state(state._replace(applied=4)))
    engine.write(batch)
    engine.begin_flush(1)
    while engine.flushed() < 1:
        pass
    engine.close()
    durable = 6 if damage == "less than durable" else 0
    if damage == "none":
        assert check(path, Keyspace(MemoryEngine()), durable) == 5
    else:
        with pytest.raises(AssertionError):
            check(path, Keyspace(MemoryEngine()), durable)


if __name__ == "__main__":
    rocks.MEMTABLE_BYTES = 64 << 10
    sys.stdout = os.fdopen(sys.stdout.fileno(), "w", buffering=1)
    child(sys.argv[1])
