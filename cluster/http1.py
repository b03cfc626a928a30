"""HTTP/1.1 on the client port: requests in, answers out, over connections whose bytes the edge moves.

    edge ──bytes──▶ Connections ──a request begins──▶ route ──▶ a Taker: its body, its end, or that the client has gone
         ◀─bytes───            ◀── Exchange.answer(), or start(), chunk() and finish()

h11 knows the grammar; here are the lives of connections, and their bounds. Requests of a connection are answered one
after the other, as they came. What is read ahead of an answer is bounded by PAUSE, and no request is begun while the
client doesn't take the answers to earlier ones. A head is of at most HEAD_BYTES_MAX, as with etcd, and whole within
HEAD_SECONDS; a body is of as much as its Taker takes, and whole within BODY_SECONDS. All that is held for strangers is
HELD_BYTES_MAX: who asks for more then is sent away. A broken request gets a status and the end of its connection;
nobody else notices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple, Protocol

import h11

from cluster.access import Access
from native import edge

HEAD_BYTES_MAX = 1 << 20
HELD_BYTES_MAX = 256 << 20
AHEAD_BYTES_MAX = 64 << 10
"""Read of the requests after the one that is being answered."""
HEAD_SECONDS = 5.0
BODY_SECONDS = 60.0

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
Headers = list[tuple[str, str]]


class Request(NamedTuple):
    method: str
    target: str  # path and query
    headers: dict[str, str]  # lower-case names
    secure: bool  # over TLS


class Taker(Protocol):
    """Who deals with one request. Called in this order; answers may be given at any time from the beginning on.

    endless: its answer has no end of its own, and so may the body have none.
    """

    endless: bool

    def __len__(self) -> int:
        """Bytes of the body that it holds."""
        ...

    def data(self, chunk: bytes) -> None: ...
    def end(self) -> None:
        """The body is whole."""
        ...

    def blocked(self, blocked: bool) -> None:
        """The client doesn't take the answer, or takes it again."""
        ...

    def gone(self) -> None:
        """Nobody waits for the answer any more."""
        ...


