"""What a node's configuration means, and which ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import REQUEST_BYTES_LIMIT, NodeConfig, cluster_id, member_id, resolve
from cluster.settings import ConfigError
from cluster.tls import Tls
from kvorum import wire


def test_nothing_set_is_a_node_of_its_own_with_etcds_ids() -> None:
    """The ids that every etcd started without flags has: they follow from http://localhost:2380 and "etcd-cluster"."""
    config = resolve({})
    assert (config.member_id, config.cluster_id) == (0x8E9E05C52164694D, 0xCDF818194E3A8C32)
    assert config.members == ((config.member_id, "default", "tcp://localhost:2380"),)
    assert config.peers == ()
    assert config.listen_native == "tcp://127.0.0.1:2381"
    assert config.advertise_client_urls == ("http://127.0.0.1:2379",)
    assert (config.heartbeat_ms, config.election_ms) == (100, 1000)
    assert config.quota_backend_bytes == 2 << 30
    assert config.data_dir.endswith("/default.kvorum")
    assert config.wal_dir == config.data_dir + "/wal"


def test_ids_do_not_depend_on_the_order_or_on_which_member_computes_them() -> None:
    """etcd sorts URLs and ids before it hashes them."""
    urls = {"a": "http://127.0.0.1:12380", "b": "http://127.0.0.1:22380", "c": "http://127.0.0.1:32380"}
    forward = ",".join(f"{name}={url}" for name, url in urls.items())
    backward = ",".join(f"{name}={url}" for name, url in reversed(urls.items()))
    seen = {
        (config.cluster_id, config.members)
        for name, url in urls.items()
        for initial in (forward, backward)
        for config in [resolve({"name": name, "listen-peer-urls": url, "initial-cluster": initial})]
    }
    assert len(seen) == 1
    ((cluster, members),) = seen
    assert cluster == cluster_id([member_id([url], "etcd-cluster") for url in urls.values()])
    assert [member.id for member in members] == sorted(member.id for member in members)


def test_another_token_is_another_cluster() -> None:
    assert resolve({"initial-cluster-token": "b"}).cluster_id != resolve({}).cluster_id


def test_tcp_and_http_peer_urls_are_the_same_member() -> None:
    """http is how etcd spells a peer URL, tcp what it is here; members may mix the spellings."""
    assert resolve({"listen-peer-urls": "tcp://10.0.0.1:1"}) == resolve({"listen-peer-urls": "http://10.0.0.1:1/"})
    assert resolve({"listen-peer-urls": "tcp://10.0.0.1:1"}).members[0].peer_url == "http://10.0.0.1:1"


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = resolve({"listen-metrics-urls": "http://127.0.0.1:1,http://[::1]:2"}, run_dir="/run/x")
    config.save(str(tmp_path / "node.json"))
    loaded = NodeConfig.load(str(tmp_path / "node.json"))
    assert loaded == config
    assert loaded.members[0].name == "default"
    assert loaded.ipc("raft.sock") == "/run/x/raft.sock"


def test_a_member_that_listens_everywhere_must_say_where_it_is() -> None:
    """0.0.0.0 is an address to listen on, not one to connect to."""
    with pytest.raises(ConfigError, match=r"--initial-advertise-peer-urls: nobody can connect to 0\.0\.0\.0"):
        resolve({"listen-peer-urls": "http://0.0.0.0:2380"})
    with pytest.raises(ConfigError, match=r"--advertise-native-url: nobody can connect to 0\.0\.0\.0"):
        resolve({"listen-native-url": "tcp://0.0.0.0:2381"})
    config = resolve({"listen-native-url": "tcp://0.0.0.0:2381", "advertise-native-url": "tcp://db1.example:2381"})
    assert (config.listen_native, config.advertise_native) == ("tcp://0.0.0.0:2381", "tcp://db1.example:2381")


AUTOMATIC = {"auto-tls": "true"}
CERTIFIED = {"listen-client-urls": "https://127.0.0.1:2379", "cert-file": "/c.pem", "key-file": "/c.key"}


