"""The recipes of kvorum.recipes for the asyncio client: the same names, arguments, promises and errors, to be awaited.

    async with Lock(client, "locks/report", ttl=10) as lock: ...
    async with Election(client, "leader", ttl=5) as election:
        await election.campaign("ada")
    async for leader in election.observe(): ...
    async with View(client, "config/") as settings: ...
    async with await Service(client, "mail").register("10.0.0.7:25"): ...

What is a property there and asks the cluster is a method here: `await counter.value()`.

A task that is cancelled while it waits for a lock, a campaign, a double barrier or a registration takes back what it
had begun: it leaves the line, and its own lease is revoked. For that it may go on for a while, as long as the client
waits for an answer (kvorum.recipes.aiosteps). If nobody can be reached, what is left dies with the recipe's own lease,
which is kept alive no longer; with a lease that was given, it stays until that ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from kvorum import etcd_pb2 as pb
from kvorum.aio import Client
from kvorum.aiolease import Lease
from kvorum.errors import KvorumError
from kvorum.recipes.aiosteps import run
from kvorum.recipes.aioview import View
from kvorum.recipes.barrier import BarrierCore, DoubleBarrierCore
from kvorum.recipes.counter import CounterCore
from kvorum.recipes.election import ElectionCore, Leader, NotLeading, leader_of, said_in, told
from kvorum.recipes.lock import LockCore, LockLost
from kvorum.recipes.service import RETRY_SECONDS, ServiceCore, listing
from kvorum.recipes.steps import KeptLease, end
from kvorum.txn import Key, to_bytes

__all__ = [
    "Barrier",
    "Counter",
    "DoubleBarrier",
    "Election",
    "Instance",
    "Leader",
    "Lock",
    "LockLost",
    "NotLeading",
    "Service",
    "View",
]


class Lock(LockCore):
    """As kvorum.recipes.Lock. Not for several tasks at once: make one for each."""

    def __init__(self, client: Client, name: Key, ttl: int = 60, *, lease: Lease | None = None) -> None:
        super().__init__(name, ttl, lease)
        self._client = client

    async def acquire(self, timeout: float | None = None) -> bool:
        """Wait until it is ours; False if it wasn't within `timeout` seconds (0: only if nobody has it).

        Raises LockLost: the lease ended meanwhile.
        """
        return await run(self._client, self._acquire(timeout))

    async def release(self) -> bool:
        """Let the next one have it. False if it had been lost."""
        return await run(self._client, self._release(), whole=True)

    async def check(self) -> None:
        """Raises LockLost unless the cluster says, now, that it is held."""
        await run(self._client, self._check())

    async def __aenter__(self) -> Lock:
        await self.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._place is not None:
            await self.release()


class Election(ElectionCore):
    """As kvorum.recipes.Election."""

    def __init__(self, client: Client, name: Key, ttl: int = 60, *, lease: Lease | None = None) -> None:
        super().__init__(name, ttl, lease)
        self._client = client

    async def campaign(self, value: Key, timeout: float | None = None) -> bool:
        """Stand, and wait until we lead; False if we didn't within `timeout` seconds (then we stand no longer).

        Raises NotLeading: the lease ended meanwhile.
        """
        return await run(self._client, self._campaign(value, timeout))

    async def proclaim(self, value: Key) -> None:
        """Say something else. Raises NotLeading."""
        await run(self._client, self._proclaim(value))

    async def resign(self) -> None:
        """Let the next one lead. Nothing happens if we don't."""
        await run(self._client, self._resign(), whole=True)

    async def leader(self) -> Leader | None:
        """Who leads now; None if nobody does."""
        return leader_of(await self.leader_response())

    def leader_response(self) -> Coroutine[Any, Any, pb.RangeResponse]:
        """Like leader(), as the range that was read: of one key or none."""
        return self._client.ask(self._look())

    async def observe(self) -> AsyncGenerator[Leader, None]:
        """Whoever leads, now and from now on, and whatever the leader says anew. Never ends by itself.

        Each that led for a while is told of, in order; not one that came and went while nobody was looking.
        """
        async with aclosing(self.observe_response()) as responses:
            async for response in responses:
                yield told(response.kvs[0])

    async def observe_response(self) -> AsyncGenerator[pb.RangeResponse, None]:
        """Like observe(), with the header that each was learned with; one key each."""
        while True:
            found = await run(self._client, self._await_leader())
            yield found
            start = found.header.revision + 1
            async with self._client.watch_response(found.kvs[0].key, start_revision=start) as responses:
                async for response in responses:
                    said, gone = said_in(response)
                    for one in said:
                        yield one
                    if gone:
                        break

    async def close(self) -> None:
        """Resign, and end the lease if it is our own."""
        await run(self._client, self._close(), whole=True)

    async def __aenter__(self) -> Election:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Barrier(BarrierCore):
    """As kvorum.recipes.Barrier."""

    def __init__(self, client: Client, name: Key) -> None:
        super().__init__(name)
        self._client = client

    async def hold(self, lease: Lease | int | None = None) -> bool:
        """Let everybody wait from now on; with a `lease`, at most as long as it lives. False: somebody did already."""
        return await self._client.ask(self._hold(lease))

    async def release(self) -> None:
        """Let everybody go on."""
        await run(self._client, self._release())

    async def wait(self, timeout: float | None = None) -> bool:
        """Until nobody holds it. False: not within `timeout` seconds."""
        return await run(self._client, self._wait(timeout))


