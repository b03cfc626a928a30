"""What comes out of the core: messages to send, records to write, answers to give.

    ready() -> Ready -+-> messages, reads, ...            now
                      +-> append -> disk -> appended() -> what was held until then, in the next Ready

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.raft.message import Message
from storage.entry import Entry, HardState


@dataclass(slots=True)
class Append:
    """What to write, in the order in which `ready` gave it out; give it to `appended` once it is durable.

    Write `entries` and `hard_state` (None: unchanged) and sync. The first entry may have an index that was written
    before: it replaces that one, and all after it are gone. `messages` are held by the core until `appended`, which may
    still add to them: don't send them yourself. The rest is what the write speaks for.
    """

    hard_state: HardState | None
    entries: list[Entry]
    messages: list[Message]
    term: int
    last_index: int
    last_term: int


@dataclass(slots=True)
class Ready:
    """What has come out since the last one.

    messages: to be sent now; they claim nothing about our disk.
    append: to be written; None if there is nothing to write.
    reads: (context, index): the read may be answered once all up to index has been applied.
    failed_reads: contexts that will not be answered; ask again with a new context. Each context of `read_index` comes
      out once, here or in reads.
    rejected: (context, reason): a forwarded proposal that the leader did not take. It is certain as long as the network
      does not deliver a message twice: the other copy may have been taken.
    """

    messages: list[Message] = field(default_factory=list)
    append: Append | None = None
    reads: list[tuple[int, int]] = field(default_factory=list)
    failed_reads: list[int] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)
