"""Reading a bbolt file, the form of etcd's snapshots: as much as it takes to say what is in one.

    page    | u64 id | u16 flags | u16 count | u32 overflow | elements ... |      little-endian
    meta    magic, version, page size, flags, root page, sequence, free list, end, txid, FNV-1a of these

The newer of two metas that are whole names the page where the tree of buckets begins. A bucket's tree has pages of its
own, or, if it is small, lies in one page's worth of bytes behind its name. Source of the layout: bbolt's structures,
version 2. Nothing in a file is believed: whatever points out of it, or in a circle, is damage.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from functools import cache
from itertools import chain

_MAGIC, _VERSION = 0xED0CDAED, 2
_BRANCH, _LEAF, _META = 0x01, 0x02, 0x04
_BUCKET = 0x01
_PAGE = struct.Struct("<QHHI")
_LEAF_ELEMENT = struct.Struct("<IIII")
_BRANCH_ELEMENT = struct.Struct("<IIQ")
_BUCKET_VALUE = struct.Struct("<QQ")
_META_BODY = struct.Struct("<IIIIQQQQQ")
_HASH = struct.Struct("<Q")
_DEPTH_MAX = 64
_POLYNOMIAL = 0x82F63B78

Buffer = bytes | memoryview


class Damaged(ValueError):
    """It is no whole bbolt file."""


class File:
    """The database in `data`, all of the file's bytes. Raises Damaged, also later, when it is walked through."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        metas = [meta for size in (4096, 8192, 16384, 32768, 65536) for at in (0, size) if (meta := self._meta(at))]
        if not metas:
            raise Damaged("invalid database")
        _, self._page_bytes, self._root, self._end = max(metas)
        if self._end * self._page_bytes > len(self._data):
            raise Damaged("file size too small")

    @property
    def size(self) -> int:
        """Bytes that belong to it."""
        return self._end * self._page_bytes

    def buckets(self) -> Iterator[tuple[bytes, Iterator[tuple[bytes, bytes]]]]:
        """Name and entries of each, in order."""
        seen: set[int] = set()
        for flags, name, value in self._tree(self._root, seen, 0):
            if not flags & _BUCKET or len(value) < _BUCKET_VALUE.size:
                raise Damaged(f"cannot get hash of bucket {name.decode('utf-8', 'replace')}")
            root, _ = _BUCKET_VALUE.unpack_from(value)
            inline = memoryview(value)[_BUCKET_VALUE.size :]
            elements = self._tree(root, seen, 0) if root else self._elements(inline, seen, 0)
            yield name, ((key, entry) for _, key, entry in elements)

    def _meta(self, at: int) -> tuple[int, int, int, int] | None:
        """(txid, page size, root, end), if a whole one is there."""
        start = at + _PAGE.size
        if start + _META_BODY.size + _HASH.size > len(self._data) or not _PAGE.unpack_from(self._data, at)[1] & _META:
            return None
        body = self._data[start : start + _META_BODY.size]
        magic, version, size, _, root, _, _, end, txid = _META_BODY.unpack(body)
        (checksum,) = _HASH.unpack_from(self._data, start + _META_BODY.size)
        whole = (magic, version) == (_MAGIC, _VERSION) and at in (0, size) and checksum == _fnv1a(bytes(body))
        return (txid, size, root, end) if whole else None

    def _tree(self, page: int, seen: set[int], depth: int) -> Iterator[tuple[int, bytes, bytes]]:
        at = page * self._page_bytes
        if page in seen or page >= self._end or depth > _DEPTH_MAX:
            raise Damaged(f"page {page}: out of the file or more than once in it")
        seen.add(page)
        id, _, _, overflow = _PAGE.unpack_from(self._data, at)
        if id != page or page + overflow >= self._end:
            raise Damaged(f"page {page}: says it is page {id} with {overflow} more")
        return self._elements(self._data[at : at + (1 + overflow) * self._page_bytes], seen, depth)

    def _elements(self, page: memoryview, seen: set[int], depth: int) -> Iterator[tuple[int, bytes, bytes]]:
        if len(page) < _PAGE.size:
            raise Damaged("a bucket breaks off")
        _, flags, count, _ = _PAGE.unpack_from(page)
        element = _LEAF_ELEMENT if flags == _LEAF else _BRANCH_ELEMENT
        if flags not in (_LEAF, _BRANCH) or _PAGE.size + count * element.size > len(page):
            raise Damaged(f"a page with {count} elements of kind {flags}")
        places = range(_PAGE.size, _PAGE.size + count * element.size, element.size)
        if flags == _BRANCH:
            below = (self._tree(_BRANCH_ELEMENT.unpack_from(page, at)[2], seen, depth + 1) for at in places)
            return chain.from_iterable(below)
        return (_leaf(page, at) for at in places)


def _leaf(page: memoryview, at: int) -> tuple[int, bytes, bytes]:
    flags, offset, key, value = _LEAF_ELEMENT.unpack_from(page, at)
    start = at + offset
    if start + key + value > len(page):
        raise Damaged("an element points out of its page")
    return flags, bytes(page[start : start + key]), bytes(page[start + key : start + key + value])


def _fnv1a(data: bytes) -> int:
    hash = 0xCBF29CE484222325
    for byte in data:
        hash = (hash ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return hash


class Crc32c:
    """CRC-32C (Castagnoli) of bytes as they come: what etcd's tools call the hash of a snapshot. About 30 MB/s."""

    def __init__(self) -> None:
        self._crc = 0xFFFFFFFF
        self._odd = b""

    def update(self, data: bytes) -> None:
        data = self._odd + data
        even = len(data) & ~1
        self._odd = data[even:]
        words = array("H", data[:even])
        if sys.byteorder == "big":
            words.byteswap()
        crc, table = self._crc, _table()
        for word in words:
            crc = table[(crc ^ word) & 0xFFFF] ^ crc >> 16
        self._crc = crc

    @property
    def value(self) -> int:
        crc = self._crc
        for byte in self._odd:  # one, or none
            crc = _bits((crc ^ byte) & 0xFF) ^ crc >> 8
        return crc ^ 0xFFFFFFFF


def _bits(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc


@cache
def _table() -> list[int]:
    """What two bytes make of nothing: bytes taken in pairs halve the work."""
    one = list(map(_bits, range(256)))
    halves = (one[pair & 0xFF] ^ pair >> 8 for pair in range(1 << 16))
    return [one[half & 0xFF] ^ half >> 8 for half in halves]
