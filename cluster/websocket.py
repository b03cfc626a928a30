"""WebSockets on the client port: for programs in browsers, which can't write a request while they read its answer.

    GET /v3/watch, Upgrade: websocket ──▶ Upgrade ──101──▶ WebSocket ──▶ the Taker of POST /v3/watch
       each message ──▶ a piece of its body, and a line's end
       each line of its answer ──▶ a message, of text

The bridge that etcd has (grpc-websocket-proxy), so what comes of a path is what comes of a POST there, but for this:
the body has no end, so calls that wait for it are never answered; and of the headers only those that a browser can set
are taken, the token as a subprotocol ("Bearer, TOKEN") or as a cookie ("token"). wsproto knows the frames. When the
answer is over the socket is closed, with code 1000 (etcd cuts the connection).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http.cookies import CookieError, SimpleCookie

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token

from cluster.http1 import JSON, TEXT, Exchange, Later, Line, Request, Taker

Route = Callable[[Request, Exchange], Taker]

_FORWARDED = ("origin", "referer")


def wanted(request: Request) -> bool:
    """It asks for a WebSocket."""
    return _has(request, "connection", "upgrade") and _has(request, "upgrade", "websocket")


def _has(request: Request, name: str, token: str) -> bool:
    return token in (part.strip().lower() for part in request.headers.get(name, "").split(","))


class Upgrade:
    """The end of the asking request: shakes hands, or says why not.

    route: who takes the request that is bridged.
    """

    endless = False

    def __init__(self, request: Request, exchange: Exchange, route: Route) -> None:
        self._request, self._exchange, self._route = request, exchange, route

    def __len__(self) -> int:
        return 0

    def data(self, chunk: bytes) -> None: ...
    def blocked(self, blocked: bool) -> None: ...
    def gone(self) -> None: ...

    def end(self) -> None:
        headers, key = self._request.headers, self._request.headers.get("sec-websocket-key", "")
        if self._request.method != "GET":
            self._refuse(405, b"Method Not Allowed\n")
        elif "13" not in (part.strip() for part in headers.get("sec-websocket-version", "").split(",")) or not key:
            self._refuse(400, b"Bad Request\n")
        else:
            accept = generate_accept_token(key.encode("latin-1")).decode()
            fields = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]
            if headers.get("sec-websocket-protocol", "").startswith("Bearer"):
                fields.append(("Sec-WebSocket-Protocol", "Bearer"))
            self._exchange.switch(fields, lambda line: WebSocket(line, _bridged(self._request), self._route))

    def _refuse(self, status: int, text: bytes) -> None:
        self._exchange.answer(
            status, text, TEXT, [("Sec-WebSocket-Version", "13"), ("X-Content-Type-Options", "nosniff")]
        )


def _bridged(request: Request) -> Request:
    headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
    if "sec-websocket-protocol" in request.headers:
        headers["authorization"] = request.headers["sec-websocket-protocol"].replace("Bearer,", "Bearer", 1)
    try:
        token = SimpleCookie(request.headers.get("cookie", "")).get("token")
    except CookieError:
        token = None
    if token is not None:
        headers["authorization"] = f"Bearer {token.value}"
    return Request("POST", request.target, headers, request.secure)


class WebSocket:
    """One that is open: the Taker of its connection's bytes, and the Exchange of the request that it stands for."""

    endless = True

    def __init__(self, line: Line, request: Request, route: Route) -> None:
        self._line, self._protocol = line, Connection(ConnectionType.SERVER)
        self._over = False
        self._taker = route(request, self)
        if isinstance(self._taker, Later):
            self._taker.end()

    # ---- in

    def __len__(self) -> int:
        return len(self._taker)

    def data(self, chunk: bytes) -> None:
        if self._over:
            return
        self._protocol.receive_data(chunk)
        for event in self._protocol.events():
            if isinstance(event, TextMessage):
                self._piece(event.data.encode(), last=event.message_finished)
            elif isinstance(event, BytesMessage):
                self._piece(bytes(event.data), last=event.message_finished)
            elif isinstance(event, Ping):
                self._line.write(self._protocol.send(event.response()))
            elif isinstance(event, CloseConnection):  # theirs, or for what was no frame
                self._close(event.response())
            if self._over:
                return

    def _piece(self, piece: bytes, *, last: bool) -> None:
        self._taker.data(piece + b"\n" if last else piece)

    def end(self) -> None:
        """Its connection has nothing more to say; it closes it then."""

    def blocked(self, blocked: bool) -> None:
        self._taker.blocked(blocked)

    def gone(self) -> None:
        self._over = True
        self._taker.gone()

    # ---- out

    def answer(
        self, status: int, body: bytes, content_type: str = JSON, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.chunk(body)
        self.finish()

    def start(self, headers: Iterable[tuple[str, str]] = ()) -> None: ...

    def chunk(self, body: bytes) -> None:
        for line in body.split(b"\n"):
            if line and not self._over:
                self._line.write(self._protocol.send(TextMessage(data=line.decode("utf-8", "replace"))))

    def finish(self) -> None:
        if not self._over:
            self._close(CloseConnection(code=CloseReason.NORMAL_CLOSURE))

    def switch(self, headers: Iterable[tuple[str, str]], taker: Callable[[Line], Taker]) -> None:
        raise AssertionError("a WebSocket in a WebSocket")

    def _close(self, event: CloseConnection) -> None:
        self._over = True
        self._line.write(self._protocol.send(event))
        self._line.close()
