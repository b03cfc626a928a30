"""Answers on their way to clients, and the reads that must wait because their client doesn't take what it has.

    put ──▶ of this turn ──flush──▶ ZeroMQ's queue for the client ──▶ client
                  ▲                     │ full
                  └─────── kept ◀───────┘ up to KEPT_BYTES_MAX and one more, then dropped

A request of 20 bytes may ask for an answer of 20 MB, and one frame may hold ten thousand of them. So a read is done
only when its answer has somewhere to go. It waits, as the few bytes that it came in, while

  - its client has answers here that it doesn't take,
  - its client has a long read under way: each holds its whole answer; reads of one key are let by,
  - this turn has produced TURN_BYTES already, for whomever.

What a client costs that asks and never reads is thus bounded: ZeroMQ's queue of sockets.ANSWERS_MAX messages, and here
what was kept, one long read, and requests. Writes can't wait, as their answers come when they are applied: beyond what
is kept they are dropped and counted, and whoever asked will have to look what became of them. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from cluster.callers import Caller
from kvorum import wire
from kvorum.wire import Method
from storage.requests import lone_key

TURN_BYTES = wire.BATCH_BYTES_MAX
"""After answers of this size a turn begins no more reads."""
KEPT_BYTES_MAX = 2 * wire.BATCH_BYTES_MAX
"""Kept for a client whose queue is full, not counting the largest answer. More than a turn's reads make, so that only
answers to writes are ever dropped."""
WAITING_MAX = 100_000
WAITING_BYTES_MAX = 64 << 20
"""Reads that wait here, of all clients; more are refused."""
TRIES_PER_TURN = 16
"""Clients with a full queue that are tried again in a turn."""


class _Slow:
    """A client that asks faster than it takes."""

    __slots__ = ("kept", "scanning", "waiting")

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.scanning = False
        self.waiting: deque[tuple[Caller, bytes]] = deque()


class Outbox:
    """See the module.

    Args:
      reply: hands records to ZeroMQ; returns those it had no room for, or None if the client is gone.
      dropped: told how many answers were given up.
      gone: told of each client that turns out to be gone.
    """

    def __init__(
        self,
        reply: Callable[[bytes, Sequence[bytes]], list[bytes] | None],
        dropped: Callable[[int], None],
        gone: Callable[[bytes], None] = lambda identity: None,
    ) -> None:
        self._reply, self._dropped, self._gone = reply, dropped, gone
        self.calm = True
        """Any read may be done now: nobody is slow, and this turn has produced little. Spares a question per read."""
        self._out: dict[bytes, list[bytes]] = {}
        self._bytes = 0
        self._slow: dict[bytes, _Slow] = {}
        self._waiting = self._waiting_bytes = 0

    @property
    def busy(self) -> bool:
        """There are reads that the next turn can do."""
        return any(slow.waiting and not slow.kept and not slow.scanning for slow in self._slow.values())

    @property
    def stuck(self) -> bool:
        """There are answers that somebody's queue had no room for."""
        return any(slow.kept for slow in self._slow.values())

    # ---- answers

    def put(self, identity: bytes, record: bytes) -> None:
        self._bytes += len(record)
        if self._bytes >= TURN_BYTES:
            self.calm = False
        out = self._out.get(identity)
        if out is None:
            self._out[identity] = [record]
        else:
            out.append(record)

    def flush(self) -> None:
        """Send this turn's answers, behind those that were kept, and try some of those again."""
        out, self._out, self._bytes = self._out, {}, 0
        if self._slow:
            for identity in [identity for identity, slow in islice(self._slow.items(), TRIES_PER_TURN) if slow.kept]:
                self._slow[identity] = self._slow.pop(identity)  # behind the others, for the next time
                out.setdefault(identity, [])
        for identity, records in out.items():
            slow = self._slow.get(identity)
            if slow is not None and slow.kept:
                records, slow.kept = slow.kept + records, []
            left = self._reply(identity, records)
            if left is None:
                self._forget(identity)
                self._gone(identity)
            elif left:
                self._keep(identity, left)
            elif slow is not None:
                self._settle(identity, slow)
        self.calm = not self._slow

    def _slow_one(self, identity: bytes) -> _Slow:
        self.calm = False
        return self._slow.setdefault(identity, _Slow())

    def _keep(self, identity: bytes, left: list[bytes]) -> None:
        count, size = len(left), sum(map(len, left)) - max(map(len, left))
        while size > KEPT_BYTES_MAX:
            size -= len(left.pop())
        if count > len(left):
            self._dropped(count - len(left))
        self._slow_one(identity).kept = left

    def _settle(self, identity: bytes, slow: _Slow) -> None:
        if not slow.kept and not slow.waiting and not slow.scanning:
            self._slow.pop(identity, None)

    def _forget(self, identity: bytes) -> None:
        slow = self._slow.pop(identity, None)
        if slow is not None:
            self._waiting -= len(slow.waiting)
            self._waiting_bytes -= sum(len(payload) for _, payload in slow.waiting)

    # ---- reads

    def may_read(self, caller: Caller, payload: bytes) -> bool:
        """Whether the read may be done now. A read of one key waits for its client to take answers only."""
        if self._bytes >= TURN_BYTES:
            return False
        slow = self._slow.get(caller.identity)
        return slow is None or (not slow.kept and caller.method == Method.RANGE and lone_key(payload) is not None)

    def takes(self, identity: bytes) -> bool:
        """Whether another part of a long answer may be made for this client now."""
        return self._bytes < TURN_BYTES and identity not in self._slow

    def wait(self, caller: Caller, payload: bytes) -> bool:
        """Let the read wait for its turn: `due` will give it back. False: too many wait."""
        if self._waiting >= WAITING_MAX or self._waiting_bytes + len(payload) > WAITING_BYTES_MAX:
            return False
        self._waiting += 1
        self._waiting_bytes += len(payload)
        self._slow_one(caller.identity).waiting.append((caller, payload))
        return True

    def due(self) -> Iterator[tuple[Caller, bytes]]:
        """The reads that may be done now, one of each client in turn, while this turn has room for answers."""
        ready = [identity for identity, slow in self._slow.items() if slow.waiting]
        while ready:
            again = []
            for identity in ready:
                slow = self._slow[identity]
                if self._bytes >= TURN_BYTES:
                    return
                if slow.kept or slow.scanning or not slow.waiting:
                    continue
                caller, payload = slow.waiting.popleft()
                self._waiting -= 1
                self._waiting_bytes -= len(payload)
                yield caller, payload
                if slow.waiting:
                    again.append(identity)
                else:  # a read that is told in parts has no answer yet, with which it would be settled
                    self._settle(identity, slow)
            ready = again

    def begin_scan(self, identity: bytes) -> None:
        """A long read of this client has begun."""
        self._slow_one(identity).scanning = True

    def end_scan(self, identity: bytes) -> None:
        slow = self._slow.get(identity)
        if slow is not None:
            slow.scanning = False
            self._settle(identity, slow)
