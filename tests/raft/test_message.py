"""The bytes of messages: one message, one frame; and no frame, however broken, brings anything but MalformedMessage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.raft.message import NUMBER_MAX, DropReason, MalformedMessage, Message, MessageType, decode, encode
from storage.entry import Entry
from tests.raft.harness import PROPERTY

M = MessageType

ids = st.integers(1, (1 << 64) - 1)
numbers = st.integers(0, NUMBER_MAX - 100)
words = st.integers(0, (1 << 64) - 1)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    type = draw(st.sampled_from(M))
    to, sender = draw(st.tuples(ids, ids).filter(lambda pair: pair[0] != pair[1]))
    term = draw(st.integers(1, NUMBER_MAX - 1))
    head = (type, to, sender, term)
    place = draw(st.one_of(st.just((0, 0)), st.tuples(st.integers(1, NUMBER_MAX - 100), st.integers(1, term))))
    if type in (M.PRE_VOTE, M.VOTE):
        return Message(*head, *place, force=type is M.VOTE and draw(st.booleans()))
    if type in (M.PRE_VOTE_REPLY, M.VOTE_REPLY):
        return Message(*head, reject=draw(st.booleans()))
    if type is M.APPEND:
        terms = sorted(draw(st.lists(st.integers(max(place[1], 1), term), max_size=5)))
        entries = tuple(Entry(t, place[0] + 1 + at, 0, draw(st.binary(max_size=20))) for at, t in enumerate(terms))
        return Message(*head, *place, commit=draw(numbers), entries=entries)
    if type is M.APPEND_REPLY:
        if not draw(st.booleans()):
            return Message(*head, index=draw(numbers))
        index = draw(st.integers(place[0], NUMBER_MAX - 100))
        return Message(*head, index=index, hint=place[0], log_term=place[1], reject=True)
    if type is M.HEARTBEAT:
        return Message(*head, commit=draw(numbers), context=draw(words))
    if type is M.COMMIT:
        return Message(*head, commit=draw(numbers))
    if type is M.PROPOSE:
        return Message(*head, context=draw(words), data=draw(st.binary(min_size=1, max_size=50)))
    if type is M.PROPOSE_REPLY:
        return Message(*head, context=draw(words), reason=draw(st.sampled_from(DropReason)))
    if type is M.READ_INDEX_REPLY:
        return Message(*head, context=draw(words), index=draw(numbers), reject=draw(st.booleans()))
    if type in (M.READ_INDEX, M.HEARTBEAT_REPLY):
        return Message(*head, context=draw(words))
    assert type is M.TIMEOUT_NOW
    return Message(*head)


def accept_or_refuse(frame: bytes) -> None:
    """Whatever decodes, encodes to the same bytes; else it is MalformedMessage and nothing else."""
    try:
        m = decode(frame)
    except MalformedMessage:
        return
    assert encode(m) == frame


@PROPERTY
@given(messages())
def test_a_message_survives_its_way_as_bytes(m: Message) -> None:
    """Field for field; entries come back as a tuple of entries with their indices."""
    assert decode(encode(m)) == m


@PROPERTY
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_are_a_message(frame: bytes) -> None:
    """No other exception than MalformedMessage gets out."""
    accept_or_refuse(frame)


@PROPERTY
@given(messages(), st.data())
def test_mutated_frames_are_refused_or_are_a_message(m: Message, data: st.DataObject) -> None:
    """Flipped bytes, cut and longer frames, at every place that hypothesis likes."""
    frame = bytearray(encode(m))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "delete"])):
            case "set":
                frame[at] = data.draw(st.integers(0, 255))
            case "cut":
                del frame[at + 1 :]
            case "insert":
                frame[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case "delete" if len(frame) > 1:
                del frame[at]
    accept_or_refuse(bytes(frame))


@PROPERTY
@given(messages())
def test_every_cut_and_every_longer_frame_is_refused(m: Message) -> None:
    """A frame says exactly where it ends."""
    frame = encode(m)
    for end in range(len(frame)):
        with pytest.raises(MalformedMessage):
            decode(frame[:end])
    with pytest.raises(MalformedMessage):
        decode(frame + b"\0")


@PROPERTY
@given(messages())
def test_every_flipped_byte_is_refused_or_gives_another_message(m: Message) -> None:
    """No two frames mean the same."""
    frame = encode(m)
    for at in range(len(frame)):
        other = bytearray(frame)
        other[at] ^= 0x41
        try:
            found = decode(bytes(other))
        except MalformedMessage:
            continue
        assert found != m


def head(type: int, *, version: int = 1, flags: int = 0, reason: int = 0, to: int = 1, sender: int = 2, term: int = 5):
    return struct.pack("<BBBBQQQ", version, type, flags, reason, to, sender, term)


def append(index: int, log_term: int, *entries: tuple[int, int, int, bytes], count: int | None = None) -> bytes:
    frame = head(M.APPEND) + struct.pack("<QQQI", index, log_term, 0, len(entries) if count is None else count)
    for term, length, kind, data in entries:
        frame += struct.pack("<QIB", term, length, kind) + data
    return frame


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (b"", "breaks off"),
        (head(M.COMMIT), "breaks off"),
        (head(M.TIMEOUT_NOW, version=2), "version 2"),
        (head(0), "unknown type 0"),
        (head(99), "unknown type 99"),
        (head(M.TIMEOUT_NOW, flags=1), "flags"),
        (head(M.VOTE_REPLY, flags=4), "flags"),
        (head(M.TIMEOUT_NOW, reason=1), "reason"),
        (head(M.PROPOSE_REPLY) + bytes(8), "reason 0"),
        (head(M.PROPOSE_REPLY, reason=4) + bytes(8), "reason 4"),
        (head(M.TIMEOUT_NOW, to=0), "to 0"),
        (head(M.TIMEOUT_NOW, sender=0), "from 0"),
        (head(M.TIMEOUT_NOW, sender=1), "from 1 to 1"),
        (head(M.TIMEOUT_NOW, term=0), "term 0"),
        (head(M.TIMEOUT_NOW, term=NUMBER_MAX), "of term"),
        (head(M.TIMEOUT_NOW) + b"x", "takes 28 bytes and the frame has 29"),
        (head(M.PROPOSE) + struct.pack("<QI", 7, 0), "PROPOSE of nothing"),
        (head(M.PROPOSE) + struct.pack("<QI", 7, 9) + b"eight by", "PROPOSE takes"),
        (head(M.COMMIT) + struct.pack("<Q", NUMBER_MAX), "out of range"),
        (head(M.VOTE) + struct.pack("<QQ", 0, 1), "about 0@1"),
        (head(M.VOTE) + struct.pack("<QQ", 1, 0), "about 1@0"),
        (head(M.VOTE) + struct.pack("<QQ", 1, 6), "about 1@6"),
        (head(M.APPEND_REPLY) + struct.pack("<QQQ", 3, 1, 1), "rejects nothing"),
        (head(M.APPEND_REPLY, flags=1) + struct.pack("<QQQ", 3, 1, 4), "hint 4@1 for 3"),
        (head(M.APPEND_REPLY, flags=1) + struct.pack("<QQQ", 3, 0, 1), "hint 1@0"),
        (append(1, 0), "about 1@0"),
        (append(1, 1, (1, 0, 9, b"")), "unknown kind 9"),
        (append(1, 3, (2, 0, 0, b"")), "of term 2 after 3"),
        (append(1, 1, (3, 0, 0, b""), (2, 0, 0, b"")), "of term 2 after 3"),
        (append(0, 0, (0, 0, 0, b"")), "of term 0"),
        (append(1, 1, (6, 0, 0, b"")), "of term 6 after 1, sent in 5"),
        (append(1, 1, (1, 5, 0, b"four")), "takes"),
        (append(1, 1, (1, 0xFFFFFFFF, 0, b"")), "takes"),
        (append(1, 1, count=0xFFFFFFFF), "4294967295 entries in 0 bytes"),
        (append(NUMBER_MAX - 1, 1, (1, 0, 0, b"")), "out of range"),
    ],
)
def test_a_malformed_frame_is_refused_and_the_reason_given(frame: bytes, complaint: str) -> None:
    """One case for each way to be wrong."""
    with pytest.raises(MalformedMessage, match=complaint):
        decode(frame)


def test_a_hole_between_entries_cannot_be_said() -> None:
    """Indices follow from the message's own; what has a hole is a bug of the sender and not sent."""
    entries = (Entry(1, 5, 0, b""), Entry(1, 7, 0, b""))
    with pytest.raises(AssertionError):
        encode(Message(M.APPEND, 1, 2, 3, index=4, log_term=1, entries=entries))


def test_the_frame_of_an_append_is_what_the_module_draws() -> None:
    """Members of two versions read each other's bytes: this one stays."""
    m = Message(M.APPEND, 1, 2, 5, index=3, log_term=4, commit=2, entries=(Entry(5, 4, 0, b"ab"),))
    assert encode(m).hex() == "".join(
        (
            "01050000",  # version, type, flags, reason
            "010000000000000002000000000000000500000000000000",  # to, sender, term
            "030000000000000004000000000000000200000000000000",  # index, log_term, commit
            "01000000",  # one entry
            "050000000000000002000000006162",  # term, length, kind, data
        )
    )
