"""Watchers of every form that the clients offer. Each writes down all that it is given, and checks as it goes.

    Reader    an iterator of the synchronous client, in a thread of its own
    Called    a callback of the synchronous client: while it is held up, so is its whole connection
    Awaited   a response iterator of the asyncio client, a task of the loop that Loop runs

A log is judged by the history: it must be exactly that, from where the watch began, restricted to what it asked for.
`hold()` makes a reader stall, as programs do: what it is given meanwhile waits, or is fetched again later.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import kvorum
from kvorum import aio, errors
from kvorum import etcd_pb2 as pb
from kvorum.results import DeleteEvent, Event, WatchResponse
from kvorum.txn import Key, to_bytes
from kvorum.watches import WatchOptions
from tests.checkers.model import inside
from tests.system.verdict import History


class Log:
    """What one watch asked for, and all that it was given.

    Args:
      start: the first revision it asks for; 0 is from now on.
      since: for one from now on: a revision that was there before it was asked for.
    """

    def __init__(
        self,
        key: Key,
        end: Key | None,
        *,
        start: int,
        prev_kv: bool = False,
        filters: tuple[str, ...] = (),
        progress_notify: bool = False,
        since: int = 0,
    ) -> None:
        self.key, self.end, self.start, self.prev_kv, self.filters = key, end, start, prev_kv, filters
        self.progress_notify, self.since = progress_notify, since
        self.created = since
        """For one from now on: a revision that was there when it had been created."""
        self.events: list[Event] = []
        self.wrong: list[str] = []
        self.error: BaseException | None = None
        self._told = 0  # everything up to here has been, says what it was given

    def __repr__(self) -> str:
        asked = [f"{self.key!r}..{self.end!r}", f"from {self.start or f'now, {self.since}'}", *self.filters]
        asked += ["prev_kv"] * self.prev_kv + ["progress_notify"] * self.progress_notify
        return f"<{type(self).__name__} {' '.join(asked)}>"

    @property
    def options(self) -> WatchOptions:
        return {
            "range_end": self.end,
            "start_revision": self.start,
            "prev_kv": self.prev_kv,
            "filters": self.filters,
            "progress_notify": self.progress_notify,
        }

    @property
    def revision(self) -> int:
        return self.events[-1].mod_revision if self.events else 0

    @property
    def position(self) -> int:
        """It has no need of anything up to here any more, by what its reader has read."""
        return max(self.revision, (self.start or self.since + 1) - 1)

    def take(self, response: WatchResponse) -> None:
        revisions = [event.mod_revision for event in response.events]
        if revisions and (revisions != sorted(revisions) or revisions[0] <= self._told):
            self.wrong.append(f"after revision {self._told} came {revisions}")  # W1, W2, W4, W6
        if response.revision < self._told:
            self.wrong.append(f"progress from {self._told} back to {response.revision}")
        self._told = max(self._told, response.revision)
        self.events += response.events

    def expected(self, truth: History, before: dict[bytes, pb.KeyValue], start: int = 0) -> list[pb.Event]:
        """What it must have been given of `truth`, from `start` on; `before` is the state at its beginning."""
        start = start or self.start
        key, end = to_bytes(self.key), b"" if self.end is None else to_bytes(self.end)
        state, found = dict(before), []
        for revision in sorted(truth):
            for event in truth[revision]:
                deleted = event.type == pb.Event.DELETE
                unwanted = ("nodelete" if deleted else "noput") in self.filters
                if revision >= start and inside(event.kv.key, key, end) and not unwanted:
                    told = pb.Event(type=event.type, kv=event.kv)
                    if self.prev_kv and event.kv.key in state:
                        told.prev_kv.CopyFrom(state[event.kv.key])
                    found.append(told)
                if deleted:
                    state.pop(event.kv.key, None)
                else:
                    state[event.kv.key] = event.kv
        return found

    def told(self) -> list[pb.Event]:
        found = []
        for event in self.events:
            kind = pb.Event.DELETE if isinstance(event, DeleteEvent) else pb.Event.PUT
            found.append(pb.Event(type=kind, kv=event.kv, prev_kv=event.prev_kv))
        return found

    def verdict(self, truth: History, before: dict[bytes, pb.KeyValue]) -> str:
        """What is wrong with it, or nothing. One from now on began at some revision behind `since`."""
        if self.wrong:
            return f"{self!r}: {self.wrong[:3]}"
        told = self.told()
        least = self.expected(truth, before, self.start or self.created + 1)
        most = least if self.start else self.expected(truth, before, self.since + 1)
        if len(least) <= len(told) and told == most[len(most) - len(told) :]:
            return ""
        return f"{self!r}: {_difference(told, most)}"

    # ---- its life

    def start_watching(self) -> None:
        """Returns when a node has created it."""
        raise NotImplementedError

    def hold(self) -> None:
        """Its reader stops reading."""
        raise NotImplementedError

    def let_go(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """End it. Raises what ended it before, if anything did."""
        raise NotImplementedError


def _difference(told: list[pb.Event], expected: list[pb.Event]) -> str:
    for at, (one, other) in enumerate(zip(told, expected, strict=False)):
        if one != other:
            return f"event {at} of {len(expected)} is {one}, not {other}"
    return f"told {len(told)} of {len(expected)}; the first that differs in number: {[*told, *expected][len(told)]}"


class Reader(Log):
    """Its own thread reads. `pause`: how long it rests after each response, in seconds."""

    def __init__(self, client: kvorum.Client, *asked: Key | None, pause: float = 0.0, **options: Any) -> None:
        super().__init__(*asked, **options)  # type: ignore[arg-type]
        self.client, self.pause = client, pause
        self._gate = threading.Event()
        self._gate.set()
        self._thread: threading.Thread | None = None

    def start_watching(self) -> None:
        self.responses, self._cancel = self.client.watch_response(self.key, **self.options)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hold(self) -> None:
        self._gate.clear()

    def let_go(self) -> None:
        self._gate.set()

    def stop(self) -> None:
        if self._thread is not None:
            self._cancel()
            self._gate.set()
            self._thread.join(10.0)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while True:
                self._gate.wait()
                response = next(self.responses, None)
                if response is None:
                    return
                self.take(response)
                if self.pause:
                    time.sleep(self.pause)
        except BaseException as error:
            self.error = error


class Called(Log):
    """The client's watch thread calls; held up, it reads nothing for any of its watches."""

    def __init__(self, client: kvorum.Client, *asked: Key | None, **options: Any) -> None:
        super().__init__(*asked, **options)  # type: ignore[arg-type]
        self.client = client
        self._gate = threading.Event()
        self._gate.set()
        self._number = 0

    def start_watching(self) -> None:
        self._number = self.client.add_watch_callback(self.key, self._call, **self.options)

    def hold(self) -> None:
        self._gate.clear()

    def let_go(self) -> None:
        self._gate.set()

    def stop(self) -> None:
        self._gate.set()
        if self.error is None:
            self.client.cancel_watch(self._number)
        else:
            raise self.error

    def _call(self, what: WatchResponse | errors.KvorumError) -> None:
        self._gate.wait()
        if isinstance(what, errors.KvorumError):
            self.error = what
        else:
            self.take(what)


