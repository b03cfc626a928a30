"""Random walks of a small cluster, with everything that must never happen checked after every step.

A walk is a seed: the next thing that happens is drawn, and so are losses, repetitions, delays, crashes, torn writes and
cut links. It knows the whole cluster at once, which no member does, and so can tell:

    election safety      a term has one leader (Raft paper, figure 3)
    log matching         an index and a term name one entry, with one entry before it
    state machine        what any member has committed at an index is the same for all, for ever,
    and durable          and was on the disks of a majority when it was first called committed
    honesty              no message says of its sender's disk what is not so; nobody takes a write for done too early
    reads                the index of a read is not below what anybody had committed when it arrived
    progress             once nothing is lost any more (`finish`), the members agree, commit and answer

The members run as shipped. A faulty subclass must be found out; that is how the walk itself is tested.
"""

from __future__ import annotations

import random

from cluster.raft.core import ProposalDropped, Raft, Role
from cluster.raft.message import Message, MessageType
from tests.raft.harness import Cluster, Disk


class Violation(AssertionError):
    """Something that must never happen did."""


WEIGHTS = {
    "arrive": 40,
    "sync": 15,
    "tick": 14,
    "propose": 8,
    "read": 8,
    "settle": 6,
    "move": 2,
    "crash": 2,
    "part": 2,
    "heal": 2,
    "eligible": 1,
}


