"""TLS and mTLS on the edge, with certificates that trustme makes, and clients that are not ours: grpcio, curl, ssl."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from native import edge
from native.edge import Edge, Limits, TlsError

from .edges import METHODS, WAIT, Service, service
from .papers import Papers


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path / "papers")


def prepare(
    papers: Papers, *, mutual: bool = False, crl: str | None = None, hosts: str | None = None
) -> Callable[[Edge], bool]:
    def load(to: Edge) -> bool:
        to.tls(papers.certificate, papers.key, ca=papers.ca_file if mutual else None, crl=crl, hosts=hosts)
        return True

    return load


@pytest.fixture
def running(papers: Papers) -> Iterator[Service]:
    with service(prepare=prepare(papers)) as started:
        yield started


@pytest.fixture
def mutual(papers: Papers) -> Iterator[Service]:
    with service(prepare=prepare(papers, mutual=True)) as started:
        yield started


def channel(to: Service, papers: Papers, client: tuple[str, str] | None = None) -> grpc.Channel:
    chain, key = (Path(name).read_bytes() for name in client) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(Path(papers.ca_file).read_bytes(), key, chain)
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(f"127.0.0.1:{to.port}", credentials, options)


def connect(to: Service, papers: Papers, *, alpn: tuple[str, ...] = ("h2",)) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=papers.ca_file)
    context.set_alpn_protocols(list(alpn))
    raw = socket.create_connection(("127.0.0.1", to.port), timeout=WAIT)
    return context.wrap_socket(raw, server_hostname="127.0.0.1")


def test_calls_and_streams_over_tls(running: Service, papers: Papers) -> None:
    with channel(running, papers) as secure:
        for size in (0, 1, 16383, 16384, 100_000, 2_000_000):
            assert secure.unary_unary("/test.Echo/Echo")(bytes(size), timeout=WAIT) == bytes(size)
        messages = [bytes([i]) * i * 3000 for i in range(50)]
        assert list(secure.stream_stream("/test.Echo/Chat")(iter(messages), timeout=WAIT)) == messages
        poured = secure.unary_stream("/test.Echo/Pour")(b"300 100000", timeout=WAIT * 2)
        assert sum(len(message) for message in poured) == 30_000_000
    opened = [more for event, _, more in running.answering.events if event[5] == edge.OPENED]
    assert opened == [b""]


def test_a_client_without_a_certificate_is_not_let_in(mutual: Service, papers: Papers) -> None:
    with channel(mutual, papers) as anonymous, pytest.raises(grpc.RpcError) as error:
        anonymous.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    mutual.until(lambda a: a.edge.stats()["handshake_failures"] >= 1)
    assert mutual.call(lambda _: mutual.answering.events) == []


def test_a_client_with_a_certificate_is_known_by_its_name(mutual: Service, papers: Papers) -> None:
    """etcd's --client-cert-auth: the common name is the user."""
    with channel(mutual, papers, papers.issue("client", name="alice")) as known:
        assert known.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT) == b"x"
    (event, peer, name), *_ = mutual.answering.events
    assert (event[5], event[7], name) == (edge.OPENED, edge.HTTP2, b"alice")
    assert peer.startswith(b"127.0.0.1:")


def test_a_certificate_of_another_ca_is_refused(mutual: Service, papers: Papers, tmp_path: Path) -> None:
    stranger = Papers(tmp_path / "other").issue("client", name="mallory")
    with channel(mutual, papers, stranger) as refused, pytest.raises(grpc.RpcError):
        refused.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT)
    assert mutual.call(lambda _: mutual.answering.events) == []


@pytest.mark.parametrize(
    ("identities", "let_in"),
    [
        (("web.host.example",), True),
        (("WEB.host.example",), True),
        (("other.host.example", "web.host.example"), True),
        (("*.host.example",), True),
        (("10.0.0.1",), True),
        (("::1",), True),
        (("other.host.example",), False),
        (("deep.web.host.example",), False),
        (("*.example",), False),
        (("10.0.0.2",), False),
    ],
)
def test_only_certificates_for_the_hosts_that_are_named(
    papers: Papers, identities: tuple[str, ...], let_in: bool
) -> None:
    """As Go's VerifyHostname: a name stands for itself, a star for one whole label, and the common name for nothing.
    (But OpenSSL wants two labels behind a star, Go one.)"""
    client = papers.issue(*identities, name="web.host.example")
    with (
        service(prepare=prepare(papers, mutual=True, hosts="10.0.0.1,web.host.example,::1")) as strict,
        channel(strict, papers, client) as secure,
    ):
        if let_in:
            assert secure.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT) == b"x"
            return
        with pytest.raises(grpc.RpcError) as error:
            secure.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_revoked_certificate_is_refused(papers: Papers) -> None:
    good, bad = papers.issue("client", name="good"), papers.issue("client", name="bad")
    with service(prepare=prepare(papers, mutual=True, crl=papers.revoke(bad[0]))) as strict:
        with channel(strict, papers, good) as one:
            assert one.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT) == b"x"
        with channel(strict, papers, bad) as other, pytest.raises(grpc.RpcError):
            other.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT)


