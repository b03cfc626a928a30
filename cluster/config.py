"""What a node is told: one value that every process of it reads, checked once, before anything is started.

    flags ──────┐
    KVORUM_* ───┼─▶ cluster.settings ──texts by name──▶ resolve ──▶ NodeConfig ──▶ node.json ──▶ raft, apply, watch
    TOML file ──┘   who wins, what exists               what they mean together

A setting that makes no sense, alone or beside the others, is refused here with the reason: a node that starts with
another configuration than the one its owner believes in is worse than one that doesn't start.

Identity is arithmetic, as in etcd, so that members agree on it without talking: a member's id is made of its peer URL
and the cluster's token, the cluster's id of the ids of its first members. Two clusters whose owners forgot to choose
different ports or tokens are thus told apart by their members, before they can mix.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Callable, Mapping
from hashlib import sha1
from typing import Any, NamedTuple

from cluster import doors, log
from cluster import tls as tls_settings
from cluster.settings import SETTINGS, ConfigError
from cluster.tls import Tls

QUOTA_BYTES = 2 << 30
"""What quota-backend-bytes = 0 means."""
QUOTA_BYTES_MAX = 8 << 30
"""More is allowed, with a warning: etcd's suggestion, and nobody has tried more here."""
REQUEST_BYTES_LIMIT = (8 << 20) - (64 << 10)
"""The most that max-request-bytes may be: a request must fit into a batch (kvorum.wire) with room to spare."""
ELECTION_MS_MAX = 50_000
"""As in etcd: a cluster that takes longer to miss its leader is misconfigured."""


class Member(NamedTuple):
    """One member as --initial-cluster names it. `address` is where its peers reach it: tcp://host:port."""

    id: int
    name: str
    address: str

    @property
    def peer_url(self) -> str:
        """The address as etcd's clients expect to read it."""
        return "http" + self.address.removeprefix("tcp")


class NodeConfig(NamedTuple):
    """Everything a process of a node may need to know. Written once by the supervisor, read by the children.

    Addresses to listen on have a literal IP, as ZeroMQ wants it; advertised ones may have names.
    """

    name: str
    data_dir: str
    wal_dir: str
    run_dir: str  # short, 0700, gone when the node stops: local sockets, metrics, this file
    cluster_id: int
    member_id: int
    members: tuple[Member, ...]  # all of the cluster, this one too, by id
    initial_cluster_state: str  # new | existing
    listen_peer: str
    listen_native: str
    listen_watch: str
    listen_broadcast: str
    listen_client: tuple[str, ...]  # the gateway's, tcp:// or tls://; none: there is no gateway
    listen_metrics: tuple[str, ...]  # tcp:// or tls://
    advertise_client_urls: tuple[str, ...]
    advertise_native: str
    advertise_watch: str
    advertise_broadcast: str
    heartbeat_ms: int
    election_ms: int
    quota_backend_bytes: int  # 0: none
    max_request_bytes: int
    max_txn_ops: int
    gateway_processes: int
    cors: tuple[str, ...]
    host_whitelist: tuple[str, ...]
    tls: Tls | None  # the gateway's and the metrics'; None: none of their addresses wants it
    log_level: str

    @property
    def store_dir(self) -> str:
        """Where the keyspace is."""
        return os.path.join(self.data_dir, "store")

    @property
    def gateways(self) -> tuple[str, ...]:
        """The names of the gateway processes: "gateway", "gateway-2" ..."""
        count = self.gateway_processes if self.listen_client else 0
        return tuple("gateway" if i == 0 else f"gateway-{i + 1}" for i in range(count))

    @property
    def peers(self) -> tuple[Member, ...]:
        """The members other than this one."""
        return tuple(member for member in self.members if member.id != self.member_id)

    def ipc(self, name: str) -> str:
        """The path of the local socket `name` of this node."""
        return os.path.join(self.run_dir, name)

    def save(self, path: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self._asdict(), file, indent=1)

    @classmethod
    def load(cls, path: str) -> NodeConfig:
        """The configuration that `save` wrote to `path`."""
        with open(path, encoding="utf-8") as file:
            fields: dict[str, Any] = json.load(file)
        fields["members"] = tuple(Member(*member) for member in fields["members"])
        for name in ("listen_client", "listen_metrics", "advertise_client_urls", "cors", "host_whitelist"):
            fields[name] = tuple(fields[name])
        fields["tls"] = Tls(*fields["tls"]) if fields["tls"] else None
        return cls(**fields)


