"""The directory as a whole: segments missing, doubled, swapped, of another log; what `verify` and `dump` tell."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from native import segments
from native._wal import lib
from storage.entry import Entry, HardState
from storage.journal import Damaged

from .logs import CLUSTER, MEMBER, Expected, build, open_journal, peek, random_calls, recover

WAL = lib.WAL_HEADER_BYTES


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    """A log of at least five segments."""
    directory = tmp_path_factory.mktemp("log") / "wal"
    expected = build(directory, random_calls(random.Random(3), 60))
    assert len(list(directory.glob("*.wal"))) >= 5
    return directory, expected


@pytest.fixture
def log(original: tuple[Path, Expected], tmp_path: Path) -> Path:
    """A copy of it to be ruined."""
    return Path(shutil.copytree(original[0], tmp_path / "wal"))


def segment(directory: Path, sequence: int) -> Path:
    return directory / segments.segment_name(sequence)


def swap(a: Path, b: Path) -> None:
    held = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(held)


def newest(directory: Path) -> int:
    return segments.listing(directory).segments[-1]


RUINS: dict[str, tuple[Callable[[Path], object], str]] = {
    "the oldest is missing": (lambda d: segment(d, 1).unlink(), r"0001\.wal, offset 0: the file is missing"),
    "one in the middle is missing": (lambda d: segment(d, 3).unlink(), r"0003\.wal, offset 0: the file is missing"),
    "two are swapped": (lambda d: swap(segment(d, 2), segment(d, 3)), r"0002\.wal, offset 0: it holds segment 0x3"),
    "one is a copy of another": (
        lambda d: shutil.copy(segment(d, 2), segment(d, 4)),
        r"0004\.wal, offset 0: it holds segment 0x2",
    ),
    "a copy lies behind the newest": (
        lambda d: shutil.copy(segment(d, 2), segment(d, newest(d) + 1)),
        r"offset 0: it holds segment 0x2, so it was renamed or copied",
    ),
    "one is empty": (lambda d: segment(d, 2).write_bytes(b""), r"0002\.wal, offset 0: the header is cut off"),
    "one is something else": (
        lambda d: segment(d, 2).write_bytes(b"PNG" * 2000),
        r"0002\.wal, offset 0: the header is not of a segment",
    ),
    "the newest is all zeros": (
        lambda d: segment(d, newest(d)).write_bytes(bytes(4096)),
        r"offset 0: the header is not of a segment",
    ),
}


@pytest.mark.parametrize("ruin", RUINS)
def test_a_wrong_set_of_files_is_refused_and_left_as_it_is(log: Path, ruin: str) -> None:
    """RELIABILITY F15: a lost segment, swapped or copied files. The message names the file, and what to do."""
    act, message = RUINS[ruin]
    act(log)
    before = {path.name: path.read_bytes() for path in log.iterdir()}
    with pytest.raises(Damaged, match=message) as damage:
        open_journal(log)
    assert "Nothing was changed" in str(damage.value)
    assert "kvorum wal verify" in str(damage.value)
    assert {path.name: path.read_bytes() for path in log.iterdir()} == before
    assert any(not finding.ok for finding in segments.verify(log))


def test_an_old_copy_of_a_segment_is_refused(tmp_path: Path) -> None:
    """RELIABILITY F15: restored from a backup that was taken before the segment was full."""
    journal, _ = open_journal(tmp_path / "wal")
    for index in range(1, 11):
        journal.append(HardState(1, 1, 0), [Entry(1, index, 0, bytes(100))])
    journal.close()
    shutil.copy(segment(tmp_path / "wal", 1), tmp_path / "copy")
    journal, _ = open_journal(tmp_path / "wal")
    for index in range(11, 60):
        journal.append(HardState(1, 1, 0), [Entry(1, index, 0, bytes(100))])
    journal.close()
    shutil.copy(tmp_path / "copy", segment(tmp_path / "wal", 1))
    with pytest.raises(Damaged, match="the next segment says that records go on"):
        open_journal(tmp_path / "wal")


def test_segments_of_two_logs_do_not_mix(original: tuple[Path, Expected], log: Path, tmp_path: Path) -> None:
    """Same cluster, same member, same sequence: a member that was removed and added again has a new log."""
    other = tmp_path / "other"
    build(other, random_calls(random.Random(3), 60))
    shutil.copy(segment(other, 2), segment(log, 2))
    with pytest.raises(Damaged):
        open_journal(log)


def test_a_segment_with_the_same_end_but_other_content_is_refused(tmp_path: Path) -> None:
    """The next header knows not only where but how the segment ended: the chain of checksums."""
    for name, data in (("a", b"x" * 500), ("b", b"y" * 500)):
        journal, _ = open_journal(tmp_path / name)
        for index in range(1, 20):
            journal.append(HardState(1, 1, 0), [Entry(1, index, 0, data)])
            journal.settle()
        journal.close()
    a, b = (next(s for s in segments.walk(tmp_path / name) if isinstance(s, segments.Segment)) for name in "ab")
    assert a.end == b.end
    assert segments._follows(a, a._replace(end=a.end)) is not None
    after = [s for s in segments.walk(tmp_path / "a") if isinstance(s, segments.Segment)][1]
    forged = b._replace(header=a.header)
    assert isinstance(segments._follows(after, forged), Damaged)
    assert segments._follows(after, a) is after


def test_a_log_written_by_a_newer_version_says_which_version_to_start(log: Path) -> None:
    path = segment(log, newest(log))
    content = bytearray(path.read_bytes())
    content[8:12] = (2).to_bytes(4, "little")
    content[508:512] = lib.crc32c(0, bytes(content[:508]), 508).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(Damaged, match="newer version of kvorum, which is the one to start"):
        peek(log)


def test_leftovers_of_an_interrupted_release_are_removed(tmp_path: Path) -> None:
    """The release is durable before any file goes; a crash in between leaves files, with or without holes."""
    directory = tmp_path / "wal"
    journal, _ = open_journal(directory)
    for index in range(1, 80):
        journal.append(HardState(1, 1, 0), [Entry(1, index, 0, bytes(150))])
    journal.settle()
    shutil.copytree(directory, tmp_path / "before")
    journal.release(70)
    journal.close()
    kept = segments.listing(directory).segments
    for back in (1, 3):  # 2 is gone
        assert back < kept[0]
        shutil.copy(segment(tmp_path / "before", back), segment(directory, back))
    segment(directory, 3).write_bytes(b"not even a segment any more")
    notes = [finding.text for finding in segments.verify(directory) if "no longer needed" in finding.text]
    assert len(notes) == 2
    state = recover(directory)
    assert segments.listing(directory).segments == kept
    assert state.entries[-1].index == 79


def test_spares_that_are_not_whole_are_removed_and_good_ones_used(tmp_path: Path) -> None:
    directory = tmp_path / "wal"
    journal, _ = open_journal(directory)
    journal.settle()
    journal.close()
    good = segments.listing(directory).spares
    (directory / segments.spare_name(90)).write_bytes(bytes(100))
    with open(directory / segments.spare_name(91), "wb") as file:
        file.truncate(4096)  # a hole
    (directory / "spare.tmp").write_bytes(b"half")
    (directory / "notes.txt").write_bytes(b"somebody's")
    journal, _ = open_journal(directory)
    journal.settle()
    assert journal.stats().prepared == 0
    journal.close()
    assert segments.listing(directory).spares == good
    assert not (directory / "spare.tmp").exists()
    assert (directory / "notes.txt").exists()


def test_verify_says_what_is_sound_and_what_is_not(log: Path) -> None:
    findings = list(segments.verify(log))
    assert all(finding.ok for finding in findings)
    last = next(f for f in reversed(findings) if f.file.endswith(".wal"))
    expected = list(segments.walk(log))[-1]
    assert isinstance(expected, segments.Segment)
    assert last.text.endswith(f"last {expected.last[0]} of term {expected.last[1]}")
    assert any(finding.text == "spare" for finding in findings)

    path = segment(log, 2)
    content = bytearray(path.read_bytes())
    content[WAL + 30] ^= 1
    path.write_bytes(content)
    bad = [finding for finding in segments.verify(log) if not finding.ok]
    assert [(Path(f.file).name, f.offset) for f in bad] == [(path.name, WAL)]
    assert "unreadable" in bad[0].text


def test_verify_says_that_the_log_is_in_use_and_that_a_tail_is_torn(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path / "wal")
    journal.append(HardState(1, 1, 0), [Entry(1, 1, 0, bytes(700)), Entry(1, 2, 0, bytes(100))])
    journal.settle()
    assert "in use" in next(segments.verify(tmp_path / "wal")).text
    journal.close()
    assert not segments.locked(tmp_path / "wal")
    path = segment(tmp_path / "wal", 1)
    content = bytearray(path.read_bytes())
    lines = [line for line in segments.dump(tmp_path / "wal") if line.type != "header"]
    mark = lines[-1]
    assert mark.type == "mark"
    content[mark.offset : mark.offset + mark.size] = bytes(mark.size)
    content[lines[1].offset + 100] ^= 255  # in the first entry, of the same group as the second
    path.write_bytes(content)
    texts = [finding.text for finding in segments.verify(tmp_path / "wal")]
    assert any("torn group of writes" in text for text in texts)
    assert recover(tmp_path / "wal") == (HardState(1, 1, 0), ())


def test_dump_tells_every_record_in_order(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path / "wal")
    journal.append(HardState(3, 2, 1), [Entry(3, 1, 0, b"one"), Entry(3, 2, 7, b"")])
    journal.settle()
    journal.append(None, [Entry(4, 2, 0, b"two")])
    journal.settle()
    journal.close()
    header, *records = segments.dump(tmp_path / "wal")
    assert header.fields | {"cluster": CLUSTER, "member": MEMBER, "sequence": 1, "oldest": 1} == header.fields
    assert [(r.type, r.fields, r.data) for r in records] == [
        ("hard state", {"term": 3, "vote": 2, "commit": 1}, b""),
        ("entry", {"term": 3, "index": 1, "kind": 0}, b"one"),
        ("entry", {"term": 3, "index": 2, "kind": 7}, b""),
        ("mark", {}, b""),
        ("cut", {"index": 1, "term": 3}, b""),
        ("entry", {"term": 4, "index": 2, "kind": 0}, b"two"),
        ("mark", {}, b""),
    ]
    assert [r.offset for r in records] == [WAL + sum(r.size for r in records[:i]) for i in range(len(records))]


def test_an_empty_or_missing_directory_holds_nothing(tmp_path: Path) -> None:
    assert list(segments.verify(tmp_path)) == []
    assert list(segments.dump(tmp_path)) == []
    with pytest.raises(FileNotFoundError):
        list(segments.verify(tmp_path / "nowhere"))
