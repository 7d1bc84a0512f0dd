"""Optimizer slots follow their owners, by role and owner, whatever is done to these."""

from __future__ import annotations

import re

import pytest

from build import Families, checkpoint, entry, filled, plan, problems, program, statuses
from dist_restore.core.errors import RuleError
from dist_restore.core.index import Group
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.rules.rule_set import RuleSet

A, B = "model/a/w 4\n", "model/b/w 4\n"
MOMENTS = "momentum@model/a/w\nvelocity@model/a/w\n"
SCALE = '[[rule]]\nfrom = "model/a/w"\nto = "model/a/w"\nops = [{ scale = { by = 0.5 } }]\n'


def classes(
    theirs: str, ours: str, source: str = A + MOMENTS, target: str = A + MOMENTS, rules: str = ""
) -> RestorePlan:
    """A plan between two optimizer classes, each `family` or `family:label`."""
    return plan(checkpoint(source, {"optimizer": theirs}), program(target, {"optimizer": ours}), rules)


def slot(role: str, owner: str = "model/a/w", optimizer: str = "optimizer") -> str:
    return f"{optimizer}/{role}/{owner}"


# ---- Owners lead -----------------------------------------------------------------------------------------


def test_slots_follow_a_rename() -> None:
    done = plan(A + MOMENTS, "model/x/w 4\nmomentum@model/x/w\nvelocity@model/x/w", {"model/a/w": "model/x/w"})
    assert filled(done) == {
        "model/x/w": "model/a/w",
        slot("momentum", "model/x/w"): slot("momentum"),
        slot("velocity", "model/x/w"): slot("velocity"),
    }
    assert entry(done, slot("momentum", "model/x/w")).group is Group.OPTIMIZER
    assert "rule 1" in entry(done, slot("momentum", "model/x/w")).evidence


def test_slots_follow_an_aligned_root_and_another_order() -> None:
    source = "net/a/w 4\nnet/b/w 4\nmomentum@net/b/w\nmomentum@net/a/w"
    done = plan(source, A + B + "momentum@model/a/w\nmomentum@model/b/w")
    assert filled(done)[slot("momentum", "model/a/w")] == slot("momentum", "net/a/w")
    assert filled(done)[slot("momentum", "model/b/w")] == slot("momentum", "net/b/w")


def test_slots_of_exchanged_variables_are_exchanged() -> None:
    text = A + B + "momentum@model/a/w\nmomentum@model/b/w"
    done = plan(text, text, {"model/a/w": "model/b/w", "model/b/w": "model/a/w"})
    assert filled(done)[slot("momentum", "model/a/w")] == slot("momentum", "model/b/w")


def test_slots_are_joined_as_their_owners_are() -> None:
    rules = '[[rule]]\nfrom = ["q", "k"]\nto = "qk"\nops = [{ concat = { axis = 0 } }]'
    done = plan("q 2\nk 2\nmomentum@q\nmomentum@k", "qk 4\nmomentum@qk", rules)
    assert filled(done)[slot("momentum", "qk")] == f"{slot('momentum', 'q')} + {slot('momentum', 'k')}"
    assert [op.NAME for op in entry(done, slot("momentum", "qk")).ops] == ["concat"]


def test_slots_are_parted_as_their_owner_is() -> None:
    rules = '[[rule]]\nfrom = "qk"\nto = ["q", "k"]\nops = [{ split = { axis = 0 } }]'
    done = plan("qk 4\nmomentum@qk", "q 2\nk 2\nmomentum@q\nmomentum@k", rules)
    parts = [entry(done, slot("momentum", name)).ops[0].part for name in "qk"]  # type: ignore[attr-defined]
    assert parts == [0, 1]


