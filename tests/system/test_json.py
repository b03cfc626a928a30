"""etcd's JSON gateway with a real node: the same requests to kvorum and to a real etcd 3.5.1, and the same answers.

Aside are ids and terms, the "details" that etcd's errors have since 3.6, and the two bodies for wrong verbs and paths,
which 3.5 has as text. etcd3gw, from PyPI, runs unmodified.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import etcd3gw  # type: ignore[import-untyped]
import pytest

from cluster import local
from tests.etcds import etcd
from tests.system.cluster import Cluster, eventually

WAIT = 30.0
ASIDE = {"cluster_id", "member_id", "raft_term", "details"}


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def ready(port: int) -> None:
    eventually(lambda: get(port, "/health") == (200, b'{"health":"true","reason":""}'), what=f"{port} healthy")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("kvorum"), nodes=1, shared=True) as cluster:
        ready(port_of(cluster))
        yield cluster


def port_of(cluster: Cluster) -> int:
    return cluster.places[0].port + local.STEP_GATEWAY


@contextmanager
def both(directory: Path, settings: dict[str, str] | None = None) -> Iterator[tuple[int, int]]:
    """The ports of a fresh kvorum and of a fresh etcd."""
    settings = settings or {}
    with (
        etcd(directory, settings=settings) as theirs,
        Cluster(directory / "kvorum", nodes=1, settings=settings) as cluster,
    ):
        ready(port_of(cluster))
        yield port_of(cluster), theirs.port


class Asker:
    """One connection, kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)

    def post(self, path: str, body: Any) -> tuple[int, str | None, Any]:
        """Status, content type, and the lines of the body without what is aside."""
        self._connection.request("POST", f"/v3/{path}", body if isinstance(body, str) else json.dumps(body))
        answer = self._connection.getresponse()
        lines = [bare(json.loads(line)) for line in answer.read().splitlines()]
        return answer.status, answer.headers["Content-Type"], lines

    def close(self) -> None:
        self._connection.close()


def bare(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: bare(value) for name, value in found.items() if name not in ASIDE}
    return [bare(one) for one in found] if isinstance(found, list) else found


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def put(key: str, value: str, **more: Any) -> tuple[str, Any]:
    return "kv/put", {"key": b64(key), "value": b64(value), **more}


REQUESTS: list[tuple[str, Any]] = [
    put("foo", "bar"),
    put("foo", "baz", prev_kv=True),
    put("fop", ""),
    ("kv/range", {"key": b64("foo")}),
    ("kv/range", {"key": b64("foo"), "rangeEnd": b64("fox"), "sort_order": "DESCEND", "sort_target": "VALUE"}),
    ("kv/range", {"key": "AA==", "range_end": "AA==", "limit": "1"}),
    ("kv/range", {"key": b64("foo"), "revision": 2, "keysOnly": True}),
    ("kv/range", {"key": b64("foo"), "count_only": True}),
    ("kv/range", {"key": b64("nothing")}),
    ("kv/range", {"key": b64("foo"), "revision": "99"}),
    ("kv/range", {"key": b64("foo"), "limit": None, "unknown": [{}]}),
    ("kv/range", {}),
    ("kv/range", "null"),
    ("kv/range", ""),
    ("kv/put", {}),
    ("kv/put", "garbage"),
    ("kv/put", '{"key":"Zm9v'),
    ("kv/put", '{"key":"Zm9v","value":"Yg=="} and more'),
    ("kv/put", {"key": "!!"}),
    ("kv/put", {"key": 5}),
    ("kv/put", [1]),
    ("kv/put", {"key": b64("foo"), "lease": "99"}),
    ("kv/put", {"key": b64("foo"), "lease": "x"}),
    ("kv/range", {"key": b64("foo"), "sort_order": "NOPE"}),
    ("kv/range", {"key": b64("foo"), "limit": 1.5}),
    ("kv/range", {"key": b64("foo"), "keys_only": "true"}),
    ("kv/put", {"key": b64("foo"), "value": b64("x" * 1_600_000)}),
    ("kv/put", {"key": b64("foo"), "value": b64("x" * 3_000_000)}),
    ("kv/put", {"key": b64("big"), "value": b64("y" * 1_000_000)}),
    ("kv/range", {"key": b64("big")}),
    (
        "kv/txn",
        {
            "compare": [{"key": b64("foo"), "target": "MOD", "result": "GREATER", "mod_revision": "1"}],
            "success": [
                {"request_put": {"key": b64("a"), "value": b64("1")}},
                {"requestRange": {"key": b64("a")}},
                {"request_delete_range": {"key": b64("foo"), "prev_kv": True}},
            ],
        },
    ),
    ("kv/txn", {"compare": [{"key": b64("foo"), "target": "VERSION", "version": 7}], "failure": []}),
    ("kv/txn", {"success": [{}]}),
    ("kv/txn", {"success": [{"request_put": {"key": b64("a")}}, {"request_put": {"key": b64("a")}}]}),
    ("kv/deleterange", {"key": b64("a"), "range_end": b64("b"), "prev_kv": True}),
    ("kv/deleterange", {"key": b64("a")}),
    ("lease/grant", {"TTL": 600, "ID": "8"}),
    ("lease/grant", {"TTL": "600", "ID": 8}),
    put("leased", "1", lease="8"),
    ("kv/range", {"key": b64("leased")}),
    ("lease/keepalive", {"ID": "8"}),
    ("lease/keepalive", '{"ID":"8"} {"ID":9}'),
    ("lease/keepalive", ""),
    ("lease/keepalive", "x"),
    ("lease/leases", {}),
    ("kv/lease/leases", {}),
    ("lease/timetolive", {"ID": "99"}),
    ("lease/revoke", {"ID": "8"}),
    ("kv/lease/revoke", {"ID": "8"}),
    ("kv/range", {"key": b64("leased")}),
    ("kv/compaction", {"revision": "3"}),
    ("kv/compaction", {"revision": "3"}),
    ("kv/range", {"key": b64("foo"), "revision": "2"}),
    ("maintenance/defragment", {}),
    ("maintenance/alarm", {}),
    ("auth/status", {}),
    ("auth/enable", {}),
    ("auth/user/list", {}),
    ("auth/role/list", {}),
    ("auth/authenticate", {"name": "a", "password": "b"}),
]

