"""The data directory and the run directory: whose they are, and what a crash leaves of them."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import NodeConfig, resolve
from cluster.datadir import DataDir, Refused
from cluster.exits import Exit
from cluster.rundir import RunDir
from storage import failpoint
from tests.conftest import environment


def config(path: Path, **settings: str) -> NodeConfig:
    return resolve(
        {"data-dir": str(path / "data"), **{name.replace("_", "-"): text for name, text in settings.items()}}
    )


def refusal(wanted: NodeConfig) -> tuple[Exit, str]:
    with pytest.raises(Refused) as caught:
        DataDir.open(wanted)
    return caught.value.code, str(caught.value)


def test_a_new_directory_is_private_and_knows_its_member(tmp_path: Path) -> None:
    data = DataDir.open(config(tmp_path))
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    data.close()
    DataDir.open(config(tmp_path)).close()  # and lets it in again


def test_a_directory_that_is_open_to_others_is_closed(tmp_path: Path) -> None:
    """etcd wants 0700 as well."""
    (tmp_path / "data").mkdir(mode=0o755)
    DataDir.open(config(tmp_path)).close()
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    data = DataDir.open(config(tmp_path))
    code, reason = refusal(config(tmp_path))
    assert (code, "in use by another process" in reason) == (Exit.USAGE, True)
    data.close()
    DataDir.open(config(tmp_path)).close()


def test_a_directory_of_another_cluster_or_member_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    DataDir.open(config(tmp_path)).close()
    before = (tmp_path / "data/member.json").read_bytes()
    code, reason = refusal(config(tmp_path, initial_cluster_token="other"))
    assert (code, "belongs to cluster cdf818194e3a8c32" in reason) == (Exit.DAMAGED, True)
    both = "a=http://127.0.0.1:1,b=http://127.0.0.1:2"
    other = tmp_path / "pair"
    pair = {"initial_cluster": both, "initial_cluster_token": "x"}
    DataDir.open(config(other, name="a", listen_peer_urls="http://127.0.0.1:1", **pair)).close()
    code, reason = refusal(config(other, name="b", listen_peer_urls="http://127.0.0.1:2", **pair))
    assert (code, "belongs to member" in reason) == (Exit.DAMAGED, True)
    assert (tmp_path / "data/member.json").read_bytes() == before


def test_a_member_may_be_renamed(tmp_path: Path) -> None:
    """The id follows from URL and token alone."""
    DataDir.open(config(tmp_path)).close()
    DataDir.open(config(tmp_path, name="other")).close()
    assert '"name": "other"' in (tmp_path / "data/member.json").read_text()


@pytest.mark.parametrize(
    ("files", "code", "reason"),
    [
        ({"notes.txt": "x"}, Exit.USAGE, "is not empty and no data directory: it holds 'notes.txt'"),
        ({"wal/0.wal": "x"}, Exit.DAMAGED, "its member.json is missing"),
        ({"store/CURRENT": "x"}, Exit.DAMAGED, "its member.json is missing"),
        ({"epoch": "5\n"}, Exit.DAMAGED, "its member.json is missing"),
        ({"epoch": "0\n", "member.json": "{"}, Exit.DAMAGED, "cannot read"),
        ({"epoch": "0\n", "member.json": "[]"}, Exit.DAMAGED, "something is missing in it"),
        ({"epoch": "0\n", "member.json": '{"format": 1}'}, Exit.DAMAGED, "something is missing in it"),
        (
            {"member.json": '{"format": 2, "cluster_id": "1", "member_id": "1", "name": "x"}'},
            Exit.USAGE,
            "has format 2; this version reads format 1",
        ),
    ],
)
def test_a_directory_that_is_something_else_or_damaged_is_refused(
    tmp_path: Path, files: dict[str, str], code: Exit, reason: str
) -> None:
    """Nobody's home becomes a data directory, and nobody's data is taken for an empty one."""
    for name, text in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = refusal(config(tmp_path))
    assert found[0] == code
    assert reason in found[1]


def test_a_fresh_file_system_may_have_its_lost_and_found(tmp_path: Path) -> None:
    (tmp_path / "data/lost+found").mkdir(parents=True)
    (tmp_path / "data/wal").mkdir()  # an empty mount point
    DataDir.open(config(tmp_path)).close()


def test_joining_a_running_cluster_is_refused_until_it_exists(tmp_path: Path) -> None:
    code, reason = refusal(config(tmp_path, initial_cluster_state="existing"))
    assert (code, "joining a running cluster is not part of this version" in reason) == (Exit.USAGE, True)
    DataDir.open(config(tmp_path)).close()
    DataDir.open(config(tmp_path, initial_cluster_state="existing")).close()  # it has its data: fine


def test_epochs_rise_over_the_life_of_the_directory(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        data = DataDir.open(config(tmp_path))
        seen += [data.next_epoch(), data.next_epoch()]
        data.close()
    assert seen == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("where", ["before_rename", "after_rename"])
def test_a_crash_in_the_middle_of_an_epoch_never_gives_it_out_twice(tmp_path: Path, where: str) -> None:
    """datadir.py: a number counts as given out only once it is durable. The crash is a real SIGKILL."""
    script = (
        "import sys; from cluster.config import resolve; from cluster.datadir import DataDir\n"
        "data = DataDir.open(resolve({'data-dir': sys.argv[1]}))\n"
        "while True: print(data.next_epoch(), flush=True)\n"
    )
    given: list[int] = []
    for hits in (2, 1, 4, 3):  # the first is the zero that a new directory starts with
        crashing = environment(KVORUM_FAILPOINT=f"datadir.epoch.{where}:{hits}*panic")
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "data")],
            env=crashing, stdout=subprocess.PIPE, check=False, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == -9
        given += [int(line) for line in done.stdout.split()]
    data = DataDir.open(config(tmp_path))
    given.append(data.next_epoch())
    assert len(given) == 0 + 0 + 3 + 2 + 1
    assert given == sorted(set(given))


@pytest.mark.parametrize("point", ["epoch.before_rename", "epoch.after_rename", "member.json.before_rename"])
def test_a_crash_while_a_directory_is_made_leaves_one_that_can_be_used(tmp_path: Path, point: str) -> None:
    failpoint.arm(f"datadir.{point}:error")
    try:
        with pytest.raises(Refused):
            DataDir.open(config(tmp_path))
    finally:
        failpoint.arm("")
    data = DataDir.open(config(tmp_path))
    assert data.next_epoch() == 1
    data.close()


@pytest.mark.parametrize("text", ["", "x\n", "-1\n", None])
def test_a_damaged_epoch_is_never_guessed(tmp_path: Path, text: str | None) -> None:
    data = DataDir.open(config(tmp_path))
    epoch = tmp_path / "data/epoch"
    epoch.unlink()
    if text is not None:
        epoch.write_text(text)
    with pytest.raises(Refused, match=r"damaged|missing") as caught:
        data.next_epoch()
    assert caught.value.code == Exit.DAMAGED
    data.close()


def test_the_lock_of_a_child_lives_as_long_as_the_child(tmp_path: Path) -> None:
    """RELIABILITY T9: a predecessor that isn't completely gone must not write beside its successor."""
    data = DataDir.open(config(tmp_path))
    fd = data.lock_for("raft")
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(fd,))
    os.close(fd)
    with pytest.raises(BlockingIOError):
        data.lock_for("raft")
    os.close(data.lock_for("apply"))
    child.kill()
    child.wait()
    os.close(data.lock_for("raft"))
    data.close()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Runtime directories are short by nature; one that is long is passed over."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def test_a_run_directory_is_private_short_and_gone_when_it_is_removed(short_path: Path) -> None:
    run = RunDir.create({"XDG_RUNTIME_DIR": str(short_path)})
    assert Path(run.path).parent == short_path
    assert stat.S_IMODE(os.stat(run.path).st_mode) == 0o700
    run.remove()
    assert os.listdir(short_path) == []


