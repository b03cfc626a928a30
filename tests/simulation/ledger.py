"""Leases once more, as dumb as possible: told by the log alone, and the measure of what stores hold and tenants hear.

    committed entries ──▶ Ledger ──▶ which leases there are          ══ every store, at the same applied index
                            │   └──▶ the changes of tenants' keys    ══ the truth, revision by revision
                            └─────▶ when each lease began and ended  ══ what tenants were told, and when

An entry counts from the moment in which the first raft process hands it to its store: then it is committed, and no
answer can know of it before. So by one clock, whichever members lead, sleep or die meanwhile (RELIABILITY 1.3):

    L1  a lease that ran out had all of its TTL, counted from the asking of every grant and renewal that was answered
    L2  once somebody leads undisturbed, a lease that nobody renews ends within its TTL and LATE
    L3  a lease ends at one revision with exactly the keys that it held, in order; then it is unknown
    L4  a put attaches and detaches, and the order of all that is the log's
    L5  all stores hold the same leases and keys at the same entry, whatever they came through
    L6  a renewal is answered by a lease that lived between asking and answer; what is dead was dead in between, too
    L7  what is granted is what was asked for, at least SECONDS_MIN
    L8  what is left is neither more than was granted nor less than was promised

That one clock is the judge's. Members' own clocks may be fast or slow: then L1 and L8 hold by the fastest of them,
which may have counted all of the time, and L2 by the slowest, whichever members have led meanwhile.

Alarms, too, are as the log has them: at every store, and in what they refuse.

Only the tenants' keys (KEYS) are looked at, and only tenants touch them, with a few plain requests; so this needs to
know little of what else a store does. Nothing here is shared with storage/ but how an entry is packed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage.codec import unpack_proposal
from storage.keyspace import Keyspace
from tests.checkers.history import Operation
from tests.checkers.model import inside
from tests.simulation.world import SECOND, World

KEYS = b"t"
"""What tenants' keys begin with."""
FIRST_ID = 1 << 40
"""Tenants' operations are numbered from here on; others' never reach it, or are past LAST_ID."""
LAST_ID = 1 << 50
SECONDS_MIN = 2
"""The least TTL that a member grants (cluster.applyd.Applyd)."""
SHORT = 10
"""A lease of so many seconds must run out before a run is over."""
LATE = 3 * SECOND


@dataclass(eq=False)
class Lease:
    """One life of a lease; an id may have several. Times are simulated, of the entries that began and ended it."""

    id: int
    ttl: int
    began: int
    index: int
    """Of the entry that granted it."""
    ended: int | None = None
    revoked: bool = False
    changes: int = 0
    """How many the tenants' keys had seen with its end."""

    def lived_at(self, moment: int) -> bool:
        return self.began <= moment and (self.ended is None or moment <= self.ended)

    def lived_within(self, since: int, until: int) -> bool:
        """At some moment of that time."""
        return self.began <= until and (self.ended is None or since <= self.ended)

    def lived_through(self, since: int, until: int) -> bool:
        """All of that time, certainly."""
        return self.began < since and (self.ended is None or until < self.ended)


class Held(NamedTuple):
    """A tenant's key. `created`: by which of the tenants' changes, counted from 1."""

    value: bytes
    lease: int
    version: int
    created: int


class Outcome(NamedTuple):
    """What came of an operation: the error, or the changes that there had been with it."""

    error: type[errors.KvorumError] | None
    changes: int
    changed: bool
    succeeded: bool
    at: int


Change = dict[bytes, Held | None]
"""What one revision did to tenants' keys, in order; None is a deletion."""


