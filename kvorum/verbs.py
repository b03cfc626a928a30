"""Every call of the API, once: what to send, and how to read the answer. The clients bind them to their way to wait.

    Ask = method, request bytes, how to read the answer, may it be sent twice, its own timeout

A verb only builds an Ask, so bad arguments are found here, before anything is sent. The rules behind the calls are
etcd's (v3 API: KV, Cluster, Maintenance). Each takes `timeout`: seconds until the call ends with DeadlineExceeded (it
may have been done) or Unreachable (it never left); None is the client's own. Each may end with any error of
kvorum.errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar, Unpack, cast

from google.protobuf.message import DecodeError

from kvorum import etcd_pb2 as pb
from kvorum import results, txn
from kvorum.errors import Ambiguous, Code
from kvorum.results import Alarm, KVMetadata, Member, Status
from kvorum.txn import AnyLease, Key, RangeOptions
from kvorum.wire import METHODS, PROTOCOL, Method

T = TypeVar("T")

_RANGE, _PUT, _DELETE, _TXN = Method.RANGE, Method.PUT, Method.DELETE_RANGE, Method.TXN


class Ask(NamedTuple, Generic[T]):
    method: int
    request: bytes
    read: Callable[[bytes], T]
    again: bool
    timeout: float | None


class Options(RangeOptions, total=False):
    """RangeOptions, and how long to wait for the answer."""

    timeout: float | None


def read(ask: Ask[T], reply: bytes) -> T:
    """The answer in the user's terms.

    Raises:
      Ambiguous: the node said that it did what was asked, in bytes that are not the message they should be.
    """
    try:
        return ask.read(reply)
    except DecodeError:
        name = METHODS[Method(ask.method)].response.DESCRIPTOR.name
        raise Ambiguous(f"kvorum: the answer is not a {name}", Code.INTERNAL) from None


def _range(key: Key, end: Key | None, options: Options, read: Callable[[bytes], T]) -> Ask[T]:
    timeout = options.pop("timeout", None)
    request = txn.range_request(key, end, **cast(RangeOptions, options))
    return Ask(_RANGE, request.SerializeToString(), read, True, timeout)


def _first(reply: bytes) -> tuple[bytes | None, KVMetadata | None]:
    answer = pb.RangeResponse.FromString(reply)
    return results.pair(answer.kvs[0], answer.header) if answer.kvs else (None, None)


def _pairs(reply: bytes) -> list[tuple[bytes, KVMetadata]]:
    return results.pairs(pb.RangeResponse.FromString(reply))


def get(key: Key, **options: Unpack[Options]) -> Ask[tuple[bytes | None, KVMetadata | None]]:
    """The value of a key and its KVMetadata; (None, None) if it is not there. See RangeOptions."""
    return _range(key, None, options, _first)


def get_response(key: Key, **options: Unpack[Options]) -> Ask[pb.RangeResponse]:
    """Like get(), answering with the whole RangeResponse."""
    return _range(key, None, options, pb.RangeResponse.FromString)


def get_prefix(prefix: Key, **options: Unpack[Options]) -> Ask[list[tuple[bytes, KVMetadata]]]:
    """(value, KVMetadata) of every key that starts with `prefix`, by key unless a sort is asked for."""
    return _range(*txn.prefix_range(prefix), options, _pairs)


def get_prefix_response(prefix: Key, **options: Unpack[Options]) -> Ask[pb.RangeResponse]:
    """Like get_prefix(), answering with the whole RangeResponse."""
    return _range(*txn.prefix_range(prefix), options, pb.RangeResponse.FromString)


def get_range(start: Key, end: Key, **options: Unpack[Options]) -> Ask[list[tuple[bytes, KVMetadata]]]:
    """(value, KVMetadata) of every key in [start, end); an end of b"\\0" is the end of the keyspace."""
    return _range(start, end, options, _pairs)


def get_range_response(start: Key, end: Key, **options: Unpack[Options]) -> Ask[pb.RangeResponse]:
    """Like get_range(), answering with the whole RangeResponse."""
    return _range(start, end, options, pb.RangeResponse.FromString)


def get_all(**options: Unpack[Options]) -> Ask[list[tuple[bytes, KVMetadata]]]:
    """(value, KVMetadata) of every key there is."""
    return _range(b"\0", b"\0", options, _pairs)


def get_all_response(**options: Unpack[Options]) -> Ask[pb.RangeResponse]:
    """Like get_all(), answering with the whole RangeResponse."""
    return _range(b"\0", b"\0", options, pb.RangeResponse.FromString)


def stream(request: pb.RangeRequest, *, timeout: float | None = None) -> Ask[pb.RangeResponse]:
    """A range of any size, in parts as the node sends them; all are of one revision. Each is a RangeResponse: the next
    keys, in order. `header`, `more` and `count` are in the last alone; the first comes soon and has few keys.

    An iterator. Little is held here, and less at the node, however slowly it is read. Whoever stops before its end says
    close() to it, or lets go of it.

    Args:
      timeout: seconds to wait for each part.
    Raises:
      Refused: another order than by key is asked for, or a bound of revisions.
      Compacted: also in the middle, if the revision it is of is compacted meanwhile.
      Unavailable: also in the middle, if the connected node goes away.
    """
    return Ask(Method.RANGE_STREAM, request.SerializeToString(), _part, True, timeout)


def _part(part: bytes) -> pb.RangeResponse:
    return pb.RangeStreamResponse.FromString(part).range_response


def stream_range(start: Key, end: Key, **options: Unpack[Options]) -> Ask[pb.RangeResponse]:
    """(value, KVMetadata) of every key in [start, end), like get_range(), but one after the other while they come: see
    stream(). Only the last part's KVMetadata have a response_header.
    """
    return _streamed(start, end, options)


def stream_prefix(prefix: Key, **options: Unpack[Options]) -> Ask[pb.RangeResponse]:
    """Like stream_range(), of every key that starts with `prefix`."""
    return _streamed(*txn.prefix_range(prefix), options)


def stream_all(**options: Unpack[Options]) -> Ask[pb.RangeResponse]:
    """Like stream_range(), of every key there is."""
    return _streamed(b"\0", b"\0", options)


def _streamed(key: Key, end: Key, options: Options) -> Ask[pb.RangeResponse]:
    timeout = options.pop("timeout", None)
    return stream(txn.range_request(key, end, **cast(RangeOptions, options)), timeout=timeout)


def put(
    key: Key,
    value: Key,
    lease: AnyLease | None = None,
    prev_kv: bool = False,
    *,
    ignore_value: bool = False,
    ignore_lease: bool = False,
    timeout: float | None = None,
) -> Ask[pb.PutResponse]:
    """Set a key. Its revision is in the answer's header.

    Args:
      lease: the lease, or its id, that the key shall die with; None or 0 takes it off any lease.
      prev_kv: answer with what the key was before.
      ignore_value: keep its value, change its lease only; `value` must be empty. KeyNotFound if it is not there.
      ignore_lease: keep its lease, change its value only; `lease` must be None. KeyNotFound if it is not there.
    Raises:
      EmptyKey, LeaseNotFound, ValueProvided, LeaseProvided, KeyNotFound, RequestTooLarge (over 1.5 MiB), NoSpace.
    """
    request = txn.put_request(key, value, lease, prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease)
    return Ask(_PUT, request.SerializeToString(), pb.PutResponse.FromString, False, timeout)


def put_if_not_exists(
    key: Key, value: Key, lease: AnyLease | None = None, *, timeout: float | None = None
) -> Ask[bool]:
    """Set a key only if it is not there. True if it was set."""
    request = txn.txn_request([txn.create(key) == 0], [txn.put(key, value, lease)], [])
    return Ask(_TXN, request.SerializeToString(), _succeeded, False, timeout)


def replace(key: Key, initial_value: Key, new_value: Key, *, timeout: float | None = None) -> Ask[bool]:
    """Set a key only if its value is `initial_value`, at once: compare and swap. True if it was set."""
    request = txn.txn_request([txn.value(key) == initial_value], [txn.put(key, new_value)], [])
    return Ask(_TXN, request.SerializeToString(), _succeeded, False, timeout)


def _succeeded(reply: bytes) -> bool:
    return pb.TxnResponse.FromString(reply).succeeded


def delete(
    key: Key, prev_kv: bool = False, return_response: bool = False, *, timeout: float | None = None
) -> Ask[bool | pb.DeleteRangeResponse]:
    """Delete one key. True if it was there; the whole DeleteRangeResponse with `return_response`."""
    read: Callable[[bytes], bool | pb.DeleteRangeResponse]
    read = pb.DeleteRangeResponse.FromString if return_response else _deleted
    return Ask(_DELETE, txn.delete_request(key, None, prev_kv).SerializeToString(), read, False, timeout)


def _deleted(reply: bytes) -> bool:
    return pb.DeleteRangeResponse.FromString(reply).deleted > 0


def delete_range(
    start: Key, end: Key, prev_kv: bool = False, *, timeout: float | None = None
) -> Ask[pb.DeleteRangeResponse]:
    """Delete every key in [start, end), at one revision; an end of b"\\0" is the end of the keyspace."""
    request = txn.delete_request(start, end, prev_kv)
    return Ask(_DELETE, request.SerializeToString(), pb.DeleteRangeResponse.FromString, False, timeout)


def delete_prefix(prefix: Key, prev_kv: bool = False, *, timeout: float | None = None) -> Ask[pb.DeleteRangeResponse]:
    """Delete every key that starts with `prefix`, at one revision."""
    request = txn.delete_request(*txn.prefix_range(prefix), prev_kv)
    return Ask(_DELETE, request.SerializeToString(), pb.DeleteRangeResponse.FromString, False, timeout)


def transaction(
    compare: Iterable[pb.Compare] = (),
    success: Iterable[pb.RequestOp] = (),
    failure: Iterable[pb.RequestOp] = (),
    *,
    timeout: float | None = None,
) -> Ask[tuple[bool, list[object]]]:
    """Do `success` if every one of `compare` holds, else `failure`, as one change at one revision (kvorum.txn).

    Answers (succeeded, answers), one answer for each operation: a list of (value, KVMetadata) for a get, (succeeded,
    answers) for a txn, PutResponse or DeleteRangeResponse for the others.

    Raises:
      TooManyOps (over 128 in one list), DuplicateKey (a key put twice), and whatever a single operation may.
    """
    request = txn.txn_request(compare, success, failure)
    return Ask(_TXN, request.SerializeToString(), _txn_read, txn.reads_only(request), timeout)


def _txn_read(reply: bytes) -> tuple[bool, list[object]]:
    answer = pb.TxnResponse.FromString(reply)
    return answer.succeeded, results.txn_answers(answer)


def lease_grant(ttl: int, lease_id: int | None = None, *, timeout: float | None = None) -> Ask[pb.LeaseGrantResponse]:
    """Make a lease of `ttl` seconds and nothing more: nobody keeps it alive but who asks (client.lease() does that).

    Args:
      lease_id: its id, any but 0; the cluster chooses one if None or 0. The answer's TTL may be longer than asked for.
    Raises:
      LeaseExists: there is one of that id. LeaseTTLTooLarge: over 9,000,000,000 s.
    """
    request = pb.LeaseGrantRequest(TTL=ttl, ID=lease_id or 0)
    return Ask(Method.LEASE_GRANT, request.SerializeToString(), pb.LeaseGrantResponse.FromString, False, timeout)


def revoke_lease(lease_id: int, *, timeout: float | None = None) -> Ask[pb.LeaseRevokeResponse]:
    """End a lease: its keys are deleted with it, at one revision. Raises LeaseNotFound."""
    request = pb.LeaseRevokeRequest(ID=lease_id)
    return Ask(Method.LEASE_REVOKE, request.SerializeToString(), pb.LeaseRevokeResponse.FromString, False, timeout)


def refresh_lease(lease_id: int, *, timeout: float | None = None) -> Ask[pb.LeaseKeepAliveResponse]:
    """Give a lease its whole time again. The answer's TTL is that time; 0 if there is no such lease any more."""
    request = pb.LeaseKeepAliveRequest(ID=lease_id)
    return Ask(
        Method.LEASE_KEEP_ALIVE, request.SerializeToString(), pb.LeaseKeepAliveResponse.FromString, True, timeout
    )


