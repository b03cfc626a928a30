"""etcd's JSON: messages to text and back, as its gateway writes and reads them.

    out   names as in the .proto, in its order; what is zero is left out; 64 bits are strings, bytes base64
    in    those names or lowerCamelCase; numbers as numbers or strings; unknown names are ignored, null is not there

protobuf's own json_format isn't used, for it drops what is no base64 instead of refusing it, so that a key somebody
mistyped would be another key; and a large answer would keep the gateway busy five times as long. Errors are spelled as
the gateway of etcd 3.5 (Go) spells them, where it has one text for one mistake.

Pure. The work is linear in the bytes, also when they come one by one.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

DEPTH_MAX = 100
"""Messages within messages, in a request."""
VALUES_MAX = 200_000
"""About how many values a request may have, known or not: as many as are parsed in a tenth of a second."""


class BadJson(ValueError):
    """The text isn't JSON, or not of that message; says what is wrong as etcd does."""


# ---- out


def text_of(message: Message) -> str:
    parts = []
    for field, value in message.ListFields():
        write = _WRITERS[field.type]
        if _repeated(field):
            text = "[" + ",".join([write(field, one) for one in value]) + "]"
        else:
            text = write(field, value)
        parts.append(f'"{field.name}":{text}')
    return "{" + ",".join(parts) + "}"


Field = Any
"""A FieldDescriptor, of which the type checker knows a version that no protobuf is."""


def _repeated(field: Field) -> bool:
    found = _repeats.get(field.full_name)
    if found is None:  # protobuf 7 has dropped what 5 has, and has what 5 lacks
        found = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
        _repeats[field.full_name] = found
    return found


_repeats: dict[str, bool] = {}


def quoted(text: str) -> str:
    """A string as Go writes it: what HTML would take for markup is escaped."""
    return _HTML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


_HTML = re.compile("[<>&\u2028\u2029]")


def _enum(field: Field, value: int) -> str:
    known = field.enum_type.values_by_number.get(value)
    return f'"{known.name}"' if known else str(value)


_WRITERS: dict[int, Any] = {
    FieldDescriptor.TYPE_MESSAGE: lambda field, value: text_of(value),
    FieldDescriptor.TYPE_BYTES: lambda field, value: f'"{binascii.b2a_base64(value, newline=False).decode()}"',
    FieldDescriptor.TYPE_STRING: lambda field, value: quoted(value),
    FieldDescriptor.TYPE_ENUM: _enum,
    FieldDescriptor.TYPE_BOOL: lambda field, value: "true" if value else "false",
    FieldDescriptor.TYPE_INT64: lambda field, value: f'"{value}"',
    FieldDescriptor.TYPE_UINT64: lambda field, value: f'"{value}"',
    FieldDescriptor.TYPE_INT32: lambda field, value: str(value),
    FieldDescriptor.TYPE_UINT32: lambda field, value: str(value),
}

# ---- in


def message_of(text: bytes, kind: type[Message]) -> Message:
    """The message that the text begins with; what follows is ignored. No text is the empty message. Raises BadJson."""
    message = kind()
    if len(text) > VALUES_MAX and text.count(b",") + text.count(b"[") + text.count(b"{") > VALUES_MAX:
        raise BadJson("json: too many values")
    decoded = text.decode("utf-8", "replace").lstrip(" \t\r\n")
    if decoded:
        try:
            value, _ = _DECODER.raw_decode(decoded)
        except BadJson:
            raise
        except json.JSONDecodeError as error:
            raise BadJson(_syntax(error)) from None
        except (RecursionError, ValueError) as error:  # too deep; a number of thousands of digits
            raise BadJson(f"json: {error}") from None
        if value is not None:
            _fill(message, value, DEPTH_MAX)
    return message


def _constant(name: str) -> NoReturn:
    raise BadJson(f"invalid character '{name[0]}' looking for beginning of value")


_DECODER = json.JSONDecoder(parse_constant=_constant)

_WHERE = {
    "Expecting property name": "looking for beginning of object key string",
    "Illegal trailing comma before end of object": "looking for beginning of object key string",
    "Expecting ':' delimiter": "after object key",
    "Expecting ',' delimiter": "after object key:value pair",
    "Invalid control character": "in string literal",
    "Invalid \\": "in string escape code",
}


def _syntax(error: json.JSONDecodeError) -> str:
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    where = next((said for begin, said in _WHERE.items() if error.msg.startswith(begin)), None)
    return f"invalid character '{error.doc[error.pos]}' {where or 'looking for beginning of value'}"


def _fill(message: Message, value: Any, depth: int) -> None:
    if not isinstance(value, dict):
        _mismatch(value, "map[string]json.RawMessage")
    if not depth:
        raise BadJson("json: exceeded max depth")
    fields = _fields(message)
    for name, given in value.items():
        field = fields.get(name)
        if field is None or given is None:
            continue
        if not _repeated(field):
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                inner = getattr(message, field.name)
                inner.SetInParent()
                _fill(inner, given, depth - 1)
            else:
                setattr(message, field.name, _scalar(field, given))
            continue
        if not isinstance(given, list):
            _mismatch(given, "[]json.RawMessage")
        into = getattr(message, field.name)
        for one in given:
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                _fill(into.add(), {} if one is None else one, depth - 1)
            else:
                into.append(_scalar(field, one))


