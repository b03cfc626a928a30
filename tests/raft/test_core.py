"""What the core promises beside the paper: each behaviour of its interface, and the asserts that stop a broken member.

Stories with several members and messages are golden scripts; here is what is said shorter in Python.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.raft.core import Config, ProposalDropped, Raft, Role, TransferRefused
from cluster.raft.log import Log
from cluster.raft.message import DropReason, Message, MessageType
from cluster.raft.reads import READS_MAX
from cluster.raft.ready import Ready
from storage.entry import Entry, HardState
from tests.raft.harness import PROPERTY, Cluster, Disk

M = MessageType


# Start


def test_a_member_comes_back_as_its_disk_knows_it() -> None:
    """Raft paper, figure 2: term, vote and log are persistent."""
    cluster = Cluster()
    cluster.boot(1, Disk([1, 1, 2], HardState(4, 3, 2)))
    raft = cluster[1]
    assert (raft.term, raft.vote, raft.role, raft.leader) == (4, 3, Role.FOLLOWER, 0)
    assert (raft.commit, raft.applicable, raft.log.last_index) == (2, 2, 3)
    assert not raft.has_ready


def test_a_torn_first_write_of_a_term_leaves_a_member_that_has_not_voted_in_it() -> None:
    """The entries of term 5 came down and the hard state beside them did not. The member never spoke in term 5, so it
    has no vote to remember; but it must not go back behind the term of its log."""
    cluster = Cluster()
    cluster.boot(1, Disk([1, 5], HardState(4, 3, 1)))
    assert (cluster[1].term, cluster[1].vote) == (5, 0)
    (reply,) = cluster.send(Message(M.VOTE, 1, 2, 5, index=2, log_term=5))
    assert not reply.reject
    assert cluster.disks[1].hard_state == HardState(5, 2, 1)


def test_a_commit_index_beyond_the_log_stops_the_member() -> None:
    """etcd #10219 and #11888: going on would wait for ever, or apply what is not there."""
    with pytest.raises(AssertionError):
        Cluster().boot(1, Disk([1, 1], HardState(1, 0, 3)))


def test_a_log_without_its_beginning_goes_on_where_it_ends() -> None:
    """Old segments are released: the log starts after prev, and that much is committed."""
    cluster = Cluster()
    for id in cluster.voters:
        cluster.boot(id, Disk([3, 3], HardState(3, 0, 10), prev=(10, 2)))
    cluster.elect(1)
    cluster.propose(1, b"more")
    cluster.stabilize()
    assert [cluster[id].commit for id in cluster.voters] == [14, 14, 14]
    assert cluster.terms(3) == [3, 3, 4, 4]


def test_a_member_that_needs_what_the_log_no_longer_holds_is_asked_once_a_heartbeat() -> None:
    """It cannot be helped; it must not stop the leader, nor be asked without end, nor be left to campaign."""
    cluster = Cluster()
    for id in (1, 2):
        cluster.boot(id, Disk([3, 3], HardState(3, 0, 12), prev=(10, 2)))
    cluster.elect(1)
    for _ in range(3):
        cluster.tick(1)
        assert len(cluster.waiting(M.APPEND, to=3)) == 0
        cluster.stabilize()
    assert (cluster[3].leader, cluster[3].log.last_index) == (1, 0)
    assert cluster[1].commit == 13


def test_a_leader_never_goes_back_behind_what_was_released() -> None:
    """A no that was long under way, of a member whose log was short then, must not lead to an entry that is gone."""
    cluster = Cluster()
    for id in cluster.voters:
        cluster.boot(id, Disk([1, 1, 1, 1, 1], HardState(1, 0, 5)))
    cluster[1].release(4)
    cluster.lead(1)
    cluster[1].step(Message(M.APPEND_REPLY, 1, 3, 2, index=5, reject=True, hint=0, log_term=0))
    cluster.turn(1)
    assert [m.index for m in cluster.waiting(M.APPEND, to=3)] == [5, 4]
    cluster.stabilize()
    assert [cluster[id].commit for id in cluster.voters] == [6, 6, 6]


