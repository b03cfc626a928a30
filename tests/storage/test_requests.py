"""What is refused where it enters, with which words, and which way the rest goes."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage import requests
from storage.requests import Limits, Path, admit, cost
from tests.storage.requests_at_random import Dice
from tests.storage.support import METHOD_OF, delete_op, put_op, range_op, txn_op

LIMITS = Limits()


def admitted(request: Any, limits: Limits = LIMITS) -> Path:
    return admit(METHOD_OF[type(request)], request.SerializeToString(), limits)


def txn(*success: pb.RequestOp, failure: Any = (), compare: Any = ()) -> pb.TxnRequest:
    return pb.TxnRequest(compare=compare, success=success, failure=failure)


NO_KEY = pb.Compare(target=pb.Compare.VERSION)

REFUSED = [
    (pb.RangeRequest(), errors.EmptyKey),
    (pb.RangeRequest(range_end=b"z"), errors.EmptyKey),
    (pb.PutRequest(value=b"v"), errors.EmptyKey),
    (pb.DeleteRangeRequest(range_end=b"\0"), errors.EmptyKey),
    (txn(compare=[NO_KEY]), errors.EmptyKey),
    (txn(put_op(b"")), errors.EmptyKey),
    (txn(range_op(b"")), errors.EmptyKey),
    (txn(delete_op(b"")), errors.EmptyKey),
    (txn(failure=[put_op(b"")]), errors.EmptyKey),
    (txn(txn_op(failure=[txn_op(success=[put_op(b"")])])), errors.EmptyKey),
    (txn(txn_op(compare=[NO_KEY])), errors.EmptyKey),
    (txn(pb.RequestOp()), errors.KeyNotFound),
    (txn(failure=[pb.RequestOp()]), errors.KeyNotFound),
    (pb.PutRequest(key=b"k", value=b"v", ignore_value=True), errors.ValueProvided),
    (pb.PutRequest(key=b"k", lease=1, ignore_lease=True), errors.LeaseProvided),
    (txn(put_op(b"k", b"v", ignore_value=True)), errors.ValueProvided),
    (txn(failure=[put_op(b"k", lease=1, ignore_lease=True)]), errors.LeaseProvided),
    (pb.RangeRequest(key=b"k", sort_order=3), errors.InvalidSortOption),
    (pb.RangeRequest(key=b"k", sort_order=-1), errors.InvalidSortOption),
    (pb.RangeRequest(key=b"k", sort_target=9), errors.InvalidSortOption),
    (txn(range_op(b"k", sort_target=5)), errors.InvalidSortOption),
    (txn(*(put_op(b"%d" % n) for n in range(129))), errors.TooManyOps),
    (txn(failure=[range_op(b"k")] * 129), errors.TooManyOps),
    (txn(compare=[pb.Compare(key=b"k")] * 129), errors.TooManyOps),
    (txn(compare=[NO_KEY] * 129), errors.TooManyOps),
    (pb.PutRequest(key=b"k", value=bytes(1572864)), errors.RequestTooLarge),
    (txn(put_op(b"k", bytes(1572864))), errors.RequestTooLarge),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_refused(number: int) -> None:
    """Reliability 3, with etcd's errors."""
    request, error = REFUSED[number]
    with pytest.raises(errors.Refused) as caught:
        admitted(request)
    assert type(caught.value) is error


def test_the_limits_are_inclusive() -> None:
    put = pb.PutRequest(key=b"k")
    put.value = bytes(1572864 - put.ByteSize() - 4)
    assert put.ByteSize() == 1572864
    assert admitted(put) == Path.WRITE
    put.value += b"\0"
    with pytest.raises(errors.RequestTooLarge):
        admitted(put)
    assert admitted(put, Limits(max_request_bytes=1572865)) == Path.WRITE
    assert admitted(txn(*(put_op(b"%d" % n) for n in range(128)))) == Path.WRITE


def test_nested_transactions_share_the_limit() -> None:
    """API reference 6.4: each level takes its longest list from what is left."""

    def nested(outer: int, inner: int) -> pb.TxnRequest:
        child = txn_op(success=[put_op(b"i%d" % n) for n in range(inner)])
        return txn(child, *(put_op(b"o%d" % n) for n in range(outer - 1)))

    assert admitted(nested(100, 28)) == Path.WRITE
    with pytest.raises(errors.TooManyOps):
        admitted(nested(100, 29))
    with pytest.raises(errors.TooManyOps):
        admitted(nested(128, 1))
    with pytest.raises(errors.TooManyOps):
        admitted(nested(2, 3), Limits(max_txn_ops=4))


