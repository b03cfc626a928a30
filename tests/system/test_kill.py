"""Real processes killed and paused under load: nothing acknowledged is lost, nobody is told anything that isn't so.

DESIGN 10, RELIABILITY D1, D5, F1, F3. Each process kind of each node dies, as part of the leader and of a follower,
while clients at all nodes put, get, delete, swap and change several keys at once. What they were told is judged after
every test (verdict.py). How long the cluster was silent is measured from the kill to the next change that was asked
for after it and acknowledged, and printed at the end.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum import etcd_pb2 as pb
from tests.checkers.history import revision_of
from tests.system.cluster import PROCESSES, Cluster, alive, eventually
from tests.system.load import Load
from tests.system.verdict import Judge, head

ELECTION_SECONDS = 1.0
SILENT_SECONDS_MAX = 3 * ELECTION_SECONDS
"""What the other nodes may take to acknowledge again. An election begins after one to two timeouts of silence."""
SPLIT_SECONDS = 2 * ELECTION_SECONDS
"""What a vote adds that nobody wins, because two members asked for it in the same moment (Raft paper 5.2)."""
RESTART_SECONDS_MAX = 20.0
"""What the node itself may take: Python and its libraries start twice in it, on a machine that may be busy."""
PAIRS = (("raft", "apply"), ("apply", "watch"), ("raft", "watch"))
SETTINGS = {"heartbeat-interval": "100", "election-timeout": "1000"}


class Trio:
    """A cluster that the tests of this module share, its judge, and how long it was silent each time."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.judge = Judge(cluster)
        self.silences: list[str] = []

    def others(self, node: int) -> list[int]:
        return [other for other in range(len(self.cluster.places)) if other != node]

    def term(self, node: int) -> int:
        return int(self.cluster.metric(node, "kvorum_raft_term"))

    def in_turn(self) -> Iterator[int]:
        """The leader; then a follower, as things are by then; then the third node."""
        leader = self.cluster.leader()
        yield leader
        left = self.others(leader)
        left.sort(key=lambda node: node == self.cluster.leader())
        yield from left

    def expect_service(self, load: Load, node: int, since: float, what: str, term: int) -> None:
        """Within the bound through the other nodes; then through `node` itself."""
        others = max(load.served_after(other, since, 30.0) for other in self.others(node))
        splits = max(0, max(self.term(other) for other in self.others(node)) - term - 1)
        bound = SILENT_SECONDS_MAX + splits * SPLIT_SECONDS
        own = load.served_after(node, since, RESTART_SECONDS_MAX)
        self.note(f"{what}, {splits} split votes" if splits else what, others, own, load.stalled(since))
        assert others <= bound, (
            f"{what}: the other nodes took {others:.2f} s to acknowledge again, {splits} split votes"
        )

    def note(self, what: str, others: float, own: float, stalled: float) -> None:
        self.silences.append(
            f"{what:40} others {others:5.2f} s, itself {own:5.2f} s" + (f", machine {stalled:.2f} s" if stalled else "")
        )

    @contextlib.contextmanager
    def load(self, name: str, **habits: float) -> Iterator[Load]:
        """Clients while the block runs, and then the judge."""
        with Load(self.cluster.endpoints, seed=zlib.crc32(name.encode()), name=name, **habits) as load:  # type: ignore[arg-type]
            time.sleep(0.3)
            yield load
        assert len(load.history) > 100, "too few calls to mean anything"
        self.judge(load.history)
        for node in range(len(self.cluster.places)):
            assert "Traceback" not in self.cluster.log(node)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Trio]:
    with Cluster(tmp_path_factory.mktemp("kill"), nodes=3, settings=SETTINGS, shared=True) as cluster:
        trio = Trio(cluster)
        yield trio
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nseconds until a change is acknowledged again (election timeout {ELECTION_SECONDS:g} s):")
        print(*trio.silences, sep="\n")
        print(f"{trio.judge.judged} calls were judged")


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_is_killed_on_each_node_in_turn(trio: Trio, process: str) -> None:
    """F1. First on the leader, then on a follower, then on the third node, whatever it is by then."""
    cluster = trio.cluster
    with trio.load(f"kill-{process}") as load:
        for node in trio.in_turn():
            role = "leader" if cluster.leader() == node else "follower"
            term, since = trio.term(trio.others(node)[0]), time.monotonic()
            cluster.kill(node, process)
            if process == "supervisor":
                cluster.start(node, wait=False)
            trio.expect_service(load, node, since, f"{process} of a {role} killed", term)


@pytest.mark.parametrize("process", ["raft", "apply", "watch"])
def test_a_process_is_paused_for_longer_than_an_election(trio: Trio, process: str) -> None:
    """F3, T6: who wakes up believes that nothing has happened. It must not answer from then."""
    cluster = trio.cluster
    with trio.load(f"pause-{process}") as load:
        for node in itertools.islice(trio.in_turn(), 2):
            role = "leader" if cluster.leader() == node else "follower"
            term, since = trio.term(trio.others(node)[0]), time.monotonic()
            cluster.pause(node, process)
            time.sleep(2.5 * ELECTION_SECONDS)
            cluster.resume()
            trio.expect_service(load, node, since, f"{process} of a {role} paused", term)


