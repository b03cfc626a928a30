"""Leases of the asyncio client: a task keeps them alive, and says when one was lost (kvorum.leasing).

async with await client.lease(10) as lease:
    await client.put("workers/ada", "here", lease=lease)
    while not lease.lost: await work()
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from kvorum import errors, verbs
from kvorum.leasing import Held, LeaseCore, Question
from kvorum.verbs import Ask

Asker = Callable[[Ask[Any]], Awaitable[Any]]


class Lease:
    """As kvorum.lease.Lease, whose calls are to be awaited."""

    def __init__(self, keeper: Keeper, held: Held, on_lost: Callable[[Lease], None] | None) -> None:
        self._keeper, self._held, self._on_lost = keeper, held, on_lost
        self._ended = asyncio.Event()
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

    async def wait_lost(self) -> bool:
        """Until it is lost; False if it was revoked or let go."""
        await self._ended.wait()
        return self.lost

    async def refresh(self) -> int:
        """Renew it now. Returns the seconds that it has again; 0 says that it is lost."""
        asked = monotonic()
        ttl: int = (await self._keeper.ask(verbs.refresh_lease(self.id))).TTL
        self._keeper.refreshed(self._held, ttl, asked)
        return ttl

    async def info(self) -> Any:
        """LeaseTimeToLiveResponse: TTL left, grantedTTL, keys."""
        return await self._keeper.ask(verbs.get_lease_info(self.id))

    async def revoke(self) -> None:
        """End it now, and its keys with it. Raises LeaseNotFound if it has ended."""
        self.let_go()
        await self._keeper.ask(verbs.revoke_lease(self.id))

    def let_go(self) -> None:
        """Renew it no longer: it ends when its time is up."""
        self._keeper.drop(self)

    def _tell(self) -> None:
        self._ended.set()
        if self._on_lost is not None:
            self._on_lost(self)

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Revoke it. If nobody can be reached it ends by itself, so that is no error."""
        with contextlib.suppress(errors.LeaseNotFound, errors.Unavailable, errors.Ambiguous):
            await self.revoke()


class Keeper:
    """The task behind a client's leases."""

    def __init__(self, ask: Asker) -> None:
        self.ask = ask
        self._core = LeaseCore()
        self._leases: dict[Held, Lease] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()

    async def grant(
        self, ttl: int, lease_id: int | None, on_lost: Callable[[Lease], None] | None, timeout: float | None
    ) -> Lease:
        asked = monotonic()
        granted = await self.ask(verbs.lease_grant(ttl, lease_id, timeout=timeout))
        lease = Lease(self, self._core.hold(granted.ID, granted.TTL, asked), on_lost)
        self._leases[lease._held] = lease
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._changed.set()
        return lease

    def refreshed(self, held: Held, ttl: int, asked: float) -> None:
        self._core.answered(held, ttl, asked)
        self._changed.set()

    def drop(self, lease: Lease) -> None:
        self._core.drop(lease._held)
        self._leases.pop(lease._held, None)
        lease._ended.set()

    def close(self) -> None:
        for task in (self._task, *self._asking):
            if task is not None:
                task.cancel()

    async def _run(self) -> None:
        while True:
            now = monotonic()
            for held in self._core.expired(now):
                self._leases.pop(held)._tell()
            for question in self._core.due(now):
                task = asyncio.get_running_loop().create_task(self._renew(question))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._core.wait(now))

    async def _renew(self, question: Question) -> None:
        held, asked = question.held, monotonic()
        try:
            answer = await self.ask(verbs.refresh_lease(held.id, timeout=question.timeout))
        except errors.KvorumError:  # nobody answered in time, or there is no leader: another time
            self._core.failed(held, monotonic())
        else:
            self._core.answered(held, answer.TTL, asked)
        self._changed.set()
