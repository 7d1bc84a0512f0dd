"""What `.weights.h5`, `.keras` and legacy `.h5` say of layers and variables, and what they do not say is refused."""

from __future__ import annotations

import contextlib
import json
import pathlib
import zipfile
from collections.abc import Callable

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import dist_restore as dr
from format_files import WRITERS, build, write_keras, write_weights
from live import adam, assert_all_hold, assert_holds, assign, refuse, restore, scramble, seq, slot, values

Make = Callable[[], keras.Model]


def saved(model: keras.Model, directory: pathlib.Path) -> str:
    scramble(model)
    return str(write_weights(model, directory))


def checkpoint(model: keras.Model, **more: object) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(model=model, **more)


def by_layer(model: keras.Model) -> dict[str, list[np.ndarray]]:
    return {layer.name: [v.numpy() for v in layer.variables] for layer in model.layers if layer.variables}


def assert_layers(model: keras.Model, expected: dict[str, list[np.ndarray]]) -> None:
    for layer in model.layers:
        if layer.variables:
            assert_all_hold(layer.variables, expected[layer.name])


# ---- Layers: names, not class and order ------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_weights, write_keras, WRITERS["legacy"]])
def test_swapped_layers_get_their_own_weights(
    write: Callable[[keras.Model, pathlib.Path], pathlib.Path],
    tmp_path: pathlib.Path,
    trainable: tf.distribute.Strategy,
) -> None:
    old = seq("abc")
    scramble(old)
    with trainable.scope():
        new = seq("acb")
    restore(checkpoint(new), write(old, tmp_path))
    assert_layers(new, by_layer(old))


def test_keras_itself_loads_swapped_layers_crossed(tmp_path: pathlib.Path) -> None:
    old, new = seq("abc"), seq("acb")
    new.load_weights(saved(old, tmp_path))
    np.testing.assert_array_equal(new.get_layer("c").kernel, old.get_layer("b").kernel)


def test_a_file_of_three_layers_fills_a_model_of_two_by_their_names(tmp_path: pathlib.Path) -> None:
    old, new = seq(["a", "new", "b"]), seq("ab")
    path = saved(old, tmp_path)
    plan = dr.DistributedRestorer(checkpoint(new)).plan(path)
    assert [u.name for u in plan.unused] == ["new/kernel"]
    restore(checkpoint(new), path)
    assert_layers(new, by_layer(old))


def test_a_layer_that_the_file_lacks_is_unmatched(tmp_path: pathlib.Path) -> None:
    path = saved(seq("ab"), tmp_path)
    refuse(dr.UnmatchedError, checkpoint(seq(["a", "new", "b"])), path, "model/new/kernel")


def automatic(count: int) -> keras.Model:
    inputs = x = keras.Input((4,))
    for _ in range(count):
        x = keras.layers.Dense(4, use_bias=False)(x)
    return keras.Model(inputs, x)


def test_automatic_names_match_by_their_order_where_both_have_equally_many(tmp_path: pathlib.Path) -> None:
    old, new = automatic(3), automatic(3)
    restore(checkpoint(new), saved(old, tmp_path))
    assert_all_hold(new.variables, values(old.variables))


def test_automatic_names_are_not_shared_out_between_two_models(tmp_path: pathlib.Path) -> None:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="x", use_bias=False)(inputs)
    path = saved(keras.Model(inputs, keras.layers.Dense(4, use_bias=False)(x)), tmp_path)
    root = tf.train.Checkpoint(model=automatic(1), teacher=seq("x"))
    refuse(dr.UnmatchedError, root, path, "model/dense")


def test_automatic_names_of_another_number_are_refused(tmp_path: pathlib.Path) -> None:
    path = saved(automatic(3), tmp_path)
    refuse(dr.AmbiguousMatchError, checkpoint(automatic(2)), path, "automatic name")


# ---- tf_keras: no names at all -----------------------------------------------------------------------------


def two(names: list[str | None]) -> tf_keras.Model:
    inputs = x = tf_keras.Input((4,))
    for number, name in enumerate(names):
        x = tf_keras.layers.Dense(
            4, name=name, use_bias=False, kernel_initializer=tf_keras.initializers.Constant(number)
        )(x)
    return tf_keras.Model(inputs, x)


