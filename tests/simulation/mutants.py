"""Wrong cores, shells, stores and clients: each breaks one rule that the right ones keep, by overriding what keeps it.

A simulator that finds nothing has proved nothing until it finds what is known to be there. Every mutant here must be
caught within a number of seeds (test_mutants.py); one that is not any more means that the simulator has gone blind, or
that the rule is kept somewhere else now. Those of leases and of broadcasts are in wrong_leases.py and
wrong_broadcasts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.applyd import Applyd
from cluster.broadcast import Seen, event_field
from cluster.callers import Caller
from cluster.internal import Committed
from cluster.proposals import Pending, Proposals
from cluster.raft.core import Append, Raft
from cluster.raft.leadership import Leadership
from cluster.raft.log import Log
from cluster.raft.message import Message
from cluster.raft.quorum import Outcome
from cluster.raftd import Raftd
from cluster.reads import Reads
from cluster.streams import Stream, Watcher, response
from cluster.watchd import Watchd
from kvorum import wire
from kvorum.watching import WatchCore
from storage import codec
from storage.engine import Engine
from storage.entry import HardState
from storage.history import Change
from storage.keyspace import Keyspace, Turn
from storage.turn import Outcome as Applied
from storage.turn import Result
from tests.simulation import wrong_broadcasts, wrong_leases
from tests.simulation.disk import SimWal
from tests.simulation.faults import Temper
from tests.simulation.node import Shells
from tests.simulation.run import Plan
from tests.simulation.world import MILLISECOND, SECOND

# ---- the core


class CountsItsVoteTwice(Raft):
    """A candidate's vote for itself counts when it is cast and once more when it is on disk."""

    def _election_outcome(self) -> Outcome:
        granted = sum(self._votes.values()) + self._votes.get(self.id, False)
        return Outcome.WON if granted > len(self.voters) // 2 else super()._election_outcome()


class VotesForAnybody(Raft):
    """Raft paper 5.2: one vote a term."""

    def _may_vote(self, m: Message) -> bool:
        return True


class SkipsTheLogCheck(Raft):
    """Raft paper 5.4.1: no vote for a log that ends before one's own."""

    def _is_up_to_date(self, m: Message) -> bool:
        return True


class CommitsOldTermsByCounting(Raft):
    """Raft paper 5.4.2, figure 8."""

    def _may_commit_by_counting(self, index: int) -> bool:
        return True


class SpeaksBeforeTheSync(Raft):
    """Votes and acknowledgements leave at once."""

    def _hold(self, m: Message) -> None:
        self._send(m)


class CountsItselfBeforeTheSync(Raft):
    """A leader's own entries count as one vote before they are on its disk."""

    def _durable_at_majority(self, leading: Leadership) -> int:
        leading.own_durable(self.log.last_index)
        return super()._durable_at_majority(leading)


class ForgetsItsVote(Raft):
    """Raft paper, figure 2: votedFor is persistent."""

    def _take_append(self) -> Append | None:
        append = super()._take_append()
        if append is not None and append.hard_state is not None:
            append.hard_state = HardState(append.hard_state.term, 0, append.hard_state.commit)
        return append


class TakesAnyCompletion(Raft):
    """An entry that was replaced is taken for durable when the write of the one before it completes (ABA)."""

    def _speaks_for_us(self, append: Append) -> bool:
        return append.last_index <= self.log.last_index and append.last_index < self.log._unsaved


class ReadsBeforeItsFirstCommit(Raft):
    """A fresh leader doesn't know yet how far it may be committed (raft: ReadOnlyForNewLeader)."""

    def _committed_in_term(self) -> bool:
        return True


class ReadsUnconfirmed(Raft):
    """A leader answers reads without asking whether it still is one."""

    def _open_round(self, leading: Leadership) -> None:
        super()._open_round(leading)
        for id in self.voters:
            leading._progress[id].read_round = self._reads.round
        self._confirm_reads(leading)


class CommitsBeyondTheMatch(Raft):
    """A follower believes the leader's commit index about entries that it did not get from that leader."""

    def _on_commit(self, m: Message) -> None:
        super()._on_commit(m)

    def _on_append(self, m: Message) -> None:
        super()._on_append(m)
        self.log.commit_to(min(m.commit, self.log.last_index))


class AppliesWhatIsNotOnItsDisk(Raft):
    """A store may then be ahead of its log after a crash."""

    @property
    def applicable(self) -> int:
        return self.log.committed


