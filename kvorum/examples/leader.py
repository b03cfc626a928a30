"""A leader election: one leads, everybody knows who, and the next takes over."""

from __future__ import annotations

import sys
import threading

import kvorum
from kvorum.recipes import Election


def main(endpoints: str) -> None:
    with kvorum.client(endpoints) as client:
        first, second = Election(client, "example/leader", ttl=10), Election(client, "example/leader", ttl=10)
        first.campaign("ada")
        print("leader", (who := first.leader()) and who.value.decode())
        successor = threading.Thread(target=second.campaign, args=("bob",))
        successor.start()  # waits until ada resigns, or dies
        first.close()
        successor.join()
        print("leader", (who := second.leader()) and who.value.decode())
        second.close()
        print("leader", second.leader())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2381")
