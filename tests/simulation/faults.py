"""What goes wrong, and when: drawn from the run's own chance.

Each run is angry in its own way ("swarm testing": Groce et al., 2012): it picks some kinds of trouble and how often
they come, because a run in which everything fails all the time never gets far enough to fail interestingly. Whatever
begins has an end; `heal` ends all of it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.raft.core import Role
from kvorum import etcd_pb2 as pb
from kvorum import wire
from kvorum.wire import Kind, Method
from tests.simulation.clients import Hub
from tests.simulation.network import Network, Weather
from tests.simulation.node import Node
from tests.simulation.pipes import TICK, Actor
from tests.simulation.world import MILLISECOND, SECOND, World

FAILPOINTS = {
    "raft": ("raftBeforeSend", "raftBeforeSave", "raftAfterSave", "raftBeforeAcknowledge"),
    "apply": ("applyBeforeCommit", "applyAfterCommit", "applyBeforeSweep"),
    "watch": ("watchBeforeSend",),
}


@dataclass(slots=True)
class Temper:
    """How angry a run is: mean time between troubles, which kinds there are (with weights), and how likely it is that a
    member is struck down in the very moment of its election."""

    pause_mean: int
    kinds: dict[str, int]
    jinx: float


class Faults:
    """Makes trouble from `start` until `heal`."""

    def __init__(
        self,
        world: World,
        network: Network,
        nodes: dict[int, Node],
        hub: Hub,
        temper: Temper,
        revive: Callable[[], None],
    ) -> None:
        self.world, self.network, self.nodes, self.hub, self.temper = world, network, nodes, hub, temper
        self._revive = revive
        self.ended = False
        self.counts: dict[str, int] = {}
        self._kinds: dict[str, Callable[[], None]] = {
            "kill": self._kill,
            "node": self._node,
            "power": self._power,
            "failpoint": self._failpoint,
            "pause": self._pause,
            "split": self._split,
            "isolate": self._isolate,
            "one_way": self._one_way,
            "ring": self._ring,
            "clog": self._clog,
            "weather": self._weather,
            "slow_disk": self._slow_disk,
            "bad_sync": self._bad_sync,
            "full_disk": self._full_disk,
            "skew": self._skew,
            "cut_clients": self._cut_clients,
            "stale_leader": self._stale_leader,
            "depose": self._depose,
            "transfer": self._transfer,
        }

    @staticmethod
    def kinds() -> tuple[str, ...]:
        return (
            "kill", "node", "power", "failpoint", "pause", "split", "isolate", "one_way", "ring", "clog", "weather",
            "slow_disk", "bad_sync", "full_disk", "skew", "cut_clients", "stale_leader", "depose", "transfer",
        )  # fmt: skip

    def start(self) -> None:
        self._next()

    def _next(self) -> None:
        if self.temper.kinds:
            self.world.after(int(self.world.rng.expovariate(1 / self.temper.pause_mean)), self._strike)

    def _strike(self) -> None:
        if self.ended:
            return
        kinds = self.temper.kinds
        kind = self.world.rng.choices(list(kinds), list(kinds.values()))[0]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.world.tell(lambda: f"-- {kind}")
        self._kinds[kind]()
        self._next()

    def heal(self) -> None:
        """Everything works from now on."""
        self.ended = True
        self.network.heal()
        self.hub.cut.clear()
        for node in self.nodes.values():
            node.strike.clear()
            node.disk.breaking = node.disk.full = False
            node.disk.sync_min, node.disk.sync_max = MILLISECOND // 2, 3 * MILLISECOND
            for actor in node.actors:
                actor.tick_us = TICK
                if actor.paused:
                    actor.resume()
        self._revive()

    # ---- whom and for how long

    def _pick(self) -> Node:
        """A member, the leader as often as not: that is where it hurts."""
        rng = self.world.rng
        if rng.random() < 0.5:
            for node in self.nodes.values():
                if node.raftd is not None and node.raftd.core.role is Role.LEADER:
                    return node
        return self.nodes[rng.choice(list(self.nodes))]

    def _actor(self, node: Node) -> Actor:
        return self.world.rng.choices(node.actors, (4, 4, 1))[0]

    def _for_a_while(self, low: int, high: int, end: Callable[[], None]) -> None:
        def ended() -> None:
            if not self.ended:
                end()

        self.world.after(self.world.between(low, high), ended)

    # ---- processes

    def _kill(self) -> None:
        node = self._pick()
        node.kill(self._actor(node))

    def _node(self) -> None:
        self._strike_down([self._pick()], power=self.world.happens(0.5))

    def _power(self) -> None:
        self._strike_down(list(self.nodes.values()), power=True)

    def _strike_down(self, nodes: list[Node], *, power: bool) -> None:
        """Kill whole nodes at once; every other time when much is on its way to their disks."""

        def strike() -> None:
            for node in nodes if not self.ended else []:
                for actor in node.actors:
                    node.kill(actor, power=power)
                node.disk.sync_min, node.disk.sync_max = MILLISECOND // 2, 3 * MILLISECOND

        if self.world.happens(0.5):
            strike()
            return
        for node in nodes:
            node.disk.sync_min = node.disk.sync_max = SECOND
        self.world.after(self.world.between(50 * MILLISECOND, SECOND), strike)

    def _failpoint(self) -> None:
        node = self._pick()
        rng = self.world.rng
        name = rng.choice([point for points in FAILPOINTS.values() for point in points])
        node.strike[name] = rng.randrange(8)

    def _pause(self) -> None:
        node = self._pick()
        actors = node.actors if self.world.happens(0.3) else (self._actor(node),)
        for actor in actors:
            if actor.alive and not actor.paused:
                self.world.tell(lambda actor=actor: f"{actor.name} is paused")
                actor.pause()
                run = actor.runs

                def resume(actor: Actor = actor, run: int = run) -> None:
                    if actor.runs == run and actor.paused:
                        self.world.tell(lambda: f"{actor.name} goes on")
                        actor.resume()

                self._for_a_while(20 * MILLISECOND, 4 * SECOND, resume)

    # ---- network

    def _block(self, pairs: list[tuple[int, int]], duration: int | None = None) -> None:
        self.network.blocked.update(pairs)
        low, high = (200 * MILLISECOND, 6 * SECOND) if duration is None else (duration, duration)
        self._for_a_while(low, high, lambda: self.network.blocked.difference_update(pairs))

    def _between(self, some: list[int]) -> list[tuple[int, int]]:
        others = [id for id in self.nodes if id not in some]
        return [pair for a in some for b in others for pair in ((a, b), (b, a))]

    def _leader(self) -> Node:
        """The newest leader, or anybody."""
        leaders = [
            (node.raftd.core.term, node.id)
            for node in self.nodes.values()
            if node.raftd is not None and node.raftd.core.role is Role.LEADER
        ]
        return self.nodes[max(leaders)[1]] if leaders else self._pick()

    def _stale_leader(self) -> None:
        """A leader whose clock is slow is cut off: for a long time it doesn't notice that it leads no more."""
        node = self._leader()
        node.raft.tick_us = TICK * self.world.rng.choice((3, 10))

        def right() -> None:
            node.raft.tick_us = TICK

        self._for_a_while(2 * SECOND, 6 * SECOND, right)
        self._block(self._between([node.id]))

    def _depose(self) -> None:
        """A leader is cut off with what it has in its log, just long enough for another to come up."""
        self._block(self._between([self._leader().id]), self.world.rng.randint(SECOND, 3 * SECOND))

    def _transfer(self) -> None:
        """Somebody asks for another leader."""
        self.move_leader(self._leader().id, self.world.rng.choice(list(self.nodes)))

    def move_leader(self, member: int, target: int) -> None:
        request = pb.MoveLeaderRequest(targetID=target)
        frame = wire.encode(Method.MOVE_LEADER, Kind.CALL, 0, 1 << 60, request.SerializeToString())
        self.hub.to_member(member, b"admin", frame)

    def elected(self, node: Node) -> None:
        """Trouble in the moment when a leader has something in its log that nobody else has."""
        if self.ended or not self.world.happens(self.temper.jinx):
            return
        self.counts["jinx"] = self.counts.get("jinx", 0) + 1
        self.world.tell(lambda: f"-- jinx on member {node.id}")
        if self.world.happens(0.7):
            self._block(self._between([node.id]), self.world.rng.randint(300 * MILLISECOND, 3 * SECOND))
        else:
            self.world.after(self.world.between(0, 20 * MILLISECOND), lambda: node.kill(node.raft))

    def _split(self) -> None:
        ids = list(self.nodes)
        self._block(self._between(self.world.rng.sample(ids, self.world.rng.randrange(len(ids)))))

    def _isolate(self) -> None:
        self._block(self._between([self._pick().id]))

    def _one_way(self) -> None:
        """One member is not heard, or does not hear; or only one link is broken in one direction."""
        me, rng = self._pick().id, self.world.rng
        others = [id for id in self.nodes if id != me]
        others = others if rng.random() < 0.6 else others[:1]
        self._block([(me, other) if rng.random() < 0.5 else (other, me) for other in others])

    def _ring(self) -> None:
        """Everybody sees a majority, and no two the same one."""
        ids = list(self.nodes)
        count = len(ids)
        far = [
            (a, b)
            for at, a in enumerate(ids)
            for to, b in enumerate(ids)
            if min((at - to) % count, (to - at) % count) > max(1, count // 4)
        ]
        self._block(far or [(ids[0], ids[-1]), (ids[-1], ids[0])])

    def _clog(self) -> None:
        """Hold back some members' traffic one after the other, let it go in another order (FoundationDB's swizzle)."""
        ids, rng, world = list(self.nodes), self.world.rng, self.world
        some = rng.sample(ids, rng.randint(1, len(ids)))
        for at, id in enumerate(some):
            pairs = [pair for pair in self._between([id]) if rng.random() < 0.8]

            def clog(pairs: list[tuple[int, int]] = pairs) -> None:
                if not self.ended:
                    for pair in pairs:
                        self.network.clog(*pair)

            def unclog(pairs: list[tuple[int, int]] = pairs) -> None:
                for pair in pairs:
                    self.network.unclog(*pair)

            begin = at * world.between(10 * MILLISECOND, 300 * MILLISECOND)
            world.after(begin, clog)
            self._for_a_while(begin + 300 * MILLISECOND, begin + 3 * SECOND, unclog)

    def _weather(self) -> None:
        rng = self.world.rng
        slow = rng.choice((2, 20, 200)) * MILLISECOND
        self.network.weather = Weather(
            loss=rng.choice((0.0, 0.02, 0.1, 0.3)),
            twice=rng.choice((0.0, 0.1, 0.5)),
            reorder=rng.random() < 0.6,
            delay_min=rng.choice((100, MILLISECOND, slow // 2)),
            delay_max=slow,
        )
        self._for_a_while(500 * MILLISECOND, 5 * SECOND, self._clear_up)

    def _clear_up(self) -> None:
        self.network.weather = self.network.climate

    def _cut_clients(self) -> None:
        id = self._pick().id
        self.hub.cut.add(id)
        self._for_a_while(100 * MILLISECOND, 3 * SECOND, lambda: self.hub.cut.discard(id))

    # ---- disks and clocks

    def _slow_disk(self) -> None:
        disk = self._pick().disk
        disk.sync_max = self.world.rng.choice((30, 300, 1500)) * MILLISECOND
        disk.sync_min = disk.sync_max // 4

        def fast() -> None:
            disk.sync_min, disk.sync_max = MILLISECOND // 2, 3 * MILLISECOND

        self._for_a_while(500 * MILLISECOND, 5 * SECOND, fast)

    def _bad_sync(self) -> None:
        self._pick().disk.breaking = True

    def _full_disk(self) -> None:
        disk = self._pick().disk
        disk.full = True

        def emptied() -> None:
            disk.full = False

        self._for_a_while(200 * MILLISECOND, 3 * SECOND, emptied)

    def _skew(self) -> None:
        """A process whose second is shorter or longer than the others'."""
        actor = self._actor(self._pick())
        actor.tick_us = int(TICK * self.world.rng.choice((0.3, 0.7, 1.4, 3.0)))

        def right() -> None:
            actor.tick_us = TICK

        self._for_a_while(SECOND, 8 * SECOND, right)
