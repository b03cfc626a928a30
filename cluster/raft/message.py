"""What members say to each other about the log, and the bytes of it.

    frame | u8 version | u8 type | u8 flags | u8 reason | u64 to | u64 sender | u64 term | u64 field ... | body |

    little-endian; the fields of each type are listed, in this order, in _FIELDS
    body of APPEND    u32 count | count times: u64 term | u32 length | u8 kind | data ...
    body of PROPOSE   u32 length | data ...
    every other type has no body

An entry's index is not sent: entries follow the message's own `index` without a hole, so a hole cannot be said. One
message has exactly one frame and one frame at most one message: whatever `decode` accepts, `encode` gives back. What
`decode` lets through may be stale or misdirected, but no member can send a shape that the core has not been written
for; `MalformedMessage` is the only way out for the rest. Pure.
"""

from __future__ import annotations

import struct
from enum import IntEnum, StrEnum
from typing import NamedTuple

from storage.entry import Entry, EntryKind

VERSION = 1
NUMBER_MAX = 1 << 62
"""Terms, indices and the like stay below this, so that adding to one never leaves 64 bits. Member ids and contexts may
use all 64."""


class MessageType(IntEnum):
    """Numbers are for ever: members of two versions speak to each other during an upgrade."""

    PRE_VOTE = 1
    """Would you vote for me in `term`, which I have not begun? My log ends at `index`@`log_term`."""
    PRE_VOTE_REPLY = 2
    """Granted: `term` is the one asked for. Refused (`reject`): `term` is the voter's own."""
    VOTE = 3
    """Vote for me in `term`. `force`: the leader itself asked for this election, so don't protect it."""
    VOTE_REPLY = 4
    APPEND = 5
    """After `index`@`log_term` come `entries`; the leader has committed up to `commit`."""
    APPEND_REPLY = 6
    """I hold all up to `index` on disk. `reject`: nothing at `index` matches; look at or before `hint`@`log_term`."""
    HEARTBEAT = 7
    """I lead. You hold `commit` and it is committed. `context`: the newest round of reads to confirm, 0 for none."""
    HEARTBEAT_REPLY = 8
    COMMIT = 9
    """You hold `commit` and it is committed. Not answered."""
    TIMEOUT_NOW = 10
    """Take over: campaign at once."""
    PROPOSE = 11
    """Put `data` into the log. `context` is the proposer's own number for it."""
    PROPOSE_REPLY = 12
    """Proposal `context` was not put into the log, because of `reason`. An accepted one is not answered."""
    READ_INDEX = 13
    """How far must I have applied to answer a read that arrived before this was sent?"""
    READ_INDEX_REPLY = 14
    """Up to `index`. `reject`: I do not lead."""


class DropReason(StrEnum):
    """Why a proposal was not taken. Each is certain: the proposal is not in the log."""

    NO_LEADER = "no leader"
    TOO_MANY_REQUESTS = "too many requests"
    TRANSFERRING = "transferring"


class Message(NamedTuple):
    """One message. `MessageType` says what the fields mean; a field that a type does not use is left at its default."""

    type: MessageType
    to: int
    sender: int
    term: int
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    log_term: int = 0
    commit: int = 0
    hint: int = 0
    context: int = 0
    reject: bool = False
    force: bool = False
    reason: DropReason | None = None
    entries: tuple[Entry, ...] = ()
    data: bytes = b""


class MalformedMessage(ValueError):
    """The frame is not exactly one valid message."""


_FIELDS: dict[MessageType, tuple[str, ...]] = {
    MessageType.PRE_VOTE: ("index", "log_term"),
    MessageType.PRE_VOTE_REPLY: (),
    MessageType.VOTE: ("index", "log_term"),
    MessageType.VOTE_REPLY: (),
    MessageType.APPEND: ("index", "log_term", "commit"),
    MessageType.APPEND_REPLY: ("index", "log_term", "hint"),
    MessageType.HEARTBEAT: ("commit", "context"),
    MessageType.HEARTBEAT_REPLY: ("context",),
    MessageType.COMMIT: ("commit",),
    MessageType.TIMEOUT_NOW: (),
    MessageType.PROPOSE: ("context",),
    MessageType.PROPOSE_REPLY: ("context",),
    MessageType.READ_INDEX: ("context",),
    MessageType.READ_INDEX_REPLY: ("index", "context"),
}
_REJECT, _FORCE = 1, 2
_FLAGS: dict[MessageType, int] = {
    MessageType.PRE_VOTE_REPLY: _REJECT,
    MessageType.VOTE: _FORCE,
    MessageType.VOTE_REPLY: _REJECT,
    MessageType.APPEND_REPLY: _REJECT,
    MessageType.READ_INDEX_REPLY: _REJECT,
}
_REASONS = (None, *DropReason)
_REASON_NUMBERS = {reason: number for number, reason in enumerate(_REASONS)}
_KINDS = frozenset(EntryKind)

_HEAD = struct.Struct("<BBBBQQQ")
_ENTRY = struct.Struct("<QIB")
_COUNT = struct.Struct("<I")
_TYPES = {int(type): type for type in MessageType}
_BODIES = {type: struct.Struct("<" + "Q" * len(names)) for type, names in _FIELDS.items()}
_NUMBERS = Message._fields[4:9]
"""The fields that _FIELDS chooses from, which follow each other in a Message."""
_PLACES = {type: tuple(4 + _NUMBERS.index(name) for name in names) for type, names in _FIELDS.items()}
_ORDERS = {
    type: tuple(names.index(name) if name in names else len(names) for name in _NUMBERS)
    for type, names in _FIELDS.items()
}
"""Where in a body each of _NUMBERS is, or behind it."""


