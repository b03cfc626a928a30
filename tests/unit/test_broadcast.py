"""Broadcasts: what a group is told, and that a listener hears every change once whatever the air loses.

The shipped client core (kvorum.watching) against the shipped watch process and feed, with queues between them that drop
publications, stall, break and restart. No sockets, no clock.
"""

from __future__ import annotations

import itertools
import random
from collections import deque

import pytest

from cluster.broadcast import GRACE_TICKS, HEAD, PULSE_TICKS, SILENCE_TICKS, Group, Groups, Seen, Spec, event_field
from cluster.feed import Feed
from cluster.internal import Tick
from cluster.links import ClientFrame, Subscription
from cluster.watchd import Watchd
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.results import Event, WatchResponse
from kvorum.watching import SILENCE_SECONDS, Session, State, Watch, WatchCore
from tests.unit.test_watchd import Link, Node, World, _board

NOTHING: frozenset[int] = frozenset()


def matching(all: Groups, key: bytes) -> list[Group]:
    return [group for place in all._ranges.at(key) for group in place.wanted_by]


def groups() -> Groups:
    numbers = itertools.count(1)
    return Groups(lambda: next(numbers).to_bytes(16, "big"))


def join(all: Groups, one: Spec, head: int, now: int) -> Group:
    group = all.join(one, head, now, found=True)
    assert group is not None
    return group


def spec(key: bytes, end: bytes | None = None, unwanted: frozenset[int] = NOTHING, prev_kv: bool = False) -> Spec:
    return Spec(key, end, unwanted, prev_kv)


def seen(revision: int, key: bytes, kind: int = 0) -> Seen:
    return Seen(revision, kind, key, b"event of " + key, b"before")


def told(frames: list[bytes] | tuple[bytes, ...]) -> list[tuple[int, int, int, bytes]]:
    """(number of the topic, first, last, payload)"""
    return [
        (int.from_bytes(topic, "big"), first, last, frame[HEAD.size :])
        for frame in frames
        for topic, first, last in [HEAD.unpack_from(frame)]
    ]


# ---- groups


def test_watchers_of_the_same_keys_share_a_group_and_others_do_not() -> None:
    all = groups()
    one = join(all, spec(b"a"), 5, 0)
    assert join(all, spec(b"a"), 9, 3) is one
    others = [spec(b"a", b"b"), spec(b"a", None, frozenset({1})), spec(b"a", None, NOTHING, True), spec(b"b")]
    assert len({join(all, other, 5, 0).topic for other in others} | {one.topic}) == 5


def test_a_group_is_founded_only_where_it_is_worth_it_and_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.broadcast.GROUPS_MAX", 2)
    all = groups()
    assert all.join(spec(b"a"), 5, 0, found=False) is None
    one = join(all, spec(b"a"), 5, 0)
    assert all.join(spec(b"a"), 5, 0, found=False) is one
    join(all, spec(b"b"), 5, 0)
    assert all.join(spec(b"c"), 5, 0, found=True) is None
    assert len(all) == 2


def test_a_group_is_told_its_events_once_and_what_they_cover() -> None:
    all = groups()
    for number, one in enumerate([spec(b"a"), spec(b"a", b"b"), spec(b"\0", b""), spec(b"aa", b"zz"), spec(b"x")]):
        group = join(all, one, 5, 0)
        assert told([all.subscribed(group.topic, 5, 0) or b""]) == [(number + 1, 6, 5, b"")]
    frames = list(all.changes([seen(6, b"a"), seen(6, b"ab"), seen(7, b"c")], 7, b"H", 0))
    a, ab, c = (event_field(seen(0, key), False) for key in (b"a", b"ab", b"c"))
    assert sorted(told(frames)) == [
        (1, 6, 7, b"H" + a),
        (2, 6, 7, b"H" + a + ab),
        (3, 6, 7, b"H" + a + ab + c),
        (4, 6, 7, b"H" + ab + c),
    ]
    frames = list(all.changes([seen(9, b"x")], 9, b"H", 0))
    x = event_field(seen(0, b"x"), False)
    assert sorted(told(frames)) == [(3, 8, 9, b"H" + x), (4, 8, 9, b"H" + x), (5, 6, 9, b"H" + x)]
    frames = list(all.changes([seen(12, b"a")], 12, b"", 0))
    assert [(number, first) for number, first, _, _ in sorted(told(frames))] == [(1, 7), (2, 7), (3, 10)]


