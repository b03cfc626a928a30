"""Ranges told in parts: what comes, of which revision, and what is held meanwhile."""

from __future__ import annotations

import pytest

from cluster import rangestreams
from cluster.callers import Caller
from cluster.rangestreams import PROBE_TICKS, RangeStreams
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind, Method
from storage import reads
from storage.codec import field, varint
from storage.keyspace import Keyspace
from storage.memory import MemoryEngine
from tests.storage.support import Store

ALL = {"key": b"\0", "range_end": b"\0"}


class Host:
    """The apply process around it."""

    def __init__(self) -> None:
        self.store = Store(MemoryEngine())
        self.keyspace: Keyspace = self.store.keyspace
        self.asked: list[Caller] = []
        self.said: dict[int, list[wire.Record]] = {}
        self.room = True
        self.away: set[bytes] = set()
        self.streams = RangeStreams(self)

    def header_now(self, revision: int) -> bytes:
        return field(b"\x0a", b"\x18" + varint(revision))

    def begin_read(self, caller: Caller, payload: bytes, *, serializable: bool) -> None:
        if serializable:
            self.streams.begin(caller)
        else:
            self.asked.append(caller)

    def takes(self, identity: bytes) -> bool:
        return self.room

    def put(self, identity: bytes, record: bytes) -> None:
        (one,) = wire.decode(record)
        self.said.setdefault(one.id, []).append(one)

    def gone(self, identity: bytes) -> bool:
        return identity in self.away

    # What the test says.

    def say(self, kind: Kind, id: int = 1, payload: bytes = b"", identity: bytes = b"c") -> None:
        self.streams.take(Caller(identity, id, Method.RANGE_STREAM), kind, payload)

    def open(self, id: int = 1, *, identity: bytes = b"c", **request: object) -> None:
        self.say(Kind.STREAM_OPEN, id, pb.RangeRequest(**request).SerializeToString(), identity)  # type: ignore[arg-type]

    def confirm(self) -> None:
        for caller in self.asked:
            self.streams.begin(caller)
        self.asked.clear()

    def run(self) -> None:
        while self.streams.busy:
            self.streams.turn()

    def parts(self, id: int = 1) -> list[pb.RangeResponse]:
        """Of a stream that has come to its end."""
        *parts, end = self.said.pop(id)
        assert (end.kind, end.status) == (Kind.STREAM_CLOSE, 0), end
        assert {part.kind for part in parts} <= {Kind.STREAM_MESSAGE}
        return [pb.RangeStreamResponse.FromString(part.payload).range_response for part in parts]


@pytest.fixture
def host() -> Host:
    return Host()


def fill(host: Host, count: int) -> None:
    for number in range(count):
        host.store.put(b"k%03d" % number, b"%d" % number)


def joined(parts: list[pb.RangeResponse]) -> pb.RangeResponse:
    whole = pb.RangeResponse()
    for part in parts:
        whole.MergeFrom(part)
    return whole


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"limit": 5},
        {"limit": 10},
        {"limit": 11},
        {"limit": 37},
        {"limit": 50},
        {"limit": 51},
        {"limit": -1},
        {"keys_only": True},
        {"count_only": True},
        {"count_only": True, "limit": 3},
        {"key": b"k007", "range_end": b""},
        {"key": b"none", "range_end": b""},
        {"key": b"k010", "range_end": b"k020"},
        {"key": b"k020", "range_end": b"k010"},
        {"sort_order": pb.RangeRequest.ASCEND},
        {"sort_order": pb.RangeRequest.NONE, "sort_target": pb.RangeRequest.MOD},
    ],
)
def test_the_parts_are_what_a_range_would_have_said(
    host: Host, monkeypatch: pytest.MonkeyPatch, request_: dict[str, object], past: bool, compacted: bool
) -> None:
    monkeypatch.setattr(rangestreams, "PART_BYTES", 250)
    monkeypatch.setattr(reads, "SLICE_BYTES", 3 * reads.KEY_COST)
    fill(host, 50)
    host.store.delete(b"k011", b"k014")
    host.store.put(b"k012", b"again")
    revision = host.keyspace.revision if past else 0
    if past:
        host.store.delete(b"k0", b"k01")
        host.store.put(b"k012", b"later")
    if compacted:
        host.store.compact(host.keyspace.revision - 2)
        host.store.sweep()
    asked = {**ALL, "revision": revision, **request_}
    plain = {name: value for name, value in asked.items() if not name.startswith("sort")}
    wanted = host.store.read(pb.RangeRequest(**plain))  # type: ignore[arg-type]
    host.open(serializable=True, **asked)
    host.run()
    parts = host.parts()
    assert joined(parts) == wanted
    assert not any(part.HasField("header") or part.count or part.more for part in parts[:-1]), "only in the last"
    assert all(len(part.kvs) for part in parts[:-1])
    if len(wanted.kvs) > 10:
        assert len(parts) > (1 if asked.get("limit") == 11 else 2)
        assert len(parts[0].kvs) == 10
    assert len(host.streams) == 0


