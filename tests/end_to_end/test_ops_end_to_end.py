"""Resized, remapped, averaged and deepened models: real checkpoints, with their optimizers, on one and two replicas."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from live import (
    Net,
    adam,
    assert_holds,
    entry,
    moments,
    natively,
    refuse,
    replicas,
    restore,
    save,
    scramble,
    slot,
    stack,
    value,
)

Checkpoint = tf.train.Checkpoint
Strategy = tf.distribute.Strategy


# ---- Vocabularies -------------------------------------------------------------------------------------------

OLD = ["[PAD]", "[UNK]", "the", "cat", "sat"]
PERMUTED = ["[PAD]", "[UNK]", "cat", "sat", "the"]
GROWN = ["[PAD]", "sat", "dog", "the", "[UNK]", "cat", "mat"]


def language_model(words: int) -> tuple[keras.Model, keras.optimizers.Adam]:
    model = Net(embed=keras.layers.Embedding(words, 3), head=keras.layers.Dense(words))
    model(tf.zeros((1, 2), tf.int32))
    return model, adam(model)


def vocabulary_rules(path: pathlib.Path, new: list[str]) -> str:
    (path / "old.txt").write_text("\n".join(OLD) + "\n")
    (path / "new.txt").write_text("\n".join(new) + "\n")
    rules = [
        f'[[rule]]\nfrom = "{name}"\nto = "{name}"\nops = [{{ remap_rows = {{ old_vocab = "old.txt", '
        f'new_vocab = "new.txt", axis = {axis}, new_rows = "{fill}" }} }}]\n'
        for name, axis, fill in (
            ("model/embed/embeddings", 0, "keep"),
            ("model/head/kernel", 1, "mean"),
            ("model/head/bias", 0, "zeros"),
        )
    ]
    (path / "rules.toml").write_text("\n".join(rules))
    return os.fspath(path / "rules.toml")


def weights(model: Net) -> list[tuple[object, int]]:
    """The variables that have a row for each word, and on which axis."""
    return [(model.embed.embeddings, 0), (model.head.kernel, 1), (model.head.bias, 0)]


def by_word(array: np.ndarray, axis: int, words: list[str]) -> dict[str, list[float]]:
    return {word: np.take(array, row, axis).tolist() for row, word in enumerate(words)}


def test_a_vocabulary_permuted_at_the_same_size_is_remapped_token_by_token(
    tmp_path: pathlib.Path, trainable: Strategy
) -> None:
    with trainable.scope():
        model, optimizer = language_model(5)
        scramble(model, optimizer)
        path = save(Checkpoint(model=model, optimizer=optimizer), tmp_path)
        old = [by_word(value(v), axis, OLD) for v, axis in weights(model)]
        old_slots = [by_word(value(v), (0, 1, 0)[i % 3], OLD) for i, v in enumerate(moments(optimizer))]
        wrong, wrong_optimizer = language_model(5)
        natively(Checkpoint(model=wrong, optimizer=wrong_optimizer), path)
        assert by_word(value(wrong.embed.embeddings), 0, PERMUTED)["the"] == old[0]["sat"]  # and no word of it
        model, optimizer = language_model(5)
    root = Checkpoint(model=model, optimizer=optimizer)
    report = restore(root, path, rules=vocabulary_rules(tmp_path, PERMUTED))
    assert [by_word(value(v), axis, PERMUTED) for v, axis in weights(model)] == old
    found = [by_word(value(v), (0, 1, 0)[i % 3], PERMUTED) for i, v in enumerate(moments(optimizer))]
    assert found == old_slots and len(found) == 6
    assert entry(report.plan, "model/embed/embeddings").status is dr.Status.TRANSFORMED


def test_a_vocabulary_that_grew_takes_embedding_kernel_bias_and_moments_along(
    tmp_path: pathlib.Path, trainable: Strategy
) -> None:
    with trainable.scope():
        model, optimizer = language_model(5)
        scramble(model, optimizer)
        path = save(Checkpoint(model=model, optimizer=optimizer), tmp_path)
        old = [by_word(value(v), axis, OLD) for v, axis in weights(model)]
        old_slots = [by_word(value(v), (0, 1, 0)[i % 3], OLD) for i, v in enumerate(moments(optimizer))]
        mean = value(model.head.kernel).astype(np.float64).mean(1)
        model, optimizer = language_model(7)
        scramble(model, optimizer, seed=1)
        kept = by_word(value(model.embed.embeddings), 0, GROWN)
    root = Checkpoint(model=model, optimizer=optimizer)
    refuse(dr.ShapeMismatchError, root, path, "model/embed/embeddings", "expected shape [7, 3]", "found", "[5, 3]")
    report = restore(root, path, rules=vocabulary_rules(tmp_path, GROWN))
    found = [by_word(value(v), axis, GROWN) for v, axis in weights(model)]
    slots = [by_word(value(v), (0, 1, 0)[i % 3], GROWN) for i, v in enumerate(moments(optimizer))]
    for word in OLD:
        assert [x[word] for x in found] == [x[word] for x in old]
        assert [x[word] for x in slots] == [x[word] for x in old_slots]
    for word in ("dog", "mat"):
        assert found[0][word] == kept[word]
        np.testing.assert_allclose(found[1][word], mean, rtol=1e-6)
        assert found[2][word] == 0
        assert all(not np.any(x[word]) for x in slots)
    assert "remap_rows axis=1 5->7, 2 new (mean)" in report.plan.summary()
    assert entry(report.plan, "model/embed/embeddings").status is dr.Status.RESIZED


def test_tokens_of_the_program_need_no_files(tmp_path: pathlib.Path, mirrored2: Strategy) -> None:
    with mirrored2.scope():
        model = language_model(5)[0]
        scramble(model)
        path = save(Checkpoint(model=model), tmp_path)
        expected = value(model.embed.embeddings)[[0, 1, 3, 4, 2]]
        model = language_model(5)[0]
    lookups = [keras.layers.StringLookup(vocabulary=v[2:], mask_token="[PAD]") for v in (OLD, PERMUTED)]
    remap = {"old_vocab": lookups[0].get_vocabulary(), "new_vocab": lookups[1].get_vocabulary(), "new_rows": "keep"}
    rules = [
        {"from": name, "to": name, "ops": [{"remap_rows": {**remap, "axis": axis}}]}
        for name, axis in (("model/embed/embeddings", 0), ("model/head/kernel", 1), ("model/head/bias", 0))
    ]
    restore(Checkpoint(model=model), path, rules={"rule": rules})
    assert_holds(model.embed.embeddings, expected)


# ---- Tables of positions --------------------------------------------------------------------------------------


class Table(keras.layers.Layer):
    """A table of positions, added to its input."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.table = self.add_weight(shape=shape, name="table")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.table


