"""Snapshots at the client: what is asked for and believed, and what `kvorumctl snapshot status` makes of a file."""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.ctl.bolt import Crc32c, Damaged, File
from kvorum.snapshots import Taking
from kvorum.verbs import Ask
from native._wal import lib
from storage import bolt
from tests.client.test_ctl import ctl

PAGE = bolt.PAGE_BYTES
Content = dict[bytes, list[tuple[bytes, bytes]]]


def asked(ask: Ask[pb.SnapshotResponse] | None) -> pb.SnapshotRequest:
    assert ask is not None
    return pb.SnapshotRequest.FromString(ask.request)


def test_pieces_are_asked_for_until_the_checksum_has_come() -> None:
    taking = Taking()
    assert asked(taking.next()) == pb.SnapshotRequest()
    assert taking.take(pb.SnapshotResponse(snapshot=5)) == b""
    data = bytes(3000)
    pieces = [pb.SnapshotResponse()]  # nothing yet
    pieces += [pb.SnapshotResponse(blob=data[at : at + 1000], remaining_bytes=2000 - at) for at in (0, 1000, 2000)]
    pieces += [pb.SnapshotResponse(), pb.SnapshotResponse(blob=hashlib.sha256(data).digest())]
    found = b""
    for piece in pieces:
        assert not taking.done
        assert asked(taking.next()) == pb.SnapshotRequest(snapshot=5)
        found += taking.take(piece)
    assert taking.done
    assert found == data + hashlib.sha256(data).digest()
    assert taking.bytes == 3032
    assert taking.cancel() is None


def test_a_wrong_checksum_is_no_snapshot() -> None:
    taking = Taking()
    taking.take(pb.SnapshotResponse(snapshot=5))
    taking.take(pb.SnapshotResponse(blob=b"data"))
    with pytest.raises(errors.Unavailable, match="checksum is wrong"):
        taking.take(pb.SnapshotResponse(blob=hashlib.sha256(b"dota").digest()))
    assert not taking.done
    assert asked(taking.cancel()) == pb.SnapshotRequest(snapshot=5, cancel=True)


def test_what_was_not_begun_need_not_be_cancelled() -> None:
    assert Taking().cancel() is None


def written(content: Content) -> bytes:
    sources: bolt.Buckets = {name: lambda entries=entries: iter(entries) for name, entries in content.items()}  # type: ignore[misc]
    return b"".join(bolt.pages(sources, bolt.plan(sources)))


def read(data: bytes) -> Content:
    return {name: list(entries) for name, entries in File(data).buckets()}


def test_a_database_is_read_whatever_the_size_of_its_trees() -> None:
    content: Content = {
        b"empty": [],
        b"large": [(b"%d" % number + bytes(2 * PAGE), b"v") for number in range(9)],
        b"many": [(b"%06d" % number, bytes(number % 60)) for number in range(40_000)],
    }
    assert read(written(content)) == content


def test_a_small_bucket_that_lies_in_its_parents_page_is_read() -> None:
    """As bbolt itself writes them; storage.bolt doesn't."""
    entry = struct.pack("<IIII", 0, 16, 1, 2) + b"k" + b"vv"
    inline = struct.pack("<QQ", 0, 0) + struct.pack("<QHHI", 0, 2, 1, 0) + entry
    root = struct.pack("<QHHI", 3, 2, 1, 0) + struct.pack("<IIII", 1, 16, 4, len(inline)) + b"name" + inline
    data = bytearray(written({}))
    data[3 * PAGE : 4 * PAGE] = root.ljust(PAGE, b"\0")
    assert read(bytes(data)) == {b"name": [(b"k", b"vv")]}


KV = pb.KeyValue(key=b"k", value=bytes(100)).SerializeToString()
SAMPLE = written({b"key": [(b"%08d" % number, KV) for number in range(200)], b"meta": [(b"term", b"1")]})


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(SAMPLE))
)
@example([(3 * PAGE + 8, 1)], len(SAMPLE))
def test_a_damaged_file_is_an_error_and_nothing_else(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(SAMPLE)
    for at, byte in changes:
        data[at] = byte
    with contextlib.suppress(Damaged):
        read(bytes(data[:length]))


def test_pages_in_a_circle_are_damage() -> None:
    data = bytearray(written({b"many": [(b"%06d" % number, b"") for number in range(2000)]}))
    _, _, _, _, root, _, _, _, _ = struct.unpack_from("<IIIIQQQQQ", data, PAGE + 16)
    (branch,) = [page for page in range(3, root) if struct.unpack_from("<H", data, page * PAGE + 8)[0] == 1]
    struct.pack_into("<Q", data, branch * PAGE + 16 + 8, branch)
    with pytest.raises(Damaged, match="more than once"):
        read(bytes(data))


@given(st.lists(st.binary(max_size=50)))
def test_the_hash_is_crc_32c_however_the_bytes_come(parts: list[bytes]) -> None:
    crc = Crc32c()
    for part in parts:
        crc.update(part)
    assert crc.value == lib.crc32c(0, b"".join(parts), sum(map(len, parts)))


def test_status_refuses_what_is_no_whole_snapshot(tmp_path: Path) -> None:
    rng = random.Random(7)
    whole = SAMPLE + hashlib.sha256(SAMPLE).digest()
    flipped = bytearray(whole)
    flipped[rng.randrange(4 * PAGE, len(SAMPLE))] ^= 1
    for name, data, said in [
        ("whole", whole, ""),
        ("no-checksum", SAMPLE, ""),
        ("flipped", bytes(flipped), "the checksum at its end is wrong"),
        ("short", SAMPLE[:-PAGE], "file size too small"),
        ("empty", b"", "is empty"),
        ("other", b"something else", "invalid database"),
    ]:
        (tmp_path / name).write_bytes(data)
        code, _, err = ctl("snapshot", "status", str(tmp_path / name))
        assert (bool(code), said in err.decode()) == (bool(said), True), (name, err)
