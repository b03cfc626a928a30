"""Leases of a real cluster: not one second too short, not for ever, whoever dies or sleeps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvorum
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from tests.system.cluster import ELECTION_MS, Cluster, eventually
from tests.system.tenants import LATE_SECONDS, Quiet, Tenant
from tests.system.verdict import insist


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("leases"), shared=True) as cluster:
        yield cluster


@pytest.fixture
def client(trio: Cluster) -> Iterator[kvorum.Client]:
    trio.await_ready()
    with kvorum.client(trio.endpoints, timeout=30) as client:
        yield client


def at(cluster: Cluster, node: int) -> kvorum.Client:
    return kvorum.client(cluster.endpoints[node], discover=False, timeout=30)


def gone(client: kvorum.Client, key: str) -> bool:
    return not client.get_response(key).kvs


def test_any_node_takes_any_lease_call(trio: Cluster) -> None:
    trio.await_ready()
    for node in range(3):
        with at(trio, node) as client:
            lease = client.lease_grant(60)
            assert (lease.TTL, lease.ID > 0) == (60, True)
            client.put(f"any/{node}", "v", lease=lease.ID)
            for other in range(3):
                with at(trio, other) as elsewhere:
                    assert elsewhere.refresh_lease(lease.ID).TTL == 60
                    info = elsewhere.get_lease_info(lease.ID)
                    assert (info.grantedTTL, list(info.keys)) == (60, [b"any/%d" % node])
                    assert 50 < info.TTL <= 60
                    assert lease.ID in elsewhere.leases()
            client.revoke_lease(lease.ID)
            assert gone(client, f"any/{node}")
            assert client.refresh_lease(lease.ID).TTL == 0
            assert client.get_lease_info(lease.ID).TTL == -1


def test_keys_die_with_their_owner_not_before_and_not_much_later(client: kvorum.Client) -> None:
    """L1, L2."""
    asked = time.monotonic()
    lease = client.lease_grant(2)
    answered = time.monotonic()
    client.put("dies", "v", lease=lease.ID)
    eventually(lambda: gone(client, "dies"), 60.0, "the end of the lease")
    ended = time.monotonic()
    assert ended - asked >= lease.TTL
    assert ended - answered < lease.TTL + 30, "late, even for a machine that stands still now and then"
    with pytest.raises(errors.LeaseNotFound):
        client.put("dies", "v", lease=lease.ID)


def test_a_lease_that_is_kept_alive_lives(client: kvorum.Client) -> None:
    with client.lease(2) as lease:
        client.put("lives", "v", lease=lease)
        until = time.monotonic() + 3 * lease.ttl
        while time.monotonic() < until:
            assert not gone(client, "lives")
            assert not lease.lost
            time.sleep(0.1)
        assert lease.keys == [b"lives"]
    assert gone(client, "lives")


def test_minimum_and_maximum(client: kvorum.Client) -> None:
    """L7: at least one and a half election timeouts, at most 9,000,000,000 s."""
    least = -(-3 * ELECTION_MS // 2000)
    for ttl in (-5, 0, 1):
        assert max(least, ttl) == client.lease_grant(ttl).TTL
    with pytest.raises(errors.LeaseTTLTooLarge):
        client.lease_grant(9_000_000_001)
    assert client.lease_grant(9_000_000_000).TTL == 9_000_000_000
    with pytest.raises(errors.LeaseExists):
        client.lease_grant(60, client.lease_grant(60, -77).ID)


@pytest.mark.parametrize("process", ["apply", "raft", "all"])
def test_the_leader_dies_and_no_lease_is_lost_or_lives_for_ever(trio: Cluster, process: str) -> None:
    """A new leader, and a new apply process of the old one, give every lease its whole time again."""
    trio.await_ready()
    with kvorum.client(trio.endpoints, timeout=30) as client:
        kept, left = client.lease(3), client.lease_grant(3)
        client.put("kept", "v", lease=kept)
        client.put("left", "v", lease=left.ID)
        leader = trio.leader()
        if process == "all":
            trio.destroy(leader)
        else:
            trio.kill(leader, process)
        insist(lambda: client.put("serves", "v"), 60.0)
        led = time.monotonic()
        eventually(lambda: gone(client, "left"), 60.0, "the end of the lease")
        assert time.monotonic() - led < left.TTL + LATE_SECONDS + 30
        assert not gone(client, "kept"), "its owner has renewed it all the time"
        assert not kept.lost
        kept.revoke()
        assert gone(client, "kept")
        if process == "all":
            trio.start(leader)


@pytest.mark.parametrize("process", ["apply", "raft"])
def test_a_leader_that_sleeps_past_a_lease_ends_nothing_that_others_have_renewed(trio: Cluster, process: str) -> None:
    """L6, etcd #17425: it wakes up, finds that time has passed, and its word is void."""
    trio.await_ready()
    leader = trio.leader()
    others = [trio.endpoints[node] for node in range(3) if node != leader]
    with kvorum.client(others, discover=False, timeout=30) as client:
        lease = client.lease_grant(2)
        client.put("renewed", "v", lease=lease.ID)
        trio.pause(leader, process)
        asleep = time.monotonic()
        while time.monotonic() - asleep < 2.5 * lease.TTL:
            renew(client, lease.ID)
            time.sleep(0.2)
        trio.resume()
        awake = time.monotonic()
        while time.monotonic() - awake < 2.0 * lease.TTL:
            renew(client, lease.ID)
            assert not gone(client, "renewed")
            time.sleep(0.1)
        client.revoke_lease(lease.ID)


