"""TLS at the gateway of a real node, with clients that are not ours: etcdctl 3.5, curl, Python's ssl; and a real etcd
3.5.1 with the same settings, which must treat them the same."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster.exits import Exit
from tests import etcds
from tests.conftest import environment
from tests.etcds import binary
from tests.native.papers import Papers
from tests.system.cluster import Cluster, eventually

WAIT = 30.0


class Place(NamedTuple):
    """A server whose clients must show a certificate, and what they need."""

    port: int
    papers: Papers
    client: tuple[str, str]


def mutual(papers: Papers) -> dict[str, str]:
    return {
        "cert-file": papers.certificate,
        "key-file": papers.key,
        "trusted-ca-file": papers.ca_file,
        "client-cert-auth": "true",
    }


@contextmanager
def kvorum(directory: Path, settings: dict[str, str]) -> Iterator[tuple[Cluster, int]]:
    """One node that speaks TLS, and its port. The settings may say so in their own way."""
    cluster = Cluster(directory, nodes=1, shared=True)
    port = int(cluster.gateway(0).rpartition(":")[2])
    cluster.settings |= {"listen-client-urls": f"https://127.0.0.1:{port}", **settings}
    with cluster:
        yield cluster, port


@contextmanager
def etcd(directory: Path, settings: dict[str, str]) -> Iterator[int]:
    with etcds.etcd(directory, settings=settings, scheme="https") as running:
        yield running.port


@pytest.fixture(scope="module", params=["kvorum", "etcd"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("tls")
    papers = Papers(directory / "papers")
    client = papers.issue("client", name="alice")
    if request.param == "kvorum":
        with kvorum(directory, mutual(papers)) as (_, port):
            yield Place(port, papers, client)
        return
    with etcd(directory, mutual(papers)) as port:
        yield Place(port, papers, client)


def context(place: Place, *, alpn: tuple[str, ...] = ("http/1.1",), certified: bool = True) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=place.papers.ca_file)
    made.set_alpn_protocols(list(alpn))
    if certified:
        made.load_cert_chain(*place.client)
    return made


def connect(port: int, way: ssl.SSLContext) -> ssl.SSLSocket:
    return way.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=WAIT), server_hostname="127.0.0.1")


def http(port: int, way: ssl.SSLContext, path: str, body: object = None) -> tuple[int, object]:
    """Status and JSON of one request over HTTP/1.1."""
    connection = HTTPSConnection("127.0.0.1", port, timeout=WAIT, context=way)
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def etcdctl(place: Place, *words: str, client: tuple[str, str] | None, ca: str = "", wait: int = 40) -> tuple[int, str]:
    """Exit code, and what it says."""
    papers = [f"--cacert={ca or place.papers.ca_file}"]
    papers += [f"--cert={client[0]}", f"--key={client[1]}"] if client else []
    command = [
        binary("etcdctl"),
        f"--endpoints=https://127.0.0.1:{place.port}",
        f"--command-timeout={wait}s",
        *papers,
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(ETCDCTL_API="3"))
    return done.returncode, done.stdout + done.stderr


def test_etcdctl(place: Place) -> None:
    assert etcdctl(place, "put", "a", "b", client=place.client) == (0, "OK\n")
    assert etcdctl(place, "get", "a", client=place.client) == (0, "a\nb\n")
    code, listed = etcdctl(place, "member", "list", "-w", "json", client=place.client)
    assert code == 0
    assert json.loads(listed)["members"][0]["clientURLs"] == [f"https://127.0.0.1:{place.port}"]
    code, said = etcdctl(place, "endpoint", "health", "--cluster", client=place.client)
    assert (code, "is healthy" in said) == (0, True), said


@pytest.mark.parametrize("which", ["kvorum", "etcd"])
def test_only_clients_of_the_hosts_that_are_named(which: str, tmp_path: Path) -> None:
    papers = Papers(tmp_path / "papers")
    settings = {**mutual(papers), "client-cert-allowed-hostname": "web.host.example"}
    right, star = papers.issue("web.host.example", name="right"), papers.issue("*.host.example", name="star")
    wrong = papers.issue("other.host.example", name="web.host.example")
    with kvorum(tmp_path, settings) if which == "kvorum" else etcd(tmp_path, settings) as found:
        place = Place(found[1] if isinstance(found, tuple) else found, papers, right)
        eventually(lambda: etcdctl(place, "put", "a", "b", client=right, wait=5)[0] == 0)
        assert etcdctl(place, "put", "a", "b", client=star) == (0, "OK\n")
        assert etcdctl(place, "put", "a", "b", client=wrong, wait=2)[0] == 1


def test_etcdctl_is_told_no(place: Place, tmp_path: Path) -> None:
    """Without a certificate, with one of another CA, and when the server's isn't one that it trusts."""
    stranger = Papers(tmp_path / "other")
    for client, ca in (
        (None, ""),
        (stranger.issue("client", name="mallory"), ""),
        (place.client, stranger.ca_file),
    ):
        code, said = etcdctl(place, "put", "a", "never", client=client, ca=ca, wait=2)
        assert (code, "context deadline exceeded" in said) == (1, True), said


def test_watch_over_tls(place: Place) -> None:
    command = [binary("etcdctl"), f"--endpoints=https://127.0.0.1:{place.port}", f"--cacert={place.papers.ca_file}"]
    command += [f"--cert={place.client[0]}", f"--key={place.client[1]}", "watch", "w", "--rev=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(ETCDCTL_API="3")) as watching:
        try:
            assert etcdctl(place, "put", "w", "1", client=place.client)[0] == 0
            assert watching.stdout is not None
            assert [watching.stdout.readline() for _ in range(3)] == ["PUT\n", "w\n", "1\n"]
        finally:
            watching.kill()


def test_json(place: Place) -> None:
    """With Python's ssl over HTTP/1.1, and by curl over HTTP/2."""
    way = context(place)
    assert http(place.port, way, "/version")[0] == 200
    assert http(place.port, way, "/v3/kv/put", {"key": "anM=", "value": "b24="})[0] == 200
    status, found = http(place.port, way, "/v3/kv/range", {"key": "anM="})
    assert isinstance(found, dict)
    assert (status, found["kvs"][0]["value"]) == (200, "b24=")
    papers = ["--cacert", place.papers.ca_file, "--cert", place.client[0], "--key", place.client[1]]
    more = ["-d", '{"key":"anM="}', "-w", "\n%{http_version} %{http_code}", "--http2", "-sS"]
    url = f"https://127.0.0.1:{place.port}/v3/kv/range"
    said = subprocess.run(["curl", *papers, *more, url], capture_output=True, text=True, timeout=WAIT, check=True)
    body, _, last = said.stdout.strip().rpartition("\n")
    assert (json.loads(body)["kvs"][0]["value"], last) == ("b24=", "2 200")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_timeouts_of_json_are_the_same_over_both_versions_of_http(place: Place, version: str) -> None:
    papers = ["--cacert", place.papers.ca_file, "--cert", place.client[0], "--key", place.client[1]]

    def asked(path: str, body: object, timeout: str) -> tuple[str, list[Any]]:
        """Status, and the JSON of each line."""
        words = ["-sS", version, "--max-time", "20", "-w", "\n%{http_code}", "-H", f"Grpc-Timeout: {timeout}"]
        url = f"https://127.0.0.1:{place.port}/v3/{path}"
        done = subprocess.run(["curl", *papers, *words, "-d", json.dumps(body), url], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *lines, status = done.stdout.split("\n")
        return status, [json.loads(line) for line in lines if line]

    get, watch = {"key": "anM="}, {"create_request": {"key": "anM="}}
    for timeout in ("20S", "0n"):
        status, (answer,) = asked("kv/range", get, timeout)
        assert (status, "header" in answer) == ("200", True)
    for path, body in (("kv/range", get), ("watch", watch)):
        for timeout in ("x", "5"):
            status, (answer,) = asked(path, body, timeout)
            assert (status, answer["code"], answer["message"]) == ("400", 3, f"invalid grpc-timeout: {timeout}")
    status, (answer,) = asked("kv/range", get, "-1S")
    assert (status, answer["code"], answer["message"]) == ("504", 4, "context deadline exceeded")
    status, (created, late) = asked("watch", watch, "700m")
    assert (status, created["result"]["created"]) == ("200", True)
    assert late["error"]["message"] == "context deadline exceeded"


def test_alpn(place: Place) -> None:
    """Who offers nothing speaks HTTP/1.1."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with connect(place.port, context(place, alpn=("h2", "http/1.1"))) as secure:
        assert secure.selected_alpn_protocol() == "h2"
        secure.sendall(preface)
        assert secure.recv(9)[3] == 4, "SETTINGS"
    for alpn in (("http/1.1",), ()):
        way = context(place, alpn=alpn) if alpn else ssl.create_default_context(cafile=place.papers.ca_file)
        way.load_cert_chain(*place.client)
        assert http(place.port, way, "/version")[0] == 200


def test_json_needs_a_certificate_too(place: Place) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        http(place.port, context(place, certified=False), "/version")


def test_plain_text_gets_nothing(place: Place) -> None:
    with socket.create_connection(("127.0.0.1", place.port), timeout=WAIT) as plain:
        plain.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        said = b""
        try:
            while got := plain.recv(4096):
                said += got
        except ConnectionError:
            pass
    assert b"etcdserver" not in said


def test_a_new_certificate_needs_no_restart(tmp_path: Path) -> None:
    """Written over in place. In the middle, when they don't fit, the old one is still there and the log says why."""
    papers, renewed = Papers(tmp_path / "papers"), Papers(tmp_path / "renewed")
    with kvorum(tmp_path, {"cert-file": papers.certificate, "key-file": papers.key}) as (cluster, port):
        old, new = (ssl.create_default_context(cafile=one.ca_file) for one in (papers, renewed))
        assert http(port, old, "/version")[0] == 200
        pid = cluster.pid(0, "gateway")
        shutil.copy(renewed.certificate, papers.certificate)
        assert http(port, old, "/version")[0] == 200
        eventually(lambda: f"TLS: key {papers.key}" in cluster.log(0), what="a word in the log")
        shutil.copy(renewed.key, papers.key)
        assert http(port, new, "/version")[0] == 200
        eventually(lambda: "of use again" in cluster.log(0), what="a second word")
        with pytest.raises(ssl.SSLCertVerificationError):
            http(port, old, "/version")
        assert cluster.pid(0, "gateway") == pid


def test_a_gateway_that_finds_bad_files_is_started_again_until_they_are_good(tmp_path: Path) -> None:
    """It ends alone, and takes nobody with it: the node was well when it began."""
    papers = Papers(tmp_path / "papers")
    with kvorum(tmp_path, {"cert-file": papers.certificate, "key-file": papers.key}) as (cluster, port):
        way = ssl.create_default_context(cafile=papers.ca_file)
        os.rename(papers.key, f"{papers.key}.away")
        cluster.kill(0, "gateway")
        eventually(lambda: f"key {papers.key}: No such file" in cluster.log(0), what="a gateway that says why not")
        assert cluster.healthy(0)
        os.rename(f"{papers.key}.away", papers.key)
        eventually(lambda: http(port, way, "/version")[0] == 200, what="a gateway that serves")


def test_a_certificate_of_its_own(tmp_path: Path) -> None:
    """--auto-tls: it is made once, for the address, and only its owner may read the key."""
    with kvorum(tmp_path, {"auto-tls": "true", "self-signed-cert-validity": "2"}) as (cluster, port):
        made = cluster.data_dir(0) / "fixtures" / "client"
        way = ssl.create_default_context(cafile=str(made / "cert.pem"))
        assert http(port, way, "/version")[0] == 200
        assert stat.S_IMODE((made / "key.pem").stat().st_mode) == 0o600
        before = (made / "cert.pem").read_bytes()
        assert cluster.stop(0) == 0
        cluster.start(0)
        assert (made / "cert.pem").read_bytes() == before
        assert http(port, way, "/version")[0] == 200


def _missing(papers: Papers) -> tuple[dict[str, str], str]:
    return {"cert-file": papers.certificate, "key-file": "/nowhere.key"}, "key /nowhere.key: No such file or directory"


def _another_key(papers: Papers) -> tuple[dict[str, str], str]:
    other = papers.issue("x", name="other")[1]
    return {"cert-file": papers.certificate, "key-file": other}, f"key {other}: key values mismatch"


def _no_certificate(papers: Papers) -> tuple[dict[str, str], str]:
    return {"cert-file": papers.key, "key-file": papers.key}, f"certificate {papers.key}: no start line"


def _no_ca(papers: Papers) -> tuple[dict[str, str], str]:
    return mutual(papers) | {"trusted-ca-file": papers.key}, f"CA {papers.key}: "


def _no_crl(papers: Papers) -> tuple[dict[str, str], str]:
    return mutual(papers) | {"client-crl-file": papers.ca_file}, f"CRL {papers.ca_file}: "


@pytest.mark.parametrize("wrong", [_missing, _another_key, _no_certificate, _no_ca, _no_crl])
def test_a_node_with_wrong_files_does_not_start(
    tmp_path: Path, wrong: Callable[[Papers], tuple[dict[str, str], str]]
) -> None:
    settings, reason = wrong(Papers(tmp_path / "papers"))
    cluster = Cluster(tmp_path, nodes=1)
    try:
        cluster.start(0, wait=False, settings={"listen-client-urls": f"https://{cluster.gateway(0)}", **settings})
        assert cluster.wait(0) == Exit.USAGE
        assert f"kvorum: TLS: {reason}" in cluster.log(0)
    finally:
        cluster.close()


def test_a_flag_alone_means_true(tmp_path: Path) -> None:
    """As etcd's flags are written."""
    words = ["--listen-client-urls=http://127.0.0.1:1", "--client-cert-auth", "--data-dir", str(tmp_path / "d")]
    command = [sys.executable, "-m", "cluster.cli", "node", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, env=environment())
    assert (done.returncode, done.stderr) == (
        Exit.USAGE,
        "kvorum: --client-cert-auth needs --trusted-ca-file: clients' certificates are judged by it\n",
    )
