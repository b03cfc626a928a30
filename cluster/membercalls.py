"""Calls that are about this member and the cluster it is in, not about keys.

What the members are called and where clients reach them is agreed state: each publishes itself by an entry of the log,
whenever what the cluster knows of it is not so. Pure.
"""

from __future__ import annotations

from typing import Protocol

from google.protobuf.message import Message as Protobuf

from cluster.callers import Caller
from cluster.internal import Message, MoveLeader, Status
from cluster.node import Node
from cluster.quota import Quota
from cluster.requests import parsed
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from storage.keyspace import Keyspace, Result
from storage.requests import Limits


class Host(Protocol):
    """The apply process, as far as it is of interest here."""

    keyspace: Keyspace
    node: Node
    limits: Limits
    status: Status
    ticks: int
    session: int

    @property
    def election_ticks(self) -> int: ...

    def to_raft(self, message: Message) -> None: ...
    def propose(self, method: int, request: Protobuf, *, once: bool = False) -> int: ...
    def await_read(self, caller: Caller, payload: bytes) -> None:
        """Answer when this member knows enough for a linearizable read."""
        ...

    def reply(self, caller: Caller, result: Result) -> None: ...
    def answer(self, caller: Caller, status: int, payload: bytes) -> None:
        """Without a header."""
        ...

    def fail(self, caller: Caller, error: errors.KvorumError) -> None: ...


class MemberCalls:
    def __init__(self, host: Host, quota: Quota) -> None:
        self._host, self._quota = host, quota
        self._moves: list[tuple[Caller, int, int]] = []  # target, and since when
        self._published_at = -host.election_ticks

    def hello(self, caller: Caller, payload: bytes) -> None:
        host, request = self._host, parsed(pb.HelloRequest, payload)
        if request.protocol != wire.PROTOCOL:
            raise errors.VersionMismatch(
                f"kvorum: protocol version not supported: {request.protocol}, this server speaks {wire.PROTOCOL}"
            )
        reply = host.node.hello(host.keyspace.members(), host.limits.max_request_bytes)
        host.reply(caller, Result(0, host.keyspace.revision, reply.SerializeToString()))

    def status(self, caller: Caller, payload: bytes) -> None:
        host, keyspace = self._host, self._host.keyspace
        alarms = keyspace.alarms.listed()
        reply = host.node.status(host.status, keyspace.applied[0], self._quota.quota_bytes, alarms)
        host.reply(caller, Result(0, keyspace.revision, reply.SerializeToString()))

    def member_list(self, caller: Caller, payload: bytes) -> None:
        if parsed(pb.MemberListRequest, payload).linearizable:
            self._host.await_read(caller, payload)
        else:
            self.list_members(caller)

    def list_members(self, caller: Caller) -> None:
        host = self._host
        reply = pb.MemberListResponse(members=host.node.member_list(host.keyspace.members()))
        host.reply(caller, Result(0, 0, reply.SerializeToString()))

    # ---- leadership

    def move_leader(self, caller: Caller, payload: bytes) -> None:
        host, target = self._host, parsed(pb.MoveLeaderRequest, payload).targetID
        if host.status.leader != host.node.member_id:
            raise errors.NotLeader
        if target not in host.node.member_ids:
            raise errors.BadLeaderTransferee
        if target == host.node.member_id:
            host.answer(caller, 0, b"")
            return
        self._moves.append((caller, target, host.ticks))
        host.to_raft(MoveLeader(host.session, target))

    def _moved(self, caller: Caller, target: int, since: int) -> bool:
        host = self._host
        if host.status.leader == target:
            host.answer(caller, 0, b"")
        elif host.ticks - since > 2 * host.election_ticks:
            text = "etcdserver: request timed out, leader transfer took too long"
            host.fail(caller, errors.Ambiguous(text, errors.Code.UNKNOWN))
        else:
            return False
        return True

    # ---- time

    def tick(self) -> None:
        self._moves = [move for move in self._moves if not self._moved(*move)]
        self._publish()

    def _publish(self) -> None:
        """Let the cluster know how clients reach this member, whenever what it knows is not so."""
        host = self._host
        if not host.status.leader or host.ticks - self._published_at < host.election_ticks:
            return
        if host.node.publication not in host.keyspace.members():
            self._published_at = host.ticks
            host.propose(Method.MEMBER_PUBLISH, host.node.publication)
