"""The asyncio client against fake nodes over real ZeroMQ."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable

import pytest

import kvorum
import kvorum.aio
from kvorum import errors
from kvorum.txn import get, put, value
from tests.client.fake import FakeNode, Store

Start = Callable[..., FakeNode]


def test_the_verbs_are_those_of_the_synchronous_client(node: FakeNode) -> None:
    async def main() -> None:
        async with kvorum.aio.client(node.address) as client:
            assert (await client.put("k", "1")).header.revision == 2
            found, meta = await client.get("k")
            assert found == b"1"
            assert meta is not None
            assert meta.version == 1
            assert await client.replace("k", "1", "2")
            ok, answers = await client.txn().if_(value("k") == "2").then(put("k", "3"), get("k")).commit()
            assert ok
            assert answers[1][0][0] == b"3"  # type: ignore[index]
            assert [found for found, _ in await client.get_prefix("")] == [b"3"]
            assert (await client.status()).version == "3.6.0"
            assert (await client.members())[0].name == "node1"
            assert await client.delete("k")

    asyncio.run(main())


def test_both_clients_have_the_same_verbs() -> None:
    def public(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    only_sync = {"submit", "wait", "drive", "inflight", "pipeline"}  # gather() does what a pipeline does
    only_sync |= {name for name in public(kvorum.Client) if "callback" in name or "once" in name} | {"cancel_watch"}
    assert public(kvorum.Client) - only_sync == public(kvorum.aio.Client)


def test_what_is_called_in_one_iteration_leaves_as_one_batch(node: FakeNode) -> None:
    async def main() -> None:
        async with kvorum.aio.client(node.address) as client:
            await client.put("warm", "up")
            await asyncio.gather(*(client.put(f"k{i}", "v") for i in range(500)))
        assert [len(batch) for batch in node.batches] == [1, 500]

    asyncio.run(main())


def test_errors_are_raised_where_the_call_is_awaited(start: Start) -> None:
    async def main() -> None:
        async with kvorum.aio.client(start(lambda _: errors.LeaseNotFound()).address) as client:
            with pytest.raises(errors.LeaseNotFound):
                await client.put("k", "v", lease=5)
            with pytest.raises(ValueError, match="positive"):
                await client.get("k", timeout=-1)
        async with kvorum.aio.client(start(lambda _: None).address) as client:
            with pytest.raises(errors.DeadlineExceeded):
                await client.put("k", "v", timeout=0.5)  # long enough to connect on a busy machine
        async with kvorum.aio.client("127.0.0.1:1", timeout=0.2) as client:
            with pytest.raises(errors.Unreachable, match="refused"):
                await client.put("k", "v")

    asyncio.run(main())


def test_a_client_goes_on_at_another_node(start: Start) -> None:
    store = Store()
    first, second = start(lambda _: None), start(store)

    async def main() -> None:
        async with kvorum.aio.client([first.address, second.address], shuffle=False) as client:
            write = asyncio.create_task(client.put("k", "v"))
            read = asyncio.create_task(client.get("k"))
            while sum(len(batch) for batch in first.batches) < 2:
                await asyncio.sleep(0.005)
            first.close()
            with pytest.raises(errors.ConnectionLost):
                await write
            assert await read == (None, None)

    asyncio.run(main())


def test_a_cancelled_task_leaves_the_client_usable(start: Start) -> None:
    node = start(lambda _: None)

    async def main() -> None:
        async with kvorum.aio.client(node.address) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.put("k", "v"), 0.05)
            node.handle = node.store
            assert await client.get("k") == (None, None)

    asyncio.run(main())


def test_an_idle_client_hears_that_its_connection_is_gone(start: Start) -> None:
    """The loop watches the sockets also when nobody calls: the next call does not run into a dead connection."""
    store = Store()
    first, second = start(store), start(store)

    async def main() -> None:
        async with kvorum.aio.client([first.address, second.address], shuffle=False) as client:
            await client.put("k", "1")
            first.close()
            await asyncio.sleep(0.05)
            await client.put("k", "2")
        assert len(second.batches) == 1

    asyncio.run(main())


def test_a_watch_is_read_with_async_for(node: FakeNode) -> None:
    async def main() -> None:
        async with kvorum.aio.client(node.address) as client:
            async with client.watch_prefix("k", prev_kv=True) as events:
                await client.put("k1", "a")
                await client.put("k1", "b")
                seen = []
                async for event in events:
                    seen.append((event.key, event.value, event.prev_value))
                    if len(seen) == 2:
                        break
            assert seen == [(b"k1", b"a", None), (b"k1", b"b", b"a")]
            async for response in client.watch_response("k1", start_revision=2):
                assert response.events[0].value == b"a"
                break

    asyncio.run(main())


def test_a_watch_outlives_its_connection(node: FakeNode) -> None:
    async def main() -> None:
        async with kvorum.aio.client(node.address) as client, client.watch_prefix("k") as events:
            for i in range(60):
                await client.put(f"k{i}", "v")
                if i % 20 == 10:
                    node.cut_watches()
            seen = [(await anext(events)).mod_revision for _ in range(60)]
            assert seen == list(range(2, 62))

    asyncio.run(main())


def test_the_members_are_asked_for_again_when_no_watch_endpoint_answers(start: Start) -> None:
    """A cluster whose nodes have moved to other ports is found through the callers' endpoint."""
    node = start()
    members = [kvorum.etcd_pb2.Endpoint(native=node.address, watch="tcp://127.0.0.1:1")]

    def hello(_: object) -> bytes:
        pb = kvorum.etcd_pb2
        header = pb.ResponseHeader(cluster_id=node.cluster)
        answer = pb.HelloResponse(header=header, protocol=1, members=members).SerializeToString()
        members[0].watch = node.watch_address
        return answer

    node.hello = hello

    async def main() -> None:
        async with kvorum.aio.client(node.address, timeout=5) as client, client.watch("k") as events:
            await client.put("k", "v")
            assert (await anext(events)).value == b"v"

    asyncio.run(main())


