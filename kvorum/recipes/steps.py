"""What a recipe wants done, apart from how it is waited for: its decisions are written once, for both clients.

    Steps = a generator; it yields a Step and is sent the answer, or thrown what went wrong
        Ask      a call (kvorum.verbs): its answer
        Grant    a lease that the client keeps alive: the lease
        Watched  the first news of some keys: the WatchResponse, or None if there was none in time
        None     nothing: here a task that was cancelled in the middle of the step before is told so

run() does them with the synchronous client, kvorum.recipes.aiosteps.run() with the asyncio client. Whatever stops a
recipe in the middle, an error, KeyboardInterrupt or a cancellation, is thrown into it at the step where it waits; what
it yields then, in its `finally`, is what takes back what it had begun.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol, TypeVar

from kvorum import errors, verbs
from kvorum.sync import Client
from kvorum.verbs import Ask
from kvorum.watches import WatchOptions, WatchTimedOut

T = TypeVar("T")


class KeptLease(Protocol):
    """What recipes need of a lease of either client. `ttl`: seconds."""

    id: int
    ttl: int

    @property
    def lost(self) -> bool: ...

    def let_go(self) -> None: ...


class Grant(NamedTuple):
    """A lease of `ttl` seconds; `on_lost` is called with it if it could not be kept."""

    ttl: int
    on_lost: Callable[[Any], None] | None = None


class Watched(NamedTuple):
    """The first response of a new watch, within `timeout` seconds after it was created; None waits for ever."""

    key: bytes
    timeout: float | None
    options: WatchOptions


Step = Ask[Any] | Grant | Watched | None
Steps = Generator[Step, Any, T]


def run(client: Client, steps: Steps[T]) -> T:
    """Do it all, in this thread."""
    resume, what = steps.send, None
    while True:
        try:
            step = resume(what)
        except StopIteration as done:
            returned: T = done.value
            return returned
        try:
            resume, what = steps.send, _do(client, step)
        except BaseException as error:
            resume, what = steps.throw, error


def _do(client: Client, step: Step) -> Any:
    if isinstance(step, Ask):
        return client.ask(step)
    if isinstance(step, Grant):
        return client.lease(step.ttl, on_lost=step.on_lost)
    if isinstance(step, Watched):
        try:
            return client.watch_once_response(step.key, step.timeout, **step.options)
        except WatchTimedOut:
            return None
        except StopIteration:  # an end that a generator must not be thrown
            raise RuntimeError("this client is closed") from None
    return None


def end(lease: KeptLease) -> Steps[None]:
    """Revoke a lease of our own. If nobody can be reached it ends by itself, so that is no error."""
    lease.let_go()
    with contextlib.suppress(errors.LeaseNotFound, errors.Unavailable, errors.Ambiguous):
        yield verbs.revoke_lease(lease.id)
