"""Case 13 of the silent failures: a vocabulary permuted at the same size, in a model whose lookup layer holds it."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from live import adam, moments, natively, refuse, replicas, restore, save, scramble

Strategy = tf.distribute.Strategy
OLD = ["red", "green", "blue", "white"]
PERMUTED = ["blue", "white", "red", "green"]
GROWN = ["black", "white", "blue", "green", "red", "grey"]


class Words(keras.Model):
    """A lookup, an embedding with a row, and an output layer with a column for each of its tokens."""

    def __init__(self, lookup: keras.layers.Layer) -> None:
        super().__init__()
        self.lookup, size = lookup, lookup.vocabulary_size()
        self.embed, self.head = keras.layers.Embedding(size, 3), keras.layers.Dense(size)

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        return self.head(self.embed(ids))

    @property
    def tables(self) -> list[tuple[object, int]]:
        return [(self.embed.embeddings, 0), (self.head.kernel, 1), (self.head.bias, 0)]


def string_lookup(tokens: list[str]) -> keras.layers.Layer:
    return keras.layers.StringLookup(vocabulary=tokens)


def vectorization(tokens: list[str]) -> keras.layers.Layer:
    return keras.layers.TextVectorization(vocabulary=tokens)


LAYERS = {"StringLookup": string_lookup, "TextVectorization": vectorization}


def build(lookup: keras.layers.Layer, seed: int) -> tuple[Words, keras.optimizers.Adam, tf.train.Checkpoint]:
    model = Words(lookup)
    model(tf.zeros((1, 2), tf.int64))
    optimizer = adam(model)
    scramble(model, optimizer, seed=seed)
    return model, optimizer, tf.train.Checkpoint(model=model, optimizer=optimizer)


def by_word(model: Words, optimizer: keras.optimizers.Adam) -> list[list[dict[str, list[float]]]]:
    """For each table and each of its moments: on each replica, what each word has."""
    axes = [axis for _, axis in model.tables]
    slots = [(v, axes[i % 3]) for i, v in enumerate(moments(optimizer))]
    assert len(slots) == 6
    words = model.lookup.get_vocabulary()
    return [
        [{w: np.take(a, i, axis).tolist() for i, w in enumerate(words)} for a in replicas(v)]
        for v, axis in (*model.tables, *slots)
    ]


def remapped(old: object, new: object) -> dict[str, object]:
    names = {"model/embed/embeddings": 0, "model/head/kernel": 1, "model/head/bias": 0}
    op = {"old_vocab": old, "new_vocab": new, "new_rows": "mean"}
    return {"rule": [{"from": n, "to": n, "ops": [{"remap_rows": {**op, "axis": a}}]} for n, a in names.items()]}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_permuted_vocabulary_is_wrong_natively_and_remapped_exactly_by_the_layers(
    tmp_path: pathlib.Path, strategy: Strategy, layer: str
) -> None:
    make = LAYERS[layer]
    with strategy.scope():
        model, optimizer, root = build(make(OLD), 0)
        path, expected = save(root, tmp_path), by_word(model, optimizer)
        wrong, wrong_optimizer, wrong_root = build(make(PERMUTED), 1)
        natively(wrong_root, path)  # passes all of TensorFlow's own checks
        new, new_optimizer, new_root = build(make(PERMUTED), 2)
    assert by_word(wrong, wrong_optimizer)[0][0]["red"] == expected[0][0]["blue"]
    report = restore(new_root, path, rules=remapped(make(OLD), new.lookup))
    assert by_word(new, new_optimizer) == expected
    assert report.coverage.elements == 1


def test_no_checkpoint_holds_the_vocabulary_of_a_lookup_layer(tmp_path: pathlib.Path) -> None:
    """Keras 3 keeps it in a static table, which TensorFlow does not save: what cannot be seen cannot be refused."""
    path = save(build(string_lookup(OLD), 0)[2], tmp_path)
    assert not any(t.spec.dtype == "string" for t in dr.open_checkpoint(path).index().tensors)
    data = pathlib.Path(f"{path}.data-00000-of-00001").read_bytes()
    assert not any(word.encode() in data for word in OLD)


def test_a_changed_size_must_be_declared_and_new_words_are_filled(tmp_path: pathlib.Path, strategy: Strategy) -> None:
    with strategy.scope():
        model, optimizer, root = build(string_lookup(OLD), 0)
        path, expected = save(root, tmp_path), by_word(model, optimizer)
        new, new_optimizer, new_root = build(string_lookup(GROWN), 1)
    refuse(dr.ShapeMismatchError, new_root, path, "'model/embed/embeddings' [5, 3]", "fit")
    restore(new_root, path, rules=remapped(model.lookup, new.lookup))
    found = by_word(new, new_optimizer)
    for place, copies in enumerate(found):
        for replica, words in enumerate(copies):
            assert {w: words[w] for w in model.lookup.get_vocabulary()} == expected[place][replica]
            assert place < 3 or not np.any([words["black"], words["grey"]])
    mean = np.mean(list(expected[0][0].values()), axis=0)
    np.testing.assert_allclose(found[0][-1]["grey"], mean, rtol=1e-6)
