"""Calls of locks and elections under way: drives each recipe (cluster/recipes.py) from step to step.

A call waits either for an answer of apply or for events of one watch of its own. It ends with its answer, its error,
or the loss of the process that it waits for, as etcd's "connection lost"; when its client goes, it is led out by its
recipe. Then nothing of it is left: no call here, no stream at the watch process. Who observes and doesn't read is
paused at the watch process, as every slow watcher is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from google.protobuf.message import Message

from cluster.recipes import Ask, Gone, More, Reply, Step, Steps, Tell, Watch, failure
from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.errors import Code
from kvorum.wire import Method


class Gateway(Protocol):
    """As much of cluster.gatewayd.Gateway as is needed here."""

    def ask(self, method: int, request: Message | bytes, then: Callable[[int, bytes], None]) -> None: ...
    def watch(self, request: Message, then: Callable[[int, bytes], None]) -> int:
        """`then` is told of each WatchResponse, or with a status that the stream has ended."""
        ...

    def unwatch(self, id: int) -> None: ...
    def pause(self, id: int, paused: bool) -> None: ...
    def reply(self, id: int, response: Message | bytes) -> None: ...
    def send(self, id: int, payload: bytes) -> None: ...
    def end(self, id: int, status: int = 0, text: str = "") -> None: ...


class _Call:
    __slots__ = ("blocked", "going", "id", "recipe", "shown", "watch")

    def __init__(self, id: int, recipe: Steps[None]) -> None:
        self.id, self.recipe = id, recipe
        self.watch = 0
        self.blocked = False  # its client doesn't read: it is told of nothing new
        self.going = False  # its client has gone
        self.shown = False  # and the recipe knows


class RecipeCalls:
    """`lost`: what is said of a call whose apply or watch process has died; it stays what it is."""

    def __init__(self, gateway: Gateway, lost: errors.KvorumError) -> None:
        self._gateway, self._lost = gateway, lost
        self._calls: dict[int, _Call] = {}
        self._leaving = 0

    def __len__(self) -> int:
        """Calls under way, those included whose client has gone."""
        return len(self._calls) + self._leaving

    def begin(self, id: int, recipe: Steps[None]) -> None:
        call = self._calls[id] = _Call(id, recipe)
        self._go(call, None)

    def of_connection(self, connection: int) -> list[int]:
        return [id for id in self._calls if id >> 32 == connection]

    def cancel(self, id: int) -> None:
        """The client has gone. Ids of no call here are ignored."""
        call = self._calls.pop(id, None)
        if call is None:
            return
        self._leaving += 1
        call.going = True
        if call.watch:  # else it waits for an answer, and that comes
            self._throw(call, self._gone(call))

    def stop(self) -> None:
        """End all calls, as this process will; they leave their queues first, if there is time."""
        for id in list(self._calls):
            self._gateway.end(id, errors.Stopped.code, errors.Stopped.text)
            self.cancel(id)

    def block(self, id: int, blocked: bool) -> None:
        """The client reads too slowly, or reads again. Ids of no call here are ignored."""
        call = self._calls.get(id)
        if call is not None:
            call.blocked = blocked
            if call.watch:
                self._gateway.pause(call.watch, blocked)

    # ---- steps

    def _go(self, call: _Call, sent: Message | None) -> None:
        """Send the recipe what its step has come to, and do what can be done at once."""
        self._run(call, lambda: call.recipe.send(sent))

    def _throw(self, call: _Call, error: Exception) -> None:
        self._run(call, lambda: call.recipe.throw(error))

    def _run(self, call: _Call, resume: Callable[[], Step]) -> None:
        try:
            step = resume()
            while True:
                if call.going and not call.shown and not isinstance(step, Ask):
                    step = call.recipe.throw(self._gone(call))
                elif isinstance(step, Tell):
                    self._gateway.send(call.id, step.message.SerializeToString())
                    step = call.recipe.send(None)
                else:
                    break
        except errors.KvorumError as error:
            self._finish(call, error)
        except Gone:
            self._finish(call)
        else:
            self._begin(call, step)

    def _begin(self, call: _Call, step: Step) -> None:
        match step:
            case Ask(method, request):
                self._unwatch(call)
                self._gateway.ask(method, request, lambda status, answer: self._told(call, method, status, answer))
            case Watch(key, range_end, start):
                self._unwatch(call)
                create = pb.WatchCreateRequest(key=key, range_end=range_end, start_revision=start)
                wanted = pb.WatchRequest(create_request=create)
                call.watch = self._gateway.watch(wanted, lambda status, answer: self._seen(call, status, answer))
                if call.blocked:
                    self._gateway.pause(call.watch, True)
            case Reply(message):
                call.recipe.close()
                self._finish(call, answer=message)
            case _:
                assert isinstance(step, More), step
                assert call.watch

    def _gone(self, call: _Call) -> Gone:
        call.shown = True
        return Gone()

    def _finish(self, call: _Call, error: errors.KvorumError | None = None, answer: Message | None = None) -> None:
        self._unwatch(call)
        if call.going:
            self._leaving -= 1
            return
        del self._calls[call.id]
        if answer is not None:
            self._gateway.reply(call.id, answer)
        elif error is not None:
            self._gateway.end(call.id, error.code, error.text)

    def _unwatch(self, call: _Call) -> None:
        if call.watch:
            id, call.watch = call.watch, 0
            self._gateway.unwatch(id)

    # ---- what came of them

    def _told(self, call: _Call, method: Method, status: int, answer: bytes) -> None:
        if status:
            self._throw(call, self._failure(status, answer))
        else:
            self._go(call, wire.METHODS[method].response.FromString(answer))

    def _seen(self, call: _Call, status: int, answer: bytes) -> None:
        if status:
            call.watch = 0  # it is no more
            self._throw(call, self._failure(status, answer))
            return
        seen = pb.WatchResponse.FromString(answer)
        if seen.canceled:
            self._unwatch(call)
            if not seen.compact_revision:
                self._throw(call, failure(seen.cancel_reason))
                return
        if seen.events or seen.canceled:
            self._go(call, seen)

    def _failure(self, status: int, answer: bytes) -> errors.KvorumError:
        text = answer.decode("utf-8", "replace")
        lost = (status, text) == (self._lost.code, self._lost.text)
        return errors.KvorumError(text, self._lost.code if lost else Code.UNKNOWN)
