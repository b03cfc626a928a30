"""Locks and elections of etcd's API, asked of the gateway and of a real etcd in the same words (grpcio, our messages).

api.md 12. Every test runs against both and says what either must answer; what kvorum does better than etcd is in
tests/unit/test_recipes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from kvorum import etcd_pb2 as pb
from kvorum import wire
from tests.etcds import etcd
from tests.system.cluster import Cluster, eventually

SECONDS = 60.0
RESPONSES = {
    "/v3lockpb.Lock/Lock": pb.LockResponse,
    "/v3lockpb.Lock/Unlock": pb.UnlockResponse,
    "/v3electionpb.Election/Campaign": pb.CampaignResponse,
    "/v3electionpb.Election/Proclaim": pb.ProclaimResponse,
    "/v3electionpb.Election/Leader": pb.LeaderResponse,
    "/v3electionpb.Election/Observe": pb.LeaderResponse,
    "/v3electionpb.Election/Resign": pb.ResignResponse,
}
RESPONSES |= {shape.path: shape.response for shape in wire.METHODS.values()}
UNKNOWN = grpc.StatusCode.UNKNOWN


class Client:
    """One connection of etcd's API."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)

    def begin(self, service: str, method: str, request: Message, seconds: float = SECONDS) -> Any:
        path = f"/{service}/{method}"
        call = self.channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=RESPONSES[path].FromString
        )
        return call.future(request, timeout=seconds)

    def lock(self, name: bytes, lease: int = 0, seconds: float = SECONDS) -> Any:
        return self.begin("v3lockpb.Lock", "Lock", pb.LockRequest(name=name, lease=lease), seconds)

    def unlock(self, key: bytes) -> Any:
        return self.begin("v3lockpb.Lock", "Unlock", pb.UnlockRequest(key=key))

    def campaign(self, name: bytes, lease: int, value: bytes) -> Any:
        return self._election("Campaign", pb.CampaignRequest(name=name, lease=lease, value=value))

    def proclaim(self, value: bytes, **leader: Any) -> Any:
        request = pb.ProclaimRequest(value=value)
        if leader:
            request.leader.CopyFrom(pb.LeaderKey(**leader))
        return self._election("Proclaim", request)

    def resign(self, **leader: Any) -> Any:
        return self._election(
            "Resign", pb.ResignRequest(leader=pb.LeaderKey(**leader)) if leader else pb.ResignRequest()
        )

    def leader(self, name: bytes) -> Any:
        return self._election("Leader", pb.LeaderRequest(name=name))

    def _election(self, method: str, request: Message) -> Any:
        return self.begin("v3electionpb.Election", method, request)

    def observe(self, name: bytes) -> Any:
        call = self.channel.unary_stream(
            "/v3electionpb.Election/Observe",
            request_serializer=pb.LeaderRequest.SerializeToString,
            response_deserializer=pb.LeaderResponse.FromString,
        )
        return call(pb.LeaderRequest(name=name), timeout=SECONDS)

    def get(self, key: bytes) -> list[Any]:
        request = pb.RangeRequest(key=key, range_end=key[:-1] + bytes([key[-1] + 1]))
        return list(self.begin("etcdserverpb.KV", "Range", request).result().kvs)

    def put(self, key: bytes, value: bytes) -> int:
        return int(self.begin("etcdserverpb.KV", "Put", pb.PutRequest(key=key, value=value)).result().header.revision)

    def delete(self, key: bytes) -> None:
        self.begin("etcdserverpb.KV", "DeleteRange", pb.DeleteRangeRequest(key=key)).result()

    def grant(self, id: int) -> int:
        self.begin("etcdserverpb.Lease", "LeaseGrant", pb.LeaseGrantRequest(TTL=600, ID=id)).result()
        return id

    def revoke(self, id: int) -> None:
        self.begin("etcdserverpb.Lease", "LeaseRevoke", pb.LeaseRevokeRequest(ID=id)).result()

    def leases(self) -> set[int]:
        found = self.begin("etcdserverpb.Lease", "LeaseLeases", pb.LeaseLeasesRequest()).result()
        return {lease.ID for lease in found.leases}


def refusal(call: Any) -> tuple[Any, str]:
    error = call.exception()
    assert error is not None, call.result()
    return error.code(), error.details()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("locks"), nodes=3, shared=True) as cluster:
        yield cluster


def address(cluster: Cluster, node: int) -> str:
    return f"127.0.0.1:{cluster.places[node].port}"


