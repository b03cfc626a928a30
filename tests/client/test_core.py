"""What becomes of a call: every way it can end, and what its caller then knows (kvorum.core)."""

from __future__ import annotations

import pytest

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.core import BATCH_RECORDS_MAX, DIAL_SECONDS, NEVER, PATIENCE_CALLS, Call, Phase
from kvorum.wire import BATCH_BYTES_MAX, Kind, Method
from tests.client.desk import A, B, C, Desk, reply


def ended(call: Call) -> type[errors.KvorumError] | None:
    assert call.finished
    return type(call.error) if call.error else None


# ---- the ordinary way


def test_nothing_is_dialed_before_somebody_calls() -> None:
    """A client that is made and not used costs no connection."""
    desk = Desk(A)
    desk.advance(10)
    assert desk.core.opening == []
    assert desk.core.wake_at == NEVER


def test_a_call_leaves_only_after_hello_has_been_answered() -> None:
    """A node of another version or cluster must not get a write first."""
    desk = Desk(A)
    desk.call(payload=b"x")
    session = desk.dial()
    assert desk.core.take() == b""
    desk.core.connected(session, desk.now)
    (hello,) = desk.sent()
    assert (hello.method, hello.kind) == (Method.HELLO, Kind.CALL)
    assert desk.core.take() == b""


def test_calls_leave_together_and_are_answered_in_any_order() -> None:
    """One batch for all that has gathered; the id says whose answer it is."""
    desk = Desk(A)
    calls = [desk.call(payload=bytes([i])) for i in range(3)]
    desk.connect()
    sent = desk.sent()
    assert [record.payload for record in sent] == [b"\0", b"\1", b"\2"]
    assert len({record.id for record in sent}) == 3
    batch = b"".join(reply(record, b"answer %d" % record.payload[0]) for record in reversed(sent))
    desk.core.received(desk.session, batch, desk.now)
    assert [call.reply for call in calls] == [b"answer 0", b"answer 1", b"answer 2"]
    assert desk.finished() == calls[::-1]
    assert desk.core.load == 0


def test_an_error_record_is_the_exception_of_the_table() -> None:
    desk = Desk(A)
    call = desk.call()
    desk.connect()
    desk.answer(desk.sent()[0], errors.EmptyKey())
    assert ended(call) is errors.EmptyKey


def test_an_empty_batch_is_the_nodes_question_whether_we_are_there() -> None:
    desk = Desk(A)
    call = desk.call()
    desk.connect()
    desk.sent()
    desk.core.received(desk.session, b"", desk.now)
    assert not call.finished
    assert desk.session.phase is Phase.READY


def test_a_batch_holds_at_most_so_many_records() -> None:
    desk = Desk(A)
    for _ in range(BATCH_RECORDS_MAX + 1):
        desk.call()
    desk.connect()
    assert len(desk.sent()) == BATCH_RECORDS_MAX
    assert len(desk.sent()) == 1


