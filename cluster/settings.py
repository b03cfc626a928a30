"""Which settings exist, and who wins when several places set one.

    --heartbeat-interval 50     KVORUM_HEARTBEAT_INTERVAL=50     heartbeat-interval = 50  (the TOML file)
             1st                             2nd                             3rd, then the default

Names and defaults are etcd's where etcd has the setting. What nobody has heard of is refused wherever it stands: a
misspelled setting that is silently ignored is found out on the day it was needed. The one exception are the variables
that Kubernetes puts into every container beside a service named kvorum (KVORUM_SERVICE_HOST, KVORUM_PORT_2379_TCP ...).

A setting is a text as a flag would have it until `cluster.config` makes sense of all of them together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

GATEWAY_PORT, PEER_PORT, NATIVE_PORT, WATCH_PORT, BROADCAST_PORT, METRICS_PORT = range(2379, 2385)


class ConfigError(ValueError):
    """A setting is unknown or makes no sense; the text says which and why."""


class Setting(NamedTuple):
    """One setting: `--name`, KVORUM_NAME, `name = ` in the file."""

    name: str
    default: str
    metavar: str
    help: str
    truth: bool = False  # true or false; the flag alone means true

    @property
    def variable(self) -> str:
        return "KVORUM_" + self.name.upper().replace("-", "_")


SETTINGS: tuple[Setting, ...] = (
    Setting("name", "default", "NAME", "what this member is called in --initial-cluster"),
    Setting("data-dir", "", "DIR", "where everything durable is kept (default: NAME.kvorum)"),
    Setting("wal-dir", "", "DIR", "where the log is kept, for a disk of its own (default: DATA-DIR/wal)"),
    Setting("listen-peer-urls", f"http://localhost:{PEER_PORT}", "URL", "where other members reach this one"),
    Setting(
        "listen-client-urls",
        f"http://localhost:{GATEWAY_PORT}",
        "URLS",
        "where programs that speak etcd's API come in: http, https, unix, unixs; empty: nowhere",
    ),
    Setting("listen-native-url", f"tcp://localhost:{NATIVE_PORT}", "URL", "where kvorum clients call"),
    Setting("listen-watch-url", f"tcp://localhost:{WATCH_PORT}", "URL", "where kvorum clients watch"),
    Setting(
        "listen-broadcast-url",
        f"tcp://localhost:{BROADCAST_PORT}",
        "URL",
        "where events are broadcast to watchers",
    ),
    Setting(
        "listen-metrics-urls",
        f"http://localhost:{METRICS_PORT}",
        "URLS",
        "where /metrics, /health and the like are: http, https",
    ),
    Setting("initial-advertise-peer-urls", "", "URL", "this member's peer URL for the others (default: as it listens)"),
    Setting("advertise-client-urls", "", "URLS", "URLs told to etcd's clients (default: as the gateway listens)"),
    Setting("advertise-native-url", "", "URL", "address told to kvorum clients for calls (default: as it listens)"),
    Setting("advertise-watch-url", "", "URL", "address told to kvorum clients for watches (default: as it listens)"),
    Setting(
        "advertise-broadcast-url", "", "URL", "address told to kvorum clients for broadcasts (default: as it listens)"
    ),
    Setting("initial-cluster", "", "NAME=URL,...", "all members with their peer URLs (default: this one alone)"),
    Setting("initial-cluster-state", "new", "STATE", "new, or existing for a member that has its data already"),
    Setting("initial-cluster-token", "etcd-cluster", "TEXT", "makes the ids of clusters on the same addresses differ"),
    Setting("heartbeat-interval", "100", "MS", "how often the leader speaks up; about the round-trip time or more"),
    Setting("election-timeout", "1000", "MS", "after how much silence a follower stands for election"),
    Setting("quota-backend-bytes", "0", "BYTES", "size of the store from which writes are refused; 0: 2 GiB, -1: none"),
    Setting("max-request-bytes", str(3 << 19), "BYTES", "largest request taken"),
    Setting("max-txn-ops", "128", "N", "most operations in a txn"),
    Setting("gateway-processes", "1", "N", "how many processes serve --listen-client-urls, beside each other"),
    Setting(
        "cert-file",
        "",
        "FILE",
        "certificate (PEM, with its chain), for https in --listen-client-urls and --listen-metrics-urls",
    ),
    Setting("key-file", "", "FILE", "its key (PEM)"),
    Setting("trusted-ca-file", "", "FILE", "clients must show a certificate that a CA in this file (PEM) signed"),
    Setting("client-cert-auth", "false", "BOOL", "the same; it is so with --trusted-ca-file in any case", truth=True),
    Setting("client-crl-file", "", "FILE", "client certificates that are revoked (PEM)"),
    Setting(
        "client-cert-allowed-hostname", "", "NAMES", "names or addresses, one of which a client's certificate is for"
    ),
    Setting(
        "auto-tls", "false", "BOOL", "make a certificate that signs itself, if there is no --cert-file", truth=True
    ),
    Setting("self-signed-cert-validity", "1", "YEARS", "how long it is good for"),
    Setting("cipher-suites", "", "NAMES", "suites of TLS 1.2, as Go calls them (default: those that HTTP/2 permits)"),
    Setting("tls-min-version", "TLS1.2", "VERSION", "TLS1.2 or TLS1.3"),
    Setting("tls-max-version", "", "VERSION", "TLS1.2 or TLS1.3 (default: the newest there is)"),
    Setting("cors", "*", "ORIGINS", "sites whose pages may ask over HTTP (JSON); empty or *: all"),
    Setting("host-whitelist", "*", "NAMES", "by which names HTTP without TLS may be asked; empty or *: any"),
    Setting("log-level", "info", "LEVEL", "debug, info, warn or error"),
)

BY_NAME = {setting.name: setting for setting in SETTINGS}

OTHER_VARIABLES = frozenset({"KVORUM_CONFIG_FILE", "KVORUM_PARENT", "KVORUM_FAILPOINT"})
"""What else may be in the environment of a node."""

_KUBERNETES = re.compile(r"KVORUM_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT|PORT_\d+_\w+)")


def gather(flags: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The settings by name: `flags` (by name, plus "config-file") before `environment` before the file.

    Raises ConfigError for an unknown variable or file entry, and for a file that can't be read.
    """
    given = dict(flags)
    file = given.pop("config-file", None) or environment.get("KVORUM_CONFIG_FILE")
    values = _from_file(file) if file else {}
    values |= _from_environment(environment)
    values |= given
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    by_variable = {setting.variable: setting.name for setting in SETTINGS}
    values = {}
    for variable, text in environment.items():
        if not variable.startswith("KVORUM_") or variable in OTHER_VARIABLES:
            continue
        if variable in by_variable:
            values[by_variable[variable]] = text
        elif not _KUBERNETES.fullmatch(variable):
            raise ConfigError(f"{variable} in the environment: no such setting{_nearest(_as_flag(variable))}")
    return values


def _from_file(path: str) -> dict[str, str]:
    import tomllib  # only when there is a file

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"--config-file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--config-file {path}: not TOML: {error}") from error
    values = {}
    for name, value in content.items():
        if name not in BY_NAME:
            raise ConfigError(f"{name!r} in {path}: no such setting{_nearest(name)}")
        values[name] = _as_text(path, name, value)
    return values


def _as_text(path: str, name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) and BY_NAME[name].truth:
        return str(value).lower()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise ConfigError(f"{name!r} in {path}: expected a text, a whole number or a list of texts")


def _as_flag(variable: str) -> str:
    return variable.removeprefix("KVORUM_").lower().replace("_", "-")


def _nearest(name: str) -> str:
    import difflib  # only on the way to an error

    near = difflib.get_close_matches(name, BY_NAME, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
