"""A counter by compare-and-swap: many add, and nobody's addition is lost."""

from __future__ import annotations

import sys
import threading

import kvorum
from kvorum.recipes import Counter


def add(endpoints: str) -> None:
    with kvorum.client(endpoints) as client:
        for _ in range(20):
            Counter(client, "example/counter").add()


def main(endpoints: str) -> None:
    threads = [threading.Thread(target=add, args=(endpoints,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with kvorum.client(endpoints) as client:
        print("counted", Counter(client, "example/counter").value)
        client.delete("example/counter")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2381")
