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
from kvorum import txn, verbs
from kvorum.lease import Lease
from kvorum.recipes.line import Place, PlaceLost, enter, place_of
from kvorum.recipes.steps import Grant, KeptLease, Steps, Watched, end, run
from kvorum.results import DeleteEvent, WatchResponse
from kvorum.sync import Client
from kvorum.txn import Key, prefix_range, to_bytes


class NotLeading(Exception):
    """Nobody leads, or not we: the lease ended, or the leadership was given up."""


class Leader(NamedTuple):
    """`value` is what the leader says of itself; `token` grows from leader to leader."""

    key: bytes
    value: bytes
    token: int


class ElectionCore:
    """A candidate of either client, and what it sees: what it knows and decides."""

    def __init__(self, name: Key, ttl: int, lease: KeptLease | None) -> None:
        self._prefix, self._ttl, self._given = place_of(name), ttl, lease
        self._place: Place | None = None
        self._lease: KeptLease | None = None

    def _campaign(self, value: Key, timeout: float | None) -> Steps[bool]:
        """However it ends without the leadership, our place is given up; unless for lack of time, so is our lease."""
        if self._lease is None or self._lease.lost:
            self._lease = self._given or (yield Grant(self._ttl))
        place: Place | None = None
        won = stopped = False
        try:
            place = yield from enter(self._prefix, self._lease, value)
            if place.value != to_bytes(value):  # it had stood before, with another
                yield from _say(place, value)
            won = yield from place.wait(timeout)
        except PlaceLost as lost:
            stopped = True
            raise NotLeading(str(lost)) from None
        except BaseException:
            stopped = True
            raise
        finally:
            if not won:
                self._place = None
                if stopped and self._given is None:
                    yield from self._end()
                elif place is not None:
                    yield from place.leave()
        if won:
            self._place = place
        return won

    def _proclaim(self, value: Key) -> Steps[None]:
        place = self._standing()
        try:
            yield from _say(place, value)
        except PlaceLost:
            self._place = None
            raise NotLeading("the lease has ended") from None

    def _resign(self) -> Steps[None]:
        place, self._place = self._place, None
        if place is not None:
            yield from place.leave()

    def _close(self) -> Steps[None]:
        try:
            yield from self._resign()
        finally:
            yield from self._end()

    def _end(self) -> Steps[None]:
        lease, self._lease = self._lease, None
        if lease is not None and self._given is None:
            yield from end(lease)

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

    def _standing(self) -> Place:
        if self._place is None:
            raise NotLeading("not elected")
        return self._place

    def _look(self) -> verbs.Ask[pb.RangeResponse]:
        """The leader's key, if there is a leader."""
        return verbs.get_prefix_response(self._prefix, limit=1, sort_order="ascend", sort_target="create")

    def _await_leader(self) -> Steps[pb.RangeResponse]:
        """Who leads now, or will next."""
        key, end = prefix_range(self._prefix)
        while True:
            found: pb.RangeResponse = yield self._look()
            if found.kvs:
                return found
            start = found.header.revision + 1
            yield Watched(key, None, {"range_end": end, "start_revision": start, "filters": ["nodelete"]})


class Election(ElectionCore):
    """Args as those of Lock: `name`, where all candidates meet; `ttl`, how soon a dead leader is replaced."""

    def __init__(self, client: Client, name: Key, ttl: int = 60, *, lease: Lease | None = None) -> None:
        super().__init__(name, ttl, lease)
        self._client = client

    def campaign(self, value: Key, timeout: float | None = None) -> bool:
        """Stand, and wait until we lead; False if we didn't within `timeout` seconds (then we stand no longer).

        Raises NotLeading: the lease ended meanwhile.
        """
        return run(self._client, self._campaign(value, timeout))

    def proclaim(self, value: Key) -> None:
        """Say something else. Raises NotLeading."""
        run(self._client, self._proclaim(value))

    def resign(self) -> None:
        """Let the next one lead. Nothing happens if we don't."""
        run(self._client, self._resign())

    def leader(self) -> Leader | None:
        """Who leads now; None if nobody does."""
        return leader_of(self.leader_response())

    def leader_response(self) -> pb.RangeResponse:
        """Like leader(), as the range that was read: of one key or none."""
        return self._client.ask(self._look())

    def observe(self) -> Iterator[Leader]:
        """Whoever leads, now and from now on, and whatever the leader says anew. Never ends by itself.

        Each that led for a while is told of, in order; not one that came and went while nobody was looking.
        """
        for response in self.observe_response():
            yield told(response.kvs[0])

    def observe_response(self) -> Iterator[pb.RangeResponse]:
        """Like observe(), with the header that each was learned with; one key each."""
        while True:
            found = run(self._client, self._await_leader())
            yield found
            responses, cancel = self._client.watch_response(found.kvs[0].key, start_revision=found.header.revision + 1)
            try:
                for response in responses:
                    said, gone = said_in(response)
                    yield from said
                    if gone:
                        break
            finally:
                cancel()

    def close(self) -> None:
        """Resign, and end the lease if it is our own."""
        run(self._client, self._close())

    def __enter__(self) -> Election:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _say(place: Place, value: Key) -> Steps[None]:
    """Raises PlaceLost."""
    done, _ = yield verbs.transaction([place.is_mine], [txn.put(place.key, value, place.lease)])
    yield None
    if not done:
        raise PlaceLost(f"{place.key!r} is gone")


def said_in(response: WatchResponse) -> tuple[list[pb.RangeResponse], bool]:
    """What a leader has said anew, each as a range of its key, and whether it leads no more."""
    said: list[pb.RangeResponse] = []
    for event in response.events:
        if isinstance(event, DeleteEvent):
            return said, True
        said.append(pb.RangeResponse(header=response.header, kvs=[event.kv]))
    return said, False


def leader_of(found: pb.RangeResponse) -> Leader | None:
    return told(found.kvs[0]) if found.kvs else None


def told(kv: pb.KeyValue) -> Leader:
    return Leader(kv.key, kv.value, kv.create_revision)
