"""Entries, records and turns: what is applied, what is skipped, what sees what."""

from __future__ import annotations

import random

import pytest

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage import codec
from storage.codec import pack_proposal
from storage.engine import Engine
from storage.keyspace import Keyspace, Outcome, Result
from storage.memory import MemoryEngine
from tests.storage.requests_at_random import Dice
from tests.storage.support import Store, answer, batch, contents, delete_op, entry, exists, put_op, range_op

Put, Delete, Txn = pb.PutRequest, pb.DeleteRangeRequest, pb.TxnRequest


def applied(keyspace: Keyspace, *datas: bytes) -> list[Outcome]:
    """Entries in one turn."""
    turn = keyspace.begin()
    outcomes = [turn.apply(keyspace.applied[0] + 1 + n, 1, data) for n, data in enumerate(datas)]
    turn.commit()
    return outcomes


# ---- the order of entries


@pytest.mark.parametrize("index", [0, 1, 3, 4])
def test_an_entry_out_of_order_ends_the_turn(engine: Engine, index: int) -> None:
    """Reliability T9: committed entries lost or repeated on the way must not be applied."""
    keyspace = Keyspace(engine)
    applied(keyspace, entry(1, Put(key=b"k")))
    turn = keyspace.begin()
    with pytest.raises(RuntimeError, match=f"entry {index} cannot follow entry 1"):
        turn.apply(index, 1, entry(2, Put(key=b"x")))


def test_a_leaders_opening_entry_only_moves_the_index(store: Store) -> None:
    turn = store.keyspace.begin()
    assert turn.apply(1, 4, b"") == Outcome(False, [])
    assert turn.commit() == []
    assert store.keyspace.applied == (1, 4)
    assert Keyspace(store.engine).applied == (1, 4)
    assert store.keyspace.revision == 1


def test_nothing_is_visible_before_the_commit(store: Store) -> None:
    """And a turn that is dropped has never been."""
    store.put(b"k", b"old")
    before = store.contents()
    turn = store.keyspace.begin()
    turn.apply(2, 1, entry(2, Put(key=b"k", value=b"new"), Put(key=b"x"), pb.CompactionRequest(revision=2)))
    assert (store.get(b"k"), store.keyspace.revision, store.keyspace.compacted) == (b"old", 2, -1)
    assert store.contents() == before
    del turn
    assert store.put(b"k", b"other").header.revision == 3


def test_an_empty_turn_writes_nothing(store: Store) -> None:
    before = store.contents()
    assert store.keyspace.begin().commit() == []
    assert store.contents() == before


def test_every_batch_carries_the_applied_index() -> None:
    """Reliability T1: etcd 3.5 lost data for want of it. Sweeps write batches, too."""

    class Watched(MemoryEngine):
        def write(self, batch: object) -> None:
            states = [value for key, value in batch.changes if key == codec.STATE]  # type: ignore[attr-defined]
            assert len(states) == 1
            written.append(codec.unpack_state(states[0]))
            super().write(batch)  # type: ignore[arg-type]

    written: list[codec.State] = []
    store = Store(Watched())
    for n in range(1, 30):
        store.put(b"k%d" % (n % 3))
        assert written[-1].applied == n
    store.compact(20)
    assert store.sweep() > 0
    assert written[-1] == store.keyspace.state
    assert len(written) == 30 + 1


# ---- at most once


def test_a_batch_is_applied_once(store: Store) -> None:
    """Reliability K9, T5: a leader change makes its origin propose it again."""
    data = entry(1, Put(key=b"k"))
    (first, again) = applied(store.keyspace, data, data)
    assert (first.skipped, again.skipped) == (False, True)
    assert again.results == []
    assert [outcome.skipped for outcome in applied(store.keyspace, data)] == [True]
    assert [outcome.skipped for outcome in applied(Keyspace(store.engine), data)] == [True]
    assert store.range(b"k").kvs[0].version == 1


def test_what_was_overtaken_is_skipped(store: Store) -> None:
    """By a later batch of the same origin, or by a later life of it."""
    skipped = [
        outcome.skipped
        for outcome in applied(
            store.keyspace,
            entry(5, Put(key=b"k"), origin=1, incarnation=2),
            entry(4, Put(key=b"k"), origin=1, incarnation=2),
            entry(9, Put(key=b"k"), origin=1, incarnation=1),
            entry(1, Put(key=b"k"), origin=2, incarnation=1),
            entry(7, Put(key=b"k"), origin=1, incarnation=2),
            entry(1, Put(key=b"k"), origin=1, incarnation=3),
            entry(8, Put(key=b"k"), origin=1, incarnation=2),
            entry(2, Put(key=b"k"), origin=2, incarnation=1),
        )
    ]
    assert skipped == [False, True, True, False, False, False, True, False]
    assert store.range(b"k").kvs[0].version == 5
    assert store.keyspace.origins == Keyspace(store.engine).origins == {1: (3, 1), 2: (1, 2)}


