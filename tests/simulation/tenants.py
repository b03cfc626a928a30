"""Tenants: clients that hold leases. They have them granted and renew them, hang keys on them and take keys off again,
revoke them, let them run out, and ask what is left.

Some leases are a tenant's own, with an id that the cluster chose; some ids are chosen, from a few that all tenants use,
and the keys are few and everybody's: so attaching, detaching, ending and granting anew race with each other. Whatever
is heard is written down, and judged against the log by tests.simulation.ledger.
"""

from __future__ import annotations

from typing import Any

from kvorum import etcd_pb2 as pb
from tests.checkers.history import Operation, Request
from tests.simulation.clients import Client
from tests.simulation.ledger import FIRST_ID, KEYS

CHOSEN = (1, 2, -3)
"""Ids are any 64 bits but zero."""
WEIGHTS = {
    "grant": 3,
    "keep": 8,
    "put": 5,
    "move": 3,
    "detach": 2,
    "delete": 1,
    "lock": 2,
    "revoke": 1,
    "left": 3,
    "list": 1,
    "noise": 0,
}
TTLS = (0, 1, 2, 2, 3, 3, 4, 40, 1000)
"""Asked for. Less than what a member grants, what runs out within a run, and what does not."""


class Tenant(Client):
    kind = b"tenant"
    first_id = FIRST_ID

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._leases = list(CHOSEN)
        """Those that it knows of, dead ones too."""

    def _heard(self, op: Operation) -> None:
        answer = op.answer
        if isinstance(answer, pb.LeaseGrantResponse) and answer.ID not in CHOSEN:
            self._leases.append(answer.ID)
        elif isinstance(answer, pb.LeaseKeepAliveResponse):
            self.world.seen["lease renewed" if answer.TTL > 0 else "lease found dead"] += 1
            if answer.TTL <= 0 and answer.ID not in CHOSEN and self.world.happens(0.7):
                self._leases[:] = [id for id in self._leases if id != answer.ID]
        elif isinstance(answer, pb.LeaseLeasesResponse) and answer.leases and len(self._leases) < 8:
            self._leases.append(self.world.rng.choice(answer.leases).ID)

    def _lease(self) -> int:
        """One that it knows, a young one rather than an old one."""
        known = self._leases
        return known[max(self.world.rng.randrange(len(known)), self.world.rng.randrange(len(known)))]

    def _request(self, kind: str) -> Request:
        rng = self.world.rng
        key = KEYS + b"%d" % rng.randrange(4)
        chance = rng.random()
        if kind == "grant":
            return pb.LeaseGrantRequest(
                ID=rng.choice(CHOSEN) if chance < self.habits.shared else 0, TTL=rng.choice(TTLS)
            )
        if kind == "keep":
            return pb.LeaseKeepAliveRequest(ID=self._lease())
        if kind == "left":
            return pb.LeaseTimeToLiveRequest(ID=self._lease(), keys=chance < 0.7)
        if kind == "revoke":
            return pb.LeaseRevokeRequest(ID=self._lease())
        if kind == "list":
            return pb.LeaseLeasesRequest()
        if kind == "delete":
            return pb.DeleteRangeRequest(key=key, range_end=KEYS + b"9" if chance < 0.3 else b"")
        if kind == "detach":
            return pb.PutRequest(key=key, value=self._value())
        if kind == "move":
            return pb.PutRequest(key=key, value=self._value(), lease=self._lease(), prev_kv=chance < 0.3)
        if kind == "put":
            if chance < 0.15:
                return pb.PutRequest(key=key, value=self._value(), ignore_lease=True)
            return pb.PutRequest(key=key, value=self._value(), lease=self._lease())
        return self._lock(key, self._lease())

    def _lock(self, key: bytes, lease: int) -> pb.TxnRequest:
        """As recipes do: take the key if nobody has it; or touch what hangs on the lease."""
        put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=self._value(), lease=lease))
        look = pb.RequestOp(request_range=pb.RangeRequest(key=key))
        if self.world.happens(0.6):
            free = pb.Compare(key=key, target=pb.Compare.VERSION, version=0)
            return pb.TxnRequest(compare=[free], success=[put], failure=[look])
        other = KEYS + b"%d" % self.world.rng.randrange(4)
        held = pb.Compare(key=other, target=pb.Compare.LEASE, lease=lease)
        bare = pb.RequestOp(request_put=pb.PutRequest(key=key, value=self._value()))
        return pb.TxnRequest(compare=[held], success=[put], failure=[bare])

    def _value(self) -> bytes:
        return b"t" + super()._value()
