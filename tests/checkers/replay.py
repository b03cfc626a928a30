"""The first verdict: order everything by revision, replay it, and look for one thing that does not fit.

Every answer names a revision, and strict serializability says that revisions ARE the order (RELIABILITY K1): a write
stands at its own revision r, a read between the write at r and the next one. So nothing has to be searched for:

    truth    what every revision changed, told by a watch from the beginning or by the stores themselves
    claimed  each revision belongs to exactly one call: the answered one that claims it, or else one that may have
             happened and would have changed exactly that (a matching, as several deletes may look alike)
    content  every answer equals the model's on the replay at its place: no torn, shifted, stale-in-itself, dirty answer
    time     a call never stands before one that had been answered when it was made, across all keys and members; so
             nobody sees a revision before the call that makes it was made, either

What is answered and has no revision is lost; a revision that no call explains is a dirty read, a request applied twice,
or a refused one that took effect. Serializable answers owe content, not time. `truth` must be the final one: the
caller's own proof that no store has ever shown another is what makes an answer seen early a durable one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from kvorum import etcd_pb2 as pb
from kvorum.errors import FutureRevision
from tests.checkers.history import Operation, deletes, revision_of, serializable, values_put, wrote
from tests.checkers.model import Changes, Pair, State, canonical, execute

Truth = Mapping[int, Sequence[pb.Event]]


class Verdict(NamedTuple):
    """`wrong`: all that does not fit, as sentences. `happened`: the calls that nobody answered and that did happen, by
    id, with the revision that each made."""

    wrong: list[str]
    happened: dict[int, int]


def check_replay(
    history: Iterable[Operation],
    truth: Truth,
    *,
    first: int = 2,
    base: State | None = None,
    others: Container[int] = (),
) -> Verdict:
    """Judge `history` by the truth.

    Args:
      truth: the events of every revision from `first` on.
      base: the state before `first`, when the history does not begin with an empty store.
      others: revisions that nobody in `history` has made or looked at; somebody else judges them.
    """
    replay = _Replay(list(history), truth, first, base or {}, others)
    replay.judge()
    return Verdict(replay.wrong, replay.happened)


class _Replay:
    def __init__(self, history: list[Operation], truth: Truth, first: int, base: State, others: Container[int]) -> None:
        self.history, self.truth, self.first, self.base, self.others = history, truth, first, base, others
        self.wrong: list[str] = []
        self.last = max(truth, default=first - 1)
        self.answered = [op for op in history if op.answer is not None]
        self.owner: dict[int, Operation] = {}
        self.happened: dict[int, int] = {}
        self.versions: dict[bytes, tuple[list[int], list[Pair | None]]] = {}
        for key, pair in base.items():
            self.versions[key] = ([first - 1], [pair])

    def judge(self) -> None:
        if sorted(self.truth) != list(range(self.first, self.last + 1)):
            self.wrong.append(f"revisions are missing between {self.first} and {self.last}")
            return
        self._truth_is_sound()
        self._floors = _floors(self.answered, self.history)
        self._claims()
        self._contents()
        self._orphans()
        self._times()

    def _truth_is_sound(self) -> None:
        seen: dict[bytes, int] = {}
        for revision in range(self.first, self.last + 1):
            for event in self.truth[revision]:
                if event.kv.mod_revision != revision:
                    self.wrong.append(f"revision {revision} holds an event of revision {event.kv.mod_revision}")
                if event.type == pb.Event.PUT:
                    if event.kv.value in seen:
                        where = f"at revision {seen[event.kv.value]} and again at {revision}"
                        self.wrong.append(f"{event.kv.value!r} was written {where}: a request took effect twice")
                    seen[event.kv.value] = revision

    def _claims(self) -> None:
        for op in self.answered:
            assert op.answer is not None
            revision = revision_of(op.answer)
            if not wrote(op.answer):
                continue
            if revision not in self.truth:
                self.wrong.append(f"an acknowledged write is lost, there is no revision {revision}: {op}")
            elif revision in self.owner:
                self.wrong.append(f"revision {revision} was given to two writes: {self.owner[revision]} and {op}")
            else:
                self.owner[revision] = op

    def _contents(self) -> None:
        """One pass over all revisions: at each, the write that made it, then the reads that stand after it."""
        reads: dict[int, list[Operation]] = defaultdict(list)
        for op in self.answered:
            assert op.answer is not None
            if not wrote(op.answer):
                reads[revision_of(op.answer)].append(op)
        for revision in [r for r in reads if not self.first - 1 <= r <= self.last]:
            self.wrong.append(f"an answer from revision {revision}, which never came to be: {reads[revision][0]}")
        candidates = _Candidates(op for op in self.history if op.maybe)
        self.orphans: dict[int, list[Operation]] = {}
        state: dict[bytes, Pair] = dict(self.base)
        self._answers(state, reads.get(self.first - 1, []), self.first - 1)
        for revision in range(self.first, self.last + 1):
            events = self.truth[revision]
            owner = self.owner.get(revision)
            if owner is not None:
                self._write(state, owner, revision)
            elif revision not in self.others:
                self.orphans[revision] = [
                    op for op in candidates.of(events) if self._makes(state, op, revision, events)
                ]
            self._advance(state, revision)
            self._answers(state, reads.get(revision, []), revision)

    def _write(self, state: State, op: Operation, revision: int) -> None:
        said, changes = execute(state, op.request, revision, self._past)
        if said != canonical(op.answer):
            self.wrong.append(f"at revision {revision} the answer should have been {said}: {op}")
        elif problem := _differs(changes, self.truth[revision]):
            self.wrong.append(f"revision {revision} is not what its request asked for ({problem}): {op}")

    def _makes(self, state: State, op: Operation, revision: int, events: Sequence[pb.Event]) -> bool:
        _, changes = execute(state, op.request, revision, self._past)
        return bool(changes) and _differs(changes, events) is None

    def _answers(self, state: State, reads: list[Operation], revision: int) -> None:
        for op in reads:
            said, changes = execute(state, op.request, revision + 1, self._past)
            if said != canonical(op.answer):
                self.wrong.append(f"on the state at revision {revision} the answer should have been {said}: {op}")
            elif changes:
                self.wrong.append(f"the answer claims to have changed nothing, yet the request must: {op}")

    def _advance(self, state: dict[bytes, Pair], revision: int) -> None:
        for event in self.truth[revision]:
            key = event.kv.key
            moment, pairs = self.versions.setdefault(key, ([], []))
            new = None
            if event.type == pb.Event.PUT:
                new = Pair(key, event.kv.value, event.kv.create_revision, event.kv.mod_revision, event.kv.version)
                state[key] = new
            else:
                state.pop(key, None)
            moment.append(revision)
            pairs.append(new)

    def _past(self, revision: int) -> State:
        state = {}
        for key, (moments, pairs) in self.versions.items():
            at = bisect_right(moments, revision) - 1
            pair = pairs[at] if at >= 0 else None
            if pair is not None:
                state[key] = pair
        return state

    def _orphans(self) -> None:
        """Give every revision that nobody was told about to a call that may have happened, each call once."""
        taken = self.happened

        def place(revision: int, tried: set[int]) -> bool:
            for op in self.orphans[revision]:
                if op.id in tried:
                    continue
                tried.add(op.id)
                if op.id not in taken or place(taken[op.id], tried):
                    taken[op.id] = revision
                    return True
            return False

        for revision in sorted(self.orphans):
            late = [op for op in self.orphans[revision] if self._floors[op.id] >= 2 * revision]
            self.orphans[revision] = [op for op in self.orphans[revision] if op not in late]
            if not place(revision, set()):
                events = "; ".join(" ".join(str(event).split()) for event in self.truth[revision])
                why = f"; it was seen before this call was made: {late[0]}" if late else self._suspect(revision)
                self.wrong.append(f"no call explains revision {revision} ({events}){why}")

    def _suspect(self, revision: int) -> str:
        put = {event.kv.value for event in self.truth[revision] if event.type == pb.Event.PUT}
        for op in self.history:
            if put.intersection(values_put(op.request)):
                return f"; this call {'was refused' if op.refused else 'would not do it here'}: {op}"
        return ""

    def _times(self) -> None:
        for op in self.history:
            future = max(_revisions_read(op.request), default=0) if isinstance(op.error, FutureRevision) else 0
            if 0 < future <= self._floors[op.id] // 2 and not serializable(op.request):
                self.wrong.append(f"stale: revision {future} is no future revision, it had been answered before: {op}")
        for op in self.answered:
            floor = self._floors[op.id]
            if not serializable(op.request) and _place(op) < floor:
                self.wrong.append(
                    f"stale: revision {floor // 2} had been answered to somebody before this call was made: {op}"
                )


def _revisions_read(request: object) -> Iterator[int]:
    """The past revisions that a request names."""
    if isinstance(request, pb.RangeRequest | pb.CompactionRequest):
        yield request.revision
    elif isinstance(request, pb.TxnRequest):
        for op in [*request.success, *request.failure]:
            yield from _revisions_read(getattr(op, str(op.WhichOneof("request"))))


def _place(op: Operation) -> int:
    """Where an answered call stands: 2r for the write at r, 2r + 1 for a read of the state at r."""
    assert op.answer is not None
    revision = revision_of(op.answer)
    return 2 * revision if wrote(op.answer) else 2 * revision + 1


def _floors(answered: list[Operation], history: list[Operation]) -> dict[int, int]:
    """For every call, the highest place that had been answered before it was made.

    A serializable answer raises the floor too: what anybody has seen is committed and may not be missed afterwards.
    """
    ended = sorted(answered, key=lambda op: op.returned or 0.0)
    floors, floor, at = {}, 0, 0
    for op in sorted(history, key=lambda op: op.called):
        while at < len(ended) and (ended[at].returned or 0.0) < op.called:
            floor = max(floor, _place(ended[at]))
            at += 1
        floors[op.id] = floor
    return floors


class _Candidates:
    """The calls that may have happened, findable by what they would have put."""

    def __init__(self, maybes: Iterable[Operation]) -> None:
        self.by_value: dict[bytes, list[Operation]] = defaultdict(list)
        self.deleting: list[Operation] = []
        for op in maybes:
            for value in values_put(op.request):
                self.by_value[value].append(op)
            if deletes(op.request):
                self.deleting.append(op)

    def of(self, events: Sequence[pb.Event]) -> list[Operation]:
        for event in events:
            if event.type == pb.Event.PUT:
                return self.by_value.get(event.kv.value, [])
        return self.deleting


def _differs(changes: Changes, events: Sequence[pb.Event]) -> str | None:
    """What the events say otherwise than the model's changes, None if nothing. One event a key."""
    told: Changes = {}
    for event in events:
        kv = event.kv
        if kv.key in told:
            return f"two events of {kv.key!r}"
        put = event.type == pb.Event.PUT
        told[kv.key] = Pair(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version) if put else None
    for key in sorted(changes.keys() | told.keys()):
        if key not in told or key not in changes or told[key] != changes[key]:
            return f"{key!r}: {told.get(key)} instead of {changes.get(key)}"
    return None
