"""Where entries lie, against a plain dictionary."""

from __future__ import annotations

import random
from array import array
from itertools import groupby

import pytest

from storage.places import Places


def check(places: Places, model: dict[int, tuple[int, int, int]]) -> None:
    """`model`: index -> (term, sequence, offset)."""
    assert list(model) == list(range(places.prev[0] + 1, places.last_index + 1))
    for index, (term, sequence, offset) in model.items():
        span = places.find(index)
        assert (places.term(index), span.sequence, span.offsets[index - span.first]) == (term, sequence, offset)
    runs = [(term, [i for i, _ in group]) for term, group in groupby(model.items(), key=lambda item: item[1][0])]
    assert places.terms == [(indexes[0], term) for term, indexes in runs]


@pytest.mark.parametrize("seed", range(10))
def test_a_random_life_agrees_with_a_dictionary(seed: int) -> None:
    dice = random.Random(seed)
    places, model = Places((0, 0)), dict[int, tuple[int, int, int]]()
    sequence, offset, term = 1, 512, 1
    for _ in range(300):
        act = dice.random()
        if act < 0.1 and places.last_index > places.prev[0]:
            cut = dice.randint(places.prev[0], places.last_index)
            places.cut(cut, places.term(cut))
            model = {index: row for index, row in model.items() if index <= cut}
            term += 1
        elif act < 0.2:
            sequence, offset = sequence + dice.randint(1, 2), 512
        elif act < 0.25:
            bound = dice.randint(0, places.last_index + 2)
            needed = places.needed_from(bound)
            above = [row[1] for index, row in model.items() if index > bound]
            assert needed == (min(above) if above else None)
            if needed is not None:
                before = places.term(min(i for i, row in model.items() if row[1] >= needed) - 1)
                places.forget_before(needed)
                model = {index: row for index, row in model.items() if row[1] >= needed}
                assert places.prev[1] == before
        else:
            term += dice.random() < 0.1
            count = dice.randint(1, 4)
            first = places.last_index + 1
            offsets = [offset + 40 * i for i in range(count)]
            for i, at in enumerate(offsets):
                model[first + i] = (term, sequence, at)
            if count == 1:
                places.add(first, term, sequence, offset, offset + 40)
            else:
                places.add_many(first, term, sequence, array("I", offsets), offset + 40 * count)
            offset += 40 * count
        check(places, model)


def test_a_cut_below_what_is_known_becomes_the_place_before_the_log() -> None:
    """The oldest segment's header says (100, 3), and its first record cuts the log to 50: so the log begins with 51."""
    places = Places((100, 3))
    places.cut(50, 2)
    assert (places.prev, places.last_index, places.terms) == ((50, 2), 50, [])
    places.add(51, 4, 9, 512, 560)
    assert (places.term(50), places.term(51), places.terms) == (2, 4, [(51, 4)])


def test_an_entry_out_of_turn_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Places((0, 0)).add(2, 1, 1, 512, 560)
