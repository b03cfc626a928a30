"""A disk that remembers every change made to it, and can lose what was not synced.

The C writer asks a hook before each change. `Disk` writes them down (`ops`), may fail or shorten them, and afterwards
tells what would be left if the power had gone after any of them:

- of a file: all that was synced, and of each 512-byte sector written since, either the new content or the old one;
- of the directory: all names as of its last sync, and a prefix of the changes since.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from native._wal import ffi, lib

SECTOR = 512
CREATE, ALLOCATE, WRITE, SYNC = lib.WAL_OP_CREATE, lib.WAL_OP_ALLOCATE, lib.WAL_OP_WRITE, lib.WAL_OP_SYNC
RENAME, REMOVE, SYNC_DIR = lib.WAL_OP_RENAME, lib.WAL_OP_REMOVE, lib.WAL_OP_SYNC_DIR


class Op(NamedTuple):
    """One change, or (kind 0) a note that a test put between them, `offset` being its number."""

    kind: int
    name: str
    to: str = ""
    offset: int = 0
    length: int = 0
    data: bytes = b""


Policy = Callable[[Op], int]
"""What to answer: 0 go on, n > 0 fail with that errno, n < 0 write at most -n bytes."""


class Disk:
    """See the module. `policy` is asked by whichever thread makes the change, with the GIL."""

    def __init__(self, policy: Policy | None = None, *, keep_data: bool = True) -> None:
        self.policy = policy
        self.ops: list[Op] = []
        self._keep_data = keep_data

    def seen(self, raw: object) -> int:
        name = ffi.string(raw.name).decode()
        to = ffi.string(raw.to).decode() if raw.to else ""
        data = ffi.buffer(raw.data, raw.length)[:] if self._keep_data and raw.kind == WRITE else b""
        op = Op(raw.kind, name, to, raw.offset, raw.length, data)
        answer = self.policy(op) if self.policy else 0
        if answer == 0:
            self.ops.append(op)
        elif answer < 0:
            self.ops.append(op._replace(length=min(op.length, -answer), data=data[:-answer]))
        return answer

    def note(self, name: str, number: int) -> None:
        self.ops.append(Op(0, name, offset=number))


_current: Disk | None = None


@ffi.def_extern(error=5)
def wal_hook_python(raw: object) -> int:
    assert _current is not None
    return _current.seen(raw)


@contextmanager
def watched(disk: Disk) -> Iterator[Disk]:
    """Let `disk` see all changes made by journals opened and closed in here."""
    global _current
    _current = disk
    lib.wal_set_hook(lib.wal_hook_python)
    try:
        yield disk
    finally:
        lib.wal_set_hook(ffi.NULL)
        _current = None


class Nth:
    """A policy: fail the n-th change (from 1) that `which` picks, with `error`; all others succeed."""

    def __init__(self, n: int, error: int, which: Callable[[Op], bool]) -> None:
        self.n, self.error, self.which = n, error, which
        self.count = 0
        self.struck = threading.Event()

    def __call__(self, op: Op) -> int:
        if self.which(op):
            self.count += 1
            if self.count == self.n:
                self.struck.set()
                return self.error
        return 0


class _File:
    def __init__(self, content: bytes = b"") -> None:
        self.durable = bytearray(content)
        self.pending: list[tuple[int, bytes]] = []  # offset, data
        self.size = len(content)  # with what is pending

    def write(self, offset: int, data: bytes) -> None:
        self.pending.append((offset, data))
        self.size = max(self.size, offset + len(data))

    def sync(self) -> None:
        self.durable = self.after(lambda: True)
        self.pending.clear()

    def after(self, keep: Callable[[], bool]) -> bytearray:
        """The content if each sector written since the last sync is kept or not as `keep` says."""
        content = bytearray(self.durable)
        content.extend(bytes(self.size - len(content)))
        for offset, data in self.pending:
            at = offset
            while at < offset + len(data):
                end = min((at // SECTOR + 1) * SECTOR, offset + len(data))
                if keep():
                    content[at:end] = data[at - offset : end - offset]
                at = end
        return content


class Crash(NamedTuple):
    """What a power loss left."""

    files: dict[str, bytes]

    def put(self, directory: Path) -> None:
        directory.mkdir()
        for name, content in self.files.items():
            (directory / name).write_bytes(content)


def crash(ops: list[Op], before: dict[str, bytes], dice: random.Random | None, survival: float = 1.0) -> Crash:
    """The disk after `ops` on top of `before`, which is durable, the power gone.

    `survival` is the chance of each unsynced sector. Without dice only the process is gone: everything is there.
    """
    durable = {name: _File(content) for name, content in before.items()}
    names = dict(durable)
    pending: list[Op] = []
    made: dict[int, _File] = {}

    def apply(to: dict[str, _File], op: Op) -> None:
        if op.kind == CREATE:
            to[op.name] = made[id(op)]
        elif op.kind == RENAME:
            to[op.to] = to.pop(op.name)
        else:
            to.pop(op.name, None)

    for op in ops:
        if op.kind in (CREATE, RENAME, REMOVE):
            if op.kind == REMOVE and op.name not in names:
                continue
            if op.kind == CREATE:
                made[id(op)] = _File()
            apply(names, op)
            pending.append(op)
        elif op.kind == ALLOCATE:
            names[op.name].size = max(names[op.name].size, op.length)
        elif op.kind == WRITE:
            names[op.name].write(op.offset, op.data)
        elif op.kind == SYNC:
            names[op.name].sync()
        elif op.kind == SYNC_DIR:
            durable = dict(names)
            pending.clear()
    if dice is None:
        return Crash({name: bytes(file.after(lambda: True)) for name, file in names.items()})
    for op in pending[: dice.randint(0, len(pending))]:
        apply(durable, op)
    return Crash({name: bytes(file.after(lambda: dice.random() < survival)) for name, file in durable.items()})
