"""Who this member is, in the form in which its answers say so."""

from __future__ import annotations

from collections.abc import Sequence

from cluster import version
from cluster.config import NodeConfig
from kvorum import etcd_pb2 as pb
from storage.codec import varint


class Node:
    """The identity of a member, and headers made from it. `store_bytes` is the store's size as of the last tick."""

    def __init__(self, config: NodeConfig) -> None:
        self.name = config.name
        self.member_id = config.member_id
        self.member_ids = frozenset(id for id, _, _ in config.members)
        self.version, self.etcd_version = version.KVORUM, version.ETCD
        self.store_bytes = 0
        self._members = config.members
        self._fixed = b"\x08" + varint(config.cluster_id) + b"\x10" + varint(config.member_id)
        self._term, self._tail = -1, b""
        peer_urls = [url.replace("tcp://", "http://") for id, _, url in config.members if id == config.member_id]
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
        """All members by id; one that has not yet published itself has neither name nor clientURLs (etcd: unstarted)."""
        known = {each.member.ID: each.member for each in published}
        return [
            known.get(id) or pb.Member(ID=id, peerURLs=[url.replace("tcp://", "http://")])
            for id, _, url in sorted(self._members)
        ]
