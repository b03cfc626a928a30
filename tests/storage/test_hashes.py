"""HashKV and Hash: the same where the same was applied, another where one byte is another, whatever is compacted, swept
or applied meanwhile (api.md 10.4)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage import hashes
from storage.codec import DELETE, parse_event
from storage.keyspace import Keyspace, Scan
from storage.memory import MemoryEngine
from storage.reads import SLICE_BYTES
from tests.storage.support import Store, contents, finished
from tests.storage.test_determinism import a_log, replayed


def hash_kv(keyspace: Keyspace, revision: int = 0) -> pb.HashKVResponse:
    request = pb.HashKVRequest(revision=revision)
    result = finished(keyspace.read(Method.HASH_KV, request.SerializeToString()))
    if result.status:
        raise errors.from_wire(result.status, result.body.decode())
    return pb.HashKVResponse.FromString(result.body)


def hash_all(keyspace: Keyspace) -> int:
    return int(pb.HashResponse.FromString(finished(keyspace.read(Method.HASH, b"")).body).hash)


def member(log: list[bytes], seed: int, *, sweeps: bool) -> Keyspace:
    keyspace = Keyspace(MemoryEngine())
    replayed(keyspace, log, random.Random(seed), sweeps)
    return keyspace


@pytest.mark.parametrize("seed", range(3))
def test_members_that_applied_the_same_log_agree_at_every_revision(seed: int) -> None:
    """However their turns were cut, and however far they have swept."""
    log = a_log(seed)
    members = [member(log, 1, sweeps=False), member(log, 2, sweeps=True), member(log, 3, sweeps=True)]
    while members[2].sweep():
        pass
    compacted, newest = members[0].compacted, members[0].revision
    assert compacted > 1
    assert len({len(contents(each.engine)) for each in members}) > 1, "nothing was left to be swept"
    told = [[hash_kv(each, revision) for revision in range(compacted, newest + 1)] for each in members]
    assert told[0] == told[1] == told[2]
    assert [(each.compact_revision, each.hash_revision) for each in told[0]] == [
        (compacted, revision) for revision in range(compacted, newest + 1)
    ]
    assert len({each.hash for each in told[0]}) == len(told[0])
    assert hash_kv(members[0]) == told[0][-1]


def test_what_comes_later_changes_nothing(store: Store) -> None:
    for number in range(10):
        store.put(b"key%d" % (number % 3), b"%d" % number)
    before = hash_kv(store.keyspace, 6)
    store.delete(b"key1")
    store.put(b"key9", b"")
    assert hash_kv(store.keyspace, 6) == before


def test_a_store_in_which_one_value_is_another_has_other_hashes() -> None:
    log = a_log(4)
    keyspace = member(log, 1, sweeps=True)
    while keyspace.sweep():
        pass
    kv, everything, engine = hash_kv(keyspace), hash_all(keyspace), keyspace.engine

    def changed(key: bytes, value: bytes | None) -> tuple[bool, bool]:
        """Whether each hash notices."""
        before = engine.get(key)
        assert before is not None
        batch = engine.batch()
        batch.delete(key) if value is None else batch.put(key, value)
        engine.write(batch)
        found = hash_kv(keyspace) != kv, hash_all(keyspace) != everything
        batch = engine.batch()
        batch.put(key, before)
        engine.write(batch)
        return found

    seen = 0
    for key, value in contents(engine).items():
        in_history = key[:1] == b"r"
        if in_history:
            event = parse_event(value)
            if event.type == DELETE and event.kv.mod_revision <= keyspace.compacted:
                continue  # deleted at the compaction point: no more than a watch from there is told
            event.kv.lease += 1
            seen += 1
            assert changed(key, event.SerializeToString()) == (True, True)
        assert changed(key, value + b"\0")[1]
    assert seen > 50
    assert (hash_kv(keyspace), hash_all(keyspace)) == (kv, everything)


def test_which_revisions_there_are(store: Store) -> None:
    assert hash_kv(store.keyspace) == pb.HashKVResponse(compact_revision=-1, hash_revision=1)
    for number in range(6):
        store.put(b"k", b"%d" % number)
    found = hash_kv(store.keyspace, 4)
    assert (found.compact_revision, found.hash_revision) == (-1, 4)
    store.compact(4)
    assert (hash_kv(store.keyspace, 4).compact_revision, hash_kv(store.keyspace, 4).hash_revision) == (4, 4)
    with pytest.raises(errors.Compacted):
        hash_kv(store.keyspace, 3)
    with pytest.raises(errors.FutureRevision):
        hash_kv(store.keyspace, 8)


@pytest.fixture
def large(store: Store) -> Store:
    """Of about four slices."""
    for number in range(8):
        puts = [pb.PutRequest(key=b"%d/%d" % (number, each), value=bytes(SLICE_BYTES // 40)) for each in range(20)]
        store.outcome(*puts)
    return store


def test_it_takes_its_time_in_slices_and_sees_the_moment_it_began(large: Store) -> None:
    whole = hash_kv(large.keyspace), hash_all(large.keyspace)
    kv, everything = large.keyspace.read(Method.HASH_KV, b""), large.keyspace.read(Method.HASH, b"")
    assert isinstance(kv, Scan)
    assert isinstance(everything, Scan)
    large.put(b"0/0", b"meanwhile")
    found = pb.HashKVResponse.FromString(finished(kv).body), pb.HashResponse.FromString(finished(everything).body).hash
    assert found == whole
    assert hash_all(large.keyspace) != whole[1]


@pytest.mark.parametrize("swept", [False, True])
def test_a_compaction_meanwhile_gives_the_answer_of_after_it(large: Store, swept: bool) -> None:
    newest = large.keyspace.revision
    large.compact(newest // 2)
    scan = large.keyspace.read(Method.HASH_KV, b"")
    assert isinstance(scan, Scan)
    for number in range(20):
        large.delete(b"0/%d" % number)
    large.compact(newest)
    if swept:
        large.sweep()
    found = pb.HashKVResponse.FromString(finished(scan).body)
    assert (found.compact_revision, found.hash_revision) == (newest, newest)
    assert found == hash_kv(large.keyspace, newest)


def test_a_compaction_of_all_that_it_was_to_look_at(large: Store) -> None:
    newest = large.keyspace.revision
    large.compact(newest // 2)
    scan = large.keyspace.read(Method.HASH_KV, b"")
    large.put(b"more")
    large.compact(newest + 1)
    result = finished(scan)
    assert (result.status, result.body) == (errors.Compacted.code, errors.Compacted.text.encode())


def test_it_gives_up_when_there_is_a_compaction_at_every_slice(large: Store) -> None:
    at = large.keyspace.revision - hashes.ATTEMPTS - 5
    moving: Callable[[], int] = lambda: points.pop(0)  # noqa: E731
    points = [at + each for each in range(50)]
    with pytest.raises(errors.TooManyRequests):
        for _ in hashes.hash_kv(large.engine, 0, 1 << 40, moving, Eager()):
            pass


class Eager(hashes.Meter):
    """A slice for every key."""

    def used(self, cost: int) -> bool:
        return True
