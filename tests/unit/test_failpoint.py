"""Failpoints: what tests say and what then happens."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import failpoint


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    failpoint.arm("")


def test_an_unarmed_point_does_nothing() -> None:
    failpoint.hit("anything")
    failpoint.arm("other:error")
    failpoint.hit("anything")


def test_an_error_strikes_with_its_errno_on_every_hit() -> None:
    failpoint.arm("a:error; b:error(ENOSPC)")
    for _ in range(2):
        with pytest.raises(OSError, match="failpoint a") as caught:
            failpoint.hit("a")
        assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="failpoint b") as caught:
        failpoint.hit("b")
    assert caught.value.errno == errno.ENOSPC


def test_a_count_strikes_on_that_hit_alone() -> None:
    failpoint.arm("a:3*error")
    failpoint.hit("a")
    failpoint.hit("a")
    with pytest.raises(OSError, match="failpoint a"):
        failpoint.hit("a")
    failpoint.hit("a")


def test_a_sleep_takes_its_time() -> None:
    failpoint.arm("a:sleep(30)")
    before = time.monotonic()
    failpoint.hit("a")
    assert time.monotonic() - before >= 0.03


def test_a_panic_is_a_sigkill() -> None:
    """No handler, no flush: what was printed into a buffer is lost, as in a crash."""
    script = "import sys\nfrom storage.failpoint import hit\nout = open(1, 'w', closefd=False)\n"
    script += "out.write('buffered')\nhit('here')\nout.write('never')\n"
    environment = {**os.environ, "KVORUM_FAILPOINT": "here:panic"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


def test_a_file_says_what_is_armed_and_its_absence_that_nothing_is(tmp_path: Path) -> None:
    """So that a test can let a process crash once and come back whole."""
    file = tmp_path / "points"
    file.write_text("a:error\n")
    failpoint.arm(f"@{file}")
    with pytest.raises(OSError, match="failpoint a"):
        failpoint.hit("a")
    file.unlink()
    failpoint.arm(f"@{file}")
    failpoint.hit("a")


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    """So that a test can strike a process that has been running for long."""
    file = tmp_path / "points"
    failpoint.arm(f"@{file}")
    failpoint.hit("a")
    (tmp_path / "new").write_text("a:2*error")
    (tmp_path / "new").rename(file)
    failpoint.hit("a")
    with pytest.raises(OSError, match="failpoint a"):
        failpoint.hit("a")
    file.unlink()
    for _ in range(3):
        failpoint.hit("a")


@pytest.mark.parametrize(
    "text",
    [
        *("a", "a:", ":panic", "a:explode", "a:sleep", "a:sleep(x)", "a:sleep(5", "a:panic(1)"),
        *("a:0*panic", "a:x*panic", "a:error(ENOSUCH)", "a:panic;a:panic"),
    ],
)
def test_a_text_that_is_not_understood_is_refused(text: str) -> None:
    """A test whose failpoint is misspelled would pass without having tested anything."""
    with pytest.raises(failpoint.Malformed):
        failpoint.arm(text)


def test_a_process_with_such_a_text_does_not_start() -> None:
    environment = {**os.environ, "KVORUM_FAILPOINT": "a:explode"}
    done = subprocess.run(
        [sys.executable, "-c", "import storage.failpoint"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "unknown action 'explode'" in done.stderr
