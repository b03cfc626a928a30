"""What the processes of one node say to each other, and how it looks in a frame.

    apply ──▶ raft    Attach, Propose, ReadIndex, Applied, MoveLeader, Ask, Answer
    raft  ──▶ apply   Attached, Fenced, Committed, Status, ReadReady, ReadFailed, Rejected, Asked, Answered
    watch ──▶ apply   WatchAttach, WatchAck, WatchDetach, HistoryRequest
    apply ──▶ watch   WatchAttached, WatchLost, Changes, Progress, History

Either side of a conversation may be restarted at any moment, and ZeroMQ reconnects without telling anyone. So each
conversation has a *session*, opened by an Attach and numbered by the side that serves it: what carries another
session is from before somebody's restart and is dropped, and who hears from a stranger answers Fenced or WatchLost,
upon which the stranger attaches anew. A frame is one byte naming the message, then its fields, little-endian. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from storage.entry import Entry
from storage.keyspace import Change


class MalformedFrame(ValueError):
    """Not a message of this page. Between processes of one node that is a bug or a mix of versions."""


class Tick(NamedTuple):
    """The heartbeat interval has passed. Never sent; a process gives it to itself."""


class Floor(NamedTuple):
    """Between raft processes: `sender` will never need an entry `upto` this again, its store has them on disk."""

    sender: int
    upto: int


# ---- apply to raft


class Attach(NamedTuple):
    """An apply process of incarnation `epoch` is here and wants every entry after `applied`."""

    epoch: int
    applied: int


class Propose(NamedTuple):
    """Put `data` into the log. `number` comes back in Rejected; `data` carries its origin itself."""

    session: int
    number: int
    data: bytes


class ReadIndex(NamedTuple):
    """How far must I have applied to answer a linearizable read that is here now? `context` is never used twice."""

    session: int
    context: int


class Applied(NamedTuple):
    """Applied `upto`, of which up to `durable` would survive a crash. Also the pulse: every tick at least."""

    session: int
    upto: int
    durable: int


class MoveLeader(NamedTuple):
    session: int
    target: int


class Ask(NamedTuple):
    """A question to the leader's apply process, as Asked there. May get lost, and is then asked under a new number."""

    session: int
    number: int
    body: bytes


class Answer(NamedTuple):
    """The answer to `member`'s question."""

    session: int
    member: int
    number: int
    body: bytes


class PeerAsk(NamedTuple):
    """Between raft processes: `sender`'s apply process asks the leader's."""

    sender: int
    number: int
    body: bytes


class PeerAnswer(NamedTuple):
    sender: int
    number: int
    body: bytes


# ---- raft to apply


class Attached(NamedTuple):
    session: int


class Fenced(NamedTuple):
    """Whoever sent that is not attached. `epoch` is the newest apply known: an older one must end."""

    epoch: int


class Committed(NamedTuple):
    """Entries that are committed and on this member's disk, contiguous, following the last ones sent in the session."""

    session: int
    entries: Sequence[Entry]


class Status(NamedTuple):
    """Sent on change and every tick. `leader` 0 is none. `commit` runs ahead of what Committed has delivered."""

    session: int
    term: int
    leader: int
    commit: int


class ReadReady(NamedTuple):
    session: int
    context: int
    upto: int


class ReadFailed(NamedTuple):
    session: int
    context: int


class Rejected(NamedTuple):
    """Proposal `number` is certainly not in the log through this attempt."""

    session: int
    number: int
    reason: str


class Asked(NamedTuple):
    session: int
    member: int
    number: int
    body: bytes


class Answered(NamedTuple):
    session: int
    number: int
    body: bytes


# ---- watch to apply


class WatchAttach(NamedTuple):
    """`prev`: 1 if somebody wants to know what keys were before each change, which costs a look-up for each."""

    epoch: int
    prev: int


class WatchAck(NamedTuple):
    """All up to `sequence` has been taken in. Every tick at least."""

    session: int
    sequence: int


