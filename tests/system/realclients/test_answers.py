"""What a real etcd answers, and kvorum's gateway to the same: code, text, and every field, headers included.

api.md 2.11 (what a header says), 15 (errors), 16 (limits) and 17 (what clients rely on), row by row over gRPC. Both are
told the same from the beginning on, so revisions agree; of ids, terms and addresses only whether they are there counts.
Left out is what etcd 3.5.1 is known to do wrong (RELIABILITY 3; tests/storage/comparable.py), and what only later
releases have.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message

from kvorum import etcd_pb2 as pb
from kvorum import wire
from tests.storage.support import delete_op, exists, put_op, range_op, txn_op
from tests.system.realclients.pairs import NODES, Pair
from tests.system.test_refusals import LARGEST, METHODS, ROWS

SECONDS = 60.0
KV, LEASE, WATCH = "etcdserverpb.KV", "etcdserverpb.Lease", "etcdserverpb.Watch"
CLUSTER, MAINTENANCE, AUTH = "etcdserverpb.Cluster", "etcdserverpb.Maintenance", "etcdserverpb.Auth"
LOCK, ELECTION = "v3lockpb.Lock", "v3electionpb.Election"

_BY_NATURE = {"cluster_id", "member_id", "raft_term", "ID", "memberID"}
"""Fields of which counts whether they are there: ids, unless a row gives them, and terms."""
_GIVEN = 1 << 20
"""Ids up to here were given by a row."""
_SOME = {
    pb.StatusResponse: ("version", "storageVersion", "dbSize", "dbSizeInUse", "dbSizeQuota", "downgradeInfo", "leader",
                        "raftIndex", "raftTerm", "raftAppliedIndex"),
    pb.HashResponse: ("hash",),
    pb.HashKVResponse: ("hash", "compact_revision", "hash_revision"),
    pb.Member: ("ID", "name", "peerURLs", "clientURLs"),
    pb.LeaseLeasesResponse: ("leases",),
    pb.LeaseTimeToLiveResponse: ("TTL",),
}  # fmt: skip
"""Fields that may differ, or that 3.5.1 doesn't have."""


class Ask(NamedTuple):
    service: str
    name: str
    request: Any
    answer: Any
    answers: int = 0
    """Of a stream, whose request is a list of them: how many answers are to come, at least one to each."""


def _generic(service: str, name: str, request: Any, answer: Any = None) -> Ask:
    if answer is None:
        answer = getattr(pb, f"{name}Response", pb.HeaderResponse)
    return Ask(service, name, request, answer)


def kv(request: Any) -> Ask:
    names = {
        pb.RangeRequest: ("Range", pb.RangeResponse),
        pb.PutRequest: ("Put", pb.PutResponse),
        pb.DeleteRangeRequest: ("DeleteRange", pb.DeleteRangeResponse),
        pb.TxnRequest: ("Txn", pb.TxnResponse),
        pb.CompactionRequest: ("Compact", pb.CompactionResponse),
    }
    return Ask(KV, names[type(request)][0], request, names[type(request)][1])


def grant(id: int, ttl: int = 600) -> Ask:
    return _generic(LEASE, "LeaseGrant", pb.LeaseGrantRequest(ID=id, TTL=ttl))


def revoke(id: int) -> Ask:
    return _generic(LEASE, "LeaseRevoke", pb.LeaseRevokeRequest(ID=id))


def keep_alive(*ids: int) -> Ask:
    requests = [pb.LeaseKeepAliveRequest(ID=id) for id in ids]
    return Ask(LEASE, "LeaseKeepAlive", requests, pb.LeaseKeepAliveResponse, len(requests))


def watch(*requests: Any, more: int = 0) -> Ask:
    return Ask(WATCH, "Watch", list(requests), pb.WatchResponse, len(requests) + more)


def create(**fields: Any) -> pb.WatchRequest:
    return pb.WatchRequest(create_request=pb.WatchCreateRequest(**fields))


def alarm(action: int = 0, member: int = 0, type: int = 0) -> Ask:
    request = pb.AlarmRequest(action=action, memberID=member, alarm=type)  # type: ignore[arg-type]
    return _generic(MAINTENANCE, "Alarm", request)


