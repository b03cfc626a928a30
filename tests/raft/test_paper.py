"""The Raft paper, sentence by sentence: what each member must do, put to a single member wherever that is enough.

Section numbers are of the extended version of "In Search of an Understandable Consensus Algorithm". Where this
implementation does more than the paper (pre-vote, check-quorum, writes that take time), the tests go around it by name.
"""

from __future__ import annotations

import random

import pytest

from cluster.raft.core import Role
from cluster.raft.message import Message, MessageType
from storage.entry import Entry, HardState
from tests.raft.harness import Cluster, Disk

M = MessageType


def with_disk(terms: list[int], *, nodes: int = 3, term: int = 0, vote: int = 0, commit: int = 0) -> Cluster:
    """A cluster whose member 1 has this on its disk."""
    cluster = Cluster(nodes)
    cluster.boot(1, Disk(terms, HardState(term or max(terms, default=0), vote, commit)))
    return cluster


def entries(first: int, *terms: int) -> tuple[Entry, ...]:
    return tuple(Entry(term, first + at, 0, b"new") for at, term in enumerate(terms))


# 5.1 The basics


def test_a_member_starts_as_a_follower() -> None:
    """5.2: when servers start up, they begin as followers."""
    assert Cluster()[1].role is Role.FOLLOWER


@pytest.mark.parametrize("role", list(Role))
def test_a_higher_term_is_taken_over_and_makes_a_follower(role: Role) -> None:
    """5.1: the larger of two terms is taken over; a candidate or leader of an old term becomes a follower."""
    cluster = Cluster()
    raft = cluster[1]
    if role is Role.PRE_CANDIDATE:
        raft.campaign()
    elif role is Role.CANDIDATE:
        cluster.run(1)
    elif role is Role.LEADER:
        cluster.lead(1)
    assert raft.role is role
    raft.step(Message(M.APPEND, 1, 2, 7))
    assert (raft.role, raft.term, raft.vote, raft.leader) == (Role.FOLLOWER, 7, 0, 2)


@pytest.mark.parametrize("type", [type for type in M if type not in (M.PROPOSE, M.PROPOSE_REPLY)])
def test_a_request_of_a_stale_term_changes_nothing(type: MessageType) -> None:
    """5.1: a request with a stale term number is rejected."""
    cluster = with_disk([1, 2], term=5)
    raft = cluster[1]
    raft.step(Message(type, 1, 2, 4, index=2, log_term=2, commit=2))
    assert (raft.term, raft.vote, raft.leader, raft.commit, raft.log.last_index) == (5, 0, 0, 0, 2)
    cluster.turn(1)
    assert all(m.term == 5 for m in cluster.network)
    assert not cluster.disks[1].pending


# 5.2 Leader election


def test_a_leader_sends_heartbeats_to_all() -> None:
    """5.2: leaders send periodic heartbeats to all followers."""
    cluster = Cluster(5, heartbeat_ticks=3)
    cluster.elect(1)
    for _ in range(3):
        cluster.tick(1, 2)
        assert cluster.network == []
        cluster.tick(1)
        assert [(m.type, m.to) for m in cluster.network] == [(M.HEARTBEAT, to) for to in (2, 3, 4, 5)]
        cluster.network.clear()


def test_a_follower_that_hears_its_leader_stays_a_follower() -> None:
    """5.2: a server remains a follower as long as it receives valid messages from a leader."""
    cluster = Cluster()
    cluster.elect(1)
    for _ in range(50):
        cluster.tick(2, 9)
        cluster.send(Message(M.HEARTBEAT, 2, 1, 1))
    assert (cluster[2].role, cluster[2].leader) == (Role.FOLLOWER, 1)


@pytest.mark.parametrize("candidate", [False, True])
def test_without_a_leader_a_new_term_is_begun_with_a_vote_for_oneself(candidate: bool) -> None:
    """5.2: it increments its term, votes for itself, and asks all others. The pre-vote in between is answered yes."""
    cluster = Cluster()
    raft = cluster.run(1) if candidate else cluster[1]
    term = raft.term
    cluster.network.clear()
    while raft.role is not Role.PRE_CANDIDATE:
        cluster.tick(1)
    raft.step(Message(M.PRE_VOTE_REPLY, 1, 2, term + 1))
    cluster.turn(1)
    assert (raft.role, raft.term, raft.vote) == (Role.CANDIDATE, term + 1, 1)
    assert cluster.disks[1].pending[-1].hard_state == HardState(term + 1, 1, 0)
    cluster.sync(1)
    assert [(m.to, m.term) for m in cluster.waiting(M.VOTE)] == [(2, term + 1), (3, term + 1)]


