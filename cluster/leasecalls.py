"""Keep-alives and questions about the time that leases have left: any member takes them, the lessor answers.

    here and the lessor ──▶ confirmed like a linearizable read ──▶ answered from the countdown
    elsewhere ──▶ asked: one message for a whole wake-up ──▶ confirmed there ──▶ told ──▶ answered when applied so far

A renewal needs no entry of the log, but it needs a leader that is one: it is confirmed by a read index asked for after
it had arrived (cluster/reads.py), so a leader that was replaced promises nothing to anybody. What it then says holds,
see cluster/lessor.py.

A question may get lost on the way, or be answered twice: it is asked again under a new number after a while, and only
the answer to the newest number counts. Renewing twice does no harm. What can't be said yet (a lease whose end is under
way, a lessor that hasn't been named yet) is tried again with the next tick. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cluster.callers import Caller
from cluster.lessor import Lessor

KEEP_ALIVE, TIME_LEFT = 0, 1
_ITEM = struct.Struct("<Bq")
_APPLIED = struct.Struct("<Q")
_TOLD = struct.Struct("<qq")
WAITING_MAX = 500_000


class Call(NamedTuple):
    """A client's call. `born` is the tick it arrived in; `keys`: TimeToLive wants to know them; `id`: what the answer's
    ID field will be, if that is known."""

    caller: Caller
    what: int
    lease: int
    keys: bool
    born: int
    id: bytes = b""


class Told(NamedTuple):
    """What the lessor said of a call: seconds left (or again) and granted. 0 or -1 left: there is no such lease."""

    call: Call
    left: int
    granted: int


class Remote(NamedTuple):
    """A question of another member, and its number there."""

    member: int
    number: int
    items: Sequence[tuple[int, int]]


class _Round(NamedTuple):
    calls: list[Call]
    asked: int


class LeaseCalls:
    """All such calls of this member, and those that others have asked about.

    Args:
      ask: send (number, body) to the leader, if there is one.
      answer: send (number, body) to a member.
      reset: take back the checkpoints of these leases, by an entry of the log.
      first: numbers begin behind it; no earlier process of this member may have used one.
    """

    def __init__(
        self,
        lessor: Lessor,
        ask: Callable[[int, bytes], None],
        answer: Callable[[int, int, bytes], None],
        reset: Callable[[list[int]], None],
        *,
        first: int,
    ) -> None:
        self._lessor, self._ask, self._answer, self._reset = lessor, ask, answer, reset
        self._number = first
        self._arrived: list[Call] = []
        self._later: list[Call] = []
        self._asked: dict[int, _Round] = {}
        self._remote: list[Remote] = []
        self._remote_later: list[Remote] = []
        self._held: list[tuple[int, list[Told]]] = []
        self.waiting = 0

    def add(self, call: Call) -> bool:
        """False: there are too many already."""
        if self.waiting >= WAITING_MAX:
            return False
        self.waiting += 1
        self._arrived.append(call)
        return True

    def asked(self, member: int, number: int, body: bytes) -> None:
        """Another member asks. What is no question of ours is dropped; nobody waits for ever."""
        if len(body) % _ITEM.size == 0 and len(self._remote) < 1000:
            self._remote.append(Remote(member, number, list(_ITEM.iter_unpack(body))))

    # ---- on their way

    def send(self, now: int) -> None:
        """Elsewhere is a leader: ask it about all that has arrived."""
        self._remote.clear()
        self._remote_later.clear()
        if self._arrived:
            self._number += 1
            self._asked[self._number] = _Round(self._arrived, now)
            self._ask(self._number, b"".join([_ITEM.pack(call.what, call.lease) for call in self._arrived]))
            self._arrived = []

    def take(self) -> tuple[list[Call], list[Remote]] | None:
        """This is the lessor: what is to be confirmed now, in one round. None if there is nothing."""
        if not self._arrived and not self._remote:
            return None
        taken = self._arrived, self._remote
        self._arrived, self._remote = [], []
        return taken

    def put_back(self, calls: list[Call]) -> None:
        """The lessor is somebody else by now."""
        self._arrived += calls

    def confirmed(self, calls: list[Call], remotes: list[Remote], now: float, applied: int) -> list[Told]:
        """The leader led after these had arrived, and has applied that far: what can be said to our own."""
        resets: list[int] = []
        told: list[Told] = []
        for call in calls:
            said = self._say(call.what, call.lease, now, resets)
            if said is None:
                self._later.append(call)
            else:
                told.append(Told(call, *said))
        for remote in remotes:
            answers = [self._say(what, lease, now, resets) for what, lease in remote.items]
            if None in answers:
                self._remote_later.append(remote)
            else:
                body = _APPLIED.pack(applied) + b"".join([_TOLD.pack(*said) for said in answers if said is not None])
                self._answer(remote.member, remote.number, body)
        if resets:
            self._reset(resets)
        self.waiting -= len(told)
        return told

    def _say(self, what: int, lease: int, now: float, resets: list[int]) -> tuple[int, int] | None:
        if what != KEEP_ALIVE:
            return self._lessor.left(lease, now)
        ttl = self._lessor.renew(lease, now)
        if ttl is None:
            if self._lessor.to_reset(lease):
                resets.append(lease)
            return None
        return ttl, ttl

    def answered(self, number: int, body: bytes) -> None:
        """What the lessor said. An answer to a number that isn't waited for is an old one."""
        round = self._asked.get(number)
        if round is None or len(body) != _APPLIED.size + _TOLD.size * len(round.calls):
            return
        del self._asked[number]
        (index,) = _APPLIED.unpack_from(body)
        told = [Told(call, *said) for call, said in zip(round.calls, _TOLD.iter_unpack(body[8:]), strict=True)]
        self._held.append((index, told))

    def ripe(self, applied: int) -> list[Told]:
        """What has been answered and may be told: this member has applied as far as the lessor had."""
        if not self._held:
            return []
        found = [told for index, told in self._held if index <= applied]
        self._held = [held for held in self._held if held[0] > applied]
        ripe = [one for told in found for one in told]
        self.waiting -= len(ripe)
        return ripe

    # ---- time

    def tick(self, asked_before: int | None) -> None:
        """Try again what couldn't be said, and ask again what was asked at or before that tick (None: everything)."""
        self._arrived += self._later
        self._remote += self._remote_later
        self._later, self._remote_later = [], []
        for number, round in list(self._asked.items()):
            if asked_before is None or round.asked <= asked_before:
                del self._asked[number]
                self._arrived += round.calls

    def expire(self, limit: int) -> list[Call]:
        """Give up the calls that arrived at or before tick `limit`."""
        given_up = [call for call in self._arrived if call.born <= limit]
        if given_up:
            self._arrived = [call for call in self._arrived if call.born > limit]
            self.waiting -= len(given_up)
        return given_up
