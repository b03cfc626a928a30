"""A real etcd of three members beside a kvorum of three nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.etcds import Etcd
from tests.etcds import etcd as etcd_of
from tests.system.cluster import ELECTION_MS, HEARTBEAT_MS, Cluster

NODES = 3


class Pair(NamedTuple):
    """The client endpoints, host:port, of either."""

    kvorum: list[str]
    etcd: list[str]


def etcd(directory: Path, name: str = "node", nodes: int = NODES) -> contextlib.AbstractContextManager[Etcd]:
    """A running etcd as quick as our nodes in tests, its members called `name` and a number."""
    timing = {"heartbeat-interval": str(HEARTBEAT_MS), "election-timeout": str(ELECTION_MS)}
    return etcd_of(directory, [f"{name}{i}" for i in range(1, nodes + 1)], timing)  # the shortest lease depends on it


@contextlib.contextmanager
def pair(directory: Path, nodes: int = NODES) -> Iterator[Pair]:
    with (
        etcd(directory / "etcd", nodes=nodes) as theirs,
        Cluster(directory / "kvorum", nodes, shared=True) as ours,
    ):
        yield Pair([ours.gateway(node) for node in range(nodes)], theirs.endpoints)
