"""One thread, one clock, one source of chance: what makes a run happen again exactly.

Time is a count of microseconds that only the queue of events moves. Everything that could go either way asks `rng`, and
everything is asked in the order of events, so a seed is a whole history. Nothing here may depend on the order of a set,
the address of an object or the real clock.

`digest` runs over all that processes were given to read. Two runs with the same digest were the same run.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from zlib import crc32

MICROSECOND = 1
MILLISECOND = 1_000
SECOND = 1_000_000


class World:
    """The queue of events. `trace`, if given, is called with every line of the story."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(f"kvorum simulation {seed}")
        self.now = 0
        self.digest = 0
        self.events = 0
        self.seen: Counter[str] = Counter()
        """Rare things that did happen: what a run is for."""
        self.wake_max = 300
        """How long a process may take from something having arrived to looking at it."""
        self.turning: object = None
        """The node whose turn it is, for failpoints."""
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self.trace = trace

    def after(self, delay: int, action: Callable[[], None]) -> None:
        """Do `action` `delay` microseconds from now; equal moments keep their order."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, action))

    def run(self, until: int) -> None:
        """Let time pass up to `until`."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, action = heapq.heappop(queue)
            self.events += 1
            action()
        self.now = until

    def saw(self, who: int, frame: bytes) -> None:
        """A process reads `frame`: part of the digest."""
        self.digest = crc32(frame, self.digest ^ (self.now * 31 + who) & 0xFFFFFFFF)

    def tell(self, line: Callable[[], str]) -> None:
        """A line of the story; made only if somebody listens."""
        if self.trace is not None:
            self.trace(f"{self.now / SECOND:10.6f}  {line()}")

    def between(self, low: int, high: int) -> int:
        """A time in [low, high], short ones likelier than long ones: delays have long tails."""
        chance = self.rng.random()
        return low + int((high - low) * chance * chance * chance)

    def happens(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability
