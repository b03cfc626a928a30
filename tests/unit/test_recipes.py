"""Locks and elections with every answer in the test's hand: who is told what when something is lost, late or
cancelled, and that nothing of a call is left. What goes well is compared with etcd in tests/system/test_locks.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from cluster import recipes
from cluster.gatewayd import LOST
from cluster.links import Lost, Streamed
from cluster.recipecalls import RecipeCalls
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.errors import Code
from kvorum.wire import Kind, Method
from native import edge
from tests.unit.test_gatewayd import CALL, Said, World, local

CLIENT = 5 << 32 | 1
HEADER = pb.ResponseHeader(cluster_id=1, member_id=2, revision=10, raft_term=3)


class Desk:
    """A gateway whose apply and watch process are the test."""

    def __init__(self) -> None:
        self.calls = RecipeCalls(self, LOST)
        self.asked: list[tuple[int, Any, Callable[[int, bytes], None]]] = []
        self.watches: dict[int, tuple[Any, Callable[[int, bytes], None]]] = {}
        self.said: list[Any] = []
        self.pauses: list[tuple[int, bool]] = []
        self._opened = 0

    def ask(self, method: int, request: Message | bytes, then: Callable[[int, bytes], None]) -> None:
        self.asked.append((method, request, then))

    def watch(self, request: Message, then: Callable[[int, bytes], None]) -> int:
        self._opened += 1
        self.watches[self._opened] = request, then
        return self._opened

    def unwatch(self, id: int) -> None:
        del self.watches[id]

    def pause(self, id: int, paused: bool) -> None:
        assert id in self.watches
        self.pauses.append((id, paused))

    def reply(self, id: int, response: Message | bytes) -> None:
        self.said.append(response)

    def send(self, id: int, payload: bytes) -> None:
        self.said.append(pb.LeaderResponse.FromString(payload))

    def end(self, id: int, status: int = 0, text: str = "") -> None:
        self.said.append((status, text))

    # ---- what the test does

    def begin(self, recipe: recipes.Steps[None]) -> None:
        self.calls.begin(CLIENT, recipe)

    def answer(self, response: Message) -> Any:
        """Answer the oldest question; returns what was asked."""
        _, request, then = self.asked.pop(0)
        then(0, response.SerializeToString())
        return request

    def refuse(self, status: int, text: str) -> None:
        self.asked.pop(0)[2](status, text.encode())

    def see(self, **response: Any) -> None:
        ((_, then),) = self.watches.values()
        then(0, pb.WatchResponse(header=HEADER, **response).SerializeToString())

    def deletes(self, key: bytes, created: int) -> None:
        """The one question left is the deletion of that key, which is done."""
        ((method, txn, _),) = self.asked
        assert method == Method.TXN
        assert [(c.key, c.create_revision) for c in txn.compare] == [(key, created)]
        assert [op.request_delete_range.key for op in txn.success] == [key]
        self.answer(pb.TxnResponse(header=HEADER, succeeded=True))

    def clean(self) -> bool:
        return not (self.asked or self.watches or len(self.calls))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def joined(mine: int, owner: int | None, *, was_there: bool = False, value: bytes = b"") -> pb.TxnResponse:
    """The answer to the first transaction: my key's create revision, and the smallest one."""
    found = pb.TxnResponse(header=HEADER, succeeded=not was_there)
    found.header.revision = 20 if was_there else mine
    first = found.responses.add()
    if was_there:
        first.response_range.kvs.add(key=b"n/a", create_revision=mine, value=value)
    else:
        first.response_put.SetInParent()
    if owner is not None:
        found.responses.add().response_range.kvs.add(key=b"n/1", create_revision=owner)
    return found


def ranged(*kvs: tuple[bytes, int]) -> pb.RangeResponse:
    return pb.RangeResponse(header=HEADER, kvs=[pb.KeyValue(key=key, create_revision=made) for key, made in kvs])


def deletion() -> list[pb.Event]:
    return [pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"n/1", mod_revision=11))]


LOCK = pb.LockRequest(name=b"n", lease=10)
CAMPAIGN = pb.CampaignRequest(name=b"n", lease=10, value=b"v")


def waiting(desk: Desk) -> None:
    """A lock that waits for the one before it."""
    desk.begin(recipes.lock(LOCK))
    desk.answer(joined(9, 4))
    newest = desk.answer(ranged((b"n/1", 4)))
    assert (newest.key, newest.range_end, newest.max_create_revision, newest.limit) == (b"n/", b"n0", 8, 1)
    ((watch, _),) = desk.watches.values()
    assert (watch.create_request.key, watch.create_request.start_revision) == (b"n/1", 11)