def write_two(model: tf_keras.Model, directory: pathlib.Path) -> str:
    path = str(directory / "two.weights.h5")
    model.save_weights(path)
    return path


def test_a_file_without_names_fills_layers_with_automatic_names_in_their_order(
    tmp_path: pathlib.Path, strategy: tf.distribute.Strategy
) -> None:
    path = write_two(two([None, None, None]), tmp_path)
    with strategy.scope():
        model = automatic(3)
    restore(checkpoint(model), path)
    for number, variable in enumerate(model.variables):
        assert_holds(variable, np.full((4, 4), number, np.float32))


def test_a_file_without_names_is_refused_where_layers_have_names_of_their_own(tmp_path: pathlib.Path) -> None:
    path, model = write_two(two(["a", "b", "c"]), tmp_path), seq("abc")
    refuse(dr.AmbiguousMatchError, checkpoint(model), path, "class and order only", "layers/dense_1/kernel")
    rules = {f"layers/dense{s}/kernel": f"model/{n}/kernel" for s, n in (("", "a"), ("_1", "b"), ("_2", "c"))}
    restore(checkpoint(model), path, rules=rules)
    assert_holds(model.get_layer("c").kernel, np.full((4, 4), 2, np.float32))


def test_a_file_without_names_is_refused_where_the_numbers_of_layers_differ(tmp_path: pathlib.Path) -> None:
    refuse(dr.AmbiguousMatchError, checkpoint(automatic(2)), write_two(two([None] * 3), tmp_path), "checkpoint 3")


def test_a_file_without_names_has_one_order_only_that_of_the_layers_and_not_of_their_making(
    tmp_path: pathlib.Path,
) -> None:
    first, second = keras.layers.Dense(4, use_bias=False), keras.layers.Dense(4, use_bias=False)
    assert (first.name, second.name) == tuple(sorted((first.name, second.name), key=lambda n: (len(n), n)))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, first(second(inputs)))
    report = restore(checkpoint(model), write_two(two([None, None]), tmp_path))
    assert {e.proof for e in report.plan.entries if e.filled} == {dr.Proof.ORDER}
    for number, layer in enumerate((second, first)):
        assert_holds(layer.kernel, np.full((4, 4), number, np.float32))


def test_an_archive_of_tf_keras_has_its_names_in_the_config(tmp_path: pathlib.Path) -> None:
    old = two(["a", "b", "c"])
    old.save(str(tmp_path / "two.keras"))
    model = seq("cab")
    restore(checkpoint(model), tmp_path / "two.keras")
    for number, name in enumerate("abc"):
        assert_holds(model.get_layer(name).kernel, np.full((4, 4), number, np.float32))


# ---- Variables in a layer ----------------------------------------------------------------------------------


def norm(kind: str = "BatchNormalization", **options: bool) -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, getattr(keras.layers, kind)(name="norm", **options)(inputs))


@pytest.mark.parametrize("kind", ["BatchNormalization", "LayerNormalization", "GroupNormalization"])
def test_beta_never_becomes_gamma(kind: str, tmp_path: pathlib.Path) -> None:
    extra = {"groups": 2} if kind == "GroupNormalization" else {}
    old, new = norm(kind, scale=False, **extra), norm(kind, center=False, **extra)
    path = saved(old, tmp_path)
    refuse(dr.AmbiguousMatchError, checkpoint(new), path, "norm/vars/0", 'from = "norm/vars/0"')
    refuse(dr.UnmatchedError, checkpoint(new), write_keras(old, tmp_path), "model/norm/gamma")


def test_a_rule_says_what_a_numbered_variable_is(tmp_path: pathlib.Path) -> None:
    old, new = norm(scale=False), norm(scale=False)
    path = saved(old, tmp_path)
    refuse(dr.AmbiguousMatchError, checkpoint(new), path, "norm/vars/2")
    names = ("beta", "moving_mean", "moving_variance")
    restore(checkpoint(new), path, rules={f"norm/vars/{i}": f"model/norm/{n}" for i, n in enumerate(names)})
    assert_all_hold(new.variables, values(old.variables))


