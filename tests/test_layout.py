"""The rules of the house (DESIGN, "The house"), held by reading the source rather than by hoping.

Imports go down, pure rooms touch nothing that differs between two runs, sockets and RocksDB have one file each. Each
rule is a function over a syntax tree, and is shown to catch what it forbids.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvorum
from cluster import version

ROOT = Path(__file__).parents[1]
ROOMS = ("kvorum", "cluster", "storage", "native")

ENTRIES = {
    *ROOMS,
    *("tests", "ops", ".ci", ".gitignore", "setup.py", "pyproject.toml", "Makefile"),
    *("README.md", "CHANGELOG.md", "DESIGN.md", "LICENSE"),
}
MADE = {".git", ".venv", ".kvorum", "build", "kvorum.egg-info", "__pycache__"}
"""What building and running leave behind, all of it ignored by git."""

SHARED = {"kvorum.wire", "kvorum.errors", "kvorum.etcd_pb2"}
"""The part of kvorum that every room may use."""

BELOW = {"kvorum": set[str](), "native": set[str](), "storage": {"native"}, "cluster": {"storage", "native"}}

IMPURE_IN_STORAGE = {"rocks.py", "journal.py", "failpoint.py"}
FORBIDDEN_IN_PURE = {
    *("time", "datetime", "secrets", "uuid"),  # what differs between two runs
    *("os", "io", "pathlib", "tempfile", "shutil", "mmap", "fcntl"),  # files
    *("socket", "select", "selectors", "ssl", "zmq", "asyncio", "urllib", "http"),  # the network
    *("threading", "multiprocessing", "concurrent", "queue", "subprocess", "signal"),  # anybody else
    *("logging", "sys", "prometheus_client", "ctypes", "rocksdict"),
    *("cluster.log", "cluster.metrics", "storage.failpoint", "storage.rocks", "storage.journal"),
}
FORBIDDEN_CALLS_IN_PURE = {"open", "print", "input", "id", "hash"}


def modules(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def pure_modules() -> list[Path]:
    storage = [path for path in modules("storage") if path.name not in IMPURE_IN_STORAGE]
    cluster = (
        "access",
        "broadcast",
        "feed",
        "internal",
        "jsontext",
        "leadership",
        "leasecalls",
        "lessor",
        "proposals",
        "ranges",
        "recipes",
        "ring",
        "snapshotcalls",
        "snapshots",
    )
    client = ("wire", "errors", "watching", "leasing", "endpoints", "snapshots")
    one_by_one = [ROOT / f"cluster/{name}.py" for name in cluster] + [ROOT / f"kvorum/{name}.py" for name in client]
    return [*modules("cluster/raft"), *storage, *one_by_one]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(module: ast.Module) -> Iterator[str]:
    """The full name of everything imported anywhere in the module, `from a import b` being a.b."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: the import name is the path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def wrong_directions(room: str, module: ast.Module) -> list[str]:
    """Imports of our own that do not go down."""
    wrong = []
    for name in imported(module):
        top = name.partition(".")[0]
        if top not in ROOMS or top == room or top in BELOW[room]:
            continue
        if room == "kvorum" or not any(is_within(name, shared) for shared in SHARED):
            wrong.append(name)
    return wrong


def impurities(module: ast.Module) -> list[str]:
    """What a pure room may not do."""
    found = [name for name in imported(module) if any(is_within(name, bad) for bad in FORBIDDEN_IN_PURE)]
    found += [
        name for name in imported(module) if is_within(name, "random") and name not in ("random", "random.Random")
    ]
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "random" and node.attr != "Random":
                found.append(f"random.{node.attr}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in FORBIDDEN_CALLS_IN_PURE:
                found.append(f"{node.func.id}()")
            elif node.func.id == "Random" and not node.args:
                found.append("Random() without a seed")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "random.Random" and not node.args:
            found.append("Random() without a seed")
    return found


def sockets_made(module: ast.Module) -> list[str]:
    """ZeroMQ sockets: X.socket(...), X not being the standard library's socket module, and zmq.Socket(...)."""
    return [
        ast.unparse(node)
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.attr == "Socket" or (node.func.attr == "socket" and ast.unparse(node.func.value) != "socket"))
    ]


def forks(module: ast.Module) -> list[str]:
    names = [name for name in imported(module) if is_within(name, "multiprocessing")]
    return names + [
        ast.unparse(node)
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty")
    ]


