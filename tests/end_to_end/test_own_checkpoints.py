"""A program reads its own checkpoint, built again in the same process, in the shapes that libraries give their models.

Each test is the smallest program of one such shape; tests/libraries has the libraries themselves.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
import keras_modes
from live import assert_all_hold, refuse, restore, save, scramble, values
from own_checkpoint import Mode, Program, assert_reads_its_own

tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is no dependency of the package")
import tf_keras_modes  # noqa: E402  # needs tf_keras

Checkpoint = tf.train.Checkpoint
Layers = keras.layers


def modes(everything: Sequence[Mode], *names: str) -> pytest.MarkDecorator:
    """One test for each of these ways to use a network."""
    chosen = [mode for mode in everything if mode.name in names]
    assert len(chosen) == len(names)
    return pytest.mark.parametrize("mode", chosen, ids=[mode.name for mode in chosen])


def three(build: Callable[[], object]) -> list[object]:
    return [build() for _ in range(3)]


# ---- Names with a slash ----------------------------------------------------------------------------------


def slashes() -> object:
    """Names like those of ALBERT in Model Garden; two of them end alike."""
    inputs = tf_keras.Input((4,))
    x = tf_keras.layers.LayerNormalization(name="embeddings/layer_norm")(inputs)
    x = tf_keras.layers.Dense(4, name="transformer/dense")(x)
    x = tf_keras.layers.Dense(4, name="embeddings/dense")(x)
    return tf_keras.Model(inputs, tf_keras.layers.LayerNormalization(name="output/layer_norm")(x))


@modes(tf_keras_modes.ALL, "weights", "nested", "adam", "compiled", "legacy_adam_built")
def test_a_slash_in_a_layers_name_is_part_of_the_name(mode: Mode) -> None:
    assert_reads_its_own(three(slashes), mode)


# ---- tf_keras layers that keep their blocks in a list ----------------------------------------------------


class Block(tf_keras.layers.Layer):
    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.attention, self.norm = tf_keras.layers.Dense(4), tf_keras.layers.LayerNormalization(name="norm")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.norm(self.attention(x))


class Encoder(tf_keras.layers.Layer):
    """Blocks in a list that is made when the layer is built, as Model Garden's ViT does."""

    def build(self, shape: object) -> None:
        self._blocks = [Block(name=f"encoderblock_{i}") for i in range(3)]
        self._norm = tf_keras.layers.LayerNormalization()
        super().build(shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for block in self._blocks:
            x = block(x)
        return self._norm(x)


def encoder() -> object:
    inputs = tf_keras.Input((4,))
    x = Encoder()(tf_keras.layers.Dense(4)(inputs))
    return tf_keras.Model(inputs, tf_keras.layers.Dense(4)(x))


@modes(tf_keras_modes.ALL, "weights", "nested", "adam", "compiled", "loss_scale", "legacy_adam_built")
def test_blocks_in_a_list_of_a_layer_find_their_own(mode: Mode) -> None:
    assert_reads_its_own(three(encoder), mode)


# ---- Keras' transfer-learning recipe ---------------------------------------------------------------------


def backbone(name: str | None = "backbone") -> keras.Model:
    """A functional model with statistics that no optimizer knows, to be one layer of another."""
    inputs = keras.Input((4,))
    x = inputs
    for index in range(2):
        x = Layers.Dense(4, name=f"block{index}_dense" if name else None)(x)
        x = Layers.BatchNormalization(name=f"block{index}_bn" if name else None)(x)
    return keras.Model(inputs, x, name=name)


def with_lora() -> keras.Model:
    model = backbone()
    for layer in model.layers:
        if isinstance(layer, Layers.Dense):
            layer.enable_lora(2)
    return model


def quantized() -> keras.Model:
    model = backbone()
    model.quantize("int8")
    return model


NETWORKS = {"chosen": backbone, "automatic": lambda: backbone(None), "lora": with_lora, "int8": quantized}


@modes(keras_modes.ALL, "weights", "nested", "nested_adam", "nested_compiled", "compiled")
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_a_network_inside_a_functional_model_reads_its_own(build: Callable[[], keras.Model], mode: Mode) -> None:
    assert_reads_its_own(three(build), mode)


# ---- Attributes that are called as Keras' containers are -------------------------------------------------


class Modules(tf.Module):
    """Two modules in an attribute of this name, in the order of a list."""

    def __init__(self, attribute: str) -> None:
        super().__init__()
        setattr(self, attribute, [Linear(), Linear()])


class Linear(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = tf.Variable(tf.zeros((4, 4)), name="w"), tf.Variable(tf.zeros(4), name="b")


def weights_of_a_module(module: tf.Module) -> Program:
    return Program(Checkpoint(model=module), lambda: module.variables)


def a_module_itself(module: tf.Module) -> Program:
    return Program(Checkpoint(module), lambda: module.variables)


@pytest.mark.parametrize("start", [weights_of_a_module, a_module_itself])
@pytest.mark.parametrize("attribute", ["_layers", "_operations", "_functional", "_trainable_variables", "_variables"])
def test_a_module_may_use_the_names_of_keras_containers(attribute: str, start: Callable[..., Program]) -> None:
    assert_reads_its_own(three(lambda: Modules(attribute)), Mode("weights", start))


# ---- Layers that a model holds twice ---------------------------------------------------------------------


class Backbone(keras.Model):
    """A functional model that keeps its layers in attributes and a list as well, as those of KerasHub do."""

    def __init__(self) -> None:
        self.embed = Layers.Dense(4, name="embed")
        self.blocks = [Layers.Dense(4, name=f"block_{i}") for i in range(3)]
        self.norm = Layers.LayerNormalization()
        inputs = keras.Input((4,))
        x = self.embed(inputs)
        for block in self.blocks:
            x = block(x)
        super().__init__(inputs, self.norm(x))


@modes(
    keras_modes.ALL,
    "weights",
    "weights_h5",
    "keras",
    "nested",
    "nested_weights_h5",
    "compiled_weights_h5",
    "compiled_keras",
)
def test_a_layer_that_a_file_stores_at_one_of_two_places_is_found(mode: Mode) -> None:
    assert_reads_its_own(three(Backbone), mode)


# ---- A compiled model by itself --------------------------------------------------------------------------


def the_model_itself(network: keras.Model) -> Program:
    program = keras_modes.compiled(network)
    return Program(Checkpoint(network), program.listed, program.finish, network)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("name", ["backbone", None])
def test_a_compiled_functional_model_that_is_the_root_reads_its_own(name: str | None, built: bool) -> None:
    assert_reads_its_own(three(lambda: backbone(name)), Mode("root", the_model_itself, built))


@pytest.mark.parametrize("name", ["backbone", None])
def test_a_bare_compiled_functional_model_takes_a_checkpoint_of_itself(
    tmp_path: pathlib.Path, name: str | None
) -> None:
    old, new = (keras_modes.compiled(backbone(name)) for _ in range(2))
    old.finish()
    new.finish()
    scramble(old.listed(), seed=0)
    scramble(new.listed(), seed=1)
    path = save(Checkpoint(model=old.model), tmp_path)
    restore(new.model, path)
    assert_all_hold(new.listed(), values(old.listed()))


# ---- Optimizers that nobody here has heard of ------------------------------------------------------------


class Lars(tf_keras.optimizers.legacy.Optimizer):
    """A user's own optimizer of the old generation, with a slot."""

    def __init__(self, name: str = "LARS") -> None:
        super().__init__(name)
        self._set_hyper("learning_rate", 0.1)

    def _create_slots(self, var_list: Sequence[tf.Variable]) -> None:
        for variable in var_list:
            self.add_slot(variable, "momentum")

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: object = None) -> tf.Operation:
        return self.get_slot(var, "momentum").assign(grad)

    def get_config(self) -> dict[str, object]:
        return {**super().get_config(), "learning_rate": self._serialize_hyperparameter("learning_rate")}


class Own(keras.optimizers.Optimizer):
    """A user's own optimizer of Keras 3, with a list of slots and one of them by itself."""

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if not self.built:
            super().build(variables)
            self._speed = [self.add_variable_from_reference(v, name="speed") for v in variables]
            self._weight = self.add_variable((), name="weight")

    def update_step(self, gradient: object, variable: keras.Variable, learning_rate: object) -> None:
        self.assign(self._speed[self._get_variable_index(variable)], gradient)


def own_optimizer(network: keras.Model) -> Program:
    return keras_modes.given(network, lambda: Own(learning_rate=0.1))


def own_legacy_optimizer(network: object) -> Program:
    """Stepped before it is saved and before it is restored into."""
    optimizer = Lars()
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in network.trainable_variables])
    return Program(Checkpoint(model=network, optimizer=optimizer), lambda: [*network.variables, *optimizer.variables()])