class Loop:
    """An event loop in a thread, for clients that need one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout: float = 60.0) -> Any:
        """In the loop, while this thread waits."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()


class Awaited(Log):
    """A task of `loop` reads."""

    def __init__(self, loop: Loop, client: aio.Client, *asked: Key | None, **options: Any) -> None:
        super().__init__(*asked, **options)  # type: ignore[arg-type]
        self.loop, self.client = loop, client
        self._gate = asyncio.Event()
        self._gate.set()

    def start_watching(self) -> None:
        self.loop.run(self._start())

    async def _start(self) -> None:
        self._responses = self.client.watch_response(self.key, **self.options)
        await self._responses.start()
        self._task = asyncio.create_task(self._run())

    def hold(self) -> None:
        self.loop.run(self._switch(False))

    def let_go(self) -> None:
        self.loop.run(self._switch(True))

    async def _switch(self, on: bool) -> None:
        if on:
            self._gate.set()
        else:
            self._gate.clear()

    def stop(self) -> None:
        self.loop.run(self._stop())
        if self.error is not None:
            raise self.error

    async def _stop(self) -> None:
        self._responses.cancel()
        self._gate.set()
        await self._task

    async def _run(self) -> None:
        try:
            while True:
                await self._gate.wait()
                self.take(await anext(self._responses))
        except StopAsyncIteration:
            return
        except BaseException as error:
            self.error = error


class Watcher(Reader):
    """A Reader with a client of its own, which watches at once."""

    def __init__(
        self, endpoints: list[str], key: Key, end: Key | None, *, discover: bool = True, **options: Any
    ) -> None:
        client = kvorum.client(endpoints, discover=discover, shuffle=False, timeout=30.0)
        super().__init__(client, key, end, **options)
        try:
            self.start_watching()
        except BaseException:
            client.close()
            raise

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            self.client.close()