class WatchDetach(NamedTuple):
    """Nobody watches: don't send what nobody wants."""

    session: int


class HistoryRequest(NamedTuple):
    session: int
    id: int
    first: int
    bytes_max: int


# ---- apply to watch


class WatchAttached(NamedTuple):
    """Changes after `revision` will follow; what was before is history.

    `fresh` 1: this store may still be older than what this node has shown before. "From now on" is not known yet.
    """

    session: int
    revision: int
    compacted: int
    term: int
    fresh: int


class WatchLost(NamedTuple):
    """This session is over (unknown here, or too far behind). Attach anew."""

    session: int


class Changes(NamedTuple):
    """All changes of the revisions up to `revision` that follow the last message of the session."""

    session: int
    sequence: int
    revision: int
    changes: Sequence[Change]


class Progress(NamedTuple):
    """Every tick: nothing up to `revision` is outstanding after the changes already sent."""

    session: int
    sequence: int
    revision: int
    compacted: int
    term: int
    fresh: int


class History(NamedTuple):
    """All changes in [first, covered]. When `compacted` > first, nothing: that part is gone."""

    session: int
    id: int
    first: int
    covered: int
    compacted: int
    changes: Sequence[Change]


Message = (
    Attach | Propose | ReadIndex | Applied | MoveLeader | Ask | Answer
    | Attached | Fenced | Committed | Status | ReadReady | ReadFailed | Rejected | Asked | Answered
    | WatchAttach | WatchAck | WatchDetach | HistoryRequest
    | WatchAttached | WatchLost | Changes | Progress | History
)  # fmt: skip

_PLAIN: dict[int, tuple[type, struct.Struct]] = {
    1: (Attach, struct.Struct("<QQ")),
    3: (ReadIndex, struct.Struct("<QQ")),
    4: (Applied, struct.Struct("<QQQ")),
    5: (MoveLeader, struct.Struct("<QQ")),
    10: (Attached, struct.Struct("<Q")),
    11: (Fenced, struct.Struct("<Q")),
    13: (Status, struct.Struct("<QQQQ")),
    14: (ReadReady, struct.Struct("<QQQ")),
    15: (ReadFailed, struct.Struct("<QQ")),
    20: (WatchAttach, struct.Struct("<QB")),
    21: (WatchAck, struct.Struct("<QQ")),
    23: (WatchDetach, struct.Struct("<Q")),
    22: (HistoryRequest, struct.Struct("<QQqQ")),
    30: (WatchAttached, struct.Struct("<QqqQB")),
    31: (WatchLost, struct.Struct("<Q")),
    33: (Progress, struct.Struct("<QQqqQB")),
}
_PLAIN_BY_TYPE = {cls: (bytes([tag]), layout) for tag, (cls, layout) in _PLAIN.items()}
_PROPOSE, _COMMITTED, _REJECTED, _CHANGES, _HISTORY = 2, 12, 16, 32, 34
_TWO = struct.Struct("<QQ")
_BODIED: dict[int, tuple[type, struct.Struct]] = {
    6: (Ask, _TWO),
    7: (Answer, struct.Struct("<QQQ")),
    17: (Asked, struct.Struct("<QQQ")),
    18: (Answered, _TWO),
}
"""Messages whose last field is all that follows the fixed ones."""
_BODIED_BY_TYPE = {cls: (bytes([tag]), layout) for tag, (cls, layout) in _BODIED.items()}
_SESSION = struct.Struct("<Q")
_ENTRY = struct.Struct("<QQII")
_CHANGES_HEAD = struct.Struct("<QQq")
_HISTORY_HEAD = struct.Struct("<QQqqq")
_CHANGE = struct.Struct("<qII")


