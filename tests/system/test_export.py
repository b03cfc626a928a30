"""The way back: what `kvorum export` writes, a real etcd restores and serves, with every key, revision and lease."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest

import kvorum
from kvorum import txn
from tests.system.cluster import ROOT, Cluster
from tests.system.restoring import etcdctl, pairs, restored


def export(cluster: Cluster, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", "export", str(cluster.data_dir(0)), str(target)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_etcd_goes_on_where_a_stopped_node_was(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot.db"
    with Cluster(tmp_path / "cluster", nodes=1) as cluster:
        with kvorum.client(cluster.endpoints, timeout=30) as client:
            for number in range(30):
                client.put(f"key{number % 10}", f"value {number}")
            client.delete("key3")
            client.transaction([], [txn.put("both/a", b"\x00\xff" * 4000), txn.put("both/b", "")])
            client.lease_grant(5000, 77)
            client.lease_grant(6000, -77)
            client.put("leased", "v", lease=77)
            client.put("leased too", "v", lease=-77)
            client.compact(20, physical=True)
            ours = client.get_all_response()
            past = client.get_all_response(revision=25)
            refused = export(cluster, snapshot)
            assert (refused.returncode, "is running" in refused.stderr) == (64, True)
        cluster.stop(0)
        done = export(cluster, snapshot)
        assert done.returncode == 0, done.stderr
        again = export(cluster, snapshot)
        assert (again.returncode, "is there already" in again.stderr) == (64, True)
        cluster.start(0)
    with restored(snapshot, tmp_path) as etcd:
        for mine, options in ((ours, []), (past, ["--rev=25"])):
            assert pairs(etcd, *options) == (ours.header.revision, list(mine.kvs))
        with pytest.raises(subprocess.CalledProcessError):
            etcdctl(etcd, "get", "key1", "--rev=19")
        told = etcdctl(etcd, "lease", "timetolive", f"{77:x}", "--keys")
        assert (told["granted-ttl"], told["keys"]) == (5000, [base64.b64encode(b"leased").decode()])
        assert etcdctl(etcd, "put", "after", "v")["header"]["revision"] == ours.header.revision + 1


def test_a_store_behind_its_log_is_refused(tmp_path: Path) -> None:
    """After a kill the store may lack what was acknowledged; to export it would be to lose that."""
    with Cluster(tmp_path / "cluster", nodes=1) as cluster:
        with kvorum.client(cluster.endpoints, timeout=30) as client:
            for number in range(20):
                client.put(f"key{number}", "v")
        cluster.destroy(0)
        refused = export(cluster, tmp_path / "snapshot.db")
        assert (refused.returncode, "its log goes on to" in refused.stderr) == (64, True)
        assert not (tmp_path / "snapshot.db").exists()
        cluster.start(0)
        cluster.stop(0)
        assert export(cluster, tmp_path / "snapshot.db").returncode == 0


def test_what_is_no_data_directory_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli", "export", str(tmp_path), str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "holds no store" in done.stderr) == (64, True)
