"""The watch methods of the synchronous client, by the names that python-etcd3 gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TypedDict, Unpack

from kvorum.errors import KvorumError
from kvorum.results import Event, WatchResponse
from kvorum.txn import Key, prefix_range
from kvorum.watcher import CLOSED, Callback, Events, Watcher, WatchTimedOut
from kvorum.watching import Given, Watch

__all__ = ["WatchTimedOut", "Watches"]


class WatchOptions(TypedDict, total=False):
    """What to watch: see kvorum.watching.Watch."""

    range_end: Key | None
    start_revision: int
    prev_kv: bool
    filters: Iterable[str]
    progress_notify: bool


class Watches:
    """Every method returns only when a node has created the watch, so that nothing done afterwards is missed.

    A watch outlives its connection: it goes on, without a gap and without a repetition, on whichever node answers. It
    ends by being cancelled, or with an error: Compacted when what it was to see next has been compacted. Raises, beside
    Watch's own, Unavailable if no node created it within the client's timeout.
    """

    timeout: float
    _callbacks: dict[int, Watch]
    _last_watch_id: int

    def _carrier(self) -> Watcher:
        raise NotImplementedError

    def watch_response(
        self, key: Key, **options: Unpack[WatchOptions]
    ) -> tuple[Iterator[WatchResponse], Callable[[], None]]:
        """(iterator of WatchResponse, function that cancels): all events of a revision come together."""
        events = self._read(Watch(key, **options))
        return events, events.cancel

    def watch(self, key: Key, **options: Unpack[WatchOptions]) -> tuple[Iterator[Event], Callable[[], None]]:
        """(iterator of PutEvent and DeleteEvent, function that cancels).

        The iterator waits for the next event for ever; it ends when the watch is cancelled.
        """
        responses, cancel = self.watch_response(key, **options)
        return chain.from_iterable(response.events for response in responses), cancel

    def watch_prefix_response(
        self, prefix: Key, **options: Unpack[WatchOptions]
    ) -> tuple[Iterator[WatchResponse], Callable[[], None]]:
        """Like watch_response(), of every key that starts with `prefix`."""
        key, options["range_end"] = prefix_range(prefix)
        return self.watch_response(key, **options)

    def watch_prefix(self, prefix: Key, **options: Unpack[WatchOptions]) -> tuple[Iterator[Event], Callable[[], None]]:
        """Like watch(), of every key that starts with `prefix`."""
        key, options["range_end"] = prefix_range(prefix)
        return self.watch(key, **options)

    def watch_once_response(
        self, key: Key, timeout: float | None = None, **options: Unpack[WatchOptions]
    ) -> WatchResponse:
        """The first response of a new watch, which ends with it.

        Raises:
          WatchTimedOut: nothing came within `timeout` seconds; None waits for ever.
        """
        events = self._read(Watch(key, **options))
        try:
            return events.get(timeout)
        finally:
            events.cancel()

    def watch_once(self, key: Key, timeout: float | None = None, **options: Unpack[WatchOptions]) -> Event:
        """The first event of a new watch, which ends with it. Raises as watch_once_response()."""
        options["progress_notify"] = False
        return self.watch_once_response(key, timeout, **options).events[0]

    def watch_prefix_once_response(
        self, prefix: Key, timeout: float | None = None, **options: Unpack[WatchOptions]
    ) -> WatchResponse:
        """Like watch_once_response(), of every key that starts with `prefix`."""
        key, options["range_end"] = prefix_range(prefix)
        return self.watch_once_response(key, timeout, **options)

    def watch_prefix_once(self, prefix: Key, timeout: float | None = None, **options: Unpack[WatchOptions]) -> Event:
        """Like watch_once(), of every key that starts with `prefix`."""
        return self.watch_prefix_once_response(prefix, timeout, **options).events[0]

    def add_watch_callback(self, key: Key, callback: Callback, **options: Unpack[WatchOptions]) -> int:
        """Have `callback` called with each WatchResponse, and once with the error that ends the watch, if one does.

        It is called in the client's watch thread, and holds up the client's other watches while it runs. It may use
        the client. Returns the number that cancel_watch() takes.
        """
        watch = Watch(key, **options)
        self._last_watch_id += 1
        number = self._last_watch_id

        def take(given: Given) -> None:
            watch.read_bytes += given.size
            if isinstance(given.what, KvorumError):
                self._callbacks.pop(number, None)
            if given.what is not None and given.what is not CLOSED:
                callback(given.what)

        self._callbacks[number] = watch
        try:
            self._carrier().add(watch, take, self.timeout)
        except BaseException:
            self._callbacks.pop(number, None)
            raise
        return number

    def add_watch_prefix_callback(self, prefix: Key, callback: Callback, **options: Unpack[WatchOptions]) -> int:
        """Like add_watch_callback(), of every key that starts with `prefix`."""
        key, options["range_end"] = prefix_range(prefix)
        return self.add_watch_callback(key, callback, **options)

    def cancel_watch(self, watch_id: int) -> None:
        """End the watch that add_watch_callback() has started; one that has ended already is no error."""
        watch = self._callbacks.pop(watch_id, None)
        if watch is not None:
            self._carrier().cancel(watch)

    def request_progress(self) -> None:
        """Have each watch told, in a response without events, up to which revision it has been given everything.

        It comes when that is so: soon, or after the events that the watch lacks. Those who read events one by one don't
        see it.
        """
        self._carrier().ask_progress()

    def _read(self, watch: Watch) -> Events:
        events = Events(self._carrier(), watch)
        self._carrier().add(watch, events.take, self.timeout)
        return events
