"""python-etcd3: python_etcd3.py says what it does.

It needs a protobuf of long ago, so it has an environment of its own.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.system.realclients import installs
from tests.system.realclients.etcds import Pair

NEEDS = ["etcd3==0.12.0", "protobuf==3.20.3", "grpcio>=1.60", "six", "tenacity<7"]
PROGRAM = Path(__file__).parent / "python_etcd3.py"
SECONDS = 240.0


@pytest.fixture(scope="module")
def python() -> str:
    return installs.python_with("python-etcd3", NEEDS)


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
