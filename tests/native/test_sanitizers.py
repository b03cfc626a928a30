"""C under gcc's sanitizers: wal_test.c, for threads too; the edge and the ends as their own tests use them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from native.build import EDGE_SOURCES

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


EDGE_TESTS = [f"test_edge{subject}.py" for subject in ("", "_calls", "_gzip", "_hostile", "_http1", "_tls")]


def runtime(name: str) -> str | None:
    """gcc's library of a sanitizer, to be loaded before Python."""
    done = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip() if Path(done.stdout.strip()).is_absolute() else None


def passes_its_tests(part: str, tests: list[str], tmp_path: Path) -> None:
    """The extension `part` built with the sanitizers, and these tests once more, in a copy of what they need.

    Leaks are looked for by the fuzzer's target: Python has too many of its own.
    """
    leave_out = shutil.ignore_patterns("*.so", "__pycache__", f"_{part}.c")
    for name in ("native", "tests/native"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=leave_out)
    for name in ("tests/__init__.py", "tests/conftest.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for module in (ROOT / "native").glob("_*.so"):
        if not module.name.startswith(f"_{part}"):
            shutil.copy(module, tmp_path / "native")
    flags = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
    build = f"from native import build; build.BUILDERS = (build.{part}_ffi,); build.main()"
    environment = os.environ | {"CFLAGS": flags, "LDFLAGS": "-fsanitize=address,undefined"}
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, env=environment, check=True, capture_output=True)
    loaded = runtime("libasan.so")
    assert loaded, "gcc has no libasan"
    environment |= {"LD_PRELOAD": loaded, "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "PYTHONMALLOC": "malloc"}
    paths = [f"tests/native/{name}" for name in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *paths]
    check = f"import native._{part} as module; print(module.__file__)"
    found = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(tmp_path)), found
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


def test_the_edge_passes_its_tests_under_sanitizers(tmp_path: Path) -> None:
    passes_its_tests("edge", EDGE_TESTS, tmp_path)


def test_ends_pass_their_tests_under_sanitizers(tmp_path: Path) -> None:
    passes_its_tests("ends", ["test_ends.py"], tmp_path)


def test_every_file_of_the_edge_is_built() -> None:
    assert {path.name for path in (ROOT / "native").glob("edge*.c")} == set(EDGE_SOURCES)
