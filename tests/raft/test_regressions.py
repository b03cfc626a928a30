"""Bugs that other implementations of Raft have had, each as the shortest way into it.

Snapshots and changes of membership are not here yet, and neither are their bugs.
"""

from __future__ import annotations

import pytest

from cluster.raft.core import Role
from cluster.raft.message import Message, MessageType
from storage.entry import Entry, HardState
from tests.raft.harness import Cluster, Disk

M = MessageType


def test_figure_8_an_entry_of_an_old_term_is_not_committed_by_its_copies() -> None:
    """Raft paper 5.4.2: it may still be overwritten by a leader of a term in between."""
    cluster = Cluster()
    cluster.boot(1, Disk([1, 2], HardState(3, 0, 1)))
    raft = cluster.lead(1)
    cluster.sync(1)
    raft.step(Message(M.APPEND_REPLY, 1, 2, 4, index=2))
    raft.step(Message(M.APPEND_REPLY, 1, 3, 4, index=2))
    assert raft.commit == 1
    raft.step(Message(M.APPEND_REPLY, 1, 3, 4, index=3))
    assert raft.commit == 3


@pytest.mark.parametrize("down", [0, 1])
def test_a_vote_is_on_disk_before_it_is_spoken(down: int) -> None:
    """A member that forgets its vote in a crash gives a second one in the same term: two leaders."""
    cluster = Cluster()
    cluster[3].step(Message(M.VOTE, 3, 1, 1))
    cluster.turn(3)
    assert cluster.network == []
    cluster.crash(3, down)
    (reply,) = cluster.send(Message(M.VOTE, 3, 2, 1))
    assert reply.reject is bool(down)


def test_a_term_is_on_disk_before_anything_durable_is_claimed_in_it() -> None:
    """A follower that forgets the term could acknowledge entries to a leader of an older one."""
    cluster = Cluster()
    cluster[3].step(Message(M.APPEND, 3, 1, 7))
    cluster.turn(3)
    assert cluster.network == []
    cluster.sync(3)
    assert [(m.type, m.term) for m in cluster.network] == [(M.APPEND_REPLY, 7)]
    assert cluster.disks[3].hard_state.term == 7


def test_a_candidacy_is_on_disk_before_a_vote_is_asked_for() -> None:
    """Else: ask with a log of 12, crash, lose entry 12, campaign in the same term again, and win by the answer to the
    first request, without entry 12, which is committed."""
    cluster = Cluster()
    cluster.boot(1, Disk([1] * 11, HardState(1)))
    raft = cluster[1]
    raft.step(Message(M.APPEND, 1, 2, 1, index=11, log_term=1, entries=(Entry(1, 12, 0, b"committed"),)))
    raft.campaign()
    raft.step(Message(M.PRE_VOTE_REPLY, 1, 3, 2))
    cluster.turn(1)
    assert (raft.role, raft.term) == (Role.CANDIDATE, 2)
    assert cluster.waiting(M.VOTE) == []
    cluster.sync(1)
    assert {m.index for m in cluster.waiting(M.VOTE)} == {12}
    assert len(cluster.disks[1].entries) == 12


def test_aba_a_completed_write_of_a_replaced_entry_is_not_the_completion_of_its_likeness() -> None:
    """etcd async storage writes: entry 1@1 written, replaced by 1@2, replaced by 1@1; the first write comes down."""
    cluster = Cluster()
    raft = cluster[1]
    for term, entry in ((1, Entry(1, 1, 0, b"a")), (2, Entry(2, 1, 0, b"b")), (3, Entry(1, 1, 0, b"a"))):
        raft.step(Message(M.APPEND, 1, 2, term, entries=(entry,)))
        cluster.turn(1)
    for _ in range(2):
        cluster.sync(1, 1)
        assert raft.log.stable_index == 0
    assert cluster.waiting(M.APPEND_REPLY)[-1].term == 2
    cluster.sync(1, 1)
    assert raft.log.stable_index == 1
    assert cluster.disks[1].entries == [Entry(1, 1, 0, b"a")]


def test_aba_the_last_write_of_a_member_always_speaks_for_it() -> None:
    """The other side: if completions of an old term are dropped, something must follow them, or nothing is ever stable.
    A new term is always written, and speaks for the log as it is then."""
    cluster = Cluster()
    cluster[1].step(Message(M.APPEND, 1, 2, 1, entries=(Entry(1, 1, 0, b"a"),)))
    cluster.turn(1)
    cluster[1].step(Message(M.HEARTBEAT, 1, 3, 2))
    cluster.turn(1)
    cluster.sync(1, 1)
    assert cluster[1].log.stable_index == 0
    cluster.sync(1, 1)
    assert cluster[1].log.stable_index == 1


