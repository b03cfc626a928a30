"""Names for what differs by nature between two clusters, so that all else can be compared as it is.

Members are called as they are named, addresses likewise, every other long number (leases) by the order in which it is
first seen. Terms, times, sizes and indexes of the log become a word.
"""

from __future__ import annotations

import re
from typing import Any

ID = re.compile(r"\b(?:(?P<decimal>-?\d{17,20})|(?P<hexadecimal>[0-9a-f]{14,16}))\b")
"""etcd writes an id in decimal (JSON) or in hexadecimal; too short to be told from other numbers is one in 4096."""
CONNECTION = re.compile(r"\bclient-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ATTACHED = re.compile(r"""(attached keys\(\[|"keys":\[)([^]]*)""")
"""etcd tells the keys of a lease in the order of a Go map, which is another each time."""
BY_NATURE = [
    (re.compile(r'("ts":)"[^"]*"'), r"\1TIME"),
    (re.compile(r"0xc[0-9a-f]{6,}"), "POINTER"),
    (re.compile(r'("?(?:raft_?term|RaftTerm)"? ?: ?)\d+', re.IGNORECASE), r"\1TERM"),
    (re.compile(r'("(?:raft_?(?:Applied)?Index|dbSize(?:InUse)?)" ?: ?)[1-9]\d*', re.IGNORECASE), r"\1SOME"),
    (re.compile(r"\b\d+(?:\.\d+)?(?:ns|µs|ms|s)\b(?!\))"), "DURATION"),
    (re.compile(r"remaining\(\d+s\)"), "remaining(SOME)"),
    (re.compile(r"\b3\.\d+\.\d+\b"), "VERSION"),
    (re.compile(r"\b\d+(?:\.\d+)? [kM]?B\b"), "SIZE"),
    (re.compile(r"(?<=true, |alse, )\d+, \d+, \d+(?=, $)", re.MULTILINE), "TERM, SOME, SOME"),
]


class Names:
    """Of one cluster."""

    def __init__(self, cluster: int, members: list[dict[str, Any]]) -> None:
        """`cluster`: its id. `members` as `etcdctl member list -w json` tells of them."""
        self._ids = {cluster: "cluster", **{member["ID"]: member["name"] for member in members}}
        self._addresses = {
            url.partition("://")[2]: f"{what} of {member['name']}"
            for member in members
            for what, urls in (("client", member["clientURLs"]), ("peer", member["peerURLs"]))
            for url in urls
        }
        self._others = 0

    def of(self, text: str) -> str:
        text = CONNECTION.sub("client-SOME", text)
        for address, name in self._addresses.items():
            text = text.replace(address, name)
        text = ID.sub(self._name, text)
        for pattern, word in BY_NATURE:
            text = pattern.sub(word, text)
        return ATTACHED.sub(_in_order, text)

    def _name(self, found: re.Match[str]) -> str:
        number = int(found["decimal"]) if found["decimal"] else int(found["hexadecimal"], 16)
        if number not in self._ids:
            self._others += 1
            self._ids[number] = f"#{self._others}"
        return f"<{self._ids[number]}>"


def _in_order(found: re.Match[str]) -> str:
    separator = "," if found[1].startswith('"') else " "
    return found[1] + separator.join(sorted(found[2].split(separator)))