def get_lease_info(
    lease_id: int, keys: bool = True, *, timeout: float | None = None
) -> Ask[pb.LeaseTimeToLiveResponse]:
    """The seconds a lease has left (TTL, -1 if there is no such lease), what it was granted for, and its keys."""
    request = pb.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
    reply = pb.LeaseTimeToLiveResponse.FromString
    return Ask(Method.LEASE_TIME_TO_LIVE, request.SerializeToString(), reply, True, timeout)


def leases(*, timeout: float | None = None) -> Ask[list[int]]:
    """The ids of all leases there are."""
    return Ask(Method.LEASE_LEASES, b"", _leases, True, timeout)


def leases_response(*, timeout: float | None = None) -> Ask[pb.LeaseLeasesResponse]:
    """Like leases(), answering with the whole LeaseLeasesResponse."""
    return Ask(Method.LEASE_LEASES, b"", pb.LeaseLeasesResponse.FromString, True, timeout)


def _leases(reply: bytes) -> list[int]:
    return [lease.ID for lease in pb.LeaseLeasesResponse.FromString(reply).leases]


def compact(revision: int, physical: bool = False, *, timeout: float | None = None) -> Ask[pb.CompactionResponse]:
    """Forget what keys were before `revision`. With `physical`, answer only when the space has been given back.

    Raises:
      Compacted: it was compacted up to there or further already. FutureRevision: that revision is not yet.
    """
    request = pb.CompactionRequest(revision=revision, physical=physical)
    return Ask(Method.COMPACT, request.SerializeToString(), pb.CompactionResponse.FromString, False, timeout)


