"""What is called plain is what protobuf and the rules make of the same bytes; and all that is usual is plain."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind, Method
from native import plain
from native.plain import Scanner
from storage import requests
from tests.native.batches import some_batch, usual_txn
from tests.storage.requests_at_random import Dice

TARGETS = ("version", "create_revision", "mod_revision", "value")


def shown(batch: bytes, numbers: list[int]) -> list[Any]:
    """The numbers as what they say: (id, None) for what isn't plain, else (id, what it is)."""

    def part(at: int) -> bytes:
        return batch[numbers[at] : numbers[at + 1]]

    def ops(at: int, count: int) -> list[Any]:
        return [(numbers[i], part(i + 1), part(i + 3)) for i in range(at, at + 5 * count, 5)]

    found: list[Any] = []
    at = 0
    while at < len(numbers):
        tag, id = numbers[at], numbers[at + 1]
        if tag == plain.OTHER:
            found.append((id, None))
            at += 5
        elif tag == plain.PUT:
            found.append((id, (part(at + 2), part(at + 4))))
            at += 6
        else:
            assert tag == plain.TXN
            end, count = numbers[at + 2], numbers[at + 3]
            at += 4
            compares = []
            for _ in range(count):
                target, result = numbers[at], numbers[at + 1]
                compares.append((target, result, part(at + 2), part(at + 4) if target == 3 else numbers[at + 4]))
                at += 6
            success, failure = numbers[at], numbers[at + 1]
            then = ops(at + 2, success)
            found.append((id, (compares, then, ops(at + 2 + 5 * success, failure))))
            at += 2 + 5 * (success + failure)
            assert at == end
    return found


def expected(record: wire.Record, ops_max: int | None = None) -> Any:
    """What the long way makes of a record, in the same form. Raises KvorumError where it is refused."""
    request = requests.parse(record.method, record.payload, ops_max)
    if isinstance(request, pb.PutRequest):
        assert request == pb.PutRequest(key=request.key, value=request.value)
        return request.key, request.value
    compares = []
    for compare in request.compare:
        assert not compare.range_end
        compares.append((compare.target, compare.result, compare.key, getattr(compare, TARGETS[compare.target])))
    assert not requests.read_only(request)
    return compares, [op(one) for one in request.success], [op(one) for one in request.failure]


def op(request: Any) -> Any:
    if isinstance(request, pb.PutRequest):
        assert request == pb.PutRequest(key=request.key, value=request.value)
        return plain.PUT, request.key, request.value
    if isinstance(request, pb.RangeRequest):
        assert request == pb.RangeRequest(key=request.key, serializable=request.serializable)
        return plain.GET, request.key, b""
    assert request == pb.DeleteRangeRequest(key=request.key)
    return plain.DELETE, request.key, b""


@pytest.mark.parametrize("seed", range(200))
def test_what_is_plain_is_what_the_long_way_finds(seed: int) -> None:
    """Bytes that protobuf would not write, repeated fields, refused requests and replies included."""
    batch = some_batch(seed)
    scanned = Scanner().scan(batch)
    assert scanned is not None
    found, records = shown(batch, scanned[0]), wire.decode(batch)
    assert [id for id, _ in found] == [record.id for record in records]
    assert scanned[1] == sum(what is None for _, what in found)
    for (_, what), record in zip(found, records, strict=True):
        if what is not None:
            assert record.kind == Kind.CALL
            assert what == expected(record)


