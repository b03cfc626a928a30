"""Fuzz what reads bytes in C: `python -m tests.native.fuzz {wal,plain,edge} --seconds N`.

Builds the target (native/fuzz_*.c) with clang's libFuzzer and its sanitizers, seeds it with what is usual (segments
that the writer made; batches of requests; connections of clients), and runs it. Ends with 0 if nothing was found, with
libFuzzer's code and the offending input's path if something was, and with 69 if this machine has no clang with
libFuzzer (on Debian: apt-get install clang libclang-rt-14-dev). Inputs that found new ways through the code are kept in
build/fuzz/ and used again the next time.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kvorum import wire
from kvorum.wire import Kind, Method
from native.build import EDGE_SOURCES

from .batches import some_batch
from .edges import connections
from .logs import build, random_calls
from .test_wal_bytes import remove_last_mark

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "fuzz"
MISSING = 69  # EX_UNAVAILABLE
INPUT_BYTES_MAX = 6000


def compile_target(target: Target, program: Path) -> str | None:
    """Build it. Returns why that can't be done, None if it was."""
    if shutil.which("clang") is None:
        return "clang is not installed"
    sources = [f"native/{name}" for name in target.sources]
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all"]
    libraries = [f"-l{name}" for name in target.libraries]
    command = ["clang", *flags, "-fsanitize=fuzzer,address,undefined", "-o", str(program), *sources, *libraries]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"clang can't build with libFuzzer:\n{done.stderr}" if done.returncode else None


def write_segments(corpus: Path) -> None:
    """Segments as they are written, whole, without their last mark, and in each of the target's ways of reading."""
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(3):
            directory = Path(scratch) / str(number)
            build(directory, random_calls(random.Random(number), 25, data_max=60))
            paths = sorted(directory.glob("*.wal"))
            contents = [path.read_bytes() for path in paths]
            remove_last_mark(paths[-1])
            for i, content in enumerate([*contents, paths[-1].read_bytes()]):
                (corpus / f"seed-{number}-{i}").write_bytes(bytes([i * 3 % 8]) + content)


def write_batches(corpus: Path) -> None:
    """Batches of requests of every kind, most of them plain."""
    for seed in range(30):
        (corpus / f"seed-{seed}").write_bytes(bytes([128, 1]) + some_batch(seed))
    put = wire.encode(Method.PUT, Kind.CALL, 0, 1, b"\x0a\x01k")
    (corpus / "seed-no-room").write_bytes(bytes([0, 4]) + put)
    (corpus / "seed-too-long").write_bytes(bytes([0, 1]) + put[:-2] + b"\x7fk")


def write_connections(corpus: Path) -> None:
    """What clients send, of HTTP/2 and of HTTP/1, in each of the target's ways of answering."""
    for seed, sent in enumerate(connections()):
        for choice in (0, 8, 16, 32):
            (corpus / f"seed-{seed}-{choice}").write_bytes(bytes([choice]) + sent)
    (corpus / "seed-http1").write_bytes(b"\x10GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    (corpus / "seed-frame").write_bytes(b"\x01" + bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8))


class Target(NamedTuple):
    sources: tuple[str, ...]
    write_seeds: Callable[[Path], None]
    libraries: tuple[str, ...] = ()


TARGETS = {
    "wal": Target(("fuzz_wal.c", "wal_read.c", "crc32c.c"), write_segments),
    "plain": Target(("fuzz_plain.c", "plain.c"), write_batches),
    "edge": Target(("fuzz_edge.c", *EDGE_SOURCES), write_connections, ("nghttp2", "ssl", "crypto", "z")),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.native.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="how long to look (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="libFuzzer's seed; 0 takes a new one")
    options = parser.parse_args(arguments)
    target, work = TARGETS[options.target], WORK / options.target
    corpus, findings = work / "corpus", work / "findings"
    for directory in (corpus, findings):
        directory.mkdir(parents=True, exist_ok=True)
    program = work / "fuzz"
    why_not = compile_target(target, program)
    if why_not is not None:
        print(f"not fuzzed: {why_not}", file=sys.stderr)
        return MISSING
    target.write_seeds(corpus)
    limits = [f"-max_total_time={options.seconds}", f"-max_len={INPUT_BYTES_MAX}", "-timeout=5", "-rss_limit_mb=1024"]
    more = [f"-seed={options.seed}", f"-artifact_prefix={findings}/", "-print_final_stats=1"]
    return subprocess.run([program, *limits, *more, corpus], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
