"""The apply process against a raft process played by the test: who is answered what, and when."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cluster.applyd import FRESH_ELECTIONS, Applyd, Superseded
from cluster.flushes import FLUSH_ROOM_BYTES, FLUSH_TICKS
from cluster.internal import (
    Applied,
    Attach,
    Attached,
    Committed,
    Fenced,
    Message,
    Propose,
    ReadFailed,
    ReadIndex,
    ReadReady,
    Rejected,
    Status,
    Tick,
)
from cluster.links import ClientFrame
from cluster.longreads import HASHES_MAX
from cluster.metrics import ApplyBoard
from cluster.quota import DISK_RESERVE_BYTES
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.errors import Code
from kvorum.wire import Kind, Method
from storage.codec import pack_proposal, varint
from storage.entry import Entry
from storage.keyspace import Keyspace
from storage.memory import LossyEngine, MemoryEngine
from storage.requests import Limits
from tests.unit.test_snapshots import Export

ELECTION, TIMEOUT = 10, 70


class Node:
    """As much of cluster.node.Node as Applyd asks for."""

    member_id = 1
    member_ids = frozenset({1, 2, 3})
    store_bytes = 0
    publication = pb.MemberPublish(member=pb.Member(ID=1))

    def header(self, revision: int, term: int) -> bytes:
        body = b"\x18" + varint(revision) if revision else b""
        return b"\x0a" + varint(len(body)) + body


class Stage:
    """Applyd with everything around it in the test's hands: `raft` is what it said, `inbox` what clients were told."""

    def __init__(self, quota_bytes: int = 0, engine: MemoryEngine | None = None) -> None:
        self.incoming: list[object] = []
        self.raft: list[Message] = []
        self.inbox: dict[bytes, list[wire.Record]] = {}
        self.keyspace = Keyspace(engine or MemoryEngine())
        self.exports: list[Export] = []
        board = ApplyBoard()
        board.open(None)
        self.apply = Applyd(
            self.keyspace,
            self,
            Node(),  # type: ignore[arg-type]
            board,
            epoch=7,
            limits=Limits(),
            quota_bytes=quota_bytes,
            election_ticks=ELECTION,
            timeout_ticks=TIMEOUT,
            export=self.export,
        )
        self.apply._members._published_at = 1 << 60  # this test is about clients' requests,
        self.apply._landlord._asked_to_lead = (1, 1 << 60)  # and about keys
        self.session = 0
        self.index = 0

    # The link.

    def receive(self) -> list[object]:
        items, self.incoming = self.incoming, []
        return items

    def to_raft(self, message: Message) -> None:
        self.raft.append(message)

    def to_watch(self, message: Message) -> None:
        raise AssertionError("nobody watches")

    def reply(self, identity: bytes, records: Sequence[bytes]) -> list[bytes]:
        self.inbox.setdefault(identity, []).extend(wire.decode(b"".join(records)))
        return []

    def export(self, mark: int) -> Export:
        self.exports.append(Export(mark))
        return self.exports[-1]

    # What happens.

    def turn(self, *items: object) -> None:
        self.incoming += items
        self.apply.turn()

    def attach(self, leader: int = 1, term: int = 1) -> None:
        self.session += 1
        self.turn(Attached(self.session), Status(self.session, term, leader, 0))

    def catch_up(self) -> None:
        """Confirm the read index that a fresh process asks for."""
        for asked in self.said(ReadIndex):
            self.turn(ReadReady(self.session, asked.context, self.index))  # type: ignore[attr-defined]

    def said(self, kind: type[Message]) -> list[Message]:
        """What raft was told of this kind since it was last asked."""
        found = [message for message in self.raft if isinstance(message, kind)]
        self.raft = [message for message in self.raft if not isinstance(message, kind)]
        return found

    def commit(self, *proposals: Propose) -> None:
        entries = []
        for proposal in proposals:
            self.index += 1
            entries.append(Entry(1, self.index, 0, proposal.data))
        self.turn(Committed(self.session, entries))

    def answers(self, identity: bytes = b"c") -> dict[int, tuple[int, bytes]]:
        return {record.id: (record.status, record.payload) for record in self.inbox.pop(identity, [])}

    def tick(self, count: int) -> None:
        for _ in range(count):
            self.turn(Tick())


