"""The client libraries against a real cluster whose processes die, stop and come back.

What the client says of each call is held against what the cluster then has: acknowledged is there, refused and
unavailable is not, ambiguous is there at most once; and a watch sees every change once and in order through all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvorum
import kvorum.aio
from kvorum import core, errors, verbs, wire
from kvorum.core import Call
from kvorum.results import Event, WatchResponse
from kvorum.txn import create, get, put, value
from kvorum.wire import Method
from tests.system.cluster import Cluster, eventually


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("client"), nodes=3, shared=True) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[kvorum.Client]:
    with kvorum.client(cluster.endpoints) as client:
        client.delete_prefix("")
        yield client


def at(cluster: Cluster, node: int, **options: object) -> kvorum.Client:
    """A client of one node and no other."""
    return kvorum.client(cluster.endpoint(node), discover=False, **options)  # type: ignore[arg-type]


class Writer:
    """Puts /w/0, /w/1, ... one after another until told to stop, and keeps what it was told of each."""

    def __init__(self, client: kvorum.Client, prefix: str) -> None:
        self.client, self.prefix = client, prefix
        self.acknowledged: set[int] = set()
        self.refuted: set[int] = set()
        self.ambiguous: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                self.client.put(f"{self.prefix}{number:06}", str(number), timeout=5)
                self.acknowledged.add(number)
            except kvorum.Ambiguous:
                self.ambiguous.add(number)
            except kvorum.Unavailable:
                self.refuted.add(number)
            number += 1

    def __enter__(self) -> Writer:
        self._thread.start()
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int = 20) -> None:
        """Wait until so many more have been acknowledged."""
        enough = len(self.acknowledged) + count
        eventually(lambda: len(self.acknowledged) >= enough, 20, "the next acknowledged put")

    def judge(self, client: kvorum.Client, seen: list[Event]) -> None:
        """Hold it against the store and against what a watch from the beginning saw."""
        stored = {int(found) for found, _ in client.get_prefix(self.prefix)}
        assert self.acknowledged <= stored
        assert stored.isdisjoint(self.refuted)
        assert stored <= self.acknowledged | self.ambiguous
        eventually(lambda: {int(event.value) for event in seen} >= stored, 10, "the watch at the head")
        numbers = [int(event.value) for event in seen]
        assert sorted(numbers) == sorted(stored), "an event came twice, or one that never was"
        revisions = [event.mod_revision for event in seen]
        assert revisions == sorted(revisions)


@contextlib.contextmanager
def watched(client: kvorum.Client, prefix: str) -> Iterator[list[Event]]:
    """The events under `prefix` as they come."""
    seen: list[Event] = []

    def take(response: WatchResponse | errors.KvorumError) -> None:
        if isinstance(response, errors.KvorumError):
            raise response
        seen.extend(response.events)

    number = client.add_watch_prefix_callback(prefix, take)
    yield seen
    client.cancel_watch(number)


# ---- an ordinary day


def test_a_put_on_one_node_is_read_on_every_other(cluster: Cluster) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(at(cluster, node)) for node in range(3)]
        for round in range(10):
            clients[round % 3].put("k", str(round))
            assert [client.get("k")[0] for client in clients] == [str(round).encode()] * 3


def test_transactions_compare_and_swap(client: kvorum.Client) -> None:
    assert client.put_if_not_exists("seat", "free")
    assert not client.put_if_not_exists("seat", "taken")
    ok, answers = client.txn().if_(value("seat") == "free").then(put("seat", "ada"), get("seat")).commit()
    assert ok
    assert answers[1][0][0] == b"ada"  # type: ignore[index]
    ok, answers = client.txn().if_(create("seat") == 0).then(put("seat", "bob")).else_(get("seat")).commit()
    assert not ok
    assert answers[0][0][0] == b"ada"  # type: ignore[index]
    assert client.replace("seat", "ada", "eve")


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda c: c.put("", "v"), errors.EmptyKey),
        (lambda c: c.put("k", "v", lease=99), errors.LeaseNotFound),
        (lambda c: c.put("none", "", ignore_value=True), errors.KeyNotFound),
        (lambda c: c.put("k", "v", ignore_value=True), errors.ValueProvided),
        (lambda c: c.put("k", "v", lease=9, ignore_lease=True), errors.LeaseProvided),
        (lambda c: c.put("k", b"x" * (2 << 20)), errors.RequestTooLarge),
        (lambda c: c.get("k", revision=1 << 40), errors.FutureRevision),
        (lambda c: c.compact(1 << 40), errors.FutureRevision),
        (lambda c: c.transaction(success=[put("k", "1"), put("k", "2")]), errors.DuplicateKey),
        (lambda c: c.transaction(success=[put(f"k{i}", "") for i in range(129)]), errors.TooManyOps),
        (lambda c: c.move_leader(12345), (errors.BadLeaderTransferee, errors.NotLeader)),
        (lambda c: c.ask(verbs.Ask(99, b"", bytes, True, None)), kvorum.Refused),
        (lambda c: c.ask(verbs.Ask(Method.PUT, b"\xff\xff", bytes, False, None)), errors.Malformed),
    ],
)
def test_a_refusal_of_the_real_thing_is_the_right_exception(
    client: kvorum.Client, ask: Callable[[kvorum.Client], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(client)
    assert client.get_all() == []


def test_thousands_of_calls_in_flight_are_each_answered(client: kvorum.Client) -> None:
    with client.pipeline() as pipe:
        puts = [pipe.put(f"k{i:05}", str(i)) for i in range(5000)]
        gets = [pipe.get_prefix("k0000", serializable=True) for _ in range(100)]
    revisions = {answer.result().header.revision for answer in puts}
    assert len(revisions) == 5000
    assert all(len(answer.result()) <= 10 for answer in gets)
    assert client.get_prefix_response("k", count_only=True).count == 5000


def test_the_asyncio_client_is_served_alike(cluster: Cluster, client: kvorum.Client) -> None:
    async def main() -> list[bytes]:
        async with kvorum.aio.client(cluster.endpoints) as other, other.watch_prefix("a") as events:
            await asyncio.gather(*(other.put(f"a{i}", str(i)) for i in range(500)))
            return [(await anext(events)).value for _ in range(500)]

    assert sorted(map(int, asyncio.run(main()))) == list(range(500))
    assert client.get_prefix_response("a", count_only=True).count == 500


def test_a_watch_below_the_compaction_ends_with_the_compact_revision(client: kvorum.Client) -> None:
    revisions = [client.put("k", str(i)).header.revision for i in range(5)]
    client.compact(revisions[3], physical=True)
    with pytest.raises(errors.Compacted):
        client.get("k", revision=revisions[1])
    events, _ = client.watch("k", start_revision=revisions[0])
    with pytest.raises(errors.Compacted) as raised:
        next(events)
    assert raised.value.compact_revision == revisions[3]
    events, cancel = client.watch("k", start_revision=revisions[3])
    assert [next(events).mod_revision, next(events).mod_revision] == revisions[3:]
    cancel()


def test_the_client_on_the_protocols_page_works_here_too(cluster: Cluster, client: kvorum.Client) -> None:
    page = (Path(wire.__file__).parent / "PROTOCOL.md").read_text()
    program = re.search(r"<!-- client -->\n\n```python\n(.*?)\n```", page, re.DOTALL)
    assert program is not None
    address = f"tcp://{cluster.endpoint(1)}"
    done = subprocess.run(
        [sys.executable, "-c", program[1], address], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stderr == ""
    assert re.fullmatch(r"put at revision \d+\nget greeting = hello\nwatch saw greeting = hello\n", done.stdout)


def test_a_client_of_another_version_is_told_so(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear error, never a hang-up."""
    monkeypatch.setattr(core, "PROTOCOL", 99)
    with at(cluster, 0) as client, pytest.raises(kvorum.Refused, match="protocol version not supported: 99"):
        client.get("k")


