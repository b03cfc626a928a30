"""Two checksums of a store, to find out whether members still hold the same (etcd's Maintenance.HashKV and Hash).

    HashKV at revision R   crc of   the keys as they stood at the compaction point C, in order of keys
                              then  every change of the revisions C + 1 to R, in order
    Hash                   crc of   everything in the engine as it is

HashKV depends on (C, R) and the log alone: not on how far a member has swept what is compacted, nor on what it has
applied behind R. So members that answer with the same `compact_revision` and `hash_revision` must answer with the same
`hash`, or one of them is wrong. It looks at the history, from which also the newest state can be told. Hash sees every
byte, the applied index too: it is the same where members have applied the same, and have swept as far. Neither is the
number that etcd has for the same content.

Both run in slices (storage.reads). A compaction in between takes away what was to be looked at, so HashKV then begins
anew from the new point: the answer is always one of a single (C, R). CRC-32, as zlib has it: this guards against
faults, not against malice. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from zlib import crc32

from kvorum import errors
from kvorum import etcd_pb2 as pb
from storage import codec
from storage.engine import Engine
from storage.history import Past
from storage.reads import KEY_COST, Meter, Steps

ATTEMPTS = 10
LOAD_KEYS = 32
_END = b"\xff"
"""Above every key of the engine."""


def hash_kv(engine: Engine, revision: int, newest: int, compacted: Callable[[], int], meter: Meter) -> Steps[bytes]:
    """A HashKVResponse without its header.

    Args:
      revision: up to which; 0 and below: `newest`.
      compacted: the compaction point, asked again in each slice.
    Raises FutureRevision, at the first step; Compacted, at any; TooManyRequests when there were so many compactions
    meanwhile that it never came to an end.
    """
    if revision > newest:
        raise errors.FutureRevision
    upto = revision if revision > 0 else newest
    for _ in range(ATTEMPTS):
        floor = compacted()
        if upto < floor:
            raise errors.Compacted
        changes = engine.scan(codec.revision_key(max(floor, 0) + 1, 0), codec.revision_key(upto + 1, 0))
        state = yield from _of_state(engine, floor, compacted, meter)
        if state is not None:
            found = yield from _of_pairs(changes, state, meter)
            reply = pb.HashKVResponse(hash=found, compact_revision=floor, hash_revision=upto)
            return reply.SerializeToString()
    raise errors.TooManyRequests


def hash_all(engine: Engine, meter: Meter) -> Steps[bytes]:
    """A HashResponse without its header."""
    found = yield from _of_pairs(engine.scan(b"", _END), 0, meter)
    return pb.HashResponse(hash=found).SerializeToString()


def _of_state(engine: Engine, floor: int, compacted: Callable[[], int], meter: Meter) -> Steps[int | None]:
    """The crc of the keys as they stood at `floor`; None if another compaction has come between."""
    if floor <= 0:
        return 0
    past, crc = Past(engine, floor), 0
    handles: list[bytes] = []
    for entry in past.entries(b"", None):
        spent = KEY_COST
        if entry is not None:
            handles.append(entry[1])
        if len(handles) == LOAD_KEYS:
            crc, size = _loaded(past, handles, crc)
            handles.clear()
            spent += size
        if meter.used(spent):
            yield
            if compacted() != floor:
                return None
    return _loaded(past, handles, crc)[0]


def _loaded(past: Past, handles: list[bytes], crc: int) -> tuple[int, int]:
    """The crc with the KeyValues of these places, and how many bytes they have."""
    size = 0
    for kv in past.load(handles):
        crc = crc32(codec.field(b"\x0a", kv), crc)
        size += len(kv)
    return crc, size


def _of_pairs(pairs: Iterator[tuple[bytes, bytes]], crc: int, meter: Meter) -> Steps[int]:
    for key, value in pairs:
        crc = crc32(codec.field(b"\x12", value), crc32(codec.field(b"\x0a", key), crc))
        if meter.used(KEY_COST + len(value)):
            yield
    return crc