class CutsOnEveryAppend(Log):
    """A late append cuts off what has been acknowledged since (etcd/raft: HandleMsgApp)."""

    def accept(self, index: int, term: int, entries: object) -> int | None:
        if self.matches(index, term) and index < self.last_index:
            self._truncate(index + 1)
        return super().accept(index, term, entries)  # type: ignore[arg-type]


class SaysDurableTooEarly(SimWal):
    """A journal that reports what it was given instead of what it synced."""

    def durable(self) -> int:
        super().durable()
        return self._position


# ---- the shells


class FeedsAnySession(Applyd):
    """Takes committed entries of a conversation that is over."""

    def _apply(self, committed: list[Committed]) -> None:
        super()._apply([message._replace(session=self.session) for message in committed])


class TakesEveryAnswerToItsAttach(Applyd):
    """Asked twice, raft answers twice, and the second time feeds what the first time has brought already."""

    def _attached(self, session: int) -> None:
        self.session = 0
        super()._attached(session)


class AnswersBeforeTheCommit(Applyd):
    """A put is answered as soon as it is proposed."""

    def _propose(self) -> None:
        for _, callers in self._admission.writes:
            for caller in callers:
                if caller.method == wire.Method.PUT:
                    self.reply(caller, Result(0, self.keyspace.revision + 1, b""))
        super()._propose()


class _NeverAsks(Reads):
    def ask(self, now: int) -> int | None:
        self._ripe.append((0, self._arrived))
        self._arrived = []
        return None


class _DoesNotWait(Reads):
    def ready(self, context: int, upto: int) -> None:
        super().ready(context, 0)


class _Joins(Reads):
    def ask(self, now: int) -> int | None:
        if self._asked is not None:
            self._asked.reads.extend(self._arrived)
            self._arrived = []
        return super().ask(now)


class ReadsWithoutAsking(Applyd):
    """A linearizable read is answered from whatever is here."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reads = _NeverAsks()


class AnswersReadsTooEarly(Applyd):
    """Asks how far it must have applied, and doesn't wait until it has."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reads = _DoesNotWait()


class JoinsARunningRound(Applyd):
    """A read that arrives while a read index is under way is answered with that one, which is from before it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reads = _Joins()


class ShowsWhatItOpens(Applyd):
    """A fresh process answers serializable reads from a store that is older than what was shown before it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reads.begin_anyway()


class _RefusesWhatItSent(Proposals):
    def expire(self, limit: int) -> Iterable[Pending]:
        for pending in super().expire(limit):
            pending.attempts = 0
            yield pending


class _TakesEveryNoForFinal(Proposals):
    def rejected(self, number: int, now: int, *, final: bool) -> list[Caller]:
        pending = self._pending.get(number)
        if pending is None:
            return []
        self._forget(pending)
        return pending.callers


class _MixesUp(Proposals):
    def settle(self, number: int, now: int) -> list[Caller]:
        callers = super().settle(number, now)
        alike = len({caller.method for caller in callers}) == 1
        return callers[1:] + callers[:1] if alike else callers


class _ProposesAnew(Proposals):
    def _send(self, pending: Pending, now: int) -> None:
        if pending.attempts:
            self._number += 1
            origin, incarnation, _, batch = codec.unpack_proposal(pending.data)
            pending.data = codec.pack_proposal(origin, incarnation, self._number, batch)
        super()._send(pending, now)


class _OtherProposals(Applyd):
    """With the bookkeeping of proposals replaced."""

    kind: type[Proposals]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._proposals = self.kind(self.node.member_id, self.epoch, self._to_leader, self.election_ticks)


class RefusesWhatItSent(_OtherProposals):
    """Tells callers "not done" when their time is up, whatever may become of the proposal."""

    kind = _RefusesWhatItSent


class TakesEveryNoForFinal(_OtherProposals):
    """Believes the refusal of one attempt although another is under way."""

    kind = _TakesEveryNoForFinal


class MixesUpAnswers(_OtherProposals):
    """In a batch of several, each caller hears what the next one should (RELIABILITY T5)."""

    kind = _MixesUp


class ProposesAnewUnderANewNumber(_OtherProposals):
    """A batch whose fate is unknown goes into the log a second time as a new one."""

    kind = _ProposesAnew


class TellsTheRevisionOfNow(Applyd):
    """The header of an answer names the newest revision instead of the answer's own (RELIABILITY K7)."""

    def reply(self, caller: Caller, result: Result) -> None:
        super().reply(caller, result._replace(revision=self.keyspace.revision))


