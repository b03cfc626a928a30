"""snapshot save, snapshot status: etcd's snapshots, taken from a kvorum node and looked at.

A file appears under its name when all of it has arrived, its checksum is right, and it is on disk; until then, and
after a crash, it is NAME.part. What etcd's own tools have saved can be looked at just as well.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

import click
from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.ctl.bolt import Crc32c, Damaged, File
from kvorum.ctl.common import Command, Group, Settings, with_settings
from kvorum.ctl.failure import Exit, Failure
from kvorum.ctl.output import SnapshotStatus
from kvorum.snapshots import CHECKSUM_BYTES

_HASH_BYTES = 1 << 20
_DELETED = b"t"
"""Behind the revision of a change, 8 bytes and _ and 8 bytes, if it was a deletion."""


@click.group("snapshot", cls=Group, short_help="Manages snapshots of a node")
def snapshot() -> None:
    """Saves all keys, their history and the leases of a node to a file that etcd's tools restore, and looks at such."""


@snapshot.command("save", cls=Command, short_help="Stores a snapshot of a node to a file")
@click.argument("filename", nargs=-1, type=click.Path(path_type=Path))
@with_settings
def save(settings: Settings, filename: tuple[Path, ...]) -> None:
    """Takes a snapshot of the one endpoint given. Takes as long as it takes: --command-timeout is for each piece."""
    if len(filename) != 1:
        raise Failure(Exit.BAD_ARGS, "snapshot save expects one argument")
    if len(settings.endpoints) != 1:
        told = " ".join(settings.endpoints)
        raise Failure(Exit.BAD_ARGS, f"snapshot must be requested to one selected node, not multiple [{told}]")
    (target,) = filename
    part = target.with_name(target.name + ".part")
    try:
        with settings.connected() as client, open(part, "wb", opener=_private) as file:
            version = client.status_response().storageVersion
            client.snapshot(file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
        _sync_dir(target.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Failure(Exit.IO, str(error)) from None
    except errors.KvorumError as error:
        part.unlink(missing_ok=True)
        raise Failure(Exit.INTERRUPTED, error.text) from None
    print(f"Snapshot saved at {target}")
    print(f"Server version {version}")


@snapshot.command("status", cls=Command, short_help="Gets the status of a snapshot file")
@click.argument("filename", nargs=-1, type=click.Path(path_type=Path))
@with_settings
def status(settings: Settings, filename: tuple[Path, ...]) -> None:
    """Prints hash, revision, total keys, total size and storage version. Reads all of the file; a checksum at its end
    is checked.
    """
    if len(filename) != 1:
        raise Failure(Exit.BAD_ARGS, "snapshot status requires exactly one argument")
    printer = settings.printer()
    printer.refuse("protobuf")
    try:
        found = _status(filename[0])
    except (OSError, Damaged, DecodeError) as error:
        raise Failure(Exit.ERROR, str(error)) from None
    printer.snapshot_status(found)


def _status(path: Path) -> SnapshotStatus:
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise Damaged(f"{path} is empty")
        return _status_of(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def _status_of(data: memoryview) -> SnapshotStatus:
    checksum = data[-CHECKSUM_BYTES:] if len(data) % 512 == CHECKSUM_BYTES else b""  # a copied database has none
    if checksum and hashlib.sha256(data[:-CHECKSUM_BYTES]).digest() != checksum:
        raise Damaged("the checksum at its end is wrong")
    database = File(data)
    crc = Crc32c()
    gathered = bytearray()
    revision, keys = 0, set[bytes]()
    version = ""
    for name, entries in database.buckets():
        gathered += name
        for key, value in entries:
            gathered += key
            gathered += value
            if name == b"key":
                revision = int.from_bytes(key[:8], "big")
                change = keys.discard if key[17:] == _DELETED else keys.add
                change(pb.KeyValue.FromString(value).key)
            elif (name, key) == (b"meta", b"storageVersion"):
                version = value.decode("utf-8", "replace")
            if len(gathered) > _HASH_BYTES:
                crc.update(bytes(gathered))
                gathered.clear()
    crc.update(bytes(gathered))
    return SnapshotStatus(crc.value, revision, len(keys), database.size, version)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