LEADER = {"name": b64("e"), "key": b64("e/8"), "lease": "8"}
LOCKS: list[tuple[str, Any]] = [
    ("lease/grant", {"TTL": 600, "ID": "8"}),
    ("lock/lock", {"name": b64("l"), "lease": "8"}),
    ("kv/range", {"key": b64("l/8")}),
    ("lock/unlock", {"key": b64("l/8")}),
    ("lock/unlock", {"key": b64("nothing")}),
    ("lock/lock", {"name": b64("l"), "lease": "99"}),
    ("election/leader", {"name": b64("e")}),
    ("election/campaign", {"name": b64("e"), "lease": "8", "value": b64("me")}),
    ("election/leader", {"name": b64("e")}),
    ("election/proclaim", {"leader": {**LEADER, "rev": "4"}, "value": b64("still me")}),
    ("election/proclaim", {"value": b64("nobody")}),
    ("election/resign", {"leader": {**LEADER, "rev": "4"}}),
    ("election/resign", {}),
    ("election/leader", {"name": b64("e")}),
]


def test_locks_and_elections_are_as_etcds(tmp_path: Path) -> None:
    with both(tmp_path) as (ours, theirs):
        askers = Asker(ours), Asker(theirs)
        for path, body in LOCKS:
            answer, wanted = [asker.post(path, body) for asker in askers]
            assert answer == wanted, (path, body)
        for asker in askers:
            asker.close()
        seen, wanted_seen = [observed(port) for port in (ours, theirs)]
        assert seen == wanted_seen


def observed(port: int) -> list[Any]:
    """What somebody sees who observes an election, and who takes the lock that another gives up by going away."""
    asker = Asker(port)
    asker.post("election/campaign", {"name": b64("e"), "lease": "8", "value": b64("one")})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    connection.request("POST", "/v3/election/observe", json.dumps({"name": b64("e")}))
    answer = connection.getresponse()
    lines = [bare(json.loads(answer.readline()))]
    asker.post(*put("e/8", "two", ignore_lease=True))
    lines.append(bare(json.loads(answer.readline())))
    connection.close()
    asker.close()
    return lines


def test_a_real_etcd_answers_the_same(tmp_path: Path) -> None:
    with both(tmp_path) as (ours, theirs):
        askers = Asker(ours), Asker(theirs)
        for path, body in REQUESTS:
            answer, wanted = [asker.post(path, body) for asker in askers]
            assert answer == wanted, (path, str(body)[:200])
        for asker in askers:
            asker.close()
        answers, wanted_lines = [watched(port) for port in (ours, theirs)]
        assert answers == wanted_lines
        told, wanted_told = [tutorial(port) for port in (ours, theirs)]
        assert told == wanted_told


