"""Batches of requests drawn from a seed: most of the usual shapes, every now and then with something unusual."""

from __future__ import annotations

import random

from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind
from tests.storage.requests_at_random import Dice
from tests.storage.support import METHOD_OF


def usual_txn(dice: Dice) -> pb.TxnRequest:
    """Single keys and simple operations; some will put a key twice, put and delete it, or write nothing."""
    return pb.TxnRequest(
        compare=[usual_compare(dice) for _ in range(dice.random.choice([0, 1, 1, 1, 2, 5]))],
        success=[usual_op(dice) for _ in range(dice.random.randint(0, 3))],
        failure=[usual_op(dice) for _ in range(dice.random.randint(0, 2))],
    )


def usual_compare(dice: Dice) -> pb.Compare:
    target = dice.random.randint(0, 3)
    compare = pb.Compare(key=dice.key(), target=target, result=dice.random.randint(0, 3))  # type: ignore[arg-type]
    if dice.maybe(0.9):
        number = dice.random.choice([0, 1, 2, dice.revision, 2**62])
        name = ("version", "create_revision", "mod_revision", "value")[target]
        setattr(compare, name, dice.value() if target == 3 else number)
    return compare


def usual_op(dice: Dice) -> pb.RequestOp:
    which = dice.random.randrange(4)
    if which == 0:
        return pb.RequestOp(request_range=pb.RangeRequest(key=dice.key(), serializable=dice.maybe(0.1)))
    if which == 1:
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=dice.key()))
    return pb.RequestOp(request_put=pb.PutRequest(key=dice.key(), value=dice.value()))


def request(dice: Dice) -> tuple[int, bytes]:
    """Method and payload, of bytes that protobuf might not have written."""
    if dice.maybe(0.3):
        message = dice.write()
    elif dice.maybe(0.4):
        message = pb.PutRequest(key=dice.key(), value=dice.value())
    else:
        message = usual_txn(dice)
    payload = message.SerializeToString()
    if dice.maybe(0.1):
        payload += message.SerializeToString()  # protobuf takes the last of a field, and joins lists
    if dice.maybe(0.1) and payload:
        at = dice.random.randrange(len(payload))
        payload = payload[:at] + bytes([dice.random.randrange(256)]) + payload[at + dice.random.randrange(2) :]
    return METHOD_OF[type(message)], payload


def some_batch(seed: int, count: int = 40) -> bytes:
    dice = Dice(seed)
    dice.revision = 50
    records = []
    for id in range(count):
        method, payload = request(dice)
        kind = Kind.CALL if dice.maybe(0.98) else Kind.REPLY
        records.append(wire.encode(method, kind, 0, dice.random.choice([id, 2**64 - 1 - id]), payload))
    random.Random(seed).shuffle(records)
    return b"".join(records)
