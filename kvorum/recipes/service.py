"""Services: who offers what where, as long as they live.

    Service(client, "mail").register("10.0.0.7:25", ttl=10)     # in each instance
    Service(client, "mail").instances()                         # in whoever wants to send mail

An instance is a key below services/NAME/ that dies with its lease; if it could not be kept alive (a long break of the
network), it is registered again as soon as there is somebody to ask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from kvorum import verbs
from kvorum.errors import KvorumError
from kvorum.lease import Lease
from kvorum.recipes.steps import Grant, KeptLease, Steps, end, run
from kvorum.recipes.view import View
from kvorum.sync import Client
from kvorum.txn import Key, to_bytes

RETRY_SECONDS = 1.0


class ServiceCore:
    """A service of either client."""

    def __init__(self, name: Key, root: Key) -> None:
        self.prefix = to_bytes(root) + to_bytes(name) + b"/"

    def _instances(self) -> Steps[dict[bytes, bytes]]:
        found = yield verbs.get_prefix_response(self.prefix)
        return {kv.key[len(self.prefix) :]: kv.value for kv in found.kvs}


class Service(ServiceCore):
    """`root`: below which key services live."""

    def __init__(self, client: Client, name: Key, *, root: Key = "services/") -> None:
        super().__init__(name, root)
        self._client = client

    def register(self, address: Key, *, metadata: Key = b"", ttl: int = 10) -> Instance:
        """List an instance until it is closed or dies. Its value is `metadata`, anything the users should know."""
        return Instance(self._client, self.prefix + to_bytes(address), metadata, ttl)

    def instances(self) -> dict[bytes, bytes]:
        """Address and metadata of all instances that live now."""
        return run(self._client, self._instances())

    def view(self) -> View:
        """The same, kept up to date."""
        return View(self._client, self.prefix)


def listing(key: bytes, metadata: Key, ttl: int, on_lost: Callable[[Any], None]) -> Steps[KeptLease]:
    """List an instance with a lease of its own. If that is stopped in the middle, the lease ends."""
    lease: KeptLease = yield Grant(ttl, on_lost)
    try:
        yield verbs.put(key, metadata, lease)
        yield None
    except BaseException:
        yield from end(lease)
        raise
    return lease


class Instance:
    """One registered instance."""

    def __init__(self, client: Client, key: bytes, metadata: Key, ttl: int) -> None:
        self._client, self.key, self._metadata, self._ttl = client, key, metadata, ttl
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._lease = self._register()

    def _register(self) -> KeptLease:
        return run(self._client, listing(self.key, self._metadata, self._ttl, self._lost))

    def _lost(self, _: Lease) -> None:
        """In the lease thread, which must go on: try again in another one."""
        threading.Thread(target=self._again, name="kvorum-service", daemon=True).start()

    def _again(self) -> None:
        while not self._closed.is_set():
            try:
                with self._lock:
                    if not self._closed.is_set():
                        self._lease = self._register()
                return
            except KvorumError:  # nobody is there to ask, for now
                self._closed.wait(RETRY_SECONDS)

    def close(self) -> None:
        """Be listed no longer."""
        self._closed.set()
        with self._lock:
            run(self._client, end(self._lease))

    def __enter__(self) -> Instance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
