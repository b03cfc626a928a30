"""The fuzzer's own test: it finds what it is there to find. The long run belongs to `make soak`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import fuzz

ROOT = Path(__file__).parents[2]
SOAK_SECONDS = 120


def test_the_target_reads_every_seed_and_notices_a_reader_that_errs(tmp_path: Path) -> None:
    """Built with gcc and a main() that reads files, so that it is checked where there is no clang.

    Then once more with a reader that is wrong in one place: a fuzzer that can't fail would be none.
    """
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    fuzz.write_seeds(corpus)
    seeds = sorted(corpus.iterdir())
    assert len(seeds) > 5
    (tmp_path / "main.c").write_text(
        """
        #include <stdint.h>
        #include <stdio.h>
        int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
        int main(int count, char **names) {
            static uint8_t bytes[1 << 16];
            for (int i = 1; i < count; i++) {
                FILE *file = fopen(names[i], "rb");
                size_t size = fread(bytes, 1, sizeof bytes, file);
                fclose(file);
                for (int how = 0; how < 8; how++) {
                    bytes[0] = (uint8_t)how;
                    LLVMFuzzerTestOneInput(bytes, size);
                }
            }
        }
        """
    )
    reader = (ROOT / "native/wal_read.c").read_text()
    wrong = reader.replace(
        "scan->places[scan->place_count++] = record->offset;", "scan->places[scan->place_count++] = 0;"
    )
    assert wrong != reader
    (tmp_path / "wrong.c").write_text(wrong)
    outcomes = []
    for source in ("native/wal_read.c", str(tmp_path / "wrong.c")):
        program = tmp_path / "target"
        sources = [str(tmp_path / "main.c"), "native/fuzz_wal.c", source, "native/crc32c.c"]
        flags = ["-Inative", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        subprocess.run(["gcc", *flags, "-o", program, *sources], cwd=ROOT, check=True)
        outcomes.append(subprocess.run([program, *seeds], capture_output=True, text=True, check=False))
    right, erring = outcomes
    assert (right.returncode, right.stderr) == (0, "")
    assert erring.returncode != 0
    assert "not so: at > above" in erring.stderr


@pytest.mark.soak
def test_fuzzing_finds_nothing() -> None:
    """RELIABILITY section 6: WAL records, fuzzed."""
    done = subprocess.run([sys.executable, "-m", "tests.native.fuzz", "--seconds", str(SOAK_SECONDS)], cwd=ROOT)
    if done.returncode == fuzz.MISSING:
        pytest.skip("no clang with libFuzzer here")
    assert done.returncode == 0