def put(id: int, key: bytes, value: bytes = b"v") -> bytes:
    return wire.encode(
        Method.PUT, Kind.CALL, 0, id, pb.PutRequest(key=key, value=value, prev_kv=True).SerializeToString()
    )


def get(id: int, key: bytes, serializable: bool = False) -> bytes:
    request = pb.RangeRequest(key=key, serializable=serializable)
    return wire.encode(Method.RANGE, Kind.CALL, 0, id, request.SerializeToString())


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    made.attach()
    made.catch_up()
    made.raft.clear()
    return made


def test_a_fresh_process_shows_nothing_older_than_what_was_shown_before_it() -> None:
    """DESIGN 10: nothing that a read has shown is taken back; a store just opened is as old as its last flush."""
    stage = Stage()
    stage.turn(ClientFrame(b"c", get(1, b"a", serializable=True)))
    stage.attach()
    (asked,) = stage.said(ReadIndex)
    proposal = Propose(1, 0, pack_proposal(2, 1, 1, put(9, b"a", b"shown before")))
    stage.turn(ReadReady(1, asked.context, 1))  # type: ignore[attr-defined]
    assert stage.answers() == {}
    stage.commit(proposal)
    (answer,) = stage.answers().values()
    assert pb.RangeResponse.FromString(answer[1]).kvs[0].value == b"shown before"
    stage.turn(ClientFrame(b"c", get(2, b"a", serializable=True)))
    assert len(stage.answers()) == 1, "from then on at once"


def test_a_fresh_process_asks_again_when_its_read_index_failed() -> None:
    stage = Stage()
    stage.turn(ClientFrame(b"c", get(1, b"a", serializable=True)))
    stage.attach()
    (asked,) = stage.said(ReadIndex)
    stage.turn(ReadFailed(1, asked.context))  # type: ignore[attr-defined]
    stage.turn()
    stage.catch_up()
    assert len(stage.answers()) == 1


def test_without_a_leader_a_fresh_process_answers_serializable_reads_in_the_end() -> None:
    """RELIABILITY D6: without a majority serializable reads still work."""
    stage = Stage()
    stage.turn(ClientFrame(b"c", get(1, b"a", serializable=True)))
    stage.attach(leader=0)
    stage.tick(FRESH_ELECTIONS * ELECTION)
    assert stage.answers() == {}
    stage.tick(1)
    assert len(stage.answers()) == 1


def proposals(stage: Stage) -> list[Propose]:
    return [message for message in stage.said(Propose) if isinstance(message, Propose)]


def test_the_writes_of_a_wakeup_are_one_proposal_and_are_answered_after_their_commit(stage: Stage) -> None:
    stage.turn(ClientFrame(b"c", put(1, b"a") + put(2, b"b")), ClientFrame(b"d", put(1, b"c")))
    (proposal,) = proposals(stage)
    assert not stage.inbox
    stage.commit(proposal)
    assert set(stage.answers(b"c")) == {1, 2}
    assert set(stage.answers(b"d")) == {1}


def test_each_answer_goes_to_its_own_request_though_a_bad_one_stands_between(stage: Stage) -> None:
    """RELIABILITY T5: answers shifted by one."""
    records = [
        put(1, b"a", b"1"),
        put(2, b""),
        get(3, b"a", serializable=True),
        put(4, b"a", b"4"),
        wire.encode(99, Kind.CALL, 0, 5, b""),
        wire.encode(Method.PUT, Kind.CALL, 0, 6, b"\xff"),
        wire.encode(Method.PUT, Kind.REPLY, 0, 7, b""),
        wire.encode(Method.DELETE_RANGE, Kind.CALL, 0, 8, pb.DeleteRangeRequest(key=b"a").SerializeToString()),
    ]
    stage.turn(ClientFrame(b"c", b"".join(records)))
    at_once = stage.answers()
    assert {id: status for id, (status, _) in at_once.items()} == {
        2: Code.INVALID_ARGUMENT,
        3: Code.OK,
        5: Code.UNIMPLEMENTED,
        6: Code.INTERNAL,
        7: Code.UNIMPLEMENTED,
    }
    assert at_once[5][1] == b"unknown method 99"
    stage.commit(*proposals(stage))
    later = stage.answers()
    assert set(later) == {1, 4, 8}
    assert pb.PutResponse.FromString(later[4][1]).prev_kv.value == b"1"
    assert pb.DeleteRangeResponse.FromString(later[8][1]).deleted == 1