def functional_of_tf_keras() -> object:
    inputs = tf_keras.Input((4,))
    return tf_keras.Model(inputs, tf_keras.layers.Dense(4)(tf_keras.layers.Dense(4)(inputs)))


@pytest.mark.parametrize("built", [False, True])
def test_an_optimizer_of_the_users_reads_its_own_slots(built: bool) -> None:
    assert_reads_its_own(three(backbone), Mode("own", own_optimizer, built))


def test_a_legacy_optimizer_of_the_users_reads_its_own_slots() -> None:
    assert_reads_its_own(three(functional_of_tf_keras), Mode("lars", own_legacy_optimizer))


# ---- Saved before the first step -------------------------------------------------------------------------


@pytest.mark.parametrize("start", [keras_modes.given, keras_modes.compiled])
def test_a_checkpoint_from_before_the_first_step_leaves_new_slots_as_they_start(
    tmp_path: pathlib.Path, start: Callable[[keras.Model], Program]
) -> None:
    old, new = start(backbone()), start(backbone())
    scramble(old.listed(), seed=0)
    before = values(old.model.variables)
    path = save(old.root, tmp_path)
    restore(new.root, path)
    new.finish()
    assert_all_hold(new.model.variables, before)
    slots = new.listed()[len(before) + 2 :]
    assert len(slots) == 2 * len(new.model.trainable_variables)
    assert not any(np.any(array) for array in values(slots))


