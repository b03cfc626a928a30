"""One seed, one run: a cluster is built, troubled, healed, and judged.

    chaos (faults, clients) ──▶ heal ──▶ must serve within RECOVERY ──▶ quiet ──▶ must converge ──▶ verdicts

Safety is looked at after every turn (safety.py). After healing, each member must answer a write within RECOVERY; when
the clients are quiet, leases that nobody renews must end in time, all stores must come to hold the same bytes, and all
who watch or listen must have heard everything. Then the history is judged by replay and by search, and that of the
tenants by the ledger.

The sizes at which things are cut, flushed, refused and swept are drawn small for a run (`Knobs`), or a run of seconds
would never get there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import cluster.admission
import cluster.applyd
import cluster.broadcast
import cluster.flushes
import cluster.landlord
import cluster.lessor
import cluster.raftd
import cluster.watchd
import kvorum.watching
import storage.compaction
import storage.reads
from cluster.config import NodeConfig, resolve
from cluster.raft.core import Role
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.wire import Kind, Method
from tests.checkers.history import Operation
from tests.checkers.linearizability import Undecided, check_linearizable
from tests.checkers.replay import check_replay
from tests.simulation.clients import Client, Habits, Hub
from tests.simulation.faults import Faults, Temper
from tests.simulation.followers import Follower
from tests.simulation.ledger import SHORT, revisions_of
from tests.simulation.listeners import Listener
from tests.simulation.network import Network, Weather
from tests.simulation.node import ELECTION_TICKS, Node, Shells, Sizes
from tests.simulation.operators import Operator
from tests.simulation.pipes import TICK, Actor
from tests.simulation.safety import Safety
from tests.simulation.tenants import WEIGHTS, Tenant
from tests.simulation.world import MILLISECOND, SECOND, World

SECONDS = 30
"""Of trouble, unless told otherwise."""
ELECTION = ELECTION_TICKS * TICK
RECOVERY = 10 * ELECTION
CONVERGENCE = 10 * ELECTION
SILENCE = 2 * int(kvorum.watching.SILENCE_SECONDS) * SECOND
"""Until a listener has noticed that nobody publishes to it any more, and has gone elsewhere."""


@dataclass(slots=True)
class Knobs:
    """Limits of the shipped modules, as small as this run has them."""

    flush_ticks: int
    flush_entries: int
    floor_ticks: int
    window_bytes: int
    slice_bytes: int
    entry_bytes: int
    backlog_entries: int
    sweep_changes: int
    read_slice_bytes: int
    history_bytes: int
    expire_leases: int
    lessor_slice: int
    lessor_patience: float
    checkpoint_seconds: float
    grace_ticks: int
    backlog_bytes: int
    ring_bytes: int
    delivery_bytes: int

    @classmethod
    def draw(cls, rng: random.Random) -> Knobs:
        return cls(
            flush_ticks=rng.choice((3, 10, 50)),
            flush_entries=rng.choice((5, 50, 1000)),
            floor_ticks=rng.choice((2, 10)),
            window_bytes=rng.choice((300, 5_000, 16 << 20)),
            slice_bytes=rng.choice((100, 1_000, 1 << 20)),
            entry_bytes=rng.choice((100, 1_000, 1 << 20)),
            backlog_entries=rng.choice((20, 200, 5_000)),
            sweep_changes=rng.choice((3, 20, 1_000)),
            read_slice_bytes=rng.choice((600, 2_000, 1 << 20)),
            history_bytes=rng.choice((200, 2_000, 1 << 20)),
            expire_leases=rng.choice((1, 3, 1_000)),
            lessor_slice=rng.choice((2, 20_000)),
            lessor_patience=rng.choice((1.0, 10.0)),
            checkpoint_seconds=rng.choice((1.0, 5.0, 300.0)),
            grace_ticks=rng.choice((5, 100)),
            backlog_bytes=rng.choice((300, 3_000, 32 << 20)),
            ring_bytes=rng.choice((0, 1_000, 1 << 20)),
            delivery_bytes=rng.choice((100, 1 << 20)),
        )

    @contextmanager
    def turned(self, hit: Callable[[str], None]) -> Iterator[None]:
        """The shipped modules with these limits, and with failpoints that ask `hit`."""
        wanted = [
            (cluster.flushes, "FLUSH_TICKS", self.flush_ticks),
            (cluster.flushes, "FLUSH_ENTRIES", self.flush_entries),
            (cluster.admission, "ENTRY_BYTES", self.entry_bytes),
            (cluster.applyd, "BACKLOG_ENTRIES_MAX", self.backlog_entries),
            (cluster.applyd, "REPORT_BYTES", self.window_bytes // 8),
            (cluster.applyd, "hit", hit),
            (cluster.raftd, "FLOOR_TICKS", self.floor_ticks),
            (cluster.raftd, "WINDOW_BYTES", self.window_bytes),
            (cluster.raftd, "SLICE_BYTES", self.slice_bytes),
            (cluster.raftd, "hit", hit),
            (cluster.lessor, "EXPIRE_WORK", self.expire_leases),
            (cluster.lessor, "SLICE", self.lessor_slice),
            (cluster.lessor, "CHECKPOINT_SECONDS", self.checkpoint_seconds),
            (cluster.landlord, "PATIENCE_SECONDS", self.lessor_patience),
            (cluster.broadcast, "GRACE_TICKS", self.grace_ticks),
            (kvorum.watching, "BACKLOG_BYTES_MAX", self.backlog_bytes),
            (cluster.watchd, "HISTORY_BYTES", self.history_bytes),
            (cluster.watchd, "RING_BYTES", self.ring_bytes),
            (cluster.watchd, "DELIVERY_BYTES", self.delivery_bytes),
            (cluster.watchd, "hit", hit),
            (storage.compaction, "STEP_CHANGES", self.sweep_changes),
            (storage.reads, "SLICE_BYTES", self.read_slice_bytes),
        ]
        before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
        try:
            for module, name, value in wanted:
                setattr(module, name, value)
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)


@dataclass(slots=True)
class Plan:
    """What a seed decides before anything happens."""

    members: int
    chaos: int
    temper: Temper
    habits: Habits
    knobs: Knobs
    climate: Weather
    wake_max: int
    sizes: Sizes
    followers: int
    tenants: int
    tenants_habits: Habits
    listeners: int
    air_loss: float
    air_breaks: float
    alarms: bool | None = None
    """Whether somebody raises some; None: the seed says."""
    drift: float = 0.0
    """By how much members' clocks may be fast or slow: 0.05 is 3 s a minute."""

    @classmethod
    def draw(cls, rng: random.Random, seconds: int) -> Plan:
        kinds = Faults.kinds()
        angry = rng.sample(kinds, rng.randrange(len(kinds))) if rng.random() < 0.9 else []
        clients, batch_max, rate = rng.choice((2, 4, 6, 8)), rng.choice((1, 3, 8)), rng.choice((10, 30, 80))
        habits = Habits(
            clients=clients,
            groups=rng.choice((1, 3, 5)),
            keys=rng.choice((1, 2, 3)),
            batch_max=batch_max,
            think_max=2 * clients * (batch_max + 1) * SECOND // rate,  # the mean is a quarter: World.between
            patience_max=rng.choice((1, 4, 9)) * SECOND,
            roam=rng.choice((0.0, 0.3, 1.0)),
            wander=0.2 if rng.random() < 0.1 else 0.0,
        )
        for name in rng.sample(list(habits.weights), 3):
            habits.weights[name] *= rng.choice((0, 3))
        jinx = rng.choice((0.0, 0.0, 0.3, 0.8)) if angry else 0.0
        return cls(
            members=rng.choice((1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 5)),
            chaos=seconds * SECOND,
            temper=Temper(
                rng.choice((300, 1000, 3000)) * MILLISECOND, {kind: rng.randint(1, 4) for kind in angry}, jinx
            ),
            habits=habits,
            knobs=Knobs.draw(rng),
            climate=Weather(
                loss=rng.choice((0.0, 0.0, 0.01)),
                twice=rng.choice((0.0, 0.0, 0.05)),
                reorder=rng.random() < 0.3,
                delay_max=rng.choice((1, 1, 5, 30, 150)) * MILLISECOND,
            ),
            wake_max=rng.choice((100, 1_000, 5_000)),
            sizes=Sizes(
                memory_bytes=rng.choice((0, 2_000, 16 << 20)),
                append_bytes=rng.choice((1, 300, 1 << 20)),
                uncommitted_bytes=rng.choice((500, 5_000, 64 << 20)),
                timeout_ticks=rng.choice((15, 30, 70)),  # 70 with etcd's default settings
                share_from=rng.choice((1, 1, 2)),
            ),
            followers=rng.choice((0, 1, 3)),
            tenants=rng.choice((0, 0, 1, 2)),
            tenants_habits=replace(
                habits, weights=dict(WEIGHTS), batch_max=3, think_max=rng.choice((400, 2_000)) * MILLISECOND
            ),
            listeners=rng.choice((0, 1, 2)),
            air_loss=rng.choice((0.0, 0.0, 0.05, 0.5)),
            air_breaks=rng.choice((0.0, 0.3)),
        )


