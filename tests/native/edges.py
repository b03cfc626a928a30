"""An edge to test against: a service that answers as it is asked to, on a thread of its own, and a client to abuse one.

`Service` is for clients with threads of their own (grpcio). `Peer` speaks HTTP/2 through the h2 package over a plain
socket, in step with an edge that the test itself polls, so that nothing depends on timing.
"""

from __future__ import annotations

import gzip
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from native import edge
from native.edge import Batch, Edge, Event, Limits, Method, record

ECHO, TELL, CHAT, POUR, HELD, SILENT, TOPIC, ASK = 1, 2, 3, 4, 5, 6, 7, 8
METHODS = [
    Method("/test.Echo/Echo", ECHO, edge.PIPE),  # answers with what it was sent, or "fail CODE TEXT" with that
    Method("/test.Echo/Tell", TELL, edge.UNARY),  # answers with what the edge said about the call
    Method("/test.Echo/Chat", CHAT, edge.STREAM),  # echoes message by message
    Method("/test.Echo/Pour", POUR, edge.UNARY),  # "COUNT SIZE": so many messages of that size
    Method("/test.Echo/Held", HELD, edge.STREAM | edge.GRANTED),  # reads and never grants
    Method("/test.Echo/Silent", SILENT, edge.PIPE),  # no answer
    Method("/test.Echo/Topic", TOPIC, edge.STREAM),  # fan_out goes to all of these
    Method("/test.Echo/Ask", ASK, edge.STREAM | edge.CALLS),  # echoes message by message; "later" when told to
]
DEFAULT = Limits()
WAIT = 60.0
"""Seconds until a test gives up; far more than anything takes."""


