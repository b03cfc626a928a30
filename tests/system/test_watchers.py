"""Fifty watchers of mixed kinds through kills, partitions, stalls and compactions: each sees exactly the history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kvorum
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.results import WatchResponse
from tests.system.cluster import Cluster, eventually
from tests.system.crowd import play
from tests.system.network import Divisible, Impossible, Network
from tests.system.verdict import History, Judge, insist
from tests.system.watchers import Log

SECONDS = 20.0
"""At least. A round of troubles takes about so long."""


@pytest.fixture
def network() -> Network:
    try:
        return Network(3)
    except Impossible as reason:
        pytest.skip(f"no partitions here: {reason}")


@pytest.fixture
def cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Cluster]:
    """With a network that can be cut, if that is possible here."""
    try:
        made: Cluster = Divisible(tmp_path, Network(3))
    except Impossible as reason:
        with capsys.disabled():
            print(f"\nwatchers without partitions: {reason}")
        made = Cluster(tmp_path)
    with made:
        yield made


def test_fifty_watchers_see_exactly_the_history_whatever_happens(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """W1 to W9."""
    said = play(cluster, Judge(cluster), name="watchers", seconds=SECONDS)
    with capsys.disabled():
        print(f"\nwatchers: {said}")
    for node in range(3):
        assert "Traceback" not in cluster.log(node)


def test_the_verdict_on_a_log_can_be_guilty() -> None:
    """One lie of each kind: an event that is missing, told twice, at the wrong place, foreign, not as it was before."""

    def event(revision: int, key: bytes, before: int = 0) -> pb.Event:
        told = pb.Event(kv=pb.KeyValue(key=key, value=b"%d" % revision, mod_revision=revision))
        if before:
            told.prev_kv.CopyFrom(truth[before][0].kv)
        return told

    truth: History = {}
    for revision in range(2, 12):
        truth[revision] = [event(revision, b"k"), event(revision, b"other")]
    told = [event(revision, b"k", revision - 1 if revision > 2 else 0) for revision in range(2, 12)]
    changed = pb.Event.FromString(told[5].SerializeToString())
    changed.prev_kv.value = b"of another world"
    whole = [told[:4], told[4:]]
    lies = {
        "missing": [told[:4], told[5:]],
        "the last is missing": [told[:9]],
        "twice": [told[:4], told[3:]],
        "out of order": [told[4:], told[:4]],
        "within a response": [[told[1], told[0], *told[2:]]],
        "foreign": [[*told[:4], event(6, b"other", 5)], told[4:]],
        "before": [[*told[:5], changed, *told[6:]]],
    }

    def log(responses: list[list[pb.Event]], start: int, since: int = 0) -> str:
        made = Log("k", None, start=start, since=since, prev_kv=True)
        made.created = since + 2
        for response in responses:
            header = pb.ResponseHeader(revision=99)
            made.take(WatchResponse(header, response))
        return made.verdict(truth, {})

    assert log(whole, 2) == ""
    for name, lie in lies.items():
        assert log(lie, 2), name
    assert log([told[3:]], 5) == ""
    assert log([told[2:]], 5)
    for missed, right in enumerate((True, True, True, False)):  # from now on: somewhere behind 4, at 7 at the latest
        assert (log([told[3 + missed :]], 0, since=4) == "") is right
    assert log([told[2:]], 0, since=4), "before it was asked for"


def test_a_leader_that_is_cut_off_acknowledges_nothing_and_comes_back(network: Network, tmp_path: Path) -> None:
    """D5, D6, and that a cut really cuts. A watch at the minority goes on, after the cut, with what it has missed."""
    with Divisible(tmp_path, network) as cluster:
        leader = cluster.leader()
        others = [cluster.endpoint(node) for node in range(3) if node != leader]
        with (
            kvorum.client([cluster.endpoint(leader)], discover=False, timeout=2.0) as minority,
            kvorum.client(others, discover=False, timeout=30.0) as majority,
        ):
            insist(lambda: minority.put("k", "before"))
            responses, cancel = minority.watch_response("k", start_revision=1)
            assert next(responses).events[0].value == b"before"
            network.isolate(leader)
            eventually(lambda: cluster.metric(leader, "etcd_server_is_leader") == 0, 20.0, "the end of its leadership")
            with pytest.raises((errors.Unavailable, errors.Ambiguous)):
                minority.put("k", "lost")
            assert minority.get("k", serializable=True)[0] == b"before"
            insist(lambda: majority.put("k", "elsewhere"))
            network.heal()
            values = [event.value for event in next(responses).events]
            cancel()
            assert values[0] == b"elsewhere"
            insist(lambda: minority.put("k", "after"))
            assert majority.get("k")[0] == b"after"
