"""etcd's rules for keys, one story each. What could be doubted was asked of etcd 3.5.1."""

from __future__ import annotations

from typing import Any

import pytest

from kvorum import errors
from kvorum import etcd_pb2 as pb
from tests.storage.support import Store, delete_op, exists, put_op, range_op, txn_op

Range, Compare = pb.RangeRequest, pb.Compare


def test_the_first_write_makes_revision_two(store: Store) -> None:
    """API reference 5: a new store is at revision 1."""
    assert store.range(b"k").header.revision == 1
    assert store.put(b"k", b"v").header.revision == 2


def test_a_key_remembers_its_life(store: Store) -> None:
    """Reliability K6: version 1 after re-creation; a put of the same value counts."""

    def life(key: bytes) -> tuple[int, int, int]:
        kv = store.range(key).kvs[0]
        return kv.create_revision, kv.mod_revision, kv.version

    store.put(b"k", b"v")
    assert life(b"k") == (2, 2, 1)
    store.put(b"k", b"v")
    assert life(b"k") == (2, 3, 2)
    store.delete(b"k")
    store.put(b"k", b"v")
    assert life(b"k") == (5, 5, 1)


def test_deleting_nothing_makes_no_revision(store: Store) -> None:
    store.put(b"k")
    answer = store.delete(b"x", b"z")
    assert (answer.deleted, answer.header.revision) == (0, 2)
    answer = store.delete(b"a", b"z")
    assert (answer.deleted, answer.header.revision) == (1, 3)


def test_ranges_mean_what_etcd_means(store: Store) -> None:
    """API reference 4."""
    for key in (b"\0", b"a", b"a\0", b"b", b"\xff", b"\xff\xff"):
        store.put(key)
    assert store.keys(b"a", b"") == [b"a"]
    assert store.keys(b"a", b"b") == [b"a", b"a\0"]
    assert store.keys(b"a\0", b"\0") == [b"a\0", b"b", b"\xff", b"\xff\xff"]
    assert store.keys(b"\0", b"\0") == [b"\0", b"a", b"a\0", b"b", b"\xff", b"\xff\xff"]
    assert store.keys(b"b", b"a") == []
    assert store.keys(b"a", b"a") == []
    assert store.keys(b"\xff", b"\0") == [b"\xff", b"\xff\xff"]
    assert store.delete(b"b", b"a").deleted == 0
    assert store.delete(b"b", b"\0").deleted == 3


def test_count_comes_before_filters_and_limit(store: Store) -> None:
    """API reference 6.1: Kubernetes computes what remains from it."""
    for n in range(5):
        store.put(b"k%d" % n)
    page = store.range(b"k", b"l", limit=2)
    assert ([kv.key for kv in page.kvs], page.more, page.count) == ([b"k0", b"k1"], True, 5)
    page = store.range(b"k", b"l", limit=5)
    assert (len(page.kvs), page.more, page.count) == (5, False, 5)
    page = store.range(b"k", b"l", min_mod_revision=5, limit=1)
    assert ([kv.key for kv in page.kvs], page.more, page.count) == ([b"k3"], True, 5)
    page = store.range(b"k", b"l", max_mod_revision=2, limit=1)
    assert ([kv.key for kv in page.kvs], page.more, page.count) == ([b"k0"], False, 5)
    page = store.range(b"k", b"l", count_only=True, limit=1, min_mod_revision=99)
    assert (len(page.kvs), page.more, page.count) == (0, False, 5)
    page = store.range(b"k0", min_mod_revision=99)
    assert (len(page.kvs), page.count) == (0, 1)
    assert len(store.range(b"k", b"l", limit=-1).kvs) == 5


