"""Locks and elections as etcd's server does them for its clients: what to ask, what to wait for, what to clean up.

    everybody's key is  name/<lease in hex>; who has the smallest create revision under name/ holds the lock, or leads
    lock, campaign:     put mine ──▶ wait until the newest one before mine is deleted ──▶ again, until there is none

A recipe is a generator. It yields a step and is sent what came of it (cluster/recipecalls.py does that):

    Ask      a call to apply: its response; a refusal is raised, as Unknown with its bare text, which is how etcd does
    Watch    the next events of a range from a revision on; a response that is canceled says that those are compacted
    More     the next events of the same watch, which ends with any other step but Tell
    Tell     a message for the client, one of many
    Reply    the answer, always the last step of all

Gone is raised at any step but Ask once nobody waits for the answer any more, and only once: what is asked on the way
out is still done. A key that this call has put is deleted then, and whenever the call fails; it is deleted by its
create revision, so never that of a later call. It stays where nobody can know whether it was put (apply was lost with
the answer), where it was there before and held the lock already, and if this process dies: then until its lease ends.

Two things are done better than by etcd 3.5. A campaign whose key is gone when its turn comes (the lease has ended
meanwhile) is not told that it leads. Observe and waiting go on across a compaction. Pure.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.errors import Code
from kvorum.wire import Method

ORPHAN_SECONDS = 60
"""The lease of a lock that was asked for without one. Nobody keeps it alive."""


class Ask(NamedTuple):
    method: Method
    request: Message


class Watch(NamedTuple):
    key: bytes
    range_end: bytes
    start: int


class More(NamedTuple):
    pass


class Tell(NamedTuple):
    message: Message


class Reply(NamedTuple):
    message: Message


class Gone(Exception):
    """The client has gone away, or its deadline has passed."""


T = TypeVar("T")
Step = Ask | Watch | More | Tell | Reply
Steps = Generator[Step, Any, T]


def failure(text: str) -> errors.KvorumError:
    return errors.KvorumError(text, Code.UNKNOWN)


# ---- v3lockpb.Lock


def lock(request: pb.LockRequest) -> Steps[None]:
    lease = yield from _lease(request.lease)
    prefix = request.name + b"/"
    key = _key(prefix, lease)
    joined: pb.TxnResponse = yield Ask(Method.TXN, _join(key, b"", lease, also=_first(prefix)))
    mine = _created(joined)
    owner = joined.responses[1].response_range.kvs
    held = not owner or owner[0].create_revision == mine
    header = joined.header
    try:
        if not held:
            yield from _turn(prefix, mine)
            kept: pb.RangeResponse = yield Ask(Method.RANGE, pb.RangeRequest(key=key))
            if not kept.kvs:
                raise failure("mutex: session is expired")
            header = kept.header
        yield Reply(pb.LockResponse(header=header, key=key))
    except (Gone, errors.KvorumError):
        if joined.succeeded or not held:
            yield from _leave(key, mine)
        raise


def unlock(request: pb.UnlockRequest) -> Steps[None]:
    done: pb.DeleteRangeResponse = yield Ask(Method.DELETE_RANGE, pb.DeleteRangeRequest(key=request.key))
    yield Reply(pb.UnlockResponse(header=done.header))


# ---- v3electionpb.Election


def campaign(request: pb.CampaignRequest) -> Steps[None]:
    lease = yield from _lease(request.lease)
    prefix = request.name + b"/"
    key = _key(prefix, lease)
    joined: pb.TxnResponse = yield Ask(Method.TXN, _join(key, request.value, lease))
    mine = _created(joined)
    led = False
    try:
        if not joined.succeeded and joined.responses[0].response_range.kvs[0].value != request.value:
            yield from _put(key, mine, request.value, lease)
        waited = yield from _turn(prefix, mine)
        if waited:
            kept: pb.RangeResponse = yield Ask(Method.RANGE, pb.RangeRequest(key=key))
            if not kept.kvs or kept.kvs[0].create_revision != mine:
                raise _not_leader()
        led = not (joined.succeeded or waited)
        leader = pb.LeaderKey(name=request.name, key=key, rev=mine, lease=lease)
        yield Reply(pb.CampaignResponse(header=joined.header, leader=leader))
    except (Gone, errors.KvorumError):
        if not led:
            yield from _leave(key, mine)
        raise


def proclaim(request: pb.ProclaimRequest) -> Steps[None]:
    leader = _leader_of(request)
    lease = yield from _lease(leader.lease)
    done = yield from _put(leader.key, leader.rev, request.value, lease)
    yield Reply(pb.ProclaimResponse(header=done.header))


def resign(request: pb.ResignRequest) -> Steps[None]:
    leader = _leader_of(request)
    yield from _lease(leader.lease)
    done = yield from _leave(leader.key, leader.rev)
    yield Reply(pb.ResignResponse(header=done.header))


def leader(request: pb.LeaderRequest) -> Steps[None]:
    found: pb.RangeResponse = yield Ask(Method.RANGE, _first(request.name + b"/"))
    if not found.kvs:
        raise failure("election: no leader")
    yield Reply(pb.LeaderResponse(header=found.header, kv=found.kvs[0]))


def observe(request: pb.LeaderRequest) -> Steps[None]:
    """Who leads, and every change of that, for ever. A value that a leader had only while another led is not told."""
    prefix = request.name + b"/"
    while True:
        found: pb.RangeResponse = yield Ask(Method.RANGE, _first(prefix))
        if found.kvs:
            header, kv = found.header, found.kvs[0]
        else:
            first = yield from _first_put(prefix, found.header.revision + 1)
            if first is None:
                continue
            header, kv = first
        yield Tell(pb.LeaderResponse(header=header, kv=kv))
        yield from _follow(kv.key, header.revision + 1)


def _first_put(prefix: bytes, start: int) -> Steps[tuple[pb.ResponseHeader, pb.KeyValue] | None]:
    """Wait for a key under `prefix`. None: look again."""
    seen: pb.WatchResponse = yield Watch(prefix, _after(prefix), start)
    while not seen.canceled:
        for event in seen.events:
            if event.type == pb.Event.PUT:
                seen.header.revision = event.kv.mod_revision
                return seen.header, event.kv
        seen = yield More()
    return None


def _follow(key: bytes, start: int) -> Steps[None]:
    """Tell what is put at `key`, until it is deleted."""
    seen: pb.WatchResponse = yield Watch(key, b"", start)
    while not seen.canceled:
        for event in seen.events:
            if event.type == pb.Event.DELETE:
                return
            yield Tell(pb.LeaderResponse(header=seen.header, kv=event.kv))
        seen = yield More()


# ---- parts


def _lease(id: int) -> Steps[int]:
    if id:
        return id
    granted: pb.LeaseGrantResponse = yield Ask(Method.LEASE_GRANT, pb.LeaseGrantRequest(TTL=ORPHAN_SECONDS))
    return granted.ID


def _key(prefix: bytes, lease: int) -> bytes:
    return prefix + b"%x" % lease


def _after(prefix: bytes) -> bytes:
    """The end of a prefix that ends in a slash."""
    return prefix[:-1] + b"0"


def _first(prefix: bytes) -> pb.RangeRequest:
    return pb.RangeRequest(
        key=prefix,
        range_end=_after(prefix),
        limit=1,
        sort_order=pb.RangeRequest.ASCEND,
        sort_target=pb.RangeRequest.CREATE,
    )


def _is(key: bytes, create_revision: int) -> pb.Compare:
    return pb.Compare(key=key, target=pb.Compare.CREATE, result=pb.Compare.EQUAL, create_revision=create_revision)


def _join(key: bytes, value: bytes, lease: int, also: pb.RangeRequest | None = None) -> pb.TxnRequest:
    put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))
    get = pb.RequestOp(request_range=pb.RangeRequest(key=key))
    more = [pb.RequestOp(request_range=also)] if also is not None else []
    return pb.TxnRequest(compare=[_is(key, 0)], success=[put, *more], failure=[get, *more])


def _created(joined: pb.TxnResponse) -> int:
    """The create revision of the key that was put, or was there."""
    if joined.succeeded:
        return int(joined.header.revision)
    return int(joined.responses[0].response_range.kvs[0].create_revision)


def _turn(prefix: bytes, mine: int) -> Steps[bool]:
    """Wait until no key under `prefix` is older than `mine`. Returns whether there was one."""
    waited = False
    newest = pb.RangeRequest(
        key=prefix,
        range_end=_after(prefix),
        limit=1,
        sort_order=pb.RangeRequest.DESCEND,
        sort_target=pb.RangeRequest.CREATE,
        max_create_revision=mine - 1,
    )
    while True:
        found: pb.RangeResponse = yield Ask(Method.RANGE, newest)
        if not found.kvs:
            return waited
        waited = True
        yield from _deleted(found.kvs[0].key, found.header.revision + 1)


def _deleted(key: bytes, start: int) -> Steps[None]:
    """Wait until `key` is deleted, or what happened to it is compacted: then look again."""
    seen: pb.WatchResponse = yield Watch(key, b"", start)
    while not seen.canceled and all(event.type != pb.Event.DELETE for event in seen.events):
        seen = yield More()


def _put(key: bytes, created: int, value: bytes, lease: int) -> Steps[pb.TxnResponse]:
    put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))
    done: pb.TxnResponse = yield Ask(Method.TXN, pb.TxnRequest(compare=[_is(key, created)], success=[put]))
    if not done.succeeded:
        raise _not_leader()
    return done


def _leave(key: bytes, created: int) -> Steps[pb.TxnResponse]:
    delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
    done: pb.TxnResponse = yield Ask(Method.TXN, pb.TxnRequest(compare=[_is(key, created)], success=[delete]))
    return done


def _leader_of(request: pb.ProclaimRequest | pb.ResignRequest) -> pb.LeaderKey:
    if not request.HasField("leader"):
        raise failure('"leader" field must be provided')
    return request.leader


def _not_leader() -> errors.KvorumError:
    return failure("election: not leader")
