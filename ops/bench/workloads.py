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
    watchers: int = 0
    """Who listen meanwhile: each with a connection of its own to all keys, or, with `own_keys`, each to one key."""
    own_keys: bool = False
    rate: float = 0.0
    """Calls a second, as long as no more than `clients` are under way; 0: as many as possible."""

    puts: int = 1
    """In each transaction of the workload "puts"."""
    lag: int = 0
    """How many revisions the slowest watcher may be behind when a call is made; 0: any. So what is measured is what can
    be delivered, not what can be written."""

    @property
    def id(self) -> str:
        many = f"{self.name}*{self.puts}" if self.puts > 1 else self.name
        return f"{many}/{self.clients}" + (f"/{self.watchers}" if self.watchers else "")

    @property
    def counts_events(self) -> bool:
        """Not calls are counted, but what the watchers are given."""
        return self.watchers > 0 and not self.own_keys

    @property
    def by_latency(self) -> bool:
        """A lone client is judged by how long it waits, a crowd by how much gets done."""
        return self.clients == 1 or self.rate > 0


IN_FLIGHT = 256

WORKLOADS = [
    Workload("put", IN_FLIGHT, "put"),
    Workload("txn", IN_FLIGHT, "txn: compare, put, get"),
    Workload("get", IN_FLIGHT, "get, linearizable"),
    Workload("get-serializable", IN_FLIGHT, "get, serializable"),
    Workload("mixed", IN_FLIGHT, "90 % get (linearizable), 10 % put"),
    Workload("put", IN_FLIGHT, "events to 100 watchers: puts", watchers=100),
    Workload("puts", 16, "events to 100 watchers: txns of 100 puts", watchers=100, puts=100, lag=50),
    Workload("put", IN_FLIGHT, "put, 1,000 watchers of a key each", watchers=1000, own_keys=True),
    Workload("keep-alive", IN_FLIGHT, "lease keep-alive"),
    Workload("put", 16, "from reply to event, 1,000 puts/s, 100 watchers", watchers=100, rate=1000.0),
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
