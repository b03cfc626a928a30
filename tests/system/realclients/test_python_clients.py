"""Clients for Python: python_etcd3.py and python_aetcd.py say what they do.

Each has an environment of its own: python-etcd3 needs a protobuf of long ago.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.system.realclients import installs
from tests.system.realclients.pairs import Pair

NEEDS = {
    "python_etcd3": ["etcd3==0.12.0", "protobuf==3.20.3", "grpcio>=1.60", "six", "tenacity<7"],
    "python_aetcd": ["aetcd==1.0.0"],
}
SECONDS = 240.0


@pytest.mark.parametrize("client", NEEDS)
def test_the_client_is_told_the_same(both: Pair, client: str) -> None:
    python, program = installs.python_with(client, NEEDS[client]), Path(__file__).parent / f"{client}.py"

    def run(endpoints: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, str(program), *endpoints[0].split(":")],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment(PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python"),
        )

    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(run, both)
    assert (ours.returncode, theirs.returncode) == (0, 0), ours.stderr[-3000:] + theirs.stderr[-3000:]
    assert ours.stdout.splitlines() == theirs.stdout.splitlines(), ours.stderr[-2000:]