def test_the_config_of_an_archive_says_what_a_variable_is(
    tmp_path: pathlib.Path, strategy: tf.distribute.Strategy
) -> None:
    old = build(scale=False)
    scramble(old)
    with strategy.scope():
        new = build(scale=False)
    restore(checkpoint(new), write_keras(old, tmp_path))
    assert_all_hold(new.variables, values(old.variables))


class Pair(keras.layers.Layer):
    """A layer of somebody's own, with two variables."""

    def __init__(self, first: int, second: int, names: str = "uv", **options: object) -> None:
        super().__init__(**options)
        self.sizes, self.names = (first, second), names

    def build(self, shape: object) -> None:
        for name, size in zip(self.names, self.sizes, strict=True):
            setattr(self, name, self.add_weight(shape=(size,), name=name))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + tf.reduce_sum(getattr(self, self.names[0])) + tf.reduce_sum(getattr(self, self.names[1]))


class Other(Pair):
    """Another class with the same variables."""


def pair(kind: type[Pair], *sizes: int, names: str = "uv") -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, kind(*sizes, names=names, name="own")(inputs))


def test_variables_of_an_unknown_class_are_told_apart_by_their_shapes(
    tmp_path: pathlib.Path, strategy: tf.distribute.Strategy
) -> None:
    old = pair(Pair, 2, 3)
    path = saved(old, tmp_path)
    with strategy.scope():
        new = pair(Pair, 2, 3)
    restore(checkpoint(new), path)
    assert_all_hold(new.variables, values(old.variables))


def test_variables_of_one_shape_are_told_by_the_order_of_their_layer_and_said_to_be(tmp_path: pathlib.Path) -> None:
    """No file shows that their lines were exchanged; `order="refuse"` refuses what rests on that alone."""
    old, new, exchanged = pair(Pair, 3, 3), pair(Pair, 3, 3), pair(Pair, 3, 3, names="vu")
    path = saved(old, tmp_path)
    for model in (new, exchanged):
        report = restore(checkpoint(model), path)
        assert {e.proof for e in report.plan.entries if e.sources} == {dr.Proof.ORDER}
        with pytest.raises(dr.RestoreError, match="own/"):
            dr.DistributedRestorer(checkpoint(model), order="refuse").restore(path)
    assert_all_hold(new.variables, values(old.variables))


@pytest.mark.parametrize(
    ("new", "word"),
    [
        (lambda: pair(Other, 3, 3), "'other'"),
        (lambda: pair(Pair, 3, 5), "shapes are not"),
    ],
)
def test_variables_that_their_numbers_do_not_tell_apart_are_refused(
    new: Make, word: str, tmp_path: pathlib.Path
) -> None:
    refuse(dr.AmbiguousMatchError, checkpoint(new()), saved(pair(Pair, 3, 3), tmp_path), word, "own/vars/0")


class Block(keras.layers.Layer):
    """Layers as attributes, whose class the file does not say."""

    def __init__(self, norm_name: str | None = None) -> None:
        super().__init__()
        self.up = keras.layers.Dense(4, name="upwards")
        self._norm = keras.layers.LayerNormalization(name=norm_name)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self._norm(self.up(x))


class Stacked(keras.Model):
    """Blocks in a list, and a head."""

    def __init__(self, count: int, norm_name: str | None = None) -> None:
        super().__init__(name="net")
        self.blocks = [Block(norm_name) for _ in range(count)]
        self.head = keras.layers.Dense(2)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def stacked(count: int, norm_name: str | None = None) -> keras.Model:
    model = Stacked(count, norm_name)
    model(tf.zeros((1, 4)))
    return model


@pytest.mark.parametrize("norm_name", [None, "final_layer_norm", "layernorm"])
def test_a_subclassed_model_is_restored_by_its_attributes(
    norm_name: str | None, tmp_path: pathlib.Path, strategy: tf.distribute.Strategy
) -> None:
    old = stacked(3, norm_name)
    path = saved(old, tmp_path)
    with strategy.scope():
        new = stacked(3, norm_name)
    restore(checkpoint(new), path)
    assert_all_hold(new.variables, values(old.variables))


def test_the_variables_of_an_attribute_whose_class_only_the_program_knows_are_read_in_its_order(
    tmp_path: pathlib.Path,
) -> None:
    old, new = stacked(1, "z"), stacked(1, "z")
    path = saved(old, tmp_path)
    restore(checkpoint(new), path)
    assert_all_hold(new.variables, values(old.variables))


