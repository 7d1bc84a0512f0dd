"""Random programs, refactored at random: nothing is quietly wrong, and nothing is refused without need."""

from __future__ import annotations

import collections
import random

import numpy as np
import pytest

from outcomes import case_of, filled, fresh
from programs import random_program
from refactors import PRESERVING, refactored
from run import line, run_all

CHUNK = 100
CHUNKS = 5


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_nothing_is_quietly_wrong_and_little_is_refused_without_need(chunk: int) -> None:
    outcomes = run_all(range(chunk * CHUNK, (chunk + 1) * CHUNK))
    bad = [line(o) for o in outcomes if o.kind in ("quietly_wrong", "crashed")]
    assert not bad, "\n".join(bad)
    needless = [line(o) for o in outcomes if o.kind == "refused_needless"]
    assert len(needless) <= 0.02 * CHUNK, "\n".join(needless)
    kinds = collections.Counter(o.kind for o in outcomes)
    assert kinds["right"] > CHUNK / 4
    assert kinds["impossible"] <= 0.02 * CHUNK


@pytest.mark.parametrize("kind", list(PRESERVING))
def test_a_program_refactored_and_filled_by_role_computes_what_it_did(kind: str) -> None:
    checked, seed = 0, 0
    while checked < 3:
        seed += 1
        rng = random.Random(f"{kind} {seed}")
        refactor = refactored(rng, random_program(rng), kind)
        if refactor is None:
            continue
        old = fresh(refactor.old)
        values = filled(old, 1)
        outputs = old.outputs()
        new = fresh(refactor.new)
        filled(new, 2)
        for role, variable in new.variables.items():
            variable.assign(values.get(role, variable))
        for was, found in zip(outputs, new.outputs(), strict=True):
            np.testing.assert_allclose(found, was, rtol=1e-3, err_msg=str(refactor))
        checked += 1


def test_a_seed_is_always_the_same_case() -> None:
    assert [case_of(seed) for seed in range(20)] == [case_of(seed) for seed in range(20)]
