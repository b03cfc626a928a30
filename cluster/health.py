"""What a node tells about itself over HTTP: /metrics, /health, /livez, /readyz, /version.

    first connection ──▶ wake: only now are the HTTP and metrics libraries loaded (12 MB that most nodes of a test and
                         every idle one can do without), and a thread serves each listener
    each connection  ──▶ a thread: head of the request, bounded in bytes and seconds; one answer; closed

The listeners are those of --listen-metrics-urls, with TLS where it says https (cluster/webtls.py), and a socket in the
run directory, where the gateway gets /metrics for the client port: it has no certificate to show, nor needs one.

/health asks the question that matters: it makes a linearizable read through the node's own client port, as a client
would. So it says "true" only if this node has a leader, can reach a quorum, and applies what is committed, and if no
alarm stands (etcd's meaning).

The numbers come from the boards of the processes (cluster.metrics), from /proc, and from the supervisor itself. Nothing
here can stop the node: strangers are kept within bounds by cluster.web, and a page that fails is logged.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from cluster import clientcalls, doors, log, metrics, version
from cluster.config import NodeConfig

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

    from prometheus_client.core import Metric

CHECK_SECONDS_MAX = 5.0
"""How long a read may take before the node counts as not healthy."""


class Server:
    """The HTTP side of a node. Made in the supervisor's main thread; raises OSError if an address is taken."""

    def __init__(
        self, config: NodeConfig, pids: Callable[[], Mapping[str, int]], restarts: Callable[[], Mapping[str, int]]
    ) -> None:
        self.config, self.pids, self.restarts = config, pids, restarts
        self._urls = (*config.listen_metrics, f"unix://{metrics.door(config.run_dir)}")
        self.listeners = [_listen(url) for url in self._urls]
        self.checks = {"true": 0, "false": 0}
        self._serving: list[ThreadingHTTPServer] = []
        self._lock = threading.Lock()
        self._context: Any = None

    def wake(self) -> None:
        """Someone is at the door for the first time: load what it takes, and serve from threads from now on."""
        from cluster import web

        for url, listener in zip(self._urls, self.listeners, strict=True):
            server = web.serve(listener, self, self.config.tls if doors.encrypted(url) else None)
            self._serving.append(server)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 60}, daemon=True).start()

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """The status, content type and body for GET `path`."""
        try:
            url = urlsplit(path)
        except ValueError as error:
            return 400, "text/plain; charset=utf-8", f"{error}\n".encode()
        query = parse_qs(url.query, keep_blank_values=True)
        name = url.path.rstrip("/") or "/"
        if name == "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", self.metrics_text()
        if name == "/health":
            return self._health(query.get("exclude", []), serializable=query.get("serializable", [""])[-1] == "true")
        if name == "/version":
            return 200, "application/json", VERSION_TEXT
        checks = probe_checks(name, query)
        if checks is not None:
            return self._probe(checks, verbose="verbose" in query)
        return 404, "text/plain; charset=utf-8", b"404 page not found\n"

    def _health(self, exclude: Sequence[str], *, serializable: bool) -> tuple[int, str, bytes]:
        failure, types = self.alarms()
        reason = alarm_reason([type for type in types if type not in exclude])
        if not (reason or serializable or self._has_leader()):
            reason = "RAFT NO LEADER"
        if not reason and (failure := failure or self.read(serializable=serializable)):
            reason = f"RANGE ERROR:{failure}"
        with self._lock:
            self.checks["false" if reason else "true"] += 1
        return health_page(reason)

    def _probe(self, checks: list[str], *, verbose: bool) -> tuple[int, str, bytes]:
        return probe_page({check: _CHECKS[check](self) for check in checks}, verbose=verbose)

    def _has_leader(self) -> bool:
        board = metrics.RaftBoard([peer.id for peer in self.config.peers])
        cells = board.read(os.path.join(metrics.directory(self.config.run_dir), "raft"))
        return cells is not None and any(s.name == "etcd_server_has_leader" and cells[s.at] for s in board.series)

    def alarms(self) -> tuple[str, list[str]]:
        """Why the alarms could not be told, "" if they could; and the types of those that stand."""
        from kvorum import etcd_pb2, wire

        failure, answer = self._ask(wire.Method.STATUS, b"")
        return failure, [] if failure else alarm_types(etcd_pb2.StatusResponse.FromString(answer).errors)

    def read(self, *, serializable: bool) -> str:
        """Read a key through the client port. Returns why that failed, "" if it didn't."""
        from kvorum import etcd_pb2, wire

        request = etcd_pb2.RangeRequest(key=b"health", serializable=serializable).SerializeToString()
        return self._ask(wire.Method.RANGE, request)[0]

    def _ask(self, method: int, request: bytes) -> tuple[str, bytes]:
        """Why a call through the client port failed, "" if it didn't; and its answer."""
        import zmq

        from cluster import sockets
        from kvorum import wire

        with self._lock:
            if self._context is None:
                self._context = zmq.Context()
        asker = sockets.client_caller(self._context, self.config.listen_native)
        try:
            deadline = time.monotonic() + CHECK_SECONDS_MAX
            if not asker.poll(int(CHECK_SECONDS_MAX * 1000), zmq.POLLOUT):
                return "context deadline exceeded", b""
            asker.send(wire.encode(method, wire.Kind.CALL, 0, 1, request), zmq.NOBLOCK)
            while asker.poll(max(0, int((deadline - time.monotonic()) * 1000))):
                for record in wire.decode(asker.recv(zmq.NOBLOCK)):
                    if record.kind == wire.Kind.REPLY and record.id == 1:
                        failure = record.payload.decode(errors="replace") if record.status else ""
                        return failure, record.payload
            return "context deadline exceeded", b""
        except (zmq.ZMQError, wire.MalformedBatch) as error:
            return str(error), b""
        finally:
            asker.close(linger=0)

    def metrics_text(self) -> bytes:
        """Everything known about this node in Prometheus's text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client calls."""
        yield from self._from_boards()
        yield from self._from_processes()
        yield from self._own()

    def _from_boards(self) -> Iterator[Metric]:
        from prometheus_client.core import Metric

        families: dict[str, Metric] = {}
        config = self.config
        ids = [peer.id for peer in config.peers], [member.id for member in config.members]
        for process, board in metrics.boards(*ids, config.gateways).items():
            cells = board.read(os.path.join(metrics.directory(self.config.run_dir), process))
            for name, kind, help, labels, bounds, at in board.series:
                base = name.removesuffix("_total") if kind == "counter" else name
                family = families.setdefault(name, Metric(base, help, kind))
                if kind != "histogram":
                    family.add_sample(name, dict(labels), cells[at] if cells else 0.0)
                    continue
                seen = 0.0
                for i, bound in enumerate((*bounds, float("inf"))):
                    seen += cells[at + i] if cells else 0.0
                    family.add_sample(
                        f"{name}_bucket", {**dict(labels), "le": repr(bound) if bound < float("inf") else "+Inf"}, seen
                    )
                family.add_sample(f"{name}_count", dict(labels), seen)
                family.add_sample(f"{name}_sum", dict(labels), cells[at + len(bounds) + 1] if cells else 0.0)
        yield from families.values()

    def _from_processes(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        pids = self.pids()
        seen = {name: _process(pid) for name, pid in pids.items()}
        up = GaugeMetricFamily("kvorum_process_up", "1 if the process of the node runs.", labels=["process"])
        memory = GaugeMetricFamily(
            "kvorum_process_resident_memory_bytes", "Resident memory of a process of the node.", labels=["process"]
        )
        for name, pid in pids.items():
            up.add_metric([name], float(pid > 0))
            memory.add_metric([name], seen[name]["memory"])
        yield up
        yield memory
        total = {what: sum(each[what] for each in seen.values()) for what in ("memory", "cpu", "fds")}
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory of the node.", total["memory"])
        yield CounterMetricFamily("process_cpu_seconds", "CPU time of the node's living processes.", total["cpu"])
        yield GaugeMetricFamily("process_open_fds", "Open file descriptors of the node.", total["fds"])
        yield GaugeMetricFamily(
            "process_start_time_seconds", "When the supervisor was started.", seen["supervisor"]["start"]
        )

    def _own(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

        calls = CounterMetricFamily(
            "etcd_server_client_requests",
            "Calls of etcd's API, by the version that the client says it has.",
            labels=["type", "client_api_version"],
        )
        counted = Counter[tuple[str, str]]()
        for gateway in self.config.gateways:
            counted.update(clientcalls.read(clientcalls.path(metrics.directory(self.config.run_dir), gateway)))
        for labels, count in counted.items():
            calls.add_metric(labels, count)
        yield calls
        restarts = CounterMetricFamily(
            "kvorum_supervisor_restarts", "How often a process of the node was started again.", labels=["process"]
        )
        for name, count in self.restarts().items():
            restarts.add_metric([name], count)
        yield restarts
        for name, word in (("etcd_server_health_success", "true"), ("etcd_server_health_failures", "false")):
            # A counter without _total, as in etcd; prometheus-client's Counter would add it.
            family = Metric(name, f"/health answers that said {word}.", "unknown")
            family.add_sample(name, {}, self.checks[word])
            yield family
        quota = self.config.quota_backend_bytes
        yield GaugeMetricFamily("etcd_server_quota_backend_bytes", "Size at which the store refuses writes.", quota)
        for name, label, value in (
            ("etcd_server_id", "server_id", f"{self.config.member_id:x}"),
            ("etcd_server_version", "server_version", version.ETCD),
            ("etcd_cluster_version", "cluster_version", version.ETCD_CLUSTER),
            ("kvorum_version", "version", version.KVORUM),
        ):
            family = GaugeMetricFamily(name, "1; what matters is the label.", labels=[label])
            family.add_metric([value], 1)
            yield family


def health_page(reason: str) -> tuple[int, str, bytes]:
    """/health's status, content type and body; no reason: healthy."""
    body = json.dumps({"health": "false" if reason else "true", "reason": reason}, separators=(",", ":")).encode()
    return (503, "text/plain; charset=utf-8", body + b"\n") if reason else (200, "application/json", body)


def alarm_types(errors: Iterable[str]) -> list[str]:
    """The types of the alarms among StatusResponse.errors."""
    return [text.partition("alarm:")[2].strip() for text in errors if "alarm:" in text]


def alarm_reason(types: Sequence[str]) -> str:
    """What /health says when these alarms stand, "" if none does."""
    return f"ALARM {types[0] if types[0] in ('NOSPACE', 'CORRUPT') else 'UNKNOWN'}" if types else ""


def corruption(failure: str, types: Sequence[str]) -> str:
    """What the probe data_corruption fails with when these alarms stand, "" if it doesn't."""
    return failure or ("alarm activated: CORRUPT" if "CORRUPT" in types else "")


def probe_checks(name: str, query: Mapping[str, list[str]]) -> list[str] | None:
    """What is to be checked for a path and query. None: that is no probe."""
    for probe, checks in PROBES.items():
        if name == probe:
            return [check for check in checks if check not in query.get("exclude", [])]
        if name.startswith(f"{probe}/") and name.removeprefix(f"{probe}/") in checks:
            return [name.removeprefix(f"{probe}/")]
    return None


def probe_page(failures: Mapping[str, str], *, verbose: bool) -> tuple[int, str, bytes]:
    """A probe's status, content type and body from what each check failed with, "" if it didn't."""
    lines = [f"[-]{name} failed: {why}" if why else f"[+]{name} ok" for name, why in failures.items()]
    failed = any(failures.values())
    text = "\n".join([*(lines if verbose or failed else []), *([] if failed else ["ok"])]) + "\n"
    return 503 if failed else 200, "text/plain; charset=utf-8", text.encode()


_CHECKS: dict[str, Callable[[Server], str]] = {
    "data_corruption": lambda server: corruption(*server.alarms()),
    "serializable_read": lambda server: server.read(serializable=True),
    "linearizable_read": lambda server: (
        server.read(serializable=False)
        if server._has_leader()
        else "etcdserver: no leader"  # known at once: don't wait
    ),
}
"""What a probe can look at: why it failed, "" if it didn't."""

PROBES = {
    "/livez": ("serializable_read",),
    "/readyz": ("data_corruption", "serializable_read", "linearizable_read"),
}
"""The probes and what they check. etcd's non_learner comes with what it would look at."""

VERSION = {
    "etcdserver": version.ETCD,
    "etcdcluster": version.ETCD_CLUSTER,
    "storage": version.ETCD_CLUSTER,
    "kvorum": version.KVORUM,
}
VERSION_TEXT = json.dumps(VERSION, separators=(",", ":")).encode()


def _listen(url: str) -> socket.socket:
    family, address = doors.address(url)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(32)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {url} (--listen-metrics-urls): {error.strerror}") from error
    return listener


_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _process(pid: int) -> dict[str, float]:
    """Memory in bytes, CPU time in seconds, open files, start time (Unix) of a process; all 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        fds = len(os.listdir(f"/proc/{pid}/fd"))
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    except OSError as error:
        if pid:
            log.debug(f"process {pid} went away while it was looked at: {error.strerror}")
        return {"memory": 0.0, "cpu": 0.0, "fds": 0.0, "start": 0.0}
    return {
        "memory": float(int(fields[21]) * _PAGE),
        "cpu": (int(fields[11]) + int(fields[12])) / _TICKS,
        "fds": float(fds),
        "start": boot + int(fields[19]) / _TICKS,
    }
