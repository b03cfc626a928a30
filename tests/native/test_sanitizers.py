"""The C tests (wal_test.c) under gcc's sanitizers: memory and undefined behaviour in one build, threads in another."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["crc32c.c", "wal.c", "wal_append.c", "wal_io.c", "wal_read.c", "wal_writer.c"]
BUILDS = {
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread"],
}


@pytest.mark.parametrize("build", BUILDS)
def test_the_c_tests_pass_under_sanitizers(tmp_path: Path, build: str) -> None:
    """STYLE: the same code as shipped, every warning an error, no report of any sanitizer, nothing leaked."""
    program = tmp_path / "wal_test"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer", *BUILDS[build]]
    sources = ["tests/native/wal_test.c", *(f"native/{name}" for name in SOURCES)]
    subprocess.run(["gcc", *flags, "-o", program, *sources, "-pthread"], cwd=ROOT, check=True)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([program, tmp_path, "7"], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_the_list_of_sources_is_complete() -> None:
    """What the extension is made of is what is tested here."""
    built = (ROOT / "native/build.py").read_text()
    assert all(f'"{name}"' in built for name in SOURCES)
    assert {path.name for path in (ROOT / "native").glob("wal*.c")} <= set(SOURCES)
