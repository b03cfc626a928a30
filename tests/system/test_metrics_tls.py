"""TLS of the metrics port of a real node, asked by Python's ssl; and a real etcd 3.5.1 with the same settings, which
must answer the same. Both have a second URL without TLS."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster import local
from cluster.exits import Exit
from tests.conftest import PortBlock, environment
from tests.etcds import binary, etcd
from tests.native.papers import Papers
from tests.system.cluster import Cluster
from tests.system.test_tls import WAIT, connect, http, mutual

HEALTHY = (200, {"health": "true", "reason": ""})


class Place(NamedTuple):
    """A server whose metrics' clients must show a certificate."""

    tls: int
    plain: int
    client: int
    papers: Papers


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("metrics") / "papers")


@pytest.fixture(scope="module", params=["kvorum", "etcd"])
def place(request: pytest.FixtureRequest, papers: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory, block = tmp_path_factory.mktemp(request.param), PortBlock(200)
    secure, plain, settings = block.base, block.base + 1, mutual(papers)
    urls = f"http://127.0.0.1:{plain},https://127.0.0.1:{secure}"
    try:
        if request.param == "kvorum":
            with kvorum(directory, secure, settings) as cluster:
                plain = cluster.places[0].port + local.STEP_METRICS
                yield Place(secure, plain, int(cluster.gateway(0).rpartition(":")[2]), papers)
            return
        with etcd(directory, settings={**settings, "listen-metrics-urls": urls}) as running:
            yield Place(secure, plain, running.port, papers)
    finally:
        block.release()


def kvorum(directory: Path, port: int, settings: dict[str, str]) -> Cluster:
    """A node whose metrics are served with TLS on that port, too; etcd's clients come in without."""
    cluster = Cluster(directory, nodes=1, shared=True)
    plain = f"http://127.0.0.1:{cluster.places[0].port + local.STEP_METRICS}"
    cluster.settings |= {"listen-metrics-urls": f"{plain},https://127.0.0.1:{port}", **settings}
    return cluster


def certified(papers: Papers, name: str = "127.0.0.1") -> ssl.SSLContext:
    way = ssl.create_default_context(cafile=papers.ca_file)
    way.load_cert_chain(*papers.issue(name, name=f"client of {name}"))
    return way


def plainly(port: int, path: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WAIT) as answer:
        status: int = answer.status
        return status


def test_pages(place: Place) -> None:
    assert http(place.tls, certified(place.papers), "/health") == HEALTHY
    with connect(place.tls, certified(place.papers)) as secure:
        secure.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b""
        while chunk := secure.recv(65536):
            text += chunk
    assert text.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"\netcd_server_has_leader 1\n" in text.replace(b" 1.0\n", b" 1\n")


def test_nobody_without_a_certificate_of_the_ca(place: Place, tmp_path: Path) -> None:
    stranger = Papers(tmp_path / "other")
    foreign = ssl.create_default_context(cafile=place.papers.ca_file)
    foreign.load_cert_chain(*stranger.issue("127.0.0.1", name="mallory"))
    for way in (ssl.create_default_context(cafile=place.papers.ca_file), foreign):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            http(place.tls, way, "/health")


def test_plain_text_gets_nothing(place: Place) -> None:
    with socket.create_connection(("127.0.0.1", place.tls), timeout=WAIT) as plain:
        plain.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        said = b""
        try:
            while got := plain.recv(4096):
                said += got
        except ConnectionError:
            pass
    assert said == b""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_versions_are_refused(place: Place) -> None:
    way = certified(place.papers)
    way.set_ciphers("ALL:@SECLEVEL=0")
    way.minimum_version = way.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        http(place.tls, way, "/health")


def test_the_other_url_is_as_it_was(place: Place) -> None:
    assert plainly(place.plain, "/health") == 200
    assert plainly(place.client, "/metrics") == 200, "the client port has them, too"


def test_https_without_a_certificate_is_refused(tmp_path: Path, ports: PortBlock) -> None:
    words = [f"--data-dir={tmp_path / 'd'}", f"--listen-metrics-urls=https://127.0.0.1:{ports.base}"]
    words += [f"--listen-client-urls=http://127.0.0.1:{ports.base + 1}"]
    command = [sys.executable, "-m", "cluster.cli", "node", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, env=environment())
    assert done.returncode == Exit.USAGE
    needed = "kvorum: --cert-file and --key-file, or --auto-tls, are needed for https in --listen-metrics-urls\n"
    assert done.stderr == needed
    peer = f"http://127.0.0.1:{ports.base + 2}"
    words += [f"--advertise-client-urls=http://127.0.0.1:{ports.base + 1}", f"--initial-cluster=default={peer}"]
    words += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
    done = subprocess.run([binary("etcd"), *words], capture_output=True, text=True, timeout=WAIT, env=environment())
    assert done.returncode == 1
    assert "KeyFile and CertFile are not presented" in done.stderr


def test_only_clients_of_the_hosts_that_are_named_and_not_revoked(papers: Papers, tmp_path: Path) -> None:
    settings = mutual(papers) | {"client-cert-allowed-hostname": "web.host.example"}
    settings["client-crl-file"] = papers.revoke(papers.issue("web.host.example", name="revoked")[0])
    block = PortBlock(200)
    gone = ssl.create_default_context(cafile=papers.ca_file)
    gone.load_cert_chain(str(papers.directory / "revoked.pem"), str(papers.directory / "revoked.key"))
    try:
        with kvorum(tmp_path, block.base, settings):
            assert http(block.base, certified(papers, "web.host.example"), "/health") == HEALTHY
            for way in (certified(papers, "other.host.example"), gone):
                with pytest.raises((ssl.SSLError, OSError)):
                    http(block.base, way, "/health")
    finally:
        block.release()


def test_a_new_certificate_needs_no_restart_and_bad_files_change_nothing(tmp_path: Path) -> None:
    papers, renewed = Papers(tmp_path / "papers"), Papers(tmp_path / "renewed")
    settings = {"cert-file": papers.certificate, "key-file": papers.key}
    old, new = (ssl.create_default_context(cafile=one.ca_file) for one in (papers, renewed))
    block = PortBlock(200)
    port = block.base
    try:
        with kvorum(tmp_path, port, settings) as cluster:
            assert http(port, old, "/health") == HEALTHY
            shutil.copy(renewed.certificate, papers.certificate)
            for _ in range(3):
                assert http(port, old, "/health") == HEALTHY
            assert cluster.log(0).count("TLS of the metrics: certificate") == 1
            shutil.copy(renewed.key, papers.key)
            assert http(port, new, "/health") == HEALTHY
            with pytest.raises(ssl.SSLCertVerificationError):
                http(port, old, "/health")
            assert cluster.log(0).count("TLS of the metrics: the files are of use again") == 1
            assert cluster.healthy(0)
    finally:
        block.release()


def test_auto_tls_and_a_client_port_without(tmp_path: Path, ports: PortBlock) -> None:
    with kvorum(tmp_path, ports.base, {"auto-tls": "true"}) as cluster:
        made = cluster.data_dir(0) / "fixtures" / "client" / "cert.pem"
        assert http(ports.base, ssl.create_default_context(cafile=str(made)), "/health") == HEALTHY


def test_who_never_finishes_his_handshake_is_let_go_and_harms_nobody(papers: Papers, tmp_path: Path) -> None:
    """web.py: handshake and head together have 5 seconds; at 32 connections the oldest is cut."""
    block = PortBlock(200)
    with kvorum(tmp_path, block.base, mutual(papers)):
        crowd = [socket.create_connection(("127.0.0.1", block.base), timeout=10) for _ in range(40)]
        try:
            before = time.monotonic()
            assert crowd[0].recv(1) == b""
            assert time.monotonic() - before < 4, "it was the oldest"
            assert http(block.base, certified(papers), "/health") == HEALTHY
            assert crowd[-1].recv(1) == b""
            assert 4 < time.monotonic() - before < 8
        finally:
            for connection in crowd:
                connection.close()
            block.release()
