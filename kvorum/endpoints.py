"""Which endpoint to try next.

    usable ──(refused, lost, silent)──▶ resting ──(time)──▶ usable
                                           └─ rests twice as long after each failure in a row, up to REST_MAX

Endpoints are tried in turn from a start that chance picks, so that a thousand clients given one list do not all sit on
its first node. What the user listed comes before what a node told of its cluster. A success ends the row of failures.
Pure: time is a number handed in, chance a `random.Random`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

from kvorum.errors import KvorumError

DEFAULT_PORT = 2381
REST_MIN = 0.05
"""Seconds an endpoint rests after its first failure: a node that restarts is found again quickly."""
REST_MAX = 1.0
"""Seconds an endpoint rests at most; then it is worth another connection attempt."""


def parse(endpoints: str | Iterable[str]) -> list[str]:
    """Addresses as ZeroMQ wants them, from "host", "host:port", "tcp://host:port" or "ipc://path", several by comma.

    Raises:
      ValueError: there is none, one is not of that form, or one is an http address (that is the gateway's port).
    """
    texts = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
    found: list[str] = []
    for text in texts:
        address = _address(text.strip())
        if address not in found:
            found.append(address)
    if not found:
        raise ValueError("at least one endpoint is needed")
    return found


def _address(text: str) -> str:
    if text.startswith("ipc://") and len(text) > 6:
        return text
    scheme, mark, rest = text.rpartition("://")
    if mark and scheme != "tcp":
        raise ValueError(f"endpoint {text!r}: the native protocol is tcp:// or ipc://, not {scheme}://")
    host, mark, port = rest.rpartition(":")
    if not mark or rest.endswith("]"):
        host, port = rest, str(DEFAULT_PORT)
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"endpoint {text!r} is not host:port")
    return f"tcp://{host}:{port}"


_ANYWHERE = ("0.0.0.0", "*", "[::]")


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("localhost", "[::1]")


def _host(address: str) -> str:
    return address.removeprefix("tcp://").rpartition(":")[0]


def usable(addresses: Iterable[str], via: str) -> list[str]:
    """Of the addresses that a node told us, reached `via` an endpoint, those that lead to a node from here.

    What is malformed does not, nor the "any address" that a node listens on; its own loopback only does if ours is the
    same one.
    """
    here = via.startswith("ipc://") or _is_loopback(_host(via))
    found = []
    for address in addresses:
        try:
            parsed = _address(address)
        except ValueError:
            continue
        if parsed.startswith("ipc://") or (
            _host(parsed) not in _ANYWHERE and (here or not _is_loopback(_host(parsed)))
        ):
            found.append(parsed)
    return found


def of_same_host(address: str, via: str) -> str:
    """Another address of the node behind `via`, on `via`'s host if its own doesn't lead there from here."""
    if usable([address], via) or not via.startswith("tcp://") or not address.startswith("tcp://"):
        return address
    return f"tcp://{_host(via)}:{address.rpartition(':')[2]}"


class _Endpoint:
    __slots__ = ("address", "failures", "refusal", "rest_until", "trouble")

    def __init__(self, address: str) -> None:
        self.address = address
        self.failures = 0
        self.rest_until = 0.0
        self.trouble = ""
        self.refusal: KvorumError | None = None


class Endpoints:
    """The list, the turn, and who is resting."""

    def __init__(self, addresses: Iterable[str], rng: Random, *, shuffle: bool = True) -> None:
        self._rng = rng
        self._list = [_Endpoint(address) for address in addresses]
        self._turn = 0
        self._shuffle = shuffle
        self._draw()

    def __len__(self) -> int:
        return len(self._list)

    def __iter__(self) -> Iterator[str]:
        return iter([e.address for e in self._list])

    def learn(self, addresses: Iterable[str]) -> None:
        """Add what a node told, behind what is already there."""
        known = {e.address for e in self._list}
        self._list += [_Endpoint(address) for address in addresses if address not in known]
        if not known:
            self._draw()

    def choose(self, now: float) -> str | None:
        """The next endpoint that is not resting, or None; the turn moves to it."""
        for step in range(len(self._list)):
            at = (self._turn + step) % len(self._list)
            if self._list[at].rest_until <= now:
                self._turn = at
                return self._list[at].address
        return None

    def next(self) -> str:
        """The endpoint whose turn it is, resting or not."""
        return self._list[self._turn].address

    def usable_at(self) -> float:
        """When the first of them has rested; infinite if there is none."""
        return min((e.rest_until for e in self._list), default=float("inf"))

    def others(self, address: str, now: float) -> bool:
        """Is there an endpoint beside `address` worth moving to now?"""
        return any(e.address != address and e.rest_until <= now for e in self._list)

    def succeeded(self, address: str) -> None:
        e = self._find(address)
        e.failures, e.rest_until, e.trouble, e.refusal = 0, 0.0, "", None

    def failed(self, address: str, now: float, trouble: str, refusal: KvorumError | None = None) -> None:
        """Let it rest. A `refusal` is an answer that asking again will not change: wrong version, wrong cluster."""
        e = self._find(address)
        rest = min(REST_MIN * 2**e.failures, REST_MAX)
        e.failures = min(e.failures + 1, 16)
        e.rest_until = now + rest * self._rng.uniform(0.5, 1.0)
        e.trouble, e.refusal = trouble, refusal
        self._turn = (self._list.index(e) + 1) % len(self._list)

    def refusal(self) -> KvorumError | None:
        """What to tell the callers if every endpoint has refused us."""
        if self._list and all(e.refusal for e in self._list):
            return self._list[0].refusal
        return None

    def trouble(self) -> str:
        """What went wrong last, endpoint by endpoint."""
        return "; ".join(f"{e.address}: {e.trouble}" for e in self._list if e.trouble)

    def _draw(self) -> None:
        if self._shuffle and self._list:
            self._turn = self._rng.randrange(len(self._list))

    def _find(self, address: str) -> _Endpoint:
        return next(e for e in self._list if e.address == address)
