"""`python -m tests.system.soak --minutes N`: real clusters, clients, watchers, and trouble without end.

    round:  clients write, watchers watch │ troubles, one after the other, some at once │ quiet │ everything is judged

A round is half a minute of what test_kill, test_failpoints and test_watch do one at a time, drawn by a seed: processes
killed and paused, alone and together, everything killed at once, nodes stopped cleanly, leadership moved, failpoints
struck. Clusters have one, three and five nodes and live for a few rounds; between them come some with a crowd of
watchers and a network that can be cut (crowd.py). When the judge or a watcher finds something wrong it ends with 1 and
says what had been done. A seed draws the same troubles again, not the same moments.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import kvorum
from kvorum.errors import KvorumError
from tests.system.cluster import Cluster, eventually
from tests.system.crowd import play
from tests.system.load import Load
from tests.system.network import Divisible, Impossible, Network
from tests.system.test_failpoints import POINTS, STRUCK, Armed
from tests.system.test_kill import kill, kill_cluster
from tests.system.test_watch import COMPLETE_SECONDS
from tests.system.undisturbed import rss_bytes
from tests.system.verdict import Judge
from tests.system.watchers import Watcher

SETTINGS = {"heartbeat-interval": "50", "election-timeout": "500"}
CHILDREN = ("raft", "apply", "watch")
ROUND_SECONDS = 25.0
ROUNDS = 5
"""As many does a cluster live for."""
RSS_BYTES_MAX = 384 << 20


class Round:
    """One round of one cluster. `told` is what was done to it."""

    def __init__(self, cluster: Armed, dice: random.Random) -> None:
        self.cluster, self.dice = cluster, dice
        self.nodes = range(len(cluster.places))
        self.told: list[str] = []
        self.troubles: dict[str, tuple[int, Callable[[], str]]] = {
            "kill": (6, self.kill),
            "kill two": (2, self.kill_two),
            "kill one kind everywhere": (1, self.kill_kind),
            "kill a node": (2, self.kill_node),
            "kill everything": (1, self.kill_everything),
            "stop": (1, self.stop),
            "pause": (5, self.pause),
            "strike": (5, self.strike),
            "move": (2, self.move),
        }

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        names, weights = list(self.troubles), [weight for weight, _ in self.troubles.values()]
        while time.monotonic() < until:
            time.sleep(self.dice.expovariate(1.5))
            name = self.dice.choices(names, weights)[0]
            self.told.append(f"{name} {self.troubles[name][1]()}")

    def node(self) -> int:
        """Rather the leader than not, if there is one to be found."""
        if self.dice.random() < 0.4:
            for node in self.nodes:
                with contextlib.suppress(OSError, AssertionError):
                    if self.cluster.metric(node, "etcd_server_is_leader") == 1:
                        return node
        return self.dice.choice(self.nodes)

    def kill(self) -> str:
        node, process = self.node(), self.dice.choice(CHILDREN)
        self.cluster.kill(node, process)
        return f"{process} of {node}"

    def kill_two(self) -> str:
        chosen = [(self.node(), self.dice.choice(CHILDREN)) for _ in range(2)]
        kill([self.cluster.pid(*each) for each in set(chosen)])
        return f"{chosen}"

    def kill_kind(self) -> str:
        process = self.dice.choice(CHILDREN)
        kill([self.cluster.pid(node, process) for node in self.nodes])
        return process

    def kill_node(self) -> str:
        node = self.node()
        self.cluster.kill(node, "supervisor")
        time.sleep(self.dice.random())
        self.cluster.start(node, wait=False)
        return str(node)

    def kill_everything(self) -> str:
        kill_cluster(self.cluster)
        for node in self.nodes:
            self.cluster.start(node, wait=False)
        return ""

    def stop(self) -> str:
        node = self.node()
        code = self.cluster.stop(node)
        assert code in (0, -signal.SIGTERM), f"node {node} ended with {code}"  # the latter before it had begun
        self.cluster.start(node, wait=False)
        return str(node)

    def pause(self) -> str:
        chosen = {(self.node(), self.dice.choice(CHILDREN)) for _ in range(self.dice.choice((1, 1, 2)))}
        seconds = self.dice.choice((0.1, 0.4, 1.0, 2.5))
        for each in chosen:
            self.cluster.pause(*each)
        time.sleep(seconds)
        self.cluster.resume()
        return f"{sorted(chosen)} {seconds}"

    def strike(self) -> str:
        node, point = self.node(), self.dice.choice([point for point in STRUCK if POINTS[point] != "supervisor"])
        action = self.dice.choice(("panic", "panic", "sleep(300)", "sleep(1500)"))
        self.cluster.arm(node, f"{point}:{self.dice.randrange(1, 20)}*{action}")
        time.sleep(self.dice.uniform(0.2, 1.5))
        self.cluster.disarm(node)
        return f"{node} {point} {action}"

    def move(self) -> str:
        with kvorum.client(self.cluster.endpoints, timeout=1.0) as client, contextlib.suppress(KvorumError):
            target = self.dice.choice(client.members).id
            client.move_leader(target)
        return ""


class Soak:
    """Everything from a seed. `report` is told a line now and then."""

    def __init__(self, seed: int, report: Callable[[str], None] = print) -> None:
        self.seed, self.report = seed, report
        self.calls = self.events = self.rounds = self.clusters = 0
        self.troubles: Counter[str] = Counter()

    def run(self, minutes: float) -> None:
        """Raises what is wrong, after reporting how it came about."""
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            nodes = (3, 0, 1, 3, 0, 5)[self.clusters % 6]
            self.clusters += 1
            with tempfile.TemporaryDirectory(prefix="kvorum-soak-") as directory:
                if nodes:
                    with Armed(Path(directory) / "cluster", nodes=nodes, settings=SETTINGS) as cluster:
                        self._cluster(cluster, until)
                else:
                    self._crowd(Path(directory) / "cluster", until)

    def _crowd(self, directory: Path, until: float) -> None:
        try:
            made: Cluster = Divisible(directory, Network(3))
        except Impossible as reason:
            self.report(f"no partitions: {reason}")
            made = Cluster(directory)
        with made as cluster:
            judge = Judge(cluster)
            for _ in range(ROUNDS):
                if time.monotonic() > until:
                    return
                self.rounds += 1
                self.report(
                    f"round {self.rounds}: {play(cluster, judge, name=f'{self.seed}.{self.rounds}', seconds=40.0)}"
                )

    def _cluster(self, cluster: Armed, until: float) -> None:
        judge = Judge(cluster)
        biggest: Counter[str] = Counter()
        for _ in range(ROUNDS):
            if time.monotonic() > until:
                return
            self.rounds += 1
            self._round(cluster, judge)
            for node in range(len(cluster.places)):
                for name, pid in cluster.pids(node).items():
                    biggest[name] = max(biggest[name], rss_bytes(pid) if pid else 0)
            sizes = ", ".join(f"{name} {size >> 20}" for name, size in biggest.items())
            self.report(
                f"round {self.rounds}: {len(cluster.places)} nodes, {self.calls} calls, {self.events} events, "
                f"{sum(self.troubles.values())} troubles so far; MiB: {sizes}"
            )
            assert max(biggest.values()) < RSS_BYTES_MAX

    def _round(self, cluster: Armed, judge: Judge) -> None:
        name = f"{self.seed}.{self.rounds}"
        round = Round(cluster, random.Random(name))
        watchers = [
            Watcher(cluster.endpoints[node:] + cluster.endpoints[:node], key, end, start=judge.first, prev_kv=node == 1)
            for node in range(len(cluster.places))
            for key, end in ((b"\0", b"\0"), ("g1/", "g10"))
        ]
        try:
            with Load(cluster.endpoints, seed=self.rounds, name=name, clients=8, pause=0.02) as load:
                round.run(ROUND_SECONDS)
                since = time.monotonic()
                for node in range(len(cluster.places)):
                    load.served_after(node, since, 60.0)
            first = judge.first
            judge(load.history)
            truth = {revision: events for revision, events in judge.truth.items() if revision >= first}
            for watcher in watchers:
                self._watched(watcher, truth, judge.before)
            for node in range(len(cluster.places)):
                assert "Traceback" not in cluster.log(node)
        except BaseException:
            self.report(f"round {name}, {len(cluster.places)} nodes, ended badly after:\n  " + "\n  ".join(round.told))
            raise
        self.calls += len(load.history)
        self.events += sum(len(watcher.events) for watcher in watchers)
        self.troubles.update(each.split()[0] for each in round.told)

    def _watched(self, watcher: Watcher, truth: object, before: object) -> None:
        expected = watcher.expected(truth, before)  # type: ignore[arg-type]
        last = expected[-1].kv.mod_revision if expected else 0
        eventually(lambda: watcher.revision >= last, COMPLETE_SECONDS, f"revision {last} for a watcher")
        watcher.stop()
        assert watcher.wrong == []
        assert watcher.told()[: len(expected)] == expected, "a watcher was told something else"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (%(default)g)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20), help="what draws the troubles")
    options = parser.parse_args(argv)
    soak = Soak(options.seed, lambda line: print(line, flush=True))
    print(f"seed {options.seed}", flush=True)
    try:
        soak.run(options.minutes)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    print(f"{soak.rounds} rounds, {soak.clusters} clusters, {soak.calls} calls, {soak.events} events, {soak.troubles}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