def test_sorting(store: Store) -> None:
    """API reference 6.1: sorted, then cut; a target without an order ascends."""
    store.put(b"a", b"z")
    store.put(b"c", b"x")
    store.put(b"b", b"y")
    store.put(b"a", b"z")
    assert store.keys(sort_order=Range.DESCEND) == [b"c", b"b", b"a"]
    assert store.keys(sort_order=Range.ASCEND, sort_target=Range.VALUE) == [b"c", b"b", b"a"]
    assert store.keys(sort_target=Range.MOD) == [b"c", b"b", b"a"]
    assert store.keys(sort_target=Range.CREATE) == [b"a", b"c", b"b"]
    assert store.keys(sort_target=Range.VERSION, sort_order=Range.DESCEND, limit=1) == [b"a"]
    page = store.range(b"\0", b"\0", sort_target=Range.CREATE, sort_order=Range.DESCEND, limit=2)
    assert ([kv.key for kv in page.kvs], page.more, page.count) == ([b"b", b"c"], True, 3)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_best_of_many_keys(store: Store, backwards: bool) -> None:
    """What is sorted and limited keeps only candidates, and must not lose one."""
    order = [(n * 7919) % 3001 for n in range(3001)]
    store.outcome(*(pb.PutRequest(key=b"k%04d" % n, value=b"%04d" % value) for n, value in enumerate(order)))
    page = store.range(
        b"\0", b"\0", sort_target=Range.VALUE, sort_order=Range.DESCEND if backwards else Range.ASCEND, limit=3
    )
    wanted = sorted(order, reverse=backwards)[:3]
    assert ([kv.value for kv in page.kvs], page.more, page.count) == ([b"%04d" % n for n in wanted], True, 3001)


def test_keys_only_keeps_the_rest(store: Store) -> None:
    store.put(b"k", b"value")
    for options in ({}, {"range_end": b"l"}, {"revision": 2}):
        kv = store.read(Range(key=b"k", keys_only=True, **options)).kvs[0]
        assert (kv.value, kv.create_revision, kv.version) == (b"", 2, 1)
    assert store.keys(keys_only=True, sort_target=Range.VALUE) == [b"k"]


def test_empty_values_and_any_bytes_live(store: Store) -> None:
    values = [b"", b"\0", b"\xff" * 3, b"\x12\x05trap!"]
    for n, value in enumerate(values):
        store.put(bytes([n, 0, 255]), value)
    store.put(b"\n\x01k")
    assert [store.get(bytes([n, 0, 255])) for n in range(4)] == values
    assert [store.get(bytes([n, 0, 255]), revision=6) for n in range(4)] == values
    assert store.get(b"\n\x01k") == b""


def test_large_values_live_in_history_too(store: Store) -> None:
    """Lengths of one to four bytes, on both sides of each step."""
    sizes = [126, 127, 128, 129, 16381, 16384, 16390, 1 << 20]
    for size in sizes:
        store.put(b"k", bytes(size))
    store.put(b"k", b"last")
    for n, size in enumerate(sizes):
        assert store.get(b"k", revision=n + 2) == bytes(size)


# ---- revisions


def test_a_past_revision_reads_as_it_was(store: Store) -> None:
    """Reliability K8. The header still says the newest revision (K7)."""
    store.put(b"a", b"1")
    store.put(b"b", b"1")
    store.put(b"a", b"2")
    store.delete(b"b")
    assert [store.get(b"a", revision=r) for r in (1, 2, 3, 4, 5)] == [None, b"1", b"1", b"2", b"2"]
    assert [store.get(b"b", revision=r) for r in (1, 2, 3, 4, 5)] == [None, None, b"1", b"1", None]
    assert [store.keys(revision=r) for r in (1, 2, 3, 4, 5)] == [[], [b"a"], [b"a", b"b"], [b"a", b"b"], [b"a"]]
    assert store.range(b"a", revision=2).header.revision == 5
    assert store.range(b"a", revision=-3).kvs[0].value == b"2"
    page = store.range(b"\0", b"\0", revision=4, limit=1)
    assert ([kv.key for kv in page.kvs], page.more, page.count) == ([b"a"], True, 2)
    assert store.range(b"\0", b"\0", revision=4, count_only=True).count == 2
    assert store.keys(revision=4, sort_order=Range.DESCEND) == [b"b", b"a"]
    with pytest.raises(errors.FutureRevision):
        store.range(b"a", revision=6)