def test_tls_of_the_gateway(tmp_path: Path) -> None:
    config = resolve({**CERTIFIED, "trusted-ca-file": "/ca.pem", "client-cert-auth": "true", "client-crl-file": "/crl"})
    assert config.tls == Tls("/c.pem", "/c.key", "/ca.pem", "/crl", "", "", 12, 0, 0)
    assert config.listen_client == ("tls://127.0.0.1:2379",)
    assert config.advertise_client_urls == ("https://127.0.0.1:2379",), "what the member list shows"
    config.save(str(tmp_path / "node.json"))
    assert NodeConfig.load(str(tmp_path / "node.json")) == config
    both = resolve({**CERTIFIED, "listen-client-urls": "https://127.0.0.1:2379,http://127.0.0.1:2378"})
    assert both.advertise_client_urls == ("https://127.0.0.1:2379", "http://127.0.0.1:2378")
    other = resolve({"advertise-client-urls": "https://db1.example:443"})
    assert (other.tls, other.advertise_client_urls) == (None, ("https://db1.example:443",)), "somebody else does it"


def test_tls_of_the_metrics() -> None:
    """The gateway's files, and either alone may want them."""
    metrics = {"listen-metrics-urls": "http://127.0.0.1:1,https://127.0.0.1:2"}
    config = resolve({**CERTIFIED, **metrics, "listen-client-urls": "http://127.0.0.1:2379"})
    assert config.listen_metrics == ("tcp://127.0.0.1:1", "tls://127.0.0.1:2")
    assert config.tls == resolve({**CERTIFIED, **metrics}).tls == resolve(CERTIFIED).tls


def test_sockets_in_the_file_system_are_for_etcds_clients(tmp_path: Path) -> None:
    """All of etcd's spellings; a path that isn't absolute is one of the node's directory, as with etcd."""
    config = resolve({"listen-client-urls": "unix:///run/s1,unix:/run/s2,unix://local:2379,http://127.0.0.1:1"})
    here = str(Path.cwd() / "local:2379")
    assert config.listen_client == ("unix:///run/s1", "unix:///run/s2", f"unix://{here}", "tcp://127.0.0.1:1")
    assert config.advertise_client_urls == (*config.listen_client[:3], "http://127.0.0.1:1")
    assert config.tls is None
    config.save(str(tmp_path / "node.json"))
    assert NodeConfig.load(str(tmp_path / "node.json")) == config
    both = resolve({**CERTIFIED, "listen-client-urls": "unixs:///run/s", "advertise-client-urls": "unixs:/run/s"})
    assert both.listen_client == both.advertise_client_urls == ("unixs:///run/s",)
    assert both.tls == resolve(CERTIFIED).tls


def test_hosts_whose_certificates_are_taken() -> None:
    mutual = {**CERTIFIED, "trusted-ca-file": "/ca.pem"}
    tls = resolve({**mutual, "client-cert-allowed-hostname": "web.example., 10.0.0.1,[::0001]"}).tls
    assert tls is not None
    assert tls.hosts == "web.example,10.0.0.1,::1"


def test_files_are_found_wherever_the_node_stands() -> None:
    tls = resolve({**CERTIFIED, "cert-file": "c.pem"}).tls
    assert tls is not None
    assert tls.certificate == str(Path.cwd() / "c.pem")


def test_a_certificate_of_its_own() -> None:
    """--cert-file goes before --auto-tls, as with etcd."""
    automatic = {"listen-client-urls": "https://127.0.0.1:2379", "auto-tls": "true", "data-dir": "/d"}
    made = Tls("/d/fixtures/client/cert.pem", "/d/fixtures/client/key.pem", "", "", "", "", 12, 0, 1)
    assert resolve(automatic).tls == made
    assert resolve({**automatic, "self-signed-cert-validity": "3"}).tls == made._replace(make_years=3)
    assert resolve({**automatic, **CERTIFIED}).tls == resolve(CERTIFIED).tls


