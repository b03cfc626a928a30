"""`kvorum local`: a whole cluster on one machine, in the foreground.

    without --base-port        gateway 2379, 22379, 32379 ... (as in etcd's own local cluster), and from there
                               + 1 peer, + 2 native, + 3 watch, + 4 broadcast, + 5 metrics
    with --base-port P         node i (from 0): P + 20 i + the same steps

Each node is a process of its own, exactly what `kvorum node` is elsewhere, with a data directory below DIR. This
process does for them what systemd does on a server: a node that was killed is started again; one that was asked to
stop, or ended with a code after which starting again cannot help, stays down while the others go on.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from cluster import log
from cluster.exits import FINAL, describe
from cluster.keeper import LEAVE, RESTART, Keeper, NotYet, spawn
from cluster.settings import GATEWAY_PORT, ConfigError

NODES_MAX = 6
"""Without --base-port the gateway of node 7 would be at 72379, which is no port."""

GRACE_SECONDS = 20.0
"""More than a node takes that has to kill all of its processes."""

STEP_GATEWAY, STEP_PEER, STEP_NATIVE, STEP_WATCH, STEP_BROADCAST, STEP_METRICS = range(6)


class Place(NamedTuple):
    """Where one node of a local cluster is: its name, its data, and the first of its six ports."""

    name: str
    data_dir: str
    port: int

    def url(self, step: int, scheme: str = "tcp") -> str:
        return f"{scheme}://127.0.0.1:{self.port + step}"


def layout(nodes: int, data_dir: str, base_port: int | None = None) -> list[Place]:
    """The places of `nodes` nodes. Raises ConfigError if there can't be so many."""
    if base_port is None:
        first = [GATEWAY_PORT + (i + 1) * 10_000 if i else GATEWAY_PORT for i in range(nodes)]
    else:
        first = [base_port + 20 * i for i in range(nodes)]
    if nodes < 1 or (base_port is None and nodes > NODES_MAX):
        raise ConfigError(f"--nodes {nodes}: expected 1 to {NODES_MAX}, or more with --base-port")
    if min(first) < 1 or max(first) + STEP_METRICS > 65535:
        raise ConfigError(f"--base-port {base_port}: the ports of {nodes} nodes don't fit between 1 and 65535")
    root = os.path.abspath(data_dir)
    return [Place(f"node{i + 1}", os.path.join(root, f"node{i + 1}"), port) for i, port in enumerate(first)]


def arguments(places: list[Place], place: Place, settings: Mapping[str, str]) -> list[str]:
    """The command line of the node at `place`, after `kvorum`."""
    own = {
        "name": place.name,
        "data-dir": place.data_dir,
        "listen-client-urls": place.url(STEP_GATEWAY, "http"),
        "listen-peer-urls": place.url(STEP_PEER, "http"),
        "listen-native-url": place.url(STEP_NATIVE),
        "listen-watch-url": place.url(STEP_WATCH),
        "listen-broadcast-url": place.url(STEP_BROADCAST),
        "listen-metrics-urls": place.url(STEP_METRICS, "http"),
        "initial-advertise-peer-urls": place.url(STEP_PEER, "http"),
        "initial-cluster": ",".join(f"{each.name}={each.url(STEP_PEER, 'http')}" for each in places),
    }
    return ["node", *(f"--{name}={text}" for name, text in {**own, **settings}.items())]


def run(places: list[Place], settings: Mapping[str, str]) -> int:
    """Run the nodes until SIGTERM or SIGINT (0), or until none is left (the code of the last one)."""
    by_name = {place.name: place for place in places}
    last = 0

    def start(name: str) -> subprocess.Popen[bytes]:
        try:
            return spawn(["cluster.cli", *arguments(places, by_name[name], settings)], environment=dict(os.environ))
        except OSError as error:
            raise NotYet(str(error)) from error

    def verdict(name: str, code: int) -> int:
        nonlocal last
        if code != 0 and code not in FINAL:
            return RESTART
        last = code
        log.warn(f"{name} {describe(code)} and stays down")
        return LEAVE

    keeper = Keeper(by_name, start, verdict, lambda: None)
    log.setup("local", settings.get("log-level", "info"))
    print(table(places), flush=True)
    keeper.run()
    if keeper.stopping:
        log.info("stopping")
        last = 0
    keeper.stop(by_name, grace_seconds=GRACE_SECONDS)
    return last


def table(places: list[Place]) -> str:
    """Who listens where, for people."""
    rows = [
        ("node", "etcd's API", "calls", "watches", "broadcasts", "metrics, health", "peers", "data"),
        *(
            (
                place.name,
                f"127.0.0.1:{place.port + STEP_GATEWAY}",
                place.url(STEP_NATIVE),
                place.url(STEP_WATCH),
                f"127.0.0.1:{place.port + STEP_BROADCAST}",
                place.url(STEP_METRICS, "http"),
                f"127.0.0.1:{place.port + STEP_PEER}",
                place.data_dir,
            )
            for place in places
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