def test_a_frame_that_is_no_batch_is_answered_and_nothing_of_it_done(stage: Stage) -> None:
    stage.turn(ClientFrame(b"c", put(1, b"a")[:-1]))
    (record,) = stage.inbox.pop(b"c")
    assert (record.id, record.status) == (0, Code.INTERNAL)
    assert not proposals(stage)


def test_after_a_change_of_leader_unanswered_batches_are_proposed_again_and_applied_once(stage: Stage) -> None:
    stage.turn(ClientFrame(b"c", put(1, b"a", b"first")))
    (first,) = proposals(stage)
    stage.turn(Status(stage.session, 2, 3, 0))
    (again,) = proposals(stage)
    assert again.data == first.data
    stage.commit(first, again)  # the old leader's copy made it after all
    assert set(stage.answers()) == {1}
    assert stage.keyspace.revision == 2


def test_a_batch_that_a_later_one_has_passed_gets_a_new_number_at_once(stage: Stage) -> None:
    """Only a rising number is applied, so the old copy is dead, whenever it may still arrive."""
    stage.turn(ClientFrame(b"c", put(1, b"a")))
    (lost,) = proposals(stage)
    stage.turn(ClientFrame(b"c", put(2, b"b")))
    (passed,) = proposals(stage)
    stage.commit(passed)
    assert set(stage.answers()) == {2}
    (anew,) = proposals(stage)
    assert anew.number > passed.number
    stage.commit(lost, anew, lost)
    assert set(stage.answers()) == {1}
    assert stage.keyspace.revision == 3


def test_a_batch_unanswered_for_long_is_proposed_again(stage: Stage) -> None:
    """A message between two nodes may be lost without anybody noticing."""
    stage.turn(ClientFrame(b"c", put(1, b"a")))
    (first,) = proposals(stage)
    stage.tick(2 * ELECTION + 1)
    again = proposals(stage)
    assert [p.data for p in again] == [first.data]
    stage.commit(first)
    stage.tick(4 * ELECTION)
    assert not proposals(stage)


def test_a_new_raft_process_is_told_everything_again(stage: Stage) -> None:
    """RELIABILITY T9: what was said to the dead one may not have been heard."""
    stage.turn(ClientFrame(b"c", put(1, b"a") + get(2, b"a")))
    (first,) = proposals(stage)
    stage.said(ReadIndex)
    stage.turn(Fenced(0))
    assert stage.said(Attach)
    stage.attach()
    (again,) = proposals(stage)
    assert again.data == first.data
    stage.turn()
    assert len(stage.said(ReadIndex)) == 1


def test_entries_of_another_session_are_not_applied(stage: Stage) -> None:
    stage.turn(Committed(stage.session - 1, [Entry(1, 1, 0, b"")]))
    assert stage.keyspace.applied == (0, 0)


def test_a_hole_in_the_entries_ends_the_process(stage: Stage) -> None:
    """RELIABILITY T9."""
    with pytest.raises(RuntimeError, match="cannot follow"):
        stage.turn(Committed(stage.session, [Entry(1, 2, 0, b"")]))
    assert stage.keyspace.applied == (0, 0)


def test_a_superseded_process_ends(stage: Stage) -> None:
    with pytest.raises(Superseded):
        stage.turn(Fenced(8))


