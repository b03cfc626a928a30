"""The ordered map under the keyspace, as little of it as the keyspace needs.

A write is one atomic batch. What a crash leaves is an exact prefix of the written batches, never a part of one and
never a later one without an earlier one: engines may lose the newest batches that `flushed()` does not yet cover, no
others.
`storage.memory` and `storage.rocks` implement this and pass the same tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol


class Batch(Protocol):
    """Changes to be written at once. Later changes of a key win. Keys and values are any bytes, values may be empty."""

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...


class Engine(Protocol):
    """An ordered map of bytes to bytes, keys compared bytewise."""

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """The pairs in [start, end) as they stood when `scan` was called, whatever is written while it is read."""
        ...

    def scan_keys(self, start: bytes, end: bytes) -> Iterator[bytes]:
        """Like `scan`, without fetching values."""
        ...

    def first(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """The first pair in [start, end)."""
        ...

    def batch(self) -> Batch: ...

    def write(self, batch: Batch) -> None:
        """Apply all of `batch` or none of it. Visible at once; durable once a later flush has covered it."""
        ...

    def begin_flush(self, mark: int) -> None:
        """Start making durable all that is written so far, without waiting. `mark` names the point.

        Marks never fall. A flush already under way is finished first; only the newest waiting mark is kept.
        """
        ...

    def flushed(self) -> int:
        """The newest mark that is durable, 0 if none since opening. Raises OSError if a flush failed: that is final."""
        ...

    def size_bytes(self) -> int:
        """About how much disk it takes."""
        ...

    def close(self) -> None: ...