def test_a_leader_that_stepped_down_does_not_count_its_own_write() -> None:
    """etcd LeaderMsgAppSelfAckAfterTermChange: the entry is not its own any more."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1)
    cluster[1].step(Message(M.HEARTBEAT, 1, 2, 2))
    cluster.sync(1)
    assert (cluster[1].commit, cluster[1].role) == (1, Role.FOLLOWER)


def test_a_vote_for_oneself_counts_for_its_own_term_alone() -> None:
    """etcd CandidateSelfVoteAfterLostElection: the write of the first candidacy comes down in the second."""
    cluster = Cluster()
    raft = cluster[1]
    for term in (1, 3):
        raft.campaign()
        raft.step(Message(M.PRE_VOTE_REPLY, 1, 2, term))
        assert (raft.role, raft.term) == (Role.CANDIDATE, term)
        cluster.turn(1)
        if term == 1:
            raft.step(Message(M.HEARTBEAT, 1, 3, 2))
            cluster.turn(1)
    for term in (1, 2):
        cluster.sync(1, 1)
        raft.step(Message(M.VOTE_REPLY, 1, 2, term))
        assert raft.role is Role.CANDIDATE
    cluster.sync(1, 1)
    raft.step(Message(M.VOTE_REPLY, 1, 2, 3))
    assert raft.role is Role.LEADER


def test_a_candidate_with_a_slow_disk_waits_for_it() -> None:
    """Its vote takes longer to write than an election timeout: with a new term each time it would never lead."""
    for nodes in (1, 3):
        cluster = Cluster(nodes)
        raft = cluster[1]
        raft.campaign()
        raft.step(Message(M.PRE_VOTE_REPLY, 1, 2, 1))
        cluster.tick(1, 100)
        assert (raft.role, raft.term, len(cluster.disks[1].pending)) == (Role.CANDIDATE, 1, 1)
        cluster.sync(1)
        cluster.tick(1, 5)
        raft.step(Message(M.VOTE_REPLY, 1, 2, 1))
        assert (raft.role, raft.term) == (Role.LEADER, 1)


def test_a_new_leader_answers_no_read_before_it_has_committed_in_its_term() -> None:
    """It does not know the commit index: the read could miss an acknowledged write."""
    cluster = Cluster()
    cluster.boot(1, Disk([1, 1], HardState(1, 0, 1)))
    raft = cluster.lead(1)
    raft.read_index(7)
    for _ in range(5):
        cluster.tick(1)
        for m in cluster.waiting(M.HEARTBEAT):
            raft.step(Message(M.HEARTBEAT_REPLY, 1, m.to, 2, context=m.context))
        cluster.turn(1)
    assert cluster.reads[1] == {}


def test_a_read_is_not_confirmed_by_answers_to_older_heartbeats() -> None:
    """They say that this member led before the read arrived."""
    cluster = Cluster()
    cluster.elect(1)
    cluster[1].read_index(7)
    cluster.turn(1)
    first = cluster.waiting(M.HEARTBEAT)[0].context
    cluster[1].read_index(8)
    cluster.turn(1)
    cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, 2, 1, context=0))
    cluster.turn(1)
    assert cluster.reads[1] == {}
    cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, 2, 1, context=first))
    cluster.turn(1)
    assert cluster.reads[1] == {7: 1}


def test_a_round_of_reads_does_not_survive_its_leadership() -> None:
    """A leader that comes back in a later term must not take an answer of the earlier one for its round."""
    cluster = Cluster()
    cluster.elect(1)
    cluster[1].read_index(7)
    cluster.turn(1)
    round = cluster.waiting(M.HEARTBEAT)[0].context
    cluster[1].step(Message(M.HEARTBEAT, 1, 2, 2))
    cluster.turn(1)
    assert cluster.reads[1] == {7: None}
    cluster.network.clear()
    cluster.tick(3, 10)  # it has not heard the leader for long enough to vote
    cluster.elect(1)
    cluster[1].read_index(8)
    cluster.turn(1)
    assert cluster.waiting(M.HEARTBEAT)[0].context > round
    cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, 3, cluster[1].term, context=round))
    cluster.turn(1)
    assert cluster.reads[1] == {7: None}


def test_a_late_answer_does_not_revive_a_read_that_has_failed() -> None:
    """etcd #20418: the signal of a change of leader and the answer race; the caller has asked again by then, under a
    new context, and must not get both."""
    cluster = Cluster()
    cluster.elect(1)
    cluster[2].read_index(7)
    cluster.turn(2)
    question = cluster.waiting(M.READ_INDEX)[0].context
    cluster[2].step(Message(M.HEARTBEAT, 2, 3, 2))
    cluster[2].read_index(8)
    cluster.turn(2)
    assert cluster.reads[2] == {7: None}
    for term in (1, 2):
        cluster[2].step(Message(M.READ_INDEX_REPLY, 2, 1, term, index=1, context=question))
    cluster.turn(2)
    assert cluster.reads[2] == {7: None}


def test_a_member_without_a_link_to_the_leader_deposes_nobody() -> None:
    """Pre-vote needs check-quorum: those who hear the leader do not answer."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.cut(1, 3)
    for _ in range(100):
        for id in cluster.voters:
            cluster.tick(id)
        cluster.stabilize()
    assert (cluster[1].role, [cluster[id].term for id in cluster.voters]) == (Role.LEADER, [1, 1, 1])


