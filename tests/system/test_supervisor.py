"""The supervisor with children that do as they are told: starting again, giving up, stopping, dying together.

Real processes, but fake children (tests/fakes), so that each story takes a moment and nothing else can go wrong.
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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.exits import Exit
from tests.conftest import PortBlock
from tests.conftest import environment as clean_environment

ROOT = Path(__file__).parents[2]
CHILDREN = ("raft", "apply", "watch", "gateway")


def eventually(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Node:
    """A supervisor with fake children."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.port = directory, port
        self.data = directory / "data"
        self.runtime = tempfile.mkdtemp(prefix="run-")  # pytest's own directories are too deep for local sockets
        self.process: subprocess.Popen[str] | None = None

    def start(self, *flags: str, wait: bool = True, **environment: str) -> None:
        urls = {
            "peer-urls": 1,
            "native-url": 2,
            "watch-url": 3,
            "broadcast-url": 4,
            "metrics-urls": 5,
            "client-urls": 0,
        }
        arguments = [f"--listen-{name}=http://127.0.0.1:{self.port + step}" for name, step in urls.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.node", f"--data-dir={self.data}", *arguments, *flags],
            env=clean_environment(XDG_RUNTIME_DIR=self.runtime, **environment),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        if wait:
            eventually(self._up)

    def _up(self) -> bool:
        assert self.process
        pids = self.pids()
        last = [self.lives(name)[-1][1] if self.lives(name) else 0 for name in CHILDREN]
        return all(last) and pids["supervisor"] == self.process.pid and last == [pids[name] for name in CHILDREN]

    def pids(self) -> dict[str, int]:
        try:
            found = json.loads((self.data / "pids.json").read_text())
        except FileNotFoundError:
            return {"supervisor": 0}
        return {name: found[name] for name in ("supervisor", *CHILDREN)}

    def lives(self, name: str) -> list[tuple[str, int]]:
        """(epoch, pid) of each life of the child, with ("stopped", pid) where it ended when asked."""
        with contextlib.suppress(FileNotFoundError):
            rows = [line.split() for line in (self.directory / "lives").read_text().splitlines()]
            return [(epoch, int(pid)) for child, epoch, pid in rows if child == name]
        return []

    def epochs(self) -> list[int]:
        rows = (self.directory / "lives").read_text().split("\n")[:-1]
        return [int(row.split()[1]) for row in rows if row.split()[1] != "stopped"]

    def tell(self, name: str, *lines: str) -> None:
        (self.directory / f"behave.{name}").write_text("\n".join(lines))

    def wait(self, seconds: float = 60.0) -> tuple[int, str]:
        """The exit code and all that was said."""
        assert self.process
        _, said = self.process.communicate(timeout=seconds)
        return self.process.returncode, said


@pytest.fixture
def node(tmp_path: Path, ports: PortBlock) -> Iterator[Node]:
    node = Node(tmp_path, ports.base)
    yield node
    if node.process and node.process.poll() is None:
        node.process.kill()
        node.process.communicate()
        eventually(lambda: not any(alive(pid) for pid in node.pids().values()))
    shutil.rmtree(node.runtime)


def test_each_child_is_a_process_with_an_epoch_of_its_own(node: Node) -> None:
    """DESIGN 1: four processes a node."""
    node.start()
    pids = node.pids()
    assert len(set(pids.values())) == 5
    assert all(alive(pid) for pid in pids.values())
    assert [(name, node.lives(name)[0][1]) for name in CHILDREN] == [(name, pids[name]) for name in CHILDREN]
    assert sorted(node.epochs()) == [1, 2, 3, 4]


@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_that_is_killed_comes_back_alone_with_a_higher_epoch(node: Node, name: str) -> None:
    """DESIGN 10. The others don't notice."""
    node.start()
    before = node.pids()
    os.kill(before[name], signal.SIGKILL)
    eventually(lambda: len(node.lives(name)) == 2 and node.pids()[name] not in (0, before[name]))
    after = node.pids()
    assert [child for child in after if after[child] != before[child]] == [name]
    assert int(node.lives(name)[1][0]) == 5


@pytest.mark.parametrize("end", ["exit 0", "exit 1", f"exit {int(Exit.NO_SPACE)}"])
def test_an_end_that_a_restart_may_help_is_followed_by_one(node: Node, end: str) -> None:
    """exits.py. A disk that is full may have space again; code 0 without being asked is a mistake like any other."""
    node.tell("apply", end, end)
    node.start(wait=False)
    eventually(lambda: len(node.lives("apply")) == 3)


@pytest.mark.parametrize("code", [Exit.USAGE, Exit.DAMAGED, Exit.DISK_FAILED])
def test_an_end_that_a_restart_cannot_help_stops_the_node_with_that_code(node: Node, code: Exit) -> None:
    """After a failed fsync nothing is known about the page cache: nothing may be tried again on that disk."""
    node.tell("raft", f"exit {int(code)}")
    node.start(wait=False)
    found, said = node.wait()
    assert found == code
    assert f"raft: exiting with {int(code)}, as told" in said
    assert "raft ended with code" in said
    assert "this node stops" in said
    assert len(node.lives("raft")) == 1
    assert not any(node.pids()[name] for name in CHILDREN)


def test_sigterm_stops_gateway_watch_apply_raft_in_this_order_and_the_node_ends_well(node: Node) -> None:
    """Against the flow of a request, so that nobody loses the one it depends on."""
    node.start()
    pids = node.pids()
    assert len(os.listdir(node.runtime)) == 1
    os.kill(pids["supervisor"], signal.SIGTERM)
    code, _ = node.wait()
    assert code == 0
    ends = [line.split() for line in (node.directory / "lives").read_text().splitlines() if " stopped " in line]
    assert ends == [[name, "stopped", str(pids[name])] for name in ("gateway", "watch", "apply", "raft")]
    assert os.listdir(node.runtime) == [], "the run directory is removed"
    assert not any(node.pids()[name] for name in CHILDREN)


def test_a_second_interrupt_ends_a_child_that_does_not_end_by_itself(node: Node) -> None:
    node.tell("apply", "stubborn")
    node.start()
    supervisor = node.pids()["supervisor"]
    os.kill(supervisor, signal.SIGINT)
    eventually(lambda: len(node.lives("watch")) == 2)
    time.sleep(0.1)
    assert alive(supervisor), "it gives apply its time"
    os.kill(supervisor, signal.SIGINT)
    code, said = node.wait(60)
    assert (code, "apply doesn't end by itself; killing it" in said) == (0, True)


def test_a_signal_to_the_whole_foreground_group_reaches_the_supervisor_alone(node: Node) -> None:
    """Ctrl-C in a terminal: children are in groups of their own, so that they can be stopped in order."""
    node.start()
    pids = node.pids()
    groups = {os.getpgid(pid) for pid in pids.values()}
    assert len(groups) == 5


def test_when_the_supervisor_is_killed_its_children_die_with_it(node: Node) -> None:
    """RELIABILITY T9: an orphan would keep ports, log and store open beside its successor. Even a stopped one."""
    node.start()
    pids = node.pids()
    os.kill(pids["raft"], signal.SIGSTOP)
    os.kill(pids["supervisor"], signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in pids.values()), 3)
    node.wait()
    node.start()
    assert len(os.listdir(node.runtime)) == 1, "the run directory of the dead is cleaned up"
    assert min(node.epochs()[4:]) > max(node.epochs()[:4]), "and no epoch is used twice"


