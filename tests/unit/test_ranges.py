"""The index of ranges against the loop that it replaces (cluster/ranges.py)."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.ranges import EMPTY_MAX, Ranges, _in_order, prefix_end

Span = tuple[bytes, bytes | None]

_KEYS = st.binary(max_size=4).map(lambda raw: bytes(b"ab\xff\x00"[byte & 3] for byte in raw))


def spans() -> st.SearchStrategy[Span]:
    """Every kind there is: empty ranges are not asked for, but found by nobody if they are."""
    return st.one_of(
        st.tuples(_KEYS, st.none()),
        st.tuples(_KEYS, st.just(b"")),
        st.tuples(_KEYS, _KEYS),
        _KEYS.map(lambda key: (key, prefix_end(key))),
    )


def holds(span: Span, key: bytes) -> bool:
    start, end = span
    if end is None:
        return key == start
    return start <= key and (not end or key < end)


def found(ranges: Ranges[int], key: bytes) -> list[int]:
    return [who for place in ranges.at(key) for who in place.wanted_by]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(spans(), st.integers(0, 40)), max_size=60), st.lists(_KEYS, min_size=1, max_size=20))
def test_a_key_finds_exactly_those_who_want_it(steps: list[Span | int], keys: list[bytes]) -> None:
    """Ranges come and, as numbers say, go; at any moment each key finds what a loop over all would."""
    ranges: Ranges[int] = Ranges()
    wanted: dict[int, Span] = {}
    for number, step in enumerate(steps):
        if isinstance(step, int):
            if wanted:
                gone = sorted(wanted)[step % len(wanted)]
                ranges.remove(*wanted.pop(gone), gone)
        else:
            wanted[number] = step
            ranges.add(*step, number)
        key = keys[number % len(keys)]
        assert sorted(found(ranges, key)) == [who for who in sorted(wanted) if holds(wanted[who], key)]
    for key in keys:
        assert sorted(found(ranges, key)) == [who for who in sorted(wanted) if holds(wanted[who], key)]


def test_ten_thousand_ranges_in_the_worst_order_stay_a_shallow_tree() -> None:
    """And a key looks at few of them, whether they came sorted, nested, or at random."""
    number = b"%06d"
    dice = Random(1)
    orders = [
        [(number % i, number % (i + 2)) for i in range(10_000)],
        [(number % i, number % (99_999 - i)) for i in range(10_000)],
        [(number % i, number % (i + dice.randrange(2, 50))) for i in dice.sample(range(100_000), 10_000)],
    ]
    for spans in orders:
        ranges: Ranges[int] = Ranges()
        for who, (start, end) in enumerate(spans):
            ranges.add(start, end, who)
        assert depth(ranges) <= 30  # log to the base 1 / BALANCE of 10,000 is 25.8
        for _ in range(50):
            key = number % dice.randrange(100_000)
            assert sorted(found(ranges, key)) == [who for who, span in enumerate(spans) if holds(span, key)]


def test_ranges_that_nobody_wants_any_more_leave_the_tree() -> None:
    ranges: Ranges[int] = Ranges()
    for who in range(2000):
        ranges.add(b"%d" % who, b"%d\0" % who, who)
    for who in range(1990):
        ranges.remove(b"%d" % who, b"%d\0" % who, who)
    assert len(list(_in_order(ranges._tree._root))) <= 2 * (10 + EMPTY_MAX)
    assert found(ranges, b"1995") == [1995]
    assert found(ranges, b"5") == []
    ranges.add(b"5", b"5\0", 5)
    assert found(ranges, b"5") == [5]


def depth(ranges: Ranges[int]) -> int:
    deepest, stack = 0, [(ranges._tree._root, 1)]
    while stack:
        node, level = stack.pop()
        if node is not None:
            deepest = max(deepest, level)
            stack += [(node.left, level + 1), (node.right, level + 1)]
    return deepest
