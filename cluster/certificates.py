"""The files of the node's TLS, looked at before the node starts: `python -m cluster.certificates NODE_JSON`.

A process of its own, which is over when the others begin: so a wrong file stops the node as other wrong settings do
(cluster/exits.py), and a file that is wrong later, in the middle of a renewal, doesn't: a gateway that finds it so when
it is started again ends, and is started again. Nor does the supervisor have to keep OpenSSL in its memory.

--auto-tls: a certificate that signs itself is made here once, in DATA-DIR/fixtures/client as with etcd, and used for
ever after. Key and certificate are moved into place one after the other; a half of them is made anew.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Sequence

from cluster import doors, log
from cluster.child import die_with_parent
from cluster.config import NodeConfig
from cluster.exits import Exit
from cluster.tls import Tls
from native import edge
from native.edge import Edge, TlsError


def load(front: Edge, tls: Tls) -> None:
    """Have the edge speak TLS. Raises TlsError."""
    front.tls(
        tls.certificate,
        tls.key,
        ca=tls.ca or None,
        crl=tls.crl or None,
        hosts=tls.hosts or None,
        ciphers=tls.ciphers or None,
        version_min=tls.version_min,
        version_max=tls.version_max,
    )


class Complaints:
    """Says in the log when files have changed and are of no use: once for each thing that is wrong with them."""

    def __init__(self, front: Edge) -> None:
        self._front = front
        self._loads = self._failures = 0
        self._last = ""

    def look(self) -> None:
        stats = self._front.stats()
        loads, failures, error = stats["tls_loads"], stats["tls_load_failures"], self._front.tls_error
        if failures > self._failures and error != self._last:
            log.warn(f"TLS: {error}; until that is put right, connections get what was read before")
            self._last = error
        elif loads > self._loads and self._last:
            log.info("TLS: the files are of use again, and read")
            self._last = ""
        self._loads, self._failures = loads, failures


def make(tls: Tls, urls: Sequence[str]) -> None:
    """Make certificate and key for the hosts of `urls`, unless both are there. Raises OSError, TlsError."""
    if os.path.exists(tls.certificate) and os.path.exists(tls.key):
        return
    certificate, key = edge.self_signed(_alternative_names(urls), 365 * tls.make_years)
    os.makedirs(os.path.dirname(tls.key), mode=0o700, exist_ok=True)
    for path, text in ((tls.key, key), (tls.certificate, certificate)):
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(text)
        os.rename(f"{path}.new", path)


def _alternative_names(urls: Sequence[str]) -> str:
    names: dict[str, None] = {}
    for url in urls:
        if path := doors.path(url):  # by whose last part etcd's clients know a server behind a socket
            if re.fullmatch(r"[A-Za-z0-9._-]+", os.path.basename(path)):
                names[f"DNS:{os.path.basename(path)}"] = None
            continue
        host = url.partition("://")[2].rpartition(":")[0].strip("[]")
        try:
            names[f"IP:{ipaddress.ip_address(host)}"] = None
        except ValueError:
            names[f"DNS:{host}"] = None
    return ",".join(names) or "DNS:localhost"


def main(argv: Sequence[str]) -> int:
    die_with_parent()
    config = NodeConfig.load(argv[0])
    tls = config.tls
    assert tls is not None, "the supervisor asks only if there is TLS"
    front = Edge([])
    try:
        if tls.make_years:
            metrics = filter(doors.encrypted, config.listen_metrics)
            make(tls, (*config.listen_client, *config.advertise_client_urls, *metrics))
        load(front, tls)
    except (TlsError, OSError) as error:
        print(f"kvorum: TLS: {error}", file=sys.stderr, flush=True)
        return Exit.USAGE
    finally:
        front.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
