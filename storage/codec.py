"""The bytes of the store and of the log: what every other room of the keyspace reads and writes.

One ordered map holds everything, told apart by the first byte of the key:

    k | user key                                   -> KeyValue, as it goes into a reply: the newest state
    r | main u64 BE | sub u32 BE                   -> Event{type, kv}: every change, in order
    h | escaped user key | ~main | ~sub            -> KeyValue without key and value; empty for a deletion
    l | ...                                        -> leases and their keys (storage.leases)
    m | name                                       -> what the state machine remembers about itself

A change is named by (main, sub): the revision, and its place among the changes of that revision. `h` sorts by key,
then newest first: the state of a key at revision R is the first `h` entry at or behind (R, last sub), and its bytes
are in `r`. A user key is escaped (00 becomes 00 FF) and closed with 00 00, so that order is kept and no key's entries
lie among another's: after the shared bytes, 00 00 sorts before 00 FF and before every other continuation.

KeyValues are put together by hand, in the field order and the shortest form that protobuf itself would write, because
this is done for every put; anything read back is parsed by protobuf.

A log entry's data is what one member proposed at once:

    origin member u64 | origin incarnation u64 | number u64 | batch (kvorum.wire)         little-endian

Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from kvorum import etcd_pb2 as pb

# ---- keys

LATEST, LATEST_END = b"k", b"l"
REVISIONS = b"r"
HISTORY, HISTORY_END = b"h", b"i"

STATE = b"mstate"
SWEEP = b"msweep"
ORIGIN, ORIGIN_END = b"morigin/", b"morigin0"
MEMBER, MEMBER_END = b"mmember/", b"mmember0"

SUB_MAX = 0xFFFFFFFF
_MAIN_MAX = 0xFFFFFFFFFFFFFFFF
_PLACE = struct.Struct(">QI")
_REVISION = struct.Struct(">cQI")
_ID = struct.Struct(">Q")
_MAIN, _SUB = struct.Struct(">Q"), struct.Struct(">I")
PLACE_SIZE = _PLACE.size

pack_place = _PLACE.pack
unpack_place = _PLACE.unpack


def revision_key(main: int, sub: int) -> bytes:
    return _REVISION.pack(b"r", main, sub)


def revision_place(key: bytes) -> tuple[int, int]:
    """(main, sub) of an `r` key."""
    main, sub = _PLACE.unpack_from(key, 1)
    return main, sub


def escaped(key: bytes) -> bytes:
    return key.replace(b"\0", b"\0\xff") + b"\0\0"


def history_key(key: bytes, main: int, sub: int) -> bytes:
    return b"h" + key.replace(b"\0", b"\0\xff") + b"\0\0" + _PLACE.pack(_MAIN_MAX - main, SUB_MAX - sub)


def history_start(key: bytes) -> bytes:
    """Not above any `h` entry of `key`, above every entry of a smaller key."""
    return b"h" + escaped(key)


def history_end(key: bytes) -> bytes:
    """Above every `h` entry of `key`, below those of a greater key."""
    return b"h" + key.replace(b"\0", b"\0\xff") + b"\0\x01"


def history_bound(main: int) -> bytes:
    """The last bytes of an `h` key compare >= this exactly when its change is of revision `main` or older."""
    return _PLACE.pack(_MAIN_MAX - main, 0)


def history_place(key: bytes) -> tuple[int, int]:
    """(main, sub) of an `h` key."""
    main, sub = _PLACE.unpack_from(key, len(key) - 12)
    return _MAIN_MAX - main, SUB_MAX - sub


def origin_key(member: int) -> bytes:
    return ORIGIN + _ID.pack(member)


def member_key(member: int) -> bytes:
    return MEMBER + _ID.pack(member)


def key_id(key: bytes) -> int:
    """The id at the end of an origin or member key."""
    return int.from_bytes(key[-8:], "big")


def span_end(key: bytes, range_end: bytes) -> bytes | None:
    """The exclusive end that etcd means: `range_end` empty is the one key, one zero byte is no end at all (None)."""
    if not range_end:
        return key + b"\0"
    return None if range_end == b"\0" else range_end


# ---- protobuf by hand


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


_SHORT = tuple(_varint(n) for n in range(2048))


def varint(n: int) -> bytes:
    """`n` >= 0 as protobuf writes an integer or a length."""
    if n < 2048:
        return _SHORT[n]
    if n < 1 << 14:
        return bytes((n & 0x7F | 0x80, n >> 7))
    if n < 1 << 21:
        return bytes((n & 0x7F | 0x80, n >> 7 & 0x7F | 0x80, n >> 14))
    if n < 1 << 28:
        return bytes((n & 0x7F | 0x80, n >> 7 & 0x7F | 0x80, n >> 14 & 0x7F | 0x80, n >> 21))
    return _varint(n)


def field(tag: bytes, body: bytes) -> bytes:
    """One length-delimited field; `tag` is the encoded field number and wire type."""
    n = len(body)
    return tag + (_SHORT[n] if n < 2048 else varint(n)) + body


def int_field(tag: bytes, n: int) -> bytes:
    """An int64 field, which may be negative; 0 is left out."""
    if 0 < n < 2048:
        return tag + _SHORT[n]
    return tag + varint(n & _MAIN_MAX) if n else b""


def only_number(message: bytes) -> int:
    """The positive int64 in field 1, if the message is that and nothing else, in as few bytes as it takes; else 0."""
    size = len(message)
    if not 1 < size < 11 or message[0] != 8 or message[size - 1] == 0:
        return 0
    n = 0
    for at in range(size - 1, 0, -1):
        byte = message[at]
        if (byte > 127) == (at == size - 1):
            return 0
        n = n << 7 | byte & 127
    return n


def lifetime(create: int, main: int, version: int) -> bytes:
    """The KeyValue fields between key and value; also the whole value of an `h` entry."""
    now = varint(main)
    return b"\x10" + (now if create == main else varint(create)) + b"\x18" + now + b"\x20" + varint(version)


def key_value(key: bytes, life: bytes, value: bytes, lease: int) -> bytes:
    """An encoded KeyValue. Empty values and no lease are left out, as proto3 does. `lease` may be negative."""
    kv = field(b"\x0a", key) + life
    if value:
        kv += field(b"\x2a", value)
    if lease:
        kv += b"\x30" + varint(lease & _MAIN_MAX)
    return kv


def put_event(kv: bytes) -> bytes:
    return field(b"\x12", kv)


def delete_event(key: bytes, main: int) -> bytes:
    """Of a deletion, etcd keeps only the key and the revision that it happened at."""
    return b"\x08\x01" + field(b"\x12", field(b"\x0a", key) + b"\x18" + varint(main))


def deletions(keys: Sequence[bytes], main: int, sub: int) -> list[tuple[bytes, bytes]]:
    """Of each key that a revision deletes, from its place `sub` on: (history key, event)."""
    inverted = b"\0\0" + _MAIN.pack(_MAIN_MAX - main)
    end = b"\x18" + varint(main)
    found = []
    for key in keys:
        history = b"h" + key.replace(b"\0", b"\0\xff") + inverted + _SUB.pack(SUB_MAX - sub)
        event = b"\x08\x01" + field(b"\x12", field(b"\x0a", key) + end)
        found.append((history, event))
        sub += 1
    return found


def event_kv(event: bytes) -> bytes:
    """The KeyValue inside a put's event: all of it behind the tag and the length."""
    at = 1
    while event[at] & 0x80:
        at += 1
    return event[at + 1 :]


