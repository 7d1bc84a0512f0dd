"""Properties that hold for every program, so that no truth by hand is needed."""

from __future__ import annotations

import dataclasses
import random

import pytest

from formats import formats_of
from matches import Match, match, renamed, unnamed, with_aside, without_optimizer
from outcomes import case_of, run
from programs import Program, random_program
from refactors import Refactor, random_refactor, refactored

BATCH = 12
batches = pytest.mark.parametrize("start", range(0, 3 * BATCH, BATCH))
pytestmark = pytest.mark.slow


def programs(start: int) -> list[tuple[random.Random, Program]]:
    """A dozen programs, each with the dice that made it."""
    dice = [random.Random(90_000 + seed) for seed in range(start, start + BATCH)]
    return [(rng, random_program(rng)) for rng in dice]


def changes(start: int, *kinds: str) -> list[Refactor]:
    """A refactor of each of a dozen programs; of one of these kinds where any are given."""
    if not kinds:
        return [random_refactor(rng, program) for rng, program in programs(start)]
    found = [refactored(rng, program, rng.choice(kinds)) for rng, program in programs(start)]
    return [refactor for refactor in found if refactor is not None]


def model_roles(roles: dict[str, str]) -> dict[str, str]:
    """Without the optimizer's."""
    return {
        target: source for target, source in roles.items() if "@" not in target and "." in source and "/" not in source
    }


def told(refactor: Refactor, first: Match, second: Match) -> str:
    return f"{refactor}\n{first}\n{second}"


def _match_in(refactor: Refactor, form: str) -> Match | None:
    """What a file of this kind gives; None where Keras itself cannot write it, for two layers have one name."""
    try:
        return match(refactor.old, refactor.new, form)
    except ValueError as error:
        if "name already exists" in str(error):
            return None
        raise


@batches
def test_identity_a_program_reads_its_own_checkpoint(start: int) -> None:
    for _, program in programs(start):
        found = match(program, program)
        assert not found.error, (program, found.error)
        wrong = {role: found.pairs.get(role) for role in found.present if found.pairs.get(role) != role}
        if (
            program.library == "tf_keras"
        ):  # docs/dev/known_gaps.md: slots whose owners' names are not unique are refused
            wrong = {role: source for role, source in wrong.items() if "@" not in role or source is not None}
        assert not wrong, (program, wrong)
        assert not {role for role in found.refused & found.present if "@" not in role}


@batches
def test_native_what_plain_tensorflow_restores_rightly_is_restored(start: int) -> None:
    cases = [case_of(seed) for seed in range(90_000 + start, 90_000 + start + BATCH)]
    outcomes = [run(dataclasses.replace(case, rules="none", late=False)) for case in cases]
    for outcome in outcomes:
        assert outcome.kind not in ("quietly_wrong", "crashed"), outcome
        assert outcome.native != "right" or outcome.kind != "marked", outcome
    needless = [outcome for outcome in outcomes if outcome.kind == "refused_needless"]
    assert len(needless) <= 1, needless  # docs/dev/known_gaps.md; `test_differential` counts them over more cases


@batches
def test_counters_what_was_built_before_changes_no_match(start: int) -> None:
    for refactor in changes(start):
        first = match(refactor.old, refactor.new)
        later = dataclasses.replace(refactor.new, before=refactor.new.before + 3)
        assert match(refactor.old, later) == first, told(refactor, first, match(refactor.old, later))


@batches
def test_counters_a_layer_without_variables_changes_no_match(start: int) -> None:
    for rng, program in programs(start):
        dropped = refactored(rng, program, "add dropout")
        if dropped is not None:
            first, second = match(program, program), match(program, dropped.new)
            assert second.pairs == first.pairs, told(dropped, first, second)


@batches
def test_lines_in_another_order_give_the_same_match_or_a_refusal(start: int) -> None:
    for refactor in changes(start, "made lines", "lines", "attribute lines"):
        found = match(refactor.old, refactor.new)
        wrong = {target: source for target, source in found.sure.items() if target != source}
        assert not wrong, (refactor, wrong)


@batches
@pytest.mark.parametrize("witness", ["slots", "layer names"])
def test_taking_a_witness_away_gives_no_other_source(start: int, witness: str) -> None:
    take = without_optimizer if witness == "slots" else unnamed
    for refactor in changes(start):
        first, second = match(refactor.old, refactor.new), match(take(refactor.old), take(refactor.new))
        for target, source in second.sure.items():
            assert first.sure.get(target, source) == source, (target, told(refactor, first, second))


@batches
def test_duality_back_is_the_inverse_of_forth(start: int) -> None:
    for refactor in changes(start):
        forth, back = match(refactor.old, refactor.new), match(refactor.new, refactor.old)
        for target, source in model_roles(forth.pairs).items():
            assert back.pairs.get(source, target) == target, (source, told(refactor, forth, back))


@batches
def test_locality_an_unrelated_model_changes_nothing_elsewhere(start: int) -> None:
    for refactor in changes(start):
        if refactor.old.bare or refactor.new.bare or refactor.old.optimizer or refactor.new.optimizer:
            continue
        alone = match(refactor.old, refactor.new)
        beside = match(with_aside(refactor.old), with_aside(refactor.new))
        others = {target: source for target, source in beside.pairs.items() if not target.startswith("aside")}
        assert others == alone.pairs, told(refactor, alone, beside)


@batches
def test_renaming_everything_on_both_sides_changes_nothing(start: int) -> None:
    for refactor in changes(start):
        first = match(refactor.old, refactor.new)
        second = match(renamed(refactor.old), renamed(refactor.new))
        assert second.pairs == first.pairs, told(refactor, first, second)


@batches
def test_formats_give_the_same_match_or_a_refusal(start: int) -> None:
    for refactor in changes(start):
        forms = {form: _match_in(refactor, form) for form in formats_of(refactor.old)}
        found = {form: one for form, one in forms.items() if one is not None}
        sources: dict[str, str] = {}
        for form, one in found.items():
            for target, source in one.sure.items():
                assert sources.setdefault(target, source) == source, (form, target, refactor, found)
