"""The replicated state machine: etcd's keyspace over an ordered map.

    log entries ──▶ Turn ──commit──▶ engine ──▶ read, history, members
                                       ▲
                       sweep ──────────┘  gives back what compactions left behind

This is the one owner of the engine. It holds no keys in memory, only the leases, the alarms and a few numbers that are
read once, at opening, and move when a turn is committed: reads see the state of the last commit, all of it and nothing
newer, and say its revision.

What an acknowledgement relies on: a turn's batch carries its data and the applied index in one atomic write, the
engine loses batches only from the end, and the log keeps everything behind the durable applied index. So a crash takes
the store back to some earlier entry, and applying the log from there on leads to the very same store (nothing here
looks at a clock, a random number, or local configuration).

Rooms: codec (bytes), requests (rules), reads, history, hashes, leases, alarms, txn, turn, compaction. Pure.
"""

from __future__ import annotations

from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.wire import Method
from native.plain import Scanner
from storage import codec, compaction, hashes, requests, txn
from storage.alarms import Alarms
from storage.engine import Engine
from storage.history import Change, Past, events
from storage.leases import Leases
from storage.lives import Lives
from storage.reads import Counts, Latest, Meter, Page, State, Steps, paged, ranged
from storage.turn import Outcome, Result, Turn, refusal

__all__ = ["Change", "Keyspace", "Outcome", "Result", "Scan", "Turn"]


_RANGE = int(Method.RANGE)
NEVER = 1 << 63


class Scan:
    """A read that takes more than one slice. It sees the state as of `Keyspace.read`, whatever is committed
    meanwhile."""

    def __init__(self, keyspace: Keyspace, view: _View, steps: Steps[bytes]) -> None:
        self._keyspace = keyspace
        self._view = view
        self._steps = steps

    def step(self) -> Result | None:
        """Do one slice (about 2000 keys or 1 MiB): the result, or None if it is not finished yet.

        A past revision that is compacted meanwhile gives the answer that it would give now: Compacted.
        """
        revision = self._view.revision
        if self._view.oldest < self._keyspace.compacted:
            return refusal(errors.Compacted(), revision)
        try:
            next(self._steps)
        except StopIteration as end:
            return Result(0, revision, end.value)
        except errors.KvorumError as error:
            return refusal(error, revision)
        return None


class _View:
    """What one read sees: the state of the last commit, and the past."""

    def __init__(self, engine: Engine, state: codec.State) -> None:
        self._engine = engine
        self.revision = self.head = state.revision
        self.compacted = state.compacted
        self.latest: State = Latest(engine)
        self.oldest = NEVER  # of the past revisions that it looks at

    def past(self, revision: int) -> State:
        self.oldest = min(self.oldest, revision)
        return Past(self._engine, revision)


