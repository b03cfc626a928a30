"""The WebSocket bridge of etcd's JSON gateway, with wsproto as the client: kvorum and an etcd 3.5.1 say the same."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Message, Ping, Pong, Request, TextMessage

from tests.system.test_json import WAIT, Asker, b64, bare, both, put


class Socket:
    def __init__(self, port: int, path: str, *headers: tuple[str, str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
        self._frames = WSConnection(ConnectionType.CLIENT)
        more = [(name.encode(), text.encode()) for name, text in headers]
        self._socket.sendall(self._frames.send(Request(host="127.0.0.1", target=path, extra_headers=more)))
        self._waiting: list[Event] = []
        self.accepted = isinstance(self.next(), AcceptConnection)

    def say(self, *requests: Any) -> None:
        for request in requests:
            text = request if isinstance(request, str | bytes) else json.dumps(request)
            self._socket.sendall(self._frames.send(Message(data=text)))

    def send(self, event: Event) -> None:
        self._socket.sendall(self._frames.send(event))

    def next(self) -> Event:
        while not self._waiting:
            self._frames.receive_data(self._socket.recv(65536) or None)
            self._waiting += self._frames.events()
        return self._waiting.pop(0)

    def line(self) -> Any:
        """The next message, without what is aside; the end of the socket as a word."""
        text = ""
        while True:
            event = self.next()
            if isinstance(event, CloseConnection):
                return "closed"
            assert isinstance(event, TextMessage), event
            text += event.data
            if event.message_finished:
                return bare(json.loads(text))

    def close(self) -> None:
        self._socket.close()


def create(key: str, **more: Any) -> dict[str, Any]:
    return {"create_request": {"key": b64(key), **more}}


def watch(port: int) -> list[Any]:
    watching, asker = Socket(port, "/v3/watch"), Asker(port)
    watching.say(
        create("w"), json.dumps(create("x")) + json.dumps(create("w", watch_id=9)), json.dumps(create("z")).encode()
    )
    said = [watching.line() for _ in range(4)]
    asker.post(*put("x", "1"))
    said.append(watching.line())
    watching.say({"cancel_request": {"watch_id": 1}})
    said.append(watching.line())
    large = "y" * 300_000
    asker.post(*put("z", large))
    said.append(watching.line())
    watching.send(Ping(payload=b"p"))
    said.append(watching.next() == Pong(payload=b"p"))
    watching.say("no json", create("never"))
    asker.post(*put("z", "2"))
    said.append(watching.line())
    watching.close()  # an etcd reads no frames any more
    asker.close()
    return said


def renewals(port: int) -> list[Any]:
    asker = Asker(port)
    asker.post("lease/grant", {"ID": "7", "TTL": 600})
    asker.close()
    renewing = Socket(port, "/v3/lease/keepalive")
    said = []
    for id in ("7", 8, "7"):
        renewing.say({"ID": id})
        said.append(renewing.line())
    renewing.send(CloseConnection(code=1000))
    said.append(renewing.line())
    renewing.close()
    return said


def mistakes(port: int) -> list[Any]:
    said: list[Any] = [Socket(port, "/version").accepted, Socket(port, "/health").accepted]
    for path, text in (("/v3/watch", "x"), ("/v3beta/watch", "]"), ("/v3/lease/keepalive", '{"ID":"x"}')):
        wrong = Socket(port, path)
        wrong.say(text)
        said.append((wrong.accepted, wrong.line(), wrong.line()))
        wrong.close()
    return said


def subprotocol(port: int) -> list[Any]:
    """How a browser brings a token: the handshake is answered with the word "Bearer" alone."""
    asking = (
        "GET /v3/watch HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Protocol: Bearer, t.1\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as plain:
        plain.sendall(asking.encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += plain.recv(4096)
    return sorted(head.partition(b"\r\n\r\n")[0].lower().split(b"\r\n"))


def test_a_real_etcd_says_the_same(tmp_path: Path) -> None:
    with both(tmp_path) as (ours, theirs):
        for story in (watch, renewals, mistakes, subprotocol):
            assert story(ours) == story(theirs), story