class GivesUpTheLogTooEarly(Raftd):
    """Releases what one member no longer needs, not what nobody needs."""

    def _floor(self, sender: int, index: int) -> None:
        for member in self._members:
            super()._floor(member, min(index, self.core.log.stable_index))


class AnswersOldSessions(Raftd):
    """Hears an apply process that is not attached."""

    def _known(self, session: int) -> bool:
        return self._attached


class DropsWhenFull(Watchd):
    """What a watcher's connection has no room for is gone (RELIABILITY T7)."""

    def _send(self, stream: Stream, payloads: list[bytes]) -> bool:
        super()._send(stream, payloads)
        return True


class BelievesItIsSynced(Watchd):
    """A watcher that lacks the past is served the present."""

    def _place(self, watcher: Watcher) -> None:
        super()._place(watcher)
        watcher.synced = True


class TellsOfProgressTooEarly(Watchd):
    """Progress from another counter than the stream's own (etcd #15220)."""

    def _notify_progress(self, watcher: Watcher) -> None:
        if watcher.next <= self._head:
            self._send(watcher.stream, [response(self.node.header(self._head, self._term), watcher.id, [])])


class CutsWithinARevision(Watchd):
    """Answers are cut wherever they are full."""

    def _parts(self, watcher: Watcher, wanted: Sequence[Seen], covered: int) -> Iterable[tuple[list[bytes], int]]:
        header = self.node.header(self._head, self._term)
        for seen in wanted:
            yield [response(header, watcher.id, [event_field(seen, watcher.prev_kv)])], seen.revision
        yield [], covered


# ---- the store


T = TypeVar("T", bound=Turn)


def _as(kind: type[T], turn: Turn) -> T:
    """The same turn, with another class's habits."""
    turn.__class__ = kind
    assert isinstance(turn, kind)
    return turn


class _ForgetfulTurn(Turn):
    def apply(self, index: int, term: int, data: bytes, *, answers: bool = True) -> Applied:
        self.origins.clear()
        self._origins_before = {}
        return super().apply(index, term, data, answers=answers)


class AppliesCopies(Keyspace):
    """Doesn't know which batches it has applied."""

    def begin(self, *, prev: bool = True) -> Turn:
        return _as(_ForgetfulTurn, super().begin(prev=prev))


class WritesTheIndexApart(Keyspace):
    """The applied index follows in a batch of its own (RELIABILITY T1, etcd 3.5's inconsistency)."""

    def _commit(self, turn: Turn) -> list[Change]:
        before = self.engine.get(codec.STATE)
        changes = super()._commit(turn)
        after = self.engine.get(codec.STATE)
        if before is not None and after is not None and changes:
            self._back_date(before)
            batch = self.engine.batch()
            batch.put(codec.STATE, after)
            self.engine.write(batch)
        return changes

    def _back_date(self, state: bytes) -> None:
        """Make the batch just written carry the old index."""
        batch = self.engine._tail[-1]  # type: ignore[attr-defined]
        at = next(i for i, (key, _) in enumerate(batch) if key == codec.STATE)
        batch[at] = (codec.STATE, state)


class _OwnMindedTurn(Turn):
    """Does what depends on who does it."""

    def _store(self, key: bytes, value: bytes, lease: int, create: int, version: int, prev: bytes) -> None:
        value += b"!" if self.revision % 7 == 0 and self._own else b""
        super()._store(key, value, lease, create, version, prev)

    _own = False


class DependsOnTheMember(Keyspace):
    """Applies an entry otherwise than another member would, after a restart."""

    def __init__(self, engine: object) -> None:
        super().__init__(engine)  # type: ignore[arg-type]
        self._restarted = self.revision > 1

    def begin(self, *, prev: bool = True) -> Turn:
        turn = _as(_OwnMindedTurn, super().begin(prev=prev))
        turn._own = self._restarted
        return turn


class SweepsTooMuch(Keyspace):
    """Physical compaction takes away the compaction point's own state, too (etcd #19179)."""

    def sweep(self) -> bool:
        for key in list(self.engine.scan_keys(codec.revision_key(2, 0), codec.revision_key(self.compacted + 1, 0))):
            batch = self.engine.batch()
            batch.delete(key)
            self.engine.write(batch)
        return super().sweep()


