"""A distributed lock: workers take turns, and what a late one writes is refused."""

from __future__ import annotations

import sys
import threading

import kvorum
from kvorum.recipes import Lock
from kvorum.txn import put


def work(name: str, endpoints: str, turns: list[str]) -> None:
    with kvorum.client(endpoints) as client, Lock(client, "example/lock", ttl=10) as lock:
        # Whoever holds the lock may be paused here for longer than its lease. Then somebody else has it, and this
        # transaction, which asks for the lock in the same breath as it writes, does nothing.
        done, _ = client.transaction([lock.held], [put("example/report", f"by {name}")])
        turns.append(f"{name} {'wrote' if done else 'came too late'}")


def main(endpoints: str) -> None:
    turns: list[str] = []
    workers = [threading.Thread(target=work, args=(name, endpoints, turns)) for name in ("ada", "bob", "cyd")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print("\n".join(sorted(turns)))
    with kvorum.client(endpoints) as client:
        _, meta = client.get("example/report")
        print("written", meta.version if meta else 0, "times")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2381")
