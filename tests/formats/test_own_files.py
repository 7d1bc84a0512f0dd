"""Files of Keras' own formats, read by the program that wrote them and is built again: layers that hold layers, twins
with automatic names, and classes of the user's."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import keras
import pytest
import tensorflow as tf

import dist_restore as dr
from live import assert_all_hold, raw, refuse, restore, scramble, values

tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is no dependency of the package")
Checkpoint = tf.train.Checkpoint
Build = Callable[[], object]


def twins(kit: object, make: Callable[[object], object], count: int = 2) -> object:
    inputs = x = kit.Input((5, 4))  # type: ignore[attr-defined]
    for _ in range(count):
        layer = make(kit.layers)  # type: ignore[attr-defined]
        x = layer(x, x) if "MultiHead" in type(layer).__name__ else layer(x)  # type: ignore[operator]
    return kit.Model(inputs, x)  # type: ignore[attr-defined]


LAYERS = {
    "lstm": lambda L: L.LSTM(4, return_sequences=True),
    "bidirectional": lambda L: L.Bidirectional(L.GRU(2, return_sequences=True)),
    "attention": lambda L: L.MultiHeadAttention(2, 4, dropout=0.1),
    "time_distributed": lambda L: L.TimeDistributed(L.Dense(4)),
    "stacked": lambda L: L.RNN([L.LSTMCell(4), L.LSTMCell(4)], return_sequences=True),
    "depthwise": lambda L: L.DepthwiseConv1D(3, padding="same"),
}
# Cells in a list have no names in these files; the class of a row of equal cells has no order there.
NUMBERED = [name for name in LAYERS if name != "stacked"]


def saved(model: object, directory: pathlib.Path, ending: str) -> str:
    path = str(directory / f"net{ending}")
    (model.save_weights if ending == ".weights.h5" else model.save)(path)  # type: ignore[attr-defined]
    return path


def trained(model: object) -> list[object]:
    """All variables but the states of seeds, which are in no file."""
    return [raw(v) for v in model.variables if "seed" not in v.name]  # type: ignore[attr-defined]


def assert_reads(build: Build, directory: pathlib.Path, ending: str) -> dr.RestoreReport:
    old, new = build(), build()
    scramble(old, seed=1)
    scramble(new, seed=2)
    report = restore(Checkpoint(model=new), saved(old, directory, ending))
    assert_all_hold(trained(new), values(trained(old)))
    return report


@pytest.mark.parametrize("kit", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_hold_layers_read_their_own_legacy_file(
    kit: object, count: int, name: str, tmp_path: pathlib.Path
) -> None:
    assert_reads(lambda: twins(kit, LAYERS[name], count), tmp_path, ".h5")


def named(kit: object, name: str) -> object:
    """The same twice, under names that somebody chose."""
    inputs = x = kit.Input((5, 4))  # type: ignore[attr-defined]
    for own in ("first", "second"):
        layer = LAYERS[name](kit.layers)  # type: ignore[attr-defined]
        layer._name = own
        x = layer(x, x) if name == "attention" else layer(x)
    return kit.Model(inputs, x)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kit", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_chosen_names_that_hold_layers_read_their_own_legacy_file(
    tmp_path: pathlib.Path, kit: object, name: str
) -> None:
    assert_reads(lambda: named(kit, name), tmp_path, ".h5")


class InAList(keras.Model):
    """Layers with names that somebody chose, in a list."""

    def __init__(self, names: tuple[str, ...] = ("a", "b", "c")) -> None:
        super().__init__()
        self.blocks = [keras.layers.Dense(4, name=name) for name in names]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def in_a_chain() -> keras.Model:
    inputs = x = keras.Input((4,))
    for name in "abc":
        x = keras.layers.Dense(4, name=name)(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
@pytest.mark.parametrize("is_bare", [True, False])
def test_a_functional_models_layers_are_found_in_a_list(tmp_path: pathlib.Path, ending: str, is_bare: bool) -> None:
    old, new = in_a_chain(), InAList()
    new(tf.zeros((1, 4)))
    scramble(old, seed=1)
    scramble(new, seed=2)
    restore(new if is_bare else Checkpoint(model=new), saved(old, tmp_path, ending))
    assert_all_hold(trained(new), values(trained(old)))


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_names_of_layers_in_a_list_go_before_their_order(tmp_path: pathlib.Path, ending: str) -> None:
    old, new = in_a_chain(), InAList(("b", "a", "c"))
    new(tf.zeros((1, 4)))
    scramble(old, seed=1)
    restore(Checkpoint(model=new), saved(old, tmp_path, ending))
    weights = values(trained(old))
    assert_all_hold(trained(new), [*weights[2:4], *weights[:2], *weights[4:]])


@pytest.mark.parametrize("ending", [".keras", ".weights.h5", ".h5"])
def test_of_a_file_no_message_says_what_checkpoints_lack(tmp_path: pathlib.Path, ending: str) -> None:
    new = InAList(("a", "b", "c", "d"))
    new(tf.zeros((1, 4)))
    text = str(refuse(dr.UnmatchedError, Checkpoint(model=new), saved(in_a_chain(), tmp_path, ending)))
    assert "tf.train.Checkpoint never saves this" not in text


@pytest.mark.parametrize("kit", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
@pytest.mark.parametrize("name", NUMBERED)
def test_twins_with_automatic_names_read_their_own_file(
    kit: object, ending: str, name: str, tmp_path: pathlib.Path
) -> None:
    """The state of a seed, which only the program has, is no difference between two layers."""
    report = assert_reads(lambda: twins(kit, LAYERS[name]), tmp_path, ending)
    assert {e.proof for e in report.plan.entries if e.sources} == {dr.Proof.ORDER}


# ---- Blocks ----------------------------------------------------------------------------------------------


class Block(keras.layers.Layer):
    """Two layers of one shape."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.q, self.k = keras.layers.Dense(4), keras.layers.Dense(4)

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.q.build(shape)
        self.k.build(shape)
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.q(x) * self.k(x)