def watched(port: int) -> list[Any]:
    """What several watches on one stream say."""
    asker = Asker(port)
    asker.post(*put("w", "0"))
    start = int(asker.post("kv/range", {"key": b64("w")})[2][0]["kvs"][0]["mod_revision"])
    requests = [
        {"create_request": {"key": b64("w"), "start_revision": start, "prev_kv": True}},
        {"create_request": {"key": b64("w"), "watch_id": 7, "filters": ["NOPUT"]}},
        {"cancel_request": {"watch_id": 0}},
        {"create_request": {"key": b64("w"), "start_revision": 2}},
    ]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    connection.request("POST", "/v3/watch", "\n".join(json.dumps(one) for one in requests))
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["Transfer-Encoding"] == "chunked"
    lines = []
    while not any(line["result"].get("compact_revision") for line in lines):
        lines.append(json.loads(answer.readline()))
    asker.post("kv/deleterange", {"key": b64("w")})
    while not any(line["result"].get("watch_id") == "7" and "events" in line["result"] for line in lines):
        lines.append(json.loads(answer.readline()))
    connection.close()
    asker.close()
    by_watch: dict[str, list[Any]] = {}  # in which order different watches are served is nobody's promise
    for line in lines:
        result = bare(line)["result"]
        by_watch.setdefault(result.get("watch_id", "0"), []).append(
            {name: value for name, value in result.items() if name != "header"}
        )
    return sorted(by_watch.items())


def tutorial(port: int) -> list[Any]:
    """etcd3gw, as its README shows it."""
    client = etcd3gw.client(host="127.0.0.1", port=port, api_path=None, timeout=WAIT)
    assert client.api_path == "/v3/", "it asks /version first"
    said: list[Any] = [client.put("bar", "doot"), client.get("bar"), client.get("nothing")]
    client.put("bar1", "d1")
    client.put("bar2", "d2")
    said.append([(value, kv["key"]) for value, kv in client.get_prefix("bar")])
    said.append([value for value, _ in client.get_all(sort_order="descend", sort_target="key")])
    said.append(client.create("bar", "again"))
    said.append(client.create("new", "first"))
    said.append(client.replace("new", "first", "second"))
    said.append(client.replace("new", "first", "third"))
    said.append(client.get("new"))
    lease = client.lease(ttl=600)
    said.append(client.put("leased", "x", lease))
    said.append(lease.keys())
    said.append(590 < lease.ttl() <= 600)
    said.append(lease.refresh())
    said.append(lease.revoke())
    said.append(client.get("leased"))
    lock = client.lock(ttl=600)
    said += [lock.acquire(), lock.is_acquired(), lock.release()]
    events, cancel = client.watch("watched")
    client.put("watched", "now")
    event = next(events)
    said.append((event["kv"]["key"], event["kv"]["value"]))
    cancel()
    said += [client.delete("bar"), client.delete("bar"), client.delete_prefix("bar"), client.get_prefix("bar")]
    with pytest.raises(etcd3gw.exceptions.Etcd3Exception) as raised:
        client.get("bar", revision=99999)
    said.append("required revision is a future revision" in str(raised.value))
    members = list(client.members())
    said += [len(members), [url.rpartition(":")[2] == str(port) for url in members[0]["clientURLs"]]]
    said.append(sorted({"version", "dbSize", "leader", "raftIndex", "raftTerm"} & set(client.status())))
    return said


def test_the_pages(cluster: Cluster) -> None:
    port = port_of(cluster)
    status, body = get(port, "/version")
    assert status == 200
    assert json.loads(body)["etcdserver"].count(".") == 2
    assert get(port, "/livez") == (200, b"ok\n")
    checks = (b"data_corruption", b"serializable_read", b"linearizable_read")
    lines = b"".join(b"[+]%s ok\n" % check for check in checks)
    assert get(port, "/readyz?verbose") == (200, lines + b"ok\n")
    assert get(port, "/health?serializable=true") == (200, b'{"health":"true","reason":""}')
    assert get(port, "/v3/kv/put")[0] == 501
    status, body = get(port, "/metrics")
    assert status == 200
    assert b"\netcd_server_has_leader 1" in body
    assert b"kvorum_gateway_calls_total" in body


