"""`kvorum` as people type it: what it refuses, what it prints, and a whole local cluster in the foreground."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import version
from cluster.exits import Exit
from cluster.local import layout
from cluster.settings import ConfigError
from kvorum import etcd_pb2 as pb
from kvorum import wire
from tests.conftest import PortBlock
from tests.conftest import environment as clean_environment
from tests.system.cluster import PROCESSES, ROOT, Cluster, alive, eventually

COMMAND = [sys.executable, "-m", "cluster.cli"]


def kvorum(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=clean_environment(**environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["node", "--snapshot-count", "1000"], "unrecognized arguments: --snapshot-count"),
        (["node", "--election", "1000"], "unrecognized arguments: --election"),
        (["node", "--election-timeout", "100"], "must be at least 5 times --heartbeat-interval"),
        (["node", "--config-file", "/no/such/file"], "--config-file /no/such/file: No such file"),
        (["local", "--nodes", "0", "--data-dir", "x"], "--nodes 0: expected 1 to 6"),
        (["local", "--nodes", "7", "--data-dir", "x"], "--nodes 7: expected 1 to 6, or more with --base-port"),
        (["local", "--nodes", "3", "--data-dir", "x", "--base-port", "65500"], "don't fit between 1 and 65535"),
        (["local"], "required: --data-dir"),
        (["wal", "verify", "/no/such/directory"], "No such file or directory"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason_and_code_64(arguments: list[str], reason: str) -> None:
    """Nothing is abbreviated, guessed or ignored."""
    done = kvorum(*arguments)
    assert done.returncode == Exit.USAGE
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_from_the_environment_or_a_failpoint_that_makes_no_sense_is_refused_too() -> None:
    done = kvorum("node", KVORUM_ELECTION_TIMOUT="1")
    assert (done.returncode, "did you mean election-timeout?" in done.stderr) == (Exit.USAGE, True)
    done = kvorum("node", KVORUM_FAILPOINT="x:explode")
    assert (done.returncode, "unknown action 'explode'" in done.stderr) == (Exit.USAGE, True)


def test_version_and_help_say_what_this_is() -> None:
    assert kvorum("version").stdout == f"kvorum {version.KVORUM} (API of etcd {version.ETCD})\n"
    text = " ".join(kvorum("node", "--help").stdout.split())
    assert "--initial-advertise-peer-urls" in text
    assert "where programs that speak etcd's API come in" in text


def test_local_ports_are_etcds_own_or_counted_from_the_base() -> None:
    """The gateways of etcd's own local cluster are at 2379, 22379 and 32379; the others lie beside them."""
    assert [place.port for place in layout(4, "x")] == [2379, 22379, 32379, 42379]
    assert [place.url(step) for place in layout(1, "x") for step in (1, 2)] == [
        "tcp://127.0.0.1:2380",
        "tcp://127.0.0.1:2381",
    ]
    assert [place.port for place in layout(3, "x", 20000)] == [20000, 20020, 20040]
    with pytest.raises(ConfigError):
        layout(2, "x", 65530)


class Local:
    """`kvorum local` with real nodes."""

    def __init__(self, directory: Path, port: int, nodes: int) -> None:
        self.data = directory / "data"
        self.runtime = tempfile.mkdtemp(prefix="run-")
        self.process = subprocess.Popen(
            [*COMMAND, "local", f"--nodes={nodes}", f"--data-dir={self.data}", f"--base-port={port}",
             "--heartbeat-interval=50", "--election-timeout=500"],
            env=clean_environment(XDG_RUNTIME_DIR=self.runtime), cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def pids(self, node: int) -> dict[str, int]:
        try:
            found = json.loads((self.data / f"node{node + 1}/pids.json").read_text())
        except FileNotFoundError:
            return dict.fromkeys(PROCESSES, 0)
        return {name: found[name] for name in PROCESSES}


@pytest.fixture
def started(tmp_path: Path, ports: PortBlock) -> Iterator[Local]:
    local = Local(tmp_path, ports.base, 2)
    eventually(lambda: all(all(local.pids(node).values()) for node in range(2)))
    yield local
    if local.process.poll() is None:
        local.process.kill()
        local.process.communicate()
    eventually(lambda: not any(alive(pid) for node in range(2) for pid in local.pids(node).values() if pid))
    shutil.rmtree(local.runtime)


def test_local_prints_who_listens_where_and_stops_cleanly(started: Local, ports: PortBlock) -> None:
    pids = [*started.pids(0).values(), *started.pids(1).values()]
    started.process.terminate()
    out, said = started.process.communicate(timeout=20)
    assert started.process.returncode == 0, said
    assert re.search(
        rf"node2 +127.0.0.1:{ports.base + 20} +tcp://127.0.0.1:{ports.base + 22} +tcp://127.0.0.1:{ports.base + 23}",
        out,
    )
    assert not any(alive(pid) for pid in pids)
    assert os.listdir(started.runtime) == []


def test_local_starts_a_node_again_that_was_killed_and_leaves_one_down_that_was_stopped(started: Local) -> None:
    """What systemd does on a server."""
    first = started.pids(0)["supervisor"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: started.pids(0)["supervisor"] != first and all(started.pids(0).values()))
    second = started.pids(1)["supervisor"]
    os.kill(second, signal.SIGTERM)
    eventually(lambda: not os.path.exists(f"/proc/{second}"))
    eventually(lambda: all(started.pids(0).values()))
    started.process.terminate()
    _, said = started.process.communicate(timeout=20)
    assert "node1 was killed by SIGKILL; starting it again" in said
    assert "node2 ended with code 0 (as if asked to) and stays down" in said


def test_when_local_is_killed_its_nodes_stop(started: Local) -> None:
    pids = [*started.pids(0).values(), *started.pids(1).values()]
    started.process.kill()
    started.process.communicate()
    eventually(lambda: not any(alive(pid) for pid in pids))


def test_the_log_of_a_stopped_node_can_be_verified_and_dumped(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=1) as cluster:
        cluster.request(0, wire.Method.PUT, pb.PutRequest(key=b"a key", value=b"a value"))
        assert cluster.stop(0) == 0
        log = str(cluster.data_dir(0))
        verified = kvorum("wal", "verify", log)
        assert (verified.returncode, verified.stderr) == (0, "")
        assert all(": ok: " in line for line in verified.stdout.splitlines())
        dumped = kvorum("wal", "dump", log)
        assert dumped.returncode == 0
        assert sum("a key" in line and ": entry " in line for line in dumped.stdout.splitlines()) == 1
        segment = next(path for path in sorted((cluster.data_dir(0) / "wal").iterdir()) if path.suffix == ".wal")
        at = segment.read_bytes().index(b"a key")
        with open(segment, "r+b") as file:
            file.seek(at)
            file.write(b"A")
        damaged = kvorum("wal", "verify", log)
        assert damaged.returncode in (0, Exit.DAMAGED)
        assert "DAMAGED" in damaged.stdout or "torn" in damaged.stdout
