"""A counter: a number in a key, changed by compare-and-swap, so that nobody's addition is lost.

    Counter(client, "visits").add()

An addition whose outcome is unknown (kvorum.Ambiguous) may have been made; it isn't repeated here, for that could count
twice. Who can't live with that gives each addition a key of its own and counts the keys.
"""

from __future__ import annotations

from kvorum import txn, verbs
from kvorum.recipes.steps import Steps, run
from kvorum.sync import Client
from kvorum.txn import Key, to_bytes


class CounterCore:
    """A counter of either client."""

    def __init__(self, name: Key) -> None:
        self._key = to_bytes(name)

    def _value(self) -> Steps[int]:
        text, _ = yield verbs.get(self._key)
        return int(text or b"0")

    def _add(self, amount: int) -> Steps[int]:
        text, meta = yield verbs.get(self._key)
        while True:
            new = int(text or b"0") + amount
            unchanged = txn.mod(self._key) == (meta.mod_revision if meta else 0)
            done, answers = yield verbs.transaction([unchanged], [txn.put(self._key, str(new))], [txn.get(self._key)])
            if done:
                return new
            text, meta = answers[0][0] if answers[0] else (None, None)


class Counter(CounterCore):
    """The key holds the number in decimal; a missing key is 0."""

    def __init__(self, client: Client, name: Key) -> None:
        super().__init__(name)
        self._client = client

    @property
    def value(self) -> int:
        """Raises ValueError if the key holds something else than a number."""
        return run(self._client, self._value())

    def add(self, amount: int = 1) -> int:
        """Add, and give the new value."""
        return run(self._client, self._add(amount))
