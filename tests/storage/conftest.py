"""Both engines, for whatever must hold on either."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.engine import Engine
from storage.memory import LossyEngine, MemoryEngine
from storage.rocks import RocksEngine
from tests.storage.support import Store


@pytest.fixture(params=["memory", "lossy", "rocks"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    engine: Engine
    if request.param == "memory":
        engine = MemoryEngine()
    elif request.param == "lossy":
        engine = LossyEngine()
    else:
        engine = RocksEngine(tmp_path / "store")
    yield engine
    engine.close()


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine)
