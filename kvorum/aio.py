"""The asyncio client: the same core as the synchronous one, driven by the event loop.

    async with kvorum.aio.client("127.0.0.1:2381") as client:
        await client.put("greeting", "hello")
        async with client.watch_prefix("greet") as events:
            async for event in events: ...

All calls that tasks make in one iteration of the loop leave as one batch. ZeroMQ's file descriptors are watched by the
loop itself; no thread is started. A client belongs to the loop in which it was first used.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from random import Random
from typing import Any, BinaryIO, Concatenate, Generic, ParamSpec, TypeVar, Unpack

from kvorum import endpoints as endpoints_
from kvorum import errors, results, verbs
from kvorum import etcd_pb2 as pb
from kvorum.aiolease import Keeper, Lease
from kvorum.core import DIAL_SECONDS, Call, Core
from kvorum.core import Session as CallSession
from kvorum.errors import KvorumError
from kvorum.link import Core as AnyCore
from kvorum.link import Lines, ListeningLines
from kvorum.link import Session as AnySession
from kvorum.results import Event, KVMetadata, WatchResponse
from kvorum.snapshots import Taking
from kvorum.streaming import Stream
from kvorum.sync import TIMEOUT_SECONDS, positive
from kvorum.txn import Key, Transactions, Txn, prefix_range
from kvorum.verbs import Ask
from kvorum.watcher import CLOSED
from kvorum.watches import WatchOptions
from kvorum.watching import Given, State, Watch, WatchCore
from kvorum.watching import Session as WatchSession

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=AnySession)

RELEARN_SECONDS = 1.0


def _verb(verb: Callable[P, Ask[T]]) -> Callable[Concatenate[Client, P], Coroutine[Any, Any, T]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self.ask(verb(*args, **kwargs))

    functools.update_wrapper(method, verb)
    return method


def _parts(verb: Callable[P, Ask[T]]) -> Callable[Concatenate[Client, P], AsyncGenerator[T, None]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        return self.read_stream(verb(*args, **kwargs))

    functools.update_wrapper(method, verb)
    return method


def _pairs(
    verb: Callable[P, Ask[pb.RangeResponse]],
) -> Callable[Concatenate[Client, P], AsyncGenerator[tuple[bytes, KVMetadata], None]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[tuple[bytes, KVMetadata], None]:
        return pairs(self.read_stream(verb(*args, **kwargs)))

    async def pairs(parts: AsyncGenerator[pb.RangeResponse, None]) -> AsyncGenerator[tuple[bytes, KVMetadata], None]:
        async with aclosing(parts):
            async for part in parts:
                for pair in results.pairs(part):
                    yield pair

    functools.update_wrapper(method, verb)
    return method


class _Runner(Generic[S]):
    """A core in an event loop: pumped when one of its sockets is readable, its time has come, or soon() was said."""

    def __init__(self, core: AnyCore[S], deliver: Callable[[], None], lines: type[Lines[S]] = Lines) -> None:
        self._core = core
        self._deliver = deliver
        self._lines: Lines[S] = lines(core, self._watch, self._unwatch)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop, which must always be the same one."""
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        elif self._loop is not running:
            raise RuntimeError("this client was first used in another event loop: make one for each")
        return running

    def soon(self) -> None:
        """Pump once before the loop next waits, however often this is said until then."""
        if not self._scheduled:
            self._scheduled = True
            self.loop().call_soon(self._turn)

    def close(self) -> None:
        self._closed = True
        self._lines.close()
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self, fd: int) -> None:
        self.loop().add_reader(fd, self._readable, fd)

    def _unwatch(self, fd: int) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.remove_reader(fd)

    def _readable(self, fd: int) -> None:
        self._lines.readable(fd)
        self._turn()

    def _turn(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        loop = self.loop()
        now = loop.time()
        self._lines.pump(now)
        self._deliver()
        wait = self._lines.wait(now)
        if wait == float("inf"):
            return
        at = now + wait
        if self._timer is None or at < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(at, self._time)

    def _time(self) -> None:
        self._timer = None
        self._turn()


class Client:
    """A connection to a kvorum cluster, for one event loop. Close it, or use it in an `async with`.

    Its methods are those of kvorum.sync.Client, to be awaited; arguments, answers and errors are the same
    (kvorum.verbs). A task that is cancelled while it waits for a write does not know what became of it.

    Args:
      endpoints, timeout, discover, shuffle, dial_timeout: as for kvorum.sync.Client.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] = "127.0.0.1:2381",
        *,
        timeout: float = TIMEOUT_SECONDS,
        discover: bool = True,
        shuffle: bool = True,
        dial_timeout: float = DIAL_SECONDS,
    ) -> None:
        self.timeout = positive(timeout)
        rng = Random()
        where = endpoints_.Endpoints(endpoints_.parse(endpoints), rng, shuffle=shuffle)
        self._core = Core(where, rng, discover=discover, dial_seconds=positive(dial_timeout))
        self._runner: _Runner[CallSession] = _Runner(self._core, self._deliver)
        self._watcher = _Watcher(self, discover)
        self._keeper = Keeper(self.ask)
        self._closed = False

    async def ask(self, ask: Ask[T]) -> T:
        """Send any verb's Ask and wait for its answer."""
        return verbs.read(ask, await self._answer(ask, ask.again))

    async def _answer(self, ask: Ask[T], again: bool, stream: Stream | None = None) -> bytes:
        if self._closed:
            raise RuntimeError("this client is closed")
        loop = self._runner.loop()
        now = loop.time()
        timeout = self.timeout if ask.timeout is None else positive(ask.timeout)
        future: asyncio.Future[None] = loop.create_future()
        settle = functools.partial(_settle, future)
        call = Call(ask.method, ask.request, now + timeout, settle, again=again, stream=stream)
        self._core.submit(call, now)
        self._runner.soon()
        try:
            await future
        except asyncio.CancelledError:
            self._core.forget(call)
            raise
        if call.error is not None:
            raise call.error
        return call.reply

    async def read_stream(self, ask: Ask[T]) -> AsyncGenerator[T, None]:
        """Send the Ask of a verb that is answered in parts, and read these."""
        stream, first = Stream(), True
        try:
            while True:
                part = await self._answer(ask, first, stream)
                if stream.ended:
                    return
                yield verbs.read(ask, part)
                first = False
        finally:
            if not (stream.over or self._closed):
                self._core.close_stream(stream)
                self._runner.soon()

    get = _verb(verbs.get)
    get_response = _verb(verbs.get_response)
    get_prefix = _verb(verbs.get_prefix)
    get_prefix_response = _verb(verbs.get_prefix_response)
    get_range = _verb(verbs.get_range)
    get_range_response = _verb(verbs.get_range_response)
    get_all = _verb(verbs.get_all)
    get_all_response = _verb(verbs.get_all_response)
    stream = _parts(verbs.stream)
    stream_range = _pairs(verbs.stream_range)
    stream_prefix = _pairs(verbs.stream_prefix)
    stream_all = _pairs(verbs.stream_all)
    put = _verb(verbs.put)
    put_if_not_exists = _verb(verbs.put_if_not_exists)
    replace = _verb(verbs.replace)
    delete = _verb(verbs.delete)
    delete_range = _verb(verbs.delete_range)
    delete_prefix = _verb(verbs.delete_prefix)
    transaction = _verb(verbs.transaction)
    compact = _verb(verbs.compact)
    lease_grant = _verb(verbs.lease_grant)
    revoke_lease = _verb(verbs.revoke_lease)
    refresh_lease = _verb(verbs.refresh_lease)
    get_lease_info = _verb(verbs.get_lease_info)
    leases = _verb(verbs.leases)
    leases_response = _verb(verbs.leases_response)
    status = _verb(verbs.status)
    status_response = _verb(verbs.status_response)
    members = _verb(verbs.members)
    member_list = _verb(verbs.member_list)
    alarm_response = _verb(verbs.alarm_response)
    list_alarms = _verb(verbs.list_alarms)
    create_alarm = _verb(verbs.create_alarm)
    disarm_alarm = _verb(verbs.disarm_alarm)
    hash_kv = _verb(verbs.hash_kv)
    move_leader = _verb(verbs.move_leader)
    hello = _verb(verbs.hello)

    transactions = Transactions()

    def txn(self) -> Txn[Coroutine[Any, Any, tuple[bool, list[object]]]]:
        """A transaction to be written down part by part; `await` its commit() (kvorum.txn)."""
        return Txn(self.transaction)

    async def lease(
        self,
        ttl: int,
        lease_id: int | None = None,
        *,
        on_lost: Callable[[Lease], None] | None = None,
        timeout: float | None = None,
    ) -> Lease:
        """Make a lease of `ttl` seconds that this client keeps alive; `async with` it to have it revoked at the end.

        Args:
          on_lost: called once, by the event loop, if it could not be kept (kvorum.aiolease).
        Raises:
          LeaseExists, LeaseTTLTooLarge.
        """
        return await self._keeper.grant(ttl, lease_id, on_lost, timeout)

    async def snapshot(self, file: BinaryIO) -> int:
        """Write all keys, their history and the leases of the connected node into `file`, as a snapshot for etcd's
        tools, its checksum at the end. Returns its size in bytes.

        The client's timeout is for each piece. After an error the file holds a part of it (kvorum.snapshots).
        """
        taking = Taking()
        try:
            while not taking.done:
                file.write(taking.take(await self.ask(taking.next())))
        except BaseException:
            cancel = taking.cancel()
            if cancel is not None and not self._closed:
                now = self._runner.loop().time()
                self._core.submit(Call(cancel.method, cancel.request, now + self.timeout), now)
                self._runner.soon()
            raise
        return taking.bytes

    # ---- watches

    def watch_response(self, key: Key, **options: Unpack[WatchOptions]) -> Responses:
        """A watch to be read response by response: all events of a revision come together. See kvorum.watches."""
        return Responses(self._watcher, Watch(key, **options))

    def watch(self, key: Key, **options: Unpack[WatchOptions]) -> Events:
        """A watch to be read event by event: an `async with` starts and ends it, an `async for` reads it."""
        return Events(self.watch_response(key, **options))

    def watch_prefix_response(self, prefix: Key, **options: Unpack[WatchOptions]) -> Responses:
        """Like watch_response(), of every key that starts with `prefix`."""
        key, options["range_end"] = prefix_range(prefix)
        return self.watch_response(key, **options)

    def watch_prefix(self, prefix: Key, **options: Unpack[WatchOptions]) -> Events:
        """Like watch(), of every key that starts with `prefix`."""
        key, options["range_end"] = prefix_range(prefix)
        return self.watch(key, **options)

    def request_progress(self) -> None:
        """Have each watch told how far it is; see kvorum.watches."""
        self._watcher.ask_progress()

    # ---- the end

    @property
    def via(self) -> str:
        """The endpoint that is connected, or would be next."""
        return self._core.via

    async def close(self) -> None:
        """Let the connections go. Calls and watches under way end as they do when a connection is lost."""
        if self._closed:
            return
        self._closed = True
        self._keeper.close()
        self._watcher.close()
        self._core.end(asyncio.get_running_loop().time(), "the client was closed")
        self._deliver()
        self._runner.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _deliver(self) -> None:
        finished = self._core.finished
        while finished:
            call = finished.popleft()
            if call.notify is not None:
                call.notify(call)


def _settle(future: asyncio.Future[None], _: Call) -> None:
    if not future.done():
        future.set_result(None)


class _Watcher:
    """The watches of one client."""

    def __init__(self, client: Client, discover: bool) -> None:
        self._client = client
        self._discover = discover
        self._core = WatchCore(Random())
        self._runner: _Runner[WatchSession] = _Runner(self._core, self._deliver, ListeningLines)
        self._takers: dict[Watch, Callable[[Given], None]] = {}
        self._learning: asyncio.Task[None] | None = None

    async def add(self, watch: Watch, take: Callable[[Given], None]) -> None:
        loop = self._runner.loop()
        if self._core.wants_members:
            await self._learn()
        created: asyncio.Future[None] = loop.create_future()

        def first(given: Given) -> None:
            if given.what is None:
                self._takers[watch] = take
            if created.done():
                return
            if isinstance(given.what, KvorumError):
                created.set_exception(given.what)
            else:
                created.set_result(None)

        self._takers[watch] = first
        self._core.add(watch, loop.time())
        self._runner.soon()
        timeout = self._client.timeout
        try:
            async with asyncio.timeout(timeout):  # wait_for() would lose a cancellation that comes with the answer
                await created
        except TimeoutError:
            self.cancel(watch)
            trouble = self._core.endpoints.trouble()
            text = f"the watch was not created within {timeout:g} s" + (f": {trouble}" if trouble else "")
            raise errors.Unreachable(text) from None
        except asyncio.CancelledError:
            self.cancel(watch)
            raise

    def cancel(self, watch: Watch) -> None:
        self._takers.pop(watch, None)
        self._core.cancel(watch, self._runner.loop().time())
        self._runner.soon()

    def ask_progress(self) -> None:
        self._core.ask_progress(self._runner.loop().time())
        self._runner.soon()

    def caught_up(self, watch: Watch) -> None:
        self._core.caught_up(watch, self._runner.loop().time())
        self._runner.soon()

    def close(self) -> None:
        if self._learning is not None:
            self._learning.cancel()
        self._runner.close()
        for watch, take in list(self._takers.items()):
            take(Given(watch, CLOSED, 0))
        self._takers.clear()

    async def _learn(self, timeout: float | None = None) -> None:
        hello = await self._client.hello(timeout=timeout)
        self._core.learn(hello, self._client.via, others=self._discover)

    def _deliver(self) -> None:
        given = self._core.given
        while given:
            item = given.popleft()
            take = self._takers.get(item.watch)
            if isinstance(item.what, KvorumError):
                self._takers.pop(item.watch, None)
            if take is not None:
                take(item)
        if self._core.wants_members and self._takers and self._learning is None:
            self._learning = self._runner.loop().create_task(self._relearn())

    async def _relearn(self) -> None:
        """No node that we know answers: perhaps the cluster has others by now."""
        try:
            while self._core.wants_members:
                try:
                    await self._learn(RELEARN_SECONDS)
                except KvorumError:  # not now: the watches wait, as they do for any node
                    await asyncio.sleep(RELEARN_SECONDS)
        finally:
            self._learning = None
        self._runner.soon()


class Responses(AsyncIterator[WatchResponse]):
    """A watch, read response by response.

    It starts with start(), `async with` or the first `async for`, which return when a node has created it, and ends
    with cancel(), with the end of the `async with`, or by raising what ended it (Compacted, for one).
    """

    def __init__(self, watcher: _Watcher, watch: Watch) -> None:
        self._watcher = watcher
        self._watch = watch
        self._started = False
        self._arrived: deque[Given] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._over: KvorumError | None = None
        self._cancelled = False

    async def start(self) -> None:
        """
        Raises:
          Unreachable: no node created it within the client's timeout.
          Refused: a node said no.
        """
        if not self._started:
            self._started = True
            await self._watcher.add(self._watch, self._take)

    def cancel(self) -> None:
        """End the watch. What has arrived and was not read is forgotten."""
        if not self._cancelled:
            self._cancelled = True
            if self._started:
                self._watcher.cancel(self._watch)
            self._wake()

    async def __aenter__(self) -> Responses:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def __anext__(self) -> WatchResponse:
        await self.start()
        while not self._arrived and not self._cancelled and self._over is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._cancelled or self._over is CLOSED:
            raise StopAsyncIteration
        if not self._arrived:
            assert self._over is not None
            raise self._over
        _, what, size = self._arrived.popleft()
        assert isinstance(what, WatchResponse)
        self._watch.read_bytes += size
        if self._watch.state is State.PAUSED and not self._arrived:
            self._watcher.caught_up(self._watch)
        return what

    def _take(self, given: Given) -> None:
        if isinstance(given.what, KvorumError):
            self._over = given.what
        elif given.what is not None:
            self._arrived.append(given)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Events(AsyncIterator[Event]):
    """A watch, read event by event: see Responses."""

    def __init__(self, responses: Responses) -> None:
        self._responses = responses
        self._events: deque[Event] = deque()

    def start(self) -> Awaitable[None]:
        return self._responses.start()

    def cancel(self) -> None:
        self._responses.cancel()
        self._events.clear()

    async def __aenter__(self) -> Events:
        await self._responses.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def __anext__(self) -> Event:
        while not self._events:
            self._events.extend((await self._responses.__anext__()).events)
        return self._events.popleft()


client = Client
"""`kvorum.aio.client(...)`, beside `kvorum.client(...)`."""
