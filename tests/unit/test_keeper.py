"""The pause before something that died is started again."""

from __future__ import annotations

from cluster.keeper import Backoff


def test_the_pause_doubles_from_50_ms_to_5_s_while_lives_are_short() -> None:
    backoff = Backoff()
    assert [backoff.pause(0.1) for _ in range(9)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_after_a_life_of_10_s_it_is_the_shortest_again() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.pause(9.9)
    assert backoff.pause(10.0) == 0.05
    assert backoff.pause(0.0) == 0.1
