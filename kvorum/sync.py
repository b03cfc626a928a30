"""The synchronous client: any thread calls, whoever waits does the I/O.

    one thread      call ──▶ it takes the baton, sends, polls, reads, answers itself: no other thread, no hand-over
    several         the first holds the baton and serves all; the others put their calls into the inbox, nudge it if it
                    sleeps, and park. What gathers in the inbox while it works leaves as one batch.

The *baton* is a lock: only its holder touches the core and the sockets. The inbox is a deque, whose append is atomic,
so putting a call there needs no lock. Nothing is left lying: a thread registers as parked before it tries for the baton
a last time, and a holder looks at the parked threads after letting the baton go, so either the thread gets the baton or
the holder sees it and wakes it. The holder sets `_sleeping` before it looks into the inbox a last time, and a caller
looks at `_sleeping` after its append, so either the holder sees the call or the caller sees the sleeper and nudges it.

Deadlines of parked threads' calls are the core's business, like everyone's; whoever holds the baton keeps them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from random import Random
from time import monotonic
from typing import BinaryIO, Concatenate, ParamSpec, TypeVar

from kvorum import endpoints as endpoints_
from kvorum import errors, results, verbs
from kvorum import etcd_pb2 as pb
from kvorum.core import DIAL_SECONDS, Call, Core, Session
from kvorum.lease import Keeper, Lease
from kvorum.link import Lines
from kvorum.nudge import Nudge
from kvorum.pipeline import Pipeline
from kvorum.results import KVMetadata, Member
from kvorum.snapshots import Taking
from kvorum.streaming import Stream
from kvorum.txn import Transactions, Txn
from kvorum.verbs import Ask
from kvorum.watcher import Watcher
from kvorum.watches import Watches
from kvorum.watching import Watch

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_SECONDS = 10.0
"""How long a call waits if nothing else is said: a little longer than a node, which gives up after 7 s and says why."""
CANCEL_SECONDS = 0.2
"""How long a snapshot that has failed waits until the node knows."""
SUBMITTED_MAX = 100_000
"""Calls that may be under way through submit() at once."""


def _verb(verb: Callable[P, Ask[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.ask(verb(*args, **kwargs))

    functools.update_wrapper(method, verb)
    return method


def _parts(verb: Callable[P, Ask[T]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self.read_stream(verb(*args, **kwargs))

    functools.update_wrapper(method, verb)
    return method


def _pairs(
    verb: Callable[P, Ask[pb.RangeResponse]],
) -> Callable[Concatenate[Client, P], Iterator[tuple[bytes, KVMetadata]]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[tuple[bytes, KVMetadata]]:
        parts = self.read_stream(verb(*args, **kwargs))
        return (pair for part in parts for pair in results.pairs(part))

    functools.update_wrapper(method, verb)
    return method


class Client(Watches):
    """A connection to a kvorum cluster. Thread-safe; close it or use it in a `with`.

    Connects when the first call needs it, to one endpoint at a time, and moves on when that endpoint fails. Reads are
    asked again elsewhere until their deadline; writes that left are not (see kvorum.errors for what you then know).
    The methods without a body are described in kvorum.verbs.

    Args:
      endpoints: "host:port", "tcp://host:port" or "ipc://path", one, several by comma, or a list.
      timeout: seconds a call waits for its answer if it doesn't say itself.
      discover: also use the other members that a node tells of. Say False to speak to the listed endpoints only.
      shuffle: start with any of the endpoints, so that clients spread. Say False to start with the first.
      dial_timeout: seconds until an endpoint that doesn't answer is given up for the next.
    Raises:
      ValueError: an endpoint is not of that form, or timeout is not positive.
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
        self._poll = select.poll()
        self._lines: Lines[Session] = Lines(
            self._core, lambda fd: self._poll.register(fd, select.POLLIN), self._poll.unregister
        )
        self._nudge = Nudge()
        self._poll.register(self._nudge.fd, select.POLLIN)
        self._baton = threading.Lock()
        self._inbox: deque[Call] = deque()
        self._abandoned: deque[Stream] = deque()  # by their readers, for whoever holds the baton
        self._parked: dict[Call, None] = {}  # insertion order: whoever waits longest is promoted first
        self._sleeping = False
        self._delivering = 0  # the thread that runs a callback now
        self._closed = False
        self._pid = os.getpid()
        self._discover = discover
        self._starting = threading.Lock()
        self._watcher: Watcher | None = None
        self._keeper: Keeper | None = None
        self._callbacks: dict[int, Watch] = {}
        self._last_watch_id = 0

    # ---- calls

    def ask(self, ask: Ask[T]) -> T:
        """Send any verb's Ask and wait for its answer."""
        if self._closed:
            raise RuntimeError("this client is closed")
        timeout = self.timeout if ask.timeout is None else positive(ask.timeout)
        call = Call(ask.method, ask.request, monotonic() + timeout, again=ask.again)
        self._inbox.append(call)
        self.wait(call)
        if call.error is not None:
            raise call.error
        return verbs.read(ask, call.reply)

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
    member_list = _verb(verbs.member_list)
    alarm_response = _verb(verbs.alarm_response)
    list_alarms = _verb(verbs.list_alarms)
    create_alarm = _verb(verbs.create_alarm)
    disarm_alarm = _verb(verbs.disarm_alarm)
    hash_kv = _verb(verbs.hash_kv)
    move_leader = _verb(verbs.move_leader)
    hello = _verb(verbs.hello)

    transactions = Transactions()

    @property
    def members(self) -> list[Member]:
        """The members of the cluster, as a quorum knows them."""
        return self.ask(verbs.members())

    def txn(self) -> Txn[tuple[bool, list[object]]]:
        """A transaction to be written down part by part and committed (kvorum.txn)."""
        return Txn(self.transaction)

    def lease(
        self,
        ttl: int,
        lease_id: int | None = None,
        *,
        on_lost: Callable[[Lease], None] | None = None,
        timeout: float | None = None,
    ) -> Lease:
        """Make a lease of `ttl` seconds that this client keeps alive; use it in a `with` to have it revoked at the end.

        Args:
          on_lost: called once, in the client's lease thread, if it could not be kept (kvorum.lease).
        Raises:
          LeaseExists, LeaseTTLTooLarge.
        """
        with self._starting:
            if self._keeper is None:
                self._keeper = Keeper(self)
        return self._keeper.grant(ttl, lease_id, on_lost, timeout)

    def read_stream(self, ask: Ask[T]) -> Iterator[T]:
        """Send the Ask of a verb that is answered in parts, and read these."""
        timeout = self.timeout if ask.timeout is None else positive(ask.timeout)
        stream, first = Stream(), True
        try:
            while True:
                if self._closed:
                    raise RuntimeError("this client is closed")
                call = Call(ask.method, ask.request, monotonic() + timeout, again=first, stream=stream)
                self._inbox.append(call)
                self.wait(call)
                if call.error is not None:
                    raise call.error
                if stream.ended:
                    return
                yield verbs.read(ask, call.reply)
                first = False
        finally:
            if not (stream.over or self._closed or self._pid != os.getpid()):
                self._abandoned.append(stream)
                self.drive()  # if somebody else has the baton, he does

    def snapshot(self, file: BinaryIO) -> int:
        """Write all keys, their history and the leases of the connected node into `file`, as a snapshot for etcd's
        tools, its checksum at the end. Returns its size in bytes.

        The client's timeout is for each piece. After an error the file holds a part of it (kvorum.snapshots).
        """
        taking = Taking()
        try:
            while not taking.done:
                file.write(taking.take(self.ask(taking.next())))
        except BaseException:
            cancel = taking.cancel()
            if cancel is not None and not self._closed:
                self.submit(cancel.method, cancel.request)
                self.drive(CANCEL_SECONDS)
            raise
        return taking.bytes

    # ---- many calls from one thread

    def submit(
        self,
        method: int,
        request: bytes,
        callback: Callable[[Call], None] | None = None,
        *,
        timeout: float | None = None,
        again: bool = False,
    ) -> Call:
        """Queue a request; `callback(call)` is run when it is finished, by whoever drives the client then.

        The lowest and fastest way in: bytes in, bytes out. `call.error` is None or what went wrong, `call.reply` the
        answer's bytes. Callbacks may submit, and must not wait for other calls. What is submitted leaves with the next
        drive() or other call, at most one batch for all that have gathered.

        Args:
          request: the encoded request message of `method` (kvorum.wire.METHODS).
          again: it changes nothing and may be sent twice.
        Raises:
          Unavailable: SUBMITTED_MAX calls are under way; drive() first.
        """
        if len(self._inbox) + self._core.load >= SUBMITTED_MAX:
            raise errors.Unavailable("kvorum: too many calls are under way here", errors.Code.RESOURCE_EXHAUSTED)
        call = Call(method, request, monotonic() + (timeout or self.timeout), callback, again=again)
        self._inbox.append(call)
        if self._sleeping:
            self._wake()
        return call

    def wait(self, call: Call) -> None:
        """Until `call`, which submit() gave, is finished. Its callback, if it has one, may still be running then."""
        if call.finished:
            return
        if self._baton.acquire(False):
            self._lead(call)
        else:
            self._park(call)

    def pipeline(self) -> Pipeline:
        """Queue many calls and take their answers later (kvorum.pipeline)."""
        return Pipeline(self)

    def drive(self, timeout: float = 0.0) -> int:
        """Send what is queued, and wait up to `timeout` seconds until something is finished. Returns how many were."""
        until = monotonic() + timeout
        if not self._baton.acquire(timeout=max(timeout, 0)):
            return 0
        try:
            done = self._turn()
            while not done and (left := until - monotonic()) > 0:
                self._sleep(left)
                done = self._turn()
            return done
        finally:
            self._baton.release()
            self._promote()

    @property
    def inflight(self) -> int:
        """Calls that are not finished; of another thread's doing too."""
        return len(self._inbox) + self._core.load

    # ---- the end

    @property
    def via(self) -> str:
        """The endpoint that is connected, or would be next."""
        return self._core.via

    def close(self) -> None:
        """Let the connections go. Calls under way in other threads end as they do when a connection is lost."""
        if self._closed:
            return
        if self._watcher is not None:
            self._watcher.close()
        if self._keeper is not None:
            self._keeper.close()
        self._closed = True
        self._wake()
        with self._baton:
            try:
                self._core.end(monotonic(), "the client was closed")
                self._deliver()
            finally:
                self._lines.close()
                self._nudge.close()
        self._promote()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _carrier(self) -> Watcher:
        with self._starting:
            if self._watcher is None:
                self._watcher = Watcher(self._hello_via, discover=self._discover)
            return self._watcher

    def _hello_via(self, timeout: float) -> tuple[pb.HelloResponse, str]:
        hello = self.hello(timeout=timeout)
        return hello, self.via

    # ---- baton, inbox, parking

    def _park(self, call: Call) -> None:
        """Until `call` is finished: parked, or holding the baton if it becomes free."""
        if self._delivering == threading.get_ident():
            self._core.forget(call)
            raise RuntimeError("a callback must not wait for a call: it would wait for itself")
        parked = threading.Lock()
        parked.acquire()
        call.parked = parked
        self._parked[call] = None
        try:
            while not call.finished:
                if self._baton.acquire(False):
                    self._lead(call)
                    break
                if self._sleeping:
                    self._wake()
                parked.acquire()  # until finished, or promoted
        except BaseException:
            self._core.forget(call)
            self._parked.pop(call, None)
            self._promote()  # in case it was us who had been promoted
            raise
        self._parked.pop(call, None)

    def _lead(self, call: Call) -> None:
        """Holding the baton: serve everyone until `call` is finished."""
        try:
            self._turn()
            while not call.finished:
                self._sleep(float("inf"))
                self._turn()
        except BaseException:
            self._core.forget(call)
            raise
        finally:
            self._parked.pop(call, None)
            self._baton.release()
            self._promote()

    def _promote(self) -> None:
        """The baton is free: wake one of those who wait for more than it has got, if any do."""
        if self._parked:
            for call in list(self._parked):
                if not call.finished:
                    _unpark(call)
                    return

    def _turn(self) -> int:
        """Holding the baton: everything that can be done without waiting. Returns how many calls were finished."""
        if self._pid != os.getpid():
            raise RuntimeError("a client cannot be used in a forked child: make a new one there")
        core, inbox = self._core, self._inbox
        now = monotonic()
        while inbox:
            core.submit(inbox.popleft(), now)
        while self._abandoned:
            core.close_stream(self._abandoned.popleft())
        if self._closed:
            core.end(now, "the client was closed")
        else:
            self._lines.pump(now)
        return self._deliver()

    def _deliver(self) -> int:
        finished, done = self._core.finished, 0
        while finished:
            call = finished.popleft()
            done += 1
            if call.parked is not None:
                _unpark(call)
            if call.notify is not None:
                self._delivering = threading.get_ident()
                try:
                    call.notify(call)
                finally:
                    self._delivering = 0
        return done

    def _sleep(self, longest: float) -> None:
        """Until a file descriptor has news, the core's time has come, or `longest` seconds have passed."""
        self._sleeping = True
        try:
            if self._inbox:
                return
            wait = min(self._lines.wait(monotonic()), longest)
            for fd, _ in self._poll.poll(None if wait == float("inf") else wait * 1000 + 0.999):
                if fd == self._nudge.fd:
                    self._nudge.drain()
                else:
                    self._lines.readable(fd)
        finally:
            self._sleeping = False

    def _wake(self) -> None:
        self._sleeping = False
        self._nudge.poke()


def _unpark(call: Call) -> None:
    assert call.parked is not None
    with contextlib.suppress(RuntimeError):  # woken already
        call.parked.release()


def positive(seconds: float) -> float:
    """
    Raises:
      ValueError: a timeout that is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"a timeout is a positive number of seconds, not {seconds!r}")
    return seconds


client = Client
"""`kvorum.client(...)`, as python-etcd3 has it."""