def member_id(peer_urls: list[str], token: str) -> int:
    """etcd's rule: the first 8 bytes, big-endian, of SHA-1 over the sorted peer URLs and the cluster's token."""
    return int.from_bytes(sha1(("".join(sorted(peer_urls)) + token).encode()).digest()[:8], "big")


def cluster_id(member_ids: list[int]) -> int:
    """etcd's rule: the first 8 bytes of SHA-1 over the sorted member ids, 8 bytes big-endian each."""
    return int.from_bytes(sha1(b"".join(id.to_bytes(8, "big") for id in sorted(member_ids))).digest()[:8], "big")


def resolve(values: Mapping[str, str], run_dir: str = "") -> NodeConfig:
    """Make sense of settings by name, all of them texts as a flag would have them; what is missing has its default.

    Raises ConfigError naming the setting and the reason.
    """
    get = {setting.name: values.get(setting.name, setting.default) for setting in SETTINGS}.__getitem__
    name = get("name")
    if not name or len(name) > 128 or not name.isprintable() or set(name) & set(",= /"):
        raise ConfigError(f"--name {name!r}: expected 1 to 128 printable characters without space, comma, = and /")
    data_dir = os.path.abspath(get("data-dir") or f"{name}.kvorum")
    wal_dir = os.path.abspath(get("wal-dir")) if get("wal-dir") else os.path.join(data_dir, "wal")

    listen = {key: _listen(key, get(key)) for key in _LISTEN_ONE}
    listen_client = _listen_list("listen-client-urls", get("listen-client-urls"), _CLIENTS)
    listen_metrics = _listen_list("listen-metrics-urls", get("listen-metrics-urls"), ("https",))
    _distinct_listeners(listen, listen_client, listen_metrics)

    peer = _advertise("initial-advertise-peer-urls", get, "listen-peer-urls")
    members = _members(name, peer, get("initial-cluster"), get("initial-cluster-token"), values)
    own = next(member for member in members if member.name == name)
    heartbeat_ms, election_ms = _timing(_number("heartbeat-interval", get), _number("election-timeout", get))
    return NodeConfig(
        name=name,
        data_dir=data_dir,
        wal_dir=wal_dir,
        run_dir=run_dir,
        cluster_id=cluster_id([member.id for member in members]),
        member_id=own.id,
        members=members,
        initial_cluster_state=_choice("initial-cluster-state", get, ("new", "existing")),
        listen_peer=listen["listen-peer-urls"],
        listen_native=listen["listen-native-url"],
        listen_watch=listen["listen-watch-url"],
        listen_broadcast=listen["listen-broadcast-url"],
        listen_client=listen_client,
        listen_metrics=listen_metrics,
        advertise_client_urls=_advertise_clients(get, listen_client),
        advertise_native=_advertise("advertise-native-url", get, "listen-native-url"),
        advertise_watch=_advertise("advertise-watch-url", get, "listen-watch-url"),
        advertise_broadcast=_advertise("advertise-broadcast-url", get, "listen-broadcast-url"),
        heartbeat_ms=heartbeat_ms,
        election_ms=election_ms,
        quota_backend_bytes=_quota(_number("quota-backend-bytes", get)),
        max_request_bytes=_between("max-request-bytes", get, 1, REQUEST_BYTES_LIMIT),
        max_txn_ops=_between("max-txn-ops", get, 1, 1 << 20),
        gateway_processes=_between("gateway-processes", get, 1, 64),
        cors=_texts(get("cors")),
        host_whitelist=_texts(get("host-whitelist")),
        tls=tls_settings.resolve(get, wanted=_wants_tls(listen_client, listen_metrics), data_dir=data_dir),
        log_level=_choice("log-level", get, log.LEVELS),
    )


_LISTEN_ONE = ("listen-peer-urls", "listen-native-url", "listen-watch-url", "listen-broadcast-url")
_CLIENTS = ("https", "unix", "unixs")


