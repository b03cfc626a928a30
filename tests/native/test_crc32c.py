"""CRC-32C: the processor's instruction and the table are one function, and it is the right one."""

from __future__ import annotations

import random

import pytest

from native._wal import ffi, lib

POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41 with its bits reversed


def slow(data: bytes) -> int:
    """CRC-32C bit by bit, as its definition says."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (POLYNOMIAL if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize("crc", [lib.crc32c, lib.crc32c_table])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value of the catalogues of CRCs
        (bytes(32), 0x8A9136AA),  # RFC 3720 B.4, as are the next three
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_the_published_values_come_out(crc: object, data: bytes, expected: int) -> None:
    """RFC 3720, appendix B.4."""
    assert crc(0, data, len(data)) == expected == slow(data)


def test_both_ways_and_the_definition_agree_on_every_length_and_alignment() -> None:
    dice = random.Random(1)
    memory = ffi.from_buffer(content := dice.randbytes(4096))
    for length in [*range(200), 1000, 3001]:
        at = dice.randrange(4096 - length)
        begin = dice.getrandbits(32)
        assert lib.crc32c(begin, memory + at, length) == lib.crc32c_table(begin, memory + at, length)
        if length < 64:
            assert lib.crc32c(0, memory + at, length) == slow(content[at : at + length])


def test_pieces_add_up() -> None:
    """The checksum so far goes in, the checksum of all comes out."""
    data = random.Random(2).randbytes(1000)
    whole = lib.crc32c(0, data, len(data))
    for cut in range(0, 1000, 37):
        assert lib.crc32c(lib.crc32c(0, data[:cut], cut), data[cut:], 1000 - cut) == whole


def test_what_begins_differently_never_meets() -> None:
    """The argument why a recycled segment's old records never pass (wal_format.h): other seeds, other checksums."""
    data = random.Random(3).randbytes(16)
    seeds = random.Random(4).sample(range(1 << 32), 20_000)
    assert len({lib.crc32c(seed, data, len(data)) for seed in seeds}) == len(seeds)


def test_the_way_taken_is_known() -> None:
    assert ffi.string(lib.crc32c_way()) in (b"sse4.2", b"armv8", b"table")