def test_a_legacy_checkpoint_from_before_the_first_step_leaves_new_slots_as_they_start(tmp_path: pathlib.Path) -> None:
    old, new = functional_of_tf_keras(), functional_of_tf_keras()
    scramble(old)
    path = save(Checkpoint(model=old, optimizer=tf_keras.optimizers.legacy.Adam()), tmp_path)
    optimizer = tf_keras.optimizers.legacy.Adam()
    restore(Checkpoint(model=new, optimizer=optimizer), path)
    assert_all_hold(new.variables, values(old.variables))
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in new.trainable_variables])
    assert not any(np.any(array) for array in values(optimizer.variables()[1:]))


def test_a_checkpoint_without_an_optimizer_is_none_from_before_its_first_step(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(model=functional_of_tf_keras()), tmp_path)
    root = Checkpoint(model=functional_of_tf_keras(), optimizer=tf_keras.optimizers.legacy.Adam())
    refuse(dr.UnmatchedError, root, path, "optimizer/iter", "holds no optimizer slots")


def test_slots_without_an_optimizers_name_are_refused_by_another_class(tmp_path: pathlib.Path) -> None:
    """Slots that were built and not made by a step do not say whose they are; what is kept says it."""
    legacy = tf_keras.optimizers.legacy
    old, new = functional_of_tf_keras(), functional_of_tf_keras()
    optimizers = legacy.Adam(), legacy.Nadam()
    for model, optimizer in zip((old, new), optimizers, strict=True):
        optimizer._create_all_weights(model.trainable_variables)
    path = save(Checkpoint(model=old, optimizer=optimizers[0]), tmp_path)
    refuse(dr.UnmatchedError, Checkpoint(model=new, optimizer=optimizers[1]), path, "class changed", "'momentum'")


# ---- One model inside another, both in the checkpoint ----------------------------------------------------


