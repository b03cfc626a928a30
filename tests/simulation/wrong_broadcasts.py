"""Mutants of what is shipped for broadcasts, at either end: see mutants.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cluster.broadcast import HEAD, Groups, Seen
from cluster.internal import History
from cluster.watchd import Watchd
from kvorum.results import WatchResponse
from kvorum.watching import Session, Watch, WatchCore
from storage.keyspace import Keyspace, Turn

# ---- the watch process


class _OtherGroups(Watchd):
    """With other groups."""

    kind: type[Groups]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._groups = self.kind(self._groups._new_topic)


class _HidesWhatNobodyHeard(Groups):
    def changes(self, seen: Sequence[Seen], last: int, header: bytes, now: int) -> Iterator[bytes]:
        before = {group: group.newest for group in self._by_topic.values() if not group.listening}
        yield from super().changes(seen, last, header, now)
        for group, newest in before.items():
            group.newest = newest


class NamesAFirstThatIsTooLow(_OtherGroups):
    """What happened while nobody listened is said not to have happened."""

    kind = _HidesWhatNobodyHeard


class _GoesOn(Groups):
    def restart(self, head: int) -> None:
        pass


class DoesNotRestartItsGroups(_OtherGroups):
    """What happened between two sessions with apply is said not to have happened."""

    kind = _GoesOn


class _SaysMoreThanItKnows(Groups):
    def subscribed(self, topic: bytes, head: int, now: int) -> bytes | None:
        return super().subscribed(topic, head + 1, now)


class ConnectsTooFar(_OtherGroups):
    """A subscription is answered with a revision that hasn't been heard of yet: progress before its events."""

    kind = _SaysMoreThanItKnows


class _SaysNothing(Groups):
    def subscribed(self, topic: bytes, head: int, now: int) -> bytes | None:
        super().subscribed(topic, head, now)
        return None


class AnswersNoSubscription(_OtherGroups):
    """Breaks no promise, as streams carry on: test_scenarios.py sees it."""

    kind = _SaysNothing


class _TearsRevisions(Groups):
    def changes(self, seen: Sequence[Seen], last: int, header: bytes, now: int) -> Iterator[bytes]:
        for change in seen:
            yield from super().changes([change], change.revision, header, now)


class TearsRevisions(_OtherGroups):
    """A publication for each event: the second one of a revision connects nowhere (RELIABILITY W4)."""

    kind = _TearsRevisions


class _ForgetsFilters(Groups):
    def changes(self, seen: Sequence[Seen], last: int, header: bytes, now: int) -> Iterator[bytes]:
        yield from super().changes([change._replace(kind=-1) for change in seen], last, header, now)


class PublishesWhatNobodyWants(_OtherGroups):
    """Filters hold on streams only (RELIABILITY W8)."""

    kind = _ForgetsFilters


class _LosesTheLastOfMany(Groups):
    def changes(self, seen: Sequence[Seen], last: int, header: bytes, now: int) -> Iterator[bytes]:
        few = [change for change in seen if change.revision < last] or seen
        yield from super().changes(few, last, header, now)


class PublishesTooFar(_OtherGroups):
    """A publication of several revisions says that it covers one more than is in it."""

    kind = _LosesTheLastOfMany


class LosesTheEndOfASlice(Watchd):
    """Of a slice of history the last revision is missing."""

    def _history(self, item: History) -> None:
        if item.changes:
            last = item.changes[-1].revision
            item = item._replace(changes=[change for change in item.changes if change.revision < last])
        super()._history(item)


class ForgetsWhatWasBefore(Keyspace):
    """Changes are told without what was before them, although somebody watches (RELIABILITY W8)."""

    def begin(self, *, prev: bool = True) -> Turn:
        return super().begin(prev=False)


# ---- the client


class TakesAnyPublication(WatchCore):
    """A publication that begins too late is taken as if it connected (RELIABILITY T7)."""

    def published(self, session: Session, frame: bytes, now: float) -> None:
        topic, _, last = HEAD.unpack_from(frame)
        super().published(session, HEAD.pack(topic, 0, last) + frame[HEAD.size :], now)


class ResumesTooLate(WatchCore):
    """By one revision."""

    def _open(self, watch: Watch) -> None:
        watch.next += watch.topic != b"" or watch.stream > 0
        super()._open(watch)


class ResumesTooEarly(WatchCore):
    """By one revision."""

    def _open(self, watch: Watch) -> None:
        watch.next -= watch.next > 1 and watch.stream > 0
        super()._open(watch)


class HearsTwice(WatchCore):
    """What the stream has brought already is given again by the publication that connects."""

    def _connect(self, watch: Watch, whole: WatchResponse | None, last: int, size: int) -> None:
        if whole is not None and watch.next <= last:
            watch.next = 0
        super()._connect(watch, whole, last, size)


class StaysWithTheSilent(WatchCore):
    """A publisher that has fallen silent is listened to for ever."""

    def _leave_silent(self, now: float) -> None:
        for channel in self._channels.values():
            channel.heard_at = now


class ThinksItIsTunedStill(WatchCore):
    """A new connection, perhaps to another member, and the watch waits for the air of the one before."""

    def _leave(self, session: Session) -> None:
        tuned = [watch for watch in self._watches if watch.state.value == "tuned"]
        super()._leave(session)
        for watch in tuned:
            watch.state = type(watch.state)("tuned")
