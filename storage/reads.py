"""Range, in etcd's order of steps: select, count, filter, sort, cut, strip.

A read looks at a *state*: the newest, the newest with the unwritten changes of a turn over it, or a past one. It runs
in two parts:

    ranged(view, request) ── at once: takes the iterators, so what it will see is settled now
         └──▶ Steps: a generator that yields after about 1 MiB or 2000 keys of work, and returns the response

Whoever must not be held up (reads of clients) runs one slice at a time; whoever must finish (a transaction being
applied) drains it. A Meter is shared by all parts of one request, so that many small reads are sliced like a large
one.

`count` is the number of keys selected, before filters and limit, so the whole range is visited even for a small limit.
Whoever pages through a large range at one revision, as clients do, would thereby visit it again for every page: Counts
remembers how many keys are left behind the last page, so that the next one need not count.

The bodies built here are RangeResponse without its header. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol, TypeVar

from kvorum import errors
from kvorum import etcd_pb2 as pb
from storage import codec
from storage.codec import span_end, varint
from storage.engine import Engine

T = TypeVar("T")
Steps = Generator[None, None, T]
Entries = Iterator[tuple[bytes, bytes] | None]
"""For each key, in order: a key of the engine, of no meaning here, and a handle for `State.load`. None stands for work
that was done without a result."""

SLICE_BYTES = 1 << 20
KEY_COST = SLICE_BYTES // 2000
_PASSED_COST = KEY_COST // 4
COUNTS_MAX = 1000
_TOGETHER = 8
"""Values that `paged` loads at once: so many may be more than was wanted."""
NO_LIMIT = 1 << 63


class State(Protocol):
    """A keyspace at one moment."""

    def get(self, key: bytes) -> bytes | None:
        """The encoded KeyValue."""
        ...

    def entries(self, start: bytes, end: bytes | None) -> Entries:
        """The keys in [start, end), in order, as of this call; `end` None is no end."""
        ...

    def load(self, handles: list[bytes]) -> list[bytes]:
        """The encoded KeyValues."""
        ...


class View(Protocol):
    """What a request may see: the newest state, and past ones from the compaction point on."""

    @property
    def head(self) -> int:
        """The revision of `latest`; within a writing transaction, the one that it is making."""
        ...

    @property
    def revision(self) -> int:
        """The newest revision that may be asked for."""
        ...

    @property
    def compacted(self) -> int: ...

    @property
    def latest(self) -> State: ...

    def past(self, revision: int) -> State: ...


class Latest:
    """The newest state that is written. A handle is the KeyValue itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get(self, key: bytes) -> bytes | None:
        return self._engine.get(b"k" + key)

    def entries(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return self._engine.scan(b"k" + start, codec.LATEST_END if end is None else b"k" + end)

    def load(self, handles: list[bytes]) -> list[bytes]:
        return handles


class Meter:
    """How much of the slice is used up."""

    __slots__ = ("_spent",)

    def __init__(self) -> None:
        self._spent = 0

    def used(self, cost: int) -> bool:
        """Called after work: is it time to yield? Then a new slice begins."""
        self._spent += cost
        if self._spent < SLICE_BYTES:
            return False
        self._spent = 0
        return True


class Counts:
    """How many keys there are in [start, end) at a revision, for starts where a next page would begin.

    What was true of a revision stays true. It keeps the newest COUNTS_MAX, which is for as many readers at once.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes, int], int] = {}

    def get(self, start: bytes, end: bytes, revision: int) -> int | None:
        return self._known.get((start, end, revision))

    def note(self, start: bytes, end: bytes, revision: int, count: int) -> None:
        if len(self._known) >= COUNTS_MAX:
            del self._known[next(iter(self._known))]
        self._known[start, end, revision] = count


def drained(steps: Steps[T]) -> T:
    """Run to the end, without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


class Page:
    """What `paged` has found: how many keys, the last of them, and whether there are more behind it."""

    __slots__ = ("count", "last", "more")

    def __init__(self) -> None:
        self.count, self.last, self.more = 0, b"", False


def check_revision(view: View, revision: int) -> None:
    """Raises FutureRevision or Compacted. 0 and below mean the newest."""
    if revision > view.revision:
        raise errors.FutureRevision
    if 0 < revision < view.compacted:
        raise errors.Compacted


def ranged(view: View, request: pb.RangeRequest, meter: Meter, counts: Counts | None = None) -> Steps[bytes]:
    """Answer a checked RangeRequest. Raises FutureRevision or Compacted, at once; later only errors of the engine."""
    state = _state(view, request)
    if not request.range_end:
        return _already(_one(state.get(request.key), request))
    entries = state.entries(request.key, span_end(request.key, request.range_end))
    if request.count_only:
        return _counted(entries, meter)
    passes, rank = _filter(request), _rank(request)
    if passes is None and rank is None:
        return _page(entries, state, request, meter, counts or Counts(), view.head)
    return _selected(entries, state, request, meter, passes, rank)


def paged(
    view: View, request: pb.RangeRequest, meter: Meter, page: Page, keys_max: int, bytes_max: int
) -> Steps[bytes]:
    """The first keys of the range in natural order, up to `keys_max` and about `bytes_max`, as a RangeResponse's kvs;
    what else there is to say goes into `page`. Sorting, filters, limit and count mean nothing here: what is behind the
    page is not visited. Raises like `ranged`."""
    state = _state(view, request)
    if request.range_end:
        entries = state.entries(request.key, span_end(request.key, request.range_end))
    else:
        kv = state.get(request.key)
        entries = state.entries(request.key, request.key + b"\0") if kv is not None else iter(())
    return _paged(entries, state, request.keys_only, meter, page, keys_max, bytes_max)


def _paged(
    entries: Entries, state: State, keys_only: bool, meter: Meter, page: Page, keys_max: int, bytes_max: int
) -> Steps[bytes]:
    page.count, page.last, page.more = 0, b"", False
    parts: list[bytes] = []
    handles: list[bytes] = []
    size, last = 0, b""

    def load() -> None:
        nonlocal size, last
        for kv in state.load(handles):
            last = kv
            shown = codec.without_value(kv) if keys_only else kv
            parts.append(codec.field(b"\x12", shown))
            size += len(shown)
        handles.clear()

    for entry in entries:
        if entry is None:
            cost = _PASSED_COST
        elif page.count == keys_max or size >= bytes_max:
            page.more = True
            break
        else:
            page.count += 1
            handles.append(entry[1])
            cost = KEY_COST + len(entry[1])
            if len(handles) == _TOGETHER or page.count == keys_max:
                load()
        if meter.used(cost):
            yield
    load()
    if last:
        page.last = pb.KeyValue.FromString(last).key
    return b"".join(parts)


def ranged_now(view: View, request: pb.RangeRequest) -> bytes:
    """The same in one go."""
    if not request.range_end:
        return _one(_state(view, request).get(request.key), request)
    return drained(ranged(view, request, Meter()))


def _state(view: View, request: pb.RangeRequest) -> State:
    revision = request.revision
    if revision <= 0:
        return view.latest
    check_revision(view, revision)
    return view.latest if revision == view.head else view.past(revision)


def _already(body: bytes) -> Steps[bytes]:
    return body
    yield


def _one(kv: bytes | None, request: pb.RangeRequest) -> bytes:
    """The RangeResponse for a single key: sorting means nothing, and no limit cuts it."""
    if kv is None:
        return b""
    passes = _filter(request)
    if request.count_only or (passes is not None and not passes(pb.KeyValue.FromString(kv))):
        return b"\x20\x01"
    return codec.field(b"\x12", codec.without_value(kv) if request.keys_only else kv) + b"\x20\x01"


def _counted(entries: Entries, meter: Meter) -> Steps[bytes]:
    count = 0
    for entry in entries:
        count += entry is not None
        if meter.used(KEY_COST):
            yield
    return b"\x20" + varint(count) if count else b""


def _page(
    entries: Entries, state: State, request: pb.RangeRequest, meter: Meter, counts: Counts, head: int
) -> Steps[bytes]:
    """The first keys in natural order."""
    start, end, revision = request.key, request.range_end, request.revision if request.revision > 0 else head
    limit = request.limit if request.limit > 0 else NO_LIMIT
    known = counts.get(start, end, revision)
    count = 0
    kept: list[bytes] = []
    for entry in entries:
        if entry is None:
            cost = _PASSED_COST
        else:
            cost = KEY_COST + len(entry[1])
            count += 1
            if count <= limit:
                kept.append(entry[1])
            elif known is not None:
                break
        if meter.used(cost):
            yield
    if known is not None:
        count = known
    kvs = yield from _loaded(kept, state, meter)
    if count > limit:
        counts.note(pb.KeyValue.FromString(kvs[-1]).key + b"\0", end, revision, count - limit)
    return (yield from _response(kvs, count > limit, count, request.keys_only, meter))


def _selected(
    entries: Entries,
    state: State,
    request: pb.RangeRequest,
    meter: Meter,
    passes: Callable[[pb.KeyValue], bool] | None,
    rank: Callable[[pb.KeyValue], Any] | None,
) -> Steps[bytes]:
    """Filtered, sorted, or both."""
    limit = request.limit if request.limit > 0 else NO_LIMIT
    backwards = request.sort_order == pb.RangeRequest.DESCEND
    count, passed = 0, 0
    kept: list[tuple[Any, bytes]] = []
    for entry in entries:
        if meter.used(_PASSED_COST if entry is None else KEY_COST + len(entry[1])):
            yield
        if entry is None:
            continue
        count += 1
        kv = pb.KeyValue.FromString(state.load([entry[1]])[0])
        if passes is not None and not passes(kv):
            continue
        passed += 1
        kept.append((rank(kv) if rank is not None else passed, entry[1]))
        if len(kept) > 2 * limit + 1000:  # only the best `limit` can be in the answer
            kept = _best(kept, limit, backwards)
    handles = [handle for _, handle in _best(kept, limit, backwards)]
    kvs = yield from _loaded(handles, state, meter)
    return (yield from _response(kvs, passed > limit, count, request.keys_only, meter))


def _best(kept: list[tuple[Any, bytes]], limit: int, backwards: bool) -> list[tuple[Any, bytes]]:
    return sorted(kept, key=lambda pair: pair[0], reverse=backwards)[:limit]  # ties stay in key order


def _loaded(handles: list[bytes], state: State, meter: Meter) -> Steps[list[bytes]]:
    kvs: list[bytes] = []
    for at in range(0, len(handles), 256):
        kvs += state.load(handles[at : at + 256])
        if meter.used(256 * _PASSED_COST):
            yield
    return kvs


def _response(kvs: list[bytes], more: bool, count: int, keys_only: bool, meter: Meter) -> Steps[bytes]:
    body = []
    for kv in kvs:
        shown = codec.without_value(kv) if keys_only else kv
        body.append(codec.field(b"\x12", shown))
        if meter.used(_PASSED_COST + len(shown)):
            yield
    if more:
        body.append(b"\x18\x01")
    if count:
        body.append(b"\x20" + varint(count))
    return b"".join(body)


def _filter(request: pb.RangeRequest) -> Callable[[pb.KeyValue], bool] | None:
    """The bounds are inclusive; 0 is unset."""
    low_mod, high_mod = request.min_mod_revision, request.max_mod_revision
    low_create, high_create = request.min_create_revision, request.max_create_revision
    if not (low_mod or high_mod or low_create or high_create):
        return None

    def passes(kv: pb.KeyValue) -> bool:
        return (
            kv.mod_revision >= low_mod
            and (not high_mod or kv.mod_revision <= high_mod)
            and kv.create_revision >= low_create
            and (not high_create or kv.create_revision <= high_create)
        )

    return passes


_RANKS: dict[int, Callable[[pb.KeyValue], Any]] = {
    pb.RangeRequest.KEY: lambda kv: kv.key,
    pb.RangeRequest.VERSION: lambda kv: kv.version,
    pb.RangeRequest.CREATE: lambda kv: kv.create_revision,
    pb.RangeRequest.MOD: lambda kv: kv.mod_revision,
    pb.RangeRequest.VALUE: lambda kv: kv.value,
}


def _rank(request: pb.RangeRequest) -> Callable[[pb.KeyValue], Any] | None:
    """None where the natural order is the one asked for. A target other than the key implies ascending order."""
    if request.sort_target == pb.RangeRequest.KEY and request.sort_order != pb.RangeRequest.DESCEND:
        return None
    return _RANKS[request.sort_target]
