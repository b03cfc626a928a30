"""What the commands print, in each of the formats: simple, fields, json, protobuf, table.

A printer writes bytes, since keys and values are bytes. Formats that etcdctl refuses for a command are refused here
too, with the same exit code, before anything is asked of a server.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from google.protobuf.message import Message

from kvorum import etcd_pb2 as pb
from kvorum.ctl import text
from kvorum.ctl.failure import Exit, Failure
from kvorum.results import Event, PutEvent, WatchResponse

FORMATS = ("fields", "json", "protobuf", "simple", "table")


class Health(NamedTuple):
    endpoint: str
    healthy: bool
    took_ns: int
    error: str


class SnapshotStatus(NamedTuple):
    """What is in a snapshot file, as etcdutl 3.6 says it: CRC-32C, newest revision, keys that there are then, bytes of
    the database, and the version of etcd that its schema is of, where it says one."""

    hash: int
    revision: int
    keys: int
    size: int
    version: str


class EndpointStatus(NamedTuple):
    endpoint: str
    status: pb.StatusResponse


class EndpointHash(NamedTuple):
    endpoint: str
    hash: pb.HashKVResponse


class Printer:
    """See the module.

    Args:
      out: where to; flushed after each answer.
      hex: print keys and values in simple, and ids in json, in hexadecimal.
      values_only: leave the keys out in simple.
    Raises:
      Failure: no such format, or values_only with another than simple.
    """

    def __init__(self, out: BinaryIO, format: str, *, hex: bool = False, values_only: bool = False) -> None:
        if format not in FORMATS:
            raise Failure(Exit.BAD_FEATURE, "unsupported output format")
        if values_only and format != "simple":
            raise Failure(Exit.BAD_ARGS, "print-value-only is only for `--write-out=simple`")
        self._out = out
        self._hex = hex
        self._values_only = values_only
        self.format = format

    def refuse(self, *formats: str) -> None:
        """
        Raises:
          Failure: the format is one of these.
        """
        if self.format in formats:
            raise Failure(Exit.BAD_FEATURE, f"{self.format} not supported as output format")

    # ---- keys

    def put(self, answer: pb.PutResponse) -> None:
        self._answer(answer, self._put)

    def get(self, answer: pb.RangeResponse) -> None:
        self._answer(answer, self._get)

    def delete(self, answer: pb.DeleteRangeResponse) -> None:
        self._answer(answer, self._delete)

    def txn(self, answer: pb.TxnResponse) -> None:
        self._answer(answer, self._txn)

    def _answer(self, answer: Message, show: object) -> None:
        self.refuse("table")
        if self.format == "json":
            self._line(text.dumps(text.as_json(answer)))
        elif self.format == "protobuf":
            self._out.write(answer.SerializeToString())
        else:
            assert callable(show)
            show(answer)
        self._out.flush()

    def _put(self, answer: pb.PutResponse) -> None:
        if self.format == "simple":
            self._line("OK")
        else:
            self._header(answer.header)
        if answer.HasField("prev_kv"):
            self._kv(answer.prev_kv, "Prev")

    def _get(self, answer: pb.RangeResponse) -> None:
        fields = self.format == "fields"
        if fields:
            self._header(answer.header)
        for kv in answer.kvs:
            self._kv(kv)
        if fields:
            self._field("More", _bool(answer.more))
            self._field("Count", answer.count)

    def _delete(self, answer: pb.DeleteRangeResponse) -> None:
        if self.format == "simple":
            self._line(str(answer.deleted))
        else:
            self._header(answer.header)
            self._field("Deleted", answer.deleted)
        for kv in answer.prev_kvs:
            self._kv(kv, "Prev")

    def _txn(self, answer: pb.TxnResponse) -> None:
        if self.format == "simple":
            self._line("SUCCESS" if answer.succeeded else "FAILURE")
        else:
            self._header(answer.header)
            self._field("Succeeded", _bool(answer.succeeded))
        for op in answer.responses:
            if self.format == "simple":
                self._line("")
            which = op.WhichOneof("response")
            if which == "response_put":
                self._put(op.response_put)
            elif which == "response_range":
                self._get(op.response_range)
            elif which == "response_delete_range":
                self._delete(op.response_delete_range)
            else:
                self._txn(op.response_txn)

    def _kv(self, kv: pb.KeyValue, prefix: str = "") -> None:
        if self.format == "simple":
            if not self._values_only:
                self._raw(kv.key)
            self._raw(kv.value)
            return
        self._field(prefix + "Key", text.quote(kv.key))
        self._field(prefix + "CreateRevision", kv.create_revision)
        self._field(prefix + "ModRevision", kv.mod_revision)
        self._field(prefix + "Version", kv.version)
        self._field(prefix + "Value", text.quote(kv.value))
        self._field(prefix + "Lease", kv.lease)

    # ---- watch

    def watch(self, response: WatchResponse) -> None:
        """Events; or, of a response without any, how far things are, which etcdctl says in every format."""
        if not response.events:
            self._line(f"progress notify: {response.header.revision}")
        events = [_event(event) for event in response.events]
        self._watch(pb.WatchResponse(header=response.header, events=events))

    def watch_canceled(self, response: pb.WatchResponse | None) -> None:
        """The last response of a watch. None: the client itself made it, as etcd's does of a range that is empty."""
        said = response or pb.WatchResponse(canceled=True, header=pb.ResponseHeader())
        shown = pb.WatchResponse(canceled=True, compact_revision=said.compact_revision, header=said.header)
        self._watch(shown, by_client=response is None)

    def _watch(self, response: pb.WatchResponse, *, by_client: bool = False) -> None:
        if self.format == "json":
            shown = {
                "Header": text.as_json(response.header),
                "Events": None if by_client else [text.as_json(event) for event in response.events],
                "CompactRevision": response.compact_revision,
                "Canceled": response.canceled,
                "Created": False,
            }
            self._line(text.dumps(shown))
        elif self.format == "protobuf":
            self._out.write(response.SerializeToString())
        else:
            if self.format == "fields":
                self._header(response.header)
            for event in response.events:
                kind = "DELETE" if event.type == pb.Event.DELETE else "PUT"
                if self.format == "fields":
                    self._field("Type", kind)
                else:
                    self._line(kind)
                if event.HasField("prev_kv"):
                    self._kv(event.prev_kv, "Prev")
                self._kv(event.kv)
        self._out.flush()

    # ---- leases

    def lease_grant(self, answer: pb.LeaseGrantResponse) -> None:
        simple = f"lease {_lease(answer.ID)} granted with TTL({answer.TTL}s)"
        self._lease(answer.header, {"ID": answer.ID, "TTL": answer.TTL, "Error": answer.error}, simple)

    def lease_revoke(self, id: int, answer: pb.LeaseRevokeResponse) -> None:
        if self.format == "json":
            self._answer(answer, None)
        else:
            self._lease(answer.header, {}, f"lease {_lease(id)} revoked")

    def lease_keep_alive(self, answer: pb.LeaseKeepAliveResponse) -> None:
        simple = f"lease {_lease(answer.ID)} keepalived with TTL({answer.TTL})"
        self._lease(answer.header, {"ID": answer.ID, "TTL": answer.TTL}, simple)

    def lease_time_to_live(self, answer: pb.LeaseTimeToLiveResponse, keys: bool) -> None:
        if answer.grantedTTL == 0 and answer.TTL == -1:
            simple = f"lease {_lease(answer.ID)} already expired"
        else:
            simple = f"lease {_lease(answer.ID)} granted with TTL({answer.grantedTTL}s), remaining({answer.TTL}s)"
            if keys:
                shown = b" ".join(answer.keys).decode("utf-8", "surrogateescape")
                simple += f", attached keys([{shown}])"
        if self.format == "fields":
            self._header(answer.header)
            self._field("ID", answer.ID)
            self._field("TTL", answer.TTL)
            self._field("GrantedTTL", answer.grantedTTL)
            for key in answer.keys:
                self._field("Key", text.quote(key))
            self._out.flush()
            return
        fields = {"id": answer.ID, "ttl": answer.TTL, "granted-ttl": answer.grantedTTL}
        self._lease(
            answer.header, {**fields, "keys": [base64.b64encode(key).decode() for key in answer.keys] or None}, simple
        )

    def lease_list(self, answer: pb.LeaseLeasesResponse) -> None:
        if self.format == "fields":
            self._header(answer.header)
            for lease in answer.leases:
                self._field("ID", lease.ID)
            self._out.flush()
            return
        lines = [f"found {len(answer.leases)} leases", *(_lease(lease.ID) for lease in answer.leases)]
        self._lease(answer.header, {"leases": [{"id": lease.ID} for lease in answer.leases] or None}, "\n".join(lines))

    def _lease(self, header: pb.ResponseHeader, fields: dict[str, object], simple: str) -> None:
        """etcdctl's client flattens these answers: the header's fields stand beside the others."""
        self.refuse("table", "protobuf")
        if self.format == "json":
            flat = text.as_json(header)
            assert isinstance(flat, dict)
            self._line(text.dumps({**flat, **fields}))
        elif self.format == "fields":
            self._header(header)
            for name, content in fields.items():
                if name != "Error":
                    self._field(name, content)
        else:
            self._line(simple)
        self._out.flush()

    # ---- the cluster

    def members(self, answer: pb.MemberListResponse) -> None:
        if self.format == "json":
            self._line(text.dumps(_members_json(answer, self._hex)))
        elif self.format == "protobuf":
            self._out.write(answer.SerializeToString())
        elif self.format == "fields":
            self._header(answer.header)
            for m in answer.members:
                self._field("ID", m.ID)
                self._field("Name", text.quote(m.name.encode()))
                for url in m.peerURLs:
                    self._field("PeerURL", text.quote(url.encode()))
                for url in m.clientURLs:
                    self._field("ClientURL", text.quote(url.encode()))
                self._field("IsLearner", _bool(m.isLearner))
                self._line("")
        else:
            rows = [
                [
                    f"{m.ID:x}",
                    "started" if m.name else "unstarted",
                    m.name,
                    ",".join(m.peerURLs),
                    ",".join(m.clientURLs),
                    _bool(m.isLearner),
                ]
                for m in answer.members
            ]
            self._rows(["ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"], rows)
        self._out.flush()

    def health(self, all: Sequence[Health]) -> None:
        """The healthy ones; the caller tells of the others on stderr when the format is simple."""
        if self.format == "json":
            self._line(text.dumps([_health_json(health) for health in all]))
        elif self.format == "fields":
            for endpoint, healthy, took, error in all:
                self._field("Endpoint", text.quote(endpoint.encode()))
                self._field("Health", _bool(healthy))
                self._field("Took", text.duration(took))
                self._field("Error", error)
                self._line("")
        elif self.format == "table":
            rows = [[e, _bool(healthy), text.duration(took), error] for e, healthy, took, error in all]
            self._rows(["endpoint", "health", "took", "error"], rows)
        else:
            for endpoint, healthy, took, _ in all:
                if healthy:
                    took_text = text.duration(took)
                    self._line(f"{endpoint} is healthy: successfully committed proposal: took = {took_text}")
        self._out.flush()

    def status(self, all: Sequence[EndpointStatus]) -> None:
        if self.format == "json":
            self._line(text.dumps([{"Endpoint": e.endpoint, "Status": text.as_json(e.status)} for e in all]))
        elif self.format == "fields":
            for endpoint, status in all:
                self._status_fields(endpoint, status)
        else:
            self._rows(_STATUS_TITLES, [_status_row(endpoint, status) for endpoint, status in all])
        self._out.flush()

    def hashes(self, all: Sequence[EndpointHash]) -> None:
        if self.format == "json":
            self._line(text.dumps([{"Endpoint": e.endpoint, "HashKV": text.as_json(e.hash)} for e in all]))
        elif self.format == "fields":
            for endpoint, answer in all:
                self._header(answer.header)
                self._field("Endpoint", text.quote(endpoint.encode()))
                self._field("Hash", answer.hash)
                self._field("HashRevision", answer.hash_revision)
                self._line("")
        else:
            rows = [[endpoint, str(answer.hash), str(answer.hash_revision)] for endpoint, answer in all]
            self._rows(["endpoint", "hash", "hash_revision"], rows)
        self._out.flush()

    def alarms(self, answer: pb.AlarmResponse) -> None:
        self._answer(answer, self._alarms)

    def _alarms(self, answer: pb.AlarmResponse) -> None:
        if self.format == "fields":
            self._header(answer.header)
        for alarm in answer.alarms:
            if self.format == "simple":
                self._line(text.alarm(alarm))
                continue
            self._field("MemberID", alarm.memberID)
            self._field("AlarmType", text.alarm_name(alarm))
            self._line("")

    def _status_fields(self, endpoint: str, status: pb.StatusResponse) -> None:
        self._header(status.header)
        self._field("Version", text.quote(status.version.encode()))
        self._field("StorageVersion", text.quote(status.storageVersion.encode()))
        self._field("DBSize", status.dbSize)
        self._field("DBSizeInUse", status.dbSizeInUse)
        self._field("DBSizeQuota", status.dbSizeQuota)
        self._field("Leader", status.leader)
        self._field("IsLearner", _bool(status.isLearner))
        self._field("RaftIndex", status.raftIndex)
        self._field("RaftTerm", status.raftTerm)
        self._field("RaftAppliedIndex", status.raftAppliedIndex)
        self._field("Errors", f"[{' '.join(status.errors)}]")
        self._field("Endpoint", text.quote(endpoint.encode()))
        self._field("DowngradeTargetVersion", text.quote(status.downgradeInfo.targetVersion.encode()))
        self._field("DowngradeEnabled", _bool(status.downgradeInfo.enabled))
        self._line("")

    def snapshot_status(self, found: SnapshotStatus) -> None:
        if self.format == "json":
            names = ("hash", "revision", "totalKey", "totalSize", "version")
            self._line(text.dumps(dict(zip(names, found, strict=True))))
        elif self.format == "fields":
            for name, content in zip(("Hash", "Revision", "Keys", "Size", "Version"), found, strict=True):
                self._field(name, content)
        else:
            hash, revision, keys, size, version = found
            row = (f"{hash:x}", str(revision), str(keys), text.size(size), version)
            self._rows(("hash", "revision", "total keys", "total size", "version"), [row])
        self._out.flush()

    # ---- lines

    def _header(self, header: pb.ResponseHeader) -> None:
        self._field("ClusterID", header.cluster_id)
        self._field("MemberID", header.member_id)
        self._field("Revision", header.revision)
        self._field("RaftTerm", header.raft_term)

    def _field(self, name: str, content: object) -> None:
        self._line(f'"{name}" : {content}')

    def _rows(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if self.format == "table":
            self._line(text.table(header, rows))
        else:
            for row in rows:
                self._line(", ".join(row))

    def _raw(self, raw: bytes) -> None:
        self._out.write((text.hexed(raw).encode() if self._hex else raw) + b"\n")

    def _line(self, line: str) -> None:
        self._out.write(line.encode("utf-8", "surrogateescape") + b"\n")


def _lease(id: int) -> str:
    return f"{id:016x}"


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _event(event: Event) -> pb.Event:
    return pb.Event(
        type=pb.Event.PUT if isinstance(event, PutEvent) else pb.Event.DELETE, kv=event.kv, prev_kv=event.prev_kv
    )


def _members_json(answer: pb.MemberListResponse, hex: bool) -> object:
    shown = text.as_json(answer)
    if hex:
        header = text.as_json(answer.header)
        for name in ("cluster_id", "member_id"):
            header[name] = f"{getattr(answer.header, name):x}"
        shown["header"] = header
        shown["members"] = [{**text.as_json(m), "ID": f"{m.ID:x}"} for m in answer.members]
    return shown


def _health_json(health: Health) -> object:
    shown = {"endpoint": health.endpoint, "health": health.healthy, "took": text.duration(health.took_ns)}
    return {**shown, "error": health.error} if health.error else shown


_STATUS_TITLES = [
    "endpoint",
    "ID",
    "version",
    "storage version",
    "db size",
    "in use",
    "percentage not in use",
    "quota",
    "is leader",
    "is learner",
    "raft term",
    "raft index",
    "raft applied index",
    "errors",
    "downgrade target version",
    "downgrade enabled",
]


def _status_row(endpoint: str, s: pb.StatusResponse) -> list[str]:
    return [
        endpoint,
        f"{s.header.member_id:x}",
        s.version,
        s.storageVersion,
        text.size(s.dbSize),
        text.size(s.dbSizeInUse),
        f"{100 - s.dbSizeInUse * 100 // max(s.dbSize, 1)}%",
        text.size(s.dbSizeQuota),
        _bool(s.leader == s.header.member_id),
        _bool(s.isLearner),
        str(s.raftTerm),
        str(s.raftIndex),
        str(s.raftAppliedIndex),
        ", ".join(s.errors),
        s.downgradeInfo.targetVersion,
        _bool(s.downgradeInfo.enabled),
    ]
