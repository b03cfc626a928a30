"""The second verdict: is there any order at all that explains the answers? It trusts no revision to be an order.

An operation takes effect at one instant between call and answer; one that may have happened, at any instant after its
call or never. Wing and Gong's search tries the orders that real time allows; Lowe's cache forgets none that failed:

    ──[put a]────────            pick a call that no unplaced operation had been answered before; run it on the model;
       ──[get]──[put b]──        if the answer is the one that was given, go on from there, else take the next;
         ─[put c]─ ─ ─ ─ ─       the same set of placed operations with the same state is never tried twice

Linearizability is local (Herlihy and Wing, theorem 1), so keys that no operation touches together are judged apart.
Revisions are labels here: a write stamps what it writes with the revision that somebody was told of it, or with a label
of its own if nobody was, and answers must show the same labels, counts and values.

Left to replay.py: serializable reads, which owe no order, and reads of past revisions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from kvorum import etcd_pb2 as pb
from tests.checkers.history import (
    Operation,
    deletes,
    pairs_seen,
    ranges_touched,
    revision_of,
    serializable,
    values_put,
    wrote,
)
from tests.checkers.model import Canonical, Pair, State, canonical, execute, inside


class Undecided(Exception):
    """The search outgrew its budget. Says nothing about the history; make it shorter, or pass `written`."""


def check_linearizable(
    history: Iterable[Operation],
    *,
    happened: Mapping[int, int] | None = None,
    base: State | None = None,
    budget: int = 500_000,
) -> list[str]:
    """Everything that no order explains, one sentence for each group of keys; empty when nothing.

    Args:
      happened: the calls that may have happened, by id, that are known to have, with the revision that each made; all
        others are known not to have (etcd's robustness tests take it from the WAL, replay.py finds it out from the
        truth). None leaves them all to the search, which may take too long.
      base: the state before the history.
      budget: most (placed operations, state) pairs to remember for a group.
    Raises:
      Undecided: the budget did not suffice.
    """
    operations = list(history)
    labels = _labels(operations, happened)
    judged = [op for op in operations if _counts(op, happened)]
    wrong = []
    for keys, members in _groups(judged, base or {}):
        state = tuple((base or {}).get(key) for key in keys)
        stuck = _Search(keys, members, labels, budget).run(state)
        if stuck is not None:
            wrong.append(f"no order explains {len(members)} operations on {b', '.join(keys).decode('latin1')}: {stuck}")
    return wrong


def _counts(op: Operation, happened: Mapping[int, int] | None) -> bool:
    if op.refused or isinstance(op.request, pb.CompactionRequest):
        return False
    if op.answer is not None:
        return not serializable(op.request) and not _reads_the_past(op.request)
    if happened is not None:
        return op.id in happened
    return deletes(op.request) or any(values_put(op.request))


def _reads_the_past(request: object) -> bool:
    if isinstance(request, pb.RangeRequest):
        return request.revision > 0
    if isinstance(request, pb.TxnRequest):
        inner = [getattr(op, str(op.WhichOneof("request"))) for op in [*request.success, *request.failure]]
        return any(_reads_the_past(one) for one in inner)
    return False


def _labels(operations: list[Operation], happened: Mapping[int, int] | None) -> dict[int, int]:
    """What each operation stamps on what it writes."""
    seen = {kv.value: kv.mod_revision for op in operations for kv in pairs_seen(op.answer)}
    labels = {}
    for op in operations:
        told = [seen[value] for value in values_put(op.request) if value in seen] if op.maybe else []
        if op.answer is not None and wrote(op.answer):
            labels[op.id] = revision_of(op.answer)
        elif happened is not None and op.id in happened:
            labels[op.id] = happened[op.id]
        else:
            labels[op.id] = told[0] if told else -1 - op.id
    return labels


def _groups(operations: list[Operation], base: State) -> list[tuple[list[bytes], list[Operation]]]:
    """Keys that some operation touches together, with the operations that touch them."""
    universe = set(base)
    for op in operations:
        universe.update(key for key, end in ranges_touched(op.request) if not end)
        universe.update(kv.key for kv in pairs_seen(op.answer))
    ordered = sorted(universe)
    parent = {key: key for key in ordered}

    def root(key: bytes) -> bytes:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    home = {}
    for op in operations:
        touched = []
        for key, end in ranges_touched(op.request):
            touched += [key] if not end else [one for one in ordered if inside(one, key, end)]
        if touched:
            home[op.id] = touched[0]
            for key in touched[1:]:
                parent[root(key)] = root(touched[0])
    keys, members = defaultdict(list), defaultdict(list)
    for key in ordered:
        keys[root(key)].append(key)
    for op in operations:
        if op.id in home:
            members[root(home[op.id])].append(op)
    return [(keys[at], members[at]) for at in sorted(members)]


class _Node:
    """A call or a return in the list of what is not placed yet, by time."""

    __slots__ = ("after", "before", "bit", "hint", "op", "twin")

    def __init__(self, op: Operation | None, bit: int, hint: int) -> None:
        self.op, self.bit, self.hint = op, bit, hint
        self.twin: _Node | None = None  # of a call, its return, if that ever came
        self.before: _Node | None = None
        self.after: _Node | None = None

    def unlink(self) -> None:
        assert self.before is not None
        self.before.after = self.after
        if self.after is not None:
            self.after.before = self.before

    def relink(self) -> None:
        assert self.before is not None
        self.before.after = self
        if self.after is not None:
            self.after.before = self


Slots = tuple[Pair | None, ...]
_LAST = 1 << 62


class _Search:
    """Which possible next operation is tried first is a guess from the revisions; whether it may be next is not."""

    def __init__(self, keys: list[bytes], operations: list[Operation], labels: dict[int, int], budget: int) -> None:
        self.slot = {key: at for at, key in enumerate(keys)}
        self.labels, self.budget = labels, budget
        self.wanted: dict[int, Canonical] = {op.id: canonical(op.answer) for op in operations if op.answer is not None}
        self.memo: dict[tuple[int, Slots], Slots | None] = {}
        events = []
        for at, op in enumerate(operations):
            call = _Node(op, 1 << at, self._hint(op))
            events.append((op.called, 0, at, call))
            if op.answer is not None:
                assert op.returned is not None
                call.twin = _Node(op, 0, 0)
                events.append((op.returned, 1, at, call.twin))
        self.head = last = _Node(None, 0, 0)
        for _, _, _, node in sorted(events, key=lambda event: event[:3]):
            last.after, node.before = node, last
            last = node

    def _hint(self, op: Operation) -> int:
        if op.answer is None:
            return 2 * self.labels[op.id] if self.labels[op.id] > 0 else _LAST
        return 2 * revision_of(op.answer) + (not wrote(op.answer))

    def run(self, state: Slots) -> str | None:
        """None if an order was found, else where every order ends."""
        placed, depth, deepest, stuck = 0, 0, -1, ""
        tried: set[tuple[int, Slots]] = set()
        candidates, blocker = self._next()
        stack: list[tuple[_Node, Slots, list[_Node]]] = []
        while depth < len(self.wanted):
            if not candidates:
                if depth > deepest:
                    deepest, stuck = depth, f"{depth} can be put in order, then nothing gives {blocker}; state {state}"
                if not stack:
                    return stuck
                node, state, candidates = stack.pop()
                self._put_back(node)
                placed &= ~node.bit
                depth -= node.twin is not None
                continue
            node = candidates.pop()
            after = self._step(node.op, state)
            if after is None or (placed | node.bit, after) in tried:
                continue
            tried.add((placed | node.bit, after))
            if len(tried) > self.budget:
                raise Undecided(f"{len(self.wanted)} answers on {len(self.slot)} keys outgrew {self.budget}")
            stack.append((node, state, candidates))
            self._take_out(node)
            placed |= node.bit
            depth += node.twin is not None
            state = after
            candidates, blocker = self._next()
        return None

    def _next(self) -> tuple[list[_Node], Operation | None]:
        """What may come next, the likeliest last, and the operation whose return nothing may pass."""
        found = []
        node = self.head.after
        while node is not None and node.bit:
            found.append(node)
            node = node.after
        found.sort(key=lambda node: -node.hint)
        return found, node.op if node is not None else None

    def _take_out(self, node: _Node) -> None:
        node.unlink()
        if node.twin is not None:
            node.twin.unlink()

    def _put_back(self, node: _Node) -> None:
        if node.twin is not None:
            node.twin.relink()
        node.relink()

    def _step(self, op: Operation | None, state: Slots) -> Slots | None:
        """The state after `op`, None if it would have been answered otherwise (or a maybe would change nothing)."""
        assert op is not None
        known = self.memo.get((op.id, state), False)
        if known is not False:
            return known  # type: ignore[return-value]
        said, changes = execute({pair.key: pair for pair in state if pair is not None}, op.request, self.labels[op.id])
        after: Slots | None = None
        if op.answer is None:
            after = self._changed(state, changes) if changes else None
        elif bool(changes) == wrote(op.answer) and _agree(said, self.wanted[op.id]):
            after = self._changed(state, changes)
        self.memo[op.id, state] = after
        return after

    def _changed(self, state: Slots, changes: dict[bytes, Pair | None]) -> Slots:
        slots = list(state)
        for key, pair in changes.items():
            slots[self.slot[key]] = pair
        return tuple(slots)


def _agree(said: object, seen: object) -> bool:
    """Equal, where a label that nobody was told stands for any revision."""
    if isinstance(said, Pair) and isinstance(seen, Pair):
        create = seen.create if said.create < 0 < seen.create else said.create
        return said._replace(create=create) == seen
    if isinstance(said, tuple) and isinstance(seen, tuple):
        return len(said) == len(seen) and all(map(_agree, said, seen))
    return said == seen
