"""An election: many would lead, one does, and everyone can see who.

    with Election(client, "leader", ttl=5) as election:
        election.campaign("ada")          # returns when we lead
        while election.leads: ...
                                          # resigns at the end

The leader is who came first of those that are still there (kvorum.recipes.line). Whether it still is, only the cluster
knows: what a leader does must hold its `mandate` in the same transaction, or be such that two may do it for a moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from kvorum import etcd_pb2 as pb
from kvorum import txn
from kvorum.lease import Lease
from kvorum.recipes.line import Place, PlaceLost, place_of
from kvorum.results import DeleteEvent
from kvorum.sync import Client
from kvorum.txn import Key, prefix_range


class NotLeading(Exception):
    """Nobody leads, or not we: the lease ended, or the leadership was given up."""


class Leader(NamedTuple):
    """`value` is what the leader says of itself; `token` grows from leader to leader."""

    key: bytes
    value: bytes
    token: int


class Election:
    """Args as those of Lock: `name`, where all candidates meet; `ttl`, how soon a dead leader is replaced."""

    def __init__(self, client: Client, name: Key, ttl: int = 60, *, lease: Lease | None = None) -> None:
        self._client, self._prefix, self._ttl, self._given = client, place_of(name), ttl, lease
        self._place: Place | None = None
        self._lease: Lease | None = None

    def campaign(self, value: Key, timeout: float | None = None) -> bool:
        """Stand, and wait until we lead; False if we didn't within `timeout` seconds (then we stand no longer).

        Raises NotLeading: the lease ended meanwhile.
        """
        if self._lease is None or self._lease.lost:
            self._lease = self._given or self._client.lease(self._ttl)
        place = Place(self._client, self._prefix, self._lease, value)
        won = False
        try:
            won = place.wait(timeout)
        except PlaceLost as lost:
            raise NotLeading(str(lost)) from None
        finally:
            if not won:
                place.leave()
        if won:
            self._place = place
            self.proclaim(value)  # in case it had stood before with another
        return won

    def proclaim(self, value: Key) -> None:
        """Say something else. Raises NotLeading."""
        place = self._standing()
        done, _ = self._client.transaction([place.is_mine], [txn.put(place.key, value, place.lease)])
        if not done:
            self._place = None
            raise NotLeading("the lease has ended")

    def resign(self) -> None:
        """Let the next one lead. Nothing happens if we don't."""
        place, self._place = self._place, None
        if place is not None:
            place.leave()

    @property
    def leads(self) -> bool:
        """Whether we were elected and the lease is not known to have ended."""
        return self._place is not None and not self._place.lease.lost

    @property
    def token(self) -> int:
        return self._standing().revision

    @property
    def mandate(self) -> pb.Compare:
        """The condition that we lead: for a transaction that only the leader may do."""
        return self._standing().is_mine

    def leader(self) -> Leader | None:
        """Who leads now; None if nobody does."""
        found = self.leader_response().kvs
        return _leader(found[0]) if found else None

    def leader_response(self) -> pb.RangeResponse:
        """Like leader(), as the range that was read: of one key or none."""
        return self._client.get_prefix_response(self._prefix, limit=1, sort_order="ascend", sort_target="create")

    def observe(self) -> Iterator[Leader]:
        """Whoever leads, now and from now on, and whatever the leader says anew. Never ends by itself.

        Each that led for a while is told of, in order; not one that came and went while nobody was looking.
        """
        for response in self.observe_response():
            yield _leader(response.kvs[0])

    def observe_response(self) -> Iterator[pb.RangeResponse]:
        """Like observe(), with the header that each was learned with; one key each."""
        while True:
            found = self.leader_response()
            if not found.kvs:
                self._await_candidate(found.header.revision)
                continue
            leader = found.kvs[0]
            yield pb.RangeResponse(header=found.header, kvs=[leader])
            responses, cancel = self._client.watch_response(leader.key, start_revision=found.header.revision + 1)
            try:
                for response in responses:
                    gone = False
                    for event in response.events:
                        gone = isinstance(event, DeleteEvent)
                        if gone:
                            break
                        yield pb.RangeResponse(header=response.header, kvs=[event.kv])
                    if gone:
                        break
            finally:
                cancel()

    def _await_candidate(self, revision: int) -> None:
        key, end = prefix_range(self._prefix)
        self._client.watch_once_response(key, None, range_end=end, start_revision=revision + 1, filters=["nodelete"])

    def _standing(self) -> Place:
        if self._place is None:
            raise NotLeading("not elected")
        return self._place

    def close(self) -> None:
        """Resign, and end the lease if it is our own."""
        self.resign()
        if self._lease is not None and self._given is None:
            self._lease.__exit__(None, None, None)
        self._lease = None

    def __enter__(self) -> Election:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _leader(kv: pb.KeyValue) -> Leader:
    return Leader(kv.key, kv.value, kv.create_revision)
