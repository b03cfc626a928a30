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
from kvorum.recipes.line import Place, PlaceLost, place_of
from kvorum.sync import Client
from kvorum.txn import Key


class LockLost(Exception):
    """The lease ended while waiting for the lock, or while holding it."""


class Lock:
    """Not for several threads at once: make one for each. May be taken again after it was released.

    Args:
      name: where everybody who wants it meets.
      ttl: seconds after which it is free again if its holder dies.
      lease: hold it with this lease instead of one of its own; then it stays when the lock is released.
    """

    def __init__(self, client: Client, name: Key, ttl: int = 60, *, lease: Lease | None = None) -> None:
        self._client, self._prefix, self._ttl, self._given = client, place_of(name), ttl, lease
        self._place: Place | None = None

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait until it is ours; False if it wasn't within `timeout` seconds (0: only if nobody has it).

        Raises LockLost: the lease ended meanwhile.
        """
        if self._place is not None:
            raise RuntimeError("this lock is held already")
        lease = self._given or self._client.lease(self._ttl)
        got = False
        try:
            place = Place(self._client, self._prefix, lease)
            try:
                got = place.wait(timeout)
            finally:
                if not got:
                    place.leave()
        except PlaceLost as lost:
            raise LockLost(str(lost)) from None
        finally:
            if not got and self._given is None:
                lease.__exit__(None, None, None)
        if got:
            self._place = place
        return got

    def release(self) -> bool:
        """Let the next one have it. False if it had been lost."""
        place, self._place = self._place, None
        if place is None:
            raise RuntimeError("this lock is not held")
        mine = place.leave()
        if self._given is None:
            place.lease.__exit__(None, None, None)
        return mine

    def is_acquired(self) -> bool:
        """Whether it was acquired and its lease is not known to have ended. It may end right after; see `held`."""
        return self._place is not None and not self._place.lease.lost

    def check(self) -> None:
        """Raises LockLost unless the cluster says, now, that it is held."""
        try:
            self._held().confirm()
        except PlaceLost as lost:
            raise LockLost(str(lost)) from None

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

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._place is not None:
            self.release()
