"""What python-etcd3's documentation shows, and the rest of what it can: prints what it was told, one line a fact.

    python python_etcd3.py HOST PORT

Runs in an environment of its own, with nothing of kvorum. Ids of members and leases and terms are left out.
"""

import queue
import sys
import threading
from typing import Any

import etcd3
import etcd3.exceptions

SECONDS = 60


def say(*what: Any) -> None:
    print(*what, flush=True)


def metadata(of: Any) -> Any:
    if of is None:
        return None
    return of.key, of.create_revision, of.mod_revision, of.version, of.lease_id != 0, of.response_header.revision


def all_of(found: Any) -> list[Any]:
    return [(value, metadata(about)) for value, about in found]


def event(one: Any) -> Any:
    return type(one).__name__, one.key, one.value, one.mod_revision, one.version, one.prev_value


def keys(client: Any) -> None:
    say(client.put("/doot/watch", "huh").header.revision)
    say(client.get("/doot/watch")[0], metadata(client.get("/doot/watch")[1]))
    say(client.put("/doot/watch", "again", prev_kv=True).prev_kv.value)
    say(client.get("nothing"))
    for i in range(5):
        client.put(f"/key{i}", str(9 - i))
    say(all_of(client.get_prefix("/key")))
    say(all_of(client.get_prefix("/key", sort_order="descend", sort_target="key")))
    say(all_of(client.get_prefix("/key", sort_order="ascend", sort_target="value")))
    say(all_of(client.get_prefix("/key", keys_only=True)))
    say(all_of(client.get_range("/key1", "/key3")))
    say(all_of(client.get_all(sort_order="descend", sort_target="mod")))
    response = client.get_response("/key1", serializable=True)
    say(response.count, response.more, response.header.revision)
    say(client.put_if_not_exists("/once", "1"), client.put_if_not_exists("/once", "2"), client.get("/once")[0])
    say(client.replace("/once", "1", "2"), client.replace("/once", "1", "3"), client.get("/once")[0])
    say(
        client.delete("/once"),
        client.delete("/once"),
        client.delete("/key0", prev_kv=True, return_response=True).deleted,
    )
    say(client.delete_prefix("/key").deleted)


def transactions(client: Any) -> None:
    t = client.transactions
    client.put("/doot/testing", "doot")
    for _ in range(2):
        succeeded, responses = client.transaction(
            compare=[t.value("/doot/testing") == "doot", t.version("/doot/testing") > 0, t.create("/none") == 0],
            success=[t.put("/doot/testing", "success"), t.get("/doot/testing")],
            failure=[
                t.get("/doot/testing"),
                t.delete("/doot/testing"),
                t.txn(compare=[t.mod("/doot/testing") > 1], success=[t.put("/nested", "yes")], failure=[]),
            ],
        )
        say(succeeded, len(responses))
        for one in responses:
            if isinstance(one, list):
                say(" ", all_of(one))
            else:
                kind = one.WhichOneof("response")
                say(" ", kind, kind == "response_txn" or getattr(one, kind).header.revision)
    say(client.get("/nested")[0])


def watches(client: Any) -> None:
    start = client.put("/w/a", "1").header.revision
    client.put("/w/a", "2")
    client.delete("/w/a")
    client.put("/w/b", "3")
    events, cancel = client.watch_prefix("/w/", start_revision=start)
    for _, one in zip(range(4), events, strict=False):
        say(event(one))
    cancel()
    events, cancel = client.watch("/w/a", start_revision=start + 1, prev_kv=True)
    for _, one in zip(range(2), events, strict=False):
        say(event(one))
    cancel()
    seen: queue.Queue[Any] = queue.Queue()
    watch = client.add_watch_callback("/w/live", seen.put)
    revision = client.put("/w/live", "now").header.revision
    response = seen.get(timeout=SECONDS)
    say([event(one) for one in response.events], response.header.revision == revision)
    client.cancel_watch(watch)
    later = threading.Timer(0.1, client.put, ("/w/once", "1"))
    later.start()
    say(event(client.watch_once("/w/once", timeout=SECONDS)))
    later.join()
    try:
        client.watch_once("/w/never", timeout=0.1)
    except etcd3.exceptions.WatchTimedOut:
        say("timed out")
    client.compact(revision)
    try:
        events, cancel = client.watch("/w/a", start_revision=start)
        say(event(next(events)))
    except etcd3.exceptions.RevisionCompactedError as error:
        say("compacted", error.compacted_revision == revision)
    try:
        client.compact(revision)
    except Exception as error:
        say(type(error).__name__)


def leases(client: Any) -> None:
    lease = client.lease(60)
    client.put("/leased", "x", lease=lease)
    (refreshed,) = lease.refresh()
    say(lease.ttl, lease.granted_ttl, 0 < lease.remaining_ttl <= 60, list(lease.keys), refreshed.TTL)
    say(metadata(client.get("/leased")[1]))
    lease.revoke()
    say(client.get("/leased"), lease.remaining_ttl, [one.TTL for one in lease.refresh()])
    chosen = client.lease(60, lease_id=4711)
    say(chosen.id)
    for attempt in (lambda: client.lease(60, lease_id=4711), lambda: client.revoke_lease(4712)):
        try:
            attempt()
        except Exception as error:
            told = error if hasattr(error, "code") else error.__context__  # some are translated
            say(type(error).__name__, told.code(), told.details())
    chosen.revoke()


def locks(client: Any, other: Any) -> None:
    with client.lock("doot", ttl=60) as lock:
        say(lock.is_acquired(), [one.TTL for one in lock.refresh()])
        say(other.lock("doot", ttl=60).acquire(timeout=0))
    waiting = client.lock("next", ttl=60)
    say(waiting.acquire(), waiting.release(), waiting.is_acquired())
    # One after the other: two that wait for each other miss a release between the attempt and the watch (0.12.0).
    for one in (client, other, client):
        with one.lock("count", ttl=60) as lock:
            say(lock.is_acquired())


def cluster(client: Any) -> None:
    say(sorted((one.name, len(one.peer_urls), len(one.client_urls)) for one in client.members))
    status = client.status()
    say(status.leader is not None, status.db_size > 0, status.raft_index > 0, status.raft_term > 0)
    client.defragment()
    say(list(client.list_alarms()), client.disarm_alarm())


def main() -> None:
    clients = [etcd3.client(host=sys.argv[1], port=int(sys.argv[2]), timeout=SECONDS) for _ in range(2)]
    for part in (keys, transactions, watches, leases):
        say("----", part.__name__)
        part(clients[0])
    locks(*clients)
    cluster(clients[0])
    for client in clients:
        client.close()


main()
