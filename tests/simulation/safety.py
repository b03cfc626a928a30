"""What must hold after every turn, whatever has gone wrong. Raft's five properties (paper, figure 3), and the store's.

    election safety      at most one leader a term; at most one vote a member and term, over all its lives
    log matching         index and term name one entry and what is before it; looked at as entries are written
    leader completeness  a leader's log holds every entry committed in an earlier term
    commitment           an index is committed once, with one content, and then a majority has it on synced disk
    state machine        every store applies the committed entries, in order, none twice; at one index all stores are
                         in one state; a revision's events are the same wherever and whenever they are told
    leases               every store holds the leases that the log says (ledger.py)
    acknowledgement      nothing is said about our disk that is not on it: votes and append replies are compared with it

The watchman sees what no member can: all disks at once. It remembers what was once true, so that a member which forgets
is caught the moment it contradicts itself. A violation is an AssertionError with the story's time in it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import groupby
from zlib import crc32

from cluster.applyd import FRESH_ELECTIONS, Applyd
from cluster.raft import message as peer
from cluster.raft.core import Role
from cluster.raft.message import MessageType
from kvorum import etcd_pb2 as pb
from storage import codec
from storage.entry import Entry
from storage.keyspace import Change
from tests.simulation.ledger import Ledger
from tests.simulation.node import ELECTION_TICKS, Node, Watchman
from tests.simulation.world import World

_COMPARED = (
    (codec.LATEST, codec.LATEST_END),
    (b"l", codec.SWEEP),  # leases, and what there is beside the data
    (codec.SWEEP + b"\0", b"n"),
)


class Violation(AssertionError):
    """A property does not hold."""


class Safety(Watchman):
    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: dict[int, Node] = {}
        self.ledger = Ledger(world, self.check)
        self.leaders: dict[int, int] = {}
        self._votes: dict[tuple[int, int], int] = {}
        self._known: dict[tuple[int, int], tuple[int, int]] = {}  # (index, term) -> (term before, content)
        self.committed: list[tuple[int, int]] = [(0, 0)]  # by index: (term, content)
        self._commits: dict[int, int] = {}  # by member: how far its commit index was looked at
        self._roles: dict[int, tuple[Role, int]] = {}
        self._applied: dict[int, int] = {}
        self._states: dict[int, tuple[int, int]] = {}  # by applied index: revision, compacted
        self._digests: dict[int, int] = {}  # by applied index: all keys
        self.truth: dict[int, list[bytes]] = {}  # by revision: encoded events
        self._parsed: dict[int, list[pb.Event]] = {}
        self._told: dict[int, int] = {}  # by member: newest revision whose events it has told
        self._shown: dict[int, int] = {}  # by member: newest revision that its answers may have shown
        self._fed = 0
        self._batches: set[bytes] = set()
        self._versions: dict[bytes, tuple[list[int], list[pb.KeyValue | None]]] = {}
        self._parsed_to = 1
        self.compacted = -1
        """The newest compaction point of any store."""
        self.elections = 0
        self.on_election: Callable[[Node], None] = lambda node: None

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(f"at {self.world.now / 1e6:.6f} s: {what}")

    # ---- raft

    def said(self, node: Node, message: peer.Message) -> None:
        """A message leaves. Those that speak of the sender's disk must not say more than is on it."""
        kind = message.type
        if kind is MessageType.APPEND or kind is MessageType.HEARTBEAT:
            self._leads(node, message.term)
        elif kind is MessageType.APPEND_REPLY and not message.reject:
            self._acknowledges(node, message)
        elif kind is MessageType.VOTE or (kind is MessageType.VOTE_REPLY and not message.reject):
            self._votes_for(node, message.to if kind is MessageType.VOTE_REPLY else node.id, message)

    def _acknowledges(self, node: Node, message: peer.Message) -> None:
        index, disk = message.index, node.disk.synced
        self.check(index <= disk.last_index, f"{message}, but on its sender's disk the log ends at {disk.last_index}")
        leader = self.nodes[message.to].raftd
        if leader is not None and leader.core.role is Role.LEADER and leader.core.term == message.term:
            log = leader.core.log
            if log.first_index <= index <= log.last_index:
                held = self._durable(node, index)
                self.check(held == log.term(index), f"{message}, but on its sender's disk that entry is of term {held}")

    def _votes_for(self, node: Node, candidate: int, message: peer.Message) -> None:
        state = node.disk.synced.hard_state
        self.check(state.term >= message.term, f"{message}, but its sender's disk says {state}")
        if state.term == message.term:
            self.check(state.vote == candidate, f"{message}, but its sender's disk says {state}")
        before = self._votes.setdefault((node.id, message.term), candidate)
        self.check(before == candidate, f"{message}, but in that term its sender has voted for {before}")

    def raft_turned(self, node: Node) -> None:
        assert node.raftd is not None
        core = node.raftd.core
        role = (core.role, core.term)
        if role != self._roles.get(node.id):
            self._roles[node.id] = role
            self.world.tell(lambda: f"raft {node.id} is {core.role.name} in term {core.term}")
            if core.role is Role.LEADER:
                self._elected(node)
        if core.commit > self._commits.get(node.id, 0):
            self._advanced(node)

    def _elected(self, node: Node) -> None:
        assert node.raftd is not None
        core = node.raftd.core
        self._leads(node, core.term)
        self.elections += 1
        self._holds(node, len(self.committed) - 1)
        self.on_election(node)

    def _leads(self, node: Node, term: int) -> None:
        other = self.leaders.setdefault(term, node.id)
        self.check(other == node.id, f"members {other} and {node.id} both lead term {term}")

    def _holds(self, node: Node, index: int) -> None:
        """Leader completeness; the last committed entry stands for all before it, by log matching."""
        assert node.raftd is not None
        log = node.raftd.core.log
        term = self.committed[index][0]
        self.check(
            log.last_index >= index and (index < log.first_index or log.term(index) == term),
            f"member {node.id} leads term {node.raftd.core.term} without entry {index}@{term}, which is committed",
        )

    def _advanced(self, node: Node) -> None:
        assert node.raftd is not None
        core = node.raftd.core
        log, commit = core.log, core.commit
        first = max(self._commits.get(node.id, 0) + 1, log.first_index)
        known = len(self.committed)
        self._commits[node.id] = commit
        for index in range(first, commit + 1):
            term = log.term(index)
            content = self._known.get((index, term), (0, 0))[1]
            if index < len(self.committed):
                self.check(
                    (term, content) == self.committed[index],
                    f"member {node.id} commits {index}@{term}, committed was {self.committed[index]}",
                )
                continue
            self.check(index == len(self.committed), f"member {node.id} commits {index} with a hole before it")
            self.check((index, term) in self._known, f"member {node.id} commits {index}@{term}, which nobody wrote")
            self.committed.append((term, content))
            holders = [id for id, each in self.nodes.items() if self._durable(each, index) == term]
            self.check(
                len(holders) > len(self.nodes) // 2,
                f"member {node.id} commits {index}@{term}, which is on disk at {holders} only",
            )
            for other in self.nodes.values():
                peer_core = other.raftd.core if other.raftd is not None else None
                if peer_core is not None and peer_core.role is Role.LEADER and peer_core.term > core.term:
                    self._holds(other, index)
        if len(self.committed) > known:
            self._secure(node, commit)

    def _secure(self, node: Node, index: int) -> None:
        """Nobody without a committed entry could be elected now, by what is on the disks (why 5.4.2 is as it is)."""
        term = self.committed[index][0]
        ends = {id: (each.disk.synced.last_term, each.disk.synced.last_index) for id, each in self.nodes.items()}
        for id, each in self.nodes.items():
            voters = [other for other, end in ends.items() if ends[id] >= end]
            self.check(
                len(voters) <= len(self.nodes) // 2 or self._durable(each, index) == term,
                f"member {node.id} commits {index}@{term}, without which member {id} could be elected by {voters}",
            )

    def _durable(self, node: Node, index: int) -> int:
        """The term of entry `index` on the node's synced disk, 0 if it is not there; a released one was committed."""
        platter = node.disk.synced
        if index <= platter.prev[0]:
            return self.committed[index][0]
        entry = platter.entry(index)
        return entry.term if entry is not None else 0

    def written(self, node: Node, entries: Sequence[Entry], before: int) -> None:
        """Entries go to a member's disk; the term of the one before the first is `before`."""
        for entry in entries:
            self._matches(node, entry, before)
            before = entry.term

    def _matches(self, node: Node, entry: Entry, before: int) -> None:
        this = (before, crc32(entry.data, entry.kind))
        known = self._known.setdefault((entry.index, entry.term), this)
        self.check(
            known == this,
            f"member {node.id} writes {entry.index}@{entry.term} with (term before, content) {this}, known was {known}",
        )
        if entry.index < len(self.committed) and self._durable(node, entry.index) == self.committed[entry.index][0]:
            self.check(
                entry.term == self.committed[entry.index][0],
                f"member {node.id} overwrites entry {entry.index} in term {entry.term}, holding it committed",
            )

    # ---- stores

    def fed(self, node: Node, entries: Sequence[Entry]) -> None:
        """A member's raft hands entries to its apply process."""
        self._advanced(node)
        for entry in entries:
            if entry.index > self.ledger.index:
                self.ledger.entry(entry.index, entry.data)
            if entry.data and entry.index > self._fed:
                self._fed = entry.index
                batch = entry.data[:24]  # origin, incarnation, number
                self.world.seen["batch committed again"] += batch in self._batches
                self._batches.add(batch)
            self.check(
                entry.index < len(self.committed)
                and (entry.term, crc32(entry.data, entry.kind)) == self.committed[entry.index],
                f"member {node.id} is to apply {entry.index}@{entry.term}, which is not what is committed",
            )
            self.check(
                self._durable(node, entry.index) == entry.term,
                f"member {node.id} is to apply {entry.index}@{entry.term}, which is not on its own disk",
            )

    def apply_turned(self, node: Node) -> None:
        assert node.applyd is not None
        keyspace = node.applyd.keyspace
        applied, term = keyspace.applied
        self._shows(node, node.applyd)
        if applied == self._applied.get(node.id):
            return
        self._applied[node.id] = applied
        self.check(applied < len(self.committed), f"member {node.id} has applied {applied}, which is not committed")
        self.check(term == self.committed[applied][0], f"member {node.id} has applied {applied}@{term}")
        here = (keyspace.revision, keyspace.compacted)
        there = self._states.setdefault(applied, here)
        self.check(
            here == there,
            f"at entry {applied} member {node.id} is at (revision, compacted) {here}, another was at {there}",
        )
        self.compacted = max(self.compacted, keyspace.compacted)
        self.ledger.agrees(keyspace, node.id)

    def _shows(self, node: Node, applyd: Applyd) -> None:
        """What a member has once shown it doesn't take back: not even after a crash, not even to serializable reads.
        Only if it cannot find out in time what it has shown before may it begin from what it has (cluster/reads.py)."""
        if applyd._reads.fresh:
            return
        revision, before = applyd.keyspace.revision, self._shown.get(node.id, 1)
        if revision < before:
            out_of_time = applyd.ticks > FRESH_ELECTIONS * ELECTION_TICKS
            self.check(out_of_time, f"member {node.id} shows revision {revision}, and has shown {before} before")
            self.world.seen["shown again what is old"] += 1
        self._shown[node.id] = revision

    def compare_stores(self) -> None:
        """All that a store holds, but for what awaits a sweep, is the same at the same applied index."""
        for node in self.nodes.values():
            if node.applyd is None:
                continue
            digest = 0
            for start, end in _COMPARED:
                for key, value in node.engine.scan(start, end):
                    digest = crc32(value, crc32(key, digest))
            applied = node.applyd.keyspace.applied[0]
            known = self._digests.setdefault(applied, digest)
            self.check(digest == known, f"at entry {applied} member {node.id} holds other data than another held there")
            self.ledger.agrees_on_keys(node.applyd.keyspace, node.id)

    def changed(self, node: Node, changes: Sequence[Change], revision: int) -> None:
        """A member tells the events of whole revisions."""
        told = self._told.get(node.id, 1)
        for number, group in groupby(changes, key=lambda change: change.revision):
            events = [change.event for change in group]
            self.check(number == told + 1, f"member {node.id} tells revision {number} after {told}")
            told = number
            known = self.truth.setdefault(number, events)
            self.check(
                known == events, f"member {node.id} tells other events of revision {number} than were told before"
            )
        self._told[node.id] = told
        self.check(told == revision, f"member {node.id} has told up to revision {told} and says {revision}")

    def opened(self, node: Node) -> None:
        """An apply process has opened its store: it will tell what comes after."""
        assert node.applyd is not None
        self._told[node.id] = node.applyd.keyspace.revision
        self._applied.pop(node.id, None)

    @property
    def revision(self) -> int:
        """The newest revision that any store has committed."""
        return len(self.truth) + 1

    def events_of(self, revision: int) -> list[pb.Event]:
        found = self._parsed.get(revision)
        if found is None:
            found = self._parsed[revision] = [pb.Event.FromString(event) for event in self.truth.get(revision, [])]
        return found

    def before(self, key: bytes, revision: int) -> pb.KeyValue | None:
        """What a key was just before a revision that is known."""
        for number in range(self._parsed_to + 1, revision):
            for event in self.events_of(number):
                moments, states = self._versions.setdefault(event.kv.key, ([], []))
                moments.append(number)
                states.append(event.kv if event.type == pb.Event.PUT else None)
        self._parsed_to = max(self._parsed_to, revision - 1)
        moments, states = self._versions.get(key, ([], []))
        at = bisect_left(moments, revision) - 1
        return states[at] if at >= 0 else None

    def events(self) -> dict[int, list[pb.Event]]:
        """The truth, for the judges of histories."""
        return {revision: self.events_of(revision) for revision in self.truth}