@pytest.mark.parametrize("path", modules(*ROOMS), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    """cluster -> storage -> native; kvorum imports none of them, so that it can be published alone."""
    assert wrong_directions(path.relative_to(ROOT).parts[0], tree(path)) == []


@pytest.mark.parametrize("path", pure_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pure_rooms_are_pure(path: Path) -> None:
    """No clock, global randomness, file, socket, thread, logging, metrics: the simulator runs them as shipped."""
    assert impurities(tree(path)) == []


@pytest.mark.parametrize("path", modules("cluster", "storage", "native"), ids=lambda path: str(path.relative_to(ROOT)))
def test_sockets_and_rocksdb_have_one_file_each(path: Path) -> None:
    """So that all limits of all sockets can be read on one page, and the engine be exchanged in one."""
    module = tree(path)
    if path != ROOT / "cluster/sockets.py":
        assert sockets_made(module) == []
    if path != ROOT / "storage/rocks.py":
        assert [name for name in imported(module) if is_within(name, "rocksdict")] == []


@pytest.mark.parametrize("path", modules(*ROOMS, "ops"), ids=lambda path: str(path.relative_to(ROOT)))
def test_processes_are_spawned_never_forked(path: Path) -> None:
    """ZeroMQ and RocksDB hold threads and locks that a forked child would find in the middle of something."""
    assert forks(tree(path)) == []


@pytest.mark.parametrize("path", modules(*ROOMS, "ops"), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_opens_with_its_theory(path: Path) -> None:
    """STYLE: what it is for, before anything else. A package's empty __init__ has nothing to say."""
    if path.name.endswith("_pb2.py") or path.read_text() == "":
        return
    assert ast.get_docstring(tree(path))


def test_the_top_of_the_tree_holds_what_it_should_and_nothing_else() -> None:
    found = {path.name for path in ROOT.iterdir()} - MADE
    assert {name for name in found if not name.endswith("_cache") and name != ".hypothesis"} == ENTRIES


def test_every_package_is_shipped() -> None:
    """setup.py lists packages by hand; one that is forgotten works in the clone and nowhere else."""
    call = next(
        node
        for node in ast.walk(tree(ROOT / "setup.py"))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup"
    )
    listed = ast.literal_eval(next(keyword.value for keyword in call.keywords if keyword.arg == "packages"))
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in modules(*ROOMS) if path.name == "__init__.py"}
    assert set(listed) == found


def test_the_release_is_the_same_everywhere() -> None:
    assert kvorum.__version__ == version.KVORUM
    assert f"## {version.KVORUM}" in (ROOT / "CHANGELOG.md").read_text()


def test_generated_code_is_left_alone_by_the_linter() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "kvorum/etcd_pb2.py" in settings["tool"]["ruff"]["extend-exclude"]


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("storage", "from cluster.raft import core", ["cluster.raft.core"]),
        ("native", "import storage.journal", ["storage.journal"]),
        ("kvorum", "def late():\n    from storage import codec", ["storage.codec"]),
        ("kvorum", "from kvorum import wire", []),
        ("cluster", "from kvorum import wire, sync", ["kvorum.sync"]),
        ("cluster", "from kvorum import client", ["kvorum.client"]),
        ("cluster", "import kvorum", ["kvorum"]),
        ("cluster", "from kvorum.errors import Refused\nfrom storage import codec\nimport zmq", []),
    ],
)
def test_the_rule_on_imports_catches(room: str, source: str, wrong: list[str]) -> None:
    assert wrong_directions(room, ast.parse(source)) == wrong


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time", ["time"]),
        ("from os import path", ["os.path"]),
        ("import random\nx = random.random()", ["random.random"]),
        ("import random\nx = random.Random()", ["Random() without a seed"]),
        ("from random import Random, choice", ["random.choice"]),
        ("import random\ndef f(dice: random.Random): dice.random()", []),
        ("def f():\n    with open('x'): pass", ["open()"]),
        ("print('x')", ["print()"]),
        ("from cluster import log", ["cluster.log"]),
        ("from storage.failpoint import hit", ["storage.failpoint.hit"]),
        ("import struct\nfrom kvorum import wire", []),
    ],
)
def test_the_rule_on_purity_catches(source: str, found: list[str]) -> None:
    assert impurities(ast.parse(source)) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("context.socket(zmq.PUB)", ["context.socket(zmq.PUB)"]),
        ("zmq.Context.instance().socket(1)", ["zmq.Context.instance().socket(1)"]),
        ("zmq.Socket(c, 1)", ["zmq.Socket(c, 1)"]),
        ("socket.socket(1, 2)", []),
    ],
)
def test_the_rule_on_sockets_catches(source: str, found: list[str]) -> None:
    assert sockets_made(ast.parse(source)) == found


def test_the_rule_on_forks_catches() -> None:
    assert forks(ast.parse("import os\nfrom multiprocessing import Process\nos.fork()")) == [
        "multiprocessing.Process",
        "os.fork",
    ]
