"""The simulator must be able to fail: whatever is wrong is caught within its number of seeds."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import attempt
from tests.simulation.mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_mutant_is_caught(mutant: Mutant) -> None:
    """RELIABILITY section 2: a test that no longer finds the old bug is broken."""
    for seed in range(mutant.seeds):
        if attempt(seed, mutant=mutant).wrong:
            return
    pytest.fail(f"{mutant.name} was not caught within {mutant.seeds} seeds: it breaks a rule and nobody noticed")
