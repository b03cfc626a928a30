"""Leases of the synchronous client: a thread of the client keeps them alive, and says when one was lost.

    with client.lease(10) as lease:
        client.put("workers/ada", "here", lease=lease)
        while not lease.lost: work()

One thread for all leases of a client; the renewals that are due leave as one batch. What "lost" means, and that it is
never said too late, is in kvorum.leasing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from kvorum import errors, verbs
from kvorum import etcd_pb2 as pb
from kvorum.core import Call
from kvorum.leasing import Held, LeaseCore, Question
from kvorum.wire import Method

if TYPE_CHECKING:
    from kvorum.sync import Client

DRIVE_SECONDS = 0.2
"""How long the thread drives the client at a time; whoever else uses it does so meanwhile."""


class Lease:
    """A lease, kept alive until it is revoked, let go, lost, or the client is closed.

    `id` and `ttl` (seconds) are what the cluster granted; `ttl` may be more than was asked for.
    """

    def __init__(self, keeper: Keeper, held: Held, on_lost: Callable[[Lease], None] | None) -> None:
        self._keeper, self._held, self._on_lost = keeper, held, on_lost
        self._ended = threading.Event()
        self.id = held.id
        self.ttl = int(held.ttl)

    @property
    def lost(self) -> bool:
        """Must be taken for ended by now: its keys may be gone, and others may have what it stood for."""
        return self._held.lost or self._held.deadline <= monotonic()

    @property
    def deadline(self) -> float:
        """Until when (time.monotonic()) it surely lives, as far as is known now."""
        return self._held.deadline

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Until it is lost; False if it wasn't within `timeout` seconds, or was revoked or let go."""
        self._ended.wait(timeout)
        return self.lost

    def refresh(self) -> int:
        """Renew it now. Returns the seconds that it has again; 0 says that it is lost."""
        asked = monotonic()
        ttl = self._keeper.client.ask(verbs.refresh_lease(self.id)).TTL
        self._keeper.refreshed(self._held, ttl, asked)
        return ttl

    @property
    def remaining_ttl(self) -> int:
        """Seconds that it has left, as the cluster counts; -1 if it is gone."""
        return self._keeper.client.ask(verbs.get_lease_info(self.id, keys=False)).TTL

    @property
    def granted_ttl(self) -> int:
        return self._keeper.client.ask(verbs.get_lease_info(self.id, keys=False)).grantedTTL

    @property
    def keys(self) -> list[bytes]:
        """The keys that will be deleted with it."""
        return list(self._keeper.client.ask(verbs.get_lease_info(self.id)).keys)

    def revoke(self) -> None:
        """End it now, and its keys with it. Raises LeaseNotFound if it has ended."""
        self.let_go()
        self._keeper.client.ask(verbs.revoke_lease(self.id))

    def let_go(self) -> None:
        """Renew it no longer: it ends when its time is up."""
        self._keeper.drop(self)

    def _tell(self) -> None:
        self._ended.set()
        if self._on_lost is not None:
            self._on_lost(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Revoke it. If nobody can be reached it ends by itself, so that is no error."""
        with contextlib.suppress(errors.LeaseNotFound, errors.Unavailable, errors.Ambiguous):
            self.revoke()


class Keeper:
    """The thread behind a client's leases. It starts with the first one, and ends with the client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._core = LeaseCore()
        self._leases: dict[Held, Lease] = {}
        self._changed = threading.Condition()
        self._under_way = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def grant(
        self, ttl: int, lease_id: int | None, on_lost: Callable[[Lease], None] | None, timeout: float | None
    ) -> Lease:
        asked = monotonic()
        granted = self.client.ask(verbs.lease_grant(ttl, lease_id, timeout=timeout))
        with self._changed:
            lease = Lease(self, self._core.hold(granted.ID, granted.TTL, asked), on_lost)
            self._leases[lease._held] = lease
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kvorum-leases", daemon=True)
                self._thread.start()
            self._changed.notify()
        return lease

    def refreshed(self, held: Held, ttl: int, asked: float) -> None:
        with self._changed:
            self._core.answered(held, ttl, asked)
            self._changed.notify()

    def drop(self, lease: Lease) -> None:
        with self._changed:
            self._core.drop(lease._held)
            self._leases.pop(lease._held, None)
        lease._ended.set()

    def close(self) -> None:
        """The leases live on at the cluster, each until its time is up."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                now = monotonic()
                lost = [self._leases.pop(held) for held in self._core.expired(now)]
                questions = self._core.due(now)
                wait = self._core.wait(now)
                if not (lost or questions or self._under_way or self._closed):
                    self._changed.wait(wait)
                if self._closed:
                    return
            for lease in lost:
                lease._tell()
            for question in questions:
                self._ask(question)
            if self._under_way:
                self.client.drive(min(DRIVE_SECONDS, DRIVE_SECONDS if wait is None else wait))

    def _ask(self, question: Question) -> None:
        held, asked = question.held, monotonic()

        def finished(call: Call) -> None:
            with self._changed:
                self._under_way -= 1
                if call.error is None:
                    self._core.answered(held, pb.LeaseKeepAliveResponse.FromString(call.reply).TTL, asked)
                else:
                    self._core.failed(held, monotonic())
                self._changed.notify()

        request = pb.LeaseKeepAliveRequest(ID=held.id).SerializeToString()
        with self._changed:
            self._under_way += 1
        try:
            self.client.submit(Method.LEASE_KEEP_ALIVE, request, finished, timeout=question.timeout, again=True)
        except errors.Unavailable:  # too much is under way in this client
            with self._changed:
                self._under_way -= 1
                self._core.failed(held, monotonic())