def test_owners_keep_time_while_leaders_are_killed_and_paused(trio: Cluster) -> None:
    """L1, L2, L6, L8: over every way in which a leader is lost, and through its waking up again."""
    trio.await_ready()
    endpoints, quiet, terms = trio.endpoints, Quiet(), set()
    with kvorum.client(endpoints, timeout=5.0) as client:
        before = client.leases()
        tenants = [Tenant(endpoints[n % 3 :] + endpoints[: n % 3], str(n), quiet) for n in range(9)]
        try:
            for trouble in ("kill raft", "pause raft", "kill apply", "pause apply", "kill supervisor", "pause both"):
                time.sleep(1.5)
                how, process = trouble.split()
                leader = trio.leader()
                quiet.disturbed()
                if how == "kill":
                    trio.kill(leader, process)
                    if process == "supervisor":
                        insist(lambda: client.put("tenants", "without it"))
                        trio.start(leader, wait=False)
                else:
                    for each in ("raft", "apply") if process == "both" else (process,):
                        trio.pause(leader, each)
                    time.sleep(3.5)  # longer than any of the leases
                    trio.resume()
                terms.add(insist(lambda trouble=trouble: client.put("tenants", trouble)).header.raft_term)
                quiet.settled()
            time.sleep(1.5)
        finally:
            trio.resume()
            for tenant in tenants:
                tenant.stop()
        wrong = [said for tenant in tenants for said in tenant.wrong]
        assert not wrong, "\n".join(wrong)
        assert len(terms) > 3, "hardly a leader was lost"
        assert sum(tenant.ended for tenant in tenants) > 20
        assert sum(tenant.renewed for tenant in tenants) > 100
        eventually(lambda: not [id for id in client.leases() if id not in before], 60.0, "the end of all leases")


def renew(client: kvorum.Client, id: int) -> None:
    """What is answered must say that it lives; no leader for a while is no answer."""
    with contextlib.suppress(errors.Unavailable, errors.Ambiguous):
        assert client.refresh_lease(id).TTL > 0


def test_a_lease_just_granted_is_known_everywhere_at_once(trio: Cluster) -> None:
    """L6, etcd #13932: no "not found" after an acknowledged grant, also from who was started a moment ago."""
    trio.await_ready()
    clients = [at(trio, node) for node in range(3)]
    with contextlib.ExitStack() as stack:
        for each in clients:
            stack.enter_context(each)
        for round in range(9):
            lease = insist(lambda round=round: clients[round % 3].lease_grant(60))
            if round % 3 == 1:
                trio.kill(trio.leader() if round % 2 else (round // 3), "apply")
            for each in clients:
                assert insist(lambda each=each, lease=lease: each.refresh_lease(lease.ID)).TTL == lease.TTL
                assert insist(lambda each=each, lease=lease: each.get_lease_info(lease.ID)).grantedTTL == lease.TTL
                assert lease.ID in insist(each.leases)
            insist(lambda lease=lease: clients[0].revoke_lease(lease.ID))
            for each in clients:
                assert insist(lambda each=each, lease=lease: each.refresh_lease(lease.ID)).TTL == 0
                assert insist(lambda each=each, lease=lease: each.get_lease_info(lease.ID)).TTL == -1


def test_a_put_and_the_end_of_its_lease_have_an_order(trio: Cluster) -> None:
    """L4, T10: whichever comes first in the log, no key is left that belongs to no lease."""
    trio.await_ready()
    with at(trio, 0) as putter, at(trio, 1) as revoker:
        before_it = 0
        for round in range(40):
            id = revoker.lease_grant(60).ID
            calls = [
                putter.submit(Method.PUT, pb.PutRequest(key=b"race/%d" % n, lease=id).SerializeToString())
                for n in range(20)
            ]
            if round % 2:
                putter.wait(calls[round % 20])
            ended = revoker.revoke_lease(id).header.revision
            for call in calls:
                putter.wait(call)
                if call.error is None:
                    before_it += 1
                    assert pb.PutResponse.FromString(call.reply).header.revision < ended
                else:
                    assert isinstance(call.error, errors.LeaseNotFound)
            assert putter.get_prefix_response("race/", count_only=True).count == 0
        assert 0 < before_it < 40 * 20, "a race that one side always wins is none"


def test_leases_outlive_everybody(tmp_path: Path) -> None:
    """L5: kill -9 of everything; negative ids too."""
    with Cluster(tmp_path, nodes=1) as cluster:
        with kvorum.client(cluster.endpoints, timeout=30) as client:
            for id in (5, -5):
                client.lease_grant(1000, id)
                client.put(f"of {id}", "v", lease=id)
        cluster.destroy(0)
        cluster.start(0)
        with kvorum.client(cluster.endpoints, timeout=30) as client:
            assert sorted(client.leases()) == [-5, 5]
            for id in (5, -5):
                assert list(client.get_lease_info(id).keys) == [f"of {id}".encode()]
                client.revoke_lease(id)
                assert gone(client, f"of {id}")


def test_many_that_end_together_hold_nobody_up(trio: Cluster, client: kvorum.Client) -> None:
    """A thousand at once; what else is asked is answered meanwhile."""
    calls = [
        client.submit(Method.LEASE_GRANT, pb.LeaseGrantRequest(TTL=2, ID=10_000 + n).SerializeToString())
        for n in range(1000)
    ]
    for call in calls:
        client.wait(call)
        assert call.error is None
    puts = [
        client.submit(Method.PUT, pb.PutRequest(key=b"many/%d" % n, lease=10_000 + n).SerializeToString())
        for n in range(1000)
    ]
    for call in puts:
        client.wait(call)
        assert call.error is None
    eventually(lambda: client.get_prefix_response("many/", count_only=True).count == 0, 60.0, "the end of them all")
    assert not [id for id in client.leases() if 10_000 <= id < 11_000]
