"""Alarms as they are agreed upon: who has raised which, and what is refused while one stands.

    m | alarm/ | type u32 | member u64     big-endian     -> empty: this member's alarm of this type stands

    NOSPACE   of any member: what adds to the store is refused (puts, transactions that may put, leases)
    CORRUPT   of any member: whatever changes keys, leases or history is refused
    others    stand and are listed, and refuse nothing

An alarm is raised and taken back by an entry of the log and by nothing else, and it is an entry of the log that it
refuses: so all members say yes and no to the same requests, and who was told that an alarm is gone can write anywhere.
Which member raises NOSPACE, and when, is its own business (cluster/quota.py): sizes of stores differ, and nothing here
looks at one.

Why a crash between any two steps is harmless. What raised an alarm is proposed and lost: nobody was told of an alarm,
and the next request that finds no room raises it. It is in the log, and not applied: then it is applied before
anything that is behind it in the log. It is applied, and the batch with it is lost: the applied index is in the same
batch (storage.turn), so the entry comes again. Raising one that stands, and taking back one that doesn't, changes
nothing, so a copy is harmless, too. One that stands stays until somebody takes it back, whatever is started anew
meanwhile: that much is etcd's, and an operator's decision.

`Alarms` holds what the last commit left behind; `Changes` is what a turn has done since. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from kvorum import errors
from kvorum import etcd_pb2 as pb
from storage import requests
from storage.codec import field
from storage.engine import Batch, Engine

_ALARM, _ALARM_END = b"malarm/", b"malarm0"
_KEY = struct.Struct(">IQ")
_MASK = (1 << 32) - 1

NOSPACE, CORRUPT = int(pb.NOSPACE), int(pb.CORRUPT)
_GET, _ACTIVATE, _DEACTIVATE = pb.AlarmRequest.GET, pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE

Raised = frozenset[tuple[int, int]]
"""(type, member) of each alarm that stands."""

_CHANGES = (
    pb.PutRequest,
    pb.DeleteRangeRequest,
    pb.CompactionRequest,
    pb.LeaseGrantRequest,
    pb.LeaseRevokeRequest,
    pb.LeaseExpire,
)


class Alarms:
    """All alarms as of the last commit."""

    def __init__(self, engine: Engine) -> None:
        self._take(frozenset(_unpacked(key[len(_ALARM) :]) for key, _ in engine.scan(_ALARM, _ALARM_END)))

    def stands(self, type: int, member: int) -> bool:
        return (type, member) in self.raised

    def listed(self) -> list[pb.AlarmMember]:
        """In the order of types, then members."""
        return _listed(self.raised)

    def answer(self, request: pb.AlarmRequest) -> bytes:
        """The AlarmResponse, without its header, to a request that only asks."""
        return _body(_asked_for(self.raised, request.alarm))

    def update(self, changes: Changes) -> None:
        """A turn has been committed."""
        if changes.raised is not self.raised:
            self._take(changes.raised)

    def _take(self, raised: Raised) -> None:
        self.raised = raised
        self.corrupt = any(type == CORRUPT for type, _ in raised)
        """Nothing can be changed."""


class Changes:
    """What one turn has done to alarms, over `Alarms`."""

    def __init__(self, alarms: Alarms, batch: Batch) -> None:
        self.raised = alarms.raised
        self._batch = batch
        self._see()

    def _see(self) -> None:
        types = {type for type, _ in self.raised}
        self._corrupt, self._full = CORRUPT in types, NOSPACE in types
        self.closed = self._corrupt or self._full
        """Something is refused."""

    def check(self, request: object) -> None:
        """Raises Corrupt or NoSpace, if an alarm stands in this request's way. (etcd's order: the graver first.)"""
        if self._corrupt and _changes_something(request):
            raise errors.Corrupt
        if self._full and requests.grows(request):
            raise errors.NoSpace

    def do(self, request: pb.AlarmRequest) -> bytes:
        """The AlarmResponse, without its header: of an alarm raised or taken back itself; nothing if there was none to
        take back. One that was raised before is raised: that is no error, and changes nothing."""
        alarm = (request.alarm, request.memberID)
        if request.action == _GET:
            return _body(_asked_for(self.raised, request.alarm))
        if request.action == _ACTIVATE and request.alarm != pb.NONE:
            if alarm not in self.raised:
                self.raised |= {alarm}
                self._batch.put(_key_of(*alarm), b"")
                self._see()
            return _body([alarm])
        if request.action == _DEACTIVATE and alarm in self.raised:
            self.raised -= {alarm}
            self._batch.delete(_key_of(*alarm))
            self._see()
            return _body([alarm])
        return b""


def _changes_something(request: object) -> bool:
    return isinstance(request, _CHANGES) or (isinstance(request, requests.Txn) and not requests.read_only(request))


def _asked_for(raised: Raised, type: int) -> Iterable[tuple[int, int]]:
    """NONE asks for all of them. The request's member means nothing here, as in etcd."""
    return [alarm for alarm in raised if type in (pb.NONE, alarm[0])]


def _listed(alarms: Iterable[tuple[int, int]]) -> list[pb.AlarmMember]:
    return [pb.AlarmMember(memberID=member, alarm=type) for type, member in sorted(alarms)]  # type: ignore[arg-type]


def _body(alarms: Iterable[tuple[int, int]]) -> bytes:
    return b"".join([field(b"\x12", alarm.SerializeToString()) for alarm in _listed(alarms)])


def _key_of(type: int, member: int) -> bytes:
    return _ALARM + _KEY.pack(type & _MASK, member)


def _unpacked(key: bytes) -> tuple[int, int]:
    type, member = _KEY.unpack(key)
    return type - (1 << 32) if type >> 31 else type, member
