"""Counters and rates of optimizers, wrapped in others on one side or on both."""

from __future__ import annotations

import dataclasses

import pytest

from build import checkpoint, program
from dist_restore.core.index import CheckpointIndex, OptimizerInfo, TargetIndex
from dist_restore.planning.matching.optimizer_state import OptimizerState
from dist_restore.planning.matching.outcome import Conflict, Match

ITERATIONS = "{}/iterations - int64\n{}/learning_rate -"
WRAPPED = {"optimizer": "lossscaleoptimizer", "optimizer/inner_optimizer": "adam"}
BARE = {"optimizer": "adam"}


def state(*optimizers: str) -> str:
    return "\n".join(ITERATIONS.format(name, name) for name in optimizers)


def sides(
    source: CheckpointIndex, target: TargetIndex
) -> tuple[OptimizerState, dict[str, str], dict[str, tuple[tuple[str, ...], str]]]:
    """The object, what it matches as target -> source, and its conflicts as target -> candidates and reason."""
    known = OptimizerState(target, source)
    found = known.match(target.variables, source.tensors)
    matches = {name: one.source.name for name, one in found.items() if isinstance(one, Match)}
    conflicts = {
        name: (tuple(t.name for t in one.candidates), one.reason)
        for name, one in found.items()
        if isinstance(one, Conflict)
    }
    return known, matches, conflicts


def stepped(index: CheckpointIndex) -> CheckpointIndex:
    """Its optimizers have slots, so that they made a step."""
    infos = tuple(dataclasses.replace(o, roles=("momentum",)) for o in index.optimizers)
    return dataclasses.replace(index, optimizers=infos)


def accumulating(index: TargetIndex, *names: str) -> TargetIndex:
    return dataclasses.replace(index, optimizers=tuple(_with_role(o, names) for o in index.optimizers))


def _with_role(info: OptimizerInfo, names: tuple[str, ...]) -> OptimizerInfo:
    return dataclasses.replace(info, roles=("accumulated_gradient",)) if info.name in names else info


def test_the_optimizer_inside_is_the_other_sides_bare_one() -> None:
    bare, wrapped = state("optimizer"), state("optimizer", "optimizer/inner_optimizer")
    _, found, _ = sides(checkpoint(bare, BARE), program(wrapped, WRAPPED))
    assert found == {
        "optimizer/inner_optimizer/iterations": "optimizer/iterations",
        "optimizer/inner_optimizer/learning_rate": "optimizer/learning_rate",
    }
    known, found, _ = sides(checkpoint(wrapped, WRAPPED), program(bare, BARE))
    assert found == {
        "optimizer/iterations": "optimizer/inner_optimizer/iterations",
        "optimizer/learning_rate": "optimizer/inner_optimizer/learning_rate",
    }
    matched = known.match(program(bare, BARE).variables, checkpoint(wrapped, WRAPPED).tensors)
    assert {one.evidence for one in matched.values() if isinstance(one, Match)} == {
        "'optimizer' is the checkpoint's 'optimizer/inner_optimizer': the optimizer inside the wrapper"
    }


def test_optimizers_wrapped_alike_are_left_to_their_names() -> None:
    for text, families in ((state("optimizer"), BARE), (state("optimizer", "optimizer/inner_optimizer"), WRAPPED)):
        _, found, conflicts = sides(checkpoint(text, families), program(text, families))
        assert not found and not conflicts


def test_two_wrappers_around_one() -> None:
    twice = {**WRAPPED, "optimizer/inner_optimizer/inner_optimizer": "adam"}
    _, found, _ = sides(checkpoint(state(*twice), twice), program(state("optimizer"), BARE))
    assert found["optimizer/iterations"] == "optimizer/inner_optimizer/inner_optimizer/iterations"
    _, found, _ = sides(checkpoint(state(*twice), twice), program(state(*WRAPPED), WRAPPED))
    assert found["optimizer/inner_optimizer/iterations"] == "optimizer/inner_optimizer/inner_optimizer/iterations"
    assert "optimizer/iterations" not in found


def test_several_optimizers_pair_by_the_names_of_what_is_outside() -> None:
    theirs = {"a": "adam", "b": "adam", "c": "adam"}
    ours = {"a": "lossscaleoptimizer", "a/inner_optimizer": "adam", "b": "adam", "d": "adam"}
    _, found, _ = sides(checkpoint(state(*theirs), theirs), program(state(*ours), ours))
    assert found == {
        "a/inner_optimizer/iterations": "a/iterations",
        "a/inner_optimizer/learning_rate": "a/learning_rate",
    }


def test_one_optimizer_each_belong_together_under_any_names() -> None:
    theirs = {"opt": "adam"}
    _, found, _ = sides(checkpoint(state("opt"), theirs), program(state(*WRAPPED), WRAPPED))
    assert found["optimizer/inner_optimizer/iterations"] == "opt/iterations"


