"""A place for tests that sync thousands of times and don't depend on what a disk really does with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
BYTES_MIN = 256 << 20


@contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """A directory in memory for as long as it takes, or `otherwise` where there is not enough of that."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
        made = Path(tempfile.mkdtemp(prefix="kvorum-test-", dir=SHARED_MEMORY)) if free >= BYTES_MIN else None
    except OSError:
        made = None
    if made is None:
        yield otherwise
        return
    try:
        yield made
    finally:
        shutil.rmtree(made)
