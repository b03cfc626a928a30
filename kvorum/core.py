"""What a client knows and decides, without a socket or a clock: both clients are shells around this.

    submit ──▶ outbox ──(take: one batch)──▶ session.pending ──(received)──▶ finished
                 ▲                                │
                 └──── a read, asked again ◀──────┤ connection lost, or the node cannot answer
                       a write: ConnectionLost ◀──┘

A *call* is in one place at a time: in the outbox (has not left), in one session's pending table (has left, the answer
is owed), waiting for a second try, or finished. A call leaves when its batch is handed to ZeroMQ; from then on nobody
can say that the node did not get it. So a write that left is never sent again: it ends with its answer, with
ConnectionLost or with DeadlineExceeded, the last two Ambiguous. What did not leave may go to any endpoint, and if its
time runs out first it ends as Unreachable: certainly not done. Reads may always be asked again, and are, until their
deadline.

A range that comes in parts has a *stream* (kvorum.streaming), and a call for each part: the first opens it, each waits
in the pending table under the stream's id, and what comes while none waits is held.

A *session* is one connection: dialing ──▶ greeting (Hello) ──▶ ready ──▶ retired ──▶ gone. New calls go to the current
session only. A node that answers but cannot serve (no leader, timed out), or that lets deadlines pass, is
*retired* if there is another endpoint: it gets no new calls, its pending calls keep waiting for their answers.

The shell gives time (seconds, any origin), chance (a `random.Random`) and events, and takes `opening`, `closing`,
batches and `finished`. It never gets an exception from the network's side: garbage ends the session it came from.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from random import Random
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.endpoints import Endpoints, usable
from kvorum.errors import Code, KvorumError
from kvorum.streaming import Stream, Streams
from kvorum.wire import BATCH_BYTES_MAX, HEADER, PROTOCOL, Kind, Method

if TYPE_CHECKING:
    import threading

NEVER = float("inf")
DIAL_SECONDS = 2.0
"""Connecting, ZeroMQ's handshake and Hello together; then the next endpoint is tried (etcdctl's --dial-timeout)."""
BATCH_RECORDS_MAX = 4096
"""More than this in one batch saves nothing and makes the first of them wait."""
RETRY_MIN, RETRY_MAX = 0.025, 0.5
"""Seconds before a read is asked again after the node could not answer it: doubled each time, with jitter."""
PATIENCE_SECONDS, PATIENCE_CALLS = 1.0, 3
"""A node is doubted when a call waited so long for it in vain, or so many calls in a row did."""

_REPLY = int(Kind.REPLY)
_CALL = int(Kind.CALL)
_OPEN = int(Kind.STREAM_OPEN)


class Call:
    """One request and what became of it. `reply` counts if `error` is None, both only once `finished`."""

    __slots__ = (
        "again",
        "begun",
        "deadline",
        "error",
        "finished",
        "id",
        "kind",
        "method",
        "notify",
        "parked",
        "payload",
        "reply",
        "stream",
        "tries",
    )

    def __init__(
        self,
        method: int,
        payload: bytes,
        deadline: float,
        notify: Callable[[Call], None] | None = None,
        *,
        again: bool = False,
        stream: Stream | None = None,
    ) -> None:
        """`again`: the request changes nothing, so it may be sent twice. `notify` is the shell's to call. `stream`: it
        is for the next part of this one, and `again` if it is the first."""
        self.method = method
        self.payload = payload
        self.deadline = deadline
        self.notify = notify
        self.again = again
        self.stream = stream
        self.kind = _CALL if stream is None else _OPEN
        self.id = 0
        self.begun = 0.0
        self.tries = 0
        self.finished = False
        self.reply = b""
        self.error: KvorumError | None = None
        self.parked: threading.Lock | None = None  # the shell's


class Phase(IntEnum):
    DIALING = 0
    CONNECTED = 1
    GREETING = 2
    READY = 3
    RETIRED = 4
    GONE = 5


class Session:
    """One connection, seen from the core."""

    __slots__ = ("endpoint", "give_up_at", "hello_id", "pending", "phase", "strikes")

    def __init__(self, endpoint: str, give_up_at: float) -> None:
        self.endpoint = endpoint
        self.give_up_at = give_up_at
        self.phase = Phase.DIALING
        self.pending: dict[int, Call] = {}
        self.hello_id = 0
        self.strikes = 0  # deadlines that passed since the last answer


class Core:
    """See the module. Not thread-safe: one thread at a time, the shell sees to it.

    Args:
      endpoints: where to connect to; more are learned from Hello unless `discover` is False.
      hello_name: what the node may write into its log about us.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        rng: Random,
        *,
        discover: bool = True,
        dial_seconds: float = DIAL_SECONDS,
        hello_name: str = "kvorum-python",
    ) -> None:
        self.endpoints = endpoints
        self.outbox: deque[Call] = deque()
        self.finished: deque[Call] = deque()
        self.opening: list[Session] = []
        self.closing: list[Session] = []
        self.current: Session | None = None
        self.wake_at = NEVER
        """tick() has something to do from then on."""
        self._rng = rng
        self._discover = discover
        self._dial_seconds = dial_seconds
        self._hello_name = hello_name
        self._cluster = 0
        self._next_id = 0
        self._sweep_at = NEVER  # no call's deadline is earlier
        self._retired: list[Session] = []
        self._again: list[tuple[float, Call]] = []
        self._streams = Streams()

    # ---- the caller's side

    @property
    def load(self) -> int:
        """Calls not finished."""
        load = len(self.outbox) + len(self._again)
        if self.current is not None:
            load += len(self.current.pending)
        for session in self._retired:
            load += len(session.pending)
        return load

    def submit(self, call: Call, now: float) -> None:
        """Take a call. It leaves with the next batch; where nobody is connected, the next tick() dials."""
        if len(call.payload) > BATCH_BYTES_MAX - HEADER.size:
            self._finish(call, errors.RequestTooLarge())
            return
        call.begun = now
        stream = call.stream
        if stream is None or not (stream.id or stream.parts or stream.over):
            self.outbox.append(call)
        elif stream.parts or stream.over:
            self._give(call, stream)
            return
        else:
            assert self.current is not None
            self.current.pending[stream.id] = call
        if call.deadline < self._sweep_at:
            self._sweep_at = call.deadline
            if call.deadline < self.wake_at:
                self.wake_at = call.deadline
        if self.current is None:
            self.wake_at = min(self.wake_at, max(now, self.endpoints.usable_at()))

    @property
    def via(self) -> str:
        """The endpoint that is connected, or would be next."""
        return self.current.endpoint if self.current is not None else self.endpoints.next()

    def forget(self, call: Call) -> None:
        """Nobody waits for this call any more. If it has left, the node may still do it."""
        if not call.finished:
            call.error = errors.Ambiguous("kvorum: given up before the answer came", Code.CANCELLED)
            call.finished = True

    def close_stream(self, stream: Stream) -> None:
        """Nobody reads it any more, nor waits for it: a call for it that is under way has been forgotten."""
        if stream.id and self.current is not None:
            self.current.pending.pop(stream.id, None)
        self._streams.close(stream)

    def end(self, now: float, trouble: str) -> None:
        """The client is being closed: finish every call, close every session."""
        for session in [*self._retired, *([self.current] if self.current else [])]:
            self._drop(session, now, trouble)
        for call in [*self.outbox, *(call for _, call in self._again)]:
            self._finish(call, errors.Unreachable(trouble))
        self.outbox.clear()
        self._again.clear()

    # ---- time

    def tick(self, now: float) -> None:
        """Time has come to `now`: end calls whose deadline has passed, ask again, give up dialing, dial."""
        if now >= self._sweep_at:
            self._sweep(now)
        if self._again:
            due = [call for when, call in self._again if when <= now]
            self._again = [(when, call) for when, call in self._again if when > now]
            self.outbox.extend(due)
        current = self.current
        if current is not None and current.phase < Phase.READY and now >= current.give_up_at:
            self._drop(current, now, f"no answer within {self._dial_seconds:g} s")
        if self.current is None and self.outbox:
            self._dial(now)
        self._set_wake()

    def _set_wake(self) -> None:
        wake = min(self._sweep_at, min((when for when, _ in self._again), default=NEVER))
        if self.current is None:
            if self.outbox:
                wake = min(wake, self.endpoints.usable_at())
        elif self.current.phase < Phase.READY:
            wake = min(wake, self.current.give_up_at)
        self.wake_at = wake

    def _dial(self, now: float) -> None:
        address = self.endpoints.choose(now)
        if address is not None:
            self.current = Session(address, now + self._dial_seconds)
            self.opening.append(self.current)
        else:
            self._tell_refusal()

    def _tell_refusal(self) -> None:
        """If every endpoint has refused us, waiting for one is in vain."""
        refusal = self.endpoints.refusal()
        if refusal is not None:
            while self.outbox:
                self._finish(self.outbox.popleft(), refusal)

    def _sweep(self, now: float) -> None:
        """End what is overdue. O(calls), but only when some deadline has really come."""
        earliest = NEVER
        for call in self.outbox:
            if call.deadline <= now:
                self._expire_unsent(call)
            elif call.deadline < earliest:
                earliest = call.deadline
        for _, call in self._again:
            if call.deadline <= now:
                self._expire_unsent(call)
            else:
                earliest = min(earliest, call.deadline)
        self.outbox = deque(call for call in self.outbox if not call.finished)
        self._again = [item for item in self._again if not item[1].finished]
        for session in [*self._retired, *([self.current] if self.current else [])]:
            doubtful = False
            for id, call in list(session.pending.items()):
                if call.deadline <= now:
                    del session.pending[id]
                    self._finish(call, errors.DeadlineExceeded())
                    session.strikes += 1
                    doubtful |= now - call.begun >= PATIENCE_SECONDS or session.strikes >= PATIENCE_CALLS
                else:
                    earliest = min(earliest, call.deadline)
            if doubtful:
                self._doubt(session, now, "does not answer")
            self._close_if_done(session)
        self._sweep_at = earliest

    def _expire_unsent(self, call: Call) -> None:
        if call.error is not None:  # it did leave once, and the node's own words say more than ours
            self._finish(call, call.error)
            return
        trouble = self.endpoints.trouble()
        self._finish(call, errors.Unreachable(f"{errors.Unreachable.text}: {trouble}" if trouble else None))

    # ---- the connection's side

    def connected(self, session: Session, _now: float) -> None:
        """ZeroMQ's handshake is done; take() gives Hello now."""
        if session.phase is Phase.DIALING:
            session.phase = Phase.CONNECTED

    def lost(self, session: Session, now: float, trouble: str) -> None:
        """The connection is gone; everything that came over it has been given to received()."""
        if session.phase is not Phase.GONE:
            self._drop(session, now, trouble)
            self._set_wake()

    def take(self) -> bytes:
        """The next batch for the current session, or b"" if there is nothing to send or nobody to send it to."""
        session = self.current
        if session is None:
            return b""
        if session.phase is not Phase.READY:
            return self._greet(session)
        outbox = self.outbox
        parts, self._streams.controls = self._streams.controls, []
        pending, pack, size, id = session.pending, HEADER.pack, 0, self._next_id
        while outbox:
            call = outbox[0]
            payload = call.payload
            length = len(payload)
            size += 16 + length
            if size > BATCH_BYTES_MAX or len(parts) >= 2 * BATCH_RECORDS_MAX:
                break
            outbox.popleft()
            if call.finished:  # forgotten while it waited
                size -= 16 + length
                continue
            id += 1
            call.id = id
            pending[id] = call
            parts += (pack(length, call.method, call.kind, 0, id), payload)
            if call.stream is not None:
                parts.append(self._streams.opened(call.stream, id))
        self._next_id = id
        return b"".join(parts)

    def untake(self, batch: bytes) -> None:
        """ZeroMQ did not accept the batch just taken: its calls have not left. They keep their places."""
        session = self.current
        assert session is not None
        if session.phase is Phase.GREETING:
            session.phase = Phase.CONNECTED
            return
        at, calls = 0, []
        while at < len(batch):
            length, _, kind, _, id = HEADER.unpack_from(batch, at)
            if kind in (_CALL, _OPEN):
                call = session.pending.pop(id)
                calls.append(call)
                if call.stream is not None:
                    self._streams.unopened(call.stream)
            elif kind == Kind.STREAM_CLOSE or self._streams[id] is not None:
                self._streams.controls.append(batch[at : at + 16 + length])
            at += 16 + length
        self.outbox.extendleft(reversed(calls))

    def received(self, session: Session, batch: bytes, now: float) -> None:
        """A batch came in: finish the calls that it answers. An empty one is the node asking if we are there.

        An answer nobody waits for is dropped: its deadline has passed. What is not a batch of replies ends the session.
        """
        pending, unpack, size, at = session.pending, HEADER.unpack_from, len(batch), 0
        finished = self.finished
        try:
            while at < size:
                length, method, kind, status, id = unpack(batch, at)
                at += 16
                end = at + length
                if end > size:
                    raise struct.error
                if kind != _REPLY:
                    self._streamed(session, (method, kind, status, id), batch[at:end], now)
                    at = end
                    continue
                call = pending.pop(id, None)
                if call is not None:
                    if call.method != method or call.stream is not None:
                        pending[id] = call
                        raise struct.error
                    session.strikes = 0
                    if call.finished:
                        pass
                    elif status == 0:
                        call.reply = batch[at:end]
                        call.error = None  # another node's no, before it was asked again
                        call.finished = True
                        finished.append(call)
                    else:
                        self._answered_no(session, call, status, batch[at:end], now)
                elif id == session.hello_id and session.phase is Phase.GREETING:
                    self._greeted(session, status, batch[at:end], now)
                elif id == 0 and status:  # an answer to no call: the node could not read our batch
                    self.lost(session, now, batch[at:end].decode("utf-8", "replace"))
                    return
                at = end
        except struct.error:
            self.lost(session, now, "sent something that is not a batch of replies")
            return
        if session.phase is Phase.RETIRED:
            self._close_if_done(session)

    # ---- streams

    def _streamed(self, session: Session, head: tuple[int, int, int, int], payload: bytes, now: float) -> None:
        """A record of a stream came in. What is of none that is open is dropped: nobody reads it any more.

        Raises:
          struct.error: nodes don't send such.
        """
        method, kind, status, id = head
        if method != Method.RANGE_STREAM or kind not in (Kind.STREAM_MESSAGE, Kind.STREAM_CLOSE):
            raise struct.error
        stream = self._streams[id]
        if stream is None or session is not self.current:
            return
        call = session.pending.pop(id, None)
        if call is not None and call.finished:  # forgotten
            call = None
        session.strikes = 0
        if kind == Kind.STREAM_MESSAGE:
            stream.parts.append(payload)
        elif not status:
            self._streams.closed(stream, None)
        elif call is not None:
            self._streams.unopened(stream)
            self._answered_no(session, call, status, payload, now)
            return
        else:
            self._streams.closed(stream, errors.from_wire(status, payload.decode("utf-8", "replace")))
        if call is not None:
            self._give(call, stream)

    def _give(self, call: Call, stream: Stream) -> None:
        """What is next in the stream, to the call that waits for it."""
        if stream.parts:
            call.reply, call.error = self._streams.read(stream), None
        else:
            call.error, stream.ended = stream.error, True
        call.finished = True
        self.finished.append(call)

    def _cut_streams(self, session: Session, trouble: str) -> None:
        """The session is not the current one any more."""
        self._streams.controls.clear()
        for stream in self._streams.opens():
            call = session.pending.get(stream.id)
            if call is not None and call.again and not call.finished:
                del session.pending[stream.id]
                self.outbox.append(call)
                self._streams.unopened(stream)
                continue
            session.pending.pop(stream.id, None)
            self._streams.closed(stream, errors.Unavailable(f"kvorum: the range broke off: {trouble}"))
            if call is not None and not call.finished:
                self._give(call, stream)

    # ---- Hello

    def _greet(self, session: Session) -> bytes:
        if session.phase is not Phase.CONNECTED:
            return b""
        session.phase = Phase.GREETING
        self._next_id += 1
        session.hello_id = self._next_id
        hello = pb.HelloRequest(protocol=PROTOCOL, client=self._hello_name).SerializeToString()
        return HEADER.pack(len(hello), Method.HELLO, Kind.CALL, 0, session.hello_id) + hello

    def _greeted(self, session: Session, status: int, payload: bytes, now: float) -> None:
        try:
            if status:
                raise errors.from_wire(status, payload.decode("utf-8", "replace"))
            hello = pb.HelloResponse.FromString(payload)
            if hello.protocol != PROTOCOL:
                raise errors.VersionMismatch(f"{errors.VersionMismatch.text}: the node speaks {hello.protocol}")
            if self._cluster not in (0, hello.header.cluster_id):
                raise errors.Refused(f"kvorum: it is of cluster {hello.header.cluster_id:x}, not {self._cluster:x}")
        except DecodeError:
            self.lost(session, now, "its Hello cannot be understood")
            return
        except KvorumError as error:
            refusal = error if isinstance(error, errors.Refused) else None
            self._drop(session, now, error.text, refusal)
            self._tell_refusal()
            self._set_wake()
            return
        session.phase = Phase.READY
        self._cluster = hello.header.cluster_id
        self.endpoints.succeeded(session.endpoint)
        if self._discover:
            self.endpoints.learn(usable((member.native for member in hello.members), session.endpoint))
        self._set_wake()

    # ---- what becomes of calls

    def _finish(self, call: Call, error: KvorumError) -> None:
        if not call.finished:
            call.error = error
            call.finished = True
            self.finished.append(call)

    def _answered_no(self, session: Session, call: Call, status: int, payload: bytes, now: float) -> None:
        error = errors.from_wire(status, payload.decode("utf-8", "replace"))
        if status != Code.UNAVAILABLE:
            self._finish(call, error)
            return
        self._doubt(session, now, error.text)
        when = now + min(RETRY_MIN * 2**call.tries, RETRY_MAX) * self._rng.uniform(0.5, 1.0)
        if not call.again or when >= call.deadline:
            self._finish(call, error)
            return
        call.error = error
        call.tries = min(call.tries + 1, 16)
        self._again.append((when, call))
        self.wake_at = min(self.wake_at, when)

    def _doubt(self, session: Session, now: float, trouble: str) -> None:
        """The node is there but does not serve: send new calls elsewhere, if there is an elsewhere."""
        if session is not self.current or session.phase is not Phase.READY:
            return
        self.endpoints.failed(session.endpoint, now, trouble)
        if self.endpoints.others(session.endpoint, now):
            session.phase = Phase.RETIRED
            self._cut_streams(session, trouble)
            self.current = None
            self._retired.append(session)
            self._close_if_done(session)
            self._set_wake()

    def _close_if_done(self, session: Session) -> None:
        if session.phase is Phase.RETIRED and not session.pending:
            session.phase = Phase.GONE
            self._retired.remove(session)
            self.closing.append(session)

    def _drop(self, session: Session, now: float, trouble: str, refusal: KvorumError | None = None) -> None:
        if session.phase is Phase.RETIRED:
            self._retired.remove(session)
        else:
            assert session is self.current
            self._cut_streams(session, trouble)
            self.current = None
            self.endpoints.failed(session.endpoint, now, trouble, refusal)
        session.phase = Phase.GONE
        self.closing.append(session)
        calls, session.pending = session.pending.values(), {}
        for call in calls:
            if not call.again:
                self._finish(call, errors.ConnectionLost())
        self.outbox.extendleft(reversed([call for call in calls if call.again and not call.finished]))
