"""What a leader knows beside its log, and what it sends to make the others follow.

A `Leadership` exists exactly while its member leads, and belongs to one term: whatever a leader must forget when it
steps down is in here. It keeps a `Progress` for each member and the budget of uncommitted proposals, and it turns
"their log ends there" into appends. What is *decided* from that (a commit, a confirmed round of reads, stepping down)
is decided by the core, which asks here for the facts.

Sending is done in one pass over the members, once for each `Raft.ready`:

    entries, as many appends as the window allows   (they tell the commit index too)
    else a commit index that the member has not been told: it hurries, for clients of that member wait for it
    else an empty append, if its answer is needed to find out what got lost

Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cluster.raft.config import Config
from cluster.raft.log import ENTRY_OVERHEAD_BYTES, Log, entry_bytes
from cluster.raft.message import Message, MessageType
from cluster.raft.progress import Inflight, Progress, ProgressState
from cluster.raft.quorum import Outcome, Voters
from storage.entry import Entry


class Leadership:
    """One member's leadership of one term.

    `send` takes the messages; none of them claims anything about the leader's own disk.
    """

    def __init__(self, config: Config, voters: Voters, term: int, log: Log, send: Callable[[Message], None]) -> None:
        self._config = config
        self._id = config.id
        self._voters = voters
        self._term = term
        self._log = log
        self._send = send
        self._uncommitted: deque[tuple[int, int]] = deque()
        self._uncommitted_bytes = 0
        self.transferee = 0
        """Whom leadership is on its way to; 0 for nobody."""
        next = log.last_index + 1
        self._progress = {
            id: Progress(next, Inflight(config.inflight_max, config.inflight_bytes_max))
            for id in sorted({*voters, config.id})
        }
        self._own = self._progress[config.id]
        self._own.match = log.stable_index
        self._peers = [(id, progress) for id, progress in self._progress.items() if id != config.id]

    # Facts

    @property
    def due(self) -> bool:
        """Would `replicate` send anything?"""
        return any(self._due(progress) for _, progress in self._peers)

    def durable_at_majority(self) -> int:
        return self._voters.agreed({id: progress.match for id, progress in self._progress.items()})

    @property
    def waits_for_own(self) -> bool:
        """Only the leader's own disk is missing for a majority that holds more than is committed."""
        match = {id: progress.match for id, progress in self._progress.items()}
        match[self._id] = self._log.last_index
        return self._voters.agreed(match) > self._log.committed

    def round_at_majority(self) -> int:
        return self._voters.agreed({id: progress.read_round for id, progress in self._progress.items()})

    def is_caught_up(self, id: int) -> bool:
        return self._progress[id].match == self._log.last_index

    def best_successor(self) -> int:
        """The voter with the most of our log of those heard since the quorum was last checked; 0 if there is none."""
        heard = [(progress.match, peer) for peer, progress in self._peers if progress.active and peer in self._voters]
        return max(heard)[1] if heard else 0

    def quorum_was_active(self) -> bool:
        """Has a majority been heard since this was last asked?"""
        heard = {id: progress.active or id == self._id for id, progress in self._progress.items()}
        for _, progress in self._peers:
            progress.active = False
        return self._voters.outcome(heard) is Outcome.WON

    # Own doings

    def own_durable(self, index: int) -> None:
        """The leader's own disk holds all up to `index`; its vote for a commit counts like any other's."""
        self._own.match = index

    def own_round(self, round: int) -> None:
        self._own.read_round = round

    def afford(self, index: int, data: bytes) -> bool:
        """Charge a proposal that is to become entry `index`. False: too much is uncommitted already."""
        size = len(data) + ENTRY_OVERHEAD_BYTES
        if self._uncommitted and self._uncommitted_bytes + size > self._config.uncommitted_bytes_max:
            return False
        self._uncommitted.append((index, size))
        self._uncommitted_bytes += size
        return True

    def committed(self, index: int) -> None:
        """All up to `index` is committed and charged no longer."""
        while self._uncommitted and self._uncommitted[0][0] <= index:
            self._uncommitted_bytes -= self._uncommitted.popleft()[1]

    # Answers

    def on_append_reply(self, m: Message) -> bool:
        """True if the sender holds more on its disk than was known."""
        progress = self._progress.get(m.sender)
        if progress is None:
            return False
        progress.active = True
        if m.reject:
            self._rejected(progress, m)
            return False
        assert m.index <= self._log.last_index, f"{m.sender} acknowledged {m.index} of {self._log.last_index}"
        news = progress.accepted(m.index)
        progress.next = max(progress.next, self._log.first_index)  # an old answer may name what was released since
        return news

    def _rejected(self, progress: Progress, m: Message) -> None:
        """Go back as far as the two logs may agree, but not behind what was released: that is on everybody's disk, so
        they agree there at the latest. A no to that very place is an old one, or of somebody who has lost his log:
        either way it is asked again with the next heartbeat, not at once."""
        released = self._log.first_index - 1
        asked_there = progress.state is ProgressState.PROBE and m.index == progress.next - 1 == released
        progress.rejected(m.index, self._log.agreeing(m.hint, m.log_term))
        progress.next = max(progress.next, released + 1)
        progress.paused |= asked_there

    def released(self) -> None:
        """The log has let go of its beginning, which every member holds."""
        for _, progress in self._peers:
            progress.next = max(progress.next, self._log.first_index)

    def on_heartbeat_reply(self, m: Message, newest: int) -> bool:
        """True if the sender has confirmed a later round of reads than was known; `newest` is the newest there is."""
        progress = self._progress.get(m.sender)
        if progress is None:
            return False
        progress.active = True
        if not progress.nudged:
            progress.nudged = True
            progress.suspect_loss(self._log.last_index)
        assert m.context <= newest, f"{m.sender} confirms round {m.context} of {newest}"
        if m.context <= progress.read_round:
            return False
        progress.read_round = m.context
        return True

    # Sending

    def beat(self, round: int) -> None:
        """The heartbeat of the clock: besides, each answer makes sure that nothing stays lost."""
        for _, progress in self._peers:
            progress.nudged = False
        self.heartbeat(round)

    def heartbeat(self, round: int) -> None:
        """Say to all that this member leads; `round` is the newest round of reads to be confirmed."""
        for peer, progress in self._peers:
            self._heartbeat(peer, progress, round)

    def ask(self, round: int) -> None:
        """Have a round of reads confirmed: by as many as are needed, of those heard lately the ones that answered the
        newest round. Who of them doesn't answer holds it up until the next heartbeat, which all get, and then is
        behind the others."""
        order = [(not one.active, -one.read_round, peer) for peer, one in self._peers if peer in self._voters]
        for _, _, peer in sorted(order)[: len(self._voters) // 2]:
            self._heartbeat(peer, self._progress[peer], round)

    def _heartbeat(self, peer: int, progress: Progress, round: int) -> None:
        commit = min(progress.match, self._log.committed)
        progress.told = max(progress.told, commit)
        self._send(Message(MessageType.HEARTBEAT, peer, self._id, self._term, commit=commit, context=round))

    def hurry(self, id: int) -> None:
        """Don't wait for the next heartbeat to find out what this member lacks."""
        self._progress[id].suspect_loss(self._log.last_index)

    def replicate(self) -> None:
        """Send each member what is due to it."""
        for peer, progress in self._peers:
            if self._due(progress):
                self._replicate(peer, progress)

    def _due(self, progress: Progress) -> bool:
        log = self._log
        if progress.state is ProgressState.PROBE:
            return not progress.paused
        return (
            progress.ping
            or (progress.next <= log.last_index and not progress.inflight.full)
            or min(progress.match, log.committed) > progress.told
        )

    def _replicate(self, peer: int, progress: Progress) -> None:
        if progress.state is ProgressState.PROBE:
            self._send_append(peer, progress)
            progress.paused = True
            return
        while progress.next <= self._log.last_index and not progress.inflight.full:
            entries = self._send_append(peer, progress)
            progress.next += len(entries)
            progress.inflight.add(progress.next - 1, sum(map(entry_bytes, entries)))
            progress.ping = False
        if progress.ping:
            progress.ping = False
            self._send_append(peer, progress)
        commit = min(progress.match, self._log.committed)
        if commit > progress.told:
            progress.told = commit
            self._send(Message(MessageType.COMMIT, peer, self._id, self._term, commit=commit))

    def _send_append(self, peer: int, progress: Progress) -> tuple[Entry, ...]:
        """Send what follows from `next` on: nothing but the question if the window is full."""
        log = self._log
        prev = progress.next - 1
        entries: tuple[Entry, ...] = ()
        if not progress.inflight.full:
            entries = tuple(log.slice(prev + 1, log.last_index, self._config.append_bytes_max))
        self._send(
            Message(
                MessageType.APPEND,
                peer,
                self._id,
                self._term,
                index=prev,
                log_term=log.term(prev),
                commit=log.committed,
                entries=entries,
            )
        )
        progress.told = max(progress.told, min(log.committed, prev + len(entries)))
        return entries
