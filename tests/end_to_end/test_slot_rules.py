"""What patterns may say of slots, which class an optimizer is of, and what may not begin anew."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import keras
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.train import Checkpoint

import dist_restore as dr
from build import checkpoint, entry, filled, plan, problems, program
from dist_restore.core.errors import UnmatchedError
from dist_restore.planning.plan import RestorePlan
from live import assert_all_hold, built, net, refuse, restore, save, scramble, values

Make = Callable[..., keras.optimizers.Optimizer]
A, B = "model/a/w 4\n", "model/b/w 4\n"
MOMENTA = "momentum@model/a/w\nmomentum@model/b/w\n"
RENAME = '[[rule]]\nfrom = "optimizer/{rest}"\nto = "opt/{rest}"\n'
EXCHANGE = '[[rule]]\nfrom = "model/a/w"\nto = "model/b/w"\n[[rule]]\nfrom = "model/b/w"\nto = "model/a/w"\n'


def slot(role: str, owner: str = "model/a/w", optimizer: str = "optimizer") -> str:
    return f"{optimizer}/{role}/{owner}"


def renamed(text: str) -> str:
    """The same slots, of an optimizer called `opt`."""
    return "\n".join(f"{line} opt:opt" if "@" in line else line for line in text.split("\n"))


# ---- Patterns and owners ---------------------------------------------------------------------------------


def test_a_pattern_that_renames_the_optimizer_restores_what_follows_the_owners() -> None:
    done = plan(A + B + MOMENTA, renamed(A + B + MOMENTA), RENAME)
    assert done.problems == ()
    assert filled(done)[slot("momentum", optimizer="opt")] == slot("momentum")
    assert "slot 'momentum' of 'model/a/w'" in entry(done, slot("momentum", optimizer="opt")).evidence


def test_a_pattern_beside_rules_that_exchange_layers_takes_no_slot_from_its_owner() -> None:
    done = plan(A + B + MOMENTA, renamed(A + B + MOMENTA), EXCHANGE + RENAME)
    mine = slot("momentum", optimizer="opt")
    assert problems(done) == {mine: "ambiguous", slot("momentum", "model/b/w", "opt"): "ambiguous"}
    found = entry(done, mine)
    assert found.candidates == (slot("momentum"), slot("momentum", "model/b/w"))
    assert f"from = '{slot('momentum')}', to = '{mine}'" in found.reason


@pytest.mark.parametrize("owner", ["model/a/w", "model/b/w"])
def test_a_literal_rule_settles_what_a_pattern_left_open(owner: str) -> None:
    mine, other = slot("momentum", optimizer="opt"), slot("momentum", "model/b/w", "opt")
    literal = f'[[rule]]\nfrom = "{slot("momentum", owner)}"\nto = "{mine}"\n[[rule]]\nkeep = "{other}"\n'
    step = "optimizer/iterations - int64\n"
    target = renamed(A + B + MOMENTA) + step.replace("optimizer", "opt")
    done = plan(A + B + MOMENTA + step, target, EXCHANGE + literal + RENAME)
    assert done.problems == ()
    assert filled(done)[mine] == slot("momentum", owner)


def test_a_pattern_beside_an_inserted_block_takes_no_slot_from_its_owner() -> None:
    source = "".join(f"model/blocks/{i}/w 4\nmomentum@model/blocks/{i}/w\n" for i in range(2))
    target = "".join(f"model/blocks/{i}/w 4\nmomentum@model/blocks/{i}/w\n" for i in range(3))
    rules = '[[rule]]\nkeep = "model/blocks/0/{rest}"\n[[rule]]\nfrom = "model/blocks/{i}/{rest}"\n'
    rules += 'to = "model/blocks/{i+1}/{rest}"\n'
    done = plan(source, renamed(target), rules + RENAME)
    assert set(problems(done)) == {slot("momentum", f"model/blocks/{i}/w", "opt") for i in (0, 1)}
    assert problems(plan(source, target, rules)) == {}


def test_a_pattern_pairs_two_optimizers_that_hold_slots_of_the_same_variables() -> None:
    source = A + "momentum@model/a/w opt:x\nmomentum@model/a/w opt:y"
    target = A + "momentum@model/a/w opt:first\nmomentum@model/a/w opt:second"
    done = plan(source, target, {"x/{rest}": "second/{rest}", "y/{rest}": "first/{rest}"})
    assert done.problems == ()
    assert filled(done)[slot("momentum", optimizer="first")] == slot("momentum", optimizer="y")


W = "model/a/kernel 4\n"
TO_W = '[[rule]]\nfrom = "{rest}/kernel"\nto = "{rest}/w"\n'


def to_w(theirs: str, ours: str, rules: str = TO_W, roles: str = "momentum", size: int = 4) -> RestorePlan:
    """A pattern that gives kernels another name, and reaches their slots."""
    source = W + "".join(f"{role}@model/a/kernel\n" for role in roles.split())
    target = f"model/a/w {size}\n" + "".join(f"{role}@model/a/w\n" for role in roles.split())
    return plan(checkpoint(source, {"optimizer": theirs}), program(target, {"optimizer": ours}), rules)


def test_a_pattern_carries_no_slot_to_another_class() -> None:
    assert to_w("sgd", "sgd").problems == ()
    done = to_w("sgd", "adam")
    assert problems(done) == {slot("momentum"): "ambiguous"}
    assert "class changed" in entry(done, slot("momentum")).reason
    assert "[slots]" in entry(done, slot("momentum")).reason
    assert to_w("sgd", "adam", '[slots]\nmomentum = "momentum"\n' + TO_W).problems == ()


def test_ops_of_a_pattern_reach_slots_as_those_of_owners_do() -> None:
    done = to_w("adam", "adam", TO_W + "ops = [{ scale = { by = -0.5 } }]", "momentum velocity")
    assert done.problems == ()
    assert [op.by for op in entry(done, slot("velocity")).ops] == [4.0]  # type: ignore[attr-defined]


def test_new_rows_of_slots_are_zero_where_a_pattern_draws_those_of_weights() -> None:
    done = to_w("adam", "adam", TO_W + 'ops = [{ fit = { fill = "normal" } }]', "momentum velocity", size=6)
    assert done.problems == ()
    assert {op.fill.value for op in entry(done, slot("velocity")).ops} == {"zeros"}  # type: ignore[attr-defined]


def test_ops_of_a_pattern_for_slots_alone_are_refused() -> None:
    rules = '[[rule]]\nfrom = "optimizer/{rest}"\nto = "optimizer/{rest}"\nops = [{ scale = { by = 2.0 } }]'
    done = plan(A + "momentum@model/a/w", A + "momentum@model/a/w", rules)
    assert problems(done) == {slot("momentum"): "ambiguous"}


def test_a_pattern_fills_no_slot_of_what_is_kept() -> None:
    rules = '[[rule]]\nkeep = "model/a/w"\n' + RENAME
    done = plan(A + B + MOMENTA, renamed(A + B + MOMENTA), rules)
    assert problems(done) == {slot("momentum", optimizer="opt"): "ambiguous"}


def test_a_pattern_that_spells_two_roles_of_one_class_out_is_followed() -> None:
    source, target = A + "velocity@model/a/w", A + "velocity@model/a/w\nvelocity_hat@model/a/w"
    names = {"optimizer/velocity/{rest}": "optimizer/velocity_hat/{rest}"}
    rules = [dr.Rule(from_=a, to=[b, a]) for a, b in names.items()]
    done = plan(source, target, rules)
    assert done.problems == ()
    assert filled(done)[slot("velocity_hat")] == slot("velocity")


def test_weights_are_no_moments_whatever_a_pattern_says() -> None:
    done = plan(A + "velocity@model/a/w", A + "momentum@model/a/w", {"model/{rest}": "optimizer/momentum/model/{rest}"})
    assert problems(done) == {slot("momentum"): "ambiguous"}


# ---- Which class an optimizer is of ----------------------------------------------------------------------

KERAS: dict[str, Make] = {
    "sgd": lambda **o: keras.optimizers.SGD(momentum=0.9, **o),
    "rmsprop": lambda **o: keras.optimizers.RMSprop(momentum=0.9, centered=True, **o),
    "plain rmsprop": keras.optimizers.RMSprop,
    "adam": keras.optimizers.Adam,
    "amsgrad": lambda **o: keras.optimizers.Adam(amsgrad=True, **o),
    "adamw": keras.optimizers.AdamW,
    "nadam": keras.optimizers.Nadam,
    "adamax": keras.optimizers.Adamax,
    "adadelta": keras.optimizers.Adadelta,
    "adagrad": keras.optimizers.Adagrad,
    "ftrl": keras.optimizers.Ftrl,
    "lion": keras.optimizers.Lion,
    "lamb": keras.optimizers.Lamb,
    "adafactor": keras.optimizers.Adafactor,
}
# Of later releases than Keras 3.6.
for _name, _class in {"muon": "Muon", "schedule free": "ScheduleFreeAdamW"}.items():
    if hasattr(keras.optimizers, _class):
        KERAS[_name] = getattr(keras.optimizers, _class)


def pair(directory: pathlib.Path, old: Make, new: Make, **options: object) -> tuple[Checkpoint, str, list, list]:
    """A program that was saved, and another one; with the variables of both optimizers."""
    first, second = net(a=4, b=4), net(a=4, b=4)
    theirs, mine = built(old(**options), first), built(new(**options), second)
    scramble(first, theirs, seed=1)
    path = save(Checkpoint(model=first, optimizer=theirs), directory)
    scramble(second, mine, seed=2)
    return Checkpoint(model=second, optimizer=mine), path, mine.variables, theirs.variables


@pytest.mark.parametrize("name", ["opt", "adam_3", "sgd", "rm_sprop"])
@pytest.mark.parametrize("kind", KERAS)
def test_an_optimizer_reads_its_own_checkpoint_under_any_name(tmp_path: pathlib.Path, kind: str, name: str) -> None:
    if (kind, name) in {("lamb", "adam_3"), ("schedule free", "adam_3")}:
        pytest.skip("its name and what it keeps are Adam's: no file tells them apart, so the name is believed")
    root, path, mine, theirs = pair(tmp_path, KERAS[kind], KERAS[kind], name=name)
    restore(root, path)
    assert_all_hold(mine, values(theirs))


@pytest.mark.parametrize("name", ["opt", "adam", "sgd"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rmsprop", "adam"),
        ("plain rmsprop", "adam"),
        ("sgd", "lion"),
        ("lion", "sgd"),
        ("nadam", "schedule free"),
        ("rmsprop", "sgd"),
        ("adam", "sgd"),
        ("adagrad", "ftrl"),
    ],
)
def test_another_class_under_the_same_name_is_refused(tmp_path: pathlib.Path, old: str, new: str, name: str) -> None:
    if new not in KERAS:
        pytest.skip(f"this Keras has no {new}")
    root, path, *_ = pair(tmp_path, KERAS[old], KERAS[new], name=name)
    refuse(UnmatchedError, root, path, "[slots]" if new != "ftrl" else "linear")


@pytest.mark.parametrize("kind", ["rmsprop", "amsgrad", "nadam", "adamax", "adadelta", "ftrl"])
def test_what_only_one_class_keeps_tells_it_under_another_name(tmp_path: pathlib.Path, kind: str) -> None:
    old, new = KERAS[kind], KERAS[kind]
    root, path, mine, theirs = pair(tmp_path, lambda: old(name="mine"), lambda: new())
    restore(root, path)
    assert_all_hold(mine, values(theirs))


class LARS(keras.optimizers.Optimizer):
    """A class of a user's, which keeps what SGD keeps."""

    def build(self, variables: list[keras.Variable]) -> None:
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(v, name="momentum") for v in variables]


