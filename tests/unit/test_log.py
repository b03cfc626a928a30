"""Lines on stderr, and what becomes of them when nobody reads it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TALKER = """
import sys
from cluster import log
log.setup("n1")
for number in range(3000):
    log.warn(f"line {number} " + "x" * 100)
print("done", flush=True)
sys.stdin.readline()
log.info("at last")
"""


def test_a_reader_that_is_stuck_holds_nobody_up() -> None:
    """etcd #22214. Lines are whole, those that fit come first and in order, and the next says how many are missing."""
    talker = subprocess.Popen(
        [sys.executable, "-c", TALKER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert talker.stdin is not None
    assert talker.stdout is not None
    assert talker.stderr is not None
    with talker:
        try:
            assert talker.stdout.readline() == b"done\n", "it waits for us"
            early, pipe = b"", talker.stderr.fileno()
            while select.select([pipe], [], [], 0.0)[0]:
                early += os.read(pipe, 1 << 16)
            talker.stdin.write(b"\n")
            talker.stdin.flush()
            late = talker.stderr.read()
            assert talker.wait(20) == 0
        finally:
            talker.kill()
    lines = early.decode().splitlines()
    assert [line.split()[4] for line in lines] == [str(number) for number in range(len(lines))]
    assert 100 < len(lines) < 3000
    assert late.decode().endswith(f"at last (and {3000 - len(lines)} lines were dropped before: nobody read them)\n")
