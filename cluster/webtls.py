"""TLS of the metrics port, https in --listen-metrics-urls: the gateway's settings (cluster/tls.py), in Python's ssl.

    accepted ──▶ have the files changed? ──▶ wrapped, nothing read yet ──▶ a thread: handshake, is it for us? ──▶ HTTP
                   │ yes: read all of them     (the server's thread)          (bounded like the head: cluster/web.py)
                   └ they don't fit: what was read before goes on, and the log says why, once

What the edge does for the client port (native/edge_tls.c) holds here, too: TLS 1.2 or newer, no resumption, so that a
client whose certificate was revoked is judged anew; a certificate that gets in there gets in here. etcd 3.5 asks for
more here than there: if a client's certificate has alternative names, one must be, or resolve to, the address it comes
from. That is left out: who scrapes has a certificate of his own, not one of a machine.

HTTP/1.1 is all that is offered by ALPN. Nothing of this is loaded before the first connection (cluster/health.py).
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import Mapping

from cluster import log
from cluster.tls import Tls

YOUNG_SECONDS = 2
"""A file that was changed so shortly before it was read may change again without its time telling."""
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_CRL = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----\n?", re.DOTALL)


class Unfit(Exception):
    """The files are of no use as they are; the text says which and why."""


class Papers:
    """What the files of `tls` said when they last fitted each other. For one thread, but for greet()."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._stamps: object = None
        self._young = False
        self._complaint = ""

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """The connection with TLS to come: it is greet() that waits for the peer. The one that was given is used up.

        Raises OSError if the peer is gone, or if the files have been of no use since the first connection came.
        """
        self._refresh()
        if self._context is None:
            connection.close()
            raise ConnectionAbortedError(f"no TLS: {self._complaint}")
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def greet(self, connection: ssl.SSLSocket) -> None:
        """The handshake, within the connection's timeout. Raises OSError if it fails or this is nobody to talk to."""
        connection.do_handshake()
        if self._tls.hosts and not is_for(connection.getpeercert() or {}, self._tls.hosts):
            raise ConnectionAbortedError("the client's certificate is for none of --client-cert-allowed-hostname")

    def _refresh(self) -> None:
        stamps = self._look()
        if stamps == self._stamps and not self._young:
            return
        try:
            self._context = load(self._tls)
        except Unfit as unfit:  # tried again with each connection until it is put right
            if str(unfit) != self._complaint:
                then = "connections get what was read before" if self._context else "nobody is served there"
                log.warn(f"TLS of the metrics: {unfit}; until that is put right, {then}")
            self._complaint, self._stamps = str(unfit), None
            return
        if self._complaint:
            log.info("TLS of the metrics: the files are of use again, and read")
        self._complaint, self._stamps = "", stamps  # looked at first: what changed in between is found by the next look
        now = time.time()
        self._young = any(0 <= now - stamp[-1] / 1e9 < YOUNG_SECONDS for stamp in stamps if stamp)

    def _look(self) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for path in filter(None, (self._tls.certificate, self._tls.key, self._tls.ca, self._tls.crl)):
            try:
                stat = os.stat(path)
            except OSError:  # load() says what is wrong
                found.append(())
            else:
                found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime_ns))
        return found


def load(tls: Tls) -> ssl.SSLContext:
    """What the files say now. Raises Unfit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.version_min == 13 else ssl.TLSVersion.TLSv1_2
    if tls.version_max == 12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    context.set_ciphers(tls.ciphers or _CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    what = f"certificate {tls.certificate}, key {tls.key}"
    try:
        # An encrypted key would make OpenSSL ask whoever sits at the terminal.
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
        if tls.ca:
            what = f"CA {tls.ca}"
            context.load_verify_locations(tls.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        if tls.crl:
            what = f"CRL {tls.crl}"
            _refuse_revoked(context, tls.crl)
    except ssl.SSLError as error:
        raise Unfit(f"{what}: {(error.reason or str(error)).lower().replace('_', ' ')}") from error
    except OSError as error:
        raise Unfit(f"{what}: {error.strerror}") from error
    return context


def _refuse_revoked(context: ssl.SSLContext, path: str) -> None:
    """Only the lists of the file are read: a certificate in it would be trusted, as OpenSSL takes what it finds."""
    with open(path, "rb") as file:
        lists = b"\n".join(_CRL.findall(file.read()))
    if not lists:
        raise Unfit(f"CRL {path}: no start line")
    with open(os.memfd_create("crl", os.MFD_CLOEXEC), "wb") as copy:
        copy.write(lists)
        copy.flush()
        context.load_verify_locations(f"/proc/self/fd/{copy.fileno()}")
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def is_for(certificate: Mapping[str, object], hosts: str) -> bool:
    """Whether a certificate, as getpeercert() has it, is for one of `hosts`, names or addresses with commas between.

    By its alternative names alone, as Go sees it; a `*` is one whole label, and two must follow, as at the edge.
    """
    names: list[str] = []
    addresses: list[object] = []
    alternatives = certificate.get("subjectAltName", ())
    assert isinstance(alternatives, tuple)
    for kind, text in alternatives:
        if kind == "DNS":
            names.append(text.lower())
        elif kind == "IP Address" and (address := _address(text)):
            addresses.append(address)
    for host in hosts.lower().split(","):
        if address := _address(host):
            if address in addresses:
                return True
        elif any(_stands_for(name, host) for name in names):
            return True
    return False


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip())
    except ValueError:
        return None


def _stands_for(name: str, host: str) -> bool:
    label, _, rest = name.partition(".")
    return name == host or (label == "*" and "." in rest and host.partition(".")[2] == rest)
