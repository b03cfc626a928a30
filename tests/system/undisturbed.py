"""Honest clients beside a story, and what must hold for them and for the processes while it goes on.

    with undisturbed(cluster, rss_bytes_max=...):
        ...somebody misbehaves...

Fails unless meanwhile every put and get at every node was answered within `seconds_max` (a stall of the whole machine
apart), a watcher at every node was told of every put there, every process stayed the same process, none grew past
`rss_bytes_max`, and none said "Traceback".
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator

import kvorum
from kvorum.watching import Watch
from tests.system.cluster import PROCESSES, Cluster, eventually

SERVED_SECONDS_MAX = 2.0
RSS_BYTES_MAX = 384 << 20
"""A process that has nothing big to do takes 25 to 60 MiB; most is held by apply when too many writes come too fast:
64 MiB of them here, as much on its way to raft, and the store's own 75."""
STEP_SECONDS = 0.05

_runs = itertools.count()


class Meter:
    """What was seen so far."""

    def __init__(self) -> None:
        self.slowest = 0.0
        self.stalled = 0.0
        self.calls = 0
        self.rss: dict[str, int] = {}
        self.errors: list[str] = []

    @property
    def biggest(self) -> int:
        return max(self.rss.values(), default=0)


def rss_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


@contextlib.contextmanager
def undisturbed(
    cluster: Cluster, *, seconds_max: float = SERVED_SECONDS_MAX, rss_bytes_max: int = RSS_BYTES_MAX
) -> Iterator[Meter]:
    nodes = range(len(cluster.places))
    before = {(node, name): cluster.pid(node, name) for node in nodes for name in PROCESSES}
    said = [len(cluster.log(node)) for node in nodes]
    meter, over, run = Meter(), threading.Event(), next(_runs)
    threads = [threading.Thread(target=_client, args=(cluster, node, run, meter, over), daemon=True) for node in nodes]
    threads.append(threading.Thread(target=_look, args=(before, meter, over), daemon=True))
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: meter.calls > 2 * len(nodes), 10.0, "honest clients")
        yield meter
        time.sleep(0.2)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not meter.errors, meter.errors[:5]
    served = meter.slowest - meter.stalled
    assert served <= seconds_max, f"an honest client waited {meter.slowest:.2f} s (machine {meter.stalled:.2f} s)"
    after = {(node, name): cluster.pids(node)[name] for node in nodes for name in PROCESSES}
    assert after == before, "a process was started again"
    assert meter.biggest <= rss_bytes_max, {name: f"{size >> 20} MiB" for name, size in meter.rss.items()}
    for node in nodes:
        assert "Traceback" not in cluster.log(node)[said[node] :]


def _client(cluster: Cluster, node: int, run: int, meter: Meter, over: threading.Event) -> None:
    """Put, get, see the event; all at one node."""
    key = f"honest/{run}/{node}"
    try:
        with kvorum.client([cluster.endpoint(node)], discover=False, timeout=15.0) as client:
            events = client._read(Watch(key))
            for number in itertools.count():
                if over.wait(0.01):
                    return
                value, began = str(number).encode(), time.monotonic()
                client.put(key, value)
                assert client.get(key)[0] == value
                seen = events.get(timeout=15.0).events
                assert [event.value for event in seen] == [value], seen
                meter.slowest = max(meter.slowest, time.monotonic() - began)
                meter.calls += 1
    except BaseException as error:
        meter.errors.append(f"an honest client of node {node}: {error!r}")


def _look(pids: dict[tuple[int, str], int], meter: Meter, over: threading.Event) -> None:
    """At the size of every process, and whether the machine stands still."""
    before = time.monotonic()
    while not over.wait(STEP_SECONDS):
        now = time.monotonic()
        if now - before > 4 * STEP_SECONDS:
            meter.stalled += now - before - STEP_SECONDS
        for (node, name), pid in pids.items():
            with contextlib.suppress(OSError):  # it is gone: the end will tell
                label = f"{name} of node {node}"
                meter.rss[label] = max(meter.rss.get(label, 0), rss_bytes(pid))
        before = time.monotonic()
