"""Numbers about a node, kept where they cost nothing and survive their process.

    raft ──┐                                                        ┌── /metrics
    apply ─┼─ each writes its own board: <run dir>/metrics/NAME ──▶ supervisor (cluster.health, prometheus-client)
    watch ─┘    an mmapped array of float64

A *board* is a file of doubles, one writer, any number of readers. Writing a number is one store into shared memory,
about 50 ns and no import, so the processes on the path of a request carry no metrics library. The file outlives a
process that is killed, and its successor goes on with the same counters; `reset_gauges` clears what was only true of
the dead.

The layout follows from the declarations below alone, and the file begins with a checksum of it: a board of another
layout is made anew by its writer and skipped by a reader. An aligned double is stored whole on the machines we run on;
a reader may see one number of a turn and not yet the next, which a scrape can bear.

Names, types and buckets are etcd's where etcd has the thing, its oddities included (gauges that end in _total);
kvorum's own begin with `kvorum_`. Shells write once per batch, never once per request.
"""

from __future__ import annotations

import errno
import mmap
import os
from bisect import bisect_left
from collections.abc import MutableSequence, Sequence
from typing import NamedTuple, cast
from zlib import crc32

Cells = MutableSequence[float]
"""The doubles of a board: a memoryview in format "d", of which the type checker doesn't know that it can be written."""

Labels = tuple[tuple[str, str], ...]
"""Label names and values of one series."""


def _cells(memory: bytes | bytearray | mmap.mmap) -> Cells:
    return cast(Cells, memoryview(memory).cast("d"))


def doubling(start: float, count: int) -> tuple[float, ...]:
    """Bucket bounds start, 2 start, 4 start ..., as etcd has them."""
    return tuple(start * 2**i for i in range(count))


class Declared(NamedTuple):
    """One series: what it is called, and where its cells begin on the board."""

    name: str
    kind: str  # counter | gauge | histogram
    help: str
    labels: Labels
    bounds: tuple[float, ...]
    at: int


class Counter:
    """Only rises."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cells: Cells, at: int) -> None:
        self._cells, self._at = cells, at

    def add(self, amount: float = 1.0) -> None:
        self._cells[self._at] += amount


class Gauge:
    """Is what it was last set to."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cells: Cells, at: int) -> None:
        self._cells, self._at = cells, at

    def set(self, value: float) -> None:
        self._cells[self._at] = value


class Histogram:
    """Counts observations by size. Cells: one per bound, one for the rest, then the sum."""

    __slots__ = ("_at", "_bounds", "_cells")

    def __init__(self, cells: Cells, at: int, bounds: tuple[float, ...]) -> None:
        self._cells, self._at, self._bounds = cells, at, bounds

    def observe(self, value: float) -> None:
        self.add(value, 1, value)

    def add(self, value: float, count: float, total: float) -> None:
        """`count` observations of about `value`, `total` together."""
        self._cells[self._at + bisect_left(self._bounds, value)] += count
        self._cells[self._at + len(self._bounds) + 1] += total


_HEAD_CELLS = 1


