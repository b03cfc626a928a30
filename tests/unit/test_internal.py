"""The frames between the processes of one node: what goes in comes out, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import internal
from cluster.internal import (
    Answer,
    Answered,
    Applied,
    Ask,
    Asked,
    Attach,
    Attached,
    Changes,
    Committed,
    Fenced,
    History,
    HistoryRequest,
    MalformedFrame,
    MoveLeader,
    Progress,
    Propose,
    ReadFailed,
    ReadIndex,
    ReadReady,
    Rejected,
    Status,
    WatchAck,
    WatchAttach,
    WatchAttached,
    WatchDetach,
    WatchLost,
)
from storage.entry import Entry
from storage.keyspace import Change

u64 = st.integers(0, 2**64 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
bit = st.integers(0, 1)
blob = st.binary(max_size=40)
entries = st.lists(st.builds(Entry, u64, u64, st.integers(0, 2**32 - 1), blob), max_size=4)
changes = st.lists(st.builds(Change, i64, blob, blob), max_size=4)
messages = st.one_of(
    st.builds(Attach, u64, u64),
    st.builds(Propose, u64, u64, blob),
    st.builds(ReadIndex, u64, u64),
    st.builds(Applied, u64, u64, u64),
    st.builds(MoveLeader, u64, u64),
    st.builds(Ask, u64, u64, blob),
    st.builds(Answer, u64, u64, u64, blob),
    st.builds(Asked, u64, u64, u64, blob),
    st.builds(Answered, u64, u64, blob),
    st.builds(Attached, u64),
    st.builds(Fenced, u64),
    st.builds(Committed, u64, entries),
    st.builds(Status, u64, u64, u64, u64),
    st.builds(ReadReady, u64, u64, u64),
    st.builds(ReadFailed, u64, u64),
    st.builds(Rejected, u64, u64, st.text(max_size=20)),
    st.builds(WatchAttach, u64, bit),
    st.builds(WatchAck, u64, u64),
    st.builds(WatchDetach, u64),
    st.builds(HistoryRequest, u64, u64, i64, u64),
    st.builds(WatchAttached, u64, i64, i64, u64, bit),
    st.builds(WatchLost, u64),
    st.builds(Changes, u64, u64, i64, changes),
    st.builds(Progress, u64, u64, i64, i64, u64, bit),
    st.builds(History, u64, u64, i64, i64, i64, changes),
)


@given(messages)
def test_a_message_survives_its_frame(message: internal.Message) -> None:
    assert internal.decode(internal.encode(message)) == message


@given(messages, st.data())
def test_a_cut_frame_is_refused_or_is_another_whole_message(message: internal.Message, data: st.DataObject) -> None:
    """Messages that end in free bytes or a list can be cut where something whole ends; nothing else may pass."""
    frame = internal.encode(message)
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    try:
        again = internal.decode(cut)
    except MalformedFrame:
        return
    assert internal.encode(again) == cut


@given(st.binary(max_size=200))
def test_garbage_is_refused_with_the_error_of_this_page(frame: bytes) -> None:
    try:
        message = internal.decode(frame)
    except MalformedFrame:
        return
    assert internal.encode(message) == frame


def test_an_unknown_message_is_named() -> None:
    with pytest.raises(MalformedFrame, match="unknown message 99"):
        internal.decode(b"\x63")
