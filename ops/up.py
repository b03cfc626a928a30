"""`make up` and `make down`: a local three-node cluster in the background, and a look at it.

    .kvorum/data/     the nodes' data directories; kept when the cluster stops
    .kvorum/log       what the processes say
    .kvorum/pid       the process of `kvorum local`

`up` starts the cluster unless it runs, waits until every node says it is healthy, and shows a put on one node, a get on
another and a watch event on the third. `down` stops it and sees that no process is left.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from cluster import local

NODES = 3
HEALTHY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 60.0

STATE = Path(".kvorum")


def main() -> int:
    parser = argparse.ArgumentParser(prog="up.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("act", choices=["up", "down"])
    parser.add_argument("--base-port", type=int)
    arguments = parser.parse_args()
    os.chdir(Path(__file__).resolve().parents[1])
    if arguments.act == "down":
        return down()
    return up(arguments.base_port)


def up(base_port: int | None) -> int:
    STATE.mkdir(mode=0o700, exist_ok=True)
    running, said_before = cluster(), log_bytes()
    if running:
        base_port = running["base_port"]
        print(f"the cluster runs already (process {running['pid']})")
    else:
        start(base_port)
    places = local.layout(NODES, str(STATE / "data"), base_port)
    for place in places:
        if not await_health(place, said_before):
            print(f"{place.name} isn't healthy; the last lines of {STATE / 'log'}:\n")
            print("\n".join((STATE / "log").read_text(errors="replace").splitlines()[-20:]), "\n")
            if not running:
                down()
            return 1
    print(f"three nodes are healthy; their data is in {STATE / 'data'}/\n")
    show(places)
    print(f"\n{local.table(places)}\n")
    print(
        NEXT.format(
            gateway=f"127.0.0.1:{places[0].port + local.STEP_GATEWAY}",
            native=places[0].url(local.STEP_NATIVE),
            metrics=places[0].url(local.STEP_METRICS, "http"),
        )
    )
    return 0


NEXT = """Try next:
  .venv/bin/kvorumctl put greeting hello
  .venv/bin/kvorumctl get greeting
  .venv/bin/kvorumctl watch --prefix ''            (in a second terminal)
  .venv/bin/kvorumctl endpoint status -w table --cluster
  etcdctl --endpoints={gateway} get greeting       (or whatever else speaks etcd's API)
  .venv/bin/python -c 'import kvorum; print(kvorum.client("{native}").get("greeting"))'
  curl {metrics}/health
  make down                                        (stops it; the data stays)"""


def start(base_port: int | None) -> None:
    """Start `kvorum local` in a session of its own, which outlives this terminal."""
    command = [sys.executable, "-m", "cluster.cli", "local", f"--nodes={NODES}", f"--data-dir={STATE / 'data'}"]
    if base_port is not None:
        command.append(f"--base-port={base_port}")
    with open(STATE / "log", "ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    (STATE / "pid").write_text(json.dumps({"pid": process.pid, "base_port": base_port}))
    while process.poll() is None and not cluster():  # the new program's command line shows a moment after it began
        time.sleep(0.01)
    print(f"started a three-node cluster (process {process.pid}, log in {STATE / 'log'})")


def cluster() -> dict[str, int | None] | None:
    """The running cluster of this clone, if any. A number in a file proves nothing: the process itself is looked at."""
    try:
        found: dict[str, int | None] = json.loads((STATE / "pid").read_text())
        words = Path(f"/proc/{found['pid']}/cmdline").read_bytes().split(b"\0")
        here = Path(f"/proc/{found['pid']}/cwd").resolve()
    except (OSError, ValueError, KeyError):
        return None
    return found if b"local" in words and here == Path.cwd() else None


def log_bytes() -> int:
    return (STATE / "log").stat().st_size if (STATE / "log").exists() else 0


def await_health(place: local.Place, said_before: int) -> bool:
    """Whether the node becomes healthy before its time is over, or the cluster's process has given it up."""
    deadline = time.monotonic() + HEALTHY_SECONDS_MAX
    while time.monotonic() < deadline and cluster():
        try:
            with urllib.request.urlopen(f"{place.url(local.STEP_METRICS, 'http')}/health", timeout=6) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        said = (STATE / "log").read_bytes()[said_before:].decode(errors="replace")
        if any(f" {place.name} " in line and line.endswith("stays down") for line in said.splitlines()):
            return False
    return False


def show(places: list[local.Place]) -> None:
    """A put, a get and an event, each on another node."""
    import kvorum

    clients = [kvorum.client(place.url(local.STEP_NATIVE), discover=False) for place in places]
    one, two, three = clients
    key, value = "greeting", time.strftime("hello at %H:%M:%S")
    seen: queue.SimpleQueue[object] = queue.SimpleQueue()
    three.add_watch_callback(key, seen.put)
    revision = one.put(key, value).header.revision
    print(f"  put on {places[0].name}      {key} = {value!r}, revision {revision}")
    got, meta = two.get(key)
    assert got is not None
    assert meta is not None
    print(f"  get on {places[1].name}      {key} = {got.decode()!r}, revision {meta.mod_revision}")
    answer = seen.get(timeout=10)
    assert isinstance(answer, kvorum.results.WatchResponse), answer
    for event in answer.events:
        print(f"  event on {places[2].name}    {type(event).__name__} {event.key.decode()} = {event.value.decode()!r}")
    for client in clients:
        client.close()


def down() -> int:
    running = cluster()
    if not running:
        print("no cluster of this clone runs")
        return 0
    pids = [running["pid"], *(pid for node in STATE.glob("data/*/pids.json") for pid in processes(node))]
    os.kill(running["pid"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS_MAX
    while left := [pid for pid in pids if pid and alive(pid)]:
        if time.monotonic() > deadline:
            print(f"processes that didn't end in {STOP_SECONDS_MAX:.0f} s: {left}")
            return 1
        time.sleep(0.05)
    (STATE / "pid").unlink()
    print(f"stopped; no process is left. The data stays in {STATE / 'data'}/ (make clean removes it)")
    return 0


def processes(pids_json: Path) -> list[int]:
    return [pid for pid in json.loads(pids_json.read_text()).values() if isinstance(pid, int)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
