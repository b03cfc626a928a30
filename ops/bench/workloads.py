"""What is asked of both systems. Both load generators know these names and do the same under them.

Keys are `key-%08d`, 12 bytes, drawn evenly from a space that was filled before. A value begins with its key, the rest
are random bytes that differ from call to call: no compressor gains by them, no wrong answer looks right.

Every answer is checked where it arrives, and what fails counts as an error and not as an operation. Every 64th key is
remembered with its newest acknowledged write, by revision; after the window up to 500 of them are read from the nodes
in turn, linearizably, and must hold exactly that write.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    name: str
    """What the load generators call it."""
    clients: int
    """Calls under way at any moment: a closed loop."""
    title: str

    @property
    def id(self) -> str:
        return f"{self.name}/{self.clients}"

    @property
    def by_latency(self) -> bool:
        """A lone client is judged by how long it waits, a crowd by how much gets done."""
        return self.clients == 1


IN_FLIGHT = 256

WORKLOADS = [
    Workload("put", IN_FLIGHT, "put"),
    Workload("txn", IN_FLIGHT, "txn: compare, put, get"),
    Workload("get", IN_FLIGHT, "get, linearizable"),
    Workload("get-serializable", IN_FLIGHT, "get, serializable"),
    Workload("mixed", IN_FLIGHT, "90 % get (linearizable), 10 % put"),
    Workload("put", 1, "put, one client"),
    Workload("get", 1, "get linearizable, one client"),
]


@dataclass(frozen=True)
class Plan:
    """How much of it."""

    rounds: int = 5
    nodes: tuple[int, ...] = (3, 1)
    warmup_seconds: float = 1.0
    window_seconds: float = 3.0
    keys: int = 100_000
    value_bytes: int = 256
    timeout_seconds: float = 10.0
    workloads: tuple[Workload, ...] = tuple(WORKLOADS)
    seed: int = 1


QUICK = Plan(rounds=2, warmup_seconds=0.5, window_seconds=1.5, keys=20_000)