def test_a_refused_batch_is_used_up_as_well(store: Store) -> None:
    """Whether its records did anything must not decide whether a copy is applied: the state may have changed since."""
    refused = entry(1, Put(key=b"k", ignore_value=True))
    assert applied(store.keyspace, refused)[0].results[0].status == 3
    applied(store.keyspace, entry(1, Put(key=b"k", value=b"v"), origin=2))
    assert applied(store.keyspace, refused)[0].skipped
    assert store.range(b"k").kvs[0].version == 1


# ---- records


def test_one_bad_record_spoils_no_other(store: Store) -> None:
    """Reliability T5: each is answered in its place, and revisions count only what changed something."""
    good = Put(key=b"k", value=b"v", prev_kv=True)
    records = [
        (Method.PUT, good.SerializeToString()),
        (Method.PUT, b"\xff junk"),
        (Method.PUT, b""),
        (Method.RANGE, pb.RangeRequest(key=b"k").SerializeToString()),
        (Method.STATUS, b""),
        (200, b"x"),
        (Method.DELETE_RANGE, Delete(key=b"none").SerializeToString()),
        (Method.TXN, b"\x0a\x05abc"),
        (Method.TXN, Txn(success=[put_op(b"a"), put_op(b"a")]).SerializeToString()),
        (Method.COMPACT, pb.CompactionRequest(revision=99).SerializeToString()),
        (Method.MEMBER_PUBLISH, b""),
        (Method.PUT, Put(key=b"k", lease=3).SerializeToString()),
        (Method.PUT, good.SerializeToString()),
    ]
    frame = b"".join(wire.encode(method, 0, 0, n, payload) for n, (method, payload) in enumerate(records))
    (outcome,) = applied(store.keyspace, pack_proposal(1, 1, 1, frame))
    assert [result.status for result in outcome.results] == [0, 13, 3, 12, 12, 12, 0, 13, 3, 11, 13, 5, 0]
    assert [result.revision for result in outcome.results] == [2] * 12 + [3]
    assert answer(good, outcome.results[-1]).prev_kv.mod_revision == 2
    assert outcome.results[1] == Result(13, 2, errors.Malformed.text.encode())
    assert store.keys() == [b"k"]


@pytest.mark.parametrize(
    "data", [b"x", bytes(23), bytes(24) + b"half a rec", pack_proposal(1, 1, 1, batch(Put(key=b"k"))[:-1])]
)
def test_an_entry_that_is_no_batch_does_nothing_everywhere(store: Store, data: bytes) -> None:
    """Reliability T5: deterministic, never an exception, never half of it."""
    assert applied(store.keyspace, data) == [Outcome(False, [])]
    assert (store.keyspace.applied, store.keyspace.revision, store.keys()) == ((1, 1), 1, [])
    assert store.put(b"k").header.revision == 2


def test_junk_in_the_log_never_raises() -> None:
    """Random bytes in records and around them; two members answer the same and store the same."""
    dice, shapes = random.Random(3), Dice(3, alarms=True)
    one, two = Keyspace(MemoryEngine()), Keyspace(MemoryEngine())
    for index in range(1, 1500):
        shapes.revision = one.revision
        payloads = []
        for _ in range(dice.randint(1, 3)):
            payload = bytearray(shapes.write().SerializeToString())
            for _ in range(dice.randint(0, 2)):
                if payload:
                    payload[dice.randrange(len(payload))] = dice.randrange(256)
            payloads.append(wire.encode(dice.choice([2, 3, 3, 4, 5, 5, 6, 25, 64]), 0, 0, 0, bytes(payload)))
        data = pack_proposal(dice.randint(1, 3), 1, index, b"".join(payloads))
        if dice.random() < 0.05:
            data = data[: dice.randint(0, len(data))]
        assert applied(one, data) == applied(two, data)
    assert contents(one.engine) == contents(two.engine)
    assert one.revision > 300


