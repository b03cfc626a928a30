"""A store that is read by others while its owner writes: what they see, and that the owner doesn't notice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from storage.rocks import RocksEngine
from tests.system.cluster import eventually

NUMBER = b"m"
KEYS = 500


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[RocksEngine]:
    engine = RocksEngine(tmp_path / "store")
    yield engine
    engine.close()


def write(owner: RocksEngine, number: int) -> None:
    """Batch `number`: all keys say so."""
    batch = owner.batch()
    batch.put(NUMBER, number.to_bytes(8, "big"))
    for key in range(KEYS):
        batch.put(b"k%04d" % key, number.to_bytes(8, "big") + bytes(500))
    owner.write(batch)


def flush(owner: RocksEngine, number: int) -> None:
    owner.begin_flush(number)
    eventually(lambda: owner.flushed() == number)


def number_of(view: RocksEngine) -> int:
    """That of the last batch in it. Nothing of another may be in it."""
    number = view.get(NUMBER)
    assert number is not None
    found = list(view.scan(b"k", b"l"))
    assert len(found) == KEYS
    assert {value[:8] for _, value in found} == {number}
    return int.from_bytes(number, "big")


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".log"}


def test_a_view_is_of_the_moment_when_it_was_opened_whatever_the_owner_deletes(
    owner: RocksEngine, tmp_path: Path
) -> None:
    write(owner, 1)
    flush(owner, 1)
    write(owner, 2)  # in memory
    with closing(RocksEngine.view(tmp_path / "store")) as view:
        had = {path.name for path in (tmp_path / "store").glob("*.sst")}
        for number in range(3, 40):
            write(owner, number)
            flush(owner, number)
        eventually(lambda: had - {path.name for path in (tmp_path / "store").glob("*.sst")}, what="a compaction")
        assert number_of(view) == 1
    with closing(RocksEngine.view(tmp_path / "store")) as view:
        assert number_of(view) == 39


def test_views_opened_while_the_owner_writes_are_prefixes_with_all_that_was_flushed(
    owner: RocksEngine, tmp_path: Path
) -> None:
    stop = threading.Event()
    written = [0]

    def work() -> None:
        while not stop.is_set():
            written[0] += 1
            write(owner, written[0])
            if written[0] % 3 == 0:
                owner.begin_flush(written[0])

    writer = threading.Thread(target=work)
    writer.start()
    try:
        eventually(lambda: owner.flushed() > 0)
        last = 0
        for _ in range(60):
            flushed = owner.flushed()
            with closing(RocksEngine.view(tmp_path / "store")) as view:
                number = number_of(view)
            assert max(flushed, last) <= number <= written[0]
            last = number
    finally:
        stop.set()
        writer.join()


def test_a_view_changes_nothing_and_writes_nothing(owner: RocksEngine, tmp_path: Path) -> None:
    write(owner, 1)
    flush(owner, 1)
    before = files(tmp_path / "store")
    view = RocksEngine.view(tmp_path / "store")
    batch = view.batch()
    batch.put(b"a", b"b")
    with pytest.raises(OSError, match="read only"):
        view.write(batch)
    view.close()
    assert files(tmp_path / "store") == before
    write(owner, 2)
    flush(owner, 2)


def test_a_file_that_is_gone_for_a_moment_is_waited_for_and_one_that_stays_away_is_an_error(
    owner: RocksEngine, tmp_path: Path
) -> None:
    """As when the owner deletes what a view is about to open: MANIFEST soon says so."""
    write(owner, 1)
    flush(owner, 1)
    (file,) = (tmp_path / "store").glob("*.sst")
    away = tmp_path / "away"
    file.rename(away)
    with pytest.raises(OSError, match=file.name):
        RocksEngine.view(tmp_path / "store")
    timer = threading.Timer(0.1, away.rename, (file,))
    timer.start()
    with closing(RocksEngine.view(tmp_path / "store")) as view:
        assert number_of(view) == 1
    timer.join()
