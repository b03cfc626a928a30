"""Data directories of real nodes: whose they are, and what a node does that finds the wrong one."""

from __future__ import annotations

from pathlib import Path

from cluster.exits import Exit
from kvorum import etcd_pb2 as pb
from kvorum import wire
from tests.system.cluster import Cluster


def put(cluster: Cluster, node: int, key: str, value: str) -> None:
    cluster.request(node, wire.Method.PUT, pb.PutRequest(key=key.encode(), value=value.encode()))


def get(cluster: Cluster, node: int, key: str) -> str | None:
    found = cluster.request(node, wire.Method.RANGE, pb.RangeRequest(key=key.encode()))
    return found.kvs[0].value.decode() if found.kvs else None


def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    """D1, the simplest case: stopped cleanly, and killed."""
    with Cluster(tmp_path, nodes=1) as cluster:
        put(cluster, 0, "a", "1")
        assert cluster.stop(0) == 0
        cluster.start(0)
        put(cluster, 0, "b", "2")
        cluster.destroy(0)
        cluster.start(0)
        assert (get(cluster, 0, "a"), get(cluster, 0, "b")) == ("1", "2")


def test_a_directory_of_another_cluster_is_refused(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=1) as cluster:
        put(cluster, 0, "a", "1")
        cluster.stop(0)
        cluster.start(0, wait=False, settings={"initial-cluster-token": "another"})
        assert cluster.wait(0) == Exit.DAMAGED
        assert "belongs to cluster" in cluster.log(0)
        cluster.start(0)
        assert get(cluster, 0, "a") == "1", "and left as it was"


def test_a_log_of_another_member_is_refused(tmp_path: Path) -> None:
    """Directories that were swapped: member.json is right, the log isn't."""
    with Cluster(tmp_path, nodes=2) as cluster:
        cluster.stop(0)
        cluster.stop(1)
        first, second = (cluster.data_dir(node) / "wal" for node in (0, 1))
        first.rename(tmp_path / "aside")
        second.rename(first)
        cluster.start(0, wait=False)
        assert cluster.wait(0) == Exit.DAMAGED
        assert str(first) in cluster.log(0)


def test_a_damaged_log_stops_the_node_and_says_where(tmp_path: Path) -> None:
    """D3: damage before the tail is never silently cut."""
    with Cluster(tmp_path, nodes=1) as cluster:
        for number in range(20):
            put(cluster, 0, f"key{number}", "x" * 100)
        cluster.stop(0)
        segment = next((cluster.data_dir(0) / "wal").glob("*.wal"))
        with open(segment, "r+b") as file:
            file.seek(segment.read_bytes().index(b"key3"))
            file.write(b"KEY3")
        before = segment.read_bytes()
        cluster.start(0, wait=False)
        assert cluster.wait(0) == Exit.DAMAGED
        said = cluster.log(0)
        assert str(segment) in said
        assert "offset" in said
        assert segment.read_bytes() == before, "nothing was changed"


def test_the_log_may_have_a_directory_of_its_own(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data", nodes=1, settings={"wal-dir": str(tmp_path / "log")}) as cluster:
        put(cluster, 0, "a", "1")
        assert list((tmp_path / "log").glob("*.wal"))
        assert not (cluster.data_dir(0) / "wal").exists()
        cluster.destroy(0)
        cluster.start(0)
        assert get(cluster, 0, "a") == "1"
