"""Drives a kvorum cluster with kvorum's own client and says what it saw: etcdload's twin.

    python -m ops.bench.nativeload '{"endpoints": ["tcp://..."], "workload": "put", "clients": 256, ...}'

A *lane* is one `kvorum.Client` to one node and a thread that drives it. Its share of the clients are closed loops of
callbacks: an answer is parsed and checked, and the loop's next call submitted, in the callback; what gathers so during
one wake-up leaves as one batch. That is `submit()` and `drive()`, the client's way for a program that pipelines.
A lone client goes around the lanes instead, so that it meets every node.

Specification, workloads, checks and events are etcdload's; a latency likewise begins before the request is built and
ends after its answer was parsed and checked.
"""

from __future__ import annotations

import heapq
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

from kvorum import Client, KvorumError
from kvorum import etcd_pb2 as pb
from kvorum.core import Call
from kvorum.wire import Method

PUTS_PER_FILL = 100
SAMPLE_EVERY = 64
READ_BACK_MAX = 500
ERRORS_KEPT = 5
ERROR_PAUSE_SECONDS = 0.01
LAG_PAUSE_SECONDS = 0.001
PADDING_BYTES = 1 << 18
LEASES = 1000
LEASE_SECONDS = 3600

Check = Callable[[bytes], str]
"""What is wrong with an answer, or nothing."""
Operation = tuple[Method, bytes, Check]
clock = time.perf_counter


def key(number: int) -> bytes:
    return b"key-%08d" % number


class Written:
    """How far the load is, and how far its watchers are; of the latter it is told through memory shared with them."""

    def __init__(self) -> None:
        self.newest = 0
        self.heard_fd = os.memfd_create("heard")
        os.ftruncate(self.heard_fd, 8)
        self.heard = mmap.mmap(self.heard_fd, 8)

    def too_far(self, lag: int) -> bool:
        return lag > 0 and self.newest - int.from_bytes(self.heard[:], "little") > lag


