"""Who requires a leader (metadata hasleader, as Go's clientv3.WithRequireLeader and Kubernetes send it): what a member
tells him that has lost its quorum, and when; of kvorum and of an etcd."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from kvorum import etcd_pb2 as pb
from tests.system.cluster import ELECTION_MS, Cluster, eventually
from tests.system.realclients.pairs import NODES, etcd

REQUIRE = (("hasleader", "true"),)
NO_LEADER = (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
WATCH = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")).SerializeToString()
RENEWAL = pb.LeaseKeepAliveRequest(ID=9).SerializeToString()
RANGE = pb.RangeRequest(key=b"k", serializable=True).SerializeToString()


@contextmanager
def kvorum(directory: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    with Cluster(directory, NODES) as cluster:
        yield cluster.gateway(0), lambda: [cluster.destroy(node) for node in range(1, NODES)] and None


@contextmanager
def real(directory: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    with etcd(directory / "etcd") as running:
        yield running.endpoints[0], lambda: [os.kill(pid, signal.SIGKILL) for pid in running.pids[1:]] and None


class Streams:
    """Streams that are open, and how and when they end."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.begun: dict[str, threading.Event] = {}
        self.ended: dict[str, tuple[grpc.StatusCode, str, float]] = {}

    def open(self, name: str, path: str, first: bytes, metadata: tuple[tuple[str, str], ...]) -> None:
        if path.endswith("Observe"):
            call = self._channel.unary_stream(path)(first, metadata=metadata)
        else:
            said: queue.Queue[bytes | None] = queue.Queue()
            said.put(first)
            call = self._channel.stream_stream(path)(iter(said.get, None), metadata=metadata)
        self.begun[name] = threading.Event()
        threading.Thread(target=self._follow, args=(name, call), daemon=True).start()

    def _follow(self, name: str, call: grpc.Call) -> None:
        try:
            for _ in call:
                self.begun[name].set()
        except grpc.RpcError as error:
            self.ended[name] = error.code(), error.details() or "", time.monotonic()


def told(channel: grpc.Channel, path: str, request: bytes, require: str = "true") -> object:
    """The code and text of an error, None if there is none."""
    try:
        channel.unary_unary(path)(request, metadata=(("hasleader", require),), timeout=10)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return None


@pytest.mark.parametrize("which", [kvorum, real])
def test_without_a_quorum(
    tmp_path: Path, which: Callable[[Path], contextmanager[tuple[str, Callable[[], None]]]]
) -> None:
    with which(tmp_path) as (endpoint, stop_the_others), grpc.insecure_channel(endpoint) as channel:
        streams, grant = Streams(channel), pb.LeaseGrantRequest(TTL=600, ID=9).SerializeToString()
        assert told(channel, "/etcdserverpb.Lease/LeaseGrant", grant) is None
        won = pb.CampaignRequest(name=b"e", lease=9, value=b"v").SerializeToString()
        assert told(channel, "/v3electionpb.Election/Campaign", won) is None
        kinds = (
            ("watch", "/etcdserverpb.Watch/Watch", WATCH),
            ("renewals", "/etcdserverpb.Lease/LeaseKeepAlive", RENEWAL),
            ("observer", "/v3electionpb.Election/Observe", pb.LeaderRequest(name=b"e").SerializeToString()),
        )
        for name, path, first in kinds:
            streams.open(name, path, first, REQUIRE)
            streams.open(f"{name} of no care", path, first, ())
        assert all(begun.wait(30) for begun in streams.begun.values())
        stop_the_others()
        eventually(lambda: told(channel, "/etcdserverpb.KV/Range", RANGE) == NO_LEADER, what="a refusal")
        refused = time.monotonic()
        for path, request in (
            ("/etcdserverpb.Maintenance/Status", b""),
            ("/etcdserverpb.Cluster/MemberList", b""),
            ("/v3lockpb.Lock/Lock", b""),
        ):
            assert told(channel, path, request) == NO_LEADER
        for unheard_of in ("True", "1", "false", ""):
            assert told(channel, "/etcdserverpb.KV/Range", RANGE, unheard_of) is None
        for name, path, first in kinds:
            streams.open(f"new {name}", path, first, REQUIRE)
        eventually(lambda: len(streams.ended) == 6, what="the end of those who need a leader")
        assert {name: (code, text) for name, (code, text, _) in streams.ended.items()} == {
            name: NO_LEADER for kind, _, _ in kinds for name in (kind, f"new {kind}")
        }
        for kind, _, _ in kinds:
            elections = (streams.ended[kind][2] - refused) * 1000 / ELECTION_MS
            assert 1.5 < elections < 12, "about three; later on a machine that is busy"
        assert json_told(endpoint, "kv/range", {"key": "aw==", "serializable": True})["message"] == NO_LEADER[1]
        error = json_told(endpoint, "watch", {"create_request": {"key": "aw=="}})["error"]
        assert (error["message"], error["http_code"]) == (NO_LEADER[1], 503)


def json_told(endpoint: str, path: str, body: object) -> dict[str, object]:
    wanted = {"Grpc-Metadata-Hasleader": "true"}
    request = urllib.request.Request(f"http://{endpoint}/v3/{path}", json.dumps(body).encode(), wanted)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=10)
    assert raised.value.code == 503
    found: dict[str, object] = json.loads(raised.value.read())
    return found