def status(*, timeout: float | None = None) -> Ask[Status]:
    """How the connected node sees itself and its cluster; answered by it alone, with a leader or without."""
    return Ask(Method.STATUS, b"", _status, True, timeout)


def _status(reply: bytes) -> Status:
    s = pb.StatusResponse.FromString(reply)
    return Status(
        version=s.version,
        db_size=s.dbSize,
        leader=s.leader,
        raft_index=s.raftIndex,
        raft_term=s.raftTerm,
        raft_applied_index=s.raftAppliedIndex,
        db_size_in_use=s.dbSizeInUse,
        is_learner=s.isLearner,
        errors=tuple(s.errors),
        header=s.header,
    )


def status_response(*, timeout: float | None = None) -> Ask[pb.StatusResponse]:
    """Like status(), answering with the whole StatusResponse."""
    return Ask(Method.STATUS, b"", pb.StatusResponse.FromString, True, timeout)


def member_list(*, linearizable: bool = True, timeout: float | None = None) -> Ask[pb.MemberListResponse]:
    """The members of the cluster; with `linearizable` as a quorum knows them, else as the connected node does."""
    request = pb.MemberListRequest(linearizable=linearizable).SerializeToString()
    return Ask(Method.MEMBER_LIST, request, pb.MemberListResponse.FromString, True, timeout)


