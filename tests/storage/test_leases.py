"""Leases in the store: which keys die with them, at which revision, and at whose word."""

from __future__ import annotations

import pytest

from kvorum import errors
from kvorum import etcd_pb2 as pb
from storage.keyspace import Keyspace, Result, Scan
from storage.leases import Lessor
from storage.memory import LossyEngine, MemoryEngine
from tests.storage.support import Store, contents, delete_op, exists, put_op

GONE = pb.Event.DELETE


def lease_of(store: Store, key: bytes) -> int:
    return store.range(key).kvs[0].lease


def keys(store: Store, id: int) -> list[bytes]:
    return store.keyspace.leases.keys(id)


def test_granting_takes_no_revision_and_says_what_was_granted(store: Store) -> None:
    answer = store.grant(7, 60)
    assert (answer.ID, answer.TTL, answer.header.revision) == (7, 60, 1)
    with pytest.raises(errors.LeaseExists):
        store.grant(7, 60)
    with pytest.raises(errors.LeaseNotFound):
        store.revoke(8)
    assert store.revoke(7).header.revision == 1, "it had no keys"
    with pytest.raises(errors.LeaseNotFound):
        store.revoke(7)
    assert store.grant(7, 61).TTL == 61


def test_an_unknown_lease_refuses_a_put_and_a_transaction_whole(store: Store) -> None:
    with pytest.raises(errors.LeaseNotFound):
        store.put(b"k", lease=7)
    with pytest.raises(errors.LeaseNotFound):
        store.txn(success=[put_op(b"a"), put_op(b"b", lease=7)])
    assert store.range(b"\0", b"\0").header.revision == 1


def test_the_end_of_a_lease_is_one_revision_with_all_its_keys_in_order(store: Store) -> None:
    """L3."""
    store.grant(7)
    for key in (b"c", b"a", b"\0", b"b\xff"):
        store.put(key, lease=7)
    store.put(b"other")
    outcome, changes = store.outcome(pb.LeaseRevokeRequest(ID=7))
    assert outcome.results[0].revision == 7
    events = [pb.Event.FromString(change.event) for change in changes]
    assert [(event.type, event.kv.key, event.kv.mod_revision) for event in events] == [
        (GONE, key, 7) for key in (b"\0", b"a", b"b\xff", b"c")
    ]
    assert store.keys() == [b"other"]
    with pytest.raises(errors.LeaseNotFound):
        store.put(b"x", lease=7)
    assert keys(store, 7) == []


def test_a_key_belongs_to_the_lease_that_was_put_last(store: Store) -> None:
    """L4."""
    store.grant(7)
    store.grant(8)
    store.put(b"k", b"v", lease=7)
    store.put(b"k", b"v", lease=8)
    assert (keys(store, 7), keys(store, 8), lease_of(store, b"k")) == ([], [b"k"], 8)
    store.put(b"k", b"w", ignore_lease=True)
    assert (keys(store, 8), lease_of(store, b"k")) == ([b"k"], 8)
    store.put(b"k", lease=8, ignore_value=True)
    assert (keys(store, 8), store.get(b"k")) == ([b"k"], b"w")
    store.put(b"k", b"x")
    assert (keys(store, 8), lease_of(store, b"k")) == ([], 0)
    store.revoke(8)
    assert store.get(b"k") == b"x"


@pytest.mark.parametrize("way", ["delete", "range", "txn", "plain"])
def test_deleted_keys_leave_their_lease(store: Store, way: str) -> None:
    store.grant(7)
    store.put(b"k", lease=7)
    if way == "delete":
        store.delete(b"k")
    elif way == "range":
        store.delete(b"a", b"z")
    elif way == "txn":
        store.txn(success=[delete_op(b"a", b"z")])
    else:
        store.txn(compare=[exists(b"k")], success=[delete_op(b"k")])
    assert keys(store, 7) == []
    store.put(b"k")
    before = store.range(b"k").header.revision
    assert store.revoke(7).header.revision == before
    assert store.keys() == [b"k"]


