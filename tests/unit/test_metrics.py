"""Boards: numbers that outlive their process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cluster import metrics


def values(board: metrics.Board, path: Path) -> dict[str, float]:
    cells = board.read(str(path))
    assert cells is not None
    return {series.name: cells[series.at] for series in board.series if series.kind != "histogram"}


def test_a_reader_sees_what_a_writer_has_set(tmp_path: Path) -> None:
    board = metrics.RaftBoard([7, 5])
    board.open(str(tmp_path / "raft"))
    board.is_leader.set(1)
    board.leader_changes.add()
    board.leader_changes.add(2)
    board.peer_sent_bytes[7].add(100)
    seen = values(metrics.RaftBoard([5, 7]), tmp_path / "raft")
    assert (seen["etcd_server_is_leader"], seen["etcd_server_leader_changes_seen_total"]) == (1, 3)
    cells = board.read(str(tmp_path / "raft"))
    assert cells is not None
    by_peer = {s.labels: cells[s.at] for s in board.series if s.name == "etcd_network_peer_sent_bytes_total"}
    assert by_peer == {(("To", "5"),): 0, (("To", "7"),): 100}


def test_an_observation_falls_into_the_bucket_whose_bound_is_not_below_it(tmp_path: Path) -> None:
    """Prometheus: le means less or equal."""
    board = metrics.RaftBoard()
    board.open(str(tmp_path / "raft"))
    for seconds in (0.0005, 0.001, 0.0011, 0.5, 100.0):
        board.wal_fsync_seconds.observe(seconds)
    series = next(s for s in board.series if s.name == "etcd_disk_wal_fsync_duration_seconds")
    cells = board.read(str(tmp_path / "raft"))
    assert cells is not None
    counts = [cells[series.at + i] for i in range(len(series.bounds) + 1)]
    assert series.bounds[:3] == (0.001, 0.002, 0.004)
    assert counts == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert cells[series.at + len(series.bounds) + 1] == pytest.approx(100.5026)


def test_a_successor_goes_on_counting_and_gauges_of_the_dead_are_cleared(tmp_path: Path) -> None:
    first = metrics.RaftBoard()
    first.open(str(tmp_path / "raft"))
    first.leader_changes.add(4)
    first.has_leader.set(1)
    del first
    metrics.RaftBoard().reset_gauges(str(tmp_path / "raft"))
    second = metrics.RaftBoard()
    second.open(str(tmp_path / "raft"))
    second.leader_changes.add()
    seen = values(second, tmp_path / "raft")
    assert (seen["etcd_server_leader_changes_seen_total"], seen["etcd_server_has_leader"]) == (5, 0)


def test_a_board_of_another_layout_is_skipped_by_readers_and_made_anew_by_its_writer(tmp_path: Path) -> None:
    metrics.RaftBoard([1]).open(str(tmp_path / "raft"))
    assert metrics.RaftBoard([2]).read(str(tmp_path / "raft")) is None
    assert metrics.ApplyBoard().read(str(tmp_path / "raft")) is None
    metrics.ApplyBoard().reset_gauges(str(tmp_path / "raft"))  # leaves it alone
    other = metrics.RaftBoard([2])
    other.open(str(tmp_path / "raft"))
    assert set(values(other, tmp_path / "raft").values()) == {0.0}


def test_without_a_file_or_without_space_numbers_go_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapped page that gets no block would kill the process (SIGBUS): a number is not worth a member's life."""

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    for path in (None, str(tmp_path / "raft")):
        board = metrics.RaftBoard()
        board.open(path)
        board.term.set(3)
        board.wal_fsync_seconds.observe(1)


def test_the_boards_of_a_node_name_each_series_once() -> None:
    series = [(s.name, s.labels) for board in metrics.boards([1, 2]).values() for s in board.series]
    assert len(series) == len(set(series))
