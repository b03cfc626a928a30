"""Drives a kvorum cluster through its native protocol and says what it saw: etcdload's twin.

    python -m ops.bench.nativeload '{"endpoints": ["tcp://..."], "workload": "put", "clients": 256, ...}'

One thread, one DEALER per endpoint, and a closed loop of `clients` slots with one call under way in each. A wake-up
takes all answers that have come, and sends all the calls that follow from them as one batch per endpoint: what a
pipelining program does that pays per batch. Specification, workloads, checks and events are etcdload's; a latency
likewise begins before the request is encoded and ends after its answer was parsed and checked.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import zmq

from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method

PUTS_PER_FILL = 100
SAMPLE_EVERY = 64
READ_BACK_MAX = 500
ERRORS_KEPT = 5
ERROR_PAUSE_SECONDS = 0.01
PADDING_BYTES = 1 << 18

Answer = Any
"""The parsed response message."""


@dataclass(slots=True)
class Call:
    """One call under way: what was asked, and what the answer has to be."""

    started: float
    id: int
    endpoint: int
    what: str
    number: int
    value: bytes


@dataclass
class Tally:
    latencies: list[float] = field(default_factory=list)
    per_endpoint: list[int] = field(default_factory=list)
    errors: int = 0
    first_errors: list[str] = field(default_factory=list)
    read_back: int = 0
    lost: int = 0

    def failed(self, why: str) -> None:
        self.errors += 1
        if len(self.first_errors) < ERRORS_KEPT:
            self.first_errors.append(why)


def key(number: int) -> bytes:
    return b"key-%08d" % number


def _field(tag: int, value: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = len(value), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([tag << 3 | 2]) + length + bytes([size]) + value


class Load:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.random = random.Random(spec["seed"])
        self.padding = self.random.randbytes(PADDING_BYTES)
        self.tally = Tally(per_endpoint=[0] * len(spec["endpoints"]))
        self.samples: dict[int, tuple[int, bytes]] = {}
        self.last_id = 0
        context = zmq.Context()
        self.sockets: list[zmq.Socket[bytes]] = []
        self.poller = zmq.Poller()
        for endpoint in spec["endpoints"]:
            socket = context.socket(zmq.DEALER)
            socket.linger = 0
            socket.connect(endpoint)
            self.sockets.append(socket)
            self.poller.register(socket, zmq.POLLIN)
        for i in range(len(self.sockets)):
            hello = pb.HelloRequest(protocol=wire.PROTOCOL, client="ops.bench")
            self.ask(i, Method.HELLO, hello.SerializeToString())
        self.make = {
            "put": self.make_put,
            "txn": self.make_txn,
            "get": self.make_get,
            "get-serializable": self.make_serializable,
            "mixed": self.make_mixed,
        }.get(spec["workload"])

    # ---- one at a time: hello, and reading back

    def ask(self, endpoint: int, method: Method, payload: bytes) -> Answer:
        """One call and its answer, with nothing else under way. Raises RuntimeError for an error or none in time."""
        self.last_id += 1
        self.sockets[endpoint].send(wire.encode(method, Kind.CALL, 0, self.last_id, payload))
        deadline = time.monotonic() + self.spec["timeout_seconds"]
        while (left := deadline - time.monotonic()) > 0:
            if not self.sockets[endpoint].poll(left * 1000):
                break
            for record in wire.decode(self.sockets[endpoint].recv()):
                if record.id != self.last_id:
                    continue
                if record.status != 0:
                    raise RuntimeError(record.payload.decode())
                return wire.METHODS[method].response.FromString(record.payload)
        raise RuntimeError(f"{self.spec['endpoints'][endpoint]} gave no answer to {method.name}")

    # ---- requests

    def value(self, name: bytes) -> bytes:
        size = self.spec["value_bytes"] - len(name)
        start = int(self.random.random() * (PADDING_BYTES - size))
        return name + self.padding[start : start + size]

    def make_put(self, number: int) -> tuple[str, Method, bytes, bytes]:
        name = key(number)
        value = self.value(name)
        return "put", Method.PUT, _field(1, name) + _field(2, value), value

    def make_get(self, number: int) -> tuple[str, Method, bytes, bytes]:
        name = key(number)
        return "get", Method.RANGE, _field(1, name), name

    def make_serializable(self, number: int) -> tuple[str, Method, bytes, bytes]:
        name = key(number)
        return "get", Method.RANGE, _field(1, name) + b"\x38\x01", name

    def make_mixed(self, number: int) -> tuple[str, Method, bytes, bytes]:
        return self.make_put(number) if self.random.random() < 0.1 else self.make_get(number)

    def make_txn(self, number: int) -> tuple[str, Method, bytes, bytes]:
        """If the key exists, which it does, put it and read it; else read it."""
        name = key(number)
        value = self.value(name)
        compare = b"\x08\x01\x10\x01" + _field(3, name) + b"\x28\x00"  # GREATER, CREATE, key, create_revision 0
        put = _field(2, _field(1, name) + _field(2, value))
        get = _field(1, _field(1, name))
        return "txn", Method.TXN, _field(1, compare) + _field(2, put) + _field(2, get) + _field(3, get), value

    # ---- answers

    def check(self, call: Call, payload: bytes) -> str:
        """What is wrong with the answer, or nothing."""
        if call.what == "get":
            kvs = pb.RangeResponse.FromString(payload).kvs
            if len(kvs) != 1:
                return f"get of key {call.number} gave {len(kvs)} keys"
            value = kvs[0].value
            if len(value) != self.spec["value_bytes"] or not value.startswith(call.value):
                return f"get of key {call.number} gave something else"
            return ""
        if call.what == "put":
            put = pb.PutResponse.FromString(payload)
            if call.number % SAMPLE_EVERY == 0:
                self.remember(call, put.header.revision)
            return ""
        txn = pb.TxnResponse.FromString(payload)
        if not txn.succeeded or len(txn.responses) != 2:
            return f"txn on key {call.number} took the wrong branch"
        kvs = txn.responses[1].response_range.kvs
        if len(kvs) != 1 or kvs[0].value != call.value:
            return f"txn on key {call.number} did not read what it put"
        if call.number % SAMPLE_EVERY == 0:
            self.remember(call, txn.header.revision)
        return ""

    def remember(self, call: Call, revision: int) -> None:
        if self.samples.get(call.number, (0,))[0] < revision:
            self.samples[call.number] = (revision, call.value)

    # ---- the loop

    def run(self) -> None:
        """Warm up, measure, wait for what is under way, read back, report."""
        clock = time.perf_counter
        clients, keys, sockets, tally = self.spec["clients"], self.spec["keys"], self.sockets, self.tally
        timeout = self.spec["timeout_seconds"]
        make, below, encode, check = self.make, self.random.random, wire.encode, self.check
        assert make is not None, self.spec["workload"]
        count = len(sockets)
        index = {socket: i for i, socket in enumerate(sockets)}
        slots: list[Call | None] = [None] * clients
        paused: list[tuple[float, int, int]] = []
        next_id = 1 << 32
        begin = clock() + self.spec["warmup_seconds"]
        end = begin + self.spec["window_seconds"]
        latencies, per_endpoint = tally.latencies, tally.per_endpoint
        begun = ended = False
        give_up_at = begin
        refill = [(slot, slot % count) for slot in range(clients)]
        under_way = 0
        while True:
            now = clock()
            if not begun and now >= begin:
                emit({"event": "begin"})
                begun = True
            if not ended and now >= end:
                emit({"event": "end"})
                ended = True
            if paused:
                refill += [(slot, endpoint) for due, slot, endpoint in paused if due <= now]
                paused = [p for p in paused if p[0] > now]
            if ended:
                if under_way == 0:
                    break
            elif refill:
                batches: list[list[bytes]] = [[] for _ in sockets]
                for slot, endpoint in refill:
                    started = clock()
                    number = int(below() * keys)
                    what, method, payload, value = make(number)
                    next_id += clients  # id % clients is the slot
                    slots[slot] = Call(started, next_id + slot, endpoint, what, number, value)
                    batches[endpoint].append(encode(method, 0, 0, next_id + slot, payload))
                under_way += len(refill)
                for socket, batch in zip(sockets, batches, strict=True):
                    if batch:
                        socket.send(b"".join(batch))
            refill = []
            ready = self.poller.poll(10 if paused or not (begun and ended) else 100)
            for socket, _ in ready:
                while True:
                    try:
                        frame = socket.recv(zmq.NOBLOCK)
                    except zmq.Again:
                        break
                    for _, _, status, id, payload in wire.decode(frame):
                        slot = (id - (1 << 32)) % clients
                        call = slots[slot]
                        if call is None or call.id != id:
                            continue  # it was given up, or is Hello's
                        slots[slot] = None
                        under_way -= 1
                        wrong = payload.decode(errors="replace") if status else check(call, payload)
                        now = clock()
                        if wrong:
                            tally.failed(wrong)
                            paused.append((now + ERROR_PAUSE_SECONDS, slot, call.endpoint))
                            continue
                        endpoint = index[socket]
                        if begin <= now < end:
                            latencies.append(now - call.started)
                            per_endpoint[endpoint] += 1
                        # A slot keeps its node, so every node has its share of the calls in flight; a lone one
                        # goes around them instead, so that it meets every node.
                        refill.append((slot, (endpoint + 1) % count if clients == 1 else endpoint))
            if now >= give_up_at:
                give_up_at = now + 0.5
                for slot, call in enumerate(slots):
                    if call is not None and now - call.started > timeout:
                        slots[slot] = None
                        under_way -= 1
                        tally.failed(f"no answer to {call.what} in {timeout} s")
                        refill.append((slot, call.endpoint))
        self.read_back()
        self.report()

    def read_back(self) -> None:
        """Compare sampled keys with their newest acknowledged write. Where calls failed, a newer one may be there."""
        for number, (revision, value) in list(self.samples.items())[:READ_BACK_MAX]:
            endpoint = self.tally.read_back % len(self.sockets)
            self.tally.read_back += 1
            try:
                kvs = self.ask(endpoint, Method.RANGE, _field(1, key(number))).kvs
            except RuntimeError as e:
                self.tally.failed(str(e))
                continue
            found = kvs[0].mod_revision if kvs else 0
            newer = found > revision and self.tally.errors == 0
            if found < revision or newer or (found == revision and kvs[0].value != value):
                self.tally.lost += 1

    def report(self) -> None:
        latencies = sorted(self.tally.latencies)
        emit(
            {
                "event": "result",
                "operations": len(latencies),
                "seconds": self.spec["window_seconds"],
                "p50_ms": rank(latencies, 0.5),
                "p90_ms": rank(latencies, 0.9),
                "p99_ms": rank(latencies, 0.99),
                "max_ms": rank(latencies, 1.0),
                "per_endpoint": self.tally.per_endpoint,
                "errors": self.tally.errors,
                "first_errors": self.tally.first_errors,
                "read_back": self.tally.read_back,
                "lost": self.tally.lost,
            }
        )

    def fill(self) -> None:
        """Write every key once, one transaction under way at each endpoint at a time."""
        started, keys = time.perf_counter(), self.spec["keys"]
        starts = range(0, keys, PUTS_PER_FILL)
        for i, first in enumerate(starts):
            puts = b""
            for number in range(first, min(first + PUTS_PER_FILL, keys)):
                puts += _field(2, _field(2, self.make_put(number)[2]))
            self.ask(i % len(self.sockets), Method.TXN, puts)
        emit({"event": "result", "operations": keys, "seconds": time.perf_counter() - started})


def rank(ordered: list[float], share: float) -> float:
    """The nearest-rank percentile, in milliseconds."""
    if not ordered:
        return 0.0
    return ordered[min(max(int(share * len(ordered) + 0.999999) - 1, 0), len(ordered) - 1)] * 1e3


def emit(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    load = Load(json.loads(sys.argv[1]))
    if load.spec["workload"] == "fill":
        load.fill()
    else:
        load.run()


if __name__ == "__main__":
    main()
