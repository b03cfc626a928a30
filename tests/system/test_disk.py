"""Real nodes on disks that are slow, broken or full: traps T2, T3 and T8 of RELIABILITY 5; D4; F11, F16, F17."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvorum
from cluster.exits import Exit
from kvorum import errors
from tests.system.cluster import eventually
from tests.system.disk import Disks, fill, small_disk
from tests.system.load import Load
from tests.system.verdict import Judge

WAL, STORE = "/wal/", "/store/"
ELECTION_SECONDS = 0.5  # of Cluster


class Call(threading.Thread):
    """A put under way. `error` and `done` tell how it ended."""

    def __init__(self, endpoint: str, key: str, value: str) -> None:
        super().__init__(daemon=True)
        self.endpoint, self.key, self.value = endpoint, key, value
        self.done = False
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with kvorum.client([self.endpoint], discover=False, timeout=20.0) as client:
                client.put(self.key, self.value)
        except errors.KvorumError as error:
            self.error = error
        else:
            self.done = True


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    with Disks(tmp_path_factory.mktemp("lone"), nodes=1, shared=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    with Disks(tmp_path_factory.mktemp("trio"), nodes=3, shared=True) as cluster:
        yield cluster


# ---- slow: nothing is said or shown before it is on disk


def test_a_lone_node_acknowledges_and_shows_nothing_before_it_is_on_disk(lone: Disks) -> None:
    """T2 (etcd #14370: a lone member answered before its log was synced), T8, K4."""
    with kvorum.client(lone.endpoints) as client:
        client.put("a", "before")
        responses, cancel = client.watch_response("a")
        lone.block(0, WAL)
        try:
            call = Call(lone.endpoint(0), "a", "after")
            time.sleep(1.0)
            assert not call.done
            assert client.get("a", serializable=True)[0] == b"before"
            assert responses._queue.empty(), "and no watcher is told"  # type: ignore[attr-defined]
        finally:
            lone.heal(0)
        call.join(10.0)
        assert call.done
        assert [event.value for event in next(responses).events] == [b"after"]
        cancel()


def test_a_majority_of_disks_must_have_it_and_heartbeats_do_not_wait_for_them(trio: Disks) -> None:
    """T2, F17: with both followers' disks stuck for two election timeouts nothing is acknowledged, and the leader
    leads on. With the leader's alone stuck, the followers' are the majority."""
    leader = trio.leader()
    followers = [node for node in range(3) if node != leader]
    term = trio.metric(leader, "kvorum_raft_term")
    with kvorum.client([trio.endpoint(leader)], discover=False) as client:
        client.put("a", "before")
        for node in followers:
            trio.block(node, WAL)
        try:
            call = Call(trio.endpoint(leader), "a", "after")
            time.sleep(2 * ELECTION_SECONDS)
            assert not call.done
            assert client.get("a", serializable=True)[0] == b"before"
            trio.heal(followers[0])
            call.join(5.0)
            assert call.done, "two of three"
        finally:
            for node in followers:
                trio.heal(node)
        trio.block(leader, WAL)
        try:
            call = Call(trio.endpoint(followers[0]), "a", "again")
            call.join(5.0)
            assert call.done
            assert client.get("a", serializable=True)[0] == b"after", "on the leader itself it is not durable yet"
        finally:
            trio.heal(leader)
        eventually(lambda: client.get("a", serializable=True)[0] == b"again", 5.0, "shown there, too")
    assert trio.metric(leader, "kvorum_raft_term") == term


# ---- broken: the end of the node, and of nothing else


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 6, 10, 25])
def test_a_sync_of_the_log_that_fails_ends_the_node_and_loses_nothing_acknowledged(tmp_path: Path, nth: int) -> None:
    """T3, D4, F11: no retry (it would succeed), no acknowledgement afterwards, an exit code that says why."""
    cluster = Disks(tmp_path, nodes=1)
    acknowledged = -1
    try:
        cluster.fail(0, WAL, nth)
        cluster.start(0, wait=False)
        with kvorum.client(cluster.endpoints, timeout=1.0, dial_timeout=0.3) as client:
            for number in range(1000):
                if cluster._process(0).poll() is not None:
                    break
                try:
                    client.put("number", str(number))
                except errors.KvorumError:
                    continue
                acknowledged = number
        assert cluster.wait(0) == Exit.DISK_FAILED
        assert "Input/output error" in cluster.log(0)
        cluster.heal(0)
        cluster.start(0)
        with kvorum.client(cluster.endpoints) as client:
            found = client.get("number")[0]
            assert acknowledged == -1 or int(found or -1) >= acknowledged
            client.put("number", "again")
    finally:
        cluster.close()