def table_model(*shape: int) -> tuple[keras.Model, keras.optimizers.Adam]:
    model = Net(pos=Table(*shape), head=keras.layers.Dense(2))
    model(tf.zeros((1, *shape[-2:])))
    return model, adam(model)


VIT = """
[[rule]]
from = "model/pos/table"
to = "model/pos/table"
ops = [{ resize = { method = "cubic", axes = [1, 2], grid = [14, 14], prefix = 1 } }]
"""
KEEP_VELOCITY = '\n[[rule]]\nkeep = "optimizer/velocity/model/pos/table"\n'
LINEAR_VELOCITY = VIT.replace("model/pos/table", "optimizer/velocity/model/pos/table").replace("cubic", "linear")


def as_image(table: np.ndarray, method: str = "bicubic") -> np.ndarray:
    grid = tf.image.resize(table[:, 1:].reshape(1, 14, 14, -1), (24, 24), method=method)
    return np.concatenate([table[:, :1], np.reshape(grid, (1, 576, -1))], 1)


def rules_file(path: pathlib.Path, text: str) -> str:
    (path / "rules.toml").write_text(text)
    return os.fspath(path / "rules.toml")


def test_the_table_of_a_vit_is_resized_and_its_second_moments_never_unasked(
    tmp_path: pathlib.Path, trainable: Strategy
) -> None:
    with trainable.scope():
        model, optimizer = table_model(1, 197, 4)
        scramble(model, optimizer)
        path = save(Checkpoint(model=model, optimizer=optimizer), tmp_path)
        table, momentum, velocity = (
            value(v)
            for v in (model.pos.table, *(slot(optimizer, r, model.pos.table) for r in ("momentums", "velocities")))
        )
        model, optimizer = table_model(1, 577, 4)
        scramble(model, optimizer, seed=1)
    root = Checkpoint(model=model, optimizer=optimizer)
    ours = slot(optimizer, "velocities", model.pos.table)
    words = (
        "'velocity' does not follow",
        "squares of gradients",
        "never done unasked",
        "keep = 'optimizer/velocity/model",
    )
    refuse(dr.UnmatchedError, root, path, *words, rules=rules_file(tmp_path, VIT))
    before = value(ours)
    report = restore(root, path, rules=rules_file(tmp_path, VIT + KEEP_VELOCITY))
    assert_holds(ours, before)
    for variable, old in ((model.pos.table, table), (slot(optimizer, "momentums", model.pos.table), momentum)):
        np.testing.assert_allclose(value(variable), as_image(old), atol=6e-3)
        np.testing.assert_array_equal(value(variable)[:, 0], old[:, 0])
    assert "resize cubic 14x14->24x24 prefix=1" in report.plan.summary()
    restore(root, path, rules=rules_file(tmp_path, VIT + LINEAR_VELOCITY))
    np.testing.assert_allclose(value(ours), as_image(velocity, "bilinear"), atol=1e-5)
    assert value(ours).min() > 0