def test_what_a_member_lacks_is_sent_from_where_the_log_begins() -> None:
    """It has all that was released, but the leader never heard so: its answers were lost."""
    cluster = Cluster()
    cluster.elect(1)
    for _ in range(3):
        cluster.propose(1)
        for id in (2, 3):
            cluster.deliver(id)
            cluster.sync(id)
        cluster.drop(1, lambda m: m.sender == 3)
        cluster.deliver(1)
        cluster.sync(1)
    assert cluster[1].commit == 4
    cluster.network.clear()
    cluster[1].release(4)
    cluster[1].step(Message(M.APPEND_REPLY, 1, 3, 1, index=3, reject=True, hint=1, log_term=1))
    cluster.turn(1)
    assert [m.index for m in cluster.waiting(M.APPEND, to=3)] == [4]
    cluster.stabilize()
    cluster.propose(1)
    cluster.stabilize()
    assert [cluster[id].commit for id in cluster.voters] == [5, 5, 5]


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 0},
        {"id": -1},
        {"id": 1 << 64},
        {"voters": (1, 0)},
        {"heartbeat_ticks": 0},
        {"heartbeat_ticks": 10},
        {"append_bytes_max": 0},
        {"inflight_max": 0},
        {"inflight_bytes_max": 0},
        {"uncommitted_bytes_max": 0},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(wrong: dict) -> None:
    """Before anything runs on it."""
    with pytest.raises(ValueError, match=r"must be|positive number"):
        Config(**({"id": 1, "voters": (1, 2, 3)} | wrong))


def test_one_that_does_not_vote_follows_and_never_campaigns() -> None:
    """etcd/raft NonPromotableVoter."""
    raft = Raft(Config(9, (1, 2, 3)), Log(Disk()), HardState(), random.Random(1))
    for _ in range(100):
        raft.tick()
    raft.campaign()
    raft.step(Message(M.TIMEOUT_NOW, 9, 1, 1))
    assert (raft.role, raft.term) == (Role.FOLLOWER, 1)
    raft.step(Message(M.APPEND, 9, 1, 1, entries=(Entry(1, 1, 0, b""),)))
    assert (raft.leader, raft.log.last_index) == (1, 1)


# Ready


def test_there_is_nothing_ready_after_ready() -> None:
    """A loop `while has_ready: ready()` ends; the harness checks that in every turn. And it takes all out."""
    cluster = Cluster()
    cluster.elect(1)
    raft = cluster[1]
    raft.propose(b"x")
    raft.read_index(7)
    assert raft.has_ready
    first = raft.ready()
    assert (len(first.messages), first.append is not None) == (3, True)
    assert not raft.has_ready
    assert raft.ready() == Ready()


def test_a_leader_waits_for_its_disk_only_when_that_is_what_is_missing() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1)
    cluster.turn(1)
    leader, follower = cluster[1], cluster[2]
    assert not leader.waits_for_disk, "a follower has to answer first"
    cluster.deliver(2)
    assert follower.waits_for_disk, "its answer to the leader waits"
    cluster.sync(2)
    assert not follower.waits_for_disk
    cluster.deliver(1)
    assert leader.waits_for_disk, "it would be the second of three"
    cluster.deliver(3)
    cluster.sync(3)
    cluster.deliver(1)
    assert (leader.commit, leader.applicable) == (2, 1)
    assert leader.waits_for_disk, "its store must not be ahead of its log"
    cluster.sync(1)
    assert (leader.applicable, leader.waits_for_disk) == (2, False)
    alone = Cluster(1)
    alone.elect(1)
    alone.propose(1)
    alone.turn(1)
    assert alone[1].waits_for_disk


def test_a_commit_index_alone_is_not_written() -> None:
    """It is a hint that spares work after a restart and rides along with the next write (core.py)."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1)
    cluster.stabilize()
    assert [raft.commit for raft in cluster.members.values()] == [2, 2, 2]
    assert all(disk.hard_state.commit < 2 and not disk.pending for disk in cluster.disks.values())
    cluster.propose(1)
    assert cluster.disks[1].pending[0].hard_state == HardState(1, 1, 2)


def test_the_written_commit_index_is_never_ahead_of_what_the_disk_holds() -> None:
    """A torn write must not leave a commit index beyond the log: entry 2 is committed by the others, and not written
    here yet, so the next write does not speak of it."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1)
    cluster.stabilize([2, 3])
    cluster.deliver(1)
    assert (cluster[1].commit, cluster[1].applicable) == (2, 1)
    cluster.propose(1)
    assert [append.hard_state for append in cluster.disks[1].pending] == [HardState(1, 1, 1), None]