DUPLICATE = [
    (put_op(b"a"), put_op(b"a")),
    (put_op(b"a"), delete_op(b"a")),
    (delete_op(b"a"), put_op(b"a")),
    (put_op(b"b"), delete_op(b"a", b"c")),
    (put_op(b"a"), delete_op(b"a", b"a\0")),
    (put_op(b"a"), txn_op(success=[put_op(b"a")])),
    (txn_op(success=[put_op(b"a")]), put_op(b"a")),
    (txn_op(success=[put_op(b"a")]), txn_op(failure=[put_op(b"a")])),
    (delete_op(b"a", b"c"), txn_op(failure=[put_op(b"b")])),
    (txn_op(success=[delete_op(b"a")]), put_op(b"a")),
    (txn_op(success=[delete_op(b"a")]), txn_op(success=[put_op(b"a")])),
    (txn_op(success=[put_op(b"a")]), txn_op(success=[delete_op(b"a")])),
    (txn_op(success=[txn_op(failure=[put_op(b"b")])]), txn_op(failure=[delete_op(b"a", b"c")])),
    (txn_op(success=[put_op(b"x"), put_op(b"x")]),),
    (txn_op(failure=[put_op(b"x"), delete_op(b"x")]),),
]

NO_DUPLICATE = [
    (put_op(b"a"), put_op(b"b")),
    (delete_op(b"a"), delete_op(b"a")),
    (delete_op(b"a", b"c"), delete_op(b"b", b"d")),
    (put_op(b"c"), delete_op(b"a", b"c")),
    (put_op(b"b"), delete_op(b"c", b"a")),
    (put_op(b"a"), range_op(b"a")),
    (txn_op(success=[put_op(b"a")], failure=[put_op(b"a")]),),
    (txn_op(success=[put_op(b"a")], failure=[delete_op(b"a")]),),
    (txn_op(success=[put_op(b"a"), txn_op(failure=[put_op(b"b")])], failure=[delete_op(b"a", b"z")]),),
    (delete_op(b"a", b"\0"), put_op(b"b")),
    (put_op(b"b"), delete_op(b"\0", b"\0")),
]


@pytest.mark.parametrize("number", range(len(DUPLICATE)))
@pytest.mark.parametrize("branch", ["success", "failure"])
def test_no_key_is_put_twice_or_put_and_deleted(number: int, branch: str) -> None:
    """API reference 6.4, over nesting too."""
    with pytest.raises(errors.DuplicateKey):
        admitted(pb.TxnRequest(**{branch: DUPLICATE[number]}))


@pytest.mark.parametrize("number", range(len(NO_DUPLICATE)))
def test_what_is_no_duplicate(number: int) -> None:
    """Branches exclude each other, deletions may overlap, and an open-ended deletion is not held against a put, as etcd
    3.5.1 was seen to answer."""
    assert admitted(txn(*NO_DUPLICATE[number])) == Path.WRITE
    assert admitted(txn(failure=NO_DUPLICATE[number])) == Path.WRITE


def test_duplicates_are_found_as_by_looking_at_each_pair() -> None:
    """The sweep over sorted marks against the rule, spelled out."""

    def leaves(ops: Any, path: tuple[Any, ...]) -> Any:
        for at, op in enumerate(ops):
            if op.HasField("request_txn"):
                for name in ("success", "failure"):
                    yield from leaves(getattr(op.request_txn, name), (*path, (at, name)))
            else:
                yield path, op

    def exclusive(one: Any, other: Any) -> bool:
        for (at, name), (other_at, other_name) in zip(one, other, strict=False):
            if at != other_at:
                return False
            if name != other_name:
                return True
        return False

    def clashes(one: pb.RequestOp, other: pb.RequestOp) -> bool:
        if not one.HasField("request_put"):
            return False
        key = one.request_put.key
        if other.HasField("request_put"):
            return key == other.request_put.key
        if not other.HasField("request_delete_range"):
            return False
        start, end = other.request_delete_range.key, other.request_delete_range.range_end
        return key == start if not end else end != b"\0" and start <= key < end

    dice = Dice(5)
    found = {True: 0, False: 0}
    for _ in range(3000):
        request = pb.TxnRequest(success=dice.ops(0))
        ops = list(leaves(request.success, ()))
        duplicate = any(
            clashes(a, b) and not exclusive(path, other)
            for i, (path, a) in enumerate(ops)
            for j, (other, b) in enumerate(ops)
            if i != j
        )
        try:
            requests._claims(requests.parse(Method.TXN, request.SerializeToString()).success)
            got = False
        except errors.DuplicateKey:
            got = True
        except errors.Refused:
            continue
        assert got == duplicate, request
        found[got] += 1
    assert min(found.values()) > 300


def test_reads_go_the_way_they_ask_for() -> None:
    """API reference 6.4: a transaction that only reads is as serializable as all its ranges; an empty one is."""
    near, far = range_op(b"k", serializable=True), range_op(b"k")
    assert admitted(pb.RangeRequest(key=b"k")) == Path.LINEARIZABLE
    assert admitted(pb.RangeRequest(key=b"k", serializable=True)) == Path.SERIALIZABLE
    assert admitted(txn()) == Path.SERIALIZABLE
    assert admitted(txn(near, failure=[near])) == Path.SERIALIZABLE
    assert admitted(txn(near, failure=[far])) == Path.LINEARIZABLE
    assert admitted(txn(compare=[pb.Compare(key=b"k")])) == Path.SERIALIZABLE
    assert admitted(txn(near, failure=[put_op(b"k")])) == Path.WRITE
    assert admitted(txn(near, delete_op(b"k"))) == Path.WRITE
    assert admitted(txn(txn_op(success=[near]))) == Path.WRITE
    assert admitted(pb.PutRequest(key=b"k")) == Path.WRITE
    assert admitted(pb.DeleteRangeRequest(key=b"k")) == Path.WRITE
    assert admitted(pb.CompactionRequest(revision=1)) == Path.WRITE


