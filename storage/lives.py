"""What a put or a comparison must know of a key, remembered for the keys that were written lately.

A put of a live key carries its create revision on and its version one further, and most transactions compare one of
these or the revision of the last change. To look up the whole KeyValue for three numbers is the dearest part of either
(5 of 18 us, 100,000 keys of 256 bytes). So they are kept here, packed into one int a key, about 200 bytes each, and the
oldest are forgotten first. Keys with a lease are not kept: whoever changes them must know the lease, too. It holds what
the last commit left behind, never what a turn has not committed. Pure.

    life     mod revision << 128 | create revision << 64 | version         never 0
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

LIVES_MAX = 100_000

MASK = (1 << 64) - 1
VERSION, CREATE, MOD = 0, 64, 128
"""How far right a life is shifted to find a number, in the order of Compare's targets."""


def pack(create: int, mod: int, version: int) -> int:
    return (mod << 64 | create) << 64 | version


class Lives:
    """By key, of at most `size` keys."""

    def __init__(self, size: int = LIVES_MAX) -> None:
        self._size = size
        self._known: dict[bytes, int] = {}
        self._order: deque[bytes] = deque()  # the oldest first; a dict finds its own first only behind all it has lost
        self.get = self._known.get
        """The packed life of a key; None if it isn't remembered, which says nothing about the key."""

    def update(self, changed: Mapping[bytes, int]) -> None:
        """What a commit has left behind: packed lives, 0 for what should be forgotten."""
        known, order = self._known, self._order
        for key, life in changed.items():
            if not life:
                known.pop(key, None)  # its place in the queue remains: if it comes again, it may be forgotten early
                continue
            if key not in known:
                order.append(key)
            known[key] = life
        while len(known) > self._size:
            known.pop(order.popleft(), None)
        if len(order) > 2 * self._size:
            self._order = deque(known)