class Lane:
    """One node's share of the load. Used by one thread at a time, so nothing here takes a lock."""

    def __init__(self, spec: dict[str, Any], number: int, written: Written) -> None:
        self.spec, self.written = spec, written
        self.keys = spec["keys"]
        self.random = Random(spec["seed"] * 1000 + number)
        self.padding = self.random.randbytes(PADDING_BYTES)
        self.client = Client(spec["endpoints"][number], discover=False, timeout=spec["timeout_seconds"])
        self.client.hello()
        self.begin = self.end = 0.0
        self._rest: list[float] = []  # when loops that wait go on: a heap
        self.latencies: list[float] = []
        self.errors = 0
        self.first_errors: list[str] = []
        self.samples: dict[int, tuple[int, bytes]] = {}
        """Revision and value of the newest acknowledged write to every 64th key."""
        self.replies: list[tuple[int, float]] = []  # revision of a put in the window, and when it was answered
        self.leases: list[int] = []
        self.make: Callable[[], Operation] = {
            "put": self.put,
            "puts": self.puts,
            "txn": self.txn,
            "get": self.get,
            "get-serializable": lambda: self.get(serializable=True),
            "mixed": lambda: self.put() if self.random.random() < 0.1 else self.get(),
            "keep-alive": self.keep_alive,
            "fill": self.put,
        }[spec["workload"]]

    # ---- the loops

    def crowd(self, clients: int) -> None:
        """So many closed loops, until the window has closed and every answer is there."""
        for _ in range(clients):
            self._next()
        while self.client.inflight or self._rest:
            self.client.drive(max(0.0, self._rest[0] - clock()) if self._rest else 1.0)
            while self._rest and self._rest[0] <= clock():
                heapq.heappop(self._rest)
                self._next()

    def _next(self) -> None:
        started = clock()
        if started >= self.end:
            return
        if self.written.too_far(self.spec["lag"]):
            heapq.heappush(self._rest, started + LAG_PAUSE_SECONDS)
            return
        method, request, check = self.make()

        def answered(call: Call) -> None:
            if self._judge(call, check, started):
                self._next()
            else:
                heapq.heappush(self._rest, clock() + ERROR_PAUSE_SECONDS)

        self.client.submit(method, request, answered)

    def paced(self, number: int, count: int, share: int) -> None:
        """Puts at a fixed rate, of which this lane makes every `count`th; no more than `share` at a time, so that where
        the rate is too high it falls behind, as etcdload does, rather than have ever more of them under way."""
        every = count / self.spec["rate"]
        due = self.begin - self.spec["warmup_seconds"] + number / self.spec["rate"]
        while (now := clock()) < self.end:
            if now >= due and self.client.inflight < share:
                self._pace()
                due += every
            else:
                self.client.drive(max(0.0, due - now) or 1.0)
        while self.client.inflight:
            self.client.drive(1.0)

    def _pace(self) -> None:
        started = clock()
        method, request, check = self.make()

        def answered(call: Call) -> None:
            now = clock()
            if self._judge(call, check, started) and self.begin <= now < self.end:
                self.replies.append((pb.PutResponse.FromString(call.reply).header.revision, now))

        self.client.submit(method, request, answered)

    def once(self) -> None:
        """One call and its answer, with nothing else under way."""
        started = clock()
        method, request, check = self.make()
        call = self.client.submit(method, request, lambda _: None)
        while not call.finished:
            self.client.drive(1.0)
        if not self._judge(call, check, started):
            time.sleep(ERROR_PAUSE_SECONDS)

    def _judge(self, call: Call, check: Check, started: float) -> bool:
        """Count a finished call. Whether it was well."""
        wrong = call.error.text if call.error is not None else check(call.reply)
        now = clock()
        if wrong:
            self.failed(wrong)
        elif self.begin <= now < self.end:
            self.latencies.append(now - started)
        return not wrong

    def failed(self, why: str) -> None:
        self.errors += 1
        if len(self.first_errors) < ERRORS_KEPT:
            self.first_errors.append(why)

    # ---- what is asked, and what the answer has to be

    def value(self, name: bytes) -> bytes:
        size = self.spec["value_bytes"] - len(name)
        start = int(self.random.random() * (PADDING_BYTES - size))
        return name + self.padding[start : start + size]

    def put(self) -> Operation:
        number = int(self.random.random() * self.keys)
        name = key(number)
        value = self.value(name)

        def check(reply: bytes) -> str:
            put = pb.PutResponse.FromString(reply)
            self.written.newest = max(self.written.newest, put.header.revision)
            self.remember(number, put.header.revision, value)
            return ""

        return Method.PUT, pb.PutRequest(key=name, value=value).SerializeToString(), check

    def puts(self) -> Operation:
        """Several keys in one transaction."""
        start = int(self.random.random() * (self.keys - self.spec["puts"]))
        request = pb.TxnRequest()
        for number in range(start, start + self.spec["puts"]):
            request.success.add(request_put=pb.PutRequest(key=key(number), value=self.value(key(number))))

        def check(reply: bytes) -> str:
            self.written.newest = max(self.written.newest, pb.TxnResponse.FromString(reply).header.revision)
            return ""

        return Method.TXN, request.SerializeToString(), check

    def get(self, serializable: bool = False) -> Operation:
        name = key(int(self.random.random() * self.keys))

        def check(reply: bytes) -> str:
            kvs = pb.RangeResponse.FromString(reply).kvs
            value = kvs[0].value if len(kvs) == 1 else b""
            right = len(value) == self.spec["value_bytes"] and value.startswith(name)
            return "" if right else f"get of {name.decode()} gave something else"

        return Method.RANGE, pb.RangeRequest(key=name, serializable=serializable).SerializeToString(), check

    def txn(self) -> Operation:
        """If the key exists, which it does, put it and read it; else read it."""
        number = int(self.random.random() * self.keys)
        name = key(number)
        value = self.value(name)
        exists = pb.Compare(key=name, target=pb.Compare.CREATE, result=pb.Compare.GREATER, create_revision=0)
        put = pb.RequestOp(request_put=pb.PutRequest(key=name, value=value))
        get = pb.RequestOp(request_range=pb.RangeRequest(key=name))

        def check(reply: bytes) -> str:
            txn = pb.TxnResponse.FromString(reply)
            if not txn.succeeded or len(txn.responses) != 2:
                return f"txn on {name.decode()} took the wrong branch"
            kvs = txn.responses[1].response_range.kvs
            if len(kvs) != 1 or kvs[0].value != value:
                return f"txn on {name.decode()} did not read what it put"
            self.remember(number, txn.header.revision, value)
            return ""

        request = pb.TxnRequest(compare=[exists], success=[put, get], failure=[get])
        return Method.TXN, request.SerializeToString(), check

    def keep_alive(self) -> Operation:
        id = self.random.choice(self.leases)

        def check(reply: bytes) -> str:
            answer = pb.LeaseKeepAliveResponse.FromString(reply)
            right = id == answer.ID and answer.TTL == LEASE_SECONDS
            return "" if right else f"lease {id:x} was renewed as {answer.ID:x} for {answer.TTL} s"

        return Method.LEASE_KEEP_ALIVE, pb.LeaseKeepAliveRequest(ID=id).SerializeToString(), check

    def remember(self, number: int, revision: int, value: bytes) -> None:
        if number % SAMPLE_EVERY == 0 and self.samples.get(number, (0,))[0] < revision:
            self.samples[number] = (revision, value)