class _Url(NamedTuple):
    host: str  # as written, IPv6 in brackets
    port: int
    tls: bool
    path: str = ""  # absolute: a socket in the file system, which is all there is to it

    def text(self) -> str:
        if self.path:
            return f"{'unixs' if self.tls else 'unix'}://{self.path}"
        return f"{'tls' if self.tls else 'tcp'}://{self.host}:{self.port}"


def _url(setting: str, text: str, more: tuple[str, ...] = ()) -> _Url:
    """`more`: what it may be besides tcp and http."""
    scheme, separator, rest = text.strip().partition("://")
    if scheme.startswith(("unix:", "unixs:")):  # unix:/path is the same
        scheme, separator, rest = text.strip().partition(":")
    if scheme in more and scheme != "https" and separator:
        path = os.path.abspath(rest)
        if not rest or rest.endswith("/") or len(os.fsencode(path)) > doors.PATH_BYTES_MAX:
            raise ConfigError(f"--{setting} {text!r}: expected a file's path of at most {doors.PATH_BYTES_MAX} bytes")
        return _Url("", 0, scheme == "unixs", path)
    if not separator or scheme not in ("tcp", "http", *({"https"} & {*more})):
        hint = ""
        if scheme in ("https", "unix", "unixs"):
            theirs = "--listen-client-urls and --advertise-client-urls"
            if scheme == "https":
                theirs = "--listen-client-urls, --advertise-client-urls and --listen-metrics-urls"
            hint = f"; {scheme} is for {theirs} alone"
        raise ConfigError(f"--{setting} {text!r}: expected http://HOST:PORT or tcp://HOST:PORT{hint}")
    host, colon, port = rest.removesuffix("/").rpartition(":")
    if not colon or not host or set(host) & set("/?#@ ") or (":" in host and not host.startswith("[")):
        raise ConfigError(f"--{setting} {text!r}: expected HOST:PORT after {scheme}:// and nothing else")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise ConfigError(f"--{setting} {text!r}: {port!r} is no port from 1 to 65535")
    return _Url(host, int(port), scheme == "https")


def _urls(setting: str, text: str, more: tuple[str, ...] = ()) -> list[_Url]:
    return [_url(setting, part, more) for part in text.split(",") if part.strip()]


def _one(setting: str, text: str) -> _Url:
    urls = _urls(setting, text)
    if len(urls) != 1:
        raise ConfigError(f"--{setting} {text!r}: expected one URL; a node has one address for this")
    return urls[0]


def _listen(setting: str, text: str) -> str:
    return _literal(setting, _one(setting, text)).text()


def _listen_list(setting: str, text: str, more: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_literal(setting, url).text() for url in _urls(setting, text, more))


def _wants_tls(client: tuple[str, ...], metrics: tuple[str, ...]) -> str:
    """A setting that has a URL with TLS, "" if there is none."""
    settings = {"listen-client-urls": client, "listen-metrics-urls": metrics}
    return next((setting for setting, urls in settings.items() if any(map(doors.encrypted, urls))), "")


def _literal(setting: str, url: _Url) -> _Url:
    """What to bind: a name could mean several addresses, or another one tomorrow (etcd asks for an IP as well)."""
    if url.path:
        return url
    host = "127.0.0.1" if url.host == "localhost" else url.host
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ConfigError(f"--{setting} {url.text()}: expected an IP address or localhost to listen on") from None
    return url._replace(host=host)


def _distinct_listeners(listen: Mapping[str, str], client: tuple[str, ...], metrics: tuple[str, ...]) -> None:
    taken: dict[str, str] = {}
    every = [*listen.items()]
    every += [("listen-client-urls", url) for url in client] + [("listen-metrics-urls", url) for url in metrics]
    for setting, url in every:
        address = url.partition("://")[2]
        if address in taken:
            raise ConfigError(f"--{setting} and --{taken[address]} are the same address: {url}")
        taken[address] = setting


_Get = Callable[[str], str]  # a setting's text by its name


