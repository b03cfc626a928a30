"""What aetcd's documentation shows, and the rest of what it can: prints what it was told, one line a fact.

    python python_aetcd.py HOST PORT

Runs in an environment of its own, with nothing of kvorum. Ids of members and leases and terms are left out.
"""

import asyncio
import sys
from typing import Any

import aetcd
import aetcd.exceptions

SECONDS = 60


def say(*what: Any) -> None:
    print(*what, flush=True)


def header(told: Any) -> str:
    return f"@{told.revision}[{told.cluster_id != 0} {told.member_id != 0} {told.raft_term != 0}]"


def kv(one: Any) -> Any:
    if one is None:
        return None
    return one.key, one.value, one.create_revision, one.mod_revision, one.version, one.lease != 0


def event(one: Any) -> Any:
    return one.kind, kv(one.kv), kv(one.prev_kv)


def page(found: Any) -> Any:
    return header(found.header), [kv(one) for one in found], found.count, found.more


async def refused(what: str, call: Any) -> None:
    try:
        await call
    except aetcd.ClientError as error:
        say(what, type(error).__name__, error)
    else:
        raise AssertionError(f"{what}: not refused")


async def keys(client: Any) -> None:
    put = await client.put(b"foo", b"bar")
    say(header(put.header), kv(put.prev_kv))
    found = await client.get(b"foo")
    say(header(found.header), kv(found), await client.get(b"nothing"))
    say(kv((await client.put(b"foo", b"again", prev_kv=True)).prev_kv))
    for i in range(5):
        await client.put(b"key%d" % i, b"%d" % (9 - i))
    say(page(await client.get_prefix(b"key")))
    say(page(await client.get_prefix(b"key", sort_order="descend", sort_target="value")))
    say(page(await client.get_prefix(b"key", keys_only=True)))
    say(page(await client.get_range(b"key1", b"key3")))
    say(page(await client.get_range(b"key3", b"\0")))
    say(page(await client.get_all(sort_order="descend", sort_target="mod")))
    say(await client.replace(b"foo", b"again", b"new"), await client.replace(b"foo", b"again", b"newer"))
    deleted = await client.delete(b"foo", prev_kv=True)
    say(header(deleted.header), deleted.deleted, kv(deleted.prev_kv), await client.delete(b"foo"))
    deleted = await client.delete_range(b"key0", b"key2", prev_kv=True)
    say(header(deleted.header), deleted.deleted, [kv(one) for one in deleted])
    say((await client.delete_prefix(b"key")).deleted, (await client.delete_prefix(b"key")).deleted)
    await refused("an empty key", client.put(b"", b"x"))


async def transactions(client: Any) -> None:
    t = client.transactions
    await client.put(b"doot", b"first")
    for _ in range(2):
        succeeded, responses = await client.transaction(
            compare=[t.value(b"doot") == b"first", t.version(b"doot") > 0, t.create(b"no") == 0, t.mod(b"doot") < 99],
            success=[t.put(b"doot", b"second", prev_kv=True), t.get(b"doot"), t.put(b"other", b"x")],
            failure=[
                t.get(b"d"),
                t.txn(compare=[t.mod(b"doot") > 1], success=[t.put(b"nested", b"yes"), t.get(b"nested")], failure=[]),
                t.delete(b"other", b"p", prev_kv=True),
            ],
        )
        say(succeeded, len(responses))
        for one in responses:
            if isinstance(one, list):
                say(" ", [(value, header(got.header), kv(got)) for value, got in one])
            else:
                kind = one.WhichOneof("response")
                told = getattr(one, kind)
                say(" ", kind, kind == "response_txn" or told.header.revision, kv(getattr(told, "prev_kv", None)))
                say("   ", [kv(old) for old in getattr(told, "prev_kvs", [])], getattr(told, "deleted", None))
    say(page(await client.get_all()))
    batch = [t.put(b"batch/%03d" % i, b"x") for i in range(128)]
    say((await client.transaction([], batch, []))[0], (await client.get_prefix(b"batch/")).count)
    await refused("too many", client.transaction([], [*batch, t.put(b"one/more", b"")], []))
    await refused("twice", client.transaction([], [t.put(b"x", b"1"), t.put(b"x", b"2")], []))


