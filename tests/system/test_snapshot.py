"""Snapshots of a running cluster, taken by etcd's own tools and restored into a real etcd: nothing is missing, nobody
waits, nothing is left behind."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import kvorum
from cluster.snapshotcalls import BLOB_BYTES
from cluster.snapshots import NO_ROOM, SILENCE_ELECTIONS, SNAPSHOTS_MAX, TOO_MANY
from kvorum import aio, errors, txn
from kvorum import etcd_pb2 as pb
from tests.conftest import environment
from tests.etcds import binary
from tests.system.cluster import ROOT, Cluster, alive, eventually
from tests.system.disk import fill, small_disk
from tests.system.restoring import etcdctl, pairs, restored
from tests.system.undisturbed import rss_bytes

WAIT = 60.0
SHORT_ELECTION_MS = 250
INTERRUPTED = 5
"""etcdctl's exit code."""
SLOW = "export.piece:sleep(20)"


def save(cluster: Cluster, target: Path, node: int = 0) -> subprocess.CompletedProcess[str]:
    with saving(cluster, target, node) as process:
        out, said = process.communicate(timeout=WAIT)
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


@contextlib.contextmanager
def saving(cluster: Cluster, target: Path, node: int = 0) -> Iterator[subprocess.Popen[str]]:
    command = [binary("etcdctl"), f"--endpoints={cluster.gateway(node)}", "snapshot", "save", target]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=environment(), **streams)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def status(tool: str, snapshot: Path) -> dict[str, int]:
    command = [binary(tool), "snapshot", "status", snapshot, "-w", "json"]
    told = subprocess.run(command, capture_output=True, check=True, timeout=WAIT, env=environment())
    found: dict[str, int] = json.loads(told.stdout)
    return found


def exports(cluster: Cluster, node: int = 0) -> list[int]:
    """The processes that export its store."""
    apply, found = cluster.pid(node, "apply"), []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
            if b"cluster.exporter" in words and int(parent) == apply:
                found.append(int(entry))
    return found


def some_keys(client: kvorum.sync.Client, count: int, size: int = 100) -> None:
    with client.pipeline() as pipeline:
        for number in range(count):
            pipeline.put(f"key{number:06d}", os.urandom(size))


ROCKSDB = re.compile(
    r"\d+\.(sst|log)|(MANIFEST|OPTIONS)-\d+|LOG(\.old\.\d+)?|CURRENT|IDENTITY|LOCK|rocksdict-config.json"
)


