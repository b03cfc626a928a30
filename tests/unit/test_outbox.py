"""Answers and reads of clients that ask faster than they take."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cluster import outbox
from cluster.callers import Caller
from cluster.outbox import KEPT_BYTES_MAX, TURN_BYTES, Outbox
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method

ONE = pb.RangeRequest(key=b"a").SerializeToString()
MANY = pb.RangeRequest(key=b"a", range_end=b"z").SerializeToString()


class Stage:
    """An outbox; `room` is how many records each client's queue takes, None for a client that is gone."""

    def __init__(self) -> None:
        self.room: dict[bytes, int | None] = {}
        self.sent: dict[bytes, list[bytes]] = {}
        self.tried: list[bytes] = []
        self.dropped = 0
        self.outbox = Outbox(self.reply, self.drop)

    def reply(self, identity: bytes, records: Sequence[bytes]) -> list[bytes] | None:
        self.tried.append(identity)
        room = self.room.get(identity, 1000)
        if room is None:
            return None
        self.sent.setdefault(identity, []).extend(records[:room])
        return list(records[room:])

    def drop(self, count: int) -> None:
        self.dropped += count

    def due(self) -> list[int]:
        return [caller.id for caller, _ in self.outbox.due()]


def caller(identity: bytes = b"c", id: int = 1) -> Caller:
    return Caller(identity, id, Method.RANGE)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_answers_leave_with_the_turn_in_their_order(stage: Stage) -> None:
    for record in (b"1", b"2"):
        stage.outbox.put(b"c", record)
    stage.outbox.put(b"d", b"3")
    stage.outbox.flush()
    assert stage.sent == {b"c": [b"1", b"2"], b"d": [b"3"]}
    assert not stage.outbox.stuck


def test_what_a_queue_has_no_room_for_is_kept_and_leaves_before_what_is_newer(stage: Stage) -> None:
    stage.room[b"c"] = 1
    for record in (b"1", b"2", b"3"):
        stage.outbox.put(b"c", record)
    stage.outbox.flush()
    assert stage.outbox.stuck
    stage.outbox.put(b"c", b"4")
    stage.outbox.flush()
    stage.room[b"c"] = 1000
    stage.outbox.flush()
    assert stage.sent[b"c"] == [b"1", b"2", b"3", b"4"]
    assert not stage.outbox.stuck


def test_beyond_the_bound_the_newest_answers_are_dropped_and_counted(stage: Stage) -> None:
    stage.room[b"c"] = 0
    quarter = bytes(KEPT_BYTES_MAX // 4)
    for number in range(7):
        stage.outbox.put(b"c", b"%d" % number + quarter)
    stage.outbox.flush()
    assert stage.dropped == 3
    stage.room[b"c"] = 1000
    stage.outbox.flush()
    assert [record[:1] for record in stage.sent[b"c"]] == [b"0", b"1", b"2", b"3"]


def test_one_answer_is_kept_however_large_and_costs_the_others_nothing(stage: Stage) -> None:
    stage.room[b"c"] = 0
    for size in (10, 3 * KEPT_BYTES_MAX, TURN_BYTES):
        stage.outbox.put(b"c", bytes(size))
    stage.outbox.flush()
    assert stage.dropped == 0


def test_a_client_that_takes_nothing_gets_no_further_read_done(stage: Stage) -> None:
    stage.room[b"c"] = 0
    stage.outbox.put(b"c", b"answer")
    stage.outbox.flush()
    for payload in (ONE, MANY):
        assert not stage.outbox.may_read(caller(), payload)
        assert stage.outbox.may_read(caller(b"d"), payload)
    assert stage.outbox.wait(caller(), MANY)
    assert stage.due() == []
    assert not stage.outbox.busy
    stage.room[b"c"] = 1000
    stage.outbox.flush()
    assert stage.outbox.busy
    assert stage.due() == [1]


def test_a_client_has_one_long_read_at_a_time_and_reads_of_one_key_beside_it(stage: Stage) -> None:
    stage.outbox.begin_scan(b"c")
    assert not stage.outbox.may_read(caller(), MANY)
    assert stage.outbox.may_read(caller(), ONE)
    stage.outbox.wait(caller(), MANY)
    assert stage.due() == []
    stage.outbox.end_scan(b"c")
    assert stage.due() == [1]


def test_a_turn_that_has_produced_enough_begins_no_more_reads(stage: Stage) -> None:
    stage.outbox.put(b"d", bytes(TURN_BYTES))
    assert not stage.outbox.may_read(caller(), ONE)
    stage.outbox.wait(caller(), ONE)
    assert stage.due() == []
    stage.outbox.flush()
    assert stage.outbox.busy
    assert stage.due() == [1]
    stage.outbox.put(b"c", b"its answer")
    stage.outbox.flush()
    assert stage.outbox.may_read(caller(), MANY)


def test_clients_that_wait_take_turns(stage: Stage) -> None:
    for id in range(4):
        stage.outbox.wait(caller(b"c", id), MANY)
    stage.outbox.wait(caller(b"d", 10), MANY)
    assert stage.due() == [0, 10, 1, 2, 3]


def test_a_client_whose_last_read_had_no_answer_yet_takes_the_parts_of_it(stage: Stage) -> None:
    """It would never be asked for one: nothing leaves for it that could settle it."""
    stage.room[b"c"] = 0
    stage.outbox.put(b"c", b"1")
    stage.outbox.flush()
    assert stage.outbox.wait(caller(), MANY)
    assert not stage.outbox.takes(b"c")
    stage.room[b"c"] = 1000
    stage.outbox.flush()
    assert stage.due() == [1]
    assert stage.outbox.takes(b"c")
    stage.outbox.flush()
    assert stage.outbox.calm


def test_too_many_reads_that_wait_are_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WAITING_MAX", 2)
    assert stage.outbox.wait(caller(), MANY)
    assert stage.outbox.wait(caller(), MANY)
    assert not stage.outbox.wait(caller(), MANY)
    assert stage.due() == [1, 1]
    assert stage.outbox.wait(caller(), MANY)
    monkeypatch.setattr(outbox, "WAITING_BYTES_MAX", 2 * len(MANY))
    assert stage.outbox.wait(caller(), MANY)
    assert not stage.outbox.wait(caller(), MANY)


def test_the_reads_of_a_client_that_is_gone_are_forgotten(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WAITING_MAX", 1)
    stage.room[b"c"] = 0
    stage.outbox.put(b"c", b"answer")
    stage.outbox.flush()
    stage.outbox.wait(caller(), MANY)
    stage.room[b"c"] = None
    stage.outbox.flush()
    assert not stage.outbox.stuck
    assert not stage.outbox.busy
    assert stage.outbox.wait(caller(b"d"), MANY), "its place is free"


def test_of_many_clients_that_take_nothing_some_are_tried_each_turn(stage: Stage) -> None:
    for number in range(40):
        stage.room[b"%d" % number] = 0
        stage.outbox.put(b"%d" % number, b"answer")
    stage.outbox.flush()
    seen = set()
    for _ in range(3):
        stage.tried.clear()
        stage.outbox.flush()
        assert len(stage.tried) == outbox.TRIES_PER_TURN
        seen.update(stage.tried)
    assert len(seen) == 40
