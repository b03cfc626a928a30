"""A cluster in one thread for the tests of the core: members, their disks, the messages between them, and a trace.

Nothing happens by itself. A message waits in `network` until it is delivered or dropped, a write waits on its disk
until it is synced, time passes by `tick`. A turn of a member is what a process would do: take inputs, then `ready`
once. What it did is written down in `trace`, one line each, in words that golden scripts can be read by.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from hypothesis import settings

from cluster.raft.core import Append, Config, Raft, Role
from cluster.raft.log import Log, entry_bytes
from cluster.raft.message import Message, MessageType, decode, encode
from storage.entry import Entry, HardState

PROPERTY = settings(derandomize=True, max_examples=300, deadline=None)
"""For property tests: the same examples every time, and a busy machine fails nothing."""


class Chance(random.Random):
    """Chance without chance: member n waits n - 1 ticks longer than it must, and questions start at a round number."""

    def __init__(self, id: int, life: int) -> None:
        super().__init__(0)
        self._id, self._life = id, life

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        assert stop is not None
        return start + (self._id - 1) % (stop - start)

    def getrandbits(self, k: int, /) -> int:
        return 1000 * self._id + 100 * self._life


_NEW = HardState()


class Disk:
    """What is durable, and the writes that are not yet. It is the core's LogStore too."""

    def __init__(self, terms: Sequence[int] = (), hard_state: HardState = _NEW, prev: tuple[int, int] = (0, 0)):
        self.prev = prev
        first = prev[0] + 1
        self.entries = [Entry(term, first + at, 0, b"%d@%d" % (first + at, term)) for at, term in enumerate(terms)]
        self.hard_state = hard_state
        self.pending: deque[Append] = deque()

    def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        at = first - self.prev[0] - 1
        assert 0 <= at <= last - self.prev[0] - 1 < len(self.entries), "read of what is not on disk"
        found: list[Entry] = []
        size = 0
        for entry in self.entries[at : last - self.prev[0]]:
            size += entry_bytes(entry)
            if found and size > max_bytes:
                break
            found.append(entry)
        return found

    def sync(self) -> Append:
        """The oldest pending write comes down."""
        append = self.pending.popleft()
        if append.entries:
            del self.entries[append.entries[0].index - self.prev[0] - 1 :]
            self.entries += append.entries
        if append.hard_state is not None:
            self.hard_state = append.hard_state
        return append

    def log(self, memory_bytes_max: int = 16 << 20) -> Log:
        """A log as after a start of the process."""
        runs: list[tuple[int, int]] = []
        for entry in self.entries:
            if not runs or runs[-1][1] != entry.term:
                runs.append((entry.index, entry.term))
        last = self.entries[-1].index if self.entries else self.prev[0]
        return Log(self, prev=self.prev, terms=runs, last_index=last, memory_bytes_max=memory_bytes_max)


