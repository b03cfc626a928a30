"""Reads that take more than a slice of work: a few slices of them a turn, and one hash of the store at a time.

A long read holds its whole answer, so its client's other reads wait meanwhile (cluster/outbox.py). A hash holds
nothing, but looks at the whole store: while one is under way others wait here, and their clients go on. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cluster.callers import Caller
from cluster.outbox import Outbox
from kvorum.wire import Method
from storage.keyspace import Result, Scan

SCANS_PER_TURN = 4
HASHES_MAX = 100
"""Hashes that wait for the one under way; more are refused."""
_HASHES = (Method.HASH, Method.HASH_KV)


class LongReads:
    """Args:
    reply: told what came of a read.
    read: does a hash whose turn it is.
    """

    def __init__(
        self, outbox: Outbox, reply: Callable[[Caller, Result], None], read: Callable[[Caller, bytes], None]
    ) -> None:
        self._outbox, self._reply, self._read = outbox, reply, read
        self._scans: deque[tuple[Caller, Scan]] = deque()
        self._hashing = False
        self._hashes: deque[tuple[Caller, bytes]] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._scans)

    def must_wait(self, caller: Caller) -> bool:
        return self._hashing and caller.method in _HASHES

    def wait(self, caller: Caller, payload: bytes) -> bool:
        """False: too many wait already."""
        if len(self._hashes) >= HASHES_MAX:
            return False
        self._hashes.append((caller, payload))
        return True

    def begin(self, caller: Caller, scan: Scan) -> None:
        """The first slice was done, and wasn't all."""
        self._scans.append((caller, scan))
        if caller.method in _HASHES:
            self._hashing = True
        else:
            self._outbox.begin_scan(caller.identity)

    def turn(self) -> None:
        for _ in range(min(SCANS_PER_TURN, len(self._scans))):
            caller, scan = self._scans.popleft()
            result = scan.step()
            if result is None:
                self._scans.append((caller, scan))
                continue
            self._reply(caller, result)
            if caller.method in _HASHES:
                self._next_hash()
            else:
                self._outbox.end_scan(caller.identity)

    def _next_hash(self) -> None:
        self._hashing = False
        while self._hashes and not self._hashing:
            self._read(*self._hashes.popleft())
