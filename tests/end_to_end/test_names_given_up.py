"""Names that Keras makes up around a layer's own, names that somebody gave up, and weights in lists of a layer."""

from __future__ import annotations

import pathlib

import keras
import pytest
import tensorflow as tf

import dist_restore as dr
from dist_restore.naming.automatic_names import Vocabulary, looks_automatic
from live import assert_all_hold, scramble, values

FORMATS = ["ckpt", "m.keras", "m.weights.h5"]


def roundtrip(build, path: pathlib.Path, old: dict[str, object], new: dict[str, object]) -> None:
    """Saves one model as a checkpoint or file, and restores it into the other."""
    keras.utils.clear_session()
    first = build(**old)
    scramble(first.variables, first.optimizer.variables)
    expected = values([*first.weights, *first.optimizer.variables])
    is_file = path.suffix in (".keras", ".h5")
    if is_file:
        first.save(path) if path.suffix == ".keras" else first.save_weights(path)
    name = str(path) if is_file else tf.train.Checkpoint(model=first, optimizer=first.optimizer).save(str(path))
    keras.utils.clear_session()
    second = build(**new)
    root = second if is_file else tf.train.Checkpoint(model=second, optimizer=second.optimizer)
    dr.DistributedRestorer(root, progress=False).restore(name)
    assert_all_hold([*second.weights, *second.optimizer.variables], expected)


def compiled(model: keras.Model) -> keras.Model:
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


# ---- Names around a layer's own --------------------------------------------------------------------------


def both_ways(before: int = 0) -> keras.Model:
    def layer(units: int, **options: object) -> keras.Layer:
        return keras.layers.Bidirectional(keras.layers.LSTM(units, **options))

    for _ in range(before):
        layer(3)
    parts = [keras.Input((8, 4)), layer(5, return_sequences=True), layer(3), keras.layers.Dense(1)]
    return compiled(keras.Sequential(parts))


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("form", FORMATS)
def test_layers_inside_bidirectional_are_counted_as_well(form: str, before: int, tmp_path: pathlib.Path) -> None:
    roundtrip(both_ways, tmp_path / form, {}, {"before": before})


@pytest.mark.parametrize("name", ["forward_lstm", "backward_gru_3", "forward_dense"])
def test_what_bidirectional_puts_before_a_name_leaves_it_automatic(name: str) -> None:
    assert looks_automatic(name)
    assert Vocabulary().path(f"net/{name}/kernel").text == f"net/{name.removesuffix('_3')}{{}}/kernel"
    assert Vocabulary().path(f"net/{name}/kernel").counters == (3 if name.endswith("_3") else 0,)


@pytest.mark.parametrize("name", ["forward_pass", "backward", "forward_", "my_forward_lstm"])
def test_other_names_that_begin_so_are_chosen(name: str) -> None:
    assert not looks_automatic(name)
    assert Vocabulary().path(name).text == Vocabulary().chosen_in_path(name) == name


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        ("net/dense_1", ""),
        ("net/stem/dense", "stem"),
        ("net/multi_head_attention_2/query", ""),
        ("net/reader/query", "reader/query"),
        ("bidirectional/forward_lstm_1/lstm_cell", ""),
        ("adam_1", ""),
    ],
)
def test_what_somebody_chose_of_a_name(path: str, chosen: str) -> None:
    words = Vocabulary(["net"])
    assert words.chosen_in_path(path) == chosen
    assert words.chosen_in_flat(path.replace("/", "_")) == chosen.replace("/", "_")


# ---- Names that were given up ----------------------------------------------------------------------------


class Net(keras.Model):
    def __init__(self, name: str | None = None, layers: int = 2) -> None:
        super().__init__()
        self.hidden = keras.layers.Dense(8, name=name)
        self.out = keras.layers.Dense(2)
        self.more = keras.layers.Dense(2) if layers == 3 else None

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = self.out(self.hidden(x))
        return x if self.more is None else self.more(x)


def net(**options: object) -> keras.Model:
    model = Net(**options)
    model(tf.ones((1, 4)))
    return compiled(model)


@pytest.mark.parametrize(("old", "new"), [("inner", None), (None, "inner"), ("inner", "other")])
@pytest.mark.parametrize("layers", [2, 3])
def test_a_layers_name_may_be_given_up_where_its_attribute_stays(
    layers: int, old: str | None, new: str | None, tmp_path: pathlib.Path
) -> None:
    roundtrip(net, tmp_path / "ckpt", {"name": old, "layers": layers}, {"name": new, "layers": layers})


# ---- Weights in lists of a layer -------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Mixer(keras.layers.Layer):
    """Holds some of its weights in a list or a dict."""

    def __init__(self, held: str = "list", shapes: object = (), **options: object) -> None:
        super().__init__(**options)
        self.held, self.shapes = held, shapes

    def build(self, shape: object) -> None:
        self.first = self.add_weight(shape=(4, 4), name="first")
        made = [self.add_weight(shape=tuple(s), name=f"w{i}") for i, s in enumerate(self.shapes)]
        self.made = made if self.held == "list" else {f"key{i}": w for i, w in enumerate(made)}
        self.last = self.add_weight(shape=(3,), name="last")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = x @ self.first
        for weight in self.made if self.held == "list" else self.made.values():
            x = x @ weight
        return x + self.last

    def get_config(self) -> dict[str, object]:
        return {**super().get_config(), "held": self.held, "shapes": self.shapes}


def mixed(held: str, shapes: object) -> keras.Model:
    return compiled(keras.Sequential([keras.Input((4,)), Mixer(held, shapes, name="mixer"), keras.layers.Dense(2)]))


@pytest.mark.parametrize("shapes", [((4, 5), (5, 3)), ((4, 4), (4, 4), (4, 3))], ids=["apart", "alike"])
@pytest.mark.parametrize("held", ["list", "dict"])
@pytest.mark.parametrize("form", FORMATS[1:])
def test_weights_in_lists_of_a_users_layer_are_read(
    form: str, held: str, shapes: object, tmp_path: pathlib.Path
) -> None:
    options = {"held": held, "shapes": shapes}
    roundtrip(mixed, tmp_path / form, options, options)


def test_weights_in_lists_that_are_alike_rest_on_their_order(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.weights.h5"
    mixed("list", ((4, 4), (4, 3))).save_weights(path)
    plan = dr.DistributedRestorer(mixed("list", ((4, 4), (4, 3))), progress=False).plan(path)
    proofs = {e.target: e.proof.value for e in plan.entries if "mixer" in e.target and "optimizer" not in e.target}
    assert set(proofs.values()) == {"order"} and len(proofs) == 4


@pytest.mark.parametrize("shapes", [((4, 4), (4, 4), (4, 3)), ((4, 5), (5, 3)), ((4, 3),)])
def test_another_list_of_weights_is_refused(shapes: object, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.weights.h5"
    mixed("list", ((4, 4), (4, 3))).save_weights(path)
    with pytest.raises(dr.RestoreError, match="mixer/made/0"):
        dr.DistributedRestorer(mixed("list", shapes), progress=False).restore(path)