class Cluster:
    """Members 1 to `nodes`. `options` go into every Config; `rng` makes a member's chance from (id, life)."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        raft: type[Raft] = Raft,
        rng: Callable[[int, int], random.Random] = Chance,
        memory_bytes_max: int = 16 << 20,
        **options: int,
    ) -> None:
        self.voters = tuple(range(1, nodes + 1))
        self.options, self._raft, self._rng, self._memory_bytes_max = options, raft, rng, memory_bytes_max
        self.network: list[Message] = []
        self.cuts: set[tuple[int, int]] = set()
        self.trace: list[str] = []
        self.reads: dict[int, dict[int, int | None]] = {id: {} for id in self.voters}
        """What became of each read of a member: its index, or None if it failed."""
        self.rejected: dict[int, list[tuple[int, str]]] = {id: [] for id in self.voters}
        self._lives = dict.fromkeys(self.voters, 0)
        self.disks: dict[int, Disk] = {}
        self.members: dict[int, Raft] = {}
        self._seen: dict[int, tuple[Role, int, int, int]] = {}
        for id in self.voters:
            self.boot(id, Disk())

    def __getitem__(self, id: int) -> Raft:
        return self.members[id]

    # What happens to members

    def boot(self, id: int, disk: Disk) -> None:
        """Start member `id` with this disk, whatever it was before."""
        self._lives[id] += 1
        self.disks[id] = disk
        config = Config(id, self.voters, **self.options)
        rng = self._rng(id, self._lives[id])
        raft = self._raft(config, disk.log(self._memory_bytes_max), disk.hard_state, rng)
        self.members[id] = raft
        self._seen[id] = (raft.role, raft.term, raft.leader, raft.commit)

    def crash(self, id: int, down: int = 0) -> None:
        """Kill and restart a member: of its pending writes, the `down` oldest had reached the disk."""
        disk = self.disks[id]
        for _ in range(down):
            disk.sync()
        disk.pending.clear()
        self.boot(id, disk)

    def turn(self, id: int) -> None:
        """`ready`, and all that follows from it."""
        raft = self.members[id]
        assert raft.has_ready or self._is_nothing(raft), "has_ready missed something"
        ready = raft.ready()
        assert not raft.has_ready
        self._note_state(id)
        for context, index in ready.reads:
            self.trace.append(f"n{id} may answer read {context} at {index}")
            assert context not in self.reads[id], "a read came out twice"
            self.reads[id][context] = index
        for context in ready.failed_reads:
            self.trace.append(f"n{id} fails read {context}")
            assert context not in self.reads[id], "a read came out twice"
            self.reads[id][context] = None
        for context, reason in ready.rejected:
            self.trace.append(f"n{id} gives proposal {context} back: {reason}")
            self.rejected[id].append((context, reason))
        for m in ready.messages:
            self._post(m)
        if ready.append is not None:
            self.disks[id].pending.append(ready.append)
            self.trace.append(f"n{id} writes {describe_append(ready.append)}")
            for m in ready.append.messages:
                self.trace.append(f"n{id}@{m.term} holds {describe(m)} to n{m.to} until sync")

    def sync(self, id: int, count: int | None = None) -> None:
        """Let pending writes come down, one after the other, and say so to the member; then it takes a turn."""
        disk = self.disks[id]
        for _ in range(len(disk.pending) if count is None else count):
            self.members[id].appended(disk.sync())
        self.turn(id)

    def tick(self, id: int, count: int = 1) -> None:
        for _ in range(count):
            self.members[id].tick()
            self.turn(id)

    def deliver(self, to: int, wanted: Callable[[Message], bool] = lambda m: True, *, keep: bool = False) -> int:
        """All waiting messages to a member that are `wanted`, then one turn of it. `keep`: they will come again."""
        messages = [m for m in self.network if m.to == to and wanted(m)]
        if not keep:
            self.network = [m for m in self.network if m.to != to or not wanted(m)]
        for m in messages:
            self.members[to].step(decode(encode(m)))
        self.turn(to)
        return len(messages)

    def drop(self, to: int, wanted: Callable[[Message], bool] = lambda m: True) -> None:
        self.network = [m for m in self.network if m.to != to or not wanted(m)]

    def stabilize(self, ids: Iterable[int] = ()) -> None:
        """Turns, deliveries and syncs among these members (all if none) until nothing moves. No time passes."""
        ids = sorted(ids) or self.voters
        for _ in range(10_000):
            moved = False
            for id in ids:
                if self.members[id].has_ready:
                    self.turn(id)
                    moved = True
            for id in ids:
                if any(m.to == id for m in self.network):
                    self.deliver(id)
                    moved = True
            for id in ids:
                if self.disks[id].pending:
                    self.sync(id)
                    moved = True
            if not moved:
                return
        raise AssertionError("the cluster does not come to rest")

    # Short ways for tests

    def elect(self, id: int) -> None:
        """Make this member the leader, among all that can be reached."""
        self.members[id].campaign()
        self.stabilize()
        assert self.members[id].role is Role.LEADER, self.members[id].role

    def run(self, id: int) -> Raft:
        """Make this member a candidate by answers that nobody gave; its vote for itself is on disk."""
        raft = self.members[id]
        raft.campaign()
        for voter in self.voters:
            if raft.role is Role.PRE_CANDIDATE and voter != id:
                raft.step(Message(MessageType.PRE_VOTE_REPLY, id, voter, raft.term + 1))
        assert raft.role is Role.CANDIDATE, raft.role
        self.turn(id)
        self.sync(id)
        return raft

    def lead(self, id: int) -> Raft:
        """Make this member the leader by answers that nobody gave; its first entry is not on disk yet."""
        raft = self.run(id)
        for voter in self.voters:
            if raft.role is Role.CANDIDATE and voter != id:
                raft.step(Message(MessageType.VOTE_REPLY, id, voter, raft.term))
        assert raft.role is Role.LEADER, raft.role
        self.turn(id)
        return raft

    def propose(self, id: int, data: bytes = b"x", context: int = 0) -> None:
        self.members[id].propose(data, context)
        self.turn(id)

    def send(self, m: Message) -> list[Message]:
        """Give a member this message; what it sends in answer, when it is durable. Nothing stays in the network."""
        before, self.network = self.network, []
        self.members[m.to].step(decode(encode(m)))
        self.turn(m.to)
        self.sync(m.to)
        answers, self.network = self.network, before
        return answers

    def waiting(self, type: MessageType | None = None, to: int | None = None) -> list[Message]:
        return [m for m in self.network if type in (None, m.type) and to in (None, m.to)]

    def cut(self, a: int, b: int) -> None:
        """No messages between the two, in both directions, from now on."""
        self.cuts |= {(a, b), (b, a)}

    def isolate(self, id: int) -> None:
        for other in self.voters:
            if other != id:
                self.cut(id, other)

    def heal(self) -> None:
        self.cuts.clear()

    def terms(self, id: int) -> list[int]:
        """The terms of a member's whole log, in order."""
        log = self.members[id].log
        return [log.term(index) for index in range(log.first_index, log.last_index + 1)]

    def data(self, id: int) -> list[bytes]:
        """The data of a member's committed entries, without those that leaders open their terms with."""
        log = self.members[id].log
        found = log.slice(log.first_index, log.committed, 1 << 40)
        return [entry.data for entry in found if entry.data]

    # The trace

    def _is_nothing(self, raft: Raft) -> bool:
        ready = raft.ready()
        return not (ready.messages or ready.append or ready.reads or ready.failed_reads or ready.rejected)

    def _post(self, m: Message) -> None:
        lost = (m.sender, m.to) in self.cuts
        self.trace.append(f"n{m.sender}@{m.term} {'✗' if lost else '→'} n{m.to} {describe(m)}")
        if not lost:
            self.network.append(m)

    def _note_state(self, id: int) -> None:
        raft = self.members[id]
        role, term, leader, commit = self._seen[id]
        if (role, term, leader) != (raft.role, raft.term, raft.leader):
            self.trace.append(f"n{id}@{raft.term} {describe_role(raft)}")
        if commit != raft.commit:
            self.trace.append(f"n{id}@{raft.term} commits {raft.commit}")
        self._seen[id] = (raft.role, raft.term, raft.leader, raft.commit)