def test_a_block_more_or_less_is_refused(tmp_path: pathlib.Path) -> None:
    path = saved(stacked(3), tmp_path)
    refuse(dr.AmbiguousMatchError, checkpoint(stacked(2)), path, "inserted or removed")


class Listed(keras.Model):
    """Layers in a list, with names of their own."""

    def __init__(self, attribute: str, make: Callable[[str], keras.layers.Layer], names: str) -> None:
        super().__init__(name="net")
        self.attribute = attribute
        setattr(self, attribute, [make(f"part_{name}") for name in names])

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for part in getattr(self, self.attribute):
            x = part(x)
        return x


def nested(name: str) -> keras.Model:
    inner = keras.layers.Dense(4, name="inside", use_bias=False)
    return keras.Sequential([keras.Input((4,)), inner], name=name)


@pytest.mark.parametrize("attribute", ["blocks", "parts"])  # Keras saves `layers`, which are all, before `parts`
@pytest.mark.parametrize(
    "make",
    [
        lambda name: keras.layers.Dense(4, name=name),
        lambda name: Pair(2, 3, name=name),
        lambda name: keras.layers.LayerNormalization(name=name),
        nested,
    ],
)
def test_members_of_a_list_never_get_the_weights_of_a_layer_of_another_name(
    make: Callable[[str], keras.layers.Layer], attribute: str, tmp_path: pathlib.Path
) -> None:
    def listed(names: str) -> keras.Model:
        model = Listed(attribute, make, names)
        model(tf.zeros((1, 4)))
        return model

    old, new = listed("ab"), listed("ab")
    path = saved(old, tmp_path)
    restore(checkpoint(new), path)
    assert_all_hold(new.trainable_variables, values(old.trainable_variables))
    swapped = listed("ba")
    before = [v.numpy().tobytes() for v in swapped.trainable_variables]
    try:
        restore(checkpoint(swapped), path)
    except dr.AmbiguousMatchError as error:  # an index says one thing, and a name another
        assert "model/blocks/0/" in str(error)
        assert [v.numpy().tobytes() for v in swapped.trainable_variables] == before
    else:
        assert {v.path: v.numpy().tobytes() for v in swapped.trainable_variables} == {
            v.path: v.numpy().tobytes() for v in old.trainable_variables
        }


def test_layers_of_several_classes_in_one_list_have_no_place(tmp_path: pathlib.Path) -> None:
    class Mixed(keras.Model):
        def __init__(self, *order: int) -> None:
            super().__init__(name="net")
            dense, embed = keras.layers.Dense(4), keras.layers.EinsumDense("ab,bc->ac", 4)
            self.parts = [(dense, embed)[i] for i in order]

        def call(self, x: tf.Tensor) -> tf.Tensor:
            for part in self.parts:
                x = part(x)
            return x

    def mixed(*order: int) -> keras.Model:
        model = Mixed(*order)
        model(tf.zeros((1, 4)))
        return model

    path = saved(mixed(0, 1), tmp_path)
    refuse(dr.UnmatchedError, checkpoint(mixed(1, 0)), path, "model/parts/0/kernel")


# ---- Values -------------------------------------------------------------------------------------------------


def half() -> keras.Model:
    inputs = keras.Input((4,), dtype="float16")
    return keras.Model(inputs, keras.layers.Dense(4, name="a", use_bias=False, dtype="float16")(inputs))


@pytest.mark.parametrize("name", ["safetensors", "npz", "packed_npz", "weights", "keras", "legacy", "saved_model"])
def test_a_value_that_float16_does_not_hold_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    old = seq("a")
    assign(old.variables[0], np.full((4, 4), 70_000, np.float32))
    path = WRITERS[name](old, tmp_path)
    refuse(dr.DtypeMismatchError, checkpoint(half()), path, "model/a/kernel", "70000")
    assign(old.variables[0], np.full((4, 4), 1.5, np.float32))
    (tmp_path / "more").mkdir()
    model = half()
    restore(checkpoint(model), WRITERS[name](old, tmp_path / "more"))
    assert_holds(model.variables[0], np.full((4, 4), 1.5, np.float16))


