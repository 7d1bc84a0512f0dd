"""New checkpoints: what they hold, who can restore them, and what is refused before they appear."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

import dist_restore as dr
import live
from dist_restore.restore import bundle_writer
from lm.sizes import Sizes
from lm.state import build
from places import ROOT

LM_RULES = ROOT / "configs" / "rules" / "lm_v1_to_v2.toml"
RULES = {
    "rule": [
        {"from": ["model/q/kernel", "model/k/kernel"], "to": "model/qk/kernel", "ops": [{"concat": {"axis": -1}}]},
        {"from": "model/head/kernel", "to": "model/out/kernel", "ops": [{"fit": {"fill": "keep"}}]},
        {"from": "model/head/bias", "to": "model/out/bias"},
        {"drop": "model/{rest}"},
        {"keep": "model/qk/bias"},
    ]
}


def old(seed: int = 1) -> tf.train.Checkpoint:
    return checkpoint(live.net(4, q=4, k=3, head=4), seed)


def new(seed: int = 2) -> tf.train.Checkpoint:
    return checkpoint(live.net(4, qk=7, out=4), seed)


def checkpoint(model: keras.Model, seed: int, **more: object) -> tf.train.Checkpoint:
    root = tf.train.Checkpoint(model=model, optimizer=live.adam(model), step=tf.Variable(0, dtype=tf.int64), **more)
    live.scramble(root, seed=seed)
    return root


def held(root: tf.train.Checkpoint) -> list[np.ndarray]:
    return live.values([*root.model.variables, *root.optimizer.variables, root.step])


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def natively(path: str, root: tf.train.Checkpoint) -> tf.train.Checkpoint:
    live.natively(root, path)
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return live.save(old(), tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the new checkpoint may look like."""
    return live.save(new(), tmp_path_factory.mktemp("like"))


@pytest.fixture(scope="module")
def restored(source: str) -> list[np.ndarray]:
    """What a restore makes of the old checkpoint."""
    root = new()
    live.restore(root, source, rules=RULES)
    return held(root)


Make = Callable[..., dr.CheckpointConverter]


@pytest.fixture(params=["like", "target"])
def make(request: pytest.FixtureRequest, other: str) -> Make:
    """Converters for the new model, known as another checkpoint or as live objects of the same values."""

    def made(**options: object) -> dr.CheckpointConverter:
        options = {"rules": RULES, **options}
        if request.param == "like":
            return dr.CheckpointConverter(like=other, **options)
        return dr.CheckpointConverter(new(), **options)

    return made


# ---- What is written ---------------------------------------------------------------------------------------


