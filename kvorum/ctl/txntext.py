"""The text of a transaction, as etcdctl's users write it: three parts, each ended by an empty line.

    mod("seat") > "0"            comparisons:  mod m, create c, ver version, value val, lease  of a key in quotes,
    value("seat") = "free"                     = != < >, and what it is compared with, in quotes too

    put seat ada                 what to do if all of them hold: get, put, del with their flags
    get seat

    get seat                     what to do otherwise

Quotes are Go's: "..." with escapes like \\n, \\x00 and \\", or `...` as it is (comparisons), '...' as it is
(operations). The text must be whole: an end of input before the last empty line is an error, for half a transaction is
another one. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvorum import etcd_pb2 as pb
from kvorum import txn
from kvorum.ctl import text
from kvorum.ctl.failure import Exit, Failure

_COMPARE = re.compile(
    r"""\s*(?P<target>\w+)\(\s*(?P<key>"(?:[^"\\]|\\.)*"|`[^`]*`)\s*\)
        \s*(?P<op>!=|=|<|>)
        \s*(?P<with>"(?:[^"\\]|\\.)*"|`[^`]*`)\s*""",
    re.VERBOSE,
)
_TARGETS = {
    **dict.fromkeys(("ver", "version"), txn.version),
    **dict.fromkeys(("c", "create"), txn.create),
    **dict.fromkeys(("m", "mod"), txn.mod),
    **dict.fromkeys(("val", "value"), txn.value),
    "lease": txn.lease,
}
_WORD = re.compile(r"""\s+|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"']+""")


def compare(line: str) -> pb.Compare:
    """One comparison.

    Raises:
      Failure: it is none.
    """
    match = _COMPARE.fullmatch(line)
    if match is None:
        raise Failure(Exit.INVALID_INPUT, f'malformed comparison: {line.strip()}; expected one like mod("key") > "0"')
    if match["target"] not in _TARGETS:
        raise Failure(Exit.INVALID_INPUT, f"malformed comparison: {line.strip()} (unknown target {match['target']})")
    what = _TARGETS[match["target"]](_quoted(match["key"]))
    raw = _quoted(match["with"])
    with_: bytes | int = raw
    if match["target"] not in ("val", "value"):
        try:
            with_ = int(raw, 16 if match["target"] == "lease" else 10)
        except ValueError:
            raise Failure(Exit.INVALID_INPUT, f"invalid txn compare request: {line.strip()}") from None
    try:
        match match["op"]:
            case "=":
                return what == with_
            case "!=":
                return what != with_
            case "<":
                return what < with_
            case _:
                return what > with_
    except ValueError as error:  # more than 64 bits
        raise Failure(Exit.INVALID_INPUT, f"invalid txn compare request: {line.strip()} ({error})") from None


def _quoted(token: str) -> bytes:
    if token[0] == "`":
        return token[1:-1].encode("utf-8", "surrogateescape")
    try:
        return text.unquote(token[1:-1])
    except ValueError as error:
        raise Failure(Exit.INVALID_INPUT, f"malformed string {token}: {error}") from None


def words(line: str) -> list[bytes]:
    """A line taken apart as a shell would: words, quoted or not, quotes within words joined to them.

    Raises:
      Failure: a quote is not closed.
    """
    found: list[bytes] = []
    open_word = False
    at = 0
    while at < len(line):
        match = _WORD.match(line, at)
        if match is None:
            raise Failure(Exit.INVALID_INPUT, f"invalid txn request: {line.strip()} (a quote is not closed)")
        at = match.end()
        token = match[0]
        if token.isspace():
            open_word = False
            continue
        if token[0] == '"':
            word = _quoted(token)
        else:
            word = token.strip("'" if token[0] == "'" else "").encode("utf-8", "surrogateescape")
        if open_word:
            found[-1] += word
        else:
            found.append(word)
        open_word = True
    return found


def part(lines: Iterator[str], name: str) -> list[str]:
    """The lines up to the next empty one.

    Raises:
      Failure: the input ends before it.
    """
    found: list[str] = []
    for line in lines:
        line = line.rstrip("\r\n")
        if not line.strip():
            return found
        found.append(line)
    raise Failure(Exit.INVALID_INPUT, f"EOF: the {name} end with an empty line")
