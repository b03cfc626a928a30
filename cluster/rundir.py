"""A short-lived directory for what the processes of a running node share: local sockets, metrics, node.json.

    BASE/kvorum-XXXXXXXX     0700, flock held by the supervisor as long as it lives, removed when it stops
      OWNER                  nothing in it; says that the directory is one of these

It is not in the data directory because the path of a local socket may have 107 bytes at most, and data directories are
deep. BASE is the first of $RUNTIME_DIRECTORY (systemd), $XDG_RUNTIME_DIR and /tmp that can be written and is short
enough.

A supervisor that is killed leaves its directory behind; the next one on the machine removes it. Safe, because only
directories are touched that bear the name and the mark, belong to this user, and whose lock is free: a living owner
holds it. The name alone proves nothing: people call their own things in /tmp so. What has no mark is removed if it is
empty, as an owner leaves it that was killed before it could make one, or that is about to: between an owner's mkdir and
its lock one window remains. So the owner looks, once it has the lock, whether the directory is still there and the one
it locked, and else makes another. The lock also tells systemd-tmpfiles to leave it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping

PREFIX = "kvorum-"
MARK = "OWNER"
SOCKET_PATH_MAX = 107
"""sun_path of Linux has 108 bytes with the final zero."""
_NAME_MAX = 20
"""Room kept for the names of sockets."""


class RunDir:
    """The directory at `path`, until `remove`."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, environment: Mapping[str, str]) -> RunDir:
        """Make a new one and remove stale ones beside it. Raises OSError if there is no place for it."""
        base = _base(environment)
        _remove_stale(base)
        while True:
            path = tempfile.mkdtemp(prefix=PREFIX, dir=base)
            with contextlib.suppress(BlockingIOError, FileNotFoundError):  # somebody took it for a stale one
                return cls(path, _take(path))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._fd)


def _take(path: str) -> int:
    """Lock a directory that was just made, and mark it. Returns the descriptor that holds the lock.

    Raises BlockingIOError or FileNotFoundError if another supervisor has taken it for a stale one.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(os.open(MARK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=fd))
        if not os.path.samestat(os.stat(path), os.fstat(fd)):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _base(environment: Mapping[str, str]) -> str:
    candidates = [environment.get("RUNTIME_DIRECTORY", ""), environment.get("XDG_RUNTIME_DIR", ""), "/tmp"]
    for base in candidates:
        room = SOCKET_PATH_MAX - len(os.fsencode(base)) - len(f"/{PREFIX}12345678/") - _NAME_MAX
        if os.path.isabs(base) and room >= 0 and os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK):
            return base
    raise OSError("no directory for local sockets: neither $RUNTIME_DIRECTORY nor $XDG_RUNTIME_DIR nor /tmp will do")


def _remove_stale(base: str) -> None:
    for entry in os.scandir(base):
        if not entry.name.startswith(PREFIX):
            continue
        with contextlib.suppress(OSError):  # in use, not ours, or gone by now
            found = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(os.path.join(entry.path, MARK)):
                    shutil.rmtree(entry.path)
                else:
                    os.rmdir(entry.path)
            finally:
                os.close(fd)
