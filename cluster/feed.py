"""The apply process's side of its conversation with the watch process: every change once, in order; history on demand.

A session begins at a revision: the watch process gets all changes after it, numbered by `sequence`, and asks for what
was before as history. It acknowledges what it has taken in. When too much is unacknowledged (it is stuck, or dead) the
session ends rather than a queue grow; whoever attaches next begins anew from the revision of that moment. So nothing
depends on a message arriving: what was lost with a session is history in the next one. While nobody watches there is
no session, and writes cost nothing here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from cluster.internal import (
    Changes,
    History,
    HistoryRequest,
    Message,
    Progress,
    WatchAck,
    WatchAttach,
    WatchAttached,
    WatchDetach,
    WatchLost,
)
from kvorum import errors
from storage.keyspace import Change, Keyspace

WINDOW_BYTES = 32 << 20


class Feed:
    """At most one session at a time, with the watch process that attached last."""

    def __init__(self, keyspace: Keyspace, send: Callable[[Message], None], first_session: int) -> None:
        self._keyspace, self._send = keyspace, send
        self._session = first_session
        self._open = self._prev = False
        self._fresh = True
        self._epoch = 0
        self._sequence = 0
        self._unread: deque[tuple[int, int]] = deque()  # (sequence, bytes)
        self._unread_bytes = 0

    def handle(self, message: WatchAttach | WatchAck | WatchDetach | HistoryRequest, term: int) -> None:
        if isinstance(message, WatchAttach):
            if message.epoch >= self._epoch:
                self._attach(message, term)
        elif not self._open or message.session != self._session:
            if not isinstance(message, WatchDetach):
                self._send(WatchLost(message.session))
        elif isinstance(message, WatchDetach):
            self._open = False
        elif isinstance(message, WatchAck):
            while self._unread and self._unread[0][0] <= message.sequence:
                self._unread_bytes -= self._unread.popleft()[1]
        else:
            self._send(self._history(message))

    def _attach(self, message: WatchAttach, term: int) -> None:
        self._epoch, self._open, self._prev = message.epoch, True, bool(message.prev)
        self._session += 1
        self._sequence = 0
        self._unread.clear()
        self._unread_bytes = 0
        keyspace = self._keyspace
        self._send(WatchAttached(self._session, keyspace.revision, keyspace.compacted, term, self._fresh))

    def caught_up(self, term: int) -> None:
        """The store is as new as anything that this node has ever shown."""
        if self._fresh:
            self._fresh = False
            self.tick(term)

    @property
    def wants_prev(self) -> bool:
        """Somebody wants to hear of changes, and of what was before them."""
        return self._open and self._prev

    def changed(self, changes: Sequence[Change]) -> None:
        """All changes of a committed store batch, in order."""
        if not changes or not self._open:
            return
        size = sum(len(change.event) + len(change.prev) for change in changes)
        if self._unread_bytes + size > WINDOW_BYTES and self._unread:
            self._open = False
            self._send(WatchLost(self._session))
            return
        self._sequence += 1
        self._unread.append((self._sequence, size))
        self._unread_bytes += size
        self._send(Changes(self._session, self._sequence, self._keyspace.revision, changes))

    def tick(self, term: int) -> None:
        if self._open:
            keyspace = self._keyspace
            state = (keyspace.revision, keyspace.compacted, term, self._fresh)
            self._send(Progress(self._session, self._sequence, *state))

    def _history(self, request: HistoryRequest) -> History:
        keyspace, first = self._keyspace, request.first
        head = keyspace.revision
        try:
            changes = keyspace.history(first, head, request.bytes_max) if first <= head else []
        except errors.Compacted:
            return History(request.session, request.id, first, first - 1, keyspace.compacted, [])
        covered = changes[-1].revision if changes else head
        return History(request.session, request.id, first, covered, keyspace.compacted, changes)
