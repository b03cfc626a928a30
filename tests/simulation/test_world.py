"""The parts that the simulated world is made of do what they say: a test rig that is wrong proves the wrong thing."""

from __future__ import annotations

from cluster.raft import message as peer
from cluster.raft.message import DropReason, Message, MessageType
from storage.entry import Entry, HardState
from tests.simulation.disk import Disk, SimWal
from tests.simulation.network import Network, Weather
from tests.simulation.pipes import Pipe
from tests.simulation.world import MILLISECOND, SECOND, World


def _entries(first: int, last: int, term: int = 1) -> list[Entry]:
    return [Entry(term, index, 0, b"%d" % index) for index in range(first, last + 1)]


def _open(disk: Disk) -> SimWal:
    return disk.open(lambda: None, lambda entries: None)[0]


def test_time_passes_only_by_events_and_equal_moments_keep_their_order() -> None:
    """DESIGN 11: a seeded clock."""
    world, said = World(1), []
    for delay, word in ((20, "late"), (10, "first"), (10, "second")):
        world.after(delay, lambda word=word: said.append((world.now, word)))
    world.run(15)
    assert said == [(10, "first"), (10, "second")]
    assert world.now == 15
    world.run(30)
    assert said[2:] == [(20, "late")]


def test_what_is_appended_is_durable_only_after_a_sync_and_one_sync_takes_all_that_has_gathered() -> None:
    """DESIGN 5: group commit, a durable position."""
    world = World(1)
    disk = Disk(world, SimWal)
    disk.sync_min = disk.sync_max = 10 * MILLISECOND
    wal = _open(disk)
    first = wal.append(HardState(1, 1, 0), _entries(1, 2))
    second = wal.append(None, _entries(3, 3))
    third = wal.append(None, _entries(4, 4))
    assert wal.durable() == 0
    world.run(11 * MILLISECOND)
    assert wal.durable() == first
    world.run(21 * MILLISECOND)
    assert wal.durable() == third > second
    assert [entry.index for entry in wal.read(1, 4, 1 << 20)] == [1, 2, 3, 4]


def test_a_crash_leaves_a_first_part_of_what_was_not_synced_and_all_that_was() -> None:
    """DESIGN 5, F10 and F12: a torn tail is cut, what was acknowledged is there."""
    kept = set()
    for seed in range(60):
        world = World(seed)
        disk = Disk(world, SimWal)
        wal = _open(disk)
        wal.append(HardState(1, 1, 0), _entries(1, 2))
        world.run(SECOND)
        assert wal.durable() > 0
        wal.append(HardState(2, 0, 1), [])
        wal.append(None, _entries(2, 4, term=2))
        disk.crash(power=True)
        wal, found = disk.open(lambda: None, lambda entries: None)
        kept.add((found.hard_state.term, found.last_index, found.terms[-1]))
    assert kept == {
        (1, 2, (1, 1)),  # nothing of it
        (2, 2, (1, 1)),  # the hard state
        (2, 1, (1, 1)),  # and the cut
        (2, 2, (2, 2)),  # and entries, one by one
        (2, 3, (2, 2)),
        (2, 4, (2, 2)),
    }


def test_a_failed_sync_is_final_until_the_process_is_started_anew() -> None:
    """F11: nothing becomes durable after it, nothing is acknowledged."""
    world = World(1)
    disk = Disk(world, SimWal)
    woken = []
    wal, _ = disk.open(lambda: woken.append(world.now), lambda entries: None)
    disk.breaking = True
    wal.append(HardState(1, 1, 0), _entries(1, 1))
    world.run(SECOND)
    assert woken
    for call in (wal.durable, lambda: wal.append(None, _entries(2, 2))):
        try:
            call()
        except OSError:
            continue
        raise AssertionError("it went on")
    disk.crash(power=False)
    wal = _open(disk)
    assert wal.durable() == 0