def test_a_read_waits_until_the_index_it_was_given_is_applied(stage: Stage) -> None:
    """RELIABILITY T6."""
    stage.turn(ClientFrame(b"w", put(1, b"a", b"new")))
    (write,) = proposals(stage)
    stage.turn(ClientFrame(b"c", get(1, b"a")))
    (asked,) = stage.said(ReadIndex)
    assert isinstance(asked, ReadIndex)
    stage.turn(ReadReady(stage.session, asked.context, 1))
    assert not stage.answers()
    stage.commit(write)
    (_, payload) = stage.answers()[1]
    assert pb.RangeResponse.FromString(payload).kvs[0].value == b"new"


def test_the_reads_of_a_wakeup_share_one_read_index_and_each_attempt_has_its_own_context(stage: Stage) -> None:
    """etcd #20418: a context that is used twice lets an old answer pass for a new one."""
    stage.turn(ClientFrame(b"c", get(1, b"a") + get(2, b"b")), ClientFrame(b"d", get(1, b"a")))
    (first,) = stage.said(ReadIndex)
    assert isinstance(first, ReadIndex)
    stage.turn(ReadFailed(stage.session, first.context))
    (second,) = stage.said(ReadIndex)
    assert isinstance(second, ReadIndex)
    assert second.context != first.context
    stage.turn(ReadReady(stage.session, first.context, 0))
    assert not stage.inbox
    stage.turn(ReadReady(stage.session, second.context, 0))
    assert set(stage.answers(b"c")) == {1, 2}
    assert set(stage.answers(b"d")) == {1}


def test_what_arrives_while_a_read_index_is_asked_for_shares_the_next(stage: Stage) -> None:
    stage.turn(ClientFrame(b"c", get(1, b"a")))
    (first,) = stage.said(ReadIndex)
    assert isinstance(first, ReadIndex)
    stage.turn(ClientFrame(b"c", get(2, b"a")))
    stage.turn(ClientFrame(b"d", get(1, b"a")))
    assert not stage.said(ReadIndex)
    stage.turn(ReadReady(stage.session, first.context, 0))
    assert set(stage.answers(b"c")) == {1}
    (second,) = stage.said(ReadIndex)
    assert isinstance(second, ReadIndex)
    stage.turn(ReadReady(stage.session, second.context, 0))
    assert set(stage.answers(b"c")) == {2}
    assert set(stage.answers(b"d")) == {1}


def test_a_lost_read_index_is_asked_again(stage: Stage) -> None:
    stage.turn(ClientFrame(b"c", get(1, b"a")))
    stage.said(ReadIndex)
    stage.tick(ELECTION + 1)
    assert len(stage.said(ReadIndex)) == 1


def test_without_a_leader_a_write_is_never_sent_and_in_the_end_surely_not_done(stage: Stage) -> None:
    stage.turn(Status(stage.session, 2, 0, 0))
    stage.turn(ClientFrame(b"c", put(1, b"a") + get(2, b"a")))
    stage.tick(TIMEOUT + 1)
    answers = stage.answers()
    assert answers == {1: (Code.UNAVAILABLE, b"etcdserver: no leader"), 2: (Code.UNAVAILABLE, b"etcdserver: no leader")}
    assert not proposals(stage)
    stage.turn(Status(stage.session, 3, 2, 0))
    assert not proposals(stage)


def test_a_write_that_was_sent_and_not_heard_of_again_is_perhaps_done(stage: Stage) -> None:
    stage.turn(ClientFrame(b"c", put(1, b"a")))
    (sent,) = proposals(stage)
    stage.tick(TIMEOUT + 1)
    assert stage.answers() == {1: (Code.UNAVAILABLE, b"etcdserver: request timed out")}
    proposals(stage)
    stage.commit(sent)
    assert stage.keyspace.revision == 2
    assert not stage.answers()


