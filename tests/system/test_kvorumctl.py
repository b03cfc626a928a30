"""kvorumctl and etcdctl side by side: the same words, typed to kvorum and to a real etcd, print the same.

Both stores are fresh, so even the revisions must agree; only ids and terms are blotted out. What kvorumctl says better
on purpose (usage errors, half a transaction) is in tests/client/ctl/. After that, what only a cluster can show.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import etcds
from tests.client.test_ctl import argument, ctl
from tests.system.cluster import ROOT, Cluster, eventually


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("ctl"), nodes=3, shared=True) as cluster:
        yield cluster


class Printed(NamedTuple):
    code: int
    out: str
    err: str


def blot(raw: bytes) -> str:
    """Ids and terms differ between any two clusters; clientv3 logs to stderr, which is no output of the command."""
    text = raw.decode("utf-8", "backslashreplace")
    text = re.sub(r'("(?:cluster_id|member_id|raft_term)":)\d+', r"\1N", text)
    text = re.sub(r'("(?:ClusterID|MemberID|RaftTerm)" : )\d+', r"\1N", text)
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith('{"level":"warn"'))


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of an etcd that runs alone."""
    with etcds.etcd(tmp_path_factory.mktemp("etcd"), ["one"]) as running:
        yield running.endpoints[0]


def etcdctl(endpoint: str, *words: str, stdin: bytes = b"") -> Printed:
    """With etcd's own command. Bytes that are no UTF-8 go through as they are."""
    command = [etcds.binary("etcdctl"), f"--endpoints={endpoint}", *words]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    return Printed(done.returncode, blot(done.stdout), blot(done.stderr))


def kvorumctl(endpoint: str, *words: str, stdin: bytes = b"") -> Printed:
    code, out, err = ctl(f"--endpoints={endpoint}", *words, stdin=stdin)
    return Printed(code, blot(out), blot(err))


TXN_1 = b"""mod("a") > "0"
value("a") = "2"

put c 1
get c
put "key with space" "v\\"q\\n"
del zz

put d 1

"""
TXN_2 = b"""value("a") = "nope"
create("zz") = "0"
ver("zz") != "0"

put c 1

get a
get "" --prefix --limit=2
del c --prev-kv

"""
SESSION: list[str | tuple[str, bytes]] = [
    "put a 1",
    "put a 2 --prev-kv",
    ("put from-stdin", b"two\nlines\n"),
    "get a",
    "get nope",
    "get from-stdin --print-value-only",
    "put b 1",
    "put b/1 x",
    "put b/2 y",
    "get b/ --prefix",
    "get b c",
    "get b --from-key",
    'get "" --prefix --keys-only',
    'get "" --from-key --limit 2',
    'get "" --prefix --order DESCEND',
    'get "" --prefix --order ASCEND --sort-by VALUE',
    'get "" --prefix --sort-by MODIFY --order descend',
    'get "" --prefix --sort-by CREATE --order ASCEND --limit 3',
    "get a --rev 2",
    "get a --rev 99",
    "get a --consistency s",
    "get a --prefix=true",
    'get ""',
    "get b --count-only --prefix -w fields",
    "put a 3 --ignore-value",
    "put nope --ignore-value",
    "put a --ignore-value --prev-kv",
    "put a 4 --ignore-lease",
    "put a x --lease 1f",
    r"put bin \x01\xffz",
    "get bin -w json",
    "get bin -w fields",
    "get bin --hex",
    "put ü ö€",
    "get ü",
    "get ü -w fields",
    "get ü --hex",
    "put dash -- -v",
    "get dash",
    ("txn", TXN_1),
    ("txn", TXN_2),
    ("txn -i", b'c("c") = "0"\n\nput c 1\n\nput c 2\n\n'),
    ("txn", b"\nput x 1\nput x 2\n\n\n"),
    ("txn", b"\nput x 1\n\nput x 2\n\n"),
    *(
        command
        for format in ("json", "fields")
        for command in (
            f"put a 5 -w {format}",
            f"put a 6 --prev-kv -w {format}",
            f"get a -w {format}",
            f'get "" --prefix --limit 2 -w {format}',
            f"get nope -w {format}",
            (f"txn -w {format}", TXN_1),
            (f"txn -w {format}", TXN_2),
            f"del c --prev-kv -w {format}",
            f"del c -w {format}",
        )
    ),
    "get a -w protobuf",
    "get a -w table",
    "get a -w yaml",
    "del b/ --prefix --prev-kv",
    "del nope",
    "del dash from-stdin",
    'del ""',
    "compaction 10",
    "compaction 10",
    "compaction 9999",
    "get a --rev 5",
    "watch a -w table",
    "watch",
    "put",
    "get",
    "del",
    "compaction",
    "get a --prefix --from-key",
    "get a b --prefix",
    "get a --order up",
    "get a --sort-by size",
    "get a --consistency x",
    "get a --keys-only --count-only",
    "get a --count-only",
    "get a --print-value-only -w json",
    "put a b --ignore-value",
]