def content(directory: Path) -> set[str]:
    """The names of what is in a data directory, but for RocksDB's and the log's own."""
    strange = {path.name for path in (directory / "store").iterdir() if not ROCKSDB.fullmatch(path.name)}
    return strange | {path.name for path in directory.iterdir() if path.suffix != ".new"}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node whose snapshots take some seconds: 250 pages of 20 ms."""
    directory = tmp_path_factory.mktemp("slow")
    with Cluster(directory, nodes=1, environment={"KVORUM_FAILPOINT": SLOW}, shared=True) as cluster:
        with kvorum.client(cluster.endpoints, timeout=30) as client:
            some_keys(client, 250, 3500)
        yield cluster


def test_etcd_goes_on_where_a_running_cluster_was(tmp_path: Path) -> None:
    """Every key at every revision that is not compacted, and every lease, from whichever node."""
    with Cluster(tmp_path / "cluster", nodes=3) as cluster, kvorum.client(cluster.endpoints, timeout=30) as client:
        leases = [client.lease_grant(1000 + id, id).ID for id in (77, -77, 5)]
        for number in range(30):
            client.put(f"key{number % 7}", f"value {number}", lease=leases[number % 3] if number % 4 else None)
            if number % 5 == 0:
                client.delete(f"key{(number + 3) % 7}")
        client.transaction([], [txn.put("both/a", b"\x00\xff" * 40_000), txn.put("both/b", "")])
        client.compact(12)
        client.transaction([], [txn.delete("key1"), txn.put("both/a", "small again")])
        client.put("last", "v", lease=5)
        client.revoke_lease(-77)
        for node, tool in enumerate(("etcdutl", "etcdctl")):
            etcdctl(cluster.gateway(node), "get", "last")  # this node has all of it now
            target = tmp_path / f"snapshot{node}.db"
            done = save(cluster, target, node)
            assert (done.returncode, done.stdout) == (0, f"Snapshot saved at {target}\n"), done.stderr
            assert target.stat().st_size % 512 == 32
            head, _ = pairs(cluster.gateway(node))
            for one in ("etcdutl", "etcdctl"):
                assert status(one, target)["revision"] == head
            with restored(target, tmp_path / tool / str(node), tool) as etcd:
                for revision in range(12, head + 1, 1 if node == 0 else 9):
                    ours = client.get_all_response(revision=revision)
                    assert pairs(etcd, f"--rev={revision}") == (head, list(ours.kvs))
                with pytest.raises(subprocess.CalledProcessError):
                    etcdctl(etcd, "get", "key1", "--rev=11")
                assert etcdctl(etcd, "lease", "list")["leases"] == [{"id": 5}, {"id": 77}]
                for id in (5, 77):
                    mine, theirs = (
                        etcdctl(one, "lease", "timetolive", f"{id:x}", "--keys") for one in (cluster.gateway(0), etcd)
                    )
                    assert (theirs["granted-ttl"], sorted(theirs["keys"])) == (1000 + id, sorted(mine["keys"]))
                    assert 900 < theirs["ttl"] <= 1000 + id
                assert etcdctl(etcd, "put", "after", "v")["header"]["revision"] == head + 1


def test_a_snapshot_taken_during_writes_is_the_history_up_to_a_revision(tmp_path: Path) -> None:
    """All that was acknowledged before it began, no half of a transaction, and nothing else than what was done."""
    stop = threading.Event()
    with Cluster(tmp_path / "cluster", nodes=3, settings={"max-txn-ops": "300"}) as cluster:

        def write(writer: int) -> None:
            with kvorum.client(cluster.endpoints, timeout=30) as client:
                number = 0
                while not stop.is_set():
                    number += 1
                    both = [txn.put(f"{writer}/{half}", str(number)) for half in "ab"]
                    client.transaction([], [*both, txn.put(f"{writer}/{number % 50}", os.urandom(1000))])

        writers = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
        for writer in writers:
            writer.start()
        try:
            found: list[tuple[int, Path]] = []
            for turn in range(3):
                time.sleep(1.0)
                shown, _ = pairs(cluster.gateway(turn), "--limit=1")
                target = tmp_path / f"snapshot{turn}.db"
                done = save(cluster, target, turn)
                assert done.returncode == 0, done.stderr
                found.append((shown, target))
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        with kvorum.client(cluster.endpoints, timeout=30) as client:
            for turn, (shown, target) in enumerate(found):
                with restored(target, tmp_path / str(turn)) as etcd:
                    head, newest = pairs(etcd)
                    assert head >= shown
                    assert status("etcdutl", target)["revision"] == head
                    values = {kv.key: kv.value for kv in newest}
                    assert all(values[b"%d/a" % writer] == values[b"%d/b" % writer] for writer in range(3))
                    for revision in (head, head - 1, head // 2, head // 3, 2):
                        ours = client.get_all_response(revision=revision)
                        assert pairs(etcd, f"--rev={revision}")[1] == list(ours.kvs)


def by_json(endpoint: str) -> Iterator[pb.SnapshotResponse]:
    """The messages as they come; nothing is read but what is asked for."""
    host, _, port = endpoint.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT)
    try:
        connection.request("POST", "/v3/maintenance/snapshot", "{}")
        for line in connection.getresponse():
            told = json.loads(line)["result"]
            left = int(told.get("remaining_bytes", "0"))
            yield pb.SnapshotResponse(remaining_bytes=left, blob=base64.b64decode(told["blob"]))
    finally:
        connection.close()


def by_grpc(endpoint: str) -> Iterator[pb.SnapshotResponse]:
    with grpc.insecure_channel(endpoint) as channel:
        call = channel.unary_stream(
            "/etcdserverpb.Maintenance/Snapshot",
            request_serializer=pb.SnapshotRequest.SerializeToString,
            response_deserializer=pb.SnapshotResponse.FromString,
        )
        yield from call(pb.SnapshotRequest(), timeout=WAIT)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node with 30 MB, which no buffer on the way takes."""
    settings = {"heartbeat-interval": "25", "election-timeout": str(SHORT_ELECTION_MS)}
    with Cluster(tmp_path_factory.mktemp("large"), nodes=1, settings=settings, shared=True) as cluster:
        with kvorum.client(cluster.endpoints, timeout=30) as client:
            some_keys(client, 300, 100_000)
        yield cluster


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node with 3 MB."""
    with Cluster(tmp_path_factory.mktemp("small"), nodes=1, shared=True) as cluster:
        with kvorum.client(cluster.endpoints, timeout=30) as client:
            some_keys(client, 300, 10_000)
        yield cluster


@pytest.mark.parametrize("way", [by_json, by_grpc])
def test_a_snapshot_that_is_not_read_stands_still_and_nobody_waits_for_it(
    large: Cluster, way: Callable[[str], Iterator[pb.SnapshotResponse]]
) -> None:
    """For longer than a client may be silent that has gone. What it gives when it is read is whole."""
    before = {name: rss_bytes(large.pid(0, name)) for name in ("apply", "gateway")}
    pieces = way(large.gateway(0))
    read = [next(pieces)]
    (export,) = exports(large)
    until = time.monotonic() + 1.5 * SILENCE_ELECTIONS * SHORT_ELECTION_MS / 1000
    with kvorum.client(large.endpoints, timeout=5) as client:
        while time.monotonic() < until:
            client.put("meanwhile", "v")
            assert client.get("meanwhile")[0] == b"v"
            time.sleep(0.1)
    assert exports(large) == [export]
    for name, size in before.items():
        assert rss_bytes(large.pid(0, name)) < size + (20 << 20), name
    read += pieces
    database = b"".join(piece.blob for piece in read[:-1])
    assert len(database) == read[0].remaining_bytes + len(read[0].blob) > 30_000_000
    assert hashlib.sha256(database).digest() == read[-1].blob
    eventually(lambda: not exports(large), what="the end of the export")


def lines(endpoint: str) -> list[dict[str, Any]]:
    """What a snapshot by JSON is told."""
    host, _, port = endpoint.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT)
    connection.request("POST", "/v3/maintenance/snapshot", "{}")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.headers["Transfer-Encoding"] == "chunked"
    found = [json.loads(line) for line in answer.read().splitlines()]
    connection.close()
    assert all(list(line) == ["result"] for line in found)
    return [line["result"] for line in found]


def test_json_is_told_what_etcd_tells(small: Cluster, tmp_path: Path) -> None:
    """Pieces of 32 KiB, what remains counted down to nothing and then left out, the checksum at the end."""
    ours = lines(small.gateway(0))
    target = tmp_path / "snapshot.db"
    target.write_bytes(b"".join(base64.b64decode(line["blob"]) for line in ours))
    with restored(target, tmp_path) as etcd:
        theirs = lines(etcd)
    for told, more in ((ours, {"version"}), (theirs, set())):
        blobs = [base64.b64decode(line["blob"]) for line in told]
        left = sum(map(len, blobs)) - 32
        assert left > 3_000_000
        for line, blob in zip(told[:-1], blobs[:-1], strict=True):
            assert len(blob) == min(BLOB_BYTES, left)
            left -= len(blob)
            expected = {"blob": line["blob"]} | ({"remaining_bytes": str(left)} if left else {})
            assert line == expected | {name: line[name] for name in more}
        assert left == 0
        assert set(told[-1]) == {"blob", *more}
        assert blobs[-1] == hashlib.sha256(b"".join(blobs[:-1])).digest()
    assert {line["version"] for line in ours} == {"3.6.0"}


def kvorumctl(cluster: Cluster, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvorum.ctl.main", f"--endpoints={cluster.endpoint(0)}", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT, env=environment(), check=False
    )


def test_kvorumctl_and_the_clients_take_the_same_and_read_what_etcd_has_saved(small: Cluster, tmp_path: Path) -> None:
    saved = [tmp_path / name for name in ("etcdctl", "kvorumctl", "sync", "aio")]
    with kvorum.client(small.endpoints, timeout=30) as client:
        client.lease_grant(600, 7)
        client.delete("key000007")
        assert save(small, saved[0]).returncode == 0
        done = kvorumctl(small, "snapshot", "save", saved[1])
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"Snapshot saved at {saved[1]}\nServer version 3.6.0\n"
        with open(saved[2], "wb") as file:
            assert client.snapshot(file) == file.tell()

    async def take() -> int:
        async with aio.client(small.endpoints, timeout=30) as client:
            with open(saved[3], "wb") as file:
                return await client.snapshot(file)

    assert asyncio.run(take()) == saved[3].stat().st_size
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in saved}) == 1
    with restored(saved[1], tmp_path) as etcd:
        theirs = tmp_path / "theirs"
        command = [binary("etcdctl"), f"--endpoints={etcd}", "snapshot", "save", theirs]
        subprocess.run(command, check=True, capture_output=True, timeout=WAIT, env=environment())
    for path in (saved[1], theirs):
        told = kvorumctl(small, "snapshot", "status", path, "-w", "json")
        theirs_of_it = status("etcdutl", path)  # 3.5 counts the entries of all buckets as keys
        assert json.loads(told.stdout) == {**theirs_of_it, "totalKey": 299, "version": ""}, told.stderr


def test_a_client_of_ours_that_fails_gives_up_its_snapshot(slow: Cluster) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any, /) -> int:
            if data:
                raise OSError(28, "full")
            return 0

    with kvorum.client(slow.endpoints, timeout=30) as client:
        with pytest.raises(OSError, match="full"):
            client.snapshot(Full())
        eventually(lambda: not exports(slow), 5.0, "the end of the export")


def test_a_client_that_goes_takes_its_export_along(slow: Cluster, tmp_path: Path) -> None:
    before = content(slow.data_dir(0))
    with saving(slow, tmp_path / "snapshot.db"):
        eventually(lambda: exports(slow), what="an export")
    eventually(lambda: not exports(slow), what="its end")
    assert content(slow.data_dir(0)) == before


def test_two_at_once_are_served_and_a_third_is_refused(slow: Cluster, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(saving(slow, tmp_path / f"{number}.db")) for number in range(SNAPSHOTS_MAX)]
        eventually(lambda: len(exports(slow)) == SNAPSHOTS_MAX, what="both exports")
        third = save(slow, tmp_path / "third.db")
        assert (third.returncode, TOO_MANY.text in third.stderr) == (INTERRUPTED, True), third.stderr
        for process in first:
            _, said = process.communicate(timeout=WAIT)
            assert process.returncode == 0, said
    assert {status("etcdutl", tmp_path / f"{number}.db")["revision"] for number in range(SNAPSHOTS_MAX)}
    assert not (tmp_path / "third.db").exists()


def test_an_export_that_dies_is_told_to_its_client_alone(slow: Cluster, tmp_path: Path) -> None:
    with saving(slow, tmp_path / "dies.db") as dies, saving(slow, tmp_path / "lives.db") as lives:
        victim = eventually(lambda: exports(slow), what="an export")[0]
        eventually(lambda: len(exports(slow)) == 2, what="two exports")
        os.kill(victim, signal.SIGKILL)
        told = [(process.communicate(timeout=WAIT)[1], process.returncode) for process in (dies, lives)]
    assert sorted(code for _, code in told) == [0, INTERRUPTED]
    (said,) = (said for said, code in told if code)
    assert "the snapshot has broken off" in said
    assert sum(path.name in ("dies.db", "lives.db") for path in tmp_path.iterdir()) == 1


def test_an_export_that_cannot_open_the_store_says_why(tmp_path: Path) -> None:
    settings = {"KVORUM_FAILPOINT": "export.begin:error(EMFILE)"}
    with Cluster(tmp_path / "cluster", nodes=1, environment=settings) as cluster:
        refused = save(cluster, tmp_path / "snapshot.db")
        assert (refused.returncode, "cannot be begun: [Errno 24]" in refused.stderr) == (INTERRUPTED, True), (
            refused.stderr
        )


@pytest.mark.parametrize("process", ["apply", "gateway"])
def test_what_dies_leaves_nothing_behind_and_the_next_snapshot_is_whole(
    slow: Cluster, tmp_path: Path, process: str
) -> None:
    before = content(slow.data_dir(0))
    with saving(slow, tmp_path / "snapshot.db") as client:
        part = tmp_path / "snapshot.db.part"
        # Before there is a first piece, etcd's client would ask again.
        eventually(lambda: part.exists() and part.stat().st_size, what="a first piece")
        (export,) = exports(slow)
        slow.kill(0, process)
        _, said = client.communicate(timeout=WAIT)
        assert client.returncode == INTERRUPTED, said
    eventually(lambda: not alive(export), what="the end of the export")
    assert not (tmp_path / "snapshot.db").exists()
    eventually(lambda: save(slow, tmp_path / "snapshot.db").returncode == 0, what="a snapshot")
    assert status("etcdutl", tmp_path / "snapshot.db")["totalKey"] > 250
    assert content(slow.data_dir(0)) == before


def test_a_full_disk_is_told_to_who_wants_a_snapshot_and_to_nobody_else(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 400) as disk,
        Cluster(disk, nodes=1) as cluster,
        kvorum.client(cluster.endpoints, timeout=30) as client,
    ):
        some_keys(client, 100)
        ballast = fill(disk, but=20 << 20)
        eventually(lambda: "no space" in save(cluster, tmp_path / "full.db").stderr, what="a refusal")
        refused = save(cluster, tmp_path / "full.db")
        assert (refused.returncode, NO_ROOM.text in refused.stderr) == (INTERRUPTED, True), refused.stderr
        assert client.get("key000000")[0] is not None
        with pytest.raises(errors.NoSpace):
            client.put("one", "more")
        ballast.unlink()
        eventually(lambda: save(cluster, tmp_path / "free.db").returncode == 0, what="a snapshot")
        assert status("etcdutl", tmp_path / "free.db")["revision"] == 101
