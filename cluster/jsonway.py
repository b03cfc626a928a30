"""etcd's JSON gateway: POST /v3/..., for programs that speak HTTP/1.1 and JSON and no gRPC.

    POST /v3/kv/put {...} ──▶ a protobuf message ──▶ the same way as a gRPC call ──▶ its answer as JSON
    POST /v3/watch {...}{...} ──▶ a stream; each message back is a line {"result":{...}}

An error has its gRPC code's HTTP status and etcd 3.6's body {"code":N,"message":"...","details":[]}. Up to 3.5 the text
was also in "error" (seen with a real 3.5.1, as are the other texts here that no document names), and clients written
then look there first: so it is there as well. In a stream it is the last line, with the fields of both.

What a stream is told after its first message is ignored from the first mistake on, as etcd does; its answers go on.
Whoever goes away takes a stream with them, and the wait for an answer, not what was already asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from cluster.access import Access
from cluster.http1 import JSON, TEXT, Connections, Exchange, Headers, Later, Line, Request, Taker
from cluster.jsonheaders import LATE, BadTimeout, Deadlines, Metadata, metadata_of
from cluster.jsontext import BadJson, Objects, message_of, quoted, text_of
from cluster.local_answers import LOCAL, STREAMS
from cluster.pages import Pages
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.errors import Code
from kvorum.wire import Method
from native import edge

if TYPE_CHECKING:
    from cluster.gatewayd import Gateway

_SERVICES = {
    "etcdserverpb.KV": {
        "kv/range": "Range",
        "kv/put": "Put",
        "kv/deleterange": "DeleteRange",
        "kv/txn": "Txn",
        "kv/compaction": "Compact",
    },
    "etcdserverpb.Watch": {"watch": "Watch"},
    "etcdserverpb.Lease": {
        "lease/grant": "LeaseGrant",
        "lease/revoke": "LeaseRevoke",
        "kv/lease/revoke": "LeaseRevoke",
        "lease/keepalive": "LeaseKeepAlive",
        "lease/timetolive": "LeaseTimeToLive",
        "kv/lease/timetolive": "LeaseTimeToLive",
        "lease/leases": "LeaseLeases",
        "kv/lease/leases": "LeaseLeases",
    },
    "etcdserverpb.Cluster": {
        "cluster/member/add": "MemberAdd",
        "cluster/member/remove": "MemberRemove",
        "cluster/member/update": "MemberUpdate",
        "cluster/member/list": "MemberList",
        "cluster/member/promote": "MemberPromote",
    },
    "etcdserverpb.Maintenance": {
        "maintenance/alarm": "Alarm",
        "maintenance/status": "Status",
        "maintenance/defragment": "Defragment",
        "maintenance/hash": "Hash",
        "maintenance/hashkv": "HashKV",
        "maintenance/snapshot": "Snapshot",
        "maintenance/transfer-leadership": "MoveLeader",
        "maintenance/downgrade": "Downgrade",
    },
    "etcdserverpb.Auth": {
        "auth/enable": "AuthEnable",
        "auth/disable": "AuthDisable",
        "auth/status": "AuthStatus",
        "auth/authenticate": "Authenticate",
        "auth/user/add": "UserAdd",
        "auth/user/get": "UserGet",
        "auth/user/list": "UserList",
        "auth/user/delete": "UserDelete",
        "auth/user/changepw": "UserChangePassword",
        "auth/user/grant": "UserGrantRole",
        "auth/user/revoke": "UserRevokeRole",
        "auth/role/add": "RoleAdd",
        "auth/role/get": "RoleGet",
        "auth/role/list": "RoleList",
        "auth/role/delete": "RoleDelete",
        "auth/role/grant": "RoleGrantPermission",
        "auth/role/revoke": "RoleRevokePermission",
    },
    "v3lockpb.Lock": {"lock/lock": "Lock", "lock/unlock": "Unlock"},
    "v3electionpb.Election": {
        "election/campaign": "Campaign",
        "election/proclaim": "Proclaim",
        "election/leader": "Leader",
        "election/observe": "Observe",
        "election/resign": "Resign",
    },
}
PATHS = {f"/v3/{path}": f"/{service}/{name}" for service, paths in _SERVICES.items() for path, name in paths.items()}
"""etcd's paths, and the gRPC methods that they stand for."""

_STREAMS = {Method.WATCH, Method.LEASE_KEEP_ALIVE}
_NUMBERS = {shape.path: int(number) for number, shape in wire.METHODS.items()}
_NUMBERS |= {local.path: number for number, local in LOCAL.items()}

