"""The simulator must be able to fail: whatever is wrong is caught within its number of seeds."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import attempt
from tests.simulation.mutants import MUTANTS, Mutant

_CANNOT_RUN = ("AttributeError", "NameError", "TypeError", "ImportError")
"""What becomes of a mutant whose original has changed under it."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_caught(mutant: Mutant) -> None:
    """RELIABILITY section 2: a test that no longer finds the old bug is broken."""
    for seed in range(mutant.seeds):
        wrong = attempt(seed, mutant=mutant).wrong
        if wrong:
            assert not wrong[0].startswith(_CANNOT_RUN), f"{mutant.name} breaks nothing, it cannot run: {wrong[0]}"
            return
    pytest.fail(f"{mutant.name} was not caught within {mutant.seeds} seeds: it breaks a rule and nobody noticed")
