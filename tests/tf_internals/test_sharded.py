"""Variables in several parts of rows (`ShardedVariable`, tried on TF 2.21): one target each, whatever the parts.

Every row has a value of its own, so that one in a wrong part, or in a wrong place of it, is seen. Real parameter
servers are in `test_parameter_servers.py`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.distribute.sharded_variable import ShardedVariable

import dist_restore as dr
from dist_restore.core.tensors import Box
from dist_restore.ops import Fill, Fit, Pad, RemapRows, Slice, Transpose
from live import assert_unchanged, restore, snapshot


def table(rows: int, start: float = 1.0, width: int = 3) -> np.ndarray:
    return np.arange(start, start + rows * width, dtype=np.float32).reshape(rows, width)


def sharded(value: np.ndarray, sizes: Sequence[int], name: str = "table") -> ShardedVariable:
    ends = np.cumsum(sizes)
    assert ends[-1] == len(value)
    parts = [
        tf.Variable(value[end - size : end], name=f"{name}/part_{i}")
        for i, (end, size) in enumerate(zip(ends, sizes, strict=True))
    ]
    return ShardedVariable(parts, name=name)


def module(variable: object) -> tf.train.Checkpoint:
    root = tf.Module()
    root.table = variable
    return tf.train.Checkpoint(model=root)


def saved(variable: object, directory: pathlib.Path) -> str:
    return module(variable).save(str(directory / "ckpt"))


def assert_parts(variable: ShardedVariable, expected: np.ndarray, sizes: Sequence[int]) -> None:
    ends = np.cumsum(sizes)
    for part, end, size in zip(variable.variables, ends, sizes, strict=True):
        np.testing.assert_array_equal(part.numpy(), expected[end - size : end])


LAYOUTS = [(10,), (5, 5), (4, 3, 3), (1, 8, 1), (2, 2, 2, 2, 2)]


@pytest.mark.parametrize("ours", LAYOUTS)
@pytest.mark.parametrize("theirs", LAYOUTS)
def test_any_number_of_parts_becomes_any_other(
    theirs: tuple[int, ...], ours: tuple[int, ...], tmp_path: pathlib.Path
) -> None:
    path = saved(sharded(table(10), theirs), tmp_path)
    live = sharded(np.zeros((10, 3), np.float32), ours)
    report = restore(module(live), path)
    assert_parts(live, table(10), ours)
    assert report.verified and report.plan.mapping()["model/table"] == ("model/table",)


def test_a_plain_variable_becomes_parts_and_parts_a_plain_variable(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    live = sharded(np.zeros((10, 3), np.float32), (4, 6))
    restore(module(live), saved(tf.Variable(table(10)), tmp_path / "a"))
    assert_parts(live, table(10), (4, 6))
    plain = tf.Variable(tf.zeros((10, 3)))
    restore(module(plain), saved(sharded(table(10), (4, 3, 3)), tmp_path))
    np.testing.assert_array_equal(plain.numpy(), table(10))


@pytest.mark.parametrize("fill", [Fill.KEEP, Fill.ZEROS, Fill.MEAN])
def test_a_table_grows_by_a_rule_and_each_new_row_has_its_fill(fill: Fill, tmp_path: pathlib.Path) -> None:
    path = saved(sharded(table(10), (4, 3, 3)), tmp_path)
    before = table(11, start=1000)
    live = sharded(before, (6, 5))
    restore(module(live), path, rules=[dr.Rule("model/table", "model/table", (Fit(fill),))])
    new = {Fill.KEEP: before[10], Fill.ZEROS: 0, Fill.MEAN: table(10).mean()}[fill]
    expected = np.vstack([table(10), np.broadcast_to(new, (1, 3))]).astype(np.float32)
    assert_parts(live, expected, (6, 5))


def test_rows_in_front_move_rows_over_the_borders_of_parts(tmp_path: pathlib.Path) -> None:
    path = saved(sharded(table(10), (5, 5)), tmp_path)
    live = sharded(table(12, start=1000), (4, 4, 4))
    rule = dr.Rule("model/table", "model/table", (Pad((2, 0), (0, 0), Fill.KEEP),))
    restore(module(live), path, rules=[rule])
    assert_parts(live, np.vstack([table(12, start=1000)[:2], table(10)]), (4, 4, 4))


def test_ops_are_those_of_the_whole_table(tmp_path: pathlib.Path) -> None:
    path = saved(sharded(table(10), (5, 5)), tmp_path)
    turned = sharded(np.zeros((3, 4), np.float32), (1, 2))
    rule = dr.Rule("model/table", "model/table", (Slice((5, 0), (4, 3)), Transpose((1, 0))))
    restore(module(turned), path, rules=[rule])
    assert_parts(turned, table(10)[5:9].T, (1, 2))


def test_rows_go_to_their_tokens(tmp_path: pathlib.Path) -> None:
    path = saved(sharded(table(4), (2, 2)), tmp_path)
    live = sharded(table(5, start=1000), (3, 2))
    rows = RemapRows(new_rows=Fill.KEEP, old_vocab=tuple("abcd"), new_vocab=tuple("dxbac"))
    rule = dr.Rule("model/table", "model/table", (rows,))
    restore(module(live), path, rules=[rule])
    old, kept = table(4), table(5, start=1000)
    assert_parts(live, np.stack([old[3], kept[1], old[1], old[0], old[2]]), (3, 2))


def test_another_number_of_rows_without_a_rule_is_refused_and_no_part_changes(tmp_path: pathlib.Path) -> None:
    path = saved(sharded(table(10), (4, 3, 3)), tmp_path)
    live = sharded(table(11, start=1000), (6, 5))
    before = snapshot(list(live.variables))
    with pytest.raises(dr.ShapeMismatchError, match=r"model/table.*\[11, 3\].*\[10, 3\]"):
        restore(module(live), path)
    assert_unchanged(before)


def test_a_part_that_something_else_writes_is_found(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(sharded(table(10), (5, 5)), tmp_path)
    live = sharded(np.zeros((10, 3), np.float32), (5, 5))
    assign = type(live.variables[1]).assign
    monkeypatch.setattr(
        type(live.variables[1]), "assign", lambda self, value, **options: assign(self, tf.zeros_like(value), **options)
    )
    with pytest.raises(dr.VerificationError, match="model/table"):
        restore(module(live), path)


def test_tensorflow_itself_cannot_grow_a_table(tmp_path: pathlib.Path) -> None:
    path = saved(sharded(table(10), (4, 3, 3)), tmp_path)
    with pytest.raises(Exception, match="shape_and_slice"):
        module(sharded(table(11), (6, 5))).restore(path)


# ---- Slots -----------------------------------------------------------------------------------------------

STYLES = ["legacy", "new"]


def trained(style: str, tables: dict[str, ShardedVariable], steps: int, kernel: bool = True) -> tf.train.Checkpoint:
    """A module of tables in parts and of a plain kernel, and tf_keras's Adam after some steps."""
    root = tf.Module()
    for name, variable in tables.items():
        setattr(root, name, variable)
    variables = [part for variable in tables.values() for part in variable.variables]
    if kernel:
        root.kernel = tf.Variable(tf.ones((2, 2)), name="kernel")
        variables.append(root.kernel)
    adam = (tf_keras.optimizers.legacy if style == "legacy" else tf_keras.optimizers).Adam(0.5)
    if style == "new":
        adam.build(variables)
    for step in range(steps):
        gradients = [table(v.shape[0], start=100.0 * i + step, width=v.shape[1]) for i, v in enumerate(variables)]
        adam.apply_gradients(zip([tf.constant(g) for g in gradients], variables, strict=True))
    return tf.train.Checkpoint(model=root, optimizer=adam)