class MyRMSprop(keras.optimizers.RMSprop):
    """A subclass of a class that is known."""


@pytest.mark.parametrize("make", [lambda **o: LARS(0.1, **o), MyRMSprop], ids=["lars", "subclass"])
@pytest.mark.parametrize("name", [None, "opt"])
def test_a_class_of_a_users_reads_its_own_checkpoint(tmp_path: pathlib.Path, make: Make, name: str | None) -> None:
    """Keras counts automatic names, so that of the second optimizer in a process is another one."""
    root, path, mine, theirs = pair(tmp_path, make, make, name=name)
    restore(root, path)
    assert_all_hold(mine, values(theirs))


def test_a_class_of_a_users_is_not_taken_for_the_one_that_keeps_the_same(tmp_path: pathlib.Path) -> None:
    root, path, *_ = pair(tmp_path, lambda: LARS(0.1), KERAS["sgd"])
    refuse(UnmatchedError, root, path, "[slots]", "lars")


TF_KERAS: dict[str, Make] = {
    "sgd": lambda **o: tf_keras.optimizers.SGD(momentum=0.9, **o),
    "rmsprop": lambda **o: tf_keras.optimizers.RMSprop(momentum=0.9, **o),
    "adam": tf_keras.optimizers.Adam,
    "lion": tf_keras.optimizers.Lion,
    "nadam": tf_keras.optimizers.Nadam,
    "adamax": tf_keras.optimizers.Adamax,
    "legacy sgd": lambda **o: tf_keras.optimizers.legacy.SGD(momentum=0.9, **o),
    "legacy rmsprop": lambda **o: tf_keras.optimizers.legacy.RMSprop(momentum=0.9, **o),
    "legacy adam": tf_keras.optimizers.legacy.Adam,
    "legacy adamax": tf_keras.optimizers.legacy.Adamax,
    "legacy nadam": tf_keras.optimizers.legacy.Nadam,
}