def model_and_backbone(network: keras.Model) -> Program:
    outer = keras_modes.nest(network)
    return Program(Checkpoint(model=outer, backbone=network), lambda: outer.variables)


def model_backbone_and_optimizer(network: keras.Model) -> Program:
    outer = keras_modes.nest(network)
    program = keras_modes.given(outer)
    root = Checkpoint(model=outer, backbone=network, optimizer=program.root.optimizer)
    return Program(root, program.listed, program.finish, outer)


@pytest.mark.parametrize("name", ["backbone", None])
@pytest.mark.parametrize("start", [model_and_backbone, model_backbone_and_optimizer])
def test_a_checkpoint_may_hold_a_model_and_what_is_inside_it(start: Callable[..., Program], name: str | None) -> None:
    assert_reads_its_own(three(lambda: backbone(name)), Mode("both", start))


# ---- Built a second time ---------------------------------------------------------------------------------


def image_network() -> keras.Model:
    """Automatic names beside chosen ones, with state that is not trained, as in EfficientNet."""
    inputs = keras.Input((4, 4, 3))
    x = Layers.Rescaling(1 / 255)(inputs)
    x = Layers.Normalization(axis=-1)(x)
    x = Layers.Conv2D(4, 2, name="stem_conv")(x)
    x = Layers.BatchNormalization(name="stem_bn")(x)
    return keras.Model(inputs, Layers.Dense(2)(Layers.GlobalAveragePooling2D()(x)), name="network")


@modes(keras_modes.ALL, "weights", "nested", "adam", "nested_adam", "weights_h5", "keras", "compiled")
def test_what_is_built_again_has_other_counters_and_reads_its_own(mode: Mode) -> None:
    assert_reads_its_own(three(image_network), mode)


class Scale(Layers.Layer):
    """A layer with a variable of its own, as ConvNeXt has it."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")

    def call(self, x: object) -> object:
        return x * self.gamma


def stages() -> keras.Model:
    """Sequential models without an input inside a functional one, their layers named after their place."""
    inputs = keras.Input((4,))
    x = inputs
    for index in range(2):
        body = [
            Layers.Dense(4, name=f"stage_{index}_dense"),
            Layers.LayerNormalization(name=f"stage_{index}_norm"),
        ]
        x = keras.Sequential(body, name=f"stage_{index}")(x)
        x = Scale(name=f"stage_{index}_scale")(x)
    return keras.Model(inputs, Layers.LayerNormalization()(x), name="convnext")


@modes(keras_modes.ALL, "weights", "nested", "adam", "nested_adam", "nested_compiled", "compiled")
def test_sequential_stages_in_a_functional_model_read_their_own(mode: Mode) -> None:
    assert_reads_its_own(three(stages), mode)


@modes(keras_modes.ALL, "nested", "nested_adam", "nested_compiled")
def test_no_weight_of_a_nested_model_is_called_by_its_number_in_an_optimizer(
    tmp_path: pathlib.Path, mode: Mode
) -> None:
    old, new = mode.start(stages()), mode.start(stages())
    old.finish()
    plan = dr.DistributedRestorer(new.root).plan(save(old.root, tmp_path))
    assert plan.entries and not [e.target for e in plan.entries if "trainable_variables/" in e.target]


@keras.saving.register_keras_serializable()
class Tokens(keras.layers.Layer):
    """Variables of one shape, of which one is not trained: a file numbers that one last."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.first = self.add_weight(shape=(1, 1, 4), name="first")
        self.kept = self.add_weight(shape=(1, 1, 4), name="kept", trainable=False)
        self.second = self.add_weight(shape=(1, 1, 4), name="second")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.first + self.kept + self.second


def with_tokens() -> keras.Model:
    inputs = keras.Input((3, 4))
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(Tokens(name="tokens")(inputs)))


@modes(keras_modes.ALL, "weights_h5", "keras", "nested_weights_h5", "compiled_weights_h5", "compiled_keras")
def test_a_layer_of_the_users_with_variables_of_one_shape_reads_its_own_numbers(mode: Mode) -> None:
    assert_reads_its_own(three(with_tokens), mode)
