"""etcd's official client for Go with what it brings along: goclient/ says what it walks through."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.system.realclients import installs
from tests.system.realclients.pairs import Pair

SOURCE = Path(__file__).parent / "goclient"
GO = shutil.which("go") or "/usr/local/go/bin/go"
SECONDS = 150.0
"""More than the program gives itself."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    if not Path(GO).exists():
        installs.lacking("Go, to build goclient/ with: https://go.dev/dl")
    built = tmp_path_factory.mktemp("goclient") / "goclient"
    subprocess.run([GO, "build", "-o", built, "."], cwd=SOURCE, env={**os.environ, "CGO_ENABLED": "0"}, check=True)
    return str(built)


def test_the_go_client_is_told_the_same(both: Pair, program: str) -> None:
    def walk(endpoints: list[str]) -> subprocess.CompletedProcess[str]:
        command = [program, ",".join(endpoints)]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment())

    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(walk, both)
    ends = f"kvorum: {ours.stderr[-2000:]}\netcd: {theirs.stderr[-2000:]}"
    assert ours.stdout.splitlines() == theirs.stdout.splitlines(), ends
    assert (ours.returncode, theirs.returncode) == (0, 0), ends