def test_a_refusal_of_the_only_attempt_is_certain_and_of_a_second_one_is_not(stage: Stage) -> None:
    stage.turn(ClientFrame(b"c", put(1, b"a")))
    (only,) = proposals(stage)
    stage.turn(Rejected(stage.session, only.number, "too many requests"))
    assert stage.answers() == {1: (Code.RESOURCE_EXHAUSTED, b"etcdserver: too many requests")}
    stage.turn(ClientFrame(b"c", put(2, b"a")))
    (first,) = proposals(stage)
    stage.turn(Status(stage.session, 2, 2, 0))
    assert proposals(stage)
    stage.turn(Rejected(stage.session, first.number, "too many requests"))
    assert not stage.answers()
    stage.commit(first)
    assert stage.answers()[2][0] == Code.OK


def test_a_proposal_that_met_no_leader_is_proposed_to_the_next(stage: Stage) -> None:
    stage.turn(ClientFrame(b"c", put(1, b"a")))
    (first,) = proposals(stage)
    stage.turn(Rejected(stage.session, first.number, "no leader"))
    assert not stage.answers()
    stage.turn(Status(stage.session, 1, 0, 0), Status(stage.session, 2, 2, 0))
    (again,) = proposals(stage)
    assert again.data == first.data


def test_a_backlog_refuses_writes_at_once_and_reads_go_on(stage: Stage) -> None:
    """etcd: committed - applied over 5000."""
    stage.turn(Status(stage.session, 1, 1, 5001))
    stage.turn(ClientFrame(b"c", put(1, b"a") + get(2, b"a", serializable=True)))
    answers = stage.answers()
    assert answers[1] == (Code.RESOURCE_EXHAUSTED, b"etcdserver: too many requests")
    assert answers[2][0] == Code.OK


NO_SPACE = (Code.RESOURCE_EXHAUSTED, b"etcdserver: mvcc: database space exceeded")


def alarm(id: int, action: int, member: int = 1) -> bytes:
    request = pb.AlarmRequest(action=action, memberID=member, alarm=pb.NOSPACE)  # type: ignore[arg-type]
    return wire.encode(Method.ALARM, Kind.CALL, 0, id, request.SerializeToString())


@pytest.fixture
def full() -> Stage:
    """Its store is as large as it may be."""
    stage = Stage(quota_bytes=100)
    stage.attach()
    stage.catch_up()
    stage.raft.clear()
    stage.apply.node.store_bytes = 1000
    return stage


def test_over_the_quota_puts_are_refused_with_an_alarm_and_deletes_are_not(full: Stage) -> None:
    """etcd: who is told that there is no space finds the alarm."""
    delete = pb.DeleteRangeRequest(key=b"a").SerializeToString()
    full.turn(ClientFrame(b"c", put(1, b"a") + wire.encode(Method.DELETE_RANGE, Kind.CALL, 0, 2, delete)))
    full.turn(ClientFrame(b"c", put(3, b"a")))
    assert full.answers() == {}
    proposed = proposals(full)
    assert len(proposed) == 2, "one alarm for all, and the deletion"
    full.commit(*proposed)
    answers = full.answers()
    assert (answers[1], answers[2][0], answers[3]) == (NO_SPACE, Code.OK, NO_SPACE)
    assert full.keyspace.alarms.raised == {(pb.NOSPACE, 1)}
    full.turn(ClientFrame(b"c", put(4, b"a")))
    assert full.answers() == {4: NO_SPACE}, "at once: it stands"
    assert proposals(full) == []


def test_an_alarm_stands_until_it_is_taken_back_and_is_raised_again_by_the_next(full: Stage) -> None:
    full.turn(ClientFrame(b"c", put(1, b"a")))
    full.commit(*proposals(full))
    assert full.answers() == {1: NO_SPACE}
    full.apply.node.store_bytes = -1000
    full.turn(ClientFrame(b"c", put(2, b"a")))
    full.commit(*proposals(full))
    assert full.answers() == {2: NO_SPACE}, "by the log, though there is room"
    full.turn(ClientFrame(b"c", alarm(3, pb.AlarmRequest.DEACTIVATE)))
    full.commit(*proposals(full))
    assert full.answers()[3][0] == Code.OK
    full.apply.node.store_bytes = 1000
    full.turn(ClientFrame(b"c", put(4, b"a")))
    full.commit(*proposals(full))
    assert full.answers() == {4: NO_SPACE}
    assert full.keyspace.alarms.raised == {(pb.NOSPACE, 1)}