@pytest.mark.parametrize("name", ["safetensors", "weights", "keras"])
def test_bfloat16_is_read_as_it_is(name: str, tmp_path: pathlib.Path) -> None:
    def small() -> keras.Model:
        inputs = keras.Input((4,))
        return keras.Model(inputs, keras.layers.Dense(4, name="a", use_bias=False, dtype="bfloat16")(inputs))

    old, new = small(), small()
    restore(checkpoint(new), WRITERS[name](old, tmp_path))
    assert_all_hold(new.variables, values(old.variables))


def many_layers() -> keras.Model:
    """Layers whose variables have equal shapes, and an order that the class alone determines."""
    layers = keras.layers
    numbers = keras.Input((4,))
    films = keras.Input((2, 4, 4, 2))
    words, sound = keras.Input((3, 4)), keras.Input((8, 1))
    outputs = [
        layers.Normalization(name="norm")(numbers),
        layers.ConvLSTM2D(2, 2, name="film")(films),
        layers.Attention(use_scale=True, score_mode="concat", name="look")([words, words]),
        layers.AdditiveAttention(name="sum")([words, words]),
    ]
    if not hasattr(layers, "STFTSpectrogram"):  # Keras 3.6
        return keras.Model([numbers, films, words], outputs)
    spectrogram = layers.STFTSpectrogram(mode="stft", frame_length=4, frame_step=1, fft_length=4, name="sound")
    return keras.Model([numbers, films, words, sound], [*outputs, spectrogram(sound)])


@pytest.mark.parametrize("write", [write_weights, write_keras])
def test_variables_are_known_by_their_layers_class(
    write: Callable[[keras.Model, pathlib.Path], pathlib.Path], tmp_path: pathlib.Path
) -> None:
    old, new = many_layers(), many_layers()
    scramble(old, seed=1)
    scramble(new, seed=2)
    restore(checkpoint(new), write(old, tmp_path))
    saved_ones = [[v for v in model.variables if "seed" not in v.path] for model in (new, old)]
    assert len(saved_ones[0]) == 3 + 3 + 2 + 1 + 2 * hasattr(keras.layers, "STFTSpectrogram")
    assert_all_hold(saved_ones[0], values(saved_ones[1]))


