"""Leases as they are agreed upon: which there are, how long they were granted for, and the keys that die with each.

    l | l | id            -> granted TTL, remaining TTL, index of the entry that granted it: a lease
    l | k | id | user key -> empty: the key is attached to it
    l | t                 -> the lessor: (term, member, incarnation) of who counts their time

Ids are any 64 bits but zero, negative ones too. Here nothing ever runs out: time is the lessor's business
(cluster/lessor.py), and what it decides comes back as an entry of the log, which ends a lease on every member at the
same revision. Who the lessor is, is agreed upon as well, so that the word of an earlier one, however late it comes, is
known for what it is and does nothing. Nor does what was decided about a lease of the same id that has ended since: the
word of a lessor is about leases that were granted up to some entry of the log.

A key belongs to the lease that its KeyValue names and to no other; the index says the same from the other side, and
both are written in one batch, so no crash can part them.

In memory: one number a lease (about 100 bytes with the dict around it), read at opening; the keys are on disk only. Of
a lease that was granted since then and has had no key yet, that is remembered, too (40 bytes more): to look for keys is
most of what the end of a lease costs, and a million may end together. `Leases` holds what the last commit left behind.
`Changes` is what a turn has done since, and forgets it if the turn is dropped. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from kvorum import errors
from storage.codec import field, int_field
from storage.engine import Batch, Engine
from storage.reads import KEY_COST, Meter, Steps

TTL_MAX = 9_000_000_000
"""Seconds (etcd)."""

_LEASE = b"ll"
_KEYS = b"lk"
_LESSOR = b"lt"
_ID = struct.Struct(">Q")
_RECORD = struct.Struct("<qqQ")
_WHO = struct.Struct("<QQQ")
_KEYS_AT = len(_KEYS) + _ID.size
_MASK = (1 << 64) - 1


def _lease_key(id: int) -> bytes:
    return _LEASE + _ID.pack(id & _MASK)


def _key_of(id: int, key: bytes) -> bytes:
    return _KEYS + _ID.pack(id & _MASK) + key


def _keys_end(id: int) -> bytes:
    """Above every key of the lease, below the next one's."""
    following = (id & _MASK) + 1
    return _LEASE if following > _MASK else _KEYS + _ID.pack(following)


def _signed(id: int) -> int:
    return id - (1 << 64) if id >> 63 else id


class Lessor(NamedTuple):
    """An apply process (`incarnation` of `member`) that leads in `term`."""

    term: int = 0
    member: int = 0
    incarnation: int = 0