def test_a_candidate_stuck_in_a_higher_term_comes_back() -> None:
    """Check-quorum needs an answer to stale terms: those who hear the leader never vote, so the leader must learn."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.boot(3, Disk([1], HardState(9, 0, 1)))
    for _ in range(60):
        for id in cluster.voters:
            cluster.tick(id)
        cluster.stabilize()
    assert len({raft.leader for raft in cluster.members.values()} - {0}) == 1
    assert {raft.term for raft in cluster.members.values()} == {10}


def test_leader_transfer_gets_past_those_who_protect_the_leader() -> None:
    """They hear it, and would not vote; the candidate says that the leader wants it."""
    cluster = Cluster()
    cluster.elect(1)
    cluster[1].transfer_leadership(2)
    cluster.turn(1)
    cluster.stabilize()
    assert cluster[2].role is Role.LEADER


def test_a_late_append_cuts_nothing_off() -> None:
    """Entries 2 and 3 are acknowledged; an append that ends at 1 comes again."""
    cluster = Cluster()
    entries = tuple(Entry(1, index, 0, b"x") for index in (1, 2, 3))
    cluster.send(Message(M.APPEND, 1, 2, 1, entries=entries))
    for late in (entries[:1], entries[:2], ()):
        (reply,) = cluster.send(Message(M.APPEND, 1, 2, 1, entries=late))
        assert (reply.index, reply.reject, cluster.terms(1)) == (len(late), False, [1, 1, 1])


def test_a_follower_does_not_commit_what_it_has_of_another_leader() -> None:
    """It is told a commit index beyond what the append has shown to be the same."""
    cluster = Cluster()
    cluster.boot(1, Disk([1, 1, 1], HardState(1)))
    cluster.send(Message(M.APPEND, 1, 2, 2, index=1, log_term=1, commit=3))
    assert cluster[1].commit == 1


def test_a_heartbeat_never_commits_more_than_its_receiver_has_acknowledged() -> None:
    """A heartbeat shows nothing about the log, so its commit index must not go beyond what is known to match."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.isolate(3)
    for _ in range(3):
        cluster.propose(1)
        cluster.stabilize([1, 2])
    cluster.heal()
    cluster[1].read_index(7)
    cluster.tick(1)
    assert {(m.to, m.commit) for m in cluster.waiting(M.HEARTBEAT)} == {(2, 4), (3, 1)}


def test_the_disk_never_knows_of_a_commit_beyond_its_log() -> None:
    """etcd #10219, #11888. A follower learns a commit index together with the entries; they are written together, and a
    torn write may leave the first part of it."""
    cluster = Cluster()
    entries = (Entry(1, 1, 0, b"x"), Entry(1, 2, 0, b"y"))
    cluster[1].step(Message(M.APPEND, 1, 2, 1, commit=2, entries=entries))
    cluster.turn(1)
    assert cluster[1].commit == 2
    state = cluster.disks[1].pending[0].hard_state
    assert state is not None
    assert state.commit == 0


def test_a_proposal_that_was_forwarded_and_lost_is_not_sent_twice() -> None:
    """Proposing again is for those who can tell a copy."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(2, b"x", 5)
    sent = cluster.waiting(M.PROPOSE)
    cluster.network.clear()
    for _ in range(30):
        cluster.tick(2)
    assert len(sent) == 1
    assert cluster.waiting(M.PROPOSE) == []


def test_a_member_confirms_no_round_that_was_not_opened() -> None:
    """A number from elsewhere would confirm reads that have not arrived yet."""
    cluster = Cluster()
    cluster.elect(1)
    with pytest.raises(AssertionError, match="2 confirms round 1 of 0"):
        cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, 2, 1, context=1))


def test_a_message_for_a_member_that_was_replaced_is_not_taken() -> None:
    """etcd #17813: the new member has the address of the old one, and acknowledged in its name."""
    cluster = Cluster()
    cluster[1].step(Message(M.APPEND, 7, 2, 1, entries=(Entry(1, 1, 0, b"x"),)))
    assert (cluster[1].term, cluster[1].log.last_index) == (0, 0)
