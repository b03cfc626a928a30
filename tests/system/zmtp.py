"""ZeroMQ's wire protocol (ZMTP 3.1, rfc.zeromq.org/spec/37) by hand, to say what libzmq never would."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
MORE, LONG, COMMAND = 1, 2, 4


def frame(body: bytes, flags: int = 0, length: int | None = None) -> bytes:
    """One frame; `length` is a lie about its body, if given."""
    size = len(body) if length is None else length
    if size > 255 or flags & LONG:
        return struct.pack(">BQ", flags | LONG, size) + body
    return struct.pack(">BB", flags, size) + body


def ready(socket_type: bytes = b"DEALER", identity: bytes = b"") -> bytes:
    properties = b"".join(
        bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
        for name, value in ((b"Socket-Type", socket_type), (b"Identity", identity))
    )
    return frame(b"\x05READY" + properties, COMMAND)


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=5.0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def shake_hands(connection: socket.socket, identity: bytes = b"") -> None:
    """Up to where messages may be sent."""
    connection.sendall(GREETING)
    receive(connection, 64)
    connection.sendall(ready(identity=identity))
    flags, size = receive(connection, 2)
    assert flags == COMMAND
    assert receive(connection, size).startswith(b"\x05READY")


def receive(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise ConnectionError("closed")
        found += part
    return found


def is_dropped(connection: socket.socket, seconds: float) -> bool:
    """Whether the other side closes the connection within `seconds`; what it says until then is skipped."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass  # reset: dropped all the same
    return True


def openings(port_is_http: bool = False) -> Iterator[tuple[str, bytes]]:
    """Ways to begin a conversation that no client of ours has, by name."""
    greeting = GREETING
    yield "nothing", b""
    yield "one byte", b"\xff"
    yield "text", b"hello, is this a database?\r\n" * 40
    yield "TLS", bytes.fromhex("16030100f8010000f40303") + bytes(range(240))
    yield "zeros", bytes(4096)
    yield "half a greeting", greeting[:10]
    yield "a greeting and no more", greeting
    yield "a greeting of version 9", greeting[:10] + b"\x09" + greeting[11:]
    yield "a greeting of version 1", b"\x01\x00"
    yield "another mechanism", greeting[:12] + b"CURVE".ljust(20, b"\0") + greeting[32:] + bytes(200)
    yield "a greeting, then junk", greeting + b"\x5a" * 3000
    yield "a command that is none", greeting + frame(b"\x07NONSENSE", COMMAND)
    yield "half a command", greeting + ready()[:9]
    yield "a command of a length that lies", greeting + frame(ready()[2:], COMMAND, length=200)
    yield (
        "a property of a length that lies",
        greeting + frame(b"\x05READY\x0bSocket-Type\xff\xff\xff\xffDEALER", COMMAND),
    )
    yield "another kind of socket", greeting + ready(b"SUB")
    yield "an unknown kind of socket", greeting + ready(b"\xc3\x28")
    yield "ready twice", greeting + ready() + ready()
    yield "a message before ready", greeting + frame(b"message")
    yield "an identity of 256 bytes", greeting + ready(identity=b"i" * 256)
    yield "an identity that is kept for ZeroMQ", greeting + ready(identity=b"\0abc")
    yield "an endless frame", greeting + ready() + frame(b"begun", length=1 << 62)
    yield "a frame of a negative length", greeting + ready() + frame(b"begun", LONG, length=(1 << 64) - 1)
    yield "a frame over every limit", greeting + ready() + frame(b"begun", length=17 << 20)
    yield "reserved flags", greeting + ready() + b"\xf8\x01a"
    yield "a frame that breaks off", greeting + ready() + frame(b"short", length=100)
    yield "a message that never ends", greeting + ready() + frame(b"part", MORE) * 2000
    yield "a ping of a size that lies", greeting + ready() + frame(b"\x04PING\xff\xff" + b"x" * 30, COMMAND)
    yield "HTTP", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    yield "HTTP that never ends", b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 5000
    yield "HTTP that isn't", b"\r\n\r\n"
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