def describe_role(raft: Raft) -> str:
    if raft.role is Role.FOLLOWER:
        return f"follows {f'n{raft.leader}' if raft.leader else 'nobody'}"
    return {Role.PRE_CANDIDATE: "asks whether to run", Role.CANDIDATE: "runs", Role.LEADER: "leads"}[raft.role]


def describe_places(places: Iterable[tuple[int, int]]) -> str:
    """(index, term) pairs as runs: 1..3@1 4@2."""
    runs: list[list[int]] = []
    for index, term in places:
        if runs and runs[-1][2] == term and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index, term])
    return " ".join(f"{a}@{t}" if a == b else f"{a}..{b}@{t}" for a, b, t in runs)


def describe_entries(entries: Iterable[Entry]) -> str:
    return describe_places((entry.index, entry.term) for entry in entries)


def describe_append(append: Append) -> str:
    parts = []
    if append.hard_state is not None:
        state = append.hard_state
        parts.append(f"term={state.term} vote={state.vote} commit={state.commit}")
    if append.entries:
        parts.append(describe_entries(append.entries))
    return " ".join(parts)


def describe(m: Message) -> str:
    """A message without its sender, receiver and term."""
    name = "".join(word.title() for word in m.type.name.split("_"))
    granted = f"granted={'no' if m.reject else 'yes'}"
    match m.type:
        case MessageType.PRE_VOTE | MessageType.VOTE:
            return f"{name} last={m.index}@{m.log_term}{' forced' if m.force else ''}"
        case MessageType.PRE_VOTE_REPLY | MessageType.VOTE_REPLY:
            return f"{name} {granted}"
        case MessageType.APPEND:
            entries = f" {describe_entries(m.entries)}" if m.entries else ""
            return f"{name} after={m.index}@{m.log_term}{entries} commit={m.commit}"
        case MessageType.APPEND_REPLY if m.reject:
            return f"{name} misses={m.index} hint={m.hint}@{m.log_term}"
        case MessageType.APPEND_REPLY:
            return f"{name} holds={m.index}"
        case MessageType.HEARTBEAT:
            return f"{name} commit={m.commit} round={m.context}"
        case MessageType.HEARTBEAT_REPLY:
            return f"{name} round={m.context}"
        case MessageType.COMMIT:
            return f"{name} commit={m.commit}"
        case MessageType.PROPOSE:
            return f"{name} {m.context} {m.data.decode()}"
        case MessageType.PROPOSE_REPLY:
            return f"{name} {m.context} refused: {m.reason}"
        case MessageType.READ_INDEX:
            return f"{name} question={m.context}"
        case MessageType.READ_INDEX_REPLY:
            return f"{name} question={m.context} {'refused' if m.reject else f'index={m.index}'}"
        case _:
            return name
