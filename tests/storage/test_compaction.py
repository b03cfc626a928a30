"""Giving space back: what must stay stays, what may go goes, and crashes in between make no difference."""

from __future__ import annotations

import pytest

from kvorum import errors
from kvorum import etcd_pb2 as pb
from storage import codec, compaction
from storage.engine import Engine
from storage.keyspace import Change, Keyspace
from storage.memory import LossyEngine, MemoryEngine
from tests.storage.model import Model
from tests.storage.requests_at_random import Dice
from tests.storage.support import Store, contents, delete_op, entry, finished, put_op
from tests.storage.test_model import every_read_agrees, modelled


def places(engine: Engine) -> list[tuple[int, int]]:
    return [codec.revision_place(key) for key in engine.scan_keys(b"r", b"s")]


def told(changes: list[Change]) -> list[tuple[int, int, bytes]]:
    events = [pb.Event.FromString(change.event) for change in changes]
    return [(event.kv.mod_revision, event.type, event.kv.key) for event in events]


def test_what_is_left_after_a_sweep(store: Store) -> None:
    """API reference 5: for every key the newest version up to the compaction, unless it is a deletion before it."""
    store.put(b"a")  # 2: superseded at 4
    store.put(b"b")  # 3: deleted at 5
    store.put(b"a")  # 4: the newest of a
    store.delete(b"b")  # 5: a deletion below
    store.put(b"c")  # 6: the newest of c, though superseded later
    store.put(b"d")  # 7
    store.delete(b"d")  # 8: a deletion exactly there
    store.put(b"c")  # 9
    store.delete(b"a")  # 10
    store.compact(8)
    assert store.sweep() == 1
    assert places(store.engine) == [(4, 0), (6, 0), (8, 0), (9, 0), (10, 0)]
    history = [key for key in store.contents() if key[:1] == b"h"]
    assert len(history) == 5
    assert store.keyspace.swept == 8
    store.compact(10)
    store.sweep()
    assert places(store.engine) == [(9, 0), (10, 0)]
    assert store.sweep() == 0


def test_a_deletion_exactly_at_the_compaction_is_still_told(store: Store) -> None:
    """Reliability T12, K11: a watcher may start at the compact revision (etcd #19179)."""
    store.put(b"k")
    store.delete(b"k")
    store.put(b"other")
    store.compact(3)
    for _ in range(2):
        assert told(store.keyspace.history(3, 9, 1 << 20)) == [(3, 1, b"k"), (4, 0, b"other")]
        assert store.get(b"k", revision=3) is None
        with pytest.raises(errors.Compacted):
            store.keyspace.history(2, 9, 1 << 20)
        store.sweep()


def test_deleting_everything_and_compacting_there_frees_the_values(store: Store) -> None:
    """What an operator does whose quota is used up."""
    for n in range(100):
        store.put(b"k%d" % n, bytes(1000))
    store.delete(b"\0", b"\0")
    store.compact(store.keyspace.revision)
    store.sweep()
    assert sum(map(len, store.contents().values())) < 10_000
    assert len(places(store.engine)) == 100, "the deletions themselves, until the next compaction"
    store.put(b"k")
    store.compact(store.keyspace.revision)
    store.sweep()
    assert len(places(store.engine)) == 1


def test_a_key_that_changes_twice_in_the_compacted_revision_keeps_both(store: Store) -> None:
    store.put(b"a", b"1")
    store.txn(success=[delete_op(b"\0", b"\0"), put_op(b"a", b"2")])
    store.compact(3)
    store.sweep()
    assert told(store.keyspace.history(3, 3, 1 << 20)) == [(3, 1, b"a"), (3, 0, b"a")]
    assert store.get(b"a", revision=3) == b"2"
    store.txn(success=[put_op(b"x"), delete_op(b"\0", b"\0")])
    store.compact(4)
    store.sweep()
    assert told(store.keyspace.history(4, 4, 1 << 20)) == [(4, 0, b"x"), (4, 1, b"a"), (4, 1, b"x")]
    store.put(b"y")
    store.compact(5)
    store.sweep()
    assert places(store.engine) == [(5, 0)]