def test_the_compact_revision_is_readable_and_what_is_below_is_not(store: Store) -> None:
    """API reference 5; at once, however far the sweep is."""
    for n in range(5):
        store.put(b"k", b"%d" % n)
    assert store.compact(4).header.revision == 6
    for _ in range(2):
        assert store.get(b"k", revision=4) == b"2"
        assert store.get(b"k", revision=0) == b"4"
        for revision in (1, 3):
            with pytest.raises(errors.Compacted):
                store.range(b"k", revision=revision)
        store.sweep()


def test_compaction_refuses_what_it_must(store: Store) -> None:
    """API reference 5. Compacting to 0 once is allowed, as in etcd, where nothing is compacted yet at -1."""
    store.put(b"k")
    store.put(b"k")
    assert store.keyspace.compacted == -1
    with pytest.raises(errors.Compacted):
        store.compact(-1)
    store.compact(0)
    with pytest.raises(errors.Compacted):
        store.compact(0)
    with pytest.raises(errors.FutureRevision):
        store.compact(4)
    store.compact(3)
    for revision in (3, 2):
        with pytest.raises(errors.Compacted):
            store.compact(revision)
    assert store.keyspace.revision == 3
    assert store.keyspace.compacted == 3


# ---- put


def test_prev_kv_is_there_if_there_was_one(store: Store) -> None:
    assert not store.put(b"k", b"1", prev_kv=True).HasField("prev_kv")
    assert store.put(b"k", b"2", prev_kv=True).prev_kv.value == b"1"
    assert not store.put(b"k", b"3").HasField("prev_kv")
    answer = store.delete(b"\0", b"\0", prev_kv=True)
    assert [kv.value for kv in answer.prev_kvs] == [b"3"]
    assert not store.put(b"k", b"1", prev_kv=True).HasField("prev_kv")


def test_ignore_value_keeps_the_value(store: Store) -> None:
    with pytest.raises(errors.KeyNotFound):
        store.put(b"k", ignore_value=True)
    with pytest.raises(errors.KeyNotFound):
        store.put(b"k", ignore_lease=True)
    store.put(b"k", b"kept")
    store.put(b"k", ignore_value=True)
    assert (store.get(b"k"), store.range(b"k").kvs[0].version) == (b"kept", 2)
    store.put(b"k", b"new", ignore_lease=True)
    assert (store.get(b"k"), store.range(b"k").kvs[0].lease) == (b"new", 0)
    with pytest.raises(errors.ValueProvided):
        store.put(b"k", b"v", ignore_value=True)


def test_an_unknown_lease_is_not_found(store: Store) -> None:
    """API reference 6.2: and nothing is written. No lease is known yet."""
    with pytest.raises(errors.LeaseNotFound):
        store.put(b"k", lease=7)
    with pytest.raises(errors.LeaseNotFound):
        store.txn(success=[put_op(b"a"), put_op(b"k", lease=7)])
    assert store.keyspace.revision == 1
    assert store.keys() == []


# ---- txn


def compare(key: bytes, target: Any, result: Any, **value: Any) -> pb.Compare:
    return Compare(key=key, target=target, result=result, **value)


OPERATORS = (Compare.EQUAL, Compare.GREATER, Compare.LESS, Compare.NOT_EQUAL)


def outcomes(store: Store, key: bytes, target: Any, **value: Any) -> list[bool]:
    return [store.txn(compare=[compare(key, target, result, **value)]).succeeded for result in OPERATORS]


def test_comparisons(store: Store) -> None:
    """API reference 6.4."""
    store.put(b"k", b"m")
    store.put(b"k", b"m")
    assert outcomes(store, b"k", Compare.VERSION, version=2) == [True, False, False, False]
    assert outcomes(store, b"k", Compare.VERSION, version=1) == [False, True, False, True]
    assert outcomes(store, b"k", Compare.CREATE, create_revision=3) == [False, False, True, True]
    assert outcomes(store, b"k", Compare.MOD, mod_revision=3) == [True, False, False, False]
    assert outcomes(store, b"k", Compare.VALUE, value=b"m") == [True, False, False, False]
    assert outcomes(store, b"k", Compare.VALUE, value=b"l\xff") == [False, True, False, True]
    assert outcomes(store, b"k", Compare.LEASE, lease=0) == [True, False, False, False]
    assert outcomes(store, b"k", Compare.VALUE, version=7) == [False, True, False, True], "unset compares as empty"
    assert store.txn().succeeded, "no comparison at all holds"


