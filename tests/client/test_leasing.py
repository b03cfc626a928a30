"""When leases are renewed and when they are lost, without a clock."""

from __future__ import annotations

from kvorum.leasing import Held, LeaseCore, Question


def asked(core: LeaseCore, now: float) -> list[int]:
    return sorted(question.held.id for question in core.due(now))


def test_a_lease_is_renewed_every_third_of_its_time() -> None:
    core = LeaseCore()
    held = core.hold(7, 9, asked=100.0)
    assert core.wait(100.0) == 3.0
    assert asked(core, 102.9) == []
    assert asked(core, 103.0) == [7]
    assert asked(core, 103.1) == [], "the question is under way"
    core.answered(held, 9, asked=103.0)
    assert held.deadline == 112.0
    assert core.wait(103.5) == 2.5
    assert asked(core, 106.0) == [7]


def test_all_that_are_due_are_asked_together() -> None:
    core = LeaseCore()
    for id in range(1, 10_001):
        core.hold(id, 60, asked=0.0)
    assert len(core.due(20.0)) == 10_000
    assert core.due(20.0) == []


def test_its_time_counts_from_the_asking_however_late_the_answer() -> None:
    """It must never be thought alive after the cluster may have ended it."""
    core = LeaseCore()
    held = core.hold(7, 10, asked=0.0)
    core.due(4.0)
    core.answered(held, 10, asked=4.0)
    assert held.deadline == 14.0
    assert core.expired(13.9) == []
    assert core.expired(14.0) == [held]
    assert (held.lost, len(core)) == (True, 0)
    assert core.expired(20.0) == [], "once"


def test_no_answer_is_asked_again_soon_and_elsewhere_within_its_time() -> None:
    core = LeaseCore()
    held = core.hold(7, 9, asked=0.0)
    tries, now = 0, 3.0
    while not core.expired(now):
        for question in core.due(now):
            assert 0 < question.timeout <= 3.0
            tries += 1
            core.failed(question.held, now + 0.3)
            now += 0.3
        now += 0.05
    assert held.lost
    assert tries > 5


def test_a_lease_that_is_gone_is_lost_at_once() -> None:
    core = LeaseCore()
    held = core.hold(7, 9, asked=0.0)
    core.due(3.0)
    core.answered(held, 0, asked=3.0)
    assert core.wait(3.1) == 0.0
    assert core.expired(3.1) == [held]


def test_one_that_is_dropped_is_neither_renewed_nor_lost() -> None:
    core = LeaseCore()
    held = core.hold(7, 9, asked=0.0)
    question = core.due(3.0)
    core.drop(held)
    core.answered(held, 9, asked=3.0)
    assert question == [Question(held, 3.0)]
    assert (core.due(50.0), core.expired(50.0), core.wait(50.0)) == ([], [], None)
    assert not held.lost


def test_the_same_id_held_anew_is_another_lease() -> None:
    core = LeaseCore()
    old = core.hold(7, 9, asked=0.0)
    new = core.hold(7, 9, asked=5.0)
    core.drop(old)
    assert core.expired(14.0) == [new]
    assert isinstance(new, Held)