def test_new_elements_of_a_slot_are_zero_and_not_the_owners_fill() -> None:
    rules = '[[rule]]\nfrom = "e"\nto = "e"\nops = [{ fit = { fill = "keep" } }]'
    done = plan("e 4\nmomentum@e\naverage@e", "e 6\nmomentum@e\naverage@e", rules.replace("keep", "mean"))
    fills = {name: entry(done, name).ops[0].fill.value for name in filled(done)}  # type: ignore[attr-defined]
    assert fills == {"e": "mean", slot("momentum", "e"): "zeros", slot("average", "e"): "mean"}
    assert statuses(done)[slot("momentum", "e")] == "resized"


def test_an_explicit_rule_for_a_slot_wins() -> None:
    text = A + B + "momentum@model/a/w\nmomentum@model/b/w"
    done = plan(text, text, {slot("momentum", "model/b/w"): slot("momentum", "model/a/w")})
    assert filled(done)[slot("momentum", "model/a/w")] == slot("momentum", "model/b/w")
    assert filled(done)[slot("momentum", "model/b/w")] == slot("momentum", "model/b/w")


def test_slots_of_what_is_kept_are_kept() -> None:
    done = plan("model/b/w 4", A + B + MOMENTS, '[[rule]]\nkeep = "model/a/{rest}"')
    assert statuses(done) == {
        "model/a/w": "kept",
        "model/b/w": "exact",
        slot("momentum"): "kept",
        slot("velocity"): "kept",
    }
    assert entry(done, slot("momentum")).evidence == "rule 1"


def test_slots_of_what_is_dropped_are_not_used() -> None:
    done = plan(A + B + MOMENTS, B, '[[rule]]\ndrop = "model/a/{rest}"')
    reasons = {u.name: u.reason for u in done.unused}
    assert reasons["model/a/w"] == "dropped by rule 1"
    assert "'model/a/w'" in reasons[slot("momentum")]


def test_a_dropped_slot_is_not_used_and_its_target_is_refused() -> None:
    done = plan(A + MOMENTS, A + MOMENTS, f'[[rule]]\ndrop = "{slot("velocity")}"')
    assert problems(done) == {slot("velocity"): "unmatched"}
    assert filled(done)[slot("momentum")] == slot("momentum")


@pytest.mark.parametrize(
    ("source", "problem"),
    [("model/c/w 4", "unmatched"), ("model/a/w 5", "unmatched"), (A + "model/x/w 4 sem:model/z/w", "ambiguous")],
)
def test_slots_of_what_is_refused_are_refused(source: str, problem: str) -> None:
    target = "model/a/w 4 sem:model/z/w\nmomentum@model/a/w" if problem == "ambiguous" else A + "momentum@model/a/w"
    done = plan(source + "\nmodel/y/w 4\nmomentum@model/y/w", target)
    assert problems(done)[slot("momentum")] == problem


def test_a_slot_that_is_not_stored_is_refused_and_may_be_kept() -> None:
    source, target = A + B + "momentum@model/b/w", A + B + "momentum@model/a/w\nmomentum@model/b/w"
    done = plan(source, target)
    assert problems(done) == {slot("momentum"): "unmatched"}
    assert "no slot 'momentum' of 'model/a/w'" in entry(done, slot("momentum")).reason
    assert statuses(plan(source, target, keep=True))[slot("momentum")] == "kept"


def test_a_checkpoint_without_slots_says_so() -> None:
    assert "holds no optimizer slots" in entry(plan(A, A + MOMENTS), slot("momentum")).reason


def test_a_slot_without_its_owner_in_the_model_is_refused() -> None:
    target = program("momentum@model/a/w 4")
    assert problems(plan(A + MOMENTS, target)) == {slot("momentum"): "unmatched"}


def test_a_slot_of_an_optimizer_that_nobody_described_is_refused() -> None:
    target = program(A + MOMENTS)
    bare = type(target)(target.variables, ())
    assert set(problems(plan(A + MOMENTS, bare))) == {slot("momentum"), slot("velocity")}