@pytest.mark.parametrize(
    ("chosen", "meant"),
    [
        ({}, ("", 12, 0)),
        ({"tls-min-version": "TLS1.3", "tls-max-version": "TLS1.3"}, ("", 13, 13)),
        ({"tls-min-version": "", "tls-max-version": "TLS1.2"}, ("", 0, 12)),
        (
            {"cipher-suites": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_RSA_WITH_AES_256_CBC_SHA"},
            ("ECDHE-RSA-AES128-GCM-SHA256:AES256-SHA", 12, 0),
        ),
        (
            {"cipher-suites": "TLS_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"},
            ("ECDHE-ECDSA-CHACHA20-POLY1305", 12, 0),
        ),
        ({"cipher-suites": "TLS_AES_128_GCM_SHA256"}, ("", 13, 0)),
    ],
)
def test_versions_and_suites(chosen: dict[str, str], meant: tuple[str, int, int]) -> None:
    """A list with none of TLS 1.2 leaves only TLS 1.3, whose suites nobody can choose (Go's crypto/tls)."""
    tls = resolve({**CERTIFIED, **chosen}).tls
    assert tls is not None
    assert (tls.ciphers, tls.version_min, tls.version_max) == meant


def test_names_of_the_gateways() -> None:
    assert resolve({}).gateways == ("gateway",)
    assert resolve({"gateway-processes": "3"}).gateways == ("gateway", "gateway-2", "gateway-3")
    assert resolve({"gateway-processes": "3", "listen-client-urls": ""}).gateways == ()


def test_the_largest_request_fits_into_a_batch() -> None:
    assert wire.BATCH_BYTES_MAX - (64 << 10) == REQUEST_BYTES_LIMIT


THREE = "a=http://h1:2380,b=http://h2:2380,c=http://h3:2380"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"election-timeout": "400"}, "at least 5 times --heartbeat-interval 100"),
        ({"election-timeout": "50001"}, "at most 50000 ms"),
        ({"heartbeat-interval": "0"}, "at least 1 ms"),
        ({"heartbeat-interval": "fast"}, "--heartbeat-interval 'fast': expected a whole number"),
        ({"max-txn-ops": "0"}, "--max-txn-ops 0: expected 1 to"),
        ({"max-request-bytes": str(8 << 20)}, "--max-request-bytes 8388608: expected 1 to"),
        ({"gateway-processes": "0"}, "--gateway-processes 0: expected 1 to 64"),
        ({"log-level": "loud"}, "expected one of debug, info, warn, error"),
        ({"initial-cluster-state": "old"}, "expected one of new, existing"),
        ({"initial-cluster-token": ""}, "--initial-cluster-token: expected a text"),
        ({"name": ""}, "--name ''"),
        ({"name": "a,b"}, "--name 'a,b'"),
        ({"name": "d", "initial-cluster": THREE}, "doesn't name this member; its --name is 'd'"),
        (
            {"name": "a", "initial-cluster": THREE},
            "--initial-cluster says a=tcp://h1:2380, but --listen-peer-urls says",
        ),
        (
            {"name": "a", "initial-cluster": THREE, "initial-advertise-peer-urls": "http://h2:2380"},
            "--initial-cluster says a=tcp://h1:2380, but --initial-advertise-peer-urls says tcp://h2:2380",
        ),
        ({"name": "a", "initial-cluster": THREE + ",a=http://h4:1"}, "names 'a' twice"),
        ({"name": "a", "initial-cluster": THREE + ",d=http://h3:2380"}, "gives tcp://h3:2380 to 'c' and to 'd'"),
        ({"initial-cluster": "http://h1:2380"}, "expected NAME=URL,NAME=URL"),
        ({"initial-cluster": "a=h1:2380"}, "expected http://HOST:PORT or tcp://HOST:PORT"),
        ({"listen-peer-urls": "https://127.0.0.1:2380"}, "https is for --listen-client-urls"),
        ({"listen-peer-urls": "unix:///s"}, "unix is for --listen-client-urls"),
        ({"listen-metrics-urls": "unix:///s"}, "unix is for --listen-client-urls"),
        ({"listen-metrics-urls": "https://127.0.0.1:1"}, "are needed for https in --listen-metrics-urls"),
        ({"listen-client-urls": "unix://"}, "expected a file's path"),
        ({"listen-client-urls": "unix:///directory/"}, "expected a file's path"),
        ({"listen-client-urls": f"unix:///{'s' * 107}"}, "expected a file's path of at most 107 bytes"),
        ({"listen-client-urls": "unix:///s,unixs:/s", **AUTOMATIC}, "are the same address"),
        ({"listen-client-urls": "unixs:///s"}, "--cert-file and --key-file, or --auto-tls, are needed"),
        ({"listen-peer-urls": "http://127.0.0.1"}, "expected HOST:PORT"),
        ({"listen-peer-urls": "http://127.0.0.1:0"}, "'0' is no port"),
        ({"listen-peer-urls": "http://127.0.0.1:65536"}, "'65536' is no port"),
        ({"listen-peer-urls": "http://127.0.0.1:x"}, "'x' is no port"),
        ({"listen-peer-urls": "http://127.0.0.1:2380/path"}, "no port|expected HOST:PORT"),
        ({"listen-peer-urls": "http://::1:2380"}, "expected HOST:PORT"),
        ({"listen-peer-urls": "http://127.0.0.1:1,http://127.0.0.1:2"}, "expected one URL"),
        ({"listen-peer-urls": ""}, "expected one URL"),
        ({"listen-native-url": "tcp://db1.example:2381"}, "expected an IP address or localhost to listen on"),
        ({"listen-native-url": "tcp://127.0.0.1:2380"}, "are the same address: tcp://127.0.0.1:2380"),
        ({"listen-metrics-urls": "http://localhost:2379"}, "are the same address"),
        ({"listen-client-urls": "http://127.0.0.1:1,https://127.0.0.1:1"}, "are the same address"),
        ({"listen-client-urls": "https://127.0.0.1:1"}, "--cert-file and --key-file, or --auto-tls, are needed"),
        ({"cert-file": "/c", "key-file": "/k"}, "no URL of --listen-client-urls begins with https"),
        ({"auto-tls": "true"}, "no URL of --listen-client-urls begins with https"),
        ({**CERTIFIED, "key-file": ""}, "--cert-file and --key-file go together"),
        ({**CERTIFIED, "client-cert-auth": "true"}, "--client-cert-auth needs --trusted-ca-file"),
        ({**CERTIFIED, "client-crl-file": "/c"}, "--client-crl-file needs --trusted-ca-file"),
        ({**CERTIFIED, "client-cert-allowed-hostname": "a"}, "-allowed-hostname needs --trusted-ca-file"),
        (
            {**CERTIFIED, "trusted-ca-file": "/ca", "client-cert-allowed-hostname": "a,.b"},
            "'.b' is no host's name or address",
        ),
        ({**CERTIFIED, "auto-tls": "perhaps"}, "--auto-tls 'perhaps': expected true or false"),
        ({**CERTIFIED, "tls-min-version": "TLS1.1"}, "expected one of TLS1.2, TLS1.3"),
        ({**CERTIFIED, "tls-min-version": "TLS1.3", "tls-max-version": "TLS1.2"}, "is above --tls-max-version"),
        ({**CERTIFIED, "cipher-suites": "TLS_FOO"}, "--cipher-suites: 'TLS_FOO' is none of"),
        (
            {**CERTIFIED, "cipher-suites": "TLS_RSA_WITH_AES_128_CBC_SHA", "tls-min-version": "TLS1.3"},
            "which --tls-min-version rules out",
        ),
        (
            {**CERTIFIED, "cipher-suites": "TLS_AES_128_GCM_SHA256", "tls-max-version": "TLS1.2"},
            "names none of TLS 1.2",
        ),
        (
            {"listen-client-urls": "https://127.0.0.1:1", "auto-tls": "1", "self-signed-cert-validity": "0"},
            "expected 1 to 100 years",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(settings: dict[str, str], reason: str) -> None:
    """config.py: a node that starts with another configuration than its owner believes in is worse than none."""
    with pytest.raises(ConfigError, match=reason):
        resolve(settings)
