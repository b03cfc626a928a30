"""Batches: what is taken apart, and what is refused before it is."""

from __future__ import annotations

import random

import pytest

from kvorum import wire
from kvorum.wire import HEADER, MalformedBatch


def batch(count: int, payload: bytes = b"") -> bytes:
    return wire.encode(3, 0, 0, 7, payload) * count


def test_what_was_put_together_is_taken_apart() -> None:
    records = [wire.Record(method, method % 5, method % 17, method * 1000, bytes(method)) for method in range(256)]
    assert wire.decode(b"".join(wire.encode(*record) for record in records)) == records
    assert wire.decode(b"") == []


@pytest.mark.parametrize("payload", [b"", b"x", bytes(100)])
def test_as_many_records_as_allowed_and_not_one_more(payload: bytes) -> None:
    assert len(wire.decode(batch(50, payload), 50)) == 50
    with pytest.raises(MalformedBatch, match="over 50 records"):
        wire.decode(batch(51, payload), 50)
    assert len(wire.decode(batch(51, payload))) == 51, "without a bound as many as there are"


def test_a_few_large_records_are_not_many() -> None:
    assert len(wire.decode(batch(3, bytes(1000 * HEADER.size)), 50)) == 3


def test_a_batch_that_breaks_off_is_refused_wherever_it_does() -> None:
    whole = batch(3, b"payload")
    ends = {0, len(whole) // 3, 2 * len(whole) // 3, len(whole)}
    for size in range(len(whole) + 1):
        if size in ends:
            assert len(wire.decode(whole[:size], 50)) == 3 * size // len(whole)
        else:
            with pytest.raises(MalformedBatch, match="breaks off"):
                wire.decode(whole[:size], 50)


def test_any_bytes_are_records_or_refused() -> None:
    dice = random.Random(1)
    for _ in range(5000):
        junk = dice.randbytes(dice.randrange(80)) if dice.random() < 0.5 else bytes(dice.choices(b"\0\0\0\1\5", k=50))
        try:
            records = wire.decode(junk, 2)
        except MalformedBatch:
            continue
        assert b"".join(wire.encode(*record) for record in records) == junk
        assert len(records) <= 2


def test_a_batch_over_the_size_is_refused() -> None:
    with pytest.raises(MalformedBatch, match="over the limit"):
        wire.decode(bytes(wire.BATCH_BYTES_MAX + 1))
