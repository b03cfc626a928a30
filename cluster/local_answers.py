"""Calls of etcd's API that the gateway answers itself, for a cluster that has no users and whose members are fixed.

What isn't there yet says so: Unimplemented, with the reason, never an answer that is not true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.message import Message

from cluster import recipes
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.errors import Code
from kvorum.wire import Method

if TYPE_CHECKING:
    from cluster.gatewayd import Gateway

Answer = Callable[["Gateway", int, Any], None]


class Local(NamedTuple):
    path: str
    request: type[Message]
    answer: Answer

    @property
    def stream(self) -> bool:
        """Answered by more than one message."""
        return self.path in STREAMS


def _with_header(respond: Callable[[pb.ResponseHeader], Message]) -> Answer:
    """A header with the current revision is apply's to give: it comes with a read of no key.

    A linearizable one, for with etcd all of these calls go through the log: without a quorum there is no answer.
    """

    def answer(gateway: Gateway, id: int, request: Message) -> None:
        def then(status: int, payload: bytes) -> None:
            if status:
                gateway.end(id, status, payload.decode("utf-8", "replace"))
            else:
                gateway.reply(id, respond(pb.RangeResponse.FromString(payload).header))

        gateway.ask(Method.RANGE, pb.RangeRequest(key=b"\0", count_only=True), then)

    return answer


def _same(response: Message) -> Answer:
    return lambda gateway, id, request: gateway.reply(id, response)


def _refused(text: str, code: Code = Code.FAILED_PRECONDITION) -> Answer:
    def answer(gateway: Gateway, id: int, request: Message) -> None:
        raise errors.Refused(text, code)

    return answer


def _missing(what: str) -> Answer:
    return _refused(f"kvorum: {what}", Code.UNIMPLEMENTED)


def _health(gateway: Gateway, id: int, request: pb.HealthCheckRequest) -> None:
    if request.service:
        raise errors.Refused("unknown service", Code.NOT_FOUND)
    serving = pb.HealthCheckResponse.SERVING if gateway.has_leader else pb.HealthCheckResponse.NOT_SERVING
    gateway.reply(id, pb.HealthCheckResponse(status=serving))


def _snapshot(gateway: Gateway, id: int, request: pb.SnapshotRequest) -> None:
    gateway.snapshots.begin(id)


def _recipe(recipe: Callable[[Any], recipes.Steps[None]]) -> Answer:
    return lambda gateway, id, request: gateway.recipes.begin(id, recipe(request))


_EMPTY = pb.DefragmentRequest  # whatever is in the request doesn't matter
_NO_MEMBERS = _missing("members are fixed by --initial-cluster until membership changes are there")
_NO_USERS = _missing("users and roles are not there yet")
_header_only = _with_header(lambda header: pb.HeaderResponse(header=header))

_TABLE: list[tuple[str, type[Message], Answer]] = [
    ("/etcdserverpb.Maintenance/Defragment", _EMPTY, _same(pb.DefragmentResponse())),
    ("/etcdserverpb.Maintenance/Snapshot", pb.SnapshotRequest, _snapshot),
    ("/etcdserverpb.Maintenance/Downgrade", _EMPTY, _missing("there is nothing to downgrade to")),
    *(
        (f"/etcdserverpb.Cluster/Member{change}", _EMPTY, _NO_MEMBERS)
        for change in ("Add", "Remove", "Update", "Promote")
    ),
    ("/etcdserverpb.Auth/AuthEnable", _EMPTY, _refused("etcdserver: root user does not exist")),
    ("/etcdserverpb.Auth/AuthDisable", _EMPTY, _header_only),
    (
        "/etcdserverpb.Auth/AuthStatus",
        _EMPTY,
        _with_header(lambda header: pb.AuthStatusResponse(header=header, authRevision=1)),
    ),
    ("/etcdserverpb.Auth/Authenticate", _EMPTY, _refused("etcdserver: authentication is not enabled")),
    ("/etcdserverpb.Auth/UserList", _EMPTY, _header_only),
    ("/etcdserverpb.Auth/RoleList", _EMPTY, _header_only),
    ("/etcdserverpb.Auth/UserAdd", _EMPTY, _NO_USERS),
    ("/etcdserverpb.Auth/RoleAdd", _EMPTY, _NO_USERS),
    # Nobody has been added, so whoever these are about isn't there.
    *(
        (f"/etcdserverpb.Auth/User{name}", _EMPTY, _refused("etcdserver: user name not found"))
        for name in ("Get", "Delete", "ChangePassword", "GrantRole", "RevokeRole")
    ),
    *(
        (f"/etcdserverpb.Auth/Role{name}", _EMPTY, _refused("etcdserver: role name not found"))
        for name in ("Get", "Delete", "GrantPermission", "RevokePermission")
    ),
    ("/v3lockpb.Lock/Lock", pb.LockRequest, _recipe(recipes.lock)),
    ("/v3lockpb.Lock/Unlock", pb.UnlockRequest, _recipe(recipes.unlock)),
    ("/v3electionpb.Election/Campaign", pb.CampaignRequest, _recipe(recipes.campaign)),
    ("/v3electionpb.Election/Proclaim", pb.ProclaimRequest, _recipe(recipes.proclaim)),
    ("/v3electionpb.Election/Leader", pb.LeaderRequest, _recipe(recipes.leader)),
    ("/v3electionpb.Election/Observe", pb.LeaderRequest, _recipe(recipes.observe)),
    ("/v3electionpb.Election/Resign", pb.ResignRequest, _recipe(recipes.resign)),
    ("/grpc.health.v1.Health/Check", pb.HealthCheckRequest, _health),
]

STREAMS = frozenset({"/etcdserverpb.Maintenance/Snapshot", "/v3electionpb.Election/Observe"})
"""Calls of one request and many answers."""

LOCAL: dict[int, Local] = {128 + i: Local(*row) for i, row in enumerate(_TABLE)}
"""By the number that the edge knows them by; none of it leaves the process."""
