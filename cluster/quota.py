"""Whether there is room for a request, and what is done when there isn't.

    disk    less free than DISK_RESERVE_BYTES  ──▶ refused here, while it lasts
    quota   the store is as large as it may be ──▶ NOSPACE, by an entry of the log ──applied──▶ refused here, and what
                                                   any member proposes from then on is refused by all (storage.alarms)

Both are judged before a request is proposed. The disk is this member's affair: when there is room again it goes on by
itself. Past the quota it is etcd that decides the form: the member that notices raises the alarm, and it stands until
somebody takes it back, even if deletions and a compaction have made room long before.

Whoever asked for too much is told so when the alarm stands here, as with etcd, so that who sees the refusal and asks
for the alarms finds one; without a leader, when the time is up. Nothing was proposed for them, so no is true at any
time.

The size is measured once a tick: what was admitted since may exceed the quota by as much as comes in a tick. The member
whose store grows past its quota by what others admitted raises the alarm as well, with the puts that it then applies.
One alarm is under way at a time; a proposal is repeated by itself (cluster.proposals), and is given up after the
patience of any request. If it is lost, the next request without room raises it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from google.protobuf.message import Message as Protobuf

from cluster.callers import Caller
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage.alarms import NOSPACE
from storage.keyspace import Keyspace

DISK_RESERVE_BYTES = 64 << 20
"""With less room than this on the store's disk, requests that take space are refused while nothing is wrong yet: what
was accepted must still be flushed, and a compaction or a deletion must still be possible."""
WAITING_MAX = 10_000
"""Who waits for the alarm to stand; more are refused at once."""


class Host(Protocol):
    """The apply process, as far as it is of interest here."""

    keyspace: Keyspace
    ticks: int

    @property
    def member_id(self) -> int: ...
    @property
    def store_bytes(self) -> int:
        """The size of the store, as of the last tick."""
        ...

    def propose(self, method: int, request: Protobuf, *, once: bool = False) -> int: ...
    def fail(self, caller: Caller, error: errors.KvorumError) -> None: ...


class Quota:
    """Args:
    quota_bytes: 0 is none.
    free_bytes: how much room there is on the store's disk.
    patience_ticks: how long a request may take.
    """

    def __init__(self, host: Host, quota_bytes: int, free_bytes: Callable[[], int], patience_ticks: int) -> None:
        self._host, self.quota_bytes, self.free_bytes = host, quota_bytes, free_bytes
        self._patience_ticks = patience_ticks
        self._disk_room = free_bytes() - DISK_RESERVE_BYTES
        self._raised_at: int | None = None  # the tick when the alarm was proposed, as long as it may be under way
        self._waiting: list[tuple[Caller, int]] = []

    def room(self) -> int:
        """How many bytes requests may still add to the store."""
        if self.quota_bytes:
            return min(self._disk_room, self.quota_bytes - self._host.store_bytes - 1)
        return self._disk_room

    @property
    def disk_free_bytes(self) -> int:
        """As of the last tick."""
        return self._disk_room + DISK_RESERVE_BYTES

    def admits(self, caller: Caller, growth: int) -> bool:
        """Whether a request may be proposed. If not, its caller has been told, or will be."""
        if growth <= self.room():
            return True
        if growth > self._disk_room or self._stands or len(self._waiting) >= WAITING_MAX:
            self._host.fail(caller, errors.NoSpace())
        else:
            self._waiting.append((caller, self._host.ticks))
            self._raise()
        return False

    def changed(self, puts: int) -> None:
        """A turn with so many puts has been committed."""
        if self._stands:
            self._raised_at = None
            self._tell(self._host.ticks)
        elif puts and self.quota_bytes and self._host.store_bytes >= self.quota_bytes:
            self._raise()

    def tick(self) -> None:
        self._disk_room = self.free_bytes() - DISK_RESERVE_BYTES
        limit = self._host.ticks - self._patience_ticks
        if self._raised_at is not None and self._raised_at <= limit:
            self._raised_at = None
        self._tell(limit)

    @property
    def _stands(self) -> bool:
        return self._host.keyspace.alarms.stands(NOSPACE, self._host.member_id)

    def _raise(self) -> None:
        if self._raised_at is None:
            self._raised_at = self._host.ticks
            self._host.propose(
                Method.ALARM,
                pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=self._host.member_id, alarm=pb.NOSPACE),
            )

    def _tell(self, limit: int) -> None:
        """Refuse those who have waited since tick `limit` or before."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for caller, since in waiting:
                if since <= limit:
                    self._host.fail(caller, errors.NoSpace())
                else:
                    self._waiting.append((caller, since))