def test_certificates_can_be_changed_while_it_runs(running: Service, papers: Papers, tmp_path: Path) -> None:
    """What is open goes on; what comes gets the new one."""
    before = connect(running, papers)
    renewed = Papers(tmp_path / "renewed")
    running.call(lambda e: e.tls(renewed.certificate, renewed.key))
    with channel(running, renewed) as fresh:
        assert fresh.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT) == b"x"
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(running, papers)
    before.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    assert before.recv(9)[3] == 4  # SETTINGS
    before.close()


def test_files_that_have_changed_are_read_again(papers: Papers, tmp_path: Path) -> None:
    """As with etcd no restart is needed: written over or moved in place, even twice within a tick of their clock."""
    with service(prepare=prepare(papers)) as running:
        for round, put in enumerate((shutil.copy, os.replace, shutil.copy)):
            renewed = Papers(tmp_path / f"renewed{round}")
            put(renewed.certificate, papers.certificate)
            put(renewed.key, papers.key)
            with pytest.raises(ssl.SSLCertVerificationError):
                connect(running, papers)
            connect(running, renewed).close()


def test_half_a_renewal_changes_nothing(running: Service, papers: Papers, tmp_path: Path) -> None:
    """A certificate whose key isn't there yet: what was read before goes on, and it is told why."""
    renewed = Papers(tmp_path / "renewed")
    shutil.copy(renewed.certificate, papers.certificate)
    connect(running, papers).close()
    assert running.call(lambda e: e.stats()["tls_load_failures"]) == 1
    assert papers.key in running.call(lambda e: e.tls_error)
    os.unlink(papers.key)
    connect(running, papers).close()
    assert running.call(lambda e: e.tls_error) == f"key {papers.key}: No such file or directory"
    shutil.copy(renewed.key, papers.key)
    connect(running, renewed).close()


def test_old_files_are_not_read_for_every_connection(running: Service, papers: Papers) -> None:
    def loads() -> int:
        connect(running, papers).close()
        return int(running.call(lambda e: e.stats()["tls_loads"]))

    until = time.monotonic() + WAIT
    while loads() != loads():  # they are of this second
        assert time.monotonic() < until
        time.sleep(0.2)
    assert loads() == loads()


def test_a_revocation_counts_from_the_next_connection_on(papers: Papers) -> None:
    good, bad = papers.issue("client", name="good"), papers.issue("client", name="bad")
    crl = papers.revoke(good[0])
    with service(prepare=prepare(papers, mutual=True, crl=crl)) as strict:
        with channel(strict, papers, bad) as one:
            assert one.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT) == b"x"
        assert papers.revoke(bad[0]) == crl
        with channel(strict, papers, bad) as other, pytest.raises(grpc.RpcError):
            other.unary_unary("/test.Echo/Echo")(b"x", timeout=WAIT)


def test_a_certificate_that_signs_itself(tmp_path: Path) -> None:
    certificate, key = edge.self_signed("IP:127.0.0.1,DNS:localhost", 365)
    files = tmp_path / "own.pem", tmp_path / "own.key"
    for file, text in zip(files, (certificate, key), strict=True):
        file.write_bytes(text)
    with service(prepare=lambda e: e.tls(*map(str, files)) is None) as own:
        context = ssl.create_default_context(cafile=str(files[0]))
        for name in ("127.0.0.1", "localhost"):
            raw = socket.create_connection(("127.0.0.1", own.port), timeout=WAIT)
            context.wrap_socket(raw, server_hostname=name).close()
    found = x509.load_pem_x509_certificate(certificate)
    assert timedelta(364) < found.not_valid_after_utc - datetime.now(UTC) <= timedelta(365)
    assert edge.self_signed("IP:127.0.0.1", 1) != edge.self_signed("IP:127.0.0.1", 1)
    with pytest.raises(TlsError, match="nonsense"):
        edge.self_signed("nonsense", 1)


