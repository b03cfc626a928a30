"""The long run of real clusters: `make soak`. SOAK_MINUTES says for how long, 20 if nothing does."""

from __future__ import annotations

import os
import random

import pytest

from tests.system.soak import Soak


@pytest.mark.soak
def test_real_clusters_in_trouble_without_end(capsys: pytest.CaptureFixture[str]) -> None:
    """RELIABILITY 6: kill -9 cycles, failpoints, linearizability and watches under faults, on 1, 3 and 5 members."""
    seed = random.randrange(1 << 20)

    def report(line: str) -> None:
        with capsys.disabled():
            print(f"soak {seed}: {line}", flush=True)

    Soak(seed, report).run(float(os.environ.get("SOAK_MINUTES", "20")))
