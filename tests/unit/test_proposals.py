"""The batches under way of one incarnation: what is sent when, and who is told at the end."""

from __future__ import annotations

from cluster.callers import Caller
from cluster.proposals import Proposals
from storage.codec import PROPOSAL_HEAD

PATIENCE = 10


class Road:
    """Where batches are sent; `open` False is a time without a leader."""

    def __init__(self) -> None:
        self.open = True
        self.sent: list[tuple[int, bytes]] = []

    def send(self, number: int, data: bytes) -> bool:
        if self.open:
            self.sent.append((number, data[PROPOSAL_HEAD:]))
        return self.open

    def taken(self) -> list[int]:
        numbers = [number for number, _ in self.sent]
        self.sent.clear()
        return numbers


def callers(name: bytes) -> list[Caller]:
    return [Caller(name, 1, 3)]


def test_one_that_has_waited_often_does_not_hold_up_another() -> None:
    """The first has been sent twice and waits longer by now; the second has been sent once."""
    road = Road()
    proposals = Proposals(1, 1, road.send, PATIENCE)
    proposals.add(b"a", callers(b"a"), 0)
    proposals.resend(2 * PATIENCE, all=False)
    assert road.taken() == [1, 1]
    proposals.add(b"b", callers(b"b"), 2 * PATIENCE + 1)
    road.taken()
    proposals.resend(4 * PATIENCE + 1, all=False)
    assert road.taken() == [2]
    proposals.resend(6 * PATIENCE + 1, all=False)
    assert road.taken() == [1]


def test_what_was_overtaken_is_added_anew_and_answered_once() -> None:
    road = Road()
    proposals = Proposals(1, 1, road.send, PATIENCE)
    for name in (b"a", b"b"):
        proposals.add(name, callers(name), 0)
    assert proposals.settle(2, 5) == callers(b"b")
    assert road.sent[-1] == (3, b"a")
    assert proposals.settle(1, 6) == []
    assert proposals.settle(3, 7) == callers(b"a")
    assert (len(proposals), proposals.bytes) == (0, 0)


def test_what_is_worth_it_only_once_is_dead_when_it_was_overtaken() -> None:
    road = Road()
    proposals = Proposals(1, 1, road.send, PATIENCE)
    assert proposals.add(b"a", callers(b"a"), 0, once=True) == 1
    assert proposals.add(b"b", callers(b"b"), 0) == 2
    proposals.resend(2 * PATIENCE, all=False)
    assert road.taken() == [1, 2, 1, 2], "until then it is tried again like any other"
    assert proposals.settle(2, 5) == callers(b"b")
    assert (road.taken(), len(proposals), proposals.bytes) == ([], 0, 0)


def test_what_was_never_sent_is_sent_to_the_first_leader() -> None:
    road = Road()
    road.open = False
    proposals = Proposals(1, 1, road.send, PATIENCE)
    proposals.add(b"a", callers(b"a"), 0)
    assert road.taken() == []
    road.open = True
    proposals.resend(1, all=True)
    assert road.taken() == [1]
    (given_up,) = proposals.expire(0)
    assert (given_up.attempts, given_up.callers) == (1, callers(b"a"))
