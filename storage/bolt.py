"""A bbolt file, written from beginning to end: the form in which etcd's own tools take a keyspace.

    page 0, 1   meta: the newer one (by txid) counts; it names the root, the free list and the end of the file
    page 2      free list, empty: nothing here was ever freed
    page 3 ..   per bucket: leaves in key order, then the branches over them, level by level
    last        the root: a leaf that maps each bucket's name to the page of its tree

A page is 4096 bytes, or a multiple of that where one element is larger:

    0    8       10      12         16
    | id | flags | count | overflow | elements, then what they point to ...             little-endian, no padding

    element of a leaf     u32 flags (1: a bucket) | u32 offset of the key from here | u32 key bytes | u32 value bytes
    element of a branch   u32 offset of the key from here | u32 key bytes | u64 page

Because entries come in key order, a tree is built bottom up: full leaves are written at once, and of each only its
first key and its number are kept (about 100 bytes a leaf). The meta pages are written last, so a file that breaks off
before has no valid one and is nobody's database; durability is the caller's, who knows whether it is wanted.

Source of the layout: bbolt's page, node and meta structures, version 2. Pure: writes into what it is given.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import BinaryIO

PAGE_BYTES = 4096

_MAGIC, _VERSION = 0xED0CDAED, 2
_BRANCH, _LEAF, _META, _FREELIST = 0x01, 0x02, 0x04, 0x10
_BUCKET = 0x01

_PAGE = struct.Struct("<QHHI")
_LEAF_ELEMENT = struct.Struct("<IIII")
_BRANCH_ELEMENT = struct.Struct("<IIQ")
_BUCKET_VALUE = struct.Struct("<QQ")  # root page, sequence
_META_BODY = struct.Struct("<IIIIQQQQQ")  # ... page size, flags, root, sequence, free list, end, txid
_FIRST = 3
"""The first page behind the metas and the free list."""
_ROOM = PAGE_BYTES - _PAGE.size
_FNV_START, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3

Entry = tuple[bytes, bytes]


def write(file: BinaryIO, buckets: Mapping[bytes, Iterable[Entry]]) -> int:
    """Write a whole database into the empty, seekable `file`. Returns its size, a multiple of PAGE_BYTES.

    Args:
      buckets: by name, the entries in ascending order of their keys, each once. A bucket may be empty.
    Raises ValueError if keys are empty, repeat, or are out of order, and what writing raises.
    """
    file.seek(_FIRST * PAGE_BYTES)
    tree = _Tree(file, _FIRST)
    roots = [(name, tree.bucket(buckets[name])) for name in sorted(buckets)]
    root = tree.leaf([(_BUCKET, name, _BUCKET_VALUE.pack(page, 0)) for name, page in roots])
    file.seek(0)
    for txid in (0, 1):
        file.write(_meta(txid, root, tree.next_page))
    file.write(_page(2, _FREELIST, 0, b""))
    return tree.next_page * PAGE_BYTES


class _Tree:
    """Pages in the order they are written, from `first` on."""

    def __init__(self, file: BinaryIO, first: int) -> None:
        self._file = file
        self.next_page = first

    def bucket(self, entries: Iterable[Entry]) -> int:
        """Write the tree of one bucket; gives its root's page."""
        level: list[tuple[bytes, int]] = []
        leaf: list[tuple[int, bytes, bytes]] = []
        room, last = _ROOM, b""
        for key, value in entries:
            if key <= last:
                raise ValueError(f"{key!r} cannot follow {last!r}")
            last = key
            size = _LEAF_ELEMENT.size + len(key) + len(value)
            if leaf and size > room:
                level.append((leaf[0][1], self.leaf(leaf)))
                leaf, room = [], _ROOM
            leaf.append((0, key, value))
            room -= size
        level.append((leaf[0][1] if leaf else b"", self.leaf(leaf)))
        while len(level) > 1:
            level = self._branches(level)
        return level[0][1]

    def _branches(self, level: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
        above: list[tuple[bytes, int]] = []
        branch: list[tuple[bytes, int]] = []
        room = _ROOM
        for key, page in level:
            size = _BRANCH_ELEMENT.size + len(key)
            if len(branch) > 1 and size > room:  # two at least, or the tree would not get lower
                above.append((branch[0][0], self._branch(branch)))
                branch, room = [], _ROOM
            branch.append((key, page))
            room -= size
        above.append((branch[0][0], self._branch(branch)))
        return above

    def leaf(self, elements: list[tuple[int, bytes, bytes]]) -> int:
        heads: list[bytes] = []
        data: list[bytes] = []
        at = _LEAF_ELEMENT.size * len(elements)
        for i, (flags, key, value) in enumerate(elements):
            heads.append(_LEAF_ELEMENT.pack(flags, at - i * _LEAF_ELEMENT.size, len(key), len(value)))
            data += (key, value)
            at += len(key) + len(value)
        return self._append(_LEAF, len(elements), b"".join(heads + data))

    def _branch(self, elements: list[tuple[bytes, int]]) -> int:
        heads: list[bytes] = []
        data: list[bytes] = []
        at = _BRANCH_ELEMENT.size * len(elements)
        for i, (key, page) in enumerate(elements):
            heads.append(_BRANCH_ELEMENT.pack(at - i * _BRANCH_ELEMENT.size, len(key), page))
            data.append(key)
            at += len(key)
        return self._append(_BRANCH, len(elements), b"".join(heads + data))

    def _append(self, flags: int, count: int, body: bytes) -> int:
        page = self.next_page
        written = self._file.write(_page(page, flags, count, body))
        self.next_page += written // PAGE_BYTES
        return page


def _page(id: int, flags: int, count: int, body: bytes) -> bytes:
    pages = -(-(_PAGE.size + len(body)) // PAGE_BYTES)
    return (_PAGE.pack(id, flags, count, pages - 1) + body).ljust(pages * PAGE_BYTES, b"\0")


def _meta(txid: int, root: int, end: int) -> bytes:
    body = _META_BODY.pack(_MAGIC, _VERSION, PAGE_BYTES, 0, root, 0, 2, end, txid)
    return _page(txid, _META, 0, body + struct.pack("<Q", _fnv1a(body)))


def _fnv1a(data: bytes) -> int:
    """FNV-1a of 64 bits, which bbolt's metas are checked by."""
    hash = _FNV_START
    for byte in data:
        hash = (hash ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return hash
