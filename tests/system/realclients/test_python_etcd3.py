"""python-etcd3: python_etcd3.py says what it does.

It needs a protobuf of long ago, so it has an environment of its own below build/, which stays for the next time.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.system.cluster import ROOT
from tests.system.realclients.etcds import Pair

NEEDS = ["etcd3==0.12.0", "protobuf==3.20.3", "grpcio>=1.60", "six", "tenacity<7"]
PROGRAM = Path(__file__).parent / "python_etcd3.py"
SECONDS = 240.0


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of an environment that has what is needed, made here unless it is there."""
    home = ROOT / "build" / "python-etcd3"
    home.mkdir(parents=True, exist_ok=True)
    installed, done = home / "venv" / "bin" / "python", home / "installed"
    with open(home / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests may meet here
        if not done.exists() or done.read_text() != repr(NEEDS):
            subprocess.run([sys.executable, "-m", "venv", "--clear", home / "venv"], check=True)
            quiet = ["--quiet", "--disable-pip-version-check"]
            subprocess.run([installed, "-m", "pip", "install", *quiet, *NEEDS], check=True, timeout=SECONDS)
            done.write_text(repr(NEEDS))
    return str(installed)


def test_python_etcd3_is_told_the_same(both: Pair, python: str) -> None:
    def run(endpoints: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, str(PROGRAM), *endpoints[0].split(":")],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment(PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python"),
        )

    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(run, both)
    assert (ours.returncode, theirs.returncode) == (0, 0), ours.stderr[-3000:] + theirs.stderr[-3000:]
    assert ours.stdout.splitlines() == theirs.stdout.splitlines(), ours.stderr[-2000:]
