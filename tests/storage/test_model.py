"""The store against the model: random requests, and afterwards everything that can be asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from kvorum import errors
from kvorum import etcd_pb2 as pb
from storage import requests
from storage.engine import Engine
from storage.keyspace import Change, Keyspace, Result
from tests.storage.model import Model
from tests.storage.requests_at_random import LEASES, Dice
from tests.storage.support import METHOD_OF, answer, entry, finished


def attempt(act: Callable[..., Any], *arguments: Any) -> Any:
    """What came of it: the answer, or the class and text of the error."""
    try:
        return act(*arguments)
    except errors.KvorumError as error:
        return type(error), error.text


def modelled(model: Model, request: Any) -> Any:
    def act() -> Any:
        requests.parse(METHOD_OF[type(request)], request.SerializeToString())  # what is refused unseen
        return model.do(request)

    return attempt(act)


def told(changes: list[Change]) -> list[pb.Event]:
    found = []
    for change in changes:
        event = pb.Event.FromString(change.event)
        assert event.kv.mod_revision == change.revision
        if change.prev:
            event.prev_kv.ParseFromString(change.prev)
        found.append(event)
    return found


class Trial:
    """A store and a model that are told the same."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.dice, self.chance = Dice(seed, alarms=True), random.Random(seed)
        self.model, self.keyspace = Model(), Keyspace(engine)
        self.index = 0

    def write(self) -> None:
        """A turn of a few entries of a few requests each; then compare each answer and the changes."""
        turn = self.keyspace.begin()
        before = self.model.revision
        asked: list[tuple[Any, Result, Any]] = []
        for _ in range(self.chance.randint(1, 3)):
            self.index += 1
            wanted = []
            for _ in range(self.chance.choice([1, 1, 2, 5])):
                self.dice.revision = self.model.revision
                wanted.append(self.dice.write())
            outcome = turn.apply(self.index, 3, entry(self.index, *wanted))
            for request, result in zip(wanted, outcome.results, strict=True):
                asked.append((request, result, modelled(self.model, request)))
        changes = turn.commit()
        for request, result, expected in asked:
            assert attempt(answer, request, result) == expected, request
        assert self.keyspace.applied == (self.index, 3)
        assert (self.keyspace.revision, self.keyspace.compacted) == (self.model.revision, self.model.compacted)
        self.leases_agree()
        events = [event for main in range(before + 1, self.model.revision + 1) for event in self.model.events[main]]
        assert told(changes) == events

    def read(self) -> None:
        self.dice.revision = self.model.revision
        request = self.dice.range() if self.dice.maybe(0.8) else self.dice.read_only_txn()
        result = finished(self.keyspace.read(METHOD_OF[type(request)], request.SerializeToString()))
        assert attempt(answer, request, result) == modelled(self.model, request), request

    def history(self) -> None:
        first = self.chance.randint(max(self.model.compacted - 1, 1), self.model.revision + 1)
        assert attempt(self._history, first) == attempt(self.model.history, first)

    def _history(self, first: int) -> list[pb.Event]:
        return told(self.keyspace.history(first, self.model.revision, 1 << 30))

    def leases_agree(self) -> None:
        leases = self.keyspace.leases
        assert leases.granted == self.model.leases
        for lease in LEASES:
            assert leases.keys(lease) == self.model.keys_of(lease)

    def reopen(self) -> None:
        self.keyspace = Keyspace(self.engine)  # nothing but the engine matters
        self.leases_agree()


@pytest.mark.parametrize("seed", range(6))
def test_the_store_answers_as_the_model_does(engine: Engine, seed: int) -> None:
    """API reference 4-6: every answer, every error, every event, whatever the batches and however far the sweep is."""
    run(Trial(engine, seed))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1500))
def test_the_store_answers_as_the_model_does_for_long(engine: Engine, seed: int) -> None:
    run(Trial(engine, seed))


def run(trial: Trial) -> None:
    for _ in range(60):
        trial.write()
        if trial.chance.random() < 0.5:
            trial.keyspace.sweep()
        for _ in range(5):
            trial.read()
        trial.history()
        if trial.chance.random() < 0.1:
            trial.reopen()
    every_read_agrees(trial.keyspace, trial.model)
    while trial.keyspace.sweep():
        pass
    every_read_agrees(trial.keyspace, trial.model)


def every_read_agrees(keyspace: Keyspace, model: Model) -> None:
    for revision in range(max(model.compacted, 1), model.revision + 1):
        for limit in (0, 2):
            read = pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision, limit=limit)
            got = answer(read, finished(keyspace.read(METHOD_OF[type(read)], read.SerializeToString())))
            assert got == model.do(read)
    for first in range(max(model.compacted, 1), model.revision + 1):
        assert told(keyspace.history(first, model.revision, 1 << 30)) == model.history(first)
