"""Reads in slices: bounded work at a time, one state from beginning to end."""

from __future__ import annotations

import pytest

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage.keyspace import Keyspace, Result, Scan
from storage.memory import MemoryEngine
from tests.storage.support import Store, answer, exists, finished, put_op, range_op

KEYS = 7000
Range = pb.RangeRequest


def filled(store: Store, value: bytes = b"v") -> Store:
    for at in range(0, KEYS, 1000):
        store.outcome(*(pb.PutRequest(key=b"k%05d" % n, value=value) for n in range(at, at + 1000)))
    return store


def steps(read: Result | Scan) -> tuple[int, Result]:
    count = 0
    while isinstance(read, Scan):
        count += 1
        read = read.step() or read
    return count, read


EVERYTHING = [
    Range(key=b"\0", range_end=b"\0"),
    Range(key=b"\0", range_end=b"\0", count_only=True),
    Range(key=b"\0", range_end=b"\0", limit=10),
    Range(key=b"\0", range_end=b"\0", sort_target=Range.VALUE, sort_order=Range.DESCEND),
    Range(key=b"\0", range_end=b"\0", min_mod_revision=KEYS),
]


@pytest.mark.parametrize("number", range(len(EVERYTHING)))
@pytest.mark.parametrize("past", [False, True])
def test_a_big_read_sees_one_moment(store: Store, number: int, past: bool) -> None:
    """Reliability K7: writes, deletions and compactions between its slices change nothing, the header neither."""
    filled(store)
    request = Range.FromString(EVERYTHING[number].SerializeToString())
    if past:
        store.delete(b"k00000")
        request.revision = KEYS + 1
    want = answer(request, finished(store.keyspace.read(Method.RANGE, request.SerializeToString())))
    assert want.count == KEYS
    read = store.keyspace.read(Method.RANGE, request.SerializeToString())
    while isinstance(read, Scan):
        store.delete(b"k00010", b"k06000")
        store.put(b"k03333", b"new")
        if not past:
            if store.keyspace.compacted < store.keyspace.revision:
                store.compact(store.keyspace.revision)
            store.sweep()
        read = read.step() or read
    assert answer(request, read) == want


@pytest.mark.parametrize("number", range(len(EVERYTHING)))
def test_a_slice_is_at_most_two_thousand_keys(number: int) -> None:
    store = filled(Store())
    count, _ = steps(store.keyspace.read(Method.RANGE, EVERYTHING[number].SerializeToString()))
    assert count >= KEYS // 2000


def test_a_slice_is_about_a_megabyte_at_most() -> None:
    store = Store()
    for n in range(12):
        store.put(b"k%d" % n, bytes(1 << 20))
    count, result = steps(store.keyspace.read(Method.RANGE, EVERYTHING[0].SerializeToString()))
    assert count >= 12
    assert len(result.body) > 12 << 20


def test_work_that_finds_nothing_is_sliced_too() -> None:
    """A past read walks over versions that do not count."""
    store = Store()
    for _ in range(10):
        store.outcome(*(pb.PutRequest(key=b"k") for _ in range(3000)))
    request = Range(key=b"a", range_end=b"z", revision=2)
    count, result = steps(store.keyspace.read(Method.RANGE, request.SerializeToString()))
    assert count >= 3
    assert answer(request, result).kvs[0].version == 1


def test_many_small_ranges_in_one_transaction_are_sliced_like_a_large_one() -> None:
    store = filled(Store())
    ops = [range_op(b"k%05d" % (n * 50), b"k%05d" % (n * 50 + 500)) for n in range(100)]
    request = pb.TxnRequest(
        compare=[pb.Compare(target=pb.Compare.VERSION, result=pb.Compare.LESS, key=b"\0", range_end=b"\0", version=2)],
        success=ops,
    )
    read = store.keyspace.read(Method.TXN, request.SerializeToString())
    count = 0
    while isinstance(read, Scan):
        store.put(b"k%05d" % (count * 100), b"new")  # would break the comparison, too, if it were seen
        count += 1
        read = read.step() or read
    assert count >= 50_000 // 2000
    response = answer(request, read)
    assert response.succeeded
    assert {kv.value for op in response.responses for kv in op.response_range.kvs} == {b"v"}
    assert {op.response_range.count for op in response.responses} == {500}


