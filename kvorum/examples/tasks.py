"""The recipes in asyncio: tasks take turns under a lock, and one that no longer waits has left the line."""

from __future__ import annotations

import asyncio
import sys

import kvorum.aio
from kvorum.recipes.aio import Election, Lock
from kvorum.txn import put


async def work(name: str, client: kvorum.aio.Client) -> str:
    async with Lock(client, "example/tasks/lock", ttl=10) as lock:
        done, _ = await client.transaction([lock.held], [put("example/tasks/report", f"by {name}")])
        return f"{name} {'wrote' if done else 'came too late'}"


async def tell(endpoints: str) -> None:
    async with kvorum.aio.client(endpoints) as client:
        print("\n".join(await asyncio.gather(*(work(name, client) for name in ("ada", "bob", "cyd")))))
        async with Election(client, "example/tasks/leader", ttl=10) as election:
            await election.campaign("ada")
            try:
                async with asyncio.timeout(0.5):  # one who gives up: the campaign is cancelled
                    await Election(client, "example/tasks/leader", ttl=10).campaign("bob")
            except TimeoutError:
                print("candidates", len(await client.get_prefix("example/tasks/leader/")))
            async for leader in election.observe():
                print("leader", leader.value.decode())
                break


def main(endpoints: str) -> None:
    asyncio.run(tell(endpoints))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2381")