_known: dict[str, dict[str, Field]] = {}


def _fields(message: Message) -> dict[str, Field]:
    """By both names."""
    found = _known.get(message.DESCRIPTOR.full_name)
    if found is None:
        found = {}
        for field in message.DESCRIPTOR.fields:
            found[field.camelcase_name] = found[field.json_name] = found[field.name] = field
        _known[message.DESCRIPTOR.full_name] = found
    return found


def _scalar(field: Field, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(value)
    if field.type == FieldDescriptor.TYPE_STRING:
        if not isinstance(value, str):
            _mismatch(value, "string")
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if field.type == FieldDescriptor.TYPE_BOOL:
        if not isinstance(value, bool):
            _mismatch(value, "bool")
        return value
    if field.type == FieldDescriptor.TYPE_ENUM and isinstance(value, str):
        known = field.enum_type.values_by_name.get(value)
        if known is None:
            name = field.enum_type.full_name.replace("kvorum.etcd.", "etcdserverpb.")
            raise BadJson(f"unknown value {json.dumps(json.dumps(value))} for enum {name}")
        return known.number
    return _integer(value, *_RANGES[field.type])


_RANGES = {
    FieldDescriptor.TYPE_INT64: ("int64", -(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: ("uint64", 0, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT32: ("int32", -(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT32: ("uint32", 0, (1 << 32) - 1),
    FieldDescriptor.TYPE_ENUM: ("int32", -(1 << 31), (1 << 31) - 1),
}
_INTEGER = re.compile(r"-?[0-9]{1,20}")


def _integer(value: Any, name: str, least: int, most: int) -> int:
    number = value
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value):
            if value and value[0] not in "-0123456789":
                raise BadJson(f"invalid character '{value[0]}' looking for beginning of value")
            _mismatch(value, name)
        number = int(value)
    elif isinstance(value, float) and value.is_integer() and abs(value) <= 1 << 53:
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int):
        _mismatch(value, name)
    if not least <= number <= most:
        raise BadJson(f"json: cannot unmarshal number {number} into Go value of type {name}")
    return number


_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/_-]")
_STANDARD = str.maketrans("-_", "+/")


def _bytes(value: Any) -> bytes:
    """Base64 in either alphabet, padded or not, as etcd from 3.6 on. Anything else is refused, not guessed at."""
    if not isinstance(value, str):
        _mismatch(value, "[]uint8")
    value = value.replace("\n", "").replace("\r", "")  # as Go does: many a tool breaks its lines
    bare = value.rstrip("=") if len(value) % 4 == 0 else value
    wrong = _NOT_BASE64.search(bare)
    if wrong or len(bare) % 4 == 1 or len(value) - len(bare) > 2:
        raise BadJson(f"illegal base64 data at input byte {wrong.start() if wrong else len(bare) // 4 * 4}")
    return binascii.a2b_base64(bare.translate(_STANDARD) + "=" * (-len(bare) % 4))


_KINDS = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}


def _mismatch(value: Any, wanted: str) -> NoReturn:
    what = f"number {value}" if isinstance(value, float) else _KINDS.get(type(value), "null")
    raise BadJson(f"json: cannot unmarshal {what} into Go value of type {wanted}")


# ---- several


class Objects:
    """Cuts a stream of bytes into the JSON objects that stand in it one after the other. Each byte is looked at once.

    What it gives has balanced brackets; whether it is JSON is message_of()'s to say.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._at = self._depth = 0
        self._quoted = False

    def __len__(self) -> int:
        """Bytes held of what isn't whole yet."""
        return len(self._bytes)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The objects that are whole now. Raises BadJson where something else stands, after which it is of no use."""
        self._bytes += data
        held, begin = self._bytes, 0
        while self._at < len(held):
            if not self._depth:
                begin = self._at = _SPACE.match(held, self._at).end()  # type: ignore[union-attr]  # matches nothing, too
                if begin < len(held) and held[begin] not in b"{[":
                    raise BadJson(f"invalid character '{chr(held[begin])}' looking for beginning of value")
            mark = (_IN_STRING if self._quoted else _MARKS).search(held, self._at)
            if mark is None:
                self._at = len(held)
                break
            self._at = mark.end()
            what = held[mark.start()]
            if what == ord("\\"):
                self._at += 1  # whatever it is, and though it may not have come yet
            elif what == ord('"'):
                self._quoted = not self._quoted
            elif what in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    yield bytes(held[begin : self._at])
                    begin = self._at
        del held[:begin]
        self._at -= begin


_SPACE = re.compile(rb"[ \t\r\n]*")
_MARKS = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'["\\]')