def _advertise(setting: str, get: _Get, listen_setting: str) -> str:
    """What others are told: as set, else where we listen, unless that is "any address": nobody can connect to that."""
    text = get(setting)
    url = _one(setting, text or get(listen_setting))
    if url.host in ("0.0.0.0", "[::]"):
        raise ConfigError(
            f"--{setting}: nobody can connect to {url.host}"
            + ("" if text else f", which --{listen_setting} says; set the address that others shall use")
        )
    return url.text()


def _advertise_clients(get: _Get, listen: tuple[str, ...]) -> tuple[str, ...]:
    """What etcd's clients are told: as set, else where the gateway listens."""
    text = get("advertise-client-urls")
    urls = _urls("advertise-client-urls", text or ",".join(_for_clients(url) for url in listen), _CLIENTS)
    for url in urls:
        if url.host in ("0.0.0.0", "[::]"):
            why = "" if text else ", which --listen-client-urls says; set the address that others shall use"
            raise ConfigError(f"--advertise-client-urls: nobody can connect to {url.host}{why}")
    return tuple(_for_clients(url.text()) for url in urls)


def _for_clients(url: str) -> str:
    """As etcd's clients expect to read it."""
    if doors.path(url):
        return url
    scheme, _, address = url.partition("://")
    return f"{'https' if scheme == 'tls' else 'http'}://{address}"


def _members(name: str, own: str, initial: str, token: str, values: Mapping[str, str]) -> tuple[Member, ...]:
    if not token:
        raise ConfigError("--initial-cluster-token: expected a text")
    members: dict[str, Member] = {}
    owners: dict[str, str] = {}
    for part in (initial or f"{name}={own}").split(","):
        member, equals, text = part.strip().partition("=")
        if not equals or not member:
            raise ConfigError(f"--initial-cluster: expected NAME=URL,NAME=URL..., not {part.strip()!r}")
        address = _url("initial-cluster", text).text()
        if member in members:
            raise ConfigError(f"--initial-cluster names {member!r} twice; a member has one peer URL here")
        if address in owners:
            raise ConfigError(f"--initial-cluster gives {address} to {owners[address]!r} and to {member!r}")
        owners[address] = member
        members[member] = Member(member_id(["http" + address.removeprefix("tcp")], token), member, address)
    if name not in members:
        raise ConfigError(f"--initial-cluster {initial!r} doesn't name this member; its --name is {name!r}")
    if members[name].address != own:
        source = "--initial-advertise-peer-urls" if values.get("initial-advertise-peer-urls") else "--listen-peer-urls"
        raise ConfigError(f"--initial-cluster says {name}={members[name].address}, but {source} says {own}")
    ids = [member.id for member in members.values()]
    if 0 in ids or len(set(ids)) != len(ids):
        raise ConfigError("--initial-cluster: two members have the same id, or one has id 0; choose another token")
    return tuple(sorted(members.values()))


def _texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(setting: str, get: _Get) -> int:
    text = get(setting).strip()
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--{setting} {text!r}: expected a whole number") from None


def _between(setting: str, get: _Get, least: int, most: int) -> int:
    number = _number(setting, get)
    if not least <= number <= most:
        raise ConfigError(f"--{setting} {number}: expected {least} to {most}")
    return number


def _choice(setting: str, get: _Get, choices: tuple[str, ...]) -> str:
    text = get(setting)
    if text not in choices:
        raise ConfigError(f"--{setting} {text!r}: expected one of {', '.join(choices)}")
    return text


def _timing(heartbeat_ms: int, election_ms: int) -> tuple[int, int]:
    if heartbeat_ms < 1:
        raise ConfigError(f"--heartbeat-interval {heartbeat_ms}: expected at least 1 ms")
    if election_ms < 5 * heartbeat_ms:
        raise ConfigError(
            f"--election-timeout {election_ms} must be at least 5 times --heartbeat-interval {heartbeat_ms}: "
            "a few late heartbeats would cost the leader its place"
        )
    if election_ms > ELECTION_MS_MAX:
        raise ConfigError(f"--election-timeout {election_ms}: expected at most {ELECTION_MS_MAX} ms")
    return heartbeat_ms, election_ms


def _quota(number: int) -> int:
    if number == 0:
        return QUOTA_BYTES
    return max(number, 0)
