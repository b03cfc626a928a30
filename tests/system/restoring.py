"""A real etcd that goes on from a snapshot, and etcdctl to ask it, or a kvorum, what it has."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvorum import etcd_pb2 as pb
from tests.conftest import environment
from tests.etcds import binary, etcd


@contextmanager
def restored(snapshot: Path, directory: Path, tool: str = "etcdutl") -> Iterator[str]:
    """An etcd that has been restored from it; gives its endpoint."""
    data = directory / "restored"
    words = [binary(tool), "snapshot", "restore", snapshot, "--data-dir", data]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    try:
        with etcd(directory, settings={"data-dir": str(data)}) as running:
            yield running.endpoints[0]
    finally:
        shutil.rmtree(data)


def etcdctl(endpoint: str, *words: str) -> Any:
    command = [binary("etcdctl"), f"--endpoints={endpoint}", *words, "-w", "json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment()).stdout)


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