def test_squares_of_gradients_are_not_resized_so_that_they_may_turn_negative(tmp_path: pathlib.Path) -> None:
    model, optimizer = table_model(1, 197, 4)
    path = save(Checkpoint(model=model, optimizer=optimizer), tmp_path)
    model, optimizer = table_model(1, 577, 4)
    rules = VIT + LINEAR_VELOCITY.replace("linear", "cubic")
    refuse(
        dr.RuleError,
        Checkpoint(model=model, optimizer=optimizer),
        path,
        "rule 2",
        "negative",
        rules=rules_file(tmp_path, rules),
    )


def test_the_positions_of_a_bert_are_interpolated_from_512_to_1024(tmp_path: pathlib.Path, trainable: Strategy) -> None:
    with trainable.scope():
        model, optimizer = table_model(512, 4)
        scramble(model, optimizer)
        path = save(Checkpoint(model=model, optimizer=optimizer), tmp_path)
        table = value(model.pos.table)
        model, optimizer = table_model(1024, 4)
    rules = VIT.replace('"cubic", axes = [1, 2], grid = [14, 14], prefix = 1', '"linear", axes = [0]') + KEEP_VELOCITY
    restore(Checkpoint(model=model, optimizer=optimizer), path, rules=rules_file(tmp_path, rules))
    expected = tf.image.resize(table[:, None], (1024, 1))[:, 0].numpy()
    np.testing.assert_allclose(value(model.pos.table), expected, atol=1e-5)
    assert not value(slot(optimizer, "velocities", model.pos.table)).any()


# ---- Depth ------------------------------------------------------------------------------------------------------

DEEPER = '[[rule]]\nfrom = "model/blocks/{i//2}/{rest}"\nto = "model/blocks/{i}/{rest}"\n'
SHALLOWER = '[[rule]]\nfrom = "model/blocks/{2*i}/{rest}"\nto = "model/blocks/{i}/{rest}"\n'
AVERAGED = """
[[rule]]
from = ["model/blocks/{2*i}/{rest}", "model/blocks/{2*i+1}/{rest}"]
to = "model/blocks/{i}/{rest}"
ops = [{ mean = { weights = [3, 1] } }]
"""


