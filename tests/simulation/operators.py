"""Somebody who raises alarms, and takes them back after a while: what an operator does, or a member without room.

It draws from a chance of its own, so that a seed without it is the same run as ever. After healing it takes back
whatever stands, until nothing does: a proposal from before may raise one late.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method
from tests.simulation.clients import Hub
from tests.simulation.ledger import Ledger
from tests.simulation.world import MILLISECOND, SECOND, World

ODDS = 0.25
"""How many of the seeds have one."""


class Operator:
    def __init__(self, world: World, hub: Hub, ledger: Ledger, members: Sequence[int]) -> None:
        self.world, self.hub, self.ledger, self.members = world, hub, ledger, members
        self._rng = random.Random(f"{world.seed}/alarms")
        self.wanted = self._rng.random() < ODDS
        self.healed = False

    def start(self) -> None:
        if self.wanted:
            self._wait(SECOND)

    def _wait(self, most: int) -> None:
        self.world.after(self._rng.randint(most // 4, most), self._act)

    def _act(self) -> None:
        stand = sorted(self.ledger.alarms)
        if self.healed:
            for member in self.members:
                self._say(member, pb.AlarmRequest.DEACTIVATE, stand)
        elif stand:
            self._say(self._rng.choice(self.members), pb.AlarmRequest.DEACTIVATE, stand)
        elif self._rng.random() < 0.5:
            alarm = self._rng.choice((pb.NOSPACE, pb.NOSPACE, pb.CORRUPT)), self._rng.choice(self.members)
            self._say(self._rng.choice(self.members), pb.AlarmRequest.ACTIVATE, [alarm])
        self._wait(300 * MILLISECOND if self.healed else 3 * SECOND)

    def _say(self, member: int, action: int, alarms: Sequence[tuple[int, int]]) -> None:
        for type, of in alarms:
            request = pb.AlarmRequest(action=action, memberID=of, alarm=type)  # type: ignore[arg-type]
            frame = wire.encode(Method.ALARM, Kind.CALL, 0, (1 << 60) + 1, request.SerializeToString())
            self.hub.to_member(member, b"operator", frame)
