"""etcd3 from the npm registry: nodeclient/walk.js says what it walks through."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.system.realclients import installs
from tests.system.realclients.pairs import Pair

SOURCE = Path(__file__).parent / "nodeclient"
PACKAGES = ("package.json", "package-lock.json")
SECONDS = 240.0
"""More than the program gives itself."""


@pytest.fixture(scope="module")
def modules() -> Path:
    """Where what the lock file names is installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        installs.lacking("Node with npm, to run nodeclient/ with: apt-get install nodejs npm")

    def install(home: Path) -> None:
        for name in PACKAGES:
            shutil.copy(SOURCE / name, home / name)
        quiet = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run([npm, "ci", *quiet], cwd=home, check=True, timeout=installs.SECONDS)

    return installs.kept("nodeclient", "".join((SOURCE / name).read_text() for name in PACKAGES), install)


def test_the_node_client_is_told_the_same(both: Pair, modules: Path) -> None:
    def walk(endpoints: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["node", str(SOURCE / "walk.js"), ",".join(endpoints)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment(NODE_PATH=str(modules / "node_modules")),
        )

    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(walk, both)
    assert (ours.returncode, theirs.returncode) == (0, 0), ours.stderr[-2000:] + theirs.stderr[-2000:]
    assert ours.stdout.splitlines() == theirs.stdout.splitlines(), ours.stderr[-2000:]
