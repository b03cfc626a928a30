"""The export of a running node's store: its process, and the apply process's end of it.

    apply ──spawn──▶ export: view ▶ walk ▶ size ──pipe──▶ apply      u64 size | database | SHA-256      all in order
       │                          └▶ walk ▶ pages ─▶          or     u64 NO_SIZE | why not, in UTF-8
       └── closes the pipe, kills ──▶ gone, and the files it had open with it

It has a process so that nothing waits for it, and because Python would share one processor among threads. It is of low
priority. The pipe is all the flow control there is: a full one makes the export sleep. It writes to no file, so
no disk can get full by it, and it is killed without further thought: by whoever has no more use for it, and by the
kernel when the apply process ends (cluster/child.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.child import die_with_parent
from cluster.keeper import spawn
from cluster.snapshots import NO_SIZE, SIZE_BYTES
from storage import export
from storage.failpoint import hit
from storage.keyspace import Keyspace
from storage.rocks import RocksEngine

NICE = 10
PIPE_BYTES = 1 << 20
"""What the export is ahead of its reader. Linux gives anybody as much."""

WRITE_BYTES = 64 << 10

Wake = Callable[[int, bool], None]
"""Have this process woken when there is something to be read from a descriptor, or no longer."""


class Exporter:
    """Starts exports of the store in `store_dir`, and buries them. For one thread: children die with it."""

    def __init__(self, store_dir: str, wake: Wake) -> None:
        self._store_dir, self._wake = store_dir, wake
        self._going: list[subprocess.Popen[bytes]] = []

    def start(self, mark: int) -> Running:
        """Of a store that has entry `mark` on disk. Raises OSError if there is no process to be had."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with contextlib.suppress(PermissionError):  # this user has many pipes: a small one is slower, no more
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            os.set_blocking(writer, True)  # an end of its own: ours doesn't wait
            words = ["cluster.exporter", self._store_dir, str(mark), str(writer)]
            process = spawn(words, inherit=writer, environment=dict(os.environ))
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._going.append(process)
        return Running(reader, process, self._wake)

    def bury(self) -> None:
        """Those that have ended."""
        self._going = [process for process in self._going if process.poll() is None]


class Running:
    """One export, read from the pipe (cluster.snapshots.Export)."""

    def __init__(self, reader: int, process: subprocess.Popen[bytes], wake: Wake) -> None:
        self._reader, self._process, self._wake = reader, process, wake
        self._waiting = False

    def read(self, most: int) -> bytes | None:
        try:
            data = os.read(self._reader, most)
        except BlockingIOError:
            data = None
        if self._waiting != (data is None):
            self._waiting = data is None
            self._wake(self._reader, self._waiting)
        return data

    def close(self) -> None:
        if self._waiting:
            self._wake(self._reader, False)
        os.close(self._reader)
        self._process.kill()


def main(argv: Sequence[str]) -> int:
    """`python -m cluster.exporter STORE_DIR MARK FD`: what apply runs. Returns the exit code."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    store, mark, pipe = Path(argv[0]), int(argv[1]), int(argv[2])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each file of the store
    try:
        with open(pipe, "wb", WRITE_BYTES) as out:
            try:
                hit("export.begin")
                keyspace = Keyspace(RocksEngine.view(store))
                assert keyspace.applied[0] >= mark, (keyspace.applied, mark)  # what was flushed is on disk
                size, pieces = export.snapshot(keyspace)
            except OSError as error:
                print(f"export: {error}", file=sys.stderr, flush=True)
                out.write(NO_SIZE.to_bytes(SIZE_BYTES, "little") + f"cannot be begun: {error}".encode())
                return 1
            out.write(size.to_bytes(SIZE_BYTES, "little"))
            out.flush()
            for piece in pieces:
                hit("export.piece")
                out.write(piece)
    except BrokenPipeError:  # nobody wants it any more
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