def keras_2(make: Make, name: str, seed: int) -> tuple[Checkpoint, list[tf.Variable]]:
    model = tf_keras.Sequential([tf_keras.layers.Dense(4, name="a"), tf_keras.layers.Dense(4, name="b")])
    model(tf.zeros((1, 4)))
    optimizer = make(name=name)
    optimizer.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
    variables = optimizer.variables
    found = list(variables() if callable(variables) else variables)
    scramble(model, found, seed=seed)
    return Checkpoint(model=model, optimizer=optimizer), found


@pytest.mark.parametrize("name", ["opt", "Adam"])
@pytest.mark.parametrize("kind", TF_KERAS)
def test_an_optimizer_of_tf_keras_reads_its_own_checkpoint_under_any_name(
    tmp_path: pathlib.Path, kind: str, name: str
) -> None:
    if name == "Adam" and kind == "legacy adamax":
        pytest.skip("its name and what it keeps are Adam's: no file tells them apart, so the name is believed")
    old, theirs = keras_2(TF_KERAS[kind], name, 1)
    path = save(old, tmp_path)
    new, mine = keras_2(TF_KERAS[kind], name, 2)
    restore(new, path)
    assert_all_hold(mine, values(theirs))


@pytest.mark.parametrize("name", ["opt", "Adam"])
@pytest.mark.parametrize(
    ("old", "new"),
    [("rmsprop", "adam"), ("adam", "rmsprop"), ("legacy rmsprop", "legacy sgd"), ("legacy nadam", "legacy adamax")],
)
def test_another_class_of_tf_keras_under_the_same_name_is_refused(
    tmp_path: pathlib.Path, old: str, new: str, name: str
) -> None:
    path = save(keras_2(TF_KERAS[old], name, 1)[0], tmp_path)
    refuse(UnmatchedError, keras_2(TF_KERAS[new], name, 2)[0], path, "[slots]")