class Board:
    """The numbers of one process. Subclasses declare them in `__init__`, always in the same order."""

    def __init__(self) -> None:
        self.series: list[Declared] = []
        self._size = _HEAD_CELLS
        self._cells = _cells(bytearray())

    def open(self, path: str | None) -> None:
        """Start writing to the file `path`, going on from what is there. None: into memory that nobody else sees.

        Also into such memory when the file system is full: storing into a mapped page that cannot be given a block
        would kill the process (SIGBUS), so blocks are reserved first, and a number is not worth a member's life.
        """
        size = self._size * 8
        if path is None:
            self._bind(_cells(bytearray(size)))
            return
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            known = os.pread(fd, 8, 0) == self._mark() and os.fstat(fd).st_size == size
            if not known:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, size)
                os.posix_fallocate(fd, 0, size)
                os.pwrite(fd, self._mark(), 0)
            self._bind(_cells(mmap.mmap(fd, size)))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.open(None)
        finally:
            os.close(fd)

    def read(self, path: str) -> Cells | None:
        """A snapshot of the cells in the file `path`. None if its process has not made it yet, or in another layout."""
        try:
            with open(path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return None
        if len(content) != self._size * 8 or content[:8] != self._mark():
            return None
        return _cells(content)

    def reset_gauges(self, path: str) -> None:
        """Clear what was true only while the process lived. For the supervisor, when the process has ended."""
        if self.read(path) is None:
            return
        with open(path, "r+b") as file:
            for series in self.series:
                if series.kind == "gauge":
                    file.seek(series.at * 8)
                    file.write(bytes(8))

    def counter(self, name: str, help: str, labels: Labels = ()) -> Counter:
        return Counter(self._cells, self._declare(name, "counter", help, labels, (), 1))

    def gauge(self, name: str, help: str, labels: Labels = ()) -> Gauge:
        return Gauge(self._cells, self._declare(name, "gauge", help, labels, (), 1))

    def histogram(self, name: str, help: str, bounds: tuple[float, ...], labels: Labels = ()) -> Histogram:
        at = self._declare(name, "histogram", help, labels, bounds, len(bounds) + 2)
        return Histogram(self._cells, at, bounds)

    def _declare(self, name: str, kind: str, help: str, labels: Labels, bounds: tuple[float, ...], cells: int) -> int:
        at, self._size = self._size, self._size + cells
        self.series.append(Declared(name, kind, help, labels, bounds, at))
        return at

    def _mark(self) -> bytes:
        layout = repr([(s.name, s.kind, s.labels, s.bounds, s.at) for s in self.series]).encode()
        return crc32(layout).to_bytes(4, "little") + b"kvm1"

    def _bind(self, cells: Cells) -> None:
        """Point every metric made so far at the real cells."""
        self._cells = cells
        for value in vars(self).values():
            for metric in value.values() if isinstance(value, dict) else (value,):
                if isinstance(metric, Counter | Gauge | Histogram):
                    metric._cells = cells


class RaftBoard(Board):
    """What the raft process knows. `peers` are the other members' ids, in any order."""

    def __init__(self, peers: Sequence[int] = ()) -> None:
        super().__init__()
        self.has_leader = self.gauge("etcd_server_has_leader", "1 if a leader is known.")
        self.is_leader = self.gauge("etcd_server_is_leader", "1 if this member leads.")
        self.is_learner = self.gauge("etcd_server_is_learner", "1 if this member does not vote.")
        self.leader_changes = self.counter("etcd_server_leader_changes_seen_total", "Leader changes seen.")
        self.proposals_committed = self.gauge(
            "etcd_server_proposals_committed_total", "Index of the last committed entry."
        )
        self.proposals_failed = self.counter(
            "etcd_server_proposals_failed_total", "Proposals that were refused or lost."
        )
        self.read_indexes_failed = self.counter(
            "etcd_server_read_indexes_failed_total", "Read index rounds that failed."
        )
        self.wal_fsync_seconds = self.histogram(
            "etcd_disk_wal_fsync_duration_seconds", "Time of one fsync of the WAL.", doubling(0.001, 14)
        )
        self.wal_write_bytes = self.gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the WAL.")
        self.term = self.gauge("kvorum_raft_term", "The current term.")
        self.wal_batch_entries = self.histogram(
            "kvorum_raft_append_batch_entries", "Entries gathered for one append to the WAL.", doubling(1, 10)
        )
        self.peer_sent_bytes = {
            peer: self.counter("etcd_network_peer_sent_bytes_total", "Bytes sent to a peer.", (("To", f"{peer:x}"),))
            for peer in sorted(peers)
        }
        self.peer_send_failures = {
            peer: self.counter("etcd_network_peer_sent_failures_total", "Sends that failed.", (("To", f"{peer:x}"),))
            for peer in sorted(peers)
        }
        self.peer_received_bytes = {
            peer: self.counter("etcd_network_peer_received_bytes_total", "Bytes from a peer.", (("From", f"{peer:x}"),))
            for peer in sorted(peers)
        }
        self.peer_active = {
            peer: self.gauge(
                "etcd_network_active_peers", "1 if the peer was heard from lately.", (("Remote", f"{peer:x}"),)
            )
            for peer in sorted(peers)
        }
        self.malformed_frames = self.counter(
            "kvorum_raft_malformed_frames_total", "Frames at the peer port dropped as garbage."
        )


class ApplyBoard(Board):
    """What the apply process knows. `members` are the ids of all of them, in any order."""

    def __init__(self, members: Sequence[int] = ()) -> None:
        super().__init__()
        self.alarms = {
            (type, member): self.gauge(
                "etcd_debugging_server_alarms",
                "1 if this alarm of a member stands.",
                (("server_id", f"{member:x}"), ("alarm_type", name)),
            )
            for member in sorted(members)
            for type, name in ((1, "NOSPACE"), (2, "CORRUPT"))
        }
        self.proposals_applied = self.gauge("etcd_server_proposals_applied_total", "Index of the last applied entry.")
        self.proposals_pending = self.gauge("etcd_server_proposals_pending", "Proposals that await their commit.")
        self.durable_index = self.gauge("kvorum_apply_durable_index", "Last applied entry that the store has flushed.")
        self.revision = self.gauge("etcd_debugging_mvcc_current_revision", "The current revision of the store.")
        self.compact_revision = self.gauge("etcd_debugging_mvcc_compact_revision", "The revision last compacted at.")
        self.puts = self.counter("etcd_mvcc_put_total", "Puts applied.")
        self.deletes = self.counter("etcd_mvcc_delete_total", "Keys deleted.")
        self.ranges = self.counter("etcd_mvcc_range_total", "Linearizable ranges and reads of transactions.")
        self.leases_granted = self.counter("etcd_debugging_lease_granted_total", "Leases granted.")
        self.leases_revoked = self.counter("etcd_debugging_lease_revoked_total", "Leases that ended.")
        self.leases_renewed = self.counter(
            "etcd_debugging_lease_renewed_total", "Leases renewed by this member's clients."
        )
        self.db_size_bytes = self.gauge("etcd_mvcc_db_total_size_in_bytes", "Disk that the store takes.")
        self.db_size_in_use_bytes = self.gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes", "The part of it that is in use."
        )
        self.backend_commit_seconds = self.histogram(
            "etcd_disk_backend_commit_duration_seconds", "Time of one batch written to the store.", doubling(0.001, 14)
        )
        self.slow_applies = self.counter("etcd_server_slow_apply_total", "Batches that took over 100 ms to apply.")
        self.slow_read_indexes = self.counter(
            "etcd_server_slow_read_indexes_total", "Read index rounds that timed out."
        )
        self.range_streams = self.gauge("kvorum_apply_range_streams", "Ranges in parts (RangeStream) that are open.")
        self.received_bytes = self.counter("kvorum_client_received_bytes_total", "Bytes from native clients.")
        self.sent_bytes = self.counter("kvorum_client_sent_bytes_total", "Bytes to native clients.")
        self.replies_dropped = self.counter(
            "kvorum_client_replies_dropped_total", "Answers that a client did not take: gone, or not reading."
        )
        self.refused = self.counter(
            "kvorum_apply_too_many_requests_total", "Writes refused because too much was under way."
        )
        self.batch_entries = self.histogram(
            "kvorum_apply_batch_entries", "Entries applied in one turn.", doubling(1, 10)
        )
        self.batch_requests = self.histogram(
            "kvorum_apply_request_frames", "Frames of clients taken in one turn.", doubling(1, 12)
        )
        self.malformed_frames = self.counter(
            "kvorum_apply_malformed_frames_total", "Frames of clients refused as garbage."
        )


