"""Random sequences of requests, each at a kvorum and at an etcd of one member: all that either says must be the same.

    reset --> drawn: writes, reads, txns, compactions, leases; watches that come, go, and see the past --> compare
    delete all, compact                              (before each compaction, watches are let catch up)

A sequence begins with an empty keyspace, so that its seed says all; revisions go on, and what is drawn depends on them
only relative to where it began. Answers and errors are compared field by field (tests/storage/comparable.py says what
is left out), events watch by watch, for a watch of everything and for random ones. etcd tells an event what was before
it when it sends it, and a compaction in between would hide that: so watches catch up first.

    KVORUM_SEQUENCES=4711:4712 .venv/bin/python -m pytest tests/system/realclients/test_sequences.py    # one again
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvorum import etcd_pb2 as pb
from tests.storage.comparable import tamed_for_all
from tests.storage.requests_at_random import LEASES, Dice
from tests.system.realclients.calls import Members, WatchStream, events_of
from tests.system.realclients.pairs import pair

SEQUENCES = os.environ.get("KVORUM_SEQUENCES", "0:2000")
SOAK = os.environ.get("KVORUM_SEQUENCES", "2000:40000")
PAIRS = 2
"""Clusters beside each other, since etcd lets a watch of the past wait for up to 100 ms, idle."""
EVERYTHING = {"key": b"\0", "range_end": b"\0"}


class Sequence(Dice):
    """What is asked, one request after the other."""

    def __init__(self, seed: int, revision: int) -> None:
        """`revision`: at which the keyspace is empty and everything older compacted."""
        super().__init__(seed)
        self.revision = revision
        self.compacted = revision
        self.oldest = revision - 1
        self.length = self.random.randint(2, 6) if self.maybe(0.85) else self.random.randint(7, 20)

    def key(self) -> bytes:
        return b"" if self.maybe(0.003) else super().key()

    def step(self) -> Any:
        """A request, or the kind of one that a watch stream takes."""
        kinds = ["write", "range", "read_only_txn", "compact", "lease", "watch", "cancel"]
        kind = self.random.choices(kinds, [50, 20, 5, 3, 6, 10, 3])[0]
        return getattr(self, kind)() if hasattr(self, kind) else kind

    def lease(self) -> Any:
        of = self.random.choice(LEASES)
        return self.random.choice(
            [
                pb.LeaseGrantRequest(ID=of, TTL=60),
                pb.LeaseTimeToLiveRequest(ID=of, keys=self.maybe(0.7)),
                pb.LeaseLeasesRequest(),
                pb.LeaseKeepAliveRequest(ID=of),
            ]
        )

    def watch(self) -> pb.WatchCreateRequest:
        key, end = super().key(), self.end(0.8)
        if end != b"\0" and end <= key:
            end = b""  # etcd ends the watch under an id that is none
        request = pb.WatchCreateRequest(key=key, range_end=end, prev_kv=self.maybe(), fragment=self.maybe(0.1))
        if self.maybe(0.2):
            request.filters.append(self.random.randint(0, 1))
        if self.maybe(0.4):
            start = self.random.randint(self.oldest, self.revision + 3)
            # At the compaction itself it depends on whether the sweep has come by.
            request.start_revision = start + (start == self.compacted)
        return request


class Watched(NamedTuple):
    """A watch, under the same id at both, and the revision from which it is to be told; none if that is compacted."""

    request: pb.WatchCreateRequest
    since: int | None


class Both:
    """A sequence under way at both."""

    def __init__(self, ours: Members, theirs: Members, revision: int) -> None:
        self.sides = ours, theirs
        self.streams = WatchStream(ours), WatchStream(theirs)
        self.watches: dict[int, Watched] = {}
        self.leases: set[int] = set()
        self.asked = self.refused = 0
        self.revision = self.began = revision

    def ask(self, request: Any) -> Any:
        """What both say, which is the same."""
        mine, real = (side.call(0, request) for side in self.sides)
        assert mine == real, f"{request!r}\nkvorum says {mine}\netcd   says {real}"
        self.asked += 1
        if isinstance(mine[1], str):
            self.refused += 1
        else:
            self.revision = max(self.revision, mine[1].header.revision)
            if isinstance(request, pb.LeaseGrantRequest):
                self.leases.add(request.ID)
        return mine[1]

    def watch(self, request: pb.WatchCreateRequest, compacted: int) -> int:
        mine, real = (stream.create(request) for stream in self.streams)
        assert mine == real
        since = request.start_revision or self.revision + 1
        self.watches[real] = Watched(request, since if since > compacted else None)
        return real

    def cancel(self, watches: Iterable[int]) -> None:
        for stream in self.streams:
            stream.cancel([watch for watch in watches if watch not in stream.ends])

    def catch_up(self) -> None:
        """Until every watch has been told all that there is. The first watches everything."""
        for stream in self.streams:
            everything = stream.events[min(stream.events)]
            stream.read_until(lambda e=everything: (e[-1].kv.mod_revision if e else self.began) >= self.revision)  # type: ignore[misc]
            for watch, (request, since) in self.watches.items():
                if since is None:
                    stream.read_until(lambda s=stream, w=watch: w in s.ends)  # type: ignore[misc]
                elif watch not in stream.ends:
                    count = sum(1 for _ in events_of(request, since, everything))
                    stream.read_until(lambda s=stream, w=watch, n=count: len(s.events[w]) >= n)  # type: ignore[misc]

    def compare(self) -> None:
        mine, real = self.streams
        assert mine.ends == real.ends
        for watch, (request, _) in self.watches.items():
            assert mine.events[watch] == real.events[watch], f"told of {request!r}"


def reset(ours: Members, theirs: Members) -> int:
    """Leave no key of the sequences before. Returns the revision at both."""
    told = []
    for side in (ours, theirs):
        _, emptied = side.call(0, pb.DeleteRangeRequest(**EVERYTHING))
        told.append(emptied.header.revision)
        side.call(0, pb.CompactionRequest(revision=emptied.header.revision))
    assert told[0] == told[1]
    return told[0]


def all_since(revision: int) -> pb.WatchCreateRequest:
    return pb.WatchCreateRequest(**EVERYTHING, prev_kv=True, start_revision=revision)


def play(seed: int, ours: Members, theirs: Members) -> tuple[int, int]:
    """One sequence. Returns how many requests it had, and how many were refused."""
    revision = reset(ours, theirs)
    dice, both = Sequence(seed, revision), Both(ours, theirs, revision)
    try:
        both.watch(all_since(revision + 1), revision)
        for _ in range(dice.length):
            dice.revision = both.revision
            step = dice.step()
            if isinstance(step, pb.WatchCreateRequest):
                both.watch(step, dice.compacted)
            elif step == "cancel":
                if len(both.watches) > 1:
                    watch = dice.random.choice(list(both.watches)[1:])
                    both.catch_up()
                    both.cancel([watch])
            else:
                request = tamed_for_all(step)
                if isinstance(request, pb.CompactionRequest):
                    both.catch_up()
                told = both.ask(request)
                if isinstance(request, pb.CompactionRequest) and not isinstance(told, str):
                    dice.compacted = request.revision
        both.catch_up()
        if dice.maybe(0.1):
            both.watch(all_since(dice.compacted + 1), dice.compacted)
            both.catch_up()
        both.cancel(both.watches)
        both.compare()
        for lease in both.leases:
            both.ask(pb.LeaseRevokeRequest(ID=lease))
    finally:
        for stream in both.streams:
            stream.close()
    return both.asked, both.refused


def play_all(seeds: range, places: list[Path]) -> None:
    """All the sequences, spread over a pair of clusters in each place. Most of the requests must be valid."""
    waiting, broken = iter(seeds), threading.Event()

    def work(place: Path) -> tuple[int, int]:
        with pair(place, nodes=1) as running:
            ours, theirs = Members(running.kvorum), Members(running.etcd)
            asked = refused = 0
            try:
                for seed in waiting:
                    if broken.is_set():
                        break
                    try:
                        of_seed = play(seed, ours, theirs)
                    except BaseException as error:
                        broken.set()
                        error.add_note(f"again: KVORUM_SEQUENCES={seed}:{seed + 1}")
                        raise
                    asked, refused = asked + of_seed[0], refused + of_seed[1]
                return asked, refused
            finally:
                ours.close()
                theirs.close()

    with ThreadPoolExecutor(len(places)) as pool:
        asked, refused = map(sum, zip(*pool.map(work, places), strict=True))
    assert asked > 2 * refused


def numbers(text: str) -> range:
    return range(*map(int, text.split(":")))


def test_sequences(tmp_path: Path) -> None:
    play_all(numbers(SEQUENCES), [tmp_path / str(i) for i in range(PAIRS)])


@pytest.mark.soak
def test_many_sequences(tmp_path: Path) -> None:
    play_all(numbers(SOAK), [tmp_path / str(i) for i in range(PAIRS)])