def test_without_a_leader_who_finds_no_room_is_told_when_the_time_is_up(full: Stage) -> None:
    full.turn(Status(full.session, 1, 0, 0), ClientFrame(b"c", put(1, b"a")))
    full.tick(TIMEOUT - 1)
    full.apply.node.store_bytes = 1000
    assert full.answers() == {}
    full.tick(1)
    assert full.answers() == {1: NO_SPACE}
    full.apply.node.store_bytes = 1000
    full.turn(Status(full.session, 2, 2, 0), ClientFrame(b"c", put(2, b"a")))
    full.commit(*proposals(full))
    assert full.answers() == {2: NO_SPACE}, "and the next one raises it"


def test_a_member_past_its_quota_by_what_others_admitted_raises_the_alarm(full: Stage) -> None:
    """etcd checks again where it applies. A deletion is no reason to."""
    delete, put = pb.DeleteRangeRequest(key=b"a"), pb.PutRequest(key=b"a")
    for request, method, raised in ((delete, Method.DELETE_RANGE, 0), (put, Method.PUT, 1), (put, Method.PUT, 0)):
        batch = wire.encode(method, Kind.CALL, 0, 1, request.SerializeToString())
        full.commit(Propose(full.session, 1, pack_proposal(2, 1, full.index + 1, batch)))
        assert len(proposals(full)) == raised


def test_asking_for_alarms_is_a_read(full: Stage) -> None:
    """Of what was agreed upon: it waits for a read index, and proposes nothing."""
    full.turn(ClientFrame(b"c", alarm(1, pb.AlarmRequest.GET)))
    assert full.answers() == {}
    full.catch_up()
    assert full.answers()[1][0] == Code.OK
    assert proposals(full) == []


def test_with_little_room_on_the_disk_puts_are_refused_until_there_is_more(stage: Stage) -> None:
    """F16: refused before they are in the log, where it is still clean to do so; what frees space goes on."""
    free = [DISK_RESERVE_BYTES + 10_000]
    stage.apply._quota.free_bytes = lambda: free[0]
    stage.tick(1)
    delete = pb.DeleteRangeRequest(key=b"a").SerializeToString()
    calls = put(1, b"a", bytes(20_000)) + wire.encode(Method.DELETE_RANGE, Kind.CALL, 0, 2, delete) + put(3, b"a")
    stage.turn(ClientFrame(b"c", calls))
    assert stage.answers() == {1: (Code.RESOURCE_EXHAUSTED, b"etcdserver: mvcc: database space exceeded")}
    stage.commit(*proposals(stage))
    assert {id: status for id, (status, _) in stage.answers().items()} == {2: 0, 3: 0}
    free[0] *= 2
    stage.tick(1)
    stage.turn(ClientFrame(b"c", put(4, b"a", bytes(20_000))))
    assert len(proposals(stage)) == 1