def test_what_only_averages_is_no_optimizer_here() -> None:
    theirs = {"optimizer": "adam", "shadows": "exponentialmovingaverage"}
    _, found, _ = sides(checkpoint(state("optimizer"), theirs), program(state(*WRAPPED), WRAPPED))
    assert found["optimizer/inner_optimizer/iterations"] == "optimizer/iterations"


def test_an_inner_optimizer_without_its_wrapper_stands_alone() -> None:
    theirs = {"optimizer/inner_optimizer": "adam"}
    _, found, _ = sides(checkpoint(state(*theirs), theirs), program(state(*WRAPPED), WRAPPED))
    assert found["optimizer/inner_optimizer/iterations"] == "optimizer/inner_optimizer/iterations"


def test_a_number_in_a_list_is_no_name_of_state() -> None:
    wrapped = "optimizer/inner_optimizer/vars/0 - int64 kind:positional"
    bare = "optimizer/vars/0 - int64"
    _, found, _ = sides(checkpoint(wrapped, WRAPPED), program(bare, BARE))
    assert not found


def test_what_counts_batches_is_no_counter_of_updates() -> None:
    target = accumulating(program(state(*WRAPPED), WRAPPED), "optimizer/inner_optimizer")
    _, found, conflicts = sides(stepped(checkpoint(state("optimizer"), BARE)), target)
    assert found == {"optimizer/inner_optimizer/learning_rate": "optimizer/learning_rate"}
    candidates, reason = conflicts["optimizer/inner_optimizer/iterations"]
    assert candidates == ("optimizer/iterations",)
    assert "updates in the checkpoint, batches here" in reason
    assert 'keep = "optimizer/inner_optimizer/iterations", or from = "optimizer/iterations"' in reason


def tf1(*names: str) -> CheckpointIndex:
    text = "\n".join(f"global_step - int64 sem:{name}/iterations" for name in names[:1])
    return dataclasses.replace(checkpoint(text, dict.fromkeys(names, "adam")), format="tf1")


def test_the_step_of_tf1_is_the_iterations_of_its_only_optimizer() -> None:
    known, found, _ = sides(tf1("optimizer"), program(state("optimizer"), BARE))
    assert found == {"optimizer/iterations": "global_step"}
    (match,) = known.match(program(state("optimizer"), BARE).variables, tf1("optimizer").tensors).values()
    assert isinstance(match, Match)
    assert match.evidence == "what TF1 counts the updates of 'optimizer' with, its only optimizer"
    _, found, _ = sides(tf1("adam"), program(state(*WRAPPED), WRAPPED))
    assert found == {"optimizer/inner_optimizer/iterations": "global_step"}


def test_a_global_step_of_another_format_means_nothing() -> None:
    source = dataclasses.replace(tf1("optimizer"), format="tf2")
    assert sides(source, program(state("optimizer"), BARE))[1] == {}


def test_a_wrappers_own_state_may_keep_its_value_where_the_checkpoints_optimizer_is_bare() -> None:
    ours = program(state(*WRAPPED) + "\noptimizer/dynamic_scale -\nmodel/w 4", WRAPPED)
    known, _, _ = sides(checkpoint(state("optimizer"), BARE), ours)
    reasons = {v.name: known.keep_reason(v) for v in ours.variables}
    text = "the LossScaleOptimizer's own state, and the checkpoint's optimizer is not wrapped in one"
    assert {name for name, reason in reasons.items() if reason == text} == {
        "optimizer/iterations",
        "optimizer/learning_rate",
        "optimizer/dynamic_scale",
    }
    assert set(reasons.values()) == {text, ""}
    known, _, _ = sides(checkpoint(state(*WRAPPED), WRAPPED), ours)
    assert not any(known.keep_reason(v) for v in ours.variables)


def test_state_of_another_wrapper_is_not_kept_in_silence() -> None:
    other = {**WRAPPED, "optimizer": "mine"}
    ours = program(state(*other), other)
    known, _, _ = sides(checkpoint(state("optimizer"), BARE), ours)
    assert not any(known.keep_reason(v) for v in ours.variables)
    assert known.unmatched_reason(ours.variables[0]) == (
        "it is state of the wrapper 'optimizer' itself, and the checkpoint's optimizer is not wrapped"
    )
    assert known.unmatched_reason(ours.variables[1]) == known.unmatched_reason(ours.variables[0])
    assert known.unmatched_reason(ours.variables[2]) == ""