def test_records_see_those_before_them_in_the_turn(store: Store) -> None:
    """Unwritten changes: keys, ranges, counts, comparisons, past revisions, compactions."""
    store.put(b"b", b"old")
    store.put(b"c", b"old")
    everything = range_op(b"\0", b"\0")
    requests = [
        Put(key=b"a", value=b"1"),  # 4
        Delete(key=b"b", range_end=b"c"),  # 5
        Txn(compare=[exists(b"b")], success=[put_op(b"wrong")], failure=[everything]),
        Put(key=b"d"),  # 6
        Txn(compare=[exists(b"a")], success=[everything, delete_op(b"c", b"e"), everything]),  # 7
        Txn(success=[range_op(b"\0", b"\0", revision=n) for n in (3, 4, 5, 6)]),
        pb.CompactionRequest(revision=5),
        Txn(success=[range_op(b"a", revision=4)]),
        Txn(success=[range_op(b"\0", b"\0", revision=5, count_only=True)]),
        Put(key=b"a", ignore_value=True, prev_kv=True),  # 8
    ]
    turn = store.keyspace.begin()
    results = []
    for n in range(0, len(requests), 3):
        results += turn.apply(turn.index + 1, 1, entry(10 + n, *requests[n : n + 3])).results
    changes = turn.commit()

    def keys(n: int) -> list[list[bytes]]:
        response = answer(requests[n], results[n])
        return [[kv.key for kv in op.response_range.kvs] for op in response.responses if op.HasField("response_range")]

    assert [result.revision for result in results] == [4, 5, 5, 6, 7, 7, 7, 7, 7, 8]
    assert keys(2) == [[b"a", b"c"]]
    assert keys(4) == [[b"a", b"c", b"d"], [b"a"]]
    assert keys(5) == [[b"b", b"c"], [b"a", b"b", b"c"], [b"a", b"c"], [b"a", b"c", b"d"]]
    assert results[7].status == errors.Compacted.code
    assert answer(requests[8], results[8]).responses[0].response_range.count == 2
    assert answer(requests[9], results[9]).prev_kv.value == b"1"
    assert [change.revision for change in changes] == [4, 5, 6, 7, 7, 8]
    assert store.keys() == [b"a"]
    assert store.keyspace.compacted == 5


def test_changes_say_what_was_there_before(store: Store) -> None:
    """Watchers with prev_kv get the state of the revision before, also if a key changes twice in one."""
    store.put(b"a", b"1")
    store.put(b"b", b"1")
    _, changes = store.outcome(
        Put(key=b"a", value=b"2"),
        Put(key=b"a", value=b"3"),
        Txn(success=[delete_op(b"\0", b"\0"), put_op(b"b", b"4")]),
        Put(key=b"c"),
    )
    told = [(change.revision, pb.KeyValue.FromString(change.prev).value if change.prev else None) for change in changes]
    assert told == [(4, b"1"), (5, b"2"), (6, b"3"), (6, b"1"), (6, b"1"), (7, None)]
    assert store.keyspace.history(4, 7, 1 << 20) == changes


@pytest.mark.parametrize("together", [False, True], ids=["a turn each", "one turn"])
@pytest.mark.parametrize("prev", [False, True])
def test_what_deletes_many_keys_is_the_same_however_it_is_done(together: bool, prev: bool) -> None:
    """With what was before or without, and whatever of it lies in the turn before it is written: ranges in the same
    turn see what is left, in order."""
    look = Txn(success=[range_op(b"a", b"z"), put_op(b"\xff")])
    requests = [
        pb.LeaseGrantRequest(ID=7, TTL=60),
        *[Put(key=b"k%02d" % n, value=b"v", lease=7 * (n % 3 == 0)) for n in range(30)],
        look,
        Delete(key=b"k05", range_end=b"k15", prev_kv=True),
        *[Put(key=b"k%02d" % n, value=b"w", lease=7 * (n % 2)) for n in (20, 9, 31, 6)],
        look,
        Txn(success=[delete_op(b"k1", b"k25"), put_op(b"k30", b"x", lease=7), range_op(b"k", b"l"), put_op(b"a")]),
        look,
        pb.LeaseRevokeRequest(ID=7),
        look,
        Delete(key=b"\0", range_end=b"\0"),
        look,
    ]
    wanted = Store()
    answers = [wanted.outcome(request)[0].results[0] for request in requests]
    keyspace = Keyspace(MemoryEngine())
    results: list[Result] = []
    changes = []
    for part in [requests] if together else [[request] for request in requests]:
        turn = keyspace.begin(prev=prev)
        for request in part:
            results += turn.apply(turn.index + 1, 1, entry(turn.index + 1, request)).results
        changes += turn.commit()
    assert contents(keyspace.engine) == contents(wanted.engine)
    assert results == answers
    history = wanted.keyspace.history(1, wanted.keyspace.revision, 1 << 30)
    assert [(change.revision, change.event) for change in changes] == [(one.revision, one.event) for one in history]
    if prev:
        assert changes == history
    left = [[kv.key for kv in answer(look, result).responses[0].response_range.kvs] for result in results[-5::2]]
    free = [b"a", b"k01", b"k02", b"k04", b"k06", b"k25", b"k26", b"k28", b"k29"]
    assert left == [sorted([*free, b"k00", b"k03", b"k09", b"k27", b"k30", b"k31"]), free, []]