@pytest.fixture(scope="module")
def kvorum_addresses(cluster: Cluster) -> tuple[str, str]:
    return address(cluster, 0), address(cluster, 1)


@pytest.fixture(scope="module")
def etcd_addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running.endpoints[0], running.endpoints[0]


@pytest.fixture(params=["kvorum", "etcd"])
def clients(request: pytest.FixtureRequest) -> Iterator[tuple[Client, Client]]:
    """Two connections, to different nodes where there is more than one."""
    both = [Client(address) for address in request.getfixturevalue(f"{request.param}_addresses")]
    for client in both:
        grpc.channel_ready_future(client.channel).result(SECONDS)
    yield both[0], both[1]
    for client in both:
        client.channel.close()


@pytest.fixture
def three(cluster: Cluster) -> Iterator[list[Client]]:
    """A connection to each node of kvorum."""
    clients = [Client(address(cluster, node)) for node in range(3)]
    for client in clients:
        grpc.channel_ready_future(client.channel).result(SECONDS)
    yield clients
    for client in clients:
        client.channel.close()


def waits(client: Client, prefix: bytes, count: int) -> None:
    """Until so many keys stand in the queue."""
    eventually(lambda: len(client.get(prefix)) == count, what=f"{count} in the queue of {prefix!r}")


def test_a_lock_goes_from_one_to_the_next(clients: tuple[Client, Client]) -> None:
    one, two = clients
    a, b = one.grant(0xA1), one.grant(0xB1)
    held = one.lock(b"pass", a).result()
    assert held.key == b"pass/a1"
    (kv,) = one.get(b"pass/")
    assert (kv.key, kv.value, kv.lease, kv.create_revision) == (held.key, b"", a, held.header.revision)
    assert held.header.cluster_id
    assert held.header.raft_term
    waiting = two.lock(b"pass", b)
    waits(one, b"pass/", 2)
    assert not waiting.done()
    assert one.lock(b"pass", a).result().key == held.key  # whoever has it may ask again
    freed = one.unlock(held.key).result().header.revision
    got = waiting.result()
    assert got.key == b"pass/b1"
    assert got.header.revision >= freed
    assert [kv.key for kv in one.get(b"pass/")] == [got.key]
    assert one.unlock(b"pass/nobody's").result().header.revision == freed
    two.unlock(got.key).result()
    one.revoke(a)
    one.revoke(b)


def test_three_take_turns_in_the_order_they_came(clients: tuple[Client, Client]) -> None:
    one, two = clients
    leases = [one.grant(id) for id in (0xF2, 0x12, 0x82)]
    calls = []
    for place, lease in enumerate(leases):
        calls.append((one, two)[place % 2].lock(b"turns", lease))
        waits(one, b"turns/", place + 1)
    for place, call in enumerate(calls):
        assert call.result().key == b"turns/%x" % leases[place]
        assert not any(later.done() for later in calls[place + 1 :])
        one.revoke(leases[place])  # a lease that ends lets go of the lock


def test_a_lock_without_a_lease_gets_one_that_nobody_keeps(clients: tuple[Client, Client]) -> None:
    one, _ = clients
    before = one.leases()
    key = one.lock(b"orphan").result().key
    (new,) = one.leases() - before
    assert key == b"orphan/%x" % new
    request = pb.LeaseTimeToLiveRequest(ID=new)
    told = one.begin("etcdserverpb.Lease", "LeaseTimeToLive", request).result()
    assert told.grantedTTL == 60
    one.revoke(new)
    assert one.get(b"orphan/") == []


@pytest.mark.parametrize("how", ["cancelled", "late", "disconnected"])
def test_whoever_stops_waiting_leaves_the_queue(clients: tuple[Client, Client], how: str) -> None:
    one, two = clients
    a, b = one.grant(0xA3), one.grant(0xB3)
    name = b"cancel " + how.encode()
    held = one.lock(name, a).result()
    waiting = two.lock(name, b, 8.0 if how == "late" else SECONDS)
    waits(one, name + b"/", 2)  # a deadline before that may leave the key behind, here as in etcd
    if how == "cancelled":
        waiting.cancel()
    elif how == "disconnected":
        two.channel.close()
    else:
        # etcd's server may see the deadline before its client does, and says so as Unknown.
        assert refusal(waiting)[0] in (grpc.StatusCode.DEADLINE_EXCEEDED, UNKNOWN)
    waits(one, name + b"/", 1)
    assert [kv.key for kv in one.get(name + b"/")] == [held.key]
    assert {a, b} <= one.leases()
    one.revoke(a)
    one.revoke(b)


