"""Each example does what it says, on a real cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.system.cluster import ROOT, Cluster

TOLD = {
    "session": "others see ['online/ada', 'online/ada/mood']\nit dies with ['online/ada', 'online/ada/mood']\n"
    "afterwards []\n",
    "lock": "ada wrote\nbob wrote\ncyd wrote\nwritten 3 times\n",
    "leader": "leader ada\nleader bob\nleader None\n",
    "discovery": "10.0.0.7:25 eu\n10.0.0.8:25 us\nleft {}\n",
    "config": "color blue\nreload ['color', 'size']\ncolor red size 4\n",
    "counter": "counted 60\n",
    "tasks": "ada wrote\nbob wrote\ncyd wrote\ncandidates 1\nleader ada\n",
}


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Cluster(tmp_path_factory.mktemp("examples"), shared=True) as cluster:
        yield ",".join(cluster.endpoints)


def test_every_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "kvorum/examples").glob("[a-z]*.py")} == set(TOLD)


@pytest.mark.parametrize("name", TOLD)
def test_an_example_tells_what_it_should(endpoints: str, name: str) -> None:
    command = [sys.executable, "-m", f"kvorum.examples.{name}", endpoints]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == (TOLD[name], "")
