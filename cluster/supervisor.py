"""The supervisor: one node as a person or systemd sees it (`kvorum node`).

    lock the data directory ─▶ is it this member's? ─▶ are the addresses free? ─▶ run directory ─▶ children ─▶ ready
                                                                                     ▲   │
                                                                      new epoch each └───┘ died, may come back

It is on the path of no request. It starts raft, apply and watch as processes of their own, each with an epoch that was
never used before (cluster.datadir), starts them again when they die, and gives up on the whole node when a code says
that starting again cannot help (cluster.exits): a failed fsync must not be followed by another try on the same disk.
Beside that it serves /metrics and /health (cluster.health), from threads, which never start a process.

Stopping goes against the flow of a request: watch, apply, raft, each given time to finish. Nothing depends on it: a
stop that is a SIGKILL loses nothing that was acknowledged, and the children then end with the supervisor.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
from collections.abc import Mapping

from cluster import doors, log, metrics
from cluster.config import QUOTA_BYTES_MAX, NodeConfig
from cluster.datadir import DataDir, Refused
from cluster.exits import FINAL, Exit, describe
from cluster.health import Server
from cluster.keeper import RESTART, Keeper, NotYet, spawn
from cluster.rundir import RunDir
from storage.failpoint import hit

CHILDREN = {
    "raft": "cluster.raftd",
    "apply": "cluster.applyd",
    "watch": "cluster.watchd",
    "gateway": "cluster.gatewayd",
}
"""The processes of a node and the modules they run, in the order of starting. There may be several gateways."""

GRACE_SECONDS = 5.0
"""How long a child may take to end by itself."""
PREDECESSOR_SECONDS_MAX = 10.0
"""How long a child that was killed may take to be gone."""


def run(config: NodeConfig, environment: Mapping[str, str]) -> int:
    """Run the node until SIGTERM, SIGINT or a final exit code. Returns the process's exit code."""
    log.setup(config.name, config.log_level)
    if config.quota_backend_bytes > QUOTA_BYTES_MAX:
        quota = config.quota_backend_bytes
        log.warn(f"--quota-backend-bytes={quota} exceeds the suggested maximum of {QUOTA_BYTES_MAX} bytes")
    try:
        data = DataDir.open(config)
    except Refused as refused:
        log.error(str(refused))
        return refused.code
    _await_predecessors(data)
    try:
        _refuse_taken_addresses(config)
        run_dir = RunDir.create(environment)
    except OSError as error:
        log.error(str(error))
        data.close()
        return Exit.USAGE
    try:
        return Supervisor(config._replace(run_dir=run_dir.path), data, environment).run()
    finally:
        run_dir.remove()
        data.close()


class Supervisor:
    """A node whose directories are there and locked."""

    def __init__(self, config: NodeConfig, data: DataDir, environment: Mapping[str, str]) -> None:
        self.config, self.data = config, data
        os.mkdir(metrics.directory(config.run_dir), 0o700)
        self._node_json = os.path.join(config.run_dir, "node.json")
        config.save(self._node_json)
        self._environment = {**environment, "KVORUM_NAME": config.name, "KVORUM_LOG_LEVEL": config.log_level}
        ids = [peer.id for peer in config.peers], [member.id for member in config.members]
        self._boards = metrics.boards(*ids, config.gateways)
        self._children = [name for name in CHILDREN if name != "gateway"] + list(config.gateways)
        self.keeper = Keeper(self._children, self._spawn, self._verdict, self._changed)

    def run(self) -> int:
        if self.config.tls is not None:
            checked = spawn(["cluster.certificates", self._node_json], environment=self._environment).wait()
            if checked:
                return checked
        server = Server(self.config, self.pids, self.restarts)
        for listener in server.listeners:
            self.keeper.on_readable(listener.fileno(), lambda: self._wake(server))
        self.keeper.every(self._announce)
        try:
            code = self.keeper.run()
            if code == 0:
                log.info("stopping")
        except Refused as refused:
            log.error(str(refused))
            code = refused.code
        _notify("STOPPING=1")
        self.keeper.stop(*([name] for name in reversed(self._children)), grace_seconds=GRACE_SECONDS)
        server.close()
        return code

    def _wake(self, server: Server) -> None:
        for listener in server.listeners:
            self.keeper.forget(listener.fileno())
        server.wake()

    def pids(self) -> dict[str, int]:
        """The processes of the node by name, 0 for one that isn't running."""
        return {"supervisor": os.getpid()} | {name: kept.pid for name, kept in self.keeper.kept.items()}

    def restarts(self) -> dict[str, int]:
        """How often each child was started again."""
        return {name: kept.restarts for name, kept in self.keeper.kept.items()}

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        try:
            lock = self.data.lock_for(name)
        except BlockingIOError:
            raise NotYet("its predecessor is not completely gone") from None
        except OSError as error:
            raise NotYet(str(error)) from error
        try:
            epoch = self.data.next_epoch()
            hit("supervisor.before_spawn")
            module = CHILDREN["gateway" if name in self.config.gateways else name]
            command = ["cluster.part", module, self._node_json, str(epoch), name]
            return spawn(command, inherit=lock, environment=self._environment)
        except OSError as error:
            if error.errno == errno.EIO:
                raise Refused(Exit.DISK_FAILED, f"writing to {self.config.data_dir} failed: {error}") from error
            raise NotYet(str(error)) from error
        finally:
            os.close(lock)

    def _verdict(self, name: str, code: int) -> int:
        self._boards[name].reset_gauges(os.path.join(metrics.directory(self.config.run_dir), name))
        if code in FINAL:
            log.error(f"{name} {describe(code)}: this node stops")
            return code
        return RESTART

    def _changed(self) -> None:
        self.data.write_pids({**self.pids(), "run_dir": self.config.run_dir})

    def _announce(self) -> float | None:
        """Tell systemd and the log, once, when clients can connect."""
        doors = (self.config.listen_native, self.config.listen_watch, *self.config.listen_client)
        if not all(_listens(url) for url in doors):
            return 0.05
        log.info(f"member {self.config.member_id:x} serves on {self.config.listen_native}")
        _notify("READY=1")
        return None


def _await_predecessors(data: DataDir) -> None:
    """Children of a supervisor that was killed are killed too, but gone only when the last of their threads is, which
    may be in an fsync. Until then they hold their locks and our addresses."""
    deadline = time.monotonic() + PREDECESSOR_SECONDS_MAX
    for name in {*CHILDREN, *data.children()}:
        while time.monotonic() < deadline:
            try:
                os.close(data.lock_for(name))
                break
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:
                break  # who starts the child will see, and say so


def _refuse_taken_addresses(config: NodeConfig) -> None:
    """Raises OSError, with a text for people, if an address this node will listen on is not to be had."""
    for setting, url in (
        ("listen-peer-urls", config.listen_peer),
        ("listen-native-url", config.listen_native),
        ("listen-watch-url", config.listen_watch),
        *(("listen-metrics-urls", url) for url in config.listen_metrics),
        *(("listen-client-urls", url) for url in config.listen_client),
    ):
        try:
            doors.try_it(url)
        except OSError as error:
            raise OSError(f"cannot listen on {url} (--{setting}): {error.strerror}") from error


def _listens(url: str) -> bool:
    family, address = doors.address(url)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(address) == 0


def _notify(state: str) -> None:
    """Tell systemd (sd_notify), if it started us and wants to know."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            log.warn(f"cannot notify systemd at {path}: {error.strerror}")
