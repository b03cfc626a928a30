"""kvorumctl as people type it: scripts with what it prints, and what a script cannot show.

A script in ctl/ is a list of commands, `$ put a 1`, each followed by what it printed: stdout as it is, stderr after
"! ", the exit code if it is not 0. Standard input is between `<<` and a line `<<`. `python -m tests.client.test_ctl`
writes the output anew; a person reads the difference.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.ctl import cluster, main
from kvorum.wire import Method
from tests.client.fake import FakeNode

Start = Callable[..., FakeNode]
SCRIPTS = sorted((Path(__file__).parent / "ctl").glob("*.txt"))
ENDPOINT = "127.0.0.1:PORT0"


class Stream(io.TextIOWrapper):
    """stdout or stderr or stdin in memory."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8", errors="surrogateescape")

    def all(self) -> bytes:
        self.flush()
        return self.buffer.getvalue()  # type: ignore[attr-defined]


def ctl(*args: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a command in this process: exit code, stdout, stderr."""
    out, err, before = Stream(), Stream(), (sys.stdin, sys.stdout, sys.stderr)
    sys.stdin, sys.stdout, sys.stderr = Stream(stdin), out, err
    try:
        code = main.main(list(args))
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    return int(code), out.all(), err.all()


def argument(word: str) -> str:
    """Escapes as the shell's $'...' has them, into what Python makes of such an argument."""
    raw = codecs.escape_decode(word.encode())[0]  # type: ignore[attr-defined]
    return raw.decode("utf-8", "surrogateescape")


def play(script: str, address: str) -> str:
    """The script with the output it gives now."""
    out: list[str] = []
    lines = iter(script.splitlines())
    for line in lines:
        if line.startswith("#"):
            out.append(line)
        if not line.startswith("$ "):
            continue
        out.append(line)
        stdin: list[str] = []
        command = line[2:]
        if command.endswith("<<"):
            command = command.removesuffix("<<")
            stdin = list(itertools.takewhile(lambda line: line != "<<", lines))
            out += [*stdin, "<<"]
        words = [argument(word) for word in shlex.split(command.replace("\\", "\\\\"))]
        endpoints = [] if "--endpoints" in command else [f"--endpoints={address}"]
        code, stdout, stderr = ctl(*endpoints, *words, stdin="".join(f"{line}\n" for line in stdin).encode())
        out += [
            shown(line, address) for line in stdout.split(b"\n")[: -1 if stdout.endswith(b"\n") else None] if stdout
        ]
        out += [f"! {shown(line, address)}" for line in stderr.splitlines()]
        out += [f"[{code}]"] if code else []
    return "\n".join(out) + "\n"


def shown(line: bytes, address: str) -> str:
    text = line.decode("utf-8", "backslashreplace").replace(address, ENDPOINT)
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


@contextlib.contextmanager
def steady_node(path: Path) -> Iterator[str]:
    """The address of a node, at which two alarms stand for the script about them; every health check takes the same
    time."""
    before = cluster.perf_counter_ns
    cluster.perf_counter_ns = itertools.count(0, 1_677_376).__next__  # type: ignore[assignment]
    try:
        with FakeNode() as node:
            if path.stem == "alarms":
                node.store.alarms = [pb.AlarmMember(memberID=0xA1, alarm=pb.NOSPACE), pb.AlarmMember(alarm=pb.CORRUPT)]
            yield node.address.removeprefix("tcp://")
    finally:
        cluster.perf_counter_ns = before


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_prints_what_was_read_and_accepted(path: Path) -> None:
    script = path.read_text()
    with steady_node(path) as address:
        assert play(script, address) == script


# ---- what a script cannot show


def test_endpoints_come_from_the_environment_and_a_flag_wins(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVORUMCTL_ENDPOINTS", node.address)
    monkeypatch.setenv("KVORUMCTL_WRITE_OUT", "json")
    assert ctl("put", "k", "v")[1].startswith(b'{"header"')
    assert ctl("get", "k", "-w", "simple")[1] == b"k\nv\n"
    assert ctl("--endpoints=127.0.0.1:1", "--dial-timeout=50ms", "get", "k")[0] == 2


def test_an_error_of_the_cluster_is_said_in_its_words(start: Start) -> None:
    node = start(lambda _: errors.Compacted())
    code, out, err = ctl(f"--endpoints={node.address}", "get", "k")
    assert (code, out, err) == (1, b"", b"Error: etcdserver: mvcc: required revision has been compacted\n")


def test_a_write_of_unknown_fate_says_so_and_a_read_does_not(start: Start) -> None:
    node = start(lambda _: None)
    code, _, err = ctl(f"--endpoints={node.address}", "--command-timeout=50ms", "put", "k", "v")
    assert code == 1
    assert err.startswith(b"Error: context deadline exceeded (it may have been done")
    code, _, err = ctl(f"--endpoints={node.address}", "--command-timeout=50ms", "get", "k")
    assert (code, err) == (1, b"Error: context deadline exceeded\n")


def test_an_unhealthy_endpoint_is_told_apart(node: FakeNode, start: Start) -> None:
    sick = start(lambda _: errors.NoSpace())
    header = pb.AlarmResponse(header=pb.ResponseHeader(revision=1)).SerializeToString()
    forbidden = errors.Refused("etcdserver: permission denied", errors.Code.PERMISSION_DENIED)
    denied = start(lambda record: header if record.method == Method.ALARM else forbidden)
    all = f"--endpoints={node.address},{sick.address},{denied.address}"
    code, out, err = ctl(all, "endpoint", "health")
    assert code == 1
    assert out.count(b" is healthy: ") == 2
    unhealthy = f"{sick.address} is unhealthy: failed to commit proposal: etcdserver: mvcc: database space exceeded"
    assert err.decode().splitlines() == [unhealthy, "Error: unhealthy cluster"]


def test_help_is_there_for_everything() -> None:
    for words in (
        ["-h"],
        *([name, "--help"] for name in ("put", "get", "del", "txn", "watch", "compaction", "version")),
    ):
        code, out, err = ctl(*words)
        assert (code, err) == (0, b"")
        assert b"Usage: kvorumctl" in out


@contextlib.contextmanager
def run(*args: str, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """It is gone afterwards, whatever became of the test."""
    command = [sys.executable, "-m", "kvorum.ctl.main", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def created(node: FakeNode, count: int = 1) -> None:
    deadline = time.monotonic() + 60
    while sum(request.HasField("create_request") for request in node.watch_requests) < count:
        assert time.monotonic() < deadline, "no watch came"
        time.sleep(0.01)


def put(node: FakeNode, *pairs: str) -> None:
    for pair in pairs:
        assert ctl(f"--endpoints={node.address}", "put", *pair.split("="))[0] == 0


def lines(process: subprocess.Popen[bytes], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().decode().rstrip("\n") for _ in range(count)]


def test_watch_prints_events_as_they_come_until_it_is_interrupted(node: FakeNode) -> None:
    """etcdctl's format: type, key, value; the state before in front of it with --prev-kv."""
    with run(f"--endpoints={node.address}", "watch", "w", "--prefix", "--prev-kv") as process:
        created(node)
        put(node, "w1=a", "x=-", "w1=b")
        assert lines(process, 8) == ["PUT", "w1", "a", "PUT", "w1", "a", "w1", "b"]
        ctl(f"--endpoints={node.address}", "del", "w1")
        assert lines(process, 5) == ["DELETE", "w1", "b", "w1", ""]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_watch_in_json_and_from_a_revision(node: FakeNode) -> None:
    put(node, "k=1", "k=2")
    with run(f"--endpoints={node.address}", "watch", "k", "--rev=3", "-w", "json") as process:
        (line,) = lines(process, 1)
        assert re.sub(r"\d+", "N", line.replace("Mg==", "V")) == (
            '{"Header":{"cluster_id":N,"member_id":N,"revision":N,"raft_term":N},'
            '"Events":[{"kv":{"key":"aw==","create_revision":N,"mod_revision":N,"version":N,"value":"V"}}],'
            '"CompactRevision":N,"Canceled":false,"Created":false}'
        ).replace('"CompactRevision":N', '"CompactRevision":N')
        process.kill()


def test_watch_runs_a_command_for_each_event(node: FakeNode) -> None:
    script = "echo $ETCD_WATCH_REVISION $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"
    with run(f"--endpoints={node.address}", "watch", "k", "--", "sh", "-c", script) as process:
        created(node)
        put(node, "k=v")
        assert lines(process, 4) == ["PUT", "k", "v", '2 "PUT" "k" "v"']
        process.kill()
    with run(f"--endpoints={node.address}", "watch", "k", "--rev=2", "--", "false") as process:
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert b"exit status 1" in process.stderr.read()


def test_watch_takes_its_key_from_the_environment(node: FakeNode) -> None:
    put(node, "k=v")
    environment = {**os.environ, "KVORUMCTL_WATCH_KEY": "a", "KVORUMCTL_WATCH_RANGE_END": "z"}
    with run(f"--endpoints={node.address}", "watch", "--rev=2", env=environment) as process:
        assert lines(process, 3) == ["PUT", "k", "v"]
        process.kill()


def test_watch_below_the_compaction_ends_with_code_5(node: FakeNode) -> None:
    put(node, "k=1", "k=2", "k=3")
    ctl(f"--endpoints={node.address}", "compaction", "3")
    code, out, err = ctl(f"--endpoints={node.address}", "watch", "k", "--rev=1")
    assert (code, out) == (5, b"")
    assert err.decode().splitlines() == [
        "watch was canceled (etcdserver: mvcc: required revision has been compacted)",
        "Error: watch is canceled by the server",
    ]


def test_a_reader_that_goes_away_ends_it_quietly(node: FakeNode) -> None:
    """`kvorumctl watch | head`."""
    with run(f"--endpoints={node.address}", "watch", "k") as process:
        created(node)
        assert process.stdout is not None
        process.stdout.close()
        deadline = time.monotonic() + 60
        while process.poll() is None:  # a connection that was lost on a slow machine watches from then on
            assert time.monotonic() < deadline, "it doesn't notice"
            put(node, "k=1")
        assert process.returncode == 6
        assert process.stderr is not None
        assert process.stderr.read() == b""


if __name__ == "__main__":
    for path in SCRIPTS:
        with steady_node(path) as address:
            path.write_text(play(path.read_text(), address))
