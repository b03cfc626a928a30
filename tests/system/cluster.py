"""A real local cluster for tests: real processes on free ports, data in a directory of the test, nothing left behind.

    with Cluster(tmp_path, nodes=3) as cluster:
        cluster.kill(0, "raft")            # SIGKILL one process of one node; its supervisor starts it again
        cluster.pause(1, "apply")          # SIGSTOP, until resume()
        cluster.stop(2); cluster.start(2)  # a whole node, cleanly; kill(2, "supervisor") is the other way
        cluster.request(0, wire.Method.PUT, pb.PutRequest(...))

Nodes are numbered from 0; ports are those of `kvorum local --base-port`. Each node is a `kvorum node` of its own,
started and stopped by the test alone, so that a dead one stays dead until the test says otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import zmq
from google.protobuf.message import Message

from cluster import local
from kvorum import wire
from kvorum.errors import from_wire
from tests.conftest import OUTLIVING, PortBlock
from tests.conftest import environment as clean_environment

ROOT = Path(__file__).parents[2]
PROCESSES = ("supervisor", "raft", "apply", "watch", "gateway")
HEARTBEAT_MS, ELECTION_MS = 50, 500
"""Faster than the defaults: tests wait for elections."""

T = TypeVar("T")


def eventually(attempt: Callable[[], T], seconds: float = 40.0, what: str = "it") -> T:
    """What `attempt` returns once that is true. OSError and TimeoutError count as not yet."""
    deadline, last = time.monotonic() + seconds, "false"
    while True:
        try:
            found = attempt()
        except OSError as error:  # a TimeoutError is one
            last = repr(error)
        else:
            if found:
                return found
        assert time.monotonic() < deadline, f"{what} never happened in {seconds} s; last: {last}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie doesn't."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Cluster:
    """See the module. `settings` are settings of every node; `environment` is added to its environment.

    `shared`: it is a fixture's, and its processes may outlive the test that started them.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        settings: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self.directory = directory
        self.shared = shared
        self.settings = {
            "heartbeat-interval": str(HEARTBEAT_MS),
            "election-timeout": str(ELECTION_MS),
            **(settings or {}),
        }
        self.environment = environment or {}
        self._block = PortBlock(200)
        self.places = local.layout(nodes, str(directory), self._block.base)
        self._runtime = tempfile.mkdtemp(prefix="run-")
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * nodes
        self._paused: set[int] = set()
        self._context = zmq.Context()

    # ---- as a whole

    def __enter__(self) -> Cluster:
        try:
            for node in range(len(self.places)):
                self.start(node, wait=False)
            self.await_ready()
        except BaseException:
            self.close()
            self._print_logs()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is not None:
            self._print_logs()

    def _print_logs(self) -> None:
        for node in range(len(self.places)):
            print(f"--- the log of node {node}\n{self.log(node)[-4000:]}")

    def await_ready(self, seconds: float = 30.0) -> None:
        """Until every running node answers a linearizable read."""
        for node, process in enumerate(self._processes):
            if process is not None:
                eventually(lambda node=node: self.healthy(node), seconds, f"node {node} ready")

    def close(self) -> None:
        """End everything, at once and without manners."""
        for node in range(len(self.places)):
            self.destroy(node)
        self._context.destroy(linger=0)
        self._block.release()
        shutil.rmtree(self._runtime, ignore_errors=True)

    # ---- nodes

    def data_dir(self, node: int) -> Path:
        return Path(self.places[node].data_dir)

    def log(self, node: int) -> str:
        """All that the node's processes have said on stderr."""
        path = self.directory / f"{self.places[node].name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(
        self, node: int, *, wait: bool = True, settings: dict[str, str] | None = None, **environment: str
    ) -> None:
        """Start a node that doesn't run. `wait`: until it answers."""
        assert self._processes[node] is None, f"node {node} runs"
        arguments = local.arguments(self.places, self.places[node], {**self.settings, **(settings or {})})
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / f"{self.places[node].name}.log", "ab") as log:
            self._processes[node] = process = subprocess.Popen(
                self.command(node, arguments),
                env=clean_environment(XDG_RUNTIME_DIR=self._runtime, **{**self.environment, **environment}),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if self.shared:
            OUTLIVING.add(process.pid)
        if wait:
            eventually(lambda: self.healthy(node), 30.0, f"node {node} ready")

    def host(self, node: int) -> str:
        """Where the node listens."""
        return "127.0.0.1"

    def command(self, node: int, arguments: list[str]) -> list[str]:
        """What starts it."""
        return [sys.executable, "-m", "cluster.cli", *arguments]

    def stop(self, node: int) -> int:
        """SIGTERM, and wait. Returns the exit code."""
        process = self._process(node)
        process.terminate()
        code = process.wait(30)
        self._processes[node] = None
        return code

    def wait(self, node: int, seconds: float = 30.0) -> int:
        """Until the node has ended by itself. Returns the exit code."""
        code = self._process(node).wait(seconds)
        self._processes[node] = None
        return code

    def destroy(self, node: int) -> None:
        """SIGKILL to every process of the node, if it runs, and wait until they are gone."""
        process = self._processes[node]
        if process is None:
            return
        pids = self.pids(node)
        for pid in pids.values():
            if pid:
                _signal(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        self._processes[node] = None
        self._paused -= set(pids.values())
        eventually(lambda: not any(alive(pid) for pid in pids.values() if pid), 10.0, f"the end of node {node}")

    def _process(self, node: int) -> subprocess.Popen[bytes]:
        process = self._processes[node]
        assert process is not None, f"node {node} doesn't run"
        return process

    # ---- processes

    def pids(self, node: int) -> dict[str, int]:
        """The process ids of a running node by name, 0 for one that isn't running."""
        process = self._process(node)
        try:
            found = json.loads((self.data_dir(node) / "pids.json").read_text())
        except FileNotFoundError:
            found = {}
        if found.get("supervisor") != process.pid:  # of an earlier life
            found = {}
        pids = {name: pid for name, pid in found.items() if name != "run_dir"}
        return dict.fromkeys(PROCESSES, 0) | pids | {"supervisor": process.pid}

    def pid(self, node: int, process: str) -> int:
        """The process id of one that runs, now or in a moment."""
        return eventually(lambda: self.pids(node)[process], 15.0, f"{process} of node {node} running")

    def kill(self, node: int, process: str) -> int:
        """SIGKILL. Returns the process id it had. Killing the supervisor ends the node."""
        pid = self.pid(node, process)
        _signal(pid, signal.SIGKILL)
        self._paused.discard(pid)
        if process == "supervisor":
            self.destroy(node)
        else:
            eventually(lambda: not alive(pid), 5.0, f"the end of {process}")
        return pid

    def pause(self, node: int, process: str) -> None:
        """SIGSTOP, until `resume`."""
        pid = self.pid(node, process)
        _signal(pid, signal.SIGSTOP)
        self._paused.add(pid)

    def resume(self) -> None:
        """SIGCONT to everything that was paused."""
        for pid in self._paused:
            _signal(pid, signal.SIGCONT)
        self._paused.clear()

    # ---- as a client

    def endpoint(self, node: int) -> str:
        """host:port for kvorum.client."""
        return f"{self.host(node)}:{self.places[node].port + local.STEP_NATIVE}"

    def gateway(self, node: int) -> str:
        """host:port for clients of etcd."""
        return f"127.0.0.1:{self.places[node].port + local.STEP_GATEWAY}"

    @property
    def endpoints(self) -> list[str]:
        return [self.endpoint(node) for node in range(len(self.places))]

    def http(self, node: int, path: str, timeout: float = 7.0) -> tuple[int, str]:
        """GET from the metrics port: status and body."""
        url = f"http://{self.host(node)}:{self.places[node].port + local.STEP_METRICS}{path}"
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, node: int, series: str) -> float:
        """The value of one series as /metrics writes it, labels included."""
        for line in self.http(node, "/metrics")[1].splitlines():
            if line.startswith(f"{series} "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no series {series}")

    def healthy(self, node: int) -> bool:
        return self.http(node, "/health")[0] == 200

    def leader(self) -> int:
        """The node that leads, asked of the nodes that run."""

        def ask() -> int | None:
            for node, process in enumerate(self._processes):
                if process is not None and self.metric(node, "etcd_server_is_leader") == 1:
                    return node + 1
            return None

        return (eventually(ask, 15.0, "a leader") or 0) - 1

    def request(self, node: int, method: wire.Method, message: Message, timeout: float = 10.0) -> Message:
        """One call on a connection of its own. Raises what the node answers, TimeoutError if it doesn't."""
        asker = self._context.socket(zmq.DEALER)
        asker.setsockopt(zmq.LINGER, 0)
        try:
            asker.connect(f"tcp://{self.endpoint(node)}")
            asker.send(wire.encode(method, wire.Kind.CALL, 0, 1, message.SerializeToString()))
            if not asker.poll(int(timeout * 1000)):
                raise TimeoutError(f"{method.name} at node {node}")
            (record,) = wire.decode(asker.recv())
        finally:
            asker.close()
        if record.status:
            raise from_wire(record.status, record.payload.decode())
        return wire.METHODS[method].response.FromString(record.payload)


def _signal(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