@pytest.mark.parametrize(
    ("nodes", "yes", "no", "role"),
    [
        (1, [], [], Role.LEADER),
        (3, [2, 3], [], Role.LEADER),
        (3, [2], [], Role.LEADER),
        (3, [3], [2], Role.LEADER),
        (5, [2, 3], [], Role.LEADER),
        (5, [2, 3], [4, 5], Role.LEADER),
        (5, [2], [], Role.CANDIDATE),
        (5, [2], [3, 4], Role.CANDIDATE),
        (5, [2], [3, 4, 5], Role.FOLLOWER),
        (3, [], [2, 3], Role.FOLLOWER),
        (3, [], [2], Role.CANDIDATE),
        (4, [2], [3], Role.CANDIDATE),
        (4, [2, 3], [4], Role.LEADER),
    ],
)
def test_a_candidate_wins_with_the_votes_of_a_majority(nodes: int, yes: list[int], no: list[int], role: Role) -> None:
    """5.2: a candidate wins if a majority of the servers in the full cluster vote for it in one term."""
    cluster = Cluster(nodes)
    raft = cluster.run(1) if nodes > 1 else cluster[1]
    if nodes == 1:
        cluster.tick(1)
        cluster.sync(1)
    for voter in sorted(yes + no):
        raft.step(Message(M.VOTE_REPLY, 1, voter, raft.term, reject=voter in no))
    # One that has won does not mind what comes later; one that has lost waits for its next chance.
    assert (raft.role, raft.term) == (role, 1)


@pytest.mark.parametrize(("vote", "candidate", "granted"), [(0, 2, True), (2, 2, True), (2, 3, False), (3, 2, False)])
def test_a_vote_is_given_once_a_term_first_come_first_served(vote: int, candidate: int, granted: bool) -> None:
    """5.2: each server votes for at most one candidate in a given term."""
    cluster = with_disk([], term=1, vote=vote)
    (reply,) = cluster.send(Message(M.VOTE, 1, candidate, 1))
    assert (reply.type, reply.to, reply.reject) == (M.VOTE_REPLY, candidate, not granted)
    assert cluster.disks[1].hard_state.vote == (candidate if granted else vote)


def test_a_new_term_brings_a_new_vote() -> None:
    """5.2: the vote belongs to a term."""
    cluster = with_disk([], term=1, vote=2)
    (reply,) = cluster.send(Message(M.VOTE, 1, 3, 2))
    assert not reply.reject
    assert cluster.disks[1].hard_state == HardState(2, 3, 0)


@pytest.mark.parametrize("type", [M.APPEND, M.HEARTBEAT, M.COMMIT])
@pytest.mark.parametrize("term", [1, 2])
def test_a_candidate_recognizes_a_leader_of_its_term_or_a_later_one(type: MessageType, term: int) -> None:
    """5.2: if the leader's term is at least as large as the candidate's, the candidate returns to follower state."""
    cluster = Cluster()
    raft = cluster.run(1)
    raft.step(Message(type, 1, 3, term))
    assert (raft.role, raft.leader, raft.term) == (Role.FOLLOWER, 3, term)


def test_a_candidate_goes_on_when_it_hears_of_a_smaller_term() -> None:
    """5.2: if the term in the message is smaller, the candidate rejects it and continues in candidate state."""
    cluster = with_disk([], term=5)
    raft = cluster.run(1)
    raft.step(Message(M.APPEND, 1, 3, 5))
    assert (raft.role, raft.term) == (Role.CANDIDATE, 6)


