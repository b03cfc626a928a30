"""`kvorum wal verify` and `kvorum wal dump`: what a log holds, read without changing anything.

    verify    one line a file, and one for each damage; ends with code 65 (Exit.DAMAGED) if there is any
    dump      one line a record, in the order they were written

Both take the log's directory or the data directory that it lies in. What the lines are about is in native/WAL.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.exits import Exit
from native.segments import Dumped
from storage import journal

SHOWN_BYTES = 48
"""How much of an entry's data a line shows."""


def main(act: str, directory: str) -> int:
    """Print what `act` finds out about the log in `directory`. Returns the exit code."""
    path = Path(directory)
    if (path / "member.json").exists() and (path / "wal").is_dir():
        path /= "wal"
    sound = nothing = True
    try:
        for line, ok in _verify(path) if act == "verify" else _dump(path):
            print(line)
            sound, nothing = sound and ok, False
        sys.stdout.flush()
    except BrokenPipeError:  # head has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"kvorum: {error}", file=sys.stderr)
        return Exit.USAGE
    if nothing:
        print(f"kvorum: {path} holds no log", file=sys.stderr)
        return Exit.USAGE
    return 0 if sound else Exit.DAMAGED


def _verify(directory: Path) -> Iterator[tuple[str, bool]]:
    for found in journal.verify(directory):
        yield f"{found.file}:{found.offset}: {'ok' if found.ok else 'DAMAGED'}: {found.text}", found.ok


def _dump(directory: Path) -> Iterator[tuple[str, bool]]:
    for record in journal.dump(directory):
        yield _line(record), True


def _line(record: Dumped) -> str:
    fields = " ".join(f"{name.replace(' ', '-')}={value}" for name, value in record.fields.items())
    more = "..." if len(record.data) > SHOWN_BYTES else ""
    data = f" {len(record.data)} bytes {record.data[:SHOWN_BYTES]!r}{more}" if record.data else ""
    return f"{record.file}:{record.offset}: {record.type} {fields}{data}"
