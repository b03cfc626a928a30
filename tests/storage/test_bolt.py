"""bbolt files: read back by a reader of our own, and by the tool they are for."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import bolt
from tests.etcds import binary

PAGE = bolt.PAGE_BYTES


def written(buckets: dict[bytes, list[tuple[bytes, bytes]]]) -> bytes:
    sources = sources_of(buckets)
    plan = bolt.plan(sources)
    pages = list(bolt.pages(sources, plan))
    assert all(len(page) % PAGE == 0 for page in pages)
    assert sum(map(len, pages)) == plan.size
    return b"".join(pages)


def sources_of(buckets: dict[bytes, list[tuple[bytes, bytes]]]) -> bolt.Buckets:
    return {name: lambda entries=entries: iter(entries) for name, entries in buckets.items()}  # type: ignore[misc]


def entries(data: bytes, page: int, seen: set[int]) -> Iterator[tuple[int, bytes, bytes]]:
    """Everything below a page, in order, as bbolt would walk it."""
    at = page * PAGE
    id, flags, count, overflow = struct.unpack_from("<QHHI", data, at)
    assert id == page
    mine = set(range(page, page + overflow + 1))
    assert not mine & seen, "a page belongs to two trees"
    seen |= mine
    for i in range(count):
        element = at + 16 + 16 * i
        if flags == 2:
            kind, offset, key, value = struct.unpack_from("<IIII", data, element)
            start = element + offset
            assert start + key + value <= (page + overflow + 1) * PAGE
            yield kind, data[start : start + key], data[start + key : start + key + value]
        else:
            assert flags == 1
            offset, key, child = struct.unpack_from("<IIQ", data, element)
            below = list(entries(data, child, seen))
            assert below[0][1] == data[element + offset : element + offset + key], "a branch names another first key"
            yield from below


def read(data: bytes) -> dict[bytes, list[tuple[bytes, bytes]]]:
    assert len(data) % PAGE == 0
    magic, version, size, _, root, _, free, end, txid = struct.unpack_from("<IIIIQQQQQ", data, PAGE + 16)
    assert (magic, version, size, free, end, txid) == (0xED0CDAED, 2, PAGE, 2, len(data) // PAGE, 1)
    seen = {0, 1, 2}
    found = {}
    for kind, name, value in list(entries(data, root, seen)):
        assert kind == 1
        page, sequence = struct.unpack("<QQ", value)
        assert sequence == 0
        below = list(entries(data, page, seen))
        assert all(kind == 0 for kind, _, _ in below)
        found[name] = [(key, value) for _, key, value in below]
    assert seen == set(range(end)), "a page is neither used nor free"
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=9),
        st.dictionaries(
            st.binary(min_size=1, max_size=40),
            st.one_of(st.binary(max_size=9), st.integers(0, 10000).map(bytes)),
            max_size=300,
        ),
        max_size=4,
    )
)
def test_what_was_written_is_read(buckets: dict[bytes, dict[bytes, bytes]]) -> None:
    expected = {name: sorted(content.items()) for name, content in buckets.items()}
    assert read(written(expected)) == expected


def test_trees_of_three_levels_and_keys_larger_than_a_page() -> None:
    small = [(b"%08d" % i, b"v" * (i % 50)) for i in range(60_000)]
    large = [(b"%04d" % i + bytes(3 * PAGE), b"") for i in range(20)]
    assert read(written({b"large": large, b"small": small})) == {b"large": large, b"small": small}


@pytest.mark.parametrize("keys", [[b"b", b"a"], [b"a", b"a"], [b""]])
def test_entries_out_of_order_are_refused(keys: Iterable[bytes]) -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        bolt.plan({b"bucket": lambda: ((key, b"") for key in keys)})


@pytest.mark.parametrize("more", [[], [(b"b", bytes(2 * PAGE))]])
def test_entries_that_change_between_the_two_walks_are_noticed(more: list[tuple[bytes, bytes]]) -> None:
    plan = bolt.plan(sources_of({b"bucket": [(b"a", bytes(PAGE))]}))
    with pytest.raises(ValueError, match="have changed"):
        list(bolt.pages(sources_of({b"bucket": more}), plan))


def test_etcdutl_reads_it_and_finds_nothing_wrong(tmp_path: Path) -> None:
    records = [
        (struct.pack(">Q", revision) + b"_" + struct.pack(">Q", 0), bytes([10, 1, 97]) * (revision % 3000))
        for revision in range(2, 3000)
    ]
    data = written({b"key": records, b"lease": [], b"meta": [(b"term", struct.pack(">Q", 3))]})
    snapshot = tmp_path / "snapshot"
    snapshot.write_bytes(data + hashlib.sha256(data).digest())
    command = [binary("etcdutl"), "snapshot", "status", snapshot, "-w", "json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert (told["revision"], told["totalKey"]) == (2999, len(records) + 1)