def test_a_watch_ends_with_its_error_or_with_its_client(node: FakeNode) -> None:
    async def main() -> None:
        client = kvorum.aio.client(node.address)
        for i in range(5):
            await client.put("k", str(i))
        await client.compact(4)
        with pytest.raises(errors.Compacted) as raised:
            await anext(client.watch("k", start_revision=2))
        assert raised.value.compact_revision == 4
        events = client.watch("k")
        await events.start()

        async def read() -> list[object]:
            return [event async for event in events]

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        await client.close()
        assert await asyncio.wait_for(reader, 5) == []

    asyncio.run(main())


def test_a_slow_reader_misses_nothing(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.watching.BACKLOG_BYTES_MAX", 10_000)

    async def main() -> None:
        async with kvorum.aio.client(node.address) as client, client.watch("k") as events:
            for i in range(100):
                await client.put("k", f"{i:04}" * 100)
            seen = [(await anext(events)).mod_revision for _ in range(100)]
            assert seen == list(range(2, 102))

    asyncio.run(main())


def test_a_client_belongs_to_one_loop(node: FakeNode) -> None:
    client = kvorum.aio.client(node.address)
    asyncio.run(_put(client))
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(_put(client))


async def _put(client: kvorum.aio.Client) -> None:
    await client.put("k", "v")


def test_clients_leave_no_file_descriptor_behind(node: FakeNode) -> None:
    async def use() -> None:
        async with kvorum.aio.client(["127.0.0.1:1", node.address], shuffle=False) as client:
            await client.put("k", "v")
            async with client.watch("k") as events:
                await client.put("k", "w")
                await anext(events)

    asyncio.run(use())
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        asyncio.run(use())
    gc.collect()
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)  # ZeroMQ closes in its own thread
    assert len(os.listdir("/proc/self/fd")) <= before