def test_attaching_and_ending_within_one_turn(store: Store) -> None:
    """What the entries of one wake-up do to a lease is seen by those behind them."""
    put, plain = pb.PutRequest(key=b"a", lease=7), pb.PutRequest(key=b"b")
    outcome, _ = store.outcome(
        pb.LeaseGrantRequest(ID=7, TTL=9),
        put,
        pb.PutRequest(key=b"b", lease=7),
        plain,
        pb.LeaseRevokeRequest(ID=7),
        put,
        pb.LeaseGrantRequest(ID=7, TTL=9),
        put,
    )
    assert [result.status for result in outcome.results] == [0, 0, 0, 0, 0, 5, 0, 0]
    assert store.keys() == [b"a", b"b"]
    assert (keys(store, 7), lease_of(store, b"a"), lease_of(store, b"b")) == ([b"a"], 7, 0)


@pytest.mark.parametrize("again", [False, True], ids=["one turn", "turns"])
def test_a_lease_that_had_no_key_and_gets_one_loses_it_at_its_end(store: Store, again: bool) -> None:
    """Of new leases it is remembered that there is nothing to look for. An end, a grant of the id, a key that comes and
    goes: it is so only where it is true."""

    def do(*requests: object) -> None:
        for part in [[request] for request in requests] if again else [requests]:
            store.outcome(*part)

    grant, put, revoke = (
        pb.LeaseGrantRequest(ID=7, TTL=9),
        pb.PutRequest(key=b"a", lease=7),
        pb.LeaseRevokeRequest(ID=7),
    )
    do(grant)
    assert (store.keyspace.leases.count(7, 5), keys(store, 7)) == (0, [])
    do(put)
    assert (store.keyspace.leases.count(7, 5), keys(store, 7)) == (1, [b"a"])
    do(revoke, grant, pb.PutRequest(key=b"b", lease=7), pb.PutRequest(key=b"b"))
    assert (store.keys(), store.keyspace.leases.count(7, 5), keys(store, 7)) == ([b"b"], 0, [])
    do(revoke, grant)
    do(put, revoke)
    assert store.keys() == [b"b"]
    do(grant, put)
    store.keyspace = Keyspace(store.engine)
    do(pb.LeaseGrantRequest(ID=8, TTL=9), revoke, pb.LeaseRevokeRequest(ID=8))
    assert (store.keys(), store.keyspace.leases.granted) == ([b"b"], {})


@pytest.mark.parametrize("id", [1, -1, 2**63 - 1, -(2**63)])
def test_leases_of_any_id_outlive_a_restart(store: Store, id: int) -> None:
    """L5; etcd 3.5.1 forgets negative ones. Neighbouring ids keep their keys apart."""
    others = [other for other in (id - 1, id + 1) if other and -(2**63) <= other < 2**63]
    for each in (id, *others):
        store.grant(each, 100)
        store.put(b"of %d" % each, lease=each)
    again = Keyspace(store.engine)
    assert again.leases.granted == dict.fromkeys((id, *others), 100)
    assert again.leases.keys(id) == [b"of %d" % id]
    store.revoke(id)
    assert store.keys() == sorted(b"of %d" % other for other in others)


# ---- the lessor's word


def led(store: Store, term: int, origin: int = 1, incarnation: int = 1) -> None:
    store.outcome(pb.LeaseLead(term=term), origin=origin, incarnation=incarnation)


def expire(store: Store, term: int, *ids: int, origin: int = 1, incarnation: int = 1) -> list[tuple[int, bytes]]:
    request = pb.LeaseExpire(term=term, IDs=ids, applied=store.keyspace.applied[0])
    changes = store.outcome(request, origin=origin, incarnation=incarnation)[1]
    return [(change.revision, pb.Event.FromString(change.event).kv.key) for change in changes]