def test_a_new_term_is_written_before_anything_is_acknowledged_in_it() -> None:
    """One write for the term, the entries and what is held by them."""
    cluster = Cluster()
    cluster[1].step(Message(M.APPEND, 1, 2, 3, entries=(Entry(3, 1, 0, b"x"),)))
    ready = cluster[1].ready()
    assert ready.messages == []
    assert ready.append is not None
    assert (ready.append.hard_state, len(ready.append.entries)) == (HardState(3, 0, 0), 1)
    assert [m.type for m in ready.append.messages] == [M.APPEND_REPLY]
    cluster[1].appended(ready.append)
    assert cluster[1].ready().messages == ready.append.messages


def test_completions_out_of_order_stop_the_member() -> None:
    """A later write does not come down before an earlier one; a shell that says so is wrong about the disk."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1)
    cluster.propose(1)
    with pytest.raises(AssertionError, match="order of submission"):
        cluster[1].appended(cluster.disks[1].pending[1])


def test_acknowledgements_of_one_turn_are_one() -> None:
    """The last says all that the earlier ones do."""
    cluster = Cluster()
    for index in range(3):
        cluster[1].step(Message(M.APPEND, 1, 2, 1, index, min(index, 1), entries=(Entry(1, index + 1, 0, b"x"),)))
    cluster.turn(1)
    cluster.sync(1)
    assert [(m.type, m.index) for m in cluster.network] == [(M.APPEND_REPLY, 3)]


def test_messages_to_peers_come_in_the_order_of_their_ids() -> None:
    """So that a seed replays: no order of a set or a dict shows."""
    cluster = Cluster(7)
    cluster.elect(4)
    cluster.propose(4)
    cluster[4].read_index(7)
    cluster.turn(4)
    assert [m.to for m in cluster.network] == [1, 2, 3, 5, 6, 7, 1, 2, 3]


def test_proposals_on_their_own_turn_are_not_lost_in_a_window_of_one() -> None:
    """Whatever does not fit waits for an answer, and then goes together."""
    cluster = Cluster(inflight_max=1)
    cluster.elect(1)
    for at in range(5):
        cluster.propose(1, b"%d" % at)
    assert len(cluster.waiting(M.APPEND, to=2)) == 1
    cluster.stabilize()
    assert cluster.data(2) == [b"0", b"1", b"2", b"3", b"4"]


# Messages that should not be here


@pytest.mark.parametrize("type", list(M))
def test_a_message_for_another_member_changes_nothing(type: MessageType) -> None:
    """etcd #17813: a member took the messages of the one that it had replaced. So do its own that come back."""
    cluster = Cluster()
    for to, sender in ((2, 3), (1, 1)):
        cluster[1].step(Message(type, to, sender, 9, data=b"x", reason=DropReason.NO_LEADER))
        assert (cluster[1].term, cluster[1].leader, cluster[1].has_ready) == (0, 0, False)


@pytest.mark.parametrize("type", [M.APPEND_REPLY, M.HEARTBEAT_REPLY])
def test_a_leader_ignores_the_answers_of_strangers(type: MessageType) -> None:
    """One that was never told about, or is no member any more, counts for nothing."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1)
    cluster[1].step(Message(type, 1, 9, 1, index=2, context=5))
    assert cluster[1].commit == 1


def test_the_vote_of_a_stranger_does_not_count() -> None:
    """Nor does it keep anybody else's vote out."""
    cluster = Cluster(5)
    raft = cluster.run(1)
    for voter in (8, 9, 10):
        raft.step(Message(M.VOTE_REPLY, 1, voter, 1))
    assert raft.role is Role.CANDIDATE
    raft.step(Message(M.VOTE_REPLY, 1, 2, 1))
    raft.step(Message(M.VOTE_REPLY, 1, 3, 1))
    assert raft.role is Role.LEADER


def test_a_vote_counts_once() -> None:
    """The network may deliver it twice, and a no does not become a yes."""
    cluster = Cluster(5)
    raft = cluster.run(1)
    for _ in range(3):
        raft.step(Message(M.VOTE_REPLY, 1, 2, 1))
    raft.step(Message(M.VOTE_REPLY, 1, 3, 1, reject=True))
    raft.step(Message(M.VOTE_REPLY, 1, 3, 1))
    assert raft.role is Role.CANDIDATE