def test_what_a_change_replaced_is_not_told_once_it_is_compacted(store: Store) -> None:
    """Reliability W8; the same before and after the sweep, so the same on every member."""
    store.put(b"k", b"1")
    store.put(b"k", b"2")
    store.put(b"k", b"3")
    store.compact(3)
    for _ in range(2):
        assert [bool(change.prev) for change in store.keyspace.history(3, 9, 1 << 20)] == [False, True]
        store.sweep()


def test_history_comes_in_whole_revisions(store: Store) -> None:
    store.put(b"a", bytes(100))
    store.txn(success=[put_op(b"k%d" % n, bytes(100)) for n in range(5)])
    store.put(b"b", bytes(100))
    history = store.keyspace.history

    def revisions(first: int, last: int, max_bytes: int) -> list[int]:
        return [change.revision for change in history(first, last, max_bytes)]

    assert revisions(1, 9, 1 << 20) == [2, 3, 3, 3, 3, 3, 4]
    assert revisions(2, 3, 1 << 20) == [2, 3, 3, 3, 3, 3]
    assert revisions(2, 9, 1) == [2]
    assert revisions(2, 9, 600) == [2]
    assert revisions(3, 9, 1) == [3] * 5, "at least one revision, however large"
    assert revisions(4, 9, 1) == [4]
    assert revisions(5, 9, 1 << 20) == []
    assert revisions(4, 3, 1 << 20) == []
    assert history(4, 4, 1 << 20) == history(1, 9, 1 << 20)[-1:]


def test_a_step_is_bounded() -> None:
    store = Store()
    for _ in range(5):
        store.outcome(*(pb.PutRequest(key=b"k%d" % n) for n in range(1000)))
    store.compact(store.keyspace.revision)
    assert store.sweep() >= 5000 // compaction.STEP_CHANGES
    assert len(places(store.engine)) == 1000
    for _ in range(20):
        store.put(b"big", bytes(1 << 20))
    store.compact(store.keyspace.revision)
    assert store.sweep() >= 20 * (1 << 20) // compaction.STEP_BYTES // 2


def test_a_sweep_visits_only_what_changed_since_the_last_one() -> None:
    """Not every key: a compaction every few minutes must not cost by the size of the store."""
    store = Store()
    store.outcome(*(pb.PutRequest(key=b"k%d" % n) for n in range(5000)))
    store.compact(store.keyspace.revision)
    store.sweep()
    for _ in range(10):
        store.put(b"k1")
    store.compact(store.keyspace.revision)
    assert store.sweep() == 1


