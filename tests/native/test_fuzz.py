"""The fuzzer's own test: it finds what it is there to find. The long run belongs to `make soak`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import fuzz

ROOT = Path(__file__).parents[2]
SOAK_SECONDS = 120


MAIN = """
#include <stdint.h>
#include <stdio.h>
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int main(int count, char **names) {
    static uint8_t bytes[1 << 18];
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        size_t size = fread(bytes, 1, sizeof bytes, file);
        fclose(file);
        for (int how = 0; how < 8; how++) {
            bytes[0] = (uint8_t)(bytes[0] / 8 * 8 + how);
            LLVMFuzzerTestOneInput(bytes, size);
        }
    }
}
"""


@pytest.mark.parametrize(
    ("name", "source", "line", "error", "told"),
    [
        (
            "wal",
            "wal_read.c",
            "scan->places[scan->place_count++] = record->offset;",
            "scan->places[scan->place_count++] = 0;",
            "not so: at > above",
        ),
        ("plain", "plain.c", "length > (uint64_t)(s->end - s->at)", "length > 1 << 20", "not so: part[0]"),
        ("plain", "plain.c", "if (room - n < 6) return -2;", "", "heap-buffer-overflow"),
        ("edge", "edge_grpc.c", "edge_call_hold(c, -(int64_t)c->room);", "", "not so: after.connections == 0"),
        ("edge", "edge_grpc.c", "if (n && !edge_call_grow(c, n, c->want)) return;", "", "runtime error"),
        ("edge", "edge_answer.c", "if (--s->references == 0) edge_release(e, s);", "--s->references;", "LeakSanitizer"),
    ],
)
def test_the_target_reads_every_seed_and_notices_a_reader_that_errs(
    tmp_path: Path, name: str, source: str, line: str, error: str, told: str
) -> None:
    """Built with gcc and a main() that reads files, so that it is checked where there is no clang.

    Then once more with a reader that is wrong in one place: a fuzzer that can't fail would be none.
    """
    target = fuzz.TARGETS[name]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    target.write_seeds(corpus)
    seeds = sorted(corpus.iterdir())
    assert len(seeds) > 5
    (tmp_path / "main.c").write_text(MAIN)
    reader = (ROOT / "native" / source).read_text()
    wrong = reader.replace(line, error)
    assert wrong != reader
    (tmp_path / "wrong.c").write_text(wrong)
    outcomes = []
    for reading in (f"native/{source}", str(tmp_path / "wrong.c")):
        program = tmp_path / "target"
        others = [f"native/{other}" for other in target.sources if other != source]
        flags = ["-std=gnu11", "-Inative", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        command = ["gcc", *flags, "-o", program, tmp_path / "main.c", reading, *others]
        subprocess.run([*command, *(f"-l{library}" for library in target.libraries)], cwd=ROOT, check=True)
        outcomes.append(subprocess.run([program, *seeds], capture_output=True, text=True, check=False))
    right, erring = outcomes
    assert (right.returncode, right.stderr) == (0, "")
    assert erring.returncode != 0
    assert told in erring.stderr


@pytest.mark.soak
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_fuzzing_finds_nothing(target: str) -> None:
    """RELIABILITY section 6: WAL records, batches, the bytes of clients, fuzzed."""
    done = subprocess.run([sys.executable, "-m", "tests.native.fuzz", target, "--seconds", str(SOAK_SECONDS)], cwd=ROOT)
    if done.returncode == fuzz.MISSING:
        pytest.skip("no clang with libFuzzer here")
    assert done.returncode == 0