@pytest.mark.parametrize("pre", [False, True])
def test_a_vote_for_another_term_does_not_count(pre: bool) -> None:
    """Answers to an earlier candidacy are of a lower term; an old yes to a question is to another question."""
    cluster = Cluster()
    raft = cluster.run(1)
    raft.campaign()
    if pre:
        raft.step(Message(M.PRE_VOTE_REPLY, 1, 2, 1))
        assert (raft.role, raft.term) == (Role.PRE_CANDIDATE, 1)
    else:
        raft.step(Message(M.PRE_VOTE_REPLY, 1, 2, 2))
        raft.step(Message(M.VOTE_REPLY, 1, 2, 1))
        assert (raft.role, raft.term) == (Role.CANDIDATE, 2)


def test_an_acknowledgement_of_what_was_never_sent_stops_the_leader() -> None:
    """To count it would commit an entry that nobody has."""
    cluster = Cluster()
    cluster.elect(1)
    with pytest.raises(AssertionError, match="2 acknowledged 9 of 1"):
        cluster[1].step(Message(M.APPEND_REPLY, 1, 2, 1, index=9))


@pytest.mark.parametrize("type", [M.HEARTBEAT, M.COMMIT])
def test_a_follower_that_has_lost_what_it_acknowledged_stops(type: MessageType) -> None:
    """Its disk was replaced or lied: as a voter it is a danger, for it may elect a leader without committed entries."""
    cluster = Cluster()
    cluster.boot(1, Disk([1], HardState(1)))
    with pytest.raises(AssertionError, match="acknowledged and lost: 5 > 1"):
        cluster[1].step(Message(type, 1, 2, 1, commit=5))


# Proposals


def test_a_proposal_without_a_leader_is_dropped_at_once() -> None:
    """It is certain that nothing was done."""
    with pytest.raises(ProposalDropped, match="no leader") as dropped:
        Cluster()[1].propose(b"x")
    assert dropped.value.reason is DropReason.NO_LEADER


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_a_candidate_drops_proposals(role: Role) -> None:
    """Also those that others send to it."""
    cluster = Cluster()
    raft = cluster.run(1)
    if role is Role.PRE_CANDIDATE:
        raft.campaign()
    with pytest.raises(ProposalDropped, match="no leader"):
        raft.propose(b"x")
    raft.step(Message(M.PROPOSE, 1, 2, 1, context=5, data=b"x"))
    assert raft.ready().messages[-1] == Message(M.PROPOSE_REPLY, 2, 1, 1, context=5, reason=DropReason.NO_LEADER)


def test_an_empty_proposal_is_refused() -> None:
    """An empty entry is how a leader opens its term; apply skips it."""
    cluster = Cluster()
    cluster.elect(1)
    with pytest.raises(ValueError, match="empty"):
        cluster[1].propose(b"")


def test_a_forwarded_proposal_is_not_forwarded_again() -> None:
    """Two members that take each other for the leader would send it to and fro, and it could be taken twice."""
    cluster = Cluster()
    cluster.elect(1)
    cluster[2].step(Message(M.PROPOSE, 2, 3, 1, context=5, data=b"x"))
    cluster.turn(2)
    assert [(m.type, m.to, m.reason) for m in cluster.network] == [(M.PROPOSE_REPLY, 3, "no leader")]