def test_versions_and_ciphers_are_as_told(papers: Papers) -> None:
    def agreed(
        minimum: int, maximum: int, theirs: ssl.TLSVersion, ciphers: str | None = None
    ) -> tuple[str, str] | None:
        """Version and cipher for a client of one version, which would take any cipher; None: refused."""
        wishes = {"ciphers": ciphers, "version_min": minimum, "version_max": maximum}
        with service(prepare=lambda e: e.tls(papers.certificate, papers.key, **wishes) is None) as running:
            context = ssl.create_default_context(cafile=papers.ca_file)
            context.minimum_version = context.maximum_version = theirs
            raw = socket.create_connection(("127.0.0.1", running.port), timeout=WAIT)
            try:
                with context.wrap_socket(raw, server_hostname="127.0.0.1") as secure:
                    found = secure.cipher()
                    assert found is not None
                    return str(secure.version()), found[0]
            except (ssl.SSLError, ConnectionError):
                return None

    two, three = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    one = "ECDHE-ECDSA-AES256-GCM-SHA384"
    assert (agreed(13, 0, two), (agreed(13, 0, three) or "-")[0]) == (None, "TLSv1.3")
    assert (agreed(12, 12, three), (agreed(12, 12, two) or "-")[0]) == (None, "TLSv1.2")
    assert agreed(12, 0, two, one) == ("TLSv1.2", one)
    assert agreed(12, 0, two, "ECDHE-RSA-AES128-GCM-SHA256") is None, "the certificate has another kind of key"
    with pytest.raises(TlsError, match="NONSENSE"):
        agreed(12, 0, two, "NONSENSE")


def test_bad_files_are_named_and_change_nothing(running: Service, papers: Papers, tmp_path: Path) -> None:
    other, nothing = papers.issue("x", name="other"), str(tmp_path / "nothing.pem")
    (tmp_path / "text.pem").write_text("not a certificate")
    for arguments, named in (
        ((nothing, papers.key), "nothing.pem"),
        ((papers.certificate, nothing), "nothing.pem"),
        ((str(tmp_path / "text.pem"), papers.key), "text.pem"),
        ((papers.certificate, other[1]), "other.key"),
        ((papers.certificate, papers.key, nothing), "nothing.pem"),
        ((papers.certificate, papers.key, papers.ca_file, nothing), "nothing.pem"),
    ):
        names = dict(zip(("certificate", "key", "ca", "crl"), arguments, strict=False))
        with pytest.raises(TlsError, match=named):
            running.call(lambda e, names=names: _catching(lambda: e.tls(**names)))()
    connect(running, papers).close()


def _catching(job: Callable[[], None]) -> Callable[[], None]:
    """What went wrong on the edge's thread, raised where the result is called."""
    try:
        job()
    except TlsError as error:
        caught = error

        def again() -> None:
            raise caught

        return again
    return lambda: None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_old_versions_and_other_protocols_are_refused(running: Service, papers: Papers) -> None:
    context = ssl.create_default_context(cafile=papers.ca_file)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", running.port), timeout=WAIT) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(raw, server_hostname="127.0.0.1")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(running, papers, alpn=("spdy/3",))
    for alpn, chosen in ((("http/1.1", "h2"), "h2"), (("http/1.1",), "http/1.1"), ((), None)):
        with connect(running, papers, alpn=alpn) as secure:
            assert secure.selected_alpn_protocol() == chosen


def test_http1_passes_through_tls(running: Service, papers: Papers) -> None:
    with connect(running, papers, alpn=("http/1.1",)) as secure:
        message = b"POST /v3/kv/put HTTP/1.1\r\n\r\n" + bytes(100_000)
        secure.sendall(message)
        got = b""
        while len(got) < len(message):
            got += secure.recv(65536)
        assert got == message


