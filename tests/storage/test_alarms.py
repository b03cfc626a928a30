"""Alarms in the store: what is refused while one stands, and that they outlive everything but being taken back.

Model and dice have alarms, too: what is said here is said once more, at random, by test_model and test_determinism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvorum import errors
from kvorum import etcd_pb2 as pb
from storage.alarms import Alarms
from storage.codec import pack_proposal
from storage.keyspace import Keyspace
from storage.memory import MemoryEngine
from tests.storage.support import Store, batch, delete_op, exists, put_op, range_op, txn_op

GET, ACTIVATE, DEACTIVATE = pb.AlarmRequest.GET, pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE


def ask(action: int, alarm: int = 0, member: int = 0) -> pb.AlarmRequest:
    return pb.AlarmRequest(action=action, alarm=alarm, memberID=member)  # type: ignore[arg-type]


def told(answer: Any) -> list[tuple[int, int]]:
    return [(one.alarm, one.memberID) for one in answer.alarms]


def test_an_alarm_is_raised_listed_and_taken_back(store: Store) -> None:
    assert told(store.write(ask(ACTIVATE, pb.CORRUPT, 8))) == [(pb.CORRUPT, 8)]
    assert told(store.write(ask(ACTIVATE, pb.NOSPACE, 2**64 - 1))) == [(pb.NOSPACE, 2**64 - 1)]
    assert told(store.write(ask(ACTIVATE, pb.NOSPACE, 7))) == [(pb.NOSPACE, 7)]
    assert told(store.write(ask(ACTIVATE, pb.NOSPACE, 7))) == [(pb.NOSPACE, 7)], "again: it is there, and that is all"
    everything = [(pb.NOSPACE, 7), (pb.NOSPACE, 2**64 - 1), (pb.CORRUPT, 8)]
    assert told(store.read(ask(GET))) == everything
    assert told(store.read(ask(GET, pb.NOSPACE))) == everything[:2]
    assert told(store.read(ask(GET, member=7))) == everything, "etcd doesn't look at the member, either"
    assert told(store.write(ask(DEACTIVATE, pb.CORRUPT, 7))) == [], "another member's"
    assert told(store.write(ask(DEACTIVATE, pb.NONE, 7))) == []
    for alarm in everything:
        assert told(store.write(ask(DEACTIVATE, *alarm))) == [alarm]
    answer = store.read(ask(GET))
    assert (told(answer), answer.header.revision) == ([], 1), "none of it is a revision"


def test_an_alarm_of_no_type_is_not_raised(store: Store) -> None:
    assert told(store.write(ask(ACTIVATE, pb.NONE, 7))) == []
    assert told(store.read(ask(GET))) == []


def test_unknown_alarms_are_kept_and_refuse_nothing(store: Store) -> None:
    for type in (7, -7, 2**31 - 1, -(2**31)):
        store.write(ask(ACTIVATE, type, 1))
    assert told(store.read(ask(GET))) == [(-(2**31), 1), (-7, 1), (7, 1), (2**31 - 1, 1)]
    assert Alarms(store.engine).raised == store.keyspace.alarms.raised
    assert store.put(b"k").header.revision == 2


Ask = Callable[[Store], object]
READS: dict[str, Ask] = {
    "range": lambda store: store.range(b"a"),
    "a txn that reads": lambda store: store.read(pb.TxnRequest(success=[range_op(b"a")])),
    "the alarms": lambda store: store.read(ask(GET)),
}
FREES: dict[str, Ask] = {
    "delete": lambda store: store.delete(b"a"),
    "a txn that deletes": lambda store: store.txn([exists(b"a")], [delete_op(b"a")], [range_op(b"a")]),
    "compact": lambda store: store.compact(2),
    "revoke": lambda store: store.revoke(1),
}
GROWS: dict[str, Ask] = {
    "put": lambda store: store.put(b"a"),
    "a put of what is there": lambda store: store.put(b"a", b"a"),
    "a txn that puts": lambda store: store.txn((), [put_op(b"b")]),
    "a txn that might have put": lambda store: store.txn([exists(b"a")], [range_op(b"a")], [put_op(b"b")]),
    "a nested put": lambda store: store.txn((), [txn_op((), (), [put_op(b"b")])]),
    "grant": lambda store: store.grant(2),
}
OTHERS: dict[str, Ask] = {
    "publish": lambda store: store.write(pb.MemberPublish(member=pb.Member(ID=3))),
    "lead": lambda store: store.write(pb.LeaseLead(term=1)),
    "checkpoint": lambda store: store.write(
        pb.LeaseCheckpoints(term=1, checkpoints=[pb.LeaseCheckpoint(ID=1, remaining_TTL=5)], applied=99)
    ),
}
EXPIRE = {"expire": lambda store: store.write(pb.LeaseExpire(term=1, IDs=[1], applied=99))}


@pytest.fixture
def lively(store: Store) -> Store:
    store.put(b"a", b"a")
    store.grant(1, 600)
    store.put(b"b", b"b", lease=1)
    store.write(pb.LeaseLead(term=1))
    return store


@pytest.mark.parametrize("way", [*READS, *FREES, *OTHERS, *EXPIRE])
def test_without_space_what_frees_some_goes_on(lively: Store, way: str) -> None:
    """etcd: deletions, compaction, reads; leases end."""
    lively.write(ask(ACTIVATE, pb.NOSPACE, 1))
    assert (READS | FREES | OTHERS | EXPIRE)[way](lively)


@pytest.mark.parametrize("way", GROWS)
def test_without_space_what_may_take_some_is_refused_until_no_member_says_so(lively: Store, way: str) -> None:
    lively.write(ask(ACTIVATE, pb.NOSPACE, 1))
    lively.write(ask(ACTIVATE, pb.NOSPACE, 2))
    for member in (1, 2):
        before = lively.range(b"\0", b"\0")
        with pytest.raises(errors.NoSpace):
            GROWS[way](lively)
        assert lively.range(b"\0", b"\0") == before
        lively.write(ask(DEACTIVATE, pb.NOSPACE, member))
    assert GROWS[way](lively)


@pytest.mark.parametrize("way", [*FREES, *GROWS, *EXPIRE])
def test_corrupt_nothing_is_changed_not_even_by_the_lessor(lively: Store, way: str) -> None:
    """etcd; and this alarm goes before the other one."""
    lively.write(ask(ACTIVATE, pb.NOSPACE, 1))
    lively.write(ask(ACTIVATE, pb.CORRUPT, 2))
    before = lively.range(b"\0", b"\0")
    with pytest.raises(errors.Corrupt):
        (FREES | GROWS | EXPIRE)[way](lively)
    assert lively.range(b"\0", b"\0") == before
    assert lively.keyspace.leases.granted == {1: 600}
    lively.write(ask(DEACTIVATE, pb.NOSPACE, 1))
    lively.write(ask(DEACTIVATE, pb.CORRUPT, 2))
    assert (FREES | GROWS | EXPIRE)[way](lively)


@pytest.mark.parametrize("way", [*READS, *OTHERS])
def test_corrupt_reads_and_what_members_agree_on_go_on(lively: Store, way: str) -> None:
    lively.write(ask(ACTIVATE, pb.CORRUPT, 2))
    assert (READS | OTHERS)[way](lively)


def test_within_one_batch_each_record_sees_the_alarms_of_those_before_it(store: Store) -> None:
    """Also where most of them would go the short way."""
    put, full = pb.PutRequest(key=b"k"), ask(ACTIVATE, pb.NOSPACE, 1)
    outcome, changes = store.outcome(put, full, put, ask(DEACTIVATE, pb.NOSPACE, 1), put, full)
    assert [result.status for result in outcome.results] == [0, 0, errors.NoSpace.code, 0, 0, 0]
    assert [change.revision for change in changes] == [2, 3]
    turn = store.keyspace.begin()
    for number, request in enumerate((put, ask(DEACTIVATE, pb.NOSPACE, 1), put)):
        turn.apply(turn.index + 1, 1, pack_proposal(2, 1, number + 1, batch(request)))
    assert [change.revision for change in turn.commit()] == [4]


def test_a_turn_that_is_dropped_raises_nothing(store: Store) -> None:
    turn = store.keyspace.begin()
    turn.apply(1, 1, pack_proposal(1, 1, 1, batch(ask(ACTIVATE, pb.NOSPACE, 1))))
    del turn
    assert store.keyspace.alarms.raised == frozenset()
    assert store.put(b"k").header.revision == 2


def test_an_alarm_outlives_the_process(store: Store) -> None:
    store.write(ask(ACTIVATE, pb.NOSPACE, 1))
    survived = Store(store.engine)
    with pytest.raises(errors.NoSpace):
        survived.put(b"k")
    survived.write(ask(DEACTIVATE, pb.NOSPACE, 1))
    assert Keyspace(store.engine).alarms.raised == frozenset()


def test_the_same_alarms_are_the_same_bytes() -> None:
    """Whatever came and went before."""
    one, other = Store(MemoryEngine()), Store(MemoryEngine())
    for request in (ask(ACTIVATE, 1, 1), ask(ACTIVATE, 2, 1), ask(DEACTIVATE, 1, 1), ask(GET)):
        one.write(request)
    for request in (ask(ACTIVATE, 2, 1), ask(DEACTIVATE, 1, 1), ask(ACTIVATE, 2, 1), ask(ACTIVATE, 0, 1)):
        other.write(request)
    assert one.contents() == other.contents()
