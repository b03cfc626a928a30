"""Owners of leases who keep time with the cluster: nothing ends early, nothing lives for ever (RELIABILITY L1, L2, L6).

Each takes a lease, puts a key under it, renews it for a while, leaves it, and looks at the key until it is gone. Judged
is by the owner's own clock and in the cluster's favour:

    gone early    an answer without the key, or "no such lease", came before (the asking of the last answered grant or
                  renewal) + TTL
    gone late     the key was there still when asked later than (the last renewal, or since when a leader has been
                  settled) + TTL + LATE_SECONDS, and what the machine itself is late

A leader is settled when a change that was asked for after the trouble has been acknowledged; one that comes without any
trouble shows by the term in an answer. How late the machine is, is how long the slowest call took since then.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import kvorum
from kvorum import errors

T = TypeVar("T")

LATE_SECONDS = 3.0
"""How long after its time, with a leader, a lease may still be seen (RELIABILITY L2)."""
UNTOLD = (errors.Unavailable, errors.Ambiguous)
"""No answer: what was asked for may or may not have been done."""


class Quiet:
    """Since when nothing has been the matter, and how late the machine has been since."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._term = 0
        self._troubles = 0
        self._calls: deque[tuple[float, float]] = deque(maxlen=20_000)  # when, how long
        self._lock = threading.Lock()

    def disturbed(self) -> None:
        self._troubles += 1

    def settled(self) -> None:
        self._since = time.monotonic()
        self._troubles -= 1

    def called(self, began: float, term: int = 0) -> None:
        """A call was answered just now."""
        now = time.monotonic()
        with self._lock:
            self._calls.append((now, now - began))
            if term > self._term:
                self._term, self._since = term, now

    @property
    def since(self) -> float | None:
        """None: not now."""
        return None if self._troubles else self._since

    def lateness(self, since: float) -> float:
        with self._lock:
            return max((seconds for at, seconds in self._calls if at >= since), default=0.0)


class Tenant:
    """One owner, with a client and a thread of its own; `name` is in its keys. See the module.

    `wrong` is what must not be; `ended` how many leases it has seen to their end, `renewed` how many renewals were
    answered.
    """

    def __init__(self, endpoints: list[str], name: str, quiet: Quiet) -> None:
        self.wrong: list[str] = []
        self.ended = self.renewed = 0
        self._name, self._quiet = name, quiet
        self._dice = random.Random(name)
        self._client = kvorum.client(endpoints, shuffle=False, timeout=5.0)
        self._over = threading.Event()
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """It leaves its last lease, and sees it to its end. Raises what broke it."""
        self._over.set()
        self._thread.join(120.0)
        assert not self._thread.is_alive(), f"{self._name} is stuck"
        self._client.close()
        if self._broken is not None:
            raise self._broken

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._one_lease()
        except BaseException as error:
            self._broken = error

    def _ask(self, call: Callable[[], T]) -> T:
        """Ask until there is an answer."""
        while True:
            began = time.monotonic()
            try:
                answer = call()
            except UNTOLD:
                time.sleep(0.05)
            else:
                header = getattr(answer, "header", None)
                self._quiet.called(began, header.raft_term if header is not None else 0)
                return answer

    def _one_lease(self) -> None:
        # Whose grant isn't answered leaves a lease without keys behind: it has its own end, which the test looks for.
        asked = time.monotonic()
        while True:
            try:
                lease = self._client.lease_grant(self._dice.randint(1, 3))
                break
            except UNTOLD:
                asked = time.monotonic()
        safe, touched = asked + lease.TTL, time.monotonic()
        key = f"tenants/{self._name}/{lease.ID}"
        try:
            self._ask(lambda: self._client.put(key, "here", lease=lease.ID))
        except errors.LeaseNotFound:
            self._gone(safe, f"{key}: its put found no lease")
            return
        leave_at = time.monotonic() + self._dice.uniform(0.0, 4.0)
        while True:
            if time.monotonic() < leave_at and not self._over.is_set():
                asked = time.monotonic()
                try:
                    ttl = self._client.refresh_lease(lease.ID).TTL
                except UNTOLD:
                    ttl = None
                touched = time.monotonic()
                if ttl == 0:
                    self._gone(safe, f"{key}: its renewal found no lease")
                    return
                if ttl is not None:
                    self.renewed += 1
                    safe = asked + ttl
            elif self._dice.random() < 0.2:
                self._look_at(lease.ID, lease.TTL)
            asked = time.monotonic()
            if not self._ask(lambda: self._client.get_response(key)).kvs:
                self._gone(safe, f"{key} is not there")
                return
            self._still_there(key, asked, touched, lease.TTL)
            time.sleep(self._dice.uniform(0.02, 0.2))

    def _gone(self, safe: float, what: str) -> None:
        early = safe - time.monotonic()
        if early > 0:
            self.wrong.append(f"{what}, {early:.2f} s early")
        self.ended += 1

    def _still_there(self, key: str, asked: float, touched: float, ttl: int) -> None:
        settled = self._quiet.since
        if settled is None:
            return
        begun = max(touched, settled)
        late = asked - begun - ttl - LATE_SECONDS
        if late > 0 and late > self._quiet.lateness(begun) and self._quiet.since == settled:
            self.wrong.append(f"{key} is still there, {late + LATE_SECONDS:.2f} s late")

    def _look_at(self, id: int, ttl: int) -> None:
        """L8: whatever happens to leaders, the time that is left is none, or some of what was granted."""
        try:
            info = self._client.get_lease_info(id)
        except UNTOLD:
            return
        gone = (info.TTL, info.grantedTTL) == (-1, 0)
        if not gone and not (0 <= info.TTL <= ttl and info.grantedTTL == ttl):
            self.wrong.append(f"lease {id} of {ttl} s is said to have {info.TTL} s of {info.grantedTTL}")