# ---- Classes of optimizers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("adam", "adam"),
        ("adam", "adamw"),
        ("nadam", "adam"),
        ("lamb", "lamb"),
        (":my_opt", "adam:my_opt"),
        ("adam:adam", "myadam:adam"),
        ("adam:Adam", "adam:adam_3"),
    ],
)
def test_roles_map_between_classes_that_mean_the_same(theirs: str, ours: str) -> None:
    done = classes(theirs, ours)
    assert filled(done)[slot("momentum")] == slot("momentum")
    assert filled(done)[slot("velocity")] == slot("velocity")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("rmsprop", "adam"),
        ("adam", "rmsprop"),
        ("adamax", "adam"),
        (":my_opt", "adam"),
        (":my_opt", "adam:other"),
        ("myadam:x", "adam:adam"),
        (":", "adam:"),
    ],
)
def test_any_other_change_of_class_is_refused(theirs: str, ours: str) -> None:
    done = classes(theirs, ours)
    assert set(problems(done)) == {slot("momentum"), slot("velocity")}
    assert "[slots]" in entry(done, slot("momentum")).reason


def test_an_equal_name_does_not_hide_other_roles() -> None:
    """RMSprop(name="opt") to SGD(name="opt"): both have a momentum, and it is not the same."""
    done = classes(":opt", "sgd:opt", target=A + "momentum@model/a/w")
    assert problems(done) == {slot("momentum"): "unmatched"}


def test_slots_table_declares_a_role() -> None:
    rules = '[slots]\nvelocity = "momentum"'
    done = classes("rmsprop", "sgd", A + "velocity@model/a/w", A + "momentum@model/a/w", rules)
    assert filled(done)[slot("momentum")] == slot("velocity")


def test_the_message_of_a_refusal_has_the_table_that_allows_it() -> None:
    source, target = A + "velocity@model/a/w", A + "momentum@model/a/w"
    reason = entry(classes("rmsprop", "sgd", source, target), slot("momentum")).reason
    shown = reason[reason.index("[slots]") :].rstrip(".").replace("[slots] ", "[slots]\n")
    with pytest.raises(RuleError):  # no role is proposed: it is a decision
        RuleSet.from_toml(shown)
    rules = shown.replace("<that role>", "velocity")
    assert filled(classes("rmsprop", "sgd", source, target, rules))[slot("momentum")] == slot("velocity")


@pytest.mark.parametrize("pair", ['nothing = "momentum"', 'velocity = "nothing"'])
def test_a_slots_table_that_fits_nothing_is_an_error(pair: str) -> None:
    with pytest.raises(RuleError, match=r"\[slots\].*matched nothing"):
        classes("adam", "adam", rules=f"[slots]\n{pair}")


def test_averages_mean_the_same_in_all_classes() -> None:
    source = A + "momentum@model/a/w\nvelocity@model/a/w\naverage@model/a/w"
    done = classes("adam", "sgd", source, A + "momentum@model/a/w\naverage@model/a/w")
    assert filled(done)[slot("average")] == slot("average")
    assert problems(done) == {slot("momentum"): "unmatched"}


def test_use_ema_turned_off_leaves_the_averages_unused() -> None:
    done = plan(A + MOMENTS + "average@model/a/w", A + MOMENTS)
    assert filled(done)[slot("velocity")] == slot("velocity")
    assert [u.name for u in done.unused] == [slot("average")]


def test_use_ema_turned_on_is_refused_until_averages_begin_as_their_weights() -> None:
    target = A + MOMENTS + "average@model/a/w"
    done = plan(A + MOMENTS, target)
    assert problems(done) == {slot("average"): "unmatched"}
    names = ("model/{rest}", "optimizer/average/model/{rest}")
    assert f'from = "{names[0]}", to = "{names[1]}"' in entry(done, slot("average")).reason
    seeded = plan(A + MOMENTS, target, {names[0]: names[1]})
    assert seeded.problems == ()
    assert filled(seeded)[slot("average")] == filled(seeded)["model/a/w"] == "model/a/w"


# ---- Several optimizers, wrapped optimizers --------------------------------------------------------------


def two(optimizers: str) -> str:
    first, second = optimizers.split()
    return A + B + f"momentum@model/a/w opt:{first}\nmomentum@model/b/w opt:{second}"


