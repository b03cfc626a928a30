"""Fifty watchers of all forms over three nodes, writers, a compactor, and trouble: the watch promises all at once.

    writers ──▶ cluster ──▶ 51 watchers: iterators, callbacks and tasks, broadcast and on streams, of keys, ranges and
                   ▲        everything, filtered, with what was before, from the past, from now on and from the future;
                   │        some come late
                   │        3 laggards, which stall until what they need is gone
    compactor: reads the history back into an archive, then compacts up to what every watcher has read
    trouble:   watch, apply and raft of every node killed in turn, the network cut, readers stalled

What has to hold in the end (RELIABILITY W1 to W9): every log is exactly the history, restricted to what its watch asked
for, with what was before each change; and a laggard's is the beginning of that, and then Compacted. The history is the
one that all nodes tell and that every answer of the writers agrees with (verdict.py).
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from itertools import cycle
from unittest import mock

import kvorum
from kvorum import aio, errors
from kvorum import etcd_pb2 as pb
from kvorum.txn import Key
from tests.system.cluster import Cluster, eventually
from tests.system.load import Load
from tests.system.network import Divisible, Network
from tests.system.verdict import Archive, History, Judge, head, insist
from tests.system.watchers import Awaited, Called, Log, Loop, Reader

COMPLETE_SECONDS = 60.0
"""W7: in a healthy cluster every watch reaches the head by then, also beside others on a small machine."""
BACKLOG_BYTES = 8 << 10
"""What a reader may leave unread, here: a stall of a second is to be noticed."""
FUTURE = 300
"""How far ahead a watch from the future begins."""
READERS, CALLED, AWAITED, LATE = 7, 4, 5, 3
"""Of each form, for each node."""
CUT_SECONDS = (0.3, 1.0, 2.5, 18.0)
"""How long a partition lasts; the last, for runs that are longer, outlasts the patience of clients and of sockets."""
RANGES: tuple[tuple[Key, Key | None], ...] = (
    (b"\0", b"\0"),
    ("g1/a", None),
    ("g2/", "g20"),
    ("g2/b", b"\0"),
    ("g0/b", "g3/b"),
    ("g", "h"),
)
FILTERS: tuple[tuple[str, ...], ...] = ((), (), ("nodelete",), (), ("noput",))


class Crowd:
    """The watchers, and the clients that they are of."""

    def __init__(self, endpoints: list[str], first: int, dice: random.Random) -> None:
        self.logs: list[Log] = []
        self.laggards: list[Reader] = []
        self._endpoints, self._first, self._dice = endpoints, first, dice
        self._loop = Loop()
        self._sync: list[kvorum.Client] = []
        self._aio: list[aio.Client] = []
        self._kinds = cycle([(where, filters) for filters in FILTERS for where in RANGES])
        self._adding = threading.Lock()

    def gather(self, cluster: Cluster) -> None:
        """All but the late ones. Writers are at work already."""
        since = head(cluster)
        starts = cycle([self._first, 0, self._first, since + FUTURE, 0])
        for node in range(len(self._endpoints)):
            turned = self._endpoints[node:] + self._endpoints[:node]
            reading, calling = self._client(turned), self._client(turned)
            awaiting = self._loop.run(_aio_client(turned))
            self._aio.append(awaiting)
            self._add(*(Reader(reading, **self._kind(next(starts), since)) for _ in range(READERS)))
            self._add(*(Called(calling, **self._kind(next(starts), since)) for _ in range(CALLED)))
            self._add(*(Awaited(self._loop, awaiting, **self._kind(next(starts), since)) for _ in range(AWAITED)))
            laggard = Reader(self._client(turned), b"\0", b"\0", start=self._first)
            laggard.hold()
            laggard.start_watching()
            self.laggards.append(laggard)
        now = head(cluster)
        for log in self.logs:
            log.created = now

    def join(self, cluster: Cluster, node: int) -> None:
        """A late one, which begins where the history is by now. It may take until the next node answers."""
        start = head(cluster)
        turned = self._endpoints[node:] + self._endpoints[:node]
        self._add(Reader(self._client(turned), **self._kind(start, start)))

    def _client(self, endpoints: list[str]) -> kvorum.Client:
        self._sync.append(kvorum.client(endpoints, shuffle=False, timeout=60.0))
        return self._sync[-1]

    def _kind(self, start: int, since: int) -> dict[str, object]:
        (key, end), filters = next(self._kinds)
        prev_kv, stream = self._dice.random() < 0.5, self._dice.random() < 0.4
        return {
            "key": key,
            "end": end,
            "start": start,
            "since": since,
            "filters": () if end is None else filters,  # deletions of a single key are too rare for a test
            "prev_kv": prev_kv,
            "progress_notify": stream,
        }

    def _add(self, *logs: Log) -> None:
        with self._adding:  # nothing that it needs is compacted from now on
            self.logs += logs
        for log in logs:
            insist(log.start_watching)

    @property
    def position(self) -> int:
        """All have read so far, but for the laggards."""
        with self._adding:
            return min(log.position for log in self.logs)

    def close(self) -> None:
        for log in [*self.logs, *self.laggards]:
            log.let_go()
        for client in self._sync:
            client.close()
        for other in self._aio:
            self._loop.run(other.close())
        self._loop.close()


async def _aio_client(endpoints: list[str]) -> aio.Client:
    return aio.client(endpoints, shuffle=False, timeout=60.0)


class Compactor:
    """Compacts, again and again, what has been archived and what everybody has read."""

    def __init__(self, cluster: Cluster, crowd: Crowd, archive: Archive, dice: random.Random) -> None:
        self._cluster, self._crowd, self.archive, self._dice = cluster, crowd, archive, dice
        self.compacted = 0
        self.times = 0
        self._over = threading.Event()
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(120.0)
        assert not self._thread.is_alive(), "the compactor is stuck"
        if self._broken is not None:
            raise self._broken

    def _run(self) -> None:
        try:
            while not self._over.wait(self._dice.uniform(0.3, 1.2)):
                self.compact()
        except BaseException as error:
            self._broken = error

    def compact(self) -> None:
        position = self._crowd.position
        if position <= max(self.compacted, self.archive.last):
            return
        with contextlib.suppress(errors.Unavailable, errors.Ambiguous):  # not now
            self.archive.extend(self._dice.choice(self._cluster.endpoints), position)
            with kvorum.client(self._cluster.endpoints, timeout=5.0) as client:
                client.compact(position)
            self.compacted = position
            self.times += 1


class Trouble:
    """What is done to the cluster, a step at a time. `told` is what has been done."""

    def __init__(self, cluster: Cluster, crowd: Crowd, dice: random.Random, *, long: bool) -> None:
        self.cluster, self.crowd, self.dice, self.long = cluster, crowd, dice, long
        self.told: list[str] = []

    def run(self, seconds: float) -> None:
        """Every process of every node in turn, in some order, with partitions between; at least for so long."""
        until = time.monotonic() + seconds
        while True:
            steps: list[Callable[[], None]]
            steps = [lambda p=p, n=n: self.kill(p, n) for p in ("watch", "apply", "raft") for n in range(3)]
            if isinstance(self.cluster, Divisible):
                steps += self._divisions(self.cluster.network)
            self.dice.shuffle(steps)
            late = [node for node in range(3) for _ in range(LATE)] if not self.told else []
            for step in steps:
                stalled = self.dice.sample(self.crowd.logs, 8)
                for log in stalled:
                    log.hold()
                step()
                time.sleep(self.dice.uniform(0.2, 0.8))
                for log in stalled:
                    log.let_go()
                if late:
                    self.crowd.join(self.cluster, late.pop())
                    self.told.append("one joined")
            if time.monotonic() >= until:
                return

    def _divisions(self, network: Network) -> list[Callable[[], None]]:
        def pair() -> list[int]:
            return self.dice.sample(range(3), 2)

        return [
            lambda: self.divide("the leader alone", lambda: network.isolate(self.cluster.leader())),
            lambda: self.divide("one alone", lambda: network.isolate(self.dice.randrange(3))),
            lambda: self.divide("a pair parted", lambda: network.part(*pair())),
            lambda: self.divide("one way", lambda: network.cut(*pair())),
            lambda: self.divide("clients cut off from one", lambda: network.mute(self.dice.randrange(3))),
        ]

    def kill(self, process: str, node: int) -> None:
        self.told.append(f"{process} of {node} killed")
        self.cluster.kill(node, process)

    def divide(self, what: str, how: Callable[[], None]) -> None:
        assert isinstance(self.cluster, Divisible)
        self.told.append(what)
        how()
        try:
            time.sleep(self.dice.choice(CUT_SECONDS if self.long else CUT_SECONDS[:3]))
            if self.dice.random() < 0.5:
                node = self.dice.randrange(3)
                self.kill(self.dice.choice(("watch", "apply")), node)
                time.sleep(0.5)
        finally:
            self.cluster.network.heal()


def play(cluster: Cluster, judge: Judge, *, name: str, seconds: float) -> str:
    """One run: see the module. Says what happened in it; raises what is wrong, after saying what had been done."""
    dice = random.Random(name)
    archive = Archive(judge.first)
    crowd = Crowd(cluster.endpoints, judge.first, dice)
    compactor = Compactor(cluster, crowd, archive, random.Random(name))
    trouble = Trouble(cluster, crowd, dice, long=seconds > CUT_SECONDS[-1])
    with mock.patch("kvorum.watching.BACKLOG_BYTES_MAX", BACKLOG_BYTES), contextlib.ExitStack() as cleanup:
        cleanup.callback(crowd.close)
        try:
            with Load(cluster.endpoints, seed=len(name), name=name, clients=6, pause=0.03, timeout=10.0) as load:
                time.sleep(1.0)  # history to begin with
                crowd.gather(cluster)
                compactor.start()
                trouble.run(seconds)
                since = time.monotonic()
                for node in range(3):
                    load.served_after(node, since, 60.0)
            compactor.stop()
            first = judge.first
            judge(load.history, search=False, archive=archive)
            truth = {revision: events for revision, events in judge.truth.items() if revision >= first}
            _judge_crowd(crowd, truth, judge.before)
            compactor.compact()
            _judge_laggards(crowd, truth, judge.before, compactor.compacted)
        except BaseException:
            print(f"{name} ended badly after: {', '.join(trouble.told)}")
            raise
    given = sum(len(log.events) for log in crowd.logs)
    return (
        f"{len(load.history)} calls, {len(truth)} revisions, {given} events to {len(crowd.logs)} watchers, "
        f"{compactor.times} compactions, {len(trouble.told)} troubles"
    )


def _judge_crowd(crowd: Crowd, truth: History, before: dict[bytes, pb.KeyValue]) -> None:
    for log in crowd.logs:
        expected = log.expected(truth, before, log.start or log.created + 1)
        last = expected[-1].kv.mod_revision if expected else 0
        eventually(lambda log=log, last=last: log.error or log.revision >= last, COMPLETE_SECONDS, f"{last} for {log}")
    for log in crowd.logs:
        log.stop()
    wrong = [said for log in crowd.logs if (said := log.verdict(truth, before))]
    assert not wrong, "\n".join(wrong)
    assert sum(len(log.events) for log in crowd.logs) > 20 * len(crowd.logs), "too little to mean anything"


def _judge_laggards(crowd: Crowd, truth: History, before: dict[bytes, pb.KeyValue], compacted: int) -> None:
    """W9: what was gone when they read on is said, and nothing is left out silently before that."""
    for log in crowd.laggards:
        log.let_go()
        eventually(lambda log=log: log.error is not None, COMPLETE_SECONDS, f"the end of {log}")
        assert isinstance(log.error, errors.Compacted), log.error
        assert log.revision + 1 < log.error.compact_revision <= compacted
        assert log.wrong == []
        assert log.told() == log.expected(truth, before)[: len(log.events)]
