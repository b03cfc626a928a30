"""The Engine contract, on every engine."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from storage.engine import Engine
from storage.memory import LossyEngine
from storage.rocks import NotOurStore, RocksEngine, StoreInUse


def written(engine: Engine, *pairs: tuple[bytes, bytes | None]) -> None:
    batch = engine.batch()
    for key, value in pairs:
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
    engine.write(batch)


def all_of(engine: Engine) -> list[tuple[bytes, bytes]]:
    return list(engine.scan(b"", b"\xff" * 9))


def test_keys_and_values_are_any_bytes(engine: Engine) -> None:
    """storage.engine: keys compared bytewise, values may be empty."""
    pairs = [(bytes([a]) * n, bytes([b]) * m) for a in (0, 1, 255) for n in (1, 3) for b in (0, 255) for m in (0, 2)]
    written(engine, *pairs)
    assert all_of(engine) == sorted(dict(pairs).items())
    assert engine.get(b"\0") == b"\xff\xff"
    assert engine.get(b"\0\0") is None
    assert engine.get_many([b"\xff", b"none", b"\1\1\1"]) == [b"\xff\xff", None, b"\xff\xff"]
    assert engine.get_many([]) == []


def test_later_changes_of_a_key_win_within_a_batch(engine: Engine) -> None:
    written(engine, (b"a", b"1"), (b"a", b"2"), (b"b", b"1"), (b"b", None), (b"c", None), (b"c", b"3"))
    assert all_of(engine) == [(b"a", b"2"), (b"c", b"3")]


def test_scans_keep_their_bounds(engine: Engine) -> None:
    written(engine, *((bytes([n]), b"v%d" % n) for n in range(10)))
    assert [key for key, _ in engine.scan(b"\3", b"\6")] == [b"\3", b"\4", b"\5"]
    assert [key for key, _ in engine.scan(b"\3", b"\6", reverse=True)] == [b"\5", b"\4", b"\3"]
    assert list(engine.scan(b"\3\0", b"\4")) == []
    assert list(engine.scan(b"\6", b"\3")) == []
    assert list(engine.scan(b"\6", b"\3", reverse=True)) == []
    assert list(engine.scan_keys(b"\10", b"\20")) == [b"\10", b"\11"]
    assert engine.first(b"\3\0", b"\377") == (b"\4", b"v4")
    assert engine.first(b"\3\0", b"\4") is None


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_sees_the_store_as_it_was_when_asked_for(engine: Engine, reverse: bool) -> None:
    """storage.engine: whatever is written while it is read, and before its first item is taken."""
    before = [(b"k%03d" % n, b"old") for n in range(500)]
    written(engine, *before)
    scan, keys = engine.scan(b"k", b"l", reverse=reverse), engine.scan_keys(b"k", b"l")
    written(engine, *((key, b"new") for key, _ in before[::2]), *((key, None) for key, _ in before[1::2]), (b"kx", b""))
    got = []
    for item in scan:
        got.append(item)
        written(engine, (item[0], b"newer"))
    assert got == before[:: -1 if reverse else 1]
    assert list(keys) == [key for key, _ in before]


def test_many_scans_at_once_do_not_disturb_each_other(engine: Engine) -> None:
    """rocksdict does not keep an iterator's bounds alive: with them freed, scans ended wherever the memory said."""
    written(engine, *((b"k%05d" % n, b"v") for n in range(2000)))
    dice = random.Random(7)
    for _ in range(50):
        low, high = sorted(dice.sample(range(2000), 2))
        outer = engine.scan(b"k%05d" % low, b"k%05d" % high)
        seen = 0
        for _ in outer:
            seen += 1
            if seen % 10 == 0:
                engine.first(b"a%05d" % dice.randrange(2000), b"k%05d" % dice.randrange(2000))
                junk = [bytes(6) for _ in range(5)]
                del junk
        assert seen == high - low


def test_size_grows_with_what_is_written(engine: Engine) -> None:
    before = engine.size_bytes()
    written(engine, *((b"%05d" % n, random.Random(n).randbytes(1000)) for n in range(500)))
    assert engine.size_bytes() >= before + 400_000


def until(engine: Engine, mark: int) -> None:
    deadline = time.monotonic() + 30
    while engine.flushed() < mark:
        assert time.monotonic() < deadline
        if isinstance(engine, LossyEngine):
            engine.finish_flush()