class DoubleBarrier(DoubleBarrierCore):
    """As kvorum.recipes.DoubleBarrier. A task that is cancelled while it enters is not in."""

    def __init__(self, client: Client, name: Key, count: int, lease: Lease) -> None:
        super().__init__(name, count, lease)
        self._client = client

    async def enter(self, timeout: float | None = None) -> bool:
        """Until `count` have entered. False: not within `timeout` seconds; then we are not in."""
        return await run(self._client, self._enter(timeout))

    async def leave(self, timeout: float | None = None) -> bool:
        """Until all who entered have left. False: not within `timeout` seconds; we have left all the same."""
        return await run(self._client, self._leave(timeout))


class Counter(CounterCore):
    """As kvorum.recipes.Counter. A task that is cancelled while it adds doesn't know whether it has."""

    def __init__(self, client: Client, name: Key) -> None:
        super().__init__(name)
        self._client = client

    async def value(self) -> int:
        """Raises ValueError if the key holds something else than a number."""
        return await run(self._client, self._value())

    async def add(self, amount: int = 1) -> int:
        """Add, and give the new value."""
        return await run(self._client, self._add(amount))


class Service(ServiceCore):
    """As kvorum.recipes.Service."""

    def __init__(self, client: Client, name: Key, *, root: Key = "services/") -> None:
        super().__init__(name, root)
        self._client = client

    async def register(self, address: Key, *, metadata: Key = b"", ttl: int = 10) -> Instance:
        """List an instance until it is closed or dies. Its value is `metadata`, anything the users should know."""
        instance = Instance(self._client, self.prefix + to_bytes(address), metadata, ttl)
        await instance._register()
        return instance

    async def instances(self) -> dict[bytes, bytes]:
        """Address and metadata of all instances that live now."""
        return await run(self._client, self._instances())

    def view(self) -> View:
        """The same, kept up to date; to be entered with `async with`."""
        return View(self._client, self.prefix)


class Instance:
    """One registered instance: Service.register() makes it."""

    def __init__(self, client: Client, key: bytes, metadata: Key, ttl: int) -> None:
        self._client, self.key, self._metadata, self._ttl = client, key, metadata, ttl
        self._lease: KeptLease | None = None
        self._task: asyncio.Task[None] | None = None

    async def _register(self) -> None:
        self._lease = await run(self._client, listing(self.key, self._metadata, self._ttl, self._lost))

    def _lost(self, _: object) -> None:
        """In the task that keeps all leases alive, which must go on: try again in another one."""
        self._task = asyncio.get_running_loop().create_task(self._again())

    async def _again(self) -> None:
        while True:
            try:
                return await self._register()
            except KvorumError:  # nobody is there to ask, for now
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """Be listed no longer."""
        try:
            if self._task is not None:
                self._task.cancel()  # what it has begun it takes back
                await asyncio.wait([self._task])
        finally:
            lease, self._lease = self._lease, None
            if lease is not None:
                await run(self._client, end(lease), whole=True)

    async def __aenter__(self) -> Instance:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
