"""Python compiled: the modules on the path of a request, made into C by mypyc. `python -m native.compile` builds them.

    source ──mypyc──▶ C ──cc──▶ native/compiled/SUM/storage/turn.*.so, ...      what a node's processes import, if there
       └────────────────────────────────────────────────────────────────────    the interpreter, else

It is the same source either way, and means the same: the types that mypy checks are what the compiler needs to do
without most of what the interpreter does. Half of the CPU time of a put was spent in the interpreter's loop; applying
one takes 7 to 9 us compiled where it took 15 (RocksDB's share included), a transaction 12 where it took 23.

SUM is a checksum of the sources, so a build is never of another version than the source beside it: after an edit the
interpreter runs until the next build. A build is put in its place by one rename, whole. Tests import the source, where
they may replace what they like; tests/test_compiled.py has the compiled modules do the same things.

What may not be compiled: classes derived from a named tuple or from an exception other than Exception, and what looks
into `vars()` of an object. It stays out of MODULES. And a name has one type in a function, also where exceptions are
caught under it: mypyc gives it that of the first, and fails when the second comes. Nor may what holds memory for C: a
compiled function lets go of a local variable after its last use, not at its end, and cffi's memory goes with it, though
C has its address. So the faces of the C parts stay as they are.

Compiled and interpreted modules use each other as they are. A compiled module looks up its own global names when it
runs, but calls what other compiled ones define directly.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
BUILDS = HERE / "compiled"
INTERPRETED = "INTERPRET_KVORUM"
"""Environment variable that, when it is not empty, has everything run by the interpreter."""

MODULES = {
    "store": (
        "kvorum.wire",
        *("storage." + name for name in ("codec", "compaction", "entry", "hashes", "history", "keyspace", "leases")),
        *("storage." + name for name in ("lives", "places", "reads", "requests", "turn", "txn")),
    ),
    "raft": (
        "cluster.internal",
        "cluster.raftd",
        *("cluster.raft." + name for name in ("config", "core", "leadership", "log", "message", "progress")),
        *("cluster.raft." + name for name in ("quorum", "reads", "ready")),
    ),
    "node": (
        *("cluster." + name for name in ("admission", "applyd", "broadcast", "feed", "gatewayd", "landlord")),
        *("cluster." + name for name in ("leasecalls", "lessor", "links", "local_answers", "longreads", "membercalls")),
        *("cluster." + name for name in ("node", "outbox", "proposals", "ranges", "reads", "requests")),
        *("cluster." + name for name in ("ring", "streams", "watchd")),
    ),
}
"""What is compiled together: a library each, of which the linker and the processes of a node share one copy."""

SETUP = """
import json, sys
from mypyc.build import mypycify
from setuptools import setup
groups, target = json.loads(sys.argv.pop(1)), sys.argv.pop(1)
paths = [path for _, paths in groups for path in paths]
named = [(paths, name) for name, paths in groups]
options = ["--config-file=", "--ignore-missing-imports"]
modules = mypycify([*options, *paths], opt_level="2", debug_level="0", separate=named, target_dir=target)
setup(name="compiled", packages=[], ext_modules=modules)
"""
"""Only what the compiler must know is asked of the types: to be strict is for those who work on them, and a newer mypy
with new wishes must not keep anybody from installing."""


def source(module: str) -> str:
    """Its path below ROOT."""
    return module.replace(".", "/") + ".py"


def checksum() -> str:
    """Of everything that a build is made of."""
    found = hashlib.sha256(str(sysconfig.get_config_var("SOABI")).encode())  # a patched interpreter takes it, too
    for modules in MODULES.values():
        for module in modules:
            found.update((ROOT / source(module)).read_bytes())
    found.update(Path(__file__).read_bytes())
    return found.hexdigest()[:16]


def prefer() -> bool:
    """From now on import compiled modules, if there is a build of exactly these sources. To be called before any of
    them is imported. Returns whether it is so."""
    build = BUILDS / checksum()
    if os.environ.get(INTERPRETED) or not build.is_dir():
        return False
    sys.path.append(str(build))  # where the libraries of the groups lie
    for package in sorted({module.rpartition(".")[0] for modules in MODULES.values() for module in modules}):
        importlib.import_module(package).__path__.insert(0, str(build.joinpath(*package.split("."))))
    return True


def main() -> int:
    """Build, unless there is a build already. Returns the exit code."""
    build = BUILDS / checksum()
    if build.is_dir():
        return 0
    print("kvorum: compiling what is on the path of a request (a minute or two)", file=sys.stderr)
    BUILDS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=BUILDS) as place:
        groups = json.dumps([[name, [source(module) for module in modules]] for name, modules in MODULES.items()])
        command = [
            sys.executable,
            "-c",
            SETUP,
            groups,
            f"{place}/c",
            "--quiet",
            "build_ext",
            "--parallel",
            str(os.cpu_count() or 1),
        ]
        command += ["--build-lib", f"{place}/lib", "--build-temp", f"{place}/temp"]
        made = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if made.returncode:
            print(made.stdout, file=sys.stderr)
            return 1
        for old in BUILDS.iterdir():
            if old != Path(place):
                shutil.rmtree(old)
        Path(place, "lib").rename(build)
    return 0


if __name__ == "__main__":
    sys.exit(main())