def test_a_sync_of_the_store_that_fails_ends_the_node_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """T14: the flush is in a thread of RocksDB's, and its failure must not leave the process half alive."""
    with Disks(tmp_path, nodes=1, settings={"heartbeat-interval": "10"}) as cluster:  # flushed every 3 s
        with kvorum.client(cluster.endpoints) as client:
            for number in range(100):
                client.put(f"key{number}", str(number))
        cluster.fail(0, STORE, 1)
        assert cluster.wait(0) == Exit.DISK_FAILED
        cluster.heal(0)
        cluster.start(0)
        with kvorum.client(cluster.endpoints) as client:
            assert len(client.get_prefix("key")) == 100


def test_when_the_epoch_cannot_be_synced_the_node_ends(tmp_path: Path) -> None:
    """datadir.py: an epoch that may be given out twice would let the dead speak for the living."""
    with Disks(tmp_path, nodes=1) as cluster:
        cluster.fail(0, "/epoch", 1)
        cluster.kill(0, "watch")
        assert cluster.wait(0) == Exit.DISK_FAILED
        cluster.heal(0)
        cluster.start(0)


def test_one_broken_disk_of_three_is_one_node_less(trio: Disks) -> None:
    """The leader's. The others acknowledge on, and it comes back with what it had."""
    judge = Judge(trio)
    with Load(trio.endpoints, seed=1, name="broken") as load:
        time.sleep(0.3)
        leader = trio.leader()
        since = time.monotonic()
        trio.fail(leader, WAL, 20)
        assert trio.wait(leader) == Exit.DISK_FAILED
        for node in range(3):
            if node != leader:
                load.served_after(node, since, 40.0)
        trio.heal(leader)
        trio.start(leader, wait=False)
        load.served_after(leader, time.monotonic(), 60.0)
    judge(load.history)


# ---- full: refused, and everything else goes on


def test_on_a_full_disk_writes_are_refused_reads_go_on_and_room_is_noticed(tmp_path: Path) -> None:
    """F16. Not one byte is left for two flushes' time; then there is room again."""
    cluster = Disks(tmp_path, nodes=1, settings={"heartbeat-interval": "10"})  # flushed every 3 s
    with small_disk(cluster.data_dir(0), 400) as disk, cluster, kvorum.client(cluster.endpoints) as client:
        tries = Tries(client)
        assert not tries.refused()
        process = cluster.pid(0, "apply")
        ballast = fill(disk)
        eventually(tries.refused, 30.0, "a refusal")
        until = time.monotonic() + 7.0
        while time.monotonic() < until:
            assert tries.refused()
            assert client.get("a")[0] == tries.taken
            assert client.get("a", serializable=True)[0] == tries.taken
            time.sleep(0.1)
        assert client.delete("a"), "what makes room is done"
        ballast.unlink()
        eventually(lambda: not tries.refused(), 30.0, "room")
        assert client.get("a")[0] == tries.taken
        assert cluster.pid(0, "apply") == process


class Tries:
    """Puts of ever new values: what was refused must never be read."""

    def __init__(self, client: kvorum.Client) -> None:
        self._client = client
        self._count = 0
        self.taken = b""

    def refused(self) -> bool:
        self._count += 1
        value = b"%d" % self._count
        try:
            self._client.put("a", value)
        except errors.NoSpace:
            return True
        self.taken = value
        return False


def test_a_disk_that_is_filled_by_writes_refuses_them_in_time(tmp_path: Path) -> None:
    """By kvorum's own data, with compaction and flushes going on: refused cleanly, and all that was said is true."""
    cluster = Disks(tmp_path, nodes=1, settings={"heartbeat-interval": "20"})
    with small_disk(cluster.data_dir(0), 330) as disk, cluster, kvorum.client(cluster.endpoints) as client:
        fill(disk, but=100 << 20)
        sizes: dict[str, int] = {}
        told = 0
        for number in range(2000):
            key = f"key{number % 40}"
            value = f"{number}.".encode() + bytes((number * 7 + at) % 251 for at in range(1000)) * 200
            try:
                client.put(key, value)
                sizes[key] = number
            except errors.NoSpace:
                told += 1
                if told > 20:
                    break
        assert told > 20
        assert len(sizes) > 5
        cluster.destroy(0)
        cluster.start(0)
        for key, number in sizes.items():
            assert int((client.get(key)[0] or b"-1").split(b".")[0]) == number
        assert "Traceback" not in cluster.log(0)
