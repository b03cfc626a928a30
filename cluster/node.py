"""Who this member is, in the form in which its answers say so."""

from __future__ import annotations

from collections.abc import Sequence

from cluster import version
from cluster.config import NodeConfig
from cluster.internal import Status
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from storage.codec import varint


class Node:
    """The identity of a member, and headers made from it. `store_bytes` is the store's size as of the last tick."""

    def __init__(self, config: NodeConfig) -> None:
        self.name = config.name
        self.member_id = config.member_id
        self.member_ids = frozenset(member.id for member in config.members)
        self.version, self.etcd_version = version.KVORUM, version.ETCD
        self.store_bytes = 0
        self._members = config.members
        self._fixed = b"\x08" + varint(config.cluster_id) + b"\x10" + varint(config.member_id)
        self._term, self._tail = -1, b""
        peer_urls = [member.peer_url for member in config.members if member.id == config.member_id]
        self.endpoint = pb.Endpoint(
            member_id=config.member_id, name=config.name, native=config.advertise_native, watch=config.advertise_watch
        )
        self.publication = pb.MemberPublish(
            member=pb.Member(
                ID=config.member_id,
                name=config.name,
                peerURLs=peer_urls,
                clientURLs=list(config.advertise_client_urls),
            ),
            endpoint=self.endpoint,
        )

    def header(self, revision: int, term: int) -> bytes:
        """Field 1 of every answer: ResponseHeader. Goes before the other fields' bytes."""
        if term != self._term:
            self._term, self._tail = term, b"\x20" + varint(term) if term else b""
        body = self._fixed + b"\x18" + varint(revision) + self._tail if revision else self._fixed + self._tail
        return b"\x0a" + varint(len(body)) + body

    def member_list(self, published: Sequence[pb.MemberPublish]) -> list[pb.Member]:
        """All members by id; one that hasn't published itself has neither name nor clientURLs (etcd: unstarted)."""
        known = {each.member.ID: each.member for each in published}
        return [
            known.get(member.id) or pb.Member(ID=member.id, peerURLs=[member.peer_url])
            for member in sorted(self._members)
        ]

    def hello(self, published: Sequence[pb.MemberPublish], request_bytes_max: int) -> pb.HelloResponse:
        """What a client needs to know of the cluster to use all of it."""
        return pb.HelloResponse(
            protocol=wire.PROTOCOL,
            version=self.version,
            name=self.name,
            members=[each.endpoint for each in published] or [self.endpoint],
            request_bytes_max=request_bytes_max,
        )

    def status(
        self, status: Status, applied: int, quota_bytes: int, alarms: Sequence[pb.AlarmMember]
    ) -> pb.StatusResponse:
        """etcd's Maintenance.Status. dbSize is never 0: etcdctl divides by it."""
        size = max(self.store_bytes, 1)
        return pb.StatusResponse(
            version=self.etcd_version,
            dbSize=size,
            leader=status.leader,
            raftIndex=max(status.commit, applied),
            raftTerm=status.term,
            raftAppliedIndex=applied,
            errors=[*([] if status.leader else [errors.NoLeader.text]), *map(alarm_text, alarms)],
            dbSizeInUse=size,
            storageVersion=version.ETCD,
            dbSizeQuota=quota_bytes,
            downgradeInfo=pb.DowngradeInfo(),
        )


def alarm_text(alarm: pb.AlarmMember) -> str:
    """As etcd says it in Status.errors, with the blank at the end: protobuf's text form."""
    member = f"memberID:{alarm.memberID} " if alarm.memberID else ""
    return f"{member}alarm:{alarm_name(alarm.alarm)} "


def alarm_name(type: int) -> str:
    return pb.AlarmType.Name(type) if type in pb.AlarmType.values() else str(type)