def test_a_session_that_ends_while_it_waits_is_told(clients: tuple[Client, Client]) -> None:
    one, two = clients
    a, b = one.grant(0xA4), one.grant(0xB4)
    held = one.lock(b"expires", a).result()
    waiting = two.lock(b"expires", b)
    waits(one, b"expires/", 2)
    one.revoke(b)
    one.unlock(held.key).result()
    assert refusal(waiting) == (UNKNOWN, "mutex: session is expired")
    one.revoke(a)


REFUSED: dict[str, tuple[Callable[[Client], Any], str]] = {
    "a lock with a lease that isn't": (lambda c: c.lock(b"x", 0xDEAD), "etcdserver: requested lease not found"),
    "a lock with a negative lease": (lambda c: c.lock(b"x", -5), "etcdserver: requested lease not found"),
    "a campaign with no such lease": (
        lambda c: c.campaign(b"x", 0xDEAD, b"v"),
        "etcdserver: requested lease not found",
    ),
    "no key to unlock": (lambda c: c.unlock(b""), "etcdserver: key is not provided"),
    "no leader": (lambda c: c.leader(b"nobody"), "election: no leader"),
    "proclaiming for nobody": (lambda c: c.proclaim(b"v"), '"leader" field must be provided'),
    "resigning for nobody": (lambda c: c.resign(), '"leader" field must be provided'),
    "proclaiming without leading": (
        lambda c: c.proclaim(b"v", name=b"x", key=b"x/1", rev=3, lease=1),
        "election: not leader",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(clients: tuple[Client, Client], what: str) -> None:
    ask, text = REFUSED[what]
    assert refusal(ask(clients[0])) == (UNKNOWN, text)


def test_resigning_from_what_is_gone_is_no_error(clients: tuple[Client, Client]) -> None:
    one, _ = clients
    now = one.put(b"resign", b"")
    assert one.resign(name=b"x", key=b"x/1", rev=3, lease=1).result().header.revision == now


def test_an_election(clients: tuple[Client, Client]) -> None:
    one, two = clients
    a, b = one.grant(0xA5), one.grant(0xB5)
    won = one.campaign(b"vote", a, b"first").result()
    led = {"name": b"vote", "key": b"vote/a5", "rev": won.header.revision, "lease": a}
    assert won.leader == pb.LeaderKey(**led)
    found = two.leader(b"vote").result()
    assert (found.kv.key, found.kv.value, found.kv.lease) == (b"vote/a5", b"first", a)
    waiting = two.campaign(b"vote", b, b"second")
    waits(one, b"vote/", 2)
    said = one.proclaim(b"still", **led).result().header.revision
    assert (two.leader(b"vote").result().kv.value, two.leader(b"vote").result().kv.mod_revision) == (b"still", said)
    again = one.campaign(b"vote", a, b"anew").result()  # whoever leads and campaigns proclaims
    assert again.leader == won.leader
    assert two.leader(b"vote").result().kv.value == b"anew"
    assert not waiting.done()
    one.resign(**led).result()
    next = waiting.result()
    assert (next.leader.key, next.leader.lease) == (b"vote/b5", b)
    assert next.header.revision == next.leader.rev < said + 1
    assert one.leader(b"vote").result().kv.value == b"second"
    assert refusal(one.proclaim(b"late", **led)) == (UNKNOWN, "election: not leader")
    one.revoke(a)
    one.revoke(b)
    assert refusal(one.leader(b"vote")) == (UNKNOWN, "election: no leader")


def test_whoever_stops_campaigning_leaves_the_queue(clients: tuple[Client, Client]) -> None:
    one, two = clients
    a, b = one.grant(0xA6), one.grant(0xB6)
    one.campaign(b"quit", a, b"1").result()
    waiting = two.campaign(b"quit", b, b"2")
    waits(one, b"quit/", 2)
    waiting.cancel()
    waits(one, b"quit/", 1)
    assert [kv.value for kv in one.get(b"quit/")] == [b"1"]
    one.revoke(a)
    one.revoke(b)


def test_observing(clients: tuple[Client, Client]) -> None:
    one, two = clients
    a, b = one.grant(0xA7), one.grant(0xB7)
    observed = two.observe(b"seen")
    told: list[Any] = []

    def next_told() -> tuple[bytes, bytes]:
        told.append(next(observed))
        return told[-1].kv.key, told[-1].kv.value

    won = one.campaign(b"seen", a, b"1").result()
    assert next_told() == (b"seen/a7", b"1")
    assert told[0].header.revision == told[0].kv.mod_revision == won.leader.rev
    led = {"name": b"seen", "key": b"seen/a7", "rev": won.leader.rev, "lease": a}
    one.proclaim(b"2", **led).result()
    assert next_told() == (b"seen/a7", b"2")
    second = one.campaign(b"seen", b, b"3")
    waits(one, b"seen/", 2)
    one.resign(**led).result()
    assert next_told() == (b"seen/b7", b"3")
    second.result()
    one.revoke(b)
    one.campaign(b"seen", a, b"4").result()
    assert next_told() == (b"seen/a7", b"4")
    observed.cancel()
    with pytest.raises(grpc.RpcError) as ended:
        next(observed)
    assert ended.value.code() is grpc.StatusCode.CANCELLED
    one.revoke(a)


# ---- kvorum alone: what etcd does in one process

LOST = "etcdserver: request timed out, possibly due to connection lost"


def contended(clients: list[Client], name: bytes, lease: int) -> tuple[bytes, Any]:
    """The lock is held through node 0, and waited for at node 1. The key that holds it, and who waits."""
    held = clients[0].lock(name, clients[0].grant(lease)).result()
    waiting = clients[1].lock(name, clients[0].grant(lease + 1))
    waits(clients[0], name + b"/", 2)
    return held.key, waiting


def test_a_watch_process_that_dies_ends_the_wait_and_its_place(cluster: Cluster, three: list[Client]) -> None:
    held, waiting = contended(three, b"watch dies", 0x10)
    eventually(lambda: cluster.metric(1, "etcd_debugging_mvcc_watcher_total") >= 1, what="a watch")
    cluster.kill(1, "watch")
    assert refusal(waiting) == (grpc.StatusCode.UNAVAILABLE, LOST)
    waits(three[0], b"watch dies/", 1)
    assert [kv.key for kv in three[0].get(b"watch dies/")] == [held]
    again = three[1].lock(b"watch dies", 0x11)
    waits(three[0], b"watch dies/", 2)
    three[0].unlock(held).result()
    assert again.result().key == b"watch dies/11"


def test_an_apply_process_that_dies_is_not_noticed_by_who_waits(cluster: Cluster, three: list[Client]) -> None:
    held, waiting = contended(three, b"apply dies", 0x20)
    eventually(lambda: cluster.metric(1, "etcd_debugging_mvcc_watcher_total") >= 1, what="a watch")
    cluster.kill(1, "apply")
    three[0].unlock(held).result()
    assert waiting.result().key == b"apply dies/21"


def test_a_gateway_that_dies_breaks_connections_and_its_keys_end_with_their_leases(
    cluster: Cluster, three: list[Client]
) -> None:
    held, waiting = contended(three, b"gateway dies", 0x30)
    cluster.kill(1, "gateway")
    assert refusal(waiting)[0] is grpc.StatusCode.UNAVAILABLE
    third = three[2].lock(b"gateway dies", three[0].grant(0x32))
    waits(three[0], b"gateway dies/", 3)
    three[0].unlock(held).result()
    assert not third.done()
    three[0].revoke(0x31)
    assert third.result().key == b"gateway dies/32"


def test_a_node_that_is_stopped_ends_the_wait(cluster: Cluster, three: list[Client]) -> None:
    """It leaves the queue, too, if the two seconds that it has are enough for that."""
    held, waiting = contended(three, b"stops", 0x40)
    cluster.stop(1)
    try:
        assert refusal(waiting)[0] is grpc.StatusCode.UNAVAILABLE
    finally:
        cluster.start(1)
    three[0].revoke(0x41)
    waits(three[0], b"stops/", 1)
    assert [kv.key for kv in three[0].get(b"stops/")] == [held]


def test_one_at_a_time_among_many_of_whom_some_give_up(three: list[Client]) -> None:
    leases = [three[0].grant(0x100 + number) for number in range(30)]
    calls = [three[0].lock(b"many", leases[0])]
    calls[0].result()  # so nobody who gives up can have it by then
    calls += [three[number % 3].lock(b"many", leases[number]) for number in range(1, 30)]
    waits(three[0], b"many/", 30)
    for call in calls[1::3]:
        call.cancel()
    entered = 0
    left = {number: call for number, call in enumerate(calls) if number % 3 != 1}
    while left:
        done = eventually(lambda: [number for number, call in left.items() if call.done()], SECONDS, "a turn")
        (number,) = done
        key = left.pop(number).result().key
        entered += 1
        three[number % 3].unlock(key).result()
    assert entered == 20
    waits(three[0], b"many/", 0)
