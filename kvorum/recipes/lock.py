"""A lock: one holder at a time, as far as anybody can promise that.

    with Lock(client, "locks/report", ttl=10) as lock:
        write_report(fence=lock.token)

What it promises: two holders' tokens are never the same, and a later holder's is larger. What it can't promise, no lock
of this kind can: that a process which was paused, or whose clock the machine stopped, notices in time that its lease
has ended and somebody else holds the lock. So whatever the lock protects must refuse an older token than it has seen,
or, if it is in this store, be written under `lock.held`:

    done, _ = client.transaction([lock.held], [put("report", text)])
"""

from __future__ import annotations

from types import TracebackType

from kvorum import etcd_pb2 as pb
from kvorum.lease import Lease
from kvorum.recipes.line import Place, PlaceLost, enter, place_of
from kvorum.recipes.steps import Grant, KeptLease, Steps, end, run
from kvorum.sync import Client
from kvorum.txn import Key


class LockLost(Exception):
    """The lease ended while waiting for the lock, or while holding it."""


class LockCore:
    """A lock of either client: what it knows and decides."""

    def __init__(self, name: Key, ttl: int, lease: KeptLease | None) -> None:
        self._prefix, self._ttl, self._given = place_of(name), ttl, lease
        self._place: Place | None = None

    def _acquire(self, timeout: float | None) -> Steps[bool]:
        """However it ends without the lock, our place is given up and a lease of our own has ended."""
        if self._place is not None:
            raise RuntimeError("this lock is held already")
        lease = self._given or (yield Grant(self._ttl))
        place: Place | None = None
        got = False
        try:
            place = yield from enter(self._prefix, lease)
            got = yield from place.wait(timeout)
        except PlaceLost as lost:
            raise LockLost(str(lost)) from None
        finally:
            if not got:
                if self._given is None:
                    yield from end(lease)  # and the place with it
                elif place is not None:
                    yield from place.leave()
        if got:
            self._place = place
        return got

    def _release(self) -> Steps[bool]:
        place, self._place = self._held(), None
        try:
            return (yield from place.leave())
        finally:
            if self._given is None:
                yield from end(place.lease)

    def _check(self) -> Steps[None]:
        try:
            yield from self._held().confirm()
        except PlaceLost as lost:
            raise LockLost(str(lost)) from None

    def is_acquired(self) -> bool:
        """Whether it was acquired and its lease is not known to have ended. It may end right after; see `held`."""
        return self._place is not None and not self._place.lease.lost

    @property
    def token(self) -> int:
        """Grows from holder to holder: the revision at which this one came into the line."""
        return self._held().revision

    @property
    def key(self) -> bytes:
        """The key that stands for the holder."""
        return self._held().key

    @property
    def held(self) -> pb.Compare:
        """The condition that it is held: for a transaction that must not be done otherwise."""
        return self._held().is_mine

    def _held(self) -> Place:
        if self._place is None:
            raise RuntimeError("this lock is not held")
        return self._place


class Lock(LockCore):
    """Not for several threads at once: make one for each. May be taken again after it was released.

    Args:
      name: where everybody who wants it meets.
      ttl: seconds after which it is free again if its holder dies.
      lease: hold it with this lease instead of one of its own; then it stays when the lock is released.
    """

    def __init__(self, client: Client, name: Key, ttl: int = 60, *, lease: Lease | None = None) -> None:
        super().__init__(name, ttl, lease)
        self._client = client

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait until it is ours; False if it wasn't within `timeout` seconds (0: only if nobody has it).

        Raises LockLost: the lease ended meanwhile.
        """
        return run(self._client, self._acquire(timeout))

    def release(self) -> bool:
        """Let the next one have it. False if it had been lost."""
        return run(self._client, self._release())

    def check(self) -> None:
        """Raises LockLost unless the cluster says, now, that it is held."""
        run(self._client, self._check())

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._place is not None:
            self.release()
