"""How a program is saved, how its own library reads it back, and what is in the file."""

from __future__ import annotations

import pathlib
import random
import zipfile
from collections.abc import Iterator

import h5py
import numpy as np
import tensorflow as tf

from building import Built, checkpoint_of
from programs import Block, Program, nodes

TF_FORMATS = ("tf write", "tf save")


def formats_of(program: Program) -> tuple[str, ...]:
    """The formats in which this program can be saved."""
    if program.library == "module" or len(program.models) > 1:
        return TF_FORMATS
    styles = {n.style for n in nodes(program) if isinstance(n, Block)}
    whole = not styles & {"subclass", "list", "dict"}
    return (*TF_FORMATS, ".weights.h5", *((".keras", ".h5") if whole else ()))


def random_format(rng: random.Random, program: Program) -> str:
    """One of the formats; a TensorFlow checkpoint most of the time."""
    if rng.random() < 0.8:
        return rng.choice(TF_FORMATS)
    return rng.choice(formats_of(program))


def save(built: Built, form: str, folder: pathlib.Path) -> str:
    """Saves a program, and says where."""
    if form == "tf write":
        return checkpoint_of(built).write(str(folder / "ckpt"))
    if form == "tf save":
        return checkpoint_of(built).save(str(folder / "ckpt"))
    path, model = str(folder / f"model{form}"), next(iter(built.models.values()))
    if form == ".weights.h5" or (form == ".h5" and built.program.library == "tf_keras"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def native_restore(built: Built, form: str, path: str) -> None:
    """What the program's own library makes of the file."""
    if form in TF_FORMATS:
        checkpoint_of(built).restore(path).expect_partial()
    else:
        next(iter(built.models.values())).load_weights(path)


def tensors(form: str, path: str) -> list[np.ndarray]:
    """All tensors of a file, whatever they are called there."""
    if form in TF_FORMATS:
        reader = tf.train.load_checkpoint(path)
        return [
            np.asarray(reader.get_tensor(key))
            for key in reader.get_variable_to_shape_map()
            if key != "_CHECKPOINTABLE_OBJECT_GRAPH"
        ]
    if form == ".keras":
        with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file, h5py.File(file) as inner:
            return list(_arrays(inner))
    with h5py.File(path) as file:
        return list(_arrays(file))


def outline(form: str, path: str) -> object:
    """All that a file says besides the values."""
    if form in TF_FORMATS:
        reader = tf.train.load_checkpoint(path)
        return reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"), reader.get_variable_to_shape_map()
    if form == ".keras":
        with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file, h5py.File(file) as inner:
            return archive.read("config.json"), _outline(inner)
    with h5py.File(path) as file:
        return _outline(file)


def _outline(file: h5py.File) -> list[tuple[object, ...]]:
    names: list[str] = []
    file.visit(names.append)
    return [(name, getattr(file[name], "shape", None), str(sorted(file[name].attrs.items()))) for name in names]


def _arrays(file: h5py.File) -> Iterator[np.ndarray]:
    names: list[str] = []
    file.visit(names.append)
    yield from (file[name][()] for name in names if isinstance(file[name], h5py.Dataset))