def test_all_parts_are_of_the_revision_of_the_first(host: Host) -> None:
    """Whatever is written meanwhile; the revision is fixed when the read index is confirmed, not before."""
    fill(host, 30)
    host.open(**ALL)
    host.store.put(b"k999", b"before the read index")
    host.run()
    assert host.said == {}
    host.confirm()
    before = host.store.range(b"\0", b"\0")
    host.streams.turn()
    assert len(host.said[1]) == 1
    host.store.delete(b"k01", b"k03")
    host.store.put(b"k005", b"later")
    host.store.put(b"k9999", b"later")
    host.run()
    assert joined(host.parts()) == before


def test_a_compaction_of_its_revision_ends_it(host: Host) -> None:
    fill(host, 30)
    host.open(serializable=True, **ALL)
    host.streams.turn()
    host.store.put(b"k000", b"later")
    host.store.compact(host.keyspace.revision)
    host.run()
    *parts, end = host.said[1]
    assert len(parts) == 1
    assert (end.kind, end.status, end.payload) == (
        Kind.STREAM_CLOSE,
        errors.Compacted.code,
        errors.Compacted.text.encode(),
    )
    assert len(host.streams) == 0


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        ({}, errors.EmptyKey, "etcdserver: key is not provided"),
        ({"key": b"a", "sort_order": 9}, errors.InvalidSortOption, "etcdserver: invalid sort option"),
        ({"key": b"a", "sort_order": 2}, errors.Unimplemented, "RangeStream does not support custom sort orders"),
        (
            {"key": b"a", "sort_order": 1, "sort_target": 2},
            errors.Unimplemented,
            "RangeStream does not support custom sort orders",
        ),
        ({"key": b"a", "min_mod_revision": 1}, errors.Unimplemented, "RangeStream does not support revision filters"),
        (
            {"key": b"a", "max_create_revision": 1},
            errors.Unimplemented,
            "RangeStream does not support revision filters",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    host: Host, request_: dict[str, object], error: type[errors.KvorumError], text: str
) -> None:
    with pytest.raises(error, match=text):
        host.open(**request_)
    assert (len(host.streams), host.streams._bytes) == (0, 0)


def test_a_revision_that_is_not_there_ends_it(host: Host) -> None:
    host.open(key=b"a", revision=99, serializable=True)
    host.run()
    (end,) = host.said[1]
    assert (end.kind, end.status) == (Kind.STREAM_CLOSE, errors.FutureRevision.code)


def test_nothing_is_made_for_who_takes_nothing(host: Host) -> None:
    fill(host, 30)
    host.open(1, serializable=True, **ALL)
    host.room = False
    assert not host.streams.busy
    host.streams.turn()
    assert host.said == {}
    host.room = True
    host.run()
    assert len(joined(host.parts()).kvs) == 30


def test_a_paused_stream_says_nothing_until_it_is_resumed(host: Host) -> None:
    fill(host, 30)
    host.open(1, serializable=True, **ALL)
    host.say(Kind.STREAM_PAUSE)
    assert not host.streams.busy
    host.open(2, serializable=True, **ALL)
    host.run()
    assert len(joined(host.parts(2)).kvs) == 30, "others go on"
    assert host.said == {}
    host.say(Kind.STREAM_RESUME)
    host.say(Kind.STREAM_RESUME)
    host.streams.turn()
    host.say(Kind.STREAM_PAUSE)
    host.run()
    assert len(host.said[1]) == 1
    host.say(Kind.STREAM_RESUME)
    host.run()
    assert len(joined(host.parts()).kvs) == 30


def parts(count: int) -> bytes:
    return count.to_bytes(4, "little")