class ForgetsItsAlarms(Keyspace):
    """Opens a store as if no alarm stood there."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.alarms.raised, self.alarms.corrupt = frozenset(), False


class _HeedlessTurn(Turn):
    def _long_way(self, batch: bytes) -> list[Result]:
        """As if no alarm stood, but for the record that raises one."""
        self.alarms.check = lambda request: None  # type: ignore[method-assign]
        return super()._long_way(batch)


class DoesNotHeedAlarms(Keyspace):
    """Refuses nothing."""

    def begin(self, *, prev: bool = True) -> Turn:
        return _as(_HeedlessTurn, super().begin(prev=prev))


# ---- where to look for them


def _weather_of_figure_8(plan: Plan) -> None:
    """Leaders that are struck down at their election, entries that travel one by one."""
    plan.tenants = plan.listeners = 0
    plan.members, plan.sizes.append_bytes, plan.climate.delay_max = 3, 1, MILLISECOND
    plan.temper = Temper(4 * SECOND, {"depose": 1}, jinx=0.9)


def _replaced_in_flight(plan: Plan) -> None:
    """Slow disks, and leaders that come and go."""
    plan.tenants = plan.listeners = 0
    plan.members, plan.habits.clients = 5, 8
    plan.temper = Temper(SECOND, {"slow_disk": 4, "depose": 3, "isolate": 2, "weather": 2}, jinx=0.5)


def _cut_off_leaders(plan: Plan) -> None:
    """Leaders that don't know they no longer are, with clients who ask them."""
    plan.tenants = plan.listeners = 0
    plan.temper = Temper(2 * SECOND, {"stale_leader": 3, "depose": 1}, jinx=0.0)
    plan.habits.clients, plan.habits.roam = 8, 0.0
    plan.habits.weights |= {"get": 20, "group": 10}


def _slow_roads(plan: Plan) -> None:
    """Messages that take their time, and everybody at the same few keys."""
    plan.tenants = plan.listeners = 0
    plan.climate.delay_max, plan.climate.loss = 150 * MILLISECOND, 0.0
    plan.habits.clients, plan.habits.groups, plan.habits.keys, plan.habits.batch_max = 8, 1, 2, 1
    plan.habits.think_max = 300 * MILLISECOND
    plan.temper.kinds = {}


def _young_leaders(plan: Plan) -> None:
    """Leaders that are asked for much before they have done anything."""
    plan.tenants = plan.listeners = 0
    plan.climate.delay_max, plan.members = 30 * MILLISECOND, 3
    plan.habits.clients, plan.habits.groups, plan.habits.batch_max, plan.habits.roam = 8, 1, 1, 0.5
    plan.habits.think_max = 400 * MILLISECOND
    plan.temper = Temper(SECOND, {"transfer": 4, "depose": 2, "slow_disk": 1}, jinx=0.0)


def _restless_processes(plan: Plan) -> None:
    """Each half of a node dies and sleeps while the other goes on."""
    plan.tenants = plan.listeners = 0
    plan.members = 3
    plan.temper = Temper(200 * MILLISECOND, {"kill": 4, "pause": 4, "failpoint": 2}, jinx=0.0)
    plan.knobs.flush_ticks, plan.knobs.floor_ticks = 3, 2


def _slow_watchers(plan: Plan) -> None:
    """Everybody watches, and their servers come and go."""
    plan.tenants = plan.listeners = 0
    plan.followers, plan.members = 3, 3
    plan.temper = Temper(SECOND, {"kill": 2, "pause": 2}, jinx=0.0)


def _busy_tenants(plan: Plan) -> None:
    """Much is done with leases, and their leader changes."""
    plan.members, plan.tenants, plan.habits.clients = 3, 3, 2
    plan.tenants_habits.think_max = 400 * MILLISECOND
    plan.knobs.checkpoint_seconds, plan.knobs.lessor_patience = 1.0, 10.0
    plan.temper = Temper(3 * SECOND, {"transfer": 2, "depose": 2, "kill": 1}, jinx=0.0)


def _lasting_tenants(plan: Plan) -> None:
    """Leases are renewed for as long as the run takes, under one leader after the other."""
    _busy_tenants(plan)
    plan.knobs.checkpoint_seconds = 300.0
    plan.tenants_habits.weights |= {"keep": 20, "revoke": 0}
    plan.temper = Temper(2 * SECOND, {"transfer": 1}, jinx=0.0)


def _drifting_clocks(plan: Plan) -> None:
    """The same, and members' clocks run at rates of their own."""
    _lasting_tenants(plan)
    plan.drift = 0.05


