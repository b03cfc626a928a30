"""Who decides, and when they have decided: majorities of voters.

Any two majorities share a member, and that is all that elections, commits and confirmed reads rest on. Every question
of the kind "do enough of them?" is answered here, so that a change of membership has one place to change. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum


class Outcome(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


class Voters:
    """A set of voters that decides by majority. An empty set decides nothing: it never wins and agrees on 0 only."""

    __slots__ = ("_ids", "_majority")

    def __init__(self, ids: tuple[int, ...]) -> None:
        self._ids = tuple(sorted(set(ids)))
        self._majority = len(self._ids) // 2 + 1

    def __iter__(self) -> Iterator[int]:
        """In ascending order, always."""
        return iter(self._ids)

    def __contains__(self, id: object) -> bool:
        return id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def agreed(self, values: Mapping[int, int]) -> int:
        """The highest value that a majority has reached; a voter without one counts as 0, others do not count."""
        reached = sorted([values.get(id, 0) for id in self._ids], reverse=True)
        return reached[self._majority - 1] if reached else 0

    def outcome(self, votes: Mapping[int, bool]) -> Outcome:
        """WON once a majority said yes; LOST once no majority can say yes any more."""
        granted = refused = 0
        for id in self._ids:
            vote = votes.get(id)
            if vote is not None:
                granted += vote
                refused += not vote
        if granted >= self._majority:
            return Outcome.WON
        if refused > len(self._ids) - self._majority:
            return Outcome.LOST
        return Outcome.PENDING