def test_marks_of_flushes_arrive_in_order(engine: Engine) -> None:
    """storage.engine: only the newest waiting mark is kept, and marks never fall."""
    assert engine.flushed() == 0
    for mark in range(1, 20):
        written(engine, (b"k", b"%d" % mark))
        engine.begin_flush(mark)
        assert engine.flushed() <= mark
    until(engine, 19)
    assert engine.flushed() == 19


# ---- RocksDB alone


def test_what_was_flushed_is_there_after_reopening(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "s")
    written(engine, (b"a", b"1"))
    engine.begin_flush(1)
    until(engine, 1)
    engine.close()
    engine = RocksEngine(tmp_path / "s")
    assert all_of(engine) == [(b"a", b"1")]
    engine.close()
    engine.close()


def test_rocksdb_writes_no_log_of_its_own(tmp_path: Path) -> None:
    """DESIGN 6: the Raft log makes writes durable; a second one would cost as much as the write."""
    engine = RocksEngine(tmp_path / "s")
    written(engine, *((b"%d" % n, bytes(1000)) for n in range(100)))
    logs = list((tmp_path / "s").glob("*.log"))
    assert logs
    assert sum(log.stat().st_size for log in logs) == 0
    engine.close()


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    """Reliability T9: a paused process that wakes up must not write beside its successor."""
    engine = RocksEngine(tmp_path / "s")
    with pytest.raises(StoreInUse):
        RocksEngine(tmp_path / "s")
    engine.close()
    RocksEngine(tmp_path / "s").close()


def test_a_store_with_more_column_families_is_refused(tmp_path: Path) -> None:
    """Reliability T1: each family is flushed at its own time, so together they are at no time."""
    db = Rdict(str(tmp_path / "s"), Options(raw_mode=True))
    db.create_column_family("other", Options(raw_mode=True))
    db.close()
    with pytest.raises(NotOurStore, match="other"):
        RocksEngine(tmp_path / "s")


def test_what_is_no_store_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file, not a directory")
    with pytest.raises(OSError, match="s"):
        RocksEngine(tmp_path / "s")


def test_a_failed_flush_is_final(tmp_path: Path) -> None:
    """DESIGN 5, fsyncgate: after a failure nothing is known about the disk; a later success proves nothing."""
    engine = RocksEngine(tmp_path / "s")
    written(engine, (b"a", b"1"))
    engine._flusher._db = Broken()  # type: ignore[assignment]
    engine.begin_flush(1)
    with pytest.raises(OSError, match="no space"):
        until(engine, 1)
    engine._flusher._db = engine._db
    engine.begin_flush(2)
    with pytest.raises(OSError, match="no space"):
        engine.flushed()
    engine.close()


class Broken:
    def flush(self, wait: bool) -> None:
        raise Exception("IO error: no space left")


# ---- the lossy one alone


def test_a_crash_keeps_an_exact_prefix() -> None:
    for keep in range(6):
        engine = LossyEngine()
        for n in range(5):
            written(engine, (b"n", b"%d" % n), (b"%d" % n, b""))
        engine.begin_flush(5)
        written(engine, (b"n", b"last"))
        assert engine.unflushed == 6
        engine.crash(keep)
        assert engine.unflushed == 0
        assert engine.flushed() == 0
        assert engine.get(b"n") == (b"%d" % (keep - 1) if keep else None)
        assert len(all_of(engine)) == (keep + 1 if keep else 0)


def test_a_finished_flush_covers_what_was_written_before_it_began() -> None:
    engine = LossyEngine()
    written(engine, (b"a", b""))
    engine.begin_flush(1)
    written(engine, (b"b", b""))
    engine.begin_flush(2)
    written(engine, (b"c", b""))
    engine.begin_flush(3)
    engine.finish_flush()
    assert (engine.flushed(), engine.unflushed, engine.flushing) == (1, 2, True)
    engine.finish_flush()
    assert (engine.flushed(), engine.unflushed, engine.flushing) == (3, 0, False)
    written(engine, (b"d", b""))
    engine.crash(0)
    assert [key for key, _ in all_of(engine)] == [b"a", b"b", b"c"]


def test_a_lossy_flush_can_fail() -> None:
    engine = LossyEngine()
    engine.begin_flush(1)
    engine.fail_flush()
    with pytest.raises(OSError, match="failed"):
        engine.flushed()
