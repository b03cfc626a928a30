"""Single troubles in an otherwise calm cluster: what must go on, and how soon it must go on again.

The seeds of test_seeds.py ask for safety while everything fails, and for life only afterwards. Here one thing fails and
stays failed, and the rest must live. Each story is told for several seeds, and judged at its end like any other run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.errors import NoLeader, TimedOut
from kvorum.watching import State, Watch
from kvorum.wire import Kind, Method
from tests.checkers.history import Operation, Request
from tests.simulation.clients import METHOD_OF
from tests.simulation.faults import Temper
from tests.simulation.ledger import FIRST_ID, LATE
from tests.simulation.network import Weather
from tests.simulation.node import Node, Shells
from tests.simulation.pipes import TICK
from tests.simulation.run import ELECTION, Plan, Probe, Run
from tests.simulation.world import MILLISECOND, SECOND
from tests.simulation.wrong_broadcasts import AnswersNoSubscription

SEEDS = pytest.mark.parametrize("seed", range(3))


def _calm(plan: Plan) -> None:
    plan.members, plan.temper, plan.climate = 3, Temper(SECOND, {}, 0.0), Weather()
    plan.habits.clients, plan.habits.roam, plan.habits.think_max = 4, 0.5, 600 * MILLISECOND
    plan.habits.batch_max, plan.habits.patience_max, plan.sizes.timeout_ticks = 2, 20 * SECOND, 30
    plan.habits.weights["noise"] = 0  # it asks for other leaders
    plan.wake_max = 1_000
    plan.tenants, plan.listeners, plan.alarms = 0, 0, False


@contextmanager
def _settled(
    seed: int, *, plan: Callable[[Plan], None] = _calm, shells: Shells | None = None
) -> Iterator[tuple[Run, Node]]:
    """A calm cluster of three with clients, and its leader; judged at the end."""
    run = Run(seed, plan=plan, shells=shells)
    run.supervised = False
    with run.begun():
        run.let(3 * SECOND)
        leader = run.leader
        assert leader is not None
        yield run, leader
    assert run.report.wrong == []


def _until_a_write(run: Run, members: list[int]) -> int:
    """How long it takes from now until one of `members` has acknowledged a write that was asked for from now on."""
    began, probes = run.world.now, [Probe(run, member) for member in members]
    while run.world.now < began + 20 * ELECTION:
        for probe in probes:
            probe.ask()
        run.let(50 * MILLISECOND)
        if any(probe.answered for probe in probes):
            return run.world.now - began
    raise AssertionError("no write was acknowledged")


def _answers(run: Run, member: int) -> dict[str, bool]:
    """What a member answers within the time after which it must at least have said no."""
    probes = {
        "stale": Probe(run, member, pb.RangeRequest(key=b"probe", serializable=True)),
        "newest": Probe(run, member, pb.RangeRequest(key=b"probe")),
        "write": Probe(run, member),
    }
    for client in run.clients:
        client.stopped = True
    for probe in probes.values():
        probe.ask()
    run.let(run.plan.sizes.timeout_ticks * TICK + ELECTION)
    return {name: probe.answered for name, probe in probes.items()}


def _others(run: Run, node: Node) -> list[int]:
    return [id for id in run.nodes if id != node.id]


@SEEDS
def test_a_calm_cluster_elects_one_leader_and_keeps_it(seed: int) -> None:
    """Nothing happens, so nothing must change: no election but the first in half a minute."""
    with _settled(seed) as (run, leader):
        term = leader.term
        run.let(30 * SECOND)
        assert run.leader is leader
        assert {node.term for node in run.nodes.values()} == {term}


@SEEDS
def test_writes_go_on_soon_after_the_leader_is_lost(seed: int) -> None:
    """D5: within 3 election timeouts of the death of the leader's node."""
    with _settled(seed) as (run, leader):
        leader.kill(leader.raft)
        leader.kill(leader.apply)
        assert _until_a_write(run, _others(run, leader)) <= 3 * ELECTION