def test_a_rate_that_the_checkpoint_lacks_says_how_to_keep_it() -> None:
    ours = program(state("optimizer") + "\nmodel/learning_rate -", BARE)
    known, _, _ = sides(checkpoint("optimizer/iterations - int64", BARE), ours)
    reasons = {v.name: known.unmatched_reason(v) for v in ours.variables}
    assert reasons == {
        "optimizer/iterations": "",
        "optimizer/learning_rate": "the checkpoint stores no such learning rate. To keep that of the program: "
        'keep = "optimizer/learning_rate"',
        "model/learning_rate": "",
    }


@pytest.mark.parametrize("is_mine", [False, True])
def test_equal_names_mean_nothing_where_one_side_is_wrapped(is_mine: bool) -> None:
    families = (WRAPPED, BARE) if is_mine else (BARE, WRAPPED)
    ours, theirs = program(state("optimizer"), families[0]), checkpoint(state("optimizer"), families[1])
    known = OptimizerState(ours, theirs)
    doubt = known.doubt(ours.variables[1], theirs.tensors[1])
    assert doubt.startswith("one side's optimizer is wrapped in another (LossScaleOptimizer)")
    assert doubt.endswith('from = "optimizer/inner_optimizer/learning_rate"')


def test_equal_names_of_equal_optimizers_are_in_no_doubt() -> None:
    ours, theirs = program(state("optimizer"), BARE), checkpoint(state("optimizer"), BARE)
    assert not any(OptimizerState(ours, theirs).doubt(v, t) for v in ours.variables for t in theirs.tensors)
    assert not OptimizerState(accumulating(ours, "optimizer"), theirs).doubt(ours.variables[0], theirs.tensors[0])
    batches = OptimizerState(accumulating(ours, "optimizer"), stepped(theirs))
    found = {v.name: batches.doubt(v, t) for v, t in zip(ours.variables, theirs.tensors, strict=True)}
    assert found["optimizer/learning_rate"] == ""
    assert "updates in the checkpoint, batches here" in found["optimizer/iterations"]
    assert not OptimizerState(program("model/w 4"), theirs).doubt(program("model/w 4").variables[0], theirs.tensors[0])


def test_state_of_what_is_no_optimizer_is_in_no_doubt() -> None:
    text = state("optimizer") + "\nmodel/iterations - int64"
    ours, theirs = accumulating(program(text, BARE), "optimizer"), stepped(checkpoint(text, BARE))
    known = OptimizerState(ours, theirs)
    by_name = {t.name: t for t in theirs.tensors}
    model, counter = ours.variables[2], ours.variables[0]
    assert not known.doubt(model, by_name["model/iterations"])
    assert not known.doubt(model, by_name["optimizer/iterations"])
    assert not known.doubt(counter, by_name["model/iterations"])


NUMBERS = "optimizer/vars/0 - int64 kind:positional\noptimizer/vars/1 4 kind:positional"


def test_a_rate_that_a_numbering_file_never_has_is_the_programs() -> None:
    numbered = "optimizer/iterations - int64 pos:optimizer/variables/0\nmomentum@model/w pos:optimizer/variables/1"
    ours = program(f"model/w 4\n{numbered}\noptimizer/learning_rate -\noptimizer/other -", BARE)
    known = OptimizerState(ours, checkpoint(NUMBERS, BARE))
    assert {v.name: known.keep_reason(v) for v in ours.variables if known.keep_reason(v)} == {
        "optimizer/learning_rate": "files of tf_keras store no learning rate: it is what the program says"
    }


def test_what_wrappers_on_both_sides_keep_themselves_is_told_by_number_too() -> None:
    ours = program(
        "optimizer/dynamic_scale - pos:optimizer/variables/0\n"
        "optimizer/inner_optimizer/iterations - int64 pos:optimizer/inner_optimizer/variables/0",
        WRAPPED,
    )
    theirs = checkpoint(
        "optimizer/vars/0 - kind:positional\noptimizer/inner_optimizer/vars/0 - int64 kind:positional", WRAPPED
    )
    assert sides(theirs, ours)[1] == {
        "optimizer/dynamic_scale": "optimizer/vars/0",
        "optimizer/inner_optimizer/iterations": "optimizer/inner_optimizer/vars/0",
    }


def test_what_is_left_over_is_said() -> None:
    text = state(*WRAPPED) + "\noptimizer/beta1_power -\nmodel/beta2_power_1 -\nmodel/beta1_powers -"
    theirs = checkpoint(text, WRAPPED)
    known = OptimizerState(program(state("optimizer"), BARE), theirs)
    reasons = {t.name: known.unused_reason(t) for t in theirs.tensors}
    assert reasons["optimizer/iterations"] == (
        "state of the checkpoint's loss scale wrapper itself, and the program's optimizer is not wrapped"
    )
    assert reasons["optimizer/inner_optimizer/iterations"] == ""
    assert reasons["model/beta2_power_1"] == "a power of Adam's beta, which Keras 3 computes from the iterations"
    assert reasons["model/beta1_powers"] == ""