def test_what_is_usual_is_plain() -> None:
    """Else everything would be true of a scanner that finds nothing."""
    dice, scanner, txns = Dice(1), Scanner(), 0
    for _ in range(2000):
        txn = usual_txn(dice)
        record = wire.Record(Method.TXN, Kind.CALL, 0, 1, txn.SerializeToString())
        scanned = scanner.scan(wire.encode(*record))
        assert scanned is not None
        try:
            wanted = requests.parse(Method.TXN, record.payload)
        except errors.KvorumError:
            assert scanned[1] == 1
            continue
        assert scanned[1] == requests.read_only(wanted)
        txns += not scanned[1]
    assert txns > 500
    for key, value in ((b"k", b""), (b"\0" * 200, b"v" * 100_000)):
        batch = wire.encode(Method.PUT, Kind.CALL, 0, 7, pb.PutRequest(key=key, value=value).SerializeToString())
        assert shown(batch, scanner.scan(batch)[0]) == [(7, (key, value))]  # type: ignore[index]


def test_limits_are_the_callers() -> None:
    def others(scanner: Scanner, message: Any, method: Method) -> int:
        scanned = scanner.scan(wire.encode(method, Kind.CALL, 0, 1, message.SerializeToString()))
        assert scanned is not None
        return scanned[1]

    put = pb.PutRequest(key=b"k", value=bytes(100))
    size = len(put.SerializeToString())
    assert [others(Scanner(payload_max=limit), put, Method.PUT) for limit in (size - 1, size)] == [1, 0]
    for count in (3, plain.LIST_MAX, plain.LIST_MAX + 1):
        gets = [pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))] * (count - 1)
        for txn in (
            pb.TxnRequest(success=[pb.RequestOp(request_put=put), *gets]),
            pb.TxnRequest(failure=[*gets, pb.RequestOp(request_put=put)]),
            pb.TxnRequest(compare=[pb.Compare(key=b"k")] * count, success=[pb.RequestOp(request_put=put)]),
        ):
            assert others(Scanner(), txn, Method.TXN) == (count > plain.LIST_MAX)
            assert others(Scanner(ops_max=count - 1), txn, Method.TXN) == 1
            assert others(Scanner(ops_max=count), txn, Method.TXN) == (count > plain.LIST_MAX)


@pytest.mark.parametrize("seed", range(20))
def test_a_key_changed_twice_is_found_among_many(seed: int) -> None:
    dice, scanner = random.Random(seed), Scanner()
    keys = [b"key-%08d" % n for n in dice.sample(range(10**8), plain.LIST_MAX - 1)]
    puts = [pb.RequestOp(request_put=pb.PutRequest(key=key)) for key in keys]
    again = {
        "put": (pb.RequestOp(request_put=pb.PutRequest(key=dice.choice(keys))), 1),
        "delete": (pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=dice.choice(keys))), 1),
        "read": (pb.RequestOp(request_range=pb.RangeRequest(key=dice.choice(keys))), 0),
        "another": (pb.RequestOp(request_put=pb.PutRequest(key=b"another")), 0),
    }
    for op, unusual in again.values():
        at = dice.randrange(len(puts) + 1)
        txn = pb.TxnRequest(success=[*puts[:at], op, *puts[at:]])
        scanned = scanner.scan(wire.encode(Method.TXN, Kind.CALL, 0, 1, txn.SerializeToString()))
        assert scanned is not None
        assert scanned[1] == unusual


def test_a_batch_that_breaks_off_is_left_to_the_long_way() -> None:
    batch = some_batch(3, 8)
    for cut in range(len(batch)):
        try:
            wire.decode(batch[:cut])
        except wire.MalformedBatch:
            assert Scanner().scan(batch[:cut]) is None
        else:
            assert Scanner().scan(batch[:cut]) is not None


def test_room_grows_with_the_batches_up_to_a_bound() -> None:
    scanner = Scanner()
    small = wire.encode(Method.PUT, Kind.CALL, 0, 1, pb.PutRequest(key=b"k").SerializeToString())
    for count in (1, 10_000, 3, 40_000):
        scanned = scanner.scan(small * count)
        assert scanned is not None
        assert len(scanned[0]) == 6 * count
    assert scanner.scan(small * (plain.ROOM_MAX // 6 + 1)) is None
    assert scanner.scan(small) is not None