@SEEDS
def test_a_lost_follower_interrupts_nothing(seed: int) -> None:
    """D5: no interruption for a lost follower, and no election."""
    with _settled(seed) as (run, leader):
        term = leader.term
        follower = run.nodes[_others(run, leader)[0]]
        follower.kill(follower.raft)
        follower.kill(follower.apply)
        for _ in range(10):
            assert _until_a_write(run, [leader.id]) <= ELECTION // 4
            run.let(ELECTION // 2)
        assert (run.leader, leader.term) == (leader, term)


@SEEDS
def test_a_leader_whose_apply_process_is_gone_hands_leadership_over(seed: int) -> None:
    """T9: it votes and replicates, but can answer nobody; an election timeout of silence is enough to tell."""
    with _settled(seed) as (run, leader):
        leader.kill(leader.apply)
        run.let(2 * ELECTION + ELECTION // 2)
        assert run.leader is not None
        assert run.leader is not leader
        assert _until_a_write(run, _others(run, leader)) <= ELECTION // 4
        assert leader.raft.alive
        assert leader.term == run.leader.term


@SEEDS
def test_a_member_whose_raft_process_is_gone_still_answers_what_needs_none(seed: int) -> None:
    """DESIGN 10: serializable reads of what is applied go on, linearizable ones and writes are not answered."""
    with _settled(seed) as (run, leader):
        node = run.nodes[_others(run, leader)[0]]
        node.kill(node.raft)
        assert _answers(run, node.id) == {"stale": True, "newest": False, "write": False}


@SEEDS
def test_without_a_majority_nothing_is_acknowledged_and_stale_reads_still_are(seed: int) -> None:
    """D6: errors, not hangs; serializable reads still work."""
    with _settled(seed) as (run, leader):
        for id in _others(run, leader):
            run.nodes[id].kill(run.nodes[id].raft)
            run.nodes[id].kill(run.nodes[id].apply)
        run.let(2 * ELECTION)  # what was under way may still be committed; and a leader has to notice
        assert run.leader is None
        assert _answers(run, leader.id) == {"stale": True, "newest": False, "write": False}
        assert all(isinstance(op.error, TimedOut | NoLeader) for op in run.history[-2:])


@SEEDS
def test_a_member_that_hears_nobody_disturbs_nobody(seed: int) -> None:
    """F5: a link that is broken one way; with pre-vote its owner asks and asks, and no term goes up."""
    with _settled(seed) as (run, leader):
        term = leader.term
        deaf = _others(run, leader)[0]
        run.network.blocked.update((other, deaf) for other in run.nodes if other != deaf)
        run.let(10 * SECOND)
        assert (run.leader, leader.term) == (leader, term)
        run.network.blocked.clear()
        run.let(5 * SECOND)
        assert (run.leader, leader.term) == (leader, term)


@SEEDS
def test_a_broken_link_between_leader_and_one_follower_deposes_nobody(seed: int) -> None:
    """F5, the Cloudflare outage of 2020: a majority still hears the leader, so the one that doesn't is not helped."""
    with _settled(seed) as (run, leader):
        term = leader.term
        other = _others(run, leader)[0]
        run.network.blocked |= {(leader.id, other), (other, leader.id)}
        run.let(10 * SECOND)
        assert (run.leader, leader.term) == (leader, term)
        assert _until_a_write(run, [leader.id]) <= ELECTION // 4


@SEEDS
def test_a_leader_that_hears_nobody_gives_way(seed: int) -> None:
    """F5: its heartbeats still arrive, so nobody else would stand for election; check-quorum makes it step down, within
    two election timeouts; the others' patience takes as long at most, and so does a second try if votes were split."""
    with _settled(seed) as (run, leader):
        run.network.blocked.update((other, leader.id) for other in _others(run, leader))
        assert _until_a_write(run, _others(run, leader)) <= 6 * ELECTION
        assert run.leader is not leader


@SEEDS
def test_a_leader_that_slept_is_replaced_and_says_nothing_stale_when_it_wakes(seed: int) -> None:
    """F3, T6: SIGSTOP of the raft process for two and a half election timeouts; the history is judged at the end."""
    with _settled(seed) as (run, leader):
        leader.raft.pause()
        assert _until_a_write(run, _others(run, leader)) <= 3 * ELECTION
        run.let(ELECTION)
        leader.raft.resume()
        run.let(2 * ELECTION)
        assert run.leader is not leader


@SEEDS
def test_a_member_that_was_away_for_long_catches_up(seed: int) -> None:
    """F7 without snapshots: what a member has not flushed is kept by all, so that it can come back."""
    with _settled(seed) as (run, leader):
        away = run.nodes[_others(run, leader)[0]]
        away.kill(away.raft)
        away.kill(away.apply)
        run.let(20 * SECOND)
        missing = len(run.safety.committed) - 1
        away.start(away.raft)
        away.start(away.apply)
        run.let(3 * ELECTION)
        assert away.applyd is not None
        assert away.applyd.keyspace.applied[0] >= missing


@SEEDS
def test_all_members_lose_power_at_once_and_serve_again(seed: int) -> None:
    """D2: what was acknowledged is there (judged at the end), within three election timeouts of the power's return."""
    with _settled(seed) as (run, _):
        for node in run.nodes.values():
            node.kill(node.raft, power=True)
            node.kill(node.apply, power=True)
        run.let(SECOND)
        for node in run.nodes.values():
            node.start(node.raft)
            node.start(node.apply)
        assert _until_a_write(run, list(run.nodes)) <= 3 * ELECTION


@SEEDS
def test_a_disk_that_stalls_for_a_second_costs_no_election(seed: int) -> None:
    """F17: heartbeats don't wait for the disk."""
    with _settled(seed) as (run, leader):
        term = leader.term
        for node in run.nodes.values():
            node.disk.sync_min = node.disk.sync_max = 1500 * MILLISECOND
        run.let(6 * SECOND)
        assert (run.leader, leader.term) == (leader, term)


@SEEDS
def test_leadership_moves_where_it_is_asked_to(seed: int) -> None:
    """api.md 10: MoveLeader, through the leader's own client port."""
    with _settled(seed) as (run, leader):
        target = _others(run, leader)[0]
        run.faults.move_leader(leader.id, target)
        run.let(ELECTION)
        assert run.leader is run.nodes[target]


@SEEDS
def test_raft_that_wakes_up_to_many_questions_of_apply_answers_as_if_to_one(seed: int) -> None:
    """T9: apply asks to be attached at every tick while raft sleeps; its store must get every entry once."""
    with _settled(seed) as (run, leader):
        node = run.nodes[_others(run, leader)[0]]
        node.raft.pause()
        node.kill(node.apply)
        node.start(node.apply)
        run.let(SECOND)
        node.raft.resume()
        run.let(SECOND)
        assert node.applyd is not None
        assert node.applyd.keyspace.applied[0] > 0
        assert _until_a_write(run, [node.id]) <= ELECTION // 4


def test_probes_are_part_of_the_history() -> None:
    """What this page measures is judged with the rest."""
    with _settled(0) as (run, leader):
        _until_a_write(run, [leader.id])
        written = [op for op in run.history if isinstance(op.request, pb.PutRequest) and op.request.key == b"probe"]
        assert any(op.answer is not None for op in written)


# ---- leases


class _Call:
    """A tenant's call of the test itself, judged with the others."""

    def __init__(self, run: Run, member: int, request: Request) -> None:
        self.run, self.member = run, member
        self.op = Operation(FIRST_ID + len(run.tenants_history), -member, member, run.world.now, request)
        run.tenants_history.append(self.op)
        name = b"call %d" % self.op.id
        run.hub.clients[name] = self  # type: ignore[assignment]
        method = METHOD_OF[type(request)]
        run.hub.to_member(member, name, wire.encode(method, Kind.CALL, 0, self.op.id, request.SerializeToString()))

    def told(self, frame: bytes) -> None:
        (record,) = wire.decode(frame)
        self.op.returned = self.run.world.now
        if record.status:
            self.op.error = errors.from_wire(record.status, record.payload.decode())
        else:
            self.op.answer = wire.METHODS[Method(record.method)].response.FromString(record.payload)  # type: ignore[assignment]

    def lost(self) -> None:
        """It is not asked again."""


def _call(run: Run, member: int, request: Request) -> Operation:
    """Ask, and give it some time."""
    call = _Call(run, member, request)
    run.let(ELECTION // 4)
    return call.op


def _hold(run: Run, member: int, ttl: int) -> int:
    """A lease with a key: when its asking began."""
    asked = run.world.now
    assert _call(run, member, pb.LeaseGrantRequest(ID=7, TTL=ttl)).answer is not None
    assert _call(run, member, pb.PutRequest(key=b"t9", value=b"held %d" % asked, lease=7)).answer is not None
    return asked


@SEEDS
def test_a_lease_outlives_its_leader_and_ends_soon_after_the_next_one_has_begun(seed: int) -> None:
    """L1, L2: not a moment of it is lost, and nothing is kept for ever."""
    with _settled(seed) as (run, leader):
        asked, ledger = _hold(run, _others(run, leader)[0], 3), run.safety.ledger
        leader.kill(leader.raft)
        leader.kill(leader.apply)
        run.let(asked + 3 * SECOND - run.world.now)
        assert b"t9" in ledger.keys
        while 7 in ledger.leases:
            run.let(ELECTION // 4)
            assert run.world.now < max(asked, ledger.new_lessor_at) + 3 * SECOND + LATE
        assert ledger.new_lessor_at > asked
        assert b"t9" not in ledger.keys


@SEEDS
def test_the_death_of_the_leaders_apply_process_loses_no_lease(seed: int) -> None:
    """L5: and whoever counts next renews it."""
    with _settled(seed) as (run, leader):
        _hold(run, leader.id, 4)
        leader.kill(leader.apply)
        run.let(2 * ELECTION + ELECTION // 2)
        leader.start(leader.apply)
        for member in run.nodes:
            renewed = _call(run, member, pb.LeaseKeepAliveRequest(ID=7)).answer
            assert isinstance(renewed, pb.LeaseKeepAliveResponse)
            assert renewed.TTL == 4
        run.let(3 * SECOND)
        assert b"t9" in run.safety.ledger.keys


@SEEDS
def test_after_its_end_a_lease_is_unknown_at_every_member(seed: int) -> None:
    """L3."""
    with _settled(seed) as (run, leader):
        _hold(run, leader.id, 60)
        assert _call(run, _others(run, leader)[0], pb.LeaseRevokeRequest(ID=7)).answer is not None
        assert b"t9" not in run.safety.ledger.keys
        for member in run.nodes:
            renewed = _call(run, member, pb.LeaseKeepAliveRequest(ID=7)).answer
            left = _call(run, member, pb.LeaseTimeToLiveRequest(ID=7, keys=True)).answer
            assert isinstance(renewed, pb.LeaseKeepAliveResponse)
            assert isinstance(left, pb.LeaseTimeToLiveResponse)
            assert (renewed.TTL, left.TTL, left.grantedTTL, list(left.keys)) == (0, -1, 0, [])
            for request in (pb.LeaseRevokeRequest(ID=7), pb.PutRequest(key=b"t9", value=b"late", lease=7)):
                assert isinstance(_call(run, member, request).error, errors.LeaseNotFound)


# ---- broadcasts


def _calm_and_heard(plan: Plan) -> None:
    _calm(plan)
    plan.listeners, plan.air_loss, plan.air_breaks, plan.knobs.backlog_bytes = 1, 0.0, 0.0, 32 << 20
    plan.sizes.share_from = 1


def _tuned(seed: int, shells: Shells | None = None) -> bool:
    """Whether a new watch of keys that nobody changes listens to the air within a second."""
    with _settled(seed, plan=_calm_and_heard, shells=shells) as (run, _):
        (listener,) = run.listeners
        listener.heal()  # nothing but what this test does
        run.let(21 * SECOND)  # a break of its connection may have been on its way
        watch = Watch(b"quiet")
        listener.add(watch)
        run.let(SECOND)
        tuned = watch.state is State.TUNED
        run.let(4 * SECOND)
        assert watch.state is State.TUNED, "the next publication connects"
    return tuned


@SEEDS
def test_a_watch_listens_to_the_air_at_once_and_stays_there(seed: int) -> None:
    """DESIGN 8: a subscription is answered. Nothing would be lost without, but the watch would stay with its stream."""
    assert _tuned(seed)
    assert not _tuned(seed, Shells(watchd=AnswersNoSubscription))
