"""A counter: a number in a key, changed by compare-and-swap, so that nobody's addition is lost.

    Counter(client, "visits").add()

An addition whose outcome is unknown (kvorum.Ambiguous) may have been made; it isn't repeated here, for that could count
twice. Who can't live with that gives each addition a key of its own and counts the keys.
"""

from __future__ import annotations

from kvorum import txn
from kvorum.sync import Client
from kvorum.txn import Key, to_bytes


class Counter:
    """The key holds the number in decimal; a missing key is 0."""

    def __init__(self, client: Client, name: Key) -> None:
        self._client, self._key = client, to_bytes(name)

    @property
    def value(self) -> int:
        """Raises ValueError if the key holds something else than a number."""
        return int(self._client.get(self._key)[0] or b"0")

    def add(self, amount: int = 1) -> int:
        """Add, and give the new value."""
        text, meta = self._client.get(self._key)
        while True:
            new = int(text or b"0") + amount
            unchanged = txn.mod(self._key) == (meta.mod_revision if meta else 0)
            done, answers = self._client.transaction([unchanged], [txn.put(self._key, str(new))], [txn.get(self._key)])
            if done:
                return new
            (pairs,) = answers
            assert isinstance(pairs, list)
            text, meta = pairs[0] if pairs else (None, None)
