"""Mutants of what is shipped for leases: see mutants.py."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import cluster.landlord
from cluster.applyd import Applyd
from cluster.callers import Caller, Confirmation
from cluster.leasecalls import LeaseCalls, Told
from cluster.lessor import Lessor
from kvorum import etcd_pb2 as pb
from storage import codec
from storage.keyspace import Keyspace, Turn
from storage.leases import Changes as LeaseChanges
from tests.simulation.world import World

# ---- who counts


class _OtherLessor(Applyd):
    """With another clock-keeper."""

    kind: type[Lessor]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        lessor = self.kind(self.keyspace.leases, patience=cluster.landlord.PATIENCE_SECONDS)
        self._landlord._lessor = self._landlord.calls._lessor = lessor


class _FromTheGrant(Lessor):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._granted_at: dict[int, float] = {}

    def lead(self, now: float) -> None:
        super().lead(now)
        for id, at in self._granted_at.items():
            if id in self._leases.granted:
                self._set(id, at + self._leases.granted[id])

    def changed(self, changes: LeaseChanges, now: float) -> None:
        super().changed(changes, now)
        self._granted_at.update({id: now for id, ttl in changes.granted.items() if ttl is not None})


class DoesNotExtend(_OtherLessor):
    """A new lessor counts from the grants that it has seen, and knows of no renewal."""

    kind = _FromTheGrant


class _Impatient(Lessor):
    def _set(self, id: int, deadline: float) -> None:
        super()._set(id, deadline - 0.3)


class EndsTooEarly(_OtherLessor):
    """By a third of a second."""

    kind = _Impatient


class _OnlyNew(Lessor):
    def lead(self, now: float) -> None:
        super().lead(now)
        self._taking_over = iter(())


class CountsOnlyItsOwn(_OtherLessor):
    """A new lessor counts no lease that was granted before it was named: they live for ever."""

    kind = _OnlyNew


class _OnTheWall(Lessor):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ends: dict[int, float] = {}

    def lead(self, now: float) -> None:
        super().lead(now)
        for id, end in self.ends.items():
            if id in self._leases.granted:
                super()._set(id, end)

    def _set(self, id: int, deadline: float) -> None:
        super()._set(id, deadline)
        self.ends[id] = deadline


class BelievesTheClockOnTheWall(_OtherLessor):
    """Members agree at which time of the day a lease ends, renewals included, and go by that: while their clocks agree
    nothing is wrong with it."""

    kind = _OnTheWall

    def __init__(self, *args: Any, **options: Any) -> None:
        clock = options["clock"]
        super().__init__(*args, **options | {"clock": lambda: clock.now})
        assert isinstance(self._landlord._lessor, _OnTheWall)
        self._landlord._lessor.ends = _agreed.setdefault(clock.world, {})


_agreed: WeakKeyDictionary[World, dict[int, float]] = WeakKeyDictionary()


class _Merciful(Lessor):
    def renew(self, id: int, now: float) -> int | None:
        ttl = super().renew(id, now)
        return self._leases.granted[id] if ttl is None and id in self._expiring else ttl


class RenewsWhatItIsEnding(_OtherLessor):
    """A lease whose end is under way is renewed, and ends."""

    kind = _Merciful


class _Rash(Lessor):
    def renew(self, id: int, now: float) -> int | None:
        remaining, self._leases.remaining = self._leases.remaining, {}
        try:
            return super().renew(id, now)
        finally:
            self._leases.remaining = remaining


class LeavesTheCheckpoint(_OtherLessor):
    """A renewal is answered although a checkpoint says less: the next lessor believes the checkpoint."""

    kind = _Rash


class RenewsUnconfirmed(Applyd):
    """Whoever thinks that it leads answers, without asking whether it still does (etcd #13932, 3.5.23)."""

    def confirm(self, caller: Caller) -> None:
        assert isinstance(caller, Confirmation)
        self._landlord.confirmed(caller)


class _TellsAtOnce(LeaseCalls):
    def ripe(self, applied: int) -> list[Told]:
        return super().ripe(1 << 62)


class _MixesUp(LeaseCalls):
    def answered(self, number: int, body: bytes) -> None:
        round = self._asked.get(number)
        if round is not None:
            self._asked[number] = round._replace(calls=round.calls[1:] + round.calls[:1])
        super().answered(number, body)


class _OtherCalls(Applyd):
    kind: type[LeaseCalls]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._landlord.calls.__class__ = self.kind


class TellsBeforeItHasApplied(_OtherCalls):
    """A member tells the end of a lease whose keys it still shows."""

    kind = _TellsAtOnce


class MixesUpRenewals(_OtherCalls):
    """Each of those who asked together hears what the next one should (RELIABILITY T5)."""

    kind = _MixesUp


# ---- what is agreed upon


class _HeedsAnybody(Turn):
    def _do(self, request: object) -> bytes:
        if isinstance(request, pb.LeaseExpire):
            self._heed_lessor(request)
            return b""
        return super()._do(request)


class _EndsByName(Turn):
    def _do(self, request: object) -> bytes:
        if isinstance(request, pb.LeaseExpire | pb.LeaseCheckpoints):
            request.applied = 1 << 62
        return super()._do(request)


class _EndsKeyByKey(Turn):
    def _remove_all(self, keys: list[bytes], prevs: list[bytes] | None) -> None:
        if not self._ending:
            super()._remove_all(keys, prevs)
            return
        for at, key in enumerate(keys):
            super()._remove_all([key], prevs and prevs[at : at + 1])
            self._next_revision()

    def _end_lease(self, id: int) -> None:
        self._ending = True
        super()._end_lease(id)
        self._ending = False

    _ending = False


class _NeverDetaches(LeaseChanges):
    def detach(self, id: int, key: bytes) -> None:
        pass


class _PutsWithoutDetaching(Turn):
    def _write(self, key: bytes, value: bytes, lease: int, old: bytes | None, prev: bytes) -> None:
        if not lease and old is not None and codec.lease_of(old):
            self.leases.__class__ = _NeverDetaches
        super()._write(key, value, lease, old, prev)
        self.leases.__class__ = LeaseChanges


class _EndsInAnyOrder(Turn):
    def _end_lease(self, id: int) -> None:
        keys = self.leases.keys(id)
        self.leases.keys = lambda _: keys[::-1]  # type: ignore[method-assign]
        super()._end_lease(id)
        del self.leases.keys


class _PutsOnTheDead(Turn):
    def _do(self, request: object) -> bytes:
        if isinstance(request, pb.PutRequest):
            return self.put(request)
        return super()._do(request)


class _GrantsOver(Turn):
    def _do(self, request: object) -> bytes:
        if isinstance(request, pb.LeaseGrantRequest):
            self.leases.granted[request.ID] = None
        return super()._do(request)


class _OtherTurns(Keyspace):
    kind: type[Turn]

    def begin(self, *, prev: bool = True) -> Turn:
        turn = super().begin(prev=prev)
        turn.__class__ = self.kind
        return turn


class HeedsDeposedLessors(_OtherTurns):
    """What an earlier lessor decided is done, however late it comes (etcd #17425)."""

    kind = _HeedsAnybody


class EndsTheLifeAfter(_OtherTurns):
    """What was decided about a lease is done to the next one of that id, which was granted meanwhile."""

    kind = _EndsByName


class EndsKeyByKey(_OtherTurns):
    """The end of a lease is a revision for each of its keys."""

    kind = _EndsKeyByKey


class EndsInAnyOrder(_OtherTurns):
    """The keys of a lease go last one first."""

    kind = _EndsInAnyOrder


class DoesNotDetach(_OtherTurns):
    """A put without a lease leaves the key with the lease that it had."""

    kind = _PutsWithoutDetaching


class PutsOnTheDead(_OtherTurns):
    """A put hangs its key on a lease that has ended: it will live for ever."""

    kind = _PutsOnTheDead


class GrantsOverTheLiving(_OtherTurns):
    """A grant takes over an id that is in use."""

    kind = _GrantsOver


class ForgetsItsLeases(Keyspace):
    """A store that was opened again knows of no lease."""

    def __init__(self, engine: object) -> None:
        super().__init__(engine)  # type: ignore[arg-type]
        self.leases.granted.clear()