_STATUS: dict[int, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
_OF_GRPC = [("Grpc-Metadata-Content-Type", "application/grpc")]


def status_of(code: int) -> int:
    return _STATUS.get(code, 500)


def error_text(code: int, text: str) -> bytes:
    said = quoted(text)
    return f'{{"error":{said},"code":{code},"message":{said},"details":[]}}'.encode()


def error_line(code: int, text: str) -> bytes:
    """The last line of a stream, or the only one."""
    status, said = status_of(code), quoted(text)
    phrase = "" if status == 499 else HTTPStatus(status).phrase
    old = f'"grpc_code":{code},"http_code":{status},"message":{said},"http_status":"{phrase}"'
    return f'{{"error":{{{old},"code":{code},"details":[]}}}}\n'.encode()


def _response_of(path: str) -> type[Message]:
    """The class of a method's answer; those that are a header and nothing else are not declared one by one."""
    name = path.rpartition("/")[2]
    same = {"Observe": "Leader", "Compact": "Compaction", "Campaign": "Campaign"}.get(name, name)
    found: type[Message] = getattr(pb, f"{same}Response", pb.HeaderResponse)
    return found


class _Unary:
    """One call, of any kind that has one message in."""

    endless = False

    def __init__(self, way: JsonWay, exchange: Exchange, path: str, metadata: Metadata) -> None:
        self._way, self._exchange, self._path, self._metadata = way, exchange, path, metadata
        self._by = way.deadlines.add(self, metadata.ticks)
        self._body = bytearray()
        self._id = 0
        self._lines = False

    def __len__(self) -> int:
        return len(self._body)

    def data(self, chunk: bytes) -> None:
        self._body += chunk
        if len(self._body) > self._way.body_max:
            self._body.clear()
            self._refuse(Code.RESOURCE_EXHAUSTED, _larger(self._way.body_max + 1, self._way.body_max))

    def end(self) -> None:
        number = _NUMBERS.get(self._path, 0)
        if not number:
            self._refuse(Code.UNIMPLEMENTED, f"unknown service {self._path.lstrip('/').rpartition('/')[0]}")
            return
        request = LOCAL[number].request if number in LOCAL else wire.METHODS[Method(number)].request
        try:
            payload = message_of(bytes(self._body), request).SerializeToString()
        except BadJson as error:
            self._refuse(Code.INVALID_ARGUMENT, str(error))
            return
        self._body.clear()
        if len(payload) > self._way.message_max:
            self._refuse(Code.RESOURCE_EXHAUSTED, _larger(len(payload), self._way.message_max))
            return
        self._id = self._way.gateway.inner(self._told)
        self._way.gateway.inner_call(self._id, number, payload, self._metadata.flags, self._metadata.token)

    def blocked(self, blocked: bool) -> None:
        if self._id:
            self._way.gateway.inner_blocked(self._id, blocked)

    def gone(self) -> None:
        self._body.clear()
        self._way.deadlines.drop(self, self._by)
        if self._id:
            self._way.gateway.inner_gone(self._id)

    def late(self) -> None:
        self.gone()
        self._told(edge.END, Code.DEADLINE_EXCEEDED, LATE)

    def _told(self, kind: int, status: int, answer: bytes | Message) -> None:
        if kind != edge.SEND:
            self._way.deadlines.drop(self, self._by)
        if status:
            text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else ""
            if self._lines:
                self._exchange.chunk(error_line(status, text))
                self._exchange.finish()
            elif self._path in STREAMS:
                self._exchange.answer(status_of(status), error_line(status, text))
            else:
                self._refuse(status, text)
        elif self._path in STREAMS:
            if not self._lines:
                self._exchange.start(_OF_GRPC)
                self._lines = True
            if kind == edge.END:
                self._exchange.finish()
            else:
                self._exchange.chunk(_line(_message(answer, self._path)))
                if kind == edge.REPLY:
                    self._exchange.finish()
        else:
            self._exchange.answer(200, text_of(_message(answer, self._path)).encode(), headers=_OF_GRPC)

    def _refuse(self, code: int, text: str) -> None:
        self._way.deadlines.drop(self, self._by)
        self._exchange.answer(status_of(code), error_text(code, text))


class _Stream:
    """Messages in both ways: Watch, LeaseKeepAlive. It begins with the first message, or the end without one."""

    endless = True

    def __init__(self, way: JsonWay, exchange: Exchange, path: str, metadata: Metadata) -> None:
        self._way, self._exchange, self._path, self._metadata = way, exchange, path, metadata
        self._by = way.deadlines.add(self, metadata.ticks)
        self._method = Method(_NUMBERS[path])
        self._objects = Objects()
        self._id = 0
        self._lines = self._deaf = self._over = False

    def __len__(self) -> int:
        return len(self._objects)

    def data(self, chunk: bytes) -> None:
        if self._deaf or self._over:
            return
        kind = wire.METHODS[self._method].request
        try:
            for text in self._objects.feed(chunk):
                payload = message_of(text, kind).SerializeToString()
                if len(payload) > self._way.message_max:
                    raise BadJson(_larger(len(payload), self._way.message_max))
                self._say(payload)
            if len(self._objects) > self._way.body_max:
                raise BadJson(_larger(len(self._objects), self._way.body_max))
        except BadJson as error:
            self._mistake(str(error))

    def end(self) -> None:
        if self._over:
            return
        if len(self._objects) and not self._deaf:
            self._mistake("unexpected EOF")
        elif not self._id:
            self._begin()
        if self._id and not self._over:
            self._way.gateway.inner_half_closed(self._id)

    def blocked(self, blocked: bool) -> None:
        if self._id and not self._over:
            self._way.gateway.inner_blocked(self._id, blocked)

    def gone(self) -> None:
        self._over = True
        self._objects = Objects()
        self._way.deadlines.drop(self, self._by)
        if self._id:
            self._way.gateway.inner_gone(self._id)

    def late(self) -> None:
        self.gone()
        self._told(edge.END, Code.DEADLINE_EXCEEDED, LATE)

    def _begin(self) -> None:
        self._id = self._way.gateway.inner(self._told)
        self._way.gateway.inner_begin(self._id, self._method, self._metadata.flags, self._metadata.token)

    def _say(self, payload: bytes) -> None:
        if not self._id:
            self._begin()
        if not self._over:
            self._way.gateway.inner_message(self._id, payload)

    def _mistake(self, text: str) -> None:
        self._objects = Objects()
        self._deaf = True
        if self._id:
            self._way.gateway.inner_half_closed(self._id)
        elif not self._over:
            self._over = True
            self._way.deadlines.drop(self, self._by)
            self._exchange.answer(500, error_text(Code.UNKNOWN, text))

    def _told(self, kind: int, status: int, answer: bytes | Message) -> None:
        if kind == edge.SEND:
            if not self._lines:
                self._exchange.start(_OF_GRPC)
                self._lines = True
            self._exchange.chunk(_line(_message(answer, self._path)))
            return
        self._over = True
        self._way.deadlines.drop(self, self._by)
        text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else ""
        if status and not self._lines:
            self._exchange.answer(status_of(status), error_line(status, text))
            return
        if not self._lines:
            self._exchange.start()
        if status:
            self._exchange.chunk(error_line(status, text))
        self._exchange.finish()


def _message(answer: bytes | Message, path: str) -> Message:
    if not isinstance(answer, bytes):
        return answer
    number = _NUMBERS[path]
    kind = _response_of(path) if number in LOCAL else wire.METHODS[Method(number)].response
    return kind.FromString(answer)


def _line(message: Message) -> bytes:
    return f'{{"result":{text_of(message)}}}\n'.encode()


def _larger(size: int, most: int) -> str:
    return f"grpc: received message larger than max ({size} vs. {most})"


class JsonWay:
    """Everything of the client port that isn't gRPC.

    message_max: of a request as protobuf, in bytes. As JSON, with its base64 and long names, it may be twice that.
    """

    def __init__(
        self, gateway: Gateway, message_max: int, metrics_path: str, tick_seconds: float, access: Access
    ) -> None:
        self.gateway, self._access = gateway, access
        self.message_max, self.body_max = message_max, 2 * message_max
        self._pages = Pages(gateway, metrics_path, tick_seconds)
        self.deadlines = Deadlines()
        self._tick_seconds = tick_seconds
        self._over2: dict[int, Taker] = {}  # of requests that have no answer yet
        self._connections = Connections(gateway.to_edge, self.route, tick_seconds, access)

    def __len__(self) -> int:
        """Connections."""
        return len(self._connections)

    @property
    def held(self) -> int:
        """Bytes of requests that have no answer."""
        return self._connections.held

    def event(self, id: int, kind: int, data: bytes) -> None:
        self._connections.event(id, kind, data)
        if id in self._over2 and kind in (edge.BLOCKED, edge.WRITABLE):
            self._over2[id].blocked(kind == edge.BLOCKED)
        elif self._over2 and kind in (edge.CANCELLED, edge.CLOSED):
            whole = kind == edge.CLOSED
            for gone in [one for one in self._over2 if one == id or (whole and one >> 32 == id >> 32)]:
                self._over2.pop(gone).gone()

    def request(self, id: int, head: str, body: bytes) -> None:
        """A request that came whole, by HTTP/2. head: EDGE_REQUEST's."""
        line, *more = head.split("\0")
        method, _, target = line.partition(" ")
        headers = dict(zip(more[::2], more[1::2], strict=True))
        exchange = _Over2(self.gateway, id, self._access.cors(headers), lambda: self._over2.pop(id, None))
        taker = self._over2[id] = self.route(Request(method, target, headers, True), exchange)
        taker.data(body)
        taker.end()

    def drain(self) -> None:
        self._connections.drain()

    def tick(self) -> None:
        self._connections.tick()
        self._pages.tick()
        self.deadlines.tick()

    def route(self, request: Request, exchange: Exchange) -> Taker:
        path = request.target.partition("?")[0]
        for old in ("/v3beta/", "/v3alpha/"):
            if path.startswith(old):
                path = "/v3/" + path.removeprefix(old)
        stranger = None if request.secure else self._access.stranger(request.headers)
        if stranger is not None:
            return Later(lambda: exchange.answer(421, _misdirected(stranger), TEXT, _NO_SNIFF))
        if request.method == "OPTIONS":
            return Later(lambda: exchange.answer(200, b"", ""))
        if not path.startswith("/v3/"):
            return Later(lambda: self._pages.get(request.method, request.target, exchange))
        if "upgrade" in request.headers:
            from cluster import websocket  # for who never asks: 1 MB

            if websocket.wanted(request):
                return websocket.Upgrade(request, exchange, lambda post, socket: self._post(path, post, socket))
        return self._post(path, request, exchange)

    def _post(self, path: str, request: Request, exchange: Exchange) -> Taker:
        if path not in PATHS:
            return Later(lambda: exchange.answer(404, _NOT_FOUND))
        if request.method != "POST":
            return Later(lambda: exchange.answer(501, _NOT_ALLOWED))
        grpc = PATHS[path]
        try:
            metadata = metadata_of(request.headers, self._tick_seconds)
        except BadTimeout as error:
            text = error_text(Code.INVALID_ARGUMENT, str(error))
            return Later(lambda: exchange.answer(400, text))
        if metadata.ticks == 0:
            return Later(lambda: exchange.answer(504, error_text(Code.DEADLINE_EXCEEDED, LATE.decode())))
        if _NUMBERS.get(grpc) in _STREAMS:
            return _Stream(self, exchange, grpc, metadata)
        return _Unary(self, exchange, grpc, metadata)


_NOT_FOUND = b'{"code":5,"message":"Not Found","details":[]}'
_NOT_ALLOWED = b'{"code":12,"message":"Method Not Allowed","details":[]}'


_NO_SNIFF = [("X-Content-Type-Options", "nosniff")]


def _misdirected(host: str) -> bytes:
    """Quoted as a text of JSON, since whoever sent it chose it."""
    return (
        f"kvorum was asked by the name {quoted(host)}, which is not in --host-whitelist.\n\n"
        "If it is this machine's, add it there, or use TLS. Names are checked to keep web pages out whose name was\n"
        "pointed here after they had been loaded (DNS rebinding).\n"
    ).encode()


class _Over2:
    """Where the answer goes to a request that came by HTTP/2."""

    def __init__(self, gateway: Gateway, id: int, always: Headers, over: Callable[[], object]) -> None:
        self._gateway, self._id, self._always, self._over = gateway, id, always, over

    def answer(
        self, status: int, body: bytes, content_type: str = JSON, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        self._gateway.to_edge(edge.RESPONSE, self._id, self._head(content_type, headers) + body, status)
        self._over()

    def start(self, headers: Iterable[tuple[str, str]] = ()) -> None:
        self._gateway.to_edge(edge.RESPONSE_BEGUN, self._id, self._head(JSON, headers), 200)

    def _head(self, content_type: str, headers: Iterable[tuple[str, str]]) -> bytes:
        fields = [f"{name.lower()}: {text}" for name, text in (*self._always, *headers)]
        return "\n".join([content_type, *fields]).encode("latin-1") + b"\0"

    def chunk(self, body: bytes) -> None:
        self._gateway.to_edge(edge.SEND, self._id, body)

    def finish(self) -> None:
        self._gateway.to_edge(edge.END, self._id)
        self._over()

    def switch(self, headers: Iterable[tuple[str, str]], taker: Callable[[Line], Taker]) -> None:
        raise AssertionError("HTTP/2 has no Upgrade")
