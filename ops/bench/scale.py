"""How much one node bears: watchers by the ten thousand, leases by the million.

    python -m ops.bench.scale [watchers-shared] [watchers-own] [idle] [leases] [expiry]

Each runs once, on a fresh node of its own (etcd's too, where it is asked the same), and checks what it measures: every
watcher must have been given exactly the events of its range. The rows are part of RESULTS.md.

A row: title, system, seconds, memory_mb (PSS before, and after each step; None: not measured), notes, errors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvorum import Client
from kvorum import etcd_pb2 as pb
from kvorum.core import Call
from kvorum.results import WatchResponse
from kvorum.watching import Watch
from kvorum.wire import Method
from ops.bench import loads
from ops.bench.listeners import Audience
from ops.bench.nativeload import rank
from ops.bench.systems import ROOT, Cluster, Etcd, Gateway, Kvorum, System, memory_mb, running
from ops.bench.workloads import Plan, Workload

CONNECTIONS = 100
LEASES = 1_000_000
IN_FLIGHT = 1000
EXPIRY_SECONDS = 90
"""All leases of the expiry are granted within this time, each for what is left of it."""
CALM_SECONDS = 5.0

Row = dict[str, Any]
RangeOf = Callable[[int], tuple[bytes, bytes | None]]
"""What the watcher of this number watches."""
clock = time.perf_counter


class Exact(Audience):
    """Counts for each watch the events and the sum of their revisions, which says whether they are the right ones."""

    def __init__(self) -> None:
        super().__init__(every_key=False)
        self.sums: dict[Watch, tuple[int, int]] = {}

    def _take(self, watch: Watch, response: WatchResponse, now: float) -> None:
        count, total = self.sums.get(watch, (0, 0))
        for event in response.events:
            if event.mod_revision <= self.last[watch]:
                self._failed(f"a watcher hears of revision {event.mod_revision} after {self.last[watch]}")
            self.last[watch] = event.mod_revision
            count, total = count + 1, total + event.mod_revision
        self.sums[watch] = count, total
        watch.read_bytes = watch.given_bytes


def watchers(under: Path, title: str, count: int, puts: int, range_of: RangeOf) -> Row:
    """`count` watchers over CONNECTIONS connections to one node; then `puts` puts, each to the range of one of them."""
    with running(Kvorum(), 1, under) as cluster:
        empty = _memory(cluster)
        audience = Exact()
        began = clock()
        for i in range(CONNECTIONS):
            audience.add(cluster.endpoints[0], [Watch(*range_of(n)) for n in range(i, count, CONNECTIONS)])
        audience.wait_created(count)
        created = clock() - began
        _pump_for(audience, 3.0)
        connected = _memory(cluster)
        written: list[tuple[bytes, int]] = []
        thread = threading.Thread(target=_put_some, args=(cluster.endpoints[0], range_of, count, puts, written))
        began = clock()
        thread.start()
        while thread.is_alive():
            audience.pump()
        want = _wanted(audience, written)
        until = clock() + 60
        while clock() < until and any(audience.sums.get(watch, (0, 0))[0] < n for watch, (n, _) in want.items()):
            audience.pump()
        heard = clock() - began
        wrong = sum(audience.sums.get(watch, (0, 0)) != expected for watch, expected in want.items())
        events = sum(n for n, _ in audience.sums.values())
        return {
            "title": title,
            "system": "kvorum",
            "seconds": created,
            "memory_mb": [empty, connected, _memory(cluster)],
            "notes": f"{puts:,} puts and the {events:,} events of them took {heard:.1f} s, all heard exactly once",
            "errors": audience.errors + wrong,
        }


def _wanted(audience: Exact, written: list[tuple[bytes, int]]) -> dict[Watch, tuple[int, int]]:
    """For each watch, how many of what was written it must be given, and the sum of their revisions."""
    by_range: dict[tuple[bytes, bytes], tuple[int, int]] = {}
    want = {}
    single: dict[bytes, tuple[int, int]] = {}
    for key, revision in written:
        n, total = single.get(key, (0, 0))
        single[key] = n + 1, total + revision
    for watch in audience.last:
        key, end = watch.asked.key, watch.asked.range_end
        if not end:
            want[watch] = single.get(key, (0, 0))
        else:
            if (key, end) not in by_range:
                inside = [revision for k, revision in written if key <= k < end]
                by_range[key, end] = len(inside), sum(inside)
            want[watch] = by_range[key, end]
    return want


def _put_some(
    endpoint: str,
    range_of: RangeOf,
    count: int,
    puts: int,
    written: list[tuple[bytes, int]],
) -> None:
    with Client(endpoint, discover=False) as client:
        for i in range(puts):
            key, _ = range_of(i * 7919 % count)
            written.append((key, client.put(key, bytes(256)).header.revision))


def _pump_for(audience: Audience, seconds: float) -> None:
    until = clock() + seconds
    while clock() < until:
        audience.pump()


def _memory(cluster: Cluster) -> float:
    return statistics.mean(memory_mb(node)["pss"] for node in cluster.processes())


def idle(system: System, under: Path, count: int) -> Row:
    """`count` connections of etcd's Go client with a watch each, to one node, and nothing happens."""
    loads.build_etcdload()
    with running(system, 1, under) as cluster:
        found = [_memory(cluster)]
        began = clock()
        took: list[float] = []

        def connected(_: int) -> None:
            took.append(clock() - began - plan.warmup_seconds)
            found.append(_memory(cluster))

        plan = Plan(warmup_seconds=3.0, window_seconds=1.0)
        workload = Workload("put", 0, "", watchers=count)
        measured = loads.measure(plan, workload, system, cluster, plan.seed, at_begin=connected)
        return {
            "title": f"{count:,} connections with a watch each, idle",
            "system": "kvorum" if isinstance(system, Kvorum) else system.name,
            "seconds": took[0],
            "memory_mb": found,
            "notes": f"{(found[1] - found[0]) / count * 1000:.0f} KB each; etcd's Go client",
            "errors": measured.errors,
        }