def test_large_reads_are_not_refused_for_their_size() -> None:
    assert admitted(pb.RangeRequest(key=bytes(2 << 20))) == Path.LINEARIZABLE


def test_other_methods_are_not_judged_here() -> None:
    for method in (0, Method.WATCH, Method.STATUS, Method.HELLO, 255):
        with pytest.raises(errors.Unimplemented):
            admit(method, b"", LIMITS)


def bomb(depth: int) -> bytes:
    """A transaction in a transaction in a transaction ..., `depth` of them."""
    body = b""
    for _ in range(depth):
        inner = b"\x22" + size(len(body)) + body  # RequestOp.request_txn
        body = b"\x12" + size(len(inner)) + inner  # TxnRequest.success
    return body


def size(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


@pytest.mark.parametrize("depth", [30, 45, 50, 60, 100, 1000, 20000])
def test_a_depth_bomb_is_a_clean_error(depth: int) -> None:
    """Reliability T14: no recursion error, no crash, whatever the depth; without limits, as apply parses it, too."""
    payload = bomb(depth)
    for max_txn_ops in (128, None):
        try:
            requests.parse(Method.TXN, payload, max_txn_ops)
        except (errors.Malformed, errors.TooManyOps):
            assert depth > 40
        else:
            assert depth < 100


def test_a_breadth_bomb_takes_no_quadratic_time() -> None:
    """As many puts and deletions as the limits let through must be judged in about the time it takes to read them."""

    def level(depth: int, name: bytes) -> list[pb.RequestOp]:
        if depth == 0:
            half = [put_op(name + b"p%02d" % n) for n in range(21)]
            return half + [delete_op(name + b"d%02d" % n, name + b"d%02d~" % n) for n in range(21)]
        return [txn_op(success=level(depth - 1, name + b"%02d" % n)) for n in range(42)]

    request = pb.TxnRequest(success=level(2, b""))
    payload = request.SerializeToString()
    assert len(payload) > 1_000_000
    started = time.process_time()
    requests.parse(Method.TXN, payload, 128)
    assert time.process_time() - started < 5


def test_junk_is_malformed_or_understood_and_nothing_else() -> None:
    """Reliability 3: no hang, no crash."""
    dice, shapes = random.Random(11), Dice(11)
    for n in range(20_000):
        if n % 2:
            payload = dice.randbytes(dice.randint(0, 40))
        else:
            good = bytearray(shapes.write().SerializeToString())
            for _ in range(dice.randint(1, 3)):
                if good:
                    good[dice.randrange(len(good))] = dice.randrange(256)
            payload = bytes(good[: dice.randint(0, len(good))])
        try:
            path = admit(dice.choice([2, 3, 4, 5, 6]), payload, LIMITS)
        except errors.Refused:
            continue
        assert path in Path


def test_the_short_way_to_a_key_agrees_with_protobuf() -> None:
    dice = Dice(2)
    for _ in range(20_000):
        request = (
            dice.range(0.1)
            if dice.maybe(0.5)
            else pb.RangeRequest(key=dice.random.randbytes(dice.random.randint(0, 140)))
        )
        request.serializable = dice.maybe()
        payload = request.SerializeToString()
        if dice.maybe(0.2):
            payload = payload[: dice.random.randint(0, len(payload))]
        key = requests.lone_key(payload)
        if key is not None:
            read = pb.RangeRequest.FromString(payload)
            read.serializable = False
            assert read == pb.RangeRequest(key=key)
            assert key
    assert requests.lone_key(pb.RangeRequest(key=b"k").SerializeToString()) == b"k"
    assert requests.lone_key(pb.RangeRequest(key=b"k", serializable=True).SerializeToString()) == b"k"


def test_cost_counts_what_a_request_may_add() -> None:
    """API reference 6.2: 256 + key + value; of a transaction, the dearer branch."""
    big, small = put_op(b"key", bytes(100)), put_op(b"k", b"v")
    assert cost(Method.PUT, big.request_put.SerializeToString()) == 256 + 3 + 100
    both = txn(small, delete_op(b"x"), range_op(b"y"), failure=[big, small])
    assert cost(Method.TXN, both.SerializeToString()) == 359 + 258
    nested = txn(txn_op(success=[small], failure=[big]), put_op(b"z", b"v"))
    assert cost(Method.TXN, nested.SerializeToString()) == 359 + 258
    assert cost(Method.DELETE_RANGE, b"") == cost(Method.COMPACT, b"junk") == 0
    with pytest.raises(errors.Malformed):
        cost(Method.PUT, b"\xff")