def test_a_compaction_during_a_sweep_is_swept_as_well() -> None:
    store = Store()
    for n in range(3000):
        store.put(b"k%d" % (n % 7))
        if n % 2:
            store.delete(b"k%d" % (n % 7))
    store.compact(2500)
    assert store.keyspace.sweep()
    assert store.keyspace.swept == 0
    store.compact(store.keyspace.revision)
    assert store.sweep() > 1
    assert store.keyspace.swept == store.keyspace.revision
    assert len(places(store.engine)) == len(store.keys()) + 1, "and the deletion at the compaction itself"


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_between_any_two_steps_makes_no_difference(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reliability T12: steps of a few changes, and after each a crash that takes any number of the newest batches. The
    log is applied again from there; in the end every read agrees with the model, and the bytes with a store that was
    swept once, without crashes."""
    monkeypatch.setattr(compaction, "STEP_CHANGES", 5)
    dice, model = Dice(seed), Model()
    log = []
    while len(log) < 150:
        dice.revision = model.revision
        request = dice.compact() if len(log) % 40 == 39 else dice.write()
        modelled(model, request)
        log.append(entry(len(log) + 1, request))
    engine = LossyEngine()
    keyspace, crashes = Keyspace(engine), 0
    while keyspace.applied[0] < len(log) or keyspace.sweep():
        if keyspace.applied[0] < len(log):
            turn = keyspace.begin()
            for _ in range(min(dice.random.randint(1, 4), len(log) - turn.index)):
                turn.apply(turn.index + 1, 1, log[turn.index])
            turn.commit()
            keyspace.sweep()
        if dice.maybe(0.4):
            engine.crash(dice.random.randint(max(engine.unflushed - 3, 0), engine.unflushed))
            keyspace = Keyspace(engine)
            crashes += 1
    assert crashes > 10
    every_read_agrees(keyspace, model)
    calm = Keyspace(MemoryEngine())
    turn = calm.begin()
    for data in log:
        turn.apply(turn.index + 1, 1, data)
    turn.commit()
    while calm.sweep():
        pass
    assert contents(engine) == contents(calm.engine)


def test_reads_and_history_go_on_between_the_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """K11: compaction never changes what is at or after it."""
    monkeypatch.setattr(compaction, "STEP_CHANGES", 3)
    for n in range(60):
        store.put(b"k%d" % (n % 7), b"%d" % n)
        if n % 5 == 0:
            store.delete(b"k%d" % (n % 7))
    store.compact(50)

    def everything() -> object:
        reads = [
            finished(
                store.keyspace.read(2, pb.RangeRequest(key=b"\0", range_end=b"\0", revision=r).SerializeToString())
            )
            for r in range(50, store.keyspace.revision + 1)
        ]
        return reads, store.keyspace.history(50, 1 << 40, 1 << 20)

    before = everything()
    while store.keyspace.sweep():
        assert everything() == before
    assert everything() == before


def test_the_revision_outlives_everything_that_was_compacted(monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd #17780: nothing is left that carries the newest revisions, and a crash comes after any step of the sweep."""
    monkeypatch.setattr(compaction, "STEP_CHANGES", 1)
    log = [entry(n + 1, pb.PutRequest(key=b"k%d" % (n % 3))) for n in range(9)]
    log.append(entry(10, pb.DeleteRangeRequest(key=b"\0", range_end=b"\0")))
    log.append(entry(11, pb.CompactionRequest(revision=11)))
    for steps in range(20):
        engine = LossyEngine()
        keyspace = Keyspace(engine)
        turn = keyspace.begin()
        for data in log:
            turn.apply(turn.index + 1, 1, data)
        turn.commit()
        swept = sum(keyspace.sweep() for _ in range(steps))
        assert swept == min(steps, 12), "one change a step"
        engine.crash(engine.unflushed - steps % 2)
        for _ in range(2):
            keyspace = Keyspace(engine)
            assert (keyspace.revision, keyspace.compacted, keyspace.applied) == (11, 11, (11, 1))
            while keyspace.sweep():
                pass
        turn = keyspace.begin()
        turn.apply(12, 1, entry(12, pb.PutRequest(key=b"new")))
        turn.commit()
        assert keyspace.revision == 12


def test_a_transaction_that_reads_what_is_compacted_fails_alike_before_and_after_the_sweep() -> None:
    """etcd #18667: what is compacted is agreed upon; how far a member has swept is nobody's business."""
    answers = []
    for swept in (False, True):
        store = Store()
        for n in range(5):
            store.put(b"k", b"%d" % n)
        store.compact(4)
        if swept:
            store.sweep()
        old = pb.RequestOp(request_range=pb.RangeRequest(key=b"k", revision=3))
        with pytest.raises(errors.Compacted):
            store.txn(success=[put_op(b"k", b"lost"), old])
        answers.append((store.keyspace.revision, store.get(b"k"), store.get(b"k", revision=4)))
    assert answers[0] == answers[1] == (6, b"4", b"2")