class Ledger:
    """`check` raises what does not hold."""

    def __init__(self, world: World, check: Callable[[bool, str], None]) -> None:
        self.world, self._check = world, check
        self.leases: dict[int, Lease] = {}
        self.lives: dict[int, list[Lease]] = defaultdict(list)
        self.keys: dict[bytes, Held] = {}
        self.changes: list[Change] = []
        self.outcomes: dict[int, Outcome] = {}
        self.slowest = self.fastest = 1.0
        """Seconds that members' clocks count in one."""
        self.index = 0
        self.new_lessor_at = 0
        """When the newest one that counts time was named."""
        self.alarms: set[tuple[int, int]] = set()
        """(type, member) of those that stand."""
        self.closed_until = 0
        """When CORRUPT stood last, which keeps leases from ending."""
        self._alarms: list[tuple[int, frozenset[tuple[int, int]]]] = [(0, frozenset())]
        self._lessor = (0, 0, 0)
        self._remaining: dict[int, int] = {}
        self._origins: dict[int, tuple[int, int]] = {}
        self._states: list[tuple[int, dict[int, int], dict[int, int], tuple[int, int, int]]] = [(0, {}, {}, (0, 0, 0))]

    # ---- the log

    def entry(self, index: int, data: bytes) -> None:
        """The next committed entry."""
        self._check(index == self.index + 1, f"entry {index} follows {self.index}")
        self.index = index
        try:
            origin, incarnation, number, batch = unpack_proposal(data)
        except ValueError:
            return
        if (incarnation, number) <= self._origins.get(origin, (0, 0)):
            return
        self._origins[origin] = (incarnation, number)
        try:
            records = wire.decode(batch)
        except wire.MalformedBatch:
            return
        for record in records:
            if FIRST_ID <= record.id < LAST_ID:
                self._tenants(record)
            elif record.method in (Method.LEASE_LEAD, Method.LEASE_EXPIRE, Method.LEASE_CHECKPOINT):
                self._lessors(record.method, record.payload, (origin, incarnation))
            elif record.method == Method.ALARM and record.kind == wire.Kind.CALL:
                self._alarm(pb.AlarmRequest.FromString(record.payload))
        if self.alarms != self._alarms[-1][1]:
            self._alarms.append((index, frozenset(self.alarms)))
        granted = {id: lease.ttl for id, lease in self.leases.items()}
        state = (granted, self._remaining, self._lessor)
        if state != self._states[-1][1:]:
            self._states.append((index, granted, dict(self._remaining), self._lessor))

    def _tenants(self, record: wire.Record) -> None:
        request = wire.METHODS[Method(record.method)].request.FromString(record.payload)
        before = len(self.changes)
        error: type[errors.KvorumError] | None = None
        succeeded = True
        if (refusal := self._refusal(request)) is not None:
            error = refusal
            self.world.seen["refused by an alarm"] += 1
        elif isinstance(request, pb.TxnRequest):
            succeeded = all(self._holds(compare) for compare in request.compare)
            ops = request.success if succeeded else request.failure
            error = self._do([getattr(op, str(op.WhichOneof("request"))) for op in ops])
        else:
            error = self._do([request])
        self._check(record.id not in self.outcomes, f"operation #{record.id} took effect twice")
        self.outcomes[record.id] = Outcome(
            error, len(self.changes), len(self.changes) > before, succeeded, self.world.now
        )

    def _alarm(self, request: pb.AlarmRequest) -> None:
        alarm = (int(request.alarm), request.memberID)
        if request.action == pb.AlarmRequest.ACTIVATE and request.alarm:
            self.alarms.add(alarm)
            self.world.seen["alarm raised"] += 1
        elif request.action == pb.AlarmRequest.DEACTIVATE:
            if alarm[0] == pb.CORRUPT and alarm in self.alarms:
                self.closed_until = self.world.now
            self.alarms.discard(alarm)

    def _refusal(self, request: object) -> type[errors.KvorumError] | None:
        """What the alarms that stand say to a tenant's write."""
        types = {type for type, _ in self.alarms}
        if pb.CORRUPT in types:
            return errors.Corrupt
        if isinstance(request, pb.TxnRequest):
            grows = any(op.HasField("request_put") for op in (*request.success, *request.failure))
        else:
            grows = isinstance(request, pb.PutRequest | pb.LeaseGrantRequest)
        return errors.NoSpace if grows and pb.NOSPACE in types else None

    def _holds(self, compare: pb.Compare) -> bool:
        held = self.keys.get(compare.key)
        if compare.target == pb.Compare.LEASE:
            return (held.lease if held else 0) == compare.lease
        assert (compare.target, compare.version) == (pb.Compare.VERSION, 0), compare
        return held is None

    def _do(self, requests: Sequence[object]) -> type[errors.KvorumError] | None:
        """All of them at one revision, or none of them."""
        for request in requests:
            if isinstance(request, pb.PutRequest):
                if request.lease and request.lease not in self.leases:
                    return errors.LeaseNotFound
                if request.ignore_lease and request.key not in self.keys:
                    return errors.KeyNotFound
        change: Change = {}
        for request in requests:
            if isinstance(request, pb.PutRequest):
                old = self.keys.get(request.key)
                lease = old.lease if old is not None and request.ignore_lease else request.lease
                version, created = (old.version + 1, old.created) if old else (1, len(self.changes) + 1)
                change[request.key] = Held(request.value, lease, version, created)
            elif isinstance(request, pb.DeleteRangeRequest):
                change.update({key: None for key in sorted(self.keys) if inside(key, request.key, request.range_end)})
            elif isinstance(request, pb.LeaseGrantRequest):
                if request.ID in self.leases:
                    return errors.LeaseExists
                self._remaining.pop(request.ID, None)
                lease_ = self.leases[request.ID] = Lease(request.ID, request.TTL, self.world.now, self.index)
                self.lives[request.ID].append(lease_)
            elif isinstance(request, pb.LeaseRevokeRequest):
                if request.ID not in self.leases:
                    return errors.LeaseNotFound
                self.leases[request.ID].revoked = True
                self._end(request.ID)
            else:
                assert isinstance(request, pb.RangeRequest), request
        self._change(change)
        return None

    def _change(self, change: Change) -> None:
        if change:
            self.changes.append(change)
            for key, held in change.items():
                if held is None:
                    del self.keys[key]
                else:
                    self.keys[key] = held

    def _end(self, id: int) -> None:
        lease = self.leases.pop(id)
        self._remaining.pop(id, None)
        self._change({key: None for key in sorted(self.keys) if self.keys[key].lease == id})
        lease.ended, lease.changes = self.world.now, len(self.changes)

    def _lessors(self, method: int, payload: bytes, who: tuple[int, int]) -> None:
        """Only the newest one's word counts."""
        seen = self.world.seen
        if method == Method.LEASE_LEAD:
            lessor = (pb.LeaseLead.FromString(payload).term, *who)
            if lessor > self._lessor:
                self._lessor, self.new_lessor_at = lessor, self.world.now
                seen["lessor named"] += 1
        elif method == Method.LEASE_EXPIRE:
            request = pb.LeaseExpire.FromString(payload)
            counts = (request.term, *who) == self._lessor
            seen["word of an old lessor"] += not counts
            counts &= not any(type == pb.CORRUPT for type, _ in self.alarms)
            for id in request.IDs if counts else ():
                if self._meant(id, request.applied):
                    self._end(id)
                    seen["lease ran out"] += 1
        else:
            checkpoints = pb.LeaseCheckpoints.FromString(payload)
            counts = (checkpoints.term, *who) == self._lessor
            for each in checkpoints.checkpoints if counts else ():
                if self._meant(each.ID, checkpoints.applied):
                    self._remaining[each.ID] = each.remaining_TTL
                    if not each.remaining_TTL:
                        del self._remaining[each.ID]
                        seen["checkpoint taken back"] += 1

    def _meant(self, id: int, applied: int) -> bool:
        """A lessor's word is about leases that it knew when it had applied so far."""
        lease = self.leases.get(id)
        self.world.seen["word about the life before"] += lease is not None and lease.index > applied
        return lease is not None and lease.index <= applied

    # ---- stores

    def agrees(self, keyspace: Keyspace, member: int) -> None:
        """A store holds the leases that there are at its applied index (L5)."""
        leases, applied = keyspace.leases, keyspace.applied[0]
        alarms = self._alarms[bisect_right(self._alarms, applied, key=lambda state: state[0]) - 1][1]
        self._check(
            keyspace.alarms.raised == alarms,
            f"at entry {applied} member {member} has alarms {keyspace.alarms.raised}, the log says {alarms}",
        )
        at = bisect_right(self._states, applied, key=lambda state: state[0]) - 1
        _, granted, remaining, lessor = self._states[at]
        here = (leases.granted, leases.remaining, tuple(leases.lessor))
        self._check(
            here == (granted, remaining, lessor),
            f"at entry {applied} member {member} holds (leases, left, lessor) {here}, the log says "
            f"{(granted, remaining, lessor)}",
        )

    def agrees_on_keys(self, keyspace: Keyspace, member: int) -> None:
        """And at the newest index, the keys that they hold."""
        if keyspace.applied[0] != self.index:
            return
        for id in self.leases:
            held = sorted(key for key, one in self.keys.items() if one.lease == id)
            there = keyspace.leases.keys(id)
            self._check(there == held, f"member {member} has lease {id} hold {there}, the log says {held}")

    def overdue(self, since: int) -> list[Lease]:
        """The short leases that should have run out by now, if nobody has renewed any after `since` (L2). A lessor
        that was named later may have given all of them their whole time again."""
        if any(type == pb.CORRUPT for type, _ in self.alarms):
            return []
        since = max(since, self.new_lessor_at, self.closed_until)
        return [lease for lease in self.short if self.world.now > since + (lease.ttl * SECOND + LATE) / self.slowest]

    @property
    def short(self) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.ttl <= SHORT]

    # ---- what tenants saw

    def judge(self, history: Sequence[Operation], truth: Mapping[int, Sequence[pb.Event]]) -> list[str]:
        """All that does not fit, as sentences."""
        return _Judge(self, history, truth).judge()


