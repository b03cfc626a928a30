"""Many calls, few waits: queue them, and take the answers when they are needed.

    with client.pipeline() as pipe:
        for key, value in rows:
            pipe.put(key, value)
        last = pipe.get("total")
    print(last.result())

Each verb gives a Pending at once. The calls leave together, in as few batches as they fit into, when an answer is
waited for or the client is used otherwise. Each is a request of its own with an outcome of its own: where one depends
on another having succeeded, use a txn.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from kvorum import verbs
from kvorum.core import Call
from kvorum.verbs import Ask

if TYPE_CHECKING:
    from kvorum.sync import Client

P = ParamSpec("P")
T = TypeVar("T")

WINDOW = 4096
"""A pipeline with so many calls unanswered waits for some before it queues another."""


def _verb(verb: Callable[P, Ask[T]]) -> Callable[Concatenate[Pipeline, P], Pending[T]]:
    def method(self: Pipeline, /, *args: P.args, **kwargs: P.kwargs) -> Pending[T]:
        return self.ask(verb(*args, **kwargs))

    functools.update_wrapper(method, verb)
    return method


class Pending(Generic[T]):
    """An answer that may not be there yet."""

    __slots__ = ("_ask", "_call", "_client", "seen")

    def __init__(self, client: Client, ask: Ask[T], call: Call) -> None:
        self._client = client
        self._ask = ask
        self._call = call
        self.seen = False
        """Somebody has looked at the outcome."""

    def done(self) -> bool:
        return self._call.finished

    def wait(self) -> None:
        """Until it is there, at most until the call's own deadline."""
        self._client.wait(self._call)

    def result(self) -> T:
        """The answer, waited for. Raises what the call ended with."""
        self.seen = True
        self.wait()
        if self._call.error is not None:
            raise self._call.error
        return verbs.read(self._ask, self._call.reply)


class Pipeline:
    """See the module. For one thread. Leaving the `with` waits for every answer, and raises the first error among the
    calls whose result() nobody has asked for, so that none passes unnoticed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pending: list[Pending[Any]] = []
        self._window: deque[Pending[Any]] = deque()

    def ask(self, ask: Ask[T]) -> Pending[T]:
        """Queue any verb's Ask."""
        while len(self._window) >= WINDOW:
            self._window.popleft().wait()
        call = self._client.submit(ask.method, ask.request, timeout=ask.timeout, again=ask.again)
        pending = Pending(self._client, ask, call)
        self._pending.append(pending)
        self._window.append(pending)
        return pending

    get = _verb(verbs.get)
    get_response = _verb(verbs.get_response)
    get_prefix = _verb(verbs.get_prefix)
    get_prefix_response = _verb(verbs.get_prefix_response)
    get_range = _verb(verbs.get_range)
    get_range_response = _verb(verbs.get_range_response)
    put = _verb(verbs.put)
    put_if_not_exists = _verb(verbs.put_if_not_exists)
    replace = _verb(verbs.replace)
    delete = _verb(verbs.delete)
    delete_range = _verb(verbs.delete_range)
    delete_prefix = _verb(verbs.delete_prefix)
    transaction = _verb(verbs.transaction)

    def wait(self) -> None:
        """Until every call queued so far is finished."""
        while self._window:
            self._window.popleft().wait()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        self.wait()
        for pending in self._pending:
            if not pending.seen:
                pending.result()
