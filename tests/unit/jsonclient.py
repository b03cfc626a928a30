"""One connection of JSON to a gateway between an edge and an apply that are only recorded, and what it is told."""

from __future__ import annotations

import re

from kvorum import etcd_pb2 as pb
from native import edge
from tests.unit.test_gatewayd import World

CONNECTION = 5 << 32
OTHER = 6 << 32
HEADER = pb.ResponseHeader(cluster_id=1, member_id=2, revision=3, raft_term=4)
HEADER_TEXT = b'{"cluster_id":"1","member_id":"2","revision":"3","raft_term":"4"}'
CORS = (
    b"Access-Control-Allow-Headers: accept, content-type, authorization\r\n"
    b"Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE\r\n"
    b"Access-Control-Allow-Origin: *\r\n"
)


class Client:
    """One connection."""

    def __init__(self, world: World, id: int = CONNECTION) -> None:
        self.world, self.id = world, id
        self._seen = 0

    def send(self, data: bytes) -> None:
        self.world.event(edge.BYTES, self.id, payload=data)

    def post(self, path: str, body: bytes = b"", headers: str = "") -> None:
        self.send(f"POST {path} HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def get(self, path: str, method: str = "GET") -> None:
        self.send(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

    def got(self) -> bytes:
        """What has been written since it was last asked, without the date."""
        said = self.world.front.said.get(self.id, [])
        new, self._seen = said[self._seen :], len(said)
        return re.sub(rb"Date: [^\r]*\r\n", b"", b"".join(one.payload for one in new if one.kind == edge.WRITE))

    def told(self, kind: int) -> int:
        return sum(one.kind == kind for one in self.world.front.said.get(self.id, []))

    @property
    def closed(self) -> bool:
        return self.told(edge.CLOSE) > 0


def answer(status: str, kind: str, body: bytes, *, grpc: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\n".encode() + CORS + f"Content-Type: {kind}\r\n".encode()
    if grpc:
        head += b"Grpc-Metadata-Content-Type: application/grpc\r\n"
    return head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def said(got: bytes) -> tuple[int, bytes]:
    """Status and body of one answer."""
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split()[1]), body