# ---- What may not begin anew -----------------------------------------------------------------------------

EMA = "optimizer/iterations - int64\n" + A + "momentum@model/a/w\nvelocity@model/a/w\n"
AVERAGE = "average@model/a/w\n"
SEED = '[[rule]]\nfrom = "model/{rest}"\nto = "optimizer/average/model/{rest}"\n'


def keep(*names: str) -> str:
    return "".join(f'[[rule]]\nkeep = "{name}"\n' for name in names)


@pytest.mark.parametrize("rules", [keep("optimizer/average/{rest}"), keep("{rest}/average/model/a/w")])
def test_averages_of_restored_weights_are_not_kept_by_a_pattern(rules: str) -> None:
    done = plan(EMA, EMA + AVERAGE, rules)
    assert problems(done) == {slot("average"): "unmatched"}
    assert 'from = "model/{rest}", to = "optimizer/average/model/{rest}"' in entry(done, slot("average")).reason


def test_averages_of_restored_weights_are_not_kept_for_being_unmatched() -> None:
    assert problems(plan(EMA, EMA + AVERAGE, keep=True)) == {slot("average"): "unmatched"}


def test_an_average_is_kept_where_its_name_is_spelled_out() -> None:
    assert plan(EMA, EMA + AVERAGE, keep(slot("average"))).problems == ()


