"""A child of a supervisor that does nothing but what its test wrote into <data dir>/../behave.NAME.

One line a life, the first line removed as it is read: `exit N`, `stubborn` (ignores SIGTERM), empty or no file: run
until SIGTERM. It appends "NAME EPOCH PID" to <data dir>/../lives, and listens where a real one would.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.child import die_with_parent
from cluster.config import NodeConfig


def main(name: str, argv: Sequence[str]) -> int:
    die_with_parent()
    config, epoch = NodeConfig.load(argv[0]), int(argv[1])
    outside = Path(config.data_dir).parent
    with open(outside / "lives", "a", encoding="ascii") as file:
        file.write(f"{name} {epoch} {os.getpid()}\n")
    script = outside / f"behave.{name}"
    lines = script.read_text().splitlines() if script.exists() else []
    if lines:
        script.write_text("\n".join(lines[1:]))
    verb, _, argument = (lines[0] if lines else "").partition(" ")
    if verb == "exit":
        print(f"{name}: exiting with {argument}, as told", file=sys.stderr)
        return int(argument)
    stopped = []
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN if verb == "stubborn" else lambda number, frame: stopped.append(number)
    )
    urls = {"raft": config.listen_peer, "apply": config.listen_native, "watch": config.listen_watch}
    urls["gateway"] = config.listen_client[0]
    host, _, port = urls[name].removeprefix("tcp://").partition(":")
    with socket.create_server((host, int(port))):
        while not stopped:
            time.sleep(0.02)
    with open(outside / "lives", "a", encoding="ascii") as file:
        file.write(f"{name} stopped {os.getpid()}\n")
    return 0