@pytest.mark.parametrize("candidate", [False, True])
def test_election_timeouts_are_spread_between_one_and_two_election_times(candidate: bool) -> None:
    """5.2: election timeouts are chosen randomly from a fixed interval, anew at the start of each election."""
    cluster = Cluster(rng=lambda id, life: random.Random(f"{id}/{life}"))
    seen = set()
    for _ in range(300):
        cluster.boot(1, Disk())
        if candidate:
            cluster.run(1)
        ticks = 0
        while cluster[1].role is not Role.PRE_CANDIDATE:
            cluster[1].tick()
            ticks += 1
        seen.add(ticks)
    assert seen == set(range(10, 20))


def test_in_most_cases_a_single_member_times_out_first() -> None:
    """5.2: randomized timeouts make split votes rare: here, fewer than a third of 500 rounds with five members."""
    cluster = Cluster(5, rng=lambda id, life: random.Random(f"{id}/{life}"))
    conflicts = 0
    for _ in range(500):
        for id in cluster.voters:
            cluster.boot(id, Disk())
        while not (timed_out := [id for id in cluster.voters if cluster[id].role is Role.PRE_CANDIDATE]):
            for id in cluster.voters:
                cluster[id].tick()
        conflicts += len(timed_out) > 1
    assert 0 < conflicts < 500 / 3


# 5.3 Log replication


def test_a_leader_appends_a_proposal_and_sends_it_to_all_in_parallel() -> None:
    """5.3: the leader appends the command and issues AppendEntries in parallel; they name the entry before."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1, b"some data")
    entry = Entry(1, 2, 0, b"some data")
    assert cluster[1].log.slice(2, 2, 1) == [entry]
    assert cluster.network == [
        Message(M.APPEND, to, 1, 1, index=1, log_term=1, commit=1, entries=(entry,)) for to in (2, 3)
    ]


def test_an_entry_is_committed_once_a_majority_has_it() -> None:
    """5.3: the leader applies an entry that is safely replicated, and tells the followers what is committed."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1)
    cluster.sync(1)
    assert cluster[1].commit == 1
    cluster.deliver(2)
    cluster.sync(2)
    cluster.deliver(1)
    assert cluster[1].commit == 2
    assert {(m.to, m.commit) for m in cluster.network if m.type is M.COMMIT} == {(2, 2)}
    cluster.stabilize()
    assert [cluster[id].commit for id in cluster.voters] == [2, 2, 2]


@pytest.mark.parametrize(
    ("nodes", "acknowledged_by", "committed"),
    [
        (1, [1], True),
        (3, [1], False),
        (3, [2], False),
        (3, [1, 2], True),
        (3, [2, 3], True),
        (3, [1, 2, 3], True),
        (5, [1], False),
        (5, [1, 2], False),
        (5, [4, 5], False),
        (5, [1, 2, 3], True),
        (5, [2, 3, 4], True),
        (5, [1, 2, 3, 4], True),
    ],
)
def test_an_acknowledgement_counts_for_each_member_alike(
    nodes: int, acknowledged_by: list[int], committed: bool
) -> None:
    """5.3: committed means stored by a majority. The leader's own disk is one of them, and no more than one."""
    cluster = Cluster(nodes)
    cluster.elect(1)
    cluster.propose(1)
    for id in acknowledged_by:
        if id == 1:
            cluster.sync(1)
        else:
            cluster[1].step(Message(M.APPEND_REPLY, 1, id, 1, index=2))
            cluster[1].step(Message(M.APPEND_REPLY, 1, id, 1, index=2))  # a second time is no second member
    assert cluster[1].commit == (2 if committed else 1)


@pytest.mark.parametrize("terms", [[], [2], [1, 2], [1]])
def test_a_commit_includes_all_preceding_entries(terms: list[int]) -> None:
    """5.3: this also commits all preceding entries in the leader's log, including entries by previous leaders."""
    cluster = with_disk(terms, term=2)
    raft = cluster.lead(1)
    raft.propose(b"some data")
    cluster.turn(1)
    cluster.sync(1)
    raft.step(Message(M.APPEND_REPLY, 1, 2, 3, index=len(terms) + 2))
    assert raft.commit == raft.applicable == len(terms) + 2
    assert cluster.terms(1) == [*terms, 3, 3]
    assert cluster.data(1)[-1] == b"some data"