class Walk(Cluster):
    """`habits` fixes what is else drawn: nodes, late, twice, lost, or the weight of what may happen."""

    def __init__(self, seed: int, raft: type[Raft] = Raft, **habits: float) -> None:
        self.dice = random.Random(seed)
        self.leaders: dict[int, int] = {}
        self.entries: dict[tuple[int, int], tuple[int, bytes]] = {}
        self.committed: list[int] = [0]
        self.ballots: dict[tuple[int, int], int] = {}
        self.asked: dict[int, int] = {}
        self.answered = 0
        self._applied: dict[int, int] = {}
        # Each walk has its own habits, or all would be equally far from what takes many slow disks, or many elections.
        drawn = {thing: weight * self.dice.choice([0.1, 1, 1, 4]) for thing, weight in WEIGHTS.items()}
        drawn |= {chance: self.dice.choice([0, 0.05, 0.4]) for chance in ("late", "twice", "lost")}
        drawn["nodes"] = self.dice.choice([1, 3, 3, 3, 5, 5])
        drawn |= habits
        self.weights = {thing: drawn[thing] for thing in WEIGHTS}
        self.late, self.twice, self.lost = drawn["late"], drawn["twice"], drawn["lost"]
        super().__init__(
            int(drawn["nodes"]),
            raft=raft,
            rng=lambda id, life: random.Random(f"{seed}/{id}/{life}"),
            memory_bytes_max=self.dice.choice([0, 200, 1 << 20]),
            append_bytes_max=self.dice.choice([1, 100, 1 << 20]),
            inflight_max=self.dice.choice([1, 3, 256]),
            uncommitted_bytes_max=self.dice.choice([100, 1 << 20]),
        )

    def boot(self, id: int, disk: Disk) -> None:
        self._applied[id] = 0
        super().boot(id, disk)

    def walk(self, steps: int) -> None:
        for number in range(steps):
            id = self.dice.choice(self.voters)
            self.step(id, number)
            self.check(id)
            self.trace.clear()

    def step(self, id: int, number: int) -> None:
        dice, raft, disk = self.dice, self.members[id], self.disks[id]
        match dice.choices(list(self.weights), self.weights.values())[0]:
            case "arrive":
                self.arrive()
            case "sync" if disk.pending:
                self.sync(id, dice.randint(1, len(disk.pending)))
            case "tick":
                self.tick(id, dice.choice([1, 2, 12]))
            case "propose":
                for _ in range(dice.randint(1, 3)):
                    try:
                        raft.propose(b"%d/%d" % (number, id), number)
                    except ProposalDropped:
                        break
                self.turn(id)
            case "read":
                self.asked[number] = max(other.commit for other in self.members.values())
                raft.read_index(number)
                self.turn(id)
            case "move" if raft.role is Role.LEADER:
                raft.transfer_leadership(dice.choice(self.voters))
                self.turn(id)
            case "crash":
                self.crash(id, dice.randint(0, len(disk.pending)))
            case "part":
                side = dice.sample(self.voters, dice.randint(0, len(self.voters)))
                self.cuts = {(a, b) for a in self.voters for b in self.voters if (a in side) != (b in side)}
                if dice.random() < 0.3:
                    self.cuts = {(a, b) for a, b in self.cuts if a in side}  # one way only
            case "heal":
                self.heal()
            case "eligible":
                raft.eligible = dice.random() < 0.8
            case "settle":
                side = dice.sample(self.voters, dice.randint(1, len(self.voters)))
                if dice.random() < 0.5:
                    self.tick(id, 12)
                self.stabilize(side)
                for other in side:
                    self.check(other)

    def arrive(self) -> None:
        """A few messages come, mostly the oldest, to one member or another; some twice, some never."""
        dice = self.dice
        for _ in range(dice.randint(1, 6)):
            if not self.network:
                return
            at = dice.randrange(len(self.network)) if dice.random() < self.late else 0
            m = self.network[at]
            if dice.random() >= self.twice:
                del self.network[at]
            if dice.random() >= self.lost:
                self.members[m.to].step(m)
                if dice.random() < 0.5:
                    self.turn(m.to)
                self.check(m.to)

    def finish(self) -> None:
        """Everything works from now on: the members must come to agree, take proposals and answer reads."""
        self.heal()
        for raft in self.members.values():
            raft.eligible = True
        for _ in range(100):
            for id in self.voters:
                self.tick(id)
            self.stabilize()
            leaders = [id for id in self.voters if self.members[id].role is Role.LEADER]
            settled = all(raft.leader in leaders and not raft.transferee for raft in self.members.values())
            if len(leaders) == 1 and settled:
                break
        else:
            raise Violation("no leader in ten election timeouts")
        for id in self.voters:
            self.members[id].propose(b"from %d" % id)
            self.asked[-id] = max(raft.commit for raft in self.members.values())
            self.members[id].read_index(-id)
        self.tick(leaders[0])
        self.stabilize()
        logs = [self.terms(id) for id in self.voters]
        last = len(logs[0])
        if any(terms != logs[0] for terms in logs) or any(raft.applicable != last for raft in self.members.values()):
            raise Violation(f"no agreement: {logs}")
        answered = [self.reads[id].get(-id) for id in self.voters]
        if None in answered:
            raise Violation(f"reads of a healthy cluster fail: {answered}")
        for id in self.voters:
            self.check(id)

    # What must never happen

    def check(self, id: int) -> None:
        raft, disk = self.members[id], self.disks[id]
        if raft.role is Role.LEADER and self.leaders.setdefault(raft.term, id) != id:
            raise Violation(f"two leaders in term {raft.term}")
        log = raft.log
        last = log.stable_index
        if last > len(disk.entries) or (last and log.term(last) != disk.entries[last - 1].term):
            raise Violation(f"member {id} believes that {last} is on its disk")
        if disk.hard_state.commit > len(disk.entries):
            raise Violation(f"the disk of {id} has a commit index and not the entry")
        applied = self._applied[id]
        for entry in log.slice(applied + 1, raft.commit, 1 << 40):
            self.check_committed(entry.index, entry.term)
        self._applied[id] = raft.commit
        for context, index in self.reads[id].items():
            if index is not None and index < self.asked[context]:
                raise Violation(f"read {context} of {id} at {index}, when {self.asked[context]} was committed")
        self.answered += sum(index is not None for index in self.reads[id].values())
        self.reads[id].clear()

    def check_committed(self, index: int, term: int) -> None:
        if index < len(self.committed):
            if self.committed[index] != term:
                raise Violation(f"entry {index} was committed as of term {self.committed[index]} and of {term}")
            return
        holders = [
            disk for disk in self.disks.values() if len(disk.entries) >= index and disk.entries[index - 1].term == term
        ]
        if 2 * len(holders) <= len(self.voters):
            raise Violation(f"entry {index}@{term} is committed and on {len(holders)} of {len(self.voters)} disks")
        self.committed.append(term)

    def turn(self, id: int) -> None:
        disk = self.disks[id]
        before = len(disk.pending)
        super().turn(id)
        if len(disk.pending) == before:
            return
        log = self.members[id].log
        for entry in disk.pending[-1].entries:
            known = (log.term(entry.index - 1), entry.data)
            if self.entries.setdefault((entry.index, entry.term), known) != known:
                raise Violation(f"{entry.index}@{entry.term} names two entries")

    def _post(self, m: Message) -> None:
        super()._post(m)
        disk = self.disks[m.sender]
        state = disk.hard_state
        if m.type is MessageType.VOTE_REPLY and not m.reject:
            if self.ballots.setdefault((m.sender, m.term), m.to) != m.to:
                raise Violation(f"member {m.sender} votes twice in term {m.term}")
            if (state.term, state.vote) < (m.term, 0) or (state.term == m.term and state.vote != m.to):
                raise Violation(f"member {m.sender} speaks of a vote that its disk does not know: {state}")
        elif m.type is MessageType.VOTE and state.term < m.term:
            raise Violation(f"member {m.sender} asks for votes in a term that its disk does not know")
        elif m.type is MessageType.APPEND_REPLY and not m.reject and state.term == m.term:
            last = len(disk.entries)
            if last < m.index:
                raise Violation(f"member {m.sender} acknowledges {m.index} and has {last} on its disk")
