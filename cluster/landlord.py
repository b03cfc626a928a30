"""The apply process's dealings with leases: what clients ask, who counts, and what the count leads to.

    status: we lead ──▶ LeaseLead ──applied──▶ lessor counts ──tick──▶ LeaseExpire, LeaseCheckpoints ──▶ log
    clients' keep-alives and TimeToLives ──▶ LeaseCalls ──▶ confirmed here, or asked of the leader's apply process

Grants and revokes are writes like any other; all that is special about a grant is that its id and its TTL are settled
before it is proposed, since afterwards nothing may depend on who looks at it.

The bookkeeping is cluster/lessor.py and cluster/leasecalls.py, which say why it is right; this room ties them to the
process: its clock, its conversation with raft, its answers.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import NamedTuple, Protocol

from google.protobuf.message import Message as Protobuf

from cluster.callers import Caller, Confirmation
from cluster.internal import Answer, Ask, Message, Status
from cluster.leasecalls import KEEP_ALIVE, TIME_LEFT, Call, LeaseCalls, Remote, Told
from cluster.lessor import Lessor
from cluster.metrics import ApplyBoard
from cluster.requests import parsed
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage import codec, leases
from storage.keyspace import Keyspace, Result, Scan

PATIENCE_SECONDS = 10.0
"""After that long, what was decided and not done is decided again. A proposal is repeated by itself much sooner."""


_WHOSE = struct.Struct("<q")


class Host(Protocol):
    """The apply process, as far as it is of interest here."""

    keyspace: Keyspace
    board: ApplyBoard
    status: Status
    ticks: int

    @property
    def member_id(self) -> int: ...
    @property
    def election_ticks(self) -> int: ...

    def to_raft(self, message: Message) -> None: ...
    def propose(self, method: int, request: Protobuf, *, once: bool = False) -> int:
        """An entry that no client waits for. Returns its number; one proposed `once` is dead when a higher one of this
        process has been applied without it."""
        ...

    def confirm(self, caller: Caller) -> None:
        """Ask for a read index; `confirmed` or `unconfirmed` is called with `caller` when the answer is known."""
        ...

    def read(self, caller: Caller, payload: bytes) -> None:
        """Answer from the store, when there is room for the answer: `with_keys` is called with `payload`."""
        ...

    def header_now(self, revision: int) -> bytes:
        """Field 1 of an answer."""
        ...

    def answer(self, caller: Caller, status: int, payload: bytes) -> None: ...
    def fail(self, caller: Caller, error: errors.KvorumError) -> None: ...


class _Confirming(NamedTuple):
    calls: list[Call]
    remotes: list[Remote]


class Landlord:
    """Args:
    epoch: this process's incarnation.
    seconds_min: the least TTL; a shorter one is raised to it (etcd: one and a half election timeouts).
    clock: monotonic seconds.
    rng: draws the ids that clients leave to us.
    """

    def __init__(
        self, host: Host, *, epoch: int, seconds_min: int, clock: Callable[[], float], rng: random.Random
    ) -> None:
        self._host, self._epoch, self._seconds_min, self._clock, self._rng = host, epoch, seconds_min, clock, rng
        self._leases = host.keyspace.leases
        self._lessor = Lessor(self._leases, patience=PATIENCE_SECONDS)
        self.calls = LeaseCalls(self._lessor, self._ask, self._answer, self._reset, first=epoch << 32)
        self._confirming: dict[int, _Confirming] = {}
        self._confirmations = 0
        self._asked_to_lead = (0, 0)  # term, tick
        self._resetting: dict[int, float] = {}  # since when, by id
        self._held_up = False  # an alarm kept leases from ending, perhaps some whose end was decided
        self._under_way: dict[int, list[int]] = {}  # the leases to be ended or reset, by the entry's number

    # ---- the turn

    def turn(self) -> None:
        self._see_who_leads()
        host = self._host
        if self._lessor.leading:
            taken = self.calls.take()
            if taken is not None:
                self._confirmations += 1
                self._confirming[self._confirmations] = _Confirming(*taken)
                host.confirm(Confirmation(b"", self._confirmations, Method.LEASE_KEEP_ALIVE))
            if self._lessor.busy(self._clock()):
                self._expire()
        elif host.status.leader and host.status.leader != host.member_id:
            self.calls.send(host.ticks)
        self._tell(self.calls.ripe(host.keyspace.applied[0]))

    @property
    def busy(self) -> bool:
        """There is more to do than waits for a message or a tick."""
        return self._lessor.busy(self._clock()) and not self._host.keyspace.alarms.corrupt

    @property
    def rests(self) -> bool:
        """It will be busy again in a moment, and nothing will tell when."""
        return self._lessor.rests(self._clock()) and not self._host.keyspace.alarms.corrupt

    def tick(self, limit: int) -> None:
        """`limit`: the calls that arrived at or before that tick have waited long enough."""
        host = self._host
        self.calls.tick(host.ticks - host.election_ticks)
        for call in self.calls.expire(limit):
            host.fail(call.caller, errors.TimedOut() if host.status.leader else errors.NoLeader())
        self._expire()
        now = self._clock()
        checkpoints = self._lessor.checkpoints(now)
        if checkpoints or self._lessor.waits_to_hear(now):  # then an empty one, behind those that may have been lost
            number = self._checkpoint(checkpoints, once=True)
            self._lessor.noted(number, [id for id, _ in checkpoints], now)

    def _see_who_leads(self) -> None:
        host, now = self._host, self._clock()
        if host.status.leader != host.member_id:
            if self._lessor.leading:
                self._lessor.stop()
            return
        term = host.status.term
        if self._leases.lessor == leases.Lessor(term, host.member_id, self._epoch):
            if not self._lessor.leading:
                self._resetting.clear()
                self._lessor.lead(now)
            return
        if self._lessor.leading:
            self._lessor.stop()
        asked_term, asked_at = self._asked_to_lead
        if asked_term != term or host.ticks - asked_at > host.election_ticks:
            self._asked_to_lead = (term, host.ticks)
            host.propose(Method.LEASE_LEAD, pb.LeaseLead(term=term))

    def changed(self, changes: leases.Changes, number: int, seconds: float) -> None:
        """A turn has been committed, which took so long; `number` is that of the last entry of this process in it, 0 if
        there is none."""
        now = self._clock()
        self._lessor.changed(changes, now)
        self._lessor.heard(number)
        while self._under_way and next(iter(self._under_way)) <= number:
            del self._under_way[next(iter(self._under_way))]
        for id in changes.remaining:
            self._resetting.pop(id, None)
        if changes.granted:
            board, ended = self._host.board, sum(ttl is None for ttl in changes.granted.values())
            if ended:
                self._lessor.worked(seconds, now)
            board.leases_revoked.add(ended)
            board.leases_granted.add(len(changes.granted) - ended)

    def _expire(self) -> None:
        if self._host.keyspace.alarms.corrupt:  # the log would refuse it, again and again
            self._held_up = True
            return
        if self._held_up:
            self._held_up = False
            self._lessor.undecided()
        ended = self._lessor.advance(self._clock())
        if ended:
            host = self._host
            expire = pb.LeaseExpire(term=host.status.term, IDs=ended, applied=host.keyspace.applied[0])
            self._under_way[host.propose(Method.LEASE_EXPIRE, expire)] = ended

    def refused(self, number: int) -> None:
        """The entry of that number is surely not in the log, for want of room: what it was for is to be done again."""
        ids = self._under_way.pop(number, [])
        self._lessor.undecided(ids)
        for id in ids:
            self._resetting.pop(id, None)

    def _checkpoint(self, checkpoints: list[tuple[int, int]], *, once: bool = False) -> int:
        of_each = [pb.LeaseCheckpoint(ID=id, remaining_TTL=left) for id, left in checkpoints]
        host = self._host
        request = pb.LeaseCheckpoints(term=host.status.term, checkpoints=of_each, applied=host.keyspace.applied[0])
        return host.propose(Method.LEASE_CHECKPOINT, request, once=once)

    def _reset(self, ids: list[int]) -> None:
        """Take checkpoints back; again after a while, if it was not done."""
        now = self._clock()
        long_ago = now - PATIENCE_SECONDS
        fresh = [id for id in dict.fromkeys(ids) if self._resetting.get(id, long_ago) <= long_ago]
        if fresh:
            self._resetting.update(dict.fromkeys(fresh, now))
            self._under_way[self._checkpoint([(id, 0) for id in fresh])] = fresh

    # ---- calls

    def settled(self, payload: bytes) -> bytes:
        """A LeaseGrantRequest with the id and the TTL that every member will see."""
        request = parsed(pb.LeaseGrantRequest, payload)
        if request.ID and self._seconds_min <= request.TTL:
            return payload
        request.TTL = max(request.TTL, self._seconds_min)
        while not request.ID:
            id = self._rng.getrandbits(63)
            request.ID = 0 if id in self._leases.granted else id
        settled: bytes = request.SerializeToString()
        return settled

    def keep_alive(self, caller: Caller, payload: bytes) -> None:
        lease = codec.only_number(payload)
        if lease:
            self._take(Call(caller, KEEP_ALIVE, lease, False, self._host.ticks, b"\x10" + payload[1:]))
        else:
            lease = parsed(pb.LeaseKeepAliveRequest, payload).ID
            self._take(Call(caller, KEEP_ALIVE, lease, False, self._host.ticks))

    def time_to_live(self, caller: Caller, payload: bytes) -> None:
        request = parsed(pb.LeaseTimeToLiveRequest, payload)
        self._take(Call(caller, TIME_LEFT, request.ID, request.keys, self._host.ticks))

    def _take(self, call: Call) -> None:
        if not self.calls.add(call):
            raise errors.TooManyRequests

    def confirmed(self, caller: Confirmation) -> None:
        """This member led after the calls had arrived, and has applied all that was committed then."""
        confirming = self._confirming.pop(caller.id)
        self._see_who_leads()
        if not self._lessor.leading:
            self.calls.put_back(confirming.calls)
            return
        applied = self._host.keyspace.applied[0]
        self._tell(self.calls.confirmed(confirming.calls, confirming.remotes, self._clock(), applied))

    def unconfirmed(self, caller: Confirmation) -> None:
        """Nobody confirmed that in time. Whoever has waited long enough is told by `tick`."""
        self.calls.put_back(self._confirming.pop(caller.id).calls)

    def _tell(self, all_told: list[Told]) -> None:
        if not all_told:
            return
        host, renewed = self._host, 0
        header = host.header_now(host.keyspace.revision)
        for call, left, granted in all_told:
            body = (call.id or codec.int_field(b"\x10", call.lease)) + codec.int_field(b"\x18", left)
            if call.what == KEEP_ALIVE:
                renewed += left > 0
            else:
                body += codec.int_field(b"\x20", granted)
                if call.keys and left >= 0:
                    host.read(call.caller, _WHOSE.pack(call.lease) + body)
                    continue
            host.answer(call.caller, 0, header + body)
        if renewed:
            host.board.leases_renewed.add(renewed)

    def with_keys(self, payload: bytes) -> Result | Scan:
        """What the lessor said, as `_tell` has put it down, and the keys that the lease has now."""
        (lease,) = _WHOSE.unpack_from(payload)
        return self._host.keyspace.sliced(self._leases.attached(lease, payload[_WHOSE.size :]))

    # ---- the other members

    def _ask(self, number: int, body: bytes) -> None:
        self._host.to_raft(Ask(self._host.status.session, number, body))

    def _answer(self, member: int, number: int, body: bytes) -> None:
        self._host.to_raft(Answer(self._host.status.session, member, number, body))
