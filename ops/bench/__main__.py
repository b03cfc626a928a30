"""The command line and the rounds: `python -m ops.bench`, or `make bench`.

    round 0:  three nodes: etcd, kvorum   one node: etcd, kvorum
    round 1:  three nodes: kvorum, etcd   one node: kvorum, etcd       and so on

A session is one system on one fresh cluster through all workloads. One that fails is recorded as failed and the rest
goes on; the exit status is 1 if anything failed, one call included. Interrupting stops every process and removes data.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from ops.bench import loads, profiling, report, scale
from ops.bench.systems import ROOT, Etcd, Gateway, Kvorum, System, memory_mb, running
from ops.bench.workloads import QUICK, WORKLOADS, Plan, Workload

HERE = Path(__file__).resolve().parent
SCRATCH = ROOT / "build" / "bench"
PICTURE = "results.svg"


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    plan = replace(
        QUICK if arguments.quick else Plan(),
        **{name: value for name in _SETTINGS if (value := getattr(arguments, name)) is not None},
    )
    under = arguments.dir
    under.mkdir(parents=True, exist_ok=True)
    if arguments.from_json:
        write(json.loads(arguments.from_json.read_text()), arguments.from_json.parent)
        return 0
    if arguments.profile:
        keep = SCRATCH / "profile"
        for workload in plan.workloads if arguments.only else plan.workloads[:1]:
            profiling.profile(plan, workload, plan.nodes[0], under, arguments.native, keep)
        print(f"stacks for a flame graph: {keep}")
        return 0
    loads.build_etcdload()
    if arguments.find_connections:
        find_connections(plan, under)
        return 0
    systems: list[System] = [s for s in (Etcd(), Kvorum(), Gateway()) if s.name in arguments.systems]
    results = run(plan, systems, under)
    whole = not (arguments.quick or arguments.only or arguments.nodes or len(systems) < 3)
    if whole:
        results["scale"] = scale.run(under)
    out = arguments.out or (HERE if whole else SCRATCH)
    out.mkdir(parents=True, exist_ok=True)
    write(results, out)
    return 0 if report.clean(results) else 1


_SETTINGS = ("rounds", "nodes", "warmup_seconds", "window_seconds", "keys", "workloads")


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m ops.bench", description="kvorum and etcd side by side")
    p.add_argument("--quick", action="store_true", help="two short rounds, in under three minutes")
    p.add_argument("--rounds", type=int)
    p.add_argument("--nodes", type=lambda s: tuple(int(n) for n in s.split(",")), help="sizes of cluster, e.g. 3,1")
    p.add_argument("--warmup", type=float, dest="warmup_seconds", metavar="SECONDS")
    p.add_argument("--seconds", type=float, dest="window_seconds", help="length of each measurement")
    p.add_argument("--keys", type=int, help="size of the key space")
    p.add_argument("--only", help="workloads, e.g. put/256,get/1: " + " ".join(w.id for w in WORKLOADS))
    p.add_argument("--systems", default="etcd,kvorum,gateway", type=lambda s: s.split(","))
    p.add_argument("--dir", type=Path, default=SCRATCH, help="data goes below it, and is removed (default build/bench)")
    p.add_argument("--out", type=Path, help="where RESULTS.md goes (default: here for a whole run, else build/bench)")
    p.add_argument(
        "--from-json", type=Path, metavar="FILE", help="only write the page and the picture of a results.json anew"
    )
    p.add_argument("--find-connections", action="store_true", help="show etcd with 1 to 16 connections per node")
    p.add_argument(
        "--profile", action="store_true", help="py-spy on every kvorum process in a workload (put/256, or --only)"
    )
    p.add_argument("--native", action="store_true", help="with --profile: C frames too; slows the processes down")
    arguments = p.parse_args()
    arguments.workloads = None
    if arguments.only:
        wanted = arguments.only.split(",")
        if unknown := set(wanted) - {w.id for w in WORKLOADS}:
            p.error(f"no such workload: {', '.join(sorted(unknown))}")
        arguments.workloads = tuple(w for w in WORKLOADS if w.id in wanted)
    return arguments


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def run(plan: Plan, systems: list[System], under: Path) -> dict[str, Any]:
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "plan": {**asdict(plan), "workloads": [w.id for w in plan.workloads]},
        "connections_per_node": loads.ETCD_CONNECTIONS_PER_NODE,
        "machine": machine(under),
        "versions": versions(),
        "sessions": [],
    }
    for round_ in range(plan.rounds):
        for nodes in plan.nodes:
            for system in systems if round_ % 2 == 0 else systems[::-1]:
                results["sessions"].append(session(plan, system, nodes, round_, under))
    return results


def session(plan: Plan, system: System, nodes: int, round_: int, under: Path) -> dict[str, Any]:
    """One system on one fresh cluster through all workloads."""
    print(
        f"round {round_ + 1} of {plan.rounds}, {system.name}, nodes: {nodes}, load {os.getloadavg()[0]:.2f}", flush=True
    )
    found: dict[str, Any] = {
        "round": round_, "system": system.name, "nodes": nodes, "load_before": os.getloadavg()[0],
        "measured": {}, "failure": None,
    }  # fmt: skip
    try:
        with running(system, nodes, under) as cluster:
            loads.fill(plan, system, cluster)
            for i, workload in enumerate(plan.workloads):
                measured = loads.measure(plan, workload, system, cluster, plan.seed + 1000 * round_ + i)
                found["measured"][workload.id] = measured.as_dict()
                show(workload, measured)
            of_nodes = [memory_mb(node) for node in cluster.processes()]
            memory = {kind: statistics.mean(m[kind] for m in of_nodes) for kind in of_nodes[0]}
            found["measured"]["memory"] = memory
            print("  memory of a node: " + ", ".join(f"{k} {v:.0f} MB" for k, v in memory.items()), flush=True)
    except (RuntimeError, OSError) as e:
        found["failure"] = f"{type(e).__name__}: {e}"
        print(f"  FAILED: {e}", flush=True)
    return found


def show(workload: Workload, m: loads.Measured) -> None:
    trouble = f"  ERRORS {m.errors} {m.first_errors[:1]}" if m.errors else ""
    trouble += f"  LOST {m.lost} of {m.read_back}" if m.lost else ""
    print(
        f"  {workload.title:<36} {m.operations_per_second:>9,.0f}/s   p50 {m.p50_ms:7.2f}   p99 {m.p99_ms:7.2f} ms",
        f"  cpu µs/op {m.server_cpu_us:6.1f} + {m.client_cpu_us:5.1f}   cpus {m.cpus_used:.2f} + {m.cpus_foreign:.2f}",
        trouble,
        flush=True,
    )


def find_connections(plan: Plan, under: Path) -> None:
    """For each number of connections per node, twice, up and down: what does etcd do with 256 calls in flight?"""
    system, numbers = Etcd(), [1, 2, 4, 8, 16]
    for nodes in plan.nodes:
        with running(system, nodes, under) as cluster:
            loads.fill(plan, system, cluster)
            for workload in plan.workloads[:3]:
                seen: dict[int, list[float]] = {n: [] for n in numbers}
                for number in [*numbers, *numbers[::-1]]:
                    m = loads.measure(plan, workload, system, cluster, plan.seed, per_node=number)
                    seen[number].append(m.operations_per_second)
                text = ", ".join(f"{n}: {statistics.mean(v):,.0f}/s" for n, v in seen.items())
                print(f"nodes {nodes}, {workload.title}; connections per node {text}", flush=True)


def machine(under: Path) -> dict[str, str]:
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "unknown")
    memory = int(_lines("/proc/meminfo")[0].split()[1]) * 1024 / 1e9
    mounts = [line.split() for line in _lines("/proc/mounts")]
    mount = max((m for m in mounts if under.resolve().is_relative_to(m[1])), key=lambda m: len(m[1]))
    return {
        "machine": f"{os.cpu_count()} CPUs ({cpu}), {memory:.0f} GB of memory, Linux {platform.release()}",
        "disk": f"{mount[0]}, {mount[2]}; 512 bytes and fdatasync take {sync_us(under):.0f} µs (median)",
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def sync_us(under: Path, times: int = 200) -> float:
    """How long the disk takes to make 512 appended bytes durable."""
    took = []
    with tempfile.TemporaryFile(dir=under) as f:
        os.posix_fallocate(f.fileno(), 0, 512 * times)
        for i in range(times):
            os.pwrite(f.fileno(), b"x" * 512, 512 * i)
            started = time.perf_counter()
            os.fdatasync(f.fileno())
            took.append(time.perf_counter() - started)
    return statistics.median(took) * 1e6


def versions() -> dict[str, str]:
    module = (HERE / "etcdload" / "go.mod").read_text().split()
    found = {
        "kvorum": Kvorum().version(),
        "etcd": Etcd().version(),
        "etcd's client": "go.etcd.io/etcd/client/v3 " + module[module.index("go.etcd.io/etcd/client/v3") + 1],
        "Python": platform.python_version(),
    }
    for package in ("pyzmq", "rocksdict", "protobuf"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write(results: dict[str, Any], out: Path) -> None:
    head = {name: value for name, value in results.items() if name != "sessions"}
    sessions = ",\n".join(json.dumps(one) for one in results["sessions"])
    (out / "results.json").write_text(f'{json.dumps(head)[:-1]}, "sessions": [\n{sessions}\n]}}\n')
    (out / "RESULTS.md").write_text(report.markdown(results, PICTURE))
    (out / PICTURE).write_text(report.svg(results))
    for nodes in results["plan"]["nodes"]:
        show_rows(f"nodes: {nodes}", report.rows(report.beside_etcd(results, "kvorum"), nodes))
        goals = report.GATEWAY_GOALS if nodes == 3 else report.GATEWAY_GOALS_ONE_NODE
        show_rows(f"nodes: {nodes}, gateway", report.rows(report.beside_etcd(results, report.GATEWAY), nodes, goals))
    print(f"\n{report.verdict(results)}\n{out / 'RESULTS.md'}")


def show_rows(title: str, found: list[report.Row]) -> None:
    print(f"\n{title}")
    for row in found:
        both = "   ".join(f"{s} {v:9.2f}" for s in report.SYSTEMS if (v := row.median(s)) is not None)
        goal = {None: "", True: "  goal reached", False: "  goal MISSED"}[row.reached]
        print(
            f"  {row.title:<36} {row.unit:<4} {both}" + ("" if row.ratio is None else f"   ratio {row.ratio:.2f}{goal}")
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; everything started here was stopped", file=sys.stderr)
        sys.exit(130)
