"""Configuration with live reload: a dict that follows the cluster, and a callback when it changes."""

from __future__ import annotations

import sys

import kvorum
from kvorum.recipes import View
from kvorum.txn import put


def main(endpoints: str) -> None:
    with kvorum.client(endpoints) as client:
        client.put("example/config/color", "blue")
        with View(client, "example/config/") as config:
            config.on_change(lambda changed: print("reload", sorted(key.decode() for key in changed)))
            print("color", config["color"].decode())
            # Several settings in one transaction appear together, never half of them.
            _, (answer, *_) = client.transaction(
                [], [put("example/config/color", "red"), put("example/config/size", "4")]
            )
            config.wait(answer.header.revision, timeout=10)  # type: ignore[attr-defined]
            print("color", config["color"].decode(), "size", config["size"].decode())
        client.delete_prefix("example/config/")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2381")
