"""The pages that etcd has on its client port: /version, /health, /livez, /readyz, /metrics.

They say what those of the metrics port say (cluster/health.py), without ever waiting: a check is a read that apply
answers some turns later, or a number of ticks has passed. /metrics is fetched from the supervisor by a thread, for
only it knows all of it, over a socket in the run directory; what the thread has got is taken in with the ticks.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Sequence
from queue import Empty, Full, Queue, SimpleQueue
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from google.protobuf.message import Message

from cluster import health
from cluster.http1 import JSON, TEXT, Exchange
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method

if TYPE_CHECKING:
    from cluster.gatewayd import Gateway

FETCHES_MAX = 16
"""Who wants /metrics while so many wait for it is told to come back."""
FETCH_SECONDS = 5.0
FIELDS_MAX = 64
"""In a query."""

Page = tuple[int, str, bytes]
"""Status, content type, body."""
_NOT_FOUND: Page = (404, TEXT, b"404 page not found\n")
_NOT_ALLOWED: Page = (405, TEXT, b"Method Not Allowed\n")


class Pages:
    def __init__(self, gateway: Gateway, metrics_path: str, tick_seconds: float) -> None:
        self._gateway, self._metrics = gateway, Fetcher(metrics_path)
        self._patience = max(1, int(health.CHECK_SECONDS_MAX / tick_seconds))
        self._ticks = 0
        self._late: dict[int, tuple[int, Callable[[str], None]]] = {}  # by number: until when, and whom to tell
        self._last = 0

    def get(self, method: str, target: str, exchange: Exchange) -> None:
        path, _, query_text = target.partition("?")
        try:
            query = parse_qs(query_text, keep_blank_values=True, max_num_fields=FIELDS_MAX)
        except ValueError as error:
            _give(exchange, (400, TEXT, f"{error}\n".encode()))
            return
        if path == "/metrics":
            self._metrics.fetch(lambda page: _give(exchange, page))
        elif path == "/version":
            _give(exchange, (200, JSON, health.VERSION_TEXT) if method == "GET" else _NOT_ALLOWED)
        elif path == "/health":
            serializable = query.get("serializable", [""])[-1] == "true"
            if method != "GET":
                _give(exchange, _NOT_ALLOWED)
            else:
                self._alarms(
                    lambda why, types: self._health(exchange, why, types, query.get("exclude", []), serializable)
                )
        elif (checks := health.probe_checks(path, query)) is not None:
            if method == "GET":
                self._probe(checks, "verbose" in query, exchange)
            else:
                _give(exchange, _NOT_ALLOWED)
        else:
            _give(exchange, _NOT_FOUND)

    def _health(
        self, exchange: Exchange, why: str, types: Sequence[str], exclude: Sequence[str], serializable: bool
    ) -> None:
        """What is wrong, in etcd's order: an alarm, no leader, a read that fails."""
        reason = health.alarm_reason([type for type in types if type not in exclude])
        if reason:
            _give(exchange, health.health_page(reason))
        elif not serializable and not self._gateway.has_leader:
            _give(exchange, health.health_page("RAFT NO LEADER"))
        elif why:
            _give(exchange, health.health_page(f"RANGE ERROR:{why}"))
        else:
            self._read(
                serializable, lambda why: _give(exchange, health.health_page(f"RANGE ERROR:{why}" if why else ""))
            )

    def _probe(self, checks: list[str], verbose: bool, exchange: Exchange) -> None:
        failures: dict[str, str] = {}

        def told(check: str, why: str) -> None:
            failures[check] = why
            if len(failures) == len(checks):
                _give(exchange, health.probe_page({name: failures[name] for name in checks}, verbose=verbose))

        for check in checks:
            if check == "data_corruption":
                self._alarms(lambda why, types, check=check: told(check, health.corruption(why, types)))  # type: ignore[misc]
            elif check == "linearizable_read" and not self._gateway.has_leader:
                told(check, "etcdserver: no leader")
            else:
                self._read(check == "serializable_read", lambda why, check=check: told(check, why))  # type: ignore[misc]
        if not checks:
            _give(exchange, health.probe_page({}, verbose=verbose))

    def _read(self, serializable: bool, then: Callable[[str], None]) -> None:
        """Read a key through apply, and say why that failed, "" if it didn't."""
        self._ask(Method.RANGE, pb.RangeRequest(key=b"health", serializable=serializable), lambda why, _: then(why))

    def _alarms(self, then: Callable[[str, list[str]], None]) -> None:
        """Say why the alarms could not be told, "" if they could, and the types of those that stand."""

        def answered(why: str, payload: bytes) -> None:
            then(why, [] if why else health.alarm_types(pb.StatusResponse.FromString(payload).errors))

        self._ask(Method.STATUS, pb.StatusRequest(), answered)

    def _ask(self, method: int, request: Message, then: Callable[[str, bytes], None]) -> None:
        self._last += 1
        number = self._last
        self._late[number] = (self._ticks + self._patience, lambda why: then(why, b""))

        def answered(status: int, payload: bytes) -> None:
            if self._late.pop(number, None):
                then(payload.decode("utf-8", "replace") if status else "", payload)

        self._gateway.ask(method, request, answered)

    def tick(self) -> None:
        self._metrics.collect()
        self._ticks += 1
        while self._late:
            number, (by, then) = next(iter(self._late.items()))
            if by > self._ticks:
                return
            del self._late[number]
            then("context deadline exceeded")


def _give(exchange: Exchange, page: Page) -> None:
    status, content_type, body = page
    headers = [("Allow", "GET")] if status == 405 else []
    if content_type == TEXT and status >= 400:
        headers.append(("X-Content-Type-Options", "nosniff"))
    exchange.answer(status, body, content_type, headers)


class Fetcher:
    """Gets /metrics from the supervisor's socket at `path`, in a thread that begins with the first request."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._wanted: Queue[Callable[[Page], None]] = Queue(FETCHES_MAX)
        self._got: SimpleQueue[tuple[Callable[[Page], None], Page]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def fetch(self, then: Callable[[Page], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        try:
            self._wanted.put_nowait(then)
        except Full:
            then((503, TEXT, b"too many want the metrics\n"))

    def collect(self) -> None:
        """Hand out what has been fetched."""
        while True:
            try:
                then, page = self._got.get_nowait()
            except Empty:
                return
            then(page)

    def _run(self) -> None:
        while True:
            then = self._wanted.get()
            self._got.put((then, self._page()))

    def _page(self) -> Page:
        connection = http.client.HTTPConnection("localhost", timeout=FETCH_SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(FETCH_SECONDS)
        try:
            connection.sock.connect(self._path)
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Content-Type", TEXT), answer.read()
        except (OSError, http.client.HTTPException) as error:
            return 503, TEXT, f"the supervisor of this node does not answer: {error}\n".encode()
        finally:
            connection.close()
