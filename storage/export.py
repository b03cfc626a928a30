"""A store as etcd's own tools take it: a snapshot file, to be restored with `etcdutl snapshot restore`.

    r  changes    ──▶ bucket key      main u64 BE _ sub u64 BE [t]  ->  KeyValue, of a deletion the key alone
    l  leases     ──▶ bucket lease    id u64 BE  ->  Lease{ID, TTL, RemainingTTL}
    m  state      ──▶ bucket meta     consistent_index, term, scheduledCompactRev, finishedCompactRev
       the rest of etcd's buckets are there and empty: who the members are is said at the restore

Behind the database comes its SHA-256, which the tools check. Revisions, versions, leases and what of the past is not
compacted are the same there as here. It is walked through twice, once to find out how large it will be; what is read
must not change meanwhile. Pure.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

from storage import bolt, codec
from storage.engine import Engine
from storage.keyspace import Keyspace

CHECKSUM_BYTES = 32

_REVISION = struct.Struct(">QcQ")
_U64 = struct.Struct(">Q")
_MASK = (1 << 64) - 1
_EMPTY = (b"alarm", b"auth", b"authRoles", b"authUsers", b"cluster", b"members", b"members_removed")
_PUT = codec.put_event(b"")[0]


def snapshot(keyspace: Keyspace) -> tuple[int, Iterator[bytes]]:
    """The size of the database in bytes, and its bytes in order, in pieces of some KiB, the checksum behind them.

    Finding out the size takes about half of the time, and that before this returns.
    """
    buckets: dict[bytes, bolt.Source] = dict.fromkeys(_EMPTY, list)
    buckets[b"key"] = lambda: _changes(keyspace.engine)
    buckets[b"lease"] = lambda: _leases(keyspace)
    buckets[b"meta"] = lambda: sorted(_meta(keyspace))
    plan = bolt.plan(buckets)
    return plan.size, _checked(bolt.pages(buckets, plan))


def _checked(pages: Iterator[bytes]) -> Iterator[bytes]:
    checksum = hashlib.sha256()
    for page in pages:
        checksum.update(page)
        yield page
    yield checksum.digest()


def _changes(engine: Engine) -> Iterator[bolt.Entry]:
    for place, event in engine.scan(codec.revision_key(0, 0), codec.REVISIONS + b"\xff" * 13):
        main, sub = codec.revision_place(place)
        key = _REVISION.pack(main, b"_", sub)
        if event[0] == _PUT:
            yield key, codec.event_kv(event)
        else:
            yield key + b"t", codec.field(b"\x0a", codec.parse_event(event).kv.key)


def _leases(keyspace: Keyspace) -> Iterator[bolt.Entry]:
    leases = keyspace.leases
    for id in sorted(leases.granted, key=lambda id: id & _MASK):
        fields = ((b"\x08", id), (b"\x10", leases.granted[id]), (b"\x18", leases.remaining.get(id, 0)))
        yield _U64.pack(id & _MASK), b"".join([codec.int_field(tag, number) for tag, number in fields])


def _meta(keyspace: Keyspace) -> Iterator[bolt.Entry]:
    index, term = keyspace.applied
    yield b"consistent_index", _U64.pack(index)
    yield b"term", _U64.pack(term)
    for name, revision in ((b"scheduledCompactRev", keyspace.compacted), (b"finishedCompactRev", keyspace.swept)):
        if revision > 0:
            yield name, _REVISION.pack(revision, b"_", 0)