def _alarms(plan: Plan) -> None:
    """They are raised and taken back, and stores are opened meanwhile."""
    _busy_tenants(plan)
    plan.alarms = True
    plan.temper = Temper(SECOND, {"kill": 2, "node": 1}, jinx=0.0)


def _cut_off_lessors(plan: Plan) -> None:
    """Tenants ask leaders that don't know they no longer are."""
    _busy_tenants(plan)
    plan.tenants_habits.roam = 0.0
    plan.tenants_habits.weights |= {"keep": 30, "left": 0, "revoke": 3}
    plan.temper = Temper(1500 * MILLISECOND, {"stale_leader": 1}, jinx=0.0)


def _slow_lessors(plan: Plan) -> None:
    """What was decided takes its time."""
    _busy_tenants(plan)
    plan.climate.delay_max, plan.climate.loss = 150 * MILLISECOND, 0.0
    plan.tenants_habits.weights |= {"keep": 20, "left": 0, "revoke": 3}
    plan.temper = Temper(2 * SECOND, {"slow_disk": 2, "transfer": 1}, jinx=0.0)


def _wanted_names(plan: Plan) -> None:
    """The same few ids are granted, revoked and granted again, and a lessor knows it late."""
    _busy_tenants(plan)
    plan.tenants_habits.shared = 1.0
    plan.tenants_habits.weights |= {"grant": 12, "revoke": 8, "keep": 1, "left": 1, "list": 0, "put": 2}
    plan.temper = Temper(SECOND, {"slow_disk": 1}, jinx=0.0)


def _lossy_air(plan: Plan) -> None:
    """Everybody listens, and much of it is lost."""
    plan.members, plan.listeners, plan.followers, plan.air_loss, plan.air_breaks = 3, 3, 0, 0.2, 0.3
    plan.knobs.history_bytes, plan.knobs.grace_ticks, plan.sizes.share_from = 2_000, 5, 1
    plan.temper = Temper(SECOND, {"kill": 2, "pause": 1, "cut_clients": 1}, jinx=0.0)


def _restless_stores(plan: Plan) -> None:
    """Everybody listens, and what they are told comes from stores that are opened again and again."""
    _lossy_air(plan)
    plan.members, plan.air_loss, plan.air_breaks, plan.knobs.grace_ticks = 1, 0.0, 0.0, 100
    plan.temper = Temper(300 * MILLISECOND, {"kill": 3, "pause": 1}, jinx=0.0)


def _fickle_ears(plan: Plan) -> None:
    """Nothing breaks but the connections of those who listen, and they are soon forgotten."""
    _lossy_air(plan)
    plan.members, plan.air_loss, plan.air_breaks, plan.knobs.grace_ticks = 1, 0.0, 1.0, 1
    plan.temper = Temper(SECOND, {}, jinx=0.0)


def _absent_ears(plan: Plan) -> None:
    """They are away for a while, and not forgotten."""
    _fickle_ears(plan)
    plan.knobs.grace_ticks = 100


def _lost_proposals(plan: Plan) -> None:
    """Members that are cut off with what they have proposed, and clients who wait until they are told."""
    plan.tenants = plan.listeners = 0
    plan.members, plan.sizes.timeout_ticks, plan.habits.patience_max = 3, 15, 20 * SECOND
    plan.climate.delay_max, plan.climate.loss = 150 * MILLISECOND, 0.01
    plan.temper = Temper(SECOND, {"depose": 3, "transfer": 3, "clog": 2, "slow_disk": 2, "pause": 2}, jinx=0.2)


@dataclass(frozen=True, slots=True)
class Mutant:
    """`seeds`: within how many of them it must be caught. `plan` turns a run towards where the mutant goes wrong; those
    without are caught by what every seed does."""

    name: str
    shells: Callable[[], Shells]
    seeds: int
    plan: Callable[[Plan], None] | None


def _of(cls: type, plan: Callable[[Plan], None] | None = None, seeds: int = 120) -> Mutant:
    kinds = {
        Raft: "raft",
        Log: "log",
        SimWal: "wal",
        Raftd: "raftd",
        Applyd: "applyd",
        Watchd: "watchd",
        Keyspace: "keyspace",
        WatchCore: "listener",
    }
    part = next(name for base, name in kinds.items() if issubclass(cls, base))
    return Mutant(cls.__name__, lambda: Shells(**{part: cls}), seeds, plan)