async def watches(client: Any) -> None:
    start = (await client.put(b"w/a", b"1")).header.revision
    await client.put(b"w/a", b"2")
    await client.delete(b"w/a")
    await client.put(b"w/b", b"3")
    puts, deletions = aetcd.EventKind.PUT, aetcd.EventKind.DELETE
    for options, count in [
        ({"start_revision": start}, 4),
        ({"start_revision": start + 1, "prev_kv": True}, 3),
        ({"start_revision": start, "kind": puts}, 3),
        ({"start_revision": start, "kind": deletions, "prev_kv": True}, 1),
        ({"start_revision": start + 3, "fragment": True, "progress_notify": True}, 1),
    ]:
        watch = await client.watch_prefix(b"w/", **options)
        told = []
        async for one in watch:
            told.append(event(one))
            if len(told) == count:
                break
        say(told)
        await watch.cancel()
    live = await client.watch(b"w/live", b"w/m")
    revision = (await client.put(b"w/live", b"now")).header.revision
    async for one in live:
        say(event(one))
        break
    await live.cancel()
    once = asyncio.create_task(client.watch_once(b"w/once", timeout=SECONDS, start_revision=revision))
    await client.put(b"w/once", b"1")
    say(event(await once))
    try:
        await client.watch_once(b"w/never", timeout=1)
    except aetcd.exceptions.WatchTimeoutError:
        say("timed out")
    await client.compact(revision, physical=True)
    try:
        async for one in await client.watch(b"w/a", start_revision=start):
            say(event(one))
    except aetcd.exceptions.RevisionCompactedError as error:
        say("compacted", error.compacted_revision == revision)
    await refused("compact again", client.compact(revision))
    await refused("compact the future", client.compact(revision + 1000))


async def leases(client: Any) -> None:
    lease = await client.lease(60)
    await client.put(b"leased/1", b"x", lease=lease)
    await client.put(b"leased/2", b"y", lease=lease)
    refreshed = await lease.refresh()
    say(header(refreshed.header), refreshed.TTL, lease.id == refreshed.ID)
    say(lease.ttl, await lease.granted_ttl(), 0 < await lease.remaining_ttl() <= 60, sorted(await lease.keys()))
    say(page(await client.get_prefix(b"leased/")))
    await lease.revoke()
    say(await client.get(b"leased/1"), await lease.remaining_ttl(), (await lease.refresh()).TTL)
    chosen = await client.lease(60, lease_id=4711)
    say(chosen.id)
    await refused("granted twice", client.lease(60, lease_id=4711))
    await refused("no such lease", client.revoke_lease(4712))
    await refused("attached to nothing", client.put(b"leased/3", b"z", lease=4712))
    await chosen.revoke()
    short = await client.lease(1)
    created = (await client.put(b"short", b"", lease=short)).header.revision
    say("expired", event(await client.watch_once(b"short", timeout=SECONDS, start_revision=created + 1)))


async def locks(client: Any, other: Any) -> None:
    async with client.lock(b"mutex", ttl=60) as lock:
        say(await lock.is_acquired(), (await lock.refresh()).TTL)
        say(await other.lock(b"mutex", ttl=60).acquire(timeout=0))
    counter, inside = 0, 0

    async def count(who: Any) -> None:
        nonlocal counter, inside
        for _ in range(3):
            async with who.lock(b"count", ttl=60) as held:
                assert await held.is_acquired()
                inside += 1
                assert inside == 1, "two hold it"
                counter += 1
                inside -= 1

    await asyncio.gather(count(client), count(other))
    say("counted", counter, await client.get(b"count"))


async def cluster(client: Any) -> None:
    say(sorted([(one.name, len(one.peer_urls), len(one.client_urls)) async for one in client.members()]))
    status = await client.status()
    say(status.leader is not None, status.db_size > 0, status.raft_index > 0, status.raft_term > 0)
    say(await client.hash() != 0)
    await client.defragment()
    say([one async for one in client.list_alarms()], await client.disarm_alarm())
    await refused("authenticate", aetcd.Client(client._host, client._port, "root", "pwd", SECONDS).connect())


async def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    async with aetcd.Client(host, port, timeout=SECONDS) as client, aetcd.Client(host, port, timeout=SECONDS) as other:
        for part in (keys, transactions, watches, leases):
            say("----", part.__name__)
            await part(client)
        await locks(client, other)
        await cluster(client)


asyncio.run(main())