def test_whoever_says_how_many_parts_he_takes_gets_no_more(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rangestreams, "PART_BYTES", 20)
    fill(host, 100)
    host.open(1, serializable=True, **ALL)
    host.say(Kind.STREAM_RESUME, 1, parts(2))
    host.open(2, serializable=True, **ALL)
    host.run()
    assert len(joined(host.parts(2)).kvs) == 100, "others go on"
    assert len(host.said[1]) == 2
    host.say(Kind.STREAM_RESUME, 1, parts(3))
    host.run()
    assert len(host.said[1]) == 5
    host.say(Kind.STREAM_PAUSE)
    host.say(Kind.STREAM_RESUME, 1, parts(1))
    host.say(Kind.STREAM_RESUME, 1, parts(1))
    host.run()
    assert len(host.said[1]) == 7
    host.say(Kind.STREAM_RESUME, 1, parts(1000))
    host.say(Kind.STREAM_PAUSE)
    host.run()
    assert len(host.said[1]) == 7
    host.say(Kind.STREAM_RESUME)
    host.run()
    assert len(joined(host.parts()).kvs) == 100


def test_a_client_that_is_away_and_takes_no_more_is_found_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rangestreams, "PART_BYTES", 20)
    fill(host, 100)
    host.open(1, serializable=True, **ALL)
    host.say(Kind.STREAM_RESUME, 1, parts(1))
    host.run()
    host.away.add(b"c")
    for _ in range(PROBE_TICKS):
        host.streams.tick()
    assert len(host.streams) == 0


@pytest.mark.parametrize(("kind", "payload"), [(Kind.STREAM_RESUME, b"\1"), (Kind.STREAM_PAUSE, parts(1))])
def test_what_says_no_number_of_parts_is_refused(host: Host, kind: Kind, payload: bytes) -> None:
    host.open(1, **ALL)
    with pytest.raises(errors.Malformed):
        host.say(kind, 1, payload)


def test_streams_take_turns(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rangestreams, "PART_BYTES", 20)
    fill(host, 40)
    host.open(1, serializable=True, **ALL)
    host.open(2, serializable=True, **ALL)
    for _ in range(4):
        host.streams.turn()
    assert [len(said) for said in host.said.values()] == [2, 2]


def test_a_stream_that_was_closed_is_forgotten_whatever_it_was_doing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "SLICE_BYTES", 3 * reads.KEY_COST)
    fill(host, 30)
    host.open(1, **ALL)
    host.say(Kind.STREAM_CLOSE)
    host.confirm()
    host.open(2, serializable=True, **ALL)
    host.streams.turn()
    assert host.streams._working is not None, "in the middle of a part"
    host.say(Kind.STREAM_CLOSE, 2)
    host.open(3, serializable=True, **ALL)
    host.say(Kind.STREAM_PAUSE, 3)
    host.say(Kind.STREAM_CLOSE, 3)
    host.say(Kind.STREAM_CLOSE, 4)
    assert not host.streams.busy
    assert (host.said, len(host.streams), host.streams._bytes) == ({}, 0, 0)


def test_who_is_gone_has_no_streams(host: Host) -> None:
    """Nobody tells of a client that went away while its streams were paused."""
    host.open(1, serializable=True, identity=b"gone", **ALL)
    host.open(2, serializable=True, **ALL)
    host.say(Kind.STREAM_PAUSE, 1, identity=b"gone")
    host.say(Kind.STREAM_PAUSE, 2)
    host.away.add(b"gone")
    for _ in range(PROBE_TICKS):
        host.streams.tick()
    assert len(host.streams) == 1


def test_records_that_have_no_place_here_are_refused(host: Host) -> None:
    host.open(1, **ALL)
    with pytest.raises(errors.Refused) as refused:
        host.open(1, **ALL)
    assert refused.value.code is errors.Code.ALREADY_EXISTS
    for kind in (Kind.CALL, Kind.STREAM_MESSAGE, Kind.REPLY):
        with pytest.raises(errors.Unimplemented):
            host.say(kind, 9)


def test_there_are_bounds(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rangestreams, "STREAMS_MAX", 2)
    for id in (1, 2):
        host.open(id, **ALL)
    with pytest.raises(errors.TooManyRequests):
        host.open(3, **ALL)
    monkeypatch.setattr(rangestreams, "STREAMS_MAX", 9)
    monkeypatch.setattr(rangestreams, "REQUESTS_BYTES_MAX", 1000)
    with pytest.raises(errors.TooManyRequests):
        host.open(3, key=bytes(1000))