@pytest.mark.parametrize("write", [write_weights, write_keras])
def test_a_recurrent_layer_in_a_model_with_an_automatic_name_is_found(
    write: Callable[[keras.Model, pathlib.Path], pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """The file's names begin with the model's name or with none: two names of one root, and no two roots."""

    def recurrent() -> keras.Model:
        inputs = keras.Input((3, 4))
        return keras.Model(inputs, keras.layers.Dense(2, name="d")(keras.layers.LSTM(2, name="rnn")(inputs)))

    old, new = recurrent(), recurrent()
    scramble(old, seed=1)
    scramble(new, seed=2)
    restore(checkpoint(new), write(old, tmp_path))
    assert_all_hold(new.weights, values(old.weights))


# ---- Optimizers ---------------------------------------------------------------------------------------------


def compiled() -> keras.Model:
    model = seq("ab")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.optimizer.build(model.trainable_variables)
    scramble(model, model.optimizer)
    return model


@pytest.mark.parametrize("write", [write_weights, write_keras])
def test_an_optimizer_s_numbered_state_is_refused_where_layers_moved_and_may_be_kept(
    write: Callable[[keras.Model, pathlib.Path], pathlib.Path], tmp_path: pathlib.Path
) -> None:
    old, new = compiled(), seq("ba")
    path, optimizer = write(old, tmp_path), adam(new)
    root = checkpoint(new, optimizer=optimizer)
    refuse(dr.UnmatchedError, root, path, "optimizer/momentum/model/a/kernel", "roles nor")
    rules = [
        dr.Rule(from_=("optimizer/vars/0",), to=("optimizer/iterations",)),
        dr.Rule(keep="optimizer/{rest}"),
    ]
    restore(root, path, rules=rules)
    assert_all_hold(new.variables[::-1], values(old.variables))
    assert_holds(optimizer.iterations, old.optimizer.iterations.numpy())


def test_a_legacy_file_names_the_slots_and_their_owners(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy
) -> None:
    old = compiled()
    path = WRITERS["legacy"](old, tmp_path)
    with trainable.scope():
        new = seq("ba")
        optimizer = adam(new)
    restore(checkpoint(new, optimizer=optimizer), path)
    for name in "ab":
        mine, other = new.get_layer(name).kernel, old.get_layer(name).kernel
        assert_holds(mine, other.numpy())
        for role in ("momentums", "velocities"):
            assert_holds(slot(optimizer, role, mine), slot(old.optimizer, role, other).numpy())
    assert_holds(optimizer.iterations, old.optimizer.iterations.numpy())


def test_a_legacy_file_of_tf_keras_names_the_slots_too(tmp_path: pathlib.Path) -> None:
    old = two(["a", "b"])
    old.compile(tf_keras.optimizers.Adam(0.01), "mse")
    old.fit(np.ones((4, 4)), np.ones((4, 4)), epochs=2, verbose=0)
    old.save(str(tmp_path / "two.h5"))
    new = seq("ba")
    optimizer = adam(new)
    rules = [dr.Rule(keep="optimizer/learning_rate")]
    restore(checkpoint(new, optimizer=optimizer), tmp_path / "two.h5", rules=rules)
    momentum, velocity = old.optimizer._momentums, old.optimizer._velocities
    for number, name in enumerate("ab"):
        kernel = new.get_layer(name).kernel
        assert_holds(slot(optimizer, "momentums", kernel), momentum[number].numpy())
        assert_holds(slot(optimizer, "velocities", kernel), velocity[number].numpy())
    assert_holds(optimizer.iterations, np.int64(2))


def test_recurrent_layers_of_tf_keras_become_those_of_keras_3(tmp_path: pathlib.Path) -> None:
    def recurrent(library: object) -> keras.Model:
        inputs = library.Input((5, 4))
        return library.Model(inputs, library.layers.LSTM(3, name="memory")(inputs))

    old, new = recurrent(tf_keras), recurrent(keras)
    old.save_weights(str(tmp_path / "old.h5"))
    restore(checkpoint(new), tmp_path / "old.h5")
    assert_all_hold(new.trainable_variables, [v.numpy() for v in old.variables])


# ---- Contradictions -----------------------------------------------------------------------------------------


def test_a_config_that_contradicts_the_weights_is_refused(tmp_path: pathlib.Path) -> None:
    model = seq("ab")
    path = write_keras(model, tmp_path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    config = json.loads(members["config.json"])
    layers = config["config"]["layers"]
    layers[1]["config"]["name"], layers[2]["config"]["name"] = "b", "a"
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as new:
        for name, data in {**members, "config.json": json.dumps(config).encode()}.items():
            new.writestr(name, data)
    refuse(dr.CheckpointCorruptError, checkpoint(seq("ab")), tmp_path / "bad.keras", "different saves")


def test_a_saved_model_whose_two_copies_differ_names_nothing(tmp_path: pathlib.Path) -> None:
    class Same(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="net")
            self.blocks = [keras.layers.Dense(4, name="same"), keras.layers.Dense(4, name="same")]

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.blocks[1](self.blocks[0](x))

    model = Same()
    model(tf.zeros((1, 4)))
    scramble(model)
    model.export(tmp_path / "sm", verbose=False)
    with contextlib.closing(dr.open_checkpoint(tmp_path / "sm")) as source:
        assert not any(t.name == "net/same/kernel" for t in source.index().tensors)
    refuse(dr.UnmatchedError, checkpoint(model), tmp_path / "sm", "model/blocks/0/kernel")


def test_a_saved_model_has_variables_too_that_its_function_does_not_use(tmp_path: pathlib.Path) -> None:
    class Idle(Pair):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return tf.identity(x)

    old, new = pair(Idle, 3, 3), pair(Idle, 3, 3)
    scramble(old)
    old.export(tmp_path / "sm", verbose=False)
    restore(checkpoint(new), tmp_path / "sm")
    assert_all_hold(new.variables, values(old.variables))


def test_variables_with_names_of_their_own_are_read_by_them(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/pair/vars")
        group.attrs["name"] = "own"
        group["v"], group["u"] = np.full(3, 2.0, np.float32), np.full(3, 1.0, np.float32)
    model = pair(Pair, 3, 3)
    restore(checkpoint(model), path)
    assert_holds(model.get_layer("own").u, np.full(3, 1, np.float32))