def test_the_core_never_proposes_again_by_itself() -> None:
    """Apply knows what became of a proposal; a second copy from here could be applied twice."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(2, b"x", 5)
    cluster.drop(1)
    for _ in range(5):
        for id in cluster.voters:
            cluster.tick(id, 3)
        cluster.stabilize()
    assert cluster.data(1) == []
    assert cluster.rejected[2] == []


def test_what_is_uncommitted_stays_bounded_behind_a_partition() -> None:
    """etcd/raft BoundedLogGrowthWithPartition: a leader that commits nothing takes a bounded amount, and the limit is
    released with what is committed, exactly."""
    cluster = Cluster(uncommitted_bytes_max=1000)
    cluster.elect(1)
    for _ in range(3):
        for _ in range(10):
            cluster[1].propose(bytes(68))
        for _ in range(10):
            with pytest.raises(ProposalDropped, match="too many requests"):
                cluster[1].propose(bytes(68))
        cluster.stabilize()


def test_a_new_leader_has_its_whole_budget() -> None:
    """What it inherits uncommitted was taken by another; it is committed with its first entry or not at all."""
    cluster = Cluster(uncommitted_bytes_max=100)
    cluster.elect(1)
    cluster[1].propose(bytes(68))
    cluster[1].step(Message(M.APPEND, 1, 2, 2))
    cluster.lead(1)
    cluster[1].propose(bytes(68))
    with pytest.raises(ProposalDropped, match="too many requests"):
        cluster[1].propose(bytes(68))


# Reads


def test_reads_are_bounded() -> None:
    """No queue grows without a bound: here a new leader cannot commit, and everybody asks."""
    cluster = Cluster()
    raft = cluster.lead(1)
    for context in range(READS_MAX + 3):
        raft.read_index(context)
    raft.step(Message(M.READ_INDEX, 1, 2, 1, context=99))
    ready = raft.ready()
    assert ready.failed_reads == [READS_MAX, READS_MAX + 1, READS_MAX + 2]
    assert ready.messages[0] == Message(M.READ_INDEX_REPLY, 2, 1, 1, context=99, reject=True)
    raft.step(Message(M.APPEND, 1, 2, 2))
    assert sorted(raft.ready().failed_reads) == list(range(READS_MAX))
    for context in range(READS_MAX):
        raft.read_index(context)
    assert raft.ready().failed_reads == []


def test_answered_reads_make_room() -> None:
    """The bound is on what waits, on both sides."""
    cluster = Cluster()
    cluster.elect(1)
    for id in (1, 2):
        for round in range(3):
            for at in range(READS_MAX // 2):
                cluster[id].read_index(round * READS_MAX + at)
            cluster.stabilize()
        assert len(cluster.reads[id]) == 3 * READS_MAX // 2
        assert None not in cluster.reads[id].values()


def test_a_question_is_never_asked_under_an_old_number() -> None:
    """An answer to a question of before the crash would be an index of before the read."""
    numbers = set()
    cluster = Cluster(rng=lambda id, life: random.Random(f"{id}/{life}"))
    cluster.elect(1)
    for context in range(50):
        cluster.crash(2)
        cluster[2].step(Message(M.HEARTBEAT, 2, 1, 1))
        cluster[2].read_index(context)
        cluster[2].read_index(context + 1000)
        cluster.turn(2)
        numbers |= {m.context for m in cluster.waiting(M.READ_INDEX)}
    assert len(numbers) == 50


def test_a_read_of_a_lone_voter_needs_nobody() -> None:
    """It is its own majority, once it has committed an entry of its term."""
    cluster = Cluster(1)
    cluster.tick(1)
    cluster.sync(1)
    cluster[1].read_index(7)
    cluster.turn(1)
    assert cluster.reads[1] == {}
    cluster.sync(1)
    assert cluster.reads[1] == {7: 1}


def test_an_older_answer_does_not_take_a_confirmation_back() -> None:
    """Heartbeats overtake each other; round 2 of a member stands for round 1, and goes on standing."""
    cluster = Cluster(5)
    cluster.elect(1)
    for context in (7, 8):
        cluster[1].read_index(context)
        cluster.turn(1)
    for sender, round in ((2, 2), (2, 1), (3, 2)):
        assert cluster.reads[1] == {}
        cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, sender, 1, context=round))
        cluster.turn(1)
    assert cluster.reads[1] == {7: 1, 8: 1}


# Losses


def test_a_heartbeat_of_the_clock_asks_once_for_what_is_unanswered() -> None:
    """Reads make many heartbeats; if each answer led to an append, a slow disk would be flooded with questions."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1)
    cluster.network.clear()
    cluster.tick(1)
    for _ in range(3):
        cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, 2, 1))
        cluster.turn(1)
    assert [(m.index, m.entries) for m in cluster.waiting(M.APPEND, to=2)] == [(2, ())]
    cluster.tick(1)
    cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, 2, 1))
    cluster.turn(1)
    assert len(cluster.waiting(M.APPEND, to=2)) == 2