class Keyspace:
    """Opening loads a handful of meta records. An empty engine is a new store: revision 1, nothing applied.

    Raises UnknownFormat if another version wrote the store.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        stored = engine.get(codec.STATE)
        self.state = codec.State() if stored is None else codec.unpack_state(stored)
        sweep = engine.get(codec.SWEEP)
        self._sweep = codec.Sweep() if sweep is None else codec.unpack_sweep(sweep)
        self.origins: dict[int, tuple[int, int]] = {
            codec.key_id(key): codec.unpack_origin(value) for key, value in engine.scan(codec.ORIGIN, codec.ORIGIN_END)
        }
        """The last applied (incarnation, number) of each member that ever proposed."""
        self._counts = Counts()
        self.leases = Leases(engine)
        self.alarms = Alarms(engine)
        self._lives = Lives()
        self._scanner = Scanner()
        self._members: dict[int, pb.MemberPublish] = {
            codec.key_id(key): pb.MemberPublish.FromString(value)
            for key, value in engine.scan(codec.MEMBER, codec.MEMBER_END)
        }

    @property
    def applied(self) -> tuple[int, int]:
        """Index and term of the last entry applied, (0, 0) in a new store."""
        return self.state.applied, self.state.term

    @property
    def revision(self) -> int:
        return self.state.revision

    @property
    def compacted(self) -> int:
        """The oldest revision that can be read, -1 before the first compaction."""
        return self.state.compacted

    @property
    def swept(self) -> int:
        """Up to which compaction revision the space has been given back; see `sweep`."""
        return self._sweep.done

    def members(self) -> list[pb.MemberPublish]:
        """What each member last published of itself, by id."""
        return [self._members[member] for member in sorted(self._members)]

    def begin(self, *, prev: bool = True) -> Turn:
        """One turn at a time: until it is committed or dropped, neither begin another nor sweep.

        Without `prev`, changes need not say what was before them (Change.prev may be empty), which spares a look-up for
        most puts. What is written is the same.
        """
        known = None if prev else self._lives
        return Turn(self.engine, self.state, self.origins, self._commit, self._scanner, self.leases, self.alarms, known)

    def _commit(self, turn: Turn) -> list[Change]:
        assert turn.index >= self.state.applied, (turn.index, self.state.applied)
        state = codec.State(turn.index, turn.term, turn.revision, turn.compacted)
        if state == self.state:
            return []
        for member, (incarnation, number) in turn.origins.items():
            turn.batch.put(codec.origin_key(member), codec.pack_origin(incarnation, number))
        turn.batch.put(codec.STATE, codec.pack_state(state))
        self.engine.write(turn.batch)
        self.state = state
        self.origins.update(turn.origins)
        self._lives.update(turn.lives)
        self.leases.update(turn.leases)
        self.alarms.update(turn.alarms)
        self._members.update(turn.members)
        return turn.changes

    def read(self, method: int, payload: bytes) -> Result | Scan:
        """Answer a RANGE, a read-only TXN, a HASH, a HASH_KV or an ALARM that asks, from the state of the last commit.

        A small one is answered at once. A large one has done its first slice and is handed back as a Scan. Refusals are
        results; only errors of the engine are raised.
        """
        if method == _RANGE:
            key = requests.lone_key(payload)
            if key is not None:
                kv = self.engine.get(b"k" + key)
                return Result(0, self.state.revision, b"" if kv is None else codec.field(b"\x12", kv) + b"\x20\x01")
        elif method == Method.ALARM:
            return Result(0, self.state.revision, self.alarms.answer(pb.AlarmRequest.FromString(payload)))
        view = _View(self.engine, self.state)
        try:
            steps = self._reading(view, method, payload)
        except errors.KvorumError as error:
            return refusal(error, view.revision)
        return self._begun(view, steps)

    def paged(self, request: pb.RangeRequest, page: Page, keys_max: int, bytes_max: int) -> Result | Scan:
        """The first part of a checked range (storage.reads.paged): like `read`."""
        view = _View(self.engine, self.state)
        try:
            steps = paged(view, request, Meter(), page, keys_max, bytes_max)
        except errors.KvorumError as error:
            return refusal(error, view.revision)
        return self._begun(view, steps)

    def sliced(self, steps: Steps[bytes]) -> Result | Scan:
        """What comes of `steps`, which look at the state of the last commit: like `read`."""
        return self._begun(_View(self.engine, self.state), steps)

    def _begun(self, view: _View, steps: Steps[bytes]) -> Result | Scan:
        scan = Scan(self, view, steps)
        return scan.step() or scan

    def _reading(self, view: _View, method: int, payload: bytes) -> Steps[bytes]:
        if method == Method.HASH:
            return hashes.hash_all(self.engine, Meter())
        if method == Method.HASH_KV:
            revision = pb.HashKVRequest.FromString(payload).revision
            return hashes.hash_kv(self.engine, revision, view.revision, lambda: self.compacted, Meter())
        if method not in (Method.RANGE, Method.TXN):
            raise errors.Unimplemented
        request = requests.parse(method, payload)
        if method == Method.RANGE:
            return ranged(view, request, Meter(), self._counts)
        if not requests.read_only(request):
            raise errors.Unimplemented
        return txn.read(view, request, Meter())

    def history(self, first: int, last: int, max_bytes: int) -> list[Change]:
        """The changes of revisions `first` to `last`, both included: whole revisions, up to about `max_bytes`, at
        least one revision if there is any. Raises Compacted if `first` is below the compaction point."""
        return events(self.engine, first, min(last, self.revision), max_bytes, self.compacted)

    def sweep(self) -> bool:
        """One bounded step (compaction.STEP_CHANGES) of giving back compacted space; False: nothing is left to do."""
        batch = self.engine.batch()
        after = compaction.step(self.engine, batch, self._sweep, self.state.compacted)
        if after is None:
            return False
        batch.put(codec.STATE, codec.pack_state(self.state))  # the applied index is in every batch
        self.engine.write(batch)
        self._sweep = after
        return True