def test_everybody_restores_what_a_restore_would_have_made(
    make: Make, source: str, restored: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    to = str(tmp_path / "made" / "ckpt-7")
    report = make().convert(source, to)
    assert_equal(held(natively(to, new(5))), restored)
    again = new(6)
    live.restore(again, to)
    assert_equal(held(again), restored)
    assert report.path == to and report.bytes_written == sum(map(len, files(tmp_path).values()))


def test_kept_values_are_said(make: Make, source: str, other: str, tmp_path: pathlib.Path) -> None:
    report = make().convert(source, tmp_path / "ckpt")
    assert report.kept[:1] == ("model/qk/bias",) and len(report.kept) == 3
    assert "kept, with the value" in report.summary() and "model/qk/bias" in report.summary()
    found = natively(str(tmp_path / "ckpt"), new(5))
    live.assert_holds(found.model.qk.bias, live.value(natively(other, new(6)).model.qk.bias))


def test_live_objects_keep_their_values(source: str, tmp_path: pathlib.Path) -> None:
    root = new()
    before = live.snapshot(root)
    dr.CheckpointConverter(root, rules=RULES).convert(source, tmp_path / "ckpt")
    live.assert_unchanged(before)


def test_nothing_but_the_checkpoint_is_left(make: Make, source: str, tmp_path: pathlib.Path) -> None:
    make().convert(source, tmp_path / "ckpt-1")
    assert set(files(tmp_path)) == {"ckpt-1.index", "ckpt-1.data-00000-of-00001"}
    assert tf.train.latest_checkpoint(str(tmp_path)) is None


def test_the_latest_checkpoint_is_named_where_that_is_wanted(make: Make, source: str, tmp_path: pathlib.Path) -> None:
    first = live.save(new(), tmp_path)
    make(latest=True).convert(source, tmp_path / "ckpt-2")
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-2")
    state = tf.train.get_checkpoint_state(str(tmp_path))
    assert list(state.all_model_checkpoint_paths) == [first, str(tmp_path / "ckpt-2")]


def test_small_budgets_make_many_data_files_of_the_same_values(
    make: Make, source: str, restored: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    make(memory_budget=400).convert(source, tmp_path / "ckpt")
    assert len(files(tmp_path)) > 5
    assert_equal(held(natively(str(tmp_path / "ckpt"), new(5))), restored)


def test_a_plan_that_was_made_before_is_carried_out(
    make: Make, source: str, restored: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    plan = dr.RestorePlan.from_json(make().plan(source).to_json())
    make(rules=None).apply(plan, source, tmp_path / "ckpt")
    assert_equal(held(natively(str(tmp_path / "ckpt"), new(5))), restored)


def test_a_restorers_plan_is_carried_out(source: str, restored: list[np.ndarray], tmp_path: pathlib.Path) -> None:
    root = new()
    plan = dr.DistributedRestorer(root, rules=RULES).plan(source)
    dr.CheckpointConverter(root).apply(plan, source, tmp_path / "ckpt")
    assert_equal(held(natively(str(tmp_path / "ckpt"), new(5))), restored)


def test_other_formats_become_tensorflow_checkpoints(make: Make, tmp_path: pathlib.Path) -> None:
    arrays = {
        f"model.{layer}.{name}": np.random.default_rng([i]).normal(size=shape).astype(np.float32)
        for i, (layer, name, shape) in enumerate(
            [("qk", "kernel", (4, 7)), ("qk", "bias", (7,)), ("out", "kernel", (7, 4)), ("out", "bias", (4,))]
        )
    }
    save_file(arrays, tmp_path / "old.safetensors")
    report = make(rules=None, unmatched="keep").convert(tmp_path / "old.safetensors", tmp_path / "ckpt")
    model = natively(str(tmp_path / "ckpt"), new(5)).model
    live.assert_all_hold([model.qk.kernel, model.qk.bias, model.out.kernel, model.out.bias], list(arrays.values()))
    assert "step" in report.kept


def test_names_that_only_live_objects_have_are_planned(tmp_path: pathlib.Path) -> None:
    """Version 2 keeps its blocks in a list: no checkpoint has their names, and a target has."""

    def lm(version: int, seed: int) -> tf.train.Checkpoint:
        root = build(version, Sizes(width=16)).checkpoint()
        live.scramble(root, seed=seed)
        return root

    path = live.save(lm(1, 1), tmp_path / "v1")
    dr.CheckpointConverter(lm(2, 2), rules=LM_RULES).convert(path, tmp_path / "v2" / "ckpt")
    expected = lm(2, 3)
    live.restore(expected, path, rules=LM_RULES)
    assert_equal(held(natively(str(tmp_path / "v2" / "ckpt"), lm(2, 4))), held(expected))


def test_a_bare_model_is_a_target_too(tmp_path: pathlib.Path) -> None:
    model, expected, found = live.seq("ab"), live.seq("ab"), live.seq("ab")
    live.scramble(expected, seed=5)
    path = live.save(tf.train.Checkpoint(expected), tmp_path / "old")
    dr.CheckpointConverter(model).convert(path, tmp_path / "new" / "ckpt")
    natively(str(tmp_path / "new" / "ckpt"), tf.train.Checkpoint(found))
    assert_equal(live.values(found.variables), live.values(expected.variables))


def test_mirrored_targets_are_written_once(source: str, restored: list[np.ndarray], tmp_path: pathlib.Path) -> None:
    strategy = tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU")[:2])
    with strategy.scope():
        root = new()
    dr.CheckpointConverter(root, rules=RULES).convert(source, tmp_path / "ckpt")
    assert_equal(held(natively(str(tmp_path / "ckpt"), new(5))), restored)


def test_slots_that_the_object_graph_lists_are_restored(tmp_path: pathlib.Path) -> None:
    """Optimizers of tf_keras: slots are no children of anything, and the graph says whose they are."""
    import tf_keras

    class Legacy(tf_keras.Model):
        def __init__(self, names: str) -> None:
            super().__init__()
            for name in names.split():
                setattr(self, name, tf_keras.layers.Dense(3))
            self.order = names.split()

        def call(self, x: tf.Tensor) -> tf.Tensor:
            for name in self.order:
                x = getattr(self, name)(x)
            return x

    def legacy(names: str, seed: int) -> tf.train.Checkpoint:
        model = Legacy(names)
        model(tf.zeros((1, 3)))
        optimizer = tf_keras.optimizers.legacy.Adam()
        optimizer.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])
        live.scramble(optimizer.variables() + model.variables, seed=seed)
        return tf.train.Checkpoint(model=model, optimizer=optimizer)

    path = live.save(legacy("a b", 1), tmp_path / "old")
    other = live.save(legacy("c d", 2), tmp_path / "like")
    rules = {f"model/{a}/{{rest}}": f"model/{b}/{{rest}}" for a, b in ("ac", "bd")}
    dr.CheckpointConverter(like=other, rules=rules).convert(path, tmp_path / "ckpt")
    expected, found = legacy("a b", 1), legacy("c d", 3)
    live.natively(found, str(tmp_path / "ckpt"))
    assert_equal(live.values(found.model.variables), live.values(expected.model.variables))
    assert_equal([v.numpy() for v in found.optimizer.variables()], [v.numpy() for v in expected.optimizer.variables()])


def test_state_that_is_no_variable_is_copied(source: str, tmp_path: pathlib.Path) -> None:
    def with_data(seed: int) -> tf.train.Checkpoint:
        return checkpoint(live.net(4, qk=7, out=4), seed, data=iter(tf.data.Dataset.range(10)))

    root = with_data(2)
    for _ in range(4):
        next(root.data)
    other = live.save(root, tmp_path / "like")
    report = dr.CheckpointConverter(like=other, rules=RULES).convert(source, tmp_path / "ckpt")
    assert len(report.copied) == 1 and "copied" in report.summary()
    assert int(next(natively(str(tmp_path / "ckpt"), with_data(3)).data)) == 4


# ---- Backwards ---------------------------------------------------------------------------------------------


class Parallel(live.Net):
    """Layers side by side, so that any sizes fit."""

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return keras.ops.concatenate([getattr(self, name)(x) for name in self.order], -1)


def parallel(seed: int, **sizes: int) -> tf.train.Checkpoint:
    model = Parallel(**{name: keras.layers.Dense(size) for name, size in sizes.items()})
    model(tf.zeros((1, 4)))
    return checkpoint(model, seed)


TWO_WAYS = dr.RuleSet.of(
    {
        "rule": [
            {"from": ["model/q/{part}", "model/k/{part}"], "to": "model/qk/{part}", "ops": [{"concat": {"axis": -1}}]},
            {"from": "model/head/{part}", "to": "model/out/{part}", "ops": [{"scale": {"by": 0.5}}]},
        ]
    }
)


@pytest.mark.parametrize(
    ("k", "back"), [(3, {"rules": TWO_WAYS, "invert_rules": True}), (4, {"rules": TWO_WAYS.inverse()})]
)
@pytest.mark.parametrize("given", ["like", "target"])
def test_there_and_back_again_is_the_same_bit_by_bit(
    given: str, k: int, back: dict[str, object], tmp_path: pathlib.Path
) -> None:
    path = live.save(parallel(1, q=4, k=k, head=2), tmp_path / "old")
    middle, end = str(tmp_path / "new" / "ckpt"), str(tmp_path / "back" / "ckpt")
    dr.CheckpointConverter(parallel(2, qk=4 + k, out=2), rules=TWO_WAYS).convert(path, middle)
    target = {"like": path} if given == "like" else {"target": parallel(3, q=4, k=k, head=2)}
    report = dr.CheckpointConverter(**target, **back).convert(middle, end)
    assert report.kept == ()
    found, expected = (natively(p, parallel(4, q=4, k=k, head=2)) for p in (end, path))
    assert_equal(held(found), held(expected))


def test_what_was_lost_on_the_way_there_is_refused_on_the_way_back(
    source: str, other: str, tmp_path: pathlib.Path
) -> None:
    convert = dr.CheckpointConverter(like=source, rules={"model/q/kernel": "model/out/kernel"}, invert_rules=True)
    refuse(dr.UnmatchedError, lambda: convert.convert(other, tmp_path / "ckpt"), tmp_path, "model/k/kernel")
    rounded = [{"from": "model/head/bias", "to": "model/out/bias", "ops": [{"scale": {"by": 0.3}}]}]
    convert = dr.CheckpointConverter(like=source, rules={"rule": rounded}, invert_rules=True)
    refuse(dr.RuleError, lambda: convert.convert(other, tmp_path / "ckpt"), tmp_path, "model/out/bias", "rounds")


# ---- What is refused, and what an error leaves --------------------------------------------------------------


def refuse(error: type[BaseException], convert: Callable[[], object], folder: pathlib.Path, *words: str) -> None:
    """The conversion raises this, and no file has changed."""
    before = files(folder), sorted(folder.rglob("*"))
    with pytest.raises(error) as caught:
        convert()
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), caught.value
    assert (files(folder), sorted(folder.rglob("*"))) == before


