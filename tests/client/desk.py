"""A core with a clock that the test turns, and a hand on both ends of its connections."""

from __future__ import annotations

from random import Random

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.core import Call, Core, Session
from kvorum.endpoints import Endpoints, parse
from kvorum.wire import PROTOCOL, Kind, Method, Record

A, B, C = "tcp://a:1", "tcp://b:1", "tcp://c:1"


class Desk:
    """`answer` and the like act on the current session unless told another."""

    def __init__(self, *addresses: str, seed: int = 0, **options: bool) -> None:
        rng = Random(seed)
        self.core = Core(Endpoints(parse(addresses or [A]), rng, shuffle=False), rng, **options)
        self.now = 100.0

    # ---- the user

    def call(
        self, method: Method = Method.PUT, payload: bytes = b"", *, timeout: float = 5.0, again: bool = False
    ) -> Call:
        call = Call(method, payload, self.now + timeout, again=again)
        self.core.submit(call, self.now)
        return call

    def read(self, timeout: float = 5.0) -> Call:
        return self.call(Method.RANGE, timeout=timeout, again=True)

    def finished(self) -> list[Call]:
        found = list(self.core.finished)
        self.core.finished.clear()
        return found

    # ---- time

    def advance(self, seconds: float) -> None:
        """Turn the clock, waking the core whenever it wants to be woken."""
        until = self.now + seconds
        while self.core.wake_at <= until:
            self.now = max(self.now, self.core.wake_at)
            before = self.core.wake_at
            self.core.tick(self.now)
            assert self.core.wake_at > self.now or self.core.wake_at != before, "the core spins"
        self.now = until

    # ---- the network

    @property
    def session(self) -> Session:
        assert self.core.current is not None
        return self.core.current

    def dial(self) -> Session:
        """Let the core open what it wants to open."""
        self.advance(0)
        self.core.closing.clear()
        assert len(self.core.opening) == 1, "it dials nobody"
        return self.core.opening.pop()

    def connect(self, *, cluster: int = 7, member: int = 1, members: tuple[str, ...] = ()) -> Session:
        """Dial, shake hands and answer Hello."""
        session = self.dial()
        self.core.connected(session, self.now)
        (hello,) = self.sent()
        assert hello.method == Method.HELLO
        known = [pb.Endpoint(member_id=i, native=address) for i, address in enumerate(members, 1)]
        header = pb.ResponseHeader(cluster_id=cluster, member_id=member)
        self.answer(hello, pb.HelloResponse(header=header, protocol=PROTOCOL, members=known).SerializeToString())
        return session

    def lose(self, session: Session | None = None, trouble: str = "connection lost") -> None:
        self.core.lost(session or self.session, self.now, trouble)

    def sent(self) -> list[Record]:
        """The records of the next batch."""
        return wire.decode(self.core.take())

    def answer(self, record: Record, what: bytes | errors.KvorumError = b"", session: Session | None = None) -> None:
        self.core.received(session or self.session, reply(record, what), self.now)


def reply(record: Record, what: bytes | errors.KvorumError = b"") -> bytes:
    if isinstance(what, bytes):
        return wire.encode(record.method, Kind.REPLY, 0, record.id, what)
    return wire.encode(record.method, Kind.REPLY, what.code, record.id, what.text.encode())