@pytest.mark.parametrize("commit", [1, 2, 3])
def test_a_follower_commits_what_its_leader_has_committed(commit: int) -> None:
    """5.3: once a follower learns that an entry is committed, it applies it."""
    cluster = Cluster()
    cluster.send(Message(M.APPEND, 1, 2, 1, commit=commit, entries=entries(1, 1, 1, 1)))
    assert cluster[1].applicable == commit


@pytest.mark.parametrize(
    ("index", "term", "hint"),
    [
        (0, 0, None),
        (1, 1, None),
        (2, 2, None),
        (1, 2, None),  # before the commit index there is nothing to compare: it is the same everywhere
        (2, 3, (2, 2)),
        (3, 3, (2, 2)),
        (9, 1, (1, 1)),
    ],
)
def test_a_follower_refuses_an_append_whose_place_it_lacks(index: int, term: int, hint: tuple[int, int] | None) -> None:
    """5.3: a follower that has no entry of that index and term in its log refuses the new ones."""
    cluster = with_disk([1, 2], commit=1)
    if (index, term) == (1, 2):
        cluster[1].log.commit_to(2)
    (reply,) = cluster.send(Message(M.APPEND, 1, 2, 3, index=index, log_term=term))
    assert reply.type is M.APPEND_REPLY
    if hint is None:
        assert (reply.reject, reply.index) == (False, max(index, cluster[1].commit))
    else:
        assert (reply.reject, reply.index, (reply.hint, reply.log_term)) == (True, index, hint)


@pytest.mark.parametrize(
    ("index", "term", "sent", "log", "written"),
    [
        (2, 2, (3,), [1, 2, 3], [3]),
        (1, 1, (3, 4), [1, 3, 4], [3, 4]),
        (0, 0, (1,), [1, 2], []),
        (0, 0, (3,), [3], [3]),
        (0, 0, (1, 2), [1, 2], []),
        (0, 0, (1, 2, 3), [1, 2, 3], [3]),
    ],
)
def test_a_follower_deletes_what_conflicts_and_appends_what_is_new(
    index: int, term: int, sent: tuple[int, ...], log: list[int], written: list[int]
) -> None:
    """5.3, figure 2: an entry that conflicts is deleted with all that follow it; new ones are appended."""
    cluster = with_disk([1, 2])
    message = Message(M.APPEND, 1, 2, 4, index=index, log_term=term, entries=entries(index + 1, *sent))
    cluster[1].step(message)
    cluster.turn(1)
    assert cluster.terms(1) == log
    assert [entry.term for entry in cluster.disks[1].pending[0].entries] == written
    cluster.sync(1)
    assert [entry.term for entry in cluster.disks[1].entries] == log


@pytest.mark.parametrize(
    "log",
    [
        [1, 1, 1, 4, 4, 5, 5, 6, 6],
        [1, 1, 1, 4],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        [1, 1, 1, 4, 4, 4, 4],
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
        [],
    ],
    ids=[*"abcdef", "empty"],
)
def test_a_leader_brings_the_log_of_a_follower_into_agreement(log: list[int]) -> None:
    """5.3, figure 7: the leader forces the followers' logs to duplicate its own."""
    leader = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    cluster = Cluster()
    cluster.boot(1, Disk(leader, HardState(8, 0, 3)))
    cluster.boot(2, Disk(log, HardState(7, 0, min(len(log), 3))))
    cluster.boot(3, Disk(leader, HardState(8)))  # its vote is needed: some of the others would not give theirs
    cluster.elect(1)
    assert cluster.terms(1) == [*leader, 9]
    assert cluster.terms(2) == cluster.terms(3) == cluster.terms(1)
    assert [entry.term for entry in cluster.disks[2].entries] == cluster.terms(1)
    assert cluster[2].commit == 11


def test_a_leader_never_overwrites_its_own_log() -> None:
    """5.3, Leader Append-Only: a leader never overwrites entries; not even an append of its own term moves it."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1)
    with pytest.raises(AssertionError, match="two leaders in term 1"):
        cluster[1].step(Message(M.APPEND, 1, 2, 1, entries=entries(1, 1)))
    assert cluster.terms(1) == [1, 1]


# 5.4 Safety


def test_a_request_for_votes_tells_where_the_log_ends() -> None:
    """5.4.1: the RequestVote RPC includes information about the candidate's log. So does the question before it."""
    cluster = with_disk([1, 2, 2])
    cluster.run(1)
    asked = [(m.type, m.to, m.term, m.index, m.log_term) for m in cluster.network]
    assert asked == [
        (M.PRE_VOTE, 2, 3, 3, 2),
        (M.PRE_VOTE, 3, 3, 3, 2),
        (M.VOTE, 2, 3, 3, 2),
        (M.VOTE, 3, 3, 3, 2),
    ]


