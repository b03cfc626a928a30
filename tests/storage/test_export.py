"""Snapshots for etcd's tools: what is in their buckets. That etcd takes them is in tests/system."""

from __future__ import annotations

import hashlib
import struct

import pytest

from kvorum import etcd_pb2 as pb
from storage import codec, export
from storage.engine import Engine
from storage.keyspace import Keyspace
from tests.storage.support import Store
from tests.storage.test_bolt import read


def exported(keyspace: Keyspace) -> dict[bytes, dict[bytes, bytes]]:
    """The buckets. The checksum is right, and the size what was said."""
    size, pieces = export.snapshot(keyspace)
    data = b"".join(pieces)
    assert len(data) == size + export.CHECKSUM_BYTES
    assert hashlib.sha256(data[:size]).digest() == data[size:]
    return {name: dict(entries) for name, entries in read(data[:size]).items()}


def place(main: int, sub: int = 0, *, deleted: bool = False) -> bytes:
    return struct.pack(">QcQ", main, b"_", sub) + b"t" * deleted


def test_an_empty_store_has_all_buckets_and_nothing_in_them(engine: Engine) -> None:
    buckets = exported(Keyspace(engine))
    assert set(buckets) >= {b"key", b"lease", b"meta", b"members", b"cluster", b"auth", b"alarm"}
    assert not any(content for name, content in buckets.items() if name != b"meta")


def test_every_change_is_there_and_all_leases(store: Store) -> None:
    store.grant(77, 500)
    store.grant(-77, 600)
    for value in (b"one", b"two"):
        store.write(pb.PutRequest(key=b"a\0b", value=value, lease=77))
    store.write(pb.DeleteRangeRequest(key=b"a", range_end=b"b"))
    puts = [pb.RequestOp(request_put=pb.PutRequest(key=key, value=b"")) for key in (b"x", b"y")]
    store.write(pb.TxnRequest(success=puts))
    buckets = exported(store.keyspace)
    key = {where: pb.KeyValue.FromString(kv) for where, kv in buckets[b"key"].items()}
    a = {"key": b"a\0b", "create_revision": 2, "lease": 77}
    assert key == {
        place(2): pb.KeyValue(**a, mod_revision=2, version=1, value=b"one"),
        place(3): pb.KeyValue(**a, mod_revision=3, version=2, value=b"two"),
        place(4, deleted=True): pb.KeyValue(key=b"a\0b"),
        place(5, 0): pb.KeyValue(key=b"x", create_revision=5, mod_revision=5, version=1),
        place(5, 1): pb.KeyValue(key=b"y", create_revision=5, mod_revision=5, version=1),
    }
    assert buckets[b"lease"] == {
        struct.pack(">q", 77): codec.int_field(b"\x08", 77) + codec.int_field(b"\x10", 500),
        struct.pack(">q", -77): codec.int_field(b"\x08", -77) + codec.int_field(b"\x10", 600),
    }
    index, term = store.keyspace.applied
    assert buckets[b"meta"] == {b"consistent_index": struct.pack(">Q", index), b"term": struct.pack(">Q", term)}


@pytest.mark.parametrize("swept", [False, True])
def test_after_a_compaction_the_state_at_its_revision_is_there(store: Store, swept: bool) -> None:
    """Both before the space is given back and after: etcd goes on with the sweep where it finds it unfinished."""
    for number in range(6):
        store.write(pb.PutRequest(key=b"a", value=b"%d" % number))
    store.write(pb.DeleteRangeRequest(key=b"a"))
    store.write(pb.PutRequest(key=b"b"))
    store.write(pb.CompactionRequest(revision=5))
    if swept:
        store.sweep()
    buckets = exported(store.keyspace)
    first = 5 if swept else 2
    assert list(buckets[b"key"]) == [*map(place, range(first, 8)), place(8, deleted=True), place(9)]
    assert buckets[b"meta"][b"scheduledCompactRev"] == place(5)
    assert buckets[b"meta"].get(b"finishedCompactRev") == (place(5) if swept else None)
