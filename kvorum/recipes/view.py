"""The keys below a prefix as a dict that follows them.

    settings = View(client, "config/")
    settings[b"color"]                      # a look into memory
    settings.on_change(lambda changed: reload(changed))

It is always the state at one revision (`revision`), whole: changes of one revision appear together. It lags behind the
cluster by the time a message takes; after a write of one's own, `wait(revision)` waits until it shows. A compaction
that overtakes it, or a restart of everything, makes it read anew; it never shows an older state than it has shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

from kvorum import etcd_pb2 as pb
from kvorum.errors import Ambiguous, Compacted, Unavailable
from kvorum.results import DeleteEvent, WatchResponse
from kvorum.sync import Client
from kvorum.txn import Key, to_bytes
from kvorum.watches import WatchOptions

RETRY_SECONDS = 0.5

Changed = Callable[[dict[bytes, bytes | None]], None]


class ViewCore(Mapping[bytes, bytes]):
    """A view of either client: what it shows. `_tell` wakes those who wait for what it shows now."""

    def __init__(self, prefix: Key, on_change: Changed | None) -> None:
        self._prefix = to_bytes(prefix)
        self._kvs: dict[bytes, pb.KeyValue] = {}
        self._callbacks: list[Changed] = [] if on_change is None else [on_change]
        self.revision = 0
        """The revision whose state it shows."""

    def _tell(self, revision: int) -> None:
        raise NotImplementedError

    def _begin(self, found: pb.RangeResponse) -> WatchOptions:
        """Show what is there now. Returns how to watch from there on."""
        cut = len(self._prefix)
        fresh = {kv.key[cut:]: kv for kv in found.kvs}
        changed: dict[bytes, bytes | None] = dict.fromkeys(self._kvs.keys() - fresh.keys())
        for key, kv in fresh.items():
            before = self._kvs.get(key)
            if before is None or before.mod_revision != kv.mod_revision:
                changed[key] = kv.value
        self._show(fresh, found.header.revision, changed if self.revision else {})
        return {"start_revision": found.header.revision + 1, "progress_notify": True}

    def _follow(self, what: WatchResponse) -> None:
        fresh = dict(self._kvs)
        changed: dict[bytes, bytes | None] = {}
        cut = len(self._prefix)
        for event in what.events:
            key = event.key[cut:]
            if isinstance(event, DeleteEvent):
                fresh.pop(key, None)
                changed[key] = None
            else:
                fresh[key] = event.kv
                changed[key] = event.value
        self._show(fresh, what.revision, changed)

    def _show(self, kvs: dict[bytes, pb.KeyValue], revision: int, changed: dict[bytes, bytes | None]) -> None:
        """Callbacks first: whoever waits for a revision finds that they have run."""
        self._kvs = kvs
        if changed:
            for callback in self._callbacks:
                callback(changed)
        self._tell(max(self.revision, revision))

    def on_change(self, callback: Changed) -> None:
        """Call `callback` after each change with the keys that changed and their values, None for a deleted one.

        It is called in the view's own thread, or task; what it raises ends the view.
        """
        self._callbacks.append(callback)

    def meta(self, key: Key) -> pb.KeyValue | None:
        """The whole KeyValue of a key: revisions, version, lease."""
        return self._kvs.get(to_bytes(key))

    def __getitem__(self, key: Key) -> bytes:
        return self._kvs[to_bytes(key)].value

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._kvs)

    def __len__(self) -> int:
        return len(self._kvs)


class View(ViewCore):
    """Keys are without the prefix. Complete as soon as it is made. Any thread may read it.

    Args:
      on_change: as for on_change(), from the beginning on.
    """

    def __init__(self, client: Client, prefix: Key, *, on_change: Changed | None = None) -> None:
        super().__init__(prefix, on_change)
        self._client = client
        self._news = threading.Condition()
        self._closed = False
        self._responses, self._cancel = self._read()
        self._thread = threading.Thread(target=self._run, name="kvorum-view", daemon=True)
        self._thread.start()

    def _read(self) -> tuple[Iterator[WatchResponse], Callable[[], None]]:
        options = self._begin(self._client.get_prefix_response(self._prefix))
        return self._client.watch_prefix_response(self._prefix, **options)

    def _run(self) -> None:
        while not self._closed:
            try:
                for response in self._responses:
                    self._follow(response)
                return  # cancelled
            except Compacted:
                if not self._again():
                    return

    def _again(self) -> bool:
        """Compacted in front of us: read anew, as soon as somebody answers. False if it was closed meanwhile."""
        while not self._closed:
            try:
                self._responses, self._cancel = self._read()
            except (Unavailable, Ambiguous):
                time.sleep(RETRY_SECONDS)
            else:
                if self._closed:
                    self._cancel()
                return True
        return False

    def _tell(self, revision: int) -> None:
        with self._news:
            self.revision = revision
            self._news.notify_all()

    def wait(self, revision: int, timeout: float | None = None) -> bool:
        """Until all changes up to `revision` are shown. False: not within `timeout` seconds, or it is closed.

        A revision without a change below the prefix is known to be shown only when something later is: give the
        revision of a write below it.
        """
        with self._news:
            self._news.wait_for(lambda: self.revision >= revision or self._closed, timeout)
            return self.revision >= revision

    def wait_for(self, true: Callable[[Mapping[bytes, bytes]], bool], timeout: float | None = None) -> bool:
        """Until `true(view)`. False: not within `timeout` seconds, or it is closed."""
        with self._news:
            self._news.wait_for(lambda: self._closed or true(self), timeout)
            return true(self)

    def close(self) -> None:
        """It shows what it has shown last from now on."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        self._cancel()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
