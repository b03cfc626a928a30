"""Majorities, against a second implementation that tries every subset."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from cluster.raft.quorum import Outcome, Voters
from tests.raft.harness import PROPERTY

some_ids = st.sets(st.integers(1, 9), max_size=7)


def majorities(ids: set[int]) -> list[set[int]]:
    """Every subset that is more than half."""
    return [
        set(some) for size in range(len(ids) + 1) for some in combinations(sorted(ids), size) if 2 * size > len(ids)
    ]


@PROPERTY
@given(some_ids, st.dictionaries(st.integers(1, 12), st.integers(0, 20)))
def test_agreed_is_the_highest_value_that_some_majority_has_reached(ids: set[int], values: dict[int, int]) -> None:
    """Raft paper 5.3: N such that a majority of matchIndex[i] >= N. Members that don't vote don't count."""
    reached = [min(values.get(id, 0) for id in some) for some in majorities(ids) if some]
    assert Voters(tuple(ids)).agreed(values) == max(reached, default=0)


@PROPERTY
@given(some_ids, st.dictionaries(st.integers(1, 12), st.booleans()))
def test_an_election_is_won_by_a_majority_and_lost_when_none_is_left(ids: set[int], votes: dict[int, bool]) -> None:
    """Won: some majority said yes. Lost: no majority is without a no. An empty set of voters elects nobody."""
    won = any(some and all(votes.get(id) is True for id in some) for some in majorities(ids))
    open_ = any(some and all(votes.get(id) is not False for id in some) for some in majorities(ids))
    expected = Outcome.WON if won else Outcome.PENDING if open_ else Outcome.LOST
    assert Voters(tuple(ids)).outcome(votes) is expected


@PROPERTY
@given(st.lists(st.integers(1, 9)))
def test_voters_are_visited_once_and_in_order(ids: list[int]) -> None:
    """So that two runs of one seed send in one order."""
    assert list(Voters(tuple(ids))) == sorted(set(ids))


def test_any_two_majorities_share_a_member() -> None:
    """What all of Raft rests on."""
    for size in range(1, 8):
        ids = set(range(1, size + 1))
        voters = Voters(tuple(ids))
        quorums = [
            set(some)
            for count in range(size + 1)
            for some in combinations(sorted(ids), count)
            if voters.outcome(dict.fromkeys(some, True)) is Outcome.WON
        ]
        assert all(a & b for a in quorums for b in quorums)