def test_a_missing_key_compares_as_zero_but_has_no_value(store: Store) -> None:
    """API reference 6.4, trap list: NOT_EQUAL is false as well."""
    for target, field in ((Compare.VERSION, "version"), (Compare.CREATE, "create_revision"), (Compare.LEASE, "lease")):
        assert outcomes(store, b"none", target, **{field: 0}) == [True, False, False, False]
    assert outcomes(store, b"none", Compare.VALUE, value=b"") == [False] * 4
    assert outcomes(store, b"none", Compare.VALUE, value=b"x") == [False] * 4


def test_comparisons_over_a_range_must_hold_for_every_key(store: Store) -> None:
    store.put(b"a", b"1")
    store.put(b"b", b"1")
    store.put(b"b", b"2")

    def holds(end: bytes, target: Any, result: Any, **value: Any) -> bool:
        return bool(store.txn(compare=[compare(b"a", target, result, range_end=end, **value)]).succeeded)

    assert holds(b"c", Compare.VERSION, Compare.GREATER, version=0)
    assert not holds(b"c", Compare.VERSION, Compare.EQUAL, version=1)
    assert holds(b"b", Compare.VERSION, Compare.EQUAL, version=1)
    assert holds(b"\0", Compare.VALUE, Compare.LESS, value=b"3")
    assert holds(b"a", Compare.VERSION, Compare.EQUAL, version=0), "an empty range is compared as a missing key"
    assert not holds(b"a", Compare.VALUE, Compare.NOT_EQUAL, value=b"x")


def test_a_transaction_is_one_revision(store: Store) -> None:
    """Reliability K2, K5."""
    store.put(b"old")
    answer = store.txn(success=[put_op(b"a"), delete_op(b"old"), put_op(b"b")])
    assert answer.header.revision == 3
    assert [kv.mod_revision for kv in store.range(b"\0", b"\0").kvs] == [3, 3]
    changes = store.keyspace.history(3, 3, 1 << 20)
    assert [pb.Event.FromString(change.event).kv.key for change in changes] == [b"a", b"old", b"b"]


def test_a_transaction_that_changes_nothing_makes_no_revision(store: Store) -> None:
    store.put(b"k")
    assert store.txn().header.revision == 2
    assert store.txn(success=[range_op(b"k"), delete_op(b"none")]).header.revision == 2
    assert (
        store.txn([exists(b"none")], [put_op(b"x")], [txn_op([exists(b"none")], [put_op(b"y")])]).header.revision == 2
    )
    assert store.keys() == [b"k"]


def test_ranges_see_what_was_written_before_them_in_the_transaction(store: Store) -> None:
    """Reliability K3; and a range at a revision does not."""
    store.put(b"k", b"old")
    answer = store.txn(
        success=[
            range_op(b"k"),
            put_op(b"k", b"new"),
            range_op(b"k"),
            range_op(b"k", revision=2),
            range_op(b"\0", b"\0"),
        ]
    )
    ranges = [op.response_range for op in answer.responses if op.HasField("response_range")]
    assert [[kv.value for kv in found.kvs] for found in ranges] == [[b"old"], [b"new"], [b"old"], [b"new"]]
    assert [found.header.revision for found in ranges] == [2, 3, 3, 3]


def test_answers_inside_carry_only_a_revision(store: Store) -> None:
    """API reference 2.11: Kubernetes reads response_put.header.revision. Before the first change it is the old one."""
    store.put(b"k")
    answer = store.txn(
        success=[delete_op(b"none"), range_op(b"k"), put_op(b"a"), delete_op(b"none"), txn_op(success=[put_op(b"b")])]
    )
    inner = [getattr(op, str(op.WhichOneof("response"))).header for op in answer.responses]
    assert inner == [pb.ResponseHeader(revision=revision) for revision in (2, 2, 3, 3, 3)]
    assert answer.header.revision == 3
    assert answer.responses[4].response_txn.succeeded


