"""The store against the model: random requests, and afterwards everything that can be asked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvorum import errors
from kvorum import etcd_pb2 as pb
from storage import requests
from storage.engine import Engine
from storage.keyspace import Change, Keyspace
from storage.memory import MemoryEngine
from storage.rocks import RocksEngine
from tests.storage.model import Model
from tests.storage.requests_at_random import Dice
from tests.storage.support import METHOD_OF, answer, entry, finished


@pytest.fixture(params=["memory", "rocks"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    engine: Engine = MemoryEngine() if request.param == "memory" else RocksEngine(tmp_path / "store")
    yield engine
    engine.close()


def attempt(act: Any) -> Any:
    """What came of it: the answer, or the class and text of the error."""
    try:
        return act()
    except errors.KvorumError as error:
        return type(error), error.text


def modelled(model: Model, request: Any) -> Any:
    def act() -> Any:
        requests.parse(METHOD_OF[type(request)], request.SerializeToString())
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


@pytest.mark.parametrize("seed", range(6))
def test_the_store_answers_as_the_model_does(engine: Engine, seed: int) -> None:
    """API reference 4-6: every answer, every error, every event, whatever the batches and however far the sweep is."""
    dice, model, keyspace = Dice(seed), Model(), Keyspace(engine)
    chance = random.Random(seed)
    index = 0
    for _ in range(60):
        turn = keyspace.begin()
        asked: list[tuple[Any, Any, Any]] = []
        before = model.revision
        for _ in range(chance.randint(1, 3)):
            index += 1
            wanted = []
            for _ in range(chance.choice([1, 1, 2, 5])):
                dice.revision = model.revision
                wanted.append(dice.write())
            outcome = turn.apply(index, 3, entry(index, *wanted))
            for request, result in zip(wanted, outcome.results, strict=True):
                got = attempt(lambda request=request, result=result: answer(request, result))
                asked.append((request, got, modelled(model, request)))
        changes = turn.commit()
        for request, got, expected in asked:
            assert got == expected, request
        assert keyspace.applied == (index, 3)
        assert (keyspace.revision, keyspace.compacted) == (model.revision, model.compacted)
        expected_events = [event for r in range(before + 1, model.revision + 1) for event in model.events[r]]
        assert told(changes) == expected_events
        if chance.random() < 0.5:
            keyspace.sweep()
        for _ in range(5):
            dice.revision = model.revision
            read = dice.range()
            payload = read.SerializeToString()
            got = attempt(lambda: answer(read, finished(keyspace.read(METHOD_OF[type(read)], payload))))
            assert got == modelled(model, read), read
        first = chance.randint(max(model.compacted - 1, 1), model.revision + 1)
        assert attempt(lambda: told(keyspace.history(first, model.revision, 1 << 30))) == attempt(
            lambda: model.history(first)
        )
        if chance.random() < 0.1:
            keyspace = Keyspace(engine)  # nothing but the engine matters
    every_read_agrees(keyspace, model)
    while keyspace.sweep():
        pass
    every_read_agrees(keyspace, model)


def every_read_agrees(keyspace: Keyspace, model: Model) -> None:
    for revision in range(max(model.compacted, 1), model.revision + 1):
        for limit in (0, 2):
            read = pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision, limit=limit)
            got = answer(read, finished(keyspace.read(METHOD_OF[type(read)], read.SerializeToString())))
            assert got == model.do(read)
    for first in range(max(model.compacted, 1), model.revision + 1):
        assert told(keyspace.history(first, model.revision, 1 << 30)) == model.history(first)