def test_a_lock_waits_for_every_one_before_it(desk: Desk) -> None:
    waiting(desk)
    desk.see(created=True)
    desk.see(events=[pb.Event(kv=pb.KeyValue(key=b"n/1", mod_revision=10))])
    assert not desk.asked
    desk.see(events=deletion())
    assert not desk.watches
    desk.answer(ranged((b"n/0", 3)))  # there is one more
    desk.see(events=deletion())
    desk.answer(ranged())
    assert desk.answer(ranged((b"n/a", 9))).key == b"n/a"
    assert desk.said == [pb.LockResponse(header=HEADER, key=b"n/a")]
    assert desk.clean()


def test_what_apply_refuses_is_told_as_unknown(desk: Desk) -> None:
    desk.begin(recipes.lock(LOCK))
    desk.refuse(Code.NOT_FOUND, "etcdserver: requested lease not found")
    assert desk.said == [(Code.UNKNOWN, "etcdserver: requested lease not found")]
    assert desk.clean()


def test_a_call_whose_answer_is_lost_with_apply_is_told_so_and_leaves_the_key_alone(desk: Desk) -> None:
    """It may be of an earlier call, and hold the lock."""
    desk.begin(recipes.lock(LOCK))
    desk.refuse(LOST.code, LOST.text)
    assert desk.said == [(Code.UNAVAILABLE, LOST.text)]
    assert desk.clean()


def test_a_wait_that_is_lost_with_the_watch_process_gives_up_its_place(desk: Desk) -> None:
    waiting(desk)
    ((_, then),) = desk.watches.values()
    desk.watches.clear()
    then(LOST.code, LOST.text.encode())
    desk.deletes(b"n/a", 9)
    assert desk.said == [(Code.UNAVAILABLE, LOST.text)]
    assert desk.clean()


def test_a_watch_that_is_refused_ends_the_wait_with_the_reason(desk: Desk) -> None:
    waiting(desk)
    desk.see(created=True, canceled=True, cancel_reason="no")
    desk.deletes(b"n/a", 9)
    assert desk.said == [(Code.UNKNOWN, "no")]
    assert desk.clean()


def test_a_compaction_while_it_waits_makes_it_look_again(desk: Desk) -> None:
    waiting(desk)
    desk.see(canceled=True, compact_revision=15)
    assert not desk.watches
    desk.answer(ranged((b"n/1", 4)))
    desk.see(events=deletion())
    desk.answer(ranged())
    desk.answer(ranged((b"n/a", 9)))
    assert desk.said == [pb.LockResponse(header=HEADER, key=b"n/a")]


def test_cancelled_while_it_waits_its_key_is_deleted(desk: Desk) -> None:
    waiting(desk)
    desk.calls.cancel(CLIENT)
    assert not desk.watches
    assert len(desk.calls) == 1
    desk.deletes(b"n/a", 9)
    assert not desk.said
    assert desk.clean()


def test_cancelled_before_it_is_known_whether_it_has_the_lock_the_key_it_put_is_deleted(desk: Desk) -> None:
    desk.begin(recipes.lock(LOCK))
    desk.calls.cancel(CLIENT)
    desk.answer(joined(9, 9))
    desk.deletes(b"n/a", 9)
    assert not desk.said
    assert desk.clean()


def test_cancelled_asking_again_for_a_lock_that_it_has_the_lock_stays(desk: Desk) -> None:
    desk.begin(recipes.lock(LOCK))
    desk.calls.cancel(CLIENT)
    desk.answer(joined(9, 9, was_there=True))
    assert not desk.said
    assert desk.clean()


def test_cancelled_between_its_turn_and_its_answer(desk: Desk) -> None:
    waiting(desk)
    desk.see(events=deletion())
    desk.calls.cancel(CLIENT)
    desk.answer(ranged())
    desk.answer(ranged((b"n/a", 9)))
    desk.deletes(b"n/a", 9)
    assert not desk.said
    assert desk.clean()


def test_cancelled_and_then_apply_is_lost(desk: Desk) -> None:
    waiting(desk)
    desk.calls.cancel(CLIENT)
    desk.refuse(LOST.code, LOST.text)
    assert not desk.said
    assert desk.clean()


def test_cancelled_before_it_has_a_lease(desk: Desk) -> None:
    desk.begin(recipes.lock(pb.LockRequest(name=b"n")))
    desk.calls.cancel(CLIENT)
    assert desk.answer(pb.LeaseGrantResponse(ID=10)).TTL == 60
    desk.answer(joined(9, 4))
    desk.answer(ranged((b"n/1", 4)))
    assert not desk.watches
    desk.deletes(b"n/a", 9)
    assert desk.clean()


def test_a_campaign_whose_key_is_gone_when_its_turn_comes_does_not_lead(desk: Desk) -> None:
    """etcd 3.5.1 says that it leads."""
    desk.begin(recipes.campaign(CAMPAIGN))
    desk.answer(joined(9, None))
    desk.answer(ranged((b"n/1", 4)))
    desk.see(events=deletion())
    desk.answer(ranged())
    desk.answer(ranged())
    desk.deletes(b"n/a", 9)
    assert desk.said == [(Code.UNKNOWN, "election: not leader")]
    assert desk.clean()


