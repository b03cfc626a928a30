"""Watches through the death of everything they depend on: every event once, in order, whole (RELIABILITY 1.2, trap T7).

Watchers of several ranges at all nodes run while clients write and the processes of the nodes die, pause and come back.
The client resumes after what it has; so each watcher's log must be exactly the history from where it began, restricted
to what it asked for. That history is itself judged (verdict.py), so a watcher can't be right together with a wrong one.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvorum
from kvorum import errors
from kvorum.txn import Key
from tests.system.cluster import PROCESSES, ROOT, Cluster, eventually
from tests.system.load import Load
from tests.system.verdict import Judge, head, insist
from tests.system.watchers import Watcher

COMPLETE_SECONDS = 20.0
"""W7: in a healthy cluster every watch reaches the head by then."""
RANGES: dict[str, tuple[Key, Key | None]] = {
    "everything": (b"\0", b"\0"),
    "one key": ("g1/a", None),
    "a group": ("g2/", "g20"),
    "from a key on": ("g2/b", b"\0"),
}


class Stage:
    """A cluster that the tests of this module share."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.judge = cluster, Judge(cluster)
        self.first = self.judge.first

    @contextlib.contextmanager
    def story(self, name: str, watchers: list[Watcher], pause: float = 0.01) -> Iterator[Load]:
        """Clients write while the block runs; then the history is judged, and the watchers by it."""
        with Load(self.cluster.endpoints, seed=len(name), name=name, pause=pause) as load:
            yield load
        self.judge(load.history, search=False)
        for watcher in watchers:
            expected = watcher.expected(self.judge.truth, {})
            last = expected[-1].kv.mod_revision if expected else 0
            eventually(lambda watcher=watcher, last=last: watcher.revision >= last, COMPLETE_SECONDS, "the last event")
            watcher.stop()
            assert watcher.wrong == []
            assert watcher.told() == expected
            assert len(expected) > (100 if watcher.key == b"\0" and not watcher.filters else 3), (
                "too little to mean anything"
            )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Cluster(tmp_path_factory.mktemp("watch"), nodes=3, shared=True) as cluster:
        yield Stage(cluster)


@pytest.mark.parametrize("process", PROCESSES)
def test_watchers_see_everything_once_whatever_dies_beneath_them(stage: Stage, process: str) -> None:
    """W1 to W5, W7, W8. One watcher of each kind begins at each node, from the first revision on."""
    cluster, watchers = stage.cluster, []
    with Load(cluster.endpoints, seed=1, name=f"before-{process}", pause=0.01) as load:
        time.sleep(0.3)  # history to begin with
    stage.judge(load.history, search=False)
    for node in range(3):
        endpoints = cluster.endpoints[node:] + cluster.endpoints[:node]
        for key, end in RANGES.values():
            watchers.append(Watcher(endpoints, key, end, start=stage.first, prev_kv=node == 1))
        watchers.append(Watcher(endpoints, b"\0", b"\0", start=stage.first, filters=("noput",)))
        watchers.append(Watcher(endpoints, b"\0", b"\0", start=stage.first, filters=("nodelete",)))
    with stage.story(f"kill-{process}", watchers) as load:
        leader = cluster.leader()
        for node in (leader, (leader + 1) % 3, (leader + 2) % 3):
            since = time.monotonic()
            cluster.kill(node, process)
            if process == "supervisor":
                cluster.start(node, wait=False)
            time.sleep(0.2)
            load.served_after(node, since, 60.0)


def test_a_watcher_of_one_node_comes_back_to_it(stage: Stage) -> None:
    """W5 at the same member: nowhere else to go, so it waits until the process is there again."""
    cluster = stage.cluster
    node = cluster.leader()
    watcher = Watcher([cluster.endpoint(node)], b"\0", b"\0", start=stage.first, discover=False)
    silences = []
    with stage.story("tied", [watcher]):
        for process in ("watch", "apply", "watch", "raft"):
            time.sleep(0.3)
            since, seen = time.monotonic(), head(cluster)
            cluster.kill(node, process)
            eventually(lambda seen=seen: watcher.revision > seen + 5, 20.0, f"events after the death of {process}")
            silences.append(time.monotonic() - since)
    assert max(silences) < 15.0, silences


def test_a_watch_process_that_was_paused_misses_nothing(stage: Stage) -> None:
    """F3, T7. Longer than an election, with more changes than its queue of unread ones may hold in messages."""
    cluster = stage.cluster
    node = cluster.leader()
    watchers = [
        Watcher([cluster.endpoint(node)], key, end, start=stage.first, discover=False) for key, end in RANGES.values()
    ]
    with stage.story("paused", watchers, pause=0.0):
        for _ in range(2):
            cluster.pause(node, "watch")
            time.sleep(1.2)
            cluster.resume()
            time.sleep(0.5)


def test_a_reader_that_is_slow_is_late_and_nothing_else(stage: Stage) -> None:
    watchers = [Watcher(stage.cluster.endpoints, b"\0", b"\0", start=stage.first, pause=0.01) for _ in range(2)]
    with stage.story("slow", watchers, pause=0.002):
        time.sleep(2.0)


