"""What every test may use: ports nobody else has, and the certainty that it leaves no process behind."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Iterator

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")  # how long an example takes says nothing of what it tests

PORTS_FROM, PORTS_TO = 20_000, 32_000
"""Below the ports that the system gives to outgoing connections."""


class PortBlock:
    """`size` consecutive ports from `base` that were free a moment ago and that no other test is given meanwhile."""

    def __init__(self, size: int) -> None:
        self.size = size
        dice = random.Random(os.urandom(8))  # what is free depends on the machine anyway
        for _ in range(1000):
            self.base = dice.randrange(PORTS_FROM, PORTS_TO - size, 200)
            self._claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._claim.bind(f"\0kvorum-test-ports-{self.base}")  # gone with this process, whatever happens to it
                if all(_free(port) for port in range(self.base, self.base + size)):
                    return
            except OSError:
                pass
            self._claim.close()
        raise RuntimeError("no free ports")

    def release(self) -> None:
        self._claim.close()


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture
def ports() -> Iterator[PortBlock]:
    """Up to 200 free ports."""
    block = PortBlock(200)
    yield block
    block.release()


OUTLIVING: set[int] = set()
"""Processes that belong to a fixture of wider scope than a test: they and their children may outlive it."""

MARK = "TESTS_OF_KVORUM"
os.environ[MARK] = str(os.getpid())  # inherited by whatever is started from here, even if its parent dies


def environment(**more: str) -> dict[str, str]:
    """For a process under test: ours without the settings that whoever runs the tests may have for other nodes."""
    return {name: text for name, text in os.environ.items() if not name.startswith("KVORUM_")} | more


def _ours() -> dict[int, int]:
    """The living processes that were started from this one, directly or not, with their parents."""
    found: dict[int, int] = {}
    mark = f"{MARK}={os.getpid()}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                environment = file.read().split(b"\0")
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if mark in environment and state != "Z":
            found[int(entry)] = int(parent)
    return found


@pytest.fixture(autouse=True)
def no_process_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process running, and end that process."""
    if "system" not in (folder.name for folder in request.node.path.parents[:2]):
        yield
        return
    before = _ours()
    yield
    after = {pid: parent for pid, parent in _ours().items() if not {pid, parent} & OUTLIVING}
    left = {pid for pid in after if pid not in before and after[pid] not in before}
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes left behind: {sorted(left)}"
