"""Members compared by HashKV: equal after random load with compactions and kills, and one that was tampered with stands
out. Through the native protocol, the gateway, and etcd's own etcdctl."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import kvorum
from kvorum import errors, txn
from kvorum import etcd_pb2 as pb
from kvorum.wire import METHODS, Method
from storage.codec import parse_event, revision_key
from storage.rocks import RocksEngine
from tests.etcds import binary
from tests.system.cluster import Cluster, eventually


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, nodes=3) as cluster:
        yield cluster


def load(cluster: Cluster, seed: int, count: int) -> int:
    """Random writes. Returns the newest revision."""
    dice = random.Random(seed)
    with kvorum.client(cluster.endpoints, timeout=30) as client:
        with contextlib.suppress(errors.LeaseExists):
            client.lease_grant(5000, 7)
        for _ in range(count):
            key = f"key{dice.randrange(20)}"
            what = dice.random()
            if what < 0.6:
                client.put(key, dice.randbytes(dice.randrange(300)), lease=dice.choice([0, 7]))
            elif what < 0.8:
                client.delete(key)
            elif what < 0.95:
                client.transaction([], [txn.put(key, "a"), txn.put(f"{key}/more", dice.randbytes(9))])
            else:
                newest = client.get_all_response(limit=1).header.revision
                with contextlib.suppress(errors.Compacted):
                    client.compact(max(newest - dice.randrange(10), 1))
        return int(client.get_all_response(limit=1).header.revision)


def hash_kv(cluster: Cluster, node: int, revision: int = 0) -> Any:
    return cluster.request(node, Method.HASH_KV, pb.HashKVRequest(revision=revision))


def told(cluster: Cluster, node: int, revision: int) -> tuple[int, int, int]:
    """Once the node has applied it and has heard of the last compaction."""

    def ask() -> Any:
        try:
            return hash_kv(cluster, node, revision)
        except errors.FutureRevision:
            return None

    found = eventually(ask, what=f"revision {revision} at node {node}")
    return found.hash, found.compact_revision, found.hash_revision


def over_grpc(cluster: Cluster, node: int, method: Method, request: Any) -> Any:
    path, _, response = METHODS[method]
    with grpc.insecure_channel(f"127.0.0.1:{cluster.places[node].port}") as channel:
        call = channel.unary_unary(path, type(request).SerializeToString, response.FromString)
        return call(request, timeout=60, wait_for_ready=True)


def test_all_members_agree_until_one_of_them_is_tampered_with(cluster: Cluster) -> None:
    revision = 0
    for seed in range(3):
        cluster.kill(seed, "apply")
        revision = load(cluster, seed, 60)
    with kvorum.client(cluster.endpoints, timeout=30) as client:
        for number in range(20):
            client.put(f"key{number}", "after")
        client.compact(revision + 5, physical=True)
        client.put("last", "one")
    compacted, revision = revision + 5, revision + 21
    found = [told(cluster, node, revision) for node in range(3)]
    assert found[0] == found[1] == found[2]
    assert found[0][1:] == (compacted, revision)
    cluster.stop(1)
    cluster.start(1)
    assert told(cluster, 1, revision) == found[0]

    for node in range(3):
        reply = over_grpc(cluster, node, Method.HASH_KV, pb.HashKVRequest(revision=revision))
        assert (reply.hash, reply.compact_revision, reply.hash_revision) == found[0]
        assert reply.header.cluster_id
        assert over_grpc(cluster, node, Method.HASH, pb.HashRequest()).hash
    endpoints = ",".join(f"127.0.0.1:{place.port}" for place in cluster.places)
    command = [binary("etcdctl"), f"--endpoints={endpoints}", "endpoint", "hashkv", "-w", "json"]
    by_etcdctl = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert [each["HashKV"]["hash"] for each in by_etcdctl] == [found[0][0]] * 3

    cluster.stop(1)
    tamper(cluster.data_dir(1) / "store", revision)
    cluster.start(1)
    assert told(cluster, 1, revision)[0] != found[0][0]
    assert told(cluster, 0, revision) == told(cluster, 2, revision) == found[0]


def tamper(store: Path, revision: int) -> None:
    """Another value at that revision, as a faulty disk or program would leave it."""
    engine = RocksEngine(store)
    key = revision_key(revision, 0)
    event = parse_event(engine.get(key) or b"")
    assert event.kv.value == b"one"
    event.kv.value = b"two"
    batch = engine.batch()
    batch.put(key, event.SerializeToString())
    engine.write(batch)
    engine.begin_flush(1)
    eventually(lambda: engine.flushed() == 1)
    engine.close()


def test_revisions_that_are_not_there(cluster: Cluster) -> None:
    revision = load(cluster, 1, 30)
    with kvorum.client(cluster.endpoints, timeout=30) as client:
        client.put("one", "more")
        client.compact(revision + 1)
    revision += 1
    eventually(lambda: hash_kv(cluster, 0).compact_revision == revision)
    for asked, refusal in ((revision - 1, errors.Compacted), (revision + 1, errors.FutureRevision)):
        with pytest.raises(refusal):
            hash_kv(cluster, 0, asked)
        with pytest.raises(grpc.RpcError) as refused:
            over_grpc(cluster, 0, Method.HASH_KV, pb.HashKVRequest(revision=asked))
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, refusal.text)
