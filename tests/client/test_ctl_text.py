"""How Go writes things (kvorum.ctl.text), and the text of a transaction (kvorum.ctl.txntext)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum import etcd_pb2 as pb
from kvorum.ctl import text, txntext
from kvorum.ctl.failure import Failure
from kvorum.ctl.kv import operation


@pytest.mark.parametrize(
    ("raw", "quoted"),
    [
        (b"plain", '"plain"'),
        (b'a"b\\c', r'"a\"b\\c"'),
        (b"\a\b\f\n\r\t\v", r'"\a\b\f\n\r\t\v"'),
        (b"\0\x01\x7f", r'"\x00\x01\x7f"'),
        (b"\x01\xffz", r'"\x01\xffz"'),
        ("ü€😀".encode(), '"ü€😀"'),
        ("\u00ad\u2028\U000e0001".encode(), r'"\u00ad\u2028\U000e0001"'),
        (b"\xe2\x82", r'"\xe2\x82"'),
        ("\u00a0".encode(), r'"\u00a0"'),
    ],
)
def test_bytes_are_quoted_as_go_quotes_them(raw: bytes, quoted: str) -> None:
    """fmt's %q on a string."""
    assert text.quote(raw) == quoted


@given(st.binary())
def test_quoting_can_be_undone(raw: bytes) -> None:
    assert text.unquote(text.quote(raw)[1:-1]) == raw


@pytest.mark.parametrize("bad", [r"\q", r"\x1", r"\777", r"\u12", r"\U0011ffff", r"\ud800"])
def test_an_escape_that_go_does_not_know_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"escape|chr|surrogate"):
        text.unquote(bad)


def test_octal_escapes_are_bytes() -> None:
    assert text.unquote(r"\101\377") == b"A\xff"


@pytest.mark.parametrize(
    ("written", "nanoseconds"),
    [
        ("0s", 0),
        ("1ns", 1),
        ("1.1µs", 1100),
        ("2.2ms", 2_200_000),
        ("1.677376ms", 1_677_376),
        ("5.00094939s", 5_000_949_390),
        ("1m2s", 62 * 10**9),
        ("1h0m0.000000001s", 3600 * 10**9 + 1),
    ],
)
def test_durations_are_written_as_go_writes_them(written: str, nanoseconds: int) -> None:
    assert text.duration(nanoseconds) == written
    assert text.seconds(written) == pytest.approx(nanoseconds / 1e9)


@pytest.mark.parametrize(
    ("written", "seconds"), [("5s", 5), ("250ms", 0.25), ("1m30s", 90), ("1.5h", 5400), (".5s", 0.5)]
)
def test_durations_are_read_as_go_reads_them(written: str, seconds: float) -> None:
    assert text.seconds(written) == pytest.approx(seconds)


@pytest.mark.parametrize("bad", ["", "5", "s", "5 s", "5x", "5s5", "-5s", "1..5s"])
def test_what_is_no_duration_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        text.seconds(bad)


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (0, "0 B"),
        (9, "9 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (20480, "20 kB"),
        (24576, "25 kB"),
        (9_960_000, "10 MB"),
        (2 << 30, "2.1 GB"),
    ],
)
def test_sizes_are_written_as_etcdctl_writes_them(count: int, written: str) -> None:
    assert text.size(count) == written


# ---- txn


@pytest.mark.parametrize(
    ("line", "field", "result", "with_"),
    [
        ('mod("k") > "0"', "mod_revision", pb.Compare.GREATER, 0),
        ('m("k")="7"', "mod_revision", pb.Compare.EQUAL, 7),
        ('create("k") != "3"', "create_revision", pb.Compare.NOT_EQUAL, 3),
        ('c("k") = "3"', "create_revision", pb.Compare.EQUAL, 3),
        ('ver("k") < "3"', "version", pb.Compare.LESS, 3),
        ('  version("k")   =   "3"  ', "version", pb.Compare.EQUAL, 3),
        ('value("k") = "v"', "value", pb.Compare.EQUAL, b"v"),
        (r'val("k") > "\x00\"\xff"', "value", pb.Compare.GREATER, b'\0"\xff'),
        (r"val(`k`) = `a\b`", "value", pb.Compare.EQUAL, rb"a\b"),
        ('lease("k") = "1f"', "lease", pb.Compare.EQUAL, 31),
    ],
)
def test_a_comparison_is_read_as_etcdctl_reads_it(line: str, field: str, result: int, with_: int | bytes) -> None:
    compare = txntext.compare(line)
    assert (compare.key, compare.WhichOneof("target_union"), compare.result) == (b"k", field, result)
    assert getattr(compare, field) == with_


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("put a b", [b"put", b"a", b"b"]),
        ('put "a b" "c\\n"', [b"put", b"a b", b"c\n"]),
        ("put 'a b' 'c\\n'", [b"put", b"a b", b"c\\n"]),
        ('put a""b x\'y z\'"w"', [b"put", b"ab", b"xy zw"]),
        ("put \"\" ''", [b"put", b"", b""]),
        ("", []),
    ],
)
def test_a_line_is_taken_apart_as_a_shell_would(line: str, words: list[bytes]) -> None:
    assert txntext.words(line) == words


@pytest.mark.parametrize("line", ['put "a', "put 'a", 'put a"', 'put "a\\"'])
def test_an_open_quote_is_refused(line: str) -> None:
    with pytest.raises(Failure, match="quote is not closed"):
        txntext.words(line)


def test_operations_take_the_flags_of_their_commands() -> None:
    op = operation('get "p/" --prefix --limit 3 --order=DESCEND --sort-by MODIFY --consistency s --keys-only')
    request = op.request_range
    assert (request.key, request.range_end, request.limit, request.keys_only) == (b"p/", b"p0", 3, True)
    assert (request.sort_order, request.sort_target, request.serializable) == (2, 3, True)
    put = operation("put k v --lease 1f --prev-kv").request_put
    assert (put.key, put.value, put.lease, put.prev_kv) == (b"k", b"v", 31, True)
    put = operation("put k --ignore-value").request_put
    assert (put.key, put.ignore_value) == (b"k", True)
    put = operation(r'put "\x00k" "\xff"').request_put
    assert (put.key, put.value) == (b"\0k", b"\xff")
    deleted = operation('del "" --from-key --prev-kv').request_delete_range
    assert (deleted.key, deleted.range_end, deleted.prev_kv) == (b"\0", b"\0", True)


@given(st.text())
def test_no_line_ends_in_anything_but_a_request_or_a_refusal(line: str) -> None:
    for read in (txntext.compare, operation):
        try:
            read(line)
        except Failure:
            continue


@given(st.text(alphabet="modvalpute ()\"'`=<>!\\x0a-", max_size=30))
def test_no_nearly_right_line_either(line: str) -> None:
    for read in (txntext.compare, operation):
        try:
            read(line)
        except Failure:
            continue
