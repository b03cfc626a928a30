"""Runs a load generator against a cluster and adds what /proc knows: CPU time of the servers and of the generator.

A generator is a process of its own for both systems, so the two sides are measured by the same clock ticks. It says
when its window opens and closes (etcdload/main.go describes the lines); the CPU time is that between the two.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ops.bench.systems import ROOT, Cluster, System, cpu_seconds, descendants, machine_cpu_seconds
from ops.bench.workloads import Plan, Workload

HERE = Path(__file__).resolve().parent
ETCDLOAD = HERE / "bin" / "etcdload"
ETCD_CONNECTIONS_PER_NODE = 2
"""etcd does as well with 1, 2 or 4, as far as a busy machine lets one tell, and worse with 8 or 16 when there are
three nodes (`--find-connections`). Look again on a quiet machine before a number is quoted. A lone client has one."""


@dataclass(frozen=True)
class Measured:
    operations_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    per_endpoint: list[int]
    errors: int
    first_errors: list[str]
    read_back: int
    lost: int
    server_cpu_us: float
    """CPU time of all nodes together, per operation."""
    client_cpu_us: float
    cpus_used: float
    """CPUs kept busy by servers and generator together; where it nears all there are, the machine is the limit."""
    cpus_foreign: float
    """CPUs kept busy by everything else, stolen time of a virtual machine included: how quiet it was."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def build_etcdload() -> None:
    """Compile the Go generator if it is missing or older than its source."""
    source = HERE / "etcdload"
    newest = max(f.stat().st_mtime for f in source.iterdir())
    if ETCDLOAD.exists() and ETCDLOAD.stat().st_mtime > newest:
        return
    go = shutil.which("go") or "/usr/local/go/bin/go"
    if not Path(go).exists():
        raise SystemExit("the etcd side is driven by a Go program: install Go (https://go.dev/dl) and run again")
    print("building ops/bench/etcdload", flush=True)
    ETCDLOAD.parent.mkdir(exist_ok=True)
    environment = {**os.environ, "CGO_ENABLED": "0"}
    subprocess.run([go, "build", "-o", str(ETCDLOAD), "."], cwd=source, env=environment, check=True)


def generator(system: System) -> list[str]:
    if system.name == "kvorum":
        return [sys.executable, "-m", "ops.bench.nativeload"]
    return [str(ETCDLOAD)]


def specification(
    plan: Plan, workload: Workload, cluster: Cluster, seed: int, per_node: int = ETCD_CONNECTIONS_PER_NODE
) -> dict[str, Any]:
    return {
        "endpoints": cluster.endpoints,
        "workload": workload.name,
        "clients": workload.clients,
        "connections": len(cluster.endpoints) * (1 if workload.clients == 1 else per_node),
        "keys": plan.keys,
        "value_bytes": plan.value_bytes,
        "warmup_seconds": plan.warmup_seconds,
        "window_seconds": plan.window_seconds,
        "timeout_seconds": plan.timeout_seconds,
        "seed": seed,
        "watchers": workload.watchers,
        "own_keys": workload.own_keys,
        "rate": workload.rate,
        "puts": workload.puts,
        "lag": workload.lag,
    }


FILL = Workload("fill", 16, "fill")


def fill(plan: Plan, system: System, cluster: Cluster, workload: Workload = FILL) -> None:
    """Write every key once, in transactions of 100; or do what another workload without a window does."""
    _run(system, specification(plan, workload, cluster, plan.seed), [])


def measure(
    plan: Plan,
    workload: Workload,
    system: System,
    cluster: Cluster,
    seed: int,
    per_node: int = ETCD_CONNECTIONS_PER_NODE,
    at_begin: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Run one workload. `at_begin` is called with the generator's process id when the window opens."""
    servers = [pid for node in cluster.processes() for pid in node]
    spec = specification(plan, workload, cluster, seed, per_node)
    result, used = _run(system, spec, servers, at_begin)
    operations, seconds = max(1, result["operations"]), result["seconds"]
    same = ("p50_ms", "p90_ms", "p99_ms", "max_ms", "per_endpoint", "errors", "read_back", "lost")
    return Measured(
        operations_per_second=result["operations"] / seconds,
        server_cpu_us=used.servers / operations * 1e6,
        client_cpu_us=used.generator / operations * 1e6,
        cpus_used=(used.servers + used.generator) / seconds,
        cpus_foreign=max(0.0, used.machine - used.servers - used.generator) / seconds,
        first_errors=result["first_errors"] or [],
        **{name: result[name] for name in same},
    )


class _Used(NamedTuple):
    """CPU seconds."""

    servers: float
    generator: float
    machine: float

    def since(self, earlier: _Used) -> _Used:
        return _Used(*(now - then for now, then in zip(self, earlier, strict=True)))


def _run(
    system: System, spec: dict[str, Any], servers: list[int], at_begin: Callable[[int], None] = lambda _: None
) -> tuple[dict[str, Any], _Used]:
    """The generator's result, and what was used between the opening and the closing of its window."""
    process = subprocess.Popen(
        [*generator(system), json.dumps(spec)], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    marks: dict[str, _Used] = {}
    result: dict[str, Any] | None = None
    try:
        for line in process.stdout:
            event = json.loads(line)
            generators = [process.pid, *descendants(process.pid)]
            marks[event["event"]] = _Used(cpu_seconds(servers), cpu_seconds(generators), machine_cpu_seconds())
            if event["event"] == "begin":
                at_begin(process.pid)
            if event["event"] == "result":
                result = event
        if process.wait() != 0 or result is None:
            raise RuntimeError(f"the load generator of {system.name} failed in {spec['workload']}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if "begin" not in marks:
        return result, _Used(0.0, 0.0, 0.0)
    return result, marks["end"].since(marks["begin"])
