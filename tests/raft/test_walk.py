"""Random walks: the core survives them, and no faulty one does. walk.py says what is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.raft.core import Append, Raft
from cluster.raft.leadership import Leadership
from cluster.raft.message import Message
from tests.raft.script import Runner, ScriptError
from tests.raft.walk import Walk

SCRIPTS = Path(__file__).parent / "scripts"

SEEDS = 400
STEPS = 500


@pytest.mark.parametrize("chunk", range(5))
def test_nothing_that_must_never_happen_does(chunk: int) -> None:
    """Raft paper, figure 3, and the promises about disks and reads. A failure names its seed."""
    for seed in range(chunk * SEEDS // 5, (chunk + 1) * SEEDS // 5):
        walk = Walk(seed)
        try:
            walk.walk(STEPS)
            walk.finish()
        except AssertionError as failure:
            raise AssertionError(f"Walk({seed}), {STEPS} steps: {failure}") from failure


def test_walks_get_somewhere() -> None:
    """A walk in which nothing is elected, committed or read proves nothing."""
    walks = [Walk(seed) for seed in range(50)]
    for walk in walks:
        walk.walk(STEPS)
    assert sum(len(walk.committed) for walk in walks) > 50 * 20
    assert sum(len(walk.leaders) for walk in walks) > 50 * 3
    assert sum(walk.answered for walk in walks) > 50 * 3


class CountsRepeatedVotes(Raft):
    def _record_vote(self, voter: int, granted: bool) -> None:
        strangers = [id for id in self.voters if id not in self._votes]
        super()._record_vote(voter if voter not in self._votes or not strangers else strangers[0], granted)


class VotesTwice(Raft):
    def _may_vote(self, m: Message) -> bool:
        return True


class VotesForAnyLog(Raft):
    def _is_up_to_date(self, m: Message) -> bool:
        return True


class SpeaksBeforeItsDisk(Raft):
    def _hold(self, m: Message) -> None:
        self._send(m)


class CountsItselfAtOnce(Raft):
    def _durable_at_majority(self, leading: Leadership) -> int:
        leading.own_durable(self.log.last_index)
        return super()._durable_at_majority(leading)


class CommitsOldTermsByCounting(Raft):
    def _may_commit_by_counting(self, index: int) -> bool:
        return True


class TakesWritesByIndexAlone(Raft):
    def _speaks_for_us(self, append: Append) -> bool:
        return append.last_index <= self.log.last_index


class TakesWritesByEntryAlone(Raft):
    def _speaks_for_us(self, append: Append) -> bool:
        return self.log.matches(append.last_index, append.last_term)


class ReadsBeforeItsFirstCommit(Raft):
    def _committed_in_term(self) -> bool:
        return True


class ReadsWithoutAsking(Raft):
    def _confirm_reads(self, leading: Leadership) -> None:
        for id in self.voters:
            leading._progress[id].read_round = self._reads.round
        super()._confirm_reads(leading)


SLOW_DISKS = {"nodes": 3, "arrive": 80, "sync": 4, "propose": 3, "move": 6, "crash": 1, "part": 1}
SLOW_DISKS |= dict.fromkeys(("read", "settle", "lost", "late"), 0)


@pytest.mark.parametrize(
    ("mutant", "habits"),
    [
        (CountsRepeatedVotes, {"nodes": 5, "twice": 0.4}),
        (VotesTwice, {}),
        (VotesForAnyLog, {}),
        (SpeaksBeforeItsDisk, {}),
        (CountsItselfAtOnce, {}),
        (TakesWritesByIndexAlone, SLOW_DISKS),
        (ReadsBeforeItsFirstCommit, {}),
        (ReadsWithoutAsking, {}),
    ],
)
def test_a_walk_finds_out_a_faulty_member(mutant: type[Raft], habits: dict[str, float]) -> None:
    """Each breaks one rule that the safety argument rests on."""
    for seed in range(3000):
        try:
            Walk(seed, raft=mutant, **habits).walk(STEPS)
        except AssertionError:
            return
    pytest.fail("nobody noticed")


@pytest.mark.parametrize(
    ("mutant", "story"),
    [
        (CommitsOldTermsByCounting, "commit_figure_8"),
        (TakesWritesByIndexAlone, "async_self_ack_after_term_change"),
        (TakesWritesByEntryAlone, "async_append_aba_race"),
        (SpeaksBeforeItsDisk, "async_vote_is_not_cast_twice"),
        (CountsItselfAtOnce, "async_slow_disk_of_a_lone_voter"),
        (ReadsBeforeItsFirstCommit, "read_new_leader"),
        (ReadsWithoutAsking, "read_old_leader"),
        (VotesForAnyLog, "election_dueling_pre_candidates"),
        (VotesTwice, "election_split_vote"),
    ],
)
def test_a_story_finds_out_a_faulty_member(mutant: type[Raft], story: str) -> None:
    """The golden script of a rule ends otherwise, or in an assert, without the rule."""
    text = (SCRIPTS / f"{story}.txt").read_text()
    assert Runner().run(text) == text
    try:
        told = Runner(mutant).run(text)
    except (AssertionError, ScriptError):
        return
    assert told != text
