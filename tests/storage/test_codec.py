"""The bytes of the store."""

from __future__ import annotations

import random

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from kvorum import etcd_pb2 as pb
from storage import codec

KEYS = [
    b"",
    b"\0",
    b"\0\0",
    b"\0\xff",
    b"\0\1",
    b"\1",
    b"a",
    b"a\0",
    b"a\0\0",
    b"a\0\1",
    b"a\0\xff",
    b"a\1",
    b"ab",
    b"\xff",
]


def test_history_keeps_the_order_of_keys_and_puts_the_newest_first() -> None:
    """DESIGN 6: order is kept, and no key's entries lie among another's."""
    places = [(9, 3), (9, 0), (8, codec.SUB_MAX), (2, 0), (1, 7)]
    wanted = [codec.history_key(key, *place) for key in sorted(KEYS) for place in places]
    assert wanted == sorted(wanted)
    for key in KEYS:
        for place in places:
            entry = codec.history_key(key, *place)
            assert codec.history_start(key) <= entry < codec.history_end(key)
            assert codec.history_place(entry) == place
            for other in KEYS:
                if other != key:
                    assert not codec.history_start(other) <= entry < codec.history_end(other)


def test_the_bound_of_a_revision_parts_older_from_newer() -> None:
    for main in (1, 255, 256, 1 << 40):
        for place in [(main, 0), (main, codec.SUB_MAX), (main - 1, 3)]:
            assert codec.history_key(b"k", *place)[-12:] >= codec.history_bound(main)
        assert codec.history_key(b"k", main + 1, codec.SUB_MAX)[-12:] < codec.history_bound(main)


def test_revisions_sort_as_numbers() -> None:
    places = [(1, 0), (1, 1), (1, 256), (2, 0), (256, 0), (1 << 50, 0)]
    keys = [codec.revision_key(*place) for place in places]
    assert keys == sorted(keys)
    assert [codec.revision_place(key) for key in keys] == places


def test_messages_put_together_by_hand_are_what_protobuf_writes() -> None:
    dice = random.Random(3)
    for _ in range(3000):
        key, value = (
            dice.randbytes(dice.choice([0, 1, 127, 128, 3000])),
            dice.randbytes(dice.choice([0, 1, 127, 20000])),
        )
        create, main = sorted(dice.getrandbits(dice.randint(1, 63)) + 1 for _ in range(2))
        version, lease = dice.choice([1, 127, 128, 1 << 33]), dice.choice([0, 0, 1, -1, 1 << 62, -(1 << 62)])
        kv = pb.KeyValue(key=key, create_revision=create, mod_revision=main, version=version, value=value, lease=lease)
        if not key:
            continue
        made = codec.key_value(key, codec.lifetime(create, main, version), value, lease)
        assert made == kv.SerializeToString()
        event = codec.field(b"\x12", made)
        assert event == pb.Event(kv=kv).SerializeToString()
        assert codec.event_kv(event) == made
        kv.ClearField("value")
        assert codec.without_value(made) == kv.SerializeToString()
        gone = pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=key, mod_revision=main))
        assert codec.delete_event(key, main) == gone.SerializeToString()


def test_varints_of_every_length() -> None:
    for bits in range(64):
        for n in {max((1 << bits) - 1, 0), 1 << bits, (1 << bits) + 1}:
            if n < 1 << 63:
                assert b"\x18" + codec.varint(n) == (pb.ResponseHeader(revision=n).SerializeToString() or b"\x18\0")


def test_ranges_end_as_etcd_means_it() -> None:
    """API reference 4."""
    assert codec.span_end(b"k", b"") == b"k\0"
    assert codec.span_end(b"k", b"\0") is None
    assert codec.span_end(b"k", b"m") == b"m"
    assert codec.span_end(b"k", b"\0\0") == b"\0\0"


def test_proposals_come_back_as_they_went() -> None:
    proposal = codec.Proposal(1 << 63, 7, (1 << 64) - 1, b"records")
    assert codec.unpack_proposal(codec.pack_proposal(*proposal)) == proposal
    for size in range(24):
        with pytest.raises(ValueError, match="no proposal"):
            codec.unpack_proposal(bytes(size))


def test_a_store_of_another_format_is_refused() -> None:
    state = codec.State(5, 2, 9, -1)
    assert codec.unpack_state(codec.pack_state(state)) == state
    for stored in (b"", b"\1" + codec.pack_state(state)[1:], codec.pack_state(state) + b"x"):
        with pytest.raises(codec.UnknownFormat):
            codec.unpack_state(stored)


@pytest.mark.parametrize("main", [2, 300, 1 << 40])
def test_many_deletions_are_what_each_of_them_is(main: int) -> None:
    keys = [*KEYS, b"long" * 1000]
    assert codec.deletions(keys, main, 5) == [
        (codec.history_key(key, main, sub), codec.delete_event(key, main)) for sub, key in enumerate(keys, 5)
    ]


@given(st.binary(max_size=12) | st.integers(0, (1 << 63) - 1).map(lambda n: b"\x08" + codec.varint(n)))
def test_a_number_alone_is_what_protobuf_finds(message: bytes) -> None:
    """And nothing else is taken for one: a lease's id is told by the bytes it came in."""
    number = codec.only_number(message)
    if number:
        assert pb.LeaseKeepAliveRequest.FromString(message) == pb.LeaseKeepAliveRequest(ID=number)
        assert message == pb.LeaseKeepAliveRequest(ID=number).SerializeToString()
    else:
        try:
            known = pb.LeaseKeepAliveRequest.FromString(message)
        except DecodeError:
            return
        assert known.ID <= 0 or known != pb.LeaseKeepAliveRequest(ID=known.ID) or len(message) > known.ByteSize()
