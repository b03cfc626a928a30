"""What a put must know of the key it overwrites, remembered for the keys that were written lately.

A put of a live key carries its create revision on and its version one further. To look up the whole KeyValue for these
two numbers is the dearest part of a put (5 of 18 us, 100,000 keys of 256 bytes). So they are kept here, packed into
one int a key, about 180 bytes each, and the oldest are forgotten first. It holds what the last commit left behind,
never what a turn has not committed. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

LIVES_MAX = 100_000

_VERSION_BITS = 40
_VERSION_MAX = (1 << _VERSION_BITS) - 1


def pack(create: int, version: int) -> int:
    """One int for both, never 0. Versions beyond 2**40 don't fit and give 0, which is remembered nowhere."""
    return create << _VERSION_BITS | version if version <= _VERSION_MAX else 0


def unpack(life: int) -> tuple[int, int]:
    """(create revision, version)"""
    return life >> _VERSION_BITS, life & _VERSION_MAX


class Lives:
    """By key, of at most `size` keys."""

    def __init__(self, size: int = LIVES_MAX) -> None:
        self._size = size
        self._known: dict[bytes, int] = {}
        self.get = self._known.get
        """The packed life of a key; None if it isn't remembered, which says nothing about the key."""

    def update(self, changed: Mapping[bytes, int]) -> None:
        """What a commit has left behind: packed lives, 0 for what should be forgotten."""
        known = self._known
        for key, life in changed.items():
            if life:
                known[key] = life
            else:
                known.pop(key, None)
        while len(known) > self._size:
            del known[next(iter(known))]
