"""What a replicated log consists of: entries, and the little state a member must not forget.

Pure. Shared by the consensus core, which decides about them, and the journal, which keeps them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class EntryKind(IntEnum):
    """What an entry's data is. 1 is kept for configuration changes."""

    NORMAL = 0


class Entry(NamedTuple):
    """One slot of the log: `index` counts from 1 without holes, `term` never falls along it.

    Empty `data` is the entry that a new leader opens its term with.
    """

    term: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    kind: int
    data: bytes


class HardState(NamedTuple):
    """What must be on disk before a member speaks of it (Raft paper, figure 2: persistent state).

    `vote` 0 is no vote. `commit` may lag behind the truth after a crash; it is never ahead of it.
    """

    term: int = 0
    vote: int = 0
    commit: int = 0
