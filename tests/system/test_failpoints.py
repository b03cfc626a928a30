"""Every named point of the code, struck in a running cluster: crash exactly here, sleep exactly here (RELIABILITY F2).

The points are found in the code, so a new one is struck from the day it exists: on the leader and on a follower, by a
crash and by a sleep that is longer than an election, while clients write. A point that nothing strikes fails its test.
Points that a put doesn't reach are in PROVOKED; RELEASE and NEW_NODE have stories of their own.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvorum
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.errors import KvorumError
from tests.system.cluster import ROOT, Cluster, alive, eventually
from tests.system.load import Load
from tests.system.test_kill import kill_cluster
from tests.system.verdict import Judge, contents_of, head, insist

RUN_BY = {
    "cluster/raftd.py": "raft",
    "storage/journal.py": "raft",
    "cluster/applyd.py": "apply",
    "cluster/watchd.py": "watch",
    "cluster/supervisor.py": "supervisor",
    "cluster/datadir.py": "supervisor",
}
"""Which process runs the points of a file."""


def calls() -> Iterator[tuple[str, str, str]]:
    """Every call of `hit` outside of its own module: the file, its text, and what is between the brackets."""
    for room in ("cluster", "storage", "native", "kvorum"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name, text = str(path.relative_to(ROOT)), path.read_text()
            if name not in ("storage/failpoint.py", "cluster/exporter.py"):  # of a snapshot's process: test_snapshot.py
                for argument in re.findall(r"\bhit\(([^)]*)\)", text):
                    yield name, text, argument


def points() -> dict[str, str]:
    """Every failpoint in the code and the process that hits it."""
    return {
        point: RUN_BY[file]
        for file, text, argument in calls()
        for point in _spelled_out(argument.removeprefix("f").strip('"'), text)
    }


def _spelled_out(point: str, text: str) -> list[str]:
    """`datadir.{name}.before_rename` is one point for each name that the file gives to `_replace`."""
    if "{name}" not in point:
        return [point]
    return [point.replace("{name}", name) for name in dict.fromkeys(re.findall(r'_replace\([^,()]+, "([^"]+)"', text))]


POINTS = points()
RELEASE = {"journalBeforeRelease", "journalAfterRelease"}
NEW_NODE = {"datadir.member.json.before_rename", "datadir.member.json.after_rename"}
PROVOKED = {"applyBeforeSweep", *(point for point, process in POINTS.items() if process == "supervisor")}
STRUCK = sorted(set(POINTS) - RELEASE - NEW_NODE)
SLEEP_MS = 1200


class Armed(Cluster):
    """A cluster whose nodes look into a file of their own for failpoints."""

    def start(self, node: int, **options: object) -> None:  # type: ignore[override]
        super().start(node, KVORUM_FAILPOINT=f"@{self.points(node)}", **options)  # type: ignore[arg-type]

    def points(self, node: int) -> Path:
        return self.directory / f"points.{node}"

    def arm(self, node: int, text: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        new = self.points(node).with_suffix(".new")
        new.write_text(text)
        new.rename(self.points(node))

    def disarm(self, node: int) -> None:
        self.points(node).unlink()


class Stage:
    """The cluster that the tests of this module share."""

    def __init__(self, cluster: Armed) -> None:
        with kvorum.client(cluster.endpoints) as client:
            for number in range(20):  # revisions to compact that nobody judges
                client.put("before", str(number))
        self.cluster, self.judge, self.compacted = cluster, Judge(cluster), 0
        self.watchers = [kvorum.client([endpoint], discover=False) for endpoint in cluster.endpoints]
        for watcher in self.watchers:  # a watch process that nobody watches has nothing to send
            watcher.add_watch_prefix_callback("", lambda _: None)

    def role(self, role: str) -> int:
        leader = self.cluster.leader()
        return leader if role == "leader" else (leader + 1) % 3

    def provoke(self, node: int, point: str) -> None:
        """Make happen what reaches the point, where a put doesn't."""
        if point == "applyBeforeSweep":
            self.compacted += 1
            client = kvorum.client(self.cluster.endpoint(node), discover=False, timeout=0.3)
            with client, contextlib.suppress(KvorumError):  # the point strikes before the answer
                client.compact(self.compacted)
        elif POINTS[point] == "supervisor":
            self.cluster.kill(node, "watch")

    @contextlib.contextmanager
    def load(self, name: str) -> Iterator[Load]:
        """Clients while the block runs and until every node serves them again; then the judge."""
        with Load(self.cluster.endpoints, seed=zlib.crc32(name.encode()), name=name, pause=0.01) as load:
            time.sleep(0.1)
            yield load
            self.expect_service(load)
        self.judge(load.history)

    def expect_service(self, load: Load) -> None:
        since = time.monotonic()
        for node in range(3):
            load.served_after(node, since, 30.0)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Armed(tmp_path_factory.mktemp("points"), nodes=3, shared=True) as cluster:
        stage = Stage(cluster)
        yield stage
        for watcher in stage.watchers:
            watcher.close()


