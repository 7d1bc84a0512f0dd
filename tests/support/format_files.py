"""The same weights in every format: writers that are the formats' own, and the model that they come from."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from safetensors.numpy import save_file

Weights = Mapping[str, np.ndarray]


def build(library: object = keras, *, scale: bool = True, center: bool = True) -> keras.Model:
    """A functional model with a nested one; `library` is Keras 3 or tf_keras."""
    layers = library.layers
    inputs = library.Input((4,))
    x = layers.Dense(6, name="wide")(inputs)
    x = layers.BatchNormalization(name="norm", scale=scale, center=center)(x)
    inner = library.Sequential([library.Input((6,)), layers.Dense(6, name="first", use_bias=False)], name="inner")
    x = layers.Dense(6, name="alike", use_bias=False)(inner(x))
    return library.Model(inputs, layers.Dense(3, name="head")(x), name="net")


def weights_of(model: keras.Model) -> dict[str, np.ndarray]:
    return {v.path: v.numpy() for v in model.variables}


def in_tf_keras(weights: Weights, **options: bool) -> tf_keras.Model:
    """A tf_keras model with these weights; its variables leave the nested model's name out."""
    model = build(tf_keras, **options)
    for variable in model.variables:
        name = variable.name.partition(":")[0]
        variable.assign(weights[f"inner/{name}" if name.startswith("first/") else name])
    return model


def dotted(weights: Weights) -> dict[str, np.ndarray]:
    return {name.replace("/", "."): np.ascontiguousarray(value) for name, value in weights.items()}


def write_safetensors(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    save_file(dotted(weights_of(model)), directory / "model.safetensors", metadata={"format": "np"})
    return directory / "model.safetensors"


def write_sharded(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    """Two files and their index, as Hugging Face names them; the directory stands for them."""
    folder = directory / "sharded"
    folder.mkdir()
    items = sorted(dotted(weights_of(model)).items())
    table = {}
    for number, part in enumerate((items[::2], items[1::2]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file(dict(part), folder / name)
        table.update({key: name for key, _ in part})
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": table})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def write_npz(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    np.savez(directory / "weights.npz", **weights_of(model))
    return directory / "weights.npz"


def write_packed_npz(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    np.savez_compressed(directory / "packed.npz", **dotted(weights_of(model)))
    return directory / "packed.npz"


def write_weights(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    model.save_weights(directory / "net.weights.h5")
    return directory / "net.weights.h5"


def write_keras(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    model.save(directory / "net.keras")
    return directory / "net.keras"


def write_legacy(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    model.save(directory / "net.h5")
    return directory / "net.h5"


def write_tf_keras_legacy(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    in_tf_keras(weights_of(model)).save_weights(os.fspath(directory / "two.h5"))
    return directory / "two.h5"


def write_tf_keras_archive(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    in_tf_keras(weights_of(model)).save(os.fspath(directory / "two.keras"))
    return directory / "two.keras"


def write_saved_model(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    model.export(directory / "exported", verbose=False)
    return directory / "exported"


def write_tracked_saved_model(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    tf.saved_model.save(model, os.fspath(directory / "tracked"))
    return directory / "tracked"


def write_checkpoint(model: keras.Model, directory: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(tf.train.Checkpoint(model=model).save(os.fspath(directory / "ckpt")))


# What an object graph does not say: how a model inside a functional model is called.
RULES = {
    "ckpt-1": {"model/operations/3/first/kernel": "model/inner/first/kernel"},
    "tracked": {"operations/3/first/kernel": "model/inner/first/kernel"},
}
BARE_RULES = {name: {old: "inner/first/kernel" for old in rules} for name, rules in RULES.items()}
WRITERS: dict[str, Callable[[keras.Model, pathlib.Path], pathlib.Path]] = {
    "checkpoint": write_checkpoint,
    "safetensors": write_safetensors,
    "sharded": write_sharded,
    "npz": write_npz,
    "packed_npz": write_packed_npz,
    "weights": write_weights,
    "keras": write_keras,
    "legacy": write_legacy,
    "tf_keras_legacy": write_tf_keras_legacy,
    "tf_keras_archive": write_tf_keras_archive,
    "saved_model": write_saved_model,
    "tracked_saved_model": write_tracked_saved_model,
}
