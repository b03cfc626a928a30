"""A bbolt file, made from beginning to end: the form in which etcd's own tools take a keyspace.

    page 0, 1   meta: the newer one (by txid) counts; it names the root, the free list and the end of the file
    page 2      free list, empty: nothing here was ever freed
    page 3 ..   per bucket: leaves in key order, then the branches over them, level by level
    last        the root: a leaf that maps each bucket's name to the page of its tree

A page is 4096 bytes, or a multiple of that where one element is larger:

    0    8       10      12         16
    | id | flags | count | overflow | elements, then what they point to ...             little-endian, no padding

    element of a leaf     u32 flags (1: a bucket) | u32 offset of the key from here | u32 key bytes | u32 value bytes
    element of a branch   u32 offset of the key from here | u32 key bytes | u64 page

Because entries come in key order, a tree is built bottom up: full leaves are given away at once, and of each only its
first key and its number are kept (about 100 bytes a leaf). The metas come first and say where the root is, so there are
two walks: `plan` finds out and keeps nothing else, `pages` gives the pages in the order of the file. Both must find the
same entries. So a database can be sent while it is made, and whoever sends it knows from the beginning how large it
will be.

Source of the layout: bbolt's page, node and meta structures, version 2. Pure.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import NamedTuple

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


Source = Callable[[], Iterable[Entry]]
"""Gives a bucket's entries, if it has any, in ascending order of their keys, each once; asked again, the same."""
Buckets = Mapping[bytes, Source]
"""By name."""


class Plan(NamedTuple):
    """Of a database: the page of its root, and how many pages it has."""

    root: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end * PAGE_BYTES


def plan(buckets: Buckets) -> Plan:
    """Walk through everything once. Raises ValueError if keys are empty, repeat, or are out of order."""
    found: list[Plan] = []
    deque(_planned(buckets, found), maxlen=0)
    return found[0]


def pages(buckets: Buckets, plan: Plan) -> Iterator[bytes]:
    """The database from beginning to end, in pieces of whole pages.

    Raises ValueError as `plan` does, and at the end if the entries were not those that were planned.
    """
    for txid in (0, 1):
        yield _meta(txid, plan)
    yield _page(2, _FREELIST, 0, b"")
    found: list[Plan] = []
    yield from _planned(buckets, found)
    if found != [plan]:
        raise ValueError(f"the entries have changed: {plan} was planned, {found[0]} came of it")


def _planned(buckets: Buckets, found: list[Plan]) -> Iterator[bytes]:
    tree = _Tree(_FIRST)
    roots: list[tuple[int, bytes, bytes]] = []
    for name in sorted(buckets):
        page = yield from tree.bucket(buckets[name]())
        roots.append((_BUCKET, name, _BUCKET_VALUE.pack(page, 0)))
    root = tree.next_page
    yield tree.leaf(roots)
    found.append(Plan(root, tree.next_page))


class _Tree:
    """Pages in the order of the file, from `first` on."""

    def __init__(self, first: int) -> None:
        self.next_page = first

    def bucket(self, entries: Iterable[Entry]) -> Generator[bytes, None, int]:
        """The tree of one bucket; returns its root's page."""
        level: list[tuple[bytes, int]] = []
        leaf: list[tuple[int, bytes, bytes]] = []
        room, last = _ROOM, b""
        for key, value in entries:
            if key <= last:
                raise ValueError(f"{key!r} cannot follow {last!r}")
            last = key
            size = _LEAF_ELEMENT.size + len(key) + len(value)
            if leaf and size > room:
                level.append((leaf[0][1], self.next_page))
                yield self.leaf(leaf)
                leaf, room = [], _ROOM
            leaf.append((0, key, value))
            room -= size
        level.append((leaf[0][1] if leaf else b"", self.next_page))
        yield self.leaf(leaf)
        while len(level) > 1:
            level = yield from self._branches(level)
        return level[0][1]

    def _branches(self, level: list[tuple[bytes, int]]) -> Generator[bytes, None, list[tuple[bytes, int]]]:
        above: list[tuple[bytes, int]] = []
        branch: list[tuple[bytes, int]] = []
        room = _ROOM
        for key, page in level:
            size = _BRANCH_ELEMENT.size + len(key)
            if len(branch) > 1 and size > room:  # two at least, or the tree would not get lower
                above.append((branch[0][0], self.next_page))
                yield self._branch(branch)
                branch, room = [], _ROOM
            branch.append((key, page))
            room -= size
        above.append((branch[0][0], self.next_page))
        yield self._branch(branch)
        return above

    def leaf(self, elements: list[tuple[int, bytes, bytes]]) -> bytes:
        heads: list[bytes] = []
        data: list[bytes] = []
        at = _LEAF_ELEMENT.size * len(elements)
        for i, (flags, key, value) in enumerate(elements):
            heads.append(_LEAF_ELEMENT.pack(flags, at - i * _LEAF_ELEMENT.size, len(key), len(value)))
            data += (key, value)
            at += len(key) + len(value)
        return self._append(_LEAF, len(elements), b"".join(heads + data))

    def _branch(self, elements: list[tuple[bytes, int]]) -> bytes:
        heads: list[bytes] = []
        data: list[bytes] = []
        at = _BRANCH_ELEMENT.size * len(elements)
        for i, (key, page) in enumerate(elements):
            heads.append(_BRANCH_ELEMENT.pack(at - i * _BRANCH_ELEMENT.size, len(key), page))
            data.append(key)
            at += len(key)
        return self._append(_BRANCH, len(elements), b"".join(heads + data))

    def _append(self, flags: int, count: int, body: bytes) -> bytes:
        page = _page(self.next_page, flags, count, body)
        self.next_page += len(page) // PAGE_BYTES
        return page


def _page(id: int, flags: int, count: int, body: bytes) -> bytes:
    pages = -(-(_PAGE.size + len(body)) // PAGE_BYTES)
    return (_PAGE.pack(id, flags, count, pages - 1) + body).ljust(pages * PAGE_BYTES, b"\0")


def _meta(txid: int, plan: Plan) -> bytes:
    body = _META_BODY.pack(_MAGIC, _VERSION, PAGE_BYTES, 0, plan.root, 0, 2, plan.end, txid)
    return _page(txid, _META, 0, body + struct.pack("<Q", _fnv1a(body)))


def _fnv1a(data: bytes) -> int:
    """FNV-1a of 64 bits, which bbolt's metas are checked by."""
    hash = _FNV_START
    for byte in data:
        hash = (hash ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return hash
