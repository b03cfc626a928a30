"""TLS of the gateway and of the metrics port: what etcd's settings for it mean together.

    https, unixs in --listen-client-urls, https in --listen-metrics-urls ──▶ --cert-file and --key-file, or --auto-tls
    --trusted-ca-file             ──▶ clients must show a certificate that it signed; as with etcd it takes no more
    --client-crl-file             ──▶ and not one of these
    --client-cert-allowed-hostname ─▶ and one for one of these names or addresses

Only what is in the settings is judged here. What is in the files is looked at before the node starts
(cluster/certificates.py), and read again by the edge and by cluster/webtls.py whenever a file changes.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from cluster.settings import ConfigError

_OPENSSL = {
    **{
        f"TLS_ECDHE_{key}_WITH_{cipher}": f"ECDHE-{key}-{theirs}"
        for key in ("ECDSA", "RSA")
        for cipher, theirs in (
            ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
            ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
            ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
            ("CHACHA20_POLY1305", "CHACHA20-POLY1305"),
            ("AES_128_CBC_SHA", "AES128-SHA"),
            ("AES_256_CBC_SHA", "AES256-SHA"),
        )
    },
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
}
"""Suites of TLS 1.2 as etcd (Go) and as OpenSSL call them."""
_NOT_TO_BE_CHOSEN = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
"""Those of TLS 1.3: who allows that version allows them all, as with etcd."""
_VERSIONS = {"TLS1.2": 12, "TLS1.3": 13}


class Tls(NamedTuple):
    """Files are absolute paths, "" for none. The rest is as native.edge.Edge.tls has it."""

    certificate: str
    key: str
    ca: str
    crl: str
    hosts: str
    ciphers: str
    version_min: int
    version_max: int
    make_years: int  # certificate and key are made if they aren't there, for so long; 0: they are not ours to make


def resolve(get: Callable[[str], str], *, wanted: str, data_dir: str) -> Tls | None:
    """The TLS that the setting `wanted` asks for, None if that is "": no URL is https. Raises ConfigError."""
    certificate, key, ca, crl = (
        os.path.abspath(get(name)) if get(name) else ""
        for name in ("cert-file", "key-file", "trusted-ca-file", "client-crl-file")
    )
    automatic, mutual = truth("auto-tls", get), truth("client-cert-auth", get)
    if bool(certificate) != bool(key):
        raise ConfigError("--cert-file and --key-file go together: one of them is missing")
    if mutual and not ca:
        raise ConfigError("--client-cert-auth needs --trusted-ca-file: clients' certificates are judged by it")
    if crl and not ca:
        raise ConfigError("--client-crl-file needs --trusted-ca-file: without it clients show no certificate")
    hosts = _hosts(get)
    if hosts and not ca:
        raise ConfigError("--client-cert-allowed-hostname needs --trusted-ca-file: else clients show no certificate")
    ciphers, version_min, version_max = (
        _ciphers(get),
        _version("tls-min-version", get),
        _version("tls-max-version", get),
    )
    if 0 < version_max < version_min:
        raise ConfigError("--tls-min-version is above --tls-max-version")
    if ciphers and version_min == 13:
        raise ConfigError("--cipher-suites are those of TLS 1.2, which --tls-min-version rules out")
    if get("cipher-suites").strip() and not ciphers:  # only such as can't be chosen, so nothing is left of TLS 1.2
        if version_max == 12:
            raise ConfigError("--cipher-suites names none of TLS 1.2, the only version that --tls-max-version allows")
        version_min = 13
    if not wanted:
        if certificate or ca or automatic:
            raise ConfigError(
                "TLS is configured, but no URL of --listen-client-urls begins with https:// or unixs://, "
                "and none of --listen-metrics-urls with https://"
            )
        return None
    years = 0
    if not certificate:
        if not automatic:
            raise ConfigError(f"--cert-file and --key-file, or --auto-tls, are needed for https in --{wanted}")
        years = _years(get)
        certificate, key = (os.path.join(data_dir, "fixtures", "client", name) for name in ("cert.pem", "key.pem"))
    return Tls(certificate, key, ca, crl, hosts, ciphers, version_min, version_max, years)


def truth(setting: str, get: Callable[[str], str]) -> bool:
    """As Go's flags take it."""
    text = get(setting)
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ConfigError(f"--{setting} {text!r}: expected true or false")


def _version(setting: str, get: Callable[[str], str]) -> int:
    text = get(setting)
    if text and text not in _VERSIONS:
        raise ConfigError(f"--{setting} {text!r}: expected one of {', '.join(_VERSIONS)}")
    return _VERSIONS.get(text, 0)


def _ciphers(get: Callable[[str], str]) -> str:
    chosen = []
    for name in filter(None, (part.strip() for part in get("cipher-suites").split(","))):
        if name in _OPENSSL:
            chosen.append(_OPENSSL[name])
        elif name not in _NOT_TO_BE_CHOSEN:
            raise ConfigError(f"--cipher-suites: {name!r} is none of {', '.join((*_OPENSSL, *_NOT_TO_BE_CHOSEN))}")
    return ":".join(chosen)


def _hosts(get: Callable[[str], str]) -> str:
    found = []
    for text in filter(None, (part.strip() for part in get("client-cert-allowed-hostname").split(","))):
        host = text.removesuffix(".")
        try:
            host = str(ipaddress.ip_address(text.strip("[]")))
        except ValueError:
            if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", host) or len(host) > 253:
                raise ConfigError(f"--client-cert-allowed-hostname: {text!r} is no host's name or address") from None
        found.append(host)
    return ",".join(found)


def _years(get: Callable[[str], str]) -> int:
    text = get("self-signed-cert-validity")
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 100):
        raise ConfigError(f"--self-signed-cert-validity {text!r}: expected 1 to 100 years")
    return int(text)