def test_each_optimizer_keeps_its_own() -> None:
    done = plan(two("opt_a opt_b"), two("opt_a opt_b"))
    assert filled(done)[slot("momentum", "model/a/w", "opt_a")] == slot("momentum", "model/a/w", "opt_a")
    assert filled(done)[slot("momentum", "model/b/w", "opt_b")] == slot("momentum", "model/b/w", "opt_b")


def test_a_renamed_optimizer_is_known_by_whose_slots_it_holds() -> None:
    done = plan(two("opt_a opt_b"), two("first second"))
    assert filled(done)[slot("momentum", "model/b/w", "second")] == slot("momentum", "model/b/w", "opt_b")


def test_optimizers_that_changed_their_variables_are_refused() -> None:
    done = plan(two("opt_a opt_b"), two("opt_b opt_a"))
    assert len(problems(done)) == 2


def test_two_optimizers_of_one_variable_are_not_told_apart_by_a_new_name() -> None:
    source = A + "momentum@model/a/w opt:opt_a\nmomentum@model/a/w opt:opt_b"
    done = plan(source, A + "momentum@model/a/w opt:opt_c")
    assert "'opt_a', 'opt_b'" in entry(done, slot("momentum", "model/a/w", "opt_c")).reason


@pytest.mark.parametrize(
    ("theirs", "ours"), [("optimizer", "optimizer/inner_optimizer"), ("optimizer/inner_optimizer", "optimizer")]
)
def test_a_loss_scale_wrapper_is_put_on_and_taken_off(theirs: str, ours: str) -> None:
    def side(name: str) -> str:
        wrapper = f"optimizer/dynamic_scale -\n{name}/iterations - int64\n"
        return A + (wrapper if "inner" in name else "optimizer/iterations - int64\n") + f"momentum@model/a/w opt:{name}"

    families: Families = {"optimizer": "adam"}
    done = plan(checkpoint(side(theirs), families), program(side(ours), families), keep=True)
    assert filled(done)[slot("momentum", "model/a/w", ours)] == slot("momentum", "model/a/w", theirs)


# ---- Ops -------------------------------------------------------------------------------------------------


def scales(done: RestorePlan) -> dict[str, float]:
    return {n: op.by for n in filled(done) for op in entry(done, n).ops if op.NAME == "scale"}  # type: ignore[attr-defined]


def test_slots_scale_by_their_degree() -> None:
    text = A + MOMENTS + "average@model/a/w"
    assert scales(plan(text, text, SCALE)) == {
        "model/a/w": 0.5,
        slot("momentum"): 2.0,
        slot("velocity"): 4.0,
        slot("average"): 0.5,
    }


def test_rmsprops_momentum_holds_steps_and_does_not_scale() -> None:
    found = scales(classes("rmsprop", "rmsprop", rules=SCALE))
    assert found[slot("velocity")] == 4.0
    assert found.get(slot("momentum"), 1.0) == 1.0


def test_a_declared_role_scales_as_what_it_is_in_the_checkpoint() -> None:
    rules = SCALE + '[slots]\nvelocity = "momentum"'
    done = classes("rmsprop", "sgd", A + "velocity@model/a/w", A + "momentum@model/a/w", rules)
    assert scales(done)[slot("momentum")] == 4.0


def test_a_role_of_unknown_degree_is_not_scaled() -> None:
    text = A + "whatever@model/a/w"
    done = plan(text, text, SCALE)
    assert problems(done) == {slot("whatever"): "unmatched"}
    assert "scaled" in entry(done, slot("whatever")).reason


def test_slots_of_another_shape_than_their_owner_follow_a_rename_only() -> None:
    source, target = "model/a/w 4x3\nr@model/a/w 4", "model/x/w 4x3\nr@model/x/w 4"
    assert filled(plan(source, target, {"model/a/w": "model/x/w"}))[slot("r", "model/x/w")] == slot("r")
    rules = '[[rule]]\nfrom = "model/a/w"\nto = "model/x/w"\nops = [{ transpose = { perm = [1, 0] } }]'
    done = plan(source, "model/x/w 3x4\nr@model/x/w 3", rules)
    assert problems(done) == {slot("r", "model/x/w"): "unmatched"}
    assert "another shape than its owner" in entry(done, slot("r", "model/x/w")).reason


