"""The store beside a real etcd 3.5.1: the same random requests, the same answers (comparable.py: what is left out)."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import METHODS, Method
from tests import etcds
from tests.storage.comparable import bare, tamed
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
        return bare(request, response)


def ours(store: Store, request: Any) -> Any:
    try:
        return bare(request, store.read(request) if isinstance(request, pb.RangeRequest) else store.write(request))
    except errors.KvorumError as error:
        return int(error.code), error.text


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with etcds.etcd(tmp_path) as running:
        yield Etcd(running.port)


@pytest.mark.parametrize("seed", range(5))
def test_the_store_answers_as_etcd_does(etcd: Etcd, seed: int) -> None:
    dice, store = Dice(seed), Store()
    for _ in range(4000):
        dice.revision = store.keyspace.revision
        request = tamed(dice.range() if dice.maybe(0.3) else dice.write())
        assert ours(store, request) == etcd.do(request), request