def test_the_same_words_print_the_same_and_end_alike(cluster: Cluster, etcd: str) -> None:
    """Every command of a session, in order, over two fresh stores."""
    differences = []
    for step in SESSION:
        command, stdin = step if isinstance(step, tuple) else (step, b"")
        words = [argument(word) for word in shlex.split(command.replace("\\", "\\\\"))]
        if "watch" in command and "table" in command:
            theirs = Printed(4, "", "Error: table not supported as output format\n")  # it says so at the first event
        elif "\0" in "".join(words):
            continue  # no argument of a process can hold it
        else:
            theirs = etcdctl(etcd, *words, stdin=stdin)
        ours = kvorumctl(cluster.endpoint(0), *words, stdin=stdin)
        if command.endswith("protobuf"):  # the header's ids are in the bytes
            theirs, ours = (printed._replace(out=str("\x01" in printed.out)) for printed in (theirs, ours))
        if ours != theirs:
            differences.append((command, theirs, ours))
    assert differences == [], "\n".join(map(str, differences))


def watch(command: list[str], change: list[list[str]], expected_lines: int) -> str:
    """What a watching process prints while the changes are made, up to so many lines."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        guard = threading.Timer(20, process.kill)
        guard.start()
        time.sleep(0.7)  # nothing tells from outside when etcdctl's watch has been created
        for one in change:
            subprocess.run(one, check=True, capture_output=True, cwd=ROOT)
        assert process.stdout is not None
        out = b"".join(process.stdout.readline() for _ in range(expected_lines))
        guard.cancel()
        process.send_signal(signal.SIGINT)
    return blot(out)


@pytest.mark.parametrize(
    ("flags", "lines"),
    [("--prefix", 9), ("--prefix --prev-kv", 13), ("--prefix --hex", 9), ("--prefix -w fields --prev-kv", 45)],
)
def test_watch_prints_what_etcdctl_prints(cluster: Cluster, etcd: str, flags: str, lines: int) -> None:
    name = f"w{abs(hash(flags)) % 1000}/"
    changes = [["put", f"{name}k", "1"], ["put", f"{name}k", "2"], ["del", f"{name}k"]]

    def both(command: list[str | Path]) -> str:
        words = [str(word) for word in command]
        made = [[*words, *change] for change in changes]
        printed = watch([*words, "watch", name, *flags.split()], made, lines)
        return re.sub(r'((?:Revision)" : )\d+', r"\1R", printed)

    theirs = both([etcds.binary("etcdctl"), f"--endpoints={etcd}"])
    ours = both([sys.executable, "-m", "kvorum.ctl.main", f"--endpoints={cluster.endpoint(0)}"])
    assert ours == theirs


class Typed(NamedTuple):
    """What to type, and how many lines are printed because of it."""

    line: str
    lines: int = 0


INTERACTIVE = [
    Typed("watch i/a --rev=1", 6),
    Typed("progress", 1),
    Typed("exit"),
    Typed(""),
    Typed("  "),
    Typed("watch"),
    Typed("watch i/a i/z --prefix"),
    Typed("watch i/b i/a"),
    Typed("WATCH i/a"),
    Typed("watch --rev 1 --prefix --prev-kv i/a", 8),
    Typed('watch --rev=1 "i/with space" i/x -- echo it was', 4),
    Typed("watch -i --rev 1 i/a -- true", 6),
]


def typed(command: list[str | Path], steps: list[Typed], **more: str) -> Printed:
    """A process that is typed to, line by line, and then left: what it prints, and says in whatever order."""
    pipe, environment = subprocess.PIPE, {**os.environ, **more}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, env=environment) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        assert process.stdin is not None
        assert process.stdout is not None
        out = b""
        for line, lines in steps:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            out += b"".join(process.stdout.readline() for _ in range(lines))
        rest, err = process.communicate()
        guard.cancel()
    said = "\n".join(sorted(blot(err).splitlines()))  # each watch of etcdctl speaks for itself, whenever it comes to it
    return Printed(process.returncode, re.sub(r"notify: \d+", "notify: R", blot(out + rest)), said)


@pytest.mark.parametrize("flags", ["", "--hex", "-w fields", "-w json"])
def test_watches_that_are_typed_print_what_etcdctl_prints(cluster: Cluster, etcd: str, flags: str) -> None:
    """watch -i: the grammar, the errors that are passed over, and the end."""
    steps = INTERACTIVE if not flags or flags == "--hex" else [Typed(INTERACTIVE[0].line, 1), Typed("progress", 2)]
    if flags == "-w json":
        steps.append(Typed("watch b a", 1))
    if flags == "-w fields":
        steps = [Typed(INTERACTIVE[0].line, 18), Typed("progress", 5), Typed("watch b a", 4)]
    printed = []
    for run, endpoint, program in (
        (kvorumctl, cluster.endpoint(0), [sys.executable, "-m", "kvorum.ctl.main"]),
        (etcdctl, etcd, [etcds.binary("etcdctl")]),
    ):
        assert run(endpoint, "del", "i/", "--prefix").code == 0
        start = f"--rev={1 + revision_of(run, endpoint)}"
        for change in ("put i/a 1", "put i/a 2", "del i/nothing", 'put "i/with space" x'):
            assert run(endpoint, *shlex.split(change)).code == 0
        since = [Typed(re.sub("--rev[= ]1", start, line), lines) for line, lines in steps]
        done = typed([*program, f"--endpoints={endpoint}", "watch", "-i", *flags.split()], since)
        printed.append(done._replace(out=re.sub(r'(evision"? ?: ?)\d+', r"\1R", done.out)))
    assert printed[0] == printed[1]


def revision_of(run: Callable[..., Printed], endpoint: str) -> int:
    found = re.search(r'"revision":(\d+)', run(endpoint, "get", "revision", "-w", "json").out)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        ("watch -i", b""),
        ("watch -i", b"watch a -- \n"),
        ("watch -i", b"watch --rev 1\n"),
        ("watch -i", b"watch not-ended"),
        ("watch b a", b""),
        ("watch a --", b""),
        ("watch -- echo", b""),
        ("watch a b --prefix", b""),
        ("watch gone --rev 1", b""),
        ("watch gone --rev 1 -w json", b""),
        ("watch gone --rev 1 -w fields", b""),
        ("watch b a -w json", b""),
        ("watch b a -w fields", b""),
        ("watch b a -w protobuf", b""),
        ("watch i/a b c --rev 1 -- false", b""),
        ("watch i/a b c --prefix --rev 1 -- false", b""),
        ("watch -i", b"watch gone b c d\n"),
        ("watch i/a --rev 1 -- false", b""),
    ],
)
def test_watches_that_end_by_themselves_end_as_etcdctls_do(
    cluster: Cluster, etcd: str, words: str, stdin: bytes
) -> None:
    ends = []
    for run, endpoint in (
        (kvorumctl_process, cluster.endpoint(0)),
        (etcdctl, etcd),
    ):
        start = 1 + revision_of(run, endpoint)
        if "gone" in words:
            run(endpoint, "compaction", str(start - 1))
        for change in ("put i/a 1", "put i/a 2"):
            assert run(endpoint, *change.split()).code == 0
        these = words if "gone" in words else words.replace("--rev 1", f"--rev {start}")
        end = run(endpoint, *these.split(), stdin=stdin)
        ends.append(end._replace(out=re.sub(r'(CompactRevision"):\d+', r"\1:R", end.out)))
    assert ends[0] == ends[1]


def kvorumctl_process(endpoint: str, *words: str, stdin: bytes = b"") -> Printed:
    command = [sys.executable, "-m", "kvorum.ctl.main", f"--endpoints={endpoint}", *words]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, cwd=ROOT, timeout=60)
    return Printed(done.returncode, blot(done.stdout), blot(done.stderr))


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"KEY": "i/a"}, "--rev {rev}"),
        ({"KEY": "i/a", "RANGE_END": "i/b"}, "--rev {rev}"),
        ({"KEY": "i/a"}, "--rev {rev} -- false"),
        ({"KEY": "i/a"}, "other"),
        ({"RANGE_END": "i/b"}, "i/a"),
    ],
)
def test_the_environment_names_the_key_as_for_etcdctl(
    cluster: Cluster, etcd: str, environment: dict[str, str], words: str
) -> None:
    printed = []
    for run, endpoint, program, prefix in (
        (kvorumctl, cluster.endpoint(0), [sys.executable, "-m", "kvorum.ctl.main"], "KVORUMCTL_WATCH_"),
        (etcdctl, etcd, [etcds.binary("etcdctl")], "ETCDCTL_WATCH_"),
    ):
        start = 1 + revision_of(run, endpoint)
        assert run(endpoint, "put", "i/a", "1").code == 0
        named = {prefix + name: value for name, value in environment.items()}
        command: list[str | Path] = [*program, f"--endpoints={endpoint}", "watch", *words.format(rev=start).split()]
        if "false" in words or "rev" not in words:
            done = typed(command, [], **named)
            printed.append(done._replace(err=done.err.replace(prefix, "")))
            continue
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, **named}) as process:
            guard = threading.Timer(60, process.kill)
            guard.start()
            assert process.stdout is not None
            lines = b"".join(process.stdout.readline() for _ in range(3))
            guard.cancel()
            process.kill()
        printed.append(Printed(0, lines.decode(), ""))
    assert printed[0] == printed[1]


LEASES = [
    "lease timetolive {id}",
    "put leased/a 1 --lease={id}",
    "lease timetolive {id} --keys",
    "lease timetolive {id} -w json",
    "lease timetolive {id} --keys -w json",
    "lease timetolive {id} --keys -w fields",
    "lease keep-alive {id} --once",
    "lease keep-alive {id} --once -w json",
    "lease keep-alive {id} --once -w fields",
    "lease list",
    "lease list -w json",
    "lease list -w fields",
    "get leased/ --prefix -w json",
    "put leased/a 2 --ignore-lease",
    "lease revoke {id}",
    "get leased/ --prefix",
    "lease revoke {id}",
    "lease timetolive {id}",
    "lease timetolive {id} -w json",
    "lease keep-alive {id} --once",
    "lease keep-alive {id}",
    "lease grant 9000000001",
    "lease revoke xyz",
    "lease timetolive xyz",
    "lease keep-alive xyz",
    "lease grant abc",
    "lease grant 1e3",
    "lease grant 99999999999999999999",
    "lease grant 10 20",
    "lease revoke 0x10",
    "lease revoke ffffffffffffffff",
    "lease revoke 1 2",
    "lease revoke 0",
    "lease revoke -- -5",
    "lease timetolive -- -5",
    "lease timetolive 1f -w table",
    "lease keep-alive 1f",
    "lease keep-alive 1f -w json",
    "lease keep-alive 1f 2f",
    "lease list -w table",
    "lease grant",
    "lease revoke",
    "lease timetolive",
    "lease keep-alive",
    "lease grant 60 -w json",
    "lease grant 60 -w fields",
]


def test_lease_commands_print_the_same_and_end_alike(cluster: Cluster, etcd: str) -> None:
    def session(run: Callable[..., Printed], endpoint: str) -> list[tuple[str, Printed]]:
        granted = run(endpoint, "lease", "grant", "60")
        found = re.search(r"lease ([0-9a-f]{16}) granted with TTL\(60s\)", granted.out)
        assert found is not None, granted
        id = found[1]
        told = []
        for command in LEASES:
            printed = run(endpoint, *shlex.split(command.format(id=id)))
            told.append((command, Printed(printed.code, unnamed(printed.out, id), unnamed(printed.err, id))))
        return told

    def unnamed(out: str, id: str) -> str:
        out = out.replace(id, "ID").replace(str(int(id, 16)), "ID")
        out = re.sub(r"remaining\(\d+s\)", "remaining(Ns)", out)
        out = re.sub(r'("ttl":|"TTL" : )5\d', r"\g<1>60", out)
        return re.sub(r'("ID":|"ID" : |lease )(\d{5,}|[0-9a-f]{16})', r"\g<1>ID", out)

    theirs, ours = session(etcdctl, etcd), session(kvorumctl, cluster.endpoint(0))
    differences = [(one, other) for one, other in zip(theirs, ours, strict=True) if one != other]
    assert differences == [], "\n".join(map(str, differences))


LOCKS = [
    "lock",
    "lock m true",
    "lock m -- sh -c 'echo $ETCD_LOCK_KEY; exit 7'",
    "lock m sh -- -c 'kill -9 $$'",
    "lock m/ -- sh -c 'echo $ETCD_LOCK_KEY'",
    'lock "" true',
    "lock m no-such-command",
    "lock m ./no-such-command",
    "lock m --ttl 0 true",
    "lock m --ttl 9999999999 true",
    "elect",
    "elect m",
    "elect m a b",
    "elect -l m a",
]


def test_locks_and_elections_print_the_same_and_end_alike(cluster: Cluster, etcd: str) -> None:
    differences = []
    for command in LOCKS:
        words = shlex.split(command)
        theirs, ours = (
            printed._replace(out=re.sub(r"/[0-9a-f]+\n", "/LEASE\n", printed.out))
            for printed in (etcdctl(etcd, *words), kvorumctl_process(cluster.endpoint(0), *words))
        )
        if ours != theirs:
            differences.append((command, theirs, ours))
    assert differences == [], "\n".join(map(str, differences))


HELD = [
    ("lock h", 2),
    ("lock h --hex", 2),
    ("lock h -w json", 1),
    ("lock h -w fields", 12),
    ("elect h ada", 2),
    ("elect h ada -w json", 1),
    ("elect h ada -w fields", 12),
]


@pytest.mark.parametrize(("command", "lines"), HELD)
def test_what_is_held_is_shown_as_etcdctl_shows_it(cluster: Cluster, etcd: str, command: str, lines: int) -> None:
    shown = []
    for endpoint, program in (
        (cluster.endpoint(0), [sys.executable, "-m", "kvorum.ctl.main"]),
        (etcd, [etcds.binary("etcdctl")]),
    ):
        words: list[str | Path] = [*program, f"--endpoints={endpoint}", *command.split()]
        with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as process:
            guard = threading.Timer(60, process.kill)
            guard.start()
            assert process.stdout is not None
            out = blot(b"".join(process.stdout.readline() for _ in range(lines)))
            process.send_signal(signal.SIGINT)
            assert process.wait() == 0
            guard.cancel()
        out = re.sub(r'(evision"? ?: ?|"[Ll]ease" ?: ?|"Version" : )\d+', r"\1N", out)
        out = re.sub(r'("key":")[\w+/=]+', r"\1KEY", out)
        out = re.sub(r"h/[0-9a-f]+|(\\x[0-9a-f]{2})+", "KEY", out)
        # Ours proclaims again what it stands for: a version more.
        shown.append(re.sub(r'"version":\d+', '"version":N', out))
    assert shown[0] == shown[1]


def spawned(cluster: Cluster, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kvorum.ctl.main", f"--endpoints={cluster.endpoint(0)}", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def test_a_lock_is_held_until_it_is_interrupted(cluster: Cluster) -> None:
    with spawned(cluster, "lock", "mutex") as first, spawned(cluster, "lock", "mutex") as second:
        pair = {process.stdout: process for process in (first, second)}
        ready, _, _ = select.select(list(pair), [], [], 60)
        holder = pair[ready[0]]
        assert holder.stdout is not None
        assert re.fullmatch(rb"mutex/[0-9a-f]+\n", holder.stdout.readline())
        holder.send_signal(signal.SIGINT)
        assert holder.wait(60) == 0
        other = second if holder is first else first
        assert other.stdout is not None
        assert re.fullmatch(rb"mutex/[0-9a-f]+\n", other.stdout.readline())
        other.send_signal(signal.SIGTERM)
        assert other.wait(60) == 0
    assert kvorumctl(cluster.endpoint(0), "get", "mutex/", "--prefix") == (0, "", "")


def test_a_lock_is_held_while_a_command_runs(cluster: Cluster) -> None:
    script = "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV; exit 7"
    done = kvorumctl(cluster.endpoint(0), "lock", "job", "sh", "-c", "exit 0")
    assert (done.code, done.err) == (0, "")
    with spawned(cluster, "lock", "job", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert re.fullmatch(rb"job/[0-9a-f]+ \d+\n", process.stdout.readline())
        assert process.wait(60) == 7
    assert kvorumctl(cluster.endpoint(0), "get", "job/", "--prefix") == (0, "", "")


def test_whoever_is_elected_leads_until_it_is_interrupted(cluster: Cluster) -> None:
    with spawned(cluster, "elect", "--listen", "boss") as listener, spawned(cluster, "elect", "boss", "ada") as leader:
        assert leader.stdout is not None
        assert listener.stdout is not None
        key = leader.stdout.readline()
        assert re.fullmatch(rb"boss/[0-9a-f]+\n", key)
        assert leader.stdout.readline() == b"ada\n"
        assert (listener.stdout.readline(), listener.stdout.readline()) == (key, b"ada\n")
        leader.send_signal(signal.SIGINT)
        assert leader.wait(60) == 0
        listener.send_signal(signal.SIGTERM)
        assert listener.wait(60) == 0
    assert kvorumctl(cluster.endpoint(0), "elect", "boss").code == 128


# ---- what only a cluster can show


def test_a_put_at_one_endpoint_is_read_at_another(cluster: Cluster) -> None:
    assert kvorumctl(cluster.endpoint(0), "put", "greeting", "hello") == (0, "OK\n", "")
    assert kvorumctl(cluster.endpoint(2), "get", "greeting") == (0, "greeting\nhello\n", "")


def test_the_cluster_lists_its_members_and_how_they_are(cluster: Cluster) -> None:
    member = r"[0-9a-f]+, started, node\d, http://\S+, (http://\S+)?, false"

    def listed() -> list[str]:
        lines = kvorumctl(cluster.endpoint(0), "member", "list").out.splitlines()
        return lines if all(re.fullmatch(member, line) for line in lines) else []

    members = eventually(listed, 10, "every member made itself known")
    assert len(members) == 3
    status = kvorumctl(cluster.endpoint(0), "endpoint", "status", "--cluster").out.splitlines()
    rows = [line.split(", ") for line in status]
    assert sorted(row[0] for row in rows) == sorted(cluster.endpoints)
    assert sorted(row[1] for row in rows) == sorted(line.split(", ")[0] for line in members)
    assert [row[8] for row in rows].count("true") == 1, "one of them leads"
    health = kvorumctl(cluster.endpoint(0), "endpoint", "health", "--cluster")
    assert health.code == 0
    assert len(re.findall(r"(?m) is healthy: successfully committed proposal: took = [\d.]+(ms|s)$", health.out)) == 3


def test_a_node_that_is_down_is_told_apart_and_the_rest_goes_on(cluster: Cluster) -> None:
    all = ",".join(cluster.endpoints)
    down = (cluster.leader() + 1) % 3
    cluster.kill(down, "supervisor")
    try:
        health = kvorumctl(all, "endpoint", "health", "--command-timeout=2s")
        assert health.code == 1
        assert health.out.count("is healthy") == 2
        assert health.err.startswith(f"{cluster.endpoint(down)} is unhealthy: failed to commit proposal: ")
        status = kvorumctl(all, "endpoint", "status", "--command-timeout=2s")
        assert status.code == 1
        assert len(status.out.splitlines()) == 2
        assert f"Failed to get the status of endpoint {cluster.endpoint(down)} " in status.err
        assert kvorumctl(all, "put", "k", "v").code == 0
        gone = kvorumctl(cluster.endpoint(down), "get", "k", "--dial-timeout=300ms")
        assert (gone.code, gone.out) == (2, "")
    finally:
        cluster.start(down)


def test_a_watch_goes_on_when_its_node_is_killed(cluster: Cluster) -> None:
    environment = {**os.environ, "KVORUMCTL_ENDPOINTS": ",".join(cluster.endpoints)}
    command = [sys.executable, "-m", "kvorum.ctl.main", "watch", "go", "--prefix", "--rev=1"]
    kvorumctl(cluster.endpoint(0), "put", "go/0", "0")
    revision = re.search(r'"revision":(\d+)', kvorumctl(cluster.endpoint(0), "get", "go/0", "-w", "json").out)
    assert revision is not None
    command[-1] = f"--rev={revision[1]}"
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == [b"PUT\n", b"go/0\n", b"0\n"]
        for node in range(3):
            cluster.kill(node, "watch")
            assert kvorumctl(cluster.endpoint(node), "put", f"go/{node + 1}", "x").code == 0
        seen = [process.stdout.readline() for _ in range(9)]
        assert seen[1::3] == [b"go/1\n", b"go/2\n", b"go/3\n"]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
