"""PROTOCOL.md against what it describes: its tables, its bytes, its messages, and the client at its end."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvorum import core, errors, link, wire
from kvorum import etcd_pb2 as pb
from kvorum.errors import Code, KvorumError
from kvorum.wire import Kind, Method
from tests.client.fake import FakeNode

ROOM = Path(wire.__file__).parent
PAGE = (ROOM / "PROTOCOL.md").read_text()


def block(name: str) -> str:
    """The code after the comment that names it."""
    match = re.search(rf"<!-- {name} -->\n\n```\w+\n(.*?)\n```", PAGE, re.DOTALL)
    assert match is not None
    return match[1]


def test_the_client_on_the_page_works(node: FakeNode) -> None:
    """A stranger's client, written from the page alone."""
    done = subprocess.run(
        [sys.executable, "-c", block("client"), node.address], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stderr == ""
    assert done.stdout == "put at revision 2\nget greeting = hello\nwatch saw greeting = hello\n"


def test_the_example_bytes_are_what_they_are_said_to_be() -> None:
    lines = PAGE.partition("<!-- example: put -->")[2].split("##")[0].splitlines()
    raw = [bytes.fromhex(line) for line in lines if re.fullmatch(r"    ([0-9a-f]{2}\s*)+", line)]
    call, reply = (wire.decode(frame)[0] for frame in raw)
    assert call == (Method.PUT, Kind.CALL, 0, 2, pb.PutRequest(key=b"a", value=b"1").SerializeToString())
    header = pb.ResponseHeader(cluster_id=1, member_id=2, revision=5, raft_term=3)
    assert reply == (Method.PUT, Kind.REPLY, 0, 2, pb.PutResponse(header=header).SerializeToString())


def test_every_message_is_on_the_page_as_it_is() -> None:
    proto = (ROOM / "etcd.proto").read_text()
    declared = proto[proto.index("message ResponseHeader") :].partition("// What a member publishes")[0]
    assert block("messages") == declared.rstrip()


def test_every_method_and_kind_is_on_the_page_with_its_number() -> None:
    for method, shape in wire.METHODS.items():
        row = f"| {method.value} | {shape.path.rpartition('/')[2]} | "
        assert row in PAGE
        if method is not Method.WATCH:
            assert f"{row}{shape.request.DESCRIPTOR.name} → {shape.response.DESCRIPTOR.name} |" in PAGE
    kinds = ", ".join(f"{kind.value} {kind.name.lower().replace('_', '-')}" for kind in Kind)
    assert kinds in PAGE


def families() -> list[tuple[type[KvorumError], str]]:
    found = []
    for family in (errors.Refused, errors.Unavailable, errors.Ambiguous):
        found += [(cls, family.__name__.lower()) for cls in family.__subclasses__()]
    own = (errors.Unreachable, errors.DeadlineExceeded, errors.ConnectionLost)  # the client's, never on the wire
    return [(cls, family) for cls, family in found if cls not in own]


@pytest.mark.parametrize(("cls", "family"), families(), ids=lambda one: getattr(one, "__name__", one))
def test_every_error_is_on_the_page_with_what_is_then_known(cls: type[KvorumError], family: str) -> None:
    row = rf"\| {cls.code.value}( {cls.code.name})? \| `{re.escape(cls.text)}`( …)? \| {family} \|"
    assert re.search(row, PAGE)


def test_what_is_not_in_the_table_is_filed_as_the_page_says() -> None:
    refused = {3, 5, 6, 7, 9, 11, 12, 16}
    for code in Code:
        if code is Code.OK:
            continue
        error = errors.from_wire(code, "anything")
        expected = errors.Refused if code in refused else errors.Unavailable if code == 8 else errors.Ambiguous
        assert type(error) is expected


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"version {wire.PROTOCOL}" in PAGE.splitlines()[0]
    assert f"({wire.BATCH_BYTES_MAX} bytes)" in PAGE
    beats = f"{link.HEARTBEAT_MS}, {link.HEARTBEAT_TIMEOUT_MS}, {link.HEARTBEAT_TTL_MS} ms"
    assert beats in PAGE
    assert core.RETRY_MAX <= 1
