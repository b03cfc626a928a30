"""A session: keys that live as long as their owner, and die with it."""

from __future__ import annotations

import sys

import kvorum


def main(endpoints: str) -> None:
    with kvorum.client(endpoints) as client, kvorum.client(endpoints) as other:
        # The lease is kept alive in the background until the `with` ends, or the process dies.
        with client.lease(10) as session:
            client.put("online/ada", "since just now", lease=session)
            client.put("online/ada/mood", "curious", lease=session)
            print("others see", sorted(key.key.decode() for _, key in other.get_prefix("online/")))
            print("it dies with", sorted(key.decode() for key in session.keys))
        print("afterwards", other.get_prefix("online/"))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2381")
