"""Client URLs that are sockets in the file system, with clients that are not ours: etcdctl, curl, Python's gRPC."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kvorum import etcd_pb2 as pb
from tests.conftest import environment
from tests.etcds import binary
from tests.native.papers import Papers
from tests.system.cluster import Cluster, eventually


class Place:
    def __init__(self, directory: Path, cluster: Cluster, papers: Papers) -> None:
        self.plain, self.tls = directory / "plain", directory / "tls"
        self.cluster, self.papers = cluster, papers

    def etcdctl(self, endpoint: str, *words: str) -> str:
        papers = [f"--cacert={self.papers.ca_file}"] if endpoint.startswith("unixs:") else []
        command = [binary("etcdctl"), f"--endpoints={endpoint}", *papers, *words]
        done = subprocess.run(command, env=environment(ETCDCTL_API="3"), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    papers = Papers(tmp_path_factory.mktemp("papers") / "papers")
    certificate, key = papers.issue("tls", name="socket")  # etcd's clients take the file's name for the server's
    with tempfile.TemporaryDirectory(prefix="sockets-") as short:
        cluster = Cluster(tmp_path_factory.mktemp("node"), nodes=1, shared=True)
        place = Place(Path(short), cluster, papers)
        cluster.settings |= {
            "listen-client-urls": f"http://{cluster.gateway(0)},unix://{place.plain},unixs://{place.tls}",
            "gateway-processes": "2",
            "cert-file": certificate,
            "key-file": key,
        }
        with cluster:
            yield place


def test_etcdctl_comes_in_by_either_socket(place: Place) -> None:
    for endpoint in (f"unix://{place.plain}", f"unixs://{place.tls}"):
        assert place.etcdctl(endpoint, "put", endpoint, "here") == "OK\n"
        assert place.etcdctl(endpoint, "get", endpoint, "--print-value-only") == "here\n"
    told = json.loads(place.etcdctl(f"unix://{place.plain}", "member", "list", "-w", "json"))
    urls = told["members"][0]["clientURLs"]
    assert urls == [f"http://{place.cluster.gateway(0)}", f"unix://{place.plain}", f"unixs://{place.tls}"]


def test_curl_and_grpc_too(place: Place) -> None:
    command = ["curl", "-sS", "--max-time", "20", "--unix-socket", str(place.plain), "http://localhost/health"]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["health"] == "true"
    with grpc.insecure_channel(f"unix:{place.plain}") as channel:
        call = channel.unary_unary("/etcdserverpb.KV/Put", response_deserializer=pb.PutResponse.FromString)
        assert call(pb.PutRequest(key=b"k").SerializeToString(), timeout=20).header.revision > 1


def test_the_socket_is_served_again_after_its_process_was_killed(place: Place) -> None:
    """Its file was left behind."""
    before = place.cluster.pid(0, "gateway")
    place.cluster.kill(0, "gateway")
    eventually(lambda: place.cluster.pid(0, "gateway") not in (0, before), 20.0)
    eventually(lambda: place.plain.is_socket(), 20.0)
    put = ["put", "k", "again", "--dial-timeout=20s", "--command-timeout=20s"]
    assert place.etcdctl(f"unix://{place.plain}", *put) == "OK\n"


def test_a_node_that_stops_leaves_no_sockets(place: Place) -> None:
    assert place.plain.is_socket()
    place.cluster.stop(0)
    assert not place.plain.exists()
    assert not place.tls.exists()
    place.cluster.start(0)
    assert place.plain.is_socket()