def test_curl(cluster: Cluster) -> None:
    """With a body in pieces, and over HTTP/1.0; and a watch that prints each event as it comes."""
    url = f"http://127.0.0.1:{port_of(cluster)}/v3"

    def curl(*arguments: str, stdin: bytes = b"") -> bytes:
        return subprocess.run(
            ["curl", "-sS", "-m", "30", *arguments], input=stdin, capture_output=True, check=True
        ).stdout

    body = json.dumps(put("curl", "x" * 100_000)[1]).encode()
    pieces = ("-H", "Transfer-Encoding: chunked", "-T", "-", "-X", "POST")
    assert json.loads(curl(*pieces, f"{url}/kv/put", stdin=body))["header"]
    found = json.loads(curl("-0", f"{url}/kv/range", "-d", json.dumps({"key": b64("curl")})))
    assert found["kvs"][0]["value"] == b64("x" * 100_000)
    create = json.dumps({"create_request": {"key": b64("curled")}})
    with subprocess.Popen(["curl", "-sSN", f"{url}/watch", "-d", create], stdout=subprocess.PIPE) as watch:
        try:
            assert watch.stdout is not None
            assert json.loads(watch.stdout.readline())["result"]["created"]
            curl(f"{url}/kv/put", "-d", json.dumps(put("curled", "1")[1]))
            assert json.loads(watch.stdout.readline())["result"]["events"][0]["kv"]["value"] == b64("1")
        finally:
            watch.kill()


def test_many_watchers_of_the_same(cluster: Cluster) -> None:
    """Over JSON each is told for itself, beside gRPC's."""
    port, asker, watchers = port_of(cluster), Asker(port_of(cluster)), []
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        connection.request("POST", "/v3/watch", json.dumps({"create_request": {"key": b64("all")}}))
        watchers.append((connection, connection.getresponse()))
    for _, watcher in watchers:
        assert json.loads(watcher.readline())["result"]["created"]
    for number in range(3):
        asker.post(*put("all", str(number)))
    for connection, watcher in watchers:
        seen: list[str] = []
        while len(seen) < 3:
            seen += [event["kv"]["value"] for event in json.loads(watcher.readline())["result"]["events"]]
        assert seen == [b64(str(number)) for number in range(3)]
        connection.close()
    asker.close()


def test_when_a_part_dies_those_who_wait_are_told(tmp_path: Path) -> None:
    """Nobody hangs: a stream ends with an error, a call has an answer or an error, and soon all is well again."""
    with Cluster(tmp_path, nodes=1) as cluster:
        port = port_of(cluster)
        ready(port)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        connection.request("POST", "/v3/watch", json.dumps({"create_request": {"key": b64("k")}}))
        watching = connection.getresponse()
        assert json.loads(watching.readline())["result"]["created"]
        cluster.kill(0, "watch")
        error = json.loads(watching.readline())["error"]
        assert (error["code"], error["http_code"]) == (14, 503)
        assert watching.readline() == b""
        for process in ("apply", "raft", "gateway"):
            cluster.kill(0, process)
            eventually(lambda: fine(port), what=f"a put after the end of {process}")
        connection.close()


def fine(port: int) -> bool:
    asker = Asker(port)
    try:
        return asker.post(*put("k", "v"))[0] == 200
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        asker.close()


def test_the_ill_behaved_disturb_nobody(cluster: Cluster) -> None:
    """Garbage, halves, those who never read, those who never finish: while another is served."""
    port, pid = port_of(cluster), cluster.pid(0, "gateway")
    asker = Asker(port)
    large = {"key": b64("large"), "value": b64("z" * 1_000_000)}
    assert asker.post("kv/put", large)[0] == 200
    body = f'{{"key":"{b64("large")}"}}'
    one = f"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    held = []
    try:
        for said in (
            b"\0\1\2\3",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n{",
            b"POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n{",
            b"GET /version HTTP/1.1\r\nHost: " + b"a" * 100_000,
            one.encode() * 200,  # 270 MB of answers for each, of which they read nothing
        ):
            for _ in range(10):
                connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
                connection.setblocking(False)
                try:
                    connection.send(said)
                except BlockingIOError:
                    connection.close()
                    continue
                held.append(connection)
            assert asker.post(*put("ok", "1"))[0] == 200
        for _ in range(20):
            assert asker.post("kv/range", {"key": b64("ok")})[0] == 200
        assert cluster.pid(0, "gateway") == pid
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            resident = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        assert resident < 400_000, "kB"
    finally:
        for connection in held:
            connection.close()
        asker.close()


def test_many_connections_at_once(cluster: Cluster) -> None:
    askers = [Asker(port_of(cluster)) for _ in range(200)]
    for number, asker in enumerate(askers):
        assert asker.post(*put(f"many{number}", str(number)))[0] == 200
    for number, asker in enumerate(askers):
        (found,) = asker.post("kv/range", {"key": b64(f"many{number}")})[2]
        assert found["kvs"][0]["value"] == b64(str(number))
        asker.close()