def test_averages_are_kept_with_the_counter_at_whose_beginning_keras_makes_them() -> None:
    assert plan(EMA, EMA + AVERAGE, keep("optimizer/{rest}")).problems == ()


def test_the_average_of_a_new_layer_is_no_zero_beside_a_counter_that_goes_on() -> None:
    target = EMA + AVERAGE + B + "momentum@model/b/w\nvelocity@model/b/w\naverage@model/b/w"
    done = plan(EMA + AVERAGE, target, keep("model/b/{rest}"))
    assert problems(done) == {slot("average", "model/b/w"): "unmatched"}
    literal = f'keep = "{slot("average", "model/b/w")}"'
    assert literal in entry(done, slot("average", "model/b/w")).reason
    assert plan(EMA + AVERAGE, target, keep("model/b/{rest}") + f"[[rule]]\n{literal}").problems == ()


@pytest.mark.parametrize(("fill", "refused"), [("keep", True), ("zeros", False), ("mean", False), ("normal", False)])
@pytest.mark.parametrize("seeded", [False, True])
def test_new_rows_of_an_average_are_filled_as_those_of_its_weight(fill: str, refused: bool, seeded: bool) -> None:
    grow = f'[[rule]]\nfrom = "model/a/w"\nto = "model/a/w"\nops = [{{ fit = {{ fill = "{fill}" }} }}]\n'
    target = (EMA + AVERAGE).replace("model/a/w 4", "model/a/w 6")
    done = plan(EMA if seeded else EMA + AVERAGE, target, grow + SEED if seeded else grow)
    assert problems(done) == ({slot("average"): "unmatched"} if refused else {})
    if not refused:
        assert entry(done, slot("average")).ops == entry(done, "model/a/w").ops


def test_averages_begin_as_weights_that_other_rules_take_elsewhere() -> None:
    rename = '[[rule]]\nfrom = "model/b/{rest}"\nto = "model/a/{rest}"\n'
    seed = '[[rule]]\nfrom = "model/b/{rest}"\nto = "optimizer/average/model/a/{rest}"\n'
    source = EMA.replace("model/a/w", "model/b/w")
    for rules in (rename + seed, seed + rename):
        done = plan(source, EMA + AVERAGE, rules)
        assert done.problems == ()
        assert filled(done)[slot("average")] == filled(done)["model/a/w"] == "model/b/w"