class Load:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.written = Written()
        self.lanes = [Lane(spec, number, self.written) for number in range(len(spec["endpoints"]))]
        if spec["workload"] == "keep-alive":
            leases = [self.lanes[0].client.lease_grant(LEASE_SECONDS).ID for _ in range(LEASES)]
            for lane in self.lanes:
                lane.leases = leases

    def run(self) -> None:
        """Warm up, measure, wait for what is under way, read back, report."""
        watchers = Watchers(self.spec, self.written) if self.spec["watchers"] else None
        begin = clock() + self.spec["warmup_seconds"]
        end = begin + self.spec["window_seconds"]
        for lane in self.lanes:
            lane.begin, lane.end = begin, end
        if watchers is not None:
            watchers.tell({"begin": begin, "end": end})
        clients, count = self.spec["clients"], len(self.lanes)
        shares = [len(range(number, clients, count)) for number in range(count)]
        if self.spec["rate"]:
            threads = [
                threading.Thread(target=lane.paced, args=(i, count, shares[i])) for i, lane in enumerate(self.lanes)
            ]
        elif clients == 1:
            threads = [threading.Thread(target=self._go_around, args=(end,))]
        else:
            threads = [
                threading.Thread(target=lane.crowd, args=(share,))
                for lane, share in zip(self.lanes, shares, strict=True)
            ]
        for thread in threads:
            thread.start()
        for name, when in (("begin", begin), ("end", end)):
            time.sleep(max(0.0, when - clock()))
            emit({"event": name})
        for thread in threads:
            thread.join()
        heard = watchers.heard(self.lanes) if watchers is not None else None
        self._report(*self._read_back(), heard)

    def _go_around(self, end: float) -> None:
        while True:
            for lane in self.lanes:
                if clock() >= end:
                    return
                lane.once()

    def _read_back(self) -> tuple[int, int]:
        """How many sampled keys were read, from the nodes in turn, and how many have lost their newest acknowledged
        write. Where calls failed, a newer write than that may be there, and is no loss."""
        newest: dict[int, tuple[int, bytes]] = {}
        for lane in self.lanes:
            for number, written in lane.samples.items():
                newest[number] = max(newest.get(number, written), written)
        failures, read, lost = sum(lane.errors for lane in self.lanes), 0, 0
        for number, (revision, value) in list(newest.items())[:READ_BACK_MAX]:
            lane = self.lanes[read % len(self.lanes)]
            read += 1
            try:
                kvs = lane.client.get_response(key(number)).kvs
            except KvorumError as error:
                lane.failed(error.text)
                continue
            found = kvs[0].mod_revision if kvs else 0
            same = found == revision and kvs[0].value == value
            lost += not (same or (found > revision and failures > 0))
        return read, lost

    def _report(self, read: int, lost: int, heard: dict[str, Any] | None) -> None:
        latencies = sorted(latency for lane in self.lanes for latency in lane.latencies)
        operations = len(latencies)
        if heard is not None:
            operations = operations if self.spec["own_keys"] else heard["events"]
            latencies = heard["delays"] if self.spec["rate"] else latencies
            self.lanes[0].errors += heard["errors"]
            self.lanes[0].first_errors += heard["first_errors"]
        emit(
            {
                "event": "result",
                "operations": operations,
                "seconds": self.spec["window_seconds"],
                "p50_ms": rank(latencies, 0.5),
                "p90_ms": rank(latencies, 0.9),
                "p99_ms": rank(latencies, 0.99),
                "max_ms": rank(latencies, 1.0),
                "per_endpoint": [len(lane.latencies) for lane in self.lanes],
                "errors": sum(lane.errors for lane in self.lanes),
                "first_errors": [text for lane in self.lanes for text in lane.first_errors][:ERRORS_KEPT],
                "read_back": read,
                "lost": lost,
            }
        )

    def fill(self) -> None:
        """Write every key once, `clients` transactions at a time, at the nodes in turn. Raises what goes wrong."""
        started, keys, under_way = clock(), self.spec["keys"], list[tuple[Lane, Call]]()
        for i, first in enumerate(range(0, keys, PUTS_PER_FILL)):
            lane, request = self.lanes[i % len(self.lanes)], pb.TxnRequest()
            for number in range(first, min(first + PUTS_PER_FILL, keys)):
                put = pb.PutRequest(key=key(number), value=lane.value(key(number)))
                request.success.add(request_put=put)
            call = lane.client.submit(Method.TXN, request.SerializeToString(), lambda _: None)
            lane.client.drive()
            under_way.append((lane, call))
            if len(under_way) == self.spec["clients"]:
                _await(under_way.pop(0))
        for each in under_way:
            _await(each)
        emit({"event": "result", "operations": keys, "seconds": clock() - started})


class Watchers:
    """The other process, which listens (ops/bench/listeners.py)."""

    def __init__(self, spec: dict[str, Any], written: Written) -> None:
        command = [sys.executable, "-m", "ops.bench.listeners", json.dumps(spec), str(written.heard_fd)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[written.heard_fd]
        )
        self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the watchers ended with {self._process.wait()}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def tell(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def heard(self, lanes: list[Lane]) -> dict[str, Any]:
        """Once the load is over and everybody has heard of all of it."""
        kvs = lanes[0].client.get_prefix_response(b"key-", keys_only=True).kvs
        self.tell(
            {
                "newest": lanes[0].written.newest,
                "replies": [reply for lane in lanes for reply in lane.replies],
                "own": {kv.key.decode(): kv.mod_revision for kv in kvs} if lanes[0].spec["own_keys"] else {},
            }
        )
        heard = self._hear()
        self._process.wait()
        return heard


def _await(waiting: tuple[Lane, Call]) -> None:
    lane, call = waiting
    while not call.finished:
        lane.client.drive(1.0)
    if call.error is not None:
        raise call.error


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
