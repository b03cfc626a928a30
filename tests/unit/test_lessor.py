"""The countdown: never early, never for ever, and nobody else's business."""

from __future__ import annotations

import random

import pytest

from cluster import lessor as module
from cluster.lessor import CHECKPOINT_SECONDS, EXPIRE_WORK, PAUSE_SECONDS, REST, Lessor
from storage.leases import Changes, Leases
from storage.leases import Lessor as Named
from storage.memory import MemoryEngine

PATIENCE = 10.0
STEP = 0.1


class Bench:
    """Leases, their lessor, and a clock that moves in ticks."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.leases = Leases(self.engine)
        self.lessor = Lessor(self.leases, patience=PATIENCE)
        self.now = 1000.0

    def grant(self, *ids: int, ttl: int = 5) -> None:
        self._change(lambda changes: [changes.grant(id, ttl, 1) for id in ids])

    def end(self, *ids: int) -> None:
        self._change(lambda changes: [changes.end(id) for id in ids])

    def attach(self, id: int, count: int) -> None:
        batch = self.engine.batch()
        changes = Changes(self.leases, batch)
        for number in range(count):
            changes.attach(id, b"%d" % number)
        self.engine.write(batch)
        self.leases.update(changes)

    def checkpoint(self, id: int, left: int) -> None:
        self._change(lambda changes: changes.checkpoint(id, left))

    def _change(self, do: object) -> None:
        batch = self.engine.batch()
        changes = Changes(self.leases, batch)
        do(changes)  # type: ignore[operator]
        self.engine.write(batch)
        self.leases.update(changes)
        self.lessor.changed(changes, self.now)

    def lead(self) -> None:
        self.lessor.lead(self.now)

    def pass_time(self, seconds: float, *, done: bool = True) -> dict[int, float]:
        """What expired when, each ended at once if `done`."""
        found: dict[int, float] = {}
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now += STEP
            ended = self.lessor.advance(self.now)
            found |= dict.fromkeys(ended, self.now)
            if done and ended:
                self.end(*ended)
        return found


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.lead()
    return made


def test_a_lease_ends_after_its_ttl_and_not_before(bench: Bench) -> None:
    bench.grant(7, ttl=5)
    begun = bench.now
    assert bench.pass_time(5.0) == {}
    (ended,) = bench.pass_time(0.3).values()
    assert 5.0 <= ended - begun < 5.3


def test_a_renewal_gives_the_whole_time_again(bench: Bench) -> None:
    bench.grant(7, ttl=5)
    for _ in range(4):
        bench.pass_time(4.0)
        assert bench.lessor.renew(7, bench.now) == 5
    renewed = bench.now
    (ended,) = bench.pass_time(6.0).values()
    assert ended - renewed >= 5.0


def test_who_does_not_lead_ends_nothing(bench: Bench) -> None:
    bench.grant(7)
    bench.lessor.stop()
    assert bench.pass_time(100) == {}


def test_a_new_leader_gives_every_lease_its_whole_time(bench: Bench) -> None:
    """etcd: lessor.Promote. And nothing is forgotten: each ends, once."""
    bench.grant(*range(1, 101), ttl=5)
    bench.pass_time(4.9)
    bench.lessor.stop()
    bench.pass_time(50)
    bench.lead()
    begun = bench.now
    ended = bench.pass_time(7)
    assert sorted(ended) == list(range(1, 101))
    assert min(ended.values()) - begun >= 5.0


def test_an_expired_lease_is_not_renewed_but_waits_for_its_end(bench: Bench) -> None:
    """L6: no renewal is answered once its end may be in the log."""
    bench.grant(7, ttl=2)
    assert bench.pass_time(3, done=False)
    assert bench.lessor.renew(7, bench.now) is None
    assert not bench.lessor.to_reset(7)
    assert bench.lessor.left(7, bench.now) == (0, 2)
    bench.end(7)
    assert bench.lessor.renew(7, bench.now) == 0
    assert bench.lessor.left(7, bench.now) == (-1, 0)


def test_what_was_not_done_is_decided_again(bench: Bench) -> None:
    bench.grant(7, ttl=2)
    (first,) = bench.pass_time(PATIENCE, done=False).values()
    assert first < 1003
    (second,) = bench.pass_time(PATIENCE, done=False).values()
    assert PATIENCE <= second - first <= PATIENCE + 2.5


def test_what_was_refused_is_decided_again_at_once(bench: Bench) -> None:
    bench.grant(7, 8, 9, ttl=5)
    assert list(bench.pass_time(6, done=False)) == [7, 8, 9]
    bench.end(9)
    bench.lessor.undecided([7, 9, 55])
    assert bench.lessor.renew(7, bench.now) is None, "it is to end all the same"
    assert bench.lessor.advance(bench.now + STEP) == [7]


def test_a_lease_granted_anew_under_its_old_id_begins_anew(bench: Bench) -> None:
    """And ids that come and go leave nothing behind."""
    for _ in range(50):
        bench.grant(7, ttl=5)
        bench.pass_time(1)
        bench.end(7)
    bench.grant(7, ttl=5)
    begun = bench.now
    ended = bench.pass_time(20)
    assert list(ended) == [7]
    assert ended[7] - begun >= 5
    assert not bench.lessor._heap
    assert not bench.lessor._deadlines
    assert not bench.lessor._expiring


def test_a_lease_that_ends_and_is_granted_for_less_in_one_turn_ends_in_time(bench: Bench) -> None:
    """What the heap says of the life before is later than that (found by the simulator)."""
    bench.grant(7, ttl=600)

    def anew(changes: Changes) -> None:
        changes.end(7)
        changes.grant(7, 5, 1)

    bench._change(anew)
    assert list(bench.pass_time(7)) == [7]


def test_ids_that_come_and_go_do_not_fill_the_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 10)
    for _ in range(1000):
        bench.grant(7, ttl=3600)
        bench.end(7)
    bench.pass_time(0.2)
    assert len(bench.lessor._heap) <= 10


def test_after_a_pause_renewals_come_first(bench: Bench) -> None:
    """The process slept past the deadline; whoever knocked meanwhile is let in before anybody is judged."""
    bench.grant(7, ttl=2)
    bench.pass_time(1)
    bench.now += 60
    assert bench.lessor.advance(bench.now) == []
    assert bench.lessor.renew(7, bench.now) == 2
    assert bench.pass_time(PAUSE_SECONDS) == {}
    assert list(bench.pass_time(3)) == [7]


def test_many_that_end_together_end_a_few_at_a_time(bench: Bench) -> None:
    """And no more than two portions are under way at once."""
    count = 5 * EXPIRE_WORK
    bench.grant(*range(1, count + 1), ttl=2)
    bench.now += 2.05
    bench.lessor._last = bench.now  # no pause
    portions = []
    while portion := bench.lessor.advance(bench.now):
        portions.append(portion)
        assert len(portions) < 10
    assert [len(portion) for portion in portions] == [EXPIRE_WORK, EXPIRE_WORK]
    assert not bench.lessor.busy(bench.now)
    ended = set()
    while portions:
        ended.update(portions[0])
        bench.end(*portions.pop(0))
        if portion := bench.lessor.advance(bench.now):
            portions.append(portion)
    assert len(ended) == count


def test_between_what_it_ends_it_rests(bench: Bench) -> None:
    """For as long as says how much of its time it may take, and not longer."""
    bench.grant(*range(1, 3 * EXPIRE_WORK + 1), ttl=2)
    bench.now += 2.05
    bench.lessor._last = bench.now  # no pause
    first, second = bench.lessor.advance(bench.now), bench.lessor.advance(bench.now)
    assert not bench.lessor.rests(bench.now), "it waits for them"
    bench.end(*first)
    bench.lessor.worked(0.01, bench.now)
    assert (bench.lessor.busy(bench.now), bench.lessor.rests(bench.now)) == (False, True)
    bench.now += REST * 0.01 - 0.001
    assert bench.lessor.rests(bench.now)
    assert bench.lessor.advance(bench.now) == []
    bench.now += 0.002
    assert (bench.lessor.busy(bench.now), bench.lessor.rests(bench.now)) == (True, False)
    third = bench.lessor.advance(bench.now)
    assert sorted(first + second + third) == list(range(1, 3 * EXPIRE_WORK + 1))
    bench.end(*second, *third)
    bench.lessor.worked(0.01, bench.now)
    assert not bench.lessor.rests(bench.now), "there is nothing left to be done"


def test_what_one_entry_ends_is_bounded_by_keys_too(bench: Bench) -> None:
    """A lease with more keys than an entry should have is alone in it: they go at one revision."""
    for id in range(1, 13):
        bench.grant(id, ttl=2)
        bench.attach(id, 3 * EXPIRE_WORK if id == 6 else EXPIRE_WORK // 5)
    bench.now += 2.05
    bench.lessor._last = bench.now  # no pause
    portions = []
    while len(portions) < 10:
        portion = bench.lessor.advance(bench.now)
        if portion:
            portions.append(portion)
            bench.end(*portion)
        elif not bench.lessor.busy(bench.now):
            break
    assert portions == [[1, 2, 3, 4], [5], [6], [7, 8, 9, 10], [11, 12]]
    assert bench.lessor._work == 0


def test_what_is_under_way_is_bounded_by_keys_too(bench: Bench) -> None:
    for id in range(1, 13):
        bench.grant(id, ttl=2)
        bench.attach(id, 3 * EXPIRE_WORK)
    bench.now += 2.05
    bench.lessor._last = bench.now  # no pause
    assert [bench.lessor.advance(bench.now) for _ in range(3)] == [[1], [2], []]
    assert not bench.lessor.busy(bench.now)
    bench.end(1)
    assert bench.lessor.busy(bench.now)
    bench.now += PATIENCE + 1
    bench.lessor._last = bench.now
    assert bench.lessor.advance(bench.now) == [2], "decided again, and nothing else with it"


def test_a_take_over_in_slices_forgets_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 7)
    bench.lessor.stop()
    bench.grant(*range(1, 31), ttl=3)
    bench.lead()
    bench.pass_time(STEP)
    assert bench.lessor.left(30, bench.now) == (3, 3), "not its turn yet, and it has all of it"
    assert bench.lessor.renew(30, bench.now) == 3
    bench.end(29)
    assert sorted(bench.pass_time(10)) == [id for id in range(1, 31) if id != 29]


def test_negative_ids_end_too(bench: Bench) -> None:
    """etcd 3.5.1 forgets them at a restart."""
    bench.grant(-1, -(2**63), 2**63 - 1, ttl=2)
    assert set(bench.pass_time(4)) == {-1, -(2**63), 2**63 - 1}


# ---- checkpoints


def test_long_leases_are_checkpointed_and_a_new_leader_counts_on_from_there(bench: Bench) -> None:
    ttl = int(4 * CHECKPOINT_SECONDS)
    bench.grant(7, ttl=ttl)
    bench.grant(8, ttl=int(CHECKPOINT_SECONDS))
    bench.now += CHECKPOINT_SECONDS + 1
    bench.lessor.advance(bench.now)
    ((id, left),) = bench.lessor.checkpoints(bench.now)
    assert id == 7
    assert ttl - CHECKPOINT_SECONDS - 2 <= left <= ttl - CHECKPOINT_SECONDS
    assert bench.lessor.checkpoints(bench.now) == [], "once every five minutes"
    bench.checkpoint(7, left)
    bench.lessor.stop()
    bench.lead()
    bench.lessor.advance(bench.now)
    assert bench.lessor.left(7, bench.now) == (left, ttl)


def test_a_renewal_waits_until_the_checkpoint_is_taken_back(bench: Bench) -> None:
    """Else the next leader would end it earlier than was promised."""
    bench.grant(7, ttl=1000)
    bench.checkpoint(7, 10)
    assert bench.lessor.renew(7, bench.now) is None
    assert bench.lessor.to_reset(7)
    bench.checkpoint(7, 0)
    assert not bench.lessor.to_reset(7)
    assert bench.lessor.renew(7, bench.now) == 1000


def test_while_a_checkpoint_may_still_come_its_lease_is_not_renewed(bench: Bench) -> None:
    """A renewal answered meanwhile would be cut short by it (found by the simulator, with a change of leader). What had
    a lower number than an entry that was applied is done or dead."""
    bench.grant(7, ttl=1000)
    bench.grant(8, ttl=1000)
    bench.lessor.noted(5, [7], bench.now)
    assert (bench.lessor.renew(7, bench.now), bench.lessor.renew(8, bench.now)) == (None, 1000)
    assert not bench.lessor.to_reset(7), "nothing is there to be taken back"
    bench.lessor.stop()
    bench.lead()
    bench.lessor.heard(4)
    assert bench.lessor.renew(7, bench.now) is None, "a break in leading makes no difference"
    bench.lessor.noted(6, [7], bench.now)
    bench.lessor.heard(5)
    assert bench.lessor.renew(7, bench.now) is None, "there is another"
    assert not bench.lessor.waits_to_hear(bench.now + PATIENCE)
    assert bench.lessor.waits_to_hear(bench.now + PATIENCE + 1)
    bench.lessor.heard(6)
    assert not bench.lessor.waits_to_hear(bench.now + PATIENCE + 1)
    assert bench.lessor.renew(7, bench.now) == 1000


def test_what_was_decided_before_a_break_is_still_under_way_after_it(bench: Bench) -> None:
    """The same lessor again: its word counts still, so what it is ending must not be renewed. Another one's is void."""
    bench.grant(7, 8, ttl=5)
    assert list(bench.pass_time(6, done=False)) == [7, 8]
    bench.lessor.stop()
    bench.end(8)
    bench.lead()
    assert (bench.lessor.renew(7, bench.now), bench.lessor.renew(8, bench.now)) == (None, 0)
    bench._change(lambda changes: changes.lead(Named(3, 1, 1)))
    bench.lead()
    assert bench.lessor.renew(7, bench.now) == 5


def test_a_checkpoint_never_says_less_than_is_left(bench: Bench) -> None:
    dice = random.Random(1)
    for id in range(1, 50):
        bench.grant(id, ttl=dice.randrange(301, 5000))
        bench.now += dice.random() * 10
    before = {id: bench.lessor._deadlines[id] / 1000 for id in range(1, 50)}
    bench.now += CHECKPOINT_SECONDS
    found = dict(bench.lessor.checkpoints(bench.now))
    assert found
    assert all(left >= before[id] - bench.now for id, left in found.items())