def slot(root: tf.train.Checkpoint, variable: ShardedVariable, name: str) -> np.ndarray:
    adam = root.optimizer
    if hasattr(adam, "get_slot"):
        return np.concatenate([adam.get_slot(part, name).numpy() for part in variable.variables])
    rows = {"m": adam._momentums, "v": adam._velocities}[name]
    return np.concatenate([rows[adam._index_dict[adam._var_key(part)]].numpy() for part in variable.variables])


@pytest.mark.parametrize("style", STYLES)
def test_slots_follow_their_table_into_other_parts(style: str, tmp_path: pathlib.Path) -> None:
    old = {"table": sharded(table(10), (4, 3, 3)), "wide": sharded(table(6, width=5), (3, 3), "wide")}
    source = trained(style, old, steps=2)
    path = source.save(str(tmp_path / "ckpt"))
    new = {"table": sharded(table(10, 500), (5, 5)), "wide": sharded(table(7, 500, width=5), (4, 3), "wide")}
    target = trained(style, new, steps=1)
    report = restore(target, path, rules=[dr.Rule("model/wide", "model/wide", (Fit(Fill.ZEROS),))])
    for name, rows in (("table", 10), ("wide", 6)):
        for role in "mv":
            expected = slot(source, old[name], role)
            assert len(np.unique(expected)) == expected.size
            np.testing.assert_array_equal(slot(target, new[name], role)[:rows], expected)
    assert not slot(target, new["wide"], "m")[6:].any()
    assert report.plan.mapping()["optimizer/momentum/model/table"]
    assert int(target.optimizer.iterations) == 2


def test_new_style_slots_of_tables_of_one_shape_are_refused_and_legacy_ones_have_owners(
    tmp_path: pathlib.Path,
) -> None:
    def tables(start: float) -> dict[str, ShardedVariable]:
        return {name: sharded(table(4, start + i), (2, 2), name) for i, name in enumerate("ab")}

    for style in STYLES:
        (tmp_path / style).mkdir()
        old = tables(1)
        source = trained(style, old, steps=2)
        path = source.save(str(tmp_path / style / "ckpt"))
        new = tables(50)
        target = trained(style, new, steps=1)
        if style == "new":
            with pytest.raises(dr.UnmatchedError, match="optimizer/momentum/model/a"):
                restore(target, path)
            continue
        restore(target, path)
        for name in "ab":
            np.testing.assert_array_equal(slot(target, new[name], "v"), slot(source, old[name], "v"))


@pytest.mark.parametrize("style", STYLES)
def test_slots_of_a_plain_table_become_those_of_one_in_parts(style: str, tmp_path: pathlib.Path) -> None:
    old = tf.Variable(table(10), name="table")
    root = tf.Module()
    root.table = old
    adam = (tf_keras.optimizers.legacy if style == "legacy" else tf_keras.optimizers).Adam(0.5)
    adam.apply_gradients([(tf.constant(table(10, 7)), old)])
    path = tf.train.Checkpoint(model=root, optimizer=adam).save(str(tmp_path / "ckpt"))
    new = sharded(table(10, 500), (6, 4))
    target = trained(style, {"table": new}, steps=1, kernel=False)
    restore(target, path)
    expected = adam.get_slot(old, "m") if style == "legacy" else adam._momentums[0]
    np.testing.assert_array_equal(slot(target, new, "m"), expected.numpy())


# ---- What is not changed ---------------------------------------------------------------------------------


def test_a_part_of_a_table_is_read_as_it_is_stored(tmp_path: pathlib.Path) -> None:
    source = dr.open_checkpoint(saved(sharded(table(10), (4, 3, 3)), tmp_path))
    np.testing.assert_array_equal(source.read("model/table", Box((3, 0), (5, 3))), table(10)[3:8])
    source.close()
