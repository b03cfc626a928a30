"""The recipes of the asyncio client on a real cluster: beside those of the synchronous one, cancelled, and lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

import kvorum
import kvorum.aio
from kvorum import recipes, txn
from kvorum.recipes.aio import (
    Barrier,
    Counter,
    DoubleBarrier,
    Election,
    Lock,
    LockLost,
    NotLeading,
    Service,
    View,
)
from tests.system.cluster import Cluster

WAIT = 60.0
Clients = list[kvorum.aio.Client]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("aiorecipes"), shared=True) as cluster:
        yield cluster


@pytest.fixture
def sync(trio: Cluster) -> Iterator[kvorum.Client]:
    trio.await_ready()
    with kvorum.client(trio.endpoints[1], discover=False, timeout=30) as client:
        yield client


@asynccontextmanager
async def connected(trio: Cluster) -> AsyncIterator[Clients]:
    """One client for each node."""
    async with AsyncExitStack() as stack:
        made = [kvorum.aio.client(endpoint, discover=False, timeout=30) for endpoint in trio.endpoints]
        yield [await stack.enter_async_context(client) for client in made]


def play(trio: Cluster, scene: Callable[[Clients], Awaitable[None]]) -> None:
    async def main() -> None:
        async with connected(trio) as clients, asyncio.timeout(WAIT * 2):
            await scene(clients)

    trio.await_ready()
    asyncio.run(main())


async def eventually(attempt: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(WAIT):
        while not await attempt():
            await asyncio.sleep(0.02)


async def in_line(client: kvorum.aio.Client, prefix: str, count: int) -> None:
    async def there() -> bool:
        return len(await client.get_prefix(prefix)) == count

    await eventually(there)


async def cancel(task: asyncio.Task[object], times: int = 1) -> None:
    """So often, each when the one before has arrived."""
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


# ---- lock


def test_both_clients_stand_in_one_line(trio: Cluster, sync: kvorum.Client) -> None:
    inside: list[int] = []
    tokens: list[int] = []

    def enter(token: int) -> None:
        inside.append(1)
        assert len(inside) == 1
        tokens.append(token)

    def work() -> None:
        for _ in range(4):
            with recipes.Lock(sync, "locks/mixed", ttl=10) as lock:
                enter(lock.token)
                inside.pop()

    async def turns(client: kvorum.aio.Client) -> None:
        for _ in range(4):
            async with Lock(client, "locks/mixed", ttl=10) as lock:
                enter(lock.token)
                await asyncio.sleep(0.01)
                await lock.check()
                done, _ = await client.transaction([lock.held], [txn.put("locks-report", "x")])
                assert done
                inside.pop()

    async def scene(clients: Clients) -> None:
        await asyncio.gather(asyncio.to_thread(work), *(turns(client) for client in clients))
        assert not await clients[0].get_prefix("locks/mixed/")
        assert not await clients[0].leases()

    play(trio, scene)
    assert len(tokens) == 16
    assert tokens == sorted(set(tokens))


def test_whoever_does_not_get_it_in_time_has_left_the_line(trio: Cluster) -> None:
    async def scene(clients: Clients) -> None:
        async with Lock(clients[0], "locks/busy", ttl=10) as held:
            assert not await Lock(clients[1], "locks/busy", ttl=10).acquire(timeout=0)
            assert not await Lock(clients[1], "locks/busy", ttl=10).acquire(timeout=0.3)
            assert len(await clients[0].get_prefix("locks/busy/")) == 1
            assert len(await clients[0].leases()) == 1
            with pytest.raises(RuntimeError, match="held already"):
                await held.acquire()

    play(trio, scene)


@pytest.mark.parametrize("times", [1, 3])
def test_a_cancelled_wait_for_a_lock_leaves_nothing(trio: Cluster, times: int) -> None:
    async def scene(clients: Clients) -> None:
        async with Lock(clients[0], "locks/cancelled", ttl=60), await clients[1].lease(60) as given:
            own = asyncio.create_task(Lock(clients[1], "locks/cancelled", ttl=60).acquire())
            with_given = asyncio.create_task(Lock(clients[2], "locks/cancelled", lease=given).acquire())
            await in_line(clients[0], "locks/cancelled/", 3)
            await cancel(own, times)
            await cancel(with_given, times)
            await in_line(clients[0], "locks/cancelled/", 1)
            assert len(await clients[0].leases()) == 2, "the holder's and the given one"
            assert not given.lost
        assert not await clients[0].leases()

    play(trio, scene)


def test_cancelled_at_any_moment_it_has_the_lock_or_nothing(trio: Cluster) -> None:
    """Also between the request and its answer; a lease or a key that nobody knows of would hold up others."""

    async def scene(clients: Clients) -> None:
        got = 0
        for number in range(40):
            lock = Lock(clients[number % 3], "locks/moment", ttl=60)
            task = asyncio.create_task(lock.acquire())
            await asyncio.sleep(number * 0.0005)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                got += 1
                assert await lock.release()
            assert not lock.is_acquired()
            assert not await clients[0].get_prefix("locks/moment/")
            assert not await clients[0].leases()
        assert got < 40

    play(trio, scene)


def test_a_timeout_around_it_is_a_timeout(trio: Cluster) -> None:
    async def scene(clients: Clients) -> None:
        async with Lock(clients[0], "locks/around", ttl=60):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await Lock(clients[1], "locks/around", ttl=60).acquire()
            await in_line(clients[0], "locks/around/", 1)

    play(trio, scene)


def test_a_lease_that_ends_in_the_line_or_in_its_holder_is_no_lock(trio: Cluster) -> None:
    async def scene(clients: Clients) -> None:
        waiting = await clients[1].lease(2)
        async with Lock(clients[0], "locks/late", ttl=10):
            waiting.let_go()
            with pytest.raises(LockLost):
                await Lock(clients[1], "locks/late", lease=waiting).acquire(timeout=WAIT)
        lost = await clients[0].lease(60)
        paused = Lock(clients[0], "locks/late", lease=lost)
        await paused.acquire()
        await clients[2].revoke_lease(lost.id)
        async with Lock(clients[1], "locks/late", ttl=10) as second:
            assert second.token > paused.token
            with pytest.raises(LockLost):
                await paused.check()
            done, _ = await clients[0].transaction([paused.held], [txn.put("report", "late")])
            assert not done
        assert not await paused.release()

    play(trio, scene)


# ---- election


def test_candidates_of_both_clients(trio: Cluster, sync: kvorum.Client) -> None:
    async def scene(clients: Clients) -> None:
        seen: list[bytes] = []

        async def watch() -> None:
            async for leader in Election(clients[2], "elections/mixed").observe():
                seen.append(leader.value)
                if leader.value == b"last":
                    return

        async def was_seen(value: bytes) -> None:
            """What is said and taken back before the observer looks is not told, and need not be."""

            async def seen_now() -> bool:
                return value in seen

            await eventually(seen_now)

        observer = asyncio.create_task(watch())
        first = recipes.Election(sync, "elections/mixed", ttl=10)
        async with Election(clients[0], "elections/mixed", ttl=10) as second:
            assert await second.leader() is None
            await asyncio.to_thread(first.campaign, "ada")
            assert not await second.campaign("bob", timeout=0.3)
            leader = await second.leader()
            assert leader is not None
            assert (leader.value, leader.token) == (b"ada", first.token)

            await was_seen(b"ada")
            campaign = asyncio.create_task(second.campaign("bob"))
            await in_line(clients[1], "elections/mixed/", 2)
            await asyncio.to_thread(first.close)
            assert await campaign
            assert second.leads
            done, _ = await clients[0].transaction([second.mandate], [txn.put("decree", "by bob")])
            assert done
            third = threading.Thread(target=first.campaign, args=("cyd",))
            third.start()
            await in_line(clients[1], "elections/mixed/", 2)
            await was_seen(b"bob")
            await second.proclaim("bob!")
            await was_seen(b"bob!")
            await second.resign()
            assert not second.leads
            await asyncio.to_thread(third.join, WAIT)
            assert first.leads
            with pytest.raises(NotLeading):
                await second.proclaim("still me")
            await was_seen(b"cyd")
            await asyncio.to_thread(first.proclaim, "last")
            await asyncio.wait_for(observer, WAIT)
            await asyncio.to_thread(first.close)
            assert await second.leader() is None
        assert seen == [b"ada", b"bob", b"bob!", b"cyd", b"last"]
        assert not await clients[0].leases()

    play(trio, scene)


@pytest.mark.parametrize("times", [1, 3])
def test_a_cancelled_campaign_leaves_nothing(trio: Cluster, times: int) -> None:
    async def scene(clients: Clients) -> None:
        async with Election(clients[0], "elections/cancelled") as leading, await clients[2].lease(60) as given:
            await leading.campaign("ada")
            own = Election(clients[1], "elections/cancelled")
            with_given = Election(clients[2], "elections/cancelled", lease=given)
            tasks = [asyncio.create_task(each.campaign("bob")) for each in (own, with_given)]
            await in_line(clients[0], "elections/cancelled/", 3)
            for task in tasks:
                await cancel(task, times)
            await in_line(clients[0], "elections/cancelled/", 1)
            assert len(await clients[0].leases()) == 2
            await leading.resign()
            assert await own.campaign("bob", timeout=WAIT), "it may stand again"
            await own.close()
        assert not await clients[0].leases()

    play(trio, scene)


def test_a_lease_lost_in_a_campaign_or_in_office(trio: Cluster) -> None:
    async def scene(clients: Clients) -> None:
        lease = await clients[1].lease(2)
        async with Election(clients[0], "elections/lost", ttl=10) as leading:
            await leading.campaign("ada")
            lease.let_go()
            with pytest.raises(NotLeading):
                await Election(clients[1], "elections/lost", lease=lease).campaign("bob", timeout=WAIT)
        lease = await clients[1].lease(60)
        second = Election(clients[1], "elections/lost", lease=lease)
        await second.campaign("bob")
        await second.campaign("bob!")
        leader = await second.leader()
        assert leader is not None
        assert leader.value == b"bob!"
        await clients[0].revoke_lease(lease.id)
        with pytest.raises(NotLeading, match="ended"):
            await second.proclaim("still me")
        assert not second.leads

    play(trio, scene)


# ---- the others


def test_a_barrier_lets_both_clients_go_at_once(trio: Cluster, sync: kvorum.Client) -> None:
    async def scene(clients: Clients) -> None:
        barrier = Barrier(clients[0], "barriers/one")
        assert await barrier.wait(timeout=WAIT), "nobody holds it"
        assert await barrier.hold()
        assert not await barrier.hold()
        assert not await Barrier(clients[1], "barriers/one").wait(timeout=0.2)
        waiting = [asyncio.create_task(Barrier(client, "barriers/one").wait(WAIT)) for client in clients]
        thread = asyncio.create_task(asyncio.to_thread(recipes.Barrier(sync, "barriers/one").wait, WAIT))
        done, _ = await asyncio.wait([*waiting, thread], timeout=0.1)
        assert not done
        await barrier.release()
        assert await asyncio.gather(*waiting, thread) == [True] * 4

    play(trio, scene)


def test_a_double_barrier_begins_and_ends_together_and_is_left_when_cancelled(trio: Cluster) -> None:
    async def scene(clients: Clients) -> None:
        entered: list[int] = []
        left: list[int] = []

        async def work(number: int, client: kvorum.aio.Client) -> None:
            async with await client.lease(10) as lease:
                barrier = DoubleBarrier(client, "barriers/two", 3, lease)
                await asyncio.sleep(0.1 * number)
                entered.append(number)
                assert await barrier.enter(WAIT)
                assert len(entered) == 3
                await asyncio.sleep(0.1 * number)
                left.append(number)
                assert await barrier.leave(WAIT)
                assert len(left) == 3

        async with await clients[0].lease(60) as lease:
            alone = DoubleBarrier(clients[0], "barriers/two", 3, lease)
            assert not await alone.enter(timeout=0.2)
            task = asyncio.create_task(alone.enter())
            await in_line(clients[1], "barriers/two/waiting/", 1)
            await cancel(task, 2)
            assert not await clients[1].get_prefix("barriers/two/")
        await asyncio.gather(*(work(number, client) for number, client in enumerate(clients)))

    play(trio, scene)


def test_nobody_miscounts(trio: Cluster, sync: kvorum.Client) -> None:
    async def scene(clients: Clients) -> None:
        def work() -> None:
            for _ in range(20):
                recipes.Counter(sync, "counter").add()

        async def adds(client: kvorum.aio.Client) -> None:
            for _ in range(20):
                await Counter(client, "counter").add()

        await asyncio.gather(asyncio.to_thread(work), *(adds(client) for client in clients))
        assert await Counter(clients[0], "counter").value() == 80
        assert await Counter(clients[0], "counter").add(-80) == 0
        await clients[0].put("text", "abc")
        with pytest.raises(ValueError, match="invalid literal"):
            await Counter(clients[0], "text").add()

    play(trio, scene)


def test_a_view_is_what_the_cluster_has(trio: Cluster) -> None:
    async def scene(clients: Clients) -> None:
        await clients[0].put("config/color", "blue")
        heard: list[dict[bytes, bytes | None]] = []
        async with View(clients[1], "config/", on_change=heard.append) as view:
            assert dict(view) == {b"color": b"blue"}
            assert heard == []
            await clients[0].transaction([], [txn.put("config/color", "red"), txn.put("config/size", "4")])
            last = await clients[0].delete("config/size", return_response=True)
            assert await view.wait(last.header.revision, WAIT)  # type: ignore[union-attr]
            assert dict(view) == {b"color": b"red"}
            assert view["color"] == b"red"
            assert heard == [{b"color": b"red", b"size": b"4"}, {b"size": None}]
            meta = view.meta("color")
            assert meta is not None
            assert meta.version == 2
            assert not await view.wait_for(lambda now: b"never" in now, 0.1)
            waiting = asyncio.create_task(view.wait_for(lambda now: b"never" in now))
            await asyncio.sleep(0)
        assert not await waiting
        await clients[0].put("config/color", "green")
        assert view["color"] == b"red", "as it was when it was closed"

    play(trio, scene)


def test_what_a_views_callback_raises_ends_it_and_is_told(trio: Cluster) -> None:
    async def scene(clients: Clients) -> None:
        def refuse(_: object) -> None:
            raise ZeroDivisionError

        view = View(clients[0], "broken/", on_change=refuse)
        await view.start()
        await clients[0].put("broken/a", "1")
        assert not await view.wait_for(lambda now: b"never" in now, WAIT)
        with pytest.raises(ZeroDivisionError):
            await view.close()

    play(trio, scene)


def test_a_view_that_a_compaction_overtook_reads_anew(trio: Cluster) -> None:
    async def scene(clients: Clients) -> None:
        await clients[0].put("view/a", "1")
        async with View(clients[1], "view/") as view:
            trio.kill(1, "watch")
            for number in range(20):
                last = await clients[0].put("view/a", str(number))
            await clients[0].compact(last.header.revision)
            await clients[0].put("view/b", "after")
            assert await view.wait_for(lambda now: dict(now) == {b"a": b"19", b"b": b"after"}, WAIT)

    play(trio, scene)


def test_an_instance_is_listed_while_it_lives(trio: Cluster, sync: kvorum.Client) -> None:
    async def scene(clients: Clients) -> None:
        mail = Service(clients[0], "mail")

        async def listed() -> bool:
            return bool(await mail.instances())

        async with (
            mail.view() as view,
            await Service(clients[1], "mail").register("10.0.0.7:25", metadata="eu", ttl=2) as instance,
        ):
            assert await mail.instances() == {b"10.0.0.7:25": b"eu"}
            assert recipes.Service(sync, "mail").instances() == {b"10.0.0.7:25": b"eu"}
            assert await view.wait_for(lambda now: len(now) == 1, WAIT)
            _, meta = await clients[0].get(instance.key)
            assert meta is not None
            gone = await clients[0].revoke_lease(meta.lease_id)  # as after a long break of the network
            assert await view.wait(gone.header.revision, WAIT)
            await eventually(listed)
        assert not await mail.instances()
        assert not await clients[0].leases()

    play(trio, scene)


def test_registering_cancelled_at_any_moment_leaves_nothing(trio: Cluster) -> None:
    async def scene(clients: Clients) -> None:
        for number in range(20):
            task = asyncio.create_task(Service(clients[0], "post").register("here", ttl=60))
            await asyncio.sleep(number * 0.0005)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await task.result().close()
            assert not await Service(clients[0], "post").instances()
            assert not await clients[0].leases()

    play(trio, scene)
