"""What has become of what clients were told: the truth as every node tells it, and the judges' verdicts on it.

    judge = Judge(cluster)
    ... a Load ...            judge(load.history)      fails unless all of this holds:
    ... another ...           judge(load.history)

      - every node tells the same history of every revision, and has the same content at the last one
      - no acknowledged write is lost, none took effect twice, no answer contradicts the truth (checkers/replay.py);
        the truth is asked for after everything, so what a read has shown and a crash took back is found too
      - some order explains all answers (checkers/linearizability.py), trusting no revision
      - the nodes agree on leader, term, applied index and revision once nobody writes

Judging goes on where the last judging ended: calls of then whose fate nobody was told may still come true later.

What is compacted can no longer be told by the nodes. An Archive, which read it back before, tells it then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import kvorum
from kvorum import errors
from kvorum import etcd_pb2 as pb
from kvorum.results import DeleteEvent
from tests.checkers.history import Operation, revision_of, serializable
from tests.checkers.linearizability import check_linearizable
from tests.checkers.model import Pair, canonical, execute, pair
from tests.checkers.replay import check_replay
from tests.system.cluster import Cluster, eventually

T = TypeVar("T")
History = dict[int, list[pb.Event]]


def insist(attempt: Callable[[], T], seconds: float = 30.0) -> T:
    """What `attempt` returns; asked again while it ends with an error that is no answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except (errors.Unavailable, errors.Ambiguous, errors.FutureRevision):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def head(cluster: Cluster) -> int:
    """The revision that everything acknowledged so far is at or below."""
    with kvorum.client(cluster.endpoints, discover=False) as client:
        return int(insist(lambda: client.get_response("head", timeout=5)).header.revision)


def history_of(endpoint: str, first: int, last: int) -> History:
    """The events of every revision in [first, last] as one node tells them to a watcher."""
    found: History = {}
    if last < first:
        return found
    with kvorum.client([endpoint], discover=False, timeout=30.0) as client:
        responses, cancel = client.watch_response(b"\0", range_end=b"\0", start_revision=first)
        for response in responses:
            for event in response.events:
                kind = pb.Event.DELETE if isinstance(event, DeleteEvent) else pb.Event.PUT
                found.setdefault(event.mod_revision, []).append(pb.Event(type=kind, kv=event.kv))
            if response.revision >= last:
                break
        cancel()
    return {revision: events for revision, events in found.items() if revision <= last}


def contents_of(endpoint: str, revision: int) -> list[pb.KeyValue]:
    """All that a node has at `revision`, by its own account."""
    with kvorum.client([endpoint], discover=False, timeout=10.0) as client:
        answer = insist(lambda: client.get_all_response(serializable=True, revision=revision))
        return list(answer.kvs)


class Archive:
    """The events of every revision from `first` to `last`, read back before they are compacted."""

    def __init__(self, first: int) -> None:
        self.truth: History = {}
        self.last = first - 1

    def extend(self, endpoint: str, last: int) -> None:
        """Up to `last`, as this node tells it."""
        self.truth.update(history_of(endpoint, self.last + 1, last))
        self.last = max(self.last, last)


class Judge:
    """See the module."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.judged = 0
        """How many operations so far."""
        self.truth: History = {}
        """Of all revisions from the first to the last that was judged."""
        self.first = self._origin = head(cluster) + 1
        """The first revision to be judged next time."""
        self._base = {kv.key: pair(kv) for kv in contents_of(cluster.endpoints[0], self.first - 1)}
        self._original = self._base
        self.before: dict[bytes, pb.KeyValue] = {}
        """The state before the revisions that were judged last."""
        self._open: list[Operation] = []

    def __call__(self, history: Sequence[Operation], *, search: bool = True, archive: Archive | None = None) -> None:
        """Judge `history`, which must hold all calls since the last time. `search`: look for an order, too.

        `archive`: where what is compacted by now is found; it begins no later than at `first`.
        """
        last = head(self.cluster)
        truth = self._same_everywhere(last, archive or Archive(self.first))
        old = [op for op in history if self._is_old(op)]
        for op in old:
            said, _ = execute(self._state_at(revision_of(op.answer)), op.request, last + 1)  # type: ignore[arg-type]
            assert said == canonical(op.answer), f"the answer should have been {said}: {op}"
        operations = [*self._open, *(op for op in history if op not in old)]
        verdict = check_replay(operations, truth, first=self.first, base=self._base)
        assert not verdict.wrong, "\n".join(verdict.wrong[:20])
        if search:
            wrong = check_linearizable(operations, happened=verdict.happened, base=self._base)
            assert not wrong, "\n".join(wrong)
        self._advance(truth, last)
        self._open = [op for op in operations if op.maybe and op.id not in verdict.happened]
        self.judged += len(history)

    def _is_old(self, op: Operation) -> bool:
        """A serializable answer from before the last judging: stale, as it may be, but still to be a true one."""
        return op.answer is not None and serializable(op.request) and revision_of(op.answer) < self.first - 1

    def _same_everywhere(self, last: int, archive: Archive) -> History:
        endpoints = self.cluster.endpoints
        histories = [history_of(endpoint, archive.last + 1, last) for endpoint in endpoints]
        contents = [contents_of(endpoint, last) for endpoint in endpoints]
        for node in range(1, len(endpoints)):
            assert histories[node] == histories[0], f"nodes 0 and {node} tell different histories"
            assert contents[node] == contents[0], f"nodes 0 and {node} differ at revision {last}"
        eventually(self._settled, 20.0, "agreement on leader, term and applied index")
        kept = {revision: events for revision, events in archive.truth.items() if revision >= self.first}
        return kept | histories[0]

    def _settled(self) -> bool:
        said = set()
        for endpoint in self.cluster.endpoints:
            with kvorum.client([endpoint], discover=False, timeout=5.0) as client:
                status = insist(client.status)
                said.add((status.leader, status.raft_term, status.raft_applied_index, status.header.revision))
        return len(said) == 1 and all(leader for leader, *_ in said)

    def _advance(self, truth: History, last: int) -> None:
        self.before = {
            pair.key: pb.KeyValue(
                key=pair.key, value=pair.value, create_revision=pair.create, mod_revision=pair.mod, version=pair.version
            )
            for pair in self._base.values()
        }
        self.truth.update(truth)
        self._base = self._state_at(last)
        self.first = last + 1

    def _state_at(self, revision: int) -> dict[bytes, Pair]:
        state = dict(self._original)
        for past in range(self._origin, revision + 1):
            for event in self.truth[past]:
                kv = event.kv
                if event.type == pb.Event.PUT:
                    state[kv.key] = Pair(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version)
                else:
                    state.pop(kv.key, None)
        return state