class Net(keras.Model):
    """Two blocks as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Block(), Block()

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.two(self.one(x))


def test_two_blocks_of_a_bare_model_are_no_roots_of_other_names(tmp_path: pathlib.Path) -> None:
    old, new = Net(), Net()
    for seed, model in enumerate((old, new)):
        model(tf.zeros((1, 4)))
        scramble(model, seed=seed)
    restore(new, saved(old, tmp_path, ".weights.h5"))
    assert_all_hold(trained(new), values(trained(old)))


class Named(keras.Model):
    """Two layers, of which attributes and names say which is which."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.first, self.second = keras.layers.Dense(4, name=first), keras.layers.Dense(4, name=second)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.second(self.first(x))


class NamedOld(tf_keras.Model):
    """The same of tf_keras."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.first, self.second = tf_keras.layers.Dense(4, name=first), tf_keras.layers.Dense(4, name=second)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.second(self.first(x))


def called(kind: type, *names: str) -> object:
    model = kind(*names)
    model(tf.zeros((1, 4)))
    return model


def test_exchanged_names_under_the_same_attributes_are_refused_in_files_of_weights(tmp_path: pathlib.Path) -> None:
    path = saved(called(Named, "stem", "head"), tmp_path, ".weights.h5")
    new = Checkpoint(model=called(Named, "head", "stem"))
    refuse(dr.AmbiguousMatchError, new, path, "called 'stem' in the checkpoint; it is called 'head' itself")
    restore(Checkpoint(model=called(Named, "other", "head")), path)  # a new name speaks for no other layer


def test_exchanged_names_under_the_same_attributes_are_refused_in_checkpoints(tmp_path: pathlib.Path) -> None:
    path = Checkpoint(model=called(NamedOld, "stem", "head")).save(str(tmp_path / "ckpt"))
    refuse(dr.AmbiguousMatchError, Checkpoint(model=called(NamedOld, "head", "stem")), path, "model/first/kernel")
    restore(Checkpoint(model=called(NamedOld, "stem", "other")), path)


# ---- Classes of the user's that are called like one of Keras' ---------------------------------------------


def turned(base: type) -> type:
    """A LayerNormalization that makes beta before gamma."""

    class LayerNormalization(base):  # type: ignore[misc, valid-type]
        def build(self, shape: tuple[int | None, ...]) -> None:
            self.beta = self.add_weight(shape=(shape[-1],), name="beta")
            self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")
            self.built = True

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return x * self.gamma + self.beta

    return LayerNormalization


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_numbers_are_not_named_by_a_class_of_keras_where_the_users_is_another(
    ending: str, tmp_path: pathlib.Path
) -> None:
    kind = turned(keras.layers.Layer)

    def build() -> object:
        inputs = keras.Input((4,))
        return keras.Model(inputs, kind(name="norm")(inputs))

    refuse(dr.AmbiguousMatchError, Checkpoint(model=build()), saved(build(), tmp_path, ending), "one of Keras' is")


# ---- Quantized layers, and the learning rate of tf_keras -------------------------------------------------


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_a_quantized_layer_reads_its_own_numbers(ending: str, tmp_path: pathlib.Path) -> None:
    def build() -> keras.Model:
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(4, name="a")(inputs))
        model.quantize("int8")
        return model

    old, new = build(), build()
    old.layers[-1].bias.assign(tf.range(4.0))
    restore(Checkpoint(model=new), saved(old, tmp_path, ending))
    assert_all_hold(trained(new), values(trained(old)))


def test_an_archive_of_tf_keras_has_no_learning_rate_and_its_program_keeps_its_own(tmp_path: pathlib.Path) -> None:
    def build() -> object:
        model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(4, name="a")])
        model.compile(tf_keras.optimizers.Adam(0.25), "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    old, new = build(), build()
    scramble(old, seed=1)
    report = restore(Checkpoint(model=new, optimizer=new.optimizer), saved(old, tmp_path, ".keras"))
    assert_all_hold(trained(new), values(trained(old)))
    assert float(new.optimizer.learning_rate) == 0.25
    kept = {e.target: e.reason for e in report.plan.entries if e.status is dr.Status.KEPT}
    assert "store no learning rate" in kept["optimizer/learning_rate"]


class Heads(keras.Model):
    """A dict of layers, in no order of the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = {"late": keras.layers.Dense(4), "early": keras.layers.Dense(4)}

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.heads["early"](self.heads["late"](x))