class Leases:
    """All leases as of the last commit."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.granted: dict[int, int] = {}
        """Granted TTL in seconds, by id."""
        self.remaining: dict[int, int] = {}
        """What the last checkpoint said was left, in seconds; only of leases that had less than all of it."""
        self._bare: dict[int, int] = {}
        """The index of the entry that granted it, by id, of leases that surely hold no key: they were granted since
        this store was opened, and no key was attached to them."""
        who = engine.get(_LESSOR)
        self.lessor = Lessor() if who is None else Lessor(*_WHO.unpack(who))
        for key, record in engine.scan(_LEASE, b"lm"):
            id = _signed(_ID.unpack_from(key, len(_LEASE))[0])
            ttl, remaining, _ = _RECORD.unpack(record)
            self.granted[id] = ttl
            if remaining:
                self.remaining[id] = remaining

    def keys(self, id: int) -> list[bytes]:
        """The keys attached to a lease, in order."""
        return [key[_KEYS_AT:] for key in self._attached(id)]

    def born(self, id: int) -> int:
        """The index of the entry that granted a lease."""
        if id in self._bare:
            return self._bare[id]
        record = self._engine.get(_lease_key(id))
        assert record is not None, "no such lease"
        _, _, index = _RECORD.unpack(record)
        return int(index)

    def count(self, id: int, most: int) -> int:
        """How many keys are attached to a lease, or `most` if there are so many."""
        return 0 if id in self._bare else sum(1 for _ in islice(self._attached(id), most))

    def _attached(self, id: int) -> Iterator[bytes]:
        """The entries of the index that name its keys, in order."""
        if id in self._bare:
            return iter(())
        return self._engine.scan_keys(_key_of(id, b""), _keys_end(id))

    def attached(self, id: int, head: bytes) -> Steps[bytes]:
        """A LeaseTimeToLiveResponse that begins with `head`: the keys as of this call, in slices, for there may be any
        number of them."""
        return _sliced(head, b"\x2a", _names(self._attached(id)))

    def listed(self) -> Steps[bytes]:
        """A LeaseLeasesResponse without its header: all leases as of this call, in slices, negative ids last."""
        return _sliced(b"", b"\x12", _ids(self._engine.scan_keys(_LEASE, b"lm")))

    def update(self, changes: Changes) -> None:
        """A turn has been committed."""
        self.lessor = changes.lessor
        for id, ttl in changes.granted.items():
            self.remaining.pop(id, None)  # of the life before, if one turn has ended it and granted it anew
            if ttl is None:
                self.granted.pop(id, None)
                self._bare.pop(id, None)
            else:
                self.granted[id] = ttl
                self._bare[id] = changes.born[id]
        for id in changes.keys_of:
            self._bare.pop(id, None)
        for id, left in changes.remaining.items():
            if left and id in self.granted:
                self.remaining[id] = left
            else:
                self.remaining.pop(id, None)


# Not generator expressions: compiled, one that is an argument becomes a list, all of it at once.


def _names(attached: Iterator[bytes]) -> Iterator[bytes]:
    for key in attached:
        yield key[_KEYS_AT:]


def _ids(records: Iterator[bytes]) -> Iterator[bytes]:
    for key in records:
        yield int_field(b"\x08", _ID.unpack_from(key, len(_LEASE))[0])


def _sliced(head: bytes, tag: bytes, bodies: Iterator[bytes]) -> Steps[bytes]:
    """`head`, and each of `bodies` as a field."""
    meter = Meter()
    whole, parts = [head], []
    for body in bodies:
        parts.append(field(tag, body))
        if meter.used(KEY_COST):
            whole.append(b"".join(parts))  # by slices, lest the last one put a million pieces together
            parts.clear()
            yield
    return b"".join(whole + parts)


class Changes:
    """What one turn has done to leases, over `Leases`."""

    def __init__(self, leases: Leases, batch: Batch) -> None:
        self._leases = leases
        self._batch = batch
        self.lessor = leases.lessor
        self.granted: dict[int, int | None] = {}
        """Granted TTL of new leases, None for those that ended."""
        self.remaining: dict[int, int] = {}
        self.born: dict[int, int] = {}
        """Indexes of the entries that granted those of this turn."""
        self.keys_of: dict[int, dict[bytes, bool]] = {}
        """Keys attached (True) or detached in this turn, by lease."""

    def lead(self, lessor: Lessor) -> None:
        """Unless a later one counts already."""
        if lessor >= self.lessor:
            self.lessor = lessor
            self._batch.put(_LESSOR, _WHO.pack(*lessor))

    def ttl(self, id: int) -> int | None:
        """None: there is no such lease."""
        return self.granted[id] if id in self.granted else self._leases.granted.get(id)

    def known(self, id: int, index: int) -> bool:
        """Whether there is such a lease, and was when that entry of the log had been applied."""
        if self.ttl(id) is None:
            return False
        return self._born_at(id) <= index

    def _born_at(self, id: int) -> int:
        return self.born[id] if id in self.born else self._leases.born(id)

    def grant(self, id: int, ttl: int, index: int) -> None:
        """By the entry of that index. Raises LeaseExists."""
        if self.ttl(id) is not None:
            raise errors.LeaseExists
        self.granted[id], self.born[id] = ttl, index
        self.remaining.pop(id, None)
        self._batch.put(_lease_key(id), _RECORD.pack(ttl, 0, index))

    def checkpoint(self, id: int, remaining: int) -> None:
        """0 is all of it. The lease must be known."""
        ttl = self.ttl(id)
        assert ttl is not None
        self.remaining[id] = remaining
        self._batch.put(_lease_key(id), _RECORD.pack(ttl, remaining, self._born_at(id)))

    def end(self, id: int) -> None:
        """The lease is gone. Its keys must have been deleted before."""
        self.granted[id] = None
        self._batch.delete(_lease_key(id))

    def attach(self, id: int, key: bytes) -> None:
        self.keys_of.setdefault(id, {})[key] = True
        self._batch.put(_key_of(id, key), b"")

    def detach(self, id: int, key: bytes) -> None:
        self.keys_of.setdefault(id, {})[key] = False
        self._batch.delete(_key_of(id, key))

    def detach_all(self, id: int, keys: Sequence[bytes]) -> None:
        """Like `detach`, of many."""
        self.keys_of.setdefault(id, {}).update(dict.fromkeys(keys, False))
        delete, start = self._batch.delete, _key_of(id, b"")
        for key in keys:
            delete(start + key)

    def keys(self, id: int) -> list[bytes]:
        """The keys attached to a lease now, in order."""
        changed = self.keys_of.get(id)
        before = self._leases.keys(id)
        if changed is None:
            return before
        return sorted({key for key in before if changed.get(key, True)} | {key for key, on in changed.items() if on})