def test_a_cast_of_the_owner_is_not_the_slots() -> None:
    rules = '[[rule]]\nfrom = "model/a/w"\nto = "model/a/w"\nops = [{ cast = { dtype = "float16" } }]'
    done = plan(A + MOMENTS, "model/a/w 4 float16\nmomentum@model/a/w\nvelocity@model/a/w float16", rules)
    assert entry(done, slot("momentum")).ops == ()
    assert [op.NAME for op in entry(done, slot("velocity")).ops] == ["cast"]


def test_a_slot_of_another_shape_than_its_target_is_a_shape_problem() -> None:
    done = plan("model/a/w 4x3\nr@model/a/w 4", "model/a/w 4x3\nr@model/a/w 5")
    assert problems(done) == {slot("r"): "shape"}


# ---- What is advised for slots that the checkpoint lacks -------------------------------------------------

BODY = ("model/body/a/w", "model/body/a/b", "model/body/c/w")
HEAD = ("model/head/w",)


def with_slots(owners: tuple[str, ...], slots: tuple[str, ...], *roles: str) -> str:
    return "\n".join([*(f"{o} 4" for o in owners), *(f"{r}@{o}" for r in roles for o in slots)])


def advised(done: RestorePlan) -> dict[str, str]:
    """Slot -> what its message says to keep."""
    found = {e.target: re.findall(r'keep = "([^"]*)"', e.reason) for e in done.problems}
    return {name: "".join(rules) for name, rules in found.items()}


def test_where_a_part_was_frozen_only_its_slots_are_advised_to_be_kept() -> None:
    """The checkpoint has the head's moments: `optimizer/momentum/{rest}` would throw them away."""
    source = with_slots(BODY + HEAD, HEAD, "momentum", "velocity")
    target = with_slots(BODY + HEAD, BODY + HEAD, "momentum", "velocity")
    rules = set(advised(plan(source, target)).values())
    assert rules == {f"optimizer/{role}/model/body/{{rest}}" for role in ("momentum", "velocity")}
    done = plan(source, target, "".join(f"[[rule]]\nkeep = '{rule}'\n" for rule in sorted(rules)))
    assert not done.problems
    assert {slot for slot in filled(done) if "head" in slot and "optimizer" in slot} == {
        "optimizer/momentum/model/head/w",
        "optimizer/velocity/model/head/w",
    }


def test_a_single_slot_is_advised_by_its_name() -> None:
    source = with_slots(BODY, BODY[1:], "momentum")
    assert advised(plan(source, with_slots(BODY, BODY, "momentum"))) == {
        "optimizer/momentum/model/body/a/w": "optimizer/momentum/model/body/a/w"
    }


def test_a_role_that_the_checkpoint_has_for_no_variable_is_advised_as_a_whole() -> None:
    source = with_slots(BODY + HEAD, BODY + HEAD, "momentum", "velocity")
    target = with_slots(
        ("model/new", *BODY, *HEAD), ("model/new", *BODY, *HEAD), "momentum", "velocity", "velocity_hat"
    )
    found = advised(plan(source, target))
    assert {found[f"optimizer/velocity_hat/{o}"] for o in BODY + HEAD} == {"optimizer/velocity_hat/{rest}"}


def test_numbered_state_is_not_guessed_at() -> None:
    """Which number is which role nobody can tell: a rule that could be pasted would be a wrong weight."""
    numbers = "\n".join(f"optimizer/vars/{i} 4 kind:positional" for i in range(3))
    sources = checkpoint(f"model/a/w 4\n{numbers}", {"optimizer": ":"})
    done = plan(sources, "model/a/w 4\nmomentum@model/a/w\nvelocity@model/a/w")
    for role in ("momentum", "velocity"):
        reason = entry(done, slot(role)).reason
        assert not re.search(r"optimizer/vars/\d", reason)
        assert f'from = "optimizer/vars/<number>", to = "{slot(role)}"' in reason
        assert "3 of them have this shape" in reason and "optimizer.variables" in reason