@pytest.fixture
def leased(store: Store) -> Store:
    for id in (7, 8, 9):
        store.grant(id)
    for id, key in ((7, b"a"), (7, b"c"), (8, b"b")):
        store.put(key, lease=id)
    led(store, 3)
    return store


def test_each_lease_that_expires_ends_at_a_revision_of_its_own(leased: Store) -> None:
    assert expire(leased, 3, 7, 9, 8, 7, 55) == [(5, b"a"), (5, b"c"), (6, b"b")]
    assert leased.keyspace.leases.granted == {}
    assert leased.keyspace.revision == 6


@pytest.mark.parametrize("wrong", [{"term": 2}, {"term": 4}, {"origin": 2}, {"incarnation": 2}])
def test_nobody_but_the_lessor_ends_a_lease(leased: Store, wrong: dict[str, int]) -> None:
    """L6: a leader that slept and was replaced, this process in an earlier term, its predecessor, a stranger."""
    word = {"term": 3, "origin": 1, "incarnation": 1} | wrong
    assert expire(leased, word.pop("term"), 7, **word) == []
    assert set(leased.keyspace.leases.granted) == {7, 8, 9}


def test_the_newest_lessor_counts_whatever_comes_late(leased: Store) -> None:
    led(leased, 5, origin=2)
    led(leased, 4, origin=3)
    assert leased.keyspace.leases.lessor == Lessor(5, 2, 1)
    assert expire(leased, 3, 7) == []
    assert expire(leased, 4, 7, origin=3) == []
    led(leased, 5, origin=2, incarnation=2)
    assert expire(leased, 5, 7, origin=2) == [], "its apply process was started again"
    assert Keyspace(leased.engine).leases.lessor == Lessor(5, 2, 2)
    assert len(expire(leased, 5, 7, origin=2, incarnation=2)) == 2


def test_the_lessors_word_is_about_the_leases_that_it_knew(leased: Store) -> None:
    """One that was granted since, under the same id, is another: it was promised its whole time."""
    known = leased.keyspace.applied[0]
    leased.revoke(7)
    leased.grant(7)
    leased.put(b"new", lease=7)
    leased.outcome(pb.LeaseCheckpoints(term=3, checkpoints=[pb.LeaseCheckpoint(ID=7, remaining_TTL=5)], applied=known))
    assert leased.keyspace.leases.remaining == {}
    reopened = Store(leased.engine)
    _, changes = reopened.outcome(pb.LeaseExpire(term=3, IDs=[7, 8], applied=known))
    assert [pb.Event.FromString(change.event).kv.key for change in changes] == [b"b"]
    assert (keys(reopened, 7), sorted(reopened.keyspace.leases.granted)) == ([b"new"], [7, 9])
    known = reopened.keyspace.applied[0]
    anew = (pb.LeaseRevokeRequest(ID=9), pb.LeaseGrantRequest(ID=9, TTL=5))
    reopened.outcome(*anew, pb.LeaseExpire(term=3, IDs=[9], applied=known))
    assert reopened.keyspace.leases.granted[9] == 5, "in one turn, too"


def test_checkpoints_are_kept_and_taken_back_by_the_lessor_only(leased: Store) -> None:
    def checkpoint(term: int, **left: int) -> None:
        each = [pb.LeaseCheckpoint(ID=int(id[1:]), remaining_TTL=seconds) for id, seconds in left.items()]
        leased.outcome(pb.LeaseCheckpoints(term=term, checkpoints=each, applied=leased.keyspace.applied[0]))

    checkpoint(2, _7=5)
    assert leased.keyspace.leases.remaining == {}
    checkpoint(3, _7=5, _8=6, _55=9)
    assert leased.keyspace.leases.remaining == {7: 5, 8: 6}
    checkpoint(3, _7=0)
    assert leased.keyspace.leases.remaining == Keyspace(leased.engine).leases.remaining == {8: 6}
    leased.revoke(8)
    leased.grant(8)
    assert leased.keyspace.leases.remaining == Keyspace(leased.engine).leases.remaining == {}