class Exchange(Protocol):
    """Where a request's answer goes. After the last of it, or when the client has gone, it takes no notice."""

    def answer(
        self, status: int, body: bytes, content_type: str = JSON, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """The whole of it."""
        ...

    def start(self, headers: Iterable[tuple[str, str]] = ()) -> None:
        """200, and lines of JSON to come."""
        ...

    def chunk(self, body: bytes) -> None: ...
    def finish(self) -> None: ...
    def switch(self, headers: Iterable[tuple[str, str]], taker: Callable[[Line], Taker]) -> None:
        """101: from now on the connection's bytes are another protocol's, and go to this Taker. When the request is
        whole."""
        ...


class Line(Protocol):
    """A connection that has switched to another protocol."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


Route = Callable[[Request, Exchange], Taker]


class Later:
    """Takes a body that doesn't matter, and answers when it is whole: so the connection can go on."""

    endless = False

    def __init__(self, answer: Callable[[], None]) -> None:
        self._answer = answer

    def __len__(self) -> int:
        return 0

    def data(self, chunk: bytes) -> None: ...

    def end(self) -> None:
        self._answer()

    def blocked(self, blocked: bool) -> None: ...
    def gone(self) -> None: ...


class _Exchange:
    def __init__(self, connection: _Connection, request: Request) -> None:
        self._connection: _Connection | None = connection
        self._bodyless = request.method == "HEAD"
        self._always = connection.owner.access.cors(request.headers)
        self.started = False

    def answer(
        self, status: int, body: bytes, content_type: str = JSON, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        kind = [("Content-Type", content_type)] if content_type else []
        fields = [*self._always, *kind, *headers, ("Date", _date()), ("Content-Length", str(len(body)))]
        if self._connection is not None:
            self._connection.send(self._head(status, fields), h11.Data(data=b"" if self._bodyless else body))
            self.finish()

    def start(self, headers: Iterable[tuple[str, str]] = ()) -> None:
        if self._connection is not None:
            kind, chunked = ("Content-Type", JSON), ("Transfer-Encoding", "chunked")
            fields = [*self._always, kind, *headers, ("Date", _date()), chunked]
            self._connection.send(self._head(200, fields))
            self.started = True

    def chunk(self, body: bytes) -> None:
        if self._connection is not None and body:
            self._connection.send(h11.Data(data=body))

    def finish(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.send(h11.EndOfMessage())
            connection.answered()

    def switch(self, headers: Iterable[tuple[str, str]], taker: Callable[[Line], Taker]) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.send(
                h11.InformationalResponse(status_code=101, headers=[*headers], reason="Switching Protocols")
            )
            connection.switched(taker)

    def abandon(self) -> None:
        self._connection = None

    def _head(self, status: int, fields: Headers) -> h11.Response:
        connection = self._connection
        if connection is not None and not connection.whole:
            fields = [*fields, ("Connection", "close")]  # nobody will read the rest of the body
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = "Client Closed Request" if status == 499 else ""
        return h11.Response(status_code=status, headers=fields, reason=reason)


class _Connection:
    def __init__(self, owner: Connections, id: int, *, secure: bool) -> None:
        self.owner, self.id, self.secure = owner, id, secure
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self.exchange: _Exchange | None = None
        self.taker: Taker | None = None
        self.held = 0  # bytes of requests that aren't answered
        self.blocked = self.paused = self.running = self.closing = False
        self.other = False  # it speaks another protocol now

    # ---- in

    def take(self, data: bytes) -> None:
        if self.closing:
            return
        if self.other:
            self._other_bytes(data)
            return
        self.hold(len(data))
        self.http.receive_data(data)
        self.advance()
        if self.closing:
            return
        if self.owner.held > HELD_BYTES_MAX and self.held and not (self.exchange is not None and self.whole):
            self.refuse(503)
            return
        if self.exchange is not None and self.whole and self.held > AHEAD_BYTES_MAX:
            ahead = len(self.http.trailing_data[0])
            if ahead > AHEAD_BYTES_MAX and self.exchange.started:
                self.close()  # for an answer without an end
            elif ahead > AHEAD_BYTES_MAX and not self.paused:
                self.paused = True
                self.owner.tell(edge.PAUSE, self.id)
        self.owner.watch_over(self)

    def _other_bytes(self, data: bytes) -> None:
        assert self.taker is not None
        self.taker.data(data)
        if not self.closing:
            self.hold(len(self.taker) - self.held)
            if self.owner.held > HELD_BYTES_MAX and self.held:
                self.close()

    @property
    def whole(self) -> bool:
        """The request has come to its end, and none begins before it is answered."""
        return self.http.their_state not in (h11.IDLE, h11.SEND_BODY)

    def hold(self, more: int) -> None:
        self.held += more
        self.owner.held += more

    def advance(self) -> None:
        """Go through what has come, as far as it may be dealt with now."""
        if self.running:
            return
        self.running = True
        try:
            while not self.closing and not self.other and not (self.blocked if self.exchange is None else self.whole):
                event = self.http.next_event()
                if event is h11.NEED_DATA:
                    self._need_data()
                    break
                if isinstance(event, h11.Request):
                    self._begin(event)
                elif isinstance(event, h11.Data):
                    if self.taker is not None:
                        self.taker.data(bytes(event.data))
                    if self.taker is not None and self.taker.endless:
                        self.hold(len(self.taker) - self.held)
                elif isinstance(event, h11.EndOfMessage):
                    if self.taker is not None:
                        self.taker.end()
                else:
                    self.close()
        except h11.RemoteProtocolError as error:
            self.refuse(error.error_status_hint)
        finally:
            self.running = False

    def _need_data(self) -> None:
        if self.http.they_are_waiting_for_100_continue and self.exchange is not None and not self.exchange.started:
            self.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))

    def _begin(self, event: h11.Request) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        request = Request(event.method.decode("ascii"), event.target.decode("latin-1"), headers, self.secure)
        self.exchange = exchange = _Exchange(self, request)
        taker = self.owner.route(request, exchange)
        if self.exchange is exchange:
            self.taker = taker

    def _next(self) -> None:
        self.http.start_next_cycle()
        self.hold(len(self.http.trailing_data[0]) - self.held)
        if self.paused:
            self.paused = False
            self.owner.tell(edge.RESUME, self.id)

    def half_closed(self) -> None:
        """The client says no more. Who waits for a stream's next line would not say so: it has gone."""
        if self.other or (
            self.exchange is not None and (self.exchange.started or (self.taker is not None and self.taker.endless))
        ):
            self.close()
        else:
            self.take(b"")

    # ---- out

    def send(self, *events: h11.Event) -> None:
        try:
            self.owner.tell(edge.WRITE, self.id, b"".join([self.http.send(event) or b"" for event in events]))
        except h11.LocalProtocolError as error:
            raise AssertionError(f"an answer that HTTP has no place for: {error}") from error

    def write(self, data: bytes) -> None:
        self.owner.tell(edge.WRITE, self.id, data)

    def switched(self, taker: Callable[[Line], Taker]) -> None:
        ahead = self.http.trailing_data[0]
        self.exchange, self.other = None, True
        self.hold(-self.held)
        self.taker = found = taker(self)
        if self.closing:
            found.gone()
        elif ahead:
            self._other_bytes(ahead)

    def answered(self) -> None:
        self.exchange = self.taker = None
        if self.owner.draining or self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
            self.close()
            return
        self._next()
        if not self.running:
            self.advance()
            self.owner.watch_over(self)

    def refuse(self, status: int) -> None:
        """Say what is wrong, if nothing is said yet, and end the connection."""
        if not self.closing and self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            phrase = f"{status} {HTTPStatus(status).phrase}"
            fields = [("Content-Type", TEXT), ("Connection", "close"), ("Content-Length", str(len(phrase)))]
            response = h11.Response(status_code=status, headers=fields, reason=HTTPStatus(status).phrase)
            self.send(response, h11.Data(data=phrase.encode()), h11.EndOfMessage())
        self.close()

    def close(self) -> None:
        if not self.closing:
            self.lost()
            self.owner.tell(edge.CLOSE, self.id)

    def lost(self) -> None:
        """It is gone, or will be when all is written."""
        self.closing = True
        self.hold(-self.held)
        exchange, taker, self.exchange, self.taker = self.exchange, self.taker, None, None
        if exchange is not None:
            exchange.abandon()
        if taker is not None:
            taker.gone()


class Connections:
    """All connections of HTTP/1.1.

    tell: a record of the edge's, by kind, connection and payload.
    route: called when a request's head has come.
    """

    def __init__(self, tell: Callable[..., None], route: Route, tick_seconds: float, access: Access) -> None:
        self.tell, self.route, self.access = tell, route, access
        self.held = 0
        self.draining = False
        self._tick_seconds = tick_seconds
        self._ticks = 0
        self._all: dict[int, _Connection] = {}
        self._heads_by: dict[int, int] = {}  # connections that owe us the rest of a head, and until when; oldest first
        self._bodies_by: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._all)

    def event(self, id: int, kind: int, data: bytes) -> None:
        """What the edge has told of a connection that speaks HTTP/1.1; of others nothing. OPENED: of those over TLS."""
        if kind == edge.BYTES:
            connection = self._all.get(id)
            if connection is None:
                connection = self._all[id] = _Connection(self, id, secure=False)
            connection.take(data)
            return
        if kind == edge.OPENED:
            self._all[id] = _Connection(self, id, secure=True)
            return
        connection = self._all.get(id)
        if connection is None:
            return
        if kind == edge.CLOSED:
            del self._all[id]
            self._heads_by.pop(id, None)
            self._bodies_by.pop(id, None)
            if not connection.closing:
                connection.lost()
        elif kind == edge.HALF_CLOSED:
            if not connection.closing:
                connection.half_closed()
        elif kind in (edge.BLOCKED, edge.WRITABLE):
            connection.blocked = kind == edge.BLOCKED
            if connection.taker is not None:
                connection.taker.blocked(connection.blocked)
            if not connection.blocked and not connection.closing:
                connection.advance()

    def drain(self) -> None:
        """Close each connection with the answer that it waits for; streams are cut."""
        self.draining = True
        for connection in self._all.values():
            waits = connection.taker is not None and not connection.taker.endless
            if not connection.closing and not waits:
                connection.close()

    def watch_over(self, connection: _Connection) -> None:
        state, taker = connection.http.their_state, connection.taker
        head = state is h11.IDLE and connection.held > 0
        body = state is h11.SEND_BODY and not (taker is not None and taker.endless)
        for owed, by, seconds in ((head, self._heads_by, HEAD_SECONDS), (body, self._bodies_by, BODY_SECONDS)):
            if owed and not connection.closing:
                by.setdefault(connection.id, self._ticks + max(1, int(seconds / self._tick_seconds)))
            else:
                by.pop(connection.id, None)

    def tick(self) -> None:
        self._ticks += 1
        for owing in (self._heads_by, self._bodies_by):
            while owing:
                id, by = next(iter(owing.items()))
                if by > self._ticks:
                    break
                del owing[id]
                self._all[id].refuse(408)


_second = [0, ""]


def _date() -> str:
    now = int(time.time())
    if _second[0] != now:
        _second[:] = [now, formatdate(now, usegmt=True)]
    return str(_second[1])
