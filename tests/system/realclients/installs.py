"""What a client needs, installed once below build/ and kept for the next run of the tests; and what can't be had."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.system.cluster import ROOT

SECONDS = 240.0


def kept(name: str, needs: str, install: Callable[[Path], None]) -> Path:
    """The folder build/`name`, in which `install` has put what `needs` describes; done anew when that changes."""
    home = ROOT / "build" / name
    home.mkdir(parents=True, exist_ok=True)
    done = home / "installed"
    with open(home / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests may meet here
        if not done.exists() or done.read_text() != needs:
            done.unlink(missing_ok=True)
            install(home)
            done.write_text(needs)
    return home


def python_with(name: str, needs: list[str]) -> str:
    """The interpreter of an environment that has those packages of PyPI and nothing of kvorum."""

    def install(home: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--clear", home / "venv"], check=True)
        pip = [home / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *needs], check=True, timeout=SECONDS)

    return str(kept(name, repr(needs), install) / "venv" / "bin" / "python")


def lacking(what: str) -> NoReturn:
    """Leave the test out, where that may be: not in CI, whose machines have what each of these tests needs."""
    if os.environ.get("CI"):
        pytest.fail(f"this machine lacks {what}")
    pytest.skip(f"this machine lacks {what}")