def test_comparisons_see_the_state_before_the_transaction(store: Store) -> None:
    """API reference 6.4: those of nested transactions too."""
    answer = store.txn(
        success=[put_op(b"a", b"1"), txn_op([exists(b"a")], [put_op(b"then")], [put_op(b"else")])],
    )
    assert not answer.responses[1].response_txn.succeeded
    assert store.keys() == [b"a", b"else"]


def test_preconditions_are_checked_before_anything_is_done(store: Store) -> None:
    """API reference 6.4: in the branch that is taken, at every depth; the other one may ask for nonsense."""
    store.put(b"k")
    store.put(b"k")
    store.compact(3)
    bad = [
        ([put_op(b"x"), put_op(b"none", ignore_value=True)], errors.KeyNotFound),
        ([put_op(b"x"), put_op(b"none", b"v", ignore_lease=True)], errors.KeyNotFound),
        ([put_op(b"none"), txn_op(success=[put_op(b"k", lease=5)])], errors.LeaseNotFound),
        ([put_op(b"x"), range_op(b"k", revision=4)], errors.FutureRevision),
        ([put_op(b"x"), txn_op(success=[txn_op(success=[range_op(b"k", revision=2)])])], errors.Compacted),
    ]
    for ops, error in bad:
        with pytest.raises(error):
            store.txn(success=ops)
        assert store.txn([exists(b"none")], success=ops).header.revision == 3
        assert store.txn(success=[txn_op([exists(b"k")], [], ops)]).header.revision == 3
    assert store.keys() == [b"k"]


def test_a_read_only_transaction_fails_by_the_branch_it_takes(store: Store) -> None:
    store.put(b"k")
    bad = [range_op(b"k", revision=9)]
    with pytest.raises(errors.FutureRevision):
        store.read(pb.TxnRequest(success=bad))
    assert not store.read(pb.TxnRequest(compare=[exists(b"none")], success=bad)).succeeded
    answer = store.read(pb.TxnRequest(compare=[exists(b"k")], success=[range_op(b"k"), range_op(b"k", revision=1)]))
    assert [len(op.response_range.kvs) for op in answer.responses] == [1, 0]
    assert [op.response_range.header.revision for op in answer.responses] == [2, 2]


def test_clearing_everything_and_writing_is_one_transaction(store: Store) -> None:
    """An open-ended deletion is not held against a put (etcd 3.5.1): a key may change twice in one revision, and its
    history knows both changes. Keeping the value of what was just deleted keeps nothing (there etcd 3.5.1 panics)."""
    store.put(b"a", b"1")
    store.put(b"b", b"1")
    store.txn(success=[delete_op(b"\0", b"\0"), put_op(b"b", b"2")])
    assert store.get(b"b") == store.get(b"b", revision=4) == b"2"
    assert store.range(b"b").kvs[0].version == 1
    changes = [pb.Event.FromString(change.event) for change in store.keyspace.history(4, 4, 1 << 20)]
    assert [(event.type, event.kv.key) for event in changes] == [(1, b"a"), (1, b"b"), (0, b"b")]
    store.txn(success=[put_op(b"c", b"3"), delete_op(b"\0", b"\0")])
    assert store.keys() == store.keys(revision=5) == []
    store.put(b"d", b"kept")
    store.txn(success=[delete_op(b"\0", b"\0"), put_op(b"d", ignore_value=True)])
    assert store.get(b"d") == b""


# ---- members


def test_members_are_what_each_last_published(store: Store) -> None:
    one = pb.MemberPublish(member=pb.Member(ID=9, name="nine"))
    two = pb.MemberPublish(member=pb.Member(ID=3, name="three"), endpoint=pb.Endpoint(member_id=3, native="tcp://x:1"))
    newer = pb.MemberPublish(member=pb.Member(ID=9, name="nine", clientURLs=["http://x"]))
    assert store.keyspace.members() == []
    for published in (one, two, newer):
        assert store.write(published).revision == 1
    assert store.keyspace.members() == [two, newer]
    assert Store(store.engine).keyspace.members() == [two, newer]
    with pytest.raises(errors.Malformed):
        store.write(pb.MemberPublish())