def test_entries_that_leave_anyway_are_question_enough() -> None:
    """Whether something was lost shows in the answer to any append."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1)
    cluster.network.clear()
    cluster.tick(1)
    cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, 2, 1))
    cluster.propose(1)
    assert [(m.index, len(m.entries)) for m in cluster.waiting(M.APPEND, to=2)] == [(2, 1)]


# Transfer and eligibility


def test_a_transfer_is_refused_with_its_reason() -> None:
    """ValueError, so that a shell that forwards what an operator typed can catch it."""
    cluster = Cluster()
    cluster.elect(1)
    with pytest.raises(TransferRefused, match="not the leader"):
        cluster[2].transfer_leadership(1)
    with pytest.raises(TransferRefused, match="9 is not a voter"):
        cluster[1].transfer_leadership(9)
    assert issubclass(TransferRefused, ValueError)


def test_the_transferee_is_known_until_the_transfer_ends() -> None:
    """By success or by the clock."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.isolate(3)
    assert (cluster[1].transferee, cluster[2].transferee) == (0, 0)
    cluster[1].transfer_leadership(3)
    assert cluster[1].transferee == 3
    for _ in range(10):
        cluster.tick(1)
        cluster.stabilize([1, 2])
    assert (cluster[1].transferee, cluster[1].role) == (0, Role.LEADER)


def test_a_transfer_has_a_whole_election_timeout() -> None:
    """However much of the present one had passed."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.tick(1, 9)
    cluster[1].transfer_leadership(3)
    cluster.tick(1, 9)
    assert cluster[1].transferee == 3
    cluster.tick(1)
    assert cluster[1].transferee == 0


def test_a_new_leader_has_a_whole_election_timeout_to_be_heard() -> None:
    """The time that it waited for votes does not count against it."""
    cluster = Cluster()
    cluster.run(1)
    cluster.tick(1, 9)
    cluster[1].step(Message(M.VOTE_REPLY, 1, 2, 1))
    cluster.tick(1, 9)
    assert cluster[1].role is Role.LEADER
    cluster.tick(1)
    assert cluster[1].role is Role.FOLLOWER


def test_only_a_follower_takes_over_when_it_is_told() -> None:
    """A candidate is already at it, and a leader of this term has nobody above it."""
    cluster = Cluster()
    raft = cluster.run(1)
    raft.step(Message(M.TIMEOUT_NOW, 1, 2, 1))
    assert (raft.role, raft.term) == (Role.CANDIDATE, 1)
    raft = cluster.lead(1)
    raft.step(Message(M.TIMEOUT_NOW, 1, 2, raft.term))
    assert raft.role is Role.LEADER


def test_the_best_successor_was_heard_lately_and_has_most_of_the_log() -> None:
    """For a leader that looks for somebody to hand over to. 0 if it would be a shot in the dark."""
    cluster = Cluster()
    cluster.elect(1)
    assert cluster[2].best_successor() == 0
    cluster.isolate(2)
    cluster.propose(1)
    cluster.stabilize()
    assert cluster[1].best_successor() == 3
    cluster.heal()
    cluster.isolate(3)
    for _ in range(11):
        cluster.tick(1)
        cluster.stabilize()
    assert cluster[1].best_successor() == 2
    cluster.isolate(2)
    cluster.tick(1, 9)
    cluster.tick(1, 1)
    assert cluster[1].best_successor() == 0


def test_a_member_that_is_not_eligible_does_not_even_ask() -> None:
    """Its apply process is down: to lead would stop all writes. It votes and follows."""
    cluster = Cluster()
    cluster[1].eligible = False
    cluster.tick(1, 100)
    assert (cluster.network, cluster[1].term) == ([], 0)
    (reply,) = cluster.send(Message(M.VOTE, 1, 2, 1))
    assert not reply.reject
    cluster[1].eligible = True
    cluster.tick(1, 20)
    assert cluster[1].role is Role.PRE_CANDIDATE


# Log agreement

suffixes = st.lists(st.integers(1, 6), max_size=10).map(sorted)


@PROPERTY
@given(suffixes, suffixes, suffixes)
def test_a_leader_finds_where_logs_part_in_few_questions(shared: list[int], own: list[int], other: list[int]) -> None:
    """Raft paper 5.3: one refused append for each conflicting term, not for each entry. In the end the logs agree."""
    # Beyond the shared part no term is in both: an index and a term name one entry.
    leader = [*shared, *(10 + 2 * term for term in own)]
    follower = [*shared, *(11 + 2 * term for term in other)]
    cluster = Cluster()
    cluster.boot(1, Disk(leader, HardState(50)))
    cluster.boot(2, Disk(follower, HardState(50)))
    cluster.lead(1)
    cluster.isolate(3)
    cluster.stabilize()
    assert cluster.terms(2) == [*leader, 51]
    refused = sum(line.startswith("n2") and "misses" in line for line in cluster.trace)
    assert refused <= 1 + min(len(set(own)), len(set(other)))