# ---- Averages as weights, and several optimizers ---------------------------------------------------------

AVERAGED = A + MOMENTS + "average@model/a/w\n"
FROM_AVERAGE = '[[rule]]\nfrom = "optimizer/average/model/a/w"\nto = "model/a/w"\n'
FROM_RAW = '[[rule]]\nfrom = "optimizer/{role}/model/{rest}"\nto = "optimizer/{role}/model/{rest}"\n'


def test_a_weight_that_is_filled_from_its_average_takes_no_moments_unasked() -> None:
    done = plan(AVERAGED, AVERAGED, FROM_AVERAGE, keep=True)
    assert entry(done, "model/a/w").sources == (slot("average"),)
    assert not entry(done, slot("momentum")).sources
    assert "to which no 'momentum' belongs" in entry(done, slot("momentum")).reason
    assert f'or from = "{slot("momentum")}", to = "{slot("momentum")}"' in entry(done, slot("momentum")).reason
    assert entry(done, slot("average")).sources == (slot("average"),)


def test_a_pattern_says_that_the_moments_of_the_raw_weights_are_meant() -> None:
    done = plan(AVERAGED, AVERAGED, FROM_AVERAGE + FROM_RAW)
    assert {t: s for t, s in filled(done).items() if t != "model/a/w"} == {
        slot(role): slot(role) for role in ("average", "momentum", "velocity")
    }


def test_a_pattern_says_which_optimizer_is_meant() -> None:
    source = A + "momentum@model/a/w opt:first\nmomentum@model/a/w opt:second"
    rule = '[[rule]]\nfrom = "second/{rest}"\nto = "optimizer/{rest}"'
    done = plan(source, A + "momentum@model/a/w", rule)
    assert filled(done)[slot("momentum")] == slot("momentum", optimizer="second")


def test_a_slot_that_another_optimizer_has_is_offered() -> None:
    source = A + B + "momentum@model/a/w\nmomentum@model/b/w opt:other"
    done = plan(source, A + B + "momentum@model/a/w\nmomentum@model/b/w")
    said = entry(done, slot("momentum", "model/b/w")).reason
    assert 'To take that of another optimizer: from = "other/momentum/model/b/w"' in said
    assert f'to = "{slot("momentum", "model/b/w")}"' in said


def test_an_optimizer_without_slots_is_named_with_its_class() -> None:
    done = classes("sgd", "sgd", source=A + "optimizer/iterations - int64", target=A + "momentum@model/a/w")
    said = entry(done, slot("momentum")).reason
    assert "the checkpoint's optimizer 'optimizer' (sgd) keeps no slots" in said


def test_an_average_of_what_is_joined_is_seeded_from_no_single_tensor() -> None:
    rules = '[[rule]]\nfrom = ["q", "k"]\nto = "qk"\nops = [{ concat = { axis = 0 } }]'
    done = plan("q 2\nk 2\nmomentum@q\nmomentum@k", "qk 4\nmomentum@qk\naverage@qk", rules)
    assert "It must begin as what its variable is" not in entry(done, slot("average", "qk")).reason


def test_a_class_that_nothing_gives_away_is_called_by_its_name() -> None:
    done = classes(":mine", "rmsprop", target=A + "velocity@model/a/w")
    said = entry(done, slot("velocity")).reason
    assert "class changed from unknown (named 'mine') to rmsprop" in said


def test_new_elements_of_what_is_divided_by_may_not_be_zero() -> None:
    rule = '[[rule]]\nfrom = "model/a/w"\nto = "model/a/w"\nops = [{ fit = { fill = "zeros" } }]'
    done = classes("ftrl", "ftrl", A + "accumulator@model/a/w", "model/a/w 6\naccumulator@model/a/w", rule)
    assert "by which this optimizer divides" in entry(done, slot("accumulator")).reason
