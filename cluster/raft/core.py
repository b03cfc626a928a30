"""One member's mind: the Raft protocol, without a clock, a disk or a network.

              timeout                 majority would vote            majority voted
    FOLLOWER ---------> PRE_CANDIDATE -------------------> CANDIDATE ---------------> LEADER
        ^                    |                                 |                        |
        +--------------------+---------------------------------+------------------------+
             a leader of this term, or any higher term, or a quorum not heard for an election timeout

Inputs are `step` (a peer's message), `tick`, `propose`, `read_index`, `campaign`, `transfer_leadership` and `appended`.
They change this object and queue what follows; `ready` takes all of that out at once, so whatever happened between two
calls of it shares one write, one append per peer and one round of heartbeats.

What makes it safe, beside the paper (Ongaro, Ousterhout: "In Search of an Understandable Consensus Algorithm", here
"the paper", and Ongaro's dissertation):

- *Nothing that rests on our disk is said before it is on our disk.* Such messages are held in the `Append` that makes
  them true, and `appended` lets them go: votes, acknowledgements, and requests for votes too. A candidate that asked
  before its term was durable could crash, come back with less of a log, campaign in the very same term and win by
  answers to the first request. Appends of a leader may leave before its own write: its vote and term were durable
  before it could win, so it cannot come back and send something else in the same term.
- *A leader's own entry counts as one vote like any other: when it is durable.* The completion of a write speaks for
  (term at submission, last index, last term). It is taken only if we are still in that term and still hold that entry;
  else an entry that was replaced meanwhile, perhaps twice, would be taken for durable while its replacement is still in
  the queue.
- *Only entries of the own term are committed by counting* (paper 5.4.2, figure 8).
- *Time protects a leader, never a read*: pre-vote and check-quorum keep a cut-off member from disturbing the others and
  make a cut-off leader step down, but reads are always confirmed by a majority (reads.py).

The commit index on disk is a hint that spares work after a restart. It rides along with writes that happen anyway and
is never the reason for one: what it says too little of, the next leader says again. It is never written ahead of what
the same disk holds, so a torn write cannot leave a commit index beyond the log.

The core never retries: a forwarded proposal, a read or any message may be lost, and the layer above asks again.
Decisions that the safety argument rests on are small methods of their own. Pure.
"""

from __future__ import annotations

import random
from collections import deque
from enum import IntEnum

from cluster.raft.config import Config
from cluster.raft.leadership import Leadership
from cluster.raft.log import Log
from cluster.raft.message import DropReason, Message, MessageType
from cluster.raft.quorum import Outcome, Voters
from cluster.raft.reads import Reads
from cluster.raft.ready import Append, Ready
from storage.entry import Entry, EntryKind, HardState

__all__ = ["Append", "Config", "ProposalDropped", "Raft", "Ready", "Role", "TransferRefused"]


class Role(IntEnum):
    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