@pytest.mark.parametrize("type", [M.VOTE, M.PRE_VOTE])
@pytest.mark.parametrize(
    ("log", "last_term", "last_index", "granted"),
    [
        ([1], 1, 1, True),
        ([1], 1, 2, True),
        ([1, 1], 1, 1, False),
        ([1], 2, 1, True),
        ([1], 2, 2, True),
        ([1, 1], 2, 1, True),
        ([2], 1, 1, False),
        ([2], 1, 2, False),
        ([2, 1 + 1], 1, 1, False),
        ([], 0, 0, True),
    ],
)
def test_a_voter_refuses_a_log_that_ends_before_its_own(
    type: MessageType, log: list[int], last_term: int, last_index: int, granted: bool
) -> None:
    """5.4.1: the voter denies its vote if its own log is more up-to-date: a later term wins, then the longer log."""
    cluster = with_disk(log)
    (reply,) = cluster.send(Message(type, 1, 2, 3, index=last_index, log_term=last_term))
    assert reply.reject is not granted


@pytest.mark.parametrize(("index", "committed"), [(1, 0), (2, 0), (3, 3)])
def test_only_entries_of_the_leaders_term_are_committed_by_counting_replicas(index: int, committed: int) -> None:
    """5.4.2: only log entries from the leader's current term are committed by counting replicas (figure 8)."""
    cluster = with_disk([1, 2], term=2)
    raft = cluster.lead(1)
    cluster.sync(1)
    raft.step(Message(M.APPEND_REPLY, 1, 2, 3, index=index))
    assert raft.commit == committed


def test_a_follower_commits_no_further_than_what_it_was_just_shown_to_share() -> None:
    """Figure 2, AppendEntries 5: commit up to min(leaderCommit, index of the last new entry): entry 3 here is not the
    leader's."""
    cluster = with_disk([1, 2, 2])
    cluster.send(Message(M.APPEND, 1, 2, 3, index=1, log_term=1, commit=3, entries=entries(2, 2)))
    assert (cluster[1].commit, cluster.terms(1)) == (2, [1, 2, 2])


# 8 Client interaction


def test_a_new_leader_opens_its_term_with_an_empty_entry() -> None:
    """8: a leader commits a blank no-op entry at the start of its term, to learn what is committed."""
    cluster = with_disk([1, 1])
    cluster.lead(1)
    assert cluster[1].log.slice(3, 3, 1) == [Entry(2, 3, 0, b"")]


def test_reads_wait_until_the_leader_knows_what_is_committed() -> None:
    """8: a leader must have the latest information on which entries are committed before it handles a read."""
    cluster = with_disk([1, 1], commit=1)
    raft = cluster.lead(1)
    cluster.sync(1)
    raft.read_index(7)
    cluster.turn(1)
    assert cluster.waiting(M.HEARTBEAT) == []
    raft.step(Message(M.APPEND_REPLY, 1, 2, 2, index=3))
    cluster.turn(1)
    raft.step(Message(M.HEARTBEAT_REPLY, 1, 2, 2, context=cluster.waiting(M.HEARTBEAT)[0].context))
    cluster.turn(1)
    assert cluster.reads[1] == {7: 3}


def test_a_leader_confirms_that_it_still_leads_before_a_read_is_answered() -> None:
    """8: a leader exchanges heartbeats with a majority before it responds to read-only requests."""
    cluster = Cluster(5)
    cluster.elect(1)
    cluster[1].read_index(7)
    cluster.turn(1)
    round = cluster.network[0].context
    cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, 2, 1, context=round))
    cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, 2, 1, context=round))  # the same one twice is no majority
    cluster.turn(1)
    assert cluster.reads[1] == {}
    cluster[1].step(Message(M.HEARTBEAT_REPLY, 1, 5, 1, context=round))
    cluster.turn(1)
    assert cluster.reads[1] == {7: 1}