MUTANTS = [
    _of(CountsItsVoteTwice),
    _of(VotesForAnybody),
    _of(SkipsTheLogCheck, _weather_of_figure_8),
    _of(CommitsOldTermsByCounting, _weather_of_figure_8),
    _of(SpeaksBeforeTheSync),
    _of(CountsItselfBeforeTheSync),
    _of(ForgetsItsVote),
    _of(TakesAnyCompletion, _replaced_in_flight),
    _of(ReadsBeforeItsFirstCommit, _young_leaders),
    _of(ReadsUnconfirmed, _cut_off_leaders),
    _of(CommitsBeyondTheMatch, _weather_of_figure_8),
    _of(AppliesWhatIsNotOnItsDisk),
    _of(CutsOnEveryAppend),
    _of(SaysDurableTooEarly),
    _of(FeedsAnySession, _restless_processes),
    _of(TakesEveryAnswerToItsAttach, _restless_processes),
    _of(AnswersBeforeTheCommit),
    _of(ReadsWithoutAsking),
    _of(AnswersReadsTooEarly),
    _of(JoinsARunningRound, _slow_roads),
    _of(ShowsWhatItOpens, _restless_processes),
    _of(RefusesWhatItSent, _lost_proposals),
    _of(TakesEveryNoForFinal, _lost_proposals),
    _of(MixesUpAnswers),
    _of(ProposesAnewUnderANewNumber),
    _of(TellsTheRevisionOfNow),
    _of(DropsWhenFull, _slow_watchers),
    _of(BelievesItIsSynced, _slow_watchers),
    _of(TellsOfProgressTooEarly, _slow_watchers),
    _of(CutsWithinARevision, _slow_watchers),
    _of(GivesUpTheLogTooEarly, _restless_processes),
    _of(AnswersOldSessions),
    _of(AppliesCopies),
    _of(WritesTheIndexApart, _restless_processes),
    _of(DependsOnTheMember),
    _of(SweepsTooMuch),
    _of(ForgetsItsAlarms, _alarms),
    _of(DoesNotHeedAlarms, _alarms),
    _of(wrong_leases.DoesNotExtend, _busy_tenants),
    _of(wrong_leases.EndsTooEarly, _busy_tenants),
    _of(wrong_leases.CountsOnlyItsOwn, _busy_tenants),
    _of(wrong_leases.BelievesTheClockOnTheWall, _drifting_clocks),
    _of(wrong_leases.RenewsWhatItIsEnding, _slow_lessors),
    _of(wrong_leases.LeavesTheCheckpoint, _busy_tenants),
    _of(wrong_leases.RenewsUnconfirmed, _cut_off_lessors),
    _of(wrong_leases.TellsBeforeItHasApplied, _slow_lessors),
    _of(wrong_leases.MixesUpRenewals, _busy_tenants),
    _of(wrong_leases.HeedsDeposedLessors, _busy_tenants),
    _of(wrong_leases.EndsTheLifeAfter, _wanted_names),
    _of(wrong_leases.EndsKeyByKey, _busy_tenants),
    _of(wrong_leases.EndsInAnyOrder, _busy_tenants),
    _of(wrong_leases.DoesNotDetach),
    _of(wrong_leases.PutsOnTheDead),
    _of(wrong_leases.GrantsOverTheLiving, _wanted_names),
    _of(wrong_leases.ForgetsItsLeases, _busy_tenants),
    _of(wrong_broadcasts.NamesAFirstThatIsTooLow, _absent_ears),
    _of(wrong_broadcasts.DoesNotRestartItsGroups, _restless_stores),
    _of(wrong_broadcasts.ConnectsTooFar, _lossy_air),
    _of(wrong_broadcasts.TearsRevisions, _lossy_air),
    _of(wrong_broadcasts.PublishesWhatNobodyWants, _lossy_air),
    _of(wrong_broadcasts.PublishesTooFar, _lossy_air),
    _of(wrong_broadcasts.LosesTheEndOfASlice, _lossy_air),
    _of(wrong_broadcasts.ForgetsWhatWasBefore, _lossy_air),
    _of(wrong_broadcasts.TakesAnyPublication, _lossy_air),
    _of(wrong_broadcasts.ResumesTooLate, _lossy_air),
    _of(wrong_broadcasts.ResumesTooEarly, _lossy_air),
    _of(wrong_broadcasts.HearsTwice, _lossy_air),
    _of(wrong_broadcasts.StaysWithTheSilent, _fickle_ears),
    _of(wrong_broadcasts.ThinksItIsTunedStill, _lossy_air),
]