# ---- leases


def leases(system: System, under: Path, count: int) -> Row:
    with running(system, 1, under) as cluster:
        empty = _memory(cluster)
        began = clock()
        if system.name == "etcd":
            loads.build_etcdload()
            workload = Workload("grant", IN_FLIGHT, "")
            loads.fill(Plan(keys=count), system, cluster, workload)
        else:
            _grant(cluster.endpoints[0], count, lambda: 3600)
        took = clock() - began
        time.sleep(2)
        return {
            "title": f"{count:,} leases, granted",
            "system": system.name,
            "seconds": took,
            "memory_mb": [empty, _memory(cluster)],
            "notes": f"{count / took / 1000:.1f} k/s, {IN_FLIGHT} in flight",
            "errors": 0,
        }


def _grant(endpoint: str, count: int, ttl: Callable[[], int]) -> list[int]:
    """Grants so many, IN_FLIGHT at a time. Returns the ids. Raises what goes wrong."""
    granted: list[int] = []
    trouble: list[Exception] = []
    with Client(endpoint, discover=False, timeout=60) as client:
        client.hello()
        left = count

        def ask() -> None:
            nonlocal left
            if left and not trouble:
                left -= 1
                client.submit(Method.LEASE_GRANT, pb.LeaseGrantRequest(TTL=ttl()).SerializeToString(), answered)

        def answered(call: Call) -> None:
            if call.error is not None:
                trouble.append(call.error)
                return
            granted.append(pb.LeaseGrantResponse.FromString(call.reply).ID)
            ask()

        for _ in range(IN_FLIGHT):
            ask()
        while client.inflight:
            client.drive(1.0)
    if trouble:
        raise trouble[0]
    return granted


