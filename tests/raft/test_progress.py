"""What a leader believes about a member: the window, and the way between probing and replicating."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.raft.progress import Inflight, Progress, ProgressState
from tests.raft.harness import PROPERTY


@PROPERTY
@given(
    st.integers(1, 4),
    st.integers(1, 100),
    st.lists(st.one_of(st.tuples(st.just("add"), st.integers(0, 60)), st.tuples(st.just("free"), st.integers(0, 12)))),
)
def test_the_window_holds_what_was_sent_and_not_answered(
    count_max: int, bytes_max: int, steps: list[tuple[str, int]]
) -> None:
    """Against a list. It is full at the count, or once the bytes have reached their limit, never before."""
    window = Inflight(count_max, bytes_max)
    dumb: list[tuple[int, int]] = []
    last = 0
    for step, number in steps:
        if step == "add" and not window.full:
            last += 1
            window.add(last, number)
            dumb.append((last, number))
        elif step == "free":
            window.free_to(number)
            dumb = [sent for sent in dumb if sent[0] > number]
        size = sum(size for _, size in dumb)
        assert (len(window), window.bytes) == (len(dumb), size)
        assert window.full == (len(dumb) >= count_max or size >= bytes_max)
    window.clear()
    assert (len(window), window.bytes, window.full) == (0, 0, False)


def test_the_window_takes_nothing_when_it_is_full_nor_out_of_order() -> None:
    """Whoever tries has miscounted what is in flight."""
    window = Inflight(2, 100)
    window.add(5, 1)
    with pytest.raises(AssertionError):
        window.add(5, 1)
    window.add(6, 1)
    with pytest.raises(AssertionError):
        window.add(7, 1)


def replicating(match: int, next: int) -> Progress:
    progress = Progress(match + 1, Inflight(9, 999), match)
    progress.accepted(match)
    progress.next = next
    assert progress.state is ProgressState.REPLICATE
    return progress


def test_an_acknowledgement_ends_probing_and_starts_after_it() -> None:
    """What was sent as a probe is part of it."""
    progress = Progress(next=8, inflight=Inflight(9, 999))
    progress.paused = True
    assert progress.accepted(5)
    assert (progress.state, progress.match, progress.next, progress.paused) == (ProgressState.REPLICATE, 5, 6, False)


def test_an_old_acknowledgement_takes_nothing_back() -> None:
    """match only grows, next stays in front of it."""
    progress = replicating(match=5, next=9)
    for index in (3, 5):
        assert not progress.accepted(index)
        assert (progress.match, progress.next, progress.state) == (5, 9, ProgressState.REPLICATE)


def test_an_acknowledgement_of_what_was_sent_before_a_loss_was_suspected_counts() -> None:
    """It had been sent, the leader went back, and it had arrived after all: nothing up to it is sent again."""
    progress = replicating(match=5, next=6)
    assert progress.accepted(8)
    assert (progress.match, progress.next, progress.state) == (8, 9, ProgressState.REPLICATE)


def test_a_refusal_while_replicating_starts_over_from_what_is_known() -> None:
    """Something sent ahead was lost."""
    progress = replicating(match=5, next=9)
    progress.inflight.add(8, 10)
    progress.told = 8
    progress.ping = True
    progress.rejected(7, 6)
    assert (progress.state, progress.match, progress.next) == (ProgressState.PROBE, 5, 6)
    assert (len(progress.inflight), progress.told, progress.ping) == (0, 5, False)


def test_a_refusal_of_what_has_been_acknowledged_since_is_old() -> None:
    """Messages overtake each other."""
    progress = replicating(match=5, next=9)
    progress.rejected(5, 2)
    assert (progress.state, progress.next) == (ProgressState.REPLICATE, 9)


def test_a_refused_probe_goes_back_to_the_hint_but_never_behind_what_is_known() -> None:
    """Raft paper 5.3: back by whole terms. One step at least, or it would ask the same again."""
    for probe, next in ((3, 4), (9, 7), (1, 3)):
        progress = Progress(next=8, inflight=Inflight(9, 999), match=2)
        progress.paused = True
        progress.rejected(7, probe)
        assert (progress.next, progress.paused, progress.state) == (next, False, ProgressState.PROBE), probe


def test_the_refusal_of_another_probe_than_the_last_is_old() -> None:
    """It would let a second probe out, and a third."""
    progress = Progress(next=8, inflight=Inflight(9, 999))
    progress.paused = True
    progress.rejected(9, 3)
    assert (progress.next, progress.paused) == (8, True)


def test_a_suspected_loss_asks_only_if_something_is_unanswered() -> None:
    """REPLICATE asks by an append of its own; PROBE repeats its probe."""
    progress = replicating(match=5, next=6)
    progress.suspect_loss(last_index=5)
    assert not progress.ping
    progress.suspect_loss(last_index=6)
    assert progress.ping
    progress = Progress(next=8, inflight=Inflight(9, 999))
    progress.paused = True
    progress.suspect_loss(last_index=9)
    assert (progress.paused, progress.ping) == (False, False)
