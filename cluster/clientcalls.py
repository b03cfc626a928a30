"""How many calls came in by the gateway, and of clients of which version: etcd_server_client_requests_total.

    edge (C) counts ──once a second──▶ <metrics directory>/NAME.clients, JSON ──▶ supervisor, for /metrics

A board (cluster.metrics) can't hold these: nobody knows beforehand which versions there will be. The file is replaced
whole, so a reader sees all of it or the one before. It outlives its process, whose successor goes on from it; what was
counted in the last second before a crash is lost.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping

Counts = dict[tuple[str, str], int]
"""By type, "unary" or "stream", and the client's version."""


def path(metrics_directory: str, gateway: str) -> str:
    """Of the gateway process of this name."""
    return os.path.join(metrics_directory, f"{gateway}.clients")


def read(file: str) -> Counts:
    """What one gateway process has written; nothing, if there is no such file yet."""
    try:
        with open(file, encoding="utf-8") as opened:
            return {(kind, version): count for kind, version, count in json.load(opened)}
    except FileNotFoundError:
        return {}


class ClientCalls:
    """The writer. `file` None: nobody reads."""

    def __init__(self, file: str | None) -> None:
        self._file = file
        self._before = read(file) if file else {}
        self._written: Counts = {}

    def write(self, since_start: Mapping[tuple[str, str], int]) -> None:
        """What this process has counted so far."""
        counts = dict(self._before)
        for series, count in since_start.items():
            counts[series] = counts.get(series, 0) + count
        if self._file is None or counts == self._written:
            return
        text = json.dumps([[kind, version, count] for (kind, version), count in counts.items()])
        try:
            with open(f"{self._file}.new", "w", encoding="utf-8") as opened:
                opened.write(text)
            os.replace(f"{self._file}.new", self._file)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return  # a number is not worth a gateway's life: again in a second
        self._written = counts