def test_a_child_whose_parent_is_gone_before_it_could_ask_ends_itself(tmp_path: Path) -> None:
    """child.py: the first of the two holes in what the kernel offers."""
    script = "from cluster.child import die_with_parent; die_with_parent(); print('still here')"
    environment = clean_environment(KVORUM_PARENT="1")
    if os.getppid() == 1:
        pytest.skip("run by process 1 itself")
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "is gone already" in done.stderr


def test_a_child_inherits_its_own_lock_and_no_other_file(node: Node) -> None:
    """RELIABILITY T15: inherited descriptors keep sockets and locks alive."""
    node.start()
    for name in CHILDREN:
        pid = node.pids()[name]
        open_files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2}
        files = {file for file in open_files if file.startswith("/")}
        assert files == {str(node.data / f"LOCK.{name}")}
        assert len([file for file in open_files if file.startswith("socket:")]) == 1, "the one it made itself"


def test_a_child_is_not_started_beside_a_predecessor_that_still_holds_its_lock(node: Node) -> None:
    """datadir.py: one that sits in an fsync the kernel won't interrupt could still write."""
    node.start()
    os.kill(node.pids()["supervisor"], signal.SIGTERM)
    node.wait()
    holder = subprocess.Popen(["flock", str(node.data / "LOCK.raft"), "-c", "echo held; read x"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout
    holder.stdout.readline()
    node.start(wait=False)
    eventually(lambda: len(node.lives("apply")) == 3)
    time.sleep(0.2)
    assert len(node.lives("raft")) == 2, "started and stopped before; not yet again"
    holder.communicate(b"\n")
    eventually(lambda: len(node.lives("raft")) == 3)


def test_a_directory_in_use_is_refused(node: Node) -> None:
    node.start()
    second = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "node", f"--data-dir={node.data}"],
        env=clean_environment(), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert second.returncode == Exit.USAGE
    assert f"{node.data} is in use by another process" in second.stderr


def test_a_port_in_use_is_refused_by_name(node: Node) -> None:
    with socket.create_server(("127.0.0.1", node.port + 2)):
        node.start(wait=False)
        code, said = node.wait()
    assert code == Exit.USAGE
    assert f"cannot listen on tcp://127.0.0.1:{node.port + 2} (--listen-native-url): Address already in use" in said
    assert node.lives("raft") == []


def test_it_can_be_started_again_at_once(node: Node) -> None:
    """RELIABILITY T15: ports and locks are free as soon as the processes are gone."""
    for _ in range(3):
        node.start()
        os.kill(node.pids()["supervisor"], signal.SIGKILL)
        node.wait()


def test_systemd_is_told_when_clients_can_connect_and_when_it_stops(node: Node, tmp_path: Path) -> None:
    """sd_notify(3), Type=notify."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + f"kvorum-test-{os.getpid()}")
        systemd.settimeout(10)
        node.start(wait=False, NOTIFY_SOCKET="@" + f"kvorum-test-{os.getpid()}")
        assert systemd.recv(100) == b"READY=1"
        for step in (0, 2, 3):
            socket.create_connection(("127.0.0.1", node.port + step), 1).close()
        os.kill(node.pids()["supervisor"], signal.SIGTERM)
        assert systemd.recv(100) == b"STOPPING=1"
        node.wait()


def test_a_failpoint_in_the_supervisor_is_only_another_way_to_die(node: Node) -> None:
    """Killed between giving out an epoch and starting the child: the epoch is lost, nothing else."""
    node.start(wait=False, KVORUM_FAILPOINT="supervisor.before_spawn:2*panic")
    code, _ = node.wait()
    assert code == -signal.SIGKILL
    node.start()
    assert sorted(node.epochs())[-4:] == [3, 4, 5, 6]