def test_a_flush_that_may_not_fit_on_the_disk_is_put_off(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(stage.keyspace.engine, "begin_flush", flushed.append)
    free = [FLUSH_ROOM_BYTES - 1]
    stage.apply._quota.free_bytes = lambda: free[0]
    stage.turn(ClientFrame(b"c", put(1, b"a")))
    stage.commit(*proposals(stage))
    stage.tick(FLUSH_TICKS + 10)
    assert flushed == []
    free[0] += 1
    stage.tick(1)
    assert flushed == [1]


def test_a_physical_compaction_is_answered_after_the_sweep(stage: Stage) -> None:
    for _ in range(20):
        stage.turn(ClientFrame(b"w", b"".join(put(i + 1, b"a") for i in range(200))))
        stage.commit(*proposals(stage))
    for id, physical in ((1, True), (2, False)):
        request = pb.CompactionRequest(revision=4000 + id, physical=physical).SerializeToString()
        stage.turn(ClientFrame(b"c", wire.encode(Method.COMPACT, Kind.CALL, 0, id, request)))
    compactions = proposals(stage)
    stage.commit(*compactions)
    assert set(stage.answers()) == {2}, "the sweep takes several turns"
    turns = 0
    while not (answers := stage.answers()):
        stage.turn()
        turns += 1
    assert answers[1][0] == Code.OK
    assert turns > 1
    assert stage.keyspace.swept >= 4001


def test_raft_is_told_what_was_applied(stage: Stage) -> None:
    stage.turn(ClientFrame(b"c", put(1, b"a")))
    stage.commit(*proposals(stage))
    stage.tick(1)
    assert Applied(stage.session, 1, 0) in stage.raft


def test_long_answers_about_leases_are_made_in_slices_while_others_are_answered(stage: Stage) -> None:
    """A lease with many keys, and many leases; a client's second long answer waits for the first."""
    stage.apply._landlord._asked_to_lead = (0, -ELECTION)
    stage.turn()
    stage.commit(*stage.said(Propose))  # names it the lessor
    grants = [pb.LeaseGrantRequest(ID=id, TTL=60).SerializeToString() for id in range(1, 5001)]
    puts = [pb.PutRequest(key=b"%05d" % n, lease=7).SerializeToString() for n in range(18_000)]
    for method, payloads in ((Method.LEASE_GRANT, grants), (Method.PUT, puts[:9000]), (Method.PUT, puts[9000:])):
        stage.turn(ClientFrame(b"w", b"".join(wire.encode(method, Kind.CALL, 0, 1, one) for one in payloads)))
        stage.commit(*stage.said(Propose))
    ask = pb.LeaseTimeToLiveRequest(ID=7, keys=True).SerializeToString()
    stage.turn(
        ClientFrame(b"keys", b"".join(wire.encode(Method.LEASE_TIME_TO_LIVE, Kind.CALL, 0, id, ask) for id in (1, 2))),
        ClientFrame(b"all", wire.encode(Method.LEASE_LEASES, Kind.CALL, 0, 1, b"")),
    )
    stage.catch_up()
    assert stage.answers(b"keys") == stage.answers(b"all") == {}
    stage.turn(ClientFrame(b"c", get(3, b"00001", serializable=True)))
    assert set(stage.answers()) == {3}
    assert stage.answers(b"keys") == {}
    came = []
    while len(came) < 2:
        assert not stage.apply.idle
        stage.turn()
        found = stage.answers(b"keys")
        assert len(found) < 2
        came += found.items()
    for number, (id, (status, payload)) in enumerate(came):
        answer = pb.LeaseTimeToLiveResponse.FromString(payload)
        assert (id, status, answer.ID, answer.grantedTTL, len(answer.keys)) == (number + 1, 0, 7, 60, 18_000)
    ((status, payload),) = stage.answers(b"all").values()
    assert (status, len(pb.LeaseLeasesResponse.FromString(payload).leases)) == (0, 5000)


def test_hashes_are_made_one_at_a_time_and_hold_up_nobody(stage: Stage) -> None:
    """Not even their own client's other long reads, as the gateway's clients are one client here."""
    puts = [pb.PutRequest(key=b"%05d" % n).SerializeToString() for n in range(9000)]
    stage.turn(ClientFrame(b"w", b"".join(wire.encode(Method.PUT, Kind.CALL, 0, 1, one) for one in puts)))
    stage.commit(*stage.said(Propose))
    stage.catch_up()
    calls = [wire.encode(Method.HASH_KV, Kind.CALL, 0, id, b"") for id in range(1, HASHES_MAX + 3)]
    stage.turn(ClientFrame(b"c", b"".join(calls)))
    assert stage.answers() == {HASHES_MAX + 2: (Code.RESOURCE_EXHAUSTED, b"etcdserver: too many requests")}
    few = pb.RangeRequest(key=b"0", range_end=b"00009", serializable=True).SerializeToString()
    stage.turn(ClientFrame(b"c", wire.encode(Method.RANGE, Kind.CALL, 0, 1000, few)))
    ((id, (status, payload)),) = stage.answers().items()
    assert (id, status, pb.RangeResponse.FromString(payload).count) == (1000, 0, 9)
    came: list[tuple[int, tuple[int, bytes]]] = []
    while not stage.apply.idle:
        stage.turn()
        found = stage.answers()
        assert len(found) < 2
        came += found.items()
    assert [id for id, _ in came] == list(range(1, HASHES_MAX + 2))
    assert len({(status, payload) for _, (status, payload) in came}) == 1
    assert pb.HashKVResponse.FromString(came[0][1][1]).hash_revision == 9001


def test_a_hash_waits_until_a_fresh_process_knows_what_was_shown_before_it() -> None:
    stage = Stage()
    stage.attach()
    stage.turn(ClientFrame(b"c", wire.encode(Method.HASH, Kind.CALL, 0, 1, b"")))
    assert stage.answers() == {}
    stage.catch_up()
    assert pb.HashResponse.FromString(stage.answers()[1][1]).header.revision == 1


def snapshot(id: int, **more: object) -> bytes:
    request = pb.SnapshotRequest(**more)  # type: ignore[arg-type]
    return wire.encode(Method.SNAPSHOT, Kind.CALL, 0, id, request.SerializeToString())


def test_a_snapshot_has_all_that_was_shown_here_and_waits_until_that_is_on_disk() -> None:
    """It begins when this process is fresh; what is flushed then has everything that was applied."""
    engine = LossyEngine()
    stage = Stage(engine=engine)
    stage.attach()
    stage.turn(ClientFrame(b"c", snapshot(1)))
    assert stage.answers() == {}
    stage.turn(ClientFrame(b"w", put(1, b"a")))
    stage.commit(*stage.said(Propose))
    stage.catch_up()
    ((status, payload),) = stage.answers().values()
    begun = pb.SnapshotResponse.FromString(payload).snapshot
    assert (status, begun > 7 << 32) == (0, True)
    stage.turn(ClientFrame(b"c", snapshot(2, snapshot=begun)))
    assert (stage.exports, engine.flushing) == ([], True)
    engine.finish_flush()
    stage.turn()
    (export,) = stage.exports
    assert export.mark == stage.index == 1
    export.give(bytes(4096 + 32), 4096)
    stage.turn()
    assert pb.SnapshotResponse.FromString(stage.answers()[2][1]).blob == bytes(4096)


def test_what_is_on_disk_already_needs_no_flush(stage: Stage) -> None:
    stage.catch_up()
    stage.turn(ClientFrame(b"c", snapshot(1)))
    assert [export.mark for export in stage.exports] == [stage.keyspace.applied[0]]


def test_a_full_disk_refuses_snapshots_and_gives_up_those_under_way(stage: Stage) -> None:
    stage.catch_up()
    free = [FLUSH_ROOM_BYTES]
    stage.apply._quota.free_bytes = lambda: free[0]
    stage.turn(ClientFrame(b"c", snapshot(1)))
    begun = pb.SnapshotResponse.FromString(stage.answers()[1][1]).snapshot
    stage.turn(ClientFrame(b"c", snapshot(2, snapshot=begun)))
    free[0] = FLUSH_ROOM_BYTES - 1
    stage.tick(1)
    assert stage.answers() == {2: (Code.RESOURCE_EXHAUSTED, b"kvorum: no space left on the disk to take a snapshot")}
    stage.turn(ClientFrame(b"c", snapshot(3)), ClientFrame(b"c", put(4, b"a")))
    assert {id: status for id, (status, _) in stage.answers().items()} == {3: 8, 4: 8}


def test_a_snapshot_call_that_makes_no_sense_is_refused(stage: Stage) -> None:
    stage.catch_up()
    bad = wire.encode(Method.SNAPSHOT, Kind.CALL, 0, 2, b"\xff")
    stage.turn(ClientFrame(b"c", snapshot(1, snapshot=99) + bad))
    assert {id: status for id, (status, _) in stage.answers().items()} == {1: Code.ABORTED, 2: Code.INTERNAL}