class WatchBoard(Board):
    """What the watch process knows."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers = self.gauge("etcd_debugging_mvcc_watcher_total", "Watchers.")
        self.streams = self.gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams.")
        self.slow_watchers = self.gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers that are behind.")
        self.events = self.counter("etcd_debugging_mvcc_events_total", "Events sent.")
        self.malformed_frames = self.counter(
            "kvorum_watch_malformed_frames_total", "Frames of clients refused as garbage."
        )


class GatewayBoard(Board):
    """What a gateway process knows."""

    def __init__(self, name: str = "gateway") -> None:
        super().__init__()
        which = (("process", name),)
        self.calls = self.counter("kvorum_gateway_calls_total", "Calls of etcd's API that came in.", which)
        self.streams = self.gauge("kvorum_gateway_streams", "Watch, lease and range streams that are open.", which)


def directory(run_dir: str) -> str:
    """Where the boards of a node are, each in a file named after its process. The supervisor makes it."""
    return os.path.join(run_dir, "metrics")


def door(run_dir: str) -> str:
    """The socket where the supervisor serves its pages to the node itself."""
    return os.path.join(run_dir, "metrics.sock")


def boards(
    peers: Sequence[int] = (), members: Sequence[int] = (), gateways: Sequence[str] = ("gateway",)
) -> dict[str, Board]:
    """A fresh board of every process, by its name, for reading."""
    others = {"raft": RaftBoard(peers), "apply": ApplyBoard(members), "watch": WatchBoard()}
    return others | {name: GatewayBoard(name) for name in gateways}