def records(batch: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(method, call, payload) of the batch `calls`."""
    at = 0
    while at < len(batch):
        length, method, kind, status, call = struct.unpack_from("<IBBHQ", batch, at)
        assert (kind, status) == (0, 0)
        at += 16 + length
        assert at <= len(batch)
        yield method, call, batch[at - length : at]


class Answering:
    """What the service does with a batch; keeps count of what it was told."""

    def __init__(self, to: Edge) -> None:
        self.edge = to
        self.events: list[tuple[Event, bytes, bytes]] = []
        self.open: set[int] = set()
        self.topic: list[int] = []
        self.poured: dict[int, list[int]] = {}
        self.blocked: set[int] = set()
        self.later: list[int] = []

    def __call__(self, batch: Batch) -> None:
        answers = [self._unary(*call) for call in records(batch.calls)]
        for event in batch.events:
            at, length, extra = event[2:5]
            payload, more = batch.data[at : at + length], batch.data[at + length : at + length + extra]
            self.events.append((event, payload, more))
            answers.append(self._event(event, payload, more))
        for call in list(self.poured):
            answers.append(self._pour(call))
        self.edge.deliver(b"".join(answers))

    def _unary(self, method: int, call: int, payload: bytes) -> bytes:
        if method == SILENT:
            return b""
        if payload == b"later":
            self.later.append(call)
            return b""
        if payload.startswith(b"fail "):
            _, code, text = payload.split(b" ", 2)
            return record(edge.REPLY, call, text, status=int(code))
        return record(edge.REPLY, call, payload)

    def _event(self, event: Event, payload: bytes, more: bytes) -> bytes:
        call, deadline, _, _, _, kind, method, status = event
        match kind, method:
            case edge.OPENED, _:
                self.open.add(call)
            case edge.CLOSED, _:
                self.open.discard(call)
            case (edge.CANCELLED, _):
                self.topic = [other for other in self.topic if other != call]
                self.poured.pop(call, None)
            case edge.BLOCKED, _:
                self.blocked.add(call)
            case edge.WRITABLE, _:
                self.blocked.discard(call)
            case edge.UNKNOWN, _:
                return record(edge.REPLY, call, b"unknown method " + payload, status=12)
            case edge.CALL, 1:  # ECHO, with metadata
                return self._unary(method, call, payload)
            case edge.CALL, 2:  # TELL
                left = deadline - time.monotonic_ns() // 1_000_000 if deadline else 0
                return record(edge.REPLY, call, b"%d|%d|%s|%s" % (status, left, more, payload))
            case edge.CALL, 4:  # POUR
                self.poured[call] = [int(n) for n in payload.split()]
            case edge.MESSAGE, 8:  # ASK, when the batch is full or there is metadata
                return self._unary(method, call, payload) if not self.owns(call) else record(edge.SEND, call, payload)
            case edge.MESSAGE, 3:  # CHAT
                return record(edge.SEND, call, payload)
            case edge.HALF_CLOSED, 3 | 5 | 7 | 8:
                return record(edge.END, call)
            case edge.BEGUN, 7:  # TOPIC
                self.topic.append(call)
                return record(edge.HEADERS, call)
            case edge.REQUEST, _ if payload == b"stream":
                begun = record(edge.RESPONSE_BEGUN, call, b"text/plain\0", status=200)
                return (
                    begun + record(edge.SEND, call, b"one ") + record(edge.SEND, call, b"two") + record(edge.END, call)
                )
            case edge.REQUEST, _ if payload == b"headers":
                head = b"text/plain\none: 1\nbroken\n: x\ntwo:\nthree: 3 : 4" + b"\nmany: x" * 30 + b"\0"
                return record(edge.RESPONSE, call, head + more, status=200)
            case edge.REQUEST, _:
                return record(edge.RESPONSE, call, b"text/plain\0" + more + b"|" + payload, status=200)
            case edge.BYTES, _:
                return record(edge.WRITE, call, payload)
            case edge.HALF_CLOSED, 0:
                return record(edge.CLOSE, call)
        return b""

    def owns(self, call: int) -> bool:
        """It is a stream with metadata, all of which is told."""
        return any(event[0] == call and event[5] == edge.BEGUN and event[7] for event, _, _ in self.events)

    def _pour(self, call: int) -> bytes:
        count, size = self.poured[call]
        answers = []
        while count and call not in self.blocked and len(answers) < 16:
            answers.append(record(edge.SEND, call, bytes([count % 251]) * size))
            count -= 1
        self.poured[call][0] = count
        if not count:
            del self.poured[call]
            answers.append(record(edge.END, call))
        return b"".join(answers)


class Service:
    """An edge and its answers, on a thread."""

    def __init__(self, limits: Limits = DEFAULT, prepare: Callable[[Edge], Any] = lambda e: None) -> None:
        self.edge = Edge(METHODS, limits)
        prepared = prepare(self.edge)
        self.port = self.edge.listen("127.0.0.1", 0, tls=prepared is True)
        self.answering = Answering(self.edge)
        self._jobs: list[tuple[Callable[[Edge], Any], list[Any], threading.Event]] = []
        self._stop = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop:
                self.answering(self.edge.poll(0 if self.answering.poured else 0.01))
                while self._jobs:
                    job, result, done = self._jobs.pop(0)
                    result.append(job(self.edge))
                    done.set()
        except BaseException as failure:
            self._failure = failure

    def call(self, job: Callable[[Edge], Any]) -> Any:
        """Have the thread do it: an edge is for one thread."""
        result: list[Any] = []
        done = threading.Event()
        self._jobs.append((job, result, done))
        assert done.wait(WAIT), self._failure
        return result[0]

    def until(self, holds: Callable[[Answering], Any]) -> None:
        """Wait until it is so."""
        end = time.monotonic() + WAIT
        while not self.call(lambda _: holds(self.answering)):
            assert time.monotonic() < end, "it never came to be so"
            time.sleep(0.005)

    def fan_out(self, payload: bytes, suffixes: list[bytes]) -> int:
        def send(to: Edge) -> int:
            ends, total = array("I"), 0
            for suffix in suffixes:
                total += len(suffix)
                ends.append(total)
            return to.fan_out(payload, array("Q", self.answering.topic), b"".join(suffixes), ends)

        return int(self.call(send))

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self.edge.close()
        if self._failure is not None:
            raise self._failure


@contextmanager
def service(limits: Limits = DEFAULT, prepare: Callable[[Edge], Any] = lambda e: None) -> Iterator[Service]:
    running = Service(limits, prepare)
    try:
        yield running
    finally:
        running.close()


class Peer:
    """An HTTP/2 client that does as it is told, to an edge that is polled when the peer waits."""

    def __init__(self, to: Edge, answering: Answering, *, window: int | None = None, greet: bool = True) -> None:
        ours, theirs = socket.socketpair()
        to.adopt(theirs.detach())
        self.edge, self.answering, self.socket = to, answering, ours
        ours.setblocking(False)
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.seen: list[h2.events.Event] = []
        self.ended = False
        if greet:
            self.h2.initiate_connection()
            if window is not None:
                self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
            self.flush()

    def turn(self) -> None:
        """The edge works once, and what it sends is read."""
        self.answering(self.edge.poll(0))
        try:
            while not self.ended:
                got = self.socket.recv(1 << 16)
                if got:
                    self.seen += self.h2.receive_data(got)
                else:
                    self.ended = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self.ended = True

    def send(self, data: bytes) -> None:
        """Raw bytes. The edge works while they don't fit; what comes after it has closed is lost."""
        end = time.monotonic() + WAIT
        while data and not self.ended:
            assert time.monotonic() < end
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                self.turn()
            except ConnectionError:
                self.ended = True

    def flush(self) -> None:
        self.send(self.h2.data_to_send())

    def until(self, holds: Callable[[], Any]) -> None:
        end = time.monotonic() + WAIT
        while not holds():
            assert time.monotonic() < end, self.seen
            self.flush()
            self.turn()

    def of(self, kind: type[Any], stream: int | None = None) -> list[Any]:
        """The events of a kind, of one stream."""
        return [e for e in self.seen if isinstance(e, kind) and stream in (None, getattr(e, "stream_id", None))]

    def open(self, path: str = "/test.Echo/Echo", *, end: bool = False, **more: str) -> int:
        """Begin a call; more headers by name, _ for -."""
        stream = self.h2.get_next_available_stream_id()
        headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test"}
        headers |= {"content-type": "application/grpc", "te": "trailers"}
        headers |= {name.replace("_", "-"): text for name, text in more.items()}
        self.h2.send_headers(stream, list(headers.items()), end_stream=end)
        return stream

    def message(self, stream: int, payload: bytes, *, end: bool = True) -> None:
        self.h2.send_data(stream, framed(payload), end_stream=end)

    def call(self, payload: bytes = b"x", path: str = "/test.Echo/Echo", **more: str) -> int:
        stream = self.open(path, **more)
        self.message(stream, payload)
        return stream

    def result(self, stream: int) -> tuple[int, str, bytes]:
        """Wait for the end of a call: status, text, all bytes."""
        self.until(
            lambda: self.of(h2.events.StreamEnded, stream) or self.of(h2.events.StreamReset, stream) or self.ended
        )
        assert self.of(h2.events.StreamEnded, stream), self.seen
        headers: dict[str, str] = {}
        for event in self.of(h2.events.ResponseReceived, stream) + self.of(h2.events.TrailersReceived, stream):
            headers |= dict(event.headers)
        data = b"".join(event.data for event in self.of(h2.events.DataReceived, stream))
        return int(headers["grpc-status"]), headers.get("grpc-message", ""), data

    def echo(self, payload: bytes = b"alive") -> None:
        """It is served."""
        status, _, data = self.result(self.call(payload))
        assert (status, data) == (0, framed(payload))

    def goaway(self) -> tuple[int, bytes]:
        """Wait until the edge has closed. Its last word: error code and text."""
        self.until(lambda: self.ended)
        last = self.of(h2.events.ConnectionTerminated)[-1]
        return int(last.error_code), last.additional_data or b""

    def close(self) -> None:
        self.socket.close()


def framed(payload: bytes) -> bytes:
    return struct.pack(">BI", 0, len(payload)) + payload


@contextmanager
def stepped(limits: Limits = DEFAULT) -> Iterator[tuple[Edge, Answering]]:
    """An edge that the test polls itself."""
    stepping = Edge(METHODS, limits)
    try:
        yield stepping, Answering(stepping)
    finally:
        stepping.close()


def connections() -> Iterator[bytes]:
    """What clients of all kinds of calls would send, whole; for the fuzzer to begin with."""
    paths = [method.path for method in METHODS]
    for seed in range(len(paths) + 1):
        client = h2.connection.H2Connection()
        client.initiate_connection()
        for i in range(1, 4):
            path = paths[(seed + i) % len(paths)] if seed < len(paths) else f"/nowhere/{i}"
            headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test"}
            headers |= {"content-type": "application/grpc", "te": "trailers", "grpc-timeout": f"{i}0S"}
            headers |= {"token": "secret"} if i == 2 else {"hasleader": "true"} if i == 3 else {}
            if (seed + i) % 3 == 0:
                headers |= {"grpc-encoding": "gzip"}
            stream = client.get_next_available_stream_id()
            client.send_headers(stream, list(headers.items()))
            message = framed(b"10 100" * i)
            if "grpc-encoding" in headers:
                packed = gzip.compress(b"10 100" * i, mtime=0)
                message = struct.pack(">BI", 1, len(packed)) + packed
            client.send_data(stream, message, end_stream=i == 1)
            client.send_data(stream, framed(b"")) if i == 2 else None
            client.ping(b"12345678")
        client.reset_stream(3)
        client.end_stream(5)
        yield client.data_to_send()
