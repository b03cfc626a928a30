"""A cluster whose nodes are really apart: each in a network namespace of its own, joined by a bridge.

    the tests ── bridge 198.18.x.254 ──┬── 198.18.x.1  node 0
                                       ├── 198.18.x.2  node 1      cut(0, 1): what 0 sends to 1 is lost, and
                                       └── 198.18.x.3  node 2      nobody is told

A cut is a wrong hardware address: packets leave and nobody takes them in, as on a cable that was pulled somewhere on
the way. Connections stay open on both sides, and what was under way comes late when the cut heals. Clients are on the
bridge, so they go on talking to both sides of a partition, unless a node is muted.

It takes root and iproute2. The addresses are those set aside for tests of networks (RFC 2544), so nothing real is ever
in their way; the bridge's name claims a subnet for this process.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from cluster import local
from tests.system.cluster import Cluster

_NOBODY = "02:00:00:00:00:01"
_SUBNETS = 256
_CLIENTS = 253
"""The number of the bridge, beside those of the nodes."""


class Impossible(Exception):
    """Namespaces can't be had here, for the reason that it gives."""


class Network:
    """As many namespaces as there are nodes. Raises Impossible."""

    def __init__(self, nodes: int) -> None:
        if os.geteuid() != 0:
            raise Impossible("network namespaces take root")
        if shutil.which("ip") is None:
            raise Impossible("network namespaces take iproute2")
        self._nodes = nodes
        self._cut: set[tuple[int, int]] = set()
        self._claim()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        """A bridge whose name nobody else has: two copies of the tests may run at once."""
        said = ""
        for offset in range(_SUBNETS):
            self._subnet = (os.getpid() + offset) % _SUBNETS
            said = _try("link", "add", self._bridge, "type", "bridge")
            if not said:
                return
            if "File exists" not in said:
                break
        raise Impossible(f"no bridge: {said}")

    def _build(self) -> None:
        _ip("addr", "add", f"{self.host(_CLIENTS)}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for node in range(self._nodes):
            inside, outside = self._namespace(node), f"{self._bridge}-{node}"
            _ip("netns", "add", inside)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", inside)
            _ip("link", "set", outside, "master", self._bridge, "up")
            _ip("-n", inside, "addr", "add", f"{self.host(node)}/24", "dev", "eth0")
            _ip("-n", inside, "link", "set", "lo", "up")
            _ip("-n", inside, "link", "set", "eth0", "up")

    @property
    def _bridge(self) -> str:
        return f"kv{self._subnet}"

    def _namespace(self, node: int) -> str:
        return f"{self._bridge}-{node}"

    def host(self, node: int) -> str:
        return f"198.18.{self._subnet}.{node + 1}"

    def inside(self, node: int) -> list[str]:
        """What makes a command one of this node; the process stays the same."""
        return ["ip", "netns", "exec", self._namespace(node)]

    def cut(self, sender: int, receiver: int) -> None:
        """In this direction; the other goes on until it is cut as well."""
        self._cut.add((sender, receiver))
        _ip(
            *("-n", self._namespace(sender), "neigh", "replace", self.host(receiver)),
            *("lladdr", _NOBODY, "dev", "eth0", "nud", "permanent"),
        )

    def part(self, one: int, other: int) -> None:
        self.cut(one, other)
        self.cut(other, one)

    def isolate(self, node: int) -> None:
        """From all others, in both directions; clients still reach it."""
        for other in range(self._nodes):
            if other != node:
                self.part(node, other)

    def mute(self, node: int) -> None:
        """Clients hear nothing of it; the other nodes do."""
        self.cut(node, _CLIENTS)

    def heal(self) -> None:
        for sender, receiver in self._cut:
            _ip("-n", self._namespace(sender), "neigh", "del", self.host(receiver), "dev", "eth0")
        self._cut.clear()

    def close(self) -> None:
        """Whatever there is of it. The nodes have ended before."""
        for node in range(self._nodes):
            _try("netns", "del", self._namespace(node))
            _try("link", "del", f"{self._bridge}-{node}")
        _try("link", "del", self._bridge)


class Divisible(Cluster):
    """A Cluster whose nodes are in the namespaces of `network`, which it closes."""

    def __init__(self, directory: Path, network: Network, nodes: int = 3, *, shared: bool = False) -> None:
        super().__init__(directory, nodes=nodes, shared=shared)
        self.network = network

    def host(self, node: int) -> str:
        return self.network.host(node)

    def command(self, node: int, arguments: list[str]) -> list[str]:
        return [*self.network.inside(node), *super().command(node, [self._translated(text) for text in arguments])]

    def _translated(self, argument: str) -> str:
        """An address of a node on loopback is known by its port: it becomes that of its namespace."""
        owners = {place.port + step: node for node, place in enumerate(self.places) for step in range(_STEPS)}
        return re.sub(r"127\.0\.0\.1:(\d+)", lambda found: f"{self.host(owners[int(found[1])])}:{found[1]}", argument)

    def close(self) -> None:
        super().close()
        self.network.close()


_STEPS = local.STEP_METRICS + 1


def _try(*arguments: str) -> str:
    """What `ip` has to say against it; nothing if it was done."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def _ip(*arguments: str) -> None:
    if said := _try(*arguments):
        raise Impossible(f"ip {' '.join(arguments)}: {said}")