def test_an_average_never_begins_as_another_weight() -> None:
    seed = '[[rule]]\nfrom = "model/{rest}"\nto = "optimizer/average/model/{rest}"\n'
    both = EMA + B + "momentum@model/b/w\nvelocity@model/b/w\n"
    done = plan(both, both + AVERAGE, EXCHANGE + seed)
    assert problems(done) == {slot("average"): "ambiguous"}
    assert entry(done, slot("average")).candidates == ("model/a/w", "model/b/w")


def test_averages_that_are_stored_do_not_begin_anew() -> None:
    assert problems(plan(EMA + AVERAGE, EMA + AVERAGE, SEED)) == {slot("average"): "ambiguous"}


@pytest.mark.parametrize(
    ("family", "numerator", "denominator"),
    [
        ("adam", "momentum", "velocity"),
        ("lamb", "momentum", "velocity"),
        ("adamax", "m", "u"),
        ("rmsprop", "average_gradient", "velocity"),
        ("ftrl", "linear", "accumulator"),
    ],
)
def test_what_an_update_is_divided_by_does_not_begin_anew_alone(family: str, numerator: str, denominator: str) -> None:
    text = A + f"{numerator}@model/a/w\n{denominator}@model/a/w\n"
    sides = checkpoint(text, {"optimizer": family}), program(text, {"optimizer": family})
    pattern = f"optimizer/{denominator}/{{rest}}"
    done = plan(*sides, keep(pattern))
    assert problems(done) == {slot(denominator): "unmatched"}
    assert f'keep = "optimizer/{numerator}/{{rest}}"' in entry(done, slot(denominator)).reason
    assert plan(*sides, keep(slot(denominator))).problems == ()
    if family != "ftrl":  # whose variable is made of `linear`
        assert plan(*sides, keep(pattern, f"optimizer/{numerator}/{{rest}}")).problems == ()


@pytest.mark.parametrize(("family", "role"), [("ftrl", "linear"), ("schedulefreeadamw", "momentum")])
def test_what_a_weight_is_made_of_does_not_begin_anew_beside_it(family: str, role: str) -> None:
    text = A + B + f"{role}@model/a/w\n{role}@model/b/w\n"
    sides = checkpoint(text, {"optimizer": family}), program(text, {"optimizer": family})
    done = plan(*sides, keep(f"optimizer/{role}/{{rest}}", "model/b/w"))
    assert problems(done) == {slot(role): "unmatched"}


def test_schedule_free_weights_begin_as_the_weights_of_another_class() -> None:
    text = A + "momentum@model/a/w\nvelocity@model/a/w\n"
    sides = checkpoint(text, {"optimizer": "adam"}), program(text, {"optimizer": "schedulefreeadamw"})
    rules = '[[rule]]\nfrom = "model/{rest}"\nto = "optimizer/momentum/model/{rest}"\n'
    done = plan(*sides, rules + keep("optimizer/velocity/{rest}"))
    assert done.problems == ()
    assert filled(done)[slot("momentum")] == "model/a/w"


def test_averages_of_tf_keras_begin_as_copies_so_those_of_new_layers_are_kept(tmp_path: pathlib.Path) -> None:
    def program_of(*names: str) -> tuple[Checkpoint, tf_keras.Model, tf_keras.optimizers.Optimizer]:
        model = tf_keras.Sequential([tf_keras.layers.Dense(4, name=n) for n in names])
        model(tf.zeros((1, 4)))
        optimizer = tf_keras.optimizers.Adam(use_ema=True)
        optimizer.build(model.trainable_variables)
        return Checkpoint(model=model, optimizer=optimizer), model, optimizer

    path = save(program_of("a")[0], tmp_path)
    root, model, optimizer = program_of("a", "b")
    averages = optimizer._model_variables_moving_average
    restore(root, path, rules=[dr.Rule(keep="model/b/{rest}")])
    assert_all_hold(averages, values(model.trainable_variables))
    keep_all = [dr.Rule(keep="optimizer/{rest}")]
    refuse(UnmatchedError, root, path, "optimizer/average/model/a/kernel", rules=keep_all)