def test_a_leader_that_campaigns_again_and_goes_away_still_leads(desk: Desk) -> None:
    desk.begin(recipes.campaign(CAMPAIGN))
    desk.answer(joined(9, None, was_there=True, value=b"v"))
    desk.answer(ranged())
    assert [said.header.revision for said in desk.said] == [20]
    assert desk.clean()


def test_observing_goes_on_across_a_compaction_and_ends_with_its_client(desk: Desk) -> None:
    desk.begin(recipes.observe(pb.LeaderRequest(name=b"n")))
    desk.answer(ranged())
    ((watch, _),) = desk.watches.values()
    assert (watch.create_request.key, watch.create_request.range_end) == (b"n/", b"n0")
    desk.see(canceled=True, compact_revision=30)
    desk.answer(ranged((b"n/1", 4)))
    desk.see(canceled=True, compact_revision=40)
    desk.answer(ranged((b"n/1", 4)))
    desk.see(events=[pb.Event(kv=pb.KeyValue(key=b"n/1", mod_revision=12, value=b"2"))])
    assert [said.kv.value for said in desk.said] == [b"", b"", b"2"]
    desk.calls.cancel(CLIENT)
    assert desk.clean()


def test_a_gateway_that_stops_ends_calls_and_has_them_leave_their_queues(desk: Desk) -> None:
    waiting(desk)
    desk.calls.stop()
    assert desk.said == [(Code.UNAVAILABLE, "etcdserver: server stopped")]
    desk.deletes(b"n/a", 9)
    assert desk.clean()


def test_an_observer_that_does_not_read_is_paused_also_when_another_leads(desk: Desk) -> None:
    desk.begin(recipes.observe(pb.LeaderRequest(name=b"n")))
    desk.answer(ranged((b"n/1", 4)))
    desk.calls.block(CLIENT, True)
    desk.see(events=deletion())  # it was on its way
    desk.answer(ranged((b"n/2", 5)))
    desk.calls.block(CLIENT, False)
    desk.calls.block(CLIENT + 2, True)
    assert desk.pauses == [(1, True), (2, True), (2, False)]


# ---- through the gateway


def locking(world: World) -> int:
    """A client that waits; the id of its watch."""
    world.event(edge.CALL, CALL, method=local("/v3lockpb.Lock/Lock"), payload=LOCK.SerializeToString())
    world.applied(world.link.apply[-1], joined(9, 4).SerializeToString())
    world.applied(world.link.apply[-1], ranged((b"n/1", 4)).SerializeToString())
    opened, created = world.link.watch
    assert (opened.kind, created.kind, opened.id) == (Kind.STREAM_OPEN, Kind.STREAM_MESSAGE, created.id)
    return opened.id


def test_events_of_the_gateways_own_watches_are_not_the_edges(world: World) -> None:
    id = locking(world)
    seen = pb.WatchResponse(header=HEADER, events=deletion()).SerializeToString()
    world.arrives(Streamed(wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, id, seen)))
    assert world.link.watch[-1] == wire.Record(Method.WATCH, Kind.STREAM_CLOSE, 0, id, b"")
    world.applied(world.link.apply[-1], ranged().SerializeToString())
    world.applied(world.link.apply[-1], ranged((b"n/a", 9)).SerializeToString())
    answer = pb.LockResponse(header=HEADER, key=b"n/a").SerializeToString()
    assert world.front.said == {CALL: [Said(edge.REPLY, 0, answer)]}
    world.arrives(Streamed(wire.encode(Method.WATCH, Kind.STREAM_MESSAGE, 0, id, seen)))  # it was on its way
    assert len(world.front.said[CALL]) == 1


@pytest.mark.parametrize(("kind", "id"), [(edge.CANCELLED, CALL), (edge.CLOSED, 5 << 32)])
def test_a_client_that_goes_away_leaves_the_queue(world: World, kind: int, id: int) -> None:
    watch = locking(world)
    world.event(kind, id, status=1)
    assert world.link.watch[-1] == wire.Record(Method.WATCH, Kind.STREAM_CLOSE, 0, watch, b"")
    leaving = pb.TxnRequest.FromString(world.link.apply[-1].payload)
    assert leaving.success[0].request_delete_range.key == b"n/a"
    world.applied(world.link.apply[-1], pb.TxnResponse(succeeded=True).SerializeToString())
    assert not world.front.said
    assert not len(world.gateway.recipes)


def test_a_watch_process_that_dies_takes_the_wait_along(world: World) -> None:
    locking(world)
    world.arrives(Lost("watch"))
    assert len(world.link.watch) == 2, "there is no stream to be closed"
    world.applied(world.link.apply[-1], pb.TxnResponse(succeeded=True).SerializeToString())
    assert world.front.said == {CALL: [Said(edge.END, LOST.code, LOST.text.encode())]}


@pytest.fixture
def world() -> World:
    return World()