def test_a_base_that_is_too_deep_for_local_sockets_is_not_used(tmp_path: Path) -> None:
    """The path of a local socket may have 107 bytes."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    run = RunDir.create({"XDG_RUNTIME_DIR": str(deep)})
    assert Path(run.path).parent == Path("/tmp")
    run.remove()


def test_only_stale_run_directories_of_this_user_are_cleaned_up(short_path: Path) -> None:
    """rundir.py: a living owner holds the lock; a name alone proves nothing."""
    living = RunDir.create({"XDG_RUNTIME_DIR": str(short_path)})
    dead = RunDir.create({"XDG_RUNTIME_DIR": str(short_path)})
    (Path(dead.path) / "raft.sock").touch()
    os.close(dead._fd)  # what the kernel does when its owner is killed
    (short_path / "kvorum-file").touch()
    (short_path / "kvorum-testdata").mkdir()
    (short_path / "kvorum-testdata" / "dear").touch()
    (short_path / "kvorum-unborn").mkdir()  # its owner was killed before it could mark it
    (short_path / "other").mkdir()
    (short_path / "kvorum-link").symlink_to(short_path / "other")
    mine = RunDir.create({"XDG_RUNTIME_DIR": str(short_path)})
    left = {entry.name for entry in short_path.iterdir()}
    assert left == {
        Path(living.path).name,
        Path(mine.path).name,
        "kvorum-file",
        "kvorum-link",
        "other",
        "kvorum-testdata",
    }
    assert (short_path / "kvorum-testdata" / "dear").exists()
    fd = os.open(living.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_whose_run_directory_is_taken_for_a_stale_one_makes_another(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several nodes start at once, as those of `kvorum local` do: between mkdir and lock one looks like left behind."""
    made: list[str] = []
    mkdtemp = tempfile.mkdtemp

    def overtaken(**options: str) -> str:
        made.append(mkdtemp(**options))
        if len(made) == 1:
            RunDir.create({"XDG_RUNTIME_DIR": str(short_path)})  # (comes here again)
            assert not os.path.exists(made[0]), "nobody holds its lock"
            return made[0]
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", overtaken)
    run = RunDir.create({"XDG_RUNTIME_DIR": str(short_path)})
    assert os.path.exists(os.path.join(run.path, "OWNER"))
    assert len(made) == 3
