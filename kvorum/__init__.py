"""kvorum: a replicated key-value and coordination store.

    import kvorum

    with kvorum.client("127.0.0.1:2381") as client:
        client.put("greeting", "hello")
        value, meta = client.get("greeting")

`kvorum.client` is the synchronous client (kvorum.sync), `kvorum.aio.client` the asyncio one; what can go wrong is in
kvorum.errors.

Importing the package alone loads nothing: `kvorum.wire` and `kvorum.errors` are used where no socket may be, so what
needs ZeroMQ is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvorum import errors as errors
    from kvorum.errors import Ambiguous, KvorumError, Refused, Unavailable
    from kvorum.sync import Client, client

__version__ = "0.1.0"
__all__ = [
    "Ambiguous",
    "Client",
    "KvorumError",
    "Refused",
    "Unavailable",
    "__version__",
    "client",
    "errors",
]

_WHERE = {
    "Client": "kvorum.sync",
    "client": "kvorum.sync",
    "KvorumError": "kvorum.errors",
    "Refused": "kvorum.errors",
    "Unavailable": "kvorum.errors",
    "Ambiguous": "kvorum.errors",
}
_MODULES = ("aio", "errors")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"kvorum.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'kvorum' has no attribute {name!r}")