def test_what_was_released_may_be_gone_at_the_next_start_and_nothing_else() -> None:
    """DESIGN 5: whole segments are freed, the log begins somewhere at or before what was released."""
    begins = set()
    for seed in range(40):
        world = World(seed)
        disk = Disk(world, SimWal)
        wal = _open(disk)
        wal.append(HardState(1, 1, 0), _entries(1, 5))
        world.run(SECOND)
        wal.release(3)
        disk.crash(power=False)
        _, found = disk.open(lambda: None, lambda entries: None)
        assert found.last_index == 5
        begins.add(found.prev)
    assert begins == {(0, 0), (1, 1), (2, 1), (3, 1)}


class _Ends:
    """A network that writes down what arrives."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.arrived: list[tuple[int, int, bytes]] = []
        self.network = Network(self.world, lambda to, sender, frame: self.arrived.append((to, sender, frame)))

    def frames(self) -> list[bytes]:
        self.world.run(self.world.now + 10 * SECOND)
        return [frame for _, _, frame in self.arrived]


def test_frames_arrive_in_order_unless_the_weather_says_otherwise() -> None:
    """F6."""
    sent = [bytes([0, 5, number]) for number in range(50)]
    for reorder in (False, True):
        ends = _Ends(3)
        ends.network.weather = Weather(delay_max=100 * MILLISECOND, reorder=reorder)
        for frame in sent:
            ends.network.send(1, 2, frame)
        arrived = ends.frames()
        assert sorted(arrived) == sent
        assert (arrived == sent) is not reorder


def test_frames_are_lost_and_doubled_but_no_proposal_is_doubled() -> None:
    """F6; and cluster.raft.core.Ready: a rejection is certain as long as the network does not repeat a message."""
    propose = peer.encode(Message(MessageType.PROPOSE, 2, 1, 1, context=7, data=b"x"))
    refuse = peer.encode(Message(MessageType.PROPOSE_REPLY, 2, 1, 1, context=7, reason=DropReason.NO_LEADER))
    commit = peer.encode(Message(MessageType.COMMIT, 2, 1, 1, commit=0))
    ends = _Ends(4)
    ends.network.weather = Weather(loss=0.2, twice=0.5)
    for _ in range(200):
        for frame in (propose, refuse, commit):
            ends.network.send(1, 2, frame)
    arrived = ends.frames()
    assert 120 < arrived.count(propose) < 200
    assert 120 < arrived.count(refuse) < 200
    assert arrived.count(commit) > 210


def test_a_link_can_be_broken_in_one_direction() -> None:
    """F5: also for what was on its way when it broke."""
    ends = _Ends(5)
    ends.network.send(1, 2, b"under way")
    ends.network.blocked.add((1, 2))
    ends.network.send(1, 2, b"there")
    ends.network.send(2, 1, b"back")
    assert ends.frames() == [b"back"]


def test_a_clogged_link_delivers_later_what_it_held_back() -> None:
    """FoundationDB's swizzle-clogging: late, all at once, not lost."""
    ends = _Ends(6)
    ends.network.clog(1, 2)
    ends.network.send(1, 2, b"one")
    ends.network.send(1, 2, b"two")
    assert ends.frames() == []
    ends.network.unclog(1, 2)
    assert ends.frames() == [b"one", b"two"]


def test_a_pipe_that_breaks_delivers_a_first_part_and_never_the_rest() -> None:
    """T9: a queue between two processes of a node dies with either of them."""
    sizes = set()
    for seed in range(30):
        world, arrived = World(seed), []
        pipe = Pipe(world, lambda source, frame, arrived=arrived: arrived.append(frame))
        for number in range(4):
            pipe.send(b"a", bytes([number]))
        first, rest = pipe.break_off()
        assert [frame for _, frame in first + rest] == [b"\0", b"\1", b"\2", b"\3"]
        sizes.add(len(first))
        world.run(SECOND)
        assert arrived == []
        pipe.send(b"a", b"new")
        world.run(2 * SECOND)
        assert arrived == [b"new"]
    assert sizes == {0, 1, 2, 3, 4}
