"""A cluster whose disks do as a test says (disk.c, compiled here), and a disk of a certain size for a node."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.cluster import Cluster

SHIM = Path(__file__).with_name("disk.c")


def compiled(directory: Path) -> Path:
    """disk.c as a shared library in `directory`."""
    library = directory / "disk.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SHIM, "-ldl", "-lpthread"], check=True)
    return library


class Disks(Cluster):
    """`block` and `fail` speak of files whose path contains a text, "/wal/" or "/store/"."""

    library: Path

    def start(self, node: int, **options: object) -> None:  # type: ignore[override]
        self.directory.mkdir(parents=True, exist_ok=True)
        if not hasattr(self, "library"):
            self.library = compiled(self.directory)
        super().start(node, LD_PRELOAD=str(self.library), TEST_DISK=str(self._says(node)), **options)  # type: ignore[arg-type]

    def block(self, node: int, part: str) -> None:
        """Syncs don't return, until `heal`."""
        self._say(node, f"block {part}")

    def fail(self, node: int, part: str, nth: int) -> None:
        """The `nth` sync of a process's life fails, the others don't."""
        self._say(node, f"fail {part} {nth}")

    def heal(self, node: int) -> None:
        self._say(node, "")

    def _says(self, node: int) -> Path:
        return self.directory / f"disk.{node}"

    def _say(self, node: int, text: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        new = self._says(node).with_suffix(".new")
        new.write_text(text)
        new.rename(self._says(node))


@contextlib.contextmanager
def small_disk(directory: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of that size at `directory`. Skips the test where that can't be had."""
    directory.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", "none", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of a certain size takes the right to mount one")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path, but: int = 0) -> Path:
    """Take all the room there is in the file system of `directory`, but so many bytes. The file that does."""
    ballast = directory / "ballast"
    found = os.statvfs(directory)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, found.f_bavail * found.f_frsize - but))
    return ballast
