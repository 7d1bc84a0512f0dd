"""Lookup tables, iterators and generators in a checkpoint: restored by their own method, or refused by name."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from live import (
    assert_holds,
    entry,
    net,
    refuse,
    replicas,
    restore,
    save,
    scramble,
)

Strategy = tf.distribute.Strategy
Checkpoint = tf.train.Checkpoint
Mutable = tf.lookup.experimental.MutableHashTable
Dense = tf.lookup.experimental.DenseHashTable


def words(**rows: int) -> Mutable:
    table = Mutable(tf.string, tf.int64, -1)
    if rows:
        table.insert(list(rows), list(rows.values()))
    return table


def dense(rows: dict[int, list[float]], empty: int = -1, default: tuple[float, ...] = (-1.0, 0.0)) -> Dense:
    table = Dense(tf.int64, tf.float32, list(default), empty_key=empty, deleted_key=-2, initial_num_buckets=8)
    if rows:
        table.insert(list(rows), list(rows.values()))
    return table


def rows_of(table: Mutable) -> dict[bytes, int]:
    keys, values = table.export()
    return dict(zip(keys.numpy().tolist(), values.numpy().tolist(), strict=True))


def numbers(count: int = 20) -> tf.data.Dataset:
    return tf.data.Dataset.range(count).batch(2)


def take(iterator: tf.data.Iterator, count: int = 1) -> list[list[int]]:
    return [next(iterator).numpy().tolist() for _ in range(count)]


# ---- Tables ------------------------------------------------------------------------------------------------


def test_tables_are_restored_with_the_variables(tmp_path: pathlib.Path, strategy: Strategy) -> None:
    def build(seed: int, table: Mutable, buckets: Dense) -> tuple[keras.Model, Checkpoint]:
        with strategy.scope():
            model = net(head=2)
        scramble(model, seed=seed)
        return model, Checkpoint(model=model, words=table, parts={"dense": buckets})

    old, root = build(0, words(a=1, b=2), dense({1: [1, 2], 5: [3, 4]}))
    path, expected = save(root, tmp_path), replicas(old.head.kernel)[0]
    table, buckets = words(z=9), dense({7: [7, 7]})
    model, root = build(1, table, buckets)
    report = restore(root, path)
    assert_holds(model.head.kernel, expected)
    assert rows_of(table) == {b"a": 1, b"b": 2}
    assert buckets.size() == 2 and buckets[tf.constant([1, 5, 7], tf.int64)].numpy().tolist() == [
        [1, 2],
        [3, 4],
        [-1, 0],
    ]
    found = entry(report.plan, "words")
    assert (
        found.status is dr.Status.EXACT and found.spec.dtype == "table<string, int64>" and found.sources == ("words",)
    )
    assert entry(report.plan, "parts/dense").status is dr.Status.EXACT
    assert report.coverage.variables == report.coverage.elements == 1
    assert not [u for u in report.plan.unused if "table" in u.name]


def test_a_renamed_table_and_one_below_private_attributes_follow_rules(tmp_path: pathlib.Path) -> None:
    class Holder(tf.Module):
        def __init__(self, name: str, table: Mutable) -> None:
            super().__init__()
            setattr(self, name, {"a.b/c": [table]})
            self.w = tf.Variable(float(len(rows_of(table))))

    path = save(Checkpoint(holder=Holder("_old", words(a=1, b=2))), tmp_path)
    table = words()
    holder = Holder("new", table)
    report = restore(Checkpoint(holder=holder), path)
    assert entry(report.plan, "holder/new/a.b/c/0").status is dr.Status.KEPT
    assert any(u.name == "holder/old/a.b/c/0" for u in report.plan.unused) and rows_of(table) == {}
    report = restore(Checkpoint(holder=holder), path, rules={"holder/old/{rest}": "holder/new/{rest}"})
    assert entry(report.plan, "holder/new/a.b/c/0").status is dr.Status.RENAMED
    assert rows_of(table) == {b"a": 1, b"b": 2} and holder.w == 2.0


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: Mutable(tf.int64, tf.int64, -1), "table<int64, int64>"),
        (lambda: Mutable(tf.string, tf.float32, -1.0), "table<string, float32>"),
        (lambda: Dense(tf.string, tf.int64, -1, empty_key="", deleted_key="-"), "dense_table<string, int64>"),
        (lambda: iter(numbers()), "iterator"),
        (lambda: tf.Variable(1.0), "float32"),
    ],
)
def test_another_kind_of_table_is_refused_before_anything_changes(
    tmp_path: pathlib.Path, make: Callable[[], object], found: str
) -> None:
    path = save(Checkpoint(v=tf.Variable(1.0), item=words(a=1)), tmp_path)
    item = make()
    root = Checkpoint(v=tf.Variable(2.0), item=item)
    error = refuse(dr.DtypeMismatchError, root, path, "item", f"expected {found}, found 'item' (table<string, int64>)")
    assert "item" in error.names
    if isinstance(item, Mutable):
        assert item.size() == 0


def test_rows_of_another_shape_are_refused_and_the_table_and_the_variables_have_what_they_had(
    tmp_path: pathlib.Path,
) -> None:
    first = words(a=1)
    path = save(Checkpoint(v=tf.Variable(1.0), a=first, b=dense({1: [1, 2]})), tmp_path)
    mine, other = words(z=9), dense({7: [7, 7, 7]}, default=(0.0, 0.0, 0.0))
    refuse(
        dr.RestoreError, Checkpoint(v=tf.Variable(2.0), a=mine, b=other), path, "'b': this DenseHashTable does not take"
    )
    assert rows_of(mine) == {b"z": 9}
    assert other.size() == 1 and other[tf.constant([7], tf.int64)].numpy().tolist() == [[7, 7, 7]]


@pytest.mark.parametrize("rows", [{1: [1, 2]}, {}, {i: [i, i] for i in range(1, 7)}])
def test_a_dense_table_of_another_empty_key_is_refused(tmp_path: pathlib.Path, rows: dict[int, list[float]]) -> None:
    """TensorFlow takes its empty buckets for rows, in silence."""
    path = save(Checkpoint(v=tf.Variable(1.0), t=dense(rows)), tmp_path)
    wrong = dense({}, empty=-5)
    Checkpoint(t=wrong).read(path).assert_existing_objects_matched()
    assert wrong.size() > len(rows)
    table = dense({7: [7, 7]}, empty=-5)
    refuse(dr.RestoreError, Checkpoint(v=tf.Variable(2.0), t=table), path, "'t'", "another empty_key")
    assert table.size() == 1
    table = dense({7: [7, 7]})
    restore(Checkpoint(v=tf.Variable(2.0), t=table), path)
    assert table.size() == len(rows)


@pytest.mark.parametrize(("empty", "deleted"), [(-2, -1), (-1, -6)], ids=["swapped", "deleted"])
def test_a_dense_table_of_other_keys_for_no_rows_is_refused(tmp_path: pathlib.Path, empty: int, deleted: int) -> None:
    """With the two swapped no bucket is empty, so that lookups fail; with another deleted key a removed row is back."""
    saved = dense({1: [1, 2], 2: [3, 4]})
    if empty == -1:
        saved.remove(tf.constant([1], tf.int64))
    path = save(Checkpoint(v=tf.Variable(1.0), t=saved), tmp_path)
    table = Dense(tf.int64, tf.float32, [-1.0, 0.0], empty_key=empty, deleted_key=deleted, initial_num_buckets=8)
    table.insert(tf.constant([7], tf.int64), tf.constant([[7.0, 7.0]]))
    refuse(dr.RestoreError, Checkpoint(v=tf.Variable(2.0), t=table), path, "'t'", "another empty_key or deleted_key")
    assert table.size() == 1


@pytest.mark.parametrize("value", [tf.int64, tf.float32])
def test_a_dense_table_of_strings(tmp_path: pathlib.Path, value: tf.DType) -> None:
    def make() -> Dense:
        return Dense(tf.string, value, -1, empty_key="", deleted_key="-")

    saved, mine = make(), make()
    saved.insert(tf.constant(["a", "b", "c"]), tf.constant([1, 2, 3], value))
    saved.remove(tf.constant(["c"]))
    mine.insert(tf.constant(["z"]), tf.constant([9], value))
    path = save(Checkpoint(v=tf.Variable(1.0), t=saved), tmp_path)
    restore(Checkpoint(v=tf.Variable(2.0), t=mine), path)
    assert mine.size() == 2 and mine.lookup(tf.constant(["a", "b", "c", "z"])).numpy().tolist() == [1, 2, -1, -1]


def test_a_damaged_table_is_found_before_anything_changes(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(v=tf.Variable(1.0), t=words(token=77)), tmp_path)
    data = pathlib.Path(f"{path}.data-00000-of-00001")
    data.write_bytes(data.read_bytes().replace(b"token", b"taken"))
    table = words(z=9)
    refuse(dr.CheckpointCorruptError, Checkpoint(v=tf.Variable(2.0), t=table), path, "'t'")
    assert rows_of(table) == {b"z": 9}


def test_an_error_among_the_variables_says_that_the_table_had_changed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(Checkpoint(v=tf.Variable(1.0), t=words(a=1)), tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise dr.RestoreError("the disk is gone.")

    monkeypatch.setattr("dist_restore.engine.assign_pass.stream", broken)
    v, table = tf.Variable(2.0), words(z=9)
    with pytest.raises(dr.RestoreError, match=r"the disk is gone. 1 variable\(s\) had changed already: 't'\."):
        restore(Checkpoint(v=v, t=table), path, verify="none")
    assert v == 2.0 and rows_of(table) == {b"a": 1}


def test_ops_are_refused_for_tables(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(v=tf.Variable(1.0), t=words(a=1)), tmp_path)
    rules = {"rule": [{"from": "t", "to": "t", "ops": [{"cast": {"dtype": "float32", "lossy": True}}]}]}
    refuse(dr.DtypeMismatchError, Checkpoint(v=tf.Variable(2.0), t=words()), path, "without ops", rules=rules)


def test_what_the_checkpoint_lacks_is_kept_and_what_the_program_lacks_is_listed(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(v=tf.Variable(1.0), theirs=words(a=1), place=iter(numbers())), tmp_path)
    mine = words(z=9)
    report = restore(Checkpoint(v=tf.Variable(2.0), mine=mine), path)
    kept = entry(report.plan, "mine")
    assert kept.status is dr.Status.KEPT and "no state of this name" in kept.reason and rows_of(mine) == {b"z": 9}
    assert {u.name for u in report.plan.unused} == {"theirs", "place"}


def test_keep_rules_hold_for_tables_and_plans_can_be_applied(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(v=tf.Variable(1.0), t=words(a=1)), tmp_path)
    table = words(z=9)
    restore(Checkpoint(v=tf.Variable(2.0), t=table), path, rules=[dr.Rule(keep="t")])
    assert rows_of(table) == {b"z": 9}
    restorer = dr.DistributedRestorer(Checkpoint(v=tf.Variable(2.0), t=table))
    plan = dr.RestorePlan.from_json(restorer.plan(path).to_json())
    assert rows_of(table) == {b"z": 9} and "table<string, int64>" in plan.to_json()
    restorer.apply(plan, path)
    assert rows_of(table) == {b"a": 1}


def test_the_state_of_a_table_is_no_tensor(tmp_path: pathlib.Path) -> None:
    source = dr.open_checkpoint(save(Checkpoint(t=words(a=1), i=iter(numbers())), tmp_path))
    assert [t.name for t in source.index().tensors] == ["i", "save_counter", "t"]
    for name in ("t", "i"):
        with pytest.raises(dr.UnsupportedFormatError, match=f"'{name}' is no tensor"):
            source.read(name)


# ---- Keras' lookup layers ----------------------------------------------------------------------------------


def text_layer() -> keras.layers.TextVectorization:
    """Adapted: it has a table of counts, which is empty afterwards. The vocabulary itself is not saved."""
    layer = keras.layers.TextVectorization(output_sequence_length=2, name="text")
    layer.adapt(["a b c"])
    return layer


def subclassed() -> keras.Model:
    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.text, self.embed, self.head = text_layer(), keras.layers.Embedding(5, 3), keras.layers.Dense(2)

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.head(self.embed(self.text(x)))

    model = Model()
    model(tf.constant(["a b"]))
    return model


def functional() -> keras.Model:
    inputs = keras.Input((), dtype="string")
    hidden = keras.layers.Embedding(5, 3, name="embed")(text_layer()(inputs))
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden))


@pytest.mark.parametrize("build", [subclassed, functional])
def test_a_model_with_a_text_layer_loads_its_own_checkpoint(
    tmp_path: pathlib.Path, trainable: Strategy, build: Callable[[], keras.Model]
) -> None:
    with trainable.scope():
        old, new = build(), build()
    scramble(old)
    path = save(Checkpoint(model=old), tmp_path)
    report = restore(Checkpoint(model=new), path)
    for one, other in zip(old.variables, new.variables, strict=True):
        assert_holds(other, replicas(one)[0])
    (table,) = [e for e in report.plan.entries if e.spec.is_object]
    assert table.target == "model/text/lookup_layer/token_counts"
    # The object graph of a functional model has no layer's name, only variables say theirs: its place is enough.
    assert table.status is (dr.Status.EXACT if build is subclassed else dr.Status.RENAMED)


@pytest.mark.parametrize("ruled", [False, True])
def test_the_counts_of_a_text_layer_in_a_functional_model_follow_its_place_or_a_rule(
    tmp_path: pathlib.Path, ruled: bool
) -> None:
    old, new = functional(), functional()
    counts(old).insert(["a"], tf.constant([7], tf.int64))
    path = save(Checkpoint(model=old), tmp_path)
    name = "model/{}/lookup_layer/token_counts"
    rules = {name.format("operations/1"): name.format("text")} if ruled else None
    restore(Checkpoint(model=new), path, rules=rules)
    assert rows_of(counts(new)) == {b"a": 7}


def counts(model: keras.Model) -> Mutable:
    return model.get_layer("text")._lookup_layer.token_counts


# ---- Iterators ---------------------------------------------------------------------------------------------


def test_an_iterator_goes_on_where_it_was(tmp_path: pathlib.Path, strategy: Strategy) -> None:
    iterator = iter(numbers())
    take(iterator, 3)
    with strategy.scope():
        old, new = tf.Variable([1.0, 2.0]), tf.Variable([0.0, 0.0])
    path = save(Checkpoint(v=old, data={"train": iterator}), tmp_path)
    resumed = iter(numbers())
    report = restore(Checkpoint(v=new, data={"train": resumed}), path)
    assert take(resumed, 2) == [[6, 7], [8, 9]]
    assert_holds(new, np.array([1, 2], np.float32))
    assert entry(report.plan, "data/train").spec.dtype == "iterator"
    renamed = iter(numbers())
    restore({"v": new, "input": renamed}, path, rules={"data/train": "input"})
    assert take(renamed) == [[6, 7]]


def test_an_iterator_of_another_dataset_is_refused_and_goes_on_where_it_was(tmp_path: pathlib.Path) -> None:
    old, table = iter(numbers()), words(a=1)
    take(old, 3)
    path = save(Checkpoint(v=tf.Variable(1.0), it=old, t=table), tmp_path)
    other, mine = iter(numbers().shuffle(4, seed=1)), words(z=9)
    take(other)
    saved = Checkpoint(it=other).write(str(tmp_path / "own"))
    expected = take(other, 3)
    Checkpoint(it=other).read(saved)
    root = Checkpoint(v=tf.Variable(2.0), it=other, t=mine)
    refuse(dr.RestoreError, root, path, "'it': this OwnedIterator does not take", 'keep = "it"')
    assert take(other, 3) == expected and rows_of(mine) == {b"z": 9}


def test_an_iterator_that_cannot_be_saved_is_refused_before_it_is_touched(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(v=tf.Variable(1.0), it=iter(numbers())), tmp_path)

    def python(x: tf.Tensor) -> tf.Tensor:
        return tf.py_function(lambda v: v, [x], tf.int64)

    iterator = iter(numbers().map(python))
    take(iterator)
    refuse(dr.RestoreError, Checkpoint(v=tf.Variable(2.0), it=iterator), path, "'it'", "cannot be saved")
    assert take(iterator) == [[2, 3]]


# ---- Generators --------------------------------------------------------------------------------------------


def draws(strategy: Strategy, generator: tf.random.Generator) -> list[list[float]]:
    found = strategy.run(tf.function(lambda: generator.uniform((3,))))
    return [x.numpy().tolist() for x in strategy.experimental_local_results(found)]


def test_a_generator_goes_on_on_every_replica(tmp_path: pathlib.Path, trainable: Strategy) -> None:
    with trainable.scope():
        generator = tf.random.Generator.from_seed(3)
    draws(trainable, generator)
    path = save(Checkpoint(rng=generator), tmp_path)
    expected = draws(trainable, generator)
    assert len({tuple(x) for x in expected}) == trainable.num_replicas_in_sync
    with trainable.scope():
        resumed = tf.random.Generator.from_seed(99)
    report = restore(Checkpoint(rng=resumed), path)
    assert draws(trainable, resumed) == expected
    assert entry(report.plan, "rng/state_var").status is dr.Status.EXACT


def test_a_generator_of_another_algorithm_is_refused(tmp_path: pathlib.Path) -> None:
    """Threefry's state is an element shorter than Philox'; both have a counter and a key."""
    path = save(Checkpoint(v=tf.Variable(1.0), rng=tf.random.Generator.from_seed(3, alg="philox")), tmp_path)
    rng = tf.random.Generator.from_seed(4, alg="threefry")
    root = Checkpoint(v=tf.Variable(2.0), rng=rng)
    refuse(dr.ShapeMismatchError, root, path, "rng/state_var int64[2]", "[3]")
    assert rng.state.numpy().tolist() == [4, 0]
