"""etcd's key-value semantics as dumb as they can be said: a dictionary per revision, copied for each.

Written from the API reference, sharing nothing with the store but the messages. It answers whole response messages, and
raises the same errors.
"""

from __future__ import annotations

from typing import Any

from kvorum import errors
from kvorum import etcd_pb2 as pb

KVs = dict[bytes, pb.KeyValue]


def chosen(state: KVs, key: bytes, end: bytes) -> list[pb.KeyValue]:
    return [state[k] for k in sorted(state) if (k == key if not end else key <= k and (end == b"\0" or k < end))]


class Model:
    def __init__(self) -> None:
        self.states: dict[int, KVs] = {1: {}}
        self.events: dict[int, list[pb.Event]] = {}
        self.revision = 1
        self.compacted = -1
        self.leases: dict[int, int] = {}
        self.alarms: set[tuple[int, int]] = set()  # type, member
        self._now: KVs = {}  # the state that the request being done has made so far
        self._events: list[pb.Event] = []

    def do(self, request: Any) -> Any:
        """Do one request, alone."""
        self._now, self._events = dict(self.states[self.revision]), []
        self._check_alarms(request)
        response = {
            pb.PutRequest: self._put_alone,
            pb.DeleteRangeRequest: self._delete,
            pb.RangeRequest: self._range_alone,
            pb.TxnRequest: self._txn_alone,
            pb.CompactionRequest: self._compact,
            pb.LeaseGrantRequest: self._grant,
            pb.LeaseRevokeRequest: self._revoke,
            pb.AlarmRequest: self._alarm,
        }[type(request)](request)
        if self._events:
            self.revision += 1
            self.states[self.revision] = self._now
            self.events[self.revision] = self._events
        response.header.revision = self.revision
        return response

    @property
    def _head(self) -> int:
        return self.revision + bool(self._events)

    # ---- range

    def _range_alone(self, request: pb.RangeRequest) -> pb.RangeResponse:
        self._check_range(request)
        return self._range(request)

    def _check_range(self, request: pb.RangeRequest) -> None:
        if request.revision > self.revision:
            raise errors.FutureRevision
        if 0 < request.revision < self.compacted:
            raise errors.Compacted

    def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        state = self._now if request.revision <= 0 else self.states[request.revision]
        found = chosen(state, request.key, request.range_end)
        response = pb.RangeResponse(count=len(found), header=pb.ResponseHeader(revision=self._head))
        if request.count_only:
            return response
        if request.min_mod_revision:
            found = [kv for kv in found if kv.mod_revision >= request.min_mod_revision]
        if request.max_mod_revision:
            found = [kv for kv in found if kv.mod_revision <= request.max_mod_revision]
        if request.min_create_revision:
            found = [kv for kv in found if kv.create_revision >= request.min_create_revision]
        if request.max_create_revision:
            found = [kv for kv in found if kv.create_revision <= request.max_create_revision]
        field = ("key", "version", "create_revision", "mod_revision", "value")[request.sort_target]
        found.sort(key=lambda kv: getattr(kv, field), reverse=request.sort_order == pb.RangeRequest.DESCEND)
        if 0 < request.limit < len(found):
            found, response.more = found[: request.limit], True
        for kv in found:
            response.kvs.add().CopyFrom(kv)
            if request.keys_only:
                response.kvs[-1].ClearField("value")
        return response

    # ---- put and delete

    def _put_alone(self, request: pb.PutRequest) -> pb.PutResponse:
        self._check_put(request)
        return self._put(request)

    def _check_put(self, request: pb.PutRequest) -> None:
        if request.lease and request.lease not in self.leases:
            raise errors.LeaseNotFound
        if (request.ignore_value or request.ignore_lease) and request.key not in self._now:
            raise errors.KeyNotFound

    def _put(self, request: pb.PutRequest) -> pb.PutResponse:
        main = self.revision + 1
        old = self._now.get(request.key)
        new = pb.KeyValue(key=request.key, mod_revision=main, create_revision=main, version=1, value=request.value)
        new.lease = request.lease
        if old is not None:
            new.create_revision, new.version = old.create_revision, old.version + 1
            if request.ignore_value:
                new.value = old.value
            if request.ignore_lease:
                new.lease = old.lease
        self._now[request.key] = new
        self._event(pb.Event.PUT, new)
        response = pb.PutResponse(header=pb.ResponseHeader(revision=main))
        if old is not None and request.prev_kv:
            response.prev_kv.CopyFrom(old)
        return response

    def _delete(self, request: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
        found = chosen(self._now, request.key, request.range_end)
        for kv in found:
            del self._now[kv.key]
            self._event(pb.Event.DELETE, pb.KeyValue(key=kv.key, mod_revision=self.revision + 1))
        response = pb.DeleteRangeResponse(deleted=len(found), header=pb.ResponseHeader(revision=self._head))
        if request.prev_kv:
            response.prev_kvs.extend(found)
        return response

    def _event(self, kind: Any, kv: pb.KeyValue) -> None:
        before = self.states[self.revision].get(kv.key)
        self._events.append(pb.Event(type=kind, kv=kv, prev_kv=before))

    # ---- transactions

    def _txn_alone(self, request: pb.TxnRequest) -> pb.TxnResponse:
        paths: dict[int, bool] = {}
        self._choose(request, paths, [0])
        self._check(request, paths, [0])
        return self._execute(request, paths, [0])

    def _choose(self, request: pb.TxnRequest, paths: dict[int, bool], at: list[int]) -> None:
        mine = at[0]
        at[0] += 1
        paths[mine] = all(self._compare(compare) for compare in request.compare)
        for op in request.success if paths[mine] else request.failure:
            if op.HasField("request_txn"):
                self._choose(op.request_txn, paths, at)

    def _compare(self, compare: pb.Compare) -> bool:
        found = chosen(self._now, compare.key, compare.range_end)
        field = ("version", "create_revision", "mod_revision", "value", "lease")[compare.target]
        if not found:
            if field == "value":
                return False
            found = [pb.KeyValue()]
        want = getattr(compare, field)
        return all(
            (
                getattr(kv, field) == want,
                getattr(kv, field) > want,
                getattr(kv, field) < want,
                getattr(kv, field) != want,
            )[compare.result]
            for kv in found
        )

    def _check(self, request: pb.TxnRequest, paths: dict[int, bool], at: list[int]) -> None:
        taken = request.success if paths[at[0]] else request.failure
        at[0] += 1
        for op in taken:
            if op.HasField("request_put"):
                self._check_put(op.request_put)
            elif op.HasField("request_range"):
                self._check_range(op.request_range)
            elif op.HasField("request_txn"):
                self._check(op.request_txn, paths, at)

    def _execute(self, request: pb.TxnRequest, paths: dict[int, bool], at: list[int]) -> pb.TxnResponse:
        response = pb.TxnResponse(succeeded=paths[at[0]])
        taken = request.success if paths[at[0]] else request.failure
        at[0] += 1
        for op in taken:
            if op.HasField("request_put"):
                response.responses.add().response_put.CopyFrom(self._put(op.request_put))
            elif op.HasField("request_range"):
                response.responses.add().response_range.CopyFrom(self._range(op.request_range))
            elif op.HasField("request_delete_range"):
                response.responses.add().response_delete_range.CopyFrom(self._delete(op.request_delete_range))
            else:
                response.responses.add().response_txn.CopyFrom(self._execute(op.request_txn, paths, at))
        response.header.revision = self._head
        return response

    # ---- alarms

    def _check_alarms(self, request: Any) -> None:
        if isinstance(request, pb.RangeRequest) or self._only_reads(request):
            return  # it needs no agreement
        types = {type for type, _ in self.alarms}
        if pb.CORRUPT in types and not isinstance(request, pb.AlarmRequest):
            raise errors.Corrupt
        if pb.NOSPACE in types and self._grows(request):
            raise errors.NoSpace

    def _only_reads(self, request: Any) -> bool:
        return isinstance(request, pb.TxnRequest) and all(
            op.HasField("request_range") for op in (*request.success, *request.failure)
        )

    def _grows(self, request: Any) -> bool:
        if isinstance(request, pb.TxnRequest):
            ops = [*request.success, *request.failure]
            return any(op.HasField("request_put") or self._grows(op.request_txn) for op in ops)
        return isinstance(request, pb.PutRequest | pb.LeaseGrantRequest)

    def _alarm(self, request: pb.AlarmRequest) -> pb.AlarmResponse:
        one, found = (request.alarm, request.memberID), []
        if request.action == pb.AlarmRequest.GET:
            found = sorted(alarm for alarm in self.alarms if request.alarm in (pb.NONE, alarm[0]))
        elif request.action == pb.AlarmRequest.ACTIVATE and request.alarm:
            self.alarms.add(one)
            found = [one]
        elif request.action == pb.AlarmRequest.DEACTIVATE and one in self.alarms:
            self.alarms.remove(one)
            found = [one]
        return pb.AlarmResponse(alarms=[pb.AlarmMember(memberID=member, alarm=type) for type, member in found])

    # ---- leases

    def _grant(self, request: pb.LeaseGrantRequest) -> pb.LeaseGrantResponse:
        if request.ID in self.leases:
            raise errors.LeaseExists
        self.leases[request.ID] = request.TTL
        return pb.LeaseGrantResponse(ID=request.ID, TTL=request.TTL)

    def _revoke(self, request: pb.LeaseRevokeRequest) -> pb.LeaseRevokeResponse:
        if request.ID not in self.leases:
            raise errors.LeaseNotFound
        del self.leases[request.ID]
        for key in self.keys_of(request.ID):
            del self._now[key]
            self._event(pb.Event.DELETE, pb.KeyValue(key=key, mod_revision=self.revision + 1))
        return pb.LeaseRevokeResponse()

    def keys_of(self, lease: int) -> list[bytes]:
        return [key for key, kv in sorted(self._now.items()) if kv.lease == lease]

    # ---- compaction and history

    def _compact(self, request: pb.CompactionRequest) -> pb.CompactionResponse:
        if request.revision <= self.compacted:
            raise errors.Compacted
        if request.revision > self.revision:
            raise errors.FutureRevision
        self.compacted = request.revision
        return pb.CompactionResponse()

    def history(self, first: int) -> list[pb.Event]:
        """All events from `first` on; what they replaced is told only if it is not compacted."""
        if first < self.compacted:
            raise errors.Compacted
        found = []
        for revision in range(max(first, 2), self.revision + 1):
            for event in self.events[revision]:
                told = pb.Event()
                told.CopyFrom(event)
                if revision <= self.compacted:
                    told.ClearField("prev_kv")
                found.append(told)
        return found
