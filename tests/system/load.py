"""Clients at a real cluster that write down what they ask and what they are told, for tests/checkers to judge.

    with Load(cluster.endpoints, seed=1) as load:      threads, each with a client and one call under way
        ...kill things...
    load.history                                       Operations, in the order of their calls

The first clients are each tied to one node, so that its silence shows; the others move on when their node fails, as
programs do. Every value is written once in the life of a cluster (a Load's `name` is part of it), keys are few and come
in groups ("g1/a"), so calls collide, and transactions stay within a group, so linearizability.py has small parts.
A call's times are taken outside of all that could be late: before the request is made, after the answer is read.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

import kvorum
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.verbs import Ask
from kvorum.wire import METHODS, Method
from tests.checkers.history import Operation, Request, deletes, pairs_seen, values_put

_METHOD_OF = {
    pb.PutRequest: Method.PUT,
    pb.RangeRequest: Method.RANGE,
    pb.DeleteRangeRequest: Method.DELETE_RANGE,
    pb.TxnRequest: Method.TXN,
}
_WEIGHTS = {"put": 6, "get": 6, "group": 2, "peek": 2, "delete": 1, "swap": 6, "create": 1, "both": 3}
GROUPS, KEYS = 4, 3
STEP_SECONDS = 0.05

_ids = itertools.count()  # of operations, unique in this process so that histories can be joined


def changes_anything(request: Request) -> bool:
    return deletes(request) or any(values_put(request))


class Load:
    """Runs from `start` (or entering) to `stop` (or leaving). `pause` is the mean time a client thinks, in seconds."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        seed: int,
        name: str = "",
        clients: int = 6,
        pause: float = 0.02,
        timeout: float = 4.0,
    ) -> None:
        self.history: list[Operation] = []
        self.endpoints = list(endpoints)
        self._name = name or str(seed)
        self._seed, self._pause, self._timeout = seed, pause, timeout
        self._over = threading.Event()
        self._broken: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(number,), daemon=True) for number in range(clients)
        ]
        self._stalls: list[tuple[float, float]] = []
        self._threads.append(threading.Thread(target=self._watch_the_clock, daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Each client finishes its last call. Raises what broke a client: a bug of it, not an error it was told."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._broken:
            raise self._broken[0]

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if error is None:
            self.stop()
        else:
            for thread in self._threads:
                thread.join()

    # ---- what the history says

    def answered_writes(self, member: int, since: float) -> Iterable[Operation]:
        """Acknowledged changes through `member` that were asked for after `since`, by a client tied to it."""
        for op in list(self.history):
            tied = op.client < len(self.endpoints) and op.member == member
            if tied and op.called >= since and op.answer is not None and changes_anything(op.request):
                yield op

    def served_after(self, member: int, since: float, seconds: float) -> float:
        """Seconds from `since` until a change was asked for and acknowledged through `member`; waits up to `seconds`.

        A change counts that was asked for later than `since`, so what was under way at that moment does not.
        """
        deadline = since + seconds
        while True:
            first = min((op.returned or 0.0 for op in self.answered_writes(member, since)), default=None)
            if first is not None:
                return first - since
            assert time.monotonic() < deadline, f"node {member} acknowledged nothing for {seconds} s"
            time.sleep(0.02)

    def stalled(self, since: float) -> float:
        """Seconds since then in which this machine let nobody run, or not us: no node could have done better."""
        return sum(seconds for at, seconds in self._stalls if at >= since)

    def _watch_the_clock(self) -> None:
        before = time.monotonic()
        while not self._over.wait(STEP_SECONDS):
            now = time.monotonic()
            if now - before > 4 * STEP_SECONDS:
                self._stalls.append((now, now - before - STEP_SECONDS))
            before = now

    # ---- one client

    def _guarded(self, number: int) -> None:
        try:
            self._run(number)
        except BaseException as error:
            self._broken.append(error)

    def _run(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        tied = number < len(self.endpoints)
        member = number % len(self.endpoints)
        habits = _Habits(rng, f"{self._name}.{number}")
        where = [self.endpoints[member]] if tied else self.endpoints[member:] + self.endpoints[:member]
        with kvorum.client(where, discover=not tied, shuffle=False, timeout=self._timeout) as client:
            while not self._over.wait(rng.expovariate(1 / self._pause) if self._pause else 0.0):
                request = habits.request()
                method = _METHOD_OF[type(request)]
                again = not changes_anything(request)
                ask = Ask(method, request.SerializeToString(), METHODS[method].response.FromString, again, None)
                op = Operation(next(_ids), number, member, time.monotonic(), request)
                self.history.append(op)
                try:
                    answer = client.ask(ask)
                except errors.KvorumError as error:
                    op.error, op.returned = error, time.monotonic()
                else:
                    op.answer, op.returned = answer, time.monotonic()  # type: ignore[assignment]
                    habits.saw(answer)


class _Habits:
    """What one client asks for, from what it has seen."""

    def __init__(self, rng: random.Random, name: str) -> None:
        self.rng, self._name = rng, name
        self._values = itertools.count(1)
        self._seen: dict[bytes, pb.KeyValue] = {}

    def saw(self, answer: object) -> None:
        for kv in pairs_seen(answer):
            self._seen[kv.key] = kv

    def request(self) -> Request:
        rng = self.rng
        kind = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        group = rng.randrange(GROUPS)
        key = self._key(group)
        prefix, end = b"g%d/" % group, b"g%d0" % group
        if kind == "put":
            return pb.PutRequest(key=key, value=self._value(), prev_kv=rng.random() < 0.5)
        if kind == "get":
            return pb.RangeRequest(key=key)
        if kind == "group":
            return pb.RangeRequest(key=prefix, range_end=end, limit=rng.choice((0, 2)))
        if kind == "peek":
            return pb.RangeRequest(key=prefix, range_end=end, serializable=True)
        if kind == "delete":
            whole = rng.random() < 0.3
            return pb.DeleteRangeRequest(key=prefix if whole else key, range_end=end if whole else b"", prev_kv=True)
        return self._txn(kind, group, key)

    def _txn(self, kind: str, group: int, key: bytes) -> pb.TxnRequest:
        rng = self.rng
        look = pb.RequestOp(request_range=pb.RangeRequest(key=key))
        put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=self._value(), prev_kv=rng.random() < 0.3))
        if kind == "create":
            absent = pb.Compare(key=key, target=pb.Compare.CREATE, create_revision=0)
            return pb.TxnRequest(compare=[absent], success=[put], failure=[look])
        if kind == "swap":
            seen = self._seen.get(key)
            if seen is not None and rng.random() < 0.5:
                compare = pb.Compare(key=key, target=pb.Compare.VALUE, value=seen.value)
            else:
                compare = pb.Compare(key=key, target=pb.Compare.MOD, mod_revision=seen.mod_revision if seen else 0)
            return pb.TxnRequest(compare=[compare], success=[put, look], failure=[look])
        other = self._key(group)
        ops = [put]
        if other != key:
            if rng.random() < 0.3:
                ops.append(pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=other)))
            else:
                ops.append(pb.RequestOp(request_put=pb.PutRequest(key=other, value=self._value())))
        ops.append(pb.RequestOp(request_range=pb.RangeRequest(key=b"g%d/" % group, range_end=b"g%d0" % group)))
        return pb.TxnRequest(success=ops)

    def _key(self, group: int) -> bytes:
        return b"g%d/%c" % (group, ord("a") + self.rng.randrange(KEYS))

    def _value(self) -> bytes:
        return f"{self._name}.{next(self._values)}".encode()
