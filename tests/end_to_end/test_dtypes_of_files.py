"""Files whose dtypes are others than the program's: another policy is cast, a quantized weight is not."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from live import assert_all_hold, refuse, restore, save, scramble, values

FORMATS = ["ckpt", "m.keras", "m.weights.h5"]


def written(model: keras.Model, path: pathlib.Path) -> str:
    """A model as a checkpoint or as a file, by the name of the path."""
    if path.name == "ckpt":
        return save(tf.train.Checkpoint(model=model), path.parent)
    model.save(path) if path.suffix == ".keras" else model.save_weights(path)
    return str(path)


def target(model: keras.Model, form: str) -> object:
    return tf.train.Checkpoint(model=model) if form == "ckpt" else model


# ---- Quantized layers ------------------------------------------------------------------------------------

LAYERS = {
    "dense": lambda **o: keras.layers.Dense(3, name="d", **o),
    "einsum": lambda **o: keras.layers.EinsumDense(
        "ab,bc->ac", output_shape=3, bias_axes="c" if o.get("use_bias") else None, name="d"
    ),
}


def quantizable(kind: str, *, use_bias: bool, mode: str = "int8") -> keras.Model:
    keras.utils.clear_session()
    model = keras.Sequential([keras.Input((4,)), LAYERS[kind](use_bias=use_bias)])
    if mode:
        model.quantize(mode)
    return model


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", FORMATS)
def test_codes_of_a_quantized_weight_are_no_values(
    form: str, kind: str, use_bias: bool, tmp_path: pathlib.Path
) -> None:
    path = written(quantizable(kind, use_bias=use_bias), tmp_path / form)
    model = quantizable(kind, use_bias=use_bias, mode="")
    before = values(model.weights)
    with pytest.raises(dr.RestoreError, match="d/kernel"):
        dr.DistributedRestorer(target(model, form), progress=False).restore(path)
    assert_all_hold(model.weights, before)


def test_the_error_says_what_such_integers_are_and_a_rule_may_say_otherwise(tmp_path: pathlib.Path) -> None:
    codes, live = tf.Variable(np.array([-3, 7], "int8")), tf.Variable([0.0, 0.0])
    path = save(tf.train.Checkpoint(w=codes), tmp_path)
    refuse(dr.DtypeMismatchError, tf.train.Checkpoint(w=live), path, "codes of a quantized weight", 'from = "w"')
    restore(tf.train.Checkpoint(w=live), path, rules={"w": "w"})
    assert_all_hold([live], [np.array([-3.0, 7.0], "float32")])


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_integers_that_are_no_codes_become_floats_where_nothing_is_lost(dtype: str, tmp_path: pathlib.Path) -> None:
    live = tf.Variable(np.zeros(2, "float64"))
    path = save(tf.train.Checkpoint(w=tf.Variable(np.array([-300, 7], dtype))), tmp_path)
    restore(tf.train.Checkpoint(w=live), path)
    assert_all_hold([live], [np.array([-300.0, 7.0])])


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_quantized_layer_reads_its_own_file(form: str, kind: str, use_bias: bool, tmp_path: pathlib.Path) -> None:
    old = quantizable(kind, use_bias=use_bias)
    for number, weight in enumerate(old.weights, 1):
        weight.assign(np.full(weight.shape, number, weight.dtype))
    path, expected = written(old, tmp_path / form), values(old.weights)
    new = quantizable(kind, use_bias=use_bias)
    restore(target(new, form), path)
    assert_all_hold(new.weights, expected)


# ---- Policies --------------------------------------------------------------------------------------------


def compiled(policy: str, optimizer: object) -> keras.Model:
    keras.utils.clear_session()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d")])
        model.compile(optimizer, "mse")
        model.optimizer.build(model.trainable_variables)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    return model


@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.Adam], ids=["by name", "given"])
@pytest.mark.parametrize("form", FORMATS[1:])
def test_an_optimizer_that_compile_wraps_reads_its_own_file(
    form: str, optimizer: object, tmp_path: pathlib.Path
) -> None:
    def make() -> keras.Model:
        return compiled("mixed_float16", optimizer if isinstance(optimizer, str) else optimizer())

    old = make()
    scramble(old, old.optimizer)
    path, expected = written(old, tmp_path / form), values([*old.weights, *old.optimizer.variables])
    new = make()
    assert type(new.optimizer).__name__ == "LossScaleOptimizer"
    restore(new, path)
    assert_all_hold([*new.weights, *new.optimizer.variables], expected)


@pytest.mark.parametrize(("old", "new"), [("bfloat16", "mixed_bfloat16"), ("mixed_bfloat16", "bfloat16")])
@pytest.mark.parametrize("form", FORMATS[1:])
def test_numbered_state_of_another_float_is_cast_as_weights_are(
    form: str, old: str, new: str, tmp_path: pathlib.Path
) -> None:
    first = compiled(old, keras.optimizers.Adam())
    for number, variable in enumerate([*first.weights, *first.optimizer.variables], 1):
        variable.assign(np.full(variable.shape, number / 8 if "float" in variable.dtype else number))
    path = written(first, tmp_path / form)
    second = compiled(new, keras.optimizers.Adam())
    restore(second, path)
    found = [np.asarray(v, "float64") for v in (*second.weights, *second.optimizer.variables)]
    for array, expected in zip(found, [*first.weights, *first.optimizer.variables], strict=True):
        np.testing.assert_array_equal(array, np.asarray(expected, "float64"))


# ---- A copy of a model beside it -------------------------------------------------------------------------


def test_a_new_copy_of_a_model_with_an_optimizer_may_keep_its_values(tmp_path: pathlib.Path) -> None:
    def model() -> keras.Model:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="x")])

    old, optimizer = model(), keras.optimizers.Adam()
    optimizer.build(old.trainable_variables)
    scramble(old, optimizer)
    path = save(tf.train.Checkpoint(model=old, optimizer=optimizer), tmp_path)
    new, copy, fresh = model(), model(), keras.optimizers.Adam()
    fresh.build(new.trainable_variables)
    kept = values(copy.weights)
    restore(tf.train.Checkpoint(model=new, swa=copy, optimizer=fresh), path, unmatched="keep")
    assert_all_hold(new.weights, values(old.weights))
    assert_all_hold(fresh._momentums, values(optimizer._momentums))
    assert_all_hold(copy.weights, kept)


# ---- Rules made in Python --------------------------------------------------------------------------------


def test_a_rule_made_in_python_takes_ops_as_files_have_them() -> None:
    plain = {"transpose": {"perm": [1, 0]}}
    assert dr.Rule(from_="a", to="b", ops=[plain]) == dr.Rule(from_="a", to="b", ops=(dr.ops.Transpose((1, 0)),))
    for bad in ([1], "transpose", [{"turn": {}}], {"transpose": {}}):
        with pytest.raises(dr.RuleError):
            dr.Rule(from_="a", to="b", ops=bad)
