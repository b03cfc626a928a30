"""Who waits for the answer to a record: clients, and a few of our own who are told in their place.

Kept apart because classes derived from a named tuple are not for the compiler (native/compile.py). Pure.
"""

from __future__ import annotations

from typing import NamedTuple


class Caller(NamedTuple):
    """Who waits for an answer, and under which id of theirs."""

    identity: bytes
    id: int
    method: int


class AfterSweep(Caller):
    """One who asked for a physical compaction: answered when the sweep is done, not before."""

    __slots__ = ()


class Confirmation(Caller):
    """Not a client: calls that wait until it is certain that this member leads. `id` says which."""

    __slots__ = ()