@pytest.mark.parametrize("point", STRUCK)
def test_a_crash_exactly_here_loses_nothing(stage: Stage, point: str) -> None:
    """On the leader, then on a follower. The process is struck in the middle of its work, and again until disarmed."""
    cluster, process = stage.cluster, POINTS[point]
    with stage.load(f"panic-{point}") as load:
        for role in ("leader", "follower"):
            node = stage.role(role)
            pid = cluster.pid(node, process)
            cluster.arm(node, f"{point}:panic" if point in PROVOKED else f"{point}:3*panic")
            stage.provoke(node, point)
            if process == "supervisor":
                assert cluster.wait(node) == -signal.SIGKILL
                cluster.disarm(node)
                cluster.start(node, wait=False)
            else:
                eventually(lambda pid=pid: not alive(pid), 15.0, f"{point} at node {node}, the {role}")
                cluster.disarm(node)
            stage.expect_service(load)


@pytest.mark.parametrize("point", [point for point in STRUCK if POINTS[point] != "supervisor"])
def test_a_sleep_exactly_here_breaks_no_promise(stage: Stage, point: str) -> None:
    """On the leader, for longer than an election: it wakes up in the middle of what is no longer its to do."""
    cluster = stage.cluster
    with stage.load(f"sleep-{point}"):
        node = stage.role("leader")
        pid = cluster.pid(node, POINTS[point])
        cluster.arm(node, f"{point}:{1 if point in PROVOKED else 3}*sleep({SLEEP_MS})")
        stage.provoke(node, point)
        eventually(lambda: naps(pid), 5.0, f"{point} at node {node}")
        time.sleep(SLEEP_MS / 1000)
        cluster.disarm(node)
        assert cluster.pid(node, POINTS[point]) == pid, "it woke up and went on"


def naps(pid: int) -> bool:
    """Whether the process's main thread is in a sleep (clock_nanosleep on x86-64, arm64), not in a poll."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("230", "115")


def test_a_crash_while_the_log_lets_go_of_segments_loses_nothing(tmp_path: Path) -> None:
    """The log of a member shrinks when every member's store has all of it on disk: nothing that goes may be needed.

    Short ticks, as the store is flushed every so many. 70 MB fill a segment, so the one before it may go.
    """
    settings = {"heartbeat-interval": "20", "election-timeout": "1000"}
    with Armed(tmp_path, nodes=3, settings=settings) as cluster:
        for round, (of_leader, of_follower) in enumerate((("Before", "After"), ("After", "Before"))):
            leader = cluster.leader()
            armed = {leader: f"journal{of_leader}Release", (leader + 1) % 3: f"journal{of_follower}Release"}
            assert set(armed.values()) == RELEASE
            pids = {node: cluster.pid(node, "raft") for node in armed}
            fill(cluster, round)
            for node, point in armed.items():
                cluster.arm(node, f"{point}:panic")
            for node, pid in pids.items():
                eventually(lambda pid=pid: not alive(pid), 30.0, f"{armed[node]} at node {node}")
                cluster.disarm(node)
            expect(cluster, round)
        eventually(lambda: oldest_segment(cluster) > 1, 30.0, "a segment let go on every node")
        kill_cluster(cluster)
        for node in range(3):
            cluster.start(node, wait=False)
        cluster.await_ready()
        expect(cluster, 1)


def fill(cluster: Cluster, round: int) -> None:
    """70 MB over ten keys."""
    with kvorum.client(cluster.endpoints, timeout=20.0) as client:
        for number in range(70):
            value = f"{round}.{number}.".encode().ljust(1 << 20, b"x")
            insist(lambda number=number, value=value: client.put(f"big/{number % 10}", value))


def expect(cluster: Cluster, round: int) -> None:
    revision = head(cluster)
    for endpoint in cluster.endpoints:
        values = [kv.value[:10].split(b".")[:2] for kv in contents_of(endpoint, revision)]
        assert values == [[b"%d" % round, b"%d" % (60 + key)] for key in range(10)]


def oldest_segment(cluster: Cluster) -> int:
    """Of the node that keeps most."""
    segments = [sorted((cluster.data_dir(node) / "wal").glob("*.wal")) for node in range(3)]
    return min(int(found[0].stem, 16) for found in segments)


@pytest.mark.parametrize("point", sorted(NEW_NODE))
def test_a_crash_while_a_node_is_new_leaves_a_directory_that_it_can_use(tmp_path: Path, point: str) -> None:
    """The epoch file is there, and member.json isn't yet, or just is."""
    cluster = Armed(tmp_path, nodes=1)
    cluster.arm(0, f"{point}:panic")
    try:
        cluster.start(0, wait=False)
        assert cluster.wait(0) == -signal.SIGKILL
        cluster.disarm(0)
        cluster.start(0)
        cluster.request(0, wire.Method.PUT, pb.PutRequest(key=b"a", value=b"1"))
    finally:
        cluster.close()


def test_no_point_is_forgotten() -> None:
    """Each call names its point in a way that `points` reads, so that it is struck by one of the tests above."""
    for file, _, argument in calls():
        assert re.fullmatch(r'f?"[^"]+"', argument), f"{file}: hit({argument})"
    assert set(POINTS) >= RELEASE | NEW_NODE
    assert not any("{" in point for point in POINTS)
    assert len(STRUCK) >= 15