def encode(message: Message) -> bytes:
    plain = _PLAIN_BY_TYPE.get(type(message))
    if plain is not None:
        return plain[0] + plain[1].pack(*message)
    if isinstance(message, Committed):
        parts = [bytes([_COMMITTED]), _SESSION.pack(message.session)]
        for term, index, kind, data in message.entries:
            parts += (_ENTRY.pack(term, index, kind, len(data)), data)
        return b"".join(parts)
    if isinstance(message, Changes):
        head = bytes([_CHANGES]) + _CHANGES_HEAD.pack(message.session, message.sequence, message.revision)
        return head + _pack_changes(message.changes)
    if isinstance(message, Propose):
        return bytes([_PROPOSE]) + _TWO.pack(message.session, message.number) + message.data
    if isinstance(message, History):
        return bytes([_HISTORY]) + _HISTORY_HEAD.pack(*message[:5]) + _pack_changes(message.changes)
    if isinstance(message, Ask | Answer | Asked | Answered):
        mark, layout = _BODIED_BY_TYPE[type(message)]
        return mark + layout.pack(*message[:-1]) + message.body
    assert isinstance(message, Rejected), message
    return bytes([_REJECTED]) + _TWO.pack(message.session, message.number) + message.reason.encode()


def decode(frame: bytes) -> Message:
    """Raises MalformedFrame."""
    try:
        return _decode(frame)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise MalformedFrame(f"frame of {len(frame)} bytes: {error}") from error


def _decode(frame: bytes) -> Message:
    tag = frame[0]
    plain = _PLAIN.get(tag)
    if plain is not None:
        cls, layout = plain
        if len(frame) != 1 + layout.size:
            raise MalformedFrame(f"{cls.__name__} of {len(frame)} bytes")
        message: Message = cls(*layout.unpack_from(frame, 1))
        return message
    if tag == _COMMITTED:
        (session,) = _SESSION.unpack_from(frame, 1)
        entries, at, size = [], 9, len(frame)
        while at < size:
            term, index, kind, length = _ENTRY.unpack_from(frame, at)
            at += _ENTRY.size
            entries.append(Entry(term, index, kind, frame[at : at + length]))
            at += length
        return _whole(Committed(session, entries), at, size)
    if tag == _CHANGES:
        session, sequence, revision = _CHANGES_HEAD.unpack_from(frame, 1)
        return Changes(session, sequence, revision, _unpack_changes(frame, 1 + _CHANGES_HEAD.size))
    if tag == _PROPOSE:
        session, number = _TWO.unpack_from(frame, 1)
        return Propose(session, number, frame[1 + _TWO.size :])
    if tag == _HISTORY:
        session, id, first, covered, compacted = _HISTORY_HEAD.unpack_from(frame, 1)
        return History(session, id, first, covered, compacted, _unpack_changes(frame, 1 + _HISTORY_HEAD.size))
    bodied = _BODIED.get(tag)
    if bodied is not None:
        cls, layout = bodied
        found: Message = cls(*layout.unpack_from(frame, 1), frame[1 + layout.size :])
        return found
    if tag == _REJECTED:
        session, number = _TWO.unpack_from(frame, 1)
        return Rejected(session, number, frame[1 + _TWO.size :].decode())
    raise MalformedFrame(f"unknown message {tag}")


def _whole(message: Committed, at: int, size: int) -> Committed:
    if at != size:
        raise MalformedFrame(f"breaks off {at - size} bytes early")
    return message


def _pack_changes(changes: Sequence[Change]) -> bytes:
    parts: list[bytes] = []
    for revision, event, prev in changes:
        parts += (_CHANGE.pack(revision, len(event), len(prev)), event, prev)
    return b"".join(parts)


def _unpack_changes(frame: bytes, at: int) -> list[Change]:
    changes, size = [], len(frame)
    while at < size:
        revision, event, prev = _CHANGE.unpack_from(frame, at)
        middle = at + _CHANGE.size + event
        changes.append(Change(revision, frame[at + _CHANGE.size : middle], frame[middle : middle + prev]))
        at = middle + prev
    if at != size:
        raise MalformedFrame(f"breaks off {at - size} bytes early")
    return changes
