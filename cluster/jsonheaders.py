"""What the headers of a request in JSON say beside it, as grpc-gateway reads them: Authorization, Grpc-Metadata-*,
Grpc-Timeout.

Time is ticks here, and a wait may take one longer than it was told to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import ceil
from typing import NamedTuple, Protocol

from native import edge


class Metadata(NamedTuple):
    """What a request's headers say beside the request."""

    flags: int  # enum edge_flag
    token: bytes  # of the metadata token, or else authorization
    ticks: int | None  # until it is late; 0: it is; None: it may take as long as it likes


class BadTimeout(ValueError):
    """Grpc-Timeout makes no sense."""


_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TOKENS = (
    ("grpc-metadata-token", edge.TOKEN),
    ("authorization", edge.AUTHORIZATION),
    ("grpc-metadata-authorization", edge.AUTHORIZATION),
)
_TIMEOUT = re.compile(r"[+-]?[0-9]{1,18}[HMSmun]")
LATE = b"context deadline exceeded"


def metadata_of(headers: Mapping[str, str], tick_seconds: float) -> Metadata:
    """Raises BadTimeout."""
    flags = edge.HAS_LEADER if headers.get("grpc-metadata-hasleader") == "true" else 0
    token = b""
    for name, flag in _TOKENS:
        if name in headers:
            token, flags = headers[name].encode("latin-1"), flags | flag
            break
    text = headers.get("grpc-timeout", "")
    if not text:
        return Metadata(flags, token, None)
    if not _TIMEOUT.fullmatch(text):
        raise BadTimeout(f"invalid grpc-timeout: {text}")
    seconds = int(text[:-1]) * _UNITS[text[-1]]
    if seconds <= 0:
        return Metadata(flags, token, 0 if seconds else None)  # as with etcd, where 0 is no timeout
    return Metadata(flags, token, ceil(seconds / tick_seconds))


class Late(Protocol):
    def late(self) -> None: ...


class Deadlines:
    """Who waits until when, counted in ticks: so a wait may take one longer than it was told to."""

    def __init__(self) -> None:
        self._ticks = 0
        self._waiting: dict[int, dict[Late, None]] = {}

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._waiting.values())

    def add(self, who: Late, ticks: int | None) -> int:
        """Returns the tick, for `drop`; 0 if there is no deadline."""
        if ticks is None:
            return 0
        by = self._ticks + ticks + 1
        self._waiting.setdefault(by, {})[who] = None
        return by

    def drop(self, who: Late, by: int) -> None:
        waiting = self._waiting.get(by)
        if waiting is not None:
            waiting.pop(who, None)
            if not waiting:
                del self._waiting[by]

    def tick(self) -> None:
        self._ticks += 1
        for who in list(self._waiting.get(self._ticks, ())):
            who.late()