def test_a_past_read_overtaken_by_a_compaction_is_refused(store: Store) -> None:
    """What it would need may be swept away. It is told what it would be told if it asked now."""
    filled(store)
    store.put(b"k00000")
    request = Range(key=b"\0", range_end=b"\0", revision=5)
    read = store.keyspace.read(Method.RANGE, Range(key=b"\0", range_end=b"\0", revision=KEYS).SerializeToString())
    assert isinstance(read, Scan)
    store.compact(KEYS)
    store.sweep()
    assert read.step() is None, "exactly the compact revision can still be read"
    store.compact(KEYS + 1)
    store.sweep()
    result = finished(read)
    with pytest.raises(errors.Compacted):
        answer(request, result)


def test_small_reads_are_answered_at_once(store: Store) -> None:
    store.put(b"k", b"v")
    for payload in (b"\x0a\x01k", Range(key=b"k", range_end=b"l").SerializeToString()):
        assert isinstance(store.keyspace.read(Method.RANGE, payload), Result)
    txn = pb.TxnRequest(compare=[exists(b"k")], success=[range_op(b"k")])
    assert isinstance(store.keyspace.read(Method.TXN, txn.SerializeToString()), Result)


def test_what_is_no_read_is_refused(store: Store) -> None:
    """As a result: only the engine raises."""
    asked = [
        (Method.PUT, b"\x0a\x01k"),
        (Method.TXN, pb.TxnRequest(success=[put_op(b"k")]).SerializeToString()),
        (Method.RANGE, b"\xff"),
        (Method.RANGE, b""),
        (Method.RANGE, Range(key=b"k", revision=2).SerializeToString()),
    ]
    results = [store.keyspace.read(method, payload) for method, payload in asked]
    assert [result.status for result in results if isinstance(result, Result)] == [12, 12, 13, 3, 11]


@pytest.mark.parametrize("past", [False, True])
def test_pages_tell_how_many_are_left_without_counting_again(past: bool) -> None:
    """Each page says the count of all that is left; what lies beyond the page is visited for the first one alone."""

    class Counting(MemoryEngine):
        visited = 0

        def scan(self, start: bytes, end: bytes, *, reverse: bool = False):  # type: ignore[no-untyped-def]
            for pair in super().scan(start, end, reverse=reverse):
                Counting.visited += 1
                yield pair

    store = filled(Store(Counting()))
    revision = store.keyspace.revision if past else 0
    if past:
        store.delete(b"\0", b"\0")
    key, left, pages = b"\0", KEYS, 0
    while True:
        before = Counting.visited
        page = store.range(key, b"\0", limit=500, revision=revision)
        assert page.count == left
        if pages:
            assert Counting.visited - before <= 501 * (1 + past), "of the past, the deletions that came later, too"
        pages, left = pages + 1, left - 500
        key = page.kvs[-1].key + b"\0"
        if not page.more:
            break
    assert pages == KEYS // 500
    assert not store.range(key, b"\0", limit=500, revision=revision).count
    store.put(b"k99999")
    page = store.range(b"k00500\0", b"\0", limit=500, revision=revision)
    assert page.count == (KEYS - 501 if past else KEYS - 500), "another revision counts anew"


def test_reading_needs_nothing_that_is_not_in_the_engine(store: Store) -> None:
    filled(store)
    store.compact(1000)
    again = Keyspace(store.engine)
    request = Range(key=b"\0", range_end=b"\0", revision=2000)
    one, two = (finished(space.read(Method.RANGE, request.SerializeToString())) for space in (store.keyspace, again))
    assert one == two
    assert answer(request, one).count == 1999
