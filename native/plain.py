"""The usual requests of a batch, found in one call (native/plain.h says what is usual, and draws the numbers)."""

from __future__ import annotations

from native._plain import ffi, lib

OTHER, GET, PUT, DELETE, TXN = lib.PLAIN_OTHER, lib.PLAIN_GET, lib.PLAIN_PUT, lib.PLAIN_DELETE, lib.PLAIN_TXN
LIST_MAX: int = lib.PLAIN_LIST_MAX
NO_LIMIT = (1 << 32) - 1
ROOM_MAX = 1 << 18
"""Numbers that are kept room for, 2 MiB; more than any batch of usual size has."""


class Scanner:
    """Owns the room that the numbers are written to, which grows with the batches. For one thread.

    Args:
      payload_max, ops_max: a request over one of them is not plain; where nothing is to be refused, leave them out.
    """

    def __init__(self, payload_max: int = NO_LIMIT, ops_max: int = NO_LIMIT) -> None:
        self._payload_max, self._ops_max = payload_max, ops_max
        self._room = 4096
        self._out = ffi.new("uint64_t[]", self._room)
        self._others = ffi.new("uint64_t *")

    def scan(self, batch: bytes) -> tuple[list[int], int] | None:
        """The numbers, and how many records are not plain. None: take it apart the long way, for it is not a sequence
        of whole records, or a very large one."""
        size = len(batch)
        while True:
            found = lib.plain_scan(batch, size, self._payload_max, self._ops_max, self._out, self._room, self._others)
            if found >= 0:
                return ffi.unpack(self._out, found), self._others[0]
            if found == -1 or self._room == ROOM_MAX:
                return None
            self._room *= 2
            self._out = ffi.new("uint64_t[]", self._room)