@pytest.mark.parametrize(
    ("rules", "count", "source"), [(DEEPER, 12, lambda i: i // 2), (SHALLOWER, 3, lambda i: 2 * i)]
)
def test_blocks_and_their_moments_come_from_the_block_that_the_rule_computes(
    tmp_path: pathlib.Path, trainable: Strategy, rules: str, count: int, source
) -> None:
    with trainable.scope():
        model = stack(6)
        optimizer = adam(model)
        scramble(model, optimizer)
        path = save(Checkpoint(model=model, blocks=list(model.blocks), optimizer=optimizer), tmp_path)
        old = [[value(v) for v in trio(b.kernel, optimizer)] for b in model.blocks]
        model = stack(count)
        optimizer = adam(model)
        scramble(model, optimizer, seed=1)
    root = Checkpoint(model=model, blocks=list(model.blocks), optimizer=optimizer)
    rules = rules.replace("model/blocks", name_of_blocks(root, path))
    restore(root, path, rules=rules_file(tmp_path, rules))
    for i, block in enumerate(model.blocks):
        for variable, expected in zip(trio(block.kernel, optimizer), old[source(i)], strict=True):
            assert_holds(variable, expected)


def trio(variable: object, optimizer: keras.optimizers.Adam) -> list[object]:
    return [variable, slot(optimizer, "momentums", variable), slot(optimizer, "velocities", variable)]


def name_of_blocks(root: Checkpoint, path: str) -> str:
    plan = dr.DistributedRestorer(root).plan(path)
    name = next(e.target for e in plan.entries if "blocks/0/kernel" in e.target and "optimizer" not in e.target)
    return name.removesuffix("/0/kernel")


def test_two_blocks_become_their_weighted_mean(tmp_path: pathlib.Path, trainable: Strategy) -> None:
    with trainable.scope():
        model = stack(6)
        scramble(model)
        path = save(Checkpoint(model=model, blocks=list(model.blocks)), tmp_path)
        old = [value(b.kernel) for b in model.blocks]
        model = stack(3)
    root = Checkpoint(model=model, blocks=list(model.blocks))
    restore(root, path, rules=rules_file(tmp_path, AVERAGED.replace("model/blocks", name_of_blocks(root, path))))
    for i, block in enumerate(model.blocks):
        wide = (3 * old[2 * i].astype(np.float64) + old[2 * i + 1]) / 4
        assert_holds(block.kernel, wide.astype(np.float32))


# ---- Tensors that are repeated ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("repeat = { axis = 1, times = 2 }", lambda x: np.repeat(x, 2, 1)),  # shared keys become those of each head
        ("tile = { multiples = [1, 2] }", lambda x: np.tile(x, (1, 2))),
    ],
)
def test_columns_are_repeated_and_the_moments_with_them(
    tmp_path: pathlib.Path, trainable: Strategy, op: str, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    def model_of(width: int) -> tuple[keras.Model, keras.optimizers.Adam]:
        model = Net(key=keras.layers.Dense(width, use_bias=False))
        model(tf.zeros((1, 4)))
        return model, adam(model)

    with trainable.scope():
        (old, old_adam), (new, new_adam) = model_of(3), model_of(6)
    scramble(old, old_adam)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    rules = f'[[rule]]\nfrom = "model/key/kernel"\nto = "model/key/kernel"\nops = [{{ {op} }}]\n'
    restore(Checkpoint(model=new, optimizer=new_adam), path, rules=rules_file(tmp_path, rules))
    for before, after in zip(trio(old.key.kernel, old_adam), trio(new.key.kernel, new_adam), strict=True):
        assert_holds(after, expected(value(before)))


# ---- What values decide is found before anything changes ----------------------------------------------------------


@pytest.mark.parametrize(
    ("ops", "dtype", "words"),
    [
        ("[{ mean = {} }]", tf.int64, "mean: expected int64 tensors that are equal"),
        ("[{ concat = { axis = 0 } }, { scale = { by = 2.0 } }]", tf.float16, "scale: 60000.0 times 2.0"),
        (
            '[{ concat = { axis = 0 } }, { resize = { method = "cubic", axes = [0] } }]',
            tf.float16,
            "resize: ",
        ),
    ],
)
def test_values_that_an_op_cannot_take_are_refused_before_anything_changes(
    tmp_path: pathlib.Path, trainable: Strategy, ops: str, dtype: tf.DType, words: str
) -> None:
    # `first` lies first in the file, and would be assigned first.
    found = {"first": [3, 4], "s": [1, 60000], "t": [60000, 1]}
    path = save(Checkpoint(**{n: tf.Variable(tf.constant(v, dtype)) for n, v in found.items()}), tmp_path)
    rules = f'[[rule]]\nfrom = ["s", "t"]\nto = "z"\nops = {ops}\n'
    size = 2 if "mean" in ops else 8 if "resize" in ops else 4
    with trainable.scope():
        root = Checkpoint(first=tf.Variable(tf.zeros(2, dtype)), z=tf.Variable(tf.zeros(size, dtype)))
    refuse(dr.DtypeMismatchError, root, path, "'z'", words, rules=rules_file(tmp_path, rules))
    assert all(not part.any() for part in replicas(root.first))


# ---- Rotary embeddings --------------------------------------------------------------------------------------------


def rotated(x: np.ndarray, interleaved: bool, rotary: int) -> np.ndarray:
    """Rotary position embedding of `[length, heads, head]`, in one of its two layouts."""
    angles = np.arange(len(x))[:, None, None] / 100 ** (np.arange(rotary // 2) / (rotary // 2))
    first, second = (
        (slice(0, rotary, 2), slice(1, rotary, 2)) if interleaved else (slice(rotary // 2), slice(rotary // 2, rotary))
    )
    result = x.copy()
    result[..., first] = x[..., first] * np.cos(angles) - x[..., second] * np.sin(angles)
    result[..., second] = x[..., first] * np.sin(angles) + x[..., second] * np.cos(angles)
    return result


@pytest.mark.parametrize("rotary", [8, 4])
def test_attention_is_the_same_in_the_other_layout_of_rotary_embeddings(
    tmp_path: pathlib.Path, mirrored2: Strategy, rotary: int
) -> None:
    heads, head = 3, 8

    def scores(model: Net, x: np.ndarray, interleaved: bool) -> np.ndarray:
        q, k = (
            (x @ value(layer.kernel) + value(layer.bias)).reshape(-1, heads, head) for layer in (model.query, model.key)
        )
        q, k = rotated(q, interleaved, rotary), rotated(k, interleaved, rotary)
        return np.einsum("qhd,khd->hqk", q, k)

    def attention() -> Net:
        # Both take the width of the input; called one after the other, it is the heads' width.
        model = Net(query=keras.layers.Dense(heads * head), key=keras.layers.Dense(heads * head))
        model(tf.zeros((1, heads * head)))
        return model

    with mirrored2.scope():
        old, new = attention(), attention()
        scramble(old)
        path = save(Checkpoint(model=old), tmp_path)
    part = f", rotary = {rotary}" if rotary < head else ""
    op = f'{{ permute_heads = {{ heads = {heads}, layout = "interleaved_to_half"{part} }} }}'
    rules = f'[[rule]]\nfrom = "model/{{layer}}/{{rest}}"\nto = "model/{{layer}}/{{rest}}"\nops = [{op}]\n'
    restore(Checkpoint(model=new), path, rules=rules_file(tmp_path, rules))
    x = np.random.default_rng(0).normal(size=(6, heads * head))
    np.testing.assert_allclose(
        scores(new, x, interleaved=False), scores(old, x, interleaved=True), rtol=1e-5, atol=1e-4
    )
    assert not np.allclose(scores(new, x, interleaved=True), scores(old, x, interleaved=True), atol=0.1)