def encode(m: Message) -> bytes:
    """The frame of a message. The message must be one that `decode` would accept."""
    type = m.type
    head = _HEAD.pack(
        VERSION,
        type,
        _REJECT * m.reject | _FORCE * m.force,
        _REASON_NUMBERS[m.reason],
        m.to,
        m.sender,
        m.term,
    )
    fields = _BODIES[type].pack(*[m[place] for place in _PLACES[type]])
    if type is MessageType.APPEND:
        parts = [head, fields, _COUNT.pack(len(m.entries))]
        index = m.index
        for entry in m.entries:
            index += 1
            assert entry.index == index, (entry.index, index)
            parts.append(_ENTRY.pack(entry.term, len(entry.data), entry.kind))
            parts.append(entry.data)
        return b"".join(parts)
    if type is MessageType.PROPOSE:
        return b"".join((head, fields, _COUNT.pack(len(m.data)), m.data))
    return head + fields


def decode(frame: bytes) -> Message:
    """Read one frame.

    Raises MalformedMessage for anything but exactly one valid message: another version, an unknown type, flag, reason
    or kind of entry, a frame too short or too long, numbers out of range, terms that fall along the log, a message to
    oneself. It says nothing about whether the message fits the state of the member that gets it.
    """
    try:
        return _decode(frame)
    except struct.error:
        raise MalformedMessage(f"frame of {len(frame)} bytes breaks off") from None


def _decode(frame: bytes) -> Message:
    version, number, flags, reason, to, sender, term = _HEAD.unpack_from(frame)
    if version != VERSION:
        raise MalformedMessage(f"version {version} is not spoken here")
    type = _TYPES.get(number)
    if type is None:
        raise MalformedMessage(f"unknown type {number}")
    if flags & ~_FLAGS.get(type, 0):
        raise MalformedMessage(f"{type.name} with flags {flags:#x}")
    if (reason != 0) != (type is MessageType.PROPOSE_REPLY) or reason >= len(_REASONS):
        raise MalformedMessage(f"{type.name} with reason {reason}")
    if not to or not sender or to == sender:
        raise MalformedMessage(f"{type.name} from {sender} to {to}")
    if not 0 < term < NUMBER_MAX:
        raise MalformedMessage(f"{type.name} of term {term}")
    body = _BODIES[type]
    numbers = (*body.unpack_from(frame, _HEAD.size), 0)
    index, log_term, commit, hint, context = [numbers[place] for place in _ORDERS[type]]
    at = _HEAD.size + body.size
    entries: tuple[Entry, ...] = ()
    data = b""
    if type is MessageType.APPEND:
        entries, at = _decode_entries(frame, at, term, index, log_term)
    elif type is MessageType.PROPOSE:
        (length,) = _COUNT.unpack_from(frame, at)
        at += _COUNT.size
        data = frame[at : at + length]
        if not length:
            raise MalformedMessage("PROPOSE of nothing")
        at += length
    if at != len(frame):
        raise MalformedMessage(f"{type.name} takes {at} bytes and the frame has {len(frame)}")
    m = Message(
        type,
        to,
        sender,
        term,
        index,
        log_term,
        commit,
        hint,
        context,
        bool(flags & _REJECT),
        bool(flags & _FORCE),
        _REASONS[reason],
        entries,
        data,
    )
    _check(m)
    return m


def _decode_entries(frame: bytes, at: int, term: int, index: int, log_term: int) -> tuple[tuple[Entry, ...], int]:
    (count,) = _COUNT.unpack_from(frame, at)
    at += _COUNT.size
    if count * _ENTRY.size > len(frame) - at:
        raise MalformedMessage(f"{count} entries in {len(frame) - at} bytes")
    entries = []
    for _ in range(count):
        entry_term, length, kind = _ENTRY.unpack_from(frame, at)
        at += _ENTRY.size
        index += 1
        if not 0 < entry_term <= term or entry_term < log_term:
            raise MalformedMessage(f"entry {index} of term {entry_term} after {log_term}, sent in {term}")
        if kind not in _KINDS:
            raise MalformedMessage(f"entry {index} of unknown kind {kind}")
        log_term = entry_term
        entries.append(Entry(entry_term, index, kind, frame[at : at + length]))
        at += length
    return tuple(entries), at


def _check(m: Message) -> None:
    """The numbers themselves. A place in the log is 0@0 or has both an index and a term."""
    if max(m.index, m.log_term, m.commit, m.hint) + len(m.entries) >= NUMBER_MAX:
        raise MalformedMessage(f"{m.type.name} with a number out of range")
    if m.type is MessageType.APPEND_REPLY:
        if not m.reject and (m.hint or m.log_term):
            raise MalformedMessage("APPEND_REPLY with a hint that rejects nothing")
        if m.hint > m.index or (m.log_term == 0) != (m.hint == 0) or m.log_term > m.term:
            raise MalformedMessage(f"APPEND_REPLY with hint {m.hint}@{m.log_term} for {m.index}")
    elif "log_term" in _FIELDS[m.type] and ((m.log_term == 0) != (m.index == 0) or m.log_term > m.term):
        raise MalformedMessage(f"{m.type.name} of term {m.term} about {m.index}@{m.log_term}")
