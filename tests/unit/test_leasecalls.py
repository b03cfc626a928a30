"""Keep-alives on their way between members: asked in one message, answered once, lost without harm."""

from __future__ import annotations

from cluster.callers import Caller
from cluster.leasecalls import KEEP_ALIVE, TIME_LEFT, Call, LeaseCalls
from cluster.lessor import Lessor
from storage.leases import Changes, Leases
from storage.memory import MemoryEngine

FIRST = 9 << 32


class Member:
    """One member's calls, and what it has sent."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.leases = Leases(self.engine)
        self.lessor = Lessor(self.leases, patience=10.0)
        self.sent: list[tuple[int, bytes]] = []
        self.answers: list[tuple[int, int, bytes]] = []
        self.resets: list[list[int]] = []
        self.calls = LeaseCalls(
            self.lessor,
            lambda number, body: self.sent.append((number, body)),
            lambda member, number, body: self.answers.append((member, number, body)),
            self.resets.append,
            first=FIRST,
        )

    def grant(self, *ids: int, ttl: int = 5) -> None:
        self._change(lambda changes: [changes.grant(id, ttl, 1) for id in ids])

    def _change(self, do: object) -> None:
        batch = self.engine.batch()
        changes = Changes(self.leases, batch)
        do(changes)  # type: ignore[operator]
        self.engine.write(batch)
        self.leases.update(changes)
        self.lessor.changed(changes, 0.0)

    def ask(self, lease: int, what: int = KEEP_ALIVE, born: int = 0) -> None:
        assert self.calls.add(Call(Caller(b"c", lease, 10), what, lease, False, born))

    def confirm(self, now: float = 1.0, applied: int = 7) -> list[tuple[int, int]]:
        taken = self.calls.take()
        assert taken is not None
        return [(told.call.lease, told.left) for told in self.calls.confirmed(*taken, now, applied)]


def leader() -> Member:
    member = Member()
    member.lessor.lead(0.0)
    return member


def test_the_lessor_answers_its_own_clients_when_it_is_confirmed() -> None:
    member = leader()
    member.grant(7)
    member.ask(7)
    member.ask(8)
    assert member.confirm() == [(7, 5), (8, 0)]
    assert member.calls.waiting == 0
    assert member.calls.take() is None


def test_others_ask_in_one_message_and_tell_when_they_have_applied_as_much() -> None:
    other, lessor = Member(), leader()
    lessor.grant(7)
    for lease, what in ((7, KEEP_ALIVE), (8, KEEP_ALIVE), (7, TIME_LEFT), (8, TIME_LEFT)):
        other.ask(lease, what)
    other.calls.send(3)
    ((number, body),) = other.sent
    assert number == FIRST + 1
    lessor.calls.asked(2, number, body)
    assert lessor.confirm(applied=40) == []
    ((member, same, answer),) = lessor.answers
    assert (member, same) == (2, number)
    other.calls.answered(number, answer)
    assert other.calls.ripe(39) == []
    told = [(one.call.lease, one.left, one.granted) for one in other.calls.ripe(40)]
    assert told == [(7, 5, 5), (8, 0, 0), (7, 5, 5), (8, -1, 0)]
    assert (other.calls.waiting, other.calls.ripe(99)) == (0, [])


def test_a_lost_question_is_asked_again_and_its_old_answer_means_nothing() -> None:
    other, lessor = Member(), leader()
    lessor.grant(7)
    other.ask(7)
    other.calls.send(1)
    other.calls.tick(0)
    other.calls.send(2)
    assert len(other.sent) == 1, "it has not waited long yet"
    other.calls.tick(1)
    other.calls.send(12)
    assert [number for number, _ in other.sent] == [FIRST + 1, FIRST + 2]
    for number, body in other.sent:
        lessor.calls.asked(2, number, body)
    lessor.confirm()
    for _, number, answer in lessor.answers:
        other.calls.answered(number, answer)
        other.calls.answered(number, answer)
    assert len(other.calls.ripe(99)) == 1


def test_what_is_no_answer_to_this_is_dropped() -> None:
    other = Member()
    other.ask(7)
    other.calls.send(1)
    for body in (b"", bytes(8), bytes(23), bytes(40)):
        other.calls.answered(FIRST + 1, body)
    assert other.calls.ripe(1 << 60) == []
    other.calls.answered(FIRST + 1, bytes(24))
    assert len(other.calls.ripe(0)) == 1


def test_questions_that_are_none_are_dropped() -> None:
    lessor = leader()
    for body in (b"x", bytes(10)):
        lessor.calls.asked(2, 1, body)
    assert lessor.calls.take() is None


def test_what_cannot_be_said_yet_is_tried_with_the_next_tick() -> None:
    """A checkpoint is to be taken back; the question of another member waits as a whole."""
    other, lessor = Member(), leader()
    lessor.grant(7, 8, ttl=1000)
    lessor._change(lambda changes: changes.checkpoint(7, 10))
    lessor.ask(7)
    other.ask(8)
    other.ask(7)
    other.calls.send(1)
    lessor.calls.asked(2, *other.sent[0])
    assert lessor.confirm() == []
    assert (lessor.answers, lessor.resets) == ([], [[7, 7]])
    assert lessor.calls.take() is None
    lessor._change(lambda changes: changes.checkpoint(7, 0))
    lessor.calls.tick(0)
    assert lessor.confirm() == [(7, 1000)]
    assert len(lessor.answers) == 1


def test_whoever_has_waited_too_long_is_told_so() -> None:
    other = Member()
    other.ask(7, born=5)
    other.ask(8, born=9)
    other.calls.send(9)
    assert other.calls.expire(7) == [], "it is under way"
    other.calls.tick(None)
    assert [call.lease for call in other.calls.expire(7)] == [7]
    assert other.calls.waiting == 1


def test_a_member_that_no_longer_leads_forgets_the_questions_of_others() -> None:
    member = leader()
    member.calls.asked(2, 1, bytes(9))
    member.calls.send(1)
    assert member.calls.take() is None
