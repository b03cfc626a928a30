"""The compiled modules mean what their source says: the same tests, and the same bytes (native/compile.py).

The processes of a node, wherever these tests start one, run compiled; what is here needs no cluster. Left out are the
tests that put something else in a module's place, or derive from its classes, which only the source allows.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from native import compile

ROOT = Path(__file__).parents[1]
MODULES = [module for group in compile.MODULES.values() for module in group]

SAME = [
    *("tests/raft/test_scripts.py", "tests/raft/test_core.py", "tests/raft/test_message.py", "tests/raft/test_log.py"),
    *("tests/raft/test_paper.py", "tests/raft/test_regressions.py", "tests/raft/test_progress.py"),
    *("tests/storage/test_codec.py", "tests/storage/test_semantics.py", "tests/storage/test_model.py"),
    *("tests/storage/test_leases.py", "tests/storage/test_lives.py", "tests/storage/test_reads.py"),
    *("tests/storage/test_turns.py", "tests/storage/test_requests.py", "tests/storage/test_compaction.py"),
    *("tests/unit/test_proposals.py", "tests/unit/test_outbox.py", "tests/unit/test_internal.py"),
    *("tests/unit/test_lessor.py", "tests/unit/test_leasecalls.py", "tests/unit/test_ranges.py"),
    *("tests/unit/test_ring.py", "tests/unit/test_wire.py", "tests/unit/test_gatewayd.py"),
]

DIGEST = """
import random, sys
from tests.storage.test_determinism import a_log, digest, replayed
from storage.keyspace import Keyspace
from storage.memory import MemoryEngine
import storage.turn
for seed in range(5):
    keyspace = Keyspace(MemoryEngine())
    results = replayed(keyspace, a_log(seed), random.Random(seed), True)
    print(digest(keyspace.engine), results)
print(storage.turn.__file__.endswith(".so"), file=sys.stderr)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_there_is_a_build_of_these_sources() -> None:
    """ops/install.sh makes one. Edited since? `python -m native.compile`."""
    assert (compile.BUILDS / compile.checksum()).is_dir()


def test_the_same_tests_pass() -> None:
    done = run("-m", "pytest", "-p", "tests.compiled", "-p", "no:cacheprovider", *SAME)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


def test_the_same_log_gives_the_same_bytes_and_answers() -> None:
    """T5: members may be compiled or not, and are the same."""
    source = run("-c", DIGEST)
    compiled = run("-c", "import tests.compiled" + DIGEST)
    assert (source.returncode, source.stderr.strip()) == (0, "False"), source.stderr
    assert (compiled.returncode, compiled.stderr.strip()) == (0, "True"), compiled.stderr
    assert source.stdout == compiled.stdout


def test_a_build_of_other_sources_is_not_used(tmp_path: Path) -> None:
    """An edit must take effect. So must the wish to have everything interpreted."""
    for room in ("kvorum", "cluster", "storage", "native"):
        ignored = shutil.ignore_patterns("__pycache__", "ctl", "examples", "recipes")
        shutil.copytree(ROOT / room, tmp_path / room, ignore=ignored, symlinks=True)
    ask = "from native import compile; print(compile.prefer())"

    def preferred(**more: str) -> str:
        environment = {**os.environ, **more, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", ask]
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).strip()

    assert preferred() == "True"
    assert preferred(INTERPRET_KVORUM="1") == "False"
    with (tmp_path / "storage/turn.py").open("a") as file:
        file.write("# edited\n")
    assert preferred() == "False"


def test_whatever_is_compiled_is_there() -> None:
    assert len(set(MODULES)) == len(MODULES)
    for module in MODULES:
        assert (ROOT / compile.source(module)).is_file()


def names_of_two_types(function: ast.AST) -> list[str]:
    """Names under which a function catches exceptions of different types."""
    caught: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler) and node.name and node.type is not None:
            caught.setdefault(node.name, set()).add(ast.unparse(node.type))
    return [name for name, types in caught.items() if len(types) > 1]


@pytest.mark.parametrize("module", MODULES)
def test_a_name_has_one_type(module: str) -> None:
    functions = ast.walk(ast.parse((ROOT / compile.source(module)).read_text()))
    wrong = [one.name for one in functions if isinstance(one, ast.FunctionDef) and names_of_two_types(one)]
    assert not wrong


def test_a_name_of_two_types_is_found() -> None:
    wrong = "try: pass\nexcept OSError as error: pass\ntry: pass\nexcept KeyError as error: pass"
    assert names_of_two_types(ast.parse(wrong)) == ["error"]
    assert not names_of_two_types(ast.parse(wrong.replace("KeyError", "OSError")))


if not (compile.BUILDS / compile.checksum()).is_dir():
    pytestmark = pytest.mark.skipif(not os.environ.get("CI"), reason="not compiled since the last edit")
