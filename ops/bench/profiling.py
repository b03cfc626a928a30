"""Where the time goes in each kvorum process while one workload runs.

Two views. The CPU time of every thread, from /proc, is exact and shows C threads too (ZeroMQ's, RocksDB's, the WAL's
writer). py-spy's samples show Python functions: `self` is time in the function's own lines and the C code called from
them, `total` includes what it called. Sampling does not stop the processes unless native frames are asked for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from pathlib import Path

from ops.bench import loads
from ops.bench.systems import Kvorum, running
from ops.bench.workloads import Plan, Workload

TOP = 18
_TICK = os.sysconf("SC_CLK_TCK")


def profile(plan: Plan, workload: Workload, nodes: int, under: Path, native: bool, keep: Path | None) -> None:
    """Fill a cluster, run the workload, print threads and functions for each process and for the load generator."""
    system = Kvorum()
    spy = shutil.which("py-spy") or str(Path(sys.executable).parent / "py-spy")
    if not Path(spy).exists():
        raise SystemExit("profiling needs py-spy: .venv/bin/python -m pip install py-spy")
    with running(system, nodes, under) as cluster, tempfile.TemporaryDirectory() as scratch:
        loads.fill(plan, system, cluster)
        seconds = plan.window_seconds * 0.95
        names = {pid: _name(pid, f"node {i}") for i, node in enumerate(cluster.processes()) for pid in node}
        recorders: list[subprocess.Popen[bytes]] = []
        before: dict[int, dict[str, float]] = {}
        after: dict[int, dict[str, float]] = {}

        def begin(generator: int) -> None:
            names[generator] = "load generator"
            before.update({pid: _threads(pid) for pid in names})
            # A little before the window closes, while every thread is still there.
            threading.Timer(seconds, lambda: after.update({pid: _threads(pid) for pid in names})).start()
            for pid in names:
                mode = ["--native"] if native else ["--nonblocking"]
                command = [spy, "record", "--pid", str(pid), "--format", "raw", "--rate", "99", *mode]
                command += ["--duration", str(max(1, int(seconds))), "--output", f"{scratch}/{pid}"]
                recorders.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

        try:
            measured = loads.measure(plan, workload, system, cluster, plan.seed, at_begin=begin)
            for recorder in recorders:
                recorder.wait(plan.window_seconds + 20)
        finally:
            for recorder in recorders:
                if recorder.poll() is None:
                    recorder.send_signal(signal.SIGINT)
                    recorder.wait(10)
        print(
            f"\n{workload.title}: {measured.operations_per_second:,.0f}/s under the profiler, "
            f"p50 {measured.p50_ms:.2f} ms, servers {measured.server_cpu_us:.1f} µs/op, "
            f"client {measured.client_cpu_us:.1f} µs/op, errors {measured.errors}\n"
        )
        for pid, name in names.items():
            raw = Path(scratch, str(pid))
            spent = {t: used - before[pid].get(t, 0.0) for t, used in after.get(pid, {}).items()}
            _print_process(name, pid, spent, seconds, measured.operations_per_second * seconds, raw)
            if keep is not None and raw.exists():
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(raw, keep / f"{name.replace(' ', '-')}-{pid}.raw")


def _name(pid: int, node: str) -> str:
    """The node, and the shortest telling part of the command line."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    telling = [w.rpartition("/")[2] for w in words[1:] if w and not w.startswith("-")]
    return f"{node} {' '.join(telling[:2])}"[:70]


def _threads(pid: int) -> dict[str, float]:
    """CPU seconds by thread name."""
    used: defaultdict[str, float] = defaultdict(float)
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            head, _, tail = (task / "stat").read_text().rpartition(")")
            fields = tail.split()
            used[head.partition("(")[2]] += (int(fields[11]) + int(fields[12])) / _TICK
    except OSError:
        pass  # the process, or one of its threads, has just ended
    return dict(used)


def _print_process(name: str, pid: int, spent: dict[str, float], seconds: float, operations: float, raw: Path) -> None:
    """`spent`: CPU seconds by thread, within `seconds` and so many `operations`."""
    busy, micros = sum(spent.values()), 1e6 / max(1.0, operations)
    print(f"== {name} (pid {pid}): {busy * micros:.1f} µs/op, {busy / seconds:.0%} of a CPU")
    if busy / seconds < 0.01:
        return
    threads = sorted(spent, key=lambda thread: -spent[thread])
    print("   threads: " + ", ".join(f"{t} {spent[t] * micros:.1f}" for t in threads if spent[t] * micros >= 0.05))
    if not raw.exists():
        print("   (py-spy gave nothing)")
        return
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in raw.read_text(errors="replace").splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_without_line(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            total[frame] += int(count)
    samples = own.total()
    for frame, hits in own.most_common(TOP):
        if hits / samples < 0.01:
            break
        print(f"   self {hits / samples:6.1%}  total {total[frame] / samples:6.1%}  {frame}")


def _without_line(frame: str) -> str:
    """`function (path/file.py:12)` as `function (file.py)`."""
    function, _, place = frame.partition(" (")
    return f"{function} ({place.rpartition(')')[0].rpartition('/')[2].partition(':')[0]})" if place else function