def test_what_has_no_source_is_refused(make: Make, source: str, tmp_path: pathlib.Path) -> None:
    refuse(dr.UnmatchedError, lambda: make(rules=None).convert(source, tmp_path / "a" / "c"), tmp_path, "model/qk")


def test_an_existing_checkpoint_is_replaced_only_where_that_is_wanted(
    make: Make, source: str, restored: list[np.ndarray], tmp_path: pathlib.Path
) -> None:
    make(memory_budget=400).convert(source, tmp_path / "ckpt")
    refuse(dr.RestoreError, lambda: make().convert(source, tmp_path / "ckpt"), tmp_path, "exists")
    make(overwrite=True).convert(source, tmp_path / "ckpt")
    assert set(files(tmp_path)) == {"ckpt.index", "ckpt.data-00000-of-00001"}
    assert_equal(held(natively(str(tmp_path / "ckpt"), new(5))), restored)


def test_a_directory_is_no_prefix(make: Make, source: str, tmp_path: pathlib.Path) -> None:
    refuse(dr.RestoreError, lambda: make().convert(source, tmp_path), tmp_path, "is a directory")
    refuse(dr.RestoreError, lambda: make().convert(source, f"{tmp_path}/"), tmp_path, "is a directory")


def test_what_is_read_is_never_written(tmp_path: pathlib.Path) -> None:
    source, other = live.save(old(), tmp_path / "a"), live.save(new(), tmp_path / "b")
    converter = dr.CheckpointConverter(like=other, rules=RULES, overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    for to in (source, other, tmp_path / "link" / os.path.basename(source)):
        refuse(dr.RestoreError, lambda to=to: converter.convert(source, to), tmp_path, "what is read from")


def test_a_damaged_source_leaves_nothing(make: Make, tmp_path: pathlib.Path) -> None:
    path = live.save(old(), tmp_path / "old")
    data = pathlib.Path(f"{path}.data-00000-of-00001")
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    refuse(dr.CheckpointCorruptError, lambda: make().convert(path, tmp_path / "new" / "ckpt"), tmp_path)


def test_a_cast_that_loses_a_value_leaves_nothing(tmp_path: pathlib.Path) -> None:
    path = tf.train.Checkpoint(a=tf.Variable([1.0, 70000.0]), b=tf.Variable(1.0)).save(str(tmp_path / "a" / "ckpt"))
    half = tf.train.Checkpoint(a=tf.Variable([0, 0], dtype=tf.float16), b=tf.Variable(0.0))
    convert = dr.CheckpointConverter(half).convert
    refuse(dr.DtypeMismatchError, lambda: convert(path, tmp_path / "ckpt"), tmp_path, "70000")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")], ids=["interrupt", "disk"])
@pytest.mark.parametrize("step", ["_flush", "_verify", "_move"])
def test_an_interrupt_or_an_error_leaves_what_was_there(
    step: str, error: BaseException, source: str, other: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.save(new(9), tmp_path)
    own = getattr(bundle_writer.BundleWriter, step)

    def failing(*args: object) -> None:
        own(*args) if step != "_move" else None
        raise error

    monkeypatch.setattr(bundle_writer.BundleWriter, step, failing)
    converter = dr.CheckpointConverter(like=other, rules=RULES, overwrite=True)
    kind = error if isinstance(error, type) else type(error)
    refuse(kind, lambda: converter.convert(source, tmp_path / "ckpt-1"), tmp_path)


@pytest.mark.parametrize("last", range(1, 5))
def test_an_error_between_renames_brings_the_old_checkpoint_back(
    last: int, source: str, other: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.save(new(9), tmp_path)
    own, calls = tf.io.gfile.rename, list[str]()

    def rename(source: str, target: str, overwrite: bool = False) -> None:
        calls.append(source)
        if len(calls) == last:
            raise KeyboardInterrupt
        own(source, target, overwrite)

    monkeypatch.setattr(tf.io.gfile, "rename", rename)
    converter = dr.CheckpointConverter(like=other, rules=RULES, overwrite=True)
    refuse(KeyboardInterrupt, lambda: converter.convert(source, tmp_path / "ckpt-1"), tmp_path)


def test_weights_that_tensorflow_would_not_save_are_refused(tmp_path: pathlib.Path) -> None:
    path = live.save(tf.train.Checkpoint(model=live.stack(2, names=lambda i: f"b{i}")), tmp_path / "a")
    full = live.stack(2, names=lambda i: f"b{i}")
    everything = tf.train.Checkpoint(model=full, blocks=list(full.blocks))
    path = live.save(everything, tmp_path / "b")
    target = tf.train.Checkpoint(model=live.stack(2, names=lambda i: f"b{i}"))
    rules = {"blocks/{i}/{rest}": "model/blocks/{i}/{rest}"}
    convert = dr.CheckpointConverter(target, rules=rules).convert
    refuse(dr.UnmatchedError, lambda: convert(path, tmp_path / "ckpt"), tmp_path, "saves none of them")


def test_a_plan_for_another_model_is_refused(make: Make, source: str, tmp_path: pathlib.Path) -> None:
    plan = dr.DistributedRestorer(old()).plan(source)
    refuse(dr.PlanMismatchError, lambda: make().apply(plan, source, tmp_path / "ckpt"), tmp_path)


def test_like_must_have_an_object_graph_to_give(source: str, tmp_path: pathlib.Path) -> None:
    save_file({"model.a": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    convert = dr.CheckpointConverter(like=tmp_path / "x.safetensors").convert
    refuse(dr.UnsupportedFormatError, lambda: convert(source, tmp_path / "ckpt"), tmp_path, "no object graph")


def test_either_target_or_like(source: str) -> None:
    with pytest.raises(ValueError, match="either"):
        dr.CheckpointConverter()
    with pytest.raises(ValueError, match="either"):
        dr.CheckpointConverter(new(), like=source)