def test_a_batch_stays_within_its_size() -> None:
    """BATCH_BYTES_MAX is refused where it enters: what we send must never be over it, and may be exactly it."""
    desk = Desk(A)
    half = b"x" * (BATCH_BYTES_MAX // 2 - 16)
    for _ in range(3):
        desk.call(payload=half)
    desk.connect()
    first, second = desk.core.take(), desk.core.take()
    assert len(first) == BATCH_BYTES_MAX
    assert len(second) == BATCH_BYTES_MAX // 2


def test_a_request_that_fits_no_batch_is_refused_at_once() -> None:
    desk = Desk(A)
    call = desk.call(payload=b"x" * (BATCH_BYTES_MAX - 15))
    assert ended(call) is errors.RequestTooLarge


def test_what_zeromq_does_not_take_has_not_left_and_keeps_its_place() -> None:
    desk = Desk(A)
    calls = [desk.call(payload=bytes([i])) for i in range(3)]
    desk.connect()
    desk.core.untake(desk.core.take())
    desk.call(payload=b"\3")
    assert [record.payload for record in desk.sent()] == [b"\0", b"\1", b"\2", b"\3"]
    assert not any(call.finished for call in calls)


def test_a_hello_that_zeromq_does_not_take_is_said_again() -> None:
    desk = Desk(A)
    desk.call()
    session = desk.dial()
    desk.core.connected(session, desk.now)
    desk.core.untake(desk.core.take())
    (hello,) = desk.sent()
    assert hello.method == Method.HELLO


# ---- the connection goes


def test_a_write_that_left_is_ambiguous_when_the_connection_is_lost() -> None:
    """Nobody can say that the node did not get it; sending it again might do it twice."""
    desk = Desk(A, B)
    call = desk.call()
    desk.connect()
    desk.sent()
    desk.lose()
    assert ended(call) is errors.ConnectionLost
    assert desk.core.load == 0


def test_a_write_that_has_not_left_goes_to_another_endpoint() -> None:
    desk = Desk(A, B)
    desk.call()
    desk.connect()
    desk.sent()
    waiting = desk.call(payload=b"w")
    desk.lose()
    assert desk.connect().endpoint == B
    assert [record.payload for record in desk.sent()] == [b"w"]
    assert not waiting.finished


def test_reads_that_left_are_asked_again_elsewhere_in_their_order_and_before_others() -> None:
    desk = Desk(A, B)
    reads = [desk.read() for _ in range(2)]
    desk.connect()
    first = desk.sent()
    later = desk.call(payload=b"later")
    desk.lose()
    assert desk.connect().endpoint == B
    again = desk.sent()
    assert [record.method for record in again] == [Method.RANGE, Method.RANGE, Method.PUT]
    assert {record.id for record in first}.isdisjoint(record.id for record in again), "ids are never used twice"
    for record in again:
        desk.answer(record, b"ok")
    assert [call.reply for call in (*reads, later)] == [b"ok"] * 3


def test_an_answer_over_a_lost_connection_comes_too_late_for_the_new_one() -> None:
    """The id of the first try means nothing on the second connection."""
    desk = Desk(A, B)
    call = desk.read()
    desk.connect()
    (old,) = desk.sent()
    desk.lose()
    desk.connect()
    desk.sent()
    desk.answer(old, b"stale")
    assert not call.finished


def test_without_any_node_calls_wait_for_one_until_their_deadline_and_are_certainly_not_done() -> None:
    desk = Desk(A)
    call = desk.call(timeout=3)
    tries = 0
    while not call.finished:
        if desk.core.opening:
            tries += 1
            desk.core.opening.clear()
            desk.lose(trouble="connection refused")
        desk.advance(0.01)
        assert desk.now < 104
    assert ended(call) is errors.Unreachable
    assert call.error is not None
    assert "tcp://a:1: connection refused" in call.error.text
    assert 4 <= tries <= 15, "it rests longer and longer, a second at most"


def test_an_endpoint_that_does_not_answer_is_given_up_for_the_next() -> None:
    """Dialing, handshake and Hello have DIAL_SECONDS together."""
    desk = Desk(A, B)
    desk.call()
    session = desk.dial()
    desk.advance(DIAL_SECONDS / 2)
    desk.core.connected(session, desk.now)
    desk.sent()
    desk.advance(DIAL_SECONDS / 2)
    assert desk.core.closing == [session]
    assert desk.connect().endpoint == B


def test_a_lost_idle_connection_is_dialed_again_only_for_the_next_call() -> None:
    desk = Desk(A)
    desk.call()
    desk.connect()
    desk.answer(desk.sent()[0])
    desk.lose()
    desk.advance(60)
    assert desk.core.opening == []
    desk.call()
    assert desk.dial().endpoint == A


def test_a_node_that_is_back_soon_is_found_soon() -> None:
    """A restart costs a client with one endpoint a few hundredths of a second, not the longest rest."""
    desk = Desk(A)
    desk.call()
    desk.connect()
    desk.answer(desk.sent()[0])
    desk.lose()
    begun = desk.now
    desk.call()
    while not desk.core.opening:
        desk.advance(0.005)
    assert desk.now - begun <= 0.06


# ---- time


def test_a_write_whose_deadline_passes_after_it_left_is_ambiguous() -> None:
    desk = Desk(A)
    call = desk.call(timeout=2)
    desk.connect()
    (record,) = desk.sent()
    desk.advance(1.99)
    assert not call.finished
    desk.advance(0.01)
    assert ended(call) is errors.DeadlineExceeded
    desk.answer(record, b"too late")
    assert call.error is not None
    assert call.reply == b""
    assert len(desk.finished()) == 1


def test_a_call_whose_deadline_passes_before_it_left_is_certainly_not_done() -> None:
    desk = Desk(A)
    call = desk.call(timeout=1)
    desk.dial()
    desk.advance(1)
    assert ended(call) is errors.Unreachable
    assert isinstance(call.error, errors.Unavailable)


def test_an_overdue_call_is_not_sent() -> None:
    desk = Desk(A)
    late, fine = desk.call(payload=b"late", timeout=1), desk.call(payload=b"fine", timeout=9)
    desk.dial()
    session = desk.session
    desk.advance(1)
    desk.core.connected(session, desk.now)
    (hello,) = desk.sent()
    desk.answer(hello, pb.HelloResponse(header=pb.ResponseHeader(cluster_id=7), protocol=1).SerializeToString())
    assert [record.payload for record in desk.sent()] == [b"fine"]
    assert late.finished
    assert not fine.finished


def test_each_call_has_its_own_deadline() -> None:
    desk = Desk(A)
    calls = {timeout: desk.call(timeout=timeout) for timeout in (3, 1, 2)}
    desk.connect()
    desk.sent()
    for second in (1, 2, 3):
        desk.advance(1)
        assert [timeout for timeout, call in calls.items() if call.finished] == [t for t in (3, 1, 2) if t <= second]


def test_what_arrived_before_the_deadline_was_looked_at_counts() -> None:
    """A program that was stopped for a while finds its answers, not a row of deadlines (the shell receives first)."""
    desk = Desk(A)
    call = desk.call(timeout=1)
    desk.connect()
    (record,) = desk.sent()
    desk.now += 10
    desk.answer(record, b"there")
    desk.core.tick(desk.now)
    assert call.reply == b"there"
    assert call.error is None


def test_a_forgotten_call_does_not_leave_and_is_no_success() -> None:
    desk = Desk(A)
    call = desk.call(payload=b"gone")
    desk.core.forget(call)
    desk.call(payload=b"stays")
    desk.connect()
    assert [record.payload for record in desk.sent()] == [b"stays"]
    assert ended(call) is errors.Ambiguous


# ---- nodes that answer and do not serve


def test_a_read_that_a_node_cannot_answer_now_is_asked_again_elsewhere() -> None:
    desk = Desk(A, B)
    call = desk.read()
    first = desk.connect()
    desk.answer(desk.sent()[0], errors.NoLeader())
    assert not call.finished
    assert desk.core.current is None, "another endpoint is worth a try"
    assert desk.core.closing == [first], "nothing is owed on the old one"
    desk.advance(0.05)
    desk.connect()
    assert desk.session.endpoint == B
    desk.answer(desk.sent()[0], b"here")
    assert (call.reply, call.error) == (b"here", None)


def test_a_read_that_no_node_can_answer_ends_with_what_the_node_said() -> None:
    desk = Desk(A)
    call = desk.read(timeout=2)
    desk.connect()
    while not call.finished:
        for record in desk.sent():
            desk.answer(record, errors.NoLeader())
        desk.advance(0.01)
        assert desk.now < 103
    assert ended(call) is errors.NoLeader


def test_a_write_that_a_node_cannot_do_now_is_never_sent_again() -> None:
    """The caller decides: NoLeader says it was not done, TimedOut that it may have been."""
    for error in (errors.NoLeader(), errors.TimedOut()):
        desk = Desk(A, B)
        call = desk.call()
        desk.connect()
        desk.answer(desk.sent()[0], error)
        assert ended(call) is type(error)
        assert desk.core.load == 0


def test_pending_calls_stay_with_a_node_that_gets_no_new_ones() -> None:
    """A node without a leader is left for new calls; what it was given before may still be answered by it."""
    desk = Desk(A, B)
    slow, refused = desk.call(payload=b"slow"), desk.call(payload=b"refused")
    old = desk.connect()
    slow_record, refused_record = desk.sent()
    desk.answer(refused_record, errors.NoLeader())
    assert refused.finished
    assert old.phase is Phase.RETIRED
    desk.call(payload=b"new")
    desk.advance(0.05)
    assert desk.connect().endpoint == B
    assert [record.payload for record in desk.sent()] == [b"new"]
    desk.answer(slow_record, b"done", old)
    assert slow.reply == b"done"
    assert desk.core.closing == [old]


def test_a_retired_connection_that_breaks_leaves_its_writes_ambiguous() -> None:
    desk = Desk(A, B)
    slow, refused = desk.call(), desk.call()
    old = desk.connect()
    _, record = desk.sent()
    desk.answer(record, errors.NoLeader())
    desk.lose(old)
    assert ended(refused) is errors.NoLeader
    assert ended(slow) is errors.ConnectionLost


def test_a_silent_node_is_left_after_a_deadline() -> None:
    """A process that hangs keeps its connection alive: ZeroMQ's heartbeats are answered by another thread."""
    desk = Desk(A, B)
    desk.call(timeout=2)
    desk.connect()
    desk.sent()
    desk.advance(2)
    desk.call()
    assert desk.dial().endpoint == B


def test_short_deadlines_leave_a_node_only_in_a_row() -> None:
    desk = Desk(A, B)
    session = None
    for _ in range(PATIENCE_CALLS - 1):
        desk.call(timeout=0.1)
        session = session or desk.connect()
        desk.sent()
        desk.advance(0.1)
    desk.call(timeout=0.1)
    desk.answer(desk.sent()[0])
    assert desk.core.current is session
    for _ in range(PATIENCE_CALLS):
        assert desk.core.current is session
        desk.call(timeout=0.1)
        desk.sent()
        desk.advance(0.1)
    assert desk.core.current is None


def test_with_one_endpoint_there_is_nowhere_else_to_go() -> None:
    desk = Desk(A)
    desk.call(timeout=2)
    session = desk.connect()
    desk.sent()
    desk.advance(2)
    desk.call()
    desk.advance(1)
    assert desk.core.current is session


# ---- Hello


def test_more_endpoints_are_learned_from_hello() -> None:
    desk = Desk(A)
    desk.call()
    desk.connect(members=(A, B))
    desk.sent()
    desk.lose()
    desk.call()
    assert desk.dial().endpoint == B


def test_only_the_listed_endpoints_are_used_if_so_wished() -> None:
    desk = Desk(A, discover=False)
    desk.call()
    desk.connect(members=(A, B))
    desk.sent()
    desk.lose()
    desk.call()
    desk.advance(1)
    assert desk.dial().endpoint == A


def test_addresses_that_lead_nowhere_are_not_learned() -> None:
    """A node that listens everywhere may tell its "any address"; what it tells may be anything."""
    desk = Desk(A)
    desk.call()
    desk.connect(members=("tcp://0.0.0.0:2381", "tcp://*:2381", "tcp://[::]:2381", "", "rubbish", "tcp://b", C))
    assert list(desk.core.endpoints) == [A, "tcp://rubbish:2381", "tcp://b:2381", C]


def test_a_version_that_no_node_speaks_is_said_at_once() -> None:
    desk = Desk(A)
    call = desk.call()
    session = desk.dial()
    desk.core.connected(session, desk.now)
    desk.answer(
        desk.sent()[0], errors.VersionMismatch("kvorum: protocol version not supported: 1, this server speaks 2")
    )
    desk.advance(0)
    assert call.finished
    assert isinstance(call.error, errors.Refused)
    assert "this server speaks 2" in call.error.text
    desk.advance(2)
    call = desk.call()
    desk.connect()
    desk.answer(desk.sent()[0], b"upgraded")
    assert call.reply == b"upgraded"


def test_a_version_that_only_one_node_does_not_speak_is_no_harm() -> None:
    desk = Desk(A, B)
    call = desk.call()
    session = desk.dial()
    desk.core.connected(session, desk.now)
    desk.answer(desk.sent()[0], errors.VersionMismatch())
    assert desk.connect().endpoint == B
    desk.answer(desk.sent()[0])
    assert ended(call) is None


def test_an_endpoint_of_another_cluster_gets_nothing() -> None:
    """A port can be taken over by somebody else's node; its Hello tells."""
    desk = Desk(A, B)
    desk.call()
    desk.connect(cluster=7)
    desk.answer(desk.sent()[0])
    desk.lose()
    call = desk.call()
    stranger = desk.connect(cluster=8)
    assert stranger.phase is Phase.GONE
    assert not call.finished
    desk.advance(0.05)
    desk.connect(cluster=7)
    desk.answer(desk.sent()[0], b"home")
    assert call.reply == b"home"


# ---- garbage


@pytest.mark.parametrize(
    "garbage",
    [
        b"x",
        b"\0" * 15,
        wire.encode(Method.PUT, Kind.REPLY, 0, 2, b"abc")[:-1],
        wire.encode(Method.PUT, Kind.CALL, 0, 2, b""),
        wire.encode(Method.PUT, Kind.STREAM_MESSAGE, 0, 2, b""),
        wire.encode(Method.RANGE, Kind.REPLY, 0, 2, b""),
        wire.HEADER.pack(0xFFFFFFFF, Method.PUT, Kind.REPLY, 0, 2),
        wire.encode(0, Kind.REPLY, errors.Code.INTERNAL, 0, b"kvorum: batch breaks off"),
    ],
    ids=["a byte", "half a header", "half a payload", "a call", "a stream", "another method", "endless", "no call's"],
)
def test_a_node_that_sends_garbage_is_left_and_its_writes_are_ambiguous(garbage: bytes) -> None:
    desk = Desk(A, B)
    call = desk.call()
    session = desk.connect()
    (record,) = desk.sent()
    assert record.id == 2, "the garbage below speaks of it"
    desk.core.received(session, garbage, desk.now)
    assert ended(call) is errors.ConnectionLost
    assert desk.core.closing == [session]
    desk.call()
    assert desk.connect().endpoint == B


def test_answers_before_the_garbage_count() -> None:
    desk = Desk(A)
    good, bad = desk.call(), desk.call()
    desk.connect()
    first, _ = desk.sent()
    desk.core.received(desk.session, reply(first, b"yes") + b"junk", desk.now)
    assert good.reply == b"yes"
    assert ended(bad) is errors.ConnectionLost


def test_an_error_text_that_is_not_utf8_is_shown_as_far_as_it_can_be() -> None:
    desk = Desk(A)
    call = desk.call()
    desk.connect()
    (record,) = desk.sent()
    desk.core.received(desk.session, wire.encode(Method.PUT, Kind.REPLY, 3, record.id, b"caf\xe9"), desk.now)
    assert isinstance(call.error, errors.Refused)
    assert call.error.text == "caf\ufffd"


def test_a_hello_that_cannot_be_understood_is_a_failed_dial() -> None:
    desk = Desk(A, B)
    desk.call()
    session = desk.dial()
    desk.core.connected(session, desk.now)
    desk.answer(desk.sent()[0], b"\xff\xff\xff")
    assert session.phase is Phase.GONE
    assert desk.connect().endpoint == B


# ---- the end


def test_closing_ends_every_call_with_what_is_known_of_it() -> None:
    desk = Desk(A)
    left = desk.call()
    desk.connect()
    desk.sent()
    queued = desk.call()
    desk.core.end(desk.now, "the client was closed")
    assert ended(left) is errors.ConnectionLost
    assert ended(queued) is errors.Unreachable
    assert desk.core.load == 0