def revisions_of(truth: Mapping[int, Sequence[pb.Event]]) -> list[int]:
    """Those that changed tenants' keys."""
    return [revision for revision in sorted(truth) if any(event.kv.key[:1] == KEYS for event in truth[revision])]


class _Judge:
    def __init__(self, ledger: Ledger, history: Sequence[Operation], truth: Mapping[int, Sequence[pb.Event]]) -> None:
        self.ledger, self.history, self.truth = ledger, history, truth
        self.revisions = revisions_of(truth)
        self.wrong: list[str] = []
        self.promised: dict[Lease, tuple[int, Operation]] = {}

    def judge(self) -> list[str]:
        self._changes()
        for op in self.history:
            if op.answer is not None:
                problem = self._answered(op)
            elif op.refused:
                problem = self._refused(op)
            else:
                continue
            if problem:
                self.wrong.append(f"{problem}: {op}")
        self._promises()
        return self.wrong

    def _changes(self) -> None:
        """The truth of tenants' keys is what the log asked for, change by change."""
        wanted = self.ledger.changes
        if len(self.revisions) != len(wanted):
            self.wrong.append(f"tenants' keys changed in {len(self.revisions)} revisions, by the log in {len(wanted)}")
        for revision, change in zip(self.revisions, wanted, strict=False):
            events = self.truth[revision]
            told = [(event.kv.key, self._held(event, revision)) for event in events]
            if told != list(change.items()):
                self.wrong.append(f"revision {revision} is {told}, the log asked for {list(change.items())}")

    def _held(self, event: pb.Event, revision: int) -> Held | None:
        kv = event.kv
        if event.type == pb.Event.DELETE:
            return None
        at = bisect_right(self.revisions, kv.create_revision)
        created = at if at and self.revisions[at - 1] == kv.create_revision else -1
        return Held(kv.value, kv.lease, kv.version, created)

    def _refused(self, op: Operation) -> str:
        outcome = self.ledger.outcomes.get(op.id)
        if isinstance(op.error, errors.LeaseNotFound | errors.LeaseExists | errors.KeyNotFound | errors.Corrupt):
            if outcome is None:
                return "was refused by what isn't in the log"
            if outcome.error is not type(op.error):
                return f"was refused, by the log it was {outcome}"
        elif outcome is not None and (outcome.error, type(op.error)) != (errors.NoSpace, errors.NoSpace):
            return f"was refused, and is in the log as {outcome}"
        return ""

    def _answered(self, op: Operation) -> str:
        answer = op.answer
        assert answer is not None
        assert op.returned is not None
        if isinstance(answer, pb.LeaseKeepAliveResponse):
            return self._renewed(op, answer)
        if isinstance(answer, pb.LeaseTimeToLiveResponse):
            return self._left(op, answer)
        if isinstance(answer, pb.LeaseLeasesResponse):
            return self._listed(op, {status.ID for status in answer.leases})
        outcome = self.ledger.outcomes.get(op.id)
        if outcome is None or not op.called <= outcome.at <= op.returned:
            return f"was answered, and in the log it is {outcome}"
        if outcome.error is not None or getattr(answer, "succeeded", True) != outcome.succeeded:
            return f"was answered otherwise than by the log, {outcome}"
        low = self._revision_after(outcome.changes)
        high = low if outcome.changed else self._revision_after(outcome.changes + 1) - 1
        if not low <= answer.header.revision <= high:
            return f"was answered at another revision than [{low}, {high}], where the log has it"
        if isinstance(answer, pb.LeaseGrantResponse):
            assert isinstance(op.request, pb.LeaseGrantRequest)
            id, ttl = answer.ID, answer.TTL
            if ttl != max(op.request.TTL, SECONDS_MIN) or op.request.ID not in (0, id):
                return "was granted something else"
            self._promise(id, ttl, op)
        return ""

    def _revision_after(self, changes: int) -> int:
        if changes > len(self.revisions):
            return max(self.truth, default=1) + 1
        return self.revisions[changes - 1] if changes else 1

    # ---- time

    def _lives(self, id: int, op: Operation) -> list[Lease]:
        """Those that an answer may speak of."""
        assert op.returned is not None
        return [one for one in self.ledger.lives[id] if one.lived_within(int(op.called), int(op.returned))]

    def _promise(self, id: int, ttl: int, op: Operation) -> None:
        lives = self._lives(id, op)
        if len(lives) == 1:  # else it isn't known of which of them it speaks
            until = int(op.called) + int(ttl * SECOND / self.ledger.fastest)
            if until > self.promised.get(lives[0], (0, op))[0]:
                self.promised[lives[0]] = (until, op)

    def _promises(self) -> None:
        for lease, (until, op) in self.promised.items():
            if lease.ended is not None and not lease.revoked and lease.ended < until:
                self.wrong.append(f"{lease} ran out too early, it was to live until {until} by {op}")

    def _unknown(self, id: int, op: Operation) -> str:
        """It was said that there is no such lease: so it had ended, and who says so has seen its keys go."""
        assert op.returned is not None
        assert op.answer is not None
        called, returned = int(op.called), int(op.returned)
        for one in self.ledger.lives[id]:
            if one.lived_through(called, returned):
                return f"is told that there is no such lease, and there is {one}"
            known = one.ended is not None and (one.ended < called or (one.began < called and one.ended <= returned))
            if known and op.answer.header.revision < self._revision_after(one.changes):
                return f"is told of the end of {one} by a member that has not seen it"
        return ""

    def _renewed(self, op: Operation, answer: pb.LeaseKeepAliveResponse) -> str:
        if answer.TTL <= 0:
            return self._unknown(answer.ID, op)
        lives = self._lives(answer.ID, op)
        if not lives:
            return "was renewed when there was no such lease"
        if answer.TTL not in {one.ttl for one in lives}:
            return f"was renewed for another time than granted, {lives}"
        self._promise(answer.ID, answer.TTL, op)
        return ""

    def _left(self, op: Operation, answer: pb.LeaseTimeToLiveResponse) -> str:
        assert isinstance(op.request, pb.LeaseTimeToLiveRequest)
        assert op.returned is not None
        if answer.TTL < 0:
            return self._unknown(answer.ID, op) if answer.TTL == -1 and not answer.keys else "makes no sense"
        lives = self._lives(answer.ID, op)
        if answer.grantedTTL not in {one.ttl for one in lives}:
            return f"speaks of no lease that there was: {lives}"
        left = answer.TTL
        if left > answer.grantedTTL:
            return "has more left than was granted"
        if len(lives) == 1 and lives[0] in self.promised:
            until, before = self.promised[lives[0]]
            if before.returned is not None and before.returned < op.called:
                least = (until - int(op.returned)) * self.ledger.fastest // SECOND
                if left < least:
                    return f"has less left than {least:g} s, as promised by {before}"
        held = self._keys_at(answer.header.revision, answer.ID) if op.request.keys else []
        return "" if list(answer.keys) == held else f"should hold {held}"

    def _keys_at(self, revision: int, id: int) -> list[bytes]:
        """What a lease held at a revision, by the truth."""
        holder: dict[bytes, int] = {}
        for each in self.revisions[: bisect_right(self.revisions, revision)]:
            for event in self.truth[each]:
                holder[event.kv.key] = event.kv.lease
        return sorted(key for key, lease in holder.items() if lease == id)

    def _listed(self, op: Operation, ids: set[int]) -> str:
        assert op.returned is not None
        for id, lives in self.ledger.lives.items():
            if id not in ids and any(one.lived_through(int(op.called), int(op.returned)) for one in lives):
                return f"does not list lease {id}"
        for id in ids:
            if not any(one.lived_within(int(op.called), int(op.returned)) for one in self.ledger.lives[id]):
                return f"lists lease {id}, which there was not"
        return ""
