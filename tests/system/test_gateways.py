"""Several gateway processes behind one port: each serves on its own, and when one dies the others go on."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import pytest

from tests.system.cluster import Cluster, eventually
from tests.system.test_json import WAIT, Asker, b64, get, port_of, put

NAMES = ("gateway", "gateway-2", "gateway-3")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(
        tmp_path_factory.mktemp("gateways"), nodes=1, settings={"gateway-processes": "3"}, shared=True
    ) as cluster:
        eventually(lambda: all(cluster.pids(0).get(name) for name in NAMES), what="all gateways")
        yield cluster


def calls(cluster: Cluster) -> list[float]:
    return [cluster.metric(0, f'kvorum_gateway_calls_total{{process="{name}"}}') for name in NAMES]


def streams(cluster: Cluster) -> list[float]:
    return [cluster.metric(0, f'kvorum_gateway_streams{{process="{name}"}}') for name in NAMES]


def ask(cluster: Cluster, connections: int) -> None:
    """One put on each of so many new connections: the system deals them out."""
    for number in range(connections):
        asker = Asker(port_of(cluster))
        assert asker.post(*put(f"k{number}", "v"))[0] == 200
        asker.close()


def serving(cluster: Cluster) -> bool:
    """Every one of them."""
    before = calls(cluster)
    ask(cluster, 30)
    return all(now > then for then, now in zip(before, calls(cluster), strict=True))


def test_each_serves_and_counts(cluster: Cluster) -> None:
    eventually(lambda: serving(cluster), what="calls at each")
    assert {get(port_of(cluster), "/health") for _ in range(30)} == {(200, b'{"health":"true","reason":""}')}
    up = [cluster.metric(0, f'kvorum_process_up{{process="{name}"}}') for name in NAMES]
    assert up == [1, 1, 1]


def watchers(port: int, count: int, key: str) -> list[tuple[http.client.HTTPConnection, http.client.HTTPResponse]]:
    opened = []
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        connection.request("POST", "/v3/watch", json.dumps({"create_request": {"key": b64(key)}}))
        answer = connection.getresponse()
        assert json.loads(answer.readline())["result"]["created"]
        opened.append((connection, answer))
    return opened


def test_watchers_of_all_hear_what_was_written_at_one(cluster: Cluster) -> None:
    """Answers and events find the process, connection and stream that they are for: ids of different ones are alike."""
    opened = watchers(port_of(cluster), 30, "w")
    eventually(lambda: all(streams(cluster)) and sum(streams(cluster)) == 30, what="streams at each")
    asker = Asker(port_of(cluster))
    for number in range(3):
        assert asker.post(*put("w", str(number)))[0] == 200
    for _, answer in opened:
        seen: list[str] = []
        while len(seen) < 3:
            seen += [event["kv"]["value"] for event in json.loads(answer.readline())["result"]["events"]]
        assert seen == [b64(str(number)) for number in range(3)]
    for connection, _ in opened:
        connection.close()
    asker.close()


@pytest.mark.parametrize("name", NAMES)
def test_one_is_killed_and_the_others_serve(cluster: Cluster, name: str) -> None:
    """Its connections break; nobody else's do, and who comes when it is gone is served. It is started again."""
    opened = watchers(port_of(cluster), 30, "killed")
    before = cluster.kill(0, name)
    eventually(lambda: cluster.pids(0)[name] != before, what="its end, of its last thread and its listener too")
    ask(cluster, 60)
    asker = Asker(port_of(cluster))
    assert asker.post(*put("killed", "1"))[0] == 200
    asker.close()
    told = []
    for connection, answer in opened:
        try:
            told.append(answer.readline())
        except (ConnectionError, http.client.IncompleteRead):
            told.append(b"")
        connection.close()
    heard = [json.loads(line)["result"]["events"][0]["kv"]["value"] for line in told if line]
    assert 0 < len(heard) < len(opened), "some were its own, some were not"
    assert set(heard) == {b64("1")}
    eventually(lambda: cluster.pids(0)[name] not in (0, before), what=f"another {name}")
    eventually(lambda: serving(cluster), what="calls at each")
