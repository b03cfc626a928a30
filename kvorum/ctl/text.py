"""The ways in which Go writes values, since etcdctl's output is what scripts parse: %q, durations, sizes, JSON, tables.

Pure: text in, text out.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kvorum import etcd_pb2 as pb

_ESCAPES = {7: "\\a", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t", 11: "\\v", 34: '\\"', 92: "\\\\"}
_UNESCAPES = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, "'": 39, '"': 34}
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)


def quote(raw: bytes) -> str:
    """Go's %q: double quotes, printable characters as they are, everything else escaped; bytes that are not UTF-8 as
    \\x.."""
    return '"' + "".join(_quoted(char) for char in raw.decode("utf-8", "surrogateescape")) + '"'


def _quoted(char: str) -> str:
    code = ord(char)
    if code in _ESCAPES:
        return _ESCAPES[code]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if char.isprintable():
        return char
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def unquote(text: str) -> bytes:
    """What stands between the double quotes of a Go string.

    Raises:
      ValueError: an escape is not one of Go's.
    """

    def escape(match: re.Match[str]) -> str:
        what = match[0][1:]
        if what[0] == "x" and len(what) == 3:
            return chr(0xDC00 + int(what[1:], 16)) if int(what[1:], 16) > 127 else chr(int(what[1:], 16))
        if what[0] in "uU" and len(what) > 1:
            return chr(int(what[1:], 16))
        if len(what) == 3 and int(what, 8) < 256:
            return chr(0xDC00 + int(what, 8)) if int(what, 8) > 127 else chr(int(what, 8))
        if what in _UNESCAPES:
            return chr(_UNESCAPES[what])
        raise ValueError(f"unknown escape {match[0]}")

    return _ESCAPE.sub(escape, text).encode("utf-8", "surrogateescape")


def hexed(raw: bytes) -> str:
    """--hex: every byte as \\x.."""
    return "".join(f"\\x{byte:02x}" for byte in raw)


_UNITS = {"ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def seconds(text: str) -> float:
    """A Go duration: "5s", "1m30s", "1.5h", "250ms".

    Raises:
      ValueError: it is none; a unit is missing, for one.
    """
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration like 5s, 250ms or 1m30s")
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts) / 1e9)


def duration(nanoseconds: int) -> str:
    """As Go writes a time.Duration: 1.677376ms, 5.00094939s, 1m2s."""
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 1000_000)):
        if nanoseconds < 1000 * size:
            return _decimal(nanoseconds, size) + unit
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = _decimal(rest, 10**9) + "s"
    if hours or minutes:
        text = f"{minutes}m" + text
    return f"{hours}h" + text if hours else text


def _decimal(number: int, size: int) -> str:
    whole, part = divmod(number, size)
    digits = f"{part:0{len(str(size)) - 1}d}".rstrip("0") if size > 1 else ""
    return f"{whole}.{digits}" if digits else str(whole)


def size(count: int) -> str:
    """20 kB, 2.1 GB: powers of 1000, one digit after the point below 10."""
    if count < 10:
        return f"{count} B"
    value, unit = float(count), 0
    while value >= 1000 and unit < 6:
        value /= 1000
        unit += 1
    value = int(value * 10 + 0.5) / 10
    return f"{value:.{1 if value < 10 else 0}f} {('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[unit]}"


def as_json(message: Message) -> dict[str, object]:
    """What Go's encoding/json makes of the message's struct: proto names, zero values left out, integers as numbers
    (also those of 64 bits), bytes in base64, a oneof under the name of its Go field."""
    found: dict[str, object] = {}
    for field, content in message.ListFields():
        repeated = not isinstance(content, bytes | str | Message) and hasattr(content, "__len__")
        shown = [_json_value(field, item) for item in content] if repeated else _json_value(field, content)
        oneof = field.containing_oneof
        if oneof is not None:
            found[oneof.name.title().replace("_", "")] = {field.name: shown}
        else:
            found[field.name] = shown
    return found


def _json_value(field: FieldDescriptor, content: object) -> object:
    if isinstance(content, Message):
        return as_json(content)
    if isinstance(content, bytes):
        return base64.b64encode(content).decode()
    return content


def dumps(value: object) -> str:
    """One line, as Go writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """With lines around, the header in capitals and centred, the cells to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    line = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    titles = []
    for title, width in zip(header, widths, strict=True):
        left = (width - len(title)) // 2
        titles.append(" " * left + title.upper() + " " * (width - len(title) - left))
    lines = [line, "| " + " | ".join(titles) + " |", line]
    lines += [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([*lines, line])


def alarm_name(alarm: pb.AlarmMember) -> str:
    return pb.AlarmType.Name(alarm.alarm) if alarm.alarm in pb.AlarmType.values() else str(alarm.alarm)


def alarm(alarm: pb.AlarmMember) -> str:
    """As etcdctl prints it: protobuf's text, with its blank at the end."""
    member = f"memberID:{alarm.memberID} " if alarm.memberID else ""
    return f"{member}alarm:{alarm_name(alarm)} "
