"""Ranges in parts: what the core holds and says for them, at nodes that do anything (kvorum.streaming)."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.core import Call, Phase, Session
from kvorum.streaming import WINDOW_PARTS, Stream
from kvorum.wire import BATCH_BYTES_MAX, Kind, Method, Record
from tests.client.desk import A, B, Desk


def parts(count: int) -> bytes:
    return count.to_bytes(4, "little")


class Reader(Desk):
    """A desk with one stream, opened and read."""

    def __init__(self, *addresses: str, **options: bool) -> None:
        super().__init__(*addresses, **options)
        self.stream = Stream()
        self.first = True

    def next(self, timeout: float = 5.0) -> Call:
        call = Call(Method.RANGE_STREAM, b"range", self.now + timeout, again=self.first, stream=self.stream)
        self.core.submit(call, self.now)
        return call

    def open(self) -> Record:
        """Connected, opened, one part read."""
        call = self.next()
        self.connect()
        record = self.opening()
        self.part(record, b"first")
        assert call.finished
        assert (call.reply, call.error) == (b"first", None)
        self.first = False
        return record

    def opening(self) -> Record:
        """That it was opened, and how far."""
        record, window = self.sent()
        assert (record.method, record.kind, record.payload) == (Method.RANGE_STREAM, Kind.STREAM_OPEN, b"range")
        assert window == Record(Method.RANGE_STREAM, Kind.STREAM_RESUME, 0, record.id, parts(WINDOW_PARTS))
        return record

    def part(self, record: Record, payload: bytes, session: Session | None = None) -> None:
        self.say(record, Kind.STREAM_MESSAGE, 0, payload, session)

    def end(self, record: Record, error: errors.KvorumError | None = None) -> None:
        self.say(record, Kind.STREAM_CLOSE, error.code if error else 0, error.text.encode() if error else b"")

    def say(self, record: Record, kind: Kind, status: int, payload: bytes, session: Session | None = None) -> None:
        batch = wire.encode(Method.RANGE_STREAM, kind, status, record.id, payload)
        self.core.received(session or self.session, batch, self.now)

    def read(self, timeout: float = 5.0) -> Call:
        """A part that is there."""
        call = self.next(timeout)
        assert call.finished
        return call


def told(records: list[Record]) -> list[tuple[int, int]]:
    return [(record.kind, record.id) for record in records]


def test_parts_are_read_in_order_by_those_who_wait_and_those_who_come_later() -> None:
    desk = Reader(A)
    record = desk.open()
    waiting = desk.next()
    assert not waiting.finished
    assert desk.sent() == []
    desk.part(record, b"second")
    desk.part(record, b"third")
    desk.end(record)
    assert waiting.reply == b"second"
    assert desk.read().reply == b"third"
    assert not desk.stream.ended
    last = desk.read()
    assert (last.error, desk.stream.ended) == (None, True)
    assert desk.core.load == 0
    desk.core.close_stream(desk.stream)
    assert desk.sent() == []


def test_an_error_comes_behind_the_parts_before_it() -> None:
    desk = Reader(A)
    record = desk.open()
    desk.part(record, b"second")
    desk.end(record, errors.Compacted())
    assert desk.read().reply == b"second"
    assert isinstance(desk.read().error, errors.Compacted)


def test_an_error_goes_to_the_call_that_waits() -> None:
    desk = Reader(A)
    record = desk.open()
    waiting = desk.next()
    desk.end(record, errors.Compacted())
    assert isinstance(waiting.error, errors.Compacted)
    assert desk.core.load == 0


def test_a_node_is_told_how_many_parts_have_been_read() -> None:
    desk = Reader(A)
    record = desk.open()
    for _ in range(WINDOW_PARTS - 1):
        desk.part(record, b"part")
    for _ in range(WINDOW_PARTS // 2 - 2):
        desk.read()
    assert desk.sent() == []
    desk.read()
    assert [(said.kind, said.id, said.payload) for said in desk.sent()] == [
        (Kind.STREAM_RESUME, record.id, parts(WINDOW_PARTS // 2))
    ]
    desk.end(record)
    while not desk.stream.ended:
        desk.read()
    assert desk.sent() == []


def test_whoever_reads_no_more_says_so_and_what_still_comes_is_dropped() -> None:
    desk = Reader(A)
    record = desk.open()
    desk.part(record, b"second")
    desk.core.close_stream(desk.stream)
    assert told(desk.sent()) == [(Kind.STREAM_CLOSE, record.id)]
    desk.part(record, b"third")
    desk.end(record)
    assert desk.session.phase is Phase.READY
    assert desk.sent() == []


def test_who_gives_up_while_he_waits_leaves_nothing_behind() -> None:
    desk = Reader(A)
    record = desk.open()
    waiting = desk.next()
    desk.core.forget(waiting)
    desk.core.close_stream(desk.stream)
    assert told(desk.sent()) == [(Kind.STREAM_CLOSE, record.id)]
    assert desk.core.load == 0


def test_before_the_first_part_it_is_opened_again_elsewhere() -> None:
    desk = Reader(A, B)
    call = desk.next()
    desk.connect()
    before = desk.opening()
    desk.lose()
    desk.connect()
    record = desk.opening()
    assert record.id != before.id
    desk.part(record, b"first")
    assert call.reply == b"first"


@pytest.mark.parametrize("error", [errors.NoLeader(), errors.TimedOut()])
def test_a_node_that_cannot_serve_it_is_left_for_another(error: errors.KvorumError) -> None:
    desk = Reader(A, B)
    call = desk.next()
    desk.connect()
    before = desk.opening()
    desk.end(before, error)
    assert not call.finished
    desk.advance(1)
    desk.connect()
    record = desk.opening()
    desk.part(record, b"first")
    assert call.reply == b"first"


def test_once_begun_it_breaks_off_with_its_connection_behind_what_has_come() -> None:
    """No other node knows of which revision it is."""
    desk = Reader(A, B)
    record = desk.open()
    desk.part(record, b"second")
    desk.lose()
    assert desk.read().reply == b"second"
    broken = desk.read().error
    assert isinstance(broken, errors.Unavailable)
    assert "the range broke off: connection lost" in broken.text
    desk.core.close_stream(desk.stream)


def test_whoever_waits_when_it_breaks_off_is_told_at_once() -> None:
    desk = Reader(A, B)
    desk.open()
    waiting = desk.next()
    desk.lose()
    assert isinstance(waiting.error, errors.Unavailable)
    assert desk.core.load == 0


def test_it_does_not_outlive_its_node_being_left_for_another() -> None:
    """Nothing could be said to that node any more, neither to pause nor to go on."""
    desk = Reader(A, B)
    record = desk.open()
    waiting = desk.next()
    late = desk.call(Method.RANGE, again=True)
    old = desk.session
    (asked,) = desk.sent()
    desk.answer(asked, errors.NoLeader())
    assert isinstance(waiting.error, errors.Unavailable)
    assert old.phase is Phase.GONE
    desk.advance(1)
    desk.connect()
    (again,) = desk.sent()
    desk.part(record, b"from the dead", old)
    desk.answer(again)
    assert late.error is None


def test_time_counts_only_while_somebody_waits() -> None:
    desk = Reader(A)
    record = desk.open()
    desk.advance(60)
    waiting = desk.next(timeout=2)
    desk.advance(1.9)
    assert not waiting.finished
    desk.advance(0.2)
    assert isinstance(waiting.error, errors.DeadlineExceeded)
    desk.core.close_stream(desk.stream)
    assert told(desk.sent()) == [(Kind.STREAM_CLOSE, record.id)]


def test_what_zeromq_did_not_take_is_said_again() -> None:
    desk = Reader(A)
    desk.next()
    desk.connect()
    desk.core.untake(desk.core.take())
    record = desk.opening()
    for _ in range(WINDOW_PARTS // 2):
        desk.part(record, b"part")
    for _ in range(WINDOW_PARTS // 2 - 1):
        desk.first = False
        desk.read()
    desk.core.untake(desk.core.take())
    assert told(desk.sent()) == [(Kind.STREAM_RESUME, record.id)]
    desk.core.close_stream(desk.stream)
    desk.core.untake(desk.core.take())
    assert told(desk.sent()) == [(Kind.STREAM_CLOSE, record.id)]


@pytest.mark.parametrize(
    "method_kind", [(Method.RANGE_STREAM, Kind.STREAM_RESUME), (Method.RANGE_STREAM, Kind.REPLY), (Method.WATCH, 3)]
)
def test_what_a_node_does_not_send_ends_the_connection(method_kind: tuple[Method, int]) -> None:
    desk = Reader(A)
    record = desk.open()
    waiting = desk.next()
    session = desk.session
    method, kind = method_kind
    desk.core.received(session, wire.encode(method, kind, 0, record.id, b""), desk.now)
    assert session.phase is Phase.GONE
    assert isinstance(waiting.error, errors.Unavailable)


def test_a_client_that_is_closed_ends_it() -> None:
    desk = Reader(A)
    desk.open()
    waiting = desk.next()
    desk.core.end(desk.now, "the client was closed")
    assert isinstance(waiting.error, errors.Unavailable)


class Judge:
    """One run of readers and nodes that do anything: what is read must be a beginning of what one node sent for one
    opening, and the whole of it if its end is read."""

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)
        self.desk = Desk(A, B, seed=seed)
        self.readers: list[tuple[Stream, list[Call]]] = []
        self.sent: dict[int, list[bytes]] = {}
        self.ended: set[int] = set()
        self.open: dict[int, Session] = {}
        self.window: dict[int, int] = {}
        self.outcomes: set[str] = set()

    def run(self) -> None:
        steps = [self.begin, self.read, self.read, self.node, self.node, self.node, self.lose, self.close, self.untake]
        for _ in range(300):
            self.dice.choices(steps, [2, 8, 8, 8, 8, 8, 1, 1, 1])[0]()
            self.settle()
        self.desk.advance(20)
        assert all(call.finished for _, calls in self.readers for call in calls)
        for stream, calls in self.readers:
            self.judge(stream, calls)
        assert self.desk.core.load == 0

    def judge(self, stream: Stream, calls: list[Call]) -> None:
        given = [call for call in calls if call.error is None]
        read = [call.reply for call in given if call.reply]
        assert [call for call in calls if call.error][1:] == [], "read on after an error"
        if not read:
            return
        id = int(read[0].split(b" ")[0])
        assert read == self.sent[id][: len(read)], "not a beginning of what came"
        if stream.ended and calls[-1].error is None:
            assert id in self.ended
            assert read == self.sent[id]
            self.outcomes.add("end")
        elif calls[-1].error is not None:
            self.outcomes.add("error")
        else:
            self.outcomes.add("open")

    def begin(self) -> None:
        self.readers.append((Stream(), []))

    def read(self) -> None:
        ready = [one for one in self.readers if not one[1] or self.done(one)]
        if ready:
            stream, calls = self.dice.choice(ready)
            payload = b"%d" % len(self.readers)
            call = Call(Method.RANGE_STREAM, payload, self.desk.now + 3, again=not calls, stream=stream)
            calls.append(call)
            self.desk.core.submit(call, self.desk.now)

    def done(self, reader: tuple[Stream, list[Call]]) -> bool:
        stream, calls = reader
        return calls[-1].finished and calls[-1].error is None and not stream.ended and not stream.over

    def close(self) -> None:
        for stream, calls in self.readers:
            if calls and self.dice.random() < 0.2:
                if not calls[-1].finished:
                    self.desk.core.forget(calls[-1])
                self.desk.core.close_stream(stream)
                stream.over = True

    def node(self) -> None:
        for id, session in list(self.open.items()):
            what = self.dice.random()
            if what < 0.6 and self.window[id] > len(self.sent[id]):
                part = b"%d part %d" % (id, len(self.sent[id]))
                self.sent[id].append(part)
                self.say(session, id, Kind.STREAM_MESSAGE, 0, part)
            elif what < 0.63:
                del self.open[id]
                self.ended.add(id)
                self.say(session, id, Kind.STREAM_CLOSE, 0, b"")
            elif what < 0.65:
                del self.open[id]
                error = self.dice.choice([errors.NoLeader(), errors.Compacted()])
                self.say(session, id, Kind.STREAM_CLOSE, error.code, error.text.encode())

    def say(self, session: Session, id: int, kind: Kind, status: int, payload: bytes) -> None:
        if session.phase is not Phase.GONE:
            self.desk.core.received(session, wire.encode(Method.RANGE_STREAM, kind, status, id, payload), self.desk.now)

    def lose(self) -> None:
        if self.desk.core.current is not None:
            self.desk.lose()

    def untake(self) -> None:
        batch = self.desk.core.take()
        if batch:
            self.desk.core.untake(batch)

    def settle(self) -> None:
        core = self.desk.core
        self.desk.advance(self.dice.choice([0, 0, 0.1]))
        core.closing.clear()
        if core.opening:
            session = core.opening.pop()
            core.opening.clear()
            if core.current is session:
                core.connected(session, self.desk.now)
        while batch := core.take():
            assert len(batch) <= BATCH_BYTES_MAX
            for record in wire.decode(batch):
                self.heard(record)

    def heard(self, record: Record) -> None:
        session = self.desk.session
        if record.method == Method.HELLO:
            hello = pb.HelloResponse(header=pb.ResponseHeader(cluster_id=1), protocol=wire.PROTOCOL)
            self.desk.answer(record, hello.SerializeToString())
        elif record.kind == Kind.STREAM_OPEN:
            self.open[record.id], self.sent[record.id], self.window[record.id] = session, [], 0
        elif record.kind == Kind.STREAM_CLOSE:
            self.open.pop(record.id, None)
        else:
            assert record.kind == Kind.STREAM_RESUME
            self.window[record.id] += int.from_bytes(record.payload, "little")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_what_is_read_is_what_one_node_sent(seed: int) -> None:
    Judge(seed).run()


def test_the_runs_reach_every_end() -> None:
    outcomes: set[str] = set()
    for seed in range(20):
        judge = Judge(seed)
        judge.run()
        outcomes |= judge.outcomes
    assert outcomes == {"end", "error", "open"}
