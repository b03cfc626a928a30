"""Service discovery: instances register and are listed as long as they live."""

from __future__ import annotations

import sys

import kvorum
from kvorum.recipes import Service


def main(endpoints: str) -> None:
    with kvorum.client(endpoints) as client:
        mail = Service(client, "example-mail")
        with mail.view() as view:  # kept up to date by a watch: asking it costs nothing
            with mail.register("10.0.0.7:25", metadata="eu"), mail.register("10.0.0.8:25", metadata="us"):
                view.wait_for(lambda now: len(now) == 2, timeout=10)
                for address, where in sorted(view.items()):
                    print(address.decode(), where.decode())
            view.wait_for(lambda now: not now, timeout=10)
            print("left", dict(view))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2381")
