"""What a member of a cluster is told at birth. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """What does not change while a member runs. Raises ValueError for values that make no sense.

    Args:
      id: this member, not 0. It may be missing in `voters`; then it follows and never campaigns.
      voters: the members that vote.
      election_ticks: without a leader for this long up to twice as long, by chance, a member campaigns; a leader that
        has not heard a quorum for this long steps down.
      heartbeat_ticks: how often a leader is heard at least.
      append_bytes_max: an append carries at most this, or one entry that is larger.
      inflight_max: unanswered appends to one member.
      inflight_bytes_max: the same in bytes; the last append may pass it.
      uncommitted_bytes_max: proposals that a leader has taken and not yet committed; beyond it they are refused. One is
        always taken, however large, if there is none.
    """

    id: int
    voters: tuple[int, ...]
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    append_bytes_max: int = 1 << 20
    inflight_max: int = 256
    inflight_bytes_max: int = 16 << 20
    uncommitted_bytes_max: int = 64 << 20

    def __post_init__(self) -> None:
        if not all(0 < id < 1 << 64 for id in (self.id, *self.voters)):
            raise ValueError("a member's id is a positive number of 64 bits")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError("heartbeat_ticks must be positive and less than election_ticks")
        if min(self.append_bytes_max, self.inflight_max, self.inflight_bytes_max, self.uncommitted_bytes_max) <= 0:
            raise ValueError("limits must be positive")
