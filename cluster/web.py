"""HTTP for strangers: the standard library's server, with the bounds that it lacks.

The standard server reads a head of up to 100 lines of 64 KiB for as long as the client likes, and starts a thread for
everyone who connects. Here a head is read whole, up to 16 KiB and 5 seconds, before the standard code sees it; and when
32 connections are open the oldest is cut. One request a connection (HTTP/1.0), so no connection is idle. The same holds
over TLS (cluster/webtls.py), whose handshake is part of the 5 seconds.
"""

from __future__ import annotations

import io
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from cluster import log
from cluster.tls import Tls
from cluster.webtls import Papers

if TYPE_CHECKING:
    from cluster.health import Server

HEAD_BYTES_MAX = 16 << 10
HEAD_SECONDS_MAX = 5.0
SEND_SECONDS_MAX = 5.0
"""How long the client may leave us waiting while it takes nothing of the answer."""
CONNECTIONS_MAX = 32


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "kvorum", ""

    def handle(self) -> None:
        deadline = time.monotonic() + HEAD_SECONDS_MAX
        if self.server.papers is not None:
            self.connection.settimeout(HEAD_SECONDS_MAX)
            self.server.papers.greet(self.connection)
        head = _read_head(self.connection, deadline)
        if head is None:
            return
        self.rfile = io.BytesIO(head)
        self.connection.settimeout(SEND_SECONDS_MAX)
        self.handle_one_request()

    def do_GET(self) -> None:
        self._reply(*self.server.pages.answer(self.path))

    def _not_allowed(self) -> None:
        self._reply(405, "text/plain; charset=utf-8", b"Method Not Allowed\n", allow="GET")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _not_allowed

    def _reply(self, status: int, content_type: str, body: bytes, allow: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if allow:
            self.send_header("Allow", allow)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(f"http {self.client_address[0]}: {format % args}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, pages: Server, tls: Tls | None) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.pages = listener, pages
        self.papers = Papers(tls) if tls else None
        self._open: dict[int, socket.socket] = {}  # oldest first
        self._lock = threading.Lock()

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        try:
            if self.papers is not None:
                connection = self.papers.wrap(connection)
        except OSError as error:
            log.debug(f"http {address[0]}: {error}")
            raise
        return connection, address or ("this node",)  # its own gateway has none, on a socket in the run directory

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[id(request)] = request
            crowd = len(self._open) > CONNECTIONS_MAX
            oldest = next(iter(self._open.values()))
        if crowd:
            _cut(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(id(request), None)
        if isinstance(request, ssl.SSLSocket):
            try:
                request.settimeout(0)
                request.unwrap()  # says that this was all; the peer's own word is not waited for
            except OSError as error:
                log.debug(f"a connection ended: {error}")
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, OSError):  # those are the client's: gone, too slow, without a certificate
            log.debug(f"http {client_address[0]}: {error}")
        else:
            import traceback

            log.error(f"answering {client_address[0]} failed:\n{traceback.format_exc()}")


def serve(listener: socket.socket, pages: Server, tls: Tls | None) -> ThreadingHTTPServer:
    """A server for `pages` on a socket that listens already. It serves once its `serve_forever` is running."""
    return _Server(listener, pages, tls)


def _read_head(connection: socket.socket, deadline: float) -> bytes | None:
    """The request up to the empty line. None if it ends early, is over the limit, or takes too long."""
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        if len(head) >= HEAD_BYTES_MAX:
            connection.settimeout(SEND_SECONDS_MAX)
            connection.sendall(b"HTTP/1.0 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n\r\n")
            return None
        connection.settimeout(left)
        chunk = connection.recv(4096)
        if not chunk:
            return None
        head += chunk
    return head


def _cut(connection: socket.socket) -> None:
    try:
        # Not SSLSocket's: it forgets TLS first, and another thread's answer could leave in the clear.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError as error:
        log.debug(f"a connection to be cut was gone already: {error.strerror}")
