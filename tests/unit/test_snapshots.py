"""Snapshots at an apply process, and at a gateway between an edge and that: who gets what, and every end but the good
one. No processes: exports are what the test puts into them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable

import pytest
from google.protobuf.message import Message

from cluster import version
from cluster.callers import Caller
from cluster.snapshotcalls import BLOB_BYTES, HOLD_TICKS, SnapshotCalls
from cluster.snapshots import (
    BUSY,
    NO_ROOM,
    NO_SIZE,
    PIECE_BYTES,
    SILENCE_ELECTIONS,
    SNAPSHOTS_MAX,
    TOO_MANY,
    UNKNOWN,
    WAIT_ELECTIONS,
    Snapshots,
)
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method

ELECTION = 10
DATABASE = bytes(range(256)) * 1024 * 3 + bytes(4096)  # three pieces and a bit
WHOLE = DATABASE + hashlib.sha256(DATABASE).digest()


class Export:
    """It has what it was given, and takes it in parts of at most `part` bytes."""

    def __init__(self, mark: int) -> None:
        self.mark = mark
        self.data = bytearray()
        self.ended = self.closed = False
        self.part = 1 << 30

    def read(self, most: int) -> bytes | None:
        assert not self.closed
        assert most > 0
        if not self.data:
            return b"" if self.ended else None
        data = bytes(self.data[: min(most, self.part)])
        del self.data[: len(data)]
        return data

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def give(self, database: bytes = WHOLE, size: int = len(DATABASE)) -> None:
        self.data += size.to_bytes(8, "little") + database


class Stage:
    def __init__(self) -> None:
        self.exports: list[Export] = []
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.durable = 0
        self.ticks = 0
        self.refuse: OSError | None = None
        self.snapshots = Snapshots(self.start, self.answer, epoch=7, election_ticks=ELECTION)

    def start(self, mark: int) -> Export:
        if self.refuse is not None:
            raise self.refuse
        self.exports.append(Export(mark))
        return self.exports[-1]

    def answer(self, caller: Caller, status: int, payload: bytes) -> None:
        assert caller.id not in self.answers
        self.answers[caller.id] = status, payload

    def caller(self, id: int, identity: bytes = b"c") -> Caller:
        return Caller(identity, id, Method.SNAPSHOT)

    def begin(self, mark: int = 0, identity: bytes = b"c") -> int:
        self.snapshots.begin(self.caller(-1, identity), mark)
        begun = self.told(-1)
        assert begun == pb.SnapshotResponse(snapshot=begun.snapshot, version=version.ETCD)
        self.snapshots.turn(self.durable)
        return begun.snapshot

    def ask(self, id: int, snapshot: int, identity: bytes = b"c", **more: bool) -> None:
        self.snapshots.ask(self.caller(id, identity), pb.SnapshotRequest(snapshot=snapshot, **more))

    def told(self, id: int) -> pb.SnapshotResponse:
        status, payload = self.answers.pop(id)
        assert status == 0, payload
        return pb.SnapshotResponse.FromString(payload)

    def refused(self, id: int) -> str:
        status, payload = self.answers.pop(id)
        assert status
        return payload.decode()

    def tick(self, count: int) -> None:
        for _ in range(count):
            self.ticks += 1
            self.snapshots.tick(self.ticks)


@pytest.mark.parametrize("part", [1 << 30, 70_001])
def test_pieces_come_one_by_one_as_they_are_asked_for_and_the_checksum_last(part: int) -> None:
    stage = Stage()
    id = stage.begin()
    (export,) = stage.exports
    export.part = part
    export.give()
    left, found, sizes = len(DATABASE), b"", []
    while stage.snapshots:
        stage.ask(1, id)
        piece = stage.told(1)
        found += piece.blob
        sizes.append(len(piece.blob))
        left = max(0, left - len(piece.blob))
        assert piece == pb.SnapshotResponse(remaining_bytes=left, blob=piece.blob, version=version.ETCD)
        assert len(export.data) >= len(WHOLE) - len(found) - PIECE_BYTES, "no more than one piece is read ahead"
    assert found == WHOLE
    assert sizes == [PIECE_BYTES] * 3 + [4096, 32]
    assert export.closed
    with pytest.raises(errors.Unavailable, match=UNKNOWN.text):
        stage.ask(1, id)


def test_an_export_begins_when_what_was_applied_is_on_disk() -> None:
    stage = Stage()
    stage.durable = 4
    stage.begin(5)
    assert stage.exports == []
    stage.snapshots.turn(5)
    stage.snapshots.turn(6)
    (export,) = stage.exports
    assert export.mark == 5


def test_whoever_waits_is_answered_when_there_is_something_or_after_a_while() -> None:
    stage = Stage()
    stage.durable = -1
    id = stage.begin()
    stage.ask(1, id)
    stage.tick(WAIT_ELECTIONS * ELECTION - 1)
    assert stage.answers == {}
    stage.tick(1)
    assert stage.told(1) == pb.SnapshotResponse(version=version.ETCD)  # nothing yet
    stage.snapshots.turn(0)
    stage.ask(2, id)
    with pytest.raises(errors.Refused, match=BUSY.text):
        stage.ask(3, id)
    (export,) = stage.exports
    export.give(WHOLE[:-1])
    stage.snapshots.turn(0)
    assert stage.told(2).blob == WHOLE[:PIECE_BYTES]


def test_who_is_silent_is_given_up_and_who_holds_is_not() -> None:
    stage = Stage()
    silent, holding = stage.begin(), stage.begin()
    for _ in range(3):
        stage.tick(SILENCE_ELECTIONS * ELECTION // 2)
        stage.ask(1, holding, hold=True)
        assert stage.told(1) == pb.SnapshotResponse()
    assert [export.closed for export in stage.exports] == [True, False]
    assert len(stage.snapshots) == 1
    with pytest.raises(errors.Unavailable, match=UNKNOWN.text):
        stage.ask(1, silent)


def test_a_client_cancels_its_own_and_no_other() -> None:
    stage = Stage()
    id = stage.begin()
    for wrong in ({"identity": b"other"}, {"cancel": True, "identity": b"other"}):
        with pytest.raises(errors.Unavailable, match=UNKNOWN.text):
            stage.ask(1, id, **wrong)  # type: ignore[arg-type]
    stage.ask(1, id, cancel=True)
    assert stage.told(1) == pb.SnapshotResponse()
    assert stage.exports[0].closed
    assert not stage.snapshots


def test_too_many_at_once_are_refused() -> None:
    stage = Stage()
    ids = {stage.begin() for _ in range(SNAPSHOTS_MAX)}
    assert len(ids) == SNAPSHOTS_MAX
    with pytest.raises(errors.Unavailable, match=TOO_MANY.text):
        stage.begin()
    stage.ask(1, ids.pop(), cancel=True)
    stage.told(1)
    assert stage.begin() not in ids


def break_off(stage: Stage) -> str:
    stage.exports[0].give(WHOLE[: PIECE_BYTES // 2])
    stage.exports[0].ended = True
    return "broken off"


def say_nothing(stage: Stage) -> str:
    stage.exports[0].ended = True
    return "broken off"


def say_why(stage: Stage) -> str:
    stage.exports[0].give(b"cannot be begun: for a reason", NO_SIZE)
    return "for a reason"


def full(stage: Stage) -> str:
    stage.snapshots.give_up(NO_ROOM)
    return "no space left"


@pytest.mark.parametrize("fail", [break_off, say_nothing, say_why, full])
@pytest.mark.parametrize("early", [False, True])
def test_an_export_that_fails_is_told_to_its_client_now_or_when_it_asks(
    fail: Callable[[Stage], str], early: bool
) -> None:
    stage = Stage()
    id, other = stage.begin(), stage.begin(identity=b"other")
    if early:
        stage.ask(1, id)
    text = fail(stage)
    stage.snapshots.turn(0)
    if not early:
        stage.ask(1, id)
    assert text in stage.refused(1)
    assert stage.exports[0].closed
    assert len(stage.snapshots) == 1
    if fail is not full:
        stage.exports[1].give()
        stage.ask(2, other, b"other")
        assert stage.told(2).blob


def test_an_export_that_cannot_be_started_is_told() -> None:
    stage = Stage()
    stage.refuse = OSError(24, "too many open files")
    id = stage.begin()
    stage.ask(1, id)
    assert "too many open files" in stage.refused(1)
    assert not stage.snapshots


# ---- the gateway's part


class Apply:
    """Asked by the gateway; and the edge, told by it."""

    def __init__(self) -> None:
        self.asked: deque[tuple[pb.SnapshotRequest, Callable[[int, bytes], None]]] = deque()
        self.sent: list[pb.SnapshotResponse] = []
        self.ended: list[tuple[int, int, str]] = []
        self.calls = SnapshotCalls(self)

    def ask(self, method: int, request: Message | bytes, then: Callable[[int, bytes], None]) -> None:
        assert method == Method.SNAPSHOT
        assert isinstance(request, pb.SnapshotRequest)
        self.asked.append((request, then))

    def send(self, id: int, payload: bytes) -> None:
        self.sent.append(pb.SnapshotResponse.FromString(payload))

    def end(self, id: int, status: int = 0, text: str = "") -> None:
        self.ended.append((id, status, text))

    def answer(self, **response: object) -> pb.SnapshotRequest:
        """The oldest request. Returns it."""
        request, then = self.asked.popleft()
        then(0, pb.SnapshotResponse(**response).SerializeToString())  # type: ignore[arg-type]
        return request

    def begun(self, id: int = 1 << 32) -> int:
        self.calls.begin(id)
        assert self.answer(snapshot=5) == pb.SnapshotRequest()
        return id


NEXT, CANCEL, HOLD = (
    pb.SnapshotRequest(snapshot=5),
    pb.SnapshotRequest(snapshot=5, cancel=True),
    pb.SnapshotRequest(snapshot=5, hold=True),
)


def test_a_piece_becomes_etcds_messages() -> None:
    apply = Apply()
    id = apply.begun()
    assert apply.answer() == NEXT  # nothing yet
    assert apply.sent == []
    data = DATABASE[: 2 * BLOB_BYTES + 4096]
    assert apply.answer(blob=data, remaining_bytes=0) == NEXT
    assert [(len(one.blob), one.remaining_bytes, one.version) for one in apply.sent] == [
        (BLOB_BYTES, BLOB_BYTES + 4096, version.ETCD),
        (BLOB_BYTES, 4096, version.ETCD),
        (4096, 0, version.ETCD),
    ]
    assert apply.ended == []
    assert apply.answer(blob=bytes(32)) == NEXT
    assert apply.sent[-1] == pb.SnapshotResponse(blob=bytes(32), version=version.ETCD)
    assert apply.ended == [(id, 0, "")]
    assert not apply.calls
    assert not apply.asked


def test_a_slow_client_is_given_nothing_and_its_snapshot_is_held() -> None:
    apply = Apply()
    id = apply.begun()
    apply.calls.block(id, True)
    apply.answer(blob=bytes(4096), remaining_bytes=4096)  # was under way
    assert len(apply.sent) == 1
    assert not apply.asked
    for tick in range(1, HOLD_TICKS + 1):
        apply.calls.tick(tick)
    assert apply.answer() == HOLD
    assert not apply.asked
    apply.calls.block(id, False)
    assert apply.answer() == NEXT


def test_a_client_that_goes_takes_its_snapshot_along() -> None:
    apply = Apply()
    id = apply.begun()
    apply.calls.cancel(id)
    apply.answer(blob=bytes(4096), remaining_bytes=0)  # of nobody
    assert apply.sent == []
    assert [request for request, _ in apply.asked] == [CANCEL]
    apply.calls.block(id, True)
    apply.calls.cancel(id)  # no call of ours


def test_a_client_that_goes_before_its_snapshot_has_begun_takes_it_along_too() -> None:
    apply = Apply()
    apply.calls.begin(1 << 32)
    apply.calls.cancel(1 << 32)
    assert len(apply.asked) == 1
    apply.answer(snapshot=5)
    assert apply.answer() == CANCEL
    assert not apply.asked


@pytest.mark.parametrize("begun", [False, True])
def test_what_apply_says_is_wrong_ends_the_call(begun: bool) -> None:
    apply = Apply()
    if begun:
        apply.begun()
    else:
        apply.calls.begin(1 << 32)
    apply.asked.popleft()[1](14, b"lost")
    assert apply.ended == [(1 << 32, 14, "lost")]
    assert not apply.calls


def test_a_gateway_that_stops_says_so() -> None:
    apply = Apply()
    id = apply.begun()
    apply.calls.stop()
    assert apply.ended == [(id, errors.Stopped.code, errors.Stopped.text)]
    assert apply.asked[-1][0] == CANCEL