class ProposalDropped(Exception):
    """The proposal was not taken, and it is certain that it is not in the log. `reason` says why."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class TransferRefused(ValueError):
    """Leadership cannot go there: this member does not lead, or the other does not vote."""


class Raft:
    """One member. Not thread-safe; see the module.

    Args:
      log: what is on disk; this object is its only user from now on.
      hard_state: the newest one on disk, HardState() for a new member.
      rng: draws election timeouts and where the numbers of questions start. It must not repeat after a restart.
    """

    def __init__(self, config: Config, log: Log, hard_state: HardState, rng: random.Random) -> None:
        assert hard_state.commit <= log.last_index, (hard_state, log.last_index)
        self.config = config
        self.id = config.id
        self.log = log
        self.voters = Voters(config.voters)
        self.eligible = True
        """False: never campaign, for this member could not serve. Set from outside."""
        self.role = Role.FOLLOWER
        self.leader = 0
        """The leader of this term as far as known; 0 for none."""
        self.term, self.vote = hard_state.term, hard_state.vote
        if log.last_term > self.term:
            # A crash tore a write: entries of a new term came down and the hard state did not. We never spoke in it.
            self.term, self.vote = log.last_term, 0
        log.commit_to(hard_state.commit)
        self._written = hard_state
        self._rng = rng
        self._ticks = 0
        self._elapsed = 0
        self._heartbeat_elapsed = 0
        self._timeout = 0
        self._votes: dict[int, bool] = {}
        self._leading: Leadership | None = None
        self._reads = Reads(rng.getrandbits(63))
        self._in_flight: deque[Append] = deque()
        self._held: list[Message] = []
        self._out = Ready()
        self._handlers = {
            MessageType.PRE_VOTE: self._on_vote,
            MessageType.PRE_VOTE_REPLY: self._on_vote_reply,
            MessageType.VOTE: self._on_vote,
            MessageType.VOTE_REPLY: self._on_vote_reply,
            MessageType.APPEND: self._on_append,
            MessageType.APPEND_REPLY: self._on_append_reply,
            MessageType.HEARTBEAT: self._on_heartbeat,
            MessageType.HEARTBEAT_REPLY: self._on_heartbeat_reply,
            MessageType.COMMIT: self._on_commit,
            MessageType.TIMEOUT_NOW: self._on_timeout_now,
            MessageType.PROPOSE: self._on_propose,
            MessageType.PROPOSE_REPLY: self._on_propose_reply,
            MessageType.READ_INDEX: self._on_read_index,
            MessageType.READ_INDEX_REPLY: self._on_read_index_reply,
        }
        self._reset(self.term)

    # What others may know

    @property
    def commit(self) -> int:
        return self.log.committed

    @property
    def applicable(self) -> int:
        """Entries up to here may be applied: committed, and on our disk, so that no crash puts the log behind them."""
        return min(self.log.committed, self.log.stable_index)

    @property
    def transferee(self) -> int:
        """Whom leadership is on its way to; 0 for nobody."""
        return self._leading.transferee if self._leading else 0

    @property
    def has_ready(self) -> bool:
        """Would `ready` give anything out? A commit index that has moved is not part of it: look at `applicable`."""
        out = self._out
        return bool(
            out.messages
            or self._held
            or self.log.has_unsaved
            or (self.term, self.vote) != (self._written.term, self._written.vote)
            or (self._reads.waiting and (not self._leading or self._committed_in_term()))
            or (self._leading and self._leading.due)
            or out.reads
            or out.failed_reads
            or out.rejected
        )

    @property
    def waits_for_disk(self) -> bool:
        """Would `appended` move anything on? A leader whose followers have yet to answer needs not know at once."""
        if not self._in_flight or self._leading is None:
            return bool(self._in_flight)
        if self.log.committed > self.log.stable_index or self._leading.waits_for_own:
            return True
        return any(append.messages for append in self._in_flight)  # from before it led

    # Inputs

    def step(self, message: Message) -> None:
        """Take in a message of a peer. One that is not for us, or stale, changes nothing."""
        m = message
        if m.to != self.id or m.sender == self.id:
            return
        if m.term > self.term:
            if not self._heed_higher_term(m):
                return
        elif m.term < self.term:
            self._answer_lower_term(m)
            return
        self._handlers[m.type](m)

    def tick(self) -> None:
        """Let the unit of time pass."""
        self._ticks += 1
        self._elapsed += 1
        self._out.failed_reads += self._reads.expire(self._ticks)
        leading = self._leading
        if leading is None:
            # A candidate that waits for its disk has not asked anybody yet. To begin another term would only make the
            # queue of writes longer, and with a slow disk never end.
            if self._elapsed >= self._timeout and not self._own_vote_is_under_way():
                self._campaign(pre=True)
            return
        if self._elapsed >= self.config.election_ticks:
            self._elapsed = 0
            leading.transferee = 0  # it had its time; proposals may go on
            if not leading.quorum_was_active():
                self._become_follower(self.term)
                return
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            leading.beat(self._reads.round)

    def campaign(self) -> None:
        """Try to become the leader now, as if the election timeout had passed. A leader stays what it is."""
        if self.role is not Role.LEADER:
            self._campaign(pre=True)

    def propose(self, data: bytes, context: int = 0) -> None:
        """Put `data`, not empty, into the log, by way of the leader.

        Nothing tells that it got there but its commit; it may get lost on the way. If the leader refuses it after it
        was forwarded, `Ready.rejected` has `context`. A member that is asked by another and does not lead refuses.

        Raises:
          ProposalDropped: it is certain now that it will not be in the log.
        """
        if not data:
            raise ValueError("an empty entry is the leader's own")
        if self._leading:
            reason = self._take_proposal(self._leading, data)
            if reason is not None:
                raise ProposalDropped(reason)
        elif self.leader:
            self._send(Message(MessageType.PROPOSE, self.leader, self.id, self.term, context=context, data=data))
        else:
            raise ProposalDropped(DropReason.NO_LEADER)

    def read_index(self, context: int) -> None:
        """Find out how far this member must have applied to answer a linearizable read that has arrived by now.

        The answer is in `Ready.reads`, or `context` is in `Ready.failed_reads`: at once if no leader is known or too
        much is waiting, later on a change of leader or term, or if the leader is silent for an election timeout.

        Args:
          context: 64 bits that name this attempt and no other.
        """
        if not self.leader or not self._reads.add(self.id, context):
            self._out.failed_reads.append(context)

    def transfer_leadership(self, to: int) -> None:
        """Hand leadership over to the voter `to`, as soon as its log is complete.

        Proposals are refused meanwhile. It is given up after an election timeout. A second call for another member
        replaces the first. Raises TransferRefused; to the leader itself, nothing is to be done.
        """
        leading = self._leading
        if leading is None:
            raise TransferRefused("not the leader")
        if to not in self.voters:
            raise TransferRefused(f"{to} is not a voter")
        if to in (leading.transferee, self.id):
            return
        leading.transferee = to
        self._elapsed = 0  # it has a whole election timeout
        leading.hurry(to)
        self._finish_transfer(leading)

    def best_successor(self) -> int:
        """The voter that could take over soonest: heard of lately, with the most of our log. 0 if there is none."""
        return self._leading.best_successor() if self._leading else 0

    def release(self, index: int) -> None:
        """Every member has all up to `index` in its log and applied it, both durably: it will not be needed again."""
        self.log.release(index)
        if self._leading:
            self._leading.released()

    def appended(self, append: Append) -> None:
        """`append` is durable. To be called once for each, in the order in which they were given out."""
        oldest = self._in_flight.popleft()
        assert append is oldest, "appends complete in the order of submission"
        self._out.messages += append.messages
        if not self._speaks_for_us(append):
            return
        self.log.stable_to(append.last_index)
        if self._leading:
            self._leading.own_durable(self.log.stable_index)
            self._advance_commit(self._leading)
        elif self.role is Role.CANDIDATE:
            # The write of this term held our vote for ourselves, which was cast as the term began. Only now are the
            # others asked, and have time to answer.
            self._elapsed = 0
            self._record_vote(self.id, True)

    def ready(self) -> Ready:
        """Take out all that has come up. Gather as much as possible before: each call costs messages and a write."""
        if self._leading:
            self._open_round(self._leading)
            self._leading.replicate()
        elif self._reads.waiting:
            question = self._reads.ask(self._ticks + self.config.election_ticks)
            self._send(Message(MessageType.READ_INDEX, self.leader, self.id, self.term, context=question))
        out, self._out = self._out, Ready()
        out.append = self._take_append()
        if self._held:
            if self._in_flight:
                self._in_flight[-1].messages += self._held
            else:
                out.messages += self._held
            self._held = []
        return out

    # Terms and roles

    def _heed_higher_term(self, m: Message) -> bool:
        """Settle a message of a term above ours; False if it shall be ignored."""
        if m.type in (MessageType.PRE_VOTE, MessageType.VOTE):
            in_lease = self.leader != 0 and self._elapsed < self.config.election_ticks
            if in_lease and not m.force:
                return False  # dissertation 4.2.3: a leader that is heard is not to be disturbed
            if m.type is MessageType.PRE_VOTE:
                return True  # a question about a term that has not begun
        if m.type is MessageType.PRE_VOTE_REPLY and not m.reject:
            return True  # its term is the one that we asked about
        self._become_follower(m.term)
        return True

    def _answer_lower_term(self, m: Message) -> None:
        """Tell a member that is behind our term what it needs to get on."""
        if m.type in (MessageType.APPEND, MessageType.HEARTBEAT):
            # Perhaps we are a candidate that nobody listens to, for a leader of a lower term protects them from us. It
            # must learn of our term, or we never come back.
            self._send(Message(MessageType.APPEND_REPLY, m.sender, self.id, self.term))
        elif m.type is MessageType.PRE_VOTE:
            self._send(Message(MessageType.PRE_VOTE_REPLY, m.sender, self.id, self.term, reject=True))
        elif m.type is MessageType.PROPOSE:
            self._reject_proposal(m, DropReason.NO_LEADER)
        elif m.type is MessageType.READ_INDEX:
            self._reject_read(m)

    def _reset(self, term: int) -> None:
        """Begin anew, in this term or another."""
        assert term >= self.term, (term, self.term)
        if term > self.term:
            self.term, self.vote = term, 0
        self.leader = 0
        self._elapsed = self._heartbeat_elapsed = 0
        ticks = self.config.election_ticks
        alone = len(self.voters) == 1 and self.id in self.voters  # nobody else to wait for
        self._timeout = 1 if alone else self._rng.randrange(ticks, 2 * ticks)
        self._votes = {}
        self._leading = None
        self._out.failed_reads += self._reads.drop(self.id)

    def _become_follower(self, term: int) -> None:
        """Of nobody, until a leader is heard."""
        self._reset(term)
        self.role = Role.FOLLOWER

    def _campaign(self, *, pre: bool, force: bool = False) -> None:
        if not self.eligible or self.id not in self.voters:
            self._become_follower(self.term)
            return
        index, term = self.log.last_index, self.log.last_term
        others = [voter for voter in self.voters if voter != self.id]
        if pre:
            self._reset(self.term)
            self.role = Role.PRE_CANDIDATE
            for voter in others:
                self._send(Message(MessageType.PRE_VOTE, voter, self.id, self.term + 1, index, term))
            self._record_vote(self.id, True)  # promises nothing, so needs no disk
        else:
            self._reset(self.term + 1)
            self.role = Role.CANDIDATE
            self.vote = self.id
            for voter in others:
                self._hold(Message(MessageType.VOTE, voter, self.id, self.term, index, term, force=force))

    def _become_leader(self) -> None:
        assert self.role is Role.CANDIDATE, self.role
        assert self._votes.get(self.id), "others were asked to vote before the own vote was on disk"
        self._reset(self.term)
        self.role = Role.LEADER
        self.leader = self.id
        self._leading = Leadership(self.config, self.voters, self.term, self.log, self._send)
        # Until an entry of this term is committed, the entries before it are not, nor can reads be answered (paper 8).
        self.log.append([Entry(self.term, self.log.last_index + 1, EntryKind.NORMAL, b"")])

    # Elections

    def _on_vote(self, m: Message) -> None:
        granted = self._may_vote(m) and self._is_up_to_date(m)
        if m.type is MessageType.PRE_VOTE:
            term = m.term if granted else self.term
            self._send(Message(MessageType.PRE_VOTE_REPLY, m.sender, self.id, term, reject=not granted))
            return
        reply = Message(MessageType.VOTE_REPLY, m.sender, self.id, self.term, reject=not granted)
        if granted:
            self.vote = m.sender
            self._elapsed = 0
            self._hold(reply)  # a vote lost in a crash could be cast twice in one term (paper 5.2)
        else:
            self._send(reply)

    def _may_vote(self, m: Message) -> bool:
        """One vote a term, first come first served, and none against a leader of this term."""
        if m.type is MessageType.PRE_VOTE and m.term > self.term:
            return True
        return self.vote == m.sender or (self.vote == 0 and self.leader == 0)

    def _is_up_to_date(self, m: Message) -> bool:
        """Paper 5.4.1: no vote for a log that ends before ours does."""
        return (m.log_term, m.index) >= (self.log.last_term, self.log.last_index)

    def _on_vote_reply(self, m: Message) -> None:
        if m.type is MessageType.VOTE_REPLY:
            asked = self.role is Role.CANDIDATE
        else:
            asked = self.role is Role.PRE_CANDIDATE and (m.reject or m.term == self.term + 1)
        if asked:
            self._record_vote(m.sender, not m.reject)

    def _record_vote(self, voter: int, granted: bool) -> None:
        self._votes.setdefault(voter, granted)
        outcome = self._election_outcome()
        if outcome is Outcome.LOST:
            self._become_follower(self.term)
        elif outcome is Outcome.WON:
            if self.role is Role.PRE_CANDIDATE:
                self._campaign(pre=False)
            elif self.eligible:
                self._become_leader()
            else:
                self._become_follower(self.term)

    def _own_vote_is_under_way(self) -> bool:
        return self.role is Role.CANDIDATE and self.id not in self._votes

    def _election_outcome(self) -> Outcome:
        return self.voters.outcome(self._votes)

    def _on_timeout_now(self, m: Message) -> None:
        if self.role is Role.FOLLOWER:
            self._campaign(pre=False, force=True)

    # Following

    def _follow(self, m: Message) -> None:
        """The sender leads this term."""
        assert self.leader in (0, m.sender), f"two leaders in term {self.term}: {self.leader} and {m.sender}"
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term)
        self.leader = m.sender
        self._elapsed = 0

    def _on_append(self, m: Message) -> None:
        self._follow(m)
        log = self.log
        if m.index < log.committed:
            matched: int | None = log.committed  # an old message; what is committed is the same everywhere
        else:
            matched = log.accept(m.index, m.log_term, m.entries)
        if matched is not None:
            log.commit_to(min(m.commit, matched))  # past `matched` may be something else than the leader has
            self._hold_ack(Message(MessageType.APPEND_REPLY, m.sender, self.id, self.term, index=matched))
            return
        hint = log.agreeing(m.index, m.log_term)
        self._send(
            Message(
                MessageType.APPEND_REPLY,
                m.sender,
                self.id,
                self.term,
                index=m.index,
                reject=True,
                hint=hint,
                log_term=log.term(hint),
            )
        )

    def _on_heartbeat(self, m: Message) -> None:
        self._on_commit(m)
        self._send(Message(MessageType.HEARTBEAT_REPLY, m.sender, self.id, self.term, context=m.context))

    def _on_commit(self, m: Message) -> None:
        self._follow(m)
        assert m.commit <= self.log.last_index, f"acknowledged and lost: {m.commit} > {self.log.last_index}"
        self.log.commit_to(m.commit)

    # Leading

    def _take_proposal(self, leading: Leadership, data: bytes) -> DropReason | None:
        if leading.transferee:
            return DropReason.TRANSFERRING
        index = self.log.last_index + 1
        if not leading.afford(index, data):
            return DropReason.TOO_MANY_REQUESTS
        self.log.append([Entry(self.term, index, EntryKind.NORMAL, data)])
        return None

    def _on_propose(self, m: Message) -> None:
        reason = self._take_proposal(self._leading, m.data) if self._leading else DropReason.NO_LEADER
        if reason is not None:
            self._reject_proposal(m, reason)

    def _reject_proposal(self, m: Message, reason: DropReason) -> None:
        self._send(Message(MessageType.PROPOSE_REPLY, m.sender, self.id, self.term, context=m.context, reason=reason))

    def _on_propose_reply(self, m: Message) -> None:
        assert m.reason is not None
        self._out.rejected.append((m.context, m.reason))

    def _on_append_reply(self, m: Message) -> None:
        leading = self._leading
        if leading and leading.on_append_reply(m):
            self._advance_commit(leading)
            if m.sender == leading.transferee:
                self._finish_transfer(leading)

    def _advance_commit(self, leading: Leadership) -> None:
        index = self._durable_at_majority(leading)
        if index > self.log.committed and self._may_commit_by_counting(index):
            self.log.commit_to(index)
            leading.committed(index)

    def _durable_at_majority(self, leading: Leadership) -> int:
        return leading.durable_at_majority()

    def _may_commit_by_counting(self, index: int) -> bool:
        """Paper 5.4.2: an entry of an older term at a majority may still be overwritten (figure 8)."""
        return self.log.term(index) == self.term

    def _finish_transfer(self, leading: Leadership) -> None:
        if leading.is_caught_up(leading.transferee):
            self._send(Message(MessageType.TIMEOUT_NOW, leading.transferee, self.id, self.term))

    def _on_heartbeat_reply(self, m: Message) -> None:
        if self._leading and self._leading.on_heartbeat_reply(m, self._reads.round):
            self._confirm_reads(self._leading)

    # Reads

    def _committed_in_term(self) -> bool:
        return self.log.term(self.log.committed) == self.term

    def _open_round(self, leading: Leadership) -> None:
        if self._reads.waiting and self._committed_in_term():
            self._reads.open(self.log.committed)
            leading.own_round(self._reads.round)
            leading.ask(self._reads.round)
            self._confirm_reads(leading)  # a leader that is alone is its own majority

    def _confirm_reads(self, leading: Leadership) -> None:
        number = leading.round_at_majority()
        for read, index in self._reads.confirm(number):
            if read.sender == self.id:
                self._out.reads.append((read.context, index))
            else:
                self._send(
                    Message(
                        MessageType.READ_INDEX_REPLY,
                        read.sender,
                        self.id,
                        self.term,
                        index=index,
                        context=read.context,
                    )
                )

    def _on_read_index(self, m: Message) -> None:
        if not self._leading or not self._reads.add(m.sender, m.context):
            self._reject_read(m)

    def _reject_read(self, m: Message) -> None:
        self._send(Message(MessageType.READ_INDEX_REPLY, m.sender, self.id, self.term, context=m.context, reject=True))

    def _on_read_index_reply(self, m: Message) -> None:
        contexts = self._reads.answered(m.context)
        if m.reject:
            self._out.failed_reads += contexts
        else:
            self._out.reads += [(context, m.index) for context in contexts]

    # The way out

    def _send(self, m: Message) -> None:
        """It claims nothing about our disk."""
        self._out.messages.append(m)

    def _hold(self, m: Message) -> None:
        """It must not be seen before everything that has happened up to now is on disk."""
        self._held.append(m)

    def _hold_ack(self, m: Message) -> None:
        """An acknowledgement says all that an earlier one of the same term to the same leader does."""
        last = self._held[-1] if self._held else None
        if (
            last is not None
            and last.type is MessageType.APPEND_REPLY
            and (last.to, last.term) == (m.to, m.term)
            and last.index <= m.index
        ):
            self._held.pop()
        self._hold(m)

    def _take_append(self) -> Append | None:
        entries = self.log.take_unsaved()
        written = self._written
        if not entries and (self.term, self.vote) == (written.term, written.vote):
            return None
        # What is stable stays stable, so this is never ahead of the log on disk.
        state = HardState(self.term, self.vote, self.applicable)
        append = Append(
            state if state != written else None,
            entries,
            self._held,
            self.term,
            self.log.last_index,
            self.log.last_term,
        )
        self._written = state
        self._held = []
        self._in_flight.append(append)
        return append

    def _speaks_for_us(self, append: Append) -> bool:
        """Is what was written then what we hold now? By index alone it could be an entry that was replaced (ABA)."""
        return append.term == self.term and self.log.matches(append.last_index, append.last_term)
