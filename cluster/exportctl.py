"""`kvorum export`: the way back to etcd. Writes the store of a stopped node as a snapshot that etcd restores.

Only what the node has applied is in its store, and after a kill that is less than what is in its log, of which nobody
can tell here how much was agreed upon. So a store that is behind its log is refused: start the node, let it catch up,
and stop it with SIGTERM.

The file appears under its name when all of it is on disk; what a crash leaves is NAME.part.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cluster.exits import Exit
from storage import export, journal
from storage.keyspace import Keyspace
from storage.rocks import RocksEngine, StoreInUse


def main(data_dir: str, output: str) -> int:
    """Returns the exit code."""
    where, target = Path(data_dir), Path(output)
    if not (where / "store" / "CURRENT").exists():
        return _refused(f"{where} holds no store")
    if target.exists():
        return _refused(f"{target} is there already")
    try:
        engine = RocksEngine(where / "store")
    except StoreInUse:
        return _refused(f"the node of {where} is running: stop it first")
    except OSError as error:
        return _refused(f"cannot open the store in {where}: {error}")
    try:
        keyspace = Keyspace(engine)
        last = last_index(where / "wal")
        if keyspace.applied[0] < last:
            text = f"the store of {where} has applied entry {keyspace.applied[0]} and its log goes on to {last}"
            return _refused(f"{text}: start the node and stop it with SIGTERM")
        part = target.with_name(target.name + ".part")
        size, pieces = export.snapshot(keyspace)
        with open(part, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
        size += export.CHECKSUM_BYTES
        print(f"{target}: {size} bytes, revision {keyspace.revision}, {len(keyspace.leases.granted)} leases")
    except OSError as error:
        return _refused(str(error))
    finally:
        engine.close()
    return 0


def last_index(wal_dir: Path) -> int:
    """The last entry in a log, committed or not: a segment's header names the one before its first."""
    last = 0
    for record in journal.dump(wal_dir):
        if record.type == "header":
            last = int(record.fields["prev index"])
        elif record.type in ("entry", "cut"):
            last = int(record.fields["index"])
    return last


def _refused(text: str) -> int:
    print(f"kvorum: {text}", file=sys.stderr)
    return Exit.USAGE
