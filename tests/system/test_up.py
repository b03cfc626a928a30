"""`make up` and `make down`, without the installation: ops/up.py in a directory of its own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PortBlock, environment
from tests.system.cluster import ROOT, alive, eventually

Up = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    (tmp_path / "ops").mkdir()
    shutil.copy(ROOT / "ops/up.py", tmp_path / "ops/up.py")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(tmp_path / "ops/up.py"), *arguments],
            env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    yield run
    run("down")


def test_up_shows_a_cluster_at_work_keeps_it_and_down_leaves_nothing_but_the_data(
    up: Up, tmp_path: Path, ports: PortBlock
) -> None:
    """The two commands of the README."""
    base = f"--base-port={ports.base}"
    first = up("up", base)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "put on node1" in first.stdout
    assert "get on node2" in first.stdout
    assert "event on node3    PutEvent greeting" in first.stdout
    assert f"tcp://127.0.0.1:{ports.base + 22}" in first.stdout
    pid = json.loads((tmp_path / ".kvorum/pid").read_text())["pid"]

    second = up("up")
    assert second.returncode == 0
    assert f"the cluster runs already (process {pid})" in second.stdout
    assert "revision 3" in second.stdout, "its data is kept, and so are its ports"

    pids = [
        pid,
        *(n for file in tmp_path.glob(".kvorum/data/*/pids.json") for n in json.loads(file.read_text()).values()),
    ]
    assert len([n for n in pids if isinstance(n, int)]) == 16
    down = up("down")
    assert (down.returncode, "no process is left" in down.stdout) == (0, True)
    assert not any(alive(n) for n in pids if isinstance(n, int))
    assert "no cluster of this clone runs" in up("down").stdout

    third = up("up", base)
    assert "started a three-node cluster" in third.stdout
    assert "revision 4" in third.stdout, "the data of a stopped cluster is kept"


def test_up_tells_what_the_log_says_when_the_cluster_does_not_come_up(up: Up, ports: PortBlock, tmp_path: Path) -> None:
    """The commonest reason: somebody else has the ports."""
    blocker = subprocess.Popen(
        [sys.executable, "-c", "import socket, sys, time\n"
         f"s = socket.create_server(('127.0.0.1', {ports.base + 2}))\nprint('up', flush=True)\ntime.sleep(60)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert blocker.stdout
    blocker.stdout.readline()
    try:
        found = up("up", f"--base-port={ports.base}")
    finally:
        blocker.kill()
        blocker.communicate()
    assert found.returncode == 1
    assert "stopped; no process is left" in found.stdout
    assert (
        f"cannot listen on tcp://127.0.0.1:{ports.base + 2} (--listen-native-url): Address already in use"
        in found.stdout
    )


def test_a_process_that_only_has_the_number_of_a_cluster_is_left_alone(up: Up, tmp_path: Path) -> None:
    (tmp_path / ".kvorum").mkdir()
    stranger = subprocess.Popen(["sleep", "60"])
    (tmp_path / ".kvorum/pid").write_text(json.dumps({"pid": stranger.pid, "base_port": None}))
    try:
        assert "no cluster of this clone runs" in up("down").stdout
        assert alive(stranger.pid)
    finally:
        stranger.send_signal(signal.SIGKILL)
        stranger.wait()
    eventually(lambda: not alive(stranger.pid))