@dataclass(slots=True)
class Report:
    """How a run went. `digest` is the same whenever the seed, the code and the plan are."""

    seed: int
    digest: int = 0
    events: int = 0
    virtual: float = 0.0
    operations: int = 0
    answered: int = 0
    maybe: int = 0
    revisions: int = 0
    entries: int = 0
    elections: int = 0
    heard: int = 0
    undecided: bool = False
    faults: dict[str, int] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Run:
    """Builds all of it from a seed; `go` runs it."""

    def __init__(
        self,
        seed: int,
        *,
        seconds: int = SECONDS,
        shells: Shells | None = None,
        trace: Callable[[str], None] | None = None,
        plan: Callable[[Plan], None] | None = None,
    ) -> None:
        self.world = World(seed, trace)
        self.plan = Plan.draw(self.world.rng, seconds)
        chance = random.Random(f"kvorum simulation {seed}, clocks")
        if plan is not None:
            plan(self.plan)
        else:
            self.plan.drift = chance.choice((0.0, 0.0, 0.005, 0.02, 0.05))
        self.safety = Safety(self.world)
        self.network = Network(self.world, self._deliver)
        self.hub = Hub(self.world, self._from_client)
        self.history: list[Operation] = []
        self.healing = False
        self.supervised = True
        """False: what dies stays dead until healing."""
        self.report = Report(seed)
        configs = _configs(self.plan.members)
        self.nodes = {
            config.member_id: Node(
                self.world,
                config,
                self.network,
                self.safety,
                shells or Shells(),
                self.plan.sizes,
                died=self._died,
                reply=lambda name, frame, id=config.member_id: self.hub.to_client(id, name, frame),
                publish=self._publish,
            )
            for config in configs
        }
        self.safety.nodes = self.nodes
        for node in self.nodes.values():
            node.rate = 1 + self.plan.drift * chance.choice((-1.0, 1.0, chance.uniform(-1, 1)))
        rates = [node.rate for node in self.nodes.values()]
        self.safety.ledger.slowest, self.safety.ledger.fastest = min(rates), max(rates)
        self.world.seen["clocks that disagree"] += len(set(rates)) > 1
        self.world.wake_max = self.plan.wake_max
        self.network.climate = self.network.weather = self.plan.climate
        self.faults = Faults(self.world, self.network, self.nodes, self.hub, self.plan.temper, self._revive)
        self.safety.on_election = self.faults.elected
        self.clients = [
            Client(self.world, self.hub, self.plan.habits, id, list(self.nodes), self.history)
            for id in range(1, self.plan.habits.clients + 1)
        ]
        self.operator = Operator(self.world, self.hub, self.safety.ledger, list(self.nodes))
        if self.plan.alarms is not None:
            self.operator.wanted = self.plan.alarms
        self.tenants_history: list[Operation] = []
        self.tenants = [
            Tenant(self.world, self.hub, self.plan.tenants_habits, id, list(self.nodes), self.tenants_history)
            for id in range(1, self.plan.tenants + 1)
        ]
        self.followers = [
            Follower(
                self.world,
                self.safety,
                id,
                list(self.nodes),
                (b"g", b"h") if id == 1 else (b"g%d/" % (id % 3), b"g%d0" % (id % 3)),
                self._to_watch,
            )
            for id in range(1, self.plan.followers + 1)
        ]
        self.listeners = [
            Listener(
                self.world,
                self.safety,
                id,
                (shells or Shells()).listener,
                {config.member_id: (config.advertise_watch, config.advertise_broadcast) for config in configs},
                {node.id: node.air for node in self.nodes.values()},
                self._to_watch,
                self.hub.cut,
            )
            for id in range(1, self.plan.listeners + 1)
        ]
        for node in self.nodes.values():
            node.air.loss, node.air.breaks = self.plan.air_loss, self.plan.air_breaks

    def go(self) -> Report:
        """Raises Violation, or whatever a process died of that it must not die of."""
        with self.begun():
            self.faults.start()
            self.let(self.plan.chaos)
        return self.report

    @contextmanager
    def begun(self) -> Iterator[None]:
        """All is started; what the caller does meanwhile is the trouble; then it is healed and judged into `report`."""
        with self.plan.knobs.turned(self._hit):
            for node in self.nodes.values():
                for actor in node.actors:
                    node.start(actor)
            for client in [*self.clients, *self.tenants, *self.followers, *self.listeners]:
                client.start()
            self.operator.start()
            yield
            self.world.tell(lambda: "-- healed")
            self.healing = True
            self.faults.heal()
            self._recover()
            for client in [*self.clients, *self.tenants]:
                client.stopped = True
            self._run_out()
            self._converge()
        self.report = self._judge()

    def let(self, duration: int) -> None:
        """Let time pass, looking at the stores as wholes now and then."""
        end = self.world.now + duration
        while self.world.now < end:
            self.world.run(min(end, self.world.now + SECOND))
            self.safety.compare_stores()

    @property
    def leader(self) -> Node | None:
        """The member that leads the newest term, if any does."""
        leading = [node for node in self.nodes.values() if node.raftd and node.raftd.core.role is Role.LEADER]
        return max(leading, key=lambda node: node.term, default=None)

    # ---- what connects the parts

    def _hit(self, name: str) -> None:
        node = self.world.turning
        assert isinstance(node, Node)
        node.hit(name)

    def _deliver(self, to: int, sender: int, frame: bytes) -> None:
        self.nodes[to].raft.receive("peers", b"", frame)

    def _from_client(self, member: int, name: bytes, frame: bytes) -> bool:
        apply = self.nodes[member].apply
        apply.receive("clients", name, frame)
        return apply.alive

    def _to_watch(self, member: int, name: bytes, frame: bytes) -> bool:
        watch = self.nodes[member].watch
        watch.receive("clients", name, frame)
        return watch.alive

    def _publish(self, name: bytes, frame: bytes) -> bool | None:
        for one in (*self.followers, *self.listeners):
            if one.name == name:
                return one.offer(frame)
        return None

    def _died(self, node: Node, actor: Actor) -> None:
        """The supervisor: what died is started again, sooner or later."""
        if actor is node.apply:
            self.hub.broken(node.id)
        elif actor is node.watch:
            for follower in self.followers:
                if follower.member == node.id:
                    follower.lost()
            for listener in self.listeners:
                listener.lost(node.id)
        if self.supervised or self.healing:
            run = actor.runs
            wait = self.world.between(5 * MILLISECOND, 50 * MILLISECOND if self.healing else 2 * SECOND)
            self.world.after(wait, lambda: node.start(actor) if actor.runs == run else None)

    def _revive(self) -> None:
        self.operator.healed = True
        for follower in self.followers:
            follower.healed = True
        for listener in self.listeners:
            listener.heal()
        for node in self.nodes.values():
            node.air.loss = node.air.breaks = 0.0
        for node in self.nodes.values():
            for actor in node.actors:
                node.start(actor)

    # ---- after healing

    def _recover(self) -> None:
        """Each member must answer a write of its own within RECOVERY."""
        waiting = {id: Probe(self, id) for id in self.nodes}
        deadline = self.world.now + RECOVERY
        while waiting and self.world.now < deadline:
            for probe in waiting.values():
                probe.ask()
            self.let(ELECTION // 2)
            waiting = {id: probe for id, probe in waiting.items() if not probe.answered}
        self.safety.check(not waiting, f"members {list(waiting)} answer no write {RECOVERY / SECOND:g} s after healing")

    def _run_out(self) -> None:
        """Nobody renews a lease any more: the short ones must end, each within its time (RELIABILITY L2)."""
        ledger, quiet = self.safety.ledger, self.world.now + self.plan.sizes.timeout_ticks * TICK
        deadline = quiet + (3 * SHORT) * SECOND
        while ledger.short:
            self.let(ELECTION // 2)
            overdue = ledger.overdue(quiet)
            self.safety.check(not overdue, f"leases live too long: {overdue}")
            self.safety.check(self.world.now < deadline, f"leases live for ever: {ledger.short}")

    def _converge(self) -> None:
        """Nobody asks for anything any more: all stores must come to hold the same, and all who watch to know it."""
        deadline = self.world.now + CONVERGENCE + (SILENCE if self.listeners else 0)
        while self.world.now < deadline:
            self.let(ELECTION // 2)
            converged = self._converged()
            missing = [one.missing for one in (*self.followers, *self.listeners)]
            if converged and not any(missing):
                return
        places = {id: node.applyd and node.applyd.keyspace.applied for id, node in self.nodes.items()}
        self.safety.check(converged, f"stores do not converge: {places} of {len(self.safety.committed) - 1}")
        self.safety.check(not any(missing), f"those who watch do not hear of revisions {missing}")

    def _converged(self) -> bool:
        committed = len(self.safety.committed) - 1
        stores = []
        for node in self.nodes.values():
            if node.applyd is None or node.raftd is None:
                return False
            keyspace = node.applyd.keyspace
            if keyspace.applied[0] != committed or keyspace.swept < keyspace.compacted:
                return False
            stores.append(list(node.engine.scan(b"", b"\xff")))
        self.safety.check(all(one == stores[0] for one in stores), "the stores end with different bytes")
        return True

    def _judge(self) -> Report:
        events = self.safety.events()
        report = Report(
            seed=self.world.seed,
            digest=self.world.digest,
            events=self.world.events,
            virtual=self.world.now / SECOND,
            operations=len(self.history) + len(self.tenants_history),
            answered=sum(op.answer is not None for op in self.history),
            maybe=sum(op.maybe for op in self.history),
            revisions=len(events),
            entries=len(self.safety.committed) - 1,
            elections=self.safety.elections,
            faults=self.faults.counts,
            seen=self.world.seen,
            heard=sum(one.heard for one in (*self.followers, *self.listeners)),
        )
        seen = report.seen
        for op in [*self.history, *self.tenants_history]:
            if op.error is not None:
                seen[type(op.error).__name__] += 1
        verdict = check_replay(self.history, events, others=set(revisions_of(events)))
        report.wrong = self.safety.ledger.judge(self.tenants_history, events) + verdict.wrong
        try:
            report.wrong += check_linearizable(self.history, happened=verdict.happened, budget=200_000)
        except Undecided:
            report.undecided = True
        return report


class Probe:
    """A client of the test itself: it asks one member again and again, until it is answered."""

    def __init__(self, run: Run, member: int, request: pb.RangeRequest | None = None) -> None:
        """Without a `request` it writes, every time something new."""
        self.run, self.member, self.request = run, member, request
        self.answered = False

    def ask(self) -> None:
        run, id = self.run, len(self.run.history) + 1
        name = b"probe %d" % id
        request = self.request or pb.PutRequest(key=b"probe", value=name)
        method = Method.PUT if self.request is None else Method.RANGE
        run.hub.clients[name] = self  # type: ignore[assignment]
        run.history.append(Operation(id, -self.member, self.member, run.world.now, request))
        frame = wire.encode(method, Kind.CALL, 0, id, request.SerializeToString())
        run.hub.to_member(self.member, name, frame)

    def told(self, frame: bytes) -> None:
        for record in wire.decode(frame):
            op = self.run.history[record.id - 1]
            op.returned = self.run.world.now
            if record.status:
                op.error = errors.from_wire(record.status, record.payload.decode())
            else:
                op.answer = wire.METHODS[Method(record.method)].response.FromString(record.payload)  # type: ignore[assignment]
                self.answered = True

    def lost(self) -> None:
        """It asks again anyway."""


def _configs(count: int) -> list[NodeConfig]:
    """Members 1 to `count`."""
    base = resolve({})
    member = base.members[0]
    members = tuple(member._replace(id=id, name=f"m{id}", address=f"tcp://m{id}:1") for id in range(1, count + 1))
    return [
        base._replace(
            name=each.name,
            member_id=each.id,
            members=members,
            cluster_id=77,
            advertise_client_urls=(f"http://{each.name}:2",),
            advertise_native=f"tcp://{each.name}:3",
            advertise_watch=f"tcp://{each.name}:4",
            advertise_broadcast=f"tcp://{each.name}:5",
        )
        for each in members
    ]