def members(*, linearizable: bool = True, timeout: float | None = None) -> Ask[list[Member]]:
    """The members of the cluster, as Member."""
    request = pb.MemberListRequest(linearizable=linearizable).SerializeToString()
    return Ask(Method.MEMBER_LIST, request, _members, True, timeout)


def _members(reply: bytes) -> list[Member]:
    return [
        Member(m.ID, m.name, tuple(m.peerURLs), tuple(m.clientURLs), m.isLearner)
        for m in pb.MemberListResponse.FromString(reply).members
    ]


def alarm_response(
    action: str = "get", member_id: int = 0, alarm_type: str | int = "none", *, timeout: float | None = None
) -> Ask[pb.AlarmResponse]:
    """List alarms ("get": those of a type, or all), raise one ("activate") or take one back ("deactivate").

    Answers with the alarms found, raised or taken back: none if there was nothing to take back. While NOSPACE stands,
    of whichever member, NoSpace is raised by what takes space: puts, transactions that may put, leases. CORRUPT refuses
    every change (Corrupt).

    Raises:
      ValueError: no such action or type.
    """
    request = pb.AlarmRequest(
        action=pb.AlarmRequest.AlarmAction.Value(action.upper()),  # type: ignore[arg-type]
        memberID=member_id,
        alarm=pb.AlarmType.Value(alarm_type.upper()) if isinstance(alarm_type, str) else alarm_type,  # type: ignore[arg-type]
    )
    again = request.action == pb.AlarmRequest.GET
    return Ask(Method.ALARM, request.SerializeToString(), pb.AlarmResponse.FromString, again, timeout)


