"""The data directory: whose it is, who uses it, and how often its processes have been started.

    DATA-DIR/            0700
      LOCK               flock: held by the supervisor as long as it lives
      LOCK.raft ...      flock: held by that child as long as it lives, whoever started it
      member.json        of which cluster and member the rest is
      epoch              how many children have been started since the directory exists
      pids.json          the processes of the moment, for people and tests; nothing depends on it
      wal/  store/       the log and the keyspace, with their own checks

Who may write here. The supervisor's lock keeps a second supervisor out. It doesn't cover one case: a supervisor was
killed, its children have been sent their SIGKILL too, but one of them sits in an fsync that the kernel won't interrupt,
and would finish its write under the hands of a successor. So each child inherits an open file with a flock of its own.
The kernel drops that lock when the last thread of the child is gone, not earlier; the next supervisor waits for it.

Epochs. A child's epoch names its incarnation: log entries carry the one of the apply process that proposed them, and
peers and processes tell messages of the living from those of the dead by it. So an epoch must never be given out twice,
crashes included. `next_epoch` returns a number only after the file holding it has been synced, renamed over the old
one, and the directory synced; whatever a crash leaves, old or new file, a later call reads at least every number ever
returned, and gives out a larger one. The lock makes the supervisor the only caller.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Mapping

from cluster import log
from cluster.config import NodeConfig
from cluster.exits import Exit
from storage.failpoint import hit

FORMAT = 1
"""The layout described above. A directory of a newer format is refused."""

_HARMLESS = {"LOCK", "lost+found", "member.json.new", "epoch.new"}


class Refused(Exception):
    """This directory can't be used; `code` says what that means for the node."""

    def __init__(self, code: Exit, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class DataDir:
    """A data directory that this process holds the lock of."""

    def __init__(self, path: str, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, config: NodeConfig) -> DataDir:
        """Create the directory if need be, lock it, and see that it is this member's.

        Raises Refused: it is in use, belongs to another member or cluster, holds something else, or can't be written.
        """
        try:
            _create(config.data_dir)
            data = cls(config.data_dir, _lock(os.path.join(config.data_dir, "LOCK")))
        except BlockingIOError:
            raise Refused(Exit.USAGE, f"{config.data_dir} is in use by another process") from None
        except OSError as error:
            raise Refused(Exit.USAGE, f"cannot use {config.data_dir}: {error.strerror}") from error
        try:
            data._claim(config)
        except BaseException:
            data.close()
            raise
        return data

    def close(self) -> None:
        os.close(self._lock_fd)

    def next_epoch(self) -> int:
        """A number larger than any this ever returned for this directory, in whatever process. Costs two fsyncs.

        Raises Refused if the file is not a number, OSError if the disk fails or is full: then no number was given out.
        """
        epoch = self._last_epoch() + 1
        _replace(self.path, "epoch", f"{epoch}\n")
        return epoch

    def lock_for(self, child: str) -> int:
        """A file descriptor holding the lock of `child`, to be inherited by it and closed here.

        Raises BlockingIOError while a process that was started as `child` earlier is not completely gone.
        """
        return _lock(os.path.join(self.path, f"LOCK.{child}"))

    def children(self) -> list[str]:
        """Who was ever started here."""
        return [entry.partition(".")[2] for entry in os.listdir(self.path) if entry.startswith("LOCK.")]

    def write_pids(self, pids: Mapping[str, int | str]) -> None:
        """Leave a note of who runs. Never fails the caller: it is only a note."""
        with contextlib.suppress(OSError):
            _replace(self.path, "pids.json", json.dumps(pids) + "\n", durable=False)

    def _last_epoch(self) -> int:
        path = os.path.join(self.path, "epoch")
        try:
            with open(path, encoding="ascii") as file:
                text = file.read()
        except FileNotFoundError:
            raise Refused(
                Exit.DAMAGED, f"{path} is missing: the next epoch could be one that was used before"
            ) from None
        if not text.strip().isdecimal():
            raise Refused(Exit.DAMAGED, f"{path} is damaged: expected a number, found {text[:40]!r}")
        return int(text)

    def _claim(self, config: NodeConfig) -> None:
        path = os.path.join(self.path, "member.json")
        ours = {
            "format": FORMAT,
            "cluster_id": f"{config.cluster_id:x}",
            "member_id": f"{config.member_id:x}",
            "name": config.name,
        }
        found = _read_member(path)
        if found is None:
            self._refuse_strange_content(config)
            if config.initial_cluster_state == "existing":
                raise Refused(
                    Exit.USAGE,
                    f"--initial-cluster-state existing, but {self.path} is empty: joining a running cluster is not "
                    "part of this version. A member that was there from the beginning needs its data directory back",
                )
        else:
            if found["format"] != FORMAT:
                raise Refused(Exit.USAGE, f"{path} has format {found['format']}; this version reads format {FORMAT}")
            for key, what in (("cluster_id", "cluster"), ("member_id", "member")):
                if found[key] != ours[key]:
                    raise Refused(
                        Exit.DAMAGED,
                        f"{self.path} belongs to {what} {found[key]} ({found['name']}), but the settings describe "
                        f"{what} {ours[key]} ({config.name}). Ids follow from the peer URLs in --initial-cluster and "
                        "from --initial-cluster-token: give those this directory was made with, or another --data-dir",
                    )
        if found != ours:
            try:
                if found is None:
                    _replace(self.path, "epoch", "0\n")  # before member.json, beside which it may never be missing
                _replace(self.path, "member.json", json.dumps(ours, indent=1) + "\n")
            except OSError as error:
                code = Exit.NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else Exit.DISK_FAILED
                raise Refused(code, f"cannot write {path}: {error.strerror}") from error

    def _refuse_strange_content(self, config: NodeConfig) -> None:
        """A directory without member.json must be empty: else it is a damaged one, or somebody's home."""
        strange = sorted(set(os.listdir(self.path)) - _HARMLESS - {os.path.basename(config.wal_dir)})
        wal = os.listdir(config.wal_dir) if os.path.isdir(config.wal_dir) else []
        if "epoch" in strange and self._last_epoch() == 0:  # we crashed right here, last time
            strange.remove("epoch")
        if {"epoch", "store"} & set(strange) or wal:
            raise Refused(
                Exit.DAMAGED, f"{self.path} holds a member's data, but its member.json is missing: nobody knows whose"
            )
        if strange:
            raise Refused(Exit.USAGE, f"{self.path} is not empty and no data directory: it holds {strange[0]!r}")


def _create(path: str) -> None:
    if not os.path.isdir(path):
        os.makedirs(path, mode=0o700)
        _sync_dir(os.path.dirname(path))
    mode = os.stat(path).st_mode & 0o777
    if mode & 0o077:
        try:
            os.chmod(path, 0o700)
            log.info(f"{path} was open to others (mode {mode:o}); it is 700 now")
        except PermissionError:
            log.warn(f"{path} is open to others (mode {mode:o}) and not ours to change")


def _lock(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_member(path: str) -> dict[str, object] | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise Refused(Exit.DAMAGED, f"cannot read {path}: {error}") from error
    if not isinstance(found, dict) or {"format", "cluster_id", "member_id", "name"} - found.keys():
        raise Refused(Exit.DAMAGED, f"{path} is damaged: something is missing in it")
    return found


def _replace(directory: str, name: str, text: str, *, durable: bool = True) -> None:
    """Give `name` the content `text`, so that a crash leaves the old content or the new, and durably so on return."""
    path = os.path.join(directory, name)
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    hit(f"datadir.{name}.before_rename")
    os.rename(f"{path}.new", path)
    hit(f"datadir.{name}.after_rename")
    if durable:
        _sync_dir(directory)


def _sync_dir(path: str) -> None:
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