def expiry(under: Path, count: int) -> Row:
    """Leases that all run out within a second, and a lone client's puts before and while they do.

    Of the longest it is said how long it took without the time for which the machine's own host had stopped a CPU:
    100 ms of that at a time are no rarity on a rented machine, and look like a stall.
    """
    with running(Kvorum(), 1, under) as cluster, Client(cluster.endpoints[0], discover=False, timeout=60) as client:
        end = clock() + EXPIRY_SECONDS
        granted = _grant(cluster.endpoints[0], count, lambda: max(2, round(end - clock())))
        left = end - clock()
        if left < CALM_SECONDS + 2:
            raise RuntimeError(
                f"{count} leases took {EXPIRY_SECONDS - left:.0f} s to grant: nothing was left to wait for"
            )
        sample = granted[:: max(1, count // 200)]
        calm: list[float] = []
        meanwhile: list[float] = []
        unstolen = 0.0
        began = end - 1.5
        time.sleep(max(0.0, began - CALM_SECONDS - clock()))
        look_at = began
        while sample:
            taken = stolen_seconds()
            started = clock()
            client.put(b"meanwhile", bytes(256))
            now = clock()
            (calm if now < began else meanwhile).append(now - started)
            if now >= began:
                most = max(after - before for before, after in zip(taken, stolen_seconds(), strict=True))
                unstolen = max(unstolen, now - started - most)
            if now >= look_at:
                look_at = now + 0.5
                while sample and _is_gone(client, sample[-1]):
                    sample.pop()
            time.sleep(0.005)
        gone_at = clock()
        before, after = sorted(calm), sorted(meanwhile)
        return {
            "title": f"{count:,} leases, running out within a second",
            "system": "kvorum",
            "seconds": gone_at - began,
            "memory_mb": None,
            "notes": f"a lone client's puts: p50 {rank(before, 0.5):.1f}, longest {before[-1] * 1e3:.0f} ms before, "
            f"p50 {rank(after, 0.5):.1f}, p99 {rank(after, 0.99):.0f}, longest {after[-1] * 1e3:.0f} ms meanwhile "
            f"({unstolen * 1e3:.0f} but for what the machine's host had taken of a CPU)",
            "errors": 0,
        }


def stolen_seconds() -> list[float]:
    """For how long each CPU was ready to run and the host ran something else, in steps of 10 ms."""
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
    return [int(row[8]) / os.sysconf("SC_CLK_TCK") for row in rows[1:]]


def _is_gone(client: Client, id: int) -> bool:
    return client.get_lease_info(id).TTL == -1


# ----


def three_ranges(number: int) -> tuple[bytes, bytes | None]:
    """A prefix, a range that is none, and everything."""
    return ((b"a/", b"a0"), (b"a/x", b"b"), (b"\0", b"\xff"))[number % 3]


def own_key(number: int) -> tuple[bytes, bytes | None]:
    return b"key-%08d" % number, None


EXPERIMENTS: dict[str, Callable[[Path], list[Row]]] = {
    "watchers-shared": lambda under: [watchers(under, "10,000 watchers of 3 ranges", 10_000, 300, three_ranges)],
    "watchers-own": lambda under: [watchers(under, "100,000 watchers of a key each", 100_000, 3000, own_key)],
    "idle": lambda under: [idle(Etcd(), under, 1000), idle(Gateway(), under, 1000)],
    "leases": lambda under: [leases(Etcd(), under, LEASES), leases(Kvorum(), under, LEASES)],
    "expiry": lambda under: [expiry(under, LEASES)],
}


def run(under: Path) -> list[Row]:
    """All of them, for RESULTS.md."""
    found = []
    for experiment in EXPERIMENTS.values():
        for row in experiment(under):
            print(
                f"{row['title']}, {row['system']}: {row['seconds']:.1f} s; {row['notes']}",
                flush=True,
            )
            found.append(row)
    return found


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m ops.bench.scale", description="how much one node bears")
    p.add_argument("experiments", nargs="*", choices=[*EXPERIMENTS, []], help="all, if none is named")
    p.add_argument("--dir", type=Path, default=ROOT / "build" / "bench")
    arguments = p.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    for name in arguments.experiments or EXPERIMENTS:
        for row in EXPERIMENTS[name](arguments.dir):
            print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