# ---- bad days


@pytest.mark.parametrize("process", ["apply", "raft", "watch"])
def test_what_a_client_says_is_true_when_a_process_of_its_node_is_killed(
    cluster: Cluster, client: kvorum.Client, process: str
) -> None:
    with watched(client, "w/") as seen:
        with Writer(client, "w/") as writer:
            for node in range(3):
                cluster.kill(node, process)
                writer.more()
                eventually(lambda node=node: cluster.healthy(node), 20, f"node {node} healthy")
        writer.judge(client, seen)


def test_a_client_goes_on_when_whole_nodes_go_and_come_back(cluster: Cluster, client: kvorum.Client) -> None:
    with watched(client, "n/") as seen:
        with Writer(client, "n/") as writer:
            for node in (cluster.leader(), (cluster.leader() + 1) % 3):
                cluster.kill(node, "supervisor")
                writer.more()
                cluster.start(node)
                writer.more()
        writer.judge(client, seen)


def test_a_client_leaves_a_node_that_stands_still(cluster: Cluster) -> None:
    """No connection is closed by a SIGSTOP: heartbeats tell, and a read is then asked elsewhere."""
    first, *others = cluster.endpoints
    with kvorum.client([first, *others], shuffle=False) as client:
        client.put("k", "v")
        cluster.pause(0, "apply")
        try:
            assert client.get("k", timeout=10)[0] == b"v"
            assert client.hello().name != cluster.places[0].name
        finally:
            cluster.resume()


def test_without_a_majority_nothing_is_promised_and_stale_reads_go_on(cluster: Cluster) -> None:
    leader = cluster.leader()
    others = [node for node in range(3) if node != leader]
    with at(cluster, leader, timeout=2.0) as client:
        client.put("k", "before")
        for node in others:
            cluster.kill(node, "supervisor")
        try:
            with pytest.raises((errors.Ambiguous, errors.Unavailable)):
                client.put("k", "after")
            with pytest.raises((errors.Ambiguous, errors.Unavailable)):
                client.get("k", timeout=0.5)
            assert client.get("k", serializable=True)[0] == b"before"
        finally:
            for node in others:
                cluster.start(node, wait=False)
        cluster.await_ready()
        assert client.get("k", timeout=10)[0] in (b"before", b"after")


def test_a_windowed_benchmark_loses_no_call_over_a_kill(cluster: Cluster, client: kvorum.Client) -> None:
    """submit() and drive(): every call is finished exactly once, whatever dies meanwhile."""
    request = verbs.put("bench", "x" * 256).request
    counts = {"ok": 0, "ambiguous": 0, "submitted": 0}
    stop = time.monotonic() + 3

    def done(call: Call) -> None:
        counts["ok" if call.error is None else "ambiguous"] += 1
        if time.monotonic() < stop:
            submit()

    def submit() -> None:
        counts["submitted"] += 1
        client.submit(Method.PUT, request, done)

    killer = threading.Timer(1, cluster.kill, (cluster.leader(), "apply"))
    killer.start()
    for _ in range(64):
        submit()
    while client.inflight:
        client.drive(1.0)
    killer.join()
    assert counts["ok"] + counts["ambiguous"] == counts["submitted"]
    assert counts["ok"] > 100
    cluster.await_ready()
