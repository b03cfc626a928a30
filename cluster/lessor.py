"""When leases run out. Only the leader's apply process counts; what it decides is done by the log.

    not leading ──lead──▶ every lease gets its whole time again ──▶ counting ──stop──▶ not leading
                                          renew ──▶ deadline = now + TTL
                                          deadline passed ──▶ expiring ──the log ends it──▶ gone

It counts from when an entry that names it as the lessor (term, member, incarnation) has been applied here, and answers
nobody before.

A lease is never too short. Its deadline is at least its TTL behind the last renewal that was answered: here, because a
renewal is answered after the deadline moved, and not at all once the lease is expiring; across lessors, because a new
one gives all leases their whole time, or what a checkpoint left of it, from a moment after it was named. What earlier
ones had answered was answered before that, and a checkpoint is taken back by an entry of the log before the renewal
that it would cut short is answered. As long as a checkpoint may still come (it is proposed once, under a number, and
no entry of this process with that number or a higher one has been applied), its lease is not renewed at all.

Nobody else can end it. What an earlier lessor decided (one that slept and was replaced, or this very process in an
earlier term) does nothing when it is applied after the entry that named this one (storage.turn), and what was applied
before is known here.

Nor can it live for ever: what was decided is decided again after `patience` if the log has not done it, at once if it
was refused. After a pause of this process (the clock jumped between two calls) renewals that are waiting at the door
are let in before anybody is judged.

Nor do many that end together hold up everybody else. An entry of the log ends a few, at most two entries are under way,
and the next is decided when this process has rested from the last for REST times as long as that took. Meanwhile it
serves its clients, and members that are slower or share its machine come along. Without rests (measured, three nodes on
two cores) what they have not applied yet grows as long as there are leases to end, and every client of theirs waits for
that: 0.4 s.

Times are seconds of a monotonic clock, passed in. One entry of the heap a lease: a renewal only moves its deadline, and
an entry that comes up early is put back. Leases are taken over in slices, so that a million of them don't stop the
process. Pure.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from storage.leases import Changes, Leases
from storage.leases import Lessor as Named

SLICE = 20_000
"""Leases taken over, or looked at, in one call."""
EXPIRE_WORK = 500
"""Leases and keys of theirs that one entry of the log ends: 10 to 20 ms of work for every member. A lease with more
keys than that has an entry of its own, since its keys go at one revision."""
REST = 2.0
"""As a multiple of the time that it took to apply what ends leases. With 2, a leader spends less than half of its time
on it. A million without keys end in 14 s on one node, in 22 s on three that share two cores."""
PAUSE_SECONDS = 1.0
"""A gap between two calls that counts as a pause; nothing expires for as long after it."""
CHECKPOINT_SECONDS = 300.0
CHECKPOINT_MAX = 1000
"""A lease longer than 5 minutes has what is left of it written down every 5 minutes, 1000 leases at a time (etcd)."""

_MASK = (1 << 64) - 1


class _Decided(NamedTuple):
    """A lease is to be ended, says an entry proposed at `since`. `work`: it and its keys, as far as they count."""

    since: float
    work: int


class Lessor:
    """`leases` is the store's; it changes between calls, and `changed` says how."""

    def __init__(self, leases: Leases, *, patience: float) -> None:
        self._leases = leases
        self._patience = patience
        self.leading = False
        self._deadlines: dict[int, int] = {}  # ms, by id
        self._heap: list[int] = []  # deadline ms << 64 | id, as one number: a third of a tuple's size
        self._taking_over: Iterator[int] = iter(())
        self._expiring: dict[int, _Decided] = {}  # by id
        self._work = 0  # of those that are expiring
        self._last = 0.0
        self._not_before = 0.0
        self._rests_until = 0.0
        self._checkpoint_at = 0.0
        self._checkpointing: Iterator[int] = iter(())
        self._named = Named()
        self._notes: deque[tuple[int, float, Sequence[int]]] = deque()  # checkpoints under way: number, since when, ids
        self._noted: dict[int, int] = {}  # the number of the last one under way, by id

    def lead(self, now: float) -> None:
        """This process is the lessor now, says the store."""
        self.stop()
        if self._named != self._leases.lessor:
            self._expiring, self._work = {}, 0  # else what was decided before a break may still come
        self._named = self._leases.lessor
        self.leading = True
        self._last = self._not_before = self._rests_until = now
        self._checkpoint_at = now + CHECKPOINT_SECONDS
        self._taking_over = iter(list(self._leases.granted))

    def stop(self) -> None:
        self.leading = False
        self._deadlines, self._heap = {}, []
        self._taking_over = self._checkpointing = iter(())

    def changed(self, changes: Changes, now: float) -> None:
        """A turn has been committed."""
        for id, ttl in changes.granted.items():
            decided = self._expiring.pop(id, None)
            if decided is not None:
                self._work -= decided.work
            self._deadlines.pop(id, None)  # what the heap still says of it is passed over
            if ttl is not None and self.leading:
                self._set(id, now + ttl)  # sooner, perhaps, than in the life before

    def worked(self, seconds: float, now: float) -> None:
        """So long it took, until now, to apply a turn that has ended leases."""
        self._rests_until = now + REST * seconds

    def _set(self, id: int, deadline: float) -> None:
        ms = int(deadline * 1000) + 1  # rounded up: never early
        if id not in self._deadlines:
            heapq.heappush(self._heap, ms << 64 | id & _MASK)
        self._deadlines[id] = ms

    def _take_over(self, now: float) -> None:
        granted, remaining = self._leases.granted, self._leases.remaining
        for _ in range(SLICE):
            id = next(self._taking_over, None)
            if id is None:
                return
            if id in granted and id not in self._deadlines and id not in self._expiring:
                self._set(id, now + (remaining.get(id) or granted[id]))

    # ---- what clients ask

    def renew(self, id: int, now: float) -> int | None:
        """The TTL that it has again; 0 if there is no such lease; None if that can't be said yet: its end or a
        checkpoint is under way, or a checkpoint has to be taken back first (`to_reset`)."""
        ttl = self._leases.granted.get(id)
        if ttl is None:
            return 0
        if id in self._expiring or id in self._leases.remaining or id in self._noted:
            return None
        self._set(id, now + ttl)
        return ttl

    def to_reset(self, id: int) -> bool:
        """A checkpoint says less than what a renewal would promise: it must go before the promise is made."""
        return id in self._leases.remaining and id not in self._expiring

    def left(self, id: int, now: float) -> tuple[int, int]:
        """(remaining seconds, granted seconds); (-1, 0) if there is no such lease."""
        ttl = self._leases.granted.get(id)
        if ttl is None:
            return -1, 0
        deadline = self._deadlines.get(id)
        if id in self._expiring:
            return 0, ttl
        if deadline is None:  # not taken over yet: it will get all of it
            return self._leases.remaining.get(id) or ttl, ttl
        return max(0, int(deadline / 1000 - now)), ttl

    # ---- time

    def advance(self, now: float) -> list[int]:
        """The leases that are to be ended now, by one entry: about EXPIRE_WORK. They are expiring from now on."""
        if not self.leading:
            return []
        if now - self._last > PAUSE_SECONDS:
            self._not_before = now + PAUSE_SECONDS
        self._last = now
        self._take_over(now)
        if now < self._not_before:
            return []
        if len(self._heap) > 2 * len(self._deadlines) + SLICE:  # ids that came and went
            self._heap = [deadline << 64 | id & _MASK for id, deadline in self._deadlines.items()]
            heapq.heapify(self._heap)
        ended, work = self._overdue(now)
        if now < self._rests_until:
            return ended
        limit, heap, deadlines = int(now * 1000) << 64, self._heap, self._deadlines
        looked_at = 0
        while heap and heap[0] < limit and looked_at < SLICE and self._work < 2 * EXPIRE_WORK:  # two entries at a time
            looked_at += 1
            entry = heapq.heappop(heap)
            id = entry & _MASK
            if id >> 63:
                id -= 1 << 64
            deadline = deadlines.get(id)
            if deadline is None:
                continue  # it has ended
            if deadline << 64 >= limit:
                heapq.heappush(heap, deadline << 64 | id & _MASK)
                continue
            if id not in self._leases.granted:
                del deadlines[id]
                continue
            own = 1 + self._leases.count(id, EXPIRE_WORK)
            if ended and work + own > EXPIRE_WORK:
                heapq.heappush(heap, entry)  # for the next entry
                break
            del deadlines[id]
            ended.append(id)
            self._expiring[id] = _Decided(now, own)
            self._work += own
            work += own
        return ended

    def _overdue(self, now: float) -> tuple[list[int], int]:
        """What was decided long ago and isn't done is decided again: as much as one entry may hold, and how much that
        is."""
        again: list[int] = []
        work = 0
        for id, (since, own) in self._expiring.items():
            if now - since > self._patience:
                if again and work + own > EXPIRE_WORK:
                    break
                again.append(id)
                work += own
        for id in again:
            self._expiring[id] = _Decided(now, self._expiring[id].work)
        return again, work

    def undecided(self, ids: Sequence[int] | None = None) -> None:
        """The end of these leases (None: of all), if it was decided, is not under way any more: decide again at once.
        Should it be, after all, the second time does nothing."""
        for id in list(self._expiring) if ids is None else ids:
            if id in self._expiring:
                self._expiring[id] = self._expiring[id]._replace(since=float("-inf"))

    def busy(self, now: float) -> bool:
        """`advance` has more to do than one call does: it should not wait for the next tick."""
        return self._has_more and now >= self._rests_until

    def rests(self, now: float) -> bool:
        """It will be busy again in a moment."""
        return self._has_more and now < self._rests_until

    @property
    def _has_more(self) -> bool:
        due = bool(self._heap) and self._heap[0] < int(self._last * 1000) << 64
        return due and self._last >= self._not_before and self._work < 2 * EXPIRE_WORK

    def checkpoints(self, now: float) -> list[tuple[int, int]]:
        """(id, remaining seconds) of the long leases whose turn it is, at most CHECKPOINT_MAX."""
        if not self.leading:
            return []
        if now >= self._checkpoint_at:
            self._checkpoint_at = now + CHECKPOINT_SECONDS
            self._checkpointing = iter(list(self._deadlines))
        found: list[tuple[int, int]] = []
        granted = self._leases.granted
        for id in islice(self._checkpointing, SLICE):
            ttl, deadline = granted.get(id, 0), self._deadlines.get(id)
            if ttl > CHECKPOINT_SECONDS and deadline is not None:
                left = int(deadline / 1000 - now)
                if 0 < left < ttl - 1:
                    found.append((id, left + 1))
            if len(found) == CHECKPOINT_MAX:
                break
        return found

    def noted(self, number: int, ids: Sequence[int], now: float) -> None:
        """Checkpoints of these leases were proposed, once, as the entry of that number."""
        self._notes.append((number, now, ids))
        self._noted.update(dict.fromkeys(ids, number))

    def heard(self, number: int) -> None:
        """An entry of this process with that number was applied: what had a lower one was applied before, or never
        will be."""
        while self._notes and self._notes[0][0] <= number:
            _, _, ids = self._notes.popleft()
            for id in ids:
                if self._noted.get(id, 0) <= number:
                    self._noted.pop(id, None)

    def waits_to_hear(self, now: float) -> bool:
        """Nothing was heard for long of a checkpoint: it may be lost, and only a later entry can tell."""
        return self.leading and bool(self._notes) and now - self._notes[-1][1] > self._patience