def put(key: bytes, value: bytes = b"v", **options: Any) -> Ask:
    return kv(pb.PutRequest(key=key, value=value, **options))


def lock(name: bytes, lease: int) -> Ask:
    return _generic(LOCK, "Lock", pb.LockRequest(name=name, lease=lease))


def campaign(name: bytes, lease: int, value: bytes = b"v") -> Ask:
    return _generic(ELECTION, "Campaign", pb.CampaignRequest(name=name, lease=lease, value=value))


ACTIVATE, DEACTIVATE = pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE
PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
CANCEL = pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=0))
EMPTY = pb.DefragmentRequest()
NOBODY = pb.LeaderKey(name=b"e", key=b"e/1", rev=1, lease=1)

# What is asked, in order; every answer counts.
ANSWERS: dict[str, list[Ask]] = {
    # 2.11: headers
    "range of nothing": [kv(pb.RangeRequest(key=b"none"))],
    "range at an older revision": [
        put(b"r", b"1"), put(b"r", b"2"), kv(pb.RangeRequest(key=b"r")), kv(pb.RangeRequest(key=b"r", revision=7)),
    ],
    "serializable range": [put(b"r"), kv(pb.RangeRequest(key=b"r", serializable=True))],
    "range that only counts": [kv(pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True))],
    "range with a limit": [put(b"l1"), put(b"l2"), kv(pb.RangeRequest(key=b"l", range_end=b"m", limit=1))],
    "range of keys": [put(b"l1"), kv(pb.RangeRequest(key=b"l", range_end=b"m", keys_only=True))],
    "put": [put(b"p"), put(b"p", b"", prev_kv=True)],
    "delete of nothing": [kv(pb.DeleteRangeRequest(key=b"none"))],
    "delete": [put(b"d"), kv(pb.DeleteRangeRequest(key=b"d", prev_kv=True))],
    "empty txn": [kv(pb.TxnRequest())],
    "txn": [kv(pb.TxnRequest(success=[put_op(b"t"), range_op(b"t"), put_op(b"u", prev_kv=True), delete_op(b"t2")]))],
    "txn that fails": [kv(pb.TxnRequest(compare=[exists(b"none")], success=[put_op(b"t")], failure=[]))],
    "txn that takes the other branch": [
        kv(pb.TxnRequest(compare=[exists(b"none")], success=[], failure=[range_op(b"t"), put_op(b"t")])),
    ],
    "txn that reads": [kv(pb.TxnRequest(success=[range_op(b"t"), range_op(b"\0", b"\0", limit=1)]))],
    "txn that deletes nothing": [kv(pb.TxnRequest(success=[delete_op(b"none")]))],
    "compaction": [put(b"c"), kv(pb.CompactionRequest(revision=9))],
    "physical compaction": [put(b"c"), kv(pb.CompactionRequest(revision=10, physical=True))],
    "grant": [grant(1001), grant(1002, 1), grant(1003, 9_000_000_000)],
    "revoke": [grant(1004), put(b"leased", lease=1004), revoke(1004), kv(pb.RangeRequest(key=b"leased"))],
    "revoke of a lease without keys": [grant(1005), revoke(1005)],
    "keep-alive": [grant(1006), keep_alive(1006, 1007, 1006)],
    "time to live": [
        grant(1008),
        put(b"leased", lease=1008),
        _generic(LEASE, "LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=1008, keys=True)),
        _generic(LEASE, "LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=1008)),
        _generic(LEASE, "LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=1009)),
    ],
    "leases": [_generic(LEASE, "LeaseLeases", EMPTY)],
    "members": [
        _generic(CLUSTER, "MemberList", pb.MemberListRequest(linearizable=True)),
        _generic(CLUSTER, "MemberList", pb.MemberListRequest()),
    ],
    "status": [_generic(MAINTENANCE, "Status", EMPTY)],
    "hash": [_generic(MAINTENANCE, "Hash", EMPTY)],
    "hash of keys": [_generic(MAINTENANCE, "HashKV", pb.HashKVRequest())],
    "defragment": [_generic(MAINTENANCE, "Defragment", EMPTY)],
    "watch": [
        put(b"w", b"1"), watch(create(key=b"w")), watch(create(key=b"w"), CANCEL), watch(create(key=b"none"), PROGRESS),
    ],
    "watch of the past": [
        put(b"w2", b"1"), put(b"w2", b"2"), watch(create(key=b"w2", start_revision=20, prev_kv=True), more=1),
    ],
    "watch of what is compacted": [watch(create(key=b"w", start_revision=3), more=1)],
    "watch of an empty range": [watch(create(key=b"w", range_end=b"a"))],
    "lock": [
        grant(2001),
        lock(b"m", 2001),
        lock(b"m", 2001),
        _generic(LOCK, "Unlock", pb.UnlockRequest(key=b"m/7d1")),
        _generic(LOCK, "Unlock", pb.UnlockRequest(key=b"m/7d1")),
        revoke(2001),
    ],
    "election": [
        grant(3001),
        campaign(b"e", 3001),
        _generic(ELECTION, "Leader", pb.LeaderRequest(name=b"e")),
        _generic(ELECTION, "Proclaim", pb.ProclaimRequest(leader=NOBODY, value=b"new")),
        _generic(ELECTION, "Resign", pb.ResignRequest(leader=NOBODY)),
        campaign(b"e", 3001, b"other"),
        revoke(3001),
    ],
    "auth": [
        _generic(AUTH, "AuthStatus", EMPTY),
        _generic(AUTH, "AuthDisable", EMPTY),
        _generic(AUTH, "UserList", EMPTY),
        _generic(AUTH, "RoleList", EMPTY),
        _generic(AUTH, "AuthEnable", EMPTY),
        _generic(AUTH, "Authenticate", EMPTY),
        _generic(AUTH, "UserGet", EMPTY),
        _generic(AUTH, "RoleGet", EMPTY),
    ],
    # 10.2: alarms
    "alarms": [
        alarm(),
        alarm(ACTIVATE, 7, pb.NONE),
        alarm(DEACTIVATE, 7, pb.CORRUPT),
        alarm(ACTIVATE, 7, pb.NOSPACE),
        alarm(ACTIVATE, 7, pb.NOSPACE),
        alarm(),
        alarm(0, 0, pb.NOSPACE),
        alarm(0, 0, pb.CORRUPT),
        alarm(0, 8, pb.NONE),
        alarm(DEACTIVATE, 8, pb.NOSPACE),
        alarm(DEACTIVATE, 7, pb.CORRUPT),
        alarm(DEACTIVATE, 7, pb.NONE),
        alarm(DEACTIVATE, 7, pb.NOSPACE),
        alarm(DEACTIVATE, 7, pb.NOSPACE),
        alarm(),
    ],
    "what a full cluster refuses": [
        put(b"full"),
        grant(4001),
        alarm(ACTIVATE, 7, pb.NOSPACE),
        _generic(MAINTENANCE, "Status", EMPTY),
        put(b"a"),
        kv(pb.TxnRequest(success=[put_op(b"a")])),
        kv(pb.TxnRequest(compare=[exists(b"full")], success=[range_op(b"a")], failure=[put_op(b"a")])),
        kv(pb.TxnRequest(compare=[exists(b"full")], success=[delete_op(b"none")])),
        grant(4002),
        keep_alive(4001),
        kv(pb.RangeRequest(key=b"full")),
        kv(pb.DeleteRangeRequest(key=b"full")),
        kv(pb.CompactionRequest(revision=12)),
        revoke(4001),
        lock(b"m", 4001),
        alarm(DEACTIVATE, 7, pb.NOSPACE),
        put(b"a"),
    ],
    "what a corrupt cluster refuses": [
        put(b"full"),
        grant(4003),
        alarm(ACTIVATE, 7, pb.NOSPACE),
        alarm(ACTIVATE, 7, pb.CORRUPT),
        put(b"a"),
        kv(pb.TxnRequest(success=[put_op(b"a")])),
        kv(pb.TxnRequest(success=[delete_op(b"none")])),
        kv(pb.TxnRequest(success=[range_op(b"full")])),
        kv(pb.RangeRequest(key=b"full")),
        kv(pb.DeleteRangeRequest(key=b"none")),
        kv(pb.CompactionRequest(revision=13)),
        grant(4004),
        revoke(4003),
        keep_alive(4003),
        _generic(LEASE, "LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=4003)),
        watch(create(key=b"full", start_revision=1 << 40)),
        alarm(DEACTIVATE, 7, pb.CORRUPT),
        alarm(DEACTIVATE, 7, pb.NOSPACE),
        revoke(4003),
    ],
    # 15: errors that other rows have not
    "an unknown lease": [revoke(9), put(b"a", lease=9)],
    "a lease twice": [grant(5001), grant(5001)],
    "a lease for too long": [grant(5002, 9_000_000_001)],
    "elections that are none": [
        _generic(ELECTION, "Leader", pb.LeaderRequest(name=b"nobody's")),
        _generic(ELECTION, "Proclaim", pb.ProclaimRequest()),
        _generic(ELECTION, "Resign", pb.ResignRequest()),
        campaign(b"e", 999),
        lock(b"m", 999),
    ],
    "paths that are none": [
        Ask(KV, "Nothing", EMPTY, pb.HeaderResponse), Ask("nobody.Nothing", "At", EMPTY, pb.HeaderResponse),
    ],
    # 16: limits
    "a message over the limit of the transport": [put(b"a", bytes(LARGEST))],
    "a message just within it": [put(b"a", bytes(LARGEST - 100))],
    # 17: what clients rely on
    "a key from which on, with a limit": [
        put(b"z1"), put(b"z2"), put(b"z3"), kv(pb.RangeRequest(key=b"z1", range_end=b"\0", limit=2)),
        kv(pb.RangeRequest(key=b"z2\0", range_end=b"\0", limit=2)),
    ],
    "the first of those that were created": [
        kv(pb.RangeRequest(key=b"z", range_end=b"{", limit=1, sort_order=1, sort_target=2)),
        kv(pb.RangeRequest(key=b"z", range_end=b"{", limit=1, sort_order=2, sort_target=2)),
        kv(pb.RangeRequest(key=b"z", range_end=b"{", limit=1, sort_order=2, sort_target=2, max_create_revision=20)),
    ],
    "a guaranteed update": [
        kv(pb.TxnRequest(
            compare=[pb.Compare(key=b"z1", target=pb.Compare.MOD, mod_revision=3)],
            success=[put_op(b"z1")], failure=[range_op(b"z1")],
        )),
    ],
    "the key of compactions": [
        kv(pb.TxnRequest(
            compare=[pb.Compare(key=b"compact_rev_key", target=pb.Compare.VERSION, version=0)],
            success=[put_op(b"compact_rev_key", b"1")], failure=[range_op(b"compact_rev_key")],
        )),
        kv(pb.TxnRequest(
            compare=[pb.Compare(key=b"compact_rev_key", target=pb.Compare.VERSION, version=0)],
            success=[put_op(b"compact_rev_key", b"1")], failure=[range_op(b"compact_rev_key")],
        )),
    ],
    "nested txns": [kv(pb.TxnRequest(success=[txn_op((), [put_op(b"n"), range_op(b"n")])]))],
}  # fmt: skip


class Side:
    """One cluster, asked at its first member, or at its leader."""

    def __init__(self, endpoints: list[str]) -> None:
        options = [("grpc.max_receive_message_length", -1)]
        self.channels = [grpc.insecure_channel(endpoint, options) for endpoint in endpoints]
        self.channel = self.channels[0]

    def close(self) -> None:
        for channel in self.channels:
            channel.close()

    def ask(self, ask: Ask) -> Any:
        path = f"/{ask.service}/{ask.name}"
        try:
            if ask.answers:
                return self._chat(path, ask)
            call = self.channel.unary_unary(
                path,
                request_serializer=type(ask.request).SerializeToString,
                response_deserializer=ask.answer.FromString,
            )
            return shown(call(ask.request, timeout=SECONDS, wait_for_ready=True))
        except grpc.RpcError as error:
            return error.code().value[0], error.details()

    def _chat(self, path: str, ask: Ask) -> list[Any]:
        """Each request when the one before it was answered."""
        queue: SimpleQueue[Any] = SimpleQueue()
        call = self.channel.stream_stream(
            path, request_serializer=lambda one: one.SerializeToString(), response_deserializer=ask.answer.FromString
        )
        answers = call(iter(queue.get, None), timeout=SECONDS, wait_for_ready=True)
        told, waiting = [], list(ask.request)
        queue.put(waiting.pop(0))
        for answer in answers:
            told.append(shown(answer))
            if len(told) == ask.answers:
                break
            if waiting:
                queue.put(waiting.pop(0))
        answers.cancel()
        queue.put(None)
        return told


def without_nested_headers(response: pb.TxnResponse) -> None:
    for op in response.responses:
        if op.HasField("response_txn"):
            op.response_txn.ClearField("header")
            without_nested_headers(op.response_txn)


def shown(message: Any) -> Any:
    """A message as a dictionary, without what differs by nature."""
    found: dict[str, Any] = {}
    if isinstance(message, pb.TxnResponse):
        without_nested_headers(message)  # empty in 3.5.1
    for field, value in message.ListFields():
        if field.name in _SOME.get(type(message), ()):
            continue
        if isinstance(value, Message):
            found[field.name] = shown(value)
        elif field.message_type is not None:
            found[field.name] = [shown(one) for one in value]
        elif field.name in _BY_NATURE and not 0 < value <= _GIVEN:
            found[field.name] = "some"
        elif field.name == "errors":
            found[field.name] = [text.strip() for text in value]
        elif field.name == "raft_term":
            found[field.name] = "some"
        else:
            found[field.name] = value
    return found


@pytest.fixture(scope="module")
def sides(both: Pair) -> Iterator[tuple[Side, Side]]:
    ours, theirs = Side(both.kvorum), Side(both.etcd)
    for side in (ours, theirs):
        for request in (pb.PutRequest(key=b"seen"), *(pb.PutRequest(key=b"old%d" % i) for i in range(4))):
            side.ask(kv(request))
        side.ask(kv(pb.CompactionRequest(revision=4)))
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("row", ANSWERS)
def test_kvorum_answers_as_etcd_does(sides: tuple[Side, Side], row: str) -> None:
    ours, theirs = sides
    for number, ask in enumerate(ANSWERS[row]):
        mine, real = ours.ask(ask), theirs.ask(ask)
        assert mine == real, (row, number, ask.name)


WRONG_IN_3_5_1 = {
    "an unknown order": "not looked at",
    "an unknown target": "kills the member",
    "an unknown target in a txn": "kills the member",
    "a txn that writes and reads what was compacted": "done by the other members, all the same",
    "a txn that writes and reads the future": "the same",
    "leadership for nobody": "asked of the leader below",
    "leadership for a stranger": "the same",
}


@pytest.mark.parametrize("row", [row for row in ROWS if row not in WRONG_IN_3_5_1])
def test_etcd_refuses_what_the_table_of_refusals_says(sides: tuple[Side, Side], row: str) -> None:
    """So that table is etcd's, not ours; and after it both have come to the same revision."""
    request, wanted = ROWS[row]
    shape = wire.METHODS[METHODS[type(request)]]
    service, _, name = shape.path.removeprefix("/").partition("/")
    for side in sides:
        answer = side.ask(Ask(service, name, request, shape.response))
        assert (answer if isinstance(answer, tuple) else (0, "")) == wanted
    revisions = [side.ask(kv(pb.RangeRequest(key=b"none")))["header"]["revision"] for side in sides]
    assert revisions[0] == revisions[1]


def test_leaders_refuse_strangers_and_others_refuse_everybody(sides: tuple[Side, Side]) -> None:
    told: list[list[Any]] = []
    for side in sides:
        answers: list[Any] = []
        for channel in side.channels:
            side.channel = channel
            answers += [
                side.ask(_generic(MAINTENANCE, "MoveLeader", pb.MoveLeaderRequest(targetID=id), pb.HeaderResponse))
                for id in (0, 12345)
            ]
        side.channel = side.channels[0]
        told.append(sorted(answers))
    assert told[0] == told[1]
    assert len(set(told[0])) == 2
    assert len(told[0]) == 2 * NODES
