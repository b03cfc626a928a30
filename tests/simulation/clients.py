"""Clients: they ask, wait, give up, reconnect, and write down what they were told.

A client speaks real batches of real records to one member at a time and has one batch under way. What is not answered
in its time, or was on a connection that broke, stays "maybe" for ever; the client goes on under a new name, so that a
late answer reaches nobody. Several clients at several members make the concurrency.

Keys come in groups ("g1/a"), and transactions mostly stay within a group: so the search of linearizability.py has
small parts to judge, and the replay has all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind, Method
from tests.checkers.history import Operation, Request, brief, pairs_seen
from tests.simulation.world import MILLISECOND, SECOND, World

METHOD_OF = {
    pb.PutRequest: Method.PUT,
    pb.RangeRequest: Method.RANGE,
    pb.DeleteRangeRequest: Method.DELETE_RANGE,
    pb.TxnRequest: Method.TXN,
    pb.CompactionRequest: Method.COMPACT,
    pb.LeaseGrantRequest: Method.LEASE_GRANT,
    pb.LeaseRevokeRequest: Method.LEASE_REVOKE,
    pb.LeaseKeepAliveRequest: Method.LEASE_KEEP_ALIVE,
    pb.LeaseTimeToLiveRequest: Method.LEASE_TIME_TO_LIVE,
    pb.LeaseLeasesRequest: Method.LEASE_LEASES,
}


@dataclass(slots=True)
class Habits:
    """What this run's clients like to do."""

    clients: int = 5
    groups: int = 4
    keys: int = 3
    batch_max: int = 3
    think_max: int = 400 * MILLISECOND
    patience_max: int = 8 * SECOND
    roam: float = 0.3
    wander: float = 0.0
    """How often a transaction leaves its group."""
    shared: float = 0.4
    """How often a tenant has an id granted that all of them use."""
    weights: dict[str, int] = field(
        default_factory=lambda: {
            "put": 6,
            "get": 6,
            "group": 3,
            "delete": 2,
            "swap": 5,
            "create": 2,
            "both": 3,
            "peek": 3,
            "past": 2,
            "nested": 1,
            "compact": 1,
            "noise": 1,
        }
    )


class Hub:
    """The connections between clients and members: in order, a little late, broken when the member's process dies."""

    def __init__(self, world: World, send: Callable[[int, bytes, bytes], bool]) -> None:
        self.world, self._send = world, send
        self.clients: dict[bytes, Client] = {}
        self.cut: set[int] = set()
        """Members that clients cannot reach now, without anybody noticing."""
        self._last: dict[bytes, int] = {}

    def to_member(self, member: int, name: bytes, frame: bytes) -> bool:
        """False: there is nobody to connect to."""
        if member in self.cut:
            return True
        return self._send(member, name, frame)

    def to_client(self, member: int, name: bytes, frame: bytes) -> None:
        if name not in self.clients or member in self.cut:
            return
        world = self.world
        self._last[name] = max(self._last.get(name, 0), world.now + world.between(50, 2 * MILLISECOND))
        world.after(self._last[name] - world.now, lambda: self._arrive(name, frame))

    def _arrive(self, name: bytes, frame: bytes) -> None:
        client = self.clients.get(name)
        if client is not None:
            client.told(frame)

    def broken(self, member: int) -> None:
        """The member's process has died; most clients notice soon, some never do."""
        for name, client in list(self.clients.items()):
            if client.member == member and self.world.happens(0.8):
                self.world.after(self.world.between(50, 5 * MILLISECOND), lambda n=name, c=client: self._noticed(n, c))

    def _noticed(self, name: bytes, client: Client) -> None:
        if self.clients.get(name) is client:
            client.lost()