def test_filters_and_what_was_before() -> None:
    all = groups()
    for one in (spec(b"a", None, frozenset({0})), spec(b"a", None, NOTHING, True)):
        all.subscribed(join(all, one, 5, 0).topic, 5, 0)
    change = seen(6, b"a")
    assert told(list(all.changes([change], 6, b"", 0))) == [(2, 6, 6, event_field(change, True))]
    assert b"before" in event_field(change, True)


def test_what_happened_while_nobody_listened_is_a_gap() -> None:
    """To say "nothing happened" of it would be the end of reliable."""
    all = groups()
    group = join(all, spec(b"a"), 5, 0)
    assert list(all.changes([seen(6, b"a")], 6, b"", 0)) == []
    assert told([all.subscribed(group.topic, 6, 0) or b""]) == [(1, 7, 6, b"")]
    all.unsubscribed(group.topic, 1)
    assert list(all.changes([seen(7, b"a")], 7, b"", 1)) == []
    assert told([all.subscribed(group.topic, 9, 2) or b""]) == [(1, 8, 9, b"")]
    all.restart(20)
    assert told(list(all.changes([seen(21, b"a")], 21, b"", 3)))[0][1:3] == (21, 21)


def test_a_topic_that_does_not_exist_is_silence() -> None:
    assert groups().subscribed(bytes(16), 5, 0) is None


def test_silence_is_broken_and_what_nobody_wants_is_forgotten() -> None:
    all = groups()
    group = join(all, spec(b"a", b"b"), 5, 0)
    all.subscribed(group.topic, 5, 0)
    list(all.changes([seen(6, b"a")], 6, b"", 1))
    assert all.tick(6, 1 + SILENCE_TICKS) == []
    assert all.tick(9, 2 * SILENCE_TICKS) == []  # it was looked at a moment ago
    assert told(all.tick(9, 1 + 2 * SILENCE_TICKS)) == [(1, 7, 9, b"")]
    assert told(all.tick(9, 1 + 2 * SILENCE_TICKS + PULSE_TICKS)) == [(1, 7, 9, b"")]
    all.unsubscribed(group.topic, 100)
    all.tick(9, 100 + GRACE_TICKS)
    assert len(all) == 1
    all.tick(9, 100 + GRACE_TICKS + SILENCE_TICKS)
    assert (len(all), matching(all, b"a")) == (0, [])