def test_a_dict_of_layers_is_in_a_file_of_weights_as_a_list(tmp_path: pathlib.Path) -> None:
    old, new = Heads(), Heads()
    for seed, model in enumerate((old, new)):
        model(tf.zeros((1, 4)))
        scramble(model, seed=seed)
    report = restore(Checkpoint(model=new), saved(old, tmp_path, ".weights.h5"))
    assert_all_hold(trained(new), values(trained(old)))
    assert {e.proof for e in report.plan.entries if e.sources} == {dr.Proof.ORDER}


# ---- Optimizers in legacy files --------------------------------------------------------------------------


def stepped(optimizer: keras.Optimizer, *, fit: bool = True) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(4, name="b")])
    model.compile(optimizer, "mse")
    if fit:
        model.fit(tf.ones((8, 4)), tf.ones((8, 4)), verbose=0)
    return model


def state(model: keras.Model) -> list[object]:
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]


def test_a_legacy_file_has_accumulated_gradients(tmp_path: pathlib.Path) -> None:
    def make() -> keras.Optimizer:
        return keras.optimizers.Adam(gradient_accumulation_steps=2)

    old, new = stepped(make()), stepped(make(), fit=False)
    path = saved(old, tmp_path, ".h5")
    restore(Checkpoint(model=new), path)
    assert_all_hold(state(new), values(state(old)))


def test_a_legacy_file_of_sgd_does_not_say_that_it_made_no_step(tmp_path: pathlib.Path) -> None:
    path = saved(stepped(keras.optimizers.SGD()), tmp_path, ".h5")
    new = stepped(keras.optimizers.SGD(momentum=0.9), fit=False)
    text = str(refuse(dr.UnmatchedError, Checkpoint(model=new), path))
    assert "keeps no slots" in text and "first step" not in text
