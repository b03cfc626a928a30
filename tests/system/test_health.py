"""What a node says over HTTP, and what strangers can do to that: nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster import local, metrics
from kvorum import etcd_pb2 as pb
from kvorum import wire
from tests.system.cluster import Cluster, eventually


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("one"), nodes=1) as cluster:
        yield cluster


def connect(cluster: Cluster) -> socket.socket:
    return socket.create_connection(("127.0.0.1", cluster.places[0].port + local.STEP_METRICS), 10)


def exchange(cluster: Cluster, request: bytes) -> bytes:
    with connect(cluster) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def test_a_healthy_node_says_so_as_etcd_does(one: Cluster) -> None:
    """etcd: GET /health is {"health":"true","reason":""}."""
    assert one.http(0, "/health") == (200, '{"health":"true","reason":""}')
    assert one.http(0, "/health?serializable=true") == (200, '{"health":"true","reason":""}')


def test_the_probes_of_kubernetes_are_answered(one: Cluster) -> None:
    """etcd 3.5.11 and later: /livez and /readyz, single checks below them, ?verbose and ?exclude."""
    assert one.http(0, "/livez") == (200, "ok\n")
    assert one.http(0, "/readyz") == (200, "ok\n")
    assert one.http(0, "/readyz/linearizable_read") == (200, "ok\n")
    both = "[+]data_corruption ok\n[+]serializable_read ok\n"
    assert one.http(0, "/readyz?verbose") == (200, both + "[+]linearizable_read ok\nok\n")
    assert one.http(0, "/readyz?verbose&exclude=linearizable_read") == (200, both + "ok\n")
    assert one.http(0, "/readyz/no_such_check")[0] == 404


def test_versions_are_told_as_etcd_tells_them(one: Cluster) -> None:
    status, body = one.http(0, "/version")
    assert (status, json.loads(body)["etcdserver"]) == (200, "3.6.0")
    assert json.loads(body)["kvorum"] == "0.1.0"


def test_only_get_is_allowed(one: Cluster) -> None:
    """etcd: 405 with Allow."""
    answer = exchange(one, b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 405 ")
    assert b"\r\nAllow: GET\r\n" in answer


def test_without_a_quorum_a_node_is_not_healthy_but_answers_serializable_reads(tmp_path: Path) -> None:
    """D6: errors, not silence."""
    with Cluster(tmp_path, nodes=2) as cluster:
        cluster.destroy(1)
        eventually(lambda: cluster.http(0, "/health") == (503, '{"health":"false","reason":"RAFT NO LEADER"}\n'))
        assert cluster.http(0, "/health?serializable=true")[0] == 200
        assert cluster.http(0, "/livez") == (200, "ok\n")
        status, body = cluster.http(0, "/readyz")
        assert (status, body) == (
            503,
            "[+]data_corruption ok\n[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: no leader\n",
        )
        assert cluster.metric(0, "etcd_server_has_leader") == 0
        assert cluster.metric(0, "etcd_server_health_failures") >= 1


def test_metrics_of_all_processes_are_behind_one_port(one: Cluster) -> None:
    """Every declared series is there from the start: alerts use absent() and rate()."""
    status, text = one.http(0, "/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for board in metrics.boards().values():
        for series in board.series:
            name = series.name.removesuffix("_total") if series.kind == "counter" else series.name
            assert families[name].type == series.kind, series.name
            assert families[name].samples
    up = {sample.labels["process"]: sample.value for sample in families["kvorum_process_up"].samples}
    assert up == {"supervisor": 1, "raft": 1, "apply": 1, "watch": 1, "gateway": 1}
    assert families["process_resident_memory_bytes"].samples[0].value > 40 << 20
    assert abs(families["process_start_time_seconds"].samples[0].value - time.time()) < 600


def test_numbers_follow_what_happens(one: Cluster) -> None:
    before = one.metric(0, "etcd_mvcc_put_total")
    for number in range(3):
        one.request(0, wire.Method.PUT, pb.PutRequest(key=b"k%d" % number, value=b"v"))
    revision = one.request(0, wire.Method.RANGE, pb.RangeRequest(key=b"k0")).header.revision
    eventually(lambda: one.metric(0, "etcd_mvcc_put_total") == before + 3)
    eventually(lambda: one.metric(0, "etcd_debugging_mvcc_current_revision") == revision)
    assert one.metric(0, "etcd_server_has_leader") == 1
    assert one.metric(0, "etcd_server_is_leader") == 1
    eventually(lambda: one.metric(0, "etcd_server_proposals_applied_total") >= 4)
    eventually(lambda: one.metric(0, "etcd_server_proposals_committed_total") >= 4)  # told once a tick
    eventually(lambda: one.metric(0, "etcd_disk_wal_fsync_duration_seconds_count") >= 4)


def test_calls_are_counted_by_the_version_of_their_client(one: Cluster) -> None:
    """etcd_server_client_requests_total; a gateway that is started again goes on counting."""

    def series(kind: str, version: str) -> float:
        for family in text_string_to_metric_families(one.http(0, "/metrics")[1]):
            for sample in family.samples:
                labels = {"type": kind, "client_api_version": version}
                if (sample.name, sample.labels) == ("etcd_server_client_requests_total", labels):
                    return sample.value
        return 0

    for count in (2, 4):
        with grpc.insecure_channel(one.gateway(0)) as channel:
            put = channel.unary_unary("/etcdserverpb.KV/Put")
            for _ in range(2):
                metadata = [("client-api-version", "3.6.0")]
                put(pb.PutRequest(key=b"k").SerializeToString(), timeout=20, metadata=metadata, wait_for_ready=True)
            renew = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")
            list(renew(iter([pb.LeaseKeepAliveRequest(ID=9).SerializeToString()]), timeout=20))
        eventually(lambda count=count: series("unary", "3.6.0") == count)  # type: ignore[misc]
        eventually(lambda count=count: series("stream", "unknown") == count // 2)  # type: ignore[misc]
        one.kill(0, "gateway")


def test_a_restart_is_counted_and_the_counters_of_the_dead_go_on(one: Cluster) -> None:
    one.request(0, wire.Method.PUT, pb.PutRequest(key=b"k", value=b"v"))
    before = one.metric(0, 'kvorum_supervisor_restarts_total{process="watch"}')
    changes = one.metric(0, "etcd_server_leader_changes_seen_total")
    one.kill(0, "watch")
    eventually(lambda: one.metric(0, 'kvorum_supervisor_restarts_total{process="watch"}') == before + 1)
    dead = one.metric(0, 'kvorum_supervisor_restarts_total{process="raft"}')
    one.kill(0, "raft")
    eventually(lambda: one.metric(0, 'kvorum_supervisor_restarts_total{process="raft"}') == dead + 1)
    eventually(lambda: one.metric(0, "etcd_server_leader_changes_seen_total") > changes >= 1)
    eventually(lambda: one.healthy(0))


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"BREW /health HTTP/1.1\r\n\r\n",
        b"GET " + b"/" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET http://[::1/health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(900)) + b"\r\n",
    ],
)
def test_garbage_gets_an_error_and_nobody_else_notices(one: Cluster, garbage: bytes) -> None:
    assert exchange(one, garbage)[:14] not in (b"", b"HTTP/1.0 200 O")
    assert one.http(0, "/health")[0] == 200, one.http(0, "/health")


def test_a_head_that_never_ends_is_cut_off(one: Cluster) -> None:
    answer = exchange(one, b"GET /health HTTP/1.1\r\nX: " + b"y" * (20 << 10))
    assert answer.startswith(b"HTTP/1.0 431 ")


def test_a_client_that_never_finishes_its_request_is_let_go(one: Cluster) -> None:
    """web.py: a head has 5 seconds."""
    with connect(one) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        slow.settimeout(8)
        before = time.monotonic()
        assert slow.recv(100) == b""
        assert 4 < time.monotonic() - before < 7


def test_who_holds_many_connections_open_harms_himself(one: Cluster) -> None:
    """web.py: at 32 the oldest is cut to make room."""
    crowd = [connect(one) for _ in range(60)]
    try:
        assert one.healthy(0)
        crowd[0].settimeout(5)
        assert crowd[0].recv(100) == b""
    finally:
        for connection in crowd:
            connection.close()
    assert "Traceback" not in one.log(0)