PUT, DELETE = pb.Event.PUT, pb.Event.DELETE


def parse_event(event: bytes) -> pb.Event:
    return pb.Event.FromString(event)


def value_of(kv: bytes) -> bytes:
    """The value of an encoded KeyValue."""
    value: bytes = pb.KeyValue.FromString(kv).value
    return value


def lease_of(kv: bytes) -> int:
    """The lease of an encoded KeyValue, 0 for none. It is the last field, so most are told by a glance."""
    if b"\x30" not in kv[-11:]:
        return 0
    lease: int = pb.KeyValue.FromString(kv).lease
    return lease


def without_value(kv: bytes) -> bytes:
    message = pb.KeyValue.FromString(kv)
    message.ClearField("value")
    return message.SerializeToString()


# ---- what the state machine remembers about itself

FORMAT = 2


class State(NamedTuple):
    """Written with every batch, so that it is always the state of exactly the data it lies beside.

    `compacted` is -1 until the first compaction, as in etcd.
    """

    applied: int = 0
    term: int = 0
    revision: int = 1
    compacted: int = -1


_STATE = struct.Struct("<BQQQq")


class UnknownFormat(Exception):
    """The store was written by a version that this one does not understand. Nothing was touched."""


def pack_state(state: State) -> bytes:
    return _STATE.pack(FORMAT, *state)


def unpack_state(data: bytes) -> State:
    if len(data) != _STATE.size or data[0] != FORMAT:
        raise UnknownFormat(f"the store has format {data[:1].hex() or 'none'}, this version reads {FORMAT:02x} only")
    return State(*_STATE.unpack(data)[1:])


class Sweep(NamedTuple):
    """How far the physical compaction is: complete up to `done`; on its way to `target`, next at (main, sub)."""

    done: int = 0
    target: int = 0
    main: int = 0
    sub: int = 0


_SWEEP = struct.Struct("<QQQI")


def pack_sweep(sweep: Sweep) -> bytes:
    return _SWEEP.pack(*sweep)


def unpack_sweep(data: bytes) -> Sweep:
    return Sweep(*_SWEEP.unpack(data))


_ORIGIN = struct.Struct("<QQ")


def pack_origin(incarnation: int, number: int) -> bytes:
    return _ORIGIN.pack(incarnation, number)


def unpack_origin(data: bytes) -> tuple[int, int]:
    incarnation, number = _ORIGIN.unpack(data)
    return incarnation, number


# ---- log entries

_PROPOSAL = struct.Struct("<QQQ")
PROPOSAL_HEAD = _PROPOSAL.size


class Proposal(NamedTuple):
    origin: int
    incarnation: int
    number: int
    batch: bytes


def pack_proposal(origin: int, incarnation: int, number: int, batch: bytes) -> bytes:
    """The data of a log entry. `number` rises with every batch that this incarnation of `origin` proposes."""
    return _PROPOSAL.pack(origin, incarnation, number) + batch


def origin_of(data: bytes) -> tuple[int, int, int]:
    """Whose entry this is: (origin, incarnation, number); (0, 0, 0) if it says nothing."""
    return _PROPOSAL.unpack_from(data) if len(data) >= PROPOSAL_HEAD else (0, 0, 0)


def unpack_proposal(data: bytes) -> Proposal:
    """Raises ValueError if `data` is too short to say whose it is. The batch is not judged."""
    if len(data) < _PROPOSAL.size:
        raise ValueError(f"{len(data)} bytes are no proposal")
    origin, incarnation, number = _PROPOSAL.unpack_from(data)
    return Proposal(origin, incarnation, number, data[_PROPOSAL.size :])