def test_a_lease_that_ends_and_is_granted_anew_in_one_turn_has_all_of_its_time(leased: Store) -> None:
    """What a checkpoint said of the life before is not about this one (simulation seed 77)."""
    left = [pb.LeaseCheckpoint(ID=7, remaining_TTL=5)]
    leased.outcome(pb.LeaseCheckpoints(term=3, checkpoints=left, applied=leased.keyspace.applied[0]))
    leased.outcome(pb.LeaseRevokeRequest(ID=7), pb.LeaseGrantRequest(ID=7, TTL=60))
    assert leased.keyspace.leases.granted[7] == 60
    assert leased.keyspace.leases.remaining == Keyspace(leased.engine).leases.remaining == {}


def test_a_dropped_turn_leaves_no_lease() -> None:
    store = Store(MemoryEngine())
    turn = store.keyspace.begin()
    turn.leases.grant(7, 60, 1)
    turn.leases.attach(7, b"k")
    del turn
    assert store.keyspace.leases.granted == {}
    with pytest.raises(errors.LeaseNotFound):
        store.put(b"k", lease=7)


def test_keys_and_leases_are_of_one_moment_after_any_crash() -> None:
    """T1, T8: the index, the KeyValues and the leases agree whichever batches a crash leaves."""
    whole = lived()
    for keep in range(whole.unflushed + 1):
        engine = lived()
        engine.crash(keep)
        leases = Keyspace(engine).leases
        kvs = [pb.KeyValue.FromString(kv) for key, kv in contents(engine).items() if key.startswith(b"k")]
        for id in (7, 8, 9):
            assert leases.keys(id) == sorted(kv.key for kv in kvs if kv.lease == id)
        assert {kv.lease for kv in kvs} <= set(leases.granted)


def lived() -> LossyEngine:
    """An engine with a life behind it of which nothing is sure."""
    engine = LossyEngine()
    store = Store(engine)
    for step in range(40):
        id = 7 + step % 3
        if id not in store.keyspace.leases.granted:
            store.grant(id)
        elif step % 10 == 9:
            store.revoke(id)
        else:
            store.put(b"k%d" % (step % 4), lease=id)
    return engine


# ---- answers of any size


def test_a_lease_with_many_keys_is_told_in_slices_and_as_it_was(store: Store) -> None:
    """And so are many leases: what is told is what there was when it was asked, whatever happens meanwhile."""
    store.grant(7)
    count = 5000
    for number in range(count):
        store.put(b"%04d" % number, lease=7)
    for id in range(-3000, 0):
        store.grant(id)
    leases, keyspace = store.keyspace.leases, store.keyspace
    asked = [keyspace.sliced(leases.attached(7, b"\x10\x07")), keyspace.sliced(leases.listed())]
    store.revoke(7)
    store.grant(8)
    bodies = []
    for scan in asked:
        assert isinstance(scan, Scan)
        while (result := scan.step()) is None:
            pass
        assert result.status == 0
        bodies.append(result.body)
    answer = pb.LeaseTimeToLiveResponse.FromString(bodies[0])
    assert (answer.ID, list(answer.keys)) == (7, [b"%04d" % number for number in range(count)])
    listed = [lease.ID for lease in pb.LeaseLeasesResponse.FromString(bodies[1]).leases]
    assert listed == [7, *range(-3000, 0)]


def test_a_small_answer_is_given_at_once(store: Store) -> None:
    store.grant(7)
    store.put(b"k", lease=7)
    leases, keyspace = store.keyspace.leases, store.keyspace
    told = keyspace.sliced(leases.attached(7, b""))
    assert isinstance(told, Result)
    assert list(pb.LeaseTimeToLiveResponse.FromString(told.body).keys) == [b"k"]
    assert [leases.count(7, most) for most in (0, 1, 2)] == [0, 1, 1]