def test_two_processes_of_a_node_are_killed_at_once(trio: Trio) -> None:
    """The conversation between them is lost on both sides."""
    cluster = trio.cluster
    with trio.load("two") as load:
        for node, processes in zip(trio.in_turn(), PAIRS, strict=True):
            term, since = trio.term(trio.others(node)[0]), time.monotonic()
            kill([cluster.pid(node, process) for process in processes])
            trio.expect_service(load, node, since, f"{' and '.join(processes)} killed", term)


def test_the_raft_processes_of_all_nodes_are_killed_at_once(trio: Trio) -> None:
    """The apply processes live on, with proposals whose fate nobody knows any more."""
    cluster = trio.cluster
    with trio.load("all-raft") as load:
        for _ in range(2):
            time.sleep(0.4)
            since = time.monotonic()
            kill([cluster.pid(node, "raft") for node in range(3)])
            silent = max(load.served_after(node, since, 30.0) for node in range(3))
            trio.note("all raft processes killed", silent, silent, load.stalled(since))


def test_everything_is_killed_at_once_and_nothing_acknowledged_is_lost(trio: Trio) -> None:
    """D1: kill -9 of all processes of all members at any instant."""
    cluster = trio.cluster
    with trio.load("all", clients=8, pause=0.005) as load:
        for round in range(3):
            time.sleep(0.3 + 0.17 * round)
            kill_cluster(cluster)
            for node in range(3):
                cluster.start(node, wait=False)
            since = time.monotonic()
            silent = max(load.served_after(node, since, 60.0) for node in range(3))
            trio.note("everything killed and started again", silent, silent, load.stalled(since))


def test_a_lone_node_loses_nothing_either(tmp_path: Path) -> None:
    """D1 with one member: there is nobody else who could have kept it."""
    with Cluster(tmp_path, nodes=1, settings=SETTINGS) as cluster:
        judge = Judge(cluster)
        with Load(cluster.endpoints, seed=30, name="lone", clients=4, pause=0.005) as load:
            for process in ("raft", "apply", "watch", "supervisor", "raft", "supervisor"):
                time.sleep(0.3)
                since = time.monotonic()
                if process == "supervisor":
                    kill_cluster(cluster)
                    cluster.start(0, wait=False)
                else:
                    cluster.kill(0, process)
                load.served_after(0, since, RESTART_SECONDS_MAX)
        judge(load.history)
        assert "Traceback" not in cluster.log(0)


def test_the_judge_would_have_noticed(trio: Trio) -> None:
    """A verdict that cannot be "guilty" is worth nothing: a history with one lie in it, of each kind."""
    with Load(trio.cluster.endpoints, seed=40, name="lies") as load:
        time.sleep(1.0)
    puts = [op for op in load.history if isinstance(op.request, pb.PutRequest) and op.answer is not None]
    gets = [op for op in load.history if isinstance(op.answer, pb.RangeResponse) and op.answer.kvs]
    lost = copy.copy(puts[0])
    lost.answer = pb.PutResponse()
    lost.answer.header.revision = head(trio.cluster) + 5
    stale = copy.copy(gets[-1])
    stale.answer = pb.RangeResponse.FromString(stale.answer.SerializeToString())  # type: ignore[union-attr]
    stale.answer.kvs[0].value = b"of another world"
    refused = copy.copy(puts[-1])
    refused.answer, refused.error = None, ValueError  # type: ignore[assignment]
    early = copy.copy(puts[0])
    early.called, early.returned = puts[-1].returned, puts[-1].returned  # type: ignore[assignment]
    early.called += 0.001  # type: ignore[operator]
    for lie, true in ((lost, puts[0]), (stale, gets[-1]), (refused, puts[-1]), (early, puts[0])):
        with pytest.raises(AssertionError):
            trio.judge([lie if op is true else op for op in load.history])
    trio.judge(load.history)
    assert max(revision_of(op.answer) for op in puts) in trio.judge.truth  # type: ignore[arg-type]


def kill(pids: list[int]) -> None:
    """SIGKILL to all of them, as close together as can be, and wait until they are gone."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in pids), 10.0, "their end")


def kill_cluster(cluster: Cluster) -> None:
    """Every process of every node at once; supervisors first, so that none starts anything again."""
    nodes = range(len(cluster.places))
    found = [cluster.pids(node) for node in nodes]
    for process in PROCESSES:
        for pids in found:
            if pids[process]:
                with contextlib.suppress(ProcessLookupError):  # it went with its parent
                    os.kill(pids[process], signal.SIGKILL)
    for node in nodes:
        cluster.destroy(node)