def _alarms(ask: Ask[pb.AlarmResponse], member_id: int = 0) -> Ask[list[Alarm]]:
    def read(reply: bytes) -> list[Alarm]:
        found = pb.AlarmResponse.FromString(reply).alarms
        names = dict(zip(pb.AlarmType.values(), pb.AlarmType.keys(), strict=True))
        told = [Alarm(names.get(one.alarm, str(one.alarm)), one.memberID) for one in found]
        return [alarm for alarm in told if member_id in (0, alarm.member_id)]

    return ask._replace(read=read)  # type: ignore[arg-type,return-value]


def list_alarms(member_id: int = 0, alarm_type: str = "none", *, timeout: float | None = None) -> Ask[list[Alarm]]:
    """The alarms that stand: of one member, or of all (0); of a type, "nospace" or "corrupt", or of all ("none")."""
    return _alarms(alarm_response("get", 0, alarm_type, timeout=timeout), member_id)


def create_alarm(member_id: int = 0, alarm_type: str = "nospace", *, timeout: float | None = None) -> Ask[list[Alarm]]:
    """Raise an alarm in a member's name; no harm if it stands already. Members raise their own by themselves."""
    return _alarms(alarm_response("activate", member_id, alarm_type, timeout=timeout))


def disarm_alarm(member_id: int = 0, alarm_type: str = "nospace", *, timeout: float | None = None) -> Ask[list[Alarm]]:
    """Take back the alarm of exactly this member and type. An empty list: it did not stand."""
    return _alarms(alarm_response("deactivate", member_id, alarm_type, timeout=timeout))


def hash_kv(revision: int = 0, *, timeout: float | None = None) -> Ask[pb.HashKVResponse]:
    """A checksum of the keys and their history up to `revision` (0: the newest), of the connected node alone. Nodes
    whose answers have the same compact_revision and hash_revision must have the same hash.

    Raises:
      FutureRevision, Compacted.
    """
    request = pb.HashKVRequest(revision=revision).SerializeToString()
    return Ask(Method.HASH_KV, request, pb.HashKVResponse.FromString, True, timeout)


def move_leader(target: int, *, timeout: float | None = None) -> Ask[pb.MoveLeaderResponse]:
    """Hand leadership to the member with id `target`; only the leader can be asked.

    Raises:
      NotLeader: the connected node is not the leader. BadLeaderTransferee: `target` cannot become it.
    """
    request = pb.MoveLeaderRequest(targetID=target).SerializeToString()
    return Ask(Method.MOVE_LEADER, request, pb.MoveLeaderResponse.FromString, False, timeout)


def hello(*, timeout: float | None = None) -> Ask[pb.HelloResponse]:
    """Who the connected node is and which endpoints its cluster has. Connects if nobody is connected."""
    request = pb.HelloRequest(protocol=PROTOCOL).SerializeToString()
    return Ask(Method.HELLO, request, pb.HelloResponse.FromString, True, timeout)