class Client:
    """One client. `history` is shared: operations in the order of their calls, numbered from `first_id`, which is also
    the id of the record that goes out (0 is how a member answers what is no batch at all)."""

    kind = b"client"
    first_id = 1

    def __init__(self, world: World, hub: Hub, habits: Habits, id: int, members: list[int], history: list[Operation]):
        self.world, self.hub, self.habits, self.id, self.members, self.history = (
            world,
            hub,
            habits,
            id,
            members,
            history,
        )
        self.member = members[id % len(members)]
        self.stopped = False
        self._connections = 0
        self._name = b""
        self._waiting: dict[int, Operation] = {}
        self._round = 0
        self._seen: dict[bytes, pb.KeyValue] = {}
        self._revision = 1
        self._values = 0
        self._wanted = list(habits.weights)
        self._weights = list(habits.weights.values())
        self._reconnect()

    def start(self) -> None:
        self.world.after(self.world.between(0, self.habits.think_max), self._ask)

    def _reconnect(self) -> None:
        self.hub.clients.pop(self._name, None)
        self._connections += 1
        self._name = b"%s %d/%d" % (self.kind, self.id, self._connections)
        self.hub.clients[self._name] = self
        if self.world.happens(self.habits.roam):
            self.member = self.world.rng.choice(self.members)

    def _ask(self) -> None:
        if self.stopped:
            return
        rng, frame = self.world.rng, []
        if self.world.happens(0.1):
            self._reconnect()
        if self.world.happens(0.01):
            self.hub.to_member(self.member, self._name, rng.randbytes(rng.randrange(1, 40)))
        for _ in range(rng.randint(1, self.habits.batch_max)):
            kind = rng.choices(self._wanted, self._weights)[0]
            if kind == "noise":
                frame.append(self._noise())
                continue
            request = self._request(kind)
            op = Operation(len(self.history) + self.first_id, self.id, self.member, self.world.now, request)
            self.history.append(op)
            self._waiting[op.id] = op
            frame.append(wire.encode(METHOD_OF[type(request)], Kind.CALL, 0, op.id, request.SerializeToString()))
            self.world.tell(
                lambda op=op: f"{self.kind.decode()} {op.client} to {op.member} #{op.id} {brief(op.request)}"
            )
        self._round += 1
        batch, name, member, number = b"".join(frame), self._name, self.member, self._round
        delay = self.world.between(50, MILLISECOND)
        self.world.after(delay, lambda: self._leave(member, name, batch, number))
        patience = self.world.between(self.habits.patience_max // 20, self.habits.patience_max)
        self.world.after(patience, lambda: self._give_up(number))

    def _leave(self, member: int, name: bytes, batch: bytes, number: int) -> None:
        if number == self._round and not self.hub.to_member(member, name, batch):
            for op in self._waiting.values():
                op.returned, op.error = self.world.now, errors.Unreachable()
            self._waiting.clear()
            self.member = self.world.rng.choice(self.members)
            self._next()

    def told(self, frame: bytes) -> None:
        """Answers have arrived."""
        for record in wire.decode(frame):
            op = self._waiting.pop(record.id, None)
            if op is None:
                continue
            op.returned = self.world.now
            assert record.kind == Kind.REPLY, record
            if record.status:
                op.error = errors.from_wire(record.status, record.payload.decode())
            else:
                op.answer = wire.METHODS[Method(record.method)].response.FromString(record.payload)  # type: ignore[assignment]
                assert op.answer is not None
                self._revision = max(self._revision, op.answer.header.revision)
                for kv in pairs_seen(op.answer):
                    self._seen[kv.key] = kv
                self._heard(op)
            self.world.tell(lambda op=op: f"{self.kind.decode()} {op.client} is told {op}")
        if not self._waiting:
            self._next()

    def _heard(self, op: Operation) -> None:
        """An operation was answered."""

    def lost(self) -> None:
        """The connection broke: nothing that is under way will be answered."""
        for op in self._waiting.values():
            op.returned, op.error = self.world.now, errors.ConnectionLost()
        self._reconnect()
        if self._waiting:
            self._waiting.clear()
            self._next()

    def _give_up(self, number: int) -> None:
        if number == self._round and self._waiting:
            self._waiting.clear()
            self._reconnect()
            self._next()

    def _next(self) -> None:
        self._round += 1
        self.world.after(self.world.between(1, self.habits.think_max), self._ask)

    # ---- what to ask

    def _key(self, group: int) -> bytes:
        return b"g%d/%c" % (group, ord("a") + self.world.rng.randrange(self.habits.keys))

    def _value(self) -> bytes:
        """No two are alike."""
        self._values += 1
        return b"%d.%d" % (self.id, self._values)

    def _request(self, kind: str) -> Request:
        rng = self.world.rng
        group = rng.randrange(self.habits.groups)
        key = self._key(group)
        prefix, end = b"g%d/" % group, b"g%d0" % group
        chance = rng.random()
        if kind == "put":
            return pb.PutRequest(key=key, value=self._value(), prev_kv=chance < 0.5)
        if kind == "get":
            return pb.RangeRequest(key=key, keys_only=chance < 0.1)
        if kind == "group":
            return pb.RangeRequest(key=prefix, range_end=end, limit=rng.choice((0, 0, 1, 2)), count_only=chance < 0.1)
        if kind == "peek":
            return pb.RangeRequest(key=prefix, range_end=end, serializable=True)
        if kind == "past":
            revision = max(1, self._revision - rng.randrange(20))
            return pb.RangeRequest(key=prefix, range_end=end, revision=revision, serializable=chance < 0.5)
        if kind == "delete":
            if chance < 0.3:
                return pb.DeleteRangeRequest(key=prefix, range_end=end, prev_kv=True)
            return pb.DeleteRangeRequest(key=key, prev_kv=chance < 0.6)
        if kind == "compact":
            return pb.CompactionRequest(revision=max(1, self._revision - rng.randrange(30)), physical=chance < 0.2)
        return self._txn(kind, group, key)

    def _txn(self, kind: str, group: int, key: bytes) -> pb.TxnRequest:
        rng = self.world.rng
        look = pb.RequestOp(request_range=pb.RangeRequest(key=key))
        put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=self._value(), prev_kv=rng.random() < 0.3))
        if kind == "create":
            absent = pb.Compare(key=key, target=pb.Compare.CREATE, create_revision=0)
            return pb.TxnRequest(compare=[absent], success=[put], failure=[look])
        seen = self._seen.get(key)
        if kind == "swap":
            if seen is not None and rng.random() < 0.5:
                compare = pb.Compare(key=key, target=pb.Compare.VALUE, value=seen.value)
            else:
                compare = pb.Compare(key=key, target=pb.Compare.MOD, mod_revision=seen.mod_revision if seen else 0)
            return pb.TxnRequest(compare=[compare], success=[put, look], failure=[look])
        elsewhere = rng.randrange(self.habits.groups) if self.world.happens(self.habits.wander) else group
        other = self._key(elsewhere)
        if kind == "nested":
            absent = pb.Compare(key=other, target=pb.Compare.VERSION, version=0)
            inner = pb.TxnRequest(compare=[absent], success=[look], failure=[look, look])
            return pb.TxnRequest(success=[put, pb.RequestOp(request_txn=inner)])
        ops = [put]
        if other != key:
            if rng.random() < 0.3:
                ops.append(pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=other)))
            else:
                ops.append(pb.RequestOp(request_put=pb.PutRequest(key=other, value=self._value())))
        ops.append(pb.RequestOp(request_range=pb.RangeRequest(key=b"g%d/" % group, range_end=b"g%d0" % group)))
        return pb.TxnRequest(success=ops)

    def _noise(self) -> bytes:
        """What a server must refuse or answer without anybody else noticing."""
        rng = self.world.rng
        id = (1 << 60) + rng.randrange(1 << 20)  # nobody waits for it
        choice = rng.randrange(6)
        if choice == 0:
            return wire.encode(Method.PUT, Kind.CALL, 0, id, pb.PutRequest(value=b"no key").SerializeToString())
        if choice == 1:
            return wire.encode(Method.TXN, Kind.CALL, 0, id, rng.randbytes(12))
        if choice == 2:
            return wire.encode(99, Kind.CALL, 0, id, b"")
        if choice == 3:
            target = pb.MoveLeaderRequest(targetID=rng.choice(self.members))
            return wire.encode(Method.MOVE_LEADER, Kind.CALL, 0, id, target.SerializeToString())
        if choice == 4:
            listing = pb.MemberListRequest(linearizable=rng.random() < 0.5)
            return wire.encode(Method.MEMBER_LIST, Kind.CALL, 0, id, listing.SerializeToString())
        return wire.encode(Method.STATUS, Kind.REPLY, 0, id, b"")