def test_json_over_http2_is_a_request(running: Service, papers: Papers) -> None:
    """curl agrees on HTTP/2 by itself; etcd serves its JSON there as well."""
    command = ["curl", "--silent", "--show-error", "--http2", "--cacert", papers.ca_file]
    more = ["-d", '{"key":"Zm9v"}', "-w", "|%{http_code}|%{http_version}|%{content_type}"]
    url = f"https://127.0.0.1:{running.port}/v3/kv/range?x=1"
    clean = {name: text for name, text in os.environ.items() if name != "LD_PRELOAD"}  # of test_sanitizers.py
    done = subprocess.run([*command, *more, url], capture_output=True, text=True, timeout=WAIT, env=clean)
    assert (done.stdout, done.stderr) == ('POST /v3/kv/range?x=1|{"key":"Zm9v"}|200|2|text/plain', "")
    command += ["-w", "|%{http_code}"]
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=WAIT, env=clean)
    assert done.stdout == "GET /v3/kv/range?x=1||200"
    token = [*command, "-H", "Authorization: Bearer t", url]
    done = subprocess.run(token, capture_output=True, text=True, timeout=WAIT, env=clean)
    assert done.stdout == "GET /v3/kv/range?x=1\0authorization\0Bearer t||200"
    told = ["Grpc-Timeout: x", "Grpc-Metadata-Token: a", "grpc-metadata-hasleader: true", "Grpc-Metadata-Other: b"]
    told += ["token: b", "Grpc-Metadata-Authorization: c"]
    several = [word for line in told for word in ("-H", line)]
    done = subprocess.run([*command, *several, url], capture_output=True, text=True, timeout=WAIT, env=clean)
    assert done.stdout == (
        "GET /v3/kv/range?x=1\0grpc-timeout\0x\0grpc-metadata-token\0a\0grpc-metadata-hasleader\0true"
        "\0grpc-metadata-authorization\0c||200"
    )
    late = [*command, "-H", "Grpc-Timeout: 1n", url]
    done = subprocess.run(late, capture_output=True, text=True, timeout=WAIT, env=clean)
    assert done.stdout == "GET /v3/kv/range?x=1\0grpc-timeout\x001n||200", "it is told, and nothing else"
    large = [word for name in "ab" for word in ("-H", f"Grpc-Metadata-Token: {name * 6000}")]
    done = subprocess.run([*command, *large, url], capture_output=True, text=True, timeout=WAIT, env=clean)
    assert done.stdout == "|200"
    page = [*command, "-H", "Origin: http://a:1", "-H", "Authorization: t", "-d", "headers", "-D", "-", url]
    done = subprocess.run(page, capture_output=True, text=True, timeout=WAIT, env=clean)
    head, _, body = done.stdout.partition("\n\n")
    assert body == "POST /v3/kv/range?x=1\0origin\0http://a:1\0authorization\0t|200"
    lines = head.splitlines()
    assert lines[:4] == ["HTTP/2 200 ", "content-type: text/plain", "one: 1", "three: 3 : 4"]
    assert 10 < lines.count("many: x") < 16, "there is an end to them"
    page[page.index("Origin: http://a:1")] = "Origin: " + "a" * 257
    done = subprocess.run(page, capture_output=True, text=True, timeout=WAIT, env=clean)
    assert done.stdout.endswith("\n\nPOST /v3/kv/range?x=1\0authorization\0t|200")
    done = subprocess.run([*command, "-d", "stream", url], capture_output=True, text=True, timeout=WAIT, env=clean)
    assert done.stdout == "one two|200"
    command += ["--data-binary", "@-", url]
    large = subprocess.run(command, input=bytes(3_000_000), capture_output=True, timeout=WAIT, env=clean)
    assert large.stdout.endswith(b"|413")


@pytest.mark.parametrize(
    "said", [b"", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n\r\n"], ids=["silent", "cut", "plain"]
)
def test_half_a_handshake_has_a_deadline(papers: Papers, said: bytes) -> None:
    """GHSA-6vch-q96h-7gc3: connections that never finish their handshake."""
    with service(Limits(handshake_ms=200), prepare(papers)) as started:
        clients = [socket.create_connection(("127.0.0.1", started.port), timeout=WAIT) for _ in range(100)]
        for client in clients:
            client.sendall(said)
        started.until(lambda a: a.edge.stats()["accepted"] == 100 and a.edge.stats()["connections"] == 0)
        for client in clients:
            client.close()
        assert started.call(lambda _: started.answering.events) == []


def test_noise_inside_tls_ends_the_connection(running: Service, papers: Papers) -> None:
    for noise in (b"\x17\x03\x03\x00\x20" + bytes(32), b"\x15\x03\x03\x00\x02\x02\x28", bytes(1000)):
        with connect(running, papers) as secure:
            raw = socket.socket(fileno=secure.detach())
            raw.settimeout(WAIT)
            raw.sendall(noise)
            while True:
                try:
                    if not raw.recv(4096):
                        break
                except ConnectionError:
                    break
            raw.close()
    running.until(lambda a: a.edge.stats()["connections"] == 0)


def test_without_a_certificate_nothing_listens() -> None:
    to = Edge(METHODS)
    with pytest.raises(OSError, match="Invalid"):
        to.listen("127.0.0.1", 0, tls=True)
    to.close()