def test_the_index_of_groups_is_the_same_as_asking_each() -> None:
    dice, all = random.Random(1), groups()
    keys = [b"", b"\xff", b"\xff\xff", *(bytes(dice.choices(b"ab\xff", k=n)) for n in (1, 2, 3) for _ in range(8))]
    specs = {spec(key, end) for key in keys for end in (None, b"", key + b"\0", b"b", b"b\xff", b"ab")}
    for one in specs:
        join(all, one, 0, 0)
    gone = set(dice.sample(sorted(specs, key=repr), len(specs) // 2))
    for one in gone:
        all._forget(all._by_spec[one])
    for key in keys:
        expected = {one for one in specs - gone if one.in_range(key)}
        found = [group.spec for group in matching(all, key)]
        assert (set(found), len(found)) == (expected, len(expected))


# ---- a world with air in it


class AirLink(Link):
    def publish(self, frame: bytes) -> None:
        world = self._world
        assert isinstance(world, Air)
        world.published(frame)


class Air(World):
    """A node that broadcasts, and its listeners."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.listeners: dict[bytes, Listener] = {}
        self.loss = 0.0
        super().__init__(response_bytes_max=200)

    def restart_watch(self) -> None:
        super().restart_watch()
        self.watchd = Watchd(
            AirLink(self),
            Node(),  # type: ignore[arg-type]
            _board(),
            epoch=self.epoch,
            response_bytes_max=self.response_bytes_max,
            progress_ticks=10,
            broadcast="tcp://127.0.0.1:9",
            share_from=1,
            new_topic=lambda: self.dice.randbytes(16),
        )
        for listener in list(self.listeners.values()):
            listener.lose()

    def restart_apply(self) -> None:
        """The conversation between the two processes begins anew."""
        self.to_apply.clear()
        self.to_watch = deque(item for item in self.to_watch if isinstance(item, ClientFrame | Subscription))
        self.feed = Feed(self.keyspace, lambda message: self.to_watch.append(message), self.dice.getrandbits(40) << 20)
        self.feed.caught_up(1)

    def published(self, frame: bytes) -> None:
        for listener in list(self.listeners.values()):
            if frame[:16] in listener.topics and self.dice.random() >= self.loss:
                listener.air.append(frame)

    def send(self, identity: bytes, frame: bytes) -> bool | None:
        listener = self.listeners.get(identity)
        if listener is None:
            return None
        if len(listener.stream) > 5:
            return False
        listener.stream.append(frame)
        return True

    def subscribe(self, listener: Listener, topic: bytes, wanted: bool) -> None:
        """As XPUB tells it: every subscription, and the last one's end."""
        if wanted:
            listener.topics.add(topic)
            self.to_watch.append(Subscription(topic, True))
        elif topic in listener.topics:
            listener.topics.discard(topic)
            if not any(topic in other.topics for other in self.listeners.values()):
                self.to_watch.append(Subscription(topic, False))


class Listener:
    """A client: the core, one connection at a time, and what its watches were given."""

    def __init__(self, world: Air) -> None:
        self.world = world
        self.core = WatchCore(random.Random(1))
        self.stream: deque[bytes] = deque()
        self.air: deque[bytes] = deque()
        self.topics: set[bytes] = set()
        self.session: Session | None = None
        self.identity = b""
        self.now = 0.0
        self.given: dict[Watch, list[Event]] = {}
        self.starts: dict[Watch, int] = {}
        self.ended: dict[Watch, errors.KvorumError] = {}
        self.kept: dict[Watch, int] = {}  # streams that watches had when it went deaf
        member = pb.Endpoint(member_id=1, watch="tcp://127.0.0.1:8")
        self.core.learn(pb.HelloResponse(members=[member], header=pb.ResponseHeader(member_id=1)), "tcp://127.0.0.1:7")

    def watch(self, watch: Watch) -> None:
        self.given[watch] = []
        self.starts[watch] = watch.next
        self.core.add(watch, self.now)

    def lose(self) -> None:
        """The connection breaks, with all that is on its way."""
        for topic in list(self.topics):
            self.world.subscribe(self, topic, False)
        self.world.listeners.pop(self.identity, None)
        self.stream.clear()
        self.air.clear()
        session, self.session = self.session, None
        if session is not None:
            self.core.lost(session, self.now, "lost")

    def deafen(self) -> None:
        """Only what carries the broadcasts breaks, with all that is on its way."""
        for topic in list(self.topics):
            self.world.subscribe(self, topic, False)
        self.air.clear()
        if self.session is not None:
            self.kept.update({watch: watch.stream for watch in self.given if watch.state is State.LIVE})
            self.core.deafened(self.session)

    def turn(self, *, stream: int = 99, air: int = 99) -> None:
        """Take so many messages, and say what is to be said."""
        core = self.core
        self.now += 0.1
        for _ in range(min(air, len(self.air))):
            frame = self.air.popleft()
            if self.session is not None:
                core.published(self.session, frame, self.now)
        for _ in range(min(stream, len(self.stream))):
            frame = self.stream.popleft()
            if self.session is not None:
                core.received(self.session, frame, self.now)
        core.tick(self.now)
        if core.closing:
            core.closing.clear()
            self.lose()
        if core.opening:
            self.session = core.opening.pop()
            self.identity = b"c%d" % self.world.dice.getrandbits(60)
            self.world.listeners[self.identity] = self
            core.connected(self.session, self.now)
        if self.session is not None:
            while batch := core.take():
                self.world.to_watch.append(ClientFrame(self.identity, batch))
            for topic, wanted in core.tuning:
                self.world.subscribe(self, topic, wanted)
            core.tuning.clear()
        while core.given:
            watch, what, _ = core.given.popleft()
            if isinstance(what, WatchResponse):
                self.given[watch] += what.events
            elif what is not None:
                self.ended[watch] = what


def play(dice: random.Random, steps: int) -> tuple[Air, list[Listener]]:
    world = Air(dice)
    listeners = [Listener(world) for _ in range(3)]
    world.put(b"a0", b"first")
    ranges = [(b"a", b"b"), (b"a1", None), (b"\0", b"\0"), (b"a2", b"b")]
    for listener in listeners:
        for _ in range(dice.randint(1, 4)):
            key, end = dice.choice(ranges)
            filters = dice.choice([[], [], ["noput"], ["nodelete"]])
            listener.watch(Watch(key, end, start_revision=dice.choice([1, 2, 5, 30]), filters=filters))
    for _ in range(steps):
        chance = dice.random()
        if chance < 0.5:
            key = b"%c%d" % (dice.choice(b"ab"), dice.randrange(4))
            world.put(key, dice.randbytes(dice.choice([3, 150])))
        elif chance < 0.6:
            world.delete(b"a", b"b")
        elif chance < 0.62:
            world.restart_watch()
        elif chance < 0.65:
            dice.choice(listeners).lose()
        elif chance < 0.7:
            world.loss = dice.choice([0.0, 0.0, 0.3, 1.0])
        elif chance < 0.72:
            world.restart_apply()
        elif chance < 0.75:
            dice.choice(listeners).deafen()
        run(world, listeners, dice)
    return world, listeners


def run(world: Air, listeners: list[Listener], dice: random.Random) -> None:
    if dice.random() < 0.5:
        world.to_watch.append(Tick())
    if dice.random() < 0.8:
        world.watchd.turn()
    if dice.random() < 0.8:
        world.apply_turn()
    for listener in listeners:
        if dice.random() < 0.7:
            listener.turn(stream=dice.randint(0, 4), air=dice.randint(0, 4))


def heal(world: Air, listeners: list[Listener], rounds: int = 400) -> None:
    world.loss = 0.0
    for _ in range(rounds):
        world.settle(1)
        for listener in listeners:
            listener.turn()


def expected(world: Air, watch: Watch, start: int) -> list[tuple[int, bytes]]:
    asked, found = watch.asked, []
    for revision, raw in world.events:
        event = pb.Event.FromString(raw)
        key, end = event.kv.key, asked.range_end
        inside = key == asked.key if not end else key >= asked.key and (end == b"\0" or key < end)
        if revision >= start and inside and event.type not in asked.filters:
            found.append((revision, key))
    return found


@pytest.mark.parametrize("seed", range(60))
def test_a_listener_hears_every_change_once_and_in_order_whatever_the_air_loses(seed: int) -> None:
    """W1 to W5: over drops, silence, deaf ears, reconnects, restarts of the watch process, new sessions with apply."""
    dice = random.Random(seed)
    world, listeners = play(dice, 300)
    heal(world, listeners)
    world.put(b"a1", b"last")
    world.put(b"a2", b"last")
    heal(world, listeners, 60)
    world.delete(b"a", b"b")
    heal(world, listeners, 60)
    tuned = kept = 0
    for listener in listeners:
        assert not listener.ended
        for watch, events in listener.given.items():
            found = [(event.mod_revision, event.key) for event in events]
            assert found == expected(world, watch, listener.starts[watch])
            tuned += watch.state is State.TUNED
            kept += watch.state is State.LIVE and listener.kept.get(watch) == watch.stream
    # Whose topic was silent for long stays with its stream until that is opened anew, and so does who went deaf while
    # it had one; the others listen in peace.
    assert 2 * tuned >= sum(len(listener.given) for listener in listeners) - kept


def test_a_publisher_that_falls_silent_is_left_for_the_stream() -> None:
    dice = random.Random(1)
    world = Air(dice)
    world.put(b"a0", b"v")
    listener = Listener(world)
    listener.watch(Watch(b"a", b"b", start_revision=1))
    heal(world, [listener], 60)
    (watch,) = listener.given
    assert watch.state is State.TUNED
    world.loss = 1.0
    world.put(b"a1", b"unheard")
    rounds = 0
    while len(listener.given[watch]) < 2:
        world.settle(1)
        listener.turn()
        rounds += 1
        assert rounds < 3 * SILENCE_SECONDS / 0.1
    assert [event.key for event in listener.given[watch]] == [b"a0", b"a1"]


def test_a_topic_is_told_to_whoever_is_not_the_only_one() -> None:
    world = Air(random.Random(1))
    world.watchd._share_from = 2
    listeners = [Listener(world) for _ in range(3)]
    listeners[0].watch(Watch(b"a", b"b"))
    heal(world, listeners, 10)
    listeners[1].watch(Watch(b"a", b"b", prev_kv=True))  # wants something else
    heal(world, listeners, 10)
    listeners[2].watch(Watch(b"a", b"b"))
    heal(world, listeners, 10)
    world.put(b"a", b"v")
    heal(world, listeners, 60)
    assert [[watch.state for watch in one.given] for one in listeners] == [[State.LIVE], [State.LIVE], [State.TUNED]]
    assert all(len(events) == 1 for one in listeners for events in one.given.values())


def test_a_listener_that_goes_deaf_goes_on_by_a_stream_and_listens_again() -> None:
    """Who has a stream already keeps to it: a port that nobody reaches is not tried for ever."""
    dice = random.Random(1)
    world = Air(dice)
    world.put(b"a0", b"v")
    listener = Listener(world)
    listener.watch(Watch(b"a", b"b", start_revision=1))
    heal(world, [listener], 60)
    (watch,) = listener.given
    assert watch.state is State.TUNED
    listener.deafen()
    assert watch.state is State.OPENING
    world.put(b"a1", b"v")
    heal(world, [listener], 60)
    assert watch.state is State.TUNED
    assert [event.key for event in listener.given[watch]] == [b"a0", b"a1"]
    listener.deafen()
    while watch.state is not State.LIVE:
        listener.turn(air=0)
        world.settle(1)
    opened = listener.core._next_stream
    listener.deafen()
    heal(world, [listener], 60)
    assert (watch.state, listener.core._next_stream) == (State.LIVE, opened)


def test_a_gap_that_was_compacted_ends_the_watch_with_the_reason() -> None:
    """Never a silent hole."""
    dice = random.Random(1)
    world = Air(dice)
    world.put(b"a0", b"v")
    listener = Listener(world)
    listener.watch(Watch(b"a", b"b", start_revision=1))
    heal(world, [listener], 60)
    world.loss = 1.0
    for number in range(5):
        world.put(b"a0", b"%d" % number)
        world.settle(1)
    world.compact(world.keyspace.revision)
    heal(world, [listener], 300)
    (ended,) = listener.ended.values()
    assert isinstance(ended, errors.Compacted)
    assert ended.compact_revision == world.keyspace.compacted
    assert len(listener.given.popitem()[1]) == 1


def test_a_slow_reader_costs_a_bound_and_gets_everything_when_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.watching.BACKLOG_BYTES_MAX", 500)
    dice = random.Random(1)
    world = Air(dice)
    listener = Listener(world)
    listener.watch(Watch(b"a", b"b", start_revision=1))
    heal(world, [listener], 60)
    (watch,) = listener.given
    for number in range(40):
        world.put(b"a0", b"%d" % number * 20)
        heal(world, [listener], 2)
    assert watch.state is State.PAUSED
    assert watch.given_bytes < 2000
    while watch.given_bytes > watch.read_bytes or watch.state is State.PAUSED:
        watch.read_bytes = watch.given_bytes
        listener.core.caught_up(watch, listener.now)
        heal(world, [listener], 60)
    assert len(listener.given[watch]) == 40
