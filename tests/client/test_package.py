"""kvorum as a package of its own: what it loads, and whom it gets along with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kvorum

ROOT = Path(__file__).parents[2]


def python(program: str, *paths: Path) -> str:
    """What a fresh interpreter prints that finds modules in `paths` and in the installation only."""
    path = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    done = subprocess.run([sys.executable, "-P", "-c", path + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_client_works_where_nothing_else_of_kvorum_is(tmp_path: Path) -> None:
    """It can be published alone: no cluster, storage or native beside it."""
    (tmp_path / "kvorum").symlink_to(ROOT / "kvorum")
    modules = "kvorum.sync, kvorum.aio, kvorum.txn, kvorum.ctl.main"
    out = python(
        f"import {modules}\nprint([name for name in ('cluster', 'storage', 'native') if name in sys.modules])", tmp_path
    )
    assert out == "[]\n"


def test_the_client_loads_little(tmp_path: Path) -> None:
    """An import is part of a short program's time."""
    heavy = ("asyncio", "click", "prometheus_client", "cffi", "rocksdict", "logging", "concurrent.futures")
    out = python(f"import kvorum.sync\nprint([name for name in {heavy} if name in sys.modules])", ROOT)
    assert out == "[]\n"


def test_the_package_alone_loads_nothing_that_needs_a_socket() -> None:
    """Pure rooms import kvorum.wire and kvorum.errors, and must not get ZeroMQ with them."""
    out = python("import kvorum.wire, kvorum.errors\nprint('zmq' in sys.modules, 'kvorum.sync' in sys.modules)", ROOT)
    assert out == "False False\n"


def test_etcds_own_messages_can_be_loaded_beside_ours() -> None:
    """Users have etcd clients installed: declaring etcdserverpb a second time would fail in one of the two."""
    out = python(
        """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
import kvorum.etcd_pb2 as ours

def file(name, package, *messages, needs=()):
    made = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3", dependency=needs)
    for message, fields in messages:
        added = made.message_type.add(name=message)
        for number, (field, type) in enumerate(fields, 1):
            added.field.add(name=field, number=number, type=type, label=1)
    descriptor_pool.Default().AddSerializedFile(made.SerializeToString())

INT, BYTES = 3, 12
file("kv.proto", "mvccpb", ("KeyValue", [("key", BYTES), ("create_revision", INT)]))
file("rpc.proto", "etcdserverpb", ("PutRequest", [("key", BYTES), ("value", BYTES)]), needs=["kv.proto"])
find = descriptor_pool.Default().FindMessageTypeByName
theirs = message_factory.GetMessageClass(find("etcdserverpb.PutRequest"))(key=b"k", value=b"v")
assert ours.PutRequest.FromString(theirs.SerializeToString()) == ours.PutRequest(key=b"k", value=b"v")
print("both")
""",
        ROOT,
    )
    assert out == "both\n"


@pytest.mark.parametrize("name", kvorum.__all__)
def test_what_the_package_promises_is_there(name: str) -> None:
    assert getattr(kvorum, name) is not None


def test_what_it_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such"):
        kvorum.no_such  # noqa: B018