def test_a_watch_from_a_future_revision_waits_for_it(stage: Stage) -> None:
    """W8: nothing before it is delivered, over restarts, either (etcd #20221)."""
    cluster = stage.cluster
    start = head(cluster) + 40
    watcher = Watcher(cluster.endpoints, b"\0", b"\0", start=start)
    node = cluster.leader()
    with stage.story("future", [watcher]):
        cluster.kill(node, "watch")
        time.sleep(0.3)
        cluster.kill(node, "apply")
        time.sleep(1.0)
    assert watcher.events[0].mod_revision == start


def test_a_watch_from_now_on_sees_what_follows_its_creation(tmp_path: Path) -> None:
    """Not one event of before, and all of after, also while its node's apply process is being replaced."""
    with Cluster(tmp_path, nodes=1) as cluster, kvorum.client(cluster.endpoints) as client:
        for number in range(6):
            insist(lambda number=number: client.put("now", f"{number} before"))
            if number % 2:
                cluster.kill(0, "apply" if number % 4 == 1 else "watch")
            responses, cancel = insist(lambda: client.watch_response("now"))
            insist(lambda number=number: client.put("now", f"{number} after"))
            assert next(responses).events[0].value == f"{number} after".encode()
            cancel()


def test_a_watch_of_what_has_been_compacted_ends_and_says_so(tmp_path: Path) -> None:
    """W9. One that has been told up to the compaction goes on, also over a restart of its node."""
    with Cluster(tmp_path, nodes=1) as cluster, kvorum.client(cluster.endpoints) as client:
        for number in range(30):
            client.put("a", str(number))
        client.compact(20)
        responses, _ = client.watch_response("a", start_revision=19)
        with pytest.raises(errors.Compacted) as caught:
            next(responses)
        assert caught.value.compact_revision == 20
        responses, cancel = client.watch_response("a", start_revision=20)
        assert next(responses).events[0].mod_revision == 20
        cancel()
        with kvorum.client(cluster.endpoints) as sleeper:
            later, _ = sleeper.watch_response("nothing", start_revision=25)
            last = client.put("nothing", "yet").header.revision
            assert next(later).revision == last
            cluster.destroy(0)
            cluster.start(0)
            insist(lambda: client.put("a", "more"))
            client.compact(last + 1)
            insist(lambda: client.put("nothing", "but this"))
            assert [event.value for event in next(later).events] == [b"but this"]


SLEEPER = """
import sys
import kvorum
from kvorum.watching import State

with kvorum.client(sys.argv[1], timeout=60.0) as client:
    responses, cancel = client.watch_prefix_response("air/", start_revision=int(sys.argv[2]))
    (watch,) = client._carrier()._core._watches
    heard = [event.mod_revision for event in next(responses).events]
    while watch.state is not State.TUNED:
        pass
    streams = client._carrier()._core._next_stream
    print("tuned", flush=True)
    last = int(sys.stdin.readline())
    while heard[-1] < last:
        heard += [event.mod_revision for event in next(responses).events]
    assert heard == list(range(int(sys.argv[2]), last + 1)), "not all, or not once, or not in order"
    assert client._carrier()._core._next_stream > streams, "nothing was lost: this has shown nothing"
    print("all", flush=True)
"""


def test_what_the_air_loses_is_fetched(tmp_path: Path) -> None:
    """T7: a listener stands still while more is published than all queues on the way to it hold. Others hear it."""
    count, value = 2_000, bytes(24 << 10)
    with Cluster(tmp_path, nodes=1) as cluster, kvorum.client(cluster.endpoints, timeout=60.0) as client:
        first = client.put("air/0", "v").header.revision
        responses, cancel = client.watch_prefix_response("air/", start_revision=first)
        sleeper = subprocess.Popen(
            [sys.executable, "-c", SLEEPER, cluster.endpoint(0), str(first)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with sleeper:
            try:
                assert sleeper.stdin is not None
                assert sleeper.stdout is not None
                assert sleeper.stdout.readline() == "tuned\n"
                sleeper.send_signal(signal.SIGSTOP)
                for _ in range(count):
                    client.put("air/1", value)  # one by one: each is a publication
                last = head(cluster)
                heard: list[int] = []
                while not heard or heard[-1] < last:
                    heard += [event.mod_revision for event in next(responses).events]
                assert heard == list(range(first, last + 1))
                cancel()
                sleeper.send_signal(signal.SIGCONT)
                sleeper.stdin.write(f"{last}\n")
                sleeper.stdin.flush()
                assert sleeper.stdout.readline() == "all\n"
                assert sleeper.wait(60) == 0
            finally:
                sleeper.kill()


def test_a_watch_from_now_on_is_behind_what_its_client_knows(tmp_path: Path) -> None:
    """Also while the watch process rests after a telling: as etcd, whose watch call sees the revision of the moment."""
    with Cluster(tmp_path, 1) as cluster, kvorum.client(cluster.endpoint(0), discover=False) as client:
        for _ in range(20):  # somebody to tell, after which it rests
            client.add_watch_prefix_callback("", lambda _: None)
        for number in range(200):
            client.put("now", f"before {number}")
            events, cancel = client.watch("now")
            client.put("now", f"behind {number}")
            assert next(events).value == b"behind %d" % number
            cancel()
