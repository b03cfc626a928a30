"""The ring of newest changes beside a list that forgets nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.broadcast import Seen
from cluster.ring import Ring

blocks = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=5), min_size=1, max_size=30)


@given(blocks, st.integers(0, 300), st.integers(0, 200), st.integers(0, 5))
def test_it_gives_what_was_added_without_a_gap(sizes: list[list[int]], most: int, slice: int, floor: int) -> None:
    ring, everything, revision = Ring(most), list[Seen](), floor
    ring.restart(floor)
    for block in sizes:
        changes = []
        for size in block:
            revision += 1
            changes.append(Seen(revision, 0, b"k", b"e" * size, b""))
        everything += changes
        ring.add(changes, revision)
        kept = [seen for seen in everything if seen.revision > ring.floor]
        assert sum(len(seen.event) for seen in kept) <= most
        for start in range(ring.floor + 1, revision + 1):
            given, covered, bytes_ = ring.since(start, slice)
            assert covered >= start
            assert [s for s in given if s.revision >= start] == [s for s in kept if start <= s.revision <= covered]
            assert bytes_ == sum(len(seen.event) for seen in given)


def test_a_restart_forgets_everything() -> None:
    ring = Ring(100)
    ring.add([Seen(1, 0, b"k", b"event", b"")], 1)
    ring.restart(7)
    ring.add([Seen(8, 0, b"k", b"event", b"")], 8)
    assert ring.floor == 7
    assert [seen.revision for seen in ring.since(8, 0)[0]] == [8]
