"""Seeds: whole clusters in trouble, each a different one, and none of them may break a promise.

A failure prints the command that makes the same run happen again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.__main__ import attempt, main, replay_command
from tests.simulation.faults import Faults
from tests.simulation.run import Report

SEEDS = 200
REPORTS: dict[int, Report] = {}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_cluster_in_trouble_keeps_its_promises(seed: int) -> None:
    """K1 to K11, W1 to W9, L1 to L8, D1, D2, D8 (RELIABILITY) and Raft's five properties, under F1 to F6, F8, F10 to
    F12, F16 to F19."""
    report = REPORTS[seed] = attempt(seed)
    assert not report.wrong, "\n".join([*report.wrong[:5], "replay: " + replay_command(seed)])
    assert not report.undecided, "the search for an order gave up; replay: " + replay_command(seed)


def test_the_seeds_meet_what_they_are_meant_to_meet() -> None:
    """A simulator that makes no trouble, or whose clients are never answered, would pass everything."""
    reports = [REPORTS.get(seed) or attempt(seed) for seed in range(60)]
    faults: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for report in reports:
        faults.update(report.faults)
        seen.update(report.seen)
    assert {kind for kind, count in faults.items() if count >= 10} >= {*Faults.kinds(), "jinx"}
    assert sum(report.answered for report in reports) > sum(report.operations for report in reports) / 2
    assert sum(report.elections for report in reports) > 3 * len(reports)
    assert sum(report.maybe for report in reports) > 1000
    assert sum(report.heard for report in reports) > 1000
    rare = (
        "batch committed again",
        "clocks that disagree",
        "log read from disk",
        "log released",
        "log tail replaced",
        "opened without its beginning",
        "store lost batches",
        "write lost",
        "write torn",
        "Compacted",
        "ConnectionLost",
        "NoSpace",
        "TimedOut",
        "TooManyRequests",
        "failpoint struck",
        "watch canceled by compaction",
        "watch progress",
        "watcher's queue full",
        "LeaseNotFound",
        "lease found dead",
        "lease ran out",
        "lease renewed",
        "lessor named",
        "word of an old lessor",
        "checkpoint taken back",
        "event heard from the air",
        "publication dropped",
        "ear reconnected",
        "listener compacted",
        "listener's queue full",
        "watch paused",
    )
    assert {name: seen[name] for name in rare if seen[name] < 5} == {}


def test_a_seed_is_a_whole_history() -> None:
    """The same seed is the same run, to the last frame; another seed is another."""
    first, again, other = (attempt(seed, seconds=5) for seed in (3, 3, 4))
    assert (first.digest, first.events, first.operations) == (again.digest, again.events, again.operations)
    assert first.digest != other.digest


def test_a_seed_does_not_depend_on_the_hash_seed() -> None:
    """T5: nothing may follow the order of a set, neither in the simulator nor in what it runs."""
    program = (
        "from tests.simulation.__main__ import attempt; r = attempt(11, seconds=5); print(r.digest, r.events, r.wrong)"
    )
    root = Path(__file__).parents[2]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("0", "1", "2")
    ]
    said = [run.communicate()[0].split() for run in runs]
    assert said[0][2:] == ["[]"]
    assert said[0] == said[1] == said[2]


def test_a_failing_seed_says_how_to_replay_it(capsys: pytest.CaptureFixture[str]) -> None:
    """And the replay fails in the same way, at the same microsecond."""
    assert main(["--seeds", "0:2", "--mutant", "TellsTheRevisionOfNow"]) == 1
    told = capsys.readouterr().out.splitlines()
    failure, replay = told[0], next(line for line in told if line.startswith("replay: "))
    command = replay.removeprefix("replay: python -m tests.simulation ").split()
    assert main([*command, "--trace"]) == 1
    story = capsys.readouterr().out
    assert failure.partition("\n")[0] in story
    assert "is LEADER in term" in story


@pytest.mark.soak
def test_thousands_of_seeds() -> None:
    """RELIABILITY section 6: 2,000 seeds of 30 simulated seconds in one run. KVORUM_SEEDS=A:B chooses others."""
    assert main(["--seeds", os.environ.get("KVORUM_SEEDS", "1000:3000")]) == 0
