"""Which web pages may ask, and by which names: --cors and --host-whitelist, as etcd has them.

A page of another site may read an answer only if the browser is told so (CORS). And it may not need to: if the name it
was loaded from is pointed at this machine meanwhile (DNS rebinding, CVE-2018-5702), the browser takes us for its own
site. It still tells the name, so who fears that lists the names that are meant. Over TLS no such name has a
certificate, so there it isn't asked for. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_ALLOWED = [
    ("Access-Control-Allow-Headers", "accept, content-type, authorization"),
    ("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE"),
]


class Access(NamedTuple):
    """Empty, or with a "*" in it: all."""

    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def cors(self, headers: Mapping[str, str]) -> list[tuple[str, str]]:
        """What to say to a request with these headers (names in lower case)."""
        if not self.origins or "*" in self.origins:
            return [*_ALLOWED, ("Access-Control-Allow-Origin", "*")]
        origin = headers.get("origin", "")
        return [*_ALLOWED, ("Access-Control-Allow-Origin", origin)] if origin in self.origins else []

    def stranger(self, headers: Mapping[str, str]) -> str | None:
        """The name by which we were asked, if it isn't one of ours; without its port."""
        if not self.hosts or "*" in self.hosts:
            return None
        host = headers.get("host", "")
        name, colon, port = host.rpartition(":")
        if colon and port.isdecimal() and not (":" in name and not name.startswith("[")):
            host = name.strip("[]")
        return None if host in self.hosts else host


ALL = Access()
